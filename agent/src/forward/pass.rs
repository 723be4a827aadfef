//! The forward loop of a destination for readings.
//!
//! It takes all rows that are due, reads the journal once over their ranges, and feeds every row that
//! covers a reading; groups are handed to the destination when they are complete, or when their memory is full (then they
//! are sent so far and merged later).
//!
//! A pass ends before the next begins, and one batch is delivered before the next is handed over, so the order of each
//! Observation is kept; rows that grow meanwhile keep what came. While a batch is under way the next one gathers.

use super::correct::{Restored, Searched, correct};
use super::fhir::Held;
use super::gather::Gatherings;
use super::retry::Backoff;
use super::{Delivery, DestinationHandle, Fate, GIVEN_UP, Group, GroupReading, Link};
use crate::clock;
use crate::corrections::Correction;
use crate::message::{Position, SourceId, Stamp, StoredMessage};
use crate::normalize::receive_time;
use crate::normalize::{Match, match_of};
use crate::pipeline::{Entry, Pipeline};
use crate::store::StoreError;
use crate::store::outbox::{Pending, Settled};
use crate::telemetry::errors::ErrorRecord;
use crate::timekeeping::device::WAITS;
use embassy_time::{Duration, with_timeout};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::iter::Peekable;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

/// Observations or events that are handed over at a time.
const BATCH: usize = 1000;
/// After so many messages it is looked whether enough has gathered; whether memory is full is looked after each.
const LOOK_EVERY: usize = 32;

/// A destination for readings.
pub trait Readings {
    /// Delivers groups and says what became of every reading.
    fn deliver(&mut self, groups: Vec<Group>) -> impl Future<Output = Delivery>;

    /// Observations or events that it likes to be handed at a time: more while all goes well, fewer after trouble.
    fn appetite(&self) -> usize {
        BATCH
    }

    /// Looks for readings of a correction that are with somebody else than whose they are, and takes them away there.
    fn correct(&mut self, correction: Correction) -> impl Future<Output = Searched> {
        async { Searched::nothing(correction) }
    }

    /// Moves what was taken away to whose it is, where the journal does not have it any more; `held` says what it has.
    fn restore(&mut self, correction: &Correction, held: &Held) -> impl Future<Output = Restored> {
        let _ = (correction, held);
        async { Restored::done() }
    }
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

/// Whether a destination is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// It is.
    Closed,
    /// Not before the next try.
    Open,
    /// It is being tried: one request, then more.
    HalfOpen,
}

impl Circuit {
    /// As status and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::Open => "open",
            Circuit::HalfOpen => "half-open",
        }
    }
}

impl LinkState {
    /// Whether the destination is used at this moment of the monotonic clock.
    pub fn circuit(&self, now_us: u64) -> Circuit {
        match (self.up, self.next_try_us) {
            (Some(false), Some(at)) if now_us < at => Circuit::Open,
            (Some(false), _) => Circuit::HalfOpen,
            (Some(true) | None, _) => Circuit::Closed,
        }
    }
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
    /// Longest time that a reading waits for whose it is: ticks of 100 ns.
    pub max_wait: i64,
    /// Turns true at stop.
    pub stop: watch::Receiver<bool>,
}

impl Context {
    pub(super) fn beat(&self) {
        self.pipeline.beat(&self.handle.name);
    }

