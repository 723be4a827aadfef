//! Zephyr BioHarness 3, BioPatch and HxM over Bluetooth serial port.
//!
//! At the start the driver switches summary, ECG, breathing and R-R packets on, then gives a sign of life every second; without
//! data it asks again. The HxM sends by itself.
//!
//! Bodies:
//! * `vitals`: `heart_rate_ecg`, `respiratory_rate`, `skin_temperature`, `posture_deg`, `activity_vmu`, `peak_accel_g`, `battery`,
//!   `heart_rate_confidence`; of the HxM also `distance_m`, `speed_m_s`, `strides`; `device_time`;
//! * `beats`: `rr_intervals_ms`, the intervals that ended since the last packet;
//! * `waveform` `ecg_waveform` (250 Hz) and `breathing_waveform` (18 Hz), 10 bit around 0, without unit.

use serde::Serialize;
use serde_json::json;

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{byte, i16_le, part, u16_le, u32_le};
use crate::ingest::serial::framing::checksum::{crc8_maxim, to_hex};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "zephyr";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Zephyr BioHarness 3, BioPatch, HxM",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::WhenAsked,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        COMMANDS
            .iter()
            .map(|(what, id, payload)| (*what, command(*id, payload)))
            .collect()
    },
    create: || Box::new(Port::new(Framing, Reading::default())),
};

const SIGN_OF_LIFE: u8 = 0x23;
const COMMANDS: [(&str, u8, &[u8]); 5] = [
    ("send a summary every second", 0xBD, &[1, 0]),
    ("send the ECG", 0x16, &[1]),
    ("send the breathing waveform", 0x15, &[1]),
    ("send R-R intervals", 0x19, &[1]),
    ("sign of life", SIGN_OF_LIFE, &[]),
];

fn command(id: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x02, id, u8::try_from(payload.len()).unwrap_or(0)];
    bytes.extend_from_slice(payload);
    bytes.extend([crc8_maxim(payload), 0x03]);
    bytes
}

fn command_name(bytes: &[u8]) -> Option<serde_json::Value> {
    let [0x02, id, length, rest @ ..] = bytes else {
        return None;
    };
    let payload = rest.get(..usize::from(*length))?;
    if rest.get(payload.len()..)? != [crc8_maxim(payload), 0x03] {
        return None;
    }
    let stream = match id {
        0x14 => Some("general"),
        0x15 => Some("breathing"),
        0x16 => Some("ecg"),
        0x19 => Some("rr"),
        0x1E => Some("accel"),
        _ => None,
    };
    let name = match (stream, payload) {
        (Some(stream), [0]) => format!("{stream}_off"),
        (Some(stream), _) => format!("{stream}_on"),
        (None, &[low, high]) if *id == 0xBD => match u16::from_le_bytes([low, high]) {
            0 => "summary_off".to_owned(),
            seconds => format!("summary_{seconds}s"),
        },
        (None, []) if *id == SIGN_OF_LIFE => "life_sign".to_owned(),
        _ => "unknown".to_owned(),
    };
    Some(json!({"command": name, "id": format!("{id:02x}")}))
}

/// What the device sends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "msg", rename_all = "snake_case")]
pub enum Frame {
    /// A command was taken.
    Ack {
        /// Of the command.
        id: String,
    },
    /// A command was refused.
    Nak {
        /// Of the command.
        id: String,
    },
    /// Packet 2B.
    Summary(Summary),
    /// Packet 20.
    General(General),
    /// Packet 22.
    Ecg(Samples),
    /// Packet 21.
    Breathing(Samples),
    /// Packet 24.
    Rr {
        /// Sequence number.
        seq: u8,
        /// Time of the first sample.
        device_time: String,
        /// Milliseconds; the sign flips at each new beat.
        rr_raw_ms: Vec<i16>,
    },
    /// Packet 26.
    Hxm(Hxm),
    /// The device is alive.
    LifeSign {},
    /// Another packet.
    Other {
        /// Its id.
        id: String,
        /// Its payload.
        payload_hex: String,
    },
}

