//! The packets of MQTT 3.1.1 and 5 that a server receives, and how they are read. What the broker writes is in `encode`.
//!
//! Invariant: `read` takes a whole packet from the buffer or nothing, and never more than the packet limit into memory.

use bytes::{Buf, Bytes, BytesMut};

/// Protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1 (protocol level 4).
    V311,
    /// MQTT 5.
    V5,
}

/// Why a connection is ended; the code is the reason code of MQTT 5 (2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} (reason code 0x{reason:02x})")]
pub struct Refusal {
    /// Reason code of MQTT 5.
    pub reason: u8,
    /// What was wrong.
    pub text: &'static str,
}

/// Reason code 0x81.
pub(super) const fn malformed(text: &'static str) -> Refusal {
    Refusal { reason: 0x81, text }
}

/// A property of MQTT 5 (2.2.2) with its value as it was encoded, so that it can be passed on byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Identifier.
    pub id: u8,
    /// Encoded value.
    pub value: Bytes,
}

impl Property {
    /// A property that holds a string of at most 65535 bytes.
    pub fn text(id: u8, text: &str) -> Property {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        let mut value = length.to_be_bytes().to_vec();
        value.extend(text.bytes().take(usize::from(length)));
        Property {
            id,
            value: value.into(),
        }
    }

    /// The value of a byte, two-byte or four-byte property.
    pub fn number(&self) -> u32 {
        self.value
            .iter()
            .fold(0, |number, byte| (number << 8) | u32::from(*byte))
    }
}

/// CONNECT.
#[derive(Clone, Debug, PartialEq)]
pub struct Connect {
    /// Protocol version.
    pub version: Version,
    /// Clean start (3.1.1: clean session).
    pub clean_start: bool,
    /// Whether the session lives on after the connection.
    pub keep_session: bool,
    /// Seconds; 0 for none.
    pub keep_alive: u16,
    /// Client identifier; empty to have one assigned.
    pub client_id: String,
    /// User name and password.
    pub credentials: (Option<String>, Option<Bytes>),
    /// Published when the connection ends without DISCONNECT.
    pub will: Option<Publish>,
    /// Publishes at QoS 1 that the client takes at a time.
    pub receive_maximum: u16,
    /// Largest packet that the client takes, in bytes.
    pub maximum_packet: Option<u32>,
}

/// PUBLISH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publish {
    /// Delivered before, perhaps.
    pub duplicate: bool,
    /// 0 or 1 (2 is refused).
    pub qos: u8,
    /// Asks the server to keep it.
    pub retain: bool,
    /// Topic name.
    pub topic: String,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// Properties of MQTT 5.
    pub properties: Vec<Property>,
    /// Application message.
    pub payload: Bytes,
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    /// CONNECT.
    Connect(Box<Connect>),
    /// PUBLISH.
    Publish(Publish),
    /// PUBACK with its packet identifier.
    PublishAcknowledged(u16),
    /// SUBSCRIBE with topic filters and the requested quality of service.
    Subscribe(u16, Vec<(String, u8)>),
    /// UNSUBSCRIBE with topic filters.
    Unsubscribe(u16, Vec<String>),
    /// PINGREQ.
    Ping,
    /// DISCONNECT: whether the will is to be published, and whether the session is to end.
    Disconnect {
        /// Reason code 0x04.
        with_will: bool,
        /// Session expiry interval of 0.
        end_session: bool,
    },
}

