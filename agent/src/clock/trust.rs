//! Whether the wall clock can be believed, from what may be read under the unit's filter: `adjtimex` is forbidden there, the
//! file that systemd-timesyncd touches and what the kernel shows of real-time clocks are not.

use crate::config::ClockTrust;
use std::path::Path;

/// Seconds since 1970 before which this program did not exist: a clock that shows less is wrong, whatever anybody says.
pub(super) const NOT_BEFORE: i64 = 1_760_000_000;

/// A real-time clock may run in a time zone; one that is further off lost its battery, or the system clock is wrong.
const RTC_APART: i64 = 26 * 3600;

/// File that systemd-timesyncd touches whenever it hears from a time server.
const TIMESYNC: &str = "/run/systemd/timesync/synchronized";

/// What can be seen of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The wall clock: seconds since 1970.
    pub(super) wall: i64,
    /// Time synchronisation has said that the clock is set.
    pub(super) synchronized: bool,
    /// The real-time clocks of the machine: seconds since 1970; none when it has none, or they cannot be read.
    pub(super) rtc: Option<i64>,
}

/// Whether the wall clock can be believed.
pub(super) fn judge(trust: ClockTrust, evidence: Evidence) -> bool {
    let possible = evidence.wall >= NOT_BEFORE;
    possible
        && match trust {
            ClockTrust::Always => true,
            ClockTrust::Ntp => evidence.synchronized,
            ClockTrust::Rtc => evidence
                .rtc
                .is_none_or(|rtc| rtc >= NOT_BEFORE && rtc.abs_diff(evidence.wall) <= RTC_APART as u64),
        }
}

/// Whether time synchronisation has said that the clock is set.
pub(super) fn is_synchronized() -> bool {
    Path::new(TIMESYNC).exists()
}

/// When the last answer of a time server came: seconds since 1970 by the wall clock.
pub(super) fn synchronized_at() -> Option<i64> {
    let modified = std::fs::metadata(TIMESYNC).ok()?.modified().ok()?;
    let since_1970 = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since_1970.as_secs()).ok()
}

/// The real-time clock that the kernel sets the system clock by, else the first one.
pub(super) fn real_time_clock() -> Option<i64> {
    let mut found = None;
    for entry in std::fs::read_dir("/sys/class/rtc").ok()?.flatten() {
        let read = |name: &str| {
            let text = std::fs::read_to_string(entry.path().join(name)).ok()?;
            text.trim().parse::<i64>().ok()
        };
        let Some(shows) = read("since_epoch") else {
            continue;
        };
        if read("hctosys") == Some(1) {
            return Some(shows);
        }
        found.get_or_insert(shows);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_believed_only_as_far_as_something_speaks_for_it() {
        const NOW: i64 = 1_790_000_000;
        const YEAR_2000: i64 = 946_684_800;
        let seen = |wall, synchronized, rtc| Evidence {
            wall,
            synchronized,
            rtc,
        };
        for (evidence, ntp, rtc, always) in [
            (seen(NOW, true, Some(NOW)), true, true, true),
            (seen(NOW, false, Some(NOW - 3)), false, true, true),
            // It runs in local time.
            (seen(NOW, true, Some(NOW + 14 * 3600)), true, true, true),
            // Its battery is empty; the system clock goes on from where it was saved.
            (seen(NOW, false, Some(YEAR_2000)), false, false, true),
            (seen(NOW, true, Some(YEAR_2000)), true, false, true),
            // The system clock was never set by it.
            (seen(NOW - 30 * 86_400, false, Some(NOW)), false, false, true),
            // No real-time clock can be read: what the site says counts.
            (seen(NOW, false, None), false, true, true),
            // 1970, whatever anybody says.
            (seen(30, true, Some(30)), false, false, false),
            (seen(YEAR_2000, true, None), false, false, false),
        ] {
            let judged =
                [ClockTrust::Ntp, ClockTrust::Rtc, ClockTrust::Always].map(|trust| judge(trust, evidence));
            assert_eq!(judged, [ntp, rtc, always], "{evidence:?}");
        }
    }
}
