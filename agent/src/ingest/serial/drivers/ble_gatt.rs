//! Bluetooth LE health characteristics, as a serial bridge prints them: one line per notification, `[ADDRESS ]UUID HEX` (`AA:BB:CC:DD:EE:FF 2A37 103C0004`).
//! The heart rate has two sources, the others one. The driver only listens.
//!
//! Bodies: `heart_rate_sensor` /min, `rr_intervals_ms`, `body_temperature` Cel, `nibp_systolic`, `nibp_diastolic`, `nibp_mean` mm[Hg] (kPa is converted), `nibp_pulse`, `spo2`,
//! `pulse_rate_oximeter`, `body_weight` kg (lb is converted); `address` of the sensor; `device_time` and `time` where the characteristic has one.

use iomt_mapping::phd::{self, NotANumber};
use serde::Serialize;
use serde_json::{Map, Number, Value, json};

use super::body::Body;
use super::clock;
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, bit, byte, part, u16_le};
use crate::ingest::serial::framing::checksum::hex_pair;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "ble-gatt";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Bluetooth LE health sensors behind a serial bridge",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::OneSource,
    speaks: Speaks::AtTimes,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Line, bytes),
        Direction::HostToDevice => Description::of(None),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Line, Reading::default())),
};

/// The short UUIDs that are decoded.
pub const CHARACTERISTICS: [u16; 6] = [0x2A37, 0x2A1C, 0x2A35, 0x2A5E, 0x2A5F, 0x2A9D];

/// IEEE 11073 SFLOAT with the digits that the sensor measured; none for its special values.
pub fn sfloat(raw: u16) -> Option<Number> {
    exact(phd::sfloat16(raw))
}

/// IEEE 11073 FLOAT with the digits that the sensor measured; none for its special values.
pub fn float(bytes: [u8; 4]) -> Option<Number> {
    exact(phd::float32(u32::from_le_bytes(bytes)))
}

fn exact(decimal: Result<String, NotANumber>) -> Option<Number> {
    serde_json::from_str(&decimal.ok()?).ok()
}

fn time(bytes: &[u8], at: usize) -> Option<String> {
    let field = |n: usize| byte(bytes, at + n);
    let text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        u16_le(bytes, at),
        field(2),
        field(3),
        field(4),
        field(5),
        field(6)
    );
    clock::parse(&text).map(|_| text)
}

/// The members of a characteristic's value; none when it is too short or not known.
pub fn decode(characteristic: u16, bytes: &[u8]) -> Option<Map<String, Value>> {
    let flags = byte(bytes, 0);
    let mut value = Map::new();
    value.insert("characteristic".into(), format!("{characteristic:04X}").into());
    let mut put = |name: &str, member: Value| {
        value.insert(name.into(), member);
    };
    let need = |length: usize| (bytes.len() >= length).then_some(());
    match characteristic {
        0x2A37 => {
            let wide = bit(flags, 0);
            let mut at = if wide { 3 } else { 2 };
            need(at)?;
            let rate = if wide {
                u16_le(bytes, 1)
            } else {
                u16::from(byte(bytes, 1))
            };
            put("heart_rate_bpm", json!(Some(rate).filter(|rate| *rate != 0)));
            put("contact", json!(bit(flags, 2).then(|| bit(flags, 1))));
            if bit(flags, 3) {
                put("energy_kj", u16_le(bytes, at).into());
                at += 2;
            }
            if bit(flags, 4) {
                let intervals = part(bytes, at, bytes.len()).chunks_exact(2);
                let intervals: Vec<f64> = intervals
                    .map(|two| f64::from(u16_le(two, 0)) * 1000.0 / 1024.0)
                    .collect();
                put("rr_ms", json!(intervals));
            }
        }
        0x2A1C => {
            need(5)?;
            let raw = float([byte(bytes, 1), byte(bytes, 2), byte(bytes, 3), byte(bytes, 4)]);
            if bit(flags, 0) {
                put("temp_f", json!(raw));
                put(
                    "temp_c",
                    json!(
                        raw.and_then(|f| f.as_f64())
                            .map(|f| ((f - 32.0) / 1.8 * 100.0).round() / 100.0)
                    ),
                );
            } else {
                put("temp_c", json!(raw));
            }
            if bit(flags, 1) {
                put("device_time", json!(time(bytes, 5)));
            }
        }
        0x2A35 => {
            need(7)?;
            let unit = if bit(flags, 0) { "kpa" } else { "mmhg" };
            for (index, name) in ["sys", "dia", "mean"].iter().enumerate() {
                put(
                    &format!("{name}_{unit}"),
                    json!(sfloat(u16_le(bytes, 1 + 2 * index))),
                );
            }
            let mut at = 7;
            if bit(flags, 1) {
                put("device_time", json!(time(bytes, at)));
                at += 7;
            }
            if bit(flags, 2) {
                put("pulse_bpm", json!(sfloat(u16_le(bytes, at))));
            }
        }
        0x2A5E | 0x2A5F => {
            need(5)?;
            put("spo2_pct", json!(sfloat(u16_le(bytes, 1))));
            put("pulse_bpm", json!(sfloat(u16_le(bytes, 3))));
            if characteristic == 0x2A5E && bit(flags, 0) {
                put("device_time", json!(time(bytes, 5)));
            }
        }
        0x2A9D => {
            need(3)?;
            // All ones: the measurement did not succeed.
            let raw = Some(u16_le(bytes, 1)).filter(|raw| *raw != 0xFFFF).map(f64::from);
            if bit(flags, 0) {
                put("weight_lb", json!(raw.map(|raw| raw / 100.0)));
                let kilograms = raw.map(|raw| (raw / 100.0 * 0.453_592_37 * 1e4).round() / 1e4);
                put("weight_kg", json!(kilograms));
            } else {
                put("weight_kg", json!(raw.map(|raw| raw * 5.0 / 1000.0)));
            }
            if bit(flags, 1) {
                put("device_time", json!(time(bytes, 3)));
            }
        }
        _ => return None,
    }
    Some(value)
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

/// Lines of a bridge.
#[derive(Debug, Default)]
pub struct Line;

impl Protocol for Line {
    type Frame = Frame;
    const LONGEST: usize = 200;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
            return Step::More;
        };
        let text = ascii(part(bytes, 0, end));
        match parse(text.trim()) {
            Some(Some(frame)) => Step::Frame(end + 1, Frame(frame)),
            Some(None) => Step::Quiet(end + 1),
            None => Step::Refused(end + 1, Reason::Invalid.into()),
        }
    }
}

