//! Opening: lock, fast check, migration, and what the loops need to go on where they stopped.

use super::codec::{self, Codec};
use super::progress::{Progress, Row, UnmatchedRun, decode_key, decode_refs};
use super::{Segment, Statistics, Store, StoreError, schema};
use crate::forward::GroupKey;
use crate::message::{Position, RevisionId, SourceId, StoredMessage};
use crate::sabotage::{self, Sabotage};
use crate::{clock, random};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Batches at the end of the journal whose checksum is looked at before the first acknowledgement.
const CHECKED_BATCHES: i64 = 16;
/// Messages at the end of the journal that are handed to the sources to recognise redelivered ones.
const RESUME_BATCHES: i64 = 64;

/// What ties the monotonic time of a boot to trusted wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dating {
    /// Number of the boot.
    pub boot: u32,
    /// Monotonic time in microseconds, and the trusted wall time then in ticks of 100 ns.
    pub reference: Option<(u64, i64)>,
}

/// What was found at a start.
#[derive(Debug)]
pub struct Recovered {
    /// Id of the store, part of every event id.
    pub store_id: String,
    /// Number of this boot.
    pub boot: u32,
    /// All boots with their references.
    pub dating: Vec<Dating>,
    /// Cursors and counters.
    pub progress: Progress,
    /// Group keys by number.
    pub series: Vec<(u32, Arc<GroupKey>)>,
    /// Outbox and waiting rows.
    pub rows: Vec<Row>,
    /// Runs of unmatched messages.
    pub unmatched: Vec<UnmatchedRun>,
    /// Sets of mapping packs: number and hash.
    pub revisions: Vec<(RevisionId, String)>,
    /// Position of the next message.
    pub next_position: Position,
    /// The last messages that have a packet id, oldest first.
    pub resume: Vec<StoredMessage>,
    /// Where a damaged file was put.
    pub set_aside: Option<PathBuf>,
}

impl Store {
    /// Opens or creates the store in `folder`. A damaged file is set aside and a new one begun.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`], or a disk that cannot be used.
    pub fn open(folder: &Path) -> Result<(Store, Recovered), StoreError> {
        std::fs::create_dir_all(folder)?;
        let file = folder.join("store.db");
        match Store::open_file(&file) {
            Ok(opened) => Ok(opened),
            Err(error) if is_damage(&error) => {
                let aside = set_aside(&file)?;
                let (store, mut recovered) = Store::open_file(&file)?;
                store.connection.execute(
                    "INSERT INTO ledger (count, reason, wall) VALUES (0, ?1, ?2)",
                    params![
                        format!("damaged store set aside as {}: {error}", aside.display()),
                        clock::wall().ticks()
                    ],
                )?;
                recovered.set_aside = Some(aside);
                Ok((store, recovered))
            }
            Err(error) => Err(error),
        }
    }

