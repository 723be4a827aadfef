//! Opening: lock, fast check, migration, and what the loops need to go on where they stopped.

use super::check::{Check, check_last_batches};
use super::codec::Codec;
use super::recover::{Recovered, next_position, read_segments};
use super::set_aside::{CONDEMNED, is_damage, is_newer, needs_no_look, set_aside};
use super::{Statistics, Store, StoreError, checked_rows, schema, vault};
use crate::clock;
use crate::config::Encryption;
use crate::durable;
use crate::message::SourceId;
use crate::sabotage::{self, Sabotage};
use rusqlite::{Connection, ErrorCode, params};
use std::io::Write;
use std::path::Path;

/// Openings in a row that find damage before a file is set aside.
const DAMAGED_OPENINGS: u32 = 3;

impl Store {
    /// [`Store::open_with`] without encryption.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub fn open(folder: &Path) -> Result<(Store, Recovered), StoreError> {
        Store::open_with(folder, &Encryption::Off)
    }

    /// Opens or creates the store in `folder`. A damaged file is set aside and a new one begun; one whose key is missing or
    /// wrong is left alone.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`], [`StoreError::Key`], or a disk that cannot be used.
    pub fn open_with(folder: &Path, encryption: &Encryption) -> Result<(Store, Recovered), StoreError> {
        std::fs::create_dir_all(folder)?;
        let owner = own(folder)?;
        let (mut store, recovered) = Store::open_owned(folder, encryption)?;
        store.owner = owner;
        Ok((store, recovered))
    }

    fn open_owned(folder: &Path, encryption: &Encryption) -> Result<(Store, Recovered), StoreError> {
        let file = folder.join("store.db");
        let opened = match needs_no_look(&file)? {
            Some(reason) => Err(reason),
            None => match Store::open_twice(&file, encryption) {
                Err(error) if is_damage(&error) && is_newer(&file)? => return Err(StoreError::Newer(file)),
                Err(error) if is_damage(&error) => Err(error.to_string()),
                other => Ok(other?),
            },
        };
        let reason = match opened {
            Ok(opened) => return Ok(opened),
            Err(reason) => reason,
        };
        let aside = set_aside(&file)?;
        let (store, mut recovered) = Store::open_file(&file, encryption)?;
        store.connection.execute(
            "INSERT INTO ledger (count, reason, wall) VALUES (0, ?1, ?2)",
            params![
                format!("damaged store set aside as {}: {reason}", aside.display()),
                clock::wall().ticks()
            ],
        )?;
        recovered.set_aside = Some(aside);
        Ok((store, recovered))
    }

    /// Notes that the file is damaged in a way that the running program found: the next start sets it aside.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn condemn(&self, reason: &str) -> Result<(), StoreError> {
        if let Some(folder) = self.connection.path().and_then(|path| Path::new(path).parent()) {
            Store::condemn_in(folder, reason)?;
        }
        Ok(())
    }

    /// Opens the store for a command while the service is down: no start is noted, and a damaged file stays as it is.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while the service runs, [`StoreError::Newer`], or a file that cannot be used.
    pub fn open_for_command(folder: &Path, encryption: &Encryption) -> Result<Store, StoreError> {
        let file = folder.join("store.db");
        if !file.exists() {
            return Err(StoreError::Io(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("there is no store in {}", folder.display()),
            )));
        }
        Store::open_unread(&file, encryption)
    }

    /// As [`Store::open_for_command`], with what the loops of the service would find.
    ///
    /// # Errors
    /// As [`Store::open_for_command`].
    pub fn open_at_rest(folder: &Path, encryption: &Encryption) -> Result<(Store, Recovered), StoreError> {
        let mut store = Store::open_for_command(folder, encryption)?;
        checked_rows::verify(&store.connection)?;
        let recovered = store.recover(false)?;
        Ok((store, recovered))
    }

    /// Notes that the file in `folder`, which nobody has open, cannot be used: the next start sets it aside.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn condemn_in(folder: &Path, reason: &str) -> Result<(), StoreError> {
        let mut note = std::fs::File::create(folder.join(CONDEMNED))?;
        note.write_all(reason.as_bytes())?;
        durable::sync_file(&note)?;
        durable::sync_folder(folder)?;
        Ok(())
    }

    /// Opens the file; what looks like damage is looked at again: SQLite tells a read that the device refused once as damage
    /// too.
    fn open_twice(file: &Path, encryption: &Encryption) -> Result<(Store, Recovered), StoreError> {
        for _ in 1..DAMAGED_OPENINGS {
            match Store::open_file(file, encryption) {
                Err(error) if is_damage(&error) => {}
                other => return other,
            }
        }
        Store::open_file(file, encryption)
    }

    fn open_file(file: &Path, encryption: &Encryption) -> Result<(Store, Recovered), StoreError> {
        let mut store = Store::open_unread(file, encryption)?;
        checked_rows::verify(&store.connection)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let salvages = store.begin_salvages(folder, encryption)?;
        store.note_entries(folder)?;
        let mut recovered = store.recover(true)?;
        store.id.clone_from(&recovered.store_id);
        recovered.salvages = salvages;
        Ok((store, recovered))
    }

    fn open_unread(file: &Path, encryption: &Encryption) -> Result<Store, StoreError> {
        let mut connection = Store::lock(file)?;
        schema::migrate(&mut connection).map_err(|error| match error {
            rusqlite::Error::InvalidQuery => StoreError::Newer(file.to_owned()),
            other => StoreError::Sqlite(other),
        })?;
        rewrite_log(&connection)?;
        let segments = read_segments(&connection)?;
        check_last_batches(&connection, &segments)?;
        let next_position = next_position(&connection, &segments)?;
        let vault = vault::of_store(
            &mut connection,
            encryption,
            file.parent().unwrap_or(Path::new("")),
        )?;
        Ok(Store {
            connection,
            id: String::new(),
            owner: None,
            closed: None,
            codec: Codec::new(vault)?,
            segments,
            next_position,
            statistics: Statistics::default(),
            check: Check::default(),
            limits: super::Limits::default(),
            #[cfg(test)]
            free_for_tests: None,
        })
    }

    /// The file with its single-owner lock.
    pub(super) fn lock(file: &Path) -> Result<Connection, StoreError> {
        let connection = Connection::open(file)?;
        prepare_file(&connection, file)?;
        Ok(connection)
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

    /// Number and name of every destination that was ever configured.
    ///
    /// # Errors
    /// SQLite's.
    pub fn destinations(&mut self) -> Result<Vec<(u32, String)>, StoreError> {
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        Ok(collect(
            &self.connection,
            "SELECT id, name FROM destination ORDER BY id",
            read,
        )?)
    }
}

