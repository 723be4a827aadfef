//! Corrections between the passes of a forward loop: what is wrong on the server is taken from whom it is not; then the
//! readings of that time are sent again from the journal, to whose they are, and those that the journal does not have any
//! more are moved on the server (`crate::corrections` has the invariants).

use super::context::{Context, alive};
use super::fhir::Held;
use super::pass::Readings;
use super::{DestinationHandle, GroupKey, Link};
use crate::associations::{Change, Ticks};
use crate::clock;
use crate::corrections::{Correction, INDEX_LAG_US, Open};
use crate::message::Position;
use crate::normalize::receive_time;
use crate::pipeline::Pipeline;
use crate::store::StoreError;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pause before a correction that the server refuses is tried again: microseconds.
const REFUSED_PAUSE_US: u64 = 60_000_000;

/// What a search for what is wrong came to.
#[derive(Clone, Debug)]
pub struct Searched {
    /// Whether the server can be reached.
    pub link: Link,
    /// The correction, wider where more has to be sent again.
    pub correction: Correction,
    /// Observations that were wrong.
    pub wrong: u64,
    /// Everything was looked at.
    pub complete: bool,
    /// Why not, and what to do.
    pub refused: Option<String>,
}

impl Searched {
    /// Nothing is wrong.
    pub fn nothing(correction: Correction) -> Searched {
        Searched {
            link: Link::Up,
            correction,
            wrong: 0,
            complete: true,
            refused: None,
        }
    }
}

/// Goes on with the corrections of a destination that are due. Returns the state of the link when the server was asked.
///
/// # Errors
/// [`StoreError`] of the journal.
pub(super) async fn correct(
    context: &Context,
    destination: &mut impl Readings,
) -> Result<Option<Link>, StoreError> {
    let pipeline = &context.pipeline;
    let due = |pipeline: &Pipeline| {
        let corrections = pipeline.corrections.borrow();
        corrections.due(context.handle.id, clock::monotonic_us())
    };
    let mut asked = None;
    while let Some(Open {
        correction,
        searched_us,
        ..
    }) = due(pipeline)
    {
        let number = correction.number;
        let searching = destination.correct(correction);
        let searched = alive(pipeline, &context.handle.name, searching).await;
        pipeline.note_associations();
        if searched.link != Link::Up {
            return Ok(Some(searched.link));
        }
        asked = Some(Link::Up);
        let now_us = clock::monotonic_us();
        if let Some(why) = &searched.refused {
            tracing::warn!("destination {}: correction: {why}", context.handle.name);
        }
        // What was just taken away has to be seen as such by a later search.
        let since = match (searched.complete, searched.wrong) {
            (true, 0) => searched_us.or(Some(now_us)),
            (true, _) => Some(now_us),
            (false, _) => None,
        };
        let lag_over = since.is_some_and(|since| now_us >= since + INDEX_LAG_US);
        if searched.complete && searched.wrong == 0 && lag_over {
            let found = scan(pipeline, &context.handle, &searched.correction.change).await?;
            let restoring = destination.restore(&searched.correction, &found.held);
            let restored = alive(pipeline, &context.handle.name, restoring).await;
            if restored.link != Link::Up {
                return Ok(Some(restored.link));
            }
            let Some(why) = restored.refused else {
                send_again(context, &searched.correction, found);
                continue;
            };
            tracing::warn!("destination {}: correction: {why}", context.handle.name);
            if let Some(open) = pipeline.corrections.borrow_mut().get_mut(number) {
                open.due_us = now_us + REFUSED_PAUSE_US;
            }
            continue;
        }
        let mut corrections = pipeline.corrections.borrow_mut();
        if let Some(open) = corrections.get_mut(number) {
            open.correction = searched.correction;
            open.searched_us = since;
            open.due_us = match (searched.refused, since) {
                (Some(_), _) => now_us + REFUSED_PAUSE_US,
                (None, Some(since)) if searched.complete => (since + INDEX_LAG_US).max(now_us),
                (None, _) => now_us + 1_000_000,
            };
        }
    }
    Ok(asked)
}

/// What became of the readings that the journal does not have any more.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Whether the server can be reached.
    pub link: Link,
    /// Why it is not done yet, and what to do.
    pub refused: Option<String>,
}

impl Restored {
    /// Nothing is left to do.
    pub fn done() -> Restored {
        Restored {
            link: Link::Up,
            refused: None,
        }
    }
}

