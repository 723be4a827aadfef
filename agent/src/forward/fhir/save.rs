//! Writes Observations: read, create or merge, write, and again where somebody else was quicker.
//!
//! Invariants:
//! 1. An Observation that may exist is read before it is written for the first time (rule D22: servers that ignore
//!    `If-None-Match` are common), by its id, which never lags, and by its identifier, which finds ids of others.
//! 2. Nothing is written over a known Observation but under the version that was read.
//! 3. What would not change is not written, and counts as delivered.
//! 4. What was deleted, cancelled or marked as an error on the server is not written again.
//! 5. Two groups of one Observation are saved one after the other; the second sees the first.

mod habits;
mod item;
mod judge;
mod place;

pub use item::Item;

use super::answer::{Answer, hits, stuck};
use super::recent::{Kept, Recent, Stored};
use super::retract::{is_retracted, lifted};
use super::server::{Down, Entry, Server};
use super::{SentPeriods, sent_memory};
use crate::associations::Ticks;
use crate::forward::SentPeriod;
use crate::telemetry::errors::ErrorRecord;
use habits::Habits;
use iomt_mapping::fhir::{Identity, Merge, SentMemory};
use judge::{failure, judge, record_of, search};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Identifiers in one search.
const SEARCHED_AT_ONCE: usize = 20;
/// Pages of one search that are followed.
const MOST_PAGES: usize = 10;
/// Observations that are built before other loops get their turn: senders wait for their acknowledgements.
const TURN: usize = 16;
/// How often an Observation is read again because it changed meanwhile, before it waits.
const MOST_CONFLICTS: u8 = 4;

/// What became of an item.
pub enum Outcome {
    /// The server holds it; these readings are not in it, because newer ones are.
    Confirmed {
        /// Reading indexes.
        superseded: Vec<usize>,
    },
    /// Never.
    Dead(ErrorRecord),
    /// Somebody or something else first.
    Waiting(ErrorRecord),
    /// Not confirmed.
    Retry,
}

/// What became of all items.
#[derive(Default)]
pub struct Saved {
    /// Each item once.
    pub outcomes: Vec<(Item, Outcome)>,
    /// To be stored with the confirmation.
    pub sent_periods: Vec<SentPeriod>,
    /// Observations created or updated.
    pub written: u64,
    /// Why the server cannot be used any more.
    pub down: Option<Down>,
}

/// What is known of an Observation before it is built.
enum Known {
    Absent,
    /// One of the last ones, opened when it is built.
    Recent(Arc<Kept>),
    Stored(Stored),
    Cannot(Outcome),
}

/// A built Observation that is to be written.
struct Draft {
    item: Item,
    entry: Entry,
    memory: SentMemory,
    superseded: Vec<usize>,
}

enum Built {
    Write(Box<Draft>),
    Settled(Item, Outcome),
    /// It belongs to another Observation (rules D19 and D25).
    Elsewhere(Item),
}

/// Saves Observations, and remembers the last ones.
pub struct Saver {
    recent: Recent,
    habits: Habits,
    /// How far back corrections reach: ticks.
    window: Ticks,
}

impl Saver {
    /// A saver for a server whose searches lag behind by so many microseconds at most, and for corrections that reach
    /// back so many ticks.
    pub fn new(index_lag_us: u64, window: Ticks) -> Saver {
        Saver {
            recent: Recent::default(),
            habits: Habits::new(index_lag_us),
            window,
        }
    }

