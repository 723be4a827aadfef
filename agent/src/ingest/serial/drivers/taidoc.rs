//! TaiDoc and Fora meters and their rebrands: records of eight bytes at 19200 8N1.
//!
//! The driver asks for the model, the number of records, and then for time and value of each; again every hour, or when the meter was gone. It never
//! switches the meter off and never clears its memory.
//!
//! What the value bytes mean depends on the model: its first digit tells the kind (1 thermometer, 3 blood pressure, 4 glucose, 8 oximeter). Models 31xx and
//! 32xx may measure blood pressure and glucose: the third byte of a glucose record is the temperature of the room, so that only a diastolic pressure above
//! 45 is surely one, and only what is below 30 surely none. A record that can be both, or of another model, has no value, only `value_hex` and the status
//! `kind_unknown`.
//!
//! Bodies of kind `record`: `glucose_capillary_whole_blood` mg/dL, or `nibp_systolic`, `nibp_diastolic`, `nibp_pulse`, or `body_temperature`, or `spo2` and
//! `pulse_rate_oximeter`; `time` = `device_time` (minutes, the meter's clock, which has no zone).

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::clock;
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{byte, part, u16_le};
use crate::ingest::serial::framing::checksum::{sum8, to_hex};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "taidoc";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "TaiDoc, Fora meters",
    settings: PortSettings::eight_none_one(19_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::AtTimes,
    pack: NAME,
    describe: |_, bytes| frames::describe(Framing, bytes),
    commands: || {
        vec![
            ("ask for the model", record(MODEL, 0)),
            ("ask for the number of records", record(COUNT, 0)),
            ("ask for the time of record 0 (any index)", record(TIME, 0)),
            ("ask for the value of record 0 (any index)", record(VALUE, 0)),
        ]
    },
    create: || Box::new(Port::new(Framing, Dialogue::default())),
};

const MODEL: u8 = 0x24;
const TIME: u8 = 0x25;
const VALUE: u8 = 0x26;
const COUNT: u8 = 0x2B;

fn record(command: u8, index: u16) -> Vec<u8> {
    let [low, high] = index.to_le_bytes();
    let bytes = [0x51, command, low, high, 0, 0, 0xA3];
    [bytes.as_slice(), &[sum8(&bytes)]].concat()
}

/// A record, as members.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    command: String,
    direction: &'static str,
    #[serde(flatten)]
    content: Map<String, Value>,
    #[serde(skip)]
    code: u8,
    #[serde(skip)]
    data: [u8; 4],
}

/// Eight bytes with a sum.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 8;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) != 0x51 {
            return Step::Skip(1);
        }
        let &[_, code, a, b, c, d, end, check, ..] = bytes else {
            return Step::More;
        };
        if check != sum8(part(bytes, 0, 7)) {
            return Step::Refused(1, Reason::Checksum.into());
        }
        let direction = match end {
            0xA3 => "host",
            0xA5 => "device",
            _ => return Step::Refused(1, Reason::StopMarker.into()),
        };
        let data = [a, b, c, d];
        let content = if direction == "device" {
            content(code, data, None)
        } else {
            Map::new()
        };
        Step::Frame(
            8,
            Frame {
                command: format!("{code:02x}"),
                direction,
                content,
                code,
                data,
            },
        )
    }
}

/// `kind` is the first digit of the model.
fn content(code: u8, data: [u8; 4], kind: Option<u8>) -> Map<String, Value> {
    let (word, [_, high, third, fourth]) = (u16_le(&data, 0), data);
    let value = match code {
        MODEL => json!({"model": format!("{high:02x}{:02x}", byte(&data, 0))}),
        COUNT => json!({"record_count": word}),
        TIME => json!({"device_time": device_time(word, third & 0x3F, fourth & 0x1F)}),
        VALUE => match kind.unwrap_or_else(|| guess(word, third)) {
            1 => json!({"temp_c": f64::from(word) / if word >= 1000 { 100.0 } else { 10.0 }}),
            3 => json!({"sys_mmhg": word, "dia_mmhg": third, "pulse_bpm": fourth}),
            8 => json!({"spo2_pct": word, "pulse_bpm": fourth}),
            _ => json!({"glucose_mg_dl": word}),
        },
        _ => json!({}),
    };
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// What a model measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One thing, by the first digit of the model.
    Known(u8),
    /// Either, by the record.
    PressureOrGlucose,
    Unknown,
}

impl Kind {
    /// The kind of a record; none when it cannot be told.
    fn of(self, data: [u8; 4]) -> Option<u8> {
        let [_, _, third, _] = data;
        match (self, third) {
            (Kind::Known(kind), _) => Some(kind),
            (Kind::PressureOrGlucose, 0..30) => Some(4),
            (Kind::PressureOrGlucose, 46..) => Some(3),
            _ => None,
        }
    }
}

