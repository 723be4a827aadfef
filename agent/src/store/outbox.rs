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

use super::open::Recovered;
use super::progress::{Changes, DeadLetter, DestinationProgress, Loss, Progress, Row, UnmatchedRun};
use super::read::DeadLetterSummary;
use crate::forward::{Fate, GroupKey, SentPeriod};
use crate::message::{Position, RevisionId, SourceId, StoredMessage};
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::Measurement;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
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
    /// The message, for a dead letter.
    pub message: Arc<StoredMessage>,
}

/// First pause of a waiting row, and its longest one, in microseconds.
const WAIT_FIRST_US: u64 = 10_000_000;
const WAIT_LONGEST_US: u64 = 600_000_000;

/// Pause of readings that a reachable destination did not take; longer pauses are the destination's.
fn retry_pause_us(tries: u32) -> u64 {
    (250_000 << tries.min(7)).min(30_000_000)
}

type OpenKey = (u32, u32, Option<i64>);

/// The outbox of all destinations.
#[derive(Debug, Default)]
pub struct Outbox {
    progress: Progress,
    rows: BTreeMap<u64, Pending>,
    open: HashMap<OpenKey, u64>,
    next_row: u64,
    keys: HashMap<u32, Arc<GroupKey>>,
    series: HashMap<u64, Vec<u32>>,
    next_series: u32,
    unmatched: BTreeMap<Position, UnmatchedRun>,
    open_runs: HashMap<SourceId, Position>,
    pending: Unwritten,
    /// Numbers whose changes are on their way to the disk, to be written again if that fails.
    in_flight: Option<Unwritten>,
}

/// What the store does not have yet.
#[derive(Debug, Default)]
struct Unwritten {
    any: bool,
    rows: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    series: Vec<u32>,
    sent_periods: BTreeMap<(u32, String), SentPeriod>,
    dead_letters: Vec<DeadLetter>,
    losses: Vec<Loss>,
    runs: BTreeSet<Position>,
    runs_gone: BTreeSet<Position>,
}

impl Unwritten {
    fn merge(&mut self, older: Unwritten) {
        self.any |= older.any;
        self.rows.extend(older.rows);
        self.gone.extend(older.gone);
        self.series.extend(older.series);
        for (key, sent) in older.sent_periods {
            self.sent_periods.entry(key).or_insert(sent);
        }
        self.dead_letters.splice(0..0, older.dead_letters);
        self.losses.splice(0..0, older.losses);
        self.runs.extend(older.runs);
        self.runs_gone.extend(older.runs_gone);
    }
}

fn hash_key(
    pack: &str,
    device: &str,
    type_name: &str,
    patient: Option<&str>,
    encounter: Option<&str>,
    correlation: Option<&str>,
) -> u64 {
    let mut hasher = DefaultHasher::new();
    (pack, device, type_name, patient, encounter, correlation).hash(&mut hasher);
    hasher.finish()
}

impl Outbox {
    /// The outbox as the store had it; all rows are due at once.
    pub fn restore(recovered: &Recovered, destinations: &[u32], now_us: u64) -> Outbox {
        let mut outbox = Outbox {
            progress: recovered.progress.clone(),
            ..Outbox::default()
        };
        for (id, key) in &recovered.series {
            outbox.remember_key(*id, Arc::clone(key));
            outbox.next_series = outbox.next_series.max(id + 1);
        }
        for row in &recovered.rows {
            outbox.next_row = outbox.next_row.max(row.id + 1);
            outbox.insert(Pending {
                row: row.clone(),
                due_us: now_us,
                tries: 0,
            });
        }
        for run in &recovered.unmatched {
            outbox.unmatched.insert(run.first, run.clone());
        }
        for destination in destinations {
            outbox.progress.destinations.entry(*destination).or_default();
        }
        outbox
    }

