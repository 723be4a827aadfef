//! Wiring and supervision of the loops: sources, intake, normalizing, one forward loop per destination, packs, clock,
//! upkeep of the store, control socket and status page.
//!
//! All loops are tasks of one thread and share a [`Pipeline`]; the store and HTTP run on threads of their own behind the
//! worker seam. What is outside (threads, sockets, serial ports) comes through [`Surroundings`], so that a simulation runs
//! the same wiring with doubles.
//!
//! # Memory
//!
//! Nothing grows with a backlog: rows of the outbox are ranges of positions, and what holds messages, or what they became, has
//! a limit in bytes:
//!
//! | What | Limit |
//! |---|---|
//! | messages that wait for their commit, of each MQTT source | 8 MiB, or four of the largest size |
//! | messages that were committed last, with their measurements | 1.5 MiB (`pipeline.rs`) |
//! | readings on their way to a destination | 2 MiB that gather, and as much under way (`forward/gather.rs`) |
//! | Observations as a server has them, as text | 1 MiB for each destination (`forward/fhir/recent.rs`) |
//! | bodies of requests under way | 4 of at most 1 MiB (`forward/fhir/server.rs`) |
//! | one read of the journal; the last packets at a start | 32 KiB compressed; a batch at a time |
//! | pages of SQLite | 1 MiB |

mod association;
mod door;
mod dropped;
mod forwarding;
mod memory;
mod opening;
mod report;
mod salvage;
mod surroundings;
mod upkeep;

pub use association::{associate_in_store, associations_in_store};
pub use door::Door;
pub use opening::Waiting;
pub use salvage::Handed;
pub use surroundings::{RealSurroundings, SourceDouble, StartedSource, Surroundings};

use crate::bounds::{self, Bounds};
use crate::clock;
use crate::config::{Config, DestinationKind, EventPayload, SourceConfig, SourceKind};
use crate::corrections::{Corrections, Windows};
use crate::former::FormerStores;
use crate::forward::pass::LinkState;
use crate::forward::{DestinationHandle, Destinations};
use crate::ingest::payload::Memory;
use crate::ingest::payload::memory::Learnt;
use crate::ingest::{Ending, SourceContext, SourceEvent, SourceStatus};
use crate::intake::{self, CommitPolicy};
use crate::message::{Message, SourceId};
use crate::packs::{PackFolder, PackProblem, PackSet};
use crate::pipeline::{DiskState, PackBook, Pipeline, Recent};
use crate::store::outbox::Outbox;
use crate::store::salvage::Salvage;
use crate::store::{Loss, Recovered, Store, StoreError, StoreHandle};
use crate::telemetry::status::Summary;
use crate::timekeeping::device::Clocks;
use crate::wear::Governor;
use crate::worker::Worker;
use anyhow::Context as _;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};

/// Messages that the channel between sources and intake holds; more than any window, so that polling never stops.
const CHANNEL: usize = 4096;
/// Longest time that a stop waits for what is in flight.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Longest time that a source may take to send its last acknowledgements.
const SOURCE_STOP_LIMIT: Duration = Duration::from_secs(2);

/// A source as the agent knows it.
pub(crate) struct SourceEntry {
    pub(crate) id: SourceId,
    pub(crate) config: SourceConfig,
    /// What it knew when the agent stopped.
    memory: Memory,
    pub(crate) status: Arc<SourceStatus>,
}

/// A destination as the agent knows it.
pub(crate) struct DestinationEntry {
    pub(crate) handle: DestinationHandle,
    pub(crate) kind: &'static str,
    pub(crate) link: Rc<RefCell<LinkState>>,
}

/// The running agent, for whoever shows it.
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) pipeline: Rc<Pipeline>,
    pub(crate) store_folder: PathBuf,
    pub(crate) store_id: Arc<str>,
    pub(crate) sources: Vec<SourceEntry>,
    pub(crate) destinations: Vec<DestinationEntry>,
    pub(crate) pack_set: RefCell<Arc<PackSet>>,
    pub(crate) pack_problems: RefCell<Arc<Vec<PackProblem>>>,
    /// What is wrong with dropped files of associations.
    pub(crate) association_problems: RefCell<Vec<String>>,
    pub(crate) started: Instant,
}

