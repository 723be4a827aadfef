//! The journal's batch format: messages of one commit, compressed together.
//!
//! `crc32 (4 bytes, little-endian, of what follows) | version (1) | uncompressed length (4) | zstd(records)`.
//! A record is a sequence of fields; lengths and numbers are LEB128, differences are zigzag LEB128 against the record
//! before. Version 2 is a batch with holes: what remains of several ones when a segment is rewritten. Version 3 is either of
//! them sealed (`vault`): what follows the version is the sealed rest from the inner version on; the checksum is over the
//! sealed bytes, so that the checks need no key. One batch compresses far better than its messages alone, which is what
//! spares the flash.

use super::vault::Vault;
use crate::message::{
    AckToken, Message, Payload, PayloadKind, Position, RevisionId, SourceId, Stamp, StoredMessage,
    UNNAMED_RECORD,
};
use bytes::Bytes;
use iomt_mapping::Timestamp;
use std::sync::Arc;
use zstd::zstd_safe::CParameter;

const VERSION: u8 = 1;
/// A batch with holes: the number of its records comes first, and each record begins with the difference of its position.
const VERSION_WITH_HOLES: u8 = 2;
/// Either of them, sealed.
const VERSION_SEALED: u8 = 3;
const HEADER: usize = 9;
/// What the figures in `spec/crates.md` 4.3 recommend.
const LEVEL: i32 = 3;
/// Blocks and tables for 32 KiB, what a batch at a bedside has: a batch of 1 MB becomes 0.6 % larger, one of 200 KB 1 % smaller,
/// and the compressor takes 0.3 MB for all of them instead of 0.5 to 1.3 MB.
const SMALL: [CParameter; 3] = [
    CParameter::WindowLog(15),
    CParameter::HashLog(14),
    CParameter::ChainLog(14),
];
/// More than any batch that the intake gathers; a length beyond it is damage, not data.
const MAX_BATCH: usize = 256 << 20;

const TRUSTED: u8 = 1;
const REPEAT: u8 = 2;
const TRUNCATED: u8 = 4;
const HAS_TOPIC: u8 = 8;
const HAS_DEVICE: u8 = 16;
const HAS_ACK: u8 = 32;
/// From the memory of its device; which one it was is in the table `sent_record`.
const IS_RECORD: u8 = 64;

/// A stored batch that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// The checksum does not fit the bytes.
    #[error("checksum of a journal batch does not fit")]
    Checksum,
    /// Written by a newer version of this program.
    #[error("journal batch of an unknown version")]
    Version,
    /// Sealed with another key or for another place, or changed since.
    #[error("a sealed value of the store cannot be opened: it was changed, or sealed with another key")]
    Sealed,
    /// The content ends early or holds impossible values.
    #[error("journal batch cannot be decoded")]
    Content,
    /// A row of this table is not what was written, or rows of it are gone.
    #[error("the table {0} is not what was written: a checksum does not fit, or rows are gone")]
    Rows(&'static str),
}

