//! When a destination that cannot be reached is tried again, so that a fleet does not come back as one herd.
//!
//! Invariants:
//! 1. Pauses are random over the whole of a step that doubles to five minutes: gateways that failed in the same second
//!    are spread over minutes after a few tries.
//! 2. What the server asks for is respected, and the return is spread behind it: servers that announce one moment
//!    (`Retry-After` with a date) announce it to the whole fleet. The longer the wait, the wider the spread.
//! 3. A backlog that a start finds is not sent in the second in which the power came back everywhere.

use crate::random;
use crate::sabotage::{self, Sabotage};
use embassy_time::Duration;

/// Back-off of one destination.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

const FIRST: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(300);
/// No growing back-off while the clock is the reason.
const FOR_CLOCK: Duration = Duration::from_secs(10);
/// Longest wait of a start that finds a backlog.
const START_SPREAD: Duration = Duration::from_secs(10);

impl Backoff {
    /// It answered.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Pause after one more failure (invariants 1 and 2).
    pub fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let step = (FIRST * (1 << self.failures.min(9))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        match asked {
            Some(asked) => asked + random_below(step.max(asked.min(LONGEST))),
            None if sabotage::is_on(Sabotage::NoJitter) => step,
            None => SHORTEST + random_below(step - SHORTEST),
        }
    }

    /// Pause before a start that finds a backlog sends it (invariant 3).
    pub fn before_backlog() -> Duration {
        random_below(START_SPREAD)
    }

    /// Pause while the clock is not right.
    pub fn pause_for_clock(&self) -> Duration {
        FOR_CLOCK
    }
}

/// Anything up to `limit`.
fn random_below(limit: Duration) -> Duration {
    if sabotage::is_on(Sabotage::NoJitter) {
        return Duration::from_ticks(0);
    }
    Duration::from_micros(random::below(limit.as_micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_and_differ_between_gateways() {
        random::seed(3);
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..200).map(|_| backoff.pause(None).as_millis()).collect();
        assert!((500..=1000).contains(&pauses[0]));
        assert!(pauses.iter().all(|p| (500..=300_000).contains(p)));
        let late = &pauses[10..];
        assert!(late.iter().any(|p| *p < 60_000) && late.iter().any(|p| *p > 240_000));
        backoff.reset();
        assert!(backoff.pause(None) <= Duration::from_secs(1));
    }

    #[test]
    fn a_moment_that_the_server_announces_to_everybody_is_nobodys_moment() {
        random::seed(5);
        // The first failure of each of a thousand gateways: the server says "in an hour".
        let asked = Duration::from_secs(3600);
        let mut per_second = vec![0; 301];
        for _ in 0..1000 {
            let pause = Backoff::default().pause(Some(asked));
            assert!(pause >= asked);
            per_second[(pause - asked).as_secs() as usize] += 1;
        }
        assert!(per_second.iter().all(|count| *count <= 15), "{per_second:?}");
        // A short wait is spread as far as it is long, a repeated one further.
        let mut backoff = Backoff::default();
        assert!((0..50).all(|_| Backoff::default().pause(Some(Duration::from_secs(4))).as_secs() < 8));
        let longest = (0..50)
            .map(|_| backoff.pause(Some(Duration::from_secs(4))).as_secs())
            .max();
        assert!(longest > Some(100));
    }
}
