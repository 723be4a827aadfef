//! OpenBCI Cyton: eight channels at 250 samples a second. No checksum: length, start and stop byte are checked, and the sequence number shows losses.
//!
//! Bodies of kind `waveform`: `channel_1` to `channel_8`, microvolts, 250 Hz.

use serde::Serialize;
use serde_json::{Value, json};

use super::body::Waveform;
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{byte, i16_be};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "openbci-cyton";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "OpenBCI Cyton",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::WhenAsked,
    pack: "",
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || vec![("send data", START.to_vec())],
    create: || Box::new(Port::new(Framing, Reading::default())),
};

const START: &[u8] = b"b";
const MICROVOLTS_PER_COUNT: f64 = 4.5 / 24.0 / 8_388_607.0 * 1e6;

fn command_name(bytes: &[u8]) -> Option<Value> {
    let name = match bytes {
        b"b" => "start_stream",
        b"s" => "stop_stream",
        b"v" => "reset",
        _ => return None,
    };
    Some(json!({"command": name}))
}

/// A sample of all channels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    seq: u8,
    channels_raw: Vec<i32>,
    channel1_uv: f64,
    aux: Vec<i16>,
    accel_g: Option<Vec<f64>>,
    stop_byte: String,
}

fn microvolts(raw: i32) -> f64 {
    (f64::from(raw) * MICROVOLTS_PER_COUNT * 1e4).round() / 1e4
}

/// 33 bytes, `A0` to `Cx`.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 33;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) != 0xA0 {
            return Step::Skip(1);
        }
        let Some(stop) = bytes.get(32).copied() else {
            return Step::More;
        };
        if !(0xC0..=0xC6).contains(&stop) {
            return Step::Refused(1, Reason::StopMarker.into());
        }
        let raw = |channel: usize| {
            let at = 2 + 3 * channel;
            i32::from_be_bytes([byte(bytes, at), byte(bytes, at + 1), byte(bytes, at + 2), 0]) >> 8
        };
        let channels_raw: Vec<i32> = (0..8).map(raw).collect();
        let aux: Vec<i16> = (0..3).map(|n| i16_be(bytes, 26 + 2 * n)).collect();
        let frame = Frame {
            seq: byte(bytes, 1),
            channel1_uv: microvolts(raw(0)),
            channels_raw,
            accel_g: (stop == 0xC0).then(|| aux.iter().map(|raw| f64::from(*raw) / 8000.0).collect()),
            aux,
            stop_byte: format!("{stop:02x}"),
        };
        Step::Frame(33, frame)
    }
}

const SILENT_US: u64 = 2_000_000;

/// Starts the board and turns samples into waveforms.
#[derive(Debug)]
struct Reading {
    channels: [Waveform; 8],
    next_seq: Option<u8>,
    ask_again: u64,
}

impl Default for Reading {
    fn default() -> Self {
        let names = [
            "channel_1",
            "channel_2",
            "channel_3",
            "channel_4",
            "channel_5",
            "channel_6",
            "channel_7",
            "channel_8",
        ];
        Reading {
            channels: names.map(|name| Waveform::new(NAME, name, 250_000)),
            next_seq: None,
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
        if self.next_seq.is_some_and(|next| next != frame.seq) {
            self.gap(now, out);
        }
        self.next_seq = Some(frame.seq.wrapping_add(1));
        for (waveform, raw) in self.channels.iter_mut().zip(frame.channels_raw) {
            waveform.sample(microvolts(raw), now, out);
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
        out.send.push(START.to_vec());
        self.ask_again = now.monotonic_us + SILENT_US;
    }
}
