//! Masimo Rad-8, Rad-87 and Radical-7: serial output "ASCII 1" (one line a second) and trend lines ("ASCII 2").
//!
//! The driver only listens; the device's menu selects the output. Lines are read by key, because columns and widths differ
//! between models; dashes mean that there is no value.
//!
//! Bodies:
//! * `vitals`: `spo2`, `pulse_rate_oximeter`, `perfusion_index`; `spco` %, `spmet` %, `sphb` g/dL, `spoc` mL/dL, `pvi` % where the model
//!   has them; `device_time`, `serial`, `alarm_raw`, `alarms` (its bits as words: `spo2_low`, `pulse_high`, `muted`, ...);
//! * `record`: the same of a trend line, with `time` = `device_time`.
//!
//! `status`: the exceptions by name (`no_sensor`, `sensor_off`, `low_perfusion`, `pulse_search`, `low_signal_iq`, ...).

use serde_json::{Map, Number, Value, json};

use super::body::{Body, Vitals};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, part};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "masimo-ascii";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Masimo Rad-8, Rad-87, Radical-7 (ASCII 1, trend)",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Line, bytes),
        Direction::HostToDevice => Description::of(None),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Line, Reading::default())),
};

const EXCEPTIONS: [(u64, &str); 10] = [
    (0x001, "no_sensor"),
    (0x002, "defective_sensor"),
    (0x004, "low_perfusion"),
    (0x008, "pulse_search"),
    (0x010, "interference"),
    (0x020, "sensor_off"),
    (0x040, "ambient_light"),
    (0x080, "unrecognized_sensor"),
    (0x400, "low_signal_iq"),
    (0x800, "masimo_set"),
];
const NO_SENSOR: u64 = 0x001;
const SENSOR_OFF: u64 = 0x020;

/// Bits of the alarm word, as they were seen to be used.
const ALARMS: [(u64, &str); 6] = [
    (0x01, "spo2_high"),
    (0x02, "spo2_low"),
    (0x04, "pulse_high"),
    (0x08, "pulse_low"),
    (0x10, "alarm"),
    (0x20, "muted"),
];

/// Key on the line, name in the frame.
const VALUES: [(&str, &str); 11] = [
    ("SPO2", "spo2_pct"),
    ("BPM", "pulse_bpm"),
    ("PR", "pulse_bpm"),
    ("PI", "perfusion_index_pct"),
    ("SPCO", "spco_pct"),
    ("SPMET", "spmet_pct"),
    ("SPHB", "sphb_g_dl"),
    ("SPOC", "spoc_ml_dl"),
    ("DESAT", "desat"),
    ("PIDELTA", "pi_delta"),
    ("PVI", "pvi_pct"),
];

/// Lines of `KEY=VALUE` words after a date and a time.
#[derive(Debug, Default)]
pub struct Line;

impl Protocol for Line {
    type Frame = Map<String, Value>;
    const LONGEST: usize = 400;

    fn next(&mut self, bytes: &[u8]) -> Step<Self::Frame> {
        let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
            return Step::More;
        };
        let text = ascii(part(bytes, 0, end));
        match text.trim() {
            "" => Step::Quiet(end + 1),
            text => match parse(text) {
                Some(frame) => Step::Frame(end + 1, frame),
                None => Step::Refused(end + 1, Reason::Invalid.into()),
            },
        }
    }
}

fn parse(text: &str) -> Option<Map<String, Value>> {
    let mut words = text.split_ascii_whitespace();
    let mut frame = Map::new();
    frame.insert(
        "device_time".into(),
        device_time(words.next()?, words.next()?)?.into(),
    );
    for word in words {
        let (key, value) = word.split_once('=')?;
        match key.to_ascii_uppercase().as_str() {
            "SN" => {
                let serial = value.trim_matches('-');
                frame.insert(
                    "serial".into(),
                    if serial.is_empty() {
                        Value::Null
                    } else {
                        serial.into()
                    },
                );
            }
            "ALARM" => {
                let bits = u64::from_str_radix(value, 16).ok()?;
                frame.insert("alarm_raw".into(), bits.into());
                frame.insert("alarms".into(), json!(names_of(&ALARMS, bits)));
            }
            "EXC" => exceptions(value, &mut frame)?,
            key => {
                if let Some((_, name)) = VALUES.iter().find(|(known, _)| *known == key) {
                    frame.insert((*name).into(), number(value)?);
                }
            }
        }
    }
    frame.contains_key("spo2_pct").then_some(())?;
    let off = frame
        .get("exc_raw")
        .and_then(Value::as_u64)
        .is_some_and(|bits| bits & SENSOR_OFF != 0);
    if frame.contains_key("exception_tags") {
        frame.insert("record".into(), "trend".into());
    }
    if off {
        // The manual prints zeros where the sensor was off.
        for name in ["spo2_pct", "pulse_bpm", "perfusion_index_pct"] {
            if frame.get(name).and_then(Value::as_f64) == Some(0.0) {
                frame.insert(name.into(), Value::Null);
            }
        }
    }
    Some(frame)
}

