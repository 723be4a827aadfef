//! A damaged file is put aside under a dated name, with its write-ahead log: it is evidence, and what can be read is salvaged.

use super::StoreError;
use crate::clock;
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// Name of the note that the running program leaves when it finds the file damaged.
pub(super) const CONDEMNED: &str = "store.db.condemned";

/// Why a file is set aside without being opened, if it is.
///
/// SQLite deletes the write-ahead log of a database file that is empty or missing, with the commits in it.
pub(super) fn needs_no_look(file: &Path) -> std::io::Result<Option<String>> {
    let note = file.with_file_name(CONDEMNED);
    let database = match std::fs::symlink_metadata(file) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if database.as_ref().is_some_and(std::fs::Metadata::is_dir) {
        return Ok(Some("a folder is in the place of the file".to_owned()));
    }
    if database.is_some() && note.exists() {
        let reason = std::fs::read_to_string(&note).unwrap_or_default();
        return Ok(Some(format!("found while running: {}", reason.trim())));
    }
    // A note without a file is what a power cut leaves after the file was renamed.
    remove_note(&note)?;
    let log = beside(file, "-wal");
    let empty = database.is_none_or(|found| found.len() == 0);
    if empty && std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Ok(Some(
            "the database file is empty, its write-ahead log is not".to_owned(),
        ));
    }
    Ok(None)
}

fn remove_note(note: &Path) -> std::io::Result<()> {
    if !note.exists() {
        return Ok(());
    }
    std::fs::remove_file(note)?;
    match note.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The file that SQLite keeps beside its database file.
pub(super) fn beside(file: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", file.display()))
}

/// Whether the file itself is wrong, so that trying again cannot help.
pub(super) fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged(_) => true,
        StoreError::Sqlite(error) => is_corrupt(error),
        _ => false,
    }
}

/// Whether what SQLite read is wrong (its own structure, a table that is missing, values of another type), and not the
/// disk that refused to read.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        other => matches!(
            other.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
        ),
    }
}

/// Puts `file` and what lies beside it aside; gives its new name.
pub(super) fn set_aside(file: &Path) -> std::io::Result<PathBuf> {
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
        let log = beside(file, suffix);
        if log.exists() {
            std::fs::rename(&log, beside(&aside, suffix))?;
        }
    }
    if file.exists() {
        std::fs::rename(file, &aside)?;
    }
    if let Some(folder) = file.parent() {
        // The rename is durable before the new file is trusted, and before the note goes.
        std::fs::File::open(folder)?.sync_all()?;
    }
    remove_note(&file.with_file_name(CONDEMNED))?;
    Ok(aside)
}
