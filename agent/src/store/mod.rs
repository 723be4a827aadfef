//! The store: one SQLite file that survives a power cut at any moment.
//!
//! # What it holds
//!
//! The **journal** is the truth: compressed batches of raw messages, a batch per commit, in segment tables that are
//! dropped whole. Everything else (measurements, groups, Observations) is computed from it again; the **outbox** holds
//! references to it, never payloads.
//!
//! # Invariants
//!
//! 1. **Acknowledged is durable.** [`Store::append`] returns after the commit was synced to the medium (WAL,
//!    `synchronous=FULL`); acknowledgements leave after it returns, never before (test `acknowledged_is_durable`, proof
//!    `power-cuts`, by classes of what is cut, and `power-cuts --guest` with a real kernel and ext4).
//! 2. **A batch is there whole or not at all**, whatever moment the power is cut: it is one row of one transaction (test
//!    `a_batch_is_there_whole_or_not_at_all`).
//! 3. **Positions are never reused**, also not those of dropped segments: the next one is kept apart from the journal (test
//!    `positions_are_never_reused_also_not_those_of_dropped_segments`).
//! 4. **Cursor and rows are one transaction.** The stored cursor never passes a message whose readings are not
//!    delivered, in a row, waiting, a dead letter or in the ledger: [`Changes`] writes them together (test
//!    `cursor_and_rows_are_one_transaction`).
//! 5. **A segment is dropped only when nothing needs it**: no cursor, row, wait or run of unmatched messages lies in it, and
//!    rows, counters and cursors that say so are in the same transaction (test
//!    `nothing_disappears_without_a_ledger_line`).
//! 6. **A damaged file never keeps the agent from starting**: it is set aside under a dated name, the new one has a new
//!    store id (event ids stay unique), and the ledger says so (test
//!    `a_damaged_file_is_set_aside_and_the_new_store_has_a_new_id`).
//! 7. **One owner**: folder and file are locked for the life of the process, the folder before anything is looked at or set
//!    aside (test `one_owner`; the whole program: `a_second_agent_says_who_has_the_store_and_leaves_it_alone`).
//! 8. **A message that ended the process is isolated** (`isolation.rs`): it becomes a dead letter that is not read again,
//!    and so do the copies that the sender repeats because the end came before the acknowledgement (test
//!    `a_message_whose_mark_is_found_is_remembered_as_long_as_the_journal_holds_it`).
//! 9. **Database and log never exceed `max_bytes`** (`crate::bounds`; test
//!    `a_flood_with_the_destination_down_never_makes_the_store_larger_than_max_bytes`): SQLite refuses to grow beyond
//!    its share, and a reserve before it keeps room to make room.
//! 10. **Nothing disappears without a ledger line** (test
//!     `nothing_disappears_without_a_ledger_line`): what is given up leaves rows, counters and journal in
//!     one transaction; a reading that stays keeps position, stamp and revision wherever it is copied.
//! 11. **Waveforms go first, then periodic readings; alarms and spot readings stay** as long as they have room (test
//!     `waveforms_go_first_then_periodic_readings_and_alarms_and_spot_readings_stay`), the oldest first, the newest never without need.
//! 12. **A lone waiting reading does not pin segments** (test `a_lone_waiting_reading_does_not_pin_the_segments_after_it_nor_its_own`): it is copied forward.
//! 13. **A disk in trouble presses back** (`trouble.rs`; test
//!     `a_full_disk_presses_back_and_recovers_without_a_restart_on_ext4`): full, read-only, failing or not
//!     ours, at the start and in the middle. Nothing is acknowledged meanwhile, and work goes on without a restart.
//! 14. **What a failed commit left behind is never taken for a commit** (`reopen.rs`; test
//!     `what_a_failed_commit_left_behind_is_never_taken_for_a_commit`, proof `power-cuts --troubles`, which lets any call fail): after a sync that failed, what is read back need not be on the medium.
//! 15. **What can be read of a damaged store comes into the new one**, once, with stamp, packs and identity, in the background
//!     (`salvage`; test
//!     `whatever_page_is_damaged_every_other_batch_arrives_once_under_its_identity_and_the_rest_is_in_the_ledger`); a crash in
//!     the middle changes nothing (test `a_salvage_that_is_cut_off_anywhere_neither_loses_nor_doubles`).
//! 16. **A log that is damaged in the middle hides no commit** (`log.rs`; test
//!     `a_log_that_is_damaged_in_the_middle_hides_no_commit_behind_it`): SQLite would leave out what is behind the damage
//!     without a word. Only a last commit that was not finished is left out.
//! 17. **A store of a newer version is refused and left as it is**, also a damaged one (test
//!     `a_store_of_a_newer_version_is_refused_and_not_touched`).
//!
//! 18. **A row that says whose a reading is, or when it was taken, is what was written, or the store is damaged**
//!     (`checked_rows.rs`; test `a_bit_that_changed_in_any_byte_of_an_entry_is_found` and
//!     `a_row_that_is_not_what_was_written_or_is_gone_is_damage_at_the_start_and_said_by_the_check`; the whole program:
//!     `a_bit_that_changed_in_an_entry_puts_no_reading_on_another_patient_and_loses_none`). Where entries were lost by it, readings
//!     wait for the operator (`doubt.rs`).
//!
//! # A crash at each point
//!
//! | Crash | Left behind |
//! |---|---|
//! | before the commit of a batch | nothing; the sender was not acknowledged and sends again |
//! | after the commit, before the acknowledgement | the batch; the sender sends again (a DUP is recognised) |
//! | in the first start | nothing, or a store without a message; its key is on the medium before anything is sealed with it |
//! | while a damaged file is set aside | file and log keep names that belong together: the next start goes on where a note says (`set_aside.rs`) |
//! | in a migration | the version before it or after it, whole |
//! | while the log is taken into the database | both until the database was synced; only then the log is begun anew |
//! | after a delivery, before its confirmation is stored | the row; the same resource or event id is sent again |
//!
//! # Flash
//!
//! Page size 1024, one zstd blob per commit, segments dropped instead of rows deleted, progress in one row that rides on
//! the next intake commit, `fdatasync` instead of `fsync` (`.cargo/config.toml`), a write-ahead log that has its full
//! length from the start and is overwritten (a log that grows cost 5.9 where it is 2.9 now: the file system journals each
//! new length).
//!
//! Device bytes per payload byte over the whole way, messages of 300 bytes, period 0, ext4 on a loop device, creation and
//! closing of the store and the file system's own commits every 5 seconds in it (`flash-bench`):
//!
//! | messages/s | window | `commit_interval` | over 5 min | over 30 min |
//! |---|---|---|---|---|
//! | 20 | 20 | 1 s | 2.9 | 2.4 |
//! | 20 | 100 | 5 s | | 1.15 |
//! | 2000 | 100 | 1 s | 0.56 over 30 s | |
//! | 2000 | 20 | 1 s | 1.8 over 30 s: a sender that allows no more forces a commit per 20 messages | |
//!
//! With a window of 20 and the sender held by it nothing but the commit counts, and the limit of 1.0 is out of reach of a row
//! in a table. 20 messages are 6000 bytes, 750 compressed, for which SQLite changes 4.2 pages (the row's, a new one each time;
//! the one above it; the map of pages; the header): 4.4 kB of log in 2.1 blocks of 4096 bytes, so 8.5 kB, and the row's page
//! once more in the database makes 1.6; the rest is the file system's. Progress has no part in it: it rides on a commit every
//! 10 seconds. Rows that are written into pages that are there already and moved together later would be one page, in 1.26
//! blocks, and 1.1 with the moving. Only a block of its own for each commit, beside the database, would be below: 0.9, and a
//! block alone, the least that flash takes, is 0.68.
//!
//! # Figures
//!
//! `store-bench --backlog 1073741824`, release build, syncs that take 5 ms longer than the disk's, a FHIR server that answers at
//! once, two busy cores: 1.9 million messages of 1000 bytes gathered at 64,600 messages per CPU second; after the plug was
//! pulled the first acknowledgement came after 0.2 s, and after at most 0.4 s with the file damaged in its middle, at its end or
//! at its head; the drain took 32,100 messages per CPU second and was 20,700/s, the acknowledgement beside it (20 messages/s,
//! `commit_interval` 1 s) at most 0.99 s late in 99 of 100 cases.
//! `pipeline-bench --messages 200000`: 100,000 to 115,000 messages per CPU second.
//!
//! With the sender's window kept full and syncs 5 ms longer (`store-bench --sync-delay-ms 5 --rate 0 --window W`) 99 of 100
//! messages are acknowledged within 14 ms (window 20; 2,200 messages/s) and 18 ms (window 100; 9,200 messages/s). At 200
//! messages/s it is 100 ms, at 20 messages/s 958 ms with a `commit_interval` of 1 s.
//! On cores that a dozen other programs wanted too: 29 ms and 54 ms at a delay of 1 ms, 61 ms and 66 ms at 20 ms; at 20 messages/s
//! 978 ms and 982 ms.
//!
//! Memory of the program that ships (`store-bench --agent`; x86-64, 11.4 MB on disk) with the unit's allocator settings, window 100:
//! 11.3 MB are pages of the program and of libc at every pace, as the kernel maps what lies around a page too. Its own comes to
//! them: 2.8 MB at 20 messages/s, so that 14.1 MB are resident; 4.6 MB at 200/s (15.9), 6.5 MB at 2,000/s (18.0), 8.1 MB with the
//! window kept full (19.4), 5.6 MB while a backlog gathers (16.7), and 6.4 MB in the drain of 300 MB (17.6, at most 19.2). Aimed
//! at are 15 MB steady and 20 MB while a backlog drains. For it the program is built for size (`opt-level` "z" but for what every
//! message passes): 0.7 MB smaller than with "s", at 8 to 17 % more CPU.

