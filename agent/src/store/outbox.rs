//! The outbox in memory: what every destination still has to get, and the counters that account for it. The store holds
//! the same, at most one `progress_interval` older; [`Outbox::take_changes`] gives what a commit has to write.
//!
//! A row is a reference: a group key, a period, a range of positions. New readings widen it at its end, confirmed ones
//! shorten it at its beginning, so a backlog of a million readings of a device is one row. What fails or waits inside a
//! confirmed range gets a row of its own that names its readings one by one.
//!
//! Invariants:
//! 1. For every destination `matches = delivered + superseded + dead + lost + sum of count over its rows`.
//! 2. Ranges of rows with the same destination, key and period do not overlap.
//! 3. A failed commit loses nothing: what it was to write is written by the next one.

mod exact;
mod letters;
mod series;
mod settle;
mod shed;
mod unmatched;
mod unsent;
mod unwritten;

pub use self::letters::LetterNote;
pub use self::unsent::Unsent;
use self::unwritten::Unwritten;
use super::progress::{DestinationProgress, Progress, Row, UnmatchedRun};
use super::read::Ranges;
use super::recover::Recovered;
use crate::forward::Fate;
use crate::message::{Position, SourceId, StoredMessage};
use crate::telemetry::errors::ErrorRecord;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A row with what only memory knows of it.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The row.
    pub row: Row,
    /// When it is to be sent: monotonic microseconds.
    pub due_us: u64,
    /// How often it was tried in vain, for the pauses of waiting rows.
    pub tries: u32,
}

/// What became of one reading of a row.
#[derive(Clone, Debug)]
pub struct Settled {
    /// The row.
    pub row: u64,
    /// Position of the reading's message.
    pub position: Position,
    /// Which match of it.
    pub match_number: u32,
    /// Its fate.
    pub fate: Fate,
    /// The message, for a dead letter; without it a reading that can never be delivered is tried again.
    pub message: Option<Arc<StoredMessage>>,
}

/// Readings that a waiting row names at most; its bytes are written whenever one joins.
pub const FULL_ROW: usize = 500;

type OpenKey = (u32, u32, Option<i64>);

/// The outbox of all destinations.
#[derive(Debug, Default)]
pub struct Outbox {
    progress: Progress,
    rows: BTreeMap<u64, Pending>,
    open: HashMap<OpenKey, u64>,
    next_row: u64,
    series: series::Series,
    unmatched: BTreeMap<Position, UnmatchedRun>,
    /// The run that goes on, by source: its first position, and the receive time of its first message.
    open_runs: HashMap<SourceId, (Position, i64)>,
    in_pass: HashMap<u32, HashSet<u64>>,
    /// Positions of the journal that were found damaged since the start.
    damaged: Ranges,
    /// Rows that a pass has in its hands, given up so far meanwhile.
    given_up: HashMap<u64, Position>,
    letters: letters::Letters,
    pending: Unwritten,
    /// Numbers whose changes are on their way to the disk, to be written again if that fails.
    in_flight: Option<Unwritten>,
}

impl Outbox {
    /// The outbox as the store had it; all rows are due at once.
    pub fn restore(recovered: &Recovered, destinations: &[u32], now_us: u64) -> Outbox {
        let mut outbox = Outbox {
            progress: recovered.progress.clone(),
            ..Outbox::default()
        };
        for (id, key) in &recovered.series {
            outbox.series.restore(*id, Arc::clone(key));
        }
        for row in &recovered.rows {
            outbox.next_row = outbox.next_row.max(row.id + 1);
            outbox.insert(Pending {
                row: row.clone(),
                due_us: now_us,
                tries: 0,
            });
        }
        outbox.restore_letters(&recovered.letters);
        for run in &recovered.unmatched {
            outbox.unmatched.insert(run.first, run.clone());
        }
        for destination in destinations {
            outbox
                .progress
                .destinations
                .entry(*destination)
                .or_default()
                .dropped = false;
        }
        outbox
    }

    fn insert(&mut self, pending: Pending) {
        let row = &pending.row;
        if row.refs.is_none() && row.waiting.is_none() {
            self.open
                .insert((row.destination, row.series, row.period), row.id);
        }
        self.rows.insert(row.id, pending);
    }

    /// Cursors and counters.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// For the normalizing loop: cursors and counters to change.
    pub fn progress_mut(&mut self) -> &mut Progress {
        self.pending.any = true;
        &mut self.progress
    }

    /// Counters of a destination to change.
    pub fn destination_mut(&mut self, destination: u32) -> &mut DestinationProgress {
        self.pending.any = true;
        self.progress.destinations.entry(destination).or_default()
    }

