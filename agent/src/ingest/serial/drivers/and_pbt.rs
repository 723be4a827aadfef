//! A&D blood-pressure monitors and scales over Bluetooth serial port: UA-767PBT, UC-321PBT, UC-411PBT-C.
//!
//! The device connects after each measurement and sends one message: a header of 60 bytes, then the measurement as text. It is told that the
//! message was accepted (`PWA1`); a message that must not be taken yet is refused (`PWA0`), and the device sends it again: a measurement older
//! than a minute, while the gateway does not know the time.
//!
//! Bodies, all of kind `record`: `nibp_systolic`, `nibp_diastolic`, `nibp_mean`, `nibp_pulse`; or `body_weight` (kg, converted from lb), `body_fat`,
//! `impedance`, `muscle`, `body_water`, `basal_metabolism` as the scale gives them; `time` (from the clock of the device, which says in the same message
//! when it sent it), `device_time`, `meter_serial`, `battery_v`, `model`. `status`: `measurement_invalid`, `unstable`, `battery_low`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::clock::{self, Offset};
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{Description, Direction, DriverInfo, Evidence, FrameError, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, byte, part, u16_le, u32_le};
use crate::ingest::serial::framing::checksum::hex_pair;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "and-pbt";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "A&D UA-767PBT, UC-321PBT, UC-411PBT-C",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    speaks: Speaks::AtTimes,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        vec![
            ("the message was accepted", ACCEPT.to_vec()),
            ("send the message again", REJECT.to_vec()),
        ]
    },
    create: || Box::new(Port::new(Framing, Reading::default())),
};

const ACCEPT: &[u8] = b"PWA1";
const REJECT: &[u8] = b"PWA0";

fn command_name(bytes: &[u8]) -> Option<Value> {
    let name = match bytes {
        b"PWA1" => "accept",
        b"PWA0" => "reject",
        b"PWCAPI" => "connect",
        b"PWRQPI" => "request",
        _ => return None,
    };
    Some(json!({"command": name}))
}

const HEADER_BYTES: usize = 60;
const LONGEST_PAYLOAD: usize = 256;
const BLOOD_PRESSURE: u16 = 767;

/// A message, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

/// Header with length, payload.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = HEADER_BYTES + LONGEST_PAYLOAD;
    const HALF_FRAME_US: u64 = 3_000_000;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if ![2, 0].starts_with(part(bytes, 0, 2)) {
            return Step::Skip(1);
        }
        if bytes.len() < 8 {
            return Step::More;
        }
        let length = usize::try_from(u32_le(bytes, 2)).unwrap_or(usize::MAX);
        let Some(model) = model(u16_le(bytes, 6)).filter(|_| (1..=LONGEST_PAYLOAD).contains(&length)) else {
            return Step::Skip(1);
        };
        if bytes.len() < HEADER_BYTES + length {
            return Step::More;
        }
        match decode(
            part(bytes, 0, HEADER_BYTES),
            model,
            part(bytes, HEADER_BYTES, length),
        ) {
            Some(frame) => Step::Frame(HEADER_BYTES + length, Frame(frame)),
            None => Step::Refused(1, Reason::Invalid.into()),
        }
    }

    fn last(&mut self, bytes: &[u8]) -> Step<Frame> {
        let whole = HEADER_BYTES
            + usize::try_from(u32_le(bytes, 2))
                .unwrap_or(0)
                .min(LONGEST_PAYLOAD);
        // With a damaged length, the message that follows was taken for the rest of this one.
        let next = (1..bytes.len()).find(|at| begins(part(bytes, *at, 8)));
        Step::Refused(
            next.unwrap_or(bytes.len()),
            FrameError {
                need_bytes: Some(whole.saturating_sub(bytes.len())),
                ..Reason::Incomplete.into()
            },
        )
    }
}

/// Whether these eight bytes can be the first of a message.
fn begins(bytes: &[u8]) -> bool {
    let length = usize::try_from(u32_le(bytes, 2)).unwrap_or(usize::MAX);
    bytes.len() == 8
        && bytes.starts_with(&[2, 0])
        && model(u16_le(bytes, 6)).is_some()
        && (1..=LONGEST_PAYLOAD).contains(&length)
}

fn model(device: u16) -> Option<&'static str> {
    match device {
        767 => Some("UA-767PBT"),
        321 => Some("UC-321PBT"),
        407 => Some("UC-411PBT-C"),
        _ => None,
    }
}

fn time(header: &[u8], at: usize) -> Option<String> {
    let field = |index| byte(header, at + index);
    let text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        u16_le(header, at),
        field(2),
        field(3),
        field(4),
        field(5),
        field(6)
    );
    clock::parse(&text).map(|_| text)
}

fn decode(header: &[u8], model: &str, payload: &[u8]) -> Option<Map<String, Value>> {
    let device = u16_le(header, 6);
    let battery = i32::from(byte(header, 57));
    let battery = if device == BLOOD_PRESSURE {
        battery * 3 + 230
    } else {
        battery * 2 + 190
    };
    let versions = byte(header, 59);
    let mut frame = match json!({
        "device_type": device,
        "model": model,
        "measured_at": time(header, 9),
        "sent_at": time(header, 16),
        "serial": ascii(part(header, 35, 12)).trim_matches(['\0', ' ']),
        "battery_v": f64::from(battery) / 100.0,
        "firmware": versions >> 3,
        "hardware": versions & 7,
    }) {
        Value::Object(members) => members,
        _ => return None,
    };
    if device == BLOOD_PRESSURE {
        pressure(payload, &mut frame)?;
    } else {
        scale(&ascii(payload), &mut frame)?;
    }
    Some(frame)
}

