//! Bayer / Ascensia Contour glucose meters on a serial cable (7150, 7160, 7220), and other senders of ASTM E1381 / E1394 results.
//!
//! A meter that wants to send is let (ENQ, ACK), once the gateway knows the time; one that is silent is woken (NAK until EOT, ENQ, EOT) when
//! nothing was transferred for an hour. Every frame is acknowledged, a damaged one is asked for again. Nothing is ever written to the meter.
//!
//! Bodies of kind `record`: `glucose_capillary_plasma` or `glucose_capillary_whole_blood` in mg/dL, or the same name with `_mmol_l`; `time` (from the
//! meter's clock in the header record), `device_time`, `meal` (`before`, `after`), `flags`, `meter_serial`. A result beyond the range has `range` (`above`,
//! `below`) and no value. Control solution has kind `control` and `control_glucose`. The first record of a serial meter is its average and is left out.

use serde::Serialize;
use serde_json::{Value, json};

use super::body::Body;
use super::clock::{self, Offset};
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::astm::{self, ACK, Block, ENQ, EOT, NAK};
use crate::ingest::serial::framing::frames::{self, Protocol, Step};

const NAME: &str = "contour-astm";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Bayer / Ascensia Contour glucose meters (ASTM)",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::OneSource,
    speaks: Speaks::AtTimes,
    pack: NAME,
    describe: |direction, bytes| match (direction, bytes) {
        (Direction::HostToDevice, [one]) => {
            Description::of(control_name(*one).map(|name| json!({"command": name})))
        }
        _ => frames::describe(Framing::default(), bytes),
    },
    commands: || {
        vec![
            ("acknowledge", vec![ACK]),
            ("send again, or wake up", vec![NAK]),
            ("enquiry", vec![ENQ]),
            ("end", vec![EOT]),
        ]
    },
    create: || Box::new(Port::new(Framing::default(), Dialogue::default())),
};

fn control_name(byte: u8) -> Option<&'static str> {
    match byte {
        ACK => Some("ack"),
        NAK => Some("nak"),
        ENQ => Some("enq"),
        EOT => Some("eot"),
        _ => None,
    }
}

/// What the meter sends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Frame {
    /// ENQ, EOT, ACK or NAK.
    Control {
        /// Its name.
        control: &'static str,
    },
    /// A frame.
    Text {
        /// 0 to 7.
        frame_number: u8,
        /// ETX, not ETB.
        last_block: bool,
        /// Without its CR.
        text: String,
        /// The record that ends here, joined from its frames.
        #[serde(skip_serializing_if = "Option::is_none")]
        record: Option<Value>,
    },
}

/// Joins frames on CR, not on ETB: Contour meters end every record with CR ETB.
#[derive(Debug, Default)]
pub struct Framing {
    joined: String,
    last: Option<(u8, String)>,
}

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = astm::LONGEST_TEXT + 8;
    const HALF_FRAME_US: u64 = 2_000_000;

    fn joined(&self) -> usize {
        self.joined.len()
    }

    fn forget(&mut self) {
        *self = Framing::default();
    }

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        match astm::next(bytes) {
            Step::Frame(n, Block::Text { number, last, text }) => {
                let repeated = self
                    .last
                    .as_ref()
                    .is_some_and(|(before, same)| *before == number && *same == text);
                let mut record = None;
                if !repeated {
                    self.last = Some((number, text.clone()));
                    self.joined.push_str(&text);
                    if self.joined.ends_with('\r') || last || self.joined.len() > astm::LONGEST_TEXT {
                        record = parse(std::mem::take(&mut self.joined).trim_end_matches('\r'));
                    }
                }
                let text = text.trim_end_matches('\r').to_owned();
                Step::Frame(
                    n,
                    Frame::Text {
                        frame_number: number,
                        last_block: last,
                        text,
                        record,
                    },
                )
            }
            Step::Frame(n, block) => {
                let control = match block {
                    Block::Enquiry => "enq",
                    Block::End => "eot",
                    Block::Acknowledge => "ack",
                    _ => "nak",
                };
                if matches!(control, "enq" | "eot") {
                    *self = Framing::default();
                }
                Step::Frame(n, Frame::Control { control })
            }
            Step::More => Step::More,
            Step::Skip(n) => Step::Skip(n),
            Step::Quiet(n) => Step::Quiet(n),
            Step::Refused(n, error) => Step::Refused(n, error),
        }
    }
}

