//! The loop of each destination, with what it needs of the rest: memory in the store, corrections, identities.

use super::{Agent, Surroundings};
use crate::config::{ClockTrust, DestinationKind};
use crate::corrections::Correction;
use crate::forward::context::Context;
use crate::forward::correct::{Restored, Searched, scan};
use crate::forward::event_hub::EventHubDestination;
use crate::forward::fhir::{FhirDestination, Held, Search, SentPeriods, Trouble};
use crate::forward::follow::{Messages, forward_messages};
use crate::forward::pass::{Readings, forward_readings};
use crate::forward::{Delivery, DestinationHandle, Group, MessageDelivery, Origin, RawMessage};
use crate::message::SourceId;
use crate::pipeline::Pipeline;
use crate::store::{Loss, StoreError};
use crate::telemetry::errors::ErrorRecord;
use anyhow::Context as _;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

/// Why readings of a correction stay where they are; the ledger says it.
const OF_NOBODY: &str = "taken from a patient by a correction and older than [store] history: on the server as \
                         entered-in-error until an association says whose they are";
const IMPOSSIBLE: &str = "taken from a patient by a correction and older than [store] history: they cannot be moved to whose \
                          they are (the device changed hands within a slot, or the Observation was deleted), chart them by hand";
/// What the server holds may have changed meanwhile.
const AGAIN: &str = "some readings could not be moved yet; it is tried again";

