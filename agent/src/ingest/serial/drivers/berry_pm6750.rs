//! Berry PM6750: module for ECG, non-invasive blood pressure, oximetry, temperature and respiration.
//!
//! At the start the driver asks for the firmware version and switches the oximeter's waveform on; it never starts the cuff.
//!
//! Bodies:
//! * `vitals`: `heart_rate_ecg`, `respiratory_rate`, `st_mv`, `arrhythmia_code` (from ECG), or `spo2`, `pulse_rate_oximeter`, or `body_temperature`;
//! * `record`: `nibp_systolic`, `nibp_diastolic`, `nibp_mean`, once per inflation of the cuff that was seen: the module repeats its last result,
//!   which says nothing about when it was taken;
//! * `waveform`: `ecg_waveform_1`, `ecg_waveform_2`, `ecg_waveform_v` (250 Hz; 8 bit around 0; the other four leads follow from I and II),
//!   `pleth_waveform` and `respiration_waveform` (at the rate at which they come, nominal 100 and 250 Hz).
//!
//! `status`: `lead_off`, `weak_signal`. Other status bits are not documented in the sources: `status_raw`.

use serde::Serialize;
use serde_json::json;

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, bit, byte, part};
use crate::ingest::serial::framing::checksum::{sum8, to_hex};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "berry-pm6750";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Berry PM6750 patient monitor module",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        START
            .iter()
            .map(|(what, kind, value)| (*what, command(*kind, *value)))
            .collect()
    },
    create: || Box::new(Port::new(Framing, Reading::default())),
};

const START: [(&str, u8, u8); 2] = [
    ("ask for the firmware version", 0xFC, 0x00),
    ("send the oximeter's waveform", 0xFE, 0x01),
];

fn command(kind: u8, value: u8) -> Vec<u8> {
    let inner = [4, kind, value];
    vec![0x55, 0xAA, 4, kind, value, !sum8(&inner)]
}

fn command_name(bytes: &[u8]) -> Option<serde_json::Value> {
    let &[0x55, 0xAA, 4, kind, value, check] = bytes else {
        return None;
    };
    if check != !sum8(&[4, kind, value]) {
        return None;
    }
    Some(match (kind, value) {
        (0xFC, _) => json!({"command": "firmware_query"}),
        (0xFD, _) => json!({"command": "hardware_query"}),
        (0xFE, 0) => json!({"command": "spo2_wave_off"}),
        (0xFE, _) => json!({"command": "spo2_wave_on"}),
        (0x02, 0) => json!({"command": "nibp_stop"}),
        (0x02, _) => json!({"command": "nibp_start"}),
        _ => json!({"command": "unknown", "type": kind, "value": value}),
    })
}

/// What the module sends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Frame {
    /// One sample of seven leads.
    EcgWave {
        /// I, II, III, aVR, aVL, aVF, V; unsigned around 128.
        leads: Vec<u8>,
    },
    /// Values of the ECG.
    EcgParams {
        /// Weak signal.
        weak_signal: bool,
        /// A lead is off.
        lead_off: bool,
        /// Display gain.
        gain: &'static str,
        /// Filter.
        filter: &'static str,
        /// Per minute.
        heart_rate_bpm: Option<u8>,
        /// Per minute.
        resp_rate_bpm: Option<u8>,
        /// Millivolts.
        st_mv: f64,
        /// Code of the module.
        arrhythmia_code: u8,
    },
    /// State and result of the cuff.
    Nibp {
        /// Not documented.
        status_raw: u8,
        /// Pressure in the cuff.
        cuff_mmhg: u16,
        /// Systolic.
        sys_mmhg: Option<u8>,
        /// Mean.
        mean_mmhg: Option<u8>,
        /// Diastolic.
        dia_mmhg: Option<u8>,
    },
    /// Values of the oximeter.
    Spo2Params {
        /// Not documented.
        status_raw: u8,
        /// Percent.
        spo2_pct: Option<u8>,
        /// Per minute.
        pulse_bpm: Option<u8>,
    },
    /// Temperature.
    Temp {
        /// Not documented.
        status_raw: u8,
        /// Degrees Celsius.
        temp_c: Option<f64>,
    },
    /// A beat in the ECG.
    EcgPeak,
    /// A beat of the pulse.
    Spo2Peak,
    /// Samples of the plethysmogram.
    Spo2Wave {
        /// 8 bit.
        samples: Vec<u8>,
    },
    /// Samples of the respiration.
    RespWave {
        /// 8 bit.
        samples: Vec<u8>,
    },
    /// Text of the firmware.
    Firmware {
        /// As the module says it.
        text: String,
    },
    /// A type that is not known here.
    Other {
        /// Type byte.
        type_code: u8,
        /// Its data.
        data_hex: String,
    },
}

