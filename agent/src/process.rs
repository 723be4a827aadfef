//! The normalizing loop: every committed message once, in order of position, into rows of the outbox.
//!
//! Cursor, counters and rows change together between two awaits, and are stored in one transaction: the stored cursor
//! never passes a reading that is not delivered, in a row, waiting or dead.

use crate::clock;
use crate::former::FormerStores;
use crate::forward::{Destinations, GroupKey};
use crate::group;
use crate::message::{Position, RevisionId, SourceId};
use crate::normalize::{Hold, Match, Normalized};
use crate::pipeline::{Entry, Pipeline};
use crate::store::outbox::Outbox;
use crate::store::{DeadLetter, StoreError};
use embassy_time::{Duration, Timer, with_timeout};
use iomt_mapping::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

/// Messages that are normalized before other loops get their turn.
const TURN: usize = 64;

/// Runs until `stop` turns true.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
pub async fn run(
    pipeline: Rc<Pipeline>,
    destinations: Rc<Destinations>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    // What nobody reads after the counting is not kept.
    let others = destinations.of_readings().next().is_some();
    loop {
        pipeline.beat("normalize");
        let from = pipeline.outbox.borrow().progress().cursor + 1;
        let batch = match pipeline.read(from).await {
            Ok(batch) => batch,
            Err(StoreError::Stopped) => return Err(StoreError::Stopped),
            Err(error) => {
                tracing::error!("{error}; the journal cannot be read, trying again");
                Timer::after_secs(5).await;
                continue;
            }
        };
        if batch.is_empty() {
            if from < pipeline.head.get() {
                skip_gap(&pipeline, from);
                continue;
            }
            if *stop.borrow() {
                return Ok(());
            }
            // A notification between the read and this wait is not lost for longer than the pause.
            let committed = with_timeout(Duration::from_millis(500), pipeline.committed.notified());
            tokio::select! {
                _ = committed => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            continue;
        }
        for turn in batch.chunks(TURN) {
            for entry in turn {
                let mut result = normalized(&pipeline, entry, others).await?;
                if pipeline.observe_clocks(&entry.stored, &result).await? {
                    result = pipeline.normalized_for(entry, None, others).await?;
                }
                take(&pipeline, &destinations, entry, &result);
            }
            pipeline.normalized.notify_waiters();
            tokio::task::yield_now().await;
        }
    }
}

/// What a message became; behind a cursor from which the process ended before, with the care that finds the message that
/// ends it.
async fn normalized(pipeline: &Pipeline, entry: &Entry, others: bool) -> Result<Rc<Normalized>, StoreError> {
    let position = entry.stored.position;
    let isolation = &pipeline.isolation;
    if isolation.holds(&entry.stored) {
        tracing::error!(
            "message {position} ended the process when it, or one like it, was normalized: it is a dead letter now and not \
             read again"
        );
        return pipeline.normalized_for(entry, None, others).await;
    }
    if position > isolation.careful_until {
        return pipeline.normalized_for(entry, None, others).await;
    }
    // Nothing is normalized without its mark: a disk that refuses it is waited for.
    while let Err(error) = pipeline.store.call(move |store| store.mark(position)).await {
        if matches!(error, StoreError::Stopped) {
            return Err(error);
        }
        tracing::error!("{error}; the mark of a message cannot be stored, trying again");
        pipeline.beat("normalize");
        Timer::after_secs(5).await;
    }
    pipeline.beat("normalize");
    let normalized = pipeline.normalized_for(entry, None, others).await;
    if let Err(error) = pipeline.store.call(|store| store.clear_mark()).await {
        tracing::warn!("{error}; the mark of a message stays until the next one");
    }
    normalized
}

/// The journal has no message from `from` to its head: what was there is lost, and said.
fn skip_gap(pipeline: &Pipeline, from: Position) {
    let head = pipeline.head.get();
    let mut outbox = pipeline.outbox.borrow_mut();
    let reason = outbox.reason_of_gap(from, head - 1);
    outbox.lose(crate::store::Loss {
        destination: None,
        source: None,
        range: Some((from, head - 1)),
        count: head - from,
        reason,
        reading: None,
    });
    outbox.progress_mut().cursor = head - 1;
}

/// Takes what a message became into the outbox.
fn take(pipeline: &Pipeline, destinations: &Destinations, entry: &Entry, normalized: &Normalized) {
    let stored = &entry.stored;
    let mut outbox = pipeline.outbox.borrow_mut();
    if let Some(gap) = stored
        .position
        .checked_sub(outbox.progress().cursor + 1)
        .filter(|gap| *gap > 0)
    {
        let first = outbox.progress().cursor + 1;
        let reason = outbox.reason_of_gap(first, stored.position - 1);
        outbox.lose(crate::store::Loss {
            destination: None,
            source: None,
            range: Some((first, stored.position - 1)),
            count: gap,
            reason,
            reading: None,
        });
    }
    let progress = outbox.progress_mut();
    progress.cursor = stored.position;
    progress.messages += 1;
    progress.shadowed += normalized.shadowed;
    if let Some(error) = &normalized.unparsable {
        progress.unparsable += 1;
        outbox.dead(DeadLetter {
            destination: None,
            match_number: None,
            stage: "normalize",
            error: error.clone(),
            revision: stored.revision,
            counted: Arc::from([]),
            message: Arc::clone(stored),
        });
        return;
    }
    if !normalized.matched() {
        progress.unmatched += 1;
        outbox.note_unmatched(stored, stored.revision == RevisionId(0));
        return;
    }
    progress.matched += 1;
    outbox.note_matched(stored.message.source);
    let former = Some(&pipeline.former);
    take_matches(destinations, &mut outbox, entry, normalized, &mut None, former);
}

/// Takes the matches of a message into the outbox; with `anew` as exact references (the message was normalized anew). What
/// `former` stores say that a destination has counts as delivered.
pub(crate) fn take_matches(
    destinations: &Destinations,
    outbox: &mut Outbox,
    entry: &Entry,
    normalized: &Normalized,
    anew: &mut Option<Anew>,
    former: Option<&FormerStores>,
) {
    let stored = &entry.stored;
    outbox.progress_mut().matches += (normalized.matches.len() + normalized.failed.len()) as u64;
    let counted: Arc<[u32]> = destinations.of_readings().map(|d| d.id).collect();
    for error in &normalized.failed {
        for destination in counted.iter() {
            let counters = outbox.destination_mut(*destination);
            counters.matches += 1;
            counters.dead += 1;
        }
        outbox.dead(DeadLetter {
            destination: None,
            match_number: None,
            stage: "normalize",
            error: error.clone(),
            revision: anew.as_ref().map_or(stored.revision, |anew| anew.revision),
            counted: Arc::clone(&counted),
            message: Arc::clone(stored),
        });
    }
    let now = (clock::monotonic_us(), clock::wall());
    for found in &normalized.matches {
        let has = |destination: u32, key: &GroupKey| {
            former.is_some_and(|former| former.has_reading(destination, key, stored.position, found.number))
        };
        add_match(destinations, outbox, stored, found, anew, &has, now);
    }
}

/// Takes one match into the outbox, at this monotonic and wall time; `has` says which destinations have it from a store
/// before this one.
pub(crate) fn add_match(
    destinations: &Destinations,
    outbox: &mut Outbox,
    stored: &crate::message::StoredMessage,
    found: &Match,
    anew: &mut Option<Anew>,
    has: &dyn Fn(u32, &GroupKey) -> bool,
    (now_us, now): (u64, Timestamp),
) {
    let wall = stored.message.stamp.wall;
    for destination in destinations.of_readings() {
        let series = outbox.series_of(&found.pack.text.name, &found.measurement);
        let place = vec![(stored.position, found.number)];
        if outbox.key(series).is_some_and(|key| has(destination.id, key)) {
            let counters = outbox.destination_mut(destination.id);
            counters.matches += 1;
            counters.delivered += 1;
            continue;
        }
        if let Some(hold) = &found.hold {
            // A pass gives it its fate, now or when that can change.
            let (Hold::Waiting(error) | Hold::Dead(error)) = &**hold;
            let error = error.clone();
            outbox.add_waiting(
                destination.id,
                series,
                place,
                anew.as_ref().map(|anew| anew.revision),
                error,
                wall.ticks(),
                now_us,
            );
            continue;
        }
        let (period, due) = if destination.groups_by_period {
            group::period_and_due(found, now_us, now, destination.flush_interval_us)
        } else {
            (None, group::due_at_once(now_us))
        };
        match anew {
            None => outbox.add(destination.id, series, period, stored.position, wall.ticks(), due),
            Some(anew) => {
                let row = anew
                    .rows
                    .entry((destination.id, series, period))
                    .or_insert(RowOfReferences {
                        places: Vec::new(),
                        oldest: wall.ticks(),
                        due,
                    });
                row.places.extend(place);
                row.due = row.due.min(due);
            }
        }
    }
}

/// Exact references to readings of messages that are normalized anew: one row for a key and period, however many they are.
pub(crate) struct Anew {
    revision: RevisionId,
    rows: BTreeMap<(u32, u32, Option<i64>), RowOfReferences>,
}

pub(crate) struct RowOfReferences {
    places: Vec<(Position, u32)>,
    oldest: i64,
    due: u64,
}

impl Anew {
    pub(crate) fn with(revision: RevisionId) -> Anew {
        Anew {
            revision,
            rows: BTreeMap::new(),
        }
    }

    pub(crate) fn into_outbox(self, outbox: &mut Outbox) {
        for ((destination, series, period), row) in self.rows {
            let RowOfReferences { places, oldest, due } = row;
            outbox.add_refs(
                destination,
                series,
                period,
                places,
                Some(self.revision),
                oldest,
                due,
            );
        }
    }
}

/// Normalizes the unmatched messages of `source` with the packs that it has now: a changed pack may match them.
///
/// # Errors
/// [`StoreError`] of the reads; what was not looked at stays unmatched.
pub async fn normalize_unmatched(
    pipeline: &Pipeline,
    destinations: &Destinations,
    source: SourceId,
) -> Result<u64, StoreError> {
    let revision = pipeline.packs.borrow().current(source);
    if revision == RevisionId(0) {
        return Ok(0);
    }
    let runs: Vec<_> = pipeline
        .outbox
        .borrow()
        .unmatched()
        .filter(|r| r.source == source)
        .cloned()
        .collect();
    let mut matched = 0;
    for run in runs {
        let mut from = run.first;
        let mut results: HashMap<Position, (Rc<Entry>, Rc<Normalized>)> = HashMap::new();
        let mut unmatched = Vec::new();
        while from <= run.last {
            let batch = pipeline.read(from).await?;
            let Some(last) = batch.last() else { break };
            from = last.stored.position + 1;
            for entry in batch.into_iter().filter(|e| e.stored.position <= run.last) {
                if entry.stored.message.source != source {
                    continue;
                }
                let normalized = pipeline.normalized(&entry, Some(revision)).await?;
                if normalized.matched() {
                    results.insert(entry.stored.position, (entry, normalized));
                } else {
                    unmatched.push(entry);
                }
            }
            pipeline.beat("normalize");
            tokio::task::yield_now().await;
        }
        if results.is_empty() {
            continue;
        }
        let mut outbox = pipeline.outbox.borrow_mut();
        let mut anew = Some(Anew::with(revision));
        outbox.forget_unmatched(run.first);
        let missing = run.count.saturating_sub((results.len() + unmatched.len()) as u64);
        if missing > 0 {
            let reason = outbox.reason_of_gap(run.first, run.last);
            outbox.lose(crate::store::Loss {
                destination: None,
                source: Some(source),
                range: Some((run.first, run.last)),
                count: missing,
                reason,
                reading: None,
            });
        }
        matched += results.len() as u64;
        for (entry, normalized) in results.values() {
            let progress = outbox.progress_mut();
            progress.unmatched = progress.unmatched.saturating_sub(1);
            progress.matched += 1;
            take_matches(destinations, &mut outbox, entry, normalized, &mut anew, None);
        }
        if let Some(anew) = anew {
            anew.into_outbox(&mut outbox);
        }
        for entry in unmatched {
            outbox.note_unmatched_alone(&entry.stored, false);
        }
    }
    if matched > 0 {
        tracing::info!("{matched} messages that no template matched before are matched by the changed packs");
        pipeline.normalized.notify_waiters();
    }
    Ok(matched)
}
