//! GE / Datex-Ohmeda S/5 monitors: computer interface (DRI), displayed physiological values.
//!
//! The driver asks for the values every 10 s, and asks again when they stop. The port needs RTS/CTS.
//!
//! Bodies:
//! * `vitals`: `heart_rate_ecg`, `spo2`, `pulse_rate_oximeter`, `body_temperature` (T1), `temperature_2` to `temperature_4`, `etco2_concentration`,
//!   `etco2_pressure`, `fico2_concentration`, `respiratory_rate_co2`, `p1_systolic`, `p1_diastolic`, `p1_mean` and the same of `p2` to `p4` (invasive
//!   pressures; the channel's label is `p1_label`), `ambient_pressure`; `device_time`;
//! * `record`: `nibp_systolic`, `nibp_diastolic`, `nibp_mean` when the cuff has a new result. The monitor repeats a result until the next one,
//!   so the first one after the connection is of `kind` `held`: when it was taken is not known.

use iomt_mapping::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::port::{Listener, Port};
use super::{DriverInfo, Evidence, Flow, Now, Output, Parity, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{byte, i16_le, part, u16_le, u32_le};
use crate::ingest::serial::framing::checksum::sum8;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "datex-dri";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "GE / Datex-Ohmeda S/5 monitors (DRI)",
    settings: PortSettings {
        parity: Parity::Even,
        flow: Flow::RtsCts,
        ..PortSettings::eight_none_one(19_200)
    },
    evidence: Evidence::TwoSources,
    speaks: Speaks::WhenAsked,
    pack: NAME,
    describe: |_, bytes| frames::describe(Framing, bytes),
    commands: || vec![("send displayed values every 10 s", request(INTERVAL_S))],
    create: || Box::new(Port::new(Framing, Dialogue::default())),
};

const FLAG: u8 = 0x7E;
const ESCAPE: u8 = 0x7D;
const HEADER_BYTES: usize = 40;
const INTERVAL_S: i16 = 10;
/// Extension blocks 1 to 3.
const CLASSES: u32 = 0x0E;

/// A request for displayed values at an interval.
fn request(interval_s: i16) -> Vec<u8> {
    let mut record = vec![0; HEADER_BYTES];
    // The length of the record, and the end of the list of sub-records: the first, of type 0, is at 16.
    for (at, value) in [(0, 49), (21, 0xFF)] {
        if let Some(byte) = record.get_mut(at) {
            *byte = value;
        }
    }
    record.push(1);
    record.extend(interval_s.to_le_bytes());
    record.extend(CLASSES.to_le_bytes());
    record.extend([0, 0]);
    stuff(&record)
}

/// A record between flags, with its sum; the sum is of the record before stuffing.
pub fn stuff(record: &[u8]) -> Vec<u8> {
    let mut bytes = vec![FLAG];
    for b in record.iter().copied().chain([sum8(record)]) {
        match b {
            FLAG | ESCAPE => bytes.extend([ESCAPE, b & 0xDF]),
            b => bytes.push(b),
        }
    }
    bytes.push(FLAG);
    bytes
}

/// Records between flags.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 4096;
    const HALF_FRAME_US: u64 = 1_000_000;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) != FLAG {
            return Step::Skip(bytes.iter().position(|b| *b == FLAG).unwrap_or(bytes.len()));
        }
        let Some(length) = bytes.iter().skip(1).position(|b| *b == FLAG) else {
            return Step::More;
        };
        if length == 0 {
            return Step::Quiet(1);
        }
        let Some(mut record) = unstuff(part(bytes, 1, length)) else {
            return Step::Refused(length + 1, Reason::BadEscape.into());
        };
        let check = record.pop();
        if check != Some(sum8(&record)) {
            return Step::Refused(length + 1, Reason::Checksum.into());
        }
        if record.len() < HEADER_BYTES || usize::from(u16_le(&record, 0)) != record.len() {
            return Step::Refused(length + 1, Reason::Length.into());
        }
        // The closing flag may open the next record too.
        Step::Frame(length + 1, decode(&record))
    }

    fn last(&mut self, bytes: &[u8]) -> Step<Frame> {
        match bytes {
            [FLAG] => Step::Quiet(1),
            _ => Step::Refused(1, Reason::Incomplete.into()),
        }
    }
}

fn unstuff(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut record = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(b) = rest.next() {
        record.push(match b {
            ESCAPE => match rest.next()? {
                0x5E => FLAG,
                0x5D => ESCAPE,
                _ => return None,
            },
            b => b,
        });
    }
    Some(record)
}

/// A record, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

fn number(raw: i16, divisor: f64) -> Value {
    if raw < -32_001 {
        Value::Null
    } else {
        json!(f64::from(raw) / divisor)
    }
}

fn decode(record: &[u8]) -> Frame {
    let mut frame = Map::new();
    let mut put = |name: &str, value: Value| {
        frame.insert(name.to_owned(), value);
    };
    put("r_len", record.len().into());
    put("dri_level", byte(record, 3).into());
    put("time_unix", u32_le(record, 6).into());
    let body = part(
        record,
        HEADER_BYTES + usize::from(u16_le(record, 16)),
        record.len(),
    );
    match (u16_le(record, 14), byte(record, 18)) {
        (0, 0) if body.len() == 9 => {
            put("record", "phdb_request".into());
            put("rcrd_type", byte(body, 0).into());
            put("interval_s", i16_le(body, 1).into());
            put("class_bits", u32_le(body, 3).into());
        }
        // Displayed values: the time, then the basic block.
        (0, 1) if body.len() >= 274 => {
            put("record", "phdb".into());
            values(part(body, 4, 270), &mut frame);
        }
        (main, _) => {
            put("record", "other".into());
            put("main_type", main.into());
        }
    }
    Frame(frame)
}

