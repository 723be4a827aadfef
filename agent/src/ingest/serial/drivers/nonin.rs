//! Nonin OEM III, Xpod, Onyx II 9560, WristOx and handhelds: serial formats 2, 7, 8 and 13 and the ASCII real-time line.
//!
//! The format is recognised by itself. The driver only listens; older units choose their format by hardware, the 9560 keeps
//! the format it is set to.
//!
//! Bodies:
//! * `vitals`: `spo2`, `pulse_rate_oximeter` (of formats 2 and 7 the values for recording, of format 8 and the ASCII line the displayed
//!   ones), `spot_check: true` when SmartPoint is reached;
//! * `record` (format 13): the same, with `device_time`, `from_memory`; one from memory has `time` = `device_time`;
//! * `waveform` `pleth_waveform`, 75 Hz, without unit, 8 bit (format 2) or 16 bit (format 7).
//!
//! `status`: `sensor_disconnected`, `sensor_alarm`, `out_of_track`, `artifact`, `low_perfusion`, `marginal_perfusion`, `low_battery`,
//! `no_measurement`, `event_mark`.

use serde::Serialize;

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings};
use crate::ingest::serial::framing::bits::{ascii, bcd, bit, byte, part, u16_be};
use crate::ingest::serial::framing::checksum::sum8;
use crate::ingest::serial::framing::frames::{self, FrameError, Protocol, Reason, Step};

const NAME: &str = "nonin";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Nonin OEM III, Xpod, Onyx, WristOx pulse oximeters",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    pack: NAME,
    describe,
    commands: Vec::new,
    create: || Box::new(Port::new(Framing::default(), Reading::default())),
};

const FRAMES_IN_PACKET: usize = 25;
const FRAME_BYTES: usize = 5;
const PACKET_BYTES: usize = FRAMES_IN_PACKET * FRAME_BYTES;
const RECORD_BYTES: usize = 22;
const RECORD_HEAD: [u8; 6] = [0x00, 0x02, 0x00, 0x0D, 0x00, 0x0E];

/// What the device sends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Frame {
    /// 25 frames of format 2 or 7: a third of a second.
    Packet(Packet),
    /// Format 8, once a second.
    Display(Display),
    /// Format 13: a spot check.
    Record(Record),
    /// The ASCII line, once a second.
    Line(Line),
}

/// A packet of format 2 or 7.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Packet {
    format: u8,
    hr_bpm: Option<u16>,
    spo2_pct: Option<u8>,
    srev: u8,
    timer: u16,
    smartpoint: bool,
    low_battery: bool,
    spo2_d_pct: Option<u8>,
    spo2_fast_pct: Option<u8>,
    spo2_bb_pct: Option<u8>,
    e_hr_bpm: Option<u16>,
    e_spo2_pct: Option<u8>,
    e_spo2_d_pct: Option<u8>,
    hr_d_bpm: Option<u16>,
    e_hr_d_bpm: Option<u16>,
    status_any: StatusAny,
    perfusion_seen: Vec<&'static str>,
    pleth_first5: Vec<u16>,
    #[serde(skip)]
    pleth: Vec<u16>,
}

/// Bits that were set in any frame of a packet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusAny {
    sensor_disconnect: bool,
    artifact: bool,
    out_of_track: bool,
    sensor_alarm: bool,
}

/// A frame of format 8.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Display {
    format: u8,
    hr_d_bpm: Option<u16>,
    spo2_d_pct: Option<u8>,
    sensor_disconnect: bool,
    out_of_track: bool,
    low_perfusion: bool,
    marginal_perfusion: bool,
    artifact: bool,
    smartpoint: bool,
    sensor_alarm: bool,
    low_battery: bool,
}

/// A frame of format 13.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    format: u8,
    device_time: Option<String>,
    hr_bpm: Option<u16>,
    spo2_pct: Option<u8>,
    smartpoint: bool,
    no_measurement: bool,
    from_memory: bool,
    low_battery: bool,
}

/// The ASCII real-time line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_time: Option<String>,
    spo2_pct: Option<u16>,
    hr_bpm: Option<u16>,
    fast: bool,
    event_mark: bool,
}

fn rate(value: u16) -> Option<u16> {
    (value != 511).then_some(value)
}

fn saturation(value: u8) -> Option<u8> {
    (value & 0x7F != 127).then_some(value & 0x7F)
}

