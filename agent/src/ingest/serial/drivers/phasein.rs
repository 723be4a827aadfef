//! Phasein and IRMA-style mainstream gas sensors: 20 frames a second. One source. The driver only listens.
//!
//! Bodies:
//! * `vitals`: `etco2_concentration`, `fico2_concentration`, `fio2_measured`, `expired_o2` % (from the inspired and expired blocks), `respiratory_rate_co2`,
//!   `ambient_pressure_kpa`;
//! * `waveform` `co2_concentration_waveform`, 20 Hz, %.
//!
//! `status`: `apnea`, `o2_low`, `o2_replace`, `check_adapter`, `unspecified_accuracy`, `sensor_error`, `o2_calibration`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{bit, byte, part, u16_be};
use crate::ingest::serial::framing::checksum::sum8;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "phasein";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Phasein / IRMA mainstream gas sensors",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::OneSource,
    speaks: Speaks::Always,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(None),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Framing, Reading::default())),
};

const STATUS: [&str; 8] = [
    "breath",
    "apnea",
    "o2_low",
    "o2_replace",
    "check_adapter",
    "unspecified_accuracy",
    "sensor_error",
    "o2_calibration",
];
const GASES: [&str; 5] = ["co2_pct", "n2o_pct", "aa1_pct", "aa2_pct", "o2_pct"];

/// A frame, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

/// `AA 55`, 18 bytes, check that makes their sum 0.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 21;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if ![0xAA, 0x55].starts_with(part(bytes, 0, 2)) {
            return Step::Skip(1);
        }
        if bytes.len() < 21 {
            return Step::More;
        }
        let inner = part(bytes, 2, 19);
        if sum8(inner) != 0 {
            return Step::Refused(1, Reason::Checksum.into());
        }
        match decode(inner) {
            Value::Object(members) => Step::Frame(21, Frame(members)),
            _ => Step::Refused(1, Reason::Invalid.into()),
        }
    }
}

fn decode(inner: &[u8]) -> Value {
    let (id, status) = (byte(inner, 0), byte(inner, 1));
    let words: Vec<&str> = (0u8..)
        .zip(STATUS)
        .filter(|(number, _)| bit(status, *number))
        .map(|(_, word)| word)
        .collect();
    let mut frame = Map::new();
    frame.insert("frame_id".into(), id.into());
    frame.insert("status".into(), json!(words));
    for (index, gas) in GASES.iter().enumerate() {
        let raw = u16_be(inner, 2 + 2 * index);
        frame.insert(
            (*gas).into(),
            json!((raw != 0xFFFF).then(|| f64::from(raw) / 100.0)),
        );
    }
    let slow = part(inner, 12, 6);
    let known = |index: usize| Some(byte(slow, index)).filter(|raw| *raw != 0xFF);
    let block = || {
        let values = GASES.iter().enumerate().map(|(index, gas)| {
            // Tenths, but for oxygen and nitrous oxide, which are whole.
            let whole = matches!(*gas, "o2_pct" | "n2o_pct");
            let value = known(index).map(|raw| {
                if whole {
                    json!(raw)
                } else {
                    json!(f64::from(raw) / 10.0)
                }
            });
            ((*gas).to_owned(), json!(value))
        });
        Value::Object(values.collect())
    };
    match id {
        0 => frame.insert("inspired".into(), block()),
        1 => frame.insert("expired".into(), block()),
        2 => frame.insert("momentary".into(), block()),
        3 => {
            let pressure = u16_be(slow, 4);
            frame.insert(
                "general".into(),
                json!({
                    "resp_rate_bpm": known(0),
                    "seconds_since_breath": known(1),
                    "primary_agent": known(2),
                    "secondary_agent": known(3),
                    "pressure_kpa": (pressure != 0xFFFF).then(|| f64::from(pressure) / 10.0),
                }),
            )
        }
        _ => None,
    };
    Value::Object(frame)
}

/// Turns frames into readings.
#[derive(Debug)]
struct Reading {
    vitals: Vitals,
    co2: Waveform,
    /// The newest values of the slow blocks, by measurement.
    values: Map<String, Value>,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            vitals: Vitals::default(),
            co2: Waveform::new(NAME, "co2_concentration_waveform", 20_000),
            values: Map::new(),
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, Frame(frame): Frame, now: Now, out: &mut Output) {
        match frame.get("co2_pct").and_then(Value::as_f64) {
            Some(sample) => self.co2.sample(sample, now, out),
            None => self.co2.gap(out),
        }
        for (path, name) in [
            ("/inspired/co2_pct", "fico2_concentration"),
            ("/inspired/o2_pct", "fio2_measured"),
            ("/expired/co2_pct", "etco2_concentration"),
            ("/expired/o2_pct", "expired_o2"),
            ("/general/resp_rate_bpm", "respiratory_rate_co2"),
            ("/general/pressure_kpa", "ambient_pressure_kpa"),
        ] {
            let (block, member) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
            if let Some(block) = frame.get(block) {
                self.values
                    .insert(name.into(), block.get(member).cloned().unwrap_or(Value::Null));
            }
        }
        // One round of the slow blocks is ten frames, half a second.
        if frame.get("frame_id").and_then(Value::as_u64) != Some(9) {
            return;
        }
        let mut body = Body::new(NAME, "vitals");
        for (name, value) in std::mem::take(&mut self.values) {
            body = body.value(&name, Some(value));
        }
        let words = frame.get("status").and_then(Value::as_array);
        let words: Vec<Value> = words
            .into_iter()
            .flatten()
            .filter(|word| *word != "breath")
            .cloned()
            .collect();
        if !words.is_empty() {
            body.put("status", words);
        }
        self.vitals.offer(body, now, out);
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        self.co2.gap(out);
    }
}
