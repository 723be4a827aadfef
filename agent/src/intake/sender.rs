//! How many messages a sender lets be unacknowledged, learnt from where it stops.

use crate::ingest::SourceHandle;
use embassy_time::{Duration, Instant};

/// A sender that goes on within this time after its acknowledgements was held by its window.
const RESUMED_AT_ONCE: Duration = Duration::from_millis(50);

/// What the loop knows of a sender.
pub(super) struct Sender {
    pub(super) handle: SourceHandle,
    /// Messages of the batch that gathers.
    pub(super) gathered: usize,
    /// Learnt window: smaller than the configured one when the broker holds less.
    window: usize,
    /// How many the last batch held when it had to wait for the interval, and when it was acknowledged.
    stalled: Option<(usize, Instant)>,
    /// The same number twice is the window.
    candidate: usize,
}

impl Sender {
    pub(super) fn new(handle: SourceHandle) -> Sender {
        let window = usize::from(handle.window);
        Sender {
            handle,
            gathered: 0,
            window,
            stalled: None,
            candidate: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.window > 0 && self.gathered >= self.window
    }

    pub(super) fn arrived(&mut self, now: Instant) {
        self.gathered += 1;
        if self.gathered > self.window {
            // It sends more than was learnt: back to what is configured.
            self.window = usize::from(self.handle.window).max(self.window.min(self.gathered));
        }
        if let Some((held, acknowledged)) = self.stalled.take() {
            if now.duration_since(acknowledged) > RESUMED_AT_ONCE {
                self.candidate = 0;
            } else if self.candidate == held {
                self.window = held;
            } else {
                self.candidate = held;
            }
        }
    }

    pub(super) fn committed(&mut self, waited: bool, now: Instant) {
        let configured = usize::from(self.handle.window);
        self.stalled =
            (waited && self.gathered > 1 && self.gathered < configured).then_some((self.gathered, now));
        self.gathered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SourceId;
    use std::sync::Arc;

    fn sender(window: u16) -> Sender {
        Sender::new(SourceHandle {
            id: SourceId(1),
            name: Arc::from("ward"),
            acknowledger: None,
            window,
        })
    }

    #[test]
    fn a_window_smaller_than_configured_is_learnt_from_where_the_sender_stops() {
        let mut sender = sender(100);
        let at = |ms| Instant::from_millis(1000 + ms);
        for round in 0..3_u64 {
            for _ in 0..20 {
                sender.arrived(at(round * 1000));
            }
            sender.committed(!sender.is_full(), at(round * 1000 + 999));
        }
        assert_eq!(sender.window, 20);
        (0..20).for_each(|_| sender.arrived(at(3000)));
        assert!(sender.is_full());
        // The broker was configured for more: 21 arrive before an acknowledgement.
        sender.arrived(at(3001));
        assert_eq!(sender.window, 100);
    }

    #[test]
    fn a_slow_sender_is_not_taken_for_a_small_window() {
        let mut sender = sender(100);
        for second in 0..10_u64 {
            (0..20).for_each(|n| sender.arrived(Instant::from_millis(second * 1000 + n * 50)));
            sender.committed(true, Instant::from_millis(second * 1000 + 951));
            // The next message comes after the usual pause, not at once: 100 ms later.
            sender.arrived(Instant::from_millis(second * 1000 + 1051));
            sender.gathered = 0;
        }
        assert_eq!(sender.window, 100);
    }
}
