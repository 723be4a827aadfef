//! What the store does not have yet, and how it gets there: taken for a commit, and given back when that fails.

use super::Outbox;
use crate::associations::Record;
use crate::corrections::Correction;
use crate::forward::SentPeriod;
use crate::message::Position;
use crate::store::associations::AssociationChanges;
use crate::store::progress::{Changes, DeadLetter, Loss};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the store does not have yet.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    pub(super) any: bool,
    pub(super) rows: BTreeSet<u64>,
    pub(super) gone: BTreeSet<u64>,
    pub(super) series: Vec<u32>,
    pub(super) series_gone: Vec<u32>,
    pub(super) sent_periods: BTreeMap<(u32, String), SentPeriod>,
    pub(super) dead_letters: Vec<(u64, DeadLetter)>,
    pub(super) letters_gone: BTreeSet<u64>,
    pub(super) losses: Vec<Loss>,
    pub(super) runs: BTreeSet<Position>,
    pub(super) runs_gone: BTreeSet<Position>,
    pub(super) sightings: BTreeMap<(u32, Arc<str>), Record>,
    /// By number; none for one that is done.
    pub(super) corrections: BTreeMap<i64, Option<Correction>>,
}

impl Unwritten {
    fn merge(&mut self, older: Unwritten) {
        self.any |= older.any;
        self.rows.extend(older.rows);
        self.gone.extend(older.gone);
        self.series.extend(older.series);
        self.series_gone.extend(older.series_gone);
        for (key, sent) in older.sent_periods {
            self.sent_periods.entry(key).or_insert(sent);
        }
        self.dead_letters.splice(0..0, older.dead_letters);
        self.letters_gone.extend(older.letters_gone);
        self.losses.splice(0..0, older.losses);
        self.runs.extend(older.runs);
        self.runs_gone.extend(older.runs_gone);
        for (key, record) in older.sightings {
            self.sightings.entry(key).or_insert(record);
        }
        for (number, correction) in older.corrections {
            self.corrections.entry(number).or_insert(correction);
        }
    }
}

impl Outbox {
    /// A ledger line.
    pub fn lose(&mut self, loss: Loss) {
        self.pending.any = true;
        self.pending.losses.push(loss);
    }

    /// What was remembered of Observations that were sent, to be stored.
    pub fn remember_sent(&mut self, destination: u32, sent: Vec<SentPeriod>) {
        for period in sent {
            self.pending.any = true;
            self.pending
                .sent_periods
                .insert((destination, period.observation.clone()), period);
        }
    }

    /// A sent period that the store does not have yet.
    pub fn unwritten_sent_period(&self, destination: u32, observation: &str) -> Option<Vec<u8>> {
        let key = (destination, observation.to_owned());
        let found = self.pending.sent_periods.get(&key);
        found
            .or_else(|| self.in_flight.as_ref().and_then(|f| f.sent_periods.get(&key)))
            .map(|sent| sent.memory.clone())
    }

    /// What servers showed of devices, to be stored.
    pub fn remember_sightings(&mut self, sightings: Vec<(u32, Arc<str>, Record)>) {
        for (destination, device, record) in sightings {
            self.pending.any = true;
            self.pending.sightings.insert((destination, device), record);
        }
    }

    /// A correction that is new.
    pub fn remember_correction(&mut self, correction: Correction) {
        self.pending.any = true;
        let number = correction.number;
        self.pending.corrections.insert(number, Some(correction));
    }

    /// A correction that is done: its row leaves with the rows of what is sent again.
    pub fn forget_correction(&mut self, number: i64) {
        self.pending.any = true;
        self.pending.corrections.insert(number, None);
    }

    /// Whether there is anything to write.
    pub fn has_changes(&self) -> bool {
        self.pending.any
    }

    /// Everything that changed, for one commit; followed by [`Outbox::written`] or [`Outbox::not_written`].
    pub fn take_changes(&mut self) -> Changes {
        self.forget_series();
        let mut taken = std::mem::take(&mut self.pending);
        let changes = Changes {
            progress: self.progress.clone(),
            series: self.take_series(&mut taken),
            series_gone: taken.series_gone.clone(),
            rows: taken
                .rows
                .iter()
                .filter_map(|id| self.rows.get(id))
                .map(|p| p.row.clone())
                .collect(),
            rows_gone: taken.gone.iter().copied().collect(),
            sent_periods: taken
                .sent_periods
                .iter()
                .map(|((d, _), sent)| (*d, sent.clone()))
                .collect(),
            dead_letters: taken.dead_letters.clone(),
            letters_gone: taken.letters_gone.iter().copied().collect(),
            losses: taken.losses.clone(),
            unmatched: taken
                .runs
                .iter()
                .filter_map(|first| self.unmatched.get(first))
                .cloned()
                .collect(),
            unmatched_gone: taken.runs_gone.iter().copied().collect(),
            associations: AssociationChanges {
                sightings: taken
                    .sightings
                    .iter()
                    .map(|((d, device), record)| (*d, Arc::clone(device), record.clone()))
                    .collect(),
                corrections: taken.corrections.values().flatten().cloned().collect(),
                corrections_done: taken
                    .corrections
                    .iter()
                    .filter(|(_, correction)| correction.is_none())
                    .map(|(number, _)| *number)
                    .collect(),
            },
        };
        self.in_flight = Some(taken);
        changes
    }

    /// The taken changes are on the disk.
    pub fn written(&mut self) {
        self.in_flight = None;
    }

    /// The taken changes are not on the disk: the next commit writes them.
    pub fn not_written(&mut self) {
        if let Some(taken) = self.in_flight.take() {
            self.pending.merge(taken);
        }
    }
}
