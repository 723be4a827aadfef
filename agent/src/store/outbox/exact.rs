//! Rows that name exact readings: those that wait, those that come again.

use super::settle::WAIT_FIRST_US;
use super::{FULL_ROW, Outbox, Pending};
use crate::message::{Position, RevisionId};
use crate::store::progress::Row;
use crate::telemetry::errors::ErrorRecord;
use std::sync::Arc;

impl Outbox {
    /// Exact readings that `destination` has to get, normalized with `revision`: messages that only a newer mapping
    /// matches, redriven dead letters. They count as new matches.
    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    pub fn add_refs(
        &mut self,
        destination: u32,
        series: u32,
        period: Option<i64>,
        refs: Vec<(Position, u32)>,
        revision: Option<RevisionId>,
        wall: i64,
        due_us: u64,
    ) {
        self.destination_mut(destination).matches += refs.len() as u64;
        self.insert_refs(destination, series, period, refs, revision, None, wall, due_us, 0);
    }

    /// Readings that wait from the beginning (for the clock). They count as new matches.
    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    pub fn add_waiting(
        &mut self,
        destination: u32,
        series: u32,
        refs: Vec<(Position, u32)>,
        revision: Option<RevisionId>,
        error: ErrorRecord,
        wall: i64,
        now_us: u64,
    ) {
        self.destination_mut(destination).matches += refs.len() as u64;
        let due = now_us + WAIT_FIRST_US;
        self.insert_refs(
            destination,
            series,
            None,
            refs,
            revision,
            Some(error),
            wall,
            due,
            0,
        );
    }

    /// Makes waiting rows with this cause due at once: what they waited for has come.
    pub fn wake_waiting(&mut self, error_name: &str, now_us: u64) {
        for pending in self.rows.values_mut() {
            if pending
                .row
                .waiting
                .as_ref()
                .is_some_and(|error| error.name == error_name)
            {
                pending.due_us = pending.due_us.min(now_us);
                pending.tries = 0;
            }
        }
    }

    /// Makes the waiting rows of a device due at once: whose it is, or was, has changed.
    pub fn wake_device(&mut self, device: &str, now_us: u64) {
        let keys = &self.series;
        for pending in self.rows.values_mut().filter(|p| p.row.waiting.is_some()) {
            if keys
                .get(pending.row.series)
                .is_some_and(|key| &*key.device == device)
            {
                pending.due_us = pending.due_us.min(now_us);
                pending.tries = 0;
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the columns of a row, from one caller's split"
    )]
    pub(super) fn insert_refs(
        &mut self,
        destination: u32,
        series: u32,
        period: Option<i64>,
        mut refs: Vec<(Position, u32)>,
        revision: Option<RevisionId>,
        waiting: Option<ErrorRecord>,
        oldest: i64,
        due_us: u64,
        tries: u32,
    ) {
        refs.sort_unstable();
        if let Some(error) = &waiting
            && let Some(id) = self.row_that_waits_alike(destination, series, period, revision, error)
        {
            self.join_row(id, &refs, oldest);
            return;
        }
        let (Some(first), Some(last)) = (refs.first(), refs.last()) else {
            return;
        };
        let id = self.next_row;
        self.next_row += 1;
        let row = Row {
            id,
            destination,
            series,
            period,
            first: first.0,
            last: last.0,
            count: refs.len() as u64,
            oldest,
            refs: Some(Arc::new(refs)),
            revision,
            waiting,
        };
        self.pending.any = true;
        self.pending.rows.insert(id);
        self.rows.insert(id, Pending { row, due_us, tries });
    }

    /// A row with this key that waits for the same, has room, and is not in the hands of a pass: a device that is not
    /// registered must not make a row of each of its readings.
    fn row_that_waits_alike(
        &self,
        destination: u32,
        series: u32,
        period: Option<i64>,
        revision: Option<RevisionId>,
        error: &ErrorRecord,
    ) -> Option<u64> {
        let in_pass = self.in_pass.get(&destination);
        let alike = self.rows.values().rev().find(|pending| {
            let row = &pending.row;
            (row.destination, row.series, row.period, row.revision) == (destination, series, period, revision)
                && row
                    .waiting
                    .as_ref()
                    .is_some_and(|waits| waits.is_same_cause(error))
                && row.refs.as_ref().is_some_and(|refs| refs.len() < FULL_ROW)
                && !in_pass.is_some_and(|ids| ids.contains(&row.id))
        });
        alike.map(|pending| pending.row.id)
    }

    fn join_row(&mut self, id: u64, places: &[(Position, u32)], oldest: i64) {
        let Some(Pending { row, .. }) = self.rows.get_mut(&id) else {
            return;
        };
        let mut refs: Vec<(Position, u32)> = row.refs.iter().flat_map(|refs| refs.iter()).copied().collect();
        refs.extend_from_slice(places);
        refs.sort_unstable();
        row.first = refs.first().map_or(row.first, |(at, _)| *at);
        row.last = refs.last().map_or(row.last, |(at, _)| *at);
        row.count = refs.len() as u64;
        row.oldest = row.oldest.min(oldest);
        row.refs = Some(Arc::new(refs));
        self.pending.any = true;
        self.pending.rows.insert(id);
    }
}
