//! What is known of clocks: how the wall clock of the gateway behaves, and readings that nobody can date without the
//! operator ([`undated`]), and clocks of devices ([`device`]).

pub mod device;
pub mod undated;

/// Ticks of 100 ns in a second.
const SECOND: i64 = 10_000_000;
/// A clock that moves by this much against the running time within a second was set: time synchronisation slews at most
/// half a millisecond a second.
const JUMP: i64 = SECOND / 2;
/// A jump is worth an operator's attention for an hour: microseconds.
const SHOWN_US: u64 = 3_600_000_000;

/// Watches the wall clock against the running time.
#[derive(Clone, Debug, Default)]
pub struct ClockWatch {
    /// Wall clock minus running time when looked at last (ticks), and whether it was trusted.
    offset: Option<(i64, bool)>,
    /// How often it was moved while it was trusted, before and after.
    pub jumps: u64,
    /// The last time: by how much (ticks), and when (microseconds of running time).
    last: Option<(i64, u64)>,
}

impl ClockWatch {
    /// Takes a look; gives by how much (ticks) the clock was moved since the last one, when it was trusted before and after.
    /// What moves it into trust is what it waited for.
    pub fn look(&mut self, trusted: bool, now_us: u64, wall: i64) -> Option<i64> {
        let offset = wall.saturating_sub(i64::try_from(now_us).unwrap_or(i64::MAX).saturating_mul(10));
        let (before, was_trusted) = self.offset.replace((offset, trusted))?;
        let moved = offset.saturating_sub(before);
        if !(trusted && was_trusted) || moved.abs() < JUMP {
            return None;
        }
        self.jumps += 1;
        self.last = Some((moved, now_us));
        Some(moved)
    }

    /// The last jump, while it is worth an operator's attention: ticks.
    pub fn recent_jump(&self, now_us: u64) -> Option<i64> {
        let (moved, at_us) = self.last?;
        (now_us.saturating_sub(at_us) < SHOWN_US).then_some(moved)
    }
}

/// Seconds with a sign and at most one decimal.
pub fn seconds(ticks: i64) -> String {
    let tenths = ticks / (SECOND / 10);
    let sign = if tenths < 0 { "-" } else { "+" };
    match tenths.unsigned_abs() % 10 {
        0 => format!("{sign}{}", tenths.unsigned_abs() / 10),
        tenth => format!("{sign}{}.{tenth}", tenths.unsigned_abs() / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed_and_one_that_is_slewed_is_not() {
        let mut watch = ClockWatch::default();
        let mut wall = 0;
        let mut look = |second: u64, step: i64, trusted: bool| {
            wall += step;
            watch.look(trusted, second * 1_000_000, second as i64 * SECOND + wall)
        };
        assert_eq!(look(1, 0, false), None);
        assert_eq!(
            look(2, 50 * 365 * 86_400 * SECOND, true),
            None,
            "what it waited for"
        );
        assert_eq!(look(3, SECOND / 2000, true), None, "slewed");
        assert_eq!(look(4, -3600 * SECOND, true), Some(-3600 * SECOND));
        assert_eq!(look(5, SECOND, true), Some(SECOND));
        assert_eq!(look(6, 86_400 * SECOND, false), None);
        assert_eq!(watch.jumps, 2);
        assert_eq!(watch.recent_jump(6_000_000), Some(SECOND));
        assert_eq!(watch.recent_jump(5_000_000 + SHOWN_US), None);
    }

    #[test]
    fn seconds_are_short() {
        for (ticks, text) in [(0, "+0"), (-36_000_000_000, "-3600"), (12_300_000, "+1.2")] {
            assert_eq!(seconds(ticks), text);
        }
    }
}
