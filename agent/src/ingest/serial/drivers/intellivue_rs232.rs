//! Philips IntelliVue over RS-232 (MIB): framing only. The payload is the Data Export protocol, which is not decoded; the driver only listens.
//!
//! Bodies of kind `frame`: `hex`, the data of the frame.

use serde::Serialize;

use super::body::Body;
use super::port::{Listener, Port};
use super::{DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{byte, part, u16_be, u16_le};
use crate::ingest::serial::framing::checksum::{crc16_x25, to_hex};
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const NAME: &str = "intellivue-rs232";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Philips IntelliVue, RS-232 framing",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::FramingOnly,
    speaks: Speaks::AtTimes,
    pack: "",
    describe: |_, bytes| frames::describe(Framing, bytes),
    commands: Vec::new,
    create: || Box::new(Port::new(Framing, Reading)),
};

const BEGIN: u8 = 0xC0;
const END: u8 = 0xC1;
const ESCAPE: u8 = 0x7D;

/// A frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    protocol_id: String,
    message_type: String,
    length: usize,
    data_hex: String,
}

/// `C0`, header, data, check, `C1`.
#[derive(Debug, Default)]
pub struct Framing;

impl Protocol for Framing {
    type Frame = Frame;
    const LONGEST: usize = 4096;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) != BEGIN {
            return Step::Skip(1);
        }
        let Some(end) = bytes
            .iter()
            .skip(1)
            .position(|b| matches!(*b, BEGIN | END))
            .map(|at| at + 1)
        else {
            return Step::More;
        };
        if byte(bytes, end) == BEGIN {
            return Step::Refused(end, Reason::Incomplete.into());
        }
        let mut inner = Vec::with_capacity(end);
        let mut rest = part(bytes, 1, end - 1).iter().copied();
        while let Some(b) = rest.next() {
            inner.push(match b {
                ESCAPE => match rest.next() {
                    Some(b) => b ^ 0x20,
                    None => return Step::Refused(end + 1, Reason::BadEscape.into()),
                },
                b => b,
            });
        }
        let Some(length) = inner.len().checked_sub(2) else {
            return Step::Refused(end + 1, Reason::Length.into());
        };
        let content = part(&inner, 0, length);
        if crc16_x25(content) != u16_le(&inner, length) {
            return Step::Refused(end + 1, Reason::FrameCheck.into());
        }
        let data = part(content, 4, content.len());
        if usize::from(u16_be(content, 2)) != data.len() {
            return Step::Refused(end + 1, Reason::Length.into());
        }
        let frame = Frame {
            protocol_id: format!("{:02x}", byte(content, 0)),
            message_type: format!("{:02x}", byte(content, 1)),
            length: data.len(),
            data_hex: to_hex(data),
        };
        Step::Frame(end + 1, frame)
    }
}

/// Passes frames on.
#[derive(Debug)]
struct Reading;

impl Listener<Frame> for Reading {
    fn frame(&mut self, frame: Frame, _now: Now, out: &mut Output) {
        if frame.length > 0 {
            out.messages
                .push(Body::new(NAME, "frame").with("hex", frame.data_hex).message());
        }
    }
}
