//! Oridion / Medtronic Capnostream 20: CO2 waveform and numerics. One source.
//!
//! The driver opens the communication, starts the real-time data and tells every 4 s that the link is active.
//!
//! Bodies:
//! * `vitals`: `etco2_pressure` and `fico2_pressure` mm[Hg] (kPa is converted), or `etco2_concentration` and `fico2_concentration` %; `respiratory_rate_co2`, `spo2`,
//!   `pulse_rate_oximeter`, `co2_alarms`, `spo2_alarms` (bits of the device);
//! * `waveform` `co2_waveform`, 20 Hz, mm[Hg], only while the device measures in this unit: how it scales the others is not known.
//!
//! `status`: `no_breath`, `sensor_disconnected`, `off_patient`, `no_pulse`, `calibration`, `flow_error`, `pump_off`, `battery`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, bit, byte, part, u32_be};
use crate::ingest::serial::framing::checksum::{to_hex, xor8};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "capnostream";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Oridion / Medtronic Capnostream 20",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::OneSource,
    speaks: Speaks::WhenAsked,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Framing, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        COMMANDS
            .iter()
            .map(|(what, code)| (*what, frame(&[*code])))
            .collect()
    },
    create: || Box::new(Port::new(Framing, Dialogue::default())),
};

const START: u8 = 0x85;
const ESCAPE: u8 = 0x80;
const LINK_ACTIVE: u8 = 6;
const COMMANDS: [(&str, u8); 3] = [
    ("open the communication", 1),
    ("send real-time data", 4),
    ("the link is active", LINK_ACTIVE),
];

/// A frame of code and payload.
pub fn frame(content: &[u8]) -> Vec<u8> {
    let mut inner = vec![u8::try_from(content.len()).unwrap_or(0)];
    inner.extend_from_slice(content);
    inner.push(xor8(&inner));
    let mut bytes = vec![START];
    for b in inner {
        match b {
            START => bytes.extend([ESCAPE, 5]),
            ESCAPE => bytes.extend([ESCAPE, 0]),
            b => bytes.push(b),
        }
    }
    bytes
}

fn command_name(bytes: &[u8]) -> Option<Value> {
    let Step::Frame(_, inner) = cut(bytes) else {
        return None;
    };
    let code = byte(&inner, 1);
    let name = match code {
        1 => "enable_comm",
        2 => "disable_comm",
        4 => "start_realtime",
        5 => "stop_realtime",
        6 => "link_active",
        9 => "revision",
        10 => "periodic_message",
        60 => "setup",
        _ => return None,
    };
    Some(json!({"command": name, "code": code}))
}

/// A message, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

/// `85`, length, code, payload, exclusive or; `80` escapes.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 520;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        match cut(bytes) {
            Step::Frame(n, inner) => match decode(byte(&inner, 1), part(&inner, 2, inner.len())) {
                Value::Object(members) => Step::Frame(n, Frame(members)),
                _ => Step::Refused(n, Reason::Length.into()),
            },
            Step::More => Step::More,
            Step::Skip(n) => Step::Skip(n),
            Step::Quiet(n) => Step::Quiet(n),
            Step::Refused(n, error) => Step::Refused(n, error),
        }
    }
}

/// Length, code and payload without escapes and check.
fn cut(bytes: &[u8]) -> Step<Vec<u8>> {
    if byte(bytes, 0) != START {
        return Step::Skip(1);
    }
    let mut inner = Vec::new();
    let mut rest = bytes.iter().copied().enumerate().skip(1);
    while let Some((at, b)) = rest.next() {
        let (used, b) = match b {
            // A start byte is never inside a frame.
            START => return Step::Refused(at, Reason::Incomplete.into()),
            ESCAPE => match rest.next() {
                Some((at, 5)) => (at + 1, START),
                Some((at, 0)) => (at + 1, ESCAPE),
                Some(_) => return Step::Refused(1, Reason::BadEscape.into()),
                None => return Step::More,
            },
            b => (at + 1, b),
        };
        inner.push(b);
        let length = usize::from(byte(&inner, 0));
        if length == 0 {
            return Step::Refused(1, Reason::Length.into());
        }
        if inner.len() == length + 2 {
            let check = inner.pop();
            if check != Some(xor8(&inner)) {
                return Step::Refused(1, Reason::Checksum.into());
            }
            return Step::Frame(used, inner);
        }
    }
    Step::More
}

fn value(raw: u8) -> Option<u8> {
    (raw != 0xFF).then_some(raw)
}

fn decode(code: u8, payload: &[u8]) -> Value {
    let at = |index| byte(payload, index);
    match (code, payload.len()) {
        (0, 4) => {
            let status = at(3);
            let co2 = f64::from(at(1)) + f64::from(at(2)) / 256.0;
            json!({
                "msg": "co2_wave",
                "number": at(0),
                "co2": (status & 0x03 == 0).then_some(co2),
                "fast_status": status,
                "end_of_breath": bit(status, 3),
            })
        }
        (1, 27..) => {
            let unit = match at(25) {
                1 => Some("mm[Hg]"),
                2 => Some("kPa"),
                3 => Some("%"),
                _ => None,
            };
            let co2 = |raw: u8| {
                value(raw).map(|raw| {
                    if unit == Some("mm[Hg]") {
                        json!(raw)
                    } else {
                        json!(f64::from(raw) / 10.0)
                    }
                })
            };
            json!({
                "msg": "numerics",
                "device_time_unix": u32_be(payload, 0),
                "etco2": co2(at(4)),
                "fico2": co2(at(5)),
                "resp_rate_bpm": value(at(6)),
                "spo2_pct": value(at(7)),
                "pulse_bpm": value(at(8)),
                "slow_status": at(9),
                "co2_alarms": at(13),
                "spo2_alarms": at(14),
                "no_breath_s": at(15),
                "co2_unit": unit,
                "ext_status": at(26),
            })
        }
        (4, _) => json!({"msg": "device_id", "text": ascii(payload)}),
        _ => json!({"msg": "other", "code": code, "payload_hex": to_hex(payload)}),
    }
}