/// Starts the loop of each destination.
pub(super) fn start(
    agent: &Rc<Agent>,
    surroundings: &dyn Surroundings,
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<Vec<JoinHandle<Result<(), StoreError>>>> {
    let names: HashMap<SourceId, Arc<str>> = agent
        .sources
        .iter()
        .map(|s| (s.id, Arc::from(s.config.name.as_str())))
        .collect();
    let names = Rc::new(names);
    let origin = Origin {
        gateway: Arc::from(agent.config.gateway.id.as_str()),
        store: Arc::clone(&agent.store_id),
        former: agent.pipeline.former.identities.clone(),
    };
    let mut loops = Vec::new();
    for (entry, config) in agent.destinations.iter().zip(&agent.config.destinations) {
        let context = Context {
            pipeline: Rc::clone(&agent.pipeline),
            handle: entry.handle.clone(),
            link: Rc::clone(&entry.link),
            sources: Rc::clone(&names),
            max_wait: match &config.kind {
                DestinationKind::Fhir(fhir) => (fhir.max_wait.0 * 10) as i64,
                DestinationKind::EventHub(_) => i64::MAX,
            },
            stop: stop.clone(),
        };
        let (http, direct) = surroundings
            .http(config)
            .with_context(|| format!("destination {}", config.name))?;
        let trust = agent.pipeline.trust;
        match &config.kind {
            DestinationKind::Fhir(fhir) => {
                let memory = StoredPeriods {
                    pipeline: Rc::clone(&agent.pipeline),
                    destination: entry.handle.id,
                };
                let mut destination = FhirDestination::new(fhir, trust, http, direct)
                    .map_err(|e| anyhow::anyhow!("destination {}: {}", config.name, e.text))?;
                destination.share_associations(Rc::clone(&agent.pipeline.associations), entry.handle.id);
                if fhir.coincident_timestamp {
                    destination.write_clocks(&agent.config.gateway.id, &fhir.url, trust);
                }
                loops.push(spawn_local(forward_readings(
                    context,
                    FhirReadings {
                        destination,
                        memory,
                        handle: entry.handle.clone(),
                    },
                )));
            }
            DestinationKind::EventHub(hub) => {
                let failed = |e: ErrorRecord| anyhow::anyhow!("destination {}: {}", config.name, e.text);
                let identity = match &hub.identity_of {
                    Some(name) => Some(identity_of(agent, surroundings, name, trust)?.map_err(failed)?),
                    None => None,
                };
                let mut destination =
                    EventHubDestination::new(hub, origin.clone(), trust, http, direct, identity)
                        .map_err(failed)?;
                destination.share_associations(Rc::clone(&agent.pipeline.associations));
                let memory = StoredPeriods {
                    pipeline: Rc::clone(&agent.pipeline),
                    destination: entry.handle.id,
                };
                loops.push(if entry.handle.takes_messages {
                    spawn_local(forward_messages(context, HubMessages(destination)))
                } else {
                    spawn_local(forward_readings(context, HubReadings { destination, memory }))
                });
            }
        }
    }
    Ok(loops)
}

/// A FHIR destination with its memory in the store.
struct FhirReadings {
    destination: FhirDestination,
    memory: StoredPeriods,
    handle: DestinationHandle,
}

impl Readings for FhirReadings {
    async fn deliver(&mut self, groups: Vec<Group>) -> Delivery {
        let delivery = self.destination.deliver(groups, &self.memory).await;
        self.memory.pipeline.note_associations();
        delivery
    }

    fn appetite(&self) -> usize {
        self.destination.appetite()
    }

    async fn correct(&mut self, correction: Correction) -> Searched {
        let mut searched = Searched::nothing(correction);
        let found = match self.destination.search_wrong(&searched.correction.change).await {
            Ok(Some(mut search)) => self.correct_found(&mut search, &mut searched).await,
            Ok(None) => Ok(()),
            Err(trouble) => Err(trouble),
        };
        match found {
            Ok(()) => {}
            Err(Trouble::Down(down)) => searched.link = down.link(),
            Err(Trouble::Refused(why)) => {
                searched.complete = false;
                searched.refused = Some(why);
            }
        }
        searched
    }

    async fn restore(&mut self, correction: &Correction, held: &Held) -> Restored {
        let mut done = Restored::done();
        match self.restore_all(correction, held).await {
            Ok(()) => {}
            Err(Trouble::Down(down)) => done.link = down.link(),
            Err(Trouble::Refused(why)) => done.refused = Some(why),
        }
        done
    }
}

impl FhirReadings {
    /// What cannot be with whose it is has a line in the ledger.
    fn note_left(&self, count: u64, reason: &str) {
        if count == 0 {
            return;
        }
        tracing::warn!("destination {}: {count} Observations: {reason}", self.handle.name);
        self.memory.pipeline.outbox.borrow_mut().lose(Loss {
            destination: Some(self.memory.destination),
            source: None,
            range: None,
            count,
            reason: reason.to_owned(),
            reading: None,
        });
    }

    /// Page by page: what will be gone is in the correction, on the disk, before it is taken away.
    async fn correct_found(&mut self, search: &mut Search, searched: &mut Searched) -> Result<(), Trouble> {
        while let Some(wrong) = self.destination.next_wrong(search).await? {
            let Some(gone) = wrong.gone else { continue };
            let pipeline = &self.memory.pipeline;
            if searched.correction.widen(gone) {
                let correction = searched.correction.clone();
                pipeline
                    .outbox
                    .borrow_mut()
                    .remember_correction(correction.clone());
                let kept = pipeline
                    .store
                    .call(move |store| store.keep_correction(&correction))
                    .await;
                if let Err(error) = kept {
                    return Err(Trouble::Refused(format!("{error}; it is tried again")));
                }
            }
            let held = match wrong.asks_the_journal() {
                true => {
                    scan(pipeline, &self.handle, &searched.correction.change)
                        .await
                        .map_err(|error| Trouble::Refused(format!("{error}; it is tried again")))?
                        .held
                }
                false => Held::default(),
            };
            let retracted = self.destination.retract(wrong, &held).await?;
            searched.wrong += retracted.replaced;
            searched.complete &= !retracted.again;
            pipeline.beat(&self.handle.name);
        }
        Ok(())
    }

    /// Page by page; the ledger says what is left.
    async fn restore_all(&mut self, correction: &Correction, held: &Held) -> Result<(), Trouble> {
        let Some(mut search) = self.destination.search_wrong(&correction.change).await? else {
            return Ok(());
        };
        let (mut written, mut of_nobody, mut impossible) = (0, 0, 0);
        while let Some(restored) = self.destination.restore_next(&mut search, held).await? {
            if restored.again {
                return Err(Trouble::Refused(AGAIN.to_owned()));
            }
            written += restored.written;
            of_nobody += restored.of_nobody;
            impossible += restored.impossible;
            self.memory.pipeline.beat(&self.handle.name);
        }
        if written > 0 {
            tracing::info!(
                "destination {}: {written} Observations that the journal does not have any more were moved on the server",
                self.handle.name
            );
        }
        self.note_left(of_nobody, OF_NOBODY);
        self.note_left(impossible, IMPOSSIBLE);
        Ok(())
    }
}

/// An event hub that takes readings, with its memory in the store.
struct HubReadings {
    destination: EventHubDestination,
    memory: StoredPeriods,
}

impl Readings for HubReadings {
    async fn deliver(&mut self, groups: Vec<Group>) -> Delivery {
        self.destination.deliver(groups, &self.memory).await
    }
}

/// An event hub that takes raw messages.
struct HubMessages(EventHubDestination);

impl Messages for HubMessages {
    async fn deliver_messages(&mut self, messages: Vec<RawMessage>) -> MessageDelivery {
        self.0.deliver_messages(messages).await
    }
}

/// The FHIR destination that an event hub asks whose its Observations are, with connections of its own.
fn identity_of(
    agent: &Agent,
    surroundings: &dyn Surroundings,
    name: &str,
    trust: ClockTrust,
) -> anyhow::Result<Result<FhirDestination, ErrorRecord>> {
    let named = agent.config.destinations.iter().find(|one| one.name == name);
    let Some((config, DestinationKind::Fhir(fhir))) = named.map(|one| (one, &one.kind)) else {
        anyhow::bail!("identity_of names no FHIR destination: {name}");
    };
    let (http, direct) = surroundings
        .http(config)
        .with_context(|| format!("destination {name}"))?;
    let id = agent
        .destinations
        .iter()
        .find(|entry| &*entry.handle.name == name);
    let made = FhirDestination::new(fhir, trust, http, direct);
    Ok(made.map(|mut destination| {
        if let Some(entry) = id {
            destination.share_associations(Rc::clone(&agent.pipeline.associations), entry.handle.id);
        }
        destination
    }))
}

/// Sent-period memory of one destination: what is not written yet, else the store.
struct StoredPeriods {
    pipeline: Rc<Pipeline>,
    destination: u32,
}

impl SentPeriods for StoredPeriods {
    async fn read(&self, observations: &[String]) -> HashMap<String, Vec<u8>> {
        let mut found = HashMap::new();
        let mut stored = Vec::new();
        for observation in observations {
            match self
                .pipeline
                .outbox
                .borrow()
                .unwritten_sent_period(self.destination, observation)
            {
                Some(memory) => drop(found.insert(observation.clone(), memory)),
                None => stored.push(observation.clone()),
            }
        }
        let destination = self.destination;
        let read = self.pipeline.store.call(move |store| {
            let mut memories = Vec::new();
            for observation in stored {
                if let Some(memory) = store.sent_period(destination, &observation)? {
                    memories.push((observation, memory));
                }
            }
            Ok(memories)
        });
        // Without the memory the server is the memory.
        found.extend(read.await.unwrap_or_default());
        found
    }
}
