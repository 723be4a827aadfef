//! Rewriting a segment without what nobody needs any more: copying forward.
//!
//! What remains of a segment keeps position, stamp and revision. It goes into the segment before, when that one is what
//! remained of others and has room, else it stays where it is; so what is left of a hundred segments is one. Batches are
//! read, thinned and written one by one: the memory is that of two batches.

use super::bounds::drop_table;
use super::codec::{self, Codec};
use super::{Segment, StoreError};
use crate::message::{Position, StoredMessage};
use rusqlite::{OptionalExtension, Transaction, params};

/// Payload bytes that one batch of remaining messages gathers.
const BATCH_BYTES: usize = 64 << 10;
/// Messages that it gathers.
const BATCH_MESSAGES: usize = 1000;

/// Which segment to rewrite, and what stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Number of the segment.
    pub segment: u32,
    /// Positions that stay: ranges in order, both ends included. Without any the segment is dropped.
    pub keep: Vec<(Position, Position)>,
    /// The segment that takes what remains, if it is the one before it: then the rewritten one is dropped.
    pub into: Option<u32>,
}

impl Rewrite {
    fn keeps(&self, position: Position) -> bool {
        let after = self.keep.partition_point(|(_, last)| *last < position);
        self.keep.get(after).is_some_and(|(first, _)| *first <= position)
    }
}

/// Rewrites inside the caller's transaction; `segments` is what the store will know after the commit. Returns the bytes
/// written.
pub(super) fn run(
    transaction: &Transaction<'_>,
    codec: &mut Codec,
    segments: &mut Vec<Segment>,
    plan: &Rewrite,
) -> Result<u64, StoreError> {
    let Some(place) = segments.iter().position(|s| s.id == plan.segment) else {
        return Ok(0);
    };
    let before = place.checked_sub(1).and_then(|p| segments.get(p)).map(|s| s.id);
    let target = plan
        .into
        .filter(|into| Some(*into) == before)
        .unwrap_or(plan.segment);
    let vault = codec.vault();
    let mut out = Remaining {
        transaction,
        codec,
        target,
        batch: Vec::new(),
        bytes: 0,
        written: 0,
    };
    let mut from: i64 = 0;
    while let Some((first, count, blob)) = next_batch(transaction, plan.segment, from)? {
        from = first + count.max(1);
        transaction
            .prepare_cached(&format!("DELETE FROM journal_{} WHERE first = ?1", plan.segment))?
            .execute([first])?;
        // A batch that was damaged on the medium holds nothing that could be kept; who looks for its messages says so.
        let messages = codec::decode(&vault, first as u64, count as u64, &blob).unwrap_or_default();
        for stored in messages.into_iter().filter(|m| plan.keeps(m.position)) {
            out.take(stored)?;
        }
    }
    out.write()?;
    let written = out.written;
    if target != plan.segment || written == 0 {
        if let Some(segment) = segments.get(place) {
            drop_table(transaction, segment)?;
        }
        segments.remove(place);
    }
    for segment in segments.iter_mut().filter(|s| s.id == target) {
        segment.bytes = written + if target == plan.segment { 0 } else { segment.bytes };
    }
    Ok(written)
}

type BatchRow = (i64, i64, Vec<u8>);

fn next_batch(transaction: &Transaction<'_>, segment: u32, from: i64) -> rusqlite::Result<Option<BatchRow>> {
    transaction
        .prepare_cached(&format!(
            "SELECT first, count, batch FROM journal_{segment} WHERE first >= ?1 ORDER BY first LIMIT 1"
        ))?
        .query_row([from], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
}

/// Messages on their way into batches with holes.
struct Remaining<'a> {
    transaction: &'a Transaction<'a>,
    codec: &'a mut Codec,
    target: u32,
    batch: Vec<StoredMessage>,
    bytes: usize,
    written: u64,
}

impl Remaining<'_> {
    fn take(&mut self, stored: StoredMessage) -> Result<(), StoreError> {
        self.bytes += stored.message.payload.len();
        self.batch.push(stored);
        if self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_MESSAGES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (self.batch.first(), self.batch.last()) else {
            return Ok(());
        };
        let (first, span) = (first.position, last.position - first.position + 1);
        let blob = self.codec.encode_with_holes(&self.batch)?;
        self.transaction
            .prepare_cached(&format!(
                "INSERT INTO journal_{} (first, count, batch) VALUES (?1, ?2, ?3)",
                self.target
            ))?
            .execute(params![first as i64, span as i64, blob])?;
        self.written += blob.len() as u64;
        self.batch.clear();
        self.bytes = 0;
        Ok(())
    }
}