/// `YYYYMMDDhhmm` or with seconds.
fn time(digits: &str) -> Option<String> {
    if !matches!(digits.len(), 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let field = |from: usize, to: usize| digits.get(from..to).unwrap_or("");
    let seconds = if digits.len() == 14 {
        format!(":{}", field(12, 14))
    } else {
        String::new()
    };
    let text = format!(
        "{}-{}-{}T{}:{}{seconds}",
        field(0, 4),
        field(4, 6),
        field(6, 8),
        field(8, 10),
        field(10, 12)
    );
    clock::parse(&text).map(|_| text)
}

fn parse(text: &str) -> Option<Value> {
    let fields: Vec<&str> = text.split('|').collect();
    let field = |number: usize| fields.get(number - 1).copied().unwrap_or("");
    let sequence = field(2).parse::<u32>().ok();
    Some(match field(1) {
        "H" => {
            let sender = field(5);
            let mut parts = sender.split('^');
            let product = parts.next().unwrap_or("");
            let versions: Vec<&str> = parts.next().unwrap_or("").split('\\').collect();
            json!({
                "type": "header",
                "sender": sender,
                "product": product,
                "versions": versions,
                "serial": parts.next(),
                "device_time": fields.last().and_then(|last| time(last)),
            })
        }
        "P" => json!({"type": "patient", "sequence": sequence}),
        "O" => json!({"type": "order", "sequence": sequence}),
        "L" => json!({"type": "terminator", "code": field(3)}),
        "R" => result(&fields, sequence)?,
        _ => return None,
    })
}

fn result(fields: &[&str], sequence: Option<u32>) -> Option<Value> {
    let field = |number: usize| fields.get(number - 1).copied().unwrap_or("");
    let (layout, when, separator) = match (time(field(9)), time(field(12))) {
        (Some(when), _) => ("usb", Some(when), '/'),
        (None, when) => ("serial", when, '\\'),
    };
    let flags: Vec<&str> = field(7)
        .split(separator)
        .filter(|flag| !flag.is_empty())
        .collect();
    let has = |flag: &str| flags.contains(&flag);
    let meal_mark = if layout == "usb" {
        field(7).split('/').find(|f| matches!(*f, "B" | "A"))
    } else {
        Some(field(8))
    };
    let (unit, method) = field(5).split_once('^').unwrap_or((field(5), ""));
    Some(json!({
        "type": "result",
        "layout": layout,
        "sequence": sequence,
        "analyte": field(3).trim_start_matches('^'),
        "value": field(4).trim().parse::<f64>().ok()?,
        "unit": unit,
        "method": method,
        "range": if has("<") { "below" } else if has(">") { "above" } else { "in" },
        "meal": match meal_mark {
            Some("B") => Some("before"),
            Some("A") => Some("after"),
            Some("D") => Some("logbook"),
            _ => None,
        },
        "control": if layout == "usb" { has("C") } else { field(9).contains('E') },
        "device_time": when,
        "flags": flags,
    }))
}

/// So often a meter is told to wait while it is woken; then it may send.
const WAKING_TRIES: u32 = 6;
const POLL_US: u64 = 10_000_000;
const AGAIN_US: u64 = 3_600_000_000;
/// The memories of several meters.
const REMEMBERED: usize = 8000;

/// Lets the meter send.
#[derive(Debug)]
struct Dialogue {
    at: u64,
    transferred: Option<u64>,
    in_transfer: bool,
    waking: bool,
    /// How often the meter was told to wait since then.
    refusals: u32,
    offset: Option<Offset>,
    serial: Option<String>,
    results: usize,
    sent: Seen,
}

impl Default for Dialogue {
    fn default() -> Self {
        Dialogue {
            at: 0,
            transferred: None,
            in_transfer: false,
            waking: false,
            refusals: 0,
            offset: None,
            serial: None,
            results: 0,
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Dialogue {
    fn record(&mut self, record: &Value, now: Now, out: &mut Output) {
        let member = |name: &str| record.get(name).cloned().unwrap_or(Value::Null);
        match record.get("type").and_then(Value::as_str) {
            Some("header") => {
                self.serial = member("serial").as_str().map(str::to_owned);
                let clock = member("device_time");
                self.offset = now
                    .wall
                    .zip(clock.as_str())
                    .and_then(|(wall, device)| Offset::between(device, wall));
                self.results = 0;
                return;
            }
            Some("result") => self.results += 1,
            _ => return,
        }
        let average = self.results == 1 && member("layout") == "serial";
        if average || member("analyte") != "Glucose" {
            return;
        }
        let Some(identity) = self.sent.take_new(&format!("{:?}{record}", self.serial)) else {
            return;
        };
        let control = member("control") == true;
        let specimen = if member("method") == "P" {
            "plasma"
        } else {
            "whole_blood"
        };
        let unit = if member("unit") == "mmol/L" { "_mmol_l" } else { "" };
        let name = if control {
            format!("control_glucose{unit}")
        } else {
            format!("glucose_capillary_{specimen}{unit}")
        };
        let device = member("device_time");
        let time = self
            .offset
            .zip(device.as_str())
            .and_then(|(offset, device)| offset.utc(device));
        let in_range = member("range") == "in";
        let mut body = Body::new(NAME, if control { "control" } else { "record" })
            .with("time", time)
            .with("device_time", device)
            .with("meter_serial", self.serial.clone())
            .with("meal", member("meal"))
            .with("flags", member("flags"))
            .value(&name, Some(member("value")).filter(|_| in_range));
        if !in_range {
            body.put("range", member("range"));
        }
        out.messages.push(body.record(identity));
    }
}

impl Listener<Frame> for Dialogue {
    fn start(&mut self, now: Now, _out: &mut Output) {
        self.in_transfer = false;
        self.waking = false;
        self.transferred = None;
        self.at = now.monotonic_us + POLL_US;
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        self.at = now.monotonic_us + POLL_US;
        match frame {
            Frame::Text { record, .. } => {
                if let Some(record) = record {
                    self.record(&record, now, out);
                    // The last record of a transfer: when this is acknowledged, all of it counts as received.
                    out.after_commit |= record.get("type").and_then(Value::as_str) == Some("terminator");
                }
                out.send.push(vec![ACK]);
            }
            // A meter that is woken while it wants to send is told to wait: it ends with EOT, and is asked in order.
            Frame::Control { control: "enq" } if self.waking && self.refusals < WAKING_TRIES => {
                self.refusals += 1;
                out.send.push(vec![NAK]);
            }
            Frame::Control { control: "enq" } if now.wall.is_some() => {
                self.in_transfer = true;
                self.waking = false;
                out.send.push(vec![ACK]);
            }
            Frame::Control { control: "eot" } if self.in_transfer => {
                self.in_transfer = false;
                self.transferred = Some(now.monotonic_us);
            }
            Frame::Control { control: "eot" } if self.waking => out.send.push(vec![ENQ]),
            // Remote mode, which is left at once: the meter then begins its transfer.
            Frame::Control { control: "ack" } if self.waking => {
                self.waking = false;
                out.send.push(vec![EOT]);
            }
            Frame::Control { .. } => {}
        }
    }

    fn gap(&mut self, now: Now, out: &mut Output) {
        self.at = now.monotonic_us + POLL_US;
        out.send.push(vec![NAK]);
    }

    fn acknowledges(&self) -> bool {
        true
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.at)
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        self.at = now.monotonic_us + POLL_US;
        self.in_transfer = false;
        if now.wall.is_some()
            && self
                .transferred
                .is_none_or(|at| now.monotonic_us >= at + AGAIN_US)
        {
            self.waking = true;
            self.refusals = 0;
            out.send.push(vec![NAK]);
        }
    }
}
