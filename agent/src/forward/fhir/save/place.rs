//! Observations that a correction moves on the server: read first, then created, filled or lifted, like any other.

use super::judge::{judge, search};
use super::{Known, MOST_CONFLICTS, Outcome, SEARCHED_AT_ONCE, Saved, Saver};
use crate::forward::fhir::answer::Answer;
use crate::forward::fhir::retract::{Moved, fill, is_retracted, lifted};
use crate::forward::fhir::server::{Down, Entry, Server};
use iomt_mapping::fhir::{Identity, SERVICE_SYSTEM};
use serde_json::Value;
use std::collections::HashSet;

/// Observations that are read and written at a time.
const AT_ONCE: usize = 100;

/// What became of them.
#[derive(Default)]
pub struct Placed {
    /// Observations created or changed.
    pub written: u64,
    /// Some may be there or not: all of it has to be done again.
    pub again: bool,
    /// Those whose place was deleted, cancelled or marked by somebody, or that do not fit into it.
    pub impossible: u64,
    /// What the server said to one that it does not take.
    pub refused: Option<String>,
    /// Why the server cannot be used any more.
    pub down: Option<Down>,
}

enum Step {
    Write(Entry),
    /// It is there.
    Done,
    Impossible,
    Again,
    Refused(String),
}

impl Saver {
    /// Puts Observations where they belong. What is there already stays as it is; only what it lacks is added.
    pub async fn place(&mut self, server: &mut Server, moved: Vec<Moved>) -> Placed {
        let mut placed = Placed::default();
        let mut open: Vec<(Moved, u8)> = moved.into_iter().map(|one| (one, 0)).collect();
        while !open.is_empty() && placed.down.is_none() {
            // Two of one place go one after the other.
            let mut taken: HashSet<String> = HashSet::new();
            let (now, mut later): (Vec<_>, Vec<_>) = open
                .into_iter()
                .partition(|(one, _)| taken.len() < AT_ONCE && taken.insert(one.identity.id.clone()));
            let steps = self.steps(server, &now, &mut placed).await;
            let mut entries = Vec::new();
            let mut writing = Vec::new();
            for (one, step) in now.into_iter().zip(steps) {
                match step {
                    Step::Write(entry) => {
                        entries.push(entry);
                        writing.push(one);
                    }
                    Step::Done => {}
                    Step::Impossible => placed.impossible += 1,
                    Step::Again => placed.again = true,
                    Step::Refused(said) => placed.refused = Some(said),
                }
            }
            if placed.down.is_some() {
                return placed;
            }
            let exchange = server.send(&entries).await;
            for (((one, conflicts), entry), answer) in writing.into_iter().zip(entries).zip(exchange.answers)
            {
                self.recent.remove(&one.identity.id);
                let Some(answer) = answer else {
                    self.habits.sent(&one.identity, &entry);
                    placed.again = true;
                    continue;
                };
                if answer.is_success() {
                    self.habits.sent(&one.identity, &entry);
                    placed.written += 1;
                    continue;
                }
                match self.habits.refuses_our_ids(server, &entry, &answer).await {
                    Ok(true) => later.push((one, conflicts)),
                    Ok(false) if matches!(answer.status, 404 | 409 | 412) && conflicts < MOST_CONFLICTS => {
                        later.push((one, conflicts + 1));
                    }
                    Ok(false) if answer.is_passing() || matches!(answer.status, 409 | 412) => {
                        placed.again = true
                    }
                    Ok(false) if answer.status == 410 => placed.impossible += 1,
                    Ok(false) => placed.refused = Some(answer.text()),
                    Err(down) => placed.down = Some(down),
                }
            }
            placed.down = placed.down.or(exchange.down);
            open = later;
        }
        placed
    }

    /// What has to be done with each, by what the server holds.
    async fn steps(&mut self, server: &mut Server, moved: &[(Moved, u8)], placed: &mut Placed) -> Vec<Step> {
        let identities: Vec<&Identity> = moved.iter().map(|(one, _)| &one.identity).collect();
        let mut entries: Vec<Entry> = identities
            .iter()
            .map(|identity| Entry::get(format!("Observation/{}", identity.id)))
            .collect();
        // One system in a search: remainders have their own.
        let searches = identities.chunk_by(|one, other| one.system == other.system);
        entries.extend(
            searches
                .flat_map(|same| same.chunks(SEARCHED_AT_ONCE))
                .map(search),
        );
        let exchange = server.send(&entries).await;
        if exchange.down.is_some() {
            placed.down = exchange.down;
            return Vec::new();
        }
        let mut answers = exchange.answers.into_iter();
        let by_id: Vec<Option<Answer>> = answers.by_ref().take(moved.len()).collect();
        let mut saved = Saved::default();
        let (by_identifier, unanswered) = self.found(server, answers.collect(), &mut saved).await;
        let mut steps = Vec::new();
        for ((one, _), answer) in moved.iter().zip(by_id) {
            let known = match answer {
                Some(answer) if unanswered.is_empty() => {
                    judge(&one.identity, answer, &by_identifier, None, &mut saved)
                }
                _ => Known::Cannot(Outcome::Retry),
            };
            steps.push(self.step(one, known));
        }
        placed.down = saved.down.take();
        steps
    }

    fn step(&mut self, moved: &Moved, known: Known) -> Step {
        let stored = match known {
            Known::Absent if self.habits.may_exist(&moved.identity.id) => return Step::Again,
            Known::Absent => {
                return Step::Write(self.habits.creation(&moved.identity, moved.resource.clone()));
            }
            Known::Cannot(Outcome::Dead(_)) => return Step::Impossible,
            Known::Cannot(Outcome::Waiting(error)) => return Step::Refused(error.text),
            // What was just read is not one of the last ones.
            Known::Cannot(_) | Known::Recent(_) => return Step::Again,
            Known::Stored(stored) => stored,
        };
        // A remainder that is there is complete.
        if moved.identity.system != SERVICE_SYSTEM {
            return Step::Done;
        }
        let resource = if is_retracted(&stored.resource) {
            lifted(moved.resource.clone(), &stored.resource)
        } else {
            let mut resource = stored.resource.clone();
            match fill(&mut resource, &moved.resource) {
                Ok(false) => return Step::Done,
                Ok(true) => resource,
                Err(()) => return Step::Impossible,
            }
        };
        let id = resource
            .get("id")
            .and_then(Value::as_str)
            .unwrap_or(&moved.identity.id);
        Step::Write(Entry::put(format!("Observation/{id}"), resource, stored.version))
    }
}