    fn remember_key(&mut self, id: u32, key: Arc<GroupKey>) {
        let hash = hash_key(
            &key.pack,
            &key.device,
            &key.type_name,
            key.patient.as_deref(),
            key.encounter.as_deref(),
            key.correlation.as_deref(),
        );
        self.series.entry(hash).or_default().push(id);
        self.keys.insert(id, key);
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

    /// The group key with this number.
    pub fn key(&self, series: u32) -> Option<&Arc<GroupKey>> {
        self.keys.get(&series)
    }

    /// Number of the key of a measurement, given anew if it has none.
    pub fn series_of(&mut self, pack: &str, measurement: &Measurement) -> u32 {
        let patient = measurement.patient_id.as_deref();
        let encounter = measurement.encounter_id.as_deref();
        let correlation = measurement.correlation_id.as_deref();
        let hash = hash_key(
            pack,
            &measurement.device_id,
            &measurement.type_name,
            patient,
            encounter,
            correlation,
        );
        for id in self.series.get(&hash).into_iter().flatten() {
            let same = self.keys.get(id).is_some_and(|key| {
                &*key.pack == pack
                    && *key.device == *measurement.device_id
                    && *key.type_name == *measurement.type_name
                    && key.patient.as_deref() == patient
                    && key.encounter.as_deref() == encounter
                    && key.correlation.as_deref() == correlation
            });
            if same {
                return *id;
            }
        }
        let id = self.next_series;
        self.next_series += 1;
        let key = GroupKey {
            pack: Arc::from(pack),
            device: Arc::from(measurement.device_id.as_str()),
            type_name: Arc::from(measurement.type_name.as_str()),
            patient: patient.map(Arc::from),
            encounter: encounter.map(Arc::from),
            correlation: correlation.map(Arc::from),
        };
        self.series.entry(hash).or_default().push(id);
        self.keys.insert(id, Arc::new(key));
        self.pending.series.push(id);
        id
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

    #[expect(
        clippy::too_many_arguments,
        reason = "the columns of a row, from one caller's split"
    )]
    fn insert_refs(
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

    /// A failed match or message: counted as dead for every destination that takes readings.
    pub fn dead(&mut self, letter: DeadLetter) {
        self.pending.any = true;
        self.pending.dead_letters.push(letter);
    }

    /// Adds the dead letters that the store does not have yet to its summary of them.
    pub fn add_unwritten(&self, summaries: &mut Vec<DeadLetterSummary>) {
        let in_flight = self.in_flight.iter().flat_map(|taken| &taken.dead_letters);
        for letter in in_flight.chain(&self.pending.dead_letters) {
            let (cause, position) = (letter.cause(), letter.message.position);
            match summaries.iter_mut().find(|known| known.cause == cause) {
                Some(known) => {
                    known.count += 1;
                    known.first = known.first.min(position);
                    known.last = known.last.max(position);
                }
                None => summaries.push(DeadLetterSummary {
                    cause,
                    count: 1,
                    error: letter.error.clone(),
                    first: position,
                    last: position,
                }),
            }
        }
    }

    /// A ledger line.
    pub fn lose(&mut self, loss: Loss) {
        self.pending.any = true;
        self.pending.losses.push(loss);
    }

    /// Notes a message that no template matched; a run of them is one row.
    pub fn note_unmatched(&mut self, stored: &StoredMessage, no_pack: bool) {
        let source = stored.message.source;
        let wall = stored.message.stamp.wall.ticks();
        if let Some(first) = self.open_runs.get(&source)
            && let Some(run) = self.unmatched.get_mut(first)
            && run.no_pack == no_pack
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
        self.open_runs.insert(source, stored.position);
        self.pending.runs.insert(stored.position);
        self.unmatched.insert(stored.position, run);
    }

    /// Notes a message that no template matched as a run of its own: others around it were matched meanwhile.
    pub fn note_unmatched_alone(&mut self, stored: &StoredMessage, no_pack: bool) {
        let open = self.open_runs.remove(&stored.message.source);
        self.note_unmatched(stored, no_pack);
        self.open_runs.remove(&stored.message.source);
        if let Some(open) = open.filter(|open| *open > stored.position) {
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
            self.open_runs.retain(|_, open| *open != first);
            self.pending.any = true;
            self.pending.runs.remove(&first);
            self.pending.runs_gone.insert(first);
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

    /// Receive time of the oldest unsent reading of a destination: ticks of 100 ns.
    pub fn oldest(&self, destination: u32) -> Option<i64> {
        self.rows
            .values()
            .filter(|p| p.row.destination == destination)
            .map(|p| p.row.oldest)
            .min()
    }

    /// Why readings of a destination wait, with their number.
    pub fn waiting(&self, destination: u32) -> Vec<(ErrorRecord, u64)> {
        let mut causes: Vec<(ErrorRecord, u64)> = Vec::new();
        for pending in self.rows.values().filter(|p| p.row.destination == destination) {
            let Some(error) = &pending.row.waiting else {
                continue;
            };
            match causes.iter_mut().find(|(known, _)| known.name == error.name) {
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
        outcomes: Vec<Settled>,
        now_us: u64,
    ) {
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
        let gone = outcomes.len() as u64;
        for outcome in outcomes {
            let place = (outcome.position, outcome.match_number);
            match outcome.fate {
                Fate::Delivered => self.destination_mut(destination).delivered += 1,
                Fate::Superseded => self.destination_mut(destination).superseded += 1,
                Fate::Retry => again.push(place),
                Fate::Waiting(error) => {
                    match waiting.iter_mut().find(|(known, _)| known.name == error.name) {
                        Some((_, places)) => places.push(place),
                        None => waiting.push((error, vec![place])),
                    }
                }
                Fate::Dead(error) => {
                    self.destination_mut(destination).dead += 1;
                    self.pending.dead_letters.push(DeadLetter {
                        destination: Some(destination),
                        match_number: Some(outcome.match_number),
                        stage: "forward",
                        error,
                        message: outcome.message,
                    });
                }
            }
        }
        let tries = pending.tries + 1;
        let row = pending.row;
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
            self.open.retain(|_, open| *open != id);
            self.pending.rows.remove(&id);
            self.pending.gone.insert(id);
        } else {
            self.pending.rows.insert(id);
        }
        if missing > 0 {
            self.destination_mut(before.destination).lost += missing;
            self.pending.losses.push(Loss {
                destination: Some(before.destination),
                source: None,
                range: Some((before.first, before.last)),
                count: missing,
                reason: "not in the journal any more".to_owned(),
            });
        }
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

    /// Whether there is anything to write.
    pub fn has_changes(&self) -> bool {
        self.pending.any
    }

    /// Everything that changed, for one commit; followed by [`Outbox::written`] or [`Outbox::not_written`].
    pub fn take_changes(&mut self) -> Changes {
        let taken = std::mem::take(&mut self.pending);
        let changes = Changes {
            progress: self.progress.clone(),
            series: taken
                .series
                .iter()
                .filter_map(|id| self.keys.get(id).map(|key| (*id, Arc::clone(key))))
                .collect(),
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
            losses: taken.losses.clone(),
            unmatched: taken
                .runs
                .iter()
                .filter_map(|first| self.unmatched.get(first))
                .cloned()
                .collect(),
            unmatched_gone: taken.runs_gone.iter().copied().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Payload, PayloadKind, Stamp};
    use iomt_mapping::Timestamp;

    fn stored(position: Position) -> Arc<StoredMessage> {
        let stamp = Stamp {
            boot: 1,
            monotonic_us: 0,
            wall: Timestamp::from_ticks(0).unwrap(),
            trusted: true,
        };
        Arc::new(StoredMessage {
            position,
            revision: RevisionId(1),
            message: Message {
                source: SourceId(1),
                stamp,
                payload: Payload::default(),
                kind: PayloadKind::Whole,
                topic: None,
                properties: Vec::new(),
                device_id: None,
                possible_repeat: false,
                ack: None,
            },
        })
    }

    fn settled(row: u64, position: Position, fate: Fate) -> Settled {
        Settled {
            row,
            position,
            match_number: 0,
            fate,
            message: stored(position),
        }
    }

    /// Invariant 1.
    fn balance(outbox: &Outbox, destination: u32) {
        let p = &outbox.progress().destinations[&destination];
        let (due, waiting) = outbox.backlog(destination);
        assert_eq!(
            p.matches,
            p.delivered + p.superseded + p.dead + p.lost + due + waiting
        );
    }

    #[test]
    fn a_backlog_of_a_device_is_one_row_and_every_match_is_accounted_for() {
        let mut outbox = Outbox::default();
        for position in 1..=1000 {
            outbox.add(7, 0, None, position, 5, 0);
        }
        let due = outbox.due(7, 0);
        assert_eq!(
            (due.len(), due[0].row.first, due[0].row.last, due[0].row.count),
            (1, 1, 1000, 1000)
        );
        let row = due[0].row.id;
        let mut outcomes: Vec<Settled> = (1..=400).map(|p| settled(row, p, Fate::Delivered)).collect();
        outcomes[3].fate = Fate::Dead(ErrorRecord::new(
            "InvalidQuantityFhirValueException",
            "no decimal",
        ));
        outcomes[4].fate = Fate::Waiting(ErrorRecord::new("DeviceNotFoundException", "register it"));
        outcomes[5].fate = Fate::Retry;
        outcomes[6].fate = Fate::Superseded;
        outbox.settle(7, &HashMap::from([(row, 400)]), outcomes, 0);
        balance(&outbox, 7);
        assert_eq!(outbox.backlog(7), (601, 1));
        let rest = outbox.due(7, 1_000_000);
        assert_eq!(
            rest.iter()
                .map(|p| (p.row.first, p.row.count))
                .collect::<Vec<_>>(),
            [(6, 1), (401, 600)]
        );
        // The reading that waits comes again later, and leaves when it is delivered.
        let waiting = outbox
            .due(7, u64::MAX)
            .into_iter()
            .find(|p| p.row.waiting.is_some())
            .unwrap();
        outbox.settle(
            7,
            &HashMap::new(),
            vec![settled(waiting.row.id, 5, Fate::Delivered)],
            0,
        );
        balance(&outbox, 7);
        assert_eq!(outbox.backlog(7), (601, 0));
    }

    #[test]
    fn a_row_that_grew_during_its_delivery_keeps_what_came_meanwhile() {
        let mut outbox = Outbox::default();
        outbox.add(1, 0, Some(0), 10, 0, 0);
        let row = outbox.due(1, 0)[0].row.id;
        outbox.add(1, 0, Some(0), 11, 0, 0);
        outbox.settle(
            1,
            &HashMap::from([(row, 10)]),
            vec![settled(row, 10, Fate::Delivered)],
            0,
        );
        let due = outbox.due(1, 0);
        assert_eq!((due[0].row.first, due[0].row.last, due[0].row.count), (11, 11, 1));
        balance(&outbox, 1);
    }

    #[test]
    fn nothing_is_settled_while_the_destination_is_away() {
        let mut outbox = Outbox::default();
        outbox.add(1, 0, None, 10, 0, 0);
        let before = outbox.due(1, 0)[0].row.clone();
        outbox.settle(
            1,
            &HashMap::from([(before.id, 10)]),
            vec![settled(before.id, 10, Fate::Retry)],
            0,
        );
        assert!(outbox.due(1, 0).is_empty(), "it rests before the next try");
        assert_eq!(outbox.due(1, retry_pause_us(1))[0].row, before);
    }

    #[test]
    fn what_the_journal_no_longer_holds_is_lost_and_said() {
        let mut outbox = Outbox::default();
        for position in 1..=5 {
            outbox.add(1, 0, None, position, 0, 0);
        }
        let row = outbox.due(1, 0)[0].row.id;
        outbox.settle(
            1,
            &HashMap::from([(row, 5)]),
            vec![settled(row, 5, Fate::Delivered)],
            0,
        );
        balance(&outbox, 1);
        let changes = outbox.take_changes();
        assert_eq!(changes.losses[0].count, 4);
        assert_eq!(outbox.progress().destinations[&1].lost, 4);
    }

    #[test]
    fn a_failed_commit_is_written_by_the_next_one() {
        let mut outbox = Outbox::default();
        outbox.add(1, 0, None, 1, 0, 0);
        let first = outbox.take_changes();
        outbox.not_written();
        outbox.add(1, 0, None, 2, 0, 0);
        let second = outbox.take_changes();
        assert_eq!(first.rows.len(), 1);
        assert_eq!((second.rows.len(), second.rows[0].last), (1, 2));
        outbox.written();
        assert!(!outbox.has_changes());
    }

    #[test]
    fn runs_of_unmatched_messages_end_where_one_matches() {
        let mut outbox = Outbox::default();
        for position in [1, 2, 3] {
            outbox.note_unmatched(&stored(position), false);
        }
        outbox.note_matched(SourceId(1));
        outbox.note_unmatched(&stored(9), false);
        let runs: Vec<_> = outbox.unmatched().map(|r| (r.first, r.last, r.count)).collect();
        assert_eq!(runs, [(1, 3, 3), (9, 9, 1)]);
        assert_eq!(outbox.needed_from(&[]), 1);
    }
}