/// How the agent stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stopping {
    /// Time to send what is in the buffer after the sources have stopped.
    pub drain: Duration,
}

/// Runs the agent until `stop` turns true; `ready` is called once the sources are started. Must run inside a
/// `tokio::task::LocalSet`. Returns the final accounts.
///
/// # Errors
/// When the store cannot be opened for another reason than its disk, which is waited for, or a loop ends by itself.
pub async fn run(
    config: Config,
    surroundings: &dyn Surroundings,
    stopping: Stopping,
    stop: watch::Receiver<bool>,
    ready: impl FnOnce(Rc<Agent>),
) -> anyhow::Result<Summary> {
    let store_folder = store_folder(&config);
    let worker = surroundings.store_worker().context("no thread for the store")?;
    let Some(opened) = opening::open(&config, &worker, surroundings, stop.clone()).await? else {
        return Ok(Summary::default());
    };
    let (store, mut recovered, last_good) = (opened.store, opened.recovered, opened.last_good);
    let (source_ids, destination_ids) = (opened.sources, opened.destinations);
    let mut records = HashMap::new();
    for id in &source_ids {
        records.insert(*id, store.sent_records(*id)?);
    }
    if let Some(aside) = &recovered.set_aside {
        tracing::error!(
            "the store was damaged and is set aside as {}; a new one was begun",
            aside.display()
        );
    }
    let salvages = std::mem::take(&mut recovered.salvages);
    let salvaged = store.salvages()?;
    let (book, corrections) = (opened.book, opened.corrections);
    let memories = config.sources.iter().zip(&source_ids);
    let memories = memories
        .map(|(source, id)| memory::recall(&store, *id, source))
        .collect::<Vec<_>>();
    let store = StoreHandle::new(store, worker);

    let pipeline = Rc::new(pipeline(&config, &recovered, store, &destination_ids));
    *pipeline.associations.borrow_mut() = book;
    *pipeline.corrections.borrow_mut() =
        Corrections::restore(corrections, Windows::of(&config.destinations, &destination_ids));
    let agent = Rc::new(Agent {
        sources: source_ids
            .iter()
            .zip(&config.sources)
            .zip(memories)
            .map(|((id, config), memory)| SourceEntry {
                id: *id,
                config: config.clone(),
                memory,
                status: Arc::new(SourceStatus::default()),
            })
            .collect(),
        destinations: destination_ids
            .iter()
            .zip(&config.destinations)
            .map(|(id, d)| destination_entry(*id, d))
            .collect(),
        store_folder: store_folder.clone(),
        store_id: Arc::from(recovered.store_id.as_str()),
        pack_set: RefCell::default(),
        pack_problems: RefCell::default(),
        association_problems: RefCell::default(),
        started: Instant::now(),
        pipeline,
        config,
    });
    *agent.pipeline.former.states.borrow_mut() = salvaged;
    let salvages = salvage::prepare(&agent, salvages);
    Running::start(agent, surroundings, recovered, salvages, records, last_good)
        .await?
        .until(stop, stopping, ready)
        .await
}

/// What the loops of the service share, for a command while the service is down. Nothing runs.
pub struct AtRest {
    /// Shared state, over the store.
    pub pipeline: Rc<Pipeline>,
    /// The destinations of the configuration.
    pub destinations: Destinations,
    /// Names of the sources.
    pub sources: HashMap<SourceId, Arc<str>>,
}

