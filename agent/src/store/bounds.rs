//! How large the store may become, how much room is left, and how it gets smaller.
//!
//! `max_bytes` is split: the write-ahead log gets what it needs between two checkpoints and for the largest transaction,
//! the database the rest. SQLite itself refuses to grow the database beyond its share (`max_page_count`): that is the wall.
//! Before it comes a reserve, so that a full store can still take a batch, rewrite a segment and write the ledger: when the
//! room falls below it ([`Room::None`]) the intake waits until room was made.
//!
//! Free pages inside the file are used again, which costs no write; they are given back to the file system when they are
//! many ([`Store::give_back`]).

use super::progress::Changes;
use super::rewrite::{self, Rewrite};
use super::{Segment, Store, StoreError, codec};
use crate::message::{Position, Stamp};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

pub(super) const PAGE_BYTES: u64 = 1024;
const MIB: u64 = 1 << 20;
/// A page in the write-ahead log has a header of 24 bytes.
pub(super) const LOG_PAGE_BYTES: u64 = PAGE_BYTES + 24;
/// The largest batch of the intake with progress beside it.
const BATCH_BYTES: u64 = 3 * MIB / 2;
/// Ledger lines, cursors and rows of a shedding.
const LEDGER_BYTES: u64 = MIB / 4;
/// The log is taken into the database at this length. Longer ones were measured to save nothing: the pages of a commit are
/// new ones, but for a handful.
const CHECKPOINT_BYTES: u64 = MIB / 2;
/// The smallest limit that the shares below work with.
const SMALLEST: u64 = 8 * MIB;

/// Shares of `max_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Database and write-ahead log together.
    pub max_bytes: u64,
    /// A segment is closed when it holds this many bytes of batches.
    pub segment: u64,
    /// The log is taken into the database when it holds this much.
    checkpoint: u64,
}

impl Limits {
    /// The shares of `max_bytes`; less than 8 MiB count as 8 MiB.
    pub fn of(max_bytes: u64) -> Limits {
        let max_bytes = max_bytes.max(SMALLEST);
        let share = (max_bytes / 16).min(4 * MIB);
        Limits {
            max_bytes,
            segment: share,
            checkpoint: share.min(CHECKPOINT_BYTES),
        }
    }

    /// Bytes that the log may take: between two checkpoints, and with the largest transaction after it.
    pub fn log(&self) -> u64 {
        self.checkpoint + self.segment * 5 / 4 + BATCH_BYTES + LEDGER_BYTES * 2
    }

    /// Bytes that the database file may take.
    pub fn database(&self) -> u64 {
        self.max_bytes - self.log()
    }

    /// Room that is never used for messages: a batch, a segment that is rewritten, the ledger.
    pub fn reserve(&self) -> u64 {
        self.segment.max(BATCH_BYTES) + LEDGER_BYTES
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::of(512 * MIB)
    }
}

/// How much room is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Nothing is to be done.
    #[default]
    Plenty,
    /// It is time to make room, beside the intake.
    Short,
    /// The reserve is reached: the intake waits.
    None,
}

/// What a caller that plans needs to know of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its number.
    pub id: u32,
    /// First position.
    pub first: Position,
    /// The position behind its last one.
    pub end: Position,
    /// Bytes of its batches.
    pub bytes: u64,
    /// When it was opened: microseconds of running time.
    pub opened_us: u64,
    /// When the one after it was opened; none for the last, which is still open.
    pub closed_us: Option<u64>,
}

