//! A damaged file is put aside under a dated name, with its write-ahead log: it is evidence, and what can be read is salvaged.
//!
//! The log holds commits that the file does not have, so the two must keep names that belong together. A power cut may come
//! between the two renames: where they go is noted before the first and forgotten after the last, and a start that finds the
//! note goes on with it (proof `power-cuts --class set-aside`).

use super::log::{Log, State};
use super::{StoreError, schema};
use crate::{clock, durable};
use rusqlite::ErrorCode;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

/// Name of the note that the running program leaves when it finds the file damaged.
pub(super) const CONDEMNED: &str = "store.db.condemned";

/// Name of the note that says under which name a file is being put aside.
const UNDER_WAY: &str = "store.db.setting-aside";
/// What every such name begins with.
const ASIDE: &str = "store.db.damaged-";

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
    let under_way = file.with_file_name(UNDER_WAY);
    if database.is_some() && !note.exists() && noted_place(&under_way).is_some() {
        return Ok(Some("the power went while it was put aside".to_owned()));
    }
    // A newer program has its own ways; it is refused, and left as it is.
    if is_newer(file)? {
        return Ok(None);
    }
    if database.is_some() && note.exists() {
        let reason = std::fs::read_to_string(&note).unwrap_or_default();
        return Ok(Some(format!("found while running: {}", reason.trim())));
    }
    // Notes without a file are what a power cut leaves after the file was renamed.
    remove_note(&note)?;
    remove_note(&under_way)?;
    let log = beside(file, "-wal");
    let empty = database.is_none_or(|found| found.len() == 0);
    if empty && std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Ok(Some(
            "the database file is empty, its write-ahead log is not".to_owned(),
        ));
    }
    if empty {
        return Ok(None);
    }
    let state = Log::read(&log)?.state(file, &log)?;
    if state == State::TornAtTheEnd {
        tracing::info!(
            "the last commit was not finished when the program ended or the power went: it is left out. It was never \
             acknowledged, so nothing is lost and nothing is to be done"
        );
    }
    Ok(state.reason())
}

/// Whether the header of a file says that a newer version of this program wrote it (SQLite's file format, 1.3).
pub(super) fn is_newer(file: &Path) -> std::io::Result<bool> {
    let mut header = [0; 72];
    let read = match std::fs::File::open(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        opened => opened?.read_exact(&mut header),
    };
    let word = |at: usize| {
        header
            .get(at..at + 4)
            .and_then(|four| four.try_into().ok())
            .map(u32::from_be_bytes)
    };
    let ours =
        word(68) == u32::try_from(schema::APPLICATION_ID).ok() && header.starts_with(b"SQLite format 3\0");
    let version = word(60).map(i64::from);
    Ok(read.is_ok() && ours && version.is_some_and(|version| version > schema::VERSION && version < 10_000))
}

fn remove_note(note: &Path) -> std::io::Result<()> {
    if !note.exists() {
        return Ok(());
    }
    std::fs::remove_file(note)?;
    match note.parent() {
        Some(folder) => durable::sync_folder(folder),
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

/// The place that a note names, if it is a whole one.
fn noted_place(note: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(note).ok()?;
    let name = text.strip_suffix('\n')?;
    (name.starts_with(ASIDE) && !name.contains('/')).then(|| note.with_file_name(name))
}

/// Where `file` goes: where an earlier start wanted it, or under a name of now. It is noted durably when this returns.
fn place_for(file: &Path) -> std::io::Result<PathBuf> {
    let under_way = file.with_file_name(UNDER_WAY);
    if let Some(place) = noted_place(&under_way) {
        return Ok(place);
    }
    let date: String = clock::wall()
        .to_string()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let mut aside = file.with_file_name(format!("{ASIDE}{date}"));
    let mut number = 1;
    while aside.exists() || beside(&aside, "-wal").exists() {
        number += 1;
        aside = file.with_file_name(format!("{ASIDE}{date}-{number}"));
    }
    let mut note = std::fs::File::create(&under_way)?;
    let name = aside.file_name().unwrap_or_default().as_encoded_bytes();
    note.write_all(name)?;
    note.write_all(b"\n")?;
    durable::sync_file(&note)?;
    if let Some(folder) = file.parent() {
        durable::sync_folder(folder)?;
    }
    Ok(aside)
}

/// Puts `file` and what lies beside it aside; gives its new name.
pub(super) fn set_aside(file: &Path) -> std::io::Result<PathBuf> {
    let aside = place_for(file)?;
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
        durable::sync_folder(folder)?;
    }
    remove_note(&file.with_file_name(CONDEMNED))?;
    remove_note(&file.with_file_name(UNDER_WAY))?;
    Ok(aside)
}