    fn open_file(file: &Path) -> Result<(Store, Recovered), StoreError> {
        let mut connection = Connection::open(file)?;
        prepare(&connection).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked(file.to_owned()),
            _ => StoreError::Sqlite(error),
        })?;
        schema::migrate(&mut connection).map_err(|error| match error {
            rusqlite::Error::InvalidQuery => StoreError::Newer(file.to_owned()),
            other => StoreError::Sqlite(other),
        })?;
        let segments = read_segments(&connection)?;
        check_last_batches(&connection, &segments)?;
        let next_position = next_position(&connection, &segments)?;
        let mut store = Store {
            connection,
            codec: Codec::new()?,
            segments,
            next_position,
            statistics: Statistics::default(),
        };
        let recovered = store.recover()?;
        Ok((store, recovered))
    }

    fn recover(&mut self) -> Result<Recovered, StoreError> {
        let store_id = match self.meta_text("store_id")? {
            Some(id) => id,
            None => {
                let id = random::id();
                self.connection
                    .execute("INSERT INTO meta (key, value) VALUES ('store_id', ?1)", [&id])?;
                id
            }
        };
        let connection = &self.connection;
        connection.execute(
            "INSERT OR IGNORE INTO boot (boot_id) VALUES (?1)",
            [clock::boot_id()],
        )?;
        let boot = connection.query_row(
            "SELECT id FROM boot WHERE boot_id = ?1",
            [clock::boot_id()],
            |row| row.get(0),
        )?;
        let dating = collect(
            connection,
            "SELECT id, reference_us, reference_wall FROM boot",
            |row| {
                let reference: (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
                Ok(Dating {
                    boot: row.get(0)?,
                    reference: reference.0.map(|us| us as u64).zip(reference.1),
                })
            },
        )?;
        let progress: Option<String> = connection
            .query_row("SELECT state FROM progress", [], |row| row.get(0))
            .optional()?;
        let progress = match progress {
            Some(text) => serde_json::from_str(&text).map_err(|_| codec::Damaged::Content)?,
            None => Progress::default(),
        };
        let series = collect(connection, "SELECT id, key FROM series", |row| {
            Ok((row.get(0)?, decode_key(row.get_ref(1)?.as_blob()?)))
        })?;
        let series = series
            .into_iter()
            .map(|(id, key)| Ok((id, Arc::new(key.ok_or(codec::Damaged::Content)?))))
            .collect::<Result<_, codec::Damaged>>()?;
        let rows = collect(
            connection,
            "SELECT id, destination, series, period, first, last, count, oldest, refs, revision, waiting FROM outbox ORDER BY id",
            read_row,
        )?;
        let unmatched = collect(
            connection,
            "SELECT first, last, source, count, no_pack, wall FROM unmatched ORDER BY first",
            |row| {
                Ok(UnmatchedRun {
                    first: row.get::<_, i64>(0)? as u64,
                    last: row.get::<_, i64>(1)? as u64,
                    source: SourceId(row.get(2)?),
                    count: row.get::<_, i64>(3)? as u64,
                    no_pack: row.get(4)?,
                    wall: row.get(5)?,
                })
            },
        )?;
        let revisions = collect(connection, "SELECT id, hash FROM revision ORDER BY id", |row| {
            Ok((RevisionId(row.get(0)?), row.get(1)?))
        })?;
        let resume = self.last_packets()?;
        Ok(Recovered {
            store_id,
            boot,
            dating,
            progress,
            series,
            rows,
            unmatched,
            revisions,
            next_position: self.next_position,
            resume,
            set_aside: None,
        })
    }

    fn meta_text(&self, key: &str) -> rusqlite::Result<Option<String>> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
    }

    fn last_packets(&self) -> Result<Vec<StoredMessage>, StoreError> {
        let mut batches = Vec::new();
        for segment in self.segments.iter().rev().take(2) {
            let sql = format!(
                "SELECT first, count, batch FROM journal_{} ORDER BY first DESC LIMIT {RESUME_BATCHES}",
                segment.id
            );
            batches.extend(collect(&self.connection, &sql, |row| {
                Ok((
                    row.get::<_, i64>(0)? as u64,
                    row.get::<_, i64>(1)? as u64,
                    row.get::<_, Vec<u8>>(2)?,
                ))
            })?);
        }
        let mut packets = Vec::new();
        for (first, count, blob) in batches.into_iter().rev() {
            packets.extend(
                codec::decode(first, count, &blob)?
                    .into_iter()
                    .filter(|m| m.message.ack.is_some()),
            );
        }
        Ok(packets)
    }

    /// Number of the source called `name`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn source(&mut self, name: &str) -> Result<SourceId, StoreError> {
        Ok(SourceId(number_of(&self.connection, "source", name)?))
    }

    /// Number of the destination called `name`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn destination(&mut self, name: &str) -> Result<u32, StoreError> {
        Ok(number_of(&self.connection, "destination", name)?)
    }

    /// Notes a moment at which the wall clock could be trusted, so that readings of this boot can be dated.
    ///
    /// # Errors
    /// SQLite's.
    pub fn set_reference(&mut self, boot: u32, monotonic_us: u64, wall: i64) -> Result<(), StoreError> {
        self.connection.execute(
            "UPDATE boot SET reference_us = ?2, reference_wall = ?3 WHERE id = ?1",
            params![boot, monotonic_us as i64, wall],
        )?;
        Ok(())
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(2))?;
    // The exclusive lock is the single-owner lock, and makes the shared-memory file unnecessary.
    connection.execute_batch(
        "PRAGMA page_size = 1024;
         PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 8388608;
         PRAGMA cache_size = -1000;
         PRAGMA temp_store = MEMORY;
         PRAGMA mmap_size = 0;
         PRAGMA cell_size_check = ON;
         BEGIN IMMEDIATE; COMMIT;",
    )?;
    if sabotage::is_on(Sabotage::SynchronousNormal) {
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    }
    let check: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    if check != 0 && check != schema::APPLICATION_ID {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB),
            Some("the file belongs to another program".to_owned()),
        ));
    }
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged(_) => true,
        StoreError::Sqlite(error) => match error {
            rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => true,
            other => matches!(
                other.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
            ),
        },
        _ => false,
    }
}