    /// Saves all items as far as the server lets us.
    pub async fn save(&mut self, server: &mut Server, items: Vec<Item>, sent: &impl SentPeriods) -> Saved {
        let mut saved = Saved::default();
        let mut open = items;
        while !open.is_empty() {
            let mut taken: HashSet<String> = HashSet::new();
            let (now, mut later): (Vec<Item>, Vec<Item>) = open
                .into_iter()
                .partition(|item| taken.insert(item.identity.id.clone()));
            let known = self.read(server, &now, sent, &mut saved).await;
            let mut drafts: Vec<Draft> = Vec::new();
            for (number, (item, known)) in now.into_iter().zip(known).enumerate() {
                if number % TURN == TURN - 1 {
                    tokio::task::yield_now().await;
                }
                match self.build(item, known, &mut saved) {
                    Built::Write(draft) => drafts.push(*draft),
                    Built::Settled(item, outcome) => saved.outcomes.push((item, outcome)),
                    Built::Elsewhere(item) => later.push(item),
                }
            }
            if saved.down.is_none() {
                later.extend(self.write(server, drafts, &mut saved).await);
            } else {
                let unsent = drafts.into_iter().map(|draft| (draft.item, Outcome::Retry));
                saved.outcomes.extend(unsent);
            }
            if saved.down.is_some() {
                saved
                    .outcomes
                    .extend(later.into_iter().map(|item| (item, Outcome::Retry)));
                return saved;
            }
            open = later;
        }
        saved
    }

    /// What was remembered of an Observation does not hold any more.
    pub fn forget(&mut self, id: &str) {
        self.recent.remove(id);
    }

    /// What the server holds of each item (invariant 1).
    async fn read(
        &mut self,
        server: &mut Server,
        items: &[Item],
        sent: &impl SentPeriods,
        saved: &mut Saved,
    ) -> Vec<Known> {
        let asked: Vec<&Item> = items
            .iter()
            .filter(|item| self.recent.kept(&item.identity.id).is_none())
            .collect();
        let mut entries: Vec<Entry> = asked
            .iter()
            .map(|item| Entry::get(format!("Observation/{}", item.identity.id)))
            .collect();
        let identities: Vec<&Identity> = asked.iter().map(|item| &item.identity).collect();
        entries.extend(identities.chunks(SEARCHED_AT_ONCE).map(search));
        let exchange = server.send(&entries).await;
        saved.down = exchange.down;
        let mut answers = exchange.answers.into_iter();
        let by_id: Vec<Option<Answer>> = answers.by_ref().take(asked.len()).collect();
        let (by_identifier, unanswered) = self.found(server, answers.collect(), saved).await;
        let ids: Vec<String> = asked
            .iter()
            .filter(|item| item.has_period())
            .map(|item| item.identity.id.clone())
            .collect();
        let memories = if ids.is_empty() || saved.down.is_some() {
            HashMap::new()
        } else {
            sent.read(&ids).await
        };
        let mut read: HashMap<&str, Known> = HashMap::new();
        for (number, (item, answer)) in asked.iter().zip(by_id).enumerate() {
            let known = match answer {
                Some(answer) if !unanswered.contains(&(number / SEARCHED_AT_ONCE)) => {
                    let memory = memories
                        .get(&item.identity.id)
                        .and_then(|bytes| sent_memory::decode(bytes));
                    let known = judge(&item.identity, answer, &by_identifier, memory, saved);
                    match &known {
                        Known::Stored(stored) => {
                            self.habits.seen(&item.identity.id, stored.version.as_deref())
                        }
                        Known::Absent if self.habits.may_exist(&item.identity.id) => {
                            let text =
                                "the last answer was lost: the server's search is given a minute to show it";
                            read.insert(
                                &item.identity.id,
                                Known::Cannot(Outcome::Waiting(stuck(text.to_owned()))),
                            );
                            continue;
                        }
                        _ => {}
                    }
                    known
                }
                _ => Known::Cannot(Outcome::Retry),
            };
            read.insert(&item.identity.id, known);
        }
        items
            .iter()
            .map(|item| match self.recent.kept(&item.identity.id) {
                Some(kept) => Known::Recent(Arc::clone(kept)),
                None => read
                    .remove(item.identity.id.as_str())
                    .unwrap_or(Known::Cannot(Outcome::Retry)),
            })
            .collect()
    }

