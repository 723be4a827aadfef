//! How long the room in the store lasts, from what came and what was still needed in the last half hour.
//!
//! History counts as room: it is the first to go. Bytes of batches are taken as the pages that they fill on average.

use crate::pipeline::Pipeline;
use crate::store::{Outline, Store, StoreError};
use serde::Serialize;
use std::collections::VecDeque;

/// Samples that are kept: one a minute.
const SAMPLES: usize = 31;
/// A rate over less running time says nothing: microseconds.
const SHORTEST_US: u64 = 50_000_000;
/// What lasts longer than this lasts: ten years, in seconds.
const FOR_EVER: u64 = 10 * 365 * 86_400;

/// One look at the store.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_us: u64,
    /// Bytes of batches since the start.
    appended: u64,
    /// Bytes of batches that something still needs.
    needed: u64,
}

/// How full the store is and how long that goes on, as `status` and metrics show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// The limit in force.
    pub max_bytes: u64,
    /// Bytes that something still needs: unsent readings, and messages that wait.
    pub needed_bytes: u64,
    /// Bytes that can be taken before anything has to be given up.
    pub room_bytes: u64,
    /// When the room is used up at the present rates; none while what is needed does not grow.
    pub full_in_seconds: Option<u64>,
    /// Age of the oldest messages in the journal: as far back corrections find readings here, in seconds.
    pub history_seconds: u64,
    /// How long the room would last with nothing delivered, at the rate at which messages come.
    pub outage_lasts_seconds: Option<u64>,
}

/// Samples of the last half hour.
#[derive(Debug, Default)]
pub struct Forecast {
    samples: VecDeque<Sample>,
    /// Pages filled, and bytes of batches in them.
    fill: (u64, u64),
    max_bytes: u64,
    capacity: u64,
    history_us: u64,
}

impl Forecast {
    fn take(&mut self, sample: Sample) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// What can be said now.
    pub fn outlook(&self) -> Outlook {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Outlook::default();
        };
        // Small stores have pages that hold no batches.
        let (pages, batches) = self.fill;
        let on_disk = |bytes: u64| match batches {
            0 => bytes,
            _ => {
                (u128::from(bytes) * u128::from(pages.clamp(batches, batches.saturating_mul(2)))
                    / u128::from(batches)) as u64
            }
        };
        let needed_bytes = on_disk(last.needed);
        let room_bytes = self.capacity.saturating_sub(needed_bytes);
        let elapsed_us = last.at_us.saturating_sub(first.at_us);
        let lasts = |bytes: u64| {
            let known = elapsed_us >= SHORTEST_US && bytes > 0;
            let seconds = known
                .then(|| u128::from(room_bytes) * u128::from(elapsed_us) / u128::from(bytes) / 1_000_000);
            seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds < FOR_EVER)
        };
        Outlook {
            max_bytes: self.max_bytes,
            needed_bytes,
            room_bytes,
            history_seconds: self.history_us / 1_000_000,
            full_in_seconds: lasts(on_disk(last.needed.saturating_sub(first.needed))),
            outage_lasts_seconds: lasts(on_disk(last.appended.saturating_sub(first.appended))),
        }
    }
}

/// Takes a look at the store.
pub(super) async fn look(pipeline: &Pipeline, at_us: u64) -> Result<(), StoreError> {
    let read = |store: &mut Store| {
        let (outline, limits) = (store.outline()?, store.limits());
        Ok((
            outline,
            store.used_bytes()?,
            limits,
            store.statistics().batch_bytes,
        ))
    };
    let (outline, used, limits, appended) = pipeline.store.call(read).await?;
    let needed = needed_bytes(pipeline, &outline);
    let mut forecast = pipeline.bounds.forecast.borrow_mut();
    forecast.take(Sample {
        at_us,
        appended,
        needed,
    });
    forecast.fill = (used, outline.iter().map(|segment| segment.bytes).sum());
    forecast.max_bytes = limits.max_bytes;
    let oldest = outline.first().map_or(at_us, |segment| segment.opened_us);
    forecast.history_us = at_us.saturating_sub(oldest);
    forecast.capacity = limits.database().saturating_sub(limits.reserve());
    Ok(())
}

/// Bytes of the batches that something needs, each segment by the share of its positions.
fn needed_bytes(pipeline: &Pipeline, outline: &[Outline]) -> u64 {
    let outbox = pipeline.outbox.borrow();
    let followers = pipeline.bounds.followers(&outbox);
    let of_segment = |segment: &Outline| {
        let positions = segment.end.saturating_sub(segment.first);
        let needed: u64 = outbox
            .needs(&followers, segment.first, segment.end.saturating_sub(1))
            .iter()
            .map(|(first, last)| last - first + 1)
            .sum();
        segment.bytes * needed.min(positions) / positions.max(1)
    };
    outline.iter().map(of_segment).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn forecast(samples: &[(u64, u64, u64)]) -> Outlook {
        let mut forecast = Forecast {
            fill: (0, 0),
            max_bytes: 120 * MIB,
            capacity: 100 * MIB,
            ..Forecast::default()
        };
        for (minute, appended, needed) in samples {
            forecast.take(Sample {
                at_us: minute * 60_000_000,
                appended: appended * MIB,
                needed: needed * MIB,
            });
        }
        forecast.outlook()
    }

    #[test]
    fn the_time_to_full_is_what_is_left_over_the_growth_of_what_is_needed() {
        let filling = forecast(&[(0, 0, 0), (10, 20, 20)]);
        assert_eq!((filling.room_bytes, filling.needed_bytes), (80 * MIB, 20 * MIB));
        assert_eq!(
            filling.full_in_seconds,
            Some(80 * 30),
            "2 MiB a minute into 80 MiB"
        );
        let half_is_delivered = forecast(&[(0, 0, 0), (10, 20, 10)]);
        assert_eq!(half_is_delivered.full_in_seconds, Some(90 * 60));
        assert_eq!(half_is_delivered.outage_lasts_seconds, Some(90 * 30));
    }

    #[test]
    fn a_store_that_drains_is_never_full_and_one_look_says_nothing() {
        let draining = forecast(&[(0, 100, 50), (10, 110, 20)]);
        assert_eq!(draining.full_in_seconds, None);
        assert_eq!(draining.outage_lasts_seconds, Some(80 * 60));
        let idle = forecast(&[(0, 100, 50), (10, 100, 50)]);
        assert_eq!((idle.full_in_seconds, idle.outage_lasts_seconds), (None, None));
        assert_eq!(forecast(&[(0, 5, 5)]).full_in_seconds, None);
        assert_eq!(forecast(&[]), Outlook::default());
    }

    #[test]
    fn old_rates_are_forgotten() {
        let mut samples: Vec<(u64, u64, u64)> = (0..40).map(|minute| (minute, minute, minute)).collect();
        samples.extend((40..80).map(|minute| (minute, 40, 40)));
        assert_eq!(forecast(&samples).full_in_seconds, None);
    }
}
