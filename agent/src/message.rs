//! A message: one payload from a source, with its envelope, receive stamp and acknowledgement token.

use bytes::Bytes;
use iomt_mapping::Timestamp;
use std::fmt;
use std::sync::Arc;

/// Place of a message in the journal; counted from 1, never reused.
pub type Position = u64;

/// Bytes that may hold patient data. There is no `Display`, and `Debug` prints length and hash only, so that a payload
/// cannot reach a log by accident.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(pub Bytes);

impl Payload {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Payload({} bytes, crc32 {:08x})",
            self.0.len(),
            crc32fast::hash(&self.0)
        )
    }
}

/// Number of a source in the store; the names are in its table `source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u32);

/// Number of a set of mapping packs in the store; 0 while the source had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RevisionId(pub u32);

/// When a message came: the wall clock may be wrong, the monotonic clock of a boot never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the boot in the store (its table `boot` holds the boot id).
    pub boot: u32,
    /// `CLOCK_BOOTTIME` in microseconds: runs on in suspend and over restarts of the process.
    pub monotonic_us: u64,
    /// Wall clock.
    pub wall: Timestamp,
    /// Whether the wall clock could be trusted then.
    pub trusted: bool,
}

/// What a source needs to acknowledge a message on the connection it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckToken {
    /// Number of the connection in this process; an acknowledgement never leaves on another one.
    pub epoch: u64,
    /// MQTT packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// Number of the MQTT session in the store: grows when the broker has lost the session.
    pub session: u32,
}

/// What the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// The whole payload as it came.
    Whole,
    /// The first 4 KiB of a payload above the limit; becomes a dead letter.
    Truncated {
        /// Length of the whole payload in bytes.
        length: u64,
        /// CRC-32 of the whole payload.
        crc: u32,
    },
}

/// Stands for the identity of a record in a message that was read back: the journal keeps that it was one, not which.
pub const UNNAMED_RECORD: u64 = 0;

/// One payload from a source on its way to the journal.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it came from.
    pub source: SourceId,
    /// When it came; set once by the intake, fixed at the first commit.
    pub stamp: Stamp,
    /// The payload.
    pub payload: Payload,
    /// Whole, or the head of one that was too large.
    pub kind: PayloadKind,
    /// MQTT topic; becomes `Properties.topic`.
    pub topic: Option<Arc<str>>,
    /// MQTT 5 user properties in order; become `Properties`.
    pub properties: Vec<(String, String)>,
    /// Becomes `SystemProperties.iothub-connection-device-id`.
    pub device_id: Option<Arc<str>>,
    /// It may have been stored before: redelivered, and not provably the same.
    pub possible_repeat: bool,
    /// Identity of a record that its device keeps and shows again: the commit of the message remembers it, so that a record
    /// leaves once, also when the program is started anew. None for readings that come once.
    pub record: Option<u64>,
    /// How to acknowledge it; none for serial lines.
    pub ack: Option<AckToken>,
}

/// A message as the journal holds it.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// Its place in the journal.
    pub position: Position,
    /// The mapping packs in force when it came.
    pub revision: RevisionId,
    /// The message; `ack` keeps packet id and session, its epoch is 0 when read back.
    pub message: Message,
}

impl Message {
    /// A whole payload, and nothing around it: no topic, no properties, no device id, nobody to acknowledge it to.
    pub fn new(source: SourceId, stamp: Stamp, payload: impl Into<Bytes>) -> Message {
        Message {
            source,
            stamp,
            payload: Payload(payload.into()),
            kind: PayloadKind::Whole,
            topic: None,
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record: None,
            ack: None,
        }
    }

    /// Bytes that the message holds in memory, roughly.
    pub fn weight(&self) -> usize {
        let properties: usize = self.properties.iter().map(|(k, v)| k.len() + v.len() + 48).sum();
        self.payload.len() + properties + 160
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_in_a_log_shows_length_and_hash_only() {
        let shown = format!("{:?}", Payload(Bytes::from_static(b"patient-7 heart rate 78")));
        assert!(shown.contains("23 bytes"));
        assert!(!shown.contains("patient"));
    }
}
