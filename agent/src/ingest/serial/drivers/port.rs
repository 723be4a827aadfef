//! Joins a framing and what a device's frames mean into a [`Driver`].

use super::{Driver, Now, Output};
use crate::ingest::serial::framing::frames::{Found, Framer, Protocol};

/// What a device's frames mean, and what is said to it.
pub trait Listener<F> {
    /// The port was opened.
    fn start(&mut self, _now: Now, _out: &mut Output) {}
    /// A frame came.
    fn frame(&mut self, frame: F, now: Now, out: &mut Output);
    /// Bytes were lost: the next frame may not follow the last one.
    fn gap(&mut self, _now: Now, _out: &mut Output) {}
    /// When [`Listener::timeout`] is to be called, in monotonic microseconds.
    fn deadline(&self) -> Option<u64> {
        None
    }
    /// The deadline has passed.
    fn timeout(&mut self, _now: Now, _out: &mut Output) {}
    /// See [`Driver::remember`].
    fn remember(&mut self, _records: &[u64]) {}
    /// See [`Driver::acknowledges`].
    fn acknowledges(&self) -> bool {
        false
    }
}

/// A driver made of a framing and a listener.
#[derive(Debug, Default)]
pub struct Port<P, L> {
    framer: Framer<P>,
    listener: L,
}

impl<P: Protocol, L: Listener<P::Frame>> Port<P, L> {
    /// A driver for a port that was just opened.
    pub fn new(protocol: P, listener: L) -> Self {
        Port {
            framer: Framer::new(protocol),
            listener,
        }
    }

    fn hand_over(&mut self, found: Vec<Found<P::Frame>>, now: Now, out: &mut Output) {
        for one in found {
            match one {
                Found::Frame(frame) => self.listener.frame(frame, now, out),
                Found::Gap => self.listener.gap(now, out),
            }
        }
    }
}

impl<P: Protocol, L: Listener<P::Frame>> Driver for Port<P, L> {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.listener.start(now, out);
    }

    fn bytes(&mut self, bytes: &[u8], now: Now, out: &mut Output) {
        let found = self.framer.push(bytes, now, out);
        self.hand_over(found, now, out);
    }

    fn deadline(&self) -> Option<u64> {
        [self.framer.deadline(), self.listener.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        let found = self.framer.timeout(now, out);
        self.hand_over(found, now, out);
        if self
            .listener
            .deadline()
            .is_some_and(|deadline| now.monotonic_us >= deadline)
        {
            self.listener.timeout(now, out);
        }
    }

    fn closed(&mut self, now: Now, out: &mut Output) {
        let found = self.framer.close(out);
        self.hand_over(found, now, out);
        self.listener.gap(now, out);
        out.send.clear();
        out.settings = None;
    }

    fn remember(&mut self, records: &[u64]) {
        self.listener.remember(records);
    }

    fn held(&self) -> usize {
        self.framer.held()
    }

    fn acknowledges(&self) -> bool {
        self.listener.acknowledges()
    }
}
