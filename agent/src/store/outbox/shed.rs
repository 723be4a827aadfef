//! What the outbox needs of the journal, and how readings are given up: always the oldest of a row, with a ledger line and
//! the counters in the same transaction.
//!
//! A reading that is given up while a pass has it in its hands stays given up: its outcome is not counted again. It may have
//! reached the destination then, so the ledger says rather too much than too little.

use super::{Outbox, Pending};
use crate::message::{Position, SourceId};
use crate::store::progress::Loss;
use std::collections::HashSet;
use std::sync::Arc;

/// A range of positions, both ends included.
pub type Range = (Position, Position);

impl Outbox {
    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Pending> {
        self.rows.values()
    }

    /// Positions that anything still needs, within `first..=last`: ranges in order that do not touch. What is not normalized
    /// yet is needed, what a follower has not sent too.
    pub fn needs(&self, followers: &[u32], first: Position, last: Position) -> Vec<Range> {
        let mut needed: Vec<Range> = vec![(self.progress.cursor + 1, Position::MAX)];
        for follower in followers {
            if let Some(d) = self.progress.destinations.get(follower) {
                needed.push((d.cursor + 1, Position::MAX));
            }
        }
        for Pending { row, .. } in self
            .rows
            .values()
            .filter(|p| p.row.first <= last && p.row.last >= first)
        {
            match &row.refs {
                None => needed.push((row.first, row.last)),
                Some(refs) => needed.extend(refs.iter().map(|(at, _)| (*at, *at))),
            }
        }
        needed.extend(self.unmatched.values().map(|run| (run.first, run.last)));
        needed.retain(|(from, to)| *from <= last && *to >= first);
        needed.sort_unstable();
        let mut merged: Vec<Range> = Vec::new();
        for (from, to) in needed {
            let (from, to) = (from.max(first), to.min(last));
            match merged.last_mut() {
                Some(before) if from <= before.1.saturating_add(1) => before.1 = before.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        merged
    }

    /// The destinations that follow the journal: the configured ones, and those that did before they were removed from the
    /// configuration, which keep what they have not sent.
    pub fn followers(&self, configured: &[u32], followers: &[u32]) -> Vec<u32> {
        let removed = self
            .progress
            .destinations
            .keys()
            .copied()
            .filter(|id| !configured.contains(id) && self.followed(*id));
        followers.iter().copied().chain(removed).collect()
    }

    /// Whether a destination that is not configured any more took raw messages and still waits for its rest.
    pub fn followed(&self, destination: u32) -> bool {
        let counters = self.progress.destinations.get(&destination);
        counters.is_some_and(|d| d.cursor > 0 && !d.dropped)
    }

    /// Gives up everything that a destination has not got; `through` is the last position of the journal. Returns how many
    /// matches or messages.
    pub fn drop_destination(&mut self, destination: u32, through: Position, reason: &str) -> u64 {
        let rows = self.rows.values().filter(|p| p.row.destination == destination);
        let rows: Vec<u64> = rows.map(|p| p.row.id).collect();
        let mut lost = 0;
        for id in rows {
            lost += self.give_up_row(id, Position::MAX, 0, None, reason);
        }
        if self.followed(destination) {
            lost += self.give_up_messages(destination, through, reason);
            self.destination_mut(destination).dropped = true;
        }
        lost
    }

    /// Gives up the readings of a row up to and with `through`: `counted` of them when the row goes on behind it. Returns how
    /// many.
    pub fn give_up_row(
        &mut self,
        id: u64,
        through: Position,
        counted: u64,
        source: Option<SourceId>,
        reason: &str,
    ) -> u64 {
        let Some(pending) = self.rows.get_mut(&id).filter(|p| p.row.first <= through) else {
            return 0;
        };
        let row = &mut pending.row;
        let (destination, series, first) = (row.destination, row.series, row.first);
        let last = row.last.min(through);
        let lost = match &row.refs {
            _ if row.last <= through => row.count,
            None => counted.min(row.count),
            Some(refs) => refs.iter().filter(|(at, _)| *at <= through).count() as u64,
        };
        row.count -= lost;
        if row.last <= through {
            let key = (destination, series, row.period);
            self.rows.remove(&id);
            self.close(key, id);
            self.pending.rows.remove(&id);
            self.pending.gone.insert(id);
        } else {
            let left: Option<Vec<_>> = row
                .refs
                .as_ref()
                .map(|refs| refs.iter().filter(|(at, _)| *at > through).copied().collect());
            row.first = left
                .as_ref()
                .and_then(|left| left.first())
                .map_or(through + 1, |(at, _)| *at);
            row.refs = left.map(Arc::new);
            self.pending.rows.insert(id);
        }
        if self
            .in_pass
            .get(&destination)
            .is_some_and(|ids| ids.contains(&id))
        {
            self.given_up.insert(id, through);
        }
        self.pending.any = true;
        if lost > 0 {
            self.destination_mut(destination).lost += lost;
            let key = self.series.get(series);
            self.pending.losses.push(Loss {
                destination: Some(destination),
                source,
                range: Some((first, last)),
                count: lost,
                reason: reason.to_owned(),
                reading: key.map(|key| (Arc::clone(&key.device), Arc::clone(&key.type_name))),
            });
        }
        lost
    }

    /// Gives up what a destination that takes raw messages has not sent up to and with `through`. Returns how many.
    pub fn give_up_messages(&mut self, destination: u32, through: Position, reason: &str) -> u64 {
        let counters = self.destination_mut(destination);
        let first = counters.cursor + 1;
        let lost = (through + 1).saturating_sub(first);
        if lost == 0 {
            return 0;
        }
        counters.matches += lost;
        counters.lost += lost;
        counters.cursor = through;
        self.lose(Loss {
            destination: Some(destination),
            source: None,
            range: Some((first, through)),
            count: lost,
            reason: reason.to_owned(),
            reading: None,
        });
        lost
    }

    /// Gives up the messages of an unmatched run up to and with `through`: `counted` of them when the run goes on behind it.
    pub fn give_up_unmatched(
        &mut self,
        first: Position,
        through: Position,
        counted: u64,
        reason: &str,
    ) -> u64 {
        let Some(mut run) = self.unmatched.get(&first).filter(|r| r.first <= through).cloned() else {
            return 0;
        };
        let open = self.open_runs.get(&run.source).copied();
        let last = run.last.min(through);
        let lost = if run.last <= through {
            run.count
        } else {
            counted.min(run.count)
        };
        self.forget_unmatched(first);
        if run.last > through {
            run.first = through + 1;
            run.count -= lost;
            if let Some((opened, wall)) = open.filter(|(opened, _)| *opened == first) {
                self.open_runs.insert(run.source, (opened.max(run.first), wall));
            }
            self.pending.runs.insert(run.first);
            self.unmatched.insert(run.first, run.clone());
        }
        self.lose(Loss {
            destination: None,
            source: Some(run.source),
            range: Some((first, last)),
            count: lost,
            reason: reason.to_owned(),
            reading: None,
        });
        lost
    }

    /// Positions up to which a row that a pass has in its hands was given up meanwhile.
    pub(super) fn given_up_through(&self, row: u64) -> Position {
        self.given_up.get(&row).copied().unwrap_or(0)
    }

    pub(super) fn forget_given_up(&mut self, rows: &HashSet<u64>) {
        self.given_up.retain(|id, _| !rows.contains(id));
    }
}
