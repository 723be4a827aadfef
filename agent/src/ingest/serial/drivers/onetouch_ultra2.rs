//! LifeScan OneTouch Ultra and Ultra2 glucose meters: dump of the memory over the serial cable.
//!
//! The driver asks for the meter's clock every 10 s; when a meter answers that was not there before, it asks for the dump, and again every
//! hour. A record leaves once, however often the meter dumps it. The dump waits until the gateway knows the time, because
//! the records are dated by the difference between both clocks.
//!
//! Bodies, all of kind `record`: `glucose_capillary_plasma` (mg/dL, always, whatever the display shows), `time`, `device_time`, `meal` (`none`, `before`,
//! `after`), `comment_code`, `meter_serial`. Out of range is no number: `range` is `high` or `low` and the value is absent. Control solution
//! has kind `control` and `control_glucose`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::clock::{self, Offset};
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{ascii, part};
use crate::ingest::serial::framing::checksum::sum16;
use crate::ingest::serial::framing::format::split_quoted;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "onetouch-ultra2";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "LifeScan OneTouch Ultra, Ultra2 glucose meters",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    speaks: Speaks::AtTimes,
    pack: NAME,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Line, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        vec![
            ("ask for the meter's clock", command("DMF")),
            ("ask for the memory", command("DMP")),
        ]
    },
    create: || Box::new(Port::new(Line, Dialogue::default())),
};

fn command(name: &str) -> Vec<u8> {
    [&[0x11, 0x0D], name.as_bytes()].concat()
}

fn command_name(bytes: &[u8]) -> Option<Value> {
    let name = match bytes.strip_prefix(&[0x11, 0x0D])? {
        b"DMP" => "dump",
        b"DMF" => "date_time",
        b"DM?" => "software_version",
        b"DM@" => "serial_number",
        b"DMSU?" => "unit",
        b"DMST?" => "time_format",
        _ => return None,
    };
    Some(json!({"command": name}))
}

/// A line, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Frame(Map<String, Value>);

/// Lines that end in a 16-bit sum, four hexadecimal digits.
#[derive(Debug, Default)]
pub struct Line;

impl Protocol for Line {
    type Frame = Frame;
    const LONGEST: usize = 160;
    const HALF_FRAME_US: u64 = 1_000_000;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
            return Step::More;
        };
        let line = part(bytes, 0, end);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // The meter echoes 11 0D and may send other bytes while it wakes up.
        let begin = line
            .iter()
            .rposition(|b| !(0x20..0x7F).contains(b))
            .map_or(0, |at| at + 1);
        let line = part(line, begin, line.len());
        if line.is_empty() {
            return Step::Quiet(end + 1);
        }
        match parse(line) {
            Ok(frame) => Step::Frame(end + 1, Frame(frame)),
            Err(reason) => Step::Refused(end + 1, reason.into()),
        }
    }
}

fn parse(line: &[u8]) -> Result<Map<String, Value>, Reason> {
    let length = line.len().checked_sub(5).ok_or(Reason::Invalid)?;
    let (content, check) = (part(line, 0, length), ascii(part(line, length, 5)));
    let check = check
        .strip_prefix(' ')
        .and_then(|digits| u16::from_str_radix(digits, 16).ok());
    if check.ok_or(Reason::Invalid)? != sum16(content) {
        return Err(Reason::Checksum);
    }
    let text = ascii(content);
    let (kind, rest) = text.split_at_checked(1).ok_or(Reason::Invalid)?;
    let fields = split_quoted(rest.trim_start_matches([' ', ',']), ',', '"').ok_or(Reason::Invalid)?;
    let frame = match (kind, fields.as_slice()) {
        ("P", [count, serial, unit]) if count.trim().parse::<u16>().is_ok() => json!({
            "type": "header",
            "count": count.trim().parse::<u16>().ok(),
            "serial": serial.trim(),
            "unit": unit.trim(),
        }),
        ("P", [weekday, date, time, value, rest @ ..]) => {
            record(weekday, date, time, value, rest).ok_or(Reason::Invalid)?
        }
        ("F", [weekday, date, time, ..]) => json!({
            "type": "date_time",
            "weekday": weekday.trim(),
            "device_time": device_time(date, time).ok_or(Reason::Invalid)?,
        }),
        ("@", [serial, ..]) => json!({"type": "serial_number", "serial": serial.trim()}),
        ("?", _) => json!({"type": "software_version", "version": rest.trim()}),
        ("S", [_, value, ..]) => json!({"type": "setting", "value": value.trim()}),
        _ => json!({"type": "other", "text": text}),
    };
    match frame {
        Value::Object(members) => Ok(members),
        _ => Err(Reason::Invalid),
    }
}

