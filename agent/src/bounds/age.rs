//! What is done every minute: history and unmatched messages beyond their time or share, readings beyond `max_age`, free
//! pages back to the file system, and the limit while the disk is full of other things.
//!
//! Ages are compared with the wall clock only while it is trusted and has not jumped lately: a clock that comes from 1970
//! makes everything old in one second.

use super::scan::Scan;
use super::{Memory, commit, copy_forward, forecast, free_until_enough, give_up, is_history};
use crate::clock;
use crate::pipeline::Pipeline;
use crate::store::{Loss, Outline, Room, StoreError, UnmatchedRun};

/// Ticks of 100 ns in a second.
const SECOND: i64 = 10_000_000;
/// A clock that moved by more than this against the running time has jumped.
const JUMP: i64 = 60 * SECOND;
/// Nothing is given up by age for this long after it was first trusted or jumped: microseconds.
const REST_US: u64 = 600_000_000;
/// Why readings were given up by age; the ledger says it.
const TOO_OLD: &str = "older than [store] max_age";

/// Watches the wall clock against the running time.
#[derive(Debug, Default)]
pub(super) struct ClockWatch {
    /// Wall clock minus running time when looked at last: ticks.
    offset: Option<i64>,
    /// Since when it has been trusted without a jump: microseconds of running time.
    steady_since: Option<u64>,
}

impl ClockWatch {
    /// Takes a look; says whether ages can be told from the wall clock.
    pub(super) fn look(&mut self, trusted: bool, now_us: u64, wall: i64) -> bool {
        let offset = wall - (now_us as i64).saturating_mul(10);
        let jumped = self.offset.is_none_or(|before| (offset - before).abs() > JUMP);
        self.offset = Some(offset);
        if !trusted {
            self.steady_since = None;
        } else if jumped || self.steady_since.is_none() {
            self.steady_since = Some(now_us);
        }
        self.steady_since
            .is_some_and(|since| now_us.saturating_sub(since) >= REST_US)
    }
}

/// Everything that a minute's upkeep does.
///
/// # Errors
/// [`StoreError`]; the next minute tries again.
pub async fn tend(pipeline: &Pipeline) -> Result<(), StoreError> {
    let mut memory = pipeline.bounds.working.lock().await;
    let (now_us, wall) = (clock::monotonic_us(), clock::wall().ticks());
    let trusted = clock::is_trusted(pipeline.trust);
    let steady = memory.clock.look(trusted, now_us, wall);
    let settings = &pipeline.bounds.settings;
    let (min_free, max_bytes) = (settings.min_free_disk, settings.max_bytes);
    let (outline, limit) = pipeline
        .store
        .call(move |store| {
            if steady {
                store.expire_sent_periods(wall)?;
            }
            let max_bytes = store.limit_beside_former(max_bytes);
            let limit = match store.free_on_disk().filter(|_| min_free > 0) {
                Some(free) => max_bytes.min((store.size() + free).saturating_sub(min_free)),
                None => max_bytes,
            };
            if limit.abs_diff(store.limits().max_bytes) > max_bytes / 64 {
                store.set_limit(limit)?;
            }
            Ok((store.outline()?, store.limits().max_bytes))
        })
        .await?;
    pipeline.bounds.limit.set(limit);
    if steady {
        forget_old_unmatched(pipeline, wall - settings.unmatched_keep);
    }
    forget_many_unmatched(pipeline, &outline, limit / 10);
    drop_history(pipeline, &outline, now_us, limit / 2).await?;
    copy_old_forward(pipeline, &mut memory, now_us).await?;
    if let Some(max_age) = settings.max_age.filter(|_| steady) {
        give_up_old(pipeline, wall - max_age).await?;
    }
    let room = pipeline.store.call(|store| store.room()).await?;
    if room != Room::Plenty {
        free_until_enough(pipeline, &mut memory).await?;
    }
    pipeline.store.call(|store| store.give_back()).await?;
    forecast::look(pipeline, now_us).await
}

/// Unmatched messages beyond their time leave, with a ledger line. What waits for a pack stays.
fn forget_old_unmatched(pipeline: &Pipeline, before: i64) {
    let mut outbox = pipeline.outbox.borrow_mut();
    let old: Vec<UnmatchedRun> = outbox
        .unmatched()
        .filter(|run| !run.no_pack && run.wall < before)
        .cloned()
        .collect();
    for run in old {
        outbox.forget_unmatched(run.first);
        outbox.lose(unmatched_loss(
            &run,
            "no template matched within [store] unmatched_keep",
        ));
    }
}