/// The format that the device was seen to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Two,
    Seven,
    Eight,
}

/// Finds frames of all formats; keeps to the one that was seen.
#[derive(Debug, Default)]
pub struct Framing {
    seen: Option<Format>,
    strange: usize,
}

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = PACKET_BYTES;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        let step = match byte(bytes, 0) {
            0x01 => packet(bytes, Format::Two),
            0x00 => record(bytes),
            first if first & 0x80 != 0 => self.high(bytes),
            first if first.is_ascii_graphic() || matches!(first, b' ' | b'\r' | b'\n') => line(bytes),
            0x06 | 0x15 => Step::Quiet(1),
            _ => Step::Skip(1),
        };
        self.learn(&step);
        step
    }

    fn last(&mut self, bytes: &[u8]) -> Step<Frame> {
        if bytes.len() == 4 && looks_like_display(bytes) {
            self.seen = Some(Format::Eight);
            return Step::Frame(4, display(bytes));
        }
        Step::Refused(1, Reason::Incomplete.into())
    }
}

impl Framing {
    /// A frame that begins with bit 7 set is of format 7 or 8.
    fn high(&mut self, bytes: &[u8]) -> Step<Frame> {
        match self.seen {
            Some(Format::Two) => Step::Skip(1),
            Some(Format::Seven) => packet(bytes, Format::Seven),
            Some(Format::Eight) => match bytes.len() {
                0..=3 => Step::More,
                _ if looks_like_display(bytes) => Step::Frame(4, display(bytes)),
                _ => Step::Skip(1),
            },
            None => {
                if bytes.len() <= FRAME_BYTES {
                    return Step::More;
                }
                match packet(bytes, Format::Seven) {
                    Step::Refused(_, error) if error.frame_index.is_some_and(|index| index < 2) => {
                        let second = part(bytes, 4, 4);
                        match second.len() {
                            4 if looks_like_display(bytes) && looks_like_display(second) => {
                                Step::Frame(4, display(bytes))
                            }
                            0..=3 if looks_like_display(bytes) => Step::More,
                            _ => Step::Skip(1),
                        }
                    }
                    step => step,
                }
            }
        }
    }

    fn learn(&mut self, step: &Step<Frame>) {
        match step {
            Step::Frame(_, frame) => {
                self.strange = 0;
                self.seen = match frame {
                    Frame::Packet(packet) if packet.format == 2 => Some(Format::Two),
                    Frame::Packet(_) => Some(Format::Seven),
                    Frame::Display(_) => Some(Format::Eight),
                    Frame::Record(_) | Frame::Line(_) => None,
                };
            }
            Step::Skip(n) | Step::Refused(n, _) => {
                self.strange += n;
                if self.strange > 4 * PACKET_BYTES {
                    self.seen = None;
                }
            }
            Step::More | Step::Quiet(_) => {}
        }
    }
}

fn packet(bytes: &[u8], format: Format) -> Step<Frame> {
    // Format 2 begins with 01 and has an 8-bit waveform, format 7 has the second byte of the waveform instead.
    let status_at = usize::from(format == Format::Two);
    for (index, frame) in bytes.chunks(FRAME_BYTES).take(FRAMES_IN_PACKET).enumerate() {
        let Some(status) = frame.get(status_at) else {
            return Step::More;
        };
        let refused = FrameError {
            frame_index: Some(index),
            ..Reason::Checksum.into()
        };
        if !bit(*status, 7) || (format == Format::Two && byte(frame, 0) != 1) {
            return if index == 0 && format == Format::Two {
                Step::Skip(1)
            } else {
                Step::Refused(1, refused)
            };
        }
        if frame.len() < FRAME_BYTES {
            return Step::More;
        }
        if sum8(part(frame, 0, FRAME_BYTES - 1)) != byte(frame, FRAME_BYTES - 1) {
            return Step::Refused(1, refused);
        }
        if bit(*status, 0) != (index == 0) {
            // The rest of a packet whose beginning was not seen, or a packet that was cut.
            return Step::Skip((index.max(1)) * FRAME_BYTES);
        }
    }
    if bytes.len() < PACKET_BYTES {
        return Step::More;
    }
    Step::Frame(
        PACKET_BYTES,
        Frame::Packet(decode_packet(part(bytes, 0, PACKET_BYTES), format)),
    )
}

