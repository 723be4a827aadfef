//! Which period a measurement belongs to, and when its group is to be sent.

use crate::normalize::Match;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::Period;

/// Readings of period 0 are gathered for this long, so that a burst is one request: microseconds.
const GATHER_US: u64 = 250_000;

/// Start of the period in ticks of 100 ns for hourly and daily groups; none where every instant stands alone, where the
/// correlation id is the group, and where the mapping has no template for the type (the destination says so).
pub fn period_start(found: &Match) -> Option<i64> {
    match period_of(found)? {
        period @ (Period::Hourly | Period::Daily) => {
            Some(period.boundary(found.measurement.occurrence_time).0.ticks())
        }
        Period::Single | Period::Correlation => None,
    }
}

fn period_of(found: &Match) -> Option<Period> {
    let template = found.pack.fhir.as_ref()?.template(&found.measurement.type_name)?;
    Some(template.period())
}

/// When readings are due that wait for no period.
pub fn due_at_once(now_us: u64) -> u64 {
    now_us + GATHER_US
}

/// Start of the period as [`period_start`], and when a group is due that has got its first unsent reading now: at once for
/// period 0, else at the earlier of the end of its period and `flush_interval_us`, so that a nurse sees data in minutes and
/// not after the hour.
pub fn period_and_due(
    found: &Match,
    now_us: u64,
    wall: Timestamp,
    flush_interval_us: u64,
) -> (Option<i64>, u64) {
    match period_of(found) {
        None | Some(Period::Single) => (None, due_at_once(now_us)),
        Some(Period::Correlation) => (None, now_us + flush_interval_us),
        Some(period @ (Period::Hourly | Period::Daily)) => {
            let (start, end) = period.boundary(found.measurement.occurrence_time);
            let left_us = u64::try_from((end.ticks() - wall.ticks()) / 10).unwrap_or(0);
            let due = now_us + left_us.min(flush_interval_us).max(GATHER_US);
            (Some(start.ticks()), due)
        }
    }
}
