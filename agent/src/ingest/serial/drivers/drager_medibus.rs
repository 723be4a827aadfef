//! Draeger ventilators and anaesthesia machines: MEDIBUS slow data.
//!
//! The driver initialises the communication, asks for the device identification, then polls measured data page 1 once a second, which
//! also keeps the link alive. It answers the
//! device's own questions. Bytes with bit 7 set belong to the real-time stream and are taken out, also from the middle of a message.
//! Device menus offer 9600 to 38400 baud, even or no parity; the driver starts with 19200 8E1.
//!
//! Bodies:
//! * `vitals`: `airway_pressure_peak`, `airway_pressure_mean`, `peep`, `airway_pressure_plateau` cm[H2O] (converted from mbar), `tidal_volume`,
//!   `minute_volume`, `resp_rate_total`, `fio2_measured`, `expired_o2` %, `dynamic_compliance` mL/cm[H2O], `etco2_pressure` (converted from kPa where
//!   the device measures so), `etco2_concentration`, `fico2_concentration`, `fico2_pressure`, `spo2`, `pulse_rate_oximeter`, `respiratory_rate_co2`,
//!   `airway_temperature` Cel; `device` (name and revision).

use serde::Serialize;

use super::body::{Body, EverySecond};
use super::clock;
use super::port::{Listener, Port};
use super::{Direction, DriverInfo, Evidence, Now, Output, Parity, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, byte, part};
use crate::ingest::serial::framing::checksum::{hex_pair, sum8, to_hex};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "drager-medibus";
const ESC: u8 = 0x1B;
const SOH: u8 = 0x01;
const CR: u8 = 0x0D;

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Draeger Evita, V500, Apollo and other MEDIBUS devices",
    settings: PortSettings {
        parity: Parity::Even,
        ..PortSettings::eight_none_one(19_200)
    },
    evidence: Evidence::TwoSources,
    speaks: Speaks::WhenAsked,
    pack: NAME,
    describe: |direction, bytes| {
        let side = if direction == Direction::DeviceToHost {
            Side::Both
        } else {
            Side::Command
        };
        frames::describe(Framing { side }, bytes)
    },
    commands: || {
        let mut list: Vec<_> = COMMANDS
            .iter()
            .map(|(what, code)| (*what, message(ESC, *code, "")))
            .collect();
        list.push((
            "identify the gateway when asked",
            message(SOH, IDENTIFY, IDENTITY),
        ));
        list.push((
            "echo of what the device asks (any code, no data)",
            message(SOH, NO_OPERATION, ""),
        ));
        list
    },
    create: || Box::new(Port::new(Framing { side: Side::Both }, Dialogue::default())),
};

const INITIALISE: u8 = 0x51;
const IDENTIFY: u8 = 0x52;
const NO_OPERATION: u8 = 0x30;
const PAGE_1: u8 = 0x24;
const PAGE_2: u8 = 0x2B;
const COMMANDS: [(&str, u8); 3] = [
    ("initialise the communication", INITIALISE),
    ("ask for the device identification", IDENTIFY),
    ("ask for measured data, page 1", PAGE_1),
];
const IDENTITY: &str = "0000'BEDSIDE AGENT'01.00:03.00";

/// A message: start byte, code, data, check, CR.
fn message(start: u8, code: u8, data: &str) -> Vec<u8> {
    let mut bytes = vec![start, code];
    bytes.extend_from_slice(data.as_bytes());
    let check = sum8(&bytes);
    bytes.extend_from_slice(format!("{check:02X}\r").as_bytes());
    bytes
}

/// Whose messages are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// Answers and questions of the device.
    #[default]
    Both,
    /// Commands only.
    Command,
}

/// A message, and real-time bytes that stood inside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Frame {
    /// A message in one piece.
    Slow(Slow),
    /// A message with bytes of the real-time stream in it.
    Mixed {
        /// The message.
        slow: Slow,
        /// The others, as hexadecimal text.
        fast_bytes: String,
    },
}

/// A slow message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slow {
    kind: &'static str,
    code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_cp1: Option<Vec<Item>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_cp2: Option<Vec<Item>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alarms: Option<Vec<Alarm>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Vec<Item>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_time: Option<String>,
}

/// A measured value or a setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Item {
    code: String,
    name: &'static str,
    value: Option<f64>,
    unit: &'static str,
}

/// An alarm that is active.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alarm {
    priority: String,
    code: String,
    phrase: String,
}