    /// Resources of the searches, all pages, and the numbers of the searches without an answer.
    async fn found(
        &self,
        server: &mut Server,
        searches: Vec<Option<Answer>>,
        saved: &mut Saved,
    ) -> (Vec<Value>, HashSet<usize>) {
        let mut found = Vec::new();
        let mut unanswered = HashSet::new();
        for (number, answer) in searches.into_iter().enumerate() {
            let Some(answer) = answer else {
                unanswered.insert(number);
                continue;
            };
            // A server that cannot search still answers by id, and the ids are ours.
            let Some(bundle) = answer.resource.filter(|_| (200..300).contains(&answer.status)) else {
                continue;
            };
            let (mut resources, mut next) = hits(bundle);
            found.append(&mut resources);
            for _ in 0..MOST_PAGES {
                let Some(url) = next.take() else { break };
                match server.page(&url).await {
                    Ok(Some(bundle)) => {
                        let (mut resources, following) = hits(bundle);
                        found.append(&mut resources);
                        next = following;
                    }
                    Ok(None) => {}
                    Err(down) => {
                        unanswered.insert(number);
                        saved.down = Some(down);
                    }
                }
            }
        }
        (found, unanswered)
    }

    fn build(&mut self, item: Item, known: Known, saved: &mut Saved) -> Built {
        let Some(template) = item.template() else {
            let text = "no FHIR template has this type";
            let error = ErrorRecord::new("TemplateNotFoundException", text);
            return Built::Settled(item, Outcome::Dead(error));
        };
        let known = match known {
            Known::Recent(kept) => kept.open().map_or(Known::Cannot(Outcome::Retry), Known::Stored),
            other => other,
        };
        let stored = match known {
            Known::Recent(_) => return Built::Settled(item, Outcome::Retry),
            Known::Cannot(outcome) => return Built::Settled(item, outcome),
            Known::Absent => {
                let built = template.create(&item.group, &item.ids, &item.type_name, &item.options);
                return match built {
                    Ok(built) => Built::Write(Box::new(Draft {
                        entry: self.habits.creation(&built.identity, built.resource),
                        memory: built.memory,
                        superseded: Vec::new(),
                        item,
                    })),
                    Err(error) => Built::Settled(item, Outcome::Dead(record_of(&error))),
                };
            }
            Known::Stored(stored) if is_retracted(&stored.resource) => {
                let built = template.create(&item.group, &item.ids, &item.type_name, &item.options);
                return match built {
                    Ok(built) => {
                        let resource = lifted(built.resource, &stored.resource);
                        rewritten(item, resource, stored.version, built.memory, Vec::new())
                    }
                    Err(error) => Built::Settled(item, Outcome::Dead(record_of(&error))),
                };
            }
            Known::Stored(stored) => stored,
        };
        let merged = template.merge(
            &item.group,
            &stored.resource,
            &item.ids,
            &item.options,
            stored.memory.as_ref(),
        );
        let merged = match merged {
            Ok(merged) => merged,
            Err(error) => return Built::Settled(item, Outcome::Dead(record_of(&error))),
        };
        match merged.merge {
            Merge::Unchanged => {
                if stored.memory.as_ref() != Some(&merged.memory) {
                    confirm(
                        &item,
                        stored.version.as_deref(),
                        &merged.memory,
                        self.window,
                        saved,
                    );
                }
                let stored = Stored {
                    memory: Some(merged.memory),
                    ..stored
                };
                self.recent.insert(item.identity.id.clone(), &stored);
                Built::Settled(
                    item,
                    Outcome::Confirmed {
                        superseded: merged.superseded,
                    },
                )
            }
            Merge::Changed(resource) => {
                rewritten(item, resource, stored.version, merged.memory, merged.superseded)
            }
            Merge::NewObservation { id_segment } => Built::Elsewhere(item.moved(id_segment)),
        }
    }

