//! What the store remembers of its salvages, and how long set-aside files stay.

use super::super::open::collect;
use super::super::set_aside::beside;
use super::super::{Store, StoreError};
use super::adopt::set_aside_files;
use super::{EVIDENCE, Salvage, Stage, State};
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};

/// Part of `max_bytes` that evidence may take.
const EVIDENCE_SHARE: u64 = 8;

pub(super) fn write(connection: &Connection, id: i64, state: &State) -> rusqlite::Result<()> {
    let text = serde_json::to_string(state).map_err(super::super::progress::sql_error)?;
    connection
        .prepare_cached("UPDATE former SET state = ?2 WHERE id = ?1")?
        .execute(params![id, text])
        .map(drop)
}

/// Notes a new salvage; gives its number.
pub(super) fn insert(connection: &Connection, state: &State) -> rusqlite::Result<i64> {
    let text = serde_json::to_string(state).map_err(super::super::progress::sql_error)?;
    let sql = "INSERT INTO former (file, state) VALUES (?1, ?2) RETURNING id";
    connection.query_row(sql, params![state.file, text], |row| row.get(0))
}

/// Bytes of a set-aside file and what lies beside it.
fn bytes_of(file: &Path) -> u64 {
    let files = ["", "-wal", "-shm"].map(|suffix| beside(file, suffix));
    files
        .iter()
        .map(|file| std::fs::metadata(file).map_or(0, |found| found.len()))
        .sum()
}

fn remove(file: &Path) -> std::io::Result<()> {
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::remove_file(beside(file, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl Store {
    /// Salvages by their numbers.
    pub(super) fn salvage_rows(&self) -> Result<Vec<(i64, State)>, StoreError> {
        let rows = collect(
            &self.connection,
            "SELECT id, state FROM former ORDER BY id",
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)),
        )?;
        let read = |(id, text): (i64, String)| Some((id, serde_json::from_str(&text).ok()?));
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// What was salvaged of stores that were set aside, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn salvages(&self) -> Result<Vec<State>, StoreError> {
        Ok(self.salvage_rows()?.into_iter().map(|(_, state)| state).collect())
    }

    pub(super) fn insert_salvage(&mut self, state: &State) -> Result<(), StoreError> {
        Ok(insert(&self.connection, state).map(drop)?)
    }

    pub(super) fn keep_salvage(&mut self, id: i64, state: &State) -> Result<(), StoreError> {
        Ok(write(&self.connection, id, state)?)
    }

    /// Stores that everything that a salvage brought is normalized: its file is evidence from now on.
    ///
    /// # Errors
    /// SQLite's.
    pub fn settle_salvage(&mut self, salvage: &mut Salvage) -> Result<(), StoreError> {
        salvage.settle();
        self.keep_salvage(salvage.id(), salvage.state())
    }

    /// The folder that the store is in.
    pub(in crate::store) fn folder(&self) -> Option<PathBuf> {
        self.connection
            .path()
            .and_then(|path| Path::new(path).parent())
            .map(Path::to_owned)
    }

    /// What is left of `max_bytes` beside set-aside files: they take up to half of it.
    pub fn limit_beside_former(&self, max_bytes: u64) -> u64 {
        max_bytes - self.set_aside_bytes().min(max_bytes / 2)
    }

    /// Bytes of files that were set aside.
    pub fn set_aside_bytes(&self) -> u64 {
        let files = self.folder().and_then(|folder| set_aside_files(&folder).ok());
        files.unwrap_or_default().iter().map(|file| bytes_of(file)).sum()
    }

    /// Forgets where messages came from that neither the journal nor a dead letter holds any more.
    fn forget_runs(&mut self) -> Result<(), StoreError> {
        let is_empty = "SELECT NOT EXISTS (SELECT 1 FROM recovered)";
        if self.connection.query_row(is_empty, [], |row| row.get(0))? {
            return Ok(());
        }
        let sql = "SELECT min(position) FROM dead_letter";
        let letter: Option<i64> = self.connection.query_row(sql, [], |row| row.get(0))?;
        let first = self
            .segments
            .first()
            .map_or(self.next_position, |segment| segment.first);
        let kept = letter.map_or(first, |letter| first.min(letter as u64));
        self.connection
            .execute("DELETE FROM recovered WHERE first + count <= ?1", [kept as i64])?;
        Ok(())
    }

    /// Removes set-aside files whose salvage is over and whose time or room is: `wall` is the trusted time, and `short`
    /// says that the disk has less free than it should.
    ///
    /// # Errors
    /// SQLite's and the file system's.
    pub fn tidy_set_aside(
        &mut self,
        max_bytes: u64,
        wall: Option<i64>,
        short: bool,
    ) -> Result<(), StoreError> {
        self.forget_runs()?;
        let Some(folder) = self.folder() else {
            return Ok(());
        };
        let files = set_aside_files(&folder)?;
        if files.is_empty() {
            return Ok(());
        }
        let rows = self.salvage_rows()?;
        let settled: Vec<(&PathBuf, &State)> = files
            .iter()
            .filter_map(|file| {
                let of = rows.iter().find(|(_, state)| file.ends_with(&state.file));
                of.map(|(_, state)| (file, state))
            })
            .filter(|(_, state)| state.settled && state.stage == Stage::Done)
            .collect();
        let mut bytes: u64 = settled.iter().map(|(file, _)| bytes_of(file)).sum();
        for (file, state) in settled {
            let is_old = wall
                .zip(state.finished)
                .is_some_and(|(now, then)| now - then > EVIDENCE);
            if short || is_old || bytes > max_bytes / EVIDENCE_SHARE {
                bytes = bytes.saturating_sub(bytes_of(file));
                remove(file)?;
                tracing::info!("removed {}, which was salvaged", file.display());
            }
        }
        Ok(())
    }
}
