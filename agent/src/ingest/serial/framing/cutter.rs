//! The generic framings: each says where a frame begins and ends and which check it carries.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::FramingConfig;
use super::astm::{self, Block};
use super::bits::{ascii, byte, part, u16_be, u16_le};
use super::checksum::{crc16_ccitt_false, crc16_modbus, crc16_x25, hex_pair, sum8, to_hex, xor8};
use super::frames::{Protocol, Reason, Step};

/// The generic framings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FramingKind {
    /// Lines that end in LF or CR LF.
    #[default]
    Lines,
    /// STX, text, ETX, check.
    StxEtx,
    /// RFC 1055.
    Slip,
    /// Consistent overhead byte stuffing, 00 ends.
    Cobs,
    /// Length of the payload, payload, CRC-16 of Modbus over both, low byte first.
    #[serde(rename = "length-crc16")]
    LengthCrc16,
    /// Requests and answers on a Modbus line, told apart by their length fields.
    ModbusRtu,
    /// ASTM E1381, answered with ACK and NAK.
    Astm,
    /// HL7 minimal lower layer protocol, answered with an acknowledgement message.
    Mllp,
    /// `$`, text, `*`, exclusive or in two hexadecimal digits.
    Nmea,
}

/// The check of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksum {
    /// None.
    #[default]
    None,
    /// Exclusive or, one byte.
    Xor8,
    /// Sum, one byte.
    Sum8,
    /// Exclusive or, two hexadecimal digits.
    Xor8Hex,
    /// Sum, two hexadecimal digits.
    Sum8Hex,
    /// CRC-16 of Modbus, low byte first.
    Crc16Modbus,
    /// CRC-16/X.25, low byte first.
    Crc16X25,
    /// CRC-16/CCITT-FALSE, high byte first.
    Crc16Ccitt,
}

impl Checksum {
    /// Bytes on the line.
    fn length(self) -> usize {
        match self {
            Checksum::None => 0,
            Checksum::Xor8 | Checksum::Sum8 => 1,
            _ => 2,
        }
    }

    /// Whether `check` is right for `covered`.
    fn holds(self, covered: &[u8], check: &[u8]) -> bool {
        let digits = || hex_pair(byte(check, 0), byte(check, 1));
        match self {
            Checksum::None => true,
            Checksum::Xor8 => byte(check, 0) == xor8(covered),
            Checksum::Sum8 => byte(check, 0) == sum8(covered),
            Checksum::Xor8Hex => digits() == Some(xor8(covered)),
            Checksum::Sum8Hex => digits() == Some(sum8(covered)),
            Checksum::Crc16Modbus => u16_le(check, 0) == crc16_modbus(covered),
            Checksum::Crc16X25 => u16_le(check, 0) == crc16_x25(covered),
            Checksum::Crc16Ccitt => u16_be(check, 0) == crc16_ccitt_false(covered),
        }
    }

    fn reason(self) -> Reason {
        match self {
            Checksum::Crc16Modbus | Checksum::Crc16X25 | Checksum::Crc16Ccitt => Reason::Crc,
            _ => Reason::Checksum,
        }
    }
}

/// A frame that was cut out.
#[derive(Debug, Default)]
pub struct Cut {
    /// What the format reads.
    pub payload: Vec<u8>,
    /// What the framing itself says.
    pub details: Map<String, Value>,
    /// What the sender waits for.
    pub reply: Option<Vec<u8>>,
}

impl Cut {
    fn of(payload: &[u8]) -> Self {
        Cut {
            payload: payload.to_vec(),
            ..Cut::default()
        }
    }

    fn with(payload: &[u8], details: Value) -> Self {
        let details = match details {
            Value::Object(details) => details,
            _ => Map::new(),
        };
        Cut {
            payload: payload.to_vec(),
            details,
            reply: None,
        }
    }
}

/// Cuts frames of one generic framing.
#[derive(Debug)]
pub struct Cutter {
    kind: FramingKind,
    checksum: Checksum,
    length_bytes: usize,
    max_bytes: usize,
    /// A line became too long: its rest is dropped too.
    dropping: bool,
    /// Text of an ASTM record whose end has not come.
    text: String,
}

impl Cutter {
    /// As configured.
    pub fn new(config: &FramingConfig) -> Self {
        Cutter {
            kind: config.framing,
            checksum: config.checksum,
            length_bytes: config.length_bytes.clamp(1, 2),
            max_bytes: config.max_bytes.clamp(1, super::MAX_FRAME_BYTES - 8),
            dropping: false,
            text: String::new(),
        }
    }

