//! Messages that no template matched: runs of them, kept until a changed pack matches them or their time is over.

use super::Outbox;
use crate::message::{Position, SourceId, StoredMessage};
use crate::store::progress::UnmatchedRun;

/// A run ends after so many messages or so much time (ticks of 100 ns), so that the oldest can be given up while more come.
const LONGEST_RUN: u64 = 1000;
const LONGEST_RUN_TICKS: i64 = 3600 * 10_000_000;

impl Outbox {
    /// Notes a message that no template matched; a run of them is one row.
    pub fn note_unmatched(&mut self, stored: &StoredMessage, no_pack: bool) {
        let source = stored.message.source;
        let stamp = stored.message.stamp;
        // An untrusted stamp (1970) would make it old the moment that the clock is set: nothing is given up by such an age.
        let wall = match stamp.trusted {
            true => stamp.wall.ticks(),
            false => i64::MAX,
        };
        if let Some((first, began)) = self.open_runs.get(&source)
            && let Some(run) = self.unmatched.get_mut(first)
            && run.no_pack == no_pack
            && run.count < LONGEST_RUN
            && wall.saturating_sub(*began) < LONGEST_RUN_TICKS
            && (wall == i64::MAX) == (*began == i64::MAX)
        {
            run.last = stored.position;
            run.count += 1;
            run.wall = wall;
            self.pending.runs.insert(*first);
            return;
        }
        let run = UnmatchedRun {
            first: stored.position,
            last: stored.position,
            source,
            count: 1,
            no_pack,
            wall,
        };
        self.open_runs.insert(source, (stored.position, wall));
        self.pending.runs.insert(stored.position);
        self.unmatched.insert(stored.position, run);
    }

    /// Notes a message that no template matched as a run of its own: others around it were matched meanwhile.
    pub fn note_unmatched_alone(&mut self, stored: &StoredMessage, no_pack: bool) {
        let open = self.open_runs.remove(&stored.message.source);
        self.note_unmatched(stored, no_pack);
        self.open_runs.remove(&stored.message.source);
        if let Some(open) = open.filter(|(open, _)| *open > stored.position) {
            self.open_runs.insert(stored.message.source, open);
        }
    }

    /// A template matched: a run of unmatched messages of the source ends.
    pub fn note_matched(&mut self, source: SourceId) {
        self.open_runs.remove(&source);
    }

    /// Runs of unmatched messages.
    pub fn unmatched(&self) -> impl Iterator<Item = &UnmatchedRun> {
        self.unmatched.values()
    }

    /// Removes a run of unmatched messages: they were normalized anew, or are kept no longer.
    pub fn forget_unmatched(&mut self, first: Position) {
        if self.unmatched.remove(&first).is_some() {
            self.open_runs.retain(|_, (open, _)| *open != first);
            self.pending.any = true;
            self.pending.runs.remove(&first);
            self.pending.runs_gone.insert(first);
        }
    }
}
