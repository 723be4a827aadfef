//! Reading back: batches of the journal, single messages, packs, sent periods, dead letters.

use super::codec;
use super::open::collect;
use super::set_aside::is_corrupt;
use super::{Store, StoreError};
use crate::message::{Position, RevisionId, StoredMessage};
use crate::telemetry::errors::ErrorRecord;
use rusqlite::{OptionalExtension, params};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Decoded messages of consecutive positions.
#[derive(Clone, Debug, Default)]
pub struct StoredBatch {
    /// In order of position; gaps only where a segment was given up or a batch is damaged.
    pub messages: Vec<StoredMessage>,
    /// Runs of positions that cannot be read: damaged after they were written.
    pub damaged: Vec<(Position, Position)>,
}

/// Disjoint runs of positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<Position, Position>);

impl Ranges {
    /// Adds `first..=last`; runs that touch become one. Tells whether any of it was new.
    pub fn add(&mut self, mut first: Position, mut last: Position) -> bool {
        if self.end_of(first).is_some_and(|end| end > last) {
            return false;
        }
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            first = first.min(start);
            last = last.max(end);
            self.0.remove(&start);
        }
        self.0.insert(first, last);
        true
    }

    /// The position behind the run that holds `position`, if one does.
    pub fn end_of(&self, position: Position) -> Option<Position> {
        let (_, last) = self.0.range(..=position).next_back()?;
        (*last >= position).then_some(last + 1)
    }

    /// Whether a run has a position in `first..=last`.
    pub fn touches(&self, first: Position, last: Position) -> bool {
        self.0
            .range(..=last)
            .next_back()
            .is_some_and(|(_, end)| *end >= first)
    }

    /// Number of positions.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Number of positions in `first..=last`.
    pub fn count_within(&self, first: Position, last: Position) -> u64 {
        let runs = self.0.range(..=last).rev().take_while(|(_, end)| **end >= first);
        runs.map(|(start, end)| (*end).min(last) + 1 - (*start).max(first))
            .sum()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a walk through the journal meets.
pub(super) enum Found<'a> {
    /// A batch as its row holds it; not verified.
    Batch {
        first: Position,
        count: u64,
        blob: &'a [u8],
    },
    /// Positions that SQLite cannot read.
    Damaged { first: Position, last: Position },
}

