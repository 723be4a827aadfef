//! The end of the agent as sources see it: what a source holds that is no message yet, it hands over before the intake takes
//! its last batch.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};

/// Shared by the agent and its sources.
#[derive(Debug)]
pub struct Ending {
    wanted: watch::Sender<bool>,
    /// Sources that may still hand something over.
    busy: AtomicUsize,
    done: Notify,
}

impl Default for Ending {
    fn default() -> Self {
        Ending {
            wanted: watch::channel(false).0,
            busy: AtomicUsize::new(0),
            done: Notify::new(),
        }
    }
}

/// A source that may hand something over when the agent stops; it has done so when this is dropped.
#[derive(Debug)]
pub struct Busy<'a>(&'a Ending);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.done.notify_waiters();
        }
    }
}

impl Ending {
    /// Notes a source that is to be waited for.
    pub fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self)
    }

    /// Ends when the agent stops.
    pub async fn wanted(&self) {
        let mut wanted = self.wanted.subscribe();
        // The sender is `self`: it is there.
        let _ = wanted.wait_for(|wanted| *wanted).await;
    }

    /// Tells the sources, and waits until they have handed over what they hold.
    pub async fn end(&self) {
        self.wanted.send_replace(true);
        loop {
            let done = self.done.notified();
            if self.busy.load(Ordering::Relaxed) == 0 {
                return;
            }
            done.await;
        }
    }
}