    /// The end of a frame at `mark`; else the bytes to drop because it has become too long, or none.
    fn until(&self, bytes: &[u8], mark: u8) -> Result<usize, Option<usize>> {
        match bytes.iter().position(|b| *b == mark) {
            Some(end) if end <= self.max_bytes + 4 => Ok(end),
            Some(end) => Err(Some(end + 1)),
            None => Err((bytes.len() > self.max_bytes + 4).then_some(bytes.len())),
        }
    }

    fn line(&mut self, bytes: &[u8]) -> Step<Cut> {
        let end = bytes.iter().position(|b| *b == b'\n');
        match end {
            Some(end) if self.dropping => {
                self.dropping = false;
                Step::Skip(end + 1)
            }
            Some(end) if end <= self.max_bytes => {
                let line = part(bytes, 0, end);
                Step::Frame(end + 1, Cut::of(line.strip_suffix(b"\r").unwrap_or(line)))
            }
            Some(end) => Step::Refused(end + 1, Reason::TooLong.into()),
            None if self.dropping => Step::Skip(bytes.len()),
            None if bytes.len() > self.max_bytes => {
                self.dropping = true;
                Step::Refused(bytes.len(), Reason::TooLong.into())
            }
            None => Step::More,
        }
    }

    fn stx_etx(&self, bytes: &[u8]) -> Step<Cut> {
        match byte(bytes, 0) {
            0x02 => {}
            b'\r' | b'\n' => return Step::Quiet(1),
            _ => return Step::Skip(1),
        }
        let Some(end) = bytes.iter().position(|b| *b == 0x03) else {
            return if bytes.len() > self.max_bytes + 2 {
                Step::Refused(1, Reason::TooLong.into())
            } else {
                Step::More
            };
        };
        let check = part(bytes, end + 1, self.checksum.length());
        if check.len() < self.checksum.length() {
            return Step::More;
        }
        if !self.checksum.holds(part(bytes, 1, end), check) {
            return Step::Refused(1, self.checksum.reason().into());
        }
        Step::Frame(end + 1 + check.len(), Cut::of(part(bytes, 1, end - 1)))
    }

    fn slip(&self, bytes: &[u8]) -> Step<Cut> {
        let end = match self.until(bytes, 0xC0) {
            Ok(0) => return Step::Quiet(1),
            Ok(end) => end,
            Err(None) => return Step::More,
            Err(Some(dropped)) => return Step::Refused(dropped, Reason::TooLong.into()),
        };
        let mut payload = Vec::with_capacity(end);
        let mut rest = part(bytes, 0, end).iter().copied();
        while let Some(b) = rest.next() {
            payload.push(match b {
                0xDB => match rest.next() {
                    Some(0xDC) => 0xC0,
                    Some(0xDD) => 0xDB,
                    _ => return Step::Refused(end + 1, Reason::BadEscape.into()),
                },
                b => b,
            });
        }
        self.checked(end + 1, &payload)
    }

    fn cobs(&self, bytes: &[u8]) -> Step<Cut> {
        let end = match self.until(bytes, 0x00) {
            Ok(0) => return Step::Quiet(1),
            Ok(end) => end,
            Err(None) => return Step::More,
            Err(Some(dropped)) => return Step::Refused(dropped, Reason::TooLong.into()),
        };
        let mut payload = Vec::with_capacity(end);
        let mut rest = part(bytes, 0, end);
        while let Some((code, after)) = rest.split_first() {
            let length = usize::from(*code) - 1;
            let Some((block, after)) = after.split_at_checked(length) else {
                return Step::Refused(end + 1, Reason::TruncatedBlock.into());
            };
            payload.extend_from_slice(block);
            if *code != 0xFF && !after.is_empty() {
                payload.push(0);
            }
            rest = after;
        }
        self.checked(end + 1, &payload)
    }

    /// A payload that ends in its check.
    fn checked(&self, used: usize, payload: &[u8]) -> Step<Cut> {
        let Some(length) = payload.len().checked_sub(self.checksum.length()) else {
            return Step::Refused(used, Reason::Length.into());
        };
        let (content, check) = (part(payload, 0, length), part(payload, length, 2));
        if !self.checksum.holds(content, check) {
            return Step::Refused(used, self.checksum.reason().into());
        }
        match self.checksum {
            Checksum::Crc16Modbus => Step::Frame(used, Cut::with(content, json!({"crc": "modbus"}))),
            _ => Step::Frame(used, Cut::of(content)),
        }
    }