impl Store {
    /// Bounds the store. Called after it was opened, and whenever the limit changes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn set_limit(&mut self, max_bytes: u64) -> Result<(), StoreError> {
        let limits = Limits::of(max_bytes);
        let pragma = |name: &str, value: u64| self.connection.pragma_update(None, name, value as i64);
        // A file that is larger already keeps its size until pages were given back; then this is called again.
        let pages = limits.database() / PAGE_BYTES;
        self.connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        pragma("journal_size_limit", limits.log().min(8 * MIB))?;
        let frames = limits.checkpoint / LOG_PAGE_BYTES;
        self.connection
            .query_row(&format!("PRAGMA wal_autocheckpoint = {frames}"), [], |_| Ok(()))?;
        self.limits = limits;
        match self.lengthen_log() {
            Ok(written) => self.statistics.device_bytes += written,
            // It costs bytes later on, and nothing else.
            Err(error) => tracing::debug!("the write-ahead log was not lengthened: {error}"),
        }
        Ok(())
    }

    /// Gives the write-ahead log its full length, in zeros that SQLite takes for the end of the log, so that commits
    /// overwrite it. While it grows, each commit makes the file system write its own journal for the new length: four
    /// times the bytes of the commit itself. Returns the bytes written.
    fn lengthen_log(&self) -> std::io::Result<u64> {
        use std::io::{Seek as _, SeekFrom, Write as _};
        let Some(path) = self.connection.path() else {
            return Ok(0);
        };
        let mut log = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("{path}-wal"))?;
        // The transaction that reaches the checkpoint still goes behind it.
        let wanted = self.limits.checkpoint + LEDGER_BYTES;
        let zeros = vec![0; 64 << 10];
        let before = log.seek(SeekFrom::End(0))?;
        let mut length = before;
        while length < wanted {
            let piece = zeros
                .len()
                .min(usize::try_from(wanted - length).unwrap_or(zeros.len()));
            log.write_all(zeros.get(..piece).unwrap_or_default())?;
            length += piece as u64;
        }
        log.sync_all()?;
        Ok(length - before)
    }

    /// The shares in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes that the database can still take, free pages inside it included; none when it is above its share.
    ///
    /// # Errors
    /// SQLite's.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.limits.database().saturating_sub(self.used_bytes()?))
    }

    /// Bytes of the database that hold something.
    ///
    /// # Errors
    /// SQLite's.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let (pages, free) = pages(&self.connection)?;
        Ok(pages.saturating_sub(free) * PAGE_BYTES)
    }

    /// How much room is left.
    ///
    /// # Errors
    /// SQLite's.
    pub fn room(&self) -> Result<Room, StoreError> {
        let free = self.free_bytes()?;
        let reserve = self.limits.reserve();
        Ok(if free < reserve {
            Room::None
        } else if free < reserve + 2 * self.limits.segment {
            Room::Short
        } else {
            Room::Plenty
        })
    }

    /// Free bytes of the file system that holds the store; none when it does not say.
    pub fn free_on_disk(&self) -> Option<u64> {
        #[cfg(test)]
        if self.free_for_tests.is_some() {
            return self.free_for_tests;
        }
        let found = rustix::fs::statvfs(self.connection.path()?).ok()?;
        Some(found.f_bavail * found.f_frsize)
    }

    /// When the newest message of a segment came; none when the segment is empty or cannot be read.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_stamp(&self, segment: u32) -> Result<Option<Stamp>, StoreError> {
        let sql = format!("SELECT first, count, batch FROM journal_{segment} ORDER BY first DESC LIMIT 1");
        let found = self.connection.query_row(&sql, [], |row| {
            Ok((
                row.get::<_, i64>(0)? as u64,
                row.get::<_, i64>(1)? as u64,
                row.get::<_, Vec<u8>>(2)?,
            ))
        });
        let messages = found
            .optional()?
            .and_then(|(first, count, blob)| codec::decode(&self.codec.vault(), first, count, &blob).ok());
        Ok(messages.and_then(|messages| messages.last().map(|m| m.message.stamp)))
    }

    /// All segments, oldest first, with their bytes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn outline(&mut self) -> Result<Vec<Outline>, StoreError> {
        let Store {
            connection, segments, ..
        } = self;
        for segment in segments.iter_mut().filter(|s| s.bytes == 0) {
            // Reads the heads of the rows, not the batches.
            let sql = format!(
                "SELECT coalesce(sum(length(batch)), 0) FROM journal_{}",
                segment.id
            );
            let bytes = connection.query_row(&sql, [], |row| row.get::<_, i64>(0));
            // What cannot be read for damage counts as full.
            segment.bytes = bytes.map_or(self.limits.segment, |bytes| bytes as u64);
        }
        let ends = self.segments.iter().skip(1).map(Some).chain([None]);
        let outlines = self.segments.iter().zip(ends).map(|(segment, next)| Outline {
            id: segment.id,
            first: segment.first,
            end: next.map_or(self.next_position, |next| next.first),
            bytes: segment.bytes,
            opened_us: segment.opened_us,
            closed_us: next.map(|next| next.opened_us),
        });
        Ok(outlines.collect())
    }

    /// Drops segments, rewrites one, and writes what the loops know of it (rows that ended, counters, ledger lines), all in
    /// one transaction. The open segment is never touched.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was changed.
    pub fn reclaim(
        &mut self,
        drop: &[u32],
        rewrite: Option<&Rewrite>,
        changes: Option<&Changes>,
        wall: i64,
    ) -> Result<(), StoreError> {
        let open = self.segments.last().map(|segment| segment.id);
        let next_position = self.next_position;
        let mut segments = self.segments.clone();
        segments.retain(|s| Some(s.id) == open || !drop.contains(&s.id));
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(changes) = changes {
            changes.write(&transaction, &mut self.codec, wall)?;
        }
        // The next position outlives the rows that it could be computed from.
        transaction.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES ('next_position', ?1)",
            [next_position as i64],
        )?;
        for segment in self
            .segments
            .iter()
            .filter(|s| Some(s.id) != open && drop.contains(&s.id))
        {
            drop_table(&transaction, segment)?;
        }
        let mut rewritten = 0;
        if let Some(plan) = rewrite.filter(|plan| Some(plan.segment) != open) {
            rewritten = rewrite::run(&transaction, &mut self.codec, &mut segments, plan)?;
        }
        super::commit(transaction)?;
        self.segments = segments;
        self.statistics.committed(rewritten);
        self.statistics.rewritten_bytes += rewritten;
        Ok(())
    }

    /// Gives free pages back to the file system when the file is above its share, or when more than a quarter of it and
    /// two segments are free; a few at a time, and never by a VACUUM, which would write the file anew. Returns the pages.
    ///
    /// # Errors
    /// SQLite's.
    pub fn give_back(&mut self) -> Result<u64, StoreError> {
        let (pages, free) = pages(&self.connection)?;
        let used = pages.saturating_sub(free);
        let keep = used / 4 + 2 * self.limits.segment / PAGE_BYTES;
        let above = pages.saturating_sub(self.limits.database() / PAGE_BYTES);
        let wanted = above.max(free.saturating_sub(keep)).min(free).min(16_384);
        if wanted == 0 {
            return Ok(0);
        }
        // Small transactions, so that the log keeps its share too.
        for _ in 0..wanted.div_ceil(500) {
            let mut vacuum = self.connection.prepare_cached("PRAGMA incremental_vacuum(500)")?;
            let mut given = vacuum.query([])?;
            // A row for each page that was given back.
            while given.next()?.is_some() {}
        }
        if above > 0 {
            // The pages leave the file when the log is taken into it; then the wall can stand where it belongs.
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            self.set_limit(self.limits.max_bytes)?;
        }
        Ok(wanted)
    }
}