/// Packet 2B: summary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    seq: u8,
    device_time: String,
    version: u8,
    heart_rate_bpm: Option<u16>,
    resp_rate_bpm: Option<f64>,
    skin_temp_c: Option<f64>,
    posture_deg: Option<i16>,
    activity_vmu: Option<f64>,
    peak_accel_g: Option<f64>,
    battery_pct: Option<u8>,
    breathing_wave_amplitude_raw: Option<u16>,
    breathing_confidence: Option<u8>,
    heart_rate_confidence_pct: Option<u8>,
}

/// Packet 20: general data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct General {
    seq: u8,
    device_time: String,
    heart_rate_bpm: Option<u16>,
    resp_rate_bpm: Option<f64>,
    skin_temp_c: Option<f64>,
}

/// Samples of 10 bit, middle 512.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Samples {
    seq: u8,
    device_time: String,
    rate_hz: u16,
    samples_raw10: Vec<u16>,
}

/// Packet 26 of the HxM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hxm {
    battery_pct: Option<u8>,
    heart_rate_bpm: Option<u8>,
    beat_number: u8,
    beat_times_ms_mod65536: Vec<u16>,
    distance_m: f64,
    speed_m_s: f64,
    strides: u8,
}

/// `02`, id, length, payload, CRC-8, end byte.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 5 + 255;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) != 0x02 {
            return Step::Skip(1);
        }
        let &[_, id, length, ..] = bytes else {
            return Step::More;
        };
        let whole = usize::from(length) + 5;
        if bytes.len() < whole {
            return Step::More;
        }
        let payload = part(bytes, 3, usize::from(length));
        let end = byte(bytes, whole - 1);
        if !matches!(end, 0x03 | 0x06 | 0x15) {
            return Step::Refused(1, Reason::StopMarker.into());
        }
        if crc8_maxim(payload) != byte(bytes, whole - 2) {
            return Step::Refused(1, Reason::Crc.into());
        }
        Step::Frame(whole, decode(id, end, payload))
    }
}

fn no_u16(value: u16) -> Option<u16> {
    (value != u16::MAX).then_some(value)
}

fn no_i16(value: i16) -> Option<i16> {
    (value != i16::MIN).then_some(value)
}

fn no_u8(value: u8) -> Option<u8> {
    (value != u8::MAX).then_some(value)
}

fn device_time(payload: &[u8]) -> String {
    let ms = u32_le(payload, 5);
    let (seconds, ms) = (ms / 1000, ms % 1000);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}",
        u16_le(payload, 1),
        byte(payload, 3),
        byte(payload, 4),
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        ms
    )
}

/// 10-bit samples, packed from the least significant bit on.
fn ten_bit(bytes: &[u8], count: usize) -> Vec<u16> {
    (0..count)
        .map(|index| {
            let bit = index * 10;
            u16_le(bytes, bit / 8) >> (bit % 8) & 0x3FF
        })
        .collect()
}