/// Code of page 1, name, unit on the wire.
const MEASURED: [(u8, &str, &str); 35] = [
    (0x05, "breathing_pressure", "mbar"),
    (0x06, "compliance", "mL/mbar"),
    (0x07, "compliance", "mL/mbar"),
    (0x08, "resistance", "mbar/(L/s)"),
    (0x6B, "ambient_pressure", "mbar"),
    (0x71, "minimum_pressure", "mbar"),
    (0x72, "occlusion_pressure", "mbar"),
    (0x73, "mean_pressure", "mbar"),
    (0x74, "plateau_pressure", "mbar"),
    (0x78, "peep", "mbar"),
    (0x79, "intrinsic_peep", "mbar"),
    (0x7D, "peak_pressure", "mbar"),
    (0x82, "tidal_volume", "mL"),
    (0x88, "tidal_volume", "mL"),
    (0xB5, "spontaneous_respiratory_rate", "/min"),
    (0xB7, "spontaneous_minute_volume", "L/min"),
    (0xB8, "minute_volume", "L/min"),
    (0xB9, "minute_volume", "L/min"),
    (0xC1, "airway_temperature", "Cel"),
    (0xD5, "respiratory_rate_co2", "/min"),
    (0xD6, "respiratory_rate", "/min"),
    (0xD7, "respiratory_rate", "/min"),
    (0xD9, "respiratory_rate_derived", "/min"),
    (0xDA, "inspired_co2", "%"),
    (0xDB, "end_tidal_co2", "%"),
    (0xE1, "pulse_rate", "/min"),
    (0xE3, "end_tidal_co2", "kPa"),
    (0xE5, "inspired_co2", "mm[Hg]"),
    (0xE6, "end_tidal_co2", "mm[Hg]"),
    (0xE7, "ie_inspiratory_part", ""),
    (0xE8, "ie_expiratory_part", ""),
    (0xEB, "oxygen_saturation", "%"),
    (0xEF, "expired_o2", "%"),
    (0xF0, "inspired_o2", "%"),
    (0xFF, "inspired_co2", "kPa"),
];

const CMH2O_PER_MBAR: f64 = 1.019_72;
const MMHG_PER_KPA: f64 = 7.500_62;

/// The measurement that a code becomes, and its factor.
fn measurement(code: u8) -> Option<(&'static str, f64)> {
    Some(match code {
        0x06 | 0x07 => ("dynamic_compliance", 1.0 / CMH2O_PER_MBAR),
        0x73 => ("airway_pressure_mean", CMH2O_PER_MBAR),
        0x74 => ("airway_pressure_plateau", CMH2O_PER_MBAR),
        0x78 => ("peep", CMH2O_PER_MBAR),
        0x7D => ("airway_pressure_peak", CMH2O_PER_MBAR),
        0x82 | 0x88 => ("tidal_volume", 1.0),
        0xB8 | 0xB9 => ("minute_volume", 1.0),
        0xC1 => ("airway_temperature", 1.0),
        0xD5 => ("respiratory_rate_co2", 1.0),
        // D7 stands in where a device has no D6; see `readings`.
        0xD6 | 0xD7 => ("resp_rate_total", 1.0),
        0xDA => ("fico2_concentration", 1.0),
        0xDB => ("etco2_concentration", 1.0),
        0xE1 => ("pulse_rate_oximeter", 1.0),
        0xE3 => ("etco2_pressure", MMHG_PER_KPA),
        0xE5 => ("fico2_pressure", 1.0),
        0xE6 => ("etco2_pressure", 1.0),
        0xEB => ("spo2", 1.0),
        0xEF => ("expired_o2", 1.0),
        0xF0 => ("fio2_measured", 1.0),
        0xFF => ("fico2_pressure", MMHG_PER_KPA),
        _ => return None,
    })
}

/// Cuts messages, and takes the real-time stream out of them.
#[derive(Debug, Default)]
pub struct Framing {
    side: Side,
}