/// Appends `value` as LEB128.
pub fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a difference as zigzag LEB128.
pub fn put_difference(out: &mut Vec<u8>, value: i64) {
    put_number(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends length and bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the `put_` functions wrote.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A LEB128 number.
    pub fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A zigzag LEB128 difference.
    pub fn difference(&mut self) -> Option<i64> {
        let raw = self.number()?;
        Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// Length and bytes.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Length and UTF-8 text.
    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Encodes and decodes batches; keeps the compressor's memory between calls.
pub struct Codec {
    compressor: zstd::bulk::Compressor<'static>,
    records: Vec<u8>,
    vault: Arc<Vault>,
}

impl Codec {
    /// A codec with its memory for compressing.
    ///
    /// # Errors
    /// When zstd cannot get its memory.
    pub fn new(vault: Vault) -> std::io::Result<Codec> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        for parameter in SMALL {
            compressor.set_parameter(parameter)?;
        }
        Ok(Codec {
            vault: Arc::new(vault),
            compressor,
            records: Vec::new(),
        })
    }

    /// What seals batches and columns.
    pub fn vault(&self) -> Arc<Vault> {
        Arc::clone(&self.vault)
    }

    /// The vault, given back.
    pub(super) fn into_vault(self) -> Option<Vault> {
        Arc::try_unwrap(self.vault).ok()
    }

    /// The bytes of a batch whose first message gets position `first`.
    ///
    /// # Errors
    /// When zstd fails (out of memory).
    pub fn encode<'a>(
        &mut self,
        first: Position,
        batch: impl Iterator<Item = (&'a Message, RevisionId)>,
    ) -> std::io::Result<Vec<u8>> {
        self.records.clear();
        let (mut monotonic, mut wall) = (0_i64, 0_i64);
        for (message, revision) in batch {
            put_record(&mut self.records, message, revision, &mut monotonic, &mut wall);
        }
        self.finish(VERSION, first)
    }

    /// The bytes of messages that were copied forward: their positions have gaps. Decoded by [`decode`] like any batch,
    /// with `first` the position of the first one and `count` the distance from it to behind the last one.
    ///
    /// # Errors
    /// When zstd fails (out of memory).
    pub fn encode_with_holes(&mut self, batch: &[StoredMessage]) -> std::io::Result<Vec<u8>> {
        self.records.clear();
        put_number(&mut self.records, batch.len() as u64);
        let (mut monotonic, mut wall) = (0_i64, 0_i64);
        let mut next = batch.first().map_or(0, |stored| stored.position);
        for stored in batch {
            put_number(&mut self.records, stored.position.saturating_sub(next));
            next = stored.position + 1;
            let (message, revision) = (&stored.message, stored.revision);
            put_record(&mut self.records, message, revision, &mut monotonic, &mut wall);
        }
        self.finish(
            VERSION_WITH_HOLES,
            batch.first().map_or(0, |stored| stored.position),
        )
    }

    fn finish(&mut self, version: u8, first: Position) -> std::io::Result<Vec<u8>> {
        let compressed = self.compressor.compress(&self.records)?;
        let mut blob = Vec::with_capacity(HEADER + compressed.len());
        blob.extend_from_slice(&[0; 4]);
        blob.push(version);
        blob.extend_from_slice(&(self.records.len() as u32).to_le_bytes());
        blob.extend_from_slice(&compressed);
        if let Some(sealed) = self.vault.batch(first, blob.get(4..).unwrap_or_default())? {
            blob.truncate(4);
            blob.push(VERSION_SEALED);
            blob.extend_from_slice(&sealed);
        }
        let crc = crc32fast::hash(blob.get(4..).unwrap_or_default());
        for (place, byte) in blob.iter_mut().zip(crc.to_le_bytes()) {
            *place = byte;
        }
        // A burst must not pin its memory for years.
        if self.records.capacity() > 4 << 20 {
            self.records = Vec::new();
        }
        Ok(blob)
    }
}

fn put_record(
    out: &mut Vec<u8>,
    message: &Message,
    revision: RevisionId,
    monotonic: &mut i64,
    wall: &mut i64,
) {
    let mut flags = 0;
    flags |= if message.stamp.trusted { TRUSTED } else { 0 };
    flags |= if message.possible_repeat { REPEAT } else { 0 };
    flags |= if matches!(message.kind, PayloadKind::Truncated { .. }) {
        TRUNCATED
    } else {
        0
    };
    flags |= if message.topic.is_some() { HAS_TOPIC } else { 0 };
    flags |= if message.device_id.is_some() {
        HAS_DEVICE
    } else {
        0
    };
    flags |= if message.ack.is_some() { HAS_ACK } else { 0 };
    flags |= if message.record.is_some() { IS_RECORD } else { 0 };
    out.push(flags);
    put_number(out, u64::from(message.source.0));
    put_number(out, u64::from(revision.0));
    put_number(out, u64::from(message.stamp.boot));
    let (m, w) = (message.stamp.monotonic_us as i64, message.stamp.wall.ticks());
    put_difference(out, m.wrapping_sub(*monotonic));
    put_difference(out, w.wrapping_sub(*wall));
    (*monotonic, *wall) = (m, w);
    if let Some(ack) = message.ack {
        put_number(out, u64::from(ack.packet_id));
        put_number(out, u64::from(ack.session));
    }
    if let Some(topic) = &message.topic {
        put_bytes(out, topic.as_bytes());
    }
    if let Some(device) = &message.device_id {
        put_bytes(out, device.as_bytes());
    }
    put_number(out, message.properties.len() as u64);
    for (name, value) in &message.properties {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
    if let PayloadKind::Truncated { length, crc } = message.kind {
        put_number(out, length);
        put_number(out, u64::from(crc));
    }
    put_bytes(out, message.payload.bytes());
}

/// Whether checksum and version of a batch fit: the fast check of a start.
///
/// # Errors
/// [`Damaged`] when they do not.
pub fn verify(blob: &[u8]) -> Result<&[u8], Damaged> {
    let (head, rest) = blob.split_at_checked(4).ok_or(Damaged::Content)?;
    if head != crc32fast::hash(rest).to_le_bytes() {
        return Err(Damaged::Checksum);
    }
    match rest.split_first() {
        Some((&(VERSION | VERSION_WITH_HOLES | VERSION_SEALED), rest)) => Ok(rest),
        _ => Err(Damaged::Version),
    }
}

/// The messages of a batch whose first one is at `first`.
///
/// # Errors
/// [`Damaged`] when the bytes are not those that were written.
pub fn decode(
    vault: &Vault,
    first: Position,
    count: u64,
    blob: &[u8],
) -> Result<Vec<StoredMessage>, Damaged> {
    let mut rest = verify(blob)?;
    let mut version = blob.get(4).copied().unwrap_or_default();
    let opened;
    if version == VERSION_SEALED {
        opened = vault.open_batch(first, rest)?;
        let (inner, content) = opened.split_first().ok_or(Damaged::Content)?;
        (version, rest) = (*inner, content);
    }
    let (length, compressed) = rest.split_at_checked(4).ok_or(Damaged::Content)?;
    let length = u32::from_le_bytes(length.try_into().map_err(|_| Damaged::Content)?) as usize;
    if length > MAX_BATCH {
        return Err(Damaged::Content);
    }
    let records = Bytes::from(zstd::bulk::decompress(compressed, length).map_err(|_| Damaged::Content)?);
    let mut reader = Reader(&records);
    let mut interned: Vec<Arc<str>> = Vec::new();
    let (mut monotonic, mut wall) = (0_i64, 0_i64);
    let holes = version == VERSION_WITH_HOLES;
    let end = first.checked_add(count).ok_or(Damaged::Content)?;
    let records_in_it = if holes {
        reader.number().ok_or(Damaged::Content)?
    } else {
        count
    };
    let mut messages = Vec::with_capacity(usize::try_from(records_in_it).unwrap_or(0).min(1 << 16));
    let mut position = first;
    for _ in 0..records_in_it {
        if holes {
            let gap = reader.number().ok_or(Damaged::Content)?;
            position = position
                .checked_add(gap)
                .filter(|at| *at < end)
                .ok_or(Damaged::Content)?;
        }
        let message = decode_record(
            &mut reader,
            &records,
            &mut interned,
            &mut monotonic,
            &mut wall,
            position,
        )
        .ok_or(Damaged::Content)?;
        messages.push(message);
        position += 1;
    }
    Ok(messages)
}

/// Topics and device ids repeat: one allocation for each text of a batch.
fn intern(known: &mut Vec<Arc<str>>, text: &str) -> Arc<str> {
    if let Some(found) = known.iter().find(|k| &***k == text) {
        return Arc::clone(found);
    }
    let new: Arc<str> = Arc::from(text);
    if known.len() < 64 {
        known.push(Arc::clone(&new));
    }
    new
}

fn decode_record(
    reader: &mut Reader<'_>,
    records: &Bytes,
    interned: &mut Vec<Arc<str>>,
    monotonic: &mut i64,
    wall: &mut i64,
    position: Position,
) -> Option<StoredMessage> {
    let flags = reader.byte()?;
    let source = SourceId(u32::try_from(reader.number()?).ok()?);
    let revision = RevisionId(u32::try_from(reader.number()?).ok()?);
    let boot = u32::try_from(reader.number()?).ok()?;
    *monotonic = monotonic.wrapping_add(reader.difference()?);
    *wall = wall.wrapping_add(reader.difference()?);
    let ack = if flags & HAS_ACK == 0 {
        None
    } else {
        let packet_id = u16::try_from(reader.number()?).ok()?;
        Some(AckToken {
            epoch: 0,
            packet_id,
            session: u32::try_from(reader.number()?).ok()?,
        })
    };
    let topic = if flags & HAS_TOPIC == 0 {
        None
    } else {
        Some(intern(interned, reader.text()?))
    };
    let device_id = if flags & HAS_DEVICE == 0 {
        None
    } else {
        Some(intern(interned, reader.text()?))
    };
    let mut properties = Vec::new();
    for _ in 0..reader.number()? {
        properties.push((reader.text()?.to_owned(), reader.text()?.to_owned()));
    }
    let kind = if flags & TRUNCATED == 0 {
        PayloadKind::Whole
    } else {
        PayloadKind::Truncated {
            length: reader.number()?,
            crc: u32::try_from(reader.number()?).ok()?,
        }
    };
    let payload = Payload(records.slice_ref(reader.bytes()?));
    let stamp = Stamp {
        boot,
        monotonic_us: *monotonic as u64,
        wall: Timestamp::from_ticks(*wall)?,
        trusted: flags & TRUSTED != 0,
    };
    let possible_repeat = flags & REPEAT != 0;
    let message = Message {
        source,
        stamp,
        payload,
        kind,
        topic,
        properties,
        device_id,
        possible_repeat,
        record: (flags & IS_RECORD != 0).then_some(UNNAMED_RECORD),
        ack,
    };
    Some(StoredMessage {
        position,
        revision,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: u32) -> Message {
        Message {
            source: SourceId(n % 3),
            stamp: Stamp {
                boot: 1,
                monotonic_us: 1_000_000 * u64::from(n) + 7,
                wall: Timestamp::from_ticks(17_900_000_000_000_000 - i64::from(n)).unwrap(),
                trusted: n.is_multiple_of(2),
            },
            payload: Payload(Bytes::from(format!("{{\"heartRate\":{}}}", 60 + n))),
            kind: if n == 4 {
                PayloadKind::Truncated {
                    length: 1 << 40,
                    crc: n,
                }
            } else {
                PayloadKind::Whole
            },
            topic: (n % 2 == 1).then(|| Arc::from("wearables/7/telemetry")),
            properties: vec![("k".to_owned(), n.to_string())],
            device_id: (n > 2).then(|| Arc::from("device-7")),
            possible_repeat: n == 3,
            record: None,
            ack: (n != 5).then_some(AckToken {
                epoch: 0,
                packet_id: 65_535,
                session: n,
            }),
        }
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        let messages: Vec<Message> = (0..40).map(message).collect();
        let blob = Codec::new(Vault::default())
            .unwrap()
            .encode(1, messages.iter().map(|m| (m, RevisionId(2))))
            .unwrap();
        let read = decode(&Vault::default(), 100, 40, &blob).unwrap();
        for (n, (stored, given)) in read.iter().zip(&messages).enumerate() {
            assert_eq!(stored.position, 100 + n as u64);
            assert_eq!(format!("{:?}", stored.message), format!("{given:?}"));
            assert_eq!(stored.message.payload, given.payload);
            assert_eq!(stored.revision, RevisionId(2));
        }
    }

    #[test]
    fn a_batch_with_holes_keeps_the_positions_of_its_messages() {
        let kept: Vec<StoredMessage> = [100_u64, 101, 107, 5_000_000_000]
            .into_iter()
            .zip(0..)
            .map(|(position, n)| StoredMessage {
                position,
                revision: RevisionId(n),
                message: message(n),
            })
            .collect();
        let blob = Codec::new(Vault::default())
            .unwrap()
            .encode_with_holes(&kept)
            .unwrap();
        let span = 5_000_000_001 - 100;
        let read = decode(&Vault::default(), 100, span, &blob).unwrap();
        assert_eq!(format!("{read:?}"), format!("{kept:?}"));
        assert_eq!(
            decode(&Vault::default(), 100, span - 1, &blob).unwrap_err(),
            Damaged::Content
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let messages: Vec<Message> = (0..5).map(message).collect();
        let blob = Codec::new(Vault::default())
            .unwrap()
            .encode(1, messages.iter().map(|m| (m, RevisionId(0))))
            .unwrap();
        for bit in 0..blob.len() * 8 {
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&Vault::default(), 1, 5, &damaged).is_err(), "bit {bit}");
        }
        for length in 0..blob.len() {
            assert!(
                decode(&Vault::default(), 1, 5, &blob[..length]).is_err(),
                "cut at {length}"
            );
        }
    }
}
