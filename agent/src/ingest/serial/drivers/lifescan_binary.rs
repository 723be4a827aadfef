//! LifeScan OneTouch UltraMini and UltraEasy glucose meters (binary frames). Frames of the Verio are recognised, not asked for.
//!
//! The driver ends an open link, asks how many records there are, and reads them one by one; again after an hour, or when the meter was gone.
//!
//! Bodies of kind `record`: `glucose_capillary_plasma` mg/dL, `device_time`, `time` = `device_time` (the meter's clock, which has no zone; a
//! correction belongs into the pack's `agent.json`).

use iomt_mapping::Timestamp;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{bit, byte, part, u16_le, u32_le};
use crate::ingest::serial::framing::checksum::{crc16_ccitt_false, to_hex};
use crate::ingest::serial::framing::frames::{Protocol, Reason, Step, describe};

const NAME: &str = "lifescan-binary";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "LifeScan OneTouch UltraMini, UltraEasy",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    speaks: Speaks::AtTimes,
    pack: NAME,
    describe: |direction, bytes| described(direction, bytes),
    commands: || {
        vec![
            ("end an open link", frame(DISCONNECT, &[])),
            ("how many records", frame(0, &COUNT)),
            ("read record 0 (any index)", frame(3, &[0x05, 0x1F, 0, 0])),
            ("acknowledge", frame(ACKNOWLEDGE | 3, &[])),
            ("acknowledge (other sequence)", frame(ACKNOWLEDGE, &[])),
        ]
    },
    create: || Box::new(Port::new(Framing, Dialogue::default())),
};

const DISCONNECT: u8 = 0x08;
const ACKNOWLEDGE: u8 = 0x04;
/// Record 501 does not exist: the meter answers with the number of records.
const COUNT: [u8; 4] = [0x05, 0x1F, 0xF5, 0x01];

/// A frame: STX, length, link, payload, ETX, CRC.
pub fn frame(link: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x02, u8::try_from(payload.len() + 6).unwrap_or(0), link];
    bytes.extend_from_slice(payload);
    bytes.push(0x03);
    let crc = crc16_ccitt_false(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// Link byte and payload.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Frame {
    length: usize,
    link: Link,
    payload_hex: String,
    #[serde(flatten)]
    content: Map<String, Value>,
    #[serde(skip)]
    payload: Vec<u8>,
}

/// Bits of the link byte.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Link {
    more: bool,
    disconnect: bool,
    ack: bool,
    e: bool,
    s: bool,
}

/// Frames with a length and a CRC.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 255;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) != 0x02 {
            return Step::Skip(1);
        }
        let Some(length) = bytes.get(1).map(|b| usize::from(*b)) else {
            return Step::More;
        };
        if length < 6 {
            return Step::Skip(1);
        }
        if bytes.len() < length {
            return Step::More;
        }
        if byte(bytes, length - 3) != 0x03 {
            return Step::Refused(1, Reason::StopMarker.into());
        }
        if crc16_ccitt_false(part(bytes, 0, length - 2)) != u16_le(bytes, length - 2) {
            return Step::Refused(1, Reason::Crc.into());
        }
        let (link, payload) = (byte(bytes, 2), part(bytes, 3, length - 6));
        let link = Link {
            more: bit(link, 4),
            disconnect: bit(link, 3),
            ack: bit(link, 2),
            e: bit(link, 1),
            s: bit(link, 0),
        };
        let frame = Frame {
            length,
            link,
            payload_hex: to_hex(payload),
            content: answer(payload),
            payload: payload.to_vec(),
        };
        Step::Frame(length, frame)
    }
}

fn answer(payload: &[u8]) -> Map<String, Value> {
    let mut content = Map::new();
    match payload {
        [0x05, 0x06, rest @ ..] if rest.len() == 8 => {
            content.insert("device_time".into(), json!(unix(u32_le(rest, 0))));
            content.insert("glucose_mg_dl".into(), json!(u32_le(rest, 4)));
        }
        [0x05, 0x0F, rest @ ..] if rest.len() == 2 => {
            content.insert("record_count".into(), json!(u16_le(rest, 0)));
        }
        // Verio: seconds since 2000, the value, whether it is control solution, the meal.
        [0x03, 0x06, rest @ ..] if rest.len() == 8 => {
            content.insert(
                "device_time".into(),
                json!(unix(u32_le(rest, 0).saturating_add(YEAR_2000))),
            );
            content.insert("glucose_mg_dl".into(), json!(u16_le(rest, 4)));
            content.insert("control".into(), json!(byte(rest, 6) != 0));
            content.insert("meal_raw".into(), json!(byte(rest, 7)));
        }
        [0x03, 0x06, rest @ ..] if rest.len() == 2 => {
            content.insert("record_count".into(), json!(u16_le(rest, 0)));
        }
        _ => {}
    }
    content
}

/// 2000-01-01 in seconds since 1970.
const YEAR_2000: u32 = 946_684_800;

fn unix(seconds: u32) -> Option<String> {
    Timestamp::from_ticks(i64::from(seconds) * 10_000_000).map(|time| time.to_string().replace('Z', ""))
}