fn set_aside(file: &Path) -> std::io::Result<PathBuf> {
    let date: String = clock::wall()
        .to_string()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let mut aside = file.with_extension(format!("db.damaged-{date}"));
    let mut number = 1;
    while aside.exists() {
        number += 1;
        aside = file.with_extension(format!("db.damaged-{date}-{number}"));
    }
    for suffix in ["-wal", "-shm"] {
        let beside = PathBuf::from(format!("{}{suffix}", file.display()));
        if beside.exists() {
            std::fs::rename(&beside, format!("{}{suffix}", aside.display()))?;
        }
    }
    std::fs::rename(file, &aside)?;
    if let Some(folder) = file.parent() {
        // The rename is durable before the new file is trusted.
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(aside)
}

fn read_segments(connection: &Connection) -> rusqlite::Result<Vec<Segment>> {
    let mut segments = collect(
        connection,
        "SELECT id, first, opened_us FROM segment ORDER BY id",
        |row| {
            Ok(Segment {
                id: row.get(0)?,
                first: row.get::<_, i64>(1)? as u64,
                bytes: 0,
                opened_us: row.get::<_, i64>(2)? as u64,
            })
        },
    )?;
    if let Some(last) = segments.last_mut() {
        let sql = format!("SELECT coalesce(sum(length(batch)), 0) FROM journal_{}", last.id);
        last.bytes = connection.query_row(&sql, [], |row| row.get::<_, i64>(0))? as u64;
    }
    // Monotonic time starts anew with each boot: a segment of the future is one of an earlier boot.
    let now = clock::monotonic_us();
    for segment in &mut segments {
        segment.opened_us = segment.opened_us.min(now);
    }
    Ok(segments)
}

fn check_last_batches(connection: &Connection, segments: &[Segment]) -> Result<(), StoreError> {
    let Some(last) = segments.last() else {
        return Ok(());
    };
    let sql = format!(
        "SELECT batch FROM journal_{} ORDER BY first DESC LIMIT {CHECKED_BATCHES}",
        last.id
    );
    for blob in collect(connection, &sql, |row| row.get::<_, Vec<u8>>(0))? {
        codec::verify(&blob)?;
    }
    Ok(())
}

fn next_position(connection: &Connection, segments: &[Segment]) -> rusqlite::Result<Position> {
    let kept: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE key = 'next_position'", [], |row| {
            row.get(0)
        })
        .optional()?;
    let mut next = kept.unwrap_or(1) as u64;
    for segment in segments.iter().rev() {
        next = next.max(segment.first);
        let sql = format!(
            "SELECT first + count FROM journal_{} ORDER BY first DESC LIMIT 1",
            segment.id
        );
        if let Some(end) = connection
            .query_row(&sql, [], |row| row.get::<_, i64>(0))
            .optional()?
        {
            next = next.max(end as u64);
            break;
        }
    }
    Ok(next)
}

fn number_of(connection: &Connection, table: &str, name: &str) -> rusqlite::Result<u32> {
    connection.execute(
        &format!("INSERT OR IGNORE INTO {table} (name) VALUES (?1)"),
        [name],
    )?;
    connection.query_row(
        &format!("SELECT id FROM {table} WHERE name = ?1"),
        [name],
        |row| row.get(0),
    )
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let damaged =
        |column| rusqlite::Error::InvalidColumnType(column, "outbox".to_owned(), rusqlite::types::Type::Blob);
    let refs = match row.get_ref(8)?.as_blob_or_null()? {
        Some(bytes) => Some(Arc::new(decode_refs(bytes).ok_or_else(|| damaged(8))?)),
        None => None,
    };
    let waiting: Option<String> = row.get(10)?;
    let waiting = waiting
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|_| damaged(10))?;
    Ok(Row {
        id: row.get::<_, i64>(0)? as u64,
        destination: row.get(1)?,
        series: row.get(2)?,
        period: row.get(3)?,
        first: row.get::<_, i64>(4)? as u64,
        last: row.get::<_, i64>(5)? as u64,
        count: row.get::<_, i64>(6)? as u64,
        oldest: row.get(7)?,
        refs,
        revision: row.get::<_, Option<u32>>(9)?.map(RevisionId),
        waiting,
    })
}