pub mod associations;
mod boots;
pub mod bounds;
mod check;
mod checked_rows;
pub mod codec;
mod device_clocks;
mod doubt;
#[cfg(test)]
mod invariants;
mod isolation;
mod letters;
mod log;
mod memory;
mod open;
pub mod outbox;
pub mod progress;
mod read;
mod records;
mod recover;
mod reopen;
mod rewrite;
pub mod salvage;
mod schema;
mod set_aside;
mod trouble;
pub mod vault;

pub use bounds::{Limits, Outline, Room};
pub use check::CheckState;
pub use isolation::Isolation;
pub use letters::{Selection, StoredLetter};
pub use progress::{Changes, DeadLetter, DestinationProgress, Loss, Progress, Row, UnmatchedRun};
pub use read::{DeadLetterSummary, Ranges, StoredBatch};
pub use recover::{Dating, LastPacket, Recovered};
pub use rewrite::Rewrite;
pub use trouble::Trouble;

use crate::message::{Message, Position, RevisionId};
use crate::sabotage::{self, Sabotage};
use crate::worker::Worker;
use codec::Codec;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A segment is closed when it holds its share of `max_bytes` ([`Limits`]), or is this old, in microseconds of running
/// time, so that history can be dropped by age.
const SEGMENT_AGE_US: u64 = 3_600_000_000;

