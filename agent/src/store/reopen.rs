//! Closing the files while the disk is in trouble, and opening them again when it is not.
//!
//! A commit that failed may have left its frames in the write-ahead log, complete and readable, but not on the medium: after
//! a failed sync the kernel takes their pages for clean. Found by another opening they would count as committed. So the log
//! is cut where the last commit that succeeded ends, before it is read again: the first frame behind it is overwritten, and
//! SQLite takes nothing behind a frame that does not fit.

use super::set_aside::beside;
use super::{Store, StoreError, Trouble, open, recover};
use crate::sabotage::{self, Sabotage};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes before the first frame of a write-ahead log, and before the page of each frame (SQLite's file format, 4.1).
const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;

/// Files that were closed in trouble.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    file: PathBuf,
    /// Where the log ends.
    log_end: u64,
    trouble: Trouble,
}

impl Store {
    /// Closes the files until the disk works again; every call through the handle tries to open them.
    ///
    /// # Errors
    /// [`StoreError::Lost`] when SQLite does not say where the last commit ends: only a new start can tell.
    pub fn close_files(&mut self, trouble: Trouble) -> Result<(), StoreError> {
        if self.closed.is_some() {
            return Ok(());
        }
        let Some(file) = self.connection.path().map(PathBuf::from) else {
            return Ok(());
        };
        // Answers with the frames of the log that are committed, and touches nothing.
        let frames: i64 = self
            .connection
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1))
            .map_err(|error| StoreError::Lost(error.to_string()))?;
        let frames = u64::try_from(frames).map_err(|_| StoreError::Lost("no log".to_owned()))?;
        let page: i64 = self
            .connection
            .query_row("PRAGMA page_size", [], |row| row.get(0))?;
        self.connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // In its place until then; nothing reaches it, see `ensure_open`.
        self.connection = Connection::open_in_memory()?;
        // A volume is repaired without being in anybody's hands.
        self.owner = None;
        self.closed = Some(Closed {
            file,
            log_end: LOG_HEADER + frames * (FRAME_HEADER + page.unsigned_abs()),
            trouble,
        });
        Ok(())
    }

    /// Opens files that were closed in trouble; [`super::StoreHandle::call`] does it before every call.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while the disk does not work; [`StoreError::Lost`] when what is there now is not what was
    /// closed, so that the program has to start anew.
    pub fn ensure_open(&mut self) -> Result<(), StoreError> {
        let Some(closed) = self.closed.clone() else {
            return Ok(());
        };
        match self.open_again(&closed) {
            Ok(()) => {
                self.closed = None;
                Ok(())
            }
            Err(error) => match Trouble::of(&error, folder_of(&closed.file)) {
                Some(trouble) => {
                    let closed = Closed { trouble, ..closed };
                    let error = unavailable(&closed);
                    self.closed = Some(closed);
                    Err(error)
                }
                None => Err(error),
            },
        }
    }

    fn open_again(&mut self, closed: &Closed) -> Result<(), StoreError> {
        let owner = open::own(folder_of(&closed.file))?;
        cut_log(&beside(&closed.file, "-wal"), closed.log_end)?;
        let flags = OpenFlags::default() & !OpenFlags::SQLITE_OPEN_CREATE;
        let connection = Connection::open_with_flags(&closed.file, flags)?;
        open::prepare_file(&connection, &closed.file)?;
        let id: Option<String> = recover::meta_text(&connection, "store_id")?;
        if id.as_deref() != Some(&self.id) {
            return Err(StoreError::Lost("another store is in its place".to_owned()));
        }
        let segments = recover::read_segments(&connection)?;
        let next = recover::next_position(&connection, &segments)?;
        if next != self.next_position {
            return Err(StoreError::Lost(format!(
                "it ends at message {next} and not at {}",
                self.next_position
            )));
        }
        self.connection = connection;
        self.owner = owner;
        self.set_limit(self.limits.max_bytes)
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

fn unavailable(closed: &Closed) -> StoreError {
    StoreError::Unavailable {
        trouble: closed.trouble,
        advice: closed.trouble.advice(folder_of(&closed.file)),
    }
}

/// Makes the frame at `end` one that does not fit, durably.
fn cut_log(log: &Path, end: u64) -> std::io::Result<()> {
    let file = match std::fs::File::options().read(true).write(true).open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let header = [0; FRAME_HEADER as usize];
    if file.metadata()?.len() < end + FRAME_HEADER || sabotage::is_on(Sabotage::TrustFailedSync) {
        return Ok(());
    }
    // All of them: what several failed commits left must not look like commits behind a damaged place.
    let length = file.metadata()?.len();
    let mut at = end;
    while at + FRAME_HEADER <= length {
        file.write_all_at(&header, at)?;
        at += FRAME_HEADER + super::bounds::PAGE_BYTES;
    }
    file.sync_data()
}