/// Opens the store of a service that is down, with the packs and destinations that the configuration names now.
///
/// # Errors
/// When the service runs, or the store cannot be opened.
pub fn at_rest(config: &Config) -> anyhow::Result<AtRest> {
    let folder = store_folder(config);
    let (mut store, recovered) = Store::open_at_rest(&folder, &config.store.encryption)
        .with_context(|| format!("store in {}", folder.display()))?;
    store.set_limit(config.store.max_bytes.0)?;
    let mut ids = Vec::new();
    for destination in &config.destinations {
        ids.push(store.destination(&destination.name)?);
    }
    let mut sources = HashMap::new();
    for source in &config.sources {
        sources.insert(store.source(&source.name)?, Arc::from(source.name.as_str()));
    }
    let last_good = store
        .last_good_packs()?
        .and_then(|bundle| PackSet::texts(&bundle));
    let packs = PackFolder::open(&config.mappings.dir, last_good.unwrap_or_default()).packs();
    let packs = packs.borrow().clone();
    let pipeline = pipeline(
        config,
        &recovered,
        StoreHandle::new(store, Worker::inline()),
        &ids,
    );
    for source in &config.sources {
        let id = sources
            .iter()
            .find(|(_, name)| ***name == *source.name)
            .map(|(id, _)| *id);
        if let Some(id) = id {
            let own = packs
                .for_source(source.packs.as_deref())
                .with_clocks(&Arc::new(config.clock.rules()));
            pipeline.packs.borrow_mut().set_current(id, own);
        }
    }
    let handles = ids
        .iter()
        .zip(&config.destinations)
        .map(|(id, d)| destination_entry(*id, d).handle);
    Ok(AtRest {
        destinations: Destinations(handles.collect()),
        sources,
        pipeline: Rc::new(pipeline),
    })
}

/// The folder of the store: configured, or the service's state directory.
pub fn store_folder(config: &Config) -> PathBuf {
    config.store.dir.clone().unwrap_or_else(|| {
        std::env::var_os("STATE_DIRECTORY")
            .map_or_else(|| Path::new("/var/lib/bedside-agent").to_owned(), PathBuf::from)
    })
}

fn pipeline(config: &Config, recovered: &Recovered, store: StoreHandle, destinations: &[u32]) -> Pipeline {
    let mut outbox = Outbox::restore(recovered, destinations, clock::monotonic_us());
    // A share of their own: a flood of them takes nothing from good readings.
    outbox.limit_letters(config.store.max_bytes.0 / 32);
    let former = FormerStores::new(recovered.former_runs.clone());
    Pipeline {
        store,
        outbox: RefCell::new(outbox),
        recent: RefCell::new(Recent::default()),
        packs: RefCell::new(PackBook::restore(&recovered.revisions)),
        associations: Rc::default(),
        corrections: RefCell::default(),
        clock: RefCell::default(),
        device_clocks: RefCell::new(Clocks::restore(
            &recovered.device_clocks,
            former.identities.clone(),
        )),
        dating: RefCell::new(recovered.dating.clone()),
        head: Cell::new(recovered.next_position),
        committed: Notify::new(),
        normalized: Notify::new(),
        boot: recovered.boot,
        trust: config.clock.trust,
        learnt: Learnt::default(),
        isolation: recovered.isolation.clone(),
        bounds: Bounds::new(bounds::Settings {
            max_bytes: config.store.max_bytes.0,
            history_us: config.history_us(),
            unmatched_keep: (config.store.unmatched_keep.0 * 10) as i64,
            max_age: config.store.max_age.map(|age| (age.0 * 10) as i64),
            min_free_disk: config.store.min_free_disk.0,
            destinations: destinations
                .iter()
                .zip(&config.destinations)
                .map(|(id, d)| destination_entry(*id, d).handle)
                .collect(),
        }),
        former,
        disk: DiskState::new(store_folder(config)),
        wear: RefCell::new(Governor::new(
            config.store.flash_budget,
            config.store.commit_interval.0,
            config.store.commit_interval_max.0,
        )),
        check: RefCell::default(),
        fatal: RefCell::default(),
        ending: Notify::new(),
        beats: RefCell::default(),
    }
}

fn destination_entry(id: u32, config: &crate::config::DestinationConfig) -> DestinationEntry {
    let (kind, takes_messages, groups_by_period, flush_interval) = match &config.kind {
        DestinationKind::Fhir(fhir) => ("fhir", false, true, fhir.flush_interval),
        DestinationKind::EventHub(hub) => (
            "event-hub",
            hub.payload == EventPayload::Message,
            hub.payload == EventPayload::Observation,
            300,
        ),
    };
    DestinationEntry {
        handle: DestinationHandle {
            id,
            name: Arc::from(config.name.as_str()),
            takes_messages,
            groups_by_period,
            flush_interval_us: flush_interval * 1_000_000,
        },
        kind,
        link: Rc::default(),
    }
}

