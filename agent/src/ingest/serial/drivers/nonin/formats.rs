//! The formats of Nonin devices: 2 and 7 (packets of 25 frames), 8, 13 and the ASCII line, told apart by their shape.

use serde::Serialize;

use crate::ingest::serial::framing::bits::{ascii, bcd, bit, byte, part, u16_be};
use crate::ingest::serial::framing::checksum::sum8;
use crate::ingest::serial::framing::frames::{FrameError, Protocol, Reason, Step};

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
    /// The answer to a question for the time, which another program asked.
    Clock(Clock),
}

/// A packet of format 2 or 7.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Packet {
    pub(super) format: u8,
    pub(super) hr_bpm: Option<u16>,
    pub(super) spo2_pct: Option<u8>,
    pub(super) srev: u8,
    pub(super) timer: u16,
    pub(super) smartpoint: bool,
    pub(super) low_battery: bool,
    pub(super) spo2_d_pct: Option<u8>,
    pub(super) spo2_fast_pct: Option<u8>,
    pub(super) spo2_bb_pct: Option<u8>,
    pub(super) e_hr_bpm: Option<u16>,
    pub(super) e_spo2_pct: Option<u8>,
    pub(super) e_spo2_d_pct: Option<u8>,
    pub(super) hr_d_bpm: Option<u16>,
    pub(super) e_hr_d_bpm: Option<u16>,
    pub(super) status_any: StatusAny,
    pub(super) perfusion_seen: Vec<&'static str>,
    pub(super) pleth_first5: Vec<u16>,
    #[serde(skip)]
    pub(super) pleth: Vec<u16>,
}

/// Bits that were set in any frame of a packet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusAny {
    pub(super) sensor_disconnect: bool,
    pub(super) artifact: bool,
    pub(super) out_of_track: bool,
    pub(super) sensor_alarm: bool,
}

/// A frame of format 8.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Display {
    pub(super) format: u8,
    pub(super) hr_d_bpm: Option<u16>,
    pub(super) spo2_d_pct: Option<u8>,
    pub(super) sensor_disconnect: bool,
    pub(super) out_of_track: bool,
    pub(super) low_perfusion: bool,
    pub(super) marginal_perfusion: bool,
    pub(super) artifact: bool,
    pub(super) smartpoint: bool,
    pub(super) sensor_alarm: bool,
    pub(super) low_battery: bool,
    /// Of the WristOx.
    #[serde(skip)]
    pub(super) battery_critical: bool,
}

/// A frame of format 13.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    pub(super) format: u8,
    pub(super) device_time: Option<String>,
    pub(super) hr_bpm: Option<u16>,
    pub(super) spo2_pct: Option<u8>,
    pub(super) smartpoint: bool,
    pub(super) no_measurement: bool,
    pub(super) from_memory: bool,
    pub(super) low_battery: bool,
}

/// The ASCII real-time line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device_time: Option<String>,
    pub(super) spo2_pct: Option<u16>,
    pub(super) hr_bpm: Option<u16>,
    pub(super) fast: bool,
    pub(super) event_mark: bool,
}

/// What the clock of the device shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Clock {
    reply: &'static str,
    device_time: String,
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
            0x02 => clock(bytes),
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
                            _ if error
                                .frame_index
                                .is_some_and(|index| good_frames_behind(bytes, index)) =>
                            {
                                Step::Refused(1, error)
                            }
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
                    Frame::Record(_) | Frame::Line(_) | Frame::Clock(_) => None,
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

/// Whether frames of format 7 follow the damaged one, so that it was one of them.
fn good_frames_behind(bytes: &[u8], damaged: usize) -> bool {
    let behind = bytes.chunks_exact(FRAME_BYTES).skip(damaged + 1).take(3);
    let good = |frame: &&[u8]| {
        byte(frame, 0) & 0x81 == 0x80 && sum8(part(frame, 0, FRAME_BYTES - 1)) == byte(frame, FRAME_BYTES - 1)
    };
    behind.filter(good).count() == 3
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
        battery_critical: bit(more, 1),
    })
}

/// `02 F2 06`, the binary time, `03`.
fn clock(bytes: &[u8]) -> Step<Frame> {
    const HEAD: [u8; 3] = [0x02, 0xF2, 0x06];
    if !HEAD.starts_with(part(bytes, 0, HEAD.len())) {
        return Step::Skip(1);
    }
    let &[_, _, _, year, month, day, hour, minute, second, end, ..] = bytes else {
        return Step::More;
    };
    if end != 0x03 {
        return Step::Skip(1);
    }
    let device_time = format!("20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let reply = "time";
    Step::Frame(10, Frame::Clock(Clock { reply, device_time }))
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