/// `55 AA`, length, type, data, inverted sum.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 42;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if ![0x55, 0xAA].starts_with(part(bytes, 0, 2)) {
            return Step::Skip(1);
        }
        let &[_, _, length, kind, ..] = bytes else {
            return Step::More;
        };
        if !possible(kind, length) {
            return Step::Skip(1);
        }
        let length = usize::from(byte(bytes, 2));
        let whole = part(bytes, 2, length);
        if whole.len() < length {
            return Step::More;
        }
        let inner = part(whole, 0, length - 1);
        if byte(whole, length - 1) != !sum8(inner) {
            return Step::Refused(1, Reason::Checksum.into());
        }
        Step::Frame(length + 2, decode(byte(inner, 1), part(inner, 2, length)))
    }
}

/// Whether a package of this type can have this length: a sum of 8 bits alone would let noise swallow the packages behind it.
fn possible(kind: u8, length: u8) -> bool {
    match kind {
        0x01 => length == 10,
        0x02 | 0x03 => length == 8,
        0x04 | 0x05 => length == 6,
        0x30 | 0x31 => length == 3,
        0xFC..=0xFF => (4..=40).contains(&length),
        _ => (3..=16).contains(&length),
    }
}

fn nonzero(value: u8) -> Option<u8> {
    (value != 0).then_some(value)
}

fn decode(kind: u8, data: &[u8]) -> Frame {
    let at = |index| byte(data, index);
    match (kind, data.len()) {
        (0x01, 7) => Frame::EcgWave { leads: data.to_vec() },
        (0x02, 5) => Frame::EcgParams {
            weak_signal: bit(at(0), 0),
            lead_off: bit(at(0), 1),
            gain: match at(0) >> 2 & 3 {
                0 => "x0.25",
                1 => "x0.5",
                2 => "x1",
                _ => "x2",
            },
            filter: match at(0) >> 4 & 3 {
                0 => "operation",
                1 => "monitor",
                2 => "diagnostic",
                _ => "unknown",
            },
            heart_rate_bpm: nonzero(at(1)),
            resp_rate_bpm: nonzero(at(2)),
            st_mv: f64::from(i8::from_le_bytes([at(3)])) / 100.0,
            arrhythmia_code: at(4),
        },
        (0x03, 5) => Frame::Nibp {
            status_raw: at(0),
            cuff_mmhg: u16::from(at(1)) * 2,
            sys_mmhg: nonzero(at(2)),
            mean_mmhg: nonzero(at(3)),
            dia_mmhg: nonzero(at(4)),
        },
        (0x04, 3) => Frame::Spo2Params {
            status_raw: at(0),
            spo2_pct: nonzero(at(1)).filter(|value| *value != 127),
            pulse_bpm: nonzero(at(2)).filter(|value| *value != 255),
        },
        (0x05, 3) => Frame::Temp {
            status_raw: at(0),
            temp_c: (at(1) != 0 || at(2) != 0)
                .then(|| f64::from(u16::from(at(1)) * 10 + u16::from(at(2))) / 10.0),
        },
        (0x30, 0) => Frame::EcgPeak,
        (0x31, 0) => Frame::Spo2Peak,
        (0xFE, 1..) => Frame::Spo2Wave {
            samples: data.to_vec(),
        },
        (0xFF, 1..) => Frame::RespWave {
            samples: data.to_vec(),
        },
        (0xFC, 1..) => Frame::Firmware { text: ascii(data) },
        _ => Frame::Other {
            type_code: kind,
            data_hex: to_hex(data),
        },
    }
}