fn values(block: &[u8], frame: &mut Map<String, Value>) {
    let mut put = |name: String, value: Value| {
        frame.insert(name, value);
    };
    let at = |offset: usize, divisor: f64| number(i16_le(block, offset), divisor);
    put("heart_rate_bpm".into(), at(6, 1.0));
    for (channel, offset) in [(1, 16), (2, 30), (3, 44), (4, 58)] {
        put(format!("p{channel}_label"), u16_le(block, offset + 4).into());
        for (index, part) in ["sys", "dia", "mean"].iter().enumerate() {
            put(
                format!("p{channel}_{part}_mmhg"),
                at(offset + 6 + 2 * index, 100.0),
            );
        }
    }
    for (index, part) in ["sys", "dia", "mean"].iter().enumerate() {
        put(format!("nibp_{part}_mmhg"), at(72 + 6 + 2 * index, 100.0));
    }
    for (channel, offset) in [(1, 86), (2, 94), (3, 102), (4, 110)] {
        put(format!("temp{channel}_c"), at(offset + 6, 100.0));
    }
    put("spo2_pct".into(), at(118 + 6, 100.0));
    put("pulse_bpm".into(), at(118 + 8, 1.0));
    let (etco2, ambient) = (at(132 + 6, 100.0), at(132 + 12, 10.0));
    let pressure = etco2
        .as_f64()
        .zip(ambient.as_f64())
        .map(|(percent, mmhg)| (percent * mmhg).round() / 100.0);
    put("etco2_mmhg".into(), json!(pressure));
    put("etco2_pct".into(), etco2);
    put("ambient_mmhg".into(), ambient);
    put("fico2_pct".into(), at(132 + 8, 100.0));
    put("resp_rate_bpm".into(), at(132 + 10, 1.0));
}

const SILENT_US: u64 = 25_000_000;

/// Asks for values and turns them into readings.
#[derive(Debug, Default)]
struct Dialogue {
    ask_again: u64,
    cuff: Option<[Value; 3]>,
}

impl Dialogue {
    fn ask(&mut self, now: Now, out: &mut Output) {
        out.send.push(request(INTERVAL_S));
        self.ask_again = now.monotonic_us + SILENT_US;
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.cuff = None;
        self.ask(now, out);
    }

    fn frame(&mut self, Frame(frame): Frame, now: Now, out: &mut Output) {
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        if member("record") != "phdb" {
            return;
        }
        self.ask_again = now.monotonic_us + SILENT_US;
        let seconds = frame.get("time_unix").and_then(Value::as_i64).unwrap_or(0);
        let device_time =
            Timestamp::from_ticks(seconds * 10_000_000).map(|time| time.to_string().replace('Z', ""));
        let mut body = Body::new(NAME, "vitals").with("device_time", device_time.clone());
        for (from, to) in [
            ("heart_rate_bpm", "heart_rate_ecg"),
            ("spo2_pct", "spo2"),
            ("pulse_bpm", "pulse_rate_oximeter"),
            ("temp1_c", "body_temperature"),
            ("temp2_c", "temperature_2"),
            ("temp3_c", "temperature_3"),
            ("temp4_c", "temperature_4"),
            ("etco2_pct", "etco2_concentration"),
            ("etco2_mmhg", "etco2_pressure"),
            ("fico2_pct", "fico2_concentration"),
            ("resp_rate_bpm", "respiratory_rate_co2"),
        ] {
            body = body.value(to, Some(member(from)));
        }
        for channel in 1..=4 {
            if !member(&format!("p{channel}_mean_mmhg")).is_null() {
                for (from, to) in [("sys", "systolic"), ("dia", "diastolic"), ("mean", "mean")] {
                    body = body.value(
                        &format!("p{channel}_{to}"),
                        Some(member(&format!("p{channel}_{from}_mmhg"))),
                    );
                }
                body.put(&format!("p{channel}_label"), member(&format!("p{channel}_label")));
            }
        }
        if body.has_values() {
            body.put("ambient_pressure", member("ambient_mmhg"));
            out.messages.push(body.message());
        }
        let cuff = ["nibp_sys_mmhg", "nibp_dia_mmhg", "nibp_mean_mmhg"].map(member);
        let changed = self.cuff.as_ref() != Some(&cuff);
        if changed && !cuff.iter().any(Value::is_null) {
            let kind = if self.cuff.is_some() { "record" } else { "held" };
            let [systolic, diastolic, mean] = cuff.clone();
            let body = Body::new(NAME, kind)
                .with("device_time", device_time)
                .value("nibp_systolic", Some(systolic))
                .value("nibp_diastolic", Some(diastolic))
                .value("nibp_mean", Some(mean));
            out.messages.push(body.message());
        }
        self.cuff = Some(cuff);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.ask_again)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        out.errors.push(Reason::NoAnswer.into());
        self.ask(now, out);
    }
}
