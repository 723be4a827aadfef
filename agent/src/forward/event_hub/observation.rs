//! Observations as events: what was sent of an Observation before, and the event of what it is now.
//!
//! Invariants:
//! 1. An event holds the whole Observation as it is then. A later event of the same Observation has the same resource id,
//!    a higher last position and the status `amended`: a consumer keeps the last one of each id.
//! 2. What was sent counts only when the hub has confirmed it.
//! 3. What changes nothing makes no event and counts as delivered.
//!
//! What was sent is kept in memory for a while. Of periods, and of instants that lack some of their values, it is in the
//! store too (with the readings' times), until the reach of corrections or an hour has passed: a late reading is merged
//! with it after a restart as well.

use super::event::{self, Event};
use super::whose::FromMessage;
use crate::corrections::WINDOW;
use crate::forward::fhir::{
    FhirDestination, Item, Outcome, Recent, SentPeriods, Stored, give_fates, items_of, sent_until,
};
use crate::forward::{Delivery, Fate, Group, GroupReading, Origin, SentPeriod};
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::fhir::{IdentityForm, Merge, SentMemory};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};

/// How long an instant with missing values is kept, in ticks of 100 ns: an hour.
const INCOMPLETE_FOR: i64 = 3_600 * 10_000_000;

/// Largest Observation that is read back from the store, in bytes.
const MOST_BYTES: usize = 16 << 20;

/// Who knows the ids of Device and Patient.
pub(super) enum Whose {
    /// A FHIR server (`identity_of`).
    Server(Box<FhirDestination>),
    /// The message itself.
    Message(FromMessage),
}

/// What Observations are made with.
pub(super) struct Observations {
    pub whose: Whose,
    recent: Recent,
}

/// What becomes of one item.
struct Step {
    item: Item,
    /// Readings of which nothing is in the result.
    superseded: Vec<usize>,
    /// The Observation with it.
    state: Stored,
    /// The event that carries it; none when the hub has it already.
    event: Option<usize>,
    /// The event is its own.
    is_news: bool,
    /// The store keeps an older state of an instant, which is complete now.
    completes: bool,
}

/// A batch of events, and what they mean for the readings.
pub(super) struct Plan {
    pub events: Vec<Result<Event, ErrorRecord>>,
    steps: Vec<Step>,
}

impl Observations {
    pub fn new(whose: Whose) -> Observations {
        Observations {
            whose,
            recent: Recent::default(),
        }
    }

    /// The events of the groups. Readings without one get their fate in `delivery`; nothing when nobody can say whose they
    /// are now.
    pub async fn plan(
        &mut self,
        origin: &Origin,
        groups: &[Group],
        sent: &impl SentPeriods,
        delivery: &mut Delivery,
    ) -> Option<Plan> {
        let mut items = match &mut self.whose {
            Whose::Server(fhir) => fhir.observations(groups, delivery).await?,
            Whose::Message(message) => items_of(message, IdentityForm::Agent, groups, delivery).await?,
        };
        // The order of the events is that of the readings.
        items.sort_by_key(|item| newest(item, groups).map(|(_, reading)| reading.position));
        let mut now: HashMap<String, (Stored, Option<usize>)> = HashMap::new();
        self.recall(items.iter(), sent, &mut now).await;
        let mut plan = Plan {
            events: Vec::new(),
            steps: Vec::new(),
        };
        let mut open: VecDeque<Item> = items.into();
        while let Some(item) = open.pop_front() {
            let before = now.get(&item.identity().id);
            match build(&item, before.map(|(stored, _)| stored)) {
                Err(error) => give_fates(&item, &Outcome::Dead(error), &mut delivery.fates),
                Ok(Built::Elsewhere(segment)) => {
                    let item = item.moved(segment);
                    if !now.contains_key(&item.identity().id) {
                        self.recall(std::iter::once(&item), sent, &mut now).await;
                    }
                    open.push_front(item);
                }
                Ok(Built::Same { memory, superseded }) => {
                    let Some((stored, event)) = before else { continue };
                    plan.steps.push(Step {
                        superseded,
                        state: Stored {
                            memory: Some(memory),
                            ..stored.clone()
                        },
                        event: *event,
                        is_news: false,
                        completes: false,
                        item,
                    });
                }
                Ok(Built::News {
                    resource,
                    memory,
                    superseded,
                }) => {
                    let Some((group, reading)) = newest(&item, groups) else {
                        continue;
                    };
                    let shown = match &self.whose {
                        Whose::Server(_) => resource.to_string(),
                        Whose::Message(message) => message.with_identifiers(&resource).to_string(),
                    };
                    let was_incomplete =
                        before.is_some_and(|(stored, _)| !is_complete(&item, &stored.resource));
                    let state = Stored {
                        version: Some(reading.position.to_string()),
                        resource,
                        memory: Some(memory),
                    };
                    let number = plan.events.len();
                    let id = item.identity().id.clone();
                    plan.events
                        .push(Ok(event::of_observation(origin, &id, group, reading, shown)));
                    now.insert(id, (state.clone(), Some(number)));
                    plan.steps.push(Step {
                        superseded,
                        completes: was_incomplete && is_complete(&item, &state.resource),
                        state,
                        event: Some(number),
                        is_news: true,
                        item,
                    });
                }
            }
        }
        Some(plan)
    }