/// The started loops.
struct Running {
    agent: Rc<Agent>,
    sources: Vec<JoinHandle<()>>,
    ending: Arc<Ending>,
    intake: JoinHandle<Result<(), StoreError>>,
    normalizing: JoinHandle<Result<(), StoreError>>,
    forwarding: Vec<JoinHandle<Result<(), StoreError>>>,
    helpers: Vec<JoinHandle<()>>,
    stop_intake: watch::Sender<bool>,
    stop_normalizing: watch::Sender<bool>,
    stop_forwarding: watch::Sender<bool>,
}

impl Running {
    async fn start(
        agent: Rc<Agent>,
        surroundings: &dyn Surroundings,
        recovered: Recovered,
        salvages: Vec<Salvage>,
        mut records: HashMap<SourceId, Vec<u64>>,
        last_good: Option<Vec<u8>>,
    ) -> anyhow::Result<Running> {
        let pipeline = &agent.pipeline;
        let destinations = Rc::new(Destinations(
            agent.destinations.iter().map(|d| d.handle.clone()).collect(),
        ));
        let mut helpers =
            upkeep::start_packs(&agent, surroundings, Rc::clone(&destinations), last_good).await?;
        let (sender, receiver) = mpsc::channel::<Message>(CHANNEL);
        let (events, source_events) = mpsc::unbounded_channel();
        let ending = Arc::new(Ending::default());
        let mut handles = Vec::new();
        let mut sources = Vec::new();
        for entry in &agent.sources {
            let resume = recovered
                .resume
                .iter()
                .filter(|last| last.source == entry.id)
                .map(|last| last.packet)
                .collect();
            let context = SourceContext {
                id: entry.id,
                name: Arc::from(entry.config.name.as_str()),
                gateway_id: Arc::from(agent.config.gateway.id.as_str()),
                boot: pipeline.boot,
                trust: pipeline.trust,
                sender: sender.clone(),
                resume,
                memory: Memory {
                    learnt: pipeline.learnt.clone(),
                    ..entry.memory.clone()
                },
                records: records.remove(&entry.id).unwrap_or_default(),
                ending: Arc::clone(&ending),
                status: Arc::clone(&entry.status),
                events: events.clone(),
            };
            let (handle, source) = surroundings
                .start_source(&entry.config, context)
                .map_err(|e| anyhow::anyhow!("source {}: {}", entry.config.name, e.text))?;
            handles.push(handle);
            sources.push(spawn_local(source));
        }
        drop(sender);
        let (portions, salvaged) = mpsc::channel(1);
        let (stop_intake, intake_stop) = watch::channel(false);
        let (stop_normalizing, normalizing_stop) = watch::channel(false);
        let (stop_forwarding, forwarding_stop) = watch::channel(false);
        let store = &agent.config.store;
        let policy = CommitPolicy {
            progress_interval: Duration::from_micros(store.progress_interval.0),
            messages: 1000,
            bytes: 1 << 20,
        };
        let intake = spawn_local(intake::run(
            Rc::clone(pipeline),
            policy,
            handles,
            receiver,
            salvaged,
            intake_stop,
        ));
        let normalizing = spawn_local(crate::process::run(
            Rc::clone(pipeline),
            Rc::clone(&destinations),
            normalizing_stop,
        ));
        let forwarding = forwarding::start(&agent, surroundings, &forwarding_stop)?;
        helpers.push(spawn_local(upkeep::clock_loop(Rc::clone(&agent))));
        helpers.push(spawn_local(upkeep::store_loop(Rc::clone(&agent))));
        helpers.push(spawn_local(upkeep::check_loop(Rc::clone(&agent))));
        if !salvages.is_empty() {
            let reader = surroundings.salvage_reader()?;
            helpers.push(spawn_local(salvage::salvage_loop(
                Rc::clone(&agent),
                reader,
                salvages,
                portions,
            )));
        }
        helpers.push(spawn_local(dropped::watch(Rc::clone(&agent))));
        helpers.push(spawn_local(ledger_events(Rc::clone(pipeline), source_events)));
        Ok(Running {
            agent,
            sources,
            ending,
            intake,
            normalizing,
            forwarding,
            helpers,
            stop_intake,
            stop_normalizing,
            stop_forwarding,
        })
    }

