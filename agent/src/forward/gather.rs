//! Which readings a pass needs, and where they gather until their group is complete.

use super::{Fate, GroupReading};
use crate::message::{Position, RevisionId, Stamp, StoredMessage};
use crate::normalize::Match;
use crate::packs::Pack;
use crate::pipeline::weight_of_measurement;
use crate::store::outbox::Pending;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Readings of unfinished groups that a loop holds in memory, and their bytes. The messages that they came in are not held:
/// what becomes a dead letter is read once more.
const UNFINISHED: usize = 4000;
const UNFINISHED_BYTES: usize = 2 << 20;

/// Number of the group key, and start of the period.
type SeriesPeriod = (u32, Option<i64>);

/// A reading with the pack that made it.
pub(super) type Gathered = (GroupReading, Arc<Pack>);

/// Readings that gather for one row.
pub(super) struct Gathering {
    pub(super) series: u32,
    /// Last position that belongs to the row as the pass found it.
    pub(super) last: Position,
    /// Complete only at its last position: its period has one Observation.
    pub(super) whole: bool,
    /// All its readings become one Observation.
    pub(super) is_period: bool,
    pub(super) readings: Vec<Gathered>,
    /// Those whose fate is known without the destination, with the time at which they came.
    pub(super) held: Vec<(Position, u32, Stamp, Fate)>,
}

/// All rows of a pass.
pub(super) struct Gatherings {
    pub(super) rows: HashMap<u64, Gathering>,
    pub(super) ranges: HashMap<SeriesPeriod, Vec<(Position, Position, u64)>>,
    pub(super) refs: HashMap<(Position, u32), u64>,
    /// Readings to be normalized with other packs than those of their message: packs, row and match by position.
    pub(super) revised: HashMap<Position, Vec<(RevisionId, u64, u32)>>,
    pub(super) excluded: HashSet<(Position, u32)>,
    pub(super) count: usize,
    /// Rows that readings have gathered for: of a hundred thousand that are due only these are looked at again and again.
    begun: HashSet<u64>,
    /// Bytes of the readings.
    bytes: usize,
}

impl Gatherings {
    pub(super) fn of(due: &[Pending], others: HashSet<(Position, u32)>) -> Gatherings {
        let mut all = Gatherings {
            rows: HashMap::new(),
            ranges: HashMap::new(),
            refs: HashMap::new(),
            revised: HashMap::new(),
            excluded: others,
            count: 0,
            begun: HashSet::new(),
            bytes: 0,
        };
        for Pending { row, .. } in due {
            all.rows.insert(
                row.id,
                Gathering {
                    series: row.series,
                    last: row.last,
                    whole: row.period.is_some() || row.refs.is_some(),
                    is_period: row.period.is_some(),
                    readings: Vec::new(),
                    held: Vec::new(),
                },
            );
            match &row.refs {
                Some(refs) => match row.revision {
                    None => all.refs.extend(refs.iter().map(|place| (*place, row.id))),
                    Some(revision) => {
                        for (position, number) in refs.iter() {
                            all.revised
                                .entry(*position)
                                .or_default()
                                .push((revision, row.id, *number));
                        }
                    }
                },
                None => {
                    all.ranges
                        .entry((row.series, row.period))
                        .or_default()
                        .push((row.first, row.last, row.id));
                }
            }
        }
        all
    }

    /// Positions that have to be read, as disjoint ranges in order.
    pub(super) fn positions(&self, due: &[Pending]) -> Vec<(Position, Position)> {
        let mut ranges: Vec<(Position, Position)> = due
            .iter()
            .flat_map(|p| match &p.row.refs {
                Some(refs) => refs.iter().map(|(at, _)| (*at, *at)).collect::<Vec<_>>(),
                None => vec![(p.row.first, p.row.last)],
            })
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(Position, Position)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        merged
    }

    pub(super) fn row_of_range(&self, series: u32, period: Option<i64>, position: Position) -> Option<u64> {
        let ranges = self.ranges.get(&(series, period))?;
        ranges
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&position))
            .map(|(_, _, id)| *id)
    }

    pub(super) fn push(&mut self, id: u64, stored: &StoredMessage, found: &Match) {
        let (position, received) = (stored.position, stored.message.stamp);
        let Some(row) = self.rows.get_mut(&id) else { return };
        if let Some(hold) = &found.hold {
            row.held.push((position, found.number, received, hold.fate()));
            return;
        }
        self.count += 1;
        self.bytes += size_of::<Gathered>() + weight_of_measurement(&found.measurement);
        self.begun.insert(id);
        let reading = GroupReading {
            position,
            match_number: found.number,
            received,
            measurement: Arc::clone(&found.measurement),
            clock: found.clock.clone(),
        };
        row.readings.push((reading, Arc::clone(&found.pack)));
    }

    /// Whether they are all that memory is for.
    pub(super) fn is_full(&self) -> bool {
        self.count >= UNFINISHED || self.bytes >= UNFINISHED_BYTES
    }

    /// So many readings were taken out; what the others hold is told by their number.
    pub(super) fn taken(&mut self, readings: usize) {
        let before = self.count.max(1);
        self.count = self.count.saturating_sub(readings);
        self.bytes = self.bytes * self.count / before;
        let rows = &self.rows;
        self.begun
            .retain(|id| rows.get(id).is_some_and(|row| !row.readings.is_empty()));
    }

    /// Whether the rows hold Observations for a batch of `wanted`, or all that memory is for.
    pub(super) fn are_enough(&self, position: Position, wanted: usize) -> bool {
        if self.is_full() {
            return true;
        }
        self.count >= wanted && {
            let complete = self
                .begun
                .iter()
                .filter_map(|id| self.rows.get(id))
                .filter(|row| row.last <= position || !row.whole);
            let observations = complete.map(|row| {
                let most = if row.is_period { 1 } else { usize::MAX };
                row.readings.len().min(most)
            });
            observations.sum::<usize>() >= wanted
        }
    }

    /// Rows whose readings up to `position` can be handed over: complete ones; all of them when memory is full.
    pub(super) fn ready(&self, position: Position, end: bool) -> Vec<u64> {
        let full = self.is_full();
        let mut ready: Vec<u64> = self
            .rows
            .iter()
            .filter(|(_, row)| end || full || row.last <= position || !row.whole)
            .filter(|(_, row)| end || row.last <= position || !row.readings.is_empty())
            .map(|(id, _)| *id)
            .collect();
        ready.sort_unstable();
        ready
    }
}