/// The oldest unmatched messages leave while all of them hold more than `share` bytes, by the mean of the journal.
fn forget_many_unmatched(pipeline: &Pipeline, outline: &[Outline], share: u64) {
    let (bytes, positions) = outline.iter().fold((0, 0), |(bytes, positions), segment| {
        (bytes + segment.bytes, positions + (segment.end - segment.first))
    });
    let mut outbox = pipeline.outbox.borrow_mut();
    let mut held: u64 = outbox.unmatched().map(|run| run.count).sum();
    let runs: Vec<UnmatchedRun> = outbox.unmatched().cloned().collect();
    for run in runs {
        if held.saturating_mul(bytes) / positions.max(1) <= share {
            break;
        }
        held -= run.count;
        outbox.forget_unmatched(run.first);
        outbox.lose(unmatched_loss(
            &run,
            "unmatched messages beyond a tenth of [store] max_bytes",
        ));
    }
}

fn unmatched_loss(run: &UnmatchedRun, reason: &str) -> Loss {
    Loss {
        destination: None,
        source: Some(run.source),
        range: Some((run.first, run.last)),
        count: run.count,
        reason: reason.to_owned(),
        reading: None,
    }
}

/// Segments that nothing needs leave when they are old, or when all of them hold more than `share` bytes.
async fn drop_history(
    pipeline: &Pipeline,
    outline: &[Outline],
    now_us: u64,
    share: u64,
) -> Result<(), StoreError> {
    let keep_from = now_us.saturating_sub(pipeline.bounds.settings.history_us);
    let history: Vec<&Outline> = outline
        .iter()
        .filter(|s| s.closed_us.is_some() && is_history(pipeline, s))
        .collect();
    let mut bytes: u64 = history.iter().map(|s| s.bytes).sum();
    let mut drop = Vec::new();
    for segment in history {
        if bytes > share || segment.closed_us.is_some_and(|closed| closed < keep_from) {
            bytes -= segment.bytes;
            drop.push(segment.id);
        }
    }
    if !drop.is_empty() {
        commit(pipeline, drop, None, |_| true).await?;
    }
    Ok(())
}

/// What little is needed of segments beyond the history is copied forward.
async fn copy_old_forward(pipeline: &Pipeline, memory: &mut Memory, now_us: u64) -> Result<(), StoreError> {
    let keep_from = now_us.saturating_sub(pipeline.bounds.settings.history_us);
    let mut number = 0;
    loop {
        let outline = pipeline.store.call(|store| store.outline()).await?;
        let Some(segment) = outline
            .get(number)
            .filter(|s| s.closed_us.is_some_and(|closed| closed < keep_from))
        else {
            return Ok(());
        };
        let segments = outline.len();
        copy_forward(pipeline, memory, &outline, number, segment).await?;
        let merged = pipeline.store.call(|store| Ok(store.outline()?.len())).await? < segments;
        number += usize::from(!merged);
    }
}

/// Segments whose newest message came before `before` are given up, whatever they hold.
async fn give_up_old(pipeline: &Pipeline, before: i64) -> Result<(), StoreError> {
    loop {
        let outline = pipeline.store.call(|store| store.outline()).await?;
        let cursor = pipeline.outbox.borrow().progress().cursor;
        let Some((oldest, _)) = outline
            .split_first()
            .filter(|(s, rest)| !rest.is_empty() && s.end <= cursor + 1)
        else {
            return Ok(());
        };
        let id = oldest.id;
        let newest = pipeline.store.call(move |store| store.newest_stamp(id)).await?;
        let dated = newest.map(|stamp| crate::normalize::receive_time(&stamp, &pipeline.dating.borrow()));
        if !dated.is_some_and(|(time, known)| known && time.ticks() < before) {
            return Ok(());
        }
        let scan = Scan::of(pipeline, oldest).await?;
        if !give_up(pipeline, &outline, 0, &scan, u64::MAX, TOO_OLD).await? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_age_is_told_from_a_clock_that_is_not_trusted_or_has_just_jumped() {
        let mut watch = ClockWatch::default();
        let year = 365 * 86_400 * SECOND;
        let at = |minutes: u64| minutes * 60_000_000;
        let wall = |minutes: u64| (at(minutes) * 10) as i64;
        assert!(!watch.look(false, at(0), wall(0)));
        assert!(!watch.look(true, at(1), wall(1)));
        assert!(!watch.look(true, at(10), wall(10)));
        assert!(watch.look(true, at(11), wall(11)));
        assert!(!watch.look(true, at(12), wall(12) + year), "it jumped");
        assert!(!watch.look(true, at(21), wall(21) + year));
        assert!(watch.look(true, at(22), wall(22) + year));
        assert!(
            !watch.look(false, at(23), wall(23) + year),
            "it is not trusted any more"
        );
    }
}