/// Why the store could not do something. Nothing was changed then; trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store in {0} is in use by another process: stop it first (systemctl stop bedside-agent)")]
    Locked(PathBuf),
    /// Written by a newer version of the program.
    #[error("the store in {0} was written by a newer version of this program: install that version again")]
    Newer(PathBuf),
    /// The key of an encrypted store is missing or wrong, or the configuration does not want it encrypted. The store is
    /// left as it is.
    #[error("{0}")]
    Key(String),
    /// SQLite: disk full, input or output error, read-only file system.
    #[error("store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// File system.
    #[error("store: {0}")]
    Io(#[from] std::io::Error),
    /// A batch of the journal is damaged.
    #[error("store: {0}")]
    Damaged(#[from] codec::Damaged),
    /// The disk is in trouble and the files are closed until it works again.
    #[error("store: {advice}")]
    Unavailable {
        /// What is the matter.
        trouble: Trouble,
        /// What helps.
        advice: String,
    },
    /// What is there after a trouble is not what was there before: only a new start can tell what to do.
    #[error("store: it cannot be taken up where it was left ({0})")]
    Lost(String),
    /// The store's thread is gone.
    #[error("store: stopped")]
    Stopped,
}

impl StoreError {
    /// Whether the file itself is wrong, as far as SQLite tells.
    pub fn is_damage(&self) -> bool {
        set_aside::is_damage(self)
    }

    /// Whether the device refused to read a place of the file.
    pub fn is_unreadable(&self) -> bool {
        use rusqlite::ffi::{SQLITE_IOERR_CORRUPTFS, SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ};
        let StoreError::Sqlite(error) = self else {
            return false;
        };
        let places = [SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ, SQLITE_IOERR_CORRUPTFS];
        error
            .sqlite_error()
            .is_some_and(|error| places.contains(&error.extended_code))
    }
}

/// One table of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) first: Position,
    pub(crate) bytes: u64,
    pub(crate) opened_us: u64,
}

