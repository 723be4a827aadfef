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
//! | messages that were committed last, and what they became | 0.75 and 0.5 MiB, 2 s (`pipeline/recent.rs`) |
//! | readings on their way to a destination | 2 MiB that gather, and as much under way (`forward/gather.rs`) |
//! | Observations as a server has them, as text | 0.25 MiB for each destination (`forward/fhir/recent.rs`) |
//! | bodies of requests under way | 4 of at most 1 MiB (`forward/fhir/server.rs`) |
//! | one read of the journal; the last packets at a start | 16 KiB compressed; a batch at a time |
//! | pages of SQLite | 0.25 MiB |

mod association;
mod at_rest;
mod door;
mod dropped;
mod forwarding;
mod memory;
mod opening;
mod report;
mod running;
mod salvage;
mod shared;
mod surroundings;
mod upkeep;

pub use association::{associate_in_store, associations_in_store};
pub use at_rest::{AtRest, at_rest};
pub use door::Door;
pub use opening::Waiting;
pub use salvage::Handed;
pub use shared::store_folder;
pub use surroundings::{RealSurroundings, Simulated, StartedSource, Surroundings};

use crate::config::{Config, SourceConfig, SourceKind};
use crate::corrections::{Corrections, Windows};
use crate::forward::DestinationHandle;
use crate::forward::link::LinkState;
use crate::ingest::SourceStatus;
use crate::ingest::payload::Memory;
use crate::message::SourceId;
use crate::packs::{PackProblem, PackSet};
use crate::pipeline::Pipeline;
use crate::store::StoreHandle;
use crate::telemetry::status::Summary;
use anyhow::Context as _;
use embassy_time::{Duration, Instant};
use running::Running;
use shared::{destination_entry, pipeline};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

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
#[cfg(feature = "demo")]
mod simulated;
