//! Keeping the store within its bounds: what goes first, what is given up, and when the intake has to wait.
//!
//! The order (design, section 6): history, the oldest first; then what is left of a segment of which little is needed is
//! copied forward; then, lane by lane (waveforms and unmatched messages, periodic readings, spot readings, alarms), the
//! oldest segment that holds readings of the lane loses them. Waveforms go only where that frees half of the segment. Within
//! a lane the destination with the largest backlog loses its references first, the others only when that is not enough. The
//! open segment is never touched, so the newest reading stays.
//!
//! What a segment holds for whom is not written anywhere; it is normalized again, once, when it is about to be thinned
//! ([`scan`]). Readings leave the rows and counters of the outbox, the ledger lines appear and the bytes go, in one
//! transaction.

mod age;
mod forecast;
mod scan;
#[cfg(test)]
mod tests;

pub use age::tend;
pub use forecast::{Forecast, Outlook};

use crate::clock;
use crate::forward::DestinationHandle;
use crate::pipeline::Pipeline;
use crate::store::outbox::Outbox;
use crate::store::{Outline, Rewrite, Room, StoreError};
use iomt_mapping::pack_options::Priority;
use scan::Scan;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use tokio::sync::{Mutex, Notify};

/// Why readings were given up to make room; the ledger says it.
const NO_ROOM: &str = "no room in the store ([store] max_bytes)";
/// Turns of one call: each drops or thins a segment; a store has a few hundred.
const MOST_TURNS: usize = 4096;
/// Part of a segment below which what is needed of it is copied forward.
const SMALL_PART: u64 = 8;

/// What the configuration says of the bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest size of database and write-ahead log.
    pub max_bytes: u64,
    /// How long delivered messages stay: microseconds.
    pub history_us: u64,
    /// How long unmatched messages stay: ticks of 100 ns.
    pub unmatched_keep: i64,
    /// How long an unsent reading stays: ticks of 100 ns; as long as there is room when none.
    pub max_age: Option<i64>,
    /// Free bytes that the file system of the store keeps; 0: whatever.
    pub min_free_disk: u64,
    /// The destinations of the configuration.
    pub destinations: Vec<DestinationHandle>,
}

/// State of the upkeep, shared by the intake (which waits for room) and the upkeep loop.
pub struct Bounds {
    /// The configuration.
    pub settings: Settings,
    /// Wakes the upkeep loop: room is getting short.
    pub wanted: Notify,
    /// Held from taking the changes of the outbox to the end of their commit: one commit at a time carries changes.
    pub writing: Mutex<()>,
    /// The limit in force: `max_bytes`, or less while the disk is full of other things.
    pub limit: Cell<u64>,
    /// How long the room lasts.
    pub forecast: RefCell<Forecast>,
    working: Mutex<Memory>,
}

/// What is remembered between turns; forgetting it costs time, nothing else.
#[derive(Default)]
struct Memory {
    /// Lanes that a segment has nothing to give of any more.
    exhausted: HashMap<u32, Priority>,
    /// Messages that were left when a segment was copied forward.
    left: HashMap<u32, u64>,
    clock: age::ClockWatch,
}

impl Bounds {
    /// The bounds of a store.
    pub fn new(settings: Settings) -> Bounds {
        Bounds {
            limit: Cell::new(settings.max_bytes),
            settings,
            wanted: Notify::new(),
            writing: Mutex::default(),
            forecast: RefCell::default(),
            working: Mutex::default(),
        }
    }

    /// Keeps the upkeep from dropping or rewriting segments as long as the guard lives.
    pub async fn hold(&self) -> impl Drop + '_ {
        self.working.lock().await
    }

    fn followers(&self, outbox: &Outbox) -> Vec<u32> {
        let configured: Vec<u32> = self.settings.destinations.iter().map(|d| d.id).collect();
        let followers: Vec<u32> = self
            .settings
            .destinations
            .iter()
            .filter(|d| d.takes_messages)
            .map(|d| d.id)
            .collect();
        outbox.followers(&configured, &followers)
    }
}