    /// Writes the drafts; gives back the items that have to be read again.
    async fn write(&mut self, server: &mut Server, drafts: Vec<Draft>, saved: &mut Saved) -> Vec<Item> {
        let (mut entries, drafts): (Vec<Entry>, Vec<_>) = drafts
            .into_iter()
            .map(|draft| (draft.entry, (draft.item, draft.memory, draft.superseded)))
            .unzip();
        self.habits.probe(&mut entries);
        let exchange = server.send(&entries).await;
        saved.down = exchange.down;
        let mut again = Vec::new();
        for (number, (((mut item, memory, superseded), entry), answer)) in
            drafts.into_iter().zip(entries).zip(exchange.answers).enumerate()
        {
            if number % (4 * TURN) == TURN {
                tokio::task::yield_now().await;
            }
            let Some(answer) = answer else {
                // It may have been carried out: what was known is not certain any more.
                self.recent.remove(&item.identity.id);
                self.habits.sent(&item.identity, &entry);
                saved.outcomes.push((item, Outcome::Retry));
                continue;
            };
            let tried_too_much = self.habits.learn(&item.identity, &entry, &answer);
            if answer.is_success() {
                saved.written += 1;
                // Without the id that the server chose it could not be written over: it is searched for next time.
                let resource = with_id(&entry, answer.id.as_deref());
                self.habits.sent(&item.identity, &entry);
                let version = answer.version.filter(|_| resource.is_some());
                confirm(&item, version.as_deref(), &memory, self.window, saved);
                let id = item.identity.id.clone();
                self.recent.keep(id, resource, version, Some(&memory));
                saved.outcomes.push((item, Outcome::Confirmed { superseded }));
                continue;
            }
            self.recent.remove(&item.identity.id);
            let in_vain = if tried_too_much {
                Ok(true)
            } else {
                self.habits.refuses_our_ids(server, &entry, &answer).await
            };
            match in_vain {
                Ok(true) => {
                    again.push(item);
                    continue;
                }
                Ok(false) => {}
                Err(down) => {
                    saved.down.get_or_insert(down);
                    saved.outcomes.push((item, Outcome::Retry));
                    continue;
                }
            }
            let lost = answer.status == 404 && entry.if_match.is_some();
            if matches!(answer.status, 409 | 412) || lost {
                item.conflicts += 1;
                if item.conflicts < MOST_CONFLICTS {
                    again.push(item);
                    continue;
                }
            }
            let outcome = failure(&answer, saved);
            saved.outcomes.push((item, outcome));
        }
        again
    }
}

/// A draft over what the server holds in this version.
fn rewritten(
    item: Item,
    resource: Value,
    version: Option<String>,
    memory: SentMemory,
    superseded: Vec<usize>,
) -> Built {
    let id = resource
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or(&item.identity.id);
    Built::Write(Box::new(Draft {
        entry: Entry::put(format!("Observation/{id}"), resource, version),
        memory,
        superseded,
        item,
    }))
}

/// What of a confirmed Observation is to be stored, for corrections that reach back so many ticks.
fn confirm(item: &Item, version: Option<&str>, memory: &SentMemory, window: Ticks, saved: &mut Saved) {
    if item.has_period() && !memory.is_empty() {
        saved.sent_periods.push(SentPeriod {
            observation: item.identity.id.clone(),
            memory: sent_memory::encode(version, memory),
            expires: sent_memory::expires(item.group.boundary_end, window),
        });
    }
}

/// The resource that was written, with its id; none when the server chose the id and did not tell it.
fn with_id(entry: &Entry, told: Option<&str>) -> Option<Arc<RawValue>> {
    let written = entry.resource.as_ref()?;
    if !entry.path.contains('?') {
        return Some(Arc::clone(written));
    }
    let mut resource: Value = serde_json::from_str(written.get()).ok()?;
    let object = resource.as_object_mut()?;
    if let Some(id) = told {
        object.entry("id").or_insert_with(|| Value::from(id));
    }
    let has_id = object.contains_key("id");
    to_raw_value(&resource).ok().filter(|_| has_id).map(Arc::from)
}
