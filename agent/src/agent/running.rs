//! The loops: started, watched until one ends or the stop comes, and stopped in the order in which a reading passes them.

use super::{Agent, Stopping, Surroundings, dropped, forwarding, salvage, upkeep};
use crate::clock;
use crate::forward::Destinations;
use crate::ingest::payload::Memory;
use crate::ingest::{Ending, SourceContext, SourceEvent};
use crate::intake::{self, CommitPolicy};
use crate::message::{Message, SourceId};
use crate::pipeline::Pipeline;
use crate::store::salvage::Salvage;
use crate::store::{Loss, Recovered, StoreError};
use crate::telemetry::status::Summary;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};

/// Messages that the channel between sources and intake holds; more than any window, so that polling never stops.
const CHANNEL: usize = 4096;
/// Longest time that a stop waits for what is in flight.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Longest time that a source may take to send its last acknowledgements.
const SOURCE_STOP_LIMIT: Duration = Duration::from_secs(2);

/// The started loops.
pub(super) struct Running {
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
    pub(super) async fn start(
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

    /// Waits for the end; `ready` is called first. Gives the final accounts.
    pub(super) async fn until(
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