/// The names of the bits that are set.
fn names_of(names: &[(u64, &'static str)], bits: u64) -> Vec<&'static str> {
    names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect()
}

fn exceptions(value: &str, frame: &mut Map<String, Value>) -> Option<()> {
    let (bits, tags) = match value.split_once(':') {
        Some((bits, tags)) => (bits, Some(tags)),
        None => (value, None),
    };
    let bits = u64::from_str_radix(bits, 16).ok()?;
    frame.insert("exc_raw".into(), bits.into());
    frame.insert("exceptions".into(), json!(names_of(&EXCEPTIONS, bits)));
    if let Some(tags) = tags {
        frame.insert("exception_tags".into(), tags.split(',').collect());
    }
    Some(())
}

/// `MM/DD/YY hh:mm:ss`.
fn device_time(date: &str, time: &str) -> Option<String> {
    let fields = |text: &str, separator| -> Option<Vec<u32>> {
        text.split(separator)
            .map(|part| if part.len() == 2 { part.parse().ok() } else { None })
            .collect()
    };
    match (fields(date, '/')?.as_slice(), fields(time, ':')?.as_slice()) {
        (&[month @ 1..=12, day @ 1..=31, year], &[hour @ 0..24, minute @ 0..60, second @ 0..60]) => Some(
            format!("20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"),
        ),
        _ => None,
    }
}

/// A number with leading zeros, sign and percent sign, or dashes; none for anything else.
fn number(text: &str) -> Option<Value> {
    let text = text.trim_end_matches('%');
    if text.bytes().all(|b| matches!(b, b'-' | b'.' | b'+')) {
        return Some(Value::Null);
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.trim_start_matches('0');
    let zero = if digits.is_empty() || digits.starts_with('.') {
        "0"
    } else {
        ""
    };
    serde_json::from_str::<Number>(&format!("{sign}{zero}{digits}"))
        .ok()
        .map(Value::Number)
}

/// Turns lines into readings.
#[derive(Debug, Default)]
struct Reading {
    vitals: Vitals,
}

impl Listener<Map<String, Value>> for Reading {
    fn frame(&mut self, frame: Map<String, Value>, now: Now, out: &mut Output) {
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        let trend = frame.contains_key("record");
        let mut body = Body::new(NAME, if trend { "record" } else { "vitals" });
        if trend {
            body.put("time", member("device_time"));
        }
        for name in ["device_time", "serial", "alarm_raw"] {
            body.put(name, member(name));
        }
        if member("alarms").as_array().is_some_and(|words| !words.is_empty()) {
            body.put("alarms", member("alarms"));
        }
        let bits = frame.get("exc_raw").and_then(Value::as_u64).unwrap_or(0);
        // What is shown without a sensor on the finger is no reading.
        let on = bits & (NO_SENSOR | SENSOR_OFF) == 0;
        for (from, to) in [
            ("spo2_pct", "spo2"),
            ("pulse_bpm", "pulse_rate_oximeter"),
            ("perfusion_index_pct", "perfusion_index"),
            ("spco_pct", "spco"),
            ("spmet_pct", "spmet"),
            ("sphb_g_dl", "sphb"),
            ("spoc_ml_dl", "spoc"),
            ("pvi_pct", "pvi"),
        ] {
            body = body.value(to, Some(member(from)).filter(|_| on));
        }
        let words = EXCEPTIONS.map(|(bit, name)| (bits & bit != 0 && name != "masimo_set", name));
        let body = body.status(&words);
        if trend {
            if body.has_values() {
                out.messages.push(body.message());
            }
        } else {
            self.vitals.offer(body, now, out);
        }
    }
}