fn decode_packet(bytes: &[u8], format: Format) -> Packet {
    let frames: Vec<&[u8]> = bytes.chunks_exact(FRAME_BYTES).collect();
    let status_at = usize::from(format == Format::Two);
    let slot = |number: usize| frames.get(number - 1).map_or(0, |frame| byte(frame, 3));
    let wide = |high: usize, mask: u8| u16::from(slot(high) & mask) << 7 | u16::from(slot(high + 1) & 0x7F);
    let any = |number: u8| frames.iter().any(|frame| bit(byte(frame, status_at), number));
    let mut perfusion_seen = Vec::new();
    for frame in &frames {
        let word = match byte(frame, status_at) >> 1 & 3 {
            0 => continue,
            1 => "green",
            2 => "red",
            _ => "yellow",
        };
        if !perfusion_seen.contains(&word) {
            perfusion_seen.push(word);
        }
    }
    let pleth: Vec<u16> = frames
        .iter()
        .map(|frame| {
            if format == Format::Two {
                u16::from(byte(frame, 2))
            } else {
                u16_be(frame, 1)
            }
        })
        .collect();
    Packet {
        format: if format == Format::Two { 2 } else { 7 },
        hr_bpm: rate(wide(1, 3)),
        spo2_pct: saturation(slot(3)),
        srev: slot(4),
        timer: wide(6, 0x7F),
        smartpoint: bit(slot(8), 5),
        low_battery: bit(slot(8), 0),
        spo2_d_pct: saturation(slot(9)),
        spo2_fast_pct: saturation(slot(10)),
        spo2_bb_pct: saturation(slot(11)),
        e_hr_bpm: rate(wide(14, 3)),
        e_spo2_pct: saturation(slot(16)),
        e_spo2_d_pct: saturation(slot(17)),
        hr_d_bpm: rate(wide(20, 3)),
        e_hr_d_bpm: rate(wide(22, 3)),
        status_any: StatusAny {
            sensor_disconnect: any(6),
            artifact: any(5),
            out_of_track: any(4),
            sensor_alarm: any(3),
        },
        perfusion_seen,
        pleth_first5: pleth.iter().take(5).copied().collect(),
        pleth,
    }
}

fn looks_like_display(bytes: &[u8]) -> bool {
    let &[status, rate, saturation, more, ..] = bytes else {
        return false;
    };
    status & 0x80 != 0 && rate < 0x80 && (saturation <= 100 || saturation == 127) && more & !0x2F == 0
}

fn display(bytes: &[u8]) -> Frame {
    let (status, more) = (byte(bytes, 0), byte(bytes, 3));
    Frame::Display(Display {
        format: 8,
        hr_d_bpm: rate(u16::from(status & 3) << 7 | u16::from(byte(bytes, 1))),
        spo2_d_pct: saturation(byte(bytes, 2)),
        sensor_disconnect: bit(status, 6),
        out_of_track: bit(status, 5),
        low_perfusion: bit(status, 4),
        marginal_perfusion: bit(status, 3),
        artifact: bit(status, 2),
        smartpoint: bit(more, 5),
        sensor_alarm: bit(more, 3),
        low_battery: bit(more, 0),
    })
}