/// Group key, and start of the period. Numbers of keys do not outlive the commits meanwhile.
type KeyPeriod = (Arc<GroupKey>, Option<i64>);

/// What the journal has of a device in the stretch of a change.
pub struct Found {
    /// Position and match number, by group key and period.
    places: BTreeMap<KeyPeriod, Vec<(Position, u32)>>,
    /// Receive time of the oldest.
    oldest: i64,
    /// When its readings were taken.
    pub held: Held,
}

/// Reads the journal, as far as it may have readings of the stretch.
///
/// # Errors
/// [`StoreError`] of the journal.
pub async fn scan(
    pipeline: &Pipeline,
    handle: &DestinationHandle,
    change: &Change,
) -> Result<Found, StoreError> {
    // What comes later is resolved by what is known now.
    let until = pipeline.outbox.borrow().progress().cursor;
    let mut all = Found {
        places: BTreeMap::new(),
        oldest: i64::MAX,
        held: Held::default(),
    };
    let mut from = first_position(pipeline, change).await?;
    while from <= until {
        let batch = pipeline.read(from).await?;
        let Some(newest) = batch.last().map(|entry| entry.stored.position) else {
            break;
        };
        for entry in batch.iter().filter(|entry| entry.stored.position <= until) {
            let normalized = pipeline.normalized(entry, None).await?;
            let stamp = entry.stored.message.stamp;
            let of_device = |device: &str| device == &*change.device;
            let matches = normalized.matches.iter().filter(|found| found.hold.is_none());
            for found in matches.filter(|found| of_device(&found.measurement.device_id)) {
                let occurrence = found.measurement.occurrence_time.ticks();
                let taken = if stamp.trusted {
                    occurrence.min(stamp.wall.ticks())
                } else {
                    occurrence
                };
                if !within(change, taken) {
                    continue;
                }
                all.held.note(&found.measurement.type_name, occurrence);
                let mut outbox = pipeline.outbox.borrow_mut();
                let series = outbox.series_of(&found.pack.text.name, &found.measurement);
                let Some(key) = outbox.key(series).cloned() else {
                    continue;
                };
                let period = handle
                    .groups_by_period
                    .then(|| crate::group::period_start(found))
                    .flatten();
                let place = (entry.stored.position, found.number);
                all.places.entry((key, period)).or_default().push(place);
                all.oldest = all.oldest.min(stamp.wall.ticks());
            }
        }
        from = newest + 1;
        pipeline.beat(&handle.name);
        tokio::task::yield_now().await;
    }
    all.held.sort();
    Ok(all)
}

/// Everything that was found goes into rows again, but for what is in rows anyway. The rows come and the correction leaves
/// in one commit.
fn send_again(context: &Context, correction: &Correction, found: Found) {
    let pipeline = &context.pipeline;
    let destination = context.handle.id;
    let mut outbox = pipeline.outbox.borrow_mut();
    let now_us = clock::monotonic_us();
    let unsent = outbox.unsent(destination);
    let mut count = 0;
    for ((key, period), mut places) in found.places {
        let series = outbox.series_of_key(&key);
        places.retain(|place| !unsent.holds(series, period, *place));
        count += places.len();
        for part in places.chunks(crate::store::outbox::FULL_ROW) {
            outbox.add_refs(
                destination,
                series,
                period,
                part.to_vec(),
                None,
                found.oldest,
                now_us,
            );
        }
    }
    outbox.forget_correction(correction.number);
    drop(outbox);
    pipeline.corrections.borrow_mut().finish(correction.number);
    tracing::info!(
        "destination {}: a correction is done, {count} readings are sent again",
        context.handle.name
    );
}

fn within(change: &Change, taken: Ticks) -> bool {
    change.from.is_none_or(|from| from <= taken) && change.to.is_none_or(|to| taken < to)
}

/// The first position that may hold a reading of the stretch: nothing is taken after it is received.
async fn first_position(pipeline: &Pipeline, change: &Change) -> Result<Position, StoreError> {
    let Some(from) = change.from else { return Ok(1) };
    let outline = pipeline.store.call(|store| store.outline()).await?;
    for segment in &outline {
        let id = segment.id;
        let newest = pipeline.store.call(move |store| store.newest_stamp(id)).await?;
        let before = newest.is_some_and(|stamp| {
            let (time, known) = receive_time(&stamp, &pipeline.dating.borrow());
            known && time.ticks() < from
        });
        if !before {
            return Ok(segment.first);
        }
    }
    Ok(pipeline.head.get())
}