/// The open store; lives on the store's thread.
pub struct Store {
    pub(crate) connection: Connection,
    /// Id of the store.
    pub(crate) id: String,
    /// Holds the lock of the folder.
    owner: Option<std::fs::File>,
    /// Set while the files are closed.
    closed: Option<reopen::Closed>,
    pub(crate) codec: Codec,
    pub(crate) segments: Vec<Segment>,
    pub(crate) next_position: Position,
    pub(crate) statistics: Statistics,
    pub(crate) check: check::Check,
    pub(crate) limits: Limits,
    /// What the file system is taken to have free.
    #[cfg(test)]
    pub(crate) free_for_tests: Option<u64>,
}

/// What the store has written since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// Commits, each synced.
    pub commits: u64,
    /// Messages appended.
    pub messages: u64,
    /// Payload bytes appended.
    pub payload_bytes: u64,
    /// Bytes of the batches that hold them.
    pub batch_bytes: u64,
    /// Bytes that reach the medium for the commits, as far as the store knows: pages of the write-ahead log, of the database
    /// when it takes them over, and of the file system's own journal. `flash-bench` compares it with what a device counts: a fifth more.
    pub device_bytes: u64,
    /// Bytes that were written again because something around them was given up.
    pub rewritten_bytes: u64,
    /// Running time in microseconds of the last commit of the file system's journal, as far as the store knows.
    #[serde(skip)]
    journaled_us: u64,
}

impl Statistics {
    /// Counts a commit that holds `bytes` of batches. Measured on ext4 (`flash-bench`): beside the batch it takes some three
    /// pages of the log, half a block of 4096 bytes at each end, and its pages go into the database once; while anything is
    /// written the file system commits its own journal every 5 seconds.
    fn committed(&mut self, bytes: u64) {
        const BLOCK: u64 = 4096;
        const FILE_SYSTEM_US: u64 = 5_000_000;
        let pages = bytes.div_ceil(bounds::PAGE_BYTES) + 3;
        self.commits += 1;
        self.device_bytes += pages * bounds::LOG_PAGE_BYTES + BLOCK + bytes;
        let now_us = crate::clock::monotonic_us();
        if now_us.saturating_sub(self.journaled_us) >= FILE_SYSTEM_US {
            self.journaled_us = now_us;
            self.device_bytes += 4 * BLOCK;
        }
    }
}

/// A set of mapping packs that a batch names for the first time.
#[derive(Clone, Debug)]
pub struct NewRevision {
    /// Its number, given by the caller.
    pub id: RevisionId,
    /// Hash of the texts.
    pub hash: String,
    /// The texts.
    pub bundle: Vec<u8>,
}

impl Store {
    /// Commits a batch of messages with the packs that they name, and the progress of the loops if there is any.
    /// Returns the position of the first message. When it returns, all of it survives a power cut.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is stored, and the same call may be made again.
    pub fn append(
        &mut self,
        batch: &[(Message, RevisionId)],
        revisions: &[NewRevision],
        changes: Option<&Changes>,
        now_us: u64,
        wall: i64,
    ) -> Result<Position, StoreError> {
        self.append_with(batch, revisions, changes, now_us, wall, |_| Ok(()))
    }