/// Makes room until a batch, a rewrite and some time fit again. Returns how much room there is then: [`Room::None`] when
/// nothing can be given up yet (the normalizing loop is behind), so that the caller waits and asks again.
///
/// # Errors
/// [`StoreError`]; what was done until then stays done.
pub async fn make_room(pipeline: &Pipeline) -> Result<Room, StoreError> {
    let mut memory = pipeline.bounds.working.lock().await;
    free_until_enough(pipeline, &mut memory).await?;
    pipeline
        .store
        .call(|store| {
            if store.used_bytes()? < store.limits().database() {
                store.give_back()?;
            }
            store.room()
        })
        .await
}

async fn free_until_enough(pipeline: &Pipeline, memory: &mut Memory) -> Result<(), StoreError> {
    for _ in 0..MOST_TURNS {
        let (missing, outline) = pipeline
            .store
            .call(|store| {
                let limits = store.limits();
                let wanted = limits.reserve() + 3 * limits.segment;
                Ok((wanted.saturating_sub(store.free_bytes()?), store.outline()?))
            })
            .await?;
        if missing == 0 || !turn(pipeline, memory, &outline, missing).await? {
            break;
        }
    }
    Ok(())
}

/// One step towards more room; says whether anything was gained.
async fn turn(
    pipeline: &Pipeline,
    memory: &mut Memory,
    outline: &[Outline],
    missing: u64,
) -> Result<bool, StoreError> {
    let closed = outline
        .split_last()
        .map_or(&[] as &[Outline], |(_, closed)| closed);
    let mut bytes = 0;
    let mut drop = Vec::new();
    for segment in closed {
        if bytes >= missing {
            break;
        }
        if is_history(pipeline, segment) {
            drop.push(segment.id);
            bytes += segment.bytes;
        }
    }
    if !drop.is_empty() {
        commit(pipeline, drop, None, |_| true).await?;
        return Ok(true);
    }
    for (number, segment) in closed.iter().enumerate() {
        if copy_forward(pipeline, memory, closed, number, segment).await? {
            return Ok(true);
        }
    }
    for lane in Priority::ALL.into_iter().rev() {
        if shed(pipeline, memory, closed, lane).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Nothing needs any of it.
fn is_history(pipeline: &Pipeline, segment: &Outline) -> bool {
    let outbox = pipeline.outbox.borrow();
    let followers = pipeline.bounds.followers(&outbox);
    outbox
        .needs(&followers, segment.first, segment.end.saturating_sub(1))
        .is_empty()
}

/// Writes what the outbox knows, after `prepare` has changed it, together with the segments that leave. Without the consent
/// of `prepare` nothing is done.
async fn commit(
    pipeline: &Pipeline,
    drop: Vec<u32>,
    rewrite: Option<Rewrite>,
    prepare: impl FnOnce(&mut Outbox) -> bool,
) -> Result<bool, StoreError> {
    let _writing = pipeline.bounds.writing.lock().await;
    pipeline.save_packs().await?;
    let changes = {
        let mut outbox = pipeline.outbox.borrow_mut();
        if !prepare(&mut outbox) {
            return Ok(false);
        }
        outbox.take_changes()
    };
    let wall = clock::wall().ticks();
    let done = pipeline
        .store
        .call(move |store| store.reclaim(&drop, rewrite.as_ref(), Some(&changes), wall))
        .await;
    let mut outbox = pipeline.outbox.borrow_mut();
    match done {
        Ok(()) => outbox.written(),
        Err(error) => {
            outbox.not_written();
            return Err(error);
        }
    }
    Ok(true)
}

/// Rewrites a segment of which little is needed without the rest. Says whether it did.
async fn copy_forward(
    pipeline: &Pipeline,
    memory: &mut Memory,
    closed: &[Outline],
    number: usize,
    segment: &Outline,
) -> Result<bool, StoreError> {
    let keep = {
        let outbox = pipeline.outbox.borrow();
        let followers = pipeline.bounds.followers(&outbox);
        outbox.needs(&followers, segment.first, segment.end.saturating_sub(1))
    };
    let needed: u64 = keep.iter().map(|(first, last)| last - first + 1).sum();
    let held = memory
        .left
        .get(&segment.id)
        .copied()
        .unwrap_or(segment.end - segment.first);
    if needed >= held / SMALL_PART {
        return Ok(false);
    }
    let expected = segment.bytes / SMALL_PART;
    let into = gathering(pipeline, closed, number, expected).await?;
    let rewrite = Rewrite {
        segment: segment.id,
        keep,
        into,
    };
    commit(pipeline, Vec::new(), Some(rewrite), |_| true).await?;
    let place = into.unwrap_or(segment.id);
    let before = if into.is_some() {
        memory.left.get(&place).copied().unwrap_or(0)
    } else {
        0
    };
    memory.left.insert(place, before + needed);
    Ok(true)
}

/// The segment before, when it has room for what is left of this one.
async fn gathering(
    pipeline: &Pipeline,
    closed: &[Outline],
    number: usize,
    expected: u64,
) -> Result<Option<u32>, StoreError> {
    let limits = pipeline.store.call(|store| Ok(store.limits())).await?;
    let before = number.checked_sub(1).and_then(|before| closed.get(before));
    Ok(before
        .filter(|before| before.bytes + expected <= limits.segment / 2)
        .map(|before| before.id))
}

/// Gives up readings of `lane` and of the lanes below it in the oldest segment that has any. Says whether it did.
async fn shed(
    pipeline: &Pipeline,
    memory: &mut Memory,
    closed: &[Outline],
    lane: Priority,
) -> Result<bool, StoreError> {
    let cursor = pipeline.outbox.borrow().progress().cursor;
    for (number, segment) in closed.iter().enumerate() {
        let known = memory.exhausted.get(&segment.id);
        if segment.end > cursor + 1 || known.is_some_and(|known| *known <= lane) {
            continue;
        }
        if !scan::touches(pipeline, segment, lane) {
            continue;
        }
        let scan = Scan::of(pipeline, segment).await?;
        let Some(given_up) = scan.choose(lane) else {
            memory.exhausted.insert(segment.id, lane);
            continue;
        };
        if give_up(pipeline, closed, number, &scan, given_up, NO_ROOM).await? {
            tracing::warn!(
                "the store is full: {} readings of the lowest lanes (down to {}) were given up, see the ledger in `status`",
                if given_up == u64::MAX { "all" } else { "the oldest" },
                lane.name()
            );
            return Ok(true);
        }
        // A destination has taken some of it meanwhile: that is room too, soon.
        return Ok(false);
    }
    Ok(false)
}

/// Takes the readings that `given_up` names (bits of [`Scan`]) out of the outbox and the segment.
async fn give_up(
    pipeline: &Pipeline,
    closed: &[Outline],
    number: usize,
    scan: &Scan,
    given_up: u64,
    reason: &str,
) -> Result<bool, StoreError> {
    let Some(segment) = closed.get(number) else {
        return Ok(false);
    };
    let keep = scan.kept(given_up);
    let (kept, all) = scan.weight(given_up);
    let expected = segment.bytes * kept / all.max(1);
    let into = gathering(pipeline, closed, number, expected).await?;
    let (mut drop, mut rewrite) = (Vec::new(), None);
    if keep.is_empty() {
        drop.push(segment.id);
    } else {
        rewrite = Some(Rewrite {
            segment: segment.id,
            keep,
            into,
        });
    }
    commit(pipeline, drop, rewrite, |outbox| {
        scan.apply(outbox, given_up, reason)
    })
    .await
}
