//! Reading back: batches of the journal, single messages, packs, sent periods, dead letters.

use super::codec;
use super::open::collect;
use super::{Store, StoreError};
use crate::message::{Position, RevisionId, StoredMessage};
use crate::telemetry::errors::ErrorRecord;
use rusqlite::{OptionalExtension, params};

/// Decoded messages of consecutive positions.
#[derive(Clone, Debug, Default)]
pub struct StoredBatch {
    /// In order of position; gaps only where a segment was given up.
    pub messages: Vec<StoredMessage>,
}

/// Dead letters of one cause.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeadLetterSummary {
    /// Stage, error name and template.
    pub cause: String,
    /// How many are kept.
    pub count: u64,
    /// One error of them, without patient data.
    pub error: ErrorRecord,
    /// Positions of the oldest and the newest.
    pub first: Position,
    /// Position of the newest.
    pub last: Position,
}

impl Store {
    /// Messages from `from` on, at least one batch and about `limit_bytes` of compressed batches; empty at the end.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Damaged`] when a batch was damaged after it was written.
    pub fn read_from(&self, from: Position, limit_bytes: usize) -> Result<StoredBatch, StoreError> {
        let mut batch = StoredBatch::default();
        let mut bytes = 0;
        for (number, segment) in self.segments.iter().enumerate() {
            let end = self
                .segments
                .get(number + 1)
                .map_or(self.next_position, |next| next.first);
            if end <= from {
                continue;
            }
            let sql = format!(
                "SELECT first, count, batch FROM journal_{0} WHERE first >= coalesce(
                     (SELECT max(first) FROM journal_{0} WHERE first <= ?1), ?1) ORDER BY first",
                segment.id
            );
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows = statement.query([from as i64])?;
            while let Some(row) = rows.next()? {
                let blob = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
                bytes += blob.len();
                let messages =
                    codec::decode(row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64, blob)?;
                batch
                    .messages
                    .extend(messages.into_iter().filter(|m| m.position >= from));
                if bytes >= limit_bytes && !batch.messages.is_empty() {
                    return Ok(batch);
                }
            }
        }
        Ok(batch)
    }

    /// The texts of a set of packs.
    ///
    /// # Errors
    /// SQLite's.
    pub fn revision_bundle(&self, id: RevisionId) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT bundle FROM revision WHERE id = ?1";
        Ok(self
            .connection
            .query_row(sql, [id.0], |row| row.get(0))
            .optional()?)
    }

    /// The packs that were in use last, for a start with broken files.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_good_packs(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM meta WHERE key = 'packs'";
        Ok(self.connection.query_row(sql, [], |row| row.get(0)).optional()?)
    }

    /// Keeps the packs that are in use now.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keep_packs(&mut self, bundle: &[u8]) -> Result<(), StoreError> {
        if self.last_good_packs()?.as_deref() != Some(bundle) {
            self.connection.execute(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('packs', ?1)",
                [bundle],
            )?;
        }
        Ok(())
    }

    /// What was remembered of an Observation that was sent.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sent_period(&self, destination: u32, observation: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT memory FROM sent_period WHERE destination = ?1 AND observation = ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement
            .query_row(params![destination, observation], |row| row.get(0))
            .optional()?)
    }

    /// Forgets sent periods that expired before `wall` (ticks of 100 ns).
    ///
    /// # Errors
    /// SQLite's.
    pub fn expire_sent_periods(&mut self, wall: i64) -> Result<usize, StoreError> {
        Ok(self
            .connection
            .execute("DELETE FROM sent_period WHERE expires < ?1", [wall])?)
    }

    /// Dead letters grouped by cause.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dead_letter_summary(&self) -> Result<Vec<DeadLetterSummary>, StoreError> {
        let sql = "SELECT cause, count(*), error, min(position), max(position) FROM dead_letter GROUP BY cause ORDER BY cause";
        let rows = collect(&self.connection, sql, |row| {
            let error: String = row.get(2)?;
            Ok((
                row.get(0)?,
                row.get::<_, i64>(1)?,
                error,
                row.get::<_, i64>(3)?,
                row.get::<_, i64>(4)?,
            ))
        })?;
        let summaries = rows.into_iter().filter_map(|(cause, count, error, first, last)| {
            let error = serde_json::from_str(&error).ok()?;
            Some(DeadLetterSummary {
                cause,
                count: count as u64,
                error,
                first: first as u64,
                last: last as u64,
            })
        });
        Ok(summaries.collect())
    }

    /// Lines of the loss ledger: count and reason.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ledger(&self) -> Result<Vec<(u64, String)>, StoreError> {
        let sql = "SELECT count, reason FROM ledger ORDER BY id DESC LIMIT 100";
        Ok(collect(&self.connection, sql, |row| {
            Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))
        })?)
    }
}