    /// As [`Store::append`], with what `also` writes in the same transaction.
    fn append_with(
        &mut self,
        batch: &[(Message, RevisionId)],
        revisions: &[NewRevision],
        changes: Option<&Changes>,
        now_us: u64,
        wall: i64,
        also: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<Position, StoreError> {
        let first = self.next_position;
        let blob = self.codec.encode(
            first,
            batch.iter().map(|(message, revision)| (message, *revision)),
        )?;
        let opened = self.segment_for(first, now_us);
        let segment = opened.unwrap_or(self.current_segment(first, now_us));
        if let Some(changes) = changes.filter(|_| sabotage::is_on(Sabotage::CursorBeforeRows)) {
            changes.write_progress(&self.connection)?;
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let too_late = sabotage::is_on(Sabotage::RevisionAfterMessages);
        for revision in revisions.iter().filter(|_| !too_late) {
            transaction
                .prepare_cached("INSERT OR IGNORE INTO revision (id, hash, bundle) VALUES (?1, ?2, ?3)")?
                .execute(params![revision.id.0, revision.hash, revision.bundle])?;
        }
        if opened.is_some() {
            transaction.execute(
                "INSERT INTO segment (id, first, opened_us) VALUES (?1, ?2, ?3)",
                params![segment.id, segment.first as i64, segment.opened_us as i64],
            )?;
            transaction.execute_batch(&format!(
                "CREATE TABLE journal_{} (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, batch BLOB NOT NULL)",
                segment.id
            ))?;
        }
        if !batch.is_empty() {
            transaction
                .prepare_cached(&format!(
                    "INSERT INTO journal_{} (first, count, batch) VALUES (?1, ?2, ?3)",
                    segment.id
                ))?
                .execute(params![first as i64, batch.len() as i64, blob])?;
        }
        if !sabotage::is_on(Sabotage::ForgetRecords) {
            records::remember(&transaction, first, batch)?;
        }
        if let Some(changes) = changes {
            changes.write(&transaction, &mut self.codec, wall)?;
        }
        also(&transaction)?;
        commit(transaction)?;
        for revision in revisions.iter().filter(|_| too_late) {
            self.connection
                .prepare_cached("INSERT OR IGNORE INTO revision (id, hash, bundle) VALUES (?1, ?2, ?3)")?
                .execute(params![revision.id.0, revision.hash, revision.bundle])?;
        }
        self.next_position += batch.len() as u64;
        self.account(batch, blob.len() as u64, segment, opened.is_some());
        Ok(first)
    }

    /// Commits progress alone: intake was idle, or the program stops.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is stored.
    pub fn commit_progress(&mut self, changes: &Changes, wall: i64) -> Result<(), StoreError> {
        if sabotage::is_on(Sabotage::CursorBeforeRows) {
            changes.write_progress(&self.connection)?;
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        changes.write(&transaction, &mut self.codec, wall)?;
        commit(transaction)?;
        self.statistics.committed(0);
        Ok(())
    }

    fn account(&mut self, batch: &[(Message, RevisionId)], bytes: u64, segment: Segment, opened: bool) {
        if opened {
            self.segments.push(segment);
        }
        if let Some(last) = self.segments.last_mut() {
            last.bytes += bytes;
        }
        self.statistics.committed(bytes);
        self.statistics.messages += batch.len() as u64;
        self.statistics.payload_bytes += batch.iter().map(|(m, _)| m.payload.len() as u64).sum::<u64>();
        self.statistics.batch_bytes += bytes;
    }

    /// The segment to open for a batch at `first`, if the last one is full or old.
    fn segment_for(&self, first: Position, now_us: u64) -> Option<Segment> {
        match self.segments.last() {
            Some(last)
                if last.bytes < self.limits.segment
                    && now_us.saturating_sub(last.opened_us) < SEGMENT_AGE_US =>
            {
                None
            }
            Some(last) => Some(Segment {
                id: last.id + 1,
                first,
                bytes: 0,
                opened_us: now_us,
            }),
            None => Some(Segment {
                id: 1,
                first,
                bytes: 0,
                opened_us: now_us,
            }),
        }
    }

    fn current_segment(&self, first: Position, now_us: u64) -> Segment {
        self.segments.last().copied().unwrap_or(Segment {
            id: 1,
            first,
            bytes: 0,
            opened_us: now_us,
        })
    }

    /// Whether what it holds is sealed.
    pub fn is_encrypted(&self) -> bool {
        self.codec.vault().is_sealed()
    }

    /// What was written since the store was opened.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Bytes of database and write-ahead log.
    pub fn size(&self) -> u64 {
        let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        match self.connection.path() {
            Some(path) => length(PathBuf::from(path)) + length(PathBuf::from(format!("{path}-wal"))),
            None => 0,
        }
    }
}

/// Commits, in the time that the medium needs.
fn commit(transaction: Transaction<'_>) -> rusqlite::Result<()> {
    sabotage::wait_for_the_medium();
    transaction.commit()
}

/// The store as the loops reach it: calls run in order on its worker.
#[derive(Clone)]
pub struct StoreHandle {
    worker: Worker,
    store: Arc<Mutex<Store>>,
}

impl StoreHandle {
    /// Puts a store behind a worker (one thread, or inline in simulation).
    pub fn new(store: Store, worker: Worker) -> StoreHandle {
        StoreHandle {
            worker,
            store: Arc::new(Mutex::new(store)),
        }
    }

    /// Runs `work` with the store; not while its files are closed in trouble and cannot be opened again.
    ///
    /// # Errors
    /// What `work` returns, [`StoreError::Unavailable`], [`StoreError::Lost`] or [`StoreError::Stopped`].
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        let called = self.worker.call(move || match store.lock() {
            Ok(mut store) => {
                store.ensure_open()?;
                work(&mut store)
            }
            Err(_) => Err(StoreError::Stopped),
        });
        called.await.map_err(|_| StoreError::Stopped)?
    }
}