    /// Takes what became of the events: fates of the readings, and what is to be remembered.
    pub fn take(&mut self, steps: PlanSteps, sent: &[Fate], delivery: &mut Delivery) {
        for step in steps.0 {
            let fate = step.event.map_or(Some(&Fate::Delivered), |event| sent.get(event));
            let outcome = match fate {
                Some(Fate::Delivered | Fate::Superseded) => Outcome::Confirmed {
                    superseded: step.superseded,
                },
                Some(Fate::Dead(error)) => Outcome::Dead(error.clone()),
                Some(Fate::Waiting(error)) => Outcome::Waiting(error.clone()),
                Some(Fate::Retry) | None => Outcome::Retry,
            };
            give_fates(&step.item, &outcome, &mut delivery.fates);
            if !step.is_news || !matches!(outcome, Outcome::Confirmed { .. }) {
                continue;
            }
            delivery.written += 1;
            let id = step.item.identity().id.clone();
            let end = step.item.group.boundary_end;
            if step.item.has_period() {
                delivery.sent_periods.push(SentPeriod {
                    observation: id.clone(),
                    memory: encode(&step.state),
                    expires: sent_until(end, WINDOW),
                });
            } else if !is_complete(&step.item, &step.state.resource) {
                delivery.sent_periods.push(SentPeriod {
                    observation: id.clone(),
                    memory: encode(&step.state),
                    expires: end.ticks().saturating_add(INCOMPLETE_FOR),
                });
            } else if step.completes {
                // Nothing more can come: the row goes with the next cleaning.
                delivery.sent_periods.push(SentPeriod {
                    observation: id.clone(),
                    memory: Vec::new(),
                    expires: 0,
                });
            }
            self.recent.insert(id, &step.state);
        }
    }

    /// What was sent of these Observations, as far as it is known.
    async fn recall(
        &self,
        items: impl Iterator<Item = &Item>,
        sent: &impl SentPeriods,
        now: &mut HashMap<String, (Stored, Option<usize>)>,
    ) {
        let mut asked = Vec::new();
        for item in items {
            let id = &item.identity().id;
            match self.recent.get(id) {
                Some(stored) => {
                    now.insert(id.clone(), (stored, None));
                }
                None if item.has_period() || values(item) > 1 => asked.push(id.clone()),
                None => {}
            }
        }
        if asked.is_empty() {
            return;
        }
        for (id, bytes) in sent.read(&asked).await {
            if let Some(stored) = decode(&bytes) {
                now.insert(id, (stored, None));
            }
        }
    }
}

/// The steps of a plan, once its events are with the sender.
pub(super) struct PlanSteps(Vec<Step>);

impl Plan {
    /// Events and steps apart.
    pub fn split(self) -> (Vec<Result<Event, ErrorRecord>>, PlanSteps) {
        (self.events, PlanSteps(self.steps))
    }
}