fn record(weekday: &str, date: &str, time: &str, value: &str, rest: &[String]) -> Option<Value> {
    let value = value.trim();
    let (control, value) = match value.strip_prefix('C') {
        Some(value) => (true, value.trim()),
        None => (false, value),
    };
    let value = value.trim_end_matches('?').trim();
    let (range, number) = match value {
        "HIGH" => ("high", None),
        "LOW" => ("low", None),
        digits => match digits.parse::<u16>().ok()? {
            601.. => ("high", None),
            0..20 => ("low", None),
            number => ("in", Some(number)),
        },
    };
    let (meal, comment) = match rest {
        [meal, comment, ..] => (
            match meal.trim() {
                "N" => Some("none"),
                "B" => Some("before"),
                "A" => Some("after"),
                _ => None,
            },
            Some(comment.trim()),
        ),
        _ => (None, None),
    };
    Some(json!({
        "type": "result",
        "weekday": weekday.trim(),
        "device_time": device_time(date, time)?,
        "glucose_mg_dl": number,
        "range": range,
        "control": control,
        "meal": meal,
        "comment_code": comment,
    }))
}

/// `03/21/15` and `16:45:24`.
fn device_time(date: &str, time: &str) -> Option<String> {
    let &[month, day, year] = date.trim().split('/').collect::<Vec<_>>().first_chunk::<3>()?;
    let text = format!("20{year}-{month}-{day}T{}", time.trim());
    clock::parse(&text).map(|_| text)
}

const POLL_US: u64 = 10_000_000;
const ANSWER_US: u64 = 2_000_000;
const DUMP_AGAIN_US: u64 = 3_600_000_000;
/// The memories of several Ultra2.
const REMEMBERED: usize = 4000;

/// Watches for a meter and dumps its memory.
#[derive(Debug)]
struct Dialogue {
    at: u64,
    waiting: bool,
    /// When the connected meter was dumped; none while there is none.
    dumped: Option<u64>,
    offset: Option<Offset>,
    serial: Option<String>,
    sent: Seen,
}

impl Default for Dialogue {
    fn default() -> Self {
        Dialogue {
            at: 0,
            waiting: false,
            dumped: None,
            offset: None,
            serial: None,
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Dialogue {
    fn record(&mut self, frame: &Map<String, Value>, out: &mut Output) {
        let member = |name: &str| frame.get(name).cloned().unwrap_or(Value::Null);
        let key = format!("{:?} {}", self.serial, Value::Object(frame.clone()));
        let Some(identity) = self.sent.take_new(&key) else {
            return;
        };
        let device_time = member("device_time");
        let time = self
            .offset
            .zip(device_time.as_str())
            .and_then(|(offset, device)| offset.utc(device));
        let control = member("control") == true;
        let mut body = Body::new(NAME, if control { "control" } else { "record" })
            .with("time", time)
            .with("device_time", device_time)
            .with("meter_serial", self.serial.clone())
            .with("meal", member("meal"))
            .with("comment_code", member("comment_code"));
        if member("range") != "in" {
            body.put("range", member("range"));
        }
        let name = if control {
            "control_glucose"
        } else {
            "glucose_capillary_plasma"
        };
        out.messages
            .push(body.value(name, Some(member("glucose_mg_dl"))).record(identity));
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.waiting = false;
        self.dumped = None;
        self.timeout(now, out);
    }

    fn frame(&mut self, Frame(frame): Frame, now: Now, out: &mut Output) {
        self.waiting = false;
        self.at = now.monotonic_us + POLL_US;
        match frame.get("type").and_then(Value::as_str) {
            Some("date_time") => {
                let device = frame.get("device_time").and_then(Value::as_str);
                let Some((wall, device)) = now.wall.zip(device) else {
                    return;
                };
                self.offset = Offset::between(device, wall);
                if self
                    .dumped
                    .is_none_or(|at| now.monotonic_us >= at + DUMP_AGAIN_US)
                {
                    self.dumped = Some(now.monotonic_us);
                    out.send.push(command("DMP"));
                }
            }
            Some("header") => {
                self.serial = frame.get("serial").and_then(Value::as_str).map(str::to_owned);
            }
            Some("result") if self.offset.is_some() => self.record(&frame, out),
            _ => {}
        }
    }

    fn gap(&mut self, _now: Now, _out: &mut Output) {
        // A record was damaged: dump again at the next answer.
        self.dumped = None;
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.at)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        if self.waiting {
            self.dumped = None;
            self.waiting = false;
            self.at = now.monotonic_us + POLL_US - ANSWER_US;
            return;
        }
        out.send.push(command("DMF"));
        self.waiting = true;
        self.at = now.monotonic_us + ANSWER_US;
    }
}