/// Reads the next packet, or `None` while it is not complete. `version` is `None` before CONNECT.
///
/// # Errors
/// A packet that breaks the protocol, is larger than `limit` bytes, or asks for what this broker does not do.
pub fn read(
    buffer: &mut BytesMut,
    version: Option<Version>,
    limit: usize,
) -> Result<Option<Packet>, Refusal> {
    let Some((first, header, length)) = fixed_header(buffer)? else {
        return Ok(None);
    };
    if length > limit {
        return Err(Refusal {
            reason: 0x95,
            text: "packet too large",
        });
    }
    if buffer.len() < header + length {
        buffer.reserve(header + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(header);
    let mut body = Reader(buffer.split_to(length).freeze());
    let (kind, flags) = (first >> 4, first & 0x0f);
    let Some(version) = version else {
        return match kind {
            1 => Ok(Some(Packet::Connect(Box::new(connect(&mut body)?)))),
            _ => Err(malformed("the first packet is not CONNECT")),
        };
    };
    let v5 = version == Version::V5;
    let packet = match kind {
        1 => Err(Refusal {
            reason: 0x82,
            text: "second CONNECT",
        }),
        3 => publish(&mut body, flags, v5).map(Packet::Publish),
        4 => body.u16().map(Packet::PublishAcknowledged),
        8 if flags == 2 => subscribe(&mut body, v5),
        10 if flags == 2 => unsubscribe(&mut body, v5),
        12 => Ok(Packet::Ping),
        14 => disconnect(&mut body, v5),
        _ => Err(malformed(
            "packet type or flags that no client sends to this broker",
        )),
    }?;
    Ok(Some(packet))
}

/// First byte, length of the fixed header and remaining length.
fn fixed_header(buffer: &BytesMut) -> Result<Option<(u8, usize, usize)>, Refusal> {
    let Some((&first, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    let mut length = 0_usize;
    for (index, byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((first, index + 2, length)));
        }
    }
    match rest.len() {
        0..4 => Ok(None),
        _ => Err(malformed("remaining length of more than four bytes")),
    }
}

fn connect(body: &mut Reader) -> Result<Connect, Refusal> {
    let name = body.text()?;
    let version = match (name.as_str(), body.u8()?) {
        ("MQTT", 4) => Version::V311,
        ("MQTT", 5) => Version::V5,
        _ => {
            return Err(Refusal {
                reason: 0x84,
                text: "neither MQTT 3.1.1 nor 5",
            });
        }
    };
    let v5 = version == Version::V5;
    let flags = body.u8()?;
    if flags & 1 != 0 {
        return Err(malformed("reserved flag of CONNECT"));
    }
    let keep_alive = body.u16()?;
    let properties = body.properties(v5)?;
    let number = |id: u8| {
        properties
            .iter()
            .find(|property| property.id == id)
            .map(Property::number)
    };
    let clean_start = flags & 0x02 != 0;
    let client_id = body.text()?;
    let will = match flags & 0x04 {
        0 => None,
        _ => Some(Publish {
            qos: (flags >> 3) & 3,
            properties: body.properties(v5)?,
            topic: body.text()?,
            payload: body.binary()?,
            ..Publish::default()
        }),
    };
    let username = (flags & 0x80 != 0).then(|| body.text()).transpose()?;
    let password = (flags & 0x40 != 0).then(|| body.binary()).transpose()?;
    let receive_maximum = number(0x21).and_then(|n| u16::try_from(n).ok());
    if receive_maximum == Some(0) {
        return Err(Refusal {
            reason: 0x82,
            text: "receive maximum of 0",
        });
    }
    Ok(Connect {
        version,
        clean_start,
        keep_session: if v5 {
            number(0x11).unwrap_or(0) > 0
        } else {
            !clean_start
        },
        keep_alive,
        client_id,
        credentials: (username, password),
        will,
        receive_maximum: receive_maximum.unwrap_or(u16::MAX),
        maximum_packet: number(0x27),
    })
}

fn publish(body: &mut Reader, flags: u8, v5: bool) -> Result<Publish, Refusal> {
    let qos = (flags >> 1) & 3;
    if qos > 1 {
        return Err(Refusal {
            reason: 0x9b,
            text: "quality of service 2 is not supported",
        });
    }
    let topic = body.text()?;
    if topic.is_empty() || topic.contains(['+', '#', '\0']) {
        return Err(Refusal {
            reason: 0x90,
            text: "topic name that cannot be published to",
        });
    }
    let packet_id = if qos == 0 { 0 } else { body.u16()? };
    if qos > 0 && packet_id == 0 {
        return Err(malformed("packet identifier 0"));
    }
    Ok(Publish {
        duplicate: flags & 8 != 0,
        qos,
        retain: flags & 1 != 0,
        topic,
        packet_id,
        properties: body.properties(v5)?,
        payload: body.rest(),
    })
}

fn subscribe(body: &mut Reader, v5: bool) -> Result<Packet, Refusal> {
    let packet_id = body.u16()?;
    body.properties(v5)?;
    let mut filters = Vec::new();
    while !body.0.is_empty() {
        filters.push((body.text()?, body.u8()? & 3));
    }
    match filters.is_empty() {
        true => Err(malformed("SUBSCRIBE without a topic filter")),
        false => Ok(Packet::Subscribe(packet_id, filters)),
    }
}

fn unsubscribe(body: &mut Reader, v5: bool) -> Result<Packet, Refusal> {
    let packet_id = body.u16()?;
    body.properties(v5)?;
    let mut filters = Vec::new();
    while !body.0.is_empty() {
        filters.push(body.text()?);
    }
    Ok(Packet::Unsubscribe(packet_id, filters))
}

fn disconnect(body: &mut Reader, v5: bool) -> Result<Packet, Refusal> {
    let reason = if body.0.is_empty() { 0 } else { body.u8()? };
    let properties = if body.0.is_empty() {
        Vec::new()
    } else {
        body.properties(v5)?
    };
    Ok(Packet::Disconnect {
        with_will: reason == 4,
        end_session: properties.iter().any(|p| p.id == 0x11 && p.number() == 0),
    })
}

/// Takes fields from the front of a packet.
struct Reader(Bytes);

const SHORT: Refusal = malformed("packet shorter than its fields");

impl Reader {
    fn take(&mut self, length: usize) -> Result<Bytes, Refusal> {
        match self.0.len() >= length {
            true => Ok(self.0.split_to(length)),
            false => Err(SHORT),
        }
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        self.0.try_get_u16().map_err(|_| SHORT)
    }

    fn binary(&mut self) -> Result<Bytes, Refusal> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }

    fn text(&mut self) -> Result<String, Refusal> {
        let bytes = self.binary()?;
        String::from_utf8(bytes.into()).map_err(|_| malformed("string that is not UTF-8"))
    }

    fn variable(&mut self) -> Result<usize, Refusal> {
        let mut number = 0;
        for index in 0..4 {
            let byte = self.u8()?;
            number |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(malformed("variable byte integer of more than four bytes"))
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    /// Properties of MQTT 5; none in 3.1.1.
    fn properties(&mut self, v5: bool) -> Result<Vec<Property>, Refusal> {
        if !v5 {
            return Ok(Vec::new());
        }
        let length = self.variable()?;
        let mut within = Reader(self.take(length)?);
        let mut properties = Vec::new();
        while !within.0.is_empty() {
            let id = within.u8()?;
            let before = within.0.clone();
            let length = match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => 1,
                0x13 | 0x21..=0x23 => 2,
                0x02 | 0x11 | 0x18 | 0x27 => 4,
                0x0b => {
                    within.variable()?;
                    before.len() - within.0.len()
                }
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                    2 + Reader(before.clone()).binary()?.len()
                }
                0x26 => {
                    let mut pair = Reader(before.clone());
                    4 + pair.binary()?.len() + pair.binary()?.len()
                }
                _ => return Err(malformed("unknown property")),
            };
            within.0 = before;
            properties.push(Property {
                id,
                value: within.take(length)?,
            });
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_taken_whole_or_not_at_all() {
        let whole = [0x32, 10, 0, 3, b'a', b'/', b'b', 0, 7, b'x', b'y', b'z'];
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::from(&whole[..cut]);
            assert_eq!(read(&mut buffer, Some(Version::V311), 100), Ok(None), "{cut}");
            assert_eq!(buffer.len(), cut);
        }
        let mut buffer = BytesMut::from(&whole[..]);
        let Ok(Some(Packet::Publish(publish))) = read(&mut buffer, Some(Version::V311), 100) else {
            panic!("a complete PUBLISH is read");
        };
        assert_eq!((publish.topic.as_str(), publish.packet_id), ("a/b", 7));
        assert_eq!(&publish.payload[..], b"xyz");
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_breaks_the_protocol_is_refused_with_its_reason_code() {
        #[rustfmt::skip]
        let cases: &[(&[u8], Option<Version>, u8)] = &[
            (&[0x30, 0xff, 0xff, 0xff, 0xff, 1], Some(Version::V5), 0x81), // length of five bytes
            (&[0x30, 0xff, 0x7f], Some(Version::V5), 0x95),                // above the limit
            (&[0x34, 5, 0, 1, b'a', 0, 1], Some(Version::V311), 0x9b),     // quality of service 2
            (&[0x32, 5, 0, 1, b'a', 0, 0], Some(Version::V311), 0x81),     // packet identifier 0
            (&[0x30, 3, 0, 1, b'#'], Some(Version::V311), 0x90),           // wildcard in a topic name
            (&[0x30, 3, 0, 9, b'a'], Some(Version::V311), 0x81),           // shorter than its topic
            (&[0x82, 2, 0, 1], Some(Version::V311), 0x81),                 // no filter
            (&[0xc0, 0], None, 0x81),                                      // before CONNECT
            (&[0x10, 8, 0, 4, b'M', b'Q', b'T', b'T', 3, 0], None, 0x84),  // protocol level 3
        ];
        for (bytes, version, reason) in cases {
            let refused = read(&mut BytesMut::from(*bytes), *version, 1000).unwrap_err();
            assert_eq!(refused.reason, *reason, "{bytes:02x?}: {refused}");
        }
    }

    #[test]
    fn user_properties_keep_their_bytes() {
        let mut packet = vec![
            0x30, 15, 0, 1, b'a', 10, 0x26, 0, 1, b'k', 0, 2, b'v', b'w', 0x01, 1, b'!',
        ];
        packet[1] = u8::try_from(packet.len() - 2).unwrap();
        let Ok(Some(Packet::Publish(publish))) =
            read(&mut BytesMut::from(&packet[..]), Some(Version::V5), 99)
        else {
            panic!("a PUBLISH with properties is read");
        };
        assert_eq!(publish.properties.len(), 2);
        assert_eq!(&publish.properties[0].value[..], b"\0\x01k\0\x02vw");
        assert_eq!(publish.properties[1].number(), 1);
    }
}