    /// A reading that `destination` has to get: opens a row or widens the one that is open.
    pub fn add(
        &mut self,
        destination: u32,
        series: u32,
        period: Option<i64>,
        position: Position,
        wall: i64,
        due_us: u64,
    ) {
        self.destination_mut(destination).matches += 1;
        let next = self.next_row;
        let id = match self.open.entry((destination, series, period)) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => *entry.insert(next),
        };
        self.pending.rows.insert(id);
        if let Some(pending) = self.rows.get_mut(&id) {
            pending.row.last = position;
            pending.row.count += 1;
            return;
        }
        self.next_row += 1;
        let row = Row {
            id,
            destination,
            series,
            period,
            first: position,
            last: position,
            count: 1,
            oldest: wall,
            refs: None,
            revision: None,
            waiting: None,
        };
        self.rows.insert(
            id,
            Pending {
                row,
                due_us,
                tries: 0,
            },
        );
    }

    /// The rows that a pass of this destination has in its hands: nothing joins them until the next pass.
    pub fn begin_pass(&mut self, destination: u32, rows: HashSet<u64>) {
        if let Some(before) = self.in_pass.insert(destination, rows) {
            self.forget_given_up(&before);
        }
    }

    /// Rows of a destination that are due, oldest position first.
    pub fn due(&self, destination: u32, now_us: u64) -> Vec<Pending> {
        let mut due: Vec<Pending> = self
            .rows
            .values()
            .filter(|p| p.row.destination == destination && p.due_us <= now_us)
            .cloned()
            .collect();
        due.sort_by_key(|p| p.row.first);
        due
    }

    /// When the next row of a destination is due: monotonic microseconds.
    pub fn next_due(&self, destination: u32) -> Option<u64> {
        self.rows
            .values()
            .filter(|p| p.row.destination == destination)
            .map(|p| p.due_us)
            .min()
    }

    /// Makes everything due that waits for nothing but its time.
    pub fn hurry(&mut self, now_us: u64) {
        for pending in self
            .rows
            .values_mut()
            .filter(|p| p.row.waiting.is_none() && p.tries == 0)
        {
            pending.due_us = pending.due_us.min(now_us);
        }
    }

    /// Unsent matches of a destination: due ones and waiting ones.
    pub fn backlog(&self, destination: u32) -> (u64, u64) {
        let mut backlog = (0, 0);
        for pending in self.rows.values().filter(|p| p.row.destination == destination) {
            match pending.row.waiting {
                None => backlog.0 += pending.row.count,
                Some(_) => backlog.1 += pending.row.count,
            }
        }
        backlog
    }

    /// Notes positions that the journal holds and cannot give back. Tells whether that is news.
    pub fn note_damaged(&mut self, first: Position, last: Position) -> bool {
        self.damaged.add(first, last)
    }

    /// Whether a position was found damaged.
    pub fn is_damaged(&self, position: Position) -> bool {
        self.damaged.end_of(position).is_some()
    }

    /// The last position of the damaged run that holds `position`.
    pub fn damaged_until(&self, position: Position) -> Position {
        self.damaged.end_of(position).map_or(position, |end| end - 1)
    }

    /// Messages of the journal that were found damaged since the start.
    pub fn damaged(&self) -> u64 {
        self.damaged.count()
    }

    /// Why messages that a loop needs are not there, for the ledger.
    pub fn reason_of_gap(&self, first: Position, last: Position) -> String {
        let reason = if self.damaged.touches(first, last) {
            "damaged in the journal"
        } else {
            "not in the journal any more"
        };
        reason.to_owned()
    }

    /// Where the unsent readings of a destination begin: at this position or soon after it.
    pub fn first_unsent(&self, destination: u32) -> Option<Position> {
        self.rows
            .values()
            .filter(|p| p.row.destination == destination)
            .map(|p| p.row.first)
            .min()
    }

    /// Why readings of a destination wait, with their number.
    pub fn waiting(&self, destination: u32) -> Vec<(ErrorRecord, u64)> {
        let mut causes: Vec<(ErrorRecord, u64)> = Vec::new();
        for pending in self.rows.values().filter(|p| p.row.destination == destination) {
            let Some(error) = &pending.row.waiting else {
                continue;
            };
            match causes.iter_mut().find(|(known, _)| known.is_same_cause(error)) {
                Some((_, count)) => *count += pending.row.count,
                None => causes.push((error.clone(), pending.row.count)),
            }
        }
        causes
    }

    /// The first position that anything still needs; everything before it is history.
    pub fn needed_from(&self, followers: &[u32]) -> Position {
        let rows = self.rows.values().map(|p| p.row.first);
        let runs = self.unmatched.keys().copied();
        let cursors = followers
            .iter()
            .filter_map(|d| self.progress.destinations.get(d))
            .map(|d| d.cursor + 1);
        rows.chain(runs)
            .chain(cursors)
            .chain([self.progress.cursor + 1])
            .min()
            .unwrap_or(1)
    }

    /// Readings of a destination that rows other than `due` name one by one: ranges do not cover them.
    pub fn named_readings(&self, destination: u32, due: &HashSet<u64>) -> HashSet<(Position, u32)> {
        self.rows
            .values()
            .filter(|p| p.row.destination == destination && !due.contains(&p.row.id))
            .filter_map(|p| p.row.refs.as_ref())
            .flat_map(|refs| refs.iter().copied())
            .collect()
    }

    /// Moves the rows of a destination to a later due time: it cannot be reached.
    pub fn postpone(&mut self, ids: impl Iterator<Item = u64>, due_us: u64) {
        for id in ids {
            if let Some(pending) = self.rows.get_mut(&id) {
                pending.due_us = pending.due_us.max(due_us);
            }
        }
    }
}

#[cfg(test)]
mod tests;