    async fn until(
        mut self,
        mut stop: watch::Receiver<bool>,
        stopping: Stopping,
        ready: impl FnOnce(Rc<Agent>),
    ) -> anyhow::Result<Summary> {
        ready(Rc::clone(&self.agent));
        let ended = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => None,
            ended = &mut self.intake => Some(("intake", ended)),
            ended = &mut self.normalizing => Some(("normalizing", ended)),
            ended = first_ended(&mut self.forwarding) => Some(("forwarding", ended)),
            () = self.agent.pipeline.ending.notified() => {
                let reason = self.agent.pipeline.fatal.take().unwrap_or_default();
                // What is known is kept if the file still takes it; the next start sets the file aside.
                let _ = intake::commit_progress(&self.agent.pipeline).await;
                anyhow::bail!("{reason}");
            }
        };
        if let Some((name, ended)) = ended {
            // A loop ends only at stop: the service manager starts the process again, the store has everything.
            match ended {
                Ok(Ok(())) => anyhow::bail!("the {name} loop ended by itself"),
                Ok(Err(error)) => anyhow::bail!("the {name} loop ended: {error}"),
                Err(error) => anyhow::bail!("the {name} loop failed: {error}"),
            }
        }
        self.stop(stopping).await
    }

    async fn stop(self, stopping: Stopping) -> anyhow::Result<Summary> {
        let agent = self.agent;
        // What the sources hold that is no message yet comes before the last batch.
        let _ = with_timeout(SOURCE_STOP_LIMIT, self.ending.end()).await;
        // The intake goes first: its last commit is acknowledged while the sources still have their connections. They end
        // by themselves when the channel is closed.
        self.stop_intake.send_replace(true);
        let _ = with_timeout(STOP_LIMIT, self.intake).await;
        for mut source in self.sources {
            if with_timeout(SOURCE_STOP_LIMIT, &mut source).await.is_err() {
                source.abort();
            }
        }
        self.stop_normalizing.send_replace(true);
        let _ = with_timeout(STOP_LIMIT, self.normalizing).await;
        let until = Instant::now() + stopping.drain;
        while Instant::now() < until && agent.unsent() > 0 {
            // What waits for the end of its period is sent now, so that a stop leaves little behind.
            agent.pipeline.outbox.borrow_mut().hurry(clock::monotonic_us());
            agent.pipeline.normalized.notify_waiters();
            Timer::after_millis(100).await;
        }
        self.stop_forwarding.send_replace(true);
        agent.pipeline.normalized.notify_waiters();
        agent.pipeline.committed.notify_waiters();
        for forward in self.forwarding {
            let _ = with_timeout(STOP_LIMIT, forward).await;
        }
        self.helpers.iter().for_each(JoinHandle::abort);
        intake::commit_progress(&agent.pipeline).await?;
        Ok(agent.summary())
    }
}

async fn first_ended(
    loops: &mut [JoinHandle<Result<(), StoreError>>],
) -> Result<Result<(), StoreError>, tokio::task::JoinError> {
    std::future::poll_fn(|context| {
        for one in loops.iter_mut() {
            if let std::task::Poll::Ready(ended) = Future::poll(std::pin::Pin::new(one), context) {
                return std::task::Poll::Ready(ended);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn ledger_events(pipeline: Rc<Pipeline>, mut events: mpsc::UnboundedReceiver<SourceEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            SourceEvent::SessionGivenUp { source, error } => pipeline.outbox.borrow_mut().lose(Loss {
                destination: None,
                source: Some(source),
                range: None,
                count: 0,
                reason: format!("MQTT session given up: {}", error.text),
                reading: None,
            }),
        }
    }
}

/// Opens the control socket and the status page, and answers what they ask.
///
/// # Errors
/// When an address is taken.
pub async fn serve(agent: &Rc<Agent>) -> anyhow::Result<Vec<std::net::SocketAddr>> {
    Door::default().answer_for(agent).await
}

/// The kind of a source as shown.
pub(crate) fn kind_of(source: &SourceConfig) -> &'static str {
    match source.kind {
        SourceKind::Mqtt(_) => "mqtt",
        SourceKind::Serial(_) => "serial",
    }
}

#[cfg(test)]
mod simulated_budget;
#[cfg(test)]
#[cfg(feature = "demo")]
mod simulated_clock;
#[cfg(test)]
#[cfg(feature = "demo")]
mod simulated_day;
#[cfg(test)]
#[cfg(feature = "demo")]
mod simulated_waits;