fn described(direction: Direction, bytes: &[u8]) -> Description {
    let mut description = describe(Framing, bytes);
    if direction == Direction::HostToDevice {
        for value in &mut description.frames {
            let payload = value
                .get("payload_hex")
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned();
            let disconnect = value.pointer("/link/disconnect") == Some(&Value::Bool(true));
            let Value::Object(members) = value else { continue };
            let index = |at: usize| {
                payload
                    .get(at..at + 2)
                    .and_then(|two| u16::from_str_radix(two, 16).ok())
                    .unwrap_or(0)
            };
            let mut put = |name: &str| members.insert("command".into(), name.into());
            if payload == "051ff501" || payload == "032700" {
                put("record_count");
            } else if payload.len() == 8 && (payload.starts_with("051f") || payload.starts_with("0321")) {
                put("read_record");
                members.insert("index".into(), (index(4) | index(6) << 8).into());
            } else if payload.is_empty() && disconnect {
                put("disconnect");
            } else if payload.is_empty() {
                put("acknowledge");
            }
        }
    }
    description
}

const POLL_US: u64 = 30_000_000;
const ANSWER_US: u64 = 1_000_000;
const AGAIN_US: u64 = 3_600_000_000;
/// The memories of several meters.
const REMEMBERED: usize = 4000;

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Idle,
    Disconnecting,
    Counting,
    Reading(u16, u16),
}

/// Reads the memory.
#[derive(Debug)]
struct Dialogue {
    at: u64,
    state: State,
    /// Both sequence bits, which change with every exchange.
    sequence: u8,
    /// The last answer: one that comes again was not heard to be acknowledged.
    answered: Option<(Link, Vec<u8>)>,
    done: Option<u64>,
    sent: Seen,
}

impl Default for Dialogue {
    fn default() -> Self {
        Dialogue {
            at: 0,
            state: State::Idle,
            sequence: 0,
            answered: None,
            done: None,
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Dialogue {
    fn ask(&mut self, payload: &[u8], now: Now, out: &mut Output) {
        out.send.push(frame(self.sequence, payload));
        self.at = now.monotonic_us + ANSWER_US;
    }

    fn read(&mut self, index: u16, count: u16, now: Now, out: &mut Output) {
        if index >= count {
            self.state = State::Idle;
            self.done = Some(now.monotonic_us);
            self.at = now.monotonic_us + POLL_US;
            out.send.push(frame(DISCONNECT, &[]));
            return;
        }
        self.state = State::Reading(index, count);
        let [low, high] = index.to_le_bytes();
        self.ask(&[0x05, 0x1F, low, high], now, out);
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.state = State::Idle;
        self.done = None;
        self.timeout(now, out);
    }

    fn frame(&mut self, got: Frame, now: Now, out: &mut Output) {
        if got.link.disconnect {
            if self.state == State::Disconnecting
                && self.done.is_none_or(|at| now.monotonic_us >= at + AGAIN_US)
            {
                self.sequence = 0;
                self.answered = None;
                self.state = State::Counting;
                self.ask(&COUNT, now, out);
            }
            return;
        }
        if got.payload.is_empty() {
            return;
        }
        let answer = (got.link, got.payload.clone());
        if self.answered.as_ref() == Some(&answer) {
            out.send.push(frame(ACKNOWLEDGE | self.sequence, &[]));
            return;
        }
        self.answered = Some(answer);
        out.send.push(frame(ACKNOWLEDGE | (self.sequence ^ 3), &[]));
        self.sequence ^= 3;
        let member = |name: &str| got.content.get(name).cloned().unwrap_or(Value::Null);
        match self.state {
            State::Counting => {
                let count = member("record_count")
                    .as_u64()
                    .and_then(|count| u16::try_from(count).ok())
                    .unwrap_or(0);
                self.read(0, count.min(500), now, out);
            }
            State::Reading(index, count) => {
                let measured = !member("glucose_mg_dl").is_null();
                if let Some(identity) = measured.then(|| self.sent.take_new(&got.payload_hex)).flatten() {
                    let value = member("glucose_mg_dl");
                    let range = value.as_u64().map(|value| match value {
                        0..20 => "low",
                        601.. => "high",
                        _ => "in",
                    });
                    let mut body = Body::new(NAME, "record")
                        .with("time", member("device_time"))
                        .with("device_time", member("device_time"))
                        .value(
                            "glucose_capillary_plasma",
                            Some(value).filter(|_| range == Some("in")),
                        );
                    if range != Some("in") {
                        body.put("range", range);
                    }
                    out.messages.push(body.record(identity));
                }
                self.read(index + 1, count, now, out);
            }
            State::Idle | State::Disconnecting => {}
        }
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.at)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        match self.state {
            State::Idle => {
                self.state = State::Disconnecting;
                out.send.push(frame(DISCONNECT, &[]));
                self.at = now.monotonic_us + ANSWER_US;
            }
            State::Disconnecting => {
                // No meter, or nothing to do.
                self.state = State::Idle;
                self.at = now.monotonic_us + POLL_US;
            }
            State::Counting | State::Reading(..) => {
                out.errors.push(Reason::NoAnswer.into());
                self.state = State::Idle;
                self.done = None;
                self.at = now.monotonic_us + ANSWER_US;
            }
        }
    }
}
