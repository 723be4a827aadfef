//! ASTM E1381 (CLSI LIS01): the low level of laboratory instruments and of Contour glucose meters.
//!
//! STX, frame number, text, ETB or ETX, sum of all from the number on in two hexadecimal digits, CR, LF. The receiver answers every
//! frame with ACK or NAK.

use super::bits::{ascii, byte, part};
use super::checksum::{hex_pair, sum8};
use super::frames::{Reason, Step};

/// Acknowledged.
pub const ACK: u8 = 0x06;
/// Send it again.
pub const NAK: u8 = 0x15;
/// The sender wants to send.
pub const ENQ: u8 = 0x05;
/// The sender has finished.
pub const EOT: u8 = 0x04;

/// Longest text; the standard says 240, meters were seen to send more.
pub const LONGEST_TEXT: usize = 1000;

/// What stands on the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// [`ENQ`].
    Enquiry,
    /// [`EOT`].
    End,
    /// [`ACK`].
    Acknowledge,
    /// [`NAK`].
    Refuse,
    /// A frame.
    Text {
        /// 0 to 7.
        number: u8,
        /// It ends in ETX.
        last: bool,
        /// With its CR.
        text: String,
    },
}

/// What stands at the front of `bytes`.
pub fn next(bytes: &[u8]) -> Step<Block> {
    match byte(bytes, 0) {
        0x02 => {}
        ENQ => return Step::Frame(1, Block::Enquiry),
        EOT => return Step::Frame(1, Block::End),
        ACK => return Step::Frame(1, Block::Acknowledge),
        NAK => return Step::Frame(1, Block::Refuse),
        b'\r' | b'\n' => return Step::Quiet(1),
        _ => return Step::Skip(1),
    }
    let Some(end) = bytes.iter().skip(1).position(|b| matches!(b, 0x02 | 0x03 | 0x17)) else {
        return if bytes.len() > LONGEST_TEXT {
            Step::Refused(1, Reason::TooLong.into())
        } else {
            Step::More
        };
    };
    let end = end + 1;
    if byte(bytes, end) == 0x02 {
        // STX never stands inside a text: this one was cut, and a whole one begins here.
        return Step::Refused(end, Reason::Incomplete.into());
    }
    if bytes.len() < end + 3 {
        return Step::More;
    }
    if hex_pair(byte(bytes, end + 1), byte(bytes, end + 2)) != Some(sum8(part(bytes, 1, end))) {
        let next = part(bytes, end + 1, 2).iter().position(|b| *b == 0x02);
        let used = next.map_or(end + 3, |at| end + 1 + at);
        return Step::Refused(used, Reason::Checksum.into());
    }
    let number = byte(bytes, 1).wrapping_sub(b'0');
    if number > 7 {
        return Step::Refused(end + 3, Reason::FrameNumber.into());
    }
    let text = ascii(part(bytes, 2, end - 2));
    Step::Frame(
        end + 3,
        Block::Text {
            number,
            last: byte(bytes, end) == 0x03,
            text,
        },
    )
}

/// A frame, for simulators and tests.
pub fn frame(number: u8, text: &str, last: bool) -> Vec<u8> {
    let mut bytes = vec![b'0' + number % 8];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(if last { 0x03 } else { 0x17 });
    let check = sum8(&bytes);
    [&[0x02], bytes.as_slice(), format!("{check:02X}\r\n").as_bytes()].concat()
}