    fn length_crc16(&self, bytes: &[u8]) -> Step<Cut> {
        let head = self.length_bytes;
        if bytes.len() < head {
            return Step::More;
        }
        let length = if head == 1 {
            usize::from(byte(bytes, 0))
        } else {
            usize::from(u16_le(bytes, 0))
        };
        if length > self.max_bytes {
            return Step::Skip(1);
        }
        if bytes.len() < head + length + 2 {
            return Step::More;
        }
        if length == 0 && u16_le(bytes, head) != crc16_modbus(part(bytes, 0, head)) {
            // Padding.
            return Step::Skip(1);
        }
        if u16_le(bytes, head + length) != crc16_modbus(part(bytes, 0, head + length)) {
            return Step::Refused(1, Reason::Crc.into());
        }
        Step::Frame(head + length + 2, Cut::of(part(bytes, head, length)))
    }

    fn mllp(&self, bytes: &[u8]) -> Step<Cut> {
        if byte(bytes, 0) != 0x0B {
            return Step::Skip(1);
        }
        let end = bytes.windows(2).position(|pair| pair == [0x1C, 0x0D]);
        // VT never stands inside a message: this one was cut, and a whole one begins there.
        let before = end.unwrap_or(bytes.len());
        if let Some(next) = part(bytes, 1, before).iter().position(|b| *b == 0x0B) {
            return Step::Refused(next + 1, Reason::Incomplete.into());
        }
        let Some(end) = end else {
            return if bytes.len() > self.max_bytes + 3 {
                Step::Refused(1, Reason::TooLong.into())
            } else {
                Step::More
            };
        };
        let payload = part(bytes, 1, end - 1);
        let reply = acknowledgement(payload);
        Step::Frame(
            end + 2,
            Cut {
                reply,
                ..Cut::of(payload)
            },
        )
    }

    fn nmea(&self, bytes: &[u8]) -> Step<Cut> {
        match byte(bytes, 0) {
            b'$' => {}
            b'\r' | b'\n' => return Step::Quiet(1),
            _ => return Step::Skip(1),
        }
        let Some(end) = bytes.iter().position(|b| matches!(b, b'*' | b'\n')) else {
            return if bytes.len() > self.max_bytes + 1 {
                Step::Refused(1, Reason::TooLong.into())
            } else {
                Step::More
            };
        };
        if byte(bytes, end) == b'\n' {
            return Step::Refused(end + 1, Reason::Checksum.into());
        }
        if bytes.len() < end + 3 {
            return Step::More;
        }
        let payload = part(bytes, 1, end - 1);
        if hex_pair(byte(bytes, end + 1), byte(bytes, end + 2)) != Some(xor8(payload)) {
            return Step::Refused(1, Reason::Checksum.into());
        }
        let text = ascii(payload);
        let mut fields: Vec<&str> = text.split(',').collect();
        let talker = fields.remove(0);
        Step::Frame(
            end + 3,
            Cut::with(payload, json!({"talker": talker, "fields": fields})),
        )
    }

    fn astm(&mut self, bytes: &[u8]) -> Step<Cut> {
        let quiet = |n, reply: Option<u8>| {
            Step::Frame(
                n,
                Cut {
                    reply: reply.map(|b| vec![b]),
                    ..Cut::default()
                },
            )
        };
        match astm::next(bytes) {
            Step::Frame(n, Block::Text { number, last, text }) => {
                self.text.push_str(&text);
                let record = if text.ends_with('\r') || last {
                    std::mem::take(&mut self.text)
                } else {
                    self.text.truncate(self.max_bytes);
                    String::new()
                };
                let record = record.trim_end_matches('\r');
                let details =
                    json!({"frame_number": number, "last_block": last, "text": text.trim_end_matches('\r')});
                let cut = Cut::with(record.as_bytes(), details);
                Step::Frame(
                    n,
                    Cut {
                        reply: Some(vec![astm::ACK]),
                        ..cut
                    },
                )
            }
            Step::Frame(n, Block::Enquiry) => quiet(n, Some(astm::ACK)),
            Step::Frame(n, _) => Step::Quiet(n),
            Step::More => Step::More,
            Step::Skip(n) => Step::Skip(n),
            Step::Quiet(n) => Step::Quiet(n),
            Step::Refused(n, error) => Step::Refused(n, error),
        }
    }
}

