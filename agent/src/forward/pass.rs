//! The forward loop of a destination for readings.
//!
//! It takes all rows that are due, reads the journal once over their ranges, and feeds every row that
//! covers a reading; groups are handed to the destination when they are complete, or when their memory is full (then they
//! are sent so far and merged later).
//!
//! A pass ends before the next begins, so the order of each Observation is kept; rows that grow meanwhile keep what came.

use super::gather::Gatherings;
use super::retry::Backoff;
use super::{Delivery, DestinationHandle, Fate, Group, Link};
use crate::clock;
use crate::message::{Position, SourceId};
use crate::normalize::{Match, match_of};
use crate::pipeline::{Entry, Pipeline};
use crate::store::StoreError;
use crate::store::outbox::{Pending, Settled};
use crate::telemetry::errors::ErrorRecord;
use embassy_time::{Duration, with_timeout};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

/// Readings that are handed over at a time.
const BATCH: usize = 1000;

/// A destination for readings.
pub trait Readings {
    /// Delivers groups and says what became of every reading.
    fn deliver(&mut self, groups: Vec<Group>) -> impl Future<Output = Delivery>;
}

/// State of a destination, for `status`.
#[derive(Clone, Debug, Default)]
pub struct LinkState {
    /// Whether the last exchange succeeded; none before the first.
    pub up: Option<bool>,
    /// Why it cannot be reached.
    pub error: Option<ErrorRecord>,
    /// When it is tried again: monotonic microseconds.
    pub next_try_us: Option<u64>,
}

/// What one loop needs.
pub struct Context {
    /// Shared state.
    pub pipeline: Rc<Pipeline>,
    /// The destination.
    pub handle: DestinationHandle,
    /// Where the state of the link is shown.
    pub link: Rc<RefCell<LinkState>>,
    /// Names of the sources, for raw messages.
    pub sources: Rc<HashMap<SourceId, Arc<str>>>,
    /// Turns true at stop.
    pub stop: watch::Receiver<bool>,
}

impl Context {
    pub(super) fn beat(&self) {
        self.pipeline.beat(&self.handle.name);
    }

    /// Waits for `pause` or stop; says whether the loop goes on.
    pub(super) async fn rest(&mut self, pause: Duration) -> bool {
        let stop = self.stop.wait_for(|stop| *stop);
        // The watchdog wants a sign of life at shorter intervals than the longest back-off.
        let mut left = pause;
        tokio::pin!(stop);
        loop {
            self.pipeline.beat(&self.handle.name);
            let slice = left.min(Duration::from_secs(5));
            if with_timeout(slice, &mut stop).await.is_ok() {
                return false;
            }
            left = left.checked_sub(slice).unwrap_or(Duration::from_ticks(0));
            if left.as_ticks() == 0 {
                return true;
            }
        }
    }

    /// Takes the state of the link into status and log; gives the pause before the next try, if one is needed.
    pub(super) fn note_link(&self, link: &Link, backoff: &mut Backoff) -> Option<Duration> {
        let name = &self.handle.name;
        let mut state = self.link.borrow_mut();
        let (error, pause) = match link {
            Link::Up => {
                if state.up == Some(false) {
                    tracing::info!("destination {name}: reached again");
                }
                *state = LinkState {
                    up: Some(true),
                    ..LinkState::default()
                };
                backoff.reset();
                return None;
            }
            Link::WaitingForClock => {
                let text = "waiting for the clock: a certificate or token cannot be judged before it is synchronised";
                (
                    ErrorRecord::new("WaitingForClock", text),
                    backoff.pause_for_clock(),
                )
            }
            Link::Down { error, retry_after } => (error.clone(), backoff.pause(*retry_after)),
        };
        if state.error.as_ref() != Some(&error) {
            tracing::warn!(
                "destination {name}: {}: {}; readings stay in the buffer",
                error.name,
                error.text
            );
        }
        *state = LinkState {
            up: Some(false),
            error: Some(error),
            next_try_us: Some(clock::monotonic_us() + pause.as_micros()),
        };
        Some(pause)
    }
}

/// Forwards readings until stop.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
pub async fn forward_readings(
    mut context: Context,
    mut destination: impl Readings,
) -> Result<(), StoreError> {
    let mut backoff = Backoff::default();
    loop {
        context.beat();
        let now_us = clock::monotonic_us();
        let due = context.pipeline.outbox.borrow().due(context.handle.id, now_us);
        if due.is_empty() {
            let next = context.pipeline.outbox.borrow().next_due(context.handle.id);
            let wait = next
                .map_or(5_000_000, |at| at.saturating_sub(now_us))
                .clamp(1_000, 5_000_000);
            let changed = with_timeout(
                Duration::from_micros(wait),
                context.pipeline.normalized.notified(),
            );
            tokio::select! {
                _ = changed => {}
                _ = context.stop.wait_for(|stop| *stop) => return Ok(()),
            }
            continue;
        }
        match pass(&context, &mut destination, &due).await {
            Ok(link) => {
                if let Some(pause) = context.note_link(&link, &mut backoff)
                    && !context.rest(pause).await
                {
                    return Ok(());
                }
            }
            Err(StoreError::Stopped) => return Err(StoreError::Stopped),
            Err(error) => {
                tracing::error!("destination {}: {error}; trying again", context.handle.name);
                if !context.rest(Duration::from_secs(5)).await {
                    return Ok(());
                }
            }
        }
        if *context.stop.borrow() {
            return Ok(());
        }
    }
}

/// Waiting for the network is progress: the watchdog gets its sign of life meanwhile.
pub(super) async fn alive<T>(pipeline: &Pipeline, name: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        match with_timeout(Duration::from_secs(5), &mut work).await {
            Ok(done) => return done,
            Err(_) => pipeline.beat(name),
        }
    }
}