/// `Some(None)` for a line about something else (`OK+CONN`, a characteristic that is not decoded).
fn parse(text: &str) -> Option<Option<Map<String, Value>>> {
    let words: Vec<&str> = text
        .split([' ', '\t', '='])
        .filter(|word| !word.is_empty())
        .collect();
    let (address, uuid, hex) = match words.as_slice() {
        [] => return Some(None),
        [address, uuid, hex] => (Some(*address), *uuid, *hex),
        [uuid, hex] => (None, *uuid, *hex),
        _ => return text.is_ascii().then_some(None),
    };
    let uuid = uuid.trim_start_matches("0x").trim_end_matches(':');
    let Some(characteristic) = u16::from_str_radix(uuid, 16)
        .ok()
        .filter(|uuid| CHARACTERISTICS.contains(uuid))
    else {
        return (!text.contains('?')).then_some(None);
    };
    let bytes: Option<Vec<u8>> = hex
        .as_bytes()
        .chunks(2)
        .map(|two| hex_pair(byte(two, 0), byte(two, 1)))
        .collect();
    let mut frame = decode(characteristic, &bytes?)?;
    if let Some(address) = address {
        frame.insert("address".into(), address.into());
    }
    Some(Some(frame))
}

/// Turns notifications into readings.
#[derive(Debug)]
struct Reading {
    sent: Seen,
}

/// The memories of several sensors.
const REMEMBERED: usize = 4000;

impl Default for Reading {
    fn default() -> Self {
        Reading {
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, Frame(frame): Frame, _now: Now, out: &mut Output) {
        let number = |name: &str| frame.get(name).and_then(Value::as_f64);
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        let pressure = |name: &str| {
            let converted = number(&format!("{name}_kpa")).map(|kpa| (kpa * 7.500_62 * 10.0).round() / 10.0);
            frame
                .get(&format!("{name}_mmhg"))
                .cloned()
                .or(converted.map(Value::from))
        };
        let uuid = frame.get("characteristic").and_then(Value::as_str).unwrap_or("");
        let live = matches!(uuid, "2A37" | "2A5F");
        let off = member("contact") == false;
        let body = Body::new(NAME, if live { "vitals" } else { "record" })
            .with("address", member("address"))
            .with("time", member("device_time"))
            .with("device_time", member("device_time"))
            .value(
                "heart_rate_sensor",
                Some(member("heart_rate_bpm")).filter(|_| !off),
            )
            .value("rr_intervals_ms", Some(member("rr_ms")).filter(|_| !off))
            .value("body_temperature", Some(member("temp_c")))
            .value("nibp_systolic", pressure("sys"))
            .value("nibp_diastolic", pressure("dia"))
            .value("nibp_mean", pressure("mean"))
            .value("spo2", Some(member("spo2_pct")))
            .value(
                if uuid == "2A35" {
                    "nibp_pulse"
                } else {
                    "pulse_rate_oximeter"
                },
                Some(member("pulse_bpm")),
            )
            .value("body_weight", Some(member("weight_kg")))
            .status(&[(off, "no_contact")]);
        if !body.has_values() {
            return;
        }
        // A measurement with a time of its own is kept until a bridge asks for it, and comes again when it asks again.
        if live || member("device_time").is_null() {
            out.messages.push(body.message());
        } else if let Some(identity) = self.sent.take_new(&Value::Object(frame).to_string()) {
            out.messages.push(body.record(identity));
        }
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_the_sensor_measured() {
        let mut driver = DRIVER.create();
        let now = Now {
            monotonic_us: 0,
            wall: None,
        };
        let mut body = |line: &str| {
            let mut out = Output::default();
            driver.bytes(line.as_bytes(), now, &mut out);
            out.messages
                .pop()
                .map(|message| String::from_utf8(message.body).unwrap())
        };
        for (line, expected) in [
            // Two decimals of a thermometer, one of them zero.
            ("2A1C 00540E00FE\n", "\"body_temperature\":36.68"),
            ("2A1C 00600E00FE\n", "\"body_temperature\":36.80"),
            ("2A1C 00700100FF\n", "\"body_temperature\":36.8"),
            (
                "2A35 007800500060F2\n",
                "\"nibp_systolic\":120,\"nibp_diastolic\":80",
            ),
            ("2A5F 00D8F34800\n", "\"spo2\":98.4"),
        ] {
            let found = body(line).unwrap();
            let after = found
                .split_once(expected)
                .unwrap_or_else(|| panic!("{found} without {expected}"))
                .1;
            assert!(after.starts_with([',', '}']), "{found}");
        }
        assert_eq!(body("2A1C 00FFFF7F00\n"), None, "no number is no reading");
        assert_eq!(body("2A35 00FF07FF07FF07\n"), None);
        assert_eq!(body("2A9D 00FFFF\n"), None, "a weight that did not succeed");
    }
}