/// The answer that an HL7 sender waits for; none without a message header.
fn acknowledgement(message: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(message).ok()?;
    let header = text.split('\r').next()?.strip_prefix("MSH")?;
    let separator = header.chars().next()?;
    let fields: Vec<&str> = header.split(separator).collect();
    let field = |number: usize| fields.get(number - 1).copied().unwrap_or("");
    let s = separator;
    let answer = format!(
        "\x0bMSH{s}{}{s}{}{s}{}{s}{}{s}{}{s}{s}{s}ACK{s}{}{s}{}{s}{}\rMSA{s}AA{s}{}\r\x1c\r",
        field(2),
        field(5),
        field(6),
        field(3),
        field(4),
        field(10),
        field(11),
        field(12),
        field(10)
    );
    Some(answer.into_bytes())
}

/// Bytes of a request for coils or registers.
const MODBUS_REQUEST_BYTES: usize = 8;

fn modbus(bytes: &[u8]) -> Step<Cut> {
    let &[unit, function, ..] = bytes else {
        return Step::More;
    };
    let counted = |at: usize| bytes.get(at).map(|count| at + 1 + usize::from(*count) + 2);
    // What a request and an answer of this function would be long.
    let lengths = match function {
        1..=4 => [Some(8), counted(2)],
        5 | 6 => [Some(8), None],
        15 | 16 => [Some(8), counted(6)],
        0x81..=0x90 => [Some(5), None],
        _ => return Step::Skip(1),
    };
    if unit > 247 {
        return Step::Skip(1);
    }
    let mut more = false;
    for length in lengths.into_iter().flatten() {
        let frame = part(bytes, 0, length);
        more |= frame.len() < length;
        if frame.len() == length && u16_le(frame, length - 2) == crc16_modbus(part(frame, 0, length - 2)) {
            let payload = part(frame, 0, length - 2);
            let mut details = Map::new();
            let mut put = |name: &str, value: Value| details.insert(name.to_owned(), value);
            put("unit", unit.into());
            put("function", (function & 0x7F).into());
            if function & 0x80 != 0 {
                put("exception", json!(byte(frame, 2)));
            } else if length == 8 && (function != 5 && function != 6) {
                put("address", json!(u16_be(frame, 2)));
                put("count", json!(u16_be(frame, 4)));
            } else if length == 8 {
                put("address", json!(u16_be(frame, 2)));
                put("value", json!(u16_be(frame, 4)));
            } else {
                let data = part(payload, if function <= 4 { 3 } else { 7 }, payload.len());
                put("byte_count", json!(data.len()));
                put("data_hex", json!(to_hex(data)));
                if matches!(function, 3 | 4) {
                    let registers: Vec<u16> = data.chunks_exact(2).map(|pair| u16_be(pair, 0)).collect();
                    put("registers", json!(registers));
                }
            }
            return Step::Frame(
                length,
                Cut {
                    details,
                    ..Cut::of(payload)
                },
            );
        }
    }
    if more || bytes.len() < 5 {
        Step::More
    } else {
        Step::Refused(1, Reason::Crc.into())
    }
}

impl Protocol for Cutter {
    type Frame = Cut;
    const LONGEST: usize = super::MAX_FRAME_BYTES;
    const HALF_FRAME_US: u64 = 2_000_000;

    fn next(&mut self, bytes: &[u8]) -> Step<Cut> {
        match self.kind {
            FramingKind::Lines => self.line(bytes),
            FramingKind::StxEtx => self.stx_etx(bytes),
            FramingKind::Slip => self.slip(bytes),
            FramingKind::Cobs => self.cobs(bytes),
            FramingKind::LengthCrc16 => self.length_crc16(bytes),
            FramingKind::ModbusRtu => modbus(bytes),
            FramingKind::Astm => self.astm(bytes),
            FramingKind::Mllp => self.mllp(bytes),
            FramingKind::Nmea => self.nmea(bytes),
        }
    }

    fn joined(&self) -> usize {
        self.text.len()
    }

    fn forget(&mut self) {
        self.text.clear();
        self.dropping = false;
    }

    fn last(&mut self, bytes: &[u8]) -> Step<Cut> {
        match self.kind {
            FramingKind::Lines | FramingKind::Slip | FramingKind::Cobs => {
                self.dropping = false;
                Step::Refused(bytes.len(), Reason::Incomplete.into())
            }
            // A request and an answer of this function were both long enough, and neither has a right check.
            FramingKind::ModbusRtu if bytes.len() >= MODBUS_REQUEST_BYTES => {
                Step::Refused(1, Reason::Crc.into())
            }
            _ => Step::Refused(1, Reason::Incomplete.into()),
        }
    }
}
