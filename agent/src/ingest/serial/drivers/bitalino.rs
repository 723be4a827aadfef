//! BITalino (r)evolution board: six channels at 100 samples a second. One source.
//!
//! A frame has no marker; its CRC has four bits only, so frames count after three in a row with right CRC and sequence.
//!
//! Bodies of kind `waveform`: `analog_1` to `analog_4` (0 to 1023), `analog_5` and `analog_6` (0 to 63), 100 Hz. What a channel measures depends on what is plugged in.

use serde::Serialize;
use serde_json::{Value, json};

use super::body::Waveform;
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{byte, part};
use crate::ingest::serial::framing::checksum::crc4;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "bitalino";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "BITalino (r)evolution",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::OneSource,
    speaks: Speaks::WhenAsked,
    pack: "",
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => described(bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        vec![
            ("send 100 samples a second", vec![RATE_100]),
            ("send all six channels", vec![START_ALL]),
        ]
    },
    create: || Box::new(Port::new(Framing::new(6), Reading::default())),
};

const RATE_100: u8 = 0x83;
const START_ALL: u8 = 0xFD;

fn command_name(bytes: &[u8]) -> Option<Value> {
    let &[command] = bytes else { return None };
    Some(match command {
        0x00 => json!({"command": "stop"}),
        0x07 => json!({"command": "version"}),
        rate if rate & 0x3F == 3 => json!({"command": "set_rate", "hz": 10_u32.pow(u32::from(rate >> 6))}),
        start if start & 3 == 1 => {
            let channels: Vec<u8> = (0..6)
                .filter(|n| start >> (n + 2) & 1 == 1)
                .map(|n| n + 1)
                .collect();
            json!({"command": "start", "channels": channels})
        }
        _ => return None,
    })
}

/// A frame of all chosen channels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    channels: u8,
    seq: u8,
    digital: [u8; 4],
    analog: Vec<u16>,
}

/// Frames of a known number of channels.
#[derive(Debug)]
pub struct Framing {
    channels: u8,
    next_seq: Option<u8>,
}

impl Framing {
    /// Frames of 1 to 6 channels.
    pub fn new(channels: u8) -> Self {
        Framing {
            channels,
            next_seq: None,
        }
    }

    fn length(&self) -> usize {
        let n = usize::from(self.channels);
        if n <= 4 {
            (12 + 10 * n).div_ceil(8)
        } else {
            (52 + 6 * (n - 4)).div_ceil(8)
        }
    }

    fn holds(frame: &[u8]) -> bool {
        let Some((last, rest)) = frame.split_last() else {
            return false;
        };
        let covered: Vec<u8> = rest.iter().copied().chain([last & 0xF0]).collect();
        crc4(&covered) == last & 0x0F
    }

    fn decode(&self, frame: &[u8]) -> Frame {
        let last = frame.len() - 1;
        // The bits run from the byte before the last one towards the first.
        let mut bits = frame
            .iter()
            .rev()
            .skip(1)
            .flat_map(|b| (0..8).rev().map(move |n| u16::from(b >> n & 1)));
        let mut take = |count: usize| bits.by_ref().take(count).fold(0, |value, bit| value << 1 | bit);
        let digital = [0; 4].map(|_: u8| u8::try_from(take(1)).unwrap_or(0));
        let analog = (0..self.channels)
            .map(|n| take(if n < 4 { 10 } else { 6 }))
            .collect();
        Frame {
            channels: self.channels,
            seq: byte(frame, last) >> 4,
            digital,
            analog,
        }
    }
}

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 24;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        let length = self.length();
        let frame = part(bytes, 0, length);
        if frame.len() < length {
            return Step::More;
        }
        let seq = |frame: &[u8]| byte(frame, length - 1) >> 4;
        if self.next_seq == Some(seq(frame)) && Self::holds(frame) {
            self.next_seq = Some((seq(frame) + 1) & 15);
            return Step::Frame(length, self.decode(frame));
        }
        if bytes.len() < 3 * length {
            return Step::More;
        }
        let mut three = bytes.chunks_exact(length).take(3);
        let first = seq(frame);
        let in_row = (0..3).all(|n| {
            three
                .next()
                .is_some_and(|f| Self::holds(f) && seq(f) == (first + n) & 15)
        });
        self.next_seq = None;
        if !in_row {
            return if Self::holds(frame) {
                Step::Skip(1)
            } else {
                Step::Refused(1, Reason::Crc.into())
            };
        }
        self.next_seq = Some((first + 1) & 15);
        Step::Frame(length, self.decode(frame))
    }
}

/// One or more frames whose number of channels is told by their length.
fn described(bytes: &[u8]) -> Description {
    for channels in [1, 2, 3, 4, 6] {
        let framing = Framing::new(channels);
        let length = framing.length();
        let mut frames = bytes.chunks_exact(length);
        if !bytes.is_empty() && frames.remainder().is_empty() && frames.all(Framing::holds) {
            let found = bytes
                .chunks_exact(length)
                .filter_map(|f| serde_json::to_value(framing.decode(f)).ok());
            return Description {
                frames: found.collect(),
                ..Description::default()
            };
        }
    }
    if bytes.len() <= 8 {
        return Description {
            errors: vec![Reason::Crc.into()],
            skipped: bytes.len() as u64,
            ..Description::default()
        };
    }
    frames::describe(Framing::new(6), bytes)
}

const SILENT_US: u64 = 2_000_000;

/// Starts the board and turns frames into waveforms.
#[derive(Debug)]
struct Reading {
    channels: [Waveform; 6],
    ask_again: u64,
}

impl Default for Reading {
    fn default() -> Self {
        let names = [
            "analog_1", "analog_2", "analog_3", "analog_4", "analog_5", "analog_6",
        ];
        Reading {
            channels: names.map(|name| Waveform::new(NAME, name, 100_000)),
            ask_again: 0,
        }
    }
}

impl Listener<Frame> for Reading {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.timeout(now, out);
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        self.ask_again = now.monotonic_us + SILENT_US;
        for (waveform, sample) in self.channels.iter_mut().zip(frame.analog) {
            waveform.sample(sample, now, out);
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        for waveform in &mut self.channels {
            waveform.gap(out);
        }
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.ask_again)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        out.send.extend([vec![RATE_100], vec![START_ALL]]);
        self.ask_again = now.monotonic_us + SILENT_US;
    }
}