fn decode(id: u8, end: u8, payload: &[u8]) -> Frame {
    let hex = || format!("{id:02x}");
    let seq = byte(payload, 0);
    match (id, end, payload.len()) {
        (_, 0x06, _) => Frame::Ack { id: hex() },
        (_, 0x15, _) => Frame::Nak { id: hex() },
        (0x2B, _, 53..) => Frame::Summary(Summary {
            seq,
            device_time: device_time(payload),
            version: byte(payload, 9),
            heart_rate_bpm: no_u16(u16_le(payload, 10)),
            resp_rate_bpm: no_u16(u16_le(payload, 12)).map(|tenths| f64::from(tenths) / 10.0),
            skin_temp_c: no_i16(i16_le(payload, 14)).map(|tenths| f64::from(tenths) / 10.0),
            posture_deg: no_i16(i16_le(payload, 16)),
            activity_vmu: no_u16(u16_le(payload, 18)).map(|hundredths| f64::from(hundredths) / 100.0),
            peak_accel_g: no_u16(u16_le(payload, 20)).map(|hundredths| f64::from(hundredths) / 100.0),
            battery_pct: no_u8(byte(payload, 24)),
            breathing_wave_amplitude_raw: no_u16(u16_le(payload, 25)),
            breathing_confidence: no_u8(byte(payload, 29)),
            heart_rate_confidence_pct: no_u8(byte(payload, 34)),
        }),
        (0x20, _, 15..) => Frame::General(General {
            seq,
            device_time: device_time(payload),
            heart_rate_bpm: no_u16(u16_le(payload, 9)),
            resp_rate_bpm: no_u16(u16_le(payload, 11)).map(|tenths| f64::from(tenths) / 10.0),
            skin_temp_c: no_i16(i16_le(payload, 13)).map(|tenths| f64::from(tenths) / 10.0),
        }),
        (0x22, _, 88..) => Frame::Ecg(Samples {
            seq,
            device_time: device_time(payload),
            rate_hz: 250,
            samples_raw10: ten_bit(part(payload, 9, 79), 63),
        }),
        (0x21, _, 32..) => Frame::Breathing(Samples {
            seq,
            device_time: device_time(payload),
            rate_hz: 18,
            samples_raw10: ten_bit(part(payload, 9, 23), 18),
        }),
        (0x24, _, 45..) => Frame::Rr {
            seq,
            device_time: device_time(payload),
            rr_raw_ms: (0..18).map(|index| i16_le(payload, 9 + 2 * index)).collect(),
        },
        (0x26, _, 52..) => Frame::Hxm(Hxm {
            battery_pct: no_u8(byte(payload, 8)),
            heart_rate_bpm: no_u8(byte(payload, 9)).filter(|rate| *rate != 0),
            beat_number: byte(payload, 10),
            beat_times_ms_mod65536: (0..15).map(|index| u16_le(payload, 11 + 2 * index)).collect(),
            distance_m: f64::from(u16_le(payload, 47)) / 16.0,
            speed_m_s: f64::from(u16_le(payload, 49)) / 256.0,
            strides: byte(payload, 51),
        }),
        (SIGN_OF_LIFE, ..) => Frame::LifeSign {},
        _ => Frame::Other {
            id: hex(),
            payload_hex: to_hex(payload),
        },
    }
}

const SIGN_OF_LIFE_US: u64 = 1_000_000;
const SILENT_US: u64 = 5_000_000;

/// Turns packets into readings, and keeps them coming.
#[derive(Debug)]
struct Reading {
    vitals: Vitals,
    ecg: Waveform,
    breathing: Waveform,
    next_seq: [Option<u8>; 2],
    last_rr: i16,
    last_beat: Option<(u8, u16)>,
    sign_of_life: u64,
    ask_again: u64,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            vitals: Vitals::default(),
            ecg: Waveform::new(NAME, "ecg_waveform", 250_000),
            breathing: Waveform::new(NAME, "breathing_waveform", 17_857),
            next_seq: [None; 2],
            last_rr: 0,
            last_beat: None,
            sign_of_life: 0,
            ask_again: 0,
        }
    }
}

impl Reading {
    fn ask(&mut self, now: Now, out: &mut Output) {
        for (_, id, payload) in COMMANDS.iter().filter(|(_, id, _)| *id != SIGN_OF_LIFE) {
            out.send.push(command(*id, payload));
        }
        self.ask_again = now.monotonic_us + SILENT_US;
        self.sign_of_life = now.monotonic_us + SIGN_OF_LIFE_US;
    }

    fn samples(&mut self, which: usize, samples: &Samples, now: Now, out: &mut Output) {
        let waveform = if which == 0 {
            &mut self.ecg
        } else {
            &mut self.breathing
        };
        if let Some(next) = self.next_seq.get_mut(which) {
            if next.is_some_and(|next| next != samples.seq) {
                waveform.gap(out);
            }
            *next = Some(samples.seq.wrapping_add(1));
        }
        for sample in &samples.samples_raw10 {
            waveform.sample(i32::from(*sample) - 512, now, out);
        }
    }

    fn beats(intervals: Vec<u16>, out: &mut Output) {
        if !intervals.is_empty() {
            out.messages.push(
                Body::new(NAME, "beats")
                    .with("rr_intervals_ms", intervals)
                    .message(),
            );
        }
    }