/// Reads that the disk may refuse at one place before it is taken for damaged; the place behind must be readable then.
const REFUSED_READS: u32 = 3;
/// The position behind a batch, and its messages.
pub type LenientBatch = (Position, Vec<StoredMessage>);

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
    /// What is damaged is stepped over and said.
    ///
    /// # Errors
    /// [`StoreError`] of a disk that refuses to read.
    pub fn read_from(&self, from: Position, limit_bytes: usize) -> Result<StoredBatch, StoreError> {
        let mut batch = StoredBatch::default();
        let mut bytes = 0;
        let walked = self.walk(from, |found| match found {
            Found::Batch { first, count, blob } => {
                bytes += blob.len();
                match codec::decode(&self.codec.vault(), first, count, blob) {
                    Ok(messages) => {
                        self.check.seen.borrow_mut().add(first, first + count - 1);
                        let wanted = messages.into_iter().filter(|m| m.position >= from);
                        batch.messages.extend(wanted);
                    }
                    Err(_) => batch.damaged.push((first.max(from), first + count - 1)),
                }
                bytes < limit_bytes || batch.messages.is_empty()
            }
            Found::Damaged { first, last } => {
                batch.damaged.push((first, last));
                true
            }
        });
        match walked {
            // What was read before the disk refused is good.
            Err(_) if !batch.messages.is_empty() => Ok(batch),
            other => other.map(|()| batch),
        }
    }

    /// Gives the batches from the one that holds `from` on to `visit`, until it says no.
    pub(super) fn walk(
        &self,
        from: Position,
        mut visit: impl FnMut(Found<'_>) -> bool,
    ) -> Result<(), StoreError> {
        for (number, segment) in self.segments.iter().enumerate() {
            let end = self
                .segments
                .get(number + 1)
                .map_or(self.next_position, |next| next.first);
            if end <= from {
                continue;
            }
            let mut at = from.max(segment.first);
            let mut looked_again = None;
            while at < end {
                let mut reached = at;
                let error = match self.walk_segment(segment.id, at, end, &mut reached, &mut visit) {
                    Ok(on) => {
                        // A disk that has given it now and then is not damaged there.
                        self.check.refused.take();
                        if on {
                            break;
                        }
                        return Ok(());
                    }
                    Err(error) => error,
                };
                // SQLite tells a read that the device refused once as damage too.
                if is_corrupt(&error) && looked_again != Some(reached) {
                    looked_again = Some(reached);
                    at = reached;
                    continue;
                }
                let behind = self.readable_behind(segment.id, reached, end);
                if !is_corrupt(&error) {
                    let (place, times) = self.check.refused.get();
                    let times = if place == reached { times + 1 } else { 1 };
                    self.check.refused.set((reached, times));
                    if times < REFUSED_READS || behind.is_none() {
                        return Err(error.into());
                    }
                }
                at = behind.unwrap_or(end);
                if !visit(Found::Damaged {
                    first: reached,
                    last: at - 1,
                }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Batches of one segment; `reached` grows to the position behind the last one. Tells whether to go on.
    fn walk_segment(
        &self,
        segment: u32,
        at: Position,
        end: Position,
        reached: &mut Position,
        visit: &mut impl FnMut(Found<'_>) -> bool,
    ) -> rusqlite::Result<bool> {
        let sql = format!(
            "SELECT first, count, batch FROM journal_{segment} WHERE first >= coalesce(
                 (SELECT max(first) FROM journal_{segment} WHERE first <= ?1), ?1) ORDER BY first"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([at as i64])?;
        while let Some(row) = rows.next()? {
            let (first, count) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
            let blob = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            // A count that cannot be is damage of the row.
            let behind = first.saturating_add(count);
            if count == 0 || first >= end || behind > end {
                return Err(rusqlite::Error::IntegralValueOutOfRange(1, count as i64));
            }
            if behind <= at {
                continue;
            }
            *reached = behind;
            if !visit(Found::Batch { first, count, blob }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first batch behind `reached` that can be looked up, in a segment that ends before `end`: pages that are
    /// broken make a stretch of look-ups fail, the others work.
    fn readable_behind(&self, segment: u32, reached: Position, end: Position) -> Option<Position> {
        let sql = format!("SELECT first FROM journal_{segment} WHERE first >= ?1 ORDER BY first LIMIT 1");
        let look = |at: Position| -> Option<Position> {
            let mut statement = self.connection.prepare_cached(&sql).ok()?;
            let found = statement.query_row([at as i64], |row| row.get::<_, i64>(0));
            Some(match found.optional().ok()? {
                Some(first) => (first as u64).min(end),
                None => end,
            })
        };
        let (mut fails, mut step) = (reached, 1);
        let (mut works, mut found) = loop {
            let at = reached.saturating_add(step);
            if at >= end {
                return None;
            }
            match look(at) {
                Some(first) => break (at, first),
                None => fails = at,
            }
            step *= 2;
        };
        while works - fails > 1 {
            let middle = fails + (works - fails) / 2;
            match look(middle) {
                Some(first) => (works, found) = (middle, first),
                None => fails = middle,
            }
        }
        Some(found).filter(|first| *first < end)
    }

    /// The messages of the batch that holds `from`, or of the next one, and the position behind it; none at the end of the
    /// journal. A batch that was damaged on the medium has no messages.
    ///
    /// # Errors
    /// SQLite's.
    pub fn read_batch_leniently(&self, from: Position) -> Result<Option<LenientBatch>, StoreError> {
        for (number, segment) in self.segments.iter().enumerate() {
            let next = self.segments.get(number + 1);
            if next.is_some_and(|next| next.first <= from) {
                continue;
            }
            let sql = format!(
                "SELECT first, count, batch FROM journal_{0} WHERE first + count > ?1 AND first >= coalesce(
                     (SELECT max(first) FROM journal_{0} WHERE first <= ?1), ?1) ORDER BY first LIMIT 1",
                segment.id
            );
            let found = self
                .connection
                .prepare_cached(&sql)?
                .query_row([from as i64], |row| {
                    Ok((
                        row.get::<_, i64>(0)? as u64,
                        row.get::<_, i64>(1)? as u64,
                        row.get::<_, Vec<u8>>(2)?,
                    ))
                });
            let Some((first, count, blob)) = found.optional()? else {
                continue;
            };
            let mut messages = codec::decode(&self.codec.vault(), first, count, &blob).unwrap_or_default();
            messages.retain(|m| m.position >= from);
            return Ok(Some((first + count.max(1), messages)));
        }
        Ok(None)
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

    /// A note of this name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn note(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.meta_text(name)?)
    }

    /// Keeps a note.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keep_note(&mut self, name: &str, text: &str) -> Result<(), StoreError> {
        self.connection.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)",
            [name, text],
        )?;
        Ok(())
    }

    /// What was remembered of an Observation that was sent.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sent_period(&self, destination: u32, observation: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT memory FROM sent_period WHERE destination = ?1 AND observation = ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let vault = self.codec.vault();
        let key = vault.text("sent_period.observation", observation);
        let memory: Option<Vec<u8>> = statement
            .query_row(params![destination, key], |row| row.get(0))
            .optional()?;
        let memory = memory.map(|memory| {
            vault
                .open_bytes("sent_period.memory", &memory)
                .map(Cow::into_owned)
        });
        Ok(memory.transpose()?)
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
