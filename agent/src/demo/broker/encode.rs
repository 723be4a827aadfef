//! How the broker writes its packets, for MQTT 3.1.1 and 5.

use super::packet::{Property, Publish, Version};
use bytes::{BufMut, BytesMut};

/// Properties of a PUBLISH that a server passes on (MQTT 5, 3.3.2.3): payload format, expiry, content type, response
/// topic, correlation data and user properties.
const PASSED_ON: [u8; 6] = [0x01, 0x02, 0x03, 0x08, 0x09, 0x26];

/// Appends `number` as a variable byte integer.
fn variable(out: &mut BytesMut, mut number: usize) {
    loop {
        let byte = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        if number == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

fn packet(out: &mut BytesMut, first: u8, body: &[u8]) {
    out.put_u8(first);
    variable(out, body.len());
    out.put_slice(body);
}

fn properties(out: &mut BytesMut, properties: &[Property]) {
    let length = properties.iter().map(|property| 1 + property.value.len()).sum();
    variable(out, length);
    for property in properties {
        out.put_u8(property.id);
        out.put_slice(&property.value);
    }
}

/// CONNACK. `reason` is a reason code of MQTT 5; 3.1.1 gets the nearest of its return codes.
pub fn connected(out: &mut BytesMut, version: Version, present: bool, reason: u8, answer: &[Property]) {
    let mut body = BytesMut::new();
    body.put_u8(u8::from(present));
    match version {
        Version::V5 => {
            body.put_u8(reason);
            properties(&mut body, answer);
        }
        Version::V311 => body.put_u8(match reason {
            0 => 0,
            0x84 => 1,
            0x85 => 2,
            0x86 => 4,
            0x87 => 5,
            _ => 3,
        }),
    }
    packet(out, 0x20, &body);
}

/// PUBLISH to a subscriber.
pub fn publish(
    out: &mut BytesMut,
    version: Version,
    message: &Publish,
    qos: u8,
    packet_id: u16,
    duplicate: bool,
) {
    let mut head = BytesMut::with_capacity(message.topic.len() + 8);
    head.put_u16(u16::try_from(message.topic.len()).unwrap_or(u16::MAX));
    head.put_slice(message.topic.as_bytes());
    if qos > 0 {
        head.put_u16(packet_id);
    }
    if version == Version::V5 {
        let passed_on: Vec<Property> = message
            .properties
            .iter()
            .filter(|property| PASSED_ON.contains(&property.id))
            .cloned()
            .collect();
        properties(&mut head, &passed_on);
    }
    out.put_u8(0x30 | (u8::from(duplicate) << 3) | (qos << 1));
    variable(out, head.len() + message.payload.len());
    out.put_slice(&head);
    out.put_slice(&message.payload);
}

/// PUBACK.
pub fn publish_acknowledged(out: &mut BytesMut, version: Version, packet_id: u16, reason: u8) {
    let [high, low] = packet_id.to_be_bytes();
    match (version, reason) {
        (Version::V311, _) | (_, 0) => packet(out, 0x40, &[high, low]),
        (Version::V5, _) => packet(out, 0x40, &[high, low, reason]),
    }
}

/// SUBACK with a code per filter, or UNSUBACK.
pub fn subscribed(out: &mut BytesMut, version: Version, first: u8, packet_id: u16, codes: &[u8]) {
    let mut body = BytesMut::new();
    body.put_u16(packet_id);
    if version == Version::V5 {
        body.put_u8(0);
    }
    if first == 0x90 || version == Version::V5 {
        body.put_slice(codes);
    }
    packet(out, first, &body);
}

/// PINGRESP.
pub fn pong(out: &mut BytesMut) {
    packet(out, 0xd0, &[]);
}

/// DISCONNECT with a reason; 3.1.1 knows none from a server.
pub fn disconnect(out: &mut BytesMut, version: Version, reason: u8) {
    if version == Version::V5 {
        packet(out, 0xe0, &[reason]);
    }
}
