//! Which of a serial source's messages are committed: a device that forgets a reading once it is acknowledged must not be
//! answered before.

use crate::ingest::Acknowledger;
use crate::message::AckToken;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Messages of one source, numbered from 1 in the order in which they are handed over; shared with the intake.
#[derive(Debug, Default)]
pub(super) struct Commits {
    handed_over: AtomicU64,
    committed: AtomicU64,
    changed: Notify,
}

impl Commits {
    /// The token of the next message.
    pub(super) fn next(&self) -> AckToken {
        AckToken {
            epoch: self.handed_over.fetch_add(1, Ordering::Relaxed) + 1,
            packet_id: 0,
            session: 0,
        }
    }

    /// Number of the last message that was handed over.
    pub(super) fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// Whether the message with this number and all before it are committed.
    pub(super) fn covers(&self, number: u64) -> bool {
        self.committed.load(Ordering::Acquire) >= number
    }

    /// Ends when further messages are committed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Acknowledger for Commits {
    fn committed(&self, tokens: &[AckToken]) {
        // The intake commits in the order in which messages came.
        if let Some(last) = tokens.iter().map(|token| token.epoch).max() {
            self.committed.fetch_max(last, Ordering::Release);
            self.changed.notify_one();
        }
    }
}