/// All rows of a query.
pub(super) fn collect<T>(
    connection: &Connection,
    sql: &str,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare(sql)?.query_map([], read)?.collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Changes, NewRevision};
    use super::*;
    use crate::message::{AckToken, Message, Payload, PayloadKind, Stamp};
    use bytes::Bytes;

    fn message(n: u64) -> (Message, RevisionId) {
        let message = Message {
            source: SourceId(1),
            stamp: Stamp {
                boot: 1,
                monotonic_us: n,
                wall: clock::wall(),
                trusted: true,
            },
            payload: Payload(Bytes::from(format!("{{\"n\":{n}}}"))),
            kind: PayloadKind::Whole,
            topic: None,
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            ack: Some(AckToken {
                epoch: 1,
                packet_id: n as u16,
                session: 1,
            }),
        };
        (message, RevisionId(1))
    }

    fn texts(store: &Store) -> Vec<String> {
        let batch = store.read_from(1, usize::MAX).unwrap();
        batch
            .messages
            .iter()
            .map(|m| String::from_utf8_lossy(m.message.payload.bytes()).into_owned())
            .collect()
    }

    #[test]
    fn a_second_start_finds_messages_rows_and_cursor() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, first) = Store::open(folder.path()).unwrap();
        let batch: Vec<_> = (0..30).map(message).collect();
        let mut changes = Changes::default();
        changes.progress.cursor = 30;
        changes.unmatched.push(UnmatchedRun {
            first: 3,
            last: 4,
            source: SourceId(1),
            count: 2,
            no_pack: true,
            wall: 9,
        });
        let revision = NewRevision {
            id: RevisionId(1),
            hash: "h".to_owned(),
            bundle: b"packs".to_vec(),
        };
        assert_eq!(
            store.append(&batch, &[revision], Some(&changes), 5, 5).unwrap(),
            1
        );
        drop(store);
        let (store, second) = Store::open(folder.path()).unwrap();
        assert_eq!(second.store_id, first.store_id);
        assert_eq!(second.next_position, 31);
        assert_eq!(second.progress.cursor, 30);
        assert_eq!(second.unmatched, changes.unmatched);
        assert_eq!(second.revisions, [(RevisionId(1), "h".to_owned())]);
        assert_eq!(second.resume.len(), 30);
        assert_eq!(texts(&store).len(), 30);
        assert_eq!(
            store.revision_bundle(RevisionId(1)).unwrap(),
            Some(b"packs".to_vec())
        );
        assert_eq!(store.read_from(25, 1).unwrap().messages[0].position, 25);
    }

    #[test]
    fn one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, _) = Store::open(folder.path()).unwrap();
        assert!(matches!(
            Store::open(folder.path()).map(|_| ()),
            Err(StoreError::Locked(_))
        ));
    }

    #[test]
    fn positions_are_never_reused_also_not_those_of_dropped_segments() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        for hour in 0..4 {
            store
                .append(
                    &[message(hour), message(hour)],
                    &[],
                    None,
                    hour * 3_600_000_001,
                    0,
                )
                .unwrap();
        }
        assert_eq!(store.drop_segments(9, u64::MAX).unwrap(), 3);
        assert_eq!(texts(&store), ["{\"n\":3}", "{\"n\":3}"]);
        let before = store.next_position;
        drop(store);
        let (store, recovered) = Store::open(folder.path()).unwrap();
        assert_eq!(recovered.next_position, before);
        drop(store);
    }

    #[test]
    fn a_segment_that_anything_needs_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        for hour in 0..3 {
            store
                .append(
                    &[message(hour), message(hour)],
                    &[],
                    None,
                    hour * 3_600_000_001,
                    0,
                )
                .unwrap();
        }
        assert_eq!(store.drop_segments(2, u64::MAX).unwrap(), 0);
        assert_eq!(store.drop_segments(3, 0).unwrap(), 0);
        assert_eq!(store.drop_segments(3, u64::MAX).unwrap(), 1);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_new_store_has_a_new_id() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, first) = Store::open(folder.path()).unwrap();
        store.append(&[message(1)], &[], None, 0, 0).unwrap();
        drop(store);
        let file = folder.path().join("store.db");
        let _ = std::fs::remove_file(folder.path().join("store.db-wal"));
        std::fs::write(&file, [0x5a; 8192]).unwrap();
        let (store, second) = Store::open(folder.path()).unwrap();
        assert_ne!(first.store_id, second.store_id);
        assert!(second.set_aside.unwrap().exists());
        assert!(store.ledger().unwrap()[0].1.contains("set aside"));
    }

    #[test]
    fn a_store_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        store
            .connection
            .pragma_update(None, "user_version", schema::VERSION + 1)
            .unwrap();
        drop(store);
        assert!(matches!(
            Store::open(folder.path()).map(|_| ()),
            Err(StoreError::Newer(_))
        ));
        assert!(folder.path().join("store.db").exists());
    }
}