/// For showing a record whose model is not known.
fn guess(word: u16, third: u8) -> u8 {
    match (word, third) {
        (_, 30..) => 3,
        (50..=100, 0) => 8,
        (300..=450 | 3000..=4500, 0) => 1,
        _ => 4,
    }
}

fn device_time(word: u16, minute: u8, hour: u8) -> Option<String> {
    let (year, month, day) = (2000 + (word >> 9), word >> 5 & 15, word & 31);
    let text = format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}");
    clock::parse(&text).map(|_| text)
}

const POLL_US: u64 = 10_000_000;
const ANSWER_US: u64 = 1_000_000;
const AGAIN_US: u64 = 3_600_000_000;
/// The memories of several meters.
const REMEMBERED: usize = 8000;

/// Reads the memory.
#[derive(Debug)]
struct Dialogue {
    at: u64,
    waiting: Option<(u8, u16)>,
    count: u16,
    kind: Kind,
    time: Option<String>,
    done: Option<u64>,
    sent: Seen,
}

impl Default for Dialogue {
    fn default() -> Self {
        Dialogue {
            at: 0,
            waiting: None,
            count: 0,
            kind: Kind::Unknown,
            time: None,
            done: None,
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Dialogue {
    fn ask(&mut self, command: u8, index: u16, now: Now, out: &mut Output) {
        out.send.push(record(command, index));
        self.waiting = Some((command, index));
        self.at = now.monotonic_us + ANSWER_US;
    }

    fn next_record(&mut self, index: u16, now: Now, out: &mut Output) {
        if index < self.count {
            self.ask(TIME, index, now, out);
        } else {
            self.waiting = None;
            self.done = Some(now.monotonic_us);
            self.at = now.monotonic_us + POLL_US;
        }
    }

    fn value(&mut self, data: [u8; 4], out: &mut Output) {
        let time = self.time.take();
        let key = format!("{time:?} {data:?}");
        let Some(identity) = time.as_ref().and_then(|_| self.sent.take_new(&key)) else {
            return;
        };
        let kind = self.kind.of(data);
        let content = kind.map_or_else(Map::new, |kind| content(VALUE, data, Some(kind)));
        let mut body = Body::new(NAME, "record")
            .with("time", time.clone())
            .with("device_time", time)
            .with("value_hex", kind.is_none().then(|| to_hex(&data)))
            .status(&[(kind.is_none(), "kind_unknown")]);
        let pressure = content.contains_key("sys_mmhg");
        for (from, to) in [
            ("glucose_mg_dl", "glucose_capillary_whole_blood"),
            ("sys_mmhg", "nibp_systolic"),
            ("dia_mmhg", "nibp_diastolic"),
            (
                "pulse_bpm",
                if pressure {
                    "nibp_pulse"
                } else {
                    "pulse_rate_oximeter"
                },
            ),
            ("temp_c", "body_temperature"),
            ("spo2_pct", "spo2"),
        ] {
            body = body.value(to, content.get(from).cloned());
        }
        out.messages.push(body.record(identity));
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.done = None;
        self.ask(MODEL, 0, now, out);
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let Some((command, index)) = self
            .waiting
            .filter(|(command, _)| frame.direction == "device" && *command == frame.code)
        else {
            return;
        };
        match command {
            MODEL => {
                let digit = frame
                    .content
                    .get("model")
                    .and_then(Value::as_str)
                    .and_then(|model| model.chars().next());
                let combined = matches!(byte(&frame.data, 1), 0x32 | 0x31);
                self.kind = match digit.and_then(|digit| digit.to_digit(16)) {
                    Some(3) if combined => Kind::PressureOrGlucose,
                    Some(digit @ (1 | 3 | 4 | 8)) => Kind::Known(u8::try_from(digit).unwrap_or(0)),
                    _ => Kind::Unknown,
                };
                if self.done.is_none_or(|at| now.monotonic_us >= at + AGAIN_US) {
                    self.ask(COUNT, 0, now, out);
                } else {
                    self.waiting = None;
                    self.at = now.monotonic_us + POLL_US;
                }
            }
            COUNT => {
                self.count = u16_le(&frame.data, 0).min(2000);
                self.next_record(0, now, out);
            }
            TIME => {
                self.time = frame
                    .content
                    .get("device_time")
                    .and_then(Value::as_str)
                    .map(str::to_owned);
                self.ask(VALUE, index, now, out);
            }
            _ => {
                self.value(frame.data, out);
                self.next_record(index + 1, now, out);
            }
        }
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.at)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        if let Some((command, _)) = self.waiting.take() {
            if command != MODEL {
                out.errors.push(Reason::NoAnswer.into());
            }
            // The meter is gone: the next one that answers is read from the beginning.
            self.done = None;
            self.at = now.monotonic_us + POLL_US;
        } else {
            self.ask(MODEL, 0, now, out);
        }
    }
}
