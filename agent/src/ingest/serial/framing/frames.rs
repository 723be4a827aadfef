//! From a stream of bytes to frames, for every protocol alike.
//!
//! A protocol says what stands at the front of the bytes received so far; the framer feeds it, drops what belongs to no
//! frame, and gives up a half frame when the line stays silent. Invariants:
//!
//! 1. The buffer never holds more than `LONGEST` bytes of the protocol plus one read.
//! 2. A refused frame costs one byte, so that a good frame which begins inside it is still found.
//! 3. Every byte is either part of a frame or counted as garbage.

use serde::Serialize;

use crate::ingest::serial::drivers::{Now, Output};

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A sum or exclusive-or over the frame does not match.
    Checksum,
    /// A cyclic redundancy check does not match.
    Crc,
    /// The frame check sequence of an HDLC-like frame does not match.
    FrameCheck,
    /// The byte that must end the frame is another one.
    StopMarker,
    /// The line fell silent inside a frame.
    Incomplete,
    /// An escape byte is followed by one that may not follow it.
    BadEscape,
    /// A block claims more bytes than the frame has.
    TruncatedBlock,
    /// Longer than the protocol or the configuration allows.
    TooLong,
    /// The length field contradicts the frame.
    Length,
    /// The framing is right and the content is not what the format promises.
    Invalid,
    /// A frame number that is not the next one.
    FrameNumber,
    /// A byte that only begins frames stands inside one, or the other way round.
    Sync,
    /// No answer came to what was sent.
    NoAnswer,
}

impl Reason {
    /// The name in telemetry and in the acceptance data.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Checksum => "checksum",
            Reason::Crc => "crc",
            Reason::FrameCheck => "fcs",
            Reason::StopMarker => "stop_marker",
            Reason::Incomplete => "incomplete",
            Reason::BadEscape => "bad_escape",
            Reason::TruncatedBlock => "truncated_block",
            Reason::TooLong => "too_long",
            Reason::Length => "length",
            Reason::Invalid => "invalid",
            Reason::FrameNumber => "frame_number",
            Reason::Sync => "sync",
            Reason::NoAnswer => "no_answer",
        }
    }
}

/// A frame that was refused; holds no byte of it, so that it may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// Why.
    pub reason: Reason,
    /// Which frame of a packet of several, from 0.
    pub frame_index: Option<usize>,
    /// How many bytes were still to come.
    pub need_bytes: Option<usize>,
}

impl From<Reason> for FrameError {
    fn from(reason: Reason) -> Self {
        FrameError {
            reason,
            frame_index: None,
            need_bytes: None,
        }
    }
}

/// What a protocol finds at the front of the bytes received so far.
#[derive(Debug)]
pub enum Step<F> {
    /// The bytes may be the beginning of a frame.
    More,
    /// So many bytes belong to no frame.
    Skip(usize),
    /// So many bytes belong to the line and say nothing (keep-alive, padding, echo).
    Quiet(usize),
    /// A frame of so many bytes.
    Frame(usize, F),
    /// So many bytes looked like a frame and are dropped.
    Refused(usize, FrameError),
}

/// The framing of one protocol.
pub trait Protocol {
    /// A decoded frame.
    type Frame;
    /// Bytes of the longest frame.
    const LONGEST: usize;
    /// Silence in microseconds after which a half frame is given up.
    const HALF_FRAME_US: u64 = 250_000;

    /// What stands at the front of `bytes`, which is never empty.
    fn next(&mut self, bytes: &[u8]) -> Step<Self::Frame>;

    /// Bytes of earlier frames that are kept until the record is complete to which they belong.
    fn joined(&self) -> usize {
        0
    }

    /// The line is gone: a record that is not complete will not be.
    fn forget(&mut self) {}

    /// The same, knowing that the line has fallen silent; never [`Step::More`]. Only the first byte is given up: what looked
    /// like the beginning of a long frame may have been noise in front of a good one.
    fn last(&mut self, _bytes: &[u8]) -> Step<Self::Frame> {
        Step::Refused(1, Reason::Incomplete.into())
    }
}

/// One thing found in the stream.
#[derive(Debug, PartialEq)]
pub enum Found<F> {
    /// A frame.
    Frame(F),
    /// Bytes that are no frame: what was before and what comes after are not contiguous.
    Gap,
}

/// Bytes in, frames out.
#[derive(Debug, Default)]
pub struct Framer<P> {
    /// The protocol, which may hold state of its own.
    pub protocol: P,
    buffer: Vec<u8>,
    silence_ends: Option<u64>,
}

impl<P: Protocol> Framer<P> {
    /// A framer with nothing received.
    pub fn new(protocol: P) -> Self {
        Framer {
            protocol,
            buffer: Vec::new(),
            silence_ends: None,
        }
    }

