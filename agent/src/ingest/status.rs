//! What a source shows of itself: connected or not, the last error, and its counters. Written by the source, read by
//! `status`, the web page and the metrics.

use crate::telemetry::errors::ErrorRecord;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Devices that are shown as away.
const MOST_AWAY: usize = 256;

/// A counter that only grows while the process lives.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// `number` more.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// State of a source, shared between its loop and whoever shows it.
#[derive(Debug, Default)]
pub struct SourceStatus {
    connected: AtomicBool,
    waiting_for_clock: AtomicBool,
    error: Mutex<Option<ErrorRecord>>,
    away: Mutex<BTreeSet<String>>,
    /// Messages handed on to the intake.
    pub received: Counter,
    /// Connections or openings after the first one.
    pub reconnects: Counter,
    /// Messages above the size limit, handed on as their head.
    pub oversize: Counter,
    /// Redelivered messages that were recognised, acknowledged and not handed on again.
    pub repeats: Counter,
    /// Connections closed on purpose because too many bytes waited for their commit.
    pub closed_for_backpressure: Counter,
    /// Acknowledgements that were not sent because their connection was gone.
    pub stale_acknowledgements: Counter,
    /// Bytes of a serial line that were no frame.
    pub garbage: Counter,
    /// Readings of a serial line.
    pub frames: Counter,
    /// Frames of a serial line that were refused: checksum, length, no JSON.
    pub refused: Counter,
}

impl SourceStatus {
    /// Whether the broker is connected or the port is open.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether the connection fails because the wall clock is not set; it repairs itself.
    pub fn is_waiting_for_clock(&self) -> bool {
        self.waiting_for_clock.load(Ordering::Relaxed)
    }

    /// Why the source does not work now; none while it works.
    pub fn error(&self) -> Option<ErrorRecord> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Devices that have said that they are away, in order of their names.
    pub fn away(&self) -> Vec<String> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.iter().cloned().collect()
    }

    /// A device has said that it is there or away.
    pub(super) fn set_available(&self, device: &str, available: bool) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if available {
            away.remove(device);
        } else if away.len() < MOST_AWAY {
            away.insert(device.to_owned());
        }
    }

    /// The source works; returns whether that is a change.
    pub(super) fn set_connected(&self) -> bool {
        self.waiting_for_clock.store(false, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        !self.connected.swap(true, Ordering::Relaxed)
    }

    /// The source does not work, or not fully; returns whether that is news: the connection was up until now, or the
    /// error is another one than before.
    pub(super) fn set_error(&self, error: ErrorRecord, connected: bool) -> bool {
        let was_connected = self.connected.swap(connected, Ordering::Relaxed);
        let mut last = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let news = last.as_ref() != Some(&error) || was_connected != connected;
        *last = Some(error);
        news
    }

    /// Whether the clock is the reason.
    pub(super) fn set_waiting_for_clock(&self, waiting: bool) {
        self.waiting_for_clock.store(waiting, Ordering::Relaxed);
    }
}