fn record(bytes: &[u8]) -> Step<Frame> {
    if !RECORD_HEAD.starts_with(part(bytes, 0, RECORD_HEAD.len())) {
        return Step::Skip(1);
    }
    if bytes.len() < RECORD_BYTES {
        return Step::More;
    }
    let data = part(bytes, 6, 14);
    if byte(bytes, 21) != 0x03 {
        return Step::Refused(1, Reason::StopMarker.into());
    }
    if sum8(data) != byte(bytes, 20) {
        return Step::Refused(1, Reason::Checksum.into());
    }
    let digits: Option<Vec<u8>> = part(data, 0, 7).iter().map(|b| bcd(*b)).collect();
    let device_time = match digits.as_deref() {
        Some(&[century, year, month, day, hour, minute, second]) => Some(format!(
            "{century:02}{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )),
        _ => None,
    };
    let (high, low) = (byte(data, 8), byte(data, 9));
    Step::Frame(
        RECORD_BYTES,
        Frame::Record(Record {
            format: 13,
            device_time,
            hr_bpm: rate(u16_be(data, 10)),
            spo2_pct: saturation(byte(data, 13)),
            smartpoint: bit(high, 1),
            no_measurement: bit(high, 0),
            from_memory: bit(low, 4),
            low_battery: bit(low, 0),
        }),
    )
}

const LONGEST_LINE: usize = 120;

fn line(bytes: &[u8]) -> Step<Frame> {
    let text_end = bytes
        .iter()
        .position(|b| !(b.is_ascii_graphic() || matches!(b, b' ' | b'\t' | b'\r')))
        .unwrap_or(bytes.len());
    match bytes.get(text_end) {
        Some(b'\n') => {}
        None if bytes.len() < LONGEST_LINE => return Step::More,
        None => return Step::Skip(1),
        Some(_) => return Step::Skip(text_end),
    }
    let text = ascii(part(bytes, 0, text_end));
    match parse_line(text.trim()) {
        Some(line) => Step::Frame(text_end + 1, Frame::Line(line)),
        None => Step::Quiet(text_end + 1),
    }
}

fn parse_line(text: &str) -> Option<Line> {
    let (before, rest) = text.split_once("SPO2=")?;
    let (saturation, rest) = rest.split_once(' ')?;
    let rest = rest.trim_start().strip_prefix("HR=")?;
    let digits = rest
        .find(|c: char| !(c.is_ascii_digit() || c == '-'))
        .unwrap_or(rest.len());
    let (rate, marks) = rest.split_at_checked(digits)?;
    let number = |text: &str| {
        if text.starts_with('-') {
            Some(None)
        } else {
            text.parse().ok().map(Some)
        }
    };
    Some(Line {
        device_time: Some(before.trim().to_owned()).filter(|time| !time.is_empty()),
        spo2_pct: number(saturation)?,
        hr_bpm: number(rate)?,
        fast: marks.contains('F'),
        event_mark: marks.contains('*'),
    })
}

/// Turns frames into readings.
#[derive(Debug)]
struct Reading {
    vitals: Vitals,
    pleth: Waveform,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            vitals: Vitals::default(),
            pleth: Waveform::new(NAME, "pleth_waveform", 75_000),
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let vitals = Body::new(NAME, "vitals");
        match frame {
            Frame::Packet(packet) => {
                for sample in &packet.pleth {
                    self.pleth.sample(*sample, now, out);
                }
                let seen = |word| packet.perfusion_seen.contains(&word);
                let body = vitals
                    .value("spo2", packet.spo2_pct)
                    .value("pulse_rate_oximeter", packet.hr_bpm)
                    .with("spot_check", packet.smartpoint.then_some(true))
                    .status(&[
                        (packet.status_any.sensor_disconnect, "sensor_disconnected"),
                        (packet.status_any.sensor_alarm, "sensor_alarm"),
                        (packet.status_any.out_of_track, "out_of_track"),
                        (packet.status_any.artifact, "artifact"),
                        (seen("red"), "low_perfusion"),
                        (seen("yellow"), "marginal_perfusion"),
                        (packet.low_battery, "low_battery"),
                    ]);
                self.vitals.offer(body, now, out);
            }
            Frame::Display(display) => {
                let body = vitals
                    .value("spo2", display.spo2_d_pct)
                    .value("pulse_rate_oximeter", display.hr_d_bpm)
                    .with("spot_check", display.smartpoint.then_some(true))
                    .status(&[
                        (display.sensor_disconnect, "sensor_disconnected"),
                        (display.sensor_alarm, "sensor_alarm"),
                        (display.out_of_track, "out_of_track"),
                        (display.artifact, "artifact"),
                        (display.low_perfusion, "low_perfusion"),
                        (display.marginal_perfusion, "marginal_perfusion"),
                        (display.low_battery, "low_battery"),
                    ]);
                self.vitals.offer(body, now, out);
            }
            Frame::Record(record) => {
                let time = record.device_time.clone().filter(|_| record.from_memory);
                let body = Body::new(NAME, "record")
                    .with("time", time)
                    .with("device_time", record.device_time)
                    .with("from_memory", record.from_memory)
                    .value("spo2", record.spo2_pct)
                    .value("pulse_rate_oximeter", record.hr_bpm)
                    .with("spot_check", record.smartpoint.then_some(true))
                    .status(&[
                        (record.no_measurement, "no_measurement"),
                        (record.low_battery, "low_battery"),
                    ]);
                if body.has_values() {
                    out.messages.push(body.message());
                }
            }
            Frame::Line(line) => {
                let body = vitals
                    .with("device_time", line.device_time)
                    .value("spo2", line.spo2_pct)
                    .value("pulse_rate_oximeter", line.hr_bpm)
                    .status(&[(line.event_mark, "event_mark")]);
                self.vitals.offer(body, now, out);
            }
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        self.pleth.gap(out);
    }
}

fn describe(direction: Direction, bytes: &[u8]) -> Description {
    match direction {
        Direction::DeviceToHost => frames::describe(Framing::default(), bytes),
        Direction::HostToDevice => Description::of(describe_command(bytes)),
    }
}

/// Commands of the 9560 as other programs may send them; this driver sends none.
fn describe_command(bytes: &[u8]) -> Option<serde_json::Value> {
    match *bytes {
        [0x02, 0x70, 0x02, 0x02, format, 0x03] => {
            Some(serde_json::json!({"command": "set_format", "format": format}))
        }
        [0x02, 0x72, 0x06, year, month, day, hour, minute, second, 0x03] => Some(serde_json::json!({
            "command": "set_time",
            "device_time": format!("20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"),
        })),
        [0x02, 0x72, 0x00, 0x03] => Some(serde_json::json!({"command": "read_time"})),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver;
    use super::*;

    const PACKET: &str = "018380000401829848630182b062950182c430770182d400570182df096b0182e352b80182e200650182da62bf0182cd62b20182ba629f0182a4002701808c000d01807400f501805c48250180466229018033621601802600a701801e009f01801d009e01802148ea01802c00ad01803c480501805000d101806800e9";

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    fn at(monotonic_us: u64) -> Now {
        Now {
            monotonic_us,
            wall: iomt_mapping::Timestamp::from_ticks(i64::try_from(monotonic_us).unwrap() * 10),
        }
    }

    fn bodies(out: &Output) -> Vec<String> {
        out.messages
            .iter()
            .map(|m| String::from_utf8(m.body.clone()).unwrap())
            .collect()
    }

    #[test]
    fn vitals_leave_once_a_second_and_the_waveform_in_blocks() {
        let mut driver = driver("nonin").unwrap().create();
        let mut out = Output::default();
        for third in 0..30 {
            driver.bytes(&hex(PACKET), at(third * 333_333), &mut out);
        }
        let vitals = out.messages.iter().filter(|m| !m.waveform).count();
        assert_eq!((vitals, out.messages.len() - vitals, out.garbage), (10, 3, 0));
        assert_eq!(
            bodies(&out)[0],
            r#"{"driver":"nonin","kind":"vitals","spo2":98,"pulse_rate_oximeter":72}"#
        );
    }

    #[test]
    fn every_split_of_a_packet_gives_the_same_reading() {
        for split in 0..=PACKET.len() / 2 {
            let mut driver = driver("nonin").unwrap().create();
            let mut out = Output::default();
            let (head, tail) = (&hex(PACKET)[..split], &hex(PACKET)[split..]);
            driver.bytes(head, at(0), &mut out);
            driver.bytes(tail, at(1000), &mut out);
            assert_eq!((out.messages.len(), out.garbage), (1, 0), "split at {split}");
        }
    }

    #[test]
    fn format_8_is_recognised_by_silence_and_missing_codes_give_a_status_once() {
        let mut driver = driver("nonin").unwrap().create();
        let mut out = Output::default();
        for (second, frame) in ["80426100", "81115f00", "a37f7f00", "a37f7f00"]
            .iter()
            .enumerate()
        {
            let now = second as u64 * 1_000_000;
            driver.bytes(&hex(frame), at(now), &mut out);
            if let Some(deadline) = driver.deadline() {
                driver.timeout(at(deadline), &mut out);
            }
        }
        assert_eq!(
            bodies(&out),
            [
                r#"{"driver":"nonin","kind":"vitals","spo2":97,"pulse_rate_oximeter":66}"#,
                r#"{"driver":"nonin","kind":"vitals","spo2":95,"pulse_rate_oximeter":145}"#,
                r#"{"driver":"nonin","kind":"status","status":["out_of_track"]}"#,
            ]
        );
    }
}