    fn hxm(&mut self, hxm: Hxm, now: Now, out: &mut Output) {
        let new_beats = match self.last_beat {
            Some((number, _)) => usize::from(hxm.beat_number.wrapping_sub(number)).min(14),
            None => 0,
        };
        let times = &hxm.beat_times_ms_mod65536;
        let mut intervals: Vec<u16> = times
            .windows(2)
            .take(new_beats)
            .map(|pair| u16_pair(pair).0.wrapping_sub(u16_pair(pair).1))
            .collect();
        intervals.reverse();
        self.last_beat = times.first().map(|time| (hxm.beat_number, *time));
        Self::beats(intervals, out);
        let body = Body::new(NAME, "vitals")
            .value("heart_rate_ecg", hxm.heart_rate_bpm)
            .with("battery", hxm.battery_pct)
            .with("distance_m", hxm.distance_m)
            .with("speed_m_s", hxm.speed_m_s)
            .with("strides", hxm.strides);
        self.vitals.offer(body, now, out);
    }
}

fn u16_pair(pair: &[u16]) -> (u16, u16) {
    (
        pair.first().copied().unwrap_or(0),
        pair.get(1).copied().unwrap_or(0),
    )
}

impl Listener<Frame> for Reading {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.last_rr = 0;
        self.last_beat = None;
        self.ask(now, out);
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        if !matches!(
            frame,
            Frame::Ack { .. } | Frame::Nak { .. } | Frame::LifeSign {} | Frame::Other { .. }
        ) {
            self.ask_again = now.monotonic_us + SILENT_US;
        }
        match frame {
            Frame::Summary(summary) => {
                let body = Body::new(NAME, "vitals")
                    .with("device_time", summary.device_time)
                    .value(
                        "heart_rate_ecg",
                        summary
                            .heart_rate_bpm
                            .filter(|rate| *rate != 0 && summary.heart_rate_confidence_pct != Some(0)),
                    )
                    .value("respiratory_rate", summary.resp_rate_bpm)
                    .value("skin_temperature", summary.skin_temp_c)
                    .value("posture_deg", summary.posture_deg)
                    .value("activity_vmu", summary.activity_vmu)
                    .with("peak_accel_g", summary.peak_accel_g)
                    .with("battery", summary.battery_pct)
                    .with("heart_rate_confidence", summary.heart_rate_confidence_pct);
                self.vitals.offer(body, now, out);
            }
            Frame::General(general) => {
                let body = Body::new(NAME, "vitals")
                    .with("device_time", general.device_time)
                    .value("heart_rate_ecg", general.heart_rate_bpm.filter(|rate| *rate != 0))
                    .value("respiratory_rate", general.resp_rate_bpm)
                    .value("skin_temperature", general.skin_temp_c);
                self.vitals.offer(body, now, out);
            }
            Frame::Ecg(samples) => self.samples(0, &samples, now, out),
            Frame::Breathing(samples) => self.samples(1, &samples, now, out),
            Frame::Rr { rr_raw_ms, .. } => {
                let mut intervals = Vec::new();
                for raw in rr_raw_ms
                    .into_iter()
                    .filter(|raw| !matches!(*raw, 0 | i16::MIN | -1))
                {
                    if self.last_rr != 0 && (raw < 0) != (self.last_rr < 0) {
                        intervals.push(raw.unsigned_abs());
                    }
                    self.last_rr = raw;
                }
                Self::beats(intervals, out);
            }
            Frame::Hxm(hxm) => self.hxm(hxm, now, out),
            Frame::Ack { .. } | Frame::Nak { .. } | Frame::LifeSign {} | Frame::Other { .. } => {}
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        self.ecg.gap(out);
        self.breathing.gap(out);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.sign_of_life.min(self.ask_again))
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        if now.monotonic_us >= self.ask_again {
            self.ask(now, out);
        } else if now.monotonic_us >= self.sign_of_life {
            out.send.push(command(SIGN_OF_LIFE, &[]));
            out.no_answer = true;
            self.sign_of_life = now.monotonic_us + SIGN_OF_LIFE_US;
        }
    }
}