/// Bit of the fast status.
const END_OF_BREATH: u64 = 0x08;

const LINK_ACTIVE_US: u64 = 4_000_000;
const SILENT_US: u64 = 10_000_000;

/// Keeps the data coming and turns it into readings.
#[derive(Debug)]
struct Dialogue {
    vitals: Vitals,
    co2: Waveform,
    next_number: Option<u8>,
    /// The device was heard to measure CO2 in mm[Hg].
    millimetres: bool,
    sign: u64,
    ask_again: u64,
}

impl Default for Dialogue {
    fn default() -> Self {
        Dialogue {
            vitals: Vitals::default(),
            co2: Waveform::new(NAME, "co2_waveform", 20_000),
            next_number: None,
            millimetres: false,
            sign: 0,
            ask_again: 0,
        }
    }
}

impl Dialogue {
    fn ask(&mut self, now: Now, out: &mut Output) {
        out.send.extend([frame(&[1]), frame(&[4])]);
        self.sign = now.monotonic_us + LINK_ACTIVE_US;
        self.ask_again = now.monotonic_us + SILENT_US;
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.millimetres = false;
        self.ask(now, out);
    }

    fn frame(&mut self, Frame(frame): Frame, now: Now, out: &mut Output) {
        self.ask_again = now.monotonic_us + SILENT_US;
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        match frame.get("msg").and_then(Value::as_str) {
            Some("co2_wave") => {
                let number = member("number")
                    .as_u64()
                    .and_then(|number| u8::try_from(number).ok())
                    .unwrap_or(0);
                // Every bit but the end of a breath: occlusion, purge, no filter line, ... there is no breath in the sample.
                let status = member("fast_status").as_u64().unwrap_or(0);
                let sample = member("co2")
                    .as_f64()
                    .filter(|_| self.millimetres && status & !END_OF_BREATH == 0);
                if self.next_number.is_some_and(|next| next != number) || sample.is_none() {
                    self.co2.gap(out);
                }
                self.next_number = Some(number.wrapping_add(1));
                if let Some(co2) = sample {
                    self.co2.sample(co2, now, out);
                }
            }
            Some("numerics") => {
                let unit = frame.get("co2_unit").and_then(Value::as_str);
                self.millimetres = unit == Some("mm[Hg]");
                let (suffix, factor) = match unit {
                    Some("kPa") => ("pressure", 7.500_62),
                    Some("%") => ("concentration", 1.0),
                    _ => ("pressure", 1.0),
                };
                let co2 = |name: &str| {
                    frame
                        .get(name)
                        .filter(|_| unit.is_some())
                        .and_then(Value::as_f64)
                        .map(|value| (value * factor * 10.0).round() / 10.0)
                };
                let mut body = Body::new(NAME, "vitals")
                    .value(&format!("etco2_{suffix}"), co2("etco2"))
                    .value(&format!("fico2_{suffix}"), co2("fico2"));
                for (from, to) in [
                    ("resp_rate_bpm", "respiratory_rate_co2"),
                    ("spo2_pct", "spo2"),
                    ("pulse_bpm", "pulse_rate_oximeter"),
                ] {
                    body = body.value(to, Some(member(from)));
                }
                let is_set =
                    |name: &str, mask: u64| member(name).as_u64().is_some_and(|bits| bits & mask != 0);
                let body = body
                    .with("co2_alarms", member("co2_alarms"))
                    .with("spo2_alarms", member("spo2_alarms"))
                    .status(&[
                        (is_set("co2_alarms", 0x01), "no_breath"),
                        (is_set("spo2_alarms", 0x40), "sensor_disconnected"),
                        (is_set("spo2_alarms", 0x20), "off_patient"),
                        (is_set("spo2_alarms", 0x01), "no_pulse"),
                        (is_set("ext_status", 0x01), "calibration"),
                        (is_set("ext_status", 0x02), "flow_error"),
                        (is_set("ext_status", 0x04), "pump_off"),
                        (is_set("ext_status", 0x80), "battery"),
                    ]);
                self.vitals.offer(body, now, out);
            }
            _ => {}
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        self.co2.gap(out);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.sign.min(self.ask_again))
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        if now.monotonic_us >= self.ask_again {
            out.errors.push(Reason::NoAnswer.into());
            self.ask(now, out);
        } else if now.monotonic_us >= self.sign {
            out.send.push(frame(&[LINK_ACTIVE]));
            out.no_answer = true;
            self.sign = now.monotonic_us + LINK_ACTIVE_US;
        }
    }
}