/// 251 bytes of data, code, check and CR, and twice as many real-time bytes in between.
const LONGEST: usize = 3 * 256;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = LONGEST;
    const HALF_FRAME_US: u64 = 1_500_000;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        let first = byte(bytes, 0);
        match first {
            0x80.. | 0x11 | 0x13 => return Step::Quiet(1),
            ESC | SOH if self.side == Side::Both || first == ESC => {}
            _ => return Step::Skip(1),
        }
        let mut slow = vec![first];
        let mut fast = Vec::new();
        for (index, b) in bytes.iter().copied().enumerate().skip(1) {
            match b {
                0x80.. => fast.push(b),
                0x11 | 0x13 => {}
                ESC | SOH => return Step::Refused(index, Reason::Incomplete.into()),
                CR => {
                    return match decode(&slow) {
                        Ok(slow) if fast.is_empty() => Step::Frame(index + 1, Frame::Slow(slow)),
                        Ok(slow) => Step::Frame(
                            index + 1,
                            Frame::Mixed {
                                slow,
                                fast_bytes: to_hex(&fast),
                            },
                        ),
                        Err(reason) => Step::Refused(index + 1, reason.into()),
                    };
                }
                _ => slow.push(b),
            }
            if slow.len() > 256 {
                return Step::Refused(index, Reason::TooLong.into());
            }
        }
        Step::More
    }
}

fn decode(slow: &[u8]) -> Result<Slow, Reason> {
    let [start, code, .., high, low] = slow else {
        return Err(Reason::Length);
    };
    let content = part(slow, 0, slow.len() - 2);
    if hex_pair(*high, *low) != Some(sum8(content)) {
        return Err(Reason::Checksum);
    }
    let data = part(content, 2, content.len());
    let response = *start == SOH;
    let page = |wanted: u8, width: usize| {
        (response && *code == wanted && data.len().is_multiple_of(width + 2))
            .then(|| data.chunks_exact(width + 2).filter_map(item).collect::<Vec<_>>())
    };
    let (measured_cp1, measured_cp2, settings) = (page(PAGE_1, 4), page(PAGE_2, 4), page(0x29, 5));
    let alarms = (response && matches!(*code, 0x27 | 0x2E) && data.len().is_multiple_of(ALARM_BYTES))
        .then(|| data.chunks_exact(ALARM_BYTES).map(alarm).collect::<Vec<_>>());
    let plain = measured_cp1.is_none() && measured_cp2.is_none() && settings.is_none() && alarms.is_none();
    // Names and units are those of page 1.
    let unnamed = |items: Vec<Item>| {
        let unnamed = |item| Item {
            name: "",
            unit: "",
            ..item
        };
        items.into_iter().map(unnamed).collect()
    };
    Ok(Slow {
        kind: if response { "response" } else { "command" },
        code: format!("{code:02X}"),
        body: plain.then(|| ascii(data)),
        device_time: if response && *code == 0x28 {
            device_time(&ascii(data))
        } else {
            None
        },
        measured_cp1,
        measured_cp2: measured_cp2.map(unnamed),
        alarms,
        settings: settings.map(unnamed),
    })
}

/// Priority, code and a phrase of 12 characters.
const ALARM_BYTES: usize = 15;

fn alarm(record: &[u8]) -> Alarm {
    let text = |at: usize, length: usize| ascii(part(record, at, length)).trim().to_owned();
    Alarm {
        priority: text(0, 1),
        code: text(1, 2),
        phrase: text(3, 12),
    }
}

/// `14:30:15` and `5-MRZ-24`, with or without a space between: months are German, and were seen in English.
fn device_time(text: &str) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "JAN", "FEB", "MRZ", "APR", "MAI", "JUN", "JUL", "AUG", "SEP", "OKT", "NOV", "DEZ",
    ];
    let (time, date) = text.split_at_checked(8)?;
    let &[day, month, year] = date.trim().split('-').collect::<Vec<_>>().first_chunk::<3>()?;
    let month = match month {
        "MAR" => "MRZ",
        "MAY" => "MAI",
        "OCT" => "OKT",
        "DEC" => "DEZ",
        month => month,
    };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let (day, year): (u32, u32) = (day.trim().parse().ok()?, year.parse().ok()?);
    let text = format!("20{year:02}-{month:02}-{day:02}T{time}");
    clock::parse(&text).map(|_| text)
}

fn item(record: &[u8]) -> Option<Item> {
    let code = hex_pair(byte(record, 0), byte(record, 1))?;
    let (name, unit) = MEASURED
        .iter()
        .find(|(known, ..)| *known == code)
        .map_or(("unknown", ""), |(_, name, unit)| (*name, *unit));
    let text = ascii(part(record, 2, record.len()));
    Some(Item {
        code: format!("{code:02X}"),
        name,
        value: text.trim().parse().ok(),
        unit,
    })
}