/// What an item makes of an Observation.
enum Built {
    News {
        resource: Value,
        memory: SentMemory,
        superseded: Vec<usize>,
    },
    Same {
        memory: SentMemory,
        superseded: Vec<usize>,
    },
    /// It belongs to another Observation (rules D19 and D25).
    Elsewhere(iomt_mapping::fhir::IdSegment),
}

fn build(item: &Item, before: Option<&Stored>) -> Result<Built, ErrorRecord> {
    let template = item
        .template()
        .ok_or_else(|| ErrorRecord::new("TemplateNotFoundException", "no FHIR template has this type"))?;
    let failed = |error: iomt_mapping::fhir::BuildError| ErrorRecord::new(error.kind.name(), error.text);
    let Some(stored) = before else {
        let built = template.create(&item.group, &item.ids, &item.type_name, &item.options);
        return built.map_err(failed).map(|built| Built::News {
            resource: built.resource,
            memory: built.memory,
            superseded: Vec::new(),
        });
    };
    let merged = template.merge(
        &item.group,
        &stored.resource,
        &item.ids,
        &item.options,
        stored.memory.as_ref(),
    );
    let merged = merged.map_err(failed)?;
    let (memory, superseded) = (merged.memory, merged.superseded);
    Ok(match merged.merge {
        Merge::Unchanged => Built::Same { memory, superseded },
        Merge::Changed(resource) => Built::News {
            resource,
            memory,
            superseded,
        },
        Merge::NewObservation { id_segment } => Built::Elsewhere(id_segment),
    })
}

/// The newest reading of an item, with its group.
fn newest<'g>(item: &Item, groups: &'g [Group]) -> Option<(&'g Group, &'g GroupReading)> {
    let readings = item.group.readings.iter().filter_map(|account| {
        let (group, reading) = item.places.get(account.reading)?;
        let group = groups.get(*group)?;
        Some((group, group.readings.get(*reading)?))
    });
    readings.max_by_key(|(_, reading)| (reading.position, reading.match_number))
}

/// Values that an Observation of this type can have.
fn values(item: &Item) -> usize {
    item.template().map_or(0, |template| template.values().count())
}

/// Whether the Observation has all values of its type.
fn is_complete(item: &Item, resource: &Value) -> bool {
    let components = resource
        .get("component")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let own = resource
        .as_object()
        .is_some_and(|members| members.keys().any(|name| name.starts_with("value")));
    components + usize::from(own) >= values(item)
}

/// Bytes for the store: length and text of the last position, length and bytes of the memory, compressed resource.
fn encode(stored: &Stored) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |part: &[u8]| {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(part);
    };
    put(stored.version.as_deref().unwrap_or_default().as_bytes());
    put(&stored
        .memory
        .as_ref()
        .map(SentMemory::to_bytes)
        .unwrap_or_default());
    match zstd::bulk::compress(stored.resource.to_string().as_bytes(), 3) {
        Ok(resource) => bytes.extend_from_slice(&resource),
        // Without it a late reading makes an event of its own, and nothing worse happens.
        Err(_) => bytes.clear(),
    }
    bytes
}

/// Whether these are the bytes of an Observation that was sent.
pub(crate) fn is_stored_observation(bytes: &[u8]) -> bool {
    decode(bytes).is_some()
}

/// [`encode`]d bytes; `None` for anything else.
fn decode(bytes: &[u8]) -> Option<Stored> {
    let take = |bytes: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (part, rest) = rest.split_at_checked(length)?;
        Some((part.to_vec(), rest.to_vec()))
    };
    let (version, rest) = take(bytes)?;
    let (memory, rest) = take(&rest)?;
    let resource = zstd::bulk::decompress(&rest, MOST_BYTES).ok()?;
    Some(Stored {
        version: Some(String::from_utf8(version).ok()?),
        memory: SentMemory::from_bytes(&memory),
        resource: serde_json::from_slice(&resource).ok()?,
    })
}

#[cfg(test)]
#[path = "observation_tests.rs"]
mod tests;
