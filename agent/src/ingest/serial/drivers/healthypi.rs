//! ProtoCentral HealthyPi v4 and v5 ("OpenView" packets), and shields with the same envelope.
//!
//! One packet per ECG sample, 125 a second (v4) or 128 (v5); the vital signs in it repeat and leave once a second. There is no checksum:
//! length and stop marker are checked, and the bytes of a marker may stand inside the payload. The v4 packet has a placeholder for
//! blood pressure, which is left out.
//!
//! v5 is a USB port; v4 has 57600 baud, some builds 115200.
//!
//! Bodies:
//! * `vitals`: `heart_rate_ecg`, `respiratory_rate`, `spo2`, `body_temperature`;
//! * `waveform` `ecg_waveform` and `pleth_waveform` (infrared), raw counts without unit.
//!
//! `status`: `lead_off`, `probe_off`.

use serde::Serialize;

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{bit, byte, i16_le, i32_le, part, u16_le};
use crate::ingest::serial::framing::checksum::to_hex;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "healthypi-openview";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "ProtoCentral HealthyPi v4, v5",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(None),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Framing, Reading::default())),
};

/// A packet.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "variant", rename_all = "snake_case")]
pub enum Frame {
    /// 20 bytes.
    V4 {
        /// Counts.
        ecg_raw: i16,
        /// Counts.
        resp_raw: i16,
        /// Counts.
        ppg_ir_raw: i32,
        /// Counts.
        ppg_red_raw: i32,
        /// The vital signs.
        #[serde(flatten)]
        vitals: Values,
        /// A lead is off.
        ecg_lead_off: bool,
        /// The probe is off.
        spo2_probe_off: bool,
    },
    /// 22 bytes.
    V5 {
        /// Counts.
        ecg_raw: i32,
        /// Counts.
        bioz_raw: i32,
        /// The bio-impedance is not new.
        bioz_skip: bool,
        /// Counts.
        ppg_red_raw: i32,
        /// Counts.
        ppg_ir_raw: i32,
        /// The vital signs.
        #[serde(flatten)]
        vitals: Values,
    },
    /// The payload of another board.
    Opaque {
        /// Its bytes.
        payload_hex: String,
    },
}

/// Vital signs of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Values {
    temp_c: Option<f64>,
    spo2_pct: Option<u8>,
    heart_rate_bpm: Option<u8>,
    resp_rate_bpm: Option<u8>,
}

/// `0A FA`, length, `02`, payload, `00 0B`.
#[derive(Debug, Default)]
pub struct Framing;

const LONGEST_PAYLOAD: usize = 64;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = LONGEST_PAYLOAD + 7;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if ![0x0A, 0xFA].starts_with(part(bytes, 0, 2)) {
            return Step::Skip(1);
        }
        if bytes.len() < 5 {
            return Step::More;
        }
        let length = usize::from(u16_le(bytes, 2));
        if length == 0 || length > LONGEST_PAYLOAD || byte(bytes, 4) != 0x02 {
            return Step::Skip(1);
        }
        if bytes.len() < length + 7 {
            return Step::More;
        }
        if part(bytes, length + 5, 2) != [0x00, 0x0B] {
            return Step::Refused(1, Reason::StopMarker.into());
        }
        Step::Frame(length + 7, decode(part(bytes, 5, length)))
    }
}

fn value(raw: u8) -> Option<u8> {
    (raw != 0).then_some(raw)
}

fn decode(payload: &[u8]) -> Frame {
    let at = |index| byte(payload, index);
    match payload.len() {
        20 => Frame::V4 {
            ecg_raw: i16_le(payload, 0),
            resp_raw: i16_le(payload, 2),
            ppg_ir_raw: i32_le(payload, 4),
            ppg_red_raw: i32_le(payload, 8),
            vitals: Values {
                temp_c: Some(u16_le(payload, 12))
                    .filter(|raw| *raw != 0)
                    .map(|raw| f64::from(raw) / 100.0),
                resp_rate_bpm: value(at(14)),
                spo2_pct: value(at(15)),
                heart_rate_bpm: value(at(16)),
            },
            ecg_lead_off: bit(at(19), 0),
            spo2_probe_off: bit(at(19), 1),
        },
        22 => Frame::V5 {
            ecg_raw: i32_le(payload, 0),
            bioz_raw: i32_le(payload, 4),
            bioz_skip: at(8) != 0,
            ppg_red_raw: i32_le(payload, 9),
            ppg_ir_raw: i32_le(payload, 13),
            vitals: Values {
                temp_c: Some(i16_le(payload, 17))
                    .filter(|raw| *raw != 0)
                    .map(|raw| f64::from(raw) / 100.0),
                spo2_pct: value(at(19)),
                heart_rate_bpm: value(at(20)),
                resp_rate_bpm: value(at(21)),
            },
        },
        _ => Frame::Opaque {
            payload_hex: to_hex(payload),
        },
    }
}

/// Turns packets into readings.
#[derive(Debug)]
struct Reading {
    vitals: Vitals,
    waveforms: [[Waveform; 2]; 2],
}

impl Default for Reading {
    fn default() -> Self {
        let pair = |rate| {
            [
                Waveform::new(NAME, "ecg_waveform", rate),
                Waveform::new(NAME, "pleth_waveform", rate),
            ]
        };
        Reading {
            vitals: Vitals::default(),
            waveforms: [pair(125_000), pair(128_000)],
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let [v4, v5] = &mut self.waveforms;
        let (values, lead_off, probe_off) = match frame {
            Frame::V4 {
                ecg_raw,
                ppg_ir_raw,
                vitals,
                ecg_lead_off,
                spo2_probe_off,
                ..
            } => {
                let [ecg, pleth] = v4;
                if ecg_lead_off {
                    ecg.gap(out);
                } else {
                    ecg.sample(ecg_raw, now, out);
                }
                if spo2_probe_off {
                    pleth.gap(out);
                } else {
                    pleth.sample(ppg_ir_raw, now, out);
                }
                (vitals, ecg_lead_off, spo2_probe_off)
            }
            Frame::V5 {
                ecg_raw,
                ppg_ir_raw,
                vitals,
                ..
            } => {
                let [ecg, pleth] = v5;
                ecg.sample(ecg_raw, now, out);
                pleth.sample(ppg_ir_raw, now, out);
                (vitals, false, false)
            }
            Frame::Opaque { .. } => return,
        };
        if self.vitals.rests(now) {
            return;
        }
        let body = Body::new(NAME, "vitals")
            .value("heart_rate_ecg", values.heart_rate_bpm.filter(|_| !lead_off))
            .value("respiratory_rate", values.resp_rate_bpm.filter(|_| !lead_off))
            .value("spo2", values.spo2_pct.filter(|_| !probe_off))
            .value("body_temperature", values.temp_c)
            .status(&[(lead_off, "lead_off"), (probe_off, "probe_off")]);
        self.vitals.offer(body, now, out);
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        for waveform in self.waveforms.iter_mut().flatten() {
            waveform.gap(out);
        }
    }
}