/// Five pairs of hexadecimal digits: state, systolic minus diastolic, diastolic, pulse, mean.
fn pressure(payload: &[u8], frame: &mut Map<String, Value>) -> Option<()> {
    let values: Vec<u8> = payload
        .chunks_exact(2)
        .map(|pair| hex_pair(byte(pair, 0), byte(pair, 1)))
        .collect::<Option<_>>()?;
    let &[state, difference, diastolic, pulse, mean] = values.first_chunk::<5>()?;
    if state != 0x80 {
        frame.insert("error".into(), "measurement_invalid".into());
        frame.insert("status".into(), format!("{state:02X}").into());
        return Some(());
    }
    frame.insert(
        "sys_mmhg".into(),
        (u16::from(difference) + u16::from(diastolic)).into(),
    );
    frame.insert("dia_mmhg".into(), diastolic.into());
    frame.insert("pulse_bpm".into(), pulse.into());
    frame.insert("mean_mmhg".into(), mean.into());
    Some(())
}

/// Lines `ST,+078.05kg`.
fn scale(text: &str, frame: &mut Map<String, Value>) -> Option<()> {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (tag, value) = line.split_once(',')?;
        let end = value
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | ' ')))
            .unwrap_or(value.len());
        let (digits, unit) = value.split_at_checked(end)?;
        let number: Option<f64> = digits.trim().parse().ok();
        let name = match tag {
            "ST" | "US" => {
                frame.insert("stable".into(), (tag == "ST").into());
                frame.insert("weight_unit".into(), unit.trim().into());
                "weight"
            }
            "RT" => "impedance_ohm",
            "FT" => "fat_pct",
            "HT" => "height",
            "BT" => "basal_metabolism_kcal",
            "MT" => "muscle",
            "WT" => "water",
            "ID" => {
                frame.insert("user".into(), value.trim().into());
                continue;
            }
            _ => continue,
        };
        frame.insert(name.into(), json!(number));
    }
    frame.contains_key("weight").then_some(())
}

const KILOGRAM_PER_POUND: f64 = 0.453_592_37;
const OLD_TICKS: i64 = 60 * 10_000_000;

/// Turns a message into a reading and answers it.
#[derive(Debug)]
struct Reading {
    /// Measurements that were handed over: one comes again when the device has not heard the answer.
    sent: Seen,
}

/// A device keeps what was not accepted: some measurements, of several devices.
const REMEMBERED: usize = 256;

impl Default for Reading {
    fn default() -> Self {
        Reading {
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, Frame(frame): Frame, now: Now, out: &mut Output) {
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        let text = |name: &str| frame.get(name).and_then(Value::as_str);
        let (measured, sent) = (text("measured_at"), text("sent_at"));
        let age = measured
            .and_then(clock::parse)
            .zip(sent.and_then(clock::parse))
            .map(|(m, s)| s.ticks() - m.ticks());
        if now.wall.is_none() && age.is_none_or(|age| age > OLD_TICKS) {
            out.send.push(REJECT.to_vec());
            return;
        }
        out.send.push(ACCEPT.to_vec());
        out.after_commit = true;
        let mut measurement = frame.clone();
        measurement.remove("sent_at");
        let Some(identity) = self.sent.take_new(&Value::Object(measurement).to_string()) else {
            return;
        };
        let offset = now
            .wall
            .zip(sent)
            .and_then(|(wall, sent)| Offset::between(sent, wall));
        let battery = frame.get("battery_v").and_then(Value::as_f64).unwrap_or(0.0);
        let scale = member("device_type") != BLOOD_PRESSURE;
        let unstable = member("stable") == false;
        let weight = frame
            .get("weight")
            .and_then(Value::as_f64)
            .map(|weight| match text("weight_unit") {
                Some("lb") => (weight * KILOGRAM_PER_POUND * 100.0).round() / 100.0,
                _ => weight,
            });
        let mut body = Body::new(NAME, "record")
            .with(
                "time",
                offset
                    .zip(measured)
                    .and_then(|(offset, measured)| offset.utc(measured)),
            )
            .with("device_time", measured)
            .with("meter_serial", text("serial"))
            .with("model", text("model"))
            .with("battery_v", battery)
            .value("body_weight", weight.filter(|_| !unstable));
        for (from, to) in [
            ("sys_mmhg", "nibp_systolic"),
            ("dia_mmhg", "nibp_diastolic"),
            ("mean_mmhg", "nibp_mean"),
            ("pulse_bpm", "nibp_pulse"),
            ("fat_pct", "body_fat"),
            ("impedance_ohm", "impedance"),
            ("muscle", "muscle"),
            ("water", "body_water"),
            ("basal_metabolism_kcal", "basal_metabolism"),
        ] {
            body = body.value(to, Some(member(from)));
        }
        let body = body.status(&[
            (frame.contains_key("error"), "measurement_invalid"),
            (unstable, "unstable"),
            (!scale && battery < 4.6, "battery_low"),
        ]);
        out.messages.push(body.record(identity));
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }

    fn acknowledges(&self) -> bool {
        true
    }
}
