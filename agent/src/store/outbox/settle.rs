//! What became of the readings of a pass, taken into rows and counters.

use super::{OpenKey, Outbox, Settled};
use crate::forward::{Fate, GIVEN_UP};
use crate::message::Position;
use crate::store::progress::{DeadLetter, Loss, Row};
use crate::telemetry::errors::ErrorRecord;
use std::collections::HashMap;
use std::sync::Arc;

/// First pause of a waiting row, and its longest one, in microseconds.
pub(super) const WAIT_FIRST_US: u64 = 2_500_000;
const WAIT_LONGEST_US: u64 = 600_000_000;

/// Pause of readings that a reachable destination did not take; longer pauses are the destination's.
pub(super) fn retry_pause_us(tries: u32) -> u64 {
    (250_000 << tries.min(7)).min(30_000_000)
}

impl Outbox {
    /// Takes the outcome of a pass into the rows and counters. `covered` tells for each row with a range up to which
    /// position its readings are all in `settled`.
    pub fn settle(
        &mut self,
        destination: u32,
        covered: &HashMap<u64, Position>,
        settled: Vec<Settled>,
        now_us: u64,
    ) {
        let mut by_row: HashMap<u64, Vec<Settled>> = covered.keys().map(|row| (*row, Vec::new())).collect();
        for one in settled {
            by_row.entry(one.row).or_default().push(one);
        }
        let mut order: Vec<u64> = by_row.keys().copied().collect();
        order.sort_unstable();
        for id in order {
            if let Some(outcomes) = by_row.remove(&id) {
                self.settle_row(destination, id, covered.get(&id).copied(), outcomes, now_us);
            }
        }
    }

    fn settle_row(
        &mut self,
        destination: u32,
        id: u64,
        covered: Option<Position>,
        mut outcomes: Vec<Settled>,
        now_us: u64,
    ) {
        // What was given up meanwhile is accounted for already.
        let given_up = self.given_up_through(id);
        outcomes.retain(|outcome| outcome.position > given_up);
        let all_retry = !outcomes.is_empty() && outcomes.iter().all(|o| o.fate == Fate::Retry);
        if all_retry {
            if let Some(pending) = self.rows.get_mut(&id) {
                pending.tries += 1;
                pending.due_us = now_us + retry_pause_us(pending.tries);
            }
            return;
        }
        let Some(pending) = self.rows.get(&id).cloned() else {
            return;
        };
        self.pending.any = true;
        let mut again = Vec::new();
        let mut waiting: Vec<(ErrorRecord, Vec<(Position, u32)>)> = Vec::new();
        // Reason and places.
        let mut given_up_now: Vec<(String, Vec<(Position, u32)>)> = Vec::new();
        let gone = outcomes.len() as u64;
        for outcome in outcomes {
            let place = (outcome.position, outcome.match_number);
            match outcome.fate {
                Fate::Delivered => self.destination_mut(destination).delivered += 1,
                Fate::Superseded => self.destination_mut(destination).superseded += 1,
                Fate::Retry => again.push(place),
                Fate::Dead(error) if error.name == GIVEN_UP => match given_up_now.last_mut() {
                    Some((known, places)) if *known == error.text => places.push(place),
                    _ => given_up_now.push((error.text, vec![place])),
                },
                Fate::Waiting(error) => {
                    match waiting.iter_mut().find(|(known, _)| known.is_same_cause(&error)) {
                        Some((_, places)) => places.push(place),
                        None => waiting.push((error, vec![place])),
                    }
                }
                Fate::Dead(error) => {
                    let Some(message) = outcome.message else {
                        again.push(place);
                        continue;
                    };
                    self.destination_mut(destination).dead += 1;
                    let is_message = self
                        .key(pending.row.series)
                        .is_some_and(|key| key.is_of_messages());
                    self.dead(DeadLetter {
                        destination: Some(destination),
                        match_number: (!is_message).then_some(outcome.match_number),
                        stage: "forward",
                        error,
                        revision: pending.row.revision.unwrap_or(message.revision),
                        counted: Arc::from([destination]),
                        message,
                    });
                }
            }
        }
        let tries = pending.tries + 1;
        let row = pending.row;
        for (reason, places) in given_up_now {
            self.lose_places(destination, &row, &places, reason);
        }
        self.shorten(id, &row, covered, gone);
        if !again.is_empty() {
            self.insert_refs(
                destination,
                row.series,
                row.period,
                again,
                row.revision,
                None,
                row.oldest,
                now_us + retry_pause_us(tries),
                tries,
            );
        }
        for (error, places) in waiting {
            let pause = (WAIT_FIRST_US << tries.min(10)).min(WAIT_LONGEST_US);
            let due = now_us + pause;
            self.insert_refs(
                destination,
                row.series,
                row.period,
                places,
                row.revision,
                Some(error),
                row.oldest,
                due,
                tries,
            );
        }
    }

    /// Nothing joins the row any more. Of a hundred thousand rows only its own place is looked at.
    pub(super) fn close(&mut self, place: OpenKey, id: u64) {
        if self.open.get(&place) == Some(&id) {
            self.open.remove(&place);
        }
    }

    /// Readings of a row that are given up, into the ledger.
    fn lose_places(&mut self, destination: u32, row: &Row, places: &[(Position, u32)], reason: String) {
        let count = places.len() as u64;
        self.destination_mut(destination).lost += count;
        let at = places.iter().map(|(position, _)| *position);
        let range = at.clone().min().zip(at.max());
        let key = self.key(row.series);
        let reading = key.map(|key| (Arc::clone(&key.device), Arc::clone(&key.type_name)));
        self.lose(Loss {
            destination: Some(destination),
            source: None,
            range,
            count,
            reason,
            reading,
        });
    }

    /// Takes `gone` readings up to `covered` out of a row; what the journal no longer holds is lost, and said.
    fn shorten(&mut self, id: u64, before: &Row, covered: Option<Position>, gone: u64) {
        let mut missing = 0;
        let covered = covered.unwrap_or(Position::MAX);
        let Some(pending) = self.rows.get_mut(&id) else {
            return;
        };
        let ended = match &before.refs {
            None => {
                pending.row.count = pending.row.count.saturating_sub(gone);
                pending.row.first = pending.row.first.max(covered.saturating_add(1));
                let ended = pending.row.last <= covered;
                if ended {
                    missing = pending.row.count;
                }
                ended
            }
            Some(refs) => {
                let left: Vec<(Position, u32)> =
                    refs.iter().filter(|(at, _)| *at > covered).copied().collect();
                missing = (refs.len() - left.len()) as u64 - gone.min((refs.len() - left.len()) as u64);
                pending.row.count = left.len() as u64;
                pending.row.first = left.first().map_or(pending.row.last, |(at, _)| *at);
                let ended = left.is_empty();
                pending.row.refs = Some(Arc::new(left));
                ended
            }
        };
        if ended {
            self.rows.remove(&id);
            self.close((before.destination, before.series, before.period), id);
            self.pending.rows.remove(&id);
            self.pending.gone.insert(id);
        } else {
            self.pending.rows.insert(id);
        }
        if missing > 0 {
            self.destination_mut(before.destination).lost += missing;
            let reason = self.reason_of_gap(before.first, before.last);
            self.pending.losses.push(Loss {
                destination: Some(before.destination),
                source: None,
                range: Some((before.first, before.last)),
                count: missing,
                reason,
                reading: None,
            });
        }
    }
}