/// The next poll follows the answer after so long.
const PAUSE_US: u64 = 200_000;
/// Between the beginnings of two rounds.
const ROUND_US: u64 = 1_000_000;
/// The device drops the link after 3 s of silence; an answer that is not there after so long will not come.
const ANSWER_US: u64 = 2_500_000;

/// What is said next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Next {
    #[default]
    Initialise,
    Identify,
    Page1,
}

/// Polls the device.
#[derive(Debug, Default)]
struct Dialogue {
    next: Next,
    at: u64,
    waiting: Option<u8>,
    round: u64,
    device: Option<String>,
    second: EverySecond,
}

impl Dialogue {
    fn say(&mut self, now: Now, out: &mut Output) {
        let code = match self.next {
            Next::Initialise => INITIALISE,
            Next::Identify => IDENTIFY,
            Next::Page1 => {
                self.round = now.monotonic_us;
                PAGE_1
            }
        };
        out.send.push(message(ESC, code, ""));
        self.waiting = Some(code);
        self.at = now.monotonic_us + ANSWER_US;
    }

    fn answered(&mut self, code: &str, now: Now) {
        if self
            .waiting
            .is_none_or(|waiting| format!("{waiting:02X}") != code)
        {
            return;
        }
        self.waiting = None;
        self.at = now.monotonic_us + PAUSE_US;
        self.next = match self.next {
            Next::Initialise => Next::Identify,
            Next::Identify | Next::Page1 => {
                self.at = self.at.max(self.round + ROUND_US);
                Next::Page1
            }
        };
    }

    fn readings(&mut self, items: &[Item], now: Now, out: &mut Output) {
        if !self.second.due(now) {
            return;
        }
        let mut body = Body::new(NAME, "vitals");
        let has = |code: &str| items.iter().any(|item| item.code == code && item.value.is_some());
        // Of two ways to say the same the more exact one counts, wherever it stands.
        let lesser = [
            ("D7", "D6"),
            ("B8", "B9"),
            ("88", "82"),
            ("E3", "E6"),
            ("FF", "E5"),
        ];
        for item in items {
            if lesser.iter().any(|(less, more)| *less == item.code && has(more)) {
                continue;
            }
            let code = u8::from_str_radix(&item.code, 16).unwrap_or(0);
            if let (Some((name, factor)), Some(value)) = (measurement(code), item.value) {
                let converted = (value * factor * 100.0).round() / 100.0;
                body = body.value(
                    name,
                    Some(if (factor - 1.0).abs() < f64::EPSILON {
                        value
                    } else {
                        converted
                    }),
                );
            }
        }
        if body.has_values() {
            out.messages
                .push(body.with("device", self.device.clone()).message());
        }
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.next = Next::Initialise;
        self.say(now, out);
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let (Frame::Slow(slow) | Frame::Mixed { slow, .. }) = frame;
        if slow.kind == "command" {
            let code = u8::from_str_radix(&slow.code, 16).unwrap_or(NO_OPERATION);
            out.send
                .push(message(SOH, code, if code == IDENTIFY { IDENTITY } else { "" }));
            return;
        }
        self.answered(&slow.code, now);
        if let Some(items) = slow.measured_cp1 {
            self.readings(&items, now, out);
        } else if slow.code == "52" {
            self.device = slow.body.map(|text| {
                text.get(4..)
                    .unwrap_or("")
                    .trim()
                    .replace('\'', " ")
                    .trim()
                    .to_owned()
            });
        }
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.at)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        if self.waiting.take().is_some() {
            out.errors.push(Reason::NoAnswer.into());
            self.next = Next::Initialise;
        }
        self.say(now, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_speaks_german() {
        assert_eq!(device_time("14:30:15 7-OKT-14").unwrap(), "2014-10-07T14:30:15");
        assert_eq!(device_time("08:00:0031-DEZ-24").unwrap(), "2024-12-31T08:00:00");
        assert_eq!(device_time("23:59:59 1-MAY-24").unwrap(), "2024-05-01T23:59:59");
        assert_eq!(device_time("        "), None);
    }

    #[test]
    fn a_command_is_built_as_the_devices_expect_it() {
        assert_eq!(message(ESC, INITIALISE, ""), b"\x1bQ6C\r");
        assert_eq!(message(ESC, NO_OPERATION, ""), b"\x1b04B\r");
        assert_eq!(message(SOH, INITIALISE, ""), b"\x01Q52\r");
    }
}