/// Turns frames into readings.
#[derive(Debug)]
struct Reading {
    ecg: Vitals,
    oximeter: Vitals,
    temperature: Vitals,
    cuff_was_inflated: bool,
    leads: [(usize, Waveform); 3],
    pleth: Waveform,
    respiration: Waveform,
}

impl Default for Reading {
    fn default() -> Self {
        let lead = |name| Waveform::new(NAME, name, 250_000);
        Reading {
            ecg: Vitals::default(),
            oximeter: Vitals::default(),
            temperature: Vitals::default(),
            cuff_was_inflated: false,
            leads: [
                (0, lead("ecg_waveform_1")),
                (1, lead("ecg_waveform_2")),
                (6, lead("ecg_waveform_v")),
            ],
            pleth: Waveform::new(NAME, "pleth_waveform", 100_000),
            respiration: Waveform::new(NAME, "respiration_waveform", 250_000),
        }
    }
}

impl Listener<Frame> for Reading {
    fn start(&mut self, _now: Now, out: &mut Output) {
        self.cuff_was_inflated = false;
        out.send
            .extend(START.iter().map(|(_, kind, value)| command(*kind, *value)));
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let body = || Body::new(NAME, "vitals");
        match frame {
            Frame::EcgWave { leads } => {
                for (index, waveform) in &mut self.leads {
                    waveform.sample(i16::from(byte(&leads, *index)) - 128, now, out);
                }
            }
            Frame::EcgParams {
                weak_signal,
                lead_off,
                heart_rate_bpm,
                resp_rate_bpm,
                st_mv,
                arrhythmia_code,
                ..
            } => {
                let mut body = body()
                    .value("heart_rate_ecg", heart_rate_bpm.filter(|_| !lead_off))
                    .value("respiratory_rate", resp_rate_bpm.filter(|_| !lead_off))
                    .status(&[(lead_off, "lead_off"), (weak_signal, "weak_signal")]);
                if !lead_off {
                    body.put("st_mv", st_mv);
                    body.put("arrhythmia_code", arrhythmia_code);
                }
                self.ecg.offer(body, now, out);
            }
            Frame::Nibp {
                cuff_mmhg,
                sys_mmhg,
                mean_mmhg,
                dia_mmhg,
                ..
            } => {
                if sys_mmhg.is_none() && cuff_mmhg > 0 {
                    self.cuff_was_inflated = true;
                } else if let (true, Some(systolic), Some(diastolic)) =
                    (self.cuff_was_inflated, sys_mmhg, dia_mmhg)
                {
                    self.cuff_was_inflated = false;
                    let body = Body::new(NAME, "record")
                        .value("nibp_systolic", Some(systolic))
                        .value("nibp_diastolic", Some(diastolic))
                        .value("nibp_mean", mean_mmhg);
                    out.messages.push(body.message());
                }
            }
            Frame::Spo2Params {
                status_raw,
                spo2_pct,
                pulse_bpm,
            } => {
                let body = body()
                    .value("spo2", spo2_pct)
                    .value("pulse_rate_oximeter", pulse_bpm)
                    .with("status_raw", (status_raw != 0).then_some(status_raw));
                self.oximeter.offer(body, now, out);
            }
            Frame::Temp { temp_c, .. } => {
                self.temperature
                    .offer(body().value("body_temperature", temp_c), now, out);
            }
            Frame::Spo2Wave { samples } => {
                // The first byte is the sample; the module appends the bar graph.
                self.pleth.sample(byte(&samples, 0), now, out);
            }
            Frame::RespWave { samples } => self.respiration.sample(byte(&samples, 0), now, out),
            Frame::EcgPeak | Frame::Spo2Peak | Frame::Firmware { .. } | Frame::Other { .. } => {}
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        for (_, waveform) in &mut self.leads {
            waveform.gap(out);
        }
        self.pleth.gap(out);
        self.respiration.gap(out);
    }
}