/// One pass over the due rows. Returns the state of the link after the last exchange.
async fn pass(
    context: &Context,
    destination: &mut impl Readings,
    due: &[Pending],
) -> Result<Link, StoreError> {
    let pipeline = &context.pipeline;
    let due_ids: HashSet<u64> = due.iter().map(|p| p.row.id).collect();
    let others = pipeline
        .outbox
        .borrow()
        .named_readings(context.handle.id, &due_ids);
    pipeline
        .outbox
        .borrow_mut()
        .begin_pass(context.handle.id, due_ids);
    let mut gatherings = Gatherings::of(due, others);
    let mut link = Link::Up;
    for (first, last) in gatherings.positions(due) {
        let mut from = first;
        while from <= last {
            let batch = pipeline.read(from).await?;
            let Some(newest) = batch.last().map(|e| e.stored.position) else {
                break;
            };
            for entry in batch.iter().take_while(|e| e.stored.position <= last) {
                feed(context, &mut gatherings, entry).await?;
            }
            from = newest + 1;
            let reached = newest.min(last);
            if gatherings.count >= BATCH {
                link = hand_over(context, destination, &mut gatherings, reached, false).await;
                if link != Link::Up {
                    return Ok(link);
                }
            }
            context.beat();
            tokio::task::yield_now().await;
        }
    }
    if !gatherings.rows.is_empty() {
        link = hand_over(context, destination, &mut gatherings, Position::MAX, true).await;
    }
    Ok(link)
}

/// Gives the matches of a message to the rows that cover them.
async fn feed(context: &Context, gatherings: &mut Gatherings, entry: &Rc<Entry>) -> Result<(), StoreError> {
    let pipeline = &context.pipeline;
    let position = entry.stored.position;
    let normalized = pipeline.normalized(entry, None).await?;
    for found in &normalized.matches {
        let place = (position, found.number);
        if let Some(id) = gatherings.refs.get(&place).copied() {
            gatherings.push(id, entry, found);
            continue;
        }
        if gatherings.ranges.is_empty() || gatherings.excluded.contains(&place) {
            continue;
        }
        let series = pipeline
            .outbox
            .borrow_mut()
            .series_of(&found.pack.text.name, &found.measurement);
        let period = if context.handle.groups_by_period {
            crate::group::period_start(found)
        } else {
            None
        };
        if let Some(id) = gatherings.row_of_range(series, period, position) {
            gatherings.push(id, entry, found);
        }
    }
    // Readings that only a later mapping matches are normalized with that one.
    for (revision, id, number) in gatherings.revised.remove(&position).unwrap_or_default() {
        let normalized = pipeline.normalized(entry, Some(revision)).await?;
        if let Some(found) = normalized.matches.iter().find(|m| m.number == match_of(number)) {
            let found = Match {
                number,
                ..found.clone()
            };
            gatherings.push(id, entry, &found);
        }
    }
    Ok(())
}

/// Hands the ready rows to the destination and takes the fates into the outbox.
async fn hand_over(
    context: &Context,
    destination: &mut impl Readings,
    gatherings: &mut Gatherings,
    reached: Position,
    end: bool,
) -> Link {
    let ready = gatherings.ready(reached, end);
    let mut covered = HashMap::new();
    let mut groups = Vec::new();
    let mut owners = Vec::new();
    let mut settled = Vec::new();
    for id in ready {
        let Some(row) = gatherings.rows.get_mut(&id) else {
            continue;
        };
        covered.insert(id, reached.min(row.last));
        for (position, match_number, entry) in row.held.drain(..) {
            let error = ErrorRecord::new(
                "ClockNotSynchronized",
                "the reading is dated when the clock is right",
            );
            let fate = Fate::Waiting(error);
            settled.push(Settled {
                row: id,
                position,
                match_number,
                fate,
                message: Arc::clone(&entry.stored),
            });
        }
        let readings = std::mem::take(&mut row.readings);
        gatherings.count -= readings.len();
        let key = context.pipeline.outbox.borrow().key(row.series).cloned();
        let (Some(key), Some((_, _, pack))) = (key, readings.last()) else {
            continue;
        };
        let pack = Arc::clone(pack);
        let (readings, entries): (Vec<_>, Vec<_>) = readings.into_iter().map(|(r, e, _)| (r, e)).unzip();
        groups.push(Group { key, pack, readings });
        owners.push((id, entries));
    }
    let places: Vec<Vec<(Position, u32)>> = groups
        .iter()
        .map(|g| g.readings.iter().map(|r| (r.position, r.match_number)).collect())
        .collect();
    let delivery = if groups.is_empty() {
        Delivery {
            fates: Vec::new(),
            sent_periods: Vec::new(),
            link: Link::Up,
            written: 0,
        }
    } else {
        alive(
            &context.pipeline,
            &context.handle.name,
            destination.deliver(groups),
        )
        .await
    };
    for (((id, entries), places), fates) in owners.into_iter().zip(places).zip(delivery.fates) {
        for ((entry, (position, match_number)), fate) in entries.iter().zip(places).zip(fates) {
            let message = Arc::clone(&entry.stored);
            settled.push(Settled {
                row: id,
                position,
                match_number,
                fate,
                message,
            });
        }
    }
    let now_us = clock::monotonic_us();
    let mut outbox = context.pipeline.outbox.borrow_mut();
    outbox.destination_mut(context.handle.id).written += delivery.written;
    outbox.remember_sent(context.handle.id, delivery.sent_periods);
    outbox.settle(context.handle.id, &covered, settled, now_us);
    delivery.link
}
