//! When a destination that cannot be reached is tried again: exponential back-off with full jitter, so that a fleet does
//! not come back as one herd; what the server asks for is respected.

use crate::random;
use embassy_time::Duration;

/// Back-off of one destination.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// No growing back-off while the clock is the reason.
const FOR_CLOCK: Duration = Duration::from_secs(10);

impl Backoff {
    /// It answered.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Pause after one more failure: random between half of the current step and the step; at least what the server
    /// asked for, with the jitter on top.
    pub fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let step = (FIRST * (1 << self.failures.min(9))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = step.as_micros() / 2;
        let pause = Duration::from_micros(half + random::below(half.max(1)));
        match asked {
            Some(asked) => asked + Duration::from_micros(random::below(half.max(1))),
            None => pause,
        }
    }

    /// Pause while the clock is not right.
    pub fn pause_for_clock(&self) -> Duration {
        FOR_CLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_and_differ_between_gateways() {
        random::seed(3);
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..20).map(|_| backoff.pause(None).as_millis()).collect();
        assert!((500..=1000).contains(&pauses[0]));
        assert!(pauses.iter().all(|p| *p <= 300_000));
        assert!(pauses[19] >= 150_000 && pauses[18] != pauses[19]);
        assert!(backoff.pause(Some(Duration::from_secs(900))) >= Duration::from_secs(900));
        backoff.reset();
        assert!(backoff.pause(None) <= Duration::from_secs(1));
    }
}