    /// What has waited for longer than `max_wait` is a dead letter, with the name of what it waited for. Ages are told by
    /// trusted time only.
    fn give_up_waiting(&self, fate: Fate, received: &Stamp) -> Fate {
        let Fate::Waiting(mut error) = fate else {
            return fate;
        };
        let (came, known) = receive_time(received, &self.pipeline.dating.borrow());
        let now = self.pipeline.trusted_now().filter(|_| known);
        if now.is_none_or(|now| now - came.ticks() <= self.max_wait) {
            return Fate::Waiting(error);
        }
        error
            .text
            .push_str(" (it has waited for as long as max_wait says)");
        error.retry = false;
        Fate::Dead(error)
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
        match correct(&context, &mut destination).await {
            Ok(None) => {}
            Ok(Some(link)) => {
                if let Some(pause) = context.note_link(&link, &mut backoff)
                    && !context.rest(pause).await
                {
                    return Ok(());
                }
                if link != Link::Up {
                    continue;
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
        let now_us = clock::monotonic_us();
        let due = context.pipeline.outbox.borrow().due(context.handle.id, now_us);
        if due.is_empty() {
            let next = context.pipeline.outbox.borrow().next_due(context.handle.id);
            let correction = context.pipeline.corrections.borrow().next_due(context.handle.id);
            let wait = next
                .into_iter()
                .chain(correction)
                .min()
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
    let mut scan = Scan {
        ranges: gatherings.positions(due).into(),
        entries: Vec::new().into_iter().peekable(),
        ended: false,
    };
    let appetite = destination.appetite();
    let mut next = gather(context, &mut gatherings, &mut scan, appetite).await?;
    while let Some(batch) = next {
        let Batch { groups, handed } = batch;
        let appetite = destination.appetite();
        let (delivery, gathered) = tokio::join!(
            deliver(context, destination, groups),
            gather(context, &mut gatherings, &mut scan, appetite)
        );
        let link = settle(context, handed, delivery).await?;
        if link != Link::Up {
            // What gathered meanwhile is still in its rows.
            return Ok(link);
        }
        next = gathered?;
    }
    Ok(Link::Up)
}

/// How far a pass has read.
struct Scan {
    /// Positions that still have to be read, in order.
    ranges: VecDeque<(Position, Position)>,
    /// Messages that were read and not looked at yet.
    entries: Peekable<std::vec::IntoIter<Rc<Entry>>>,
    /// The last batch was made.
    ended: bool,
}

impl Scan {
    /// The next message of the ranges.
    async fn next(&mut self, context: &Context) -> Result<Option<Rc<Entry>>, StoreError> {
        while let Some((first, last)) = self.ranges.front().copied() {
            if first > last {
                self.ranges.pop_front();
                continue;
            }
            let Some(next) = self.entries.peek().map(|entry| entry.stored.position) else {
                self.entries = context.pipeline.read(first).await?.into_iter().peekable();
                if self.entries.len() == 0 {
                    self.ranges.pop_front();
                }
                context.beat();
                tokio::task::yield_now().await;
                continue;
            };
            if next > last {
                // The next range may begin in what was read.
                self.ranges.pop_front();
                continue;
            }
            let entry = self.entries.next();
            if next >= first {
                if let Some((first, _)) = self.ranges.front_mut() {
                    *first = next + 1;
                }
                return Ok(entry);
            }
        }
        Ok(None)
    }
}

/// Readings on their way, as they go and as they are accounted for.
struct Batch {
    groups: Vec<Group>,
    handed: Handed,
}

/// What a batch took out of its rows.
struct Handed {
    /// Up to which position the readings of each row are in the batch.
    covered: HashMap<u64, Position>,
    /// Row of each group, and where its readings came from.
    owners: Vec<(u64, Vec<Place>)>,
    /// Readings whose fate is known without the destination.
    settled: Vec<Settled>,
}

/// Where a reading came from: what is needed of it once it is handed over. Its message stays in the journal.
struct Place {
    position: Position,
    match_number: u32,
    received: Stamp,
}

/// Reads on until enough has gathered; `None` when all rows are through.
async fn gather(
    context: &Context,
    gatherings: &mut Gatherings,
    scan: &mut Scan,
    appetite: usize,
) -> Result<Option<Batch>, StoreError> {
    let mut looked = 0;
    while let Some(entry) = scan.next(context).await? {
        let reached = entry.stored.position;
        feed(context, gatherings, entry).await?;
        looked += 1;
        if looked % LOOK_EVERY == 0 || gatherings.is_full() {
            if gatherings.are_enough(reached, appetite) {
                return Ok(Some(take(context, gatherings, reached, false)));
            }
            // The intake has its turn: senders wait for their acknowledgements.
            tokio::task::yield_now().await;
        }
    }
    if scan.ended || gatherings.rows.is_empty() {
        return Ok(None);
    }
    scan.ended = true;
    Ok(Some(take(context, gatherings, Position::MAX, true)))
}

/// Gives the matches of a message to the rows that cover them.
async fn feed(context: &Context, gatherings: &mut Gatherings, entry: Rc<Entry>) -> Result<(), StoreError> {
    let pipeline = &context.pipeline;
    let stored = &entry.stored;
    let position = stored.position;
    let normalized = pipeline.normalized(&entry, None).await?;
    for found in &normalized.matches {
        let place = (position, found.number);
        if let Some(id) = gatherings.refs.get(&place).copied() {
            gatherings.push(id, stored, found);
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
            gatherings.push(id, stored, found);
        }
    }
    // Readings that only a later mapping matches are normalized with that one.
    for (revision, id, number) in gatherings.revised.remove(&position).unwrap_or_default() {
        let normalized = pipeline.normalized(&entry, Some(revision)).await?;
        if let Some(found) = normalized.matches.iter().find(|m| m.number == match_of(number)) {
            let found = Match {
                number,
                ..found.clone()
            };
            gatherings.push(id, stored, &found);
        }
    }
    Ok(())
}

/// Takes the readings of the ready rows.
fn take(context: &Context, gatherings: &mut Gatherings, reached: Position, end: bool) -> Batch {
    let mut covered = HashMap::new();
    let mut groups = Vec::new();
    let mut owners = Vec::new();
    let mut settled = Vec::new();
    let mut taken = 0;
    for id in gatherings.ready(reached, end) {
        let Some(row) = gatherings.rows.get_mut(&id) else {
            continue;
        };
        covered.insert(id, reached.min(row.last));
        for (position, match_number, received, fate) in row.held.drain(..) {
            // The gateway's own clock is waited for without limit: the operator may still date what waits for it.
            let is_of_device = matches!(&fate, Fate::Waiting(error) if WAITS.contains(&error.name.as_str()));
            let fate = match is_of_device {
                true => context.give_up_waiting(fate, &received),
                false => fate,
            };
            settled.push(Settled {
                row: id,
                position,
                match_number,
                fate,
                message: None,
            });
        }
        let readings = std::mem::take(&mut row.readings);
        taken += readings.len();
        let key = context.pipeline.outbox.borrow().key(row.series).cloned();
        let (Some(key), Some((_, pack))) = (key, readings.last()) else {
            continue;
        };
        let pack = Arc::clone(pack);
        let readings: Vec<GroupReading> = readings.into_iter().map(|(reading, _)| reading).collect();
        let places = readings.iter().map(|reading| Place {
            position: reading.position,
            match_number: reading.match_number,
            received: reading.received,
        });
        owners.push((id, places.collect()));
        groups.push(Group { key, pack, readings });
    }
    gatherings.taken(taken);
    Batch {
        groups,
        handed: Handed {
            covered,
            owners,
            settled,
        },
    }
}

async fn deliver(context: &Context, destination: &mut impl Readings, groups: Vec<Group>) -> Delivery {
    if groups.is_empty() {
        return Delivery {
            fates: Vec::new(),
            sent_periods: Vec::new(),
            link: Link::Up,
            written: 0,
        };
    }
    let work = destination.deliver(groups);
    alive(&context.pipeline, &context.handle.name, work).await
}

/// Takes the fates of a batch into the outbox; gives the state of the link.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
async fn settle(context: &Context, handed: Handed, delivery: Delivery) -> Result<Link, StoreError> {
    let mut settled = handed.settled;
    for ((id, places), fates) in handed.owners.into_iter().zip(delivery.fates) {
        for (place, fate) in places.into_iter().zip(fates) {
            settled.push(Settled {
                row: id,
                position: place.position,
                match_number: place.match_number,
                fate: context.give_up_waiting(fate, &place.received),
                message: None,
            });
        }
    }
    fetch_messages(context, &mut settled).await?;
    let now_us = clock::monotonic_us();
    let mut outbox = context.pipeline.outbox.borrow_mut();
    outbox.destination_mut(context.handle.id).written += delivery.written;
    outbox.remember_sent(context.handle.id, delivery.sent_periods);
    outbox.settle(context.handle.id, &handed.covered, settled, now_us);
    Ok(delivery.link)
}

/// Reads the messages of those that become dead letters. Where the journal cannot give one now, its reading is tried again;
/// what is gone for good is accounted for by that pass.
async fn fetch_messages(context: &Context, settled: &mut [Settled]) -> Result<(), StoreError> {
    let is_letter = |one: &&mut Settled| {
        let is_dead = matches!(&one.fate, Fate::Dead(error) if error.name != GIVEN_UP);
        is_dead && one.message.is_none()
    };
    let mut letters: Vec<&mut Settled> = settled.iter_mut().filter(is_letter).collect();
    letters.sort_by_key(|one| one.position);
    let mut batch: Vec<Rc<Entry>> = Vec::new();
    let mut is_refused = false;
    for one in letters {
        one.message = message_at(&batch, one.position);
        if one.message.is_none() && !is_refused {
            batch = match context.pipeline.read(one.position).await {
                Ok(batch) => batch,
                Err(StoreError::Stopped) => return Err(StoreError::Stopped),
                Err(error) => {
                    tracing::error!("destination {}: {error}; trying again", context.handle.name);
                    is_refused = true;
                    Vec::new()
                }
            };
            one.message = message_at(&batch, one.position);
        }
        if one.message.is_none() {
            one.fate = Fate::Retry;
        }
    }
    Ok(())
}

fn message_at(batch: &[Rc<Entry>], position: Position) -> Option<Arc<StoredMessage>> {
    let found = batch.binary_search_by_key(&position, |entry| entry.stored.position);
    batch.get(found.ok()?).map(|entry| Arc::clone(&entry.stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_opens_until_the_next_try_and_is_half_open_during_it() {
        let state = |up, next_try_us| LinkState {
            up,
            error: None,
            next_try_us,
        };
        for (state, circuit) in [
            (state(None, None), "closed"),
            (state(Some(true), None), "closed"),
            (state(Some(false), Some(11)), "open"),
            (state(Some(false), Some(10)), "half-open"),
        ] {
            assert_eq!(state.circuit(10).name(), circuit, "{state:?}");
        }
    }
}