/// The lock of the folder: SQLite's own goes with the file, and is not there yet while a file is looked at or set aside. None
/// on a file system that has no such locks.
pub(super) fn own(folder: &Path) -> Result<Option<std::fs::File>, StoreError> {
    let handle = std::fs::File::open(folder)?;
    match rustix::fs::flock(&handle, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(handle)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(folder.to_owned())),
        Err(_) => Ok(None),
    }
}

/// Settings and lock of an open file.
pub(super) fn prepare_file(connection: &Connection, file: &Path) -> Result<(), StoreError> {
    prepare(connection).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked(file.to_owned()),
        _ => StoreError::Sqlite(error),
    })?;
    // SQLite syncs the folder too, once for a new log, but does not look whether that succeeded: without its name the log
    // would be gone after a power cut, with every commit in it.
    if let Some(folder) = file.parent() {
        durable::sync_folder(folder)?;
    }
    Ok(())
}

/// Takes the log of an earlier opening into the database, and begins it anew.
///
/// What is read back from a file need not be on the medium: after a sync that failed the kernel takes the pages for clean,
/// and a later sync succeeds without them. A commit behind such a gap would be lost with the power. Here everything is
/// written once more and synced.
fn rewrite_log(connection: &Connection) -> Result<(), StoreError> {
    if sabotage::is_on(Sabotage::TrustFailedSync) {
        return Ok(());
    }
    if sabotage::is_on(Sabotage::CheckpointWithoutSync) {
        connection.pragma_update(None, "synchronous", "OFF")?;
    }
    let done = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
    if sabotage::is_on(Sabotage::CheckpointWithoutSync) {
        connection.pragma_update(None, "synchronous", "FULL")?;
    }
    match done {
        // A disk that is full loses nothing that it has, and what is in the store can still be sent.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(()),
        other => Ok(other?),
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
         PRAGMA cache_size = -256;
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

pub(super) fn number_of(connection: &Connection, table: &str, name: &str) -> rusqlite::Result<u32> {
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
    use super::super::{Changes, NewRevision, UnmatchedRun};
    use super::*;
    use crate::message::{AckToken, Message, Payload, PayloadKind, RevisionId, Stamp};
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
            record: None,
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
        // The first one has packet id 0: it came at QoS 0.
        assert_eq!(second.resume.len(), 29);
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
        store.reclaim(&[1, 2, 3], None, None, 0).unwrap();
        assert_eq!(texts(&store), ["{\"n\":3}", "{\"n\":3}"]);
        let before = store.next_position;
        drop(store);
        let (store, recovered) = Store::open(folder.path()).unwrap();
        assert_eq!(recovered.next_position, before);
        drop(store);
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