pub(super) fn drop_table(transaction: &Transaction<'_>, segment: &Segment) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM segment WHERE id = ?1", [segment.id])?;
    transaction.execute_batch(&format!("DROP TABLE journal_{}", segment.id))
}

/// Pages of the database, and how many of them are free.
fn pages(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let one = |sql: &str| -> rusqlite::Result<u64> {
        connection
            .prepare_cached(sql)?
            .query_row([], |row| row.get::<_, i64>(0))
            .map(|pages| pages as u64)
    };
    Ok((one("PRAGMA page_count")?, one("PRAGMA freelist_count")?))
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::message;
    use super::*;

    #[test]
    fn the_log_has_its_full_length_from_the_start_and_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let length = || {
            std::fs::metadata(folder.path().join("store.db-wal"))
                .unwrap()
                .len()
        };
        let (mut store, _) = Store::open(folder.path()).unwrap();
        store.set_limit(64 * MIB).unwrap();
        let full = length();
        assert!(full > CHECKPOINT_BYTES, "{full}");
        for number in 0..400 {
            store.append(&[message(number)], &[], None, 0, 0).unwrap();
        }
        assert_eq!(length(), full, "it grew");
        // What follows the last commit in the log is no damage.
        std::mem::forget(store);
        let copy = tempfile::tempdir().unwrap();
        for file in ["store.db", "store.db-wal"] {
            std::fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
        }
        let (store, recovered) = Store::open(copy.path()).unwrap();
        assert_eq!((recovered.set_aside, recovered.next_position), (None, 401));
        assert_eq!(store.read_from(1, usize::MAX).unwrap().messages.len(), 400);
    }
}
