//! Nellcor NPB-290, N-595, N-560 pulse oximeters: the real-time printout, one line every 2 s. The driver only listens.
//!
//! Bodies of kind `vitals`: `spo2`, `pulse_rate_oximeter`, `pulse_amplitude` (without unit), `spo2_alarm`, `pulse_alarm`, `device_time`. `status`: the two-letter
//! words of the device (`PS` pulse search, `SO` sensor off, `SD` sensor disconnected, `LP` loss of pulse, `MO` interference, ...).

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::{Body, Vitals};
use super::clock;
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, part};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "nellcor-ascii";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Nellcor NPB-290, N-595, N-560 pulse oximeters",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: NAME,
    describe: |direction, bytes| match (direction, bytes) {
        (Direction::DeviceToHost, bytes) => frames::describe(Line, bytes),
        (_, [0x03, 0x03]) => Description::of(Some(json!({"command": "enter_interactive"}))),
        (_, b"1\r\n") => Description::of(Some(json!({"command": "instrument_info"}))),
        (_, b"0\r\n") => Description::of(Some(json!({"command": "leave_interactive"}))),
        _ => Description::of(None),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Line, Reading::default())),
};

const STATUS: [&str; 13] = [
    "AO", "AS", "LB", "LM", "LP", "MO", "PH", "PL", "PS", "SH", "SL", "SD", "SO",
];
const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];

/// A line, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

/// Lines.
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
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
        if text.is_empty() {
            return Step::Quiet(end + 1);
        }
        match parse(text) {
            Some(Value::Object(members)) => Step::Frame(end + 1, Frame(members)),
            _ => Step::Refused(end + 1, Reason::Invalid.into()),
        }
    }
}

fn parse(text: &str) -> Option<Value> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    if words.first() == Some(&"TIME") {
        return Some(json!({"type": "columns"}));
    }
    if text.contains("VERSION") {
        let after = |label: &str| {
            text.split_once(label)
                .and_then(|(_, rest)| rest.split_ascii_whitespace().next())
        };
        let limits = |label: &str| -> Option<Vec<u16>> {
            let text = after(label)?.trim_end_matches(|c: char| !c.is_ascii_digit());
            text.split('-').map(|limit| limit.parse().ok()).collect()
        };
        return Some(json!({
            "type": "header",
            "model": words.first(),
            "version": after("VERSION"),
            "spo2_limits": limits("SpO2 Limit:"),
            "pulse_limits": limits("PR Limit:"),
        }));
    }
    let [date, time, rest @ ..] = words.as_slice() else {
        return None;
    };
    let Some(device_time) = device_time(date, time) else {
        let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') && !text.contains('?');
        return printable.then(|| json!({"type": "header_line", "text": text}));
    };
    let [spo2, pulse, amplitude, status @ ..] = rest else {
        return None;
    };
    let (spo2, spo2_alarm) = value(spo2)?;
    let (pulse, pulse_alarm) = value(pulse)?;
    let (amplitude, _) = value(amplitude)?;
    if status.iter().any(|word| !STATUS.contains(word)) {
        return None;
    }
    Some(json!({
        "type": "data",
        "device_time": device_time,
        "spo2_pct": spo2,
        "pulse_bpm": pulse,
        "pulse_amplitude": amplitude,
        "spo2_alarm": spo2_alarm,
        "pulse_alarm": pulse_alarm,
        "status": status,
    }))
}

fn value(word: &str) -> Option<(Option<u16>, bool)> {
    let (digits, alarm) = word
        .strip_suffix('*')
        .map_or((word, false), |digits| (digits, true));
    if digits.bytes().all(|b| b == b'-') {
        Some((None, alarm))
    } else {
        Some((Some(digits.parse().ok()?), alarm))
    }
}

/// `12-NOV-97` and `14:00:05`; two digits of the year from 70 on are of the last century.
fn device_time(date: &str, time: &str) -> Option<String> {
    let &[day, month, year] = date.split('-').collect::<Vec<_>>().first_chunk::<3>()?;
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let century = if year.parse::<u8>().ok()? >= 70 { 19 } else { 20 };
    let text = format!("{century}{year}-{month:02}-{day}T{time}");
    clock::parse(&text).map(|_| text)
}

/// Turns lines into readings.
#[derive(Debug, Default)]
struct Reading {
    vitals: Vitals,
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, Frame(frame): Frame, now: Now, out: &mut Output) {
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        if member("type") != "data" {
            return;
        }
        let mut body = Body::new(NAME, "vitals")
            .with("device_time", member("device_time"))
            .value("spo2", Some(member("spo2_pct")))
            .value("pulse_rate_oximeter", Some(member("pulse_bpm")))
            .with("pulse_amplitude", member("pulse_amplitude"))
            .with("spo2_alarm", member("spo2_alarm"))
            .with("pulse_alarm", member("pulse_alarm"));
        if member("status").as_array().is_some_and(|words| !words.is_empty()) {
            body.put("status", member("status"));
        }
        self.vitals.offer(body, now, out);
    }
}
