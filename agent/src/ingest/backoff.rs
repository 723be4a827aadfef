//! Pauses between attempts: doubled each time, with full jitter, so that a ward of gateways does not come back in step.

use crate::random;
use embassy_time::Duration;

/// The pauses of one source.
pub(super) struct Backoff {
    first_ms: u64,
    longest_ms: u64,
    failures: u32,
}

impl Backoff {
    /// Pauses of up to `first`, doubled with each failure, up to `longest`.
    pub(super) fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff {
            first_ms: first.as_millis(),
            longest_ms: longest.as_millis(),
            failures: 0,
        }
    }

    /// The connection worked: the next pause is short again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure; at least a tenth of the first one, so that a loop never spins.
    pub(super) fn pause(&mut self) -> Duration {
        let limit = self
            .first_ms
            .saturating_mul(1 << self.failures.min(20))
            .min(self.longest_ms);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(random::below(limit + 1).max(self.first_ms / 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_and_are_short_again_after_success() {
        random::seed(3);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let pauses: Vec<u64> = (0..200).map(|_| backoff.pause().as_millis()).collect();
        assert!(pauses[0] <= 100 && pauses[1] <= 200);
        assert!(pauses.iter().all(|pause| (10..=30_000).contains(pause)));
        assert!(pauses.iter().skip(10).any(|pause| *pause > 20_000));
        backoff.reset();
        assert!(backoff.pause().as_millis() <= 100);
    }
}