    /// When a half frame is given up, in monotonic microseconds.
    pub fn deadline(&self) -> Option<u64> {
        self.silence_ends
    }

    /// Bytes held back because their frame, or the record that it belongs to, is not complete.
    pub fn held(&self) -> usize {
        self.buffer.len() + self.protocol.joined()
    }

    /// Takes bytes and returns what they complete, in order; what is refused is counted in `out`.
    pub fn push(&mut self, bytes: &[u8], now: Now, out: &mut Output) -> Vec<Found<P::Frame>> {
        let mut found = Vec::new();
        for piece in bytes.chunks(P::LONGEST.max(64)) {
            self.buffer.extend_from_slice(piece);
            self.walk(false, out, &mut found);
        }
        self.silence_ends = (!self.buffer.is_empty()).then(|| now.monotonic_us + P::HALF_FRAME_US);
        found
    }

    /// Gives up a half frame when the line has been silent for long enough.
    pub fn timeout(&mut self, now: Now, out: &mut Output) -> Vec<Found<P::Frame>> {
        let mut found = Vec::new();
        if self.silence_ends.is_some_and(|end| now.monotonic_us >= end) {
            self.walk(true, out, &mut found);
            self.silence_ends = None;
        }
        found
    }

    /// The line is gone: what is held is brought to its end.
    pub fn close(&mut self, out: &mut Output) -> Vec<Found<P::Frame>> {
        let mut found = Vec::new();
        self.walk(true, out, &mut found);
        self.protocol.forget();
        self.silence_ends = None;
        found
    }

    fn walk(&mut self, silent: bool, out: &mut Output, found: &mut Vec<Found<P::Frame>>) {
        let mut at = 0;
        while let Some(rest) = self.buffer.get(at..).filter(|rest| !rest.is_empty()) {
            let mut step = self.protocol.next(rest);
            if matches!(step, Step::More) {
                if silent {
                    step = self.protocol.last(rest);
                } else if rest.len() > P::LONGEST {
                    step = Step::Refused(1, Reason::TooLong.into());
                } else {
                    break;
                }
            }
            let (used, gap) = match step {
                Step::More => (rest.len(), false),
                Step::Skip(n) => (n, true),
                Step::Quiet(n) => (n, false),
                Step::Frame(n, frame) => {
                    found.push(Found::Frame(frame));
                    out.frames += 1;
                    out.frame_bytes += n.min(rest.len()) as u64;
                    (n, false)
                }
                Step::Refused(n, error) => {
                    // One cut frame is one error, however many of its bytes look like a beginning.
                    let again = error.reason == Reason::Incomplete
                        && out
                            .errors
                            .last()
                            .is_some_and(|last| last.reason == Reason::Incomplete);
                    if !again {
                        out.errors.push(error);
                    }
                    (n, true)
                }
            };
            let used = used.clamp(1, rest.len());
            if gap {
                out.garbage += used as u64;
                if !matches!(found.last(), Some(Found::Gap)) {
                    found.push(Found::Gap);
                }
            }
            at += used;
        }
        self.buffer.drain(..at.min(self.buffer.len()));
    }
}

/// What a stretch of bytes is, said frame by frame: for `serial sniff`, and for the acceptance data.
#[derive(Debug, Default)]
pub struct Description {
    /// The frames, decoded completely.
    pub frames: Vec<serde_json::Value>,
    /// What was refused.
    pub errors: Vec<FrameError>,
    /// Bytes that belong to no frame.
    pub skipped: u64,
}

impl Description {
    /// One thing, or bytes that are nothing known.
    pub fn of(frame: Option<serde_json::Value>) -> Self {
        match frame {
            Some(frame) => Description {
                frames: vec![frame],
                ..Description::default()
            },
            None => Description {
                errors: vec![Reason::Invalid.into()],
                ..Description::default()
            },
        }
    }
}

/// Decodes `bytes` as far as they go, as if the line were silent afterwards.
pub fn describe<P: Protocol>(protocol: P, bytes: &[u8]) -> Description
where
    P::Frame: Serialize,
{
    let mut framer = Framer::new(protocol);
    let mut out = Output::default();
    let now = Now {
        monotonic_us: 0,
        wall: None,
    };
    let mut found = framer.push(bytes, now, &mut out);
    found.extend(framer.timeout(
        Now {
            monotonic_us: u64::MAX,
            wall: None,
        },
        &mut out,
    ));
    let frames = found
        .into_iter()
        .filter_map(|one| match one {
            Found::Frame(frame) => serde_json::to_value(frame).ok(),
            Found::Gap => None,
        })
        .collect();
    Description {
        frames,
        errors: out.errors,
        skipped: out.garbage,
    }
}
