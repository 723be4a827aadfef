//! What every forward loop has: the shared state, its destination, its pauses, and the sign of life that the watchdog wants.

use super::link::LinkState;
use super::retry::Backoff;
use super::{DestinationHandle, Link};
use crate::clock;
use crate::message::SourceId;
use crate::pipeline::Pipeline;
use crate::telemetry::errors::ErrorRecord;
use embassy_time::{Duration, with_timeout};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

/// What one loop needs.
pub struct Context {
    /// Shared state.
    pub pipeline: Rc<Pipeline>,
    /// The destination.
    pub handle: DestinationHandle,
    /// Where the state of the link is shown.
    pub link: Rc<RefCell<LinkState>>,
    /// Names of the sources, for raw messages.
    pub sources: Rc<HashMap<SourceId, Arc<str>>>,
    /// Longest time that a reading waits for whose it is: ticks of 100 ns.
    pub max_wait: i64,
    /// Turns true at stop.
    pub stop: watch::Receiver<bool>,
}

impl Context {
    pub(super) fn beat(&self) {
        self.pipeline.beat(&self.handle.name);
    }

    /// Waits for `pause` or stop; says whether the loop goes on.
    pub(super) async fn rest(&mut self, pause: Duration) -> bool {
        let stop = self.stop.wait_for(|stop| *stop);
        // The watchdog wants a sign of life at shorter intervals than the longest back-off.
        let mut left = pause;
        tokio::pin!(stop);
        loop {
            self.pipeline.beat(&self.handle.name);
            let slice = left.min(Duration::from_secs(5));
            if with_timeout(slice, &mut stop).await.is_ok() {
                return false;
            }
            left = left.checked_sub(slice).unwrap_or(Duration::from_ticks(0));
            if left.as_ticks() == 0 {
                return true;
            }
        }
    }

    /// Takes the state of the link into status and log; gives the pause before the next try, if one is needed.
    pub(super) fn note_link(&self, link: &Link, backoff: &mut Backoff) -> Option<Duration> {
        let name = &self.handle.name;
        let mut state = self.link.borrow_mut();
        let (error, pause) = match link {
            Link::Up => {
                if state.up == Some(false) {
                    tracing::info!("destination {name}: reached again");
                }
                *state = LinkState {
                    up: Some(true),
                    ..LinkState::default()
                };
                backoff.reset();
                return None;
            }
            Link::WaitingForClock => {
                let text = "waiting for the clock: a certificate or token cannot be judged before it is synchronised";
                (
                    ErrorRecord::new("WaitingForClock", text),
                    backoff.pause_for_clock(),
                )
            }
            Link::Down { error, retry_after } => (error.clone(), backoff.pause(*retry_after)),
        };
        if state.error.as_ref() != Some(&error) {
            tracing::warn!(
                "destination {name}: {}: {}; readings stay in the buffer",
                error.name,
                error.text
            );
        }
        *state = LinkState {
            up: Some(false),
            error: Some(error),
            next_try_us: Some(clock::monotonic_us() + pause.as_micros()),
        };
        Some(pause)
    }
}

/// Waiting for the network is progress: the watchdog gets its sign of life meanwhile.
pub(super) async fn alive<T>(pipeline: &Pipeline, name: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        match with_timeout(Duration::from_secs(5), &mut work).await {
            Ok(done) => return done,
            Err(_) => pipeline.beat(name),
        }
    }
}
