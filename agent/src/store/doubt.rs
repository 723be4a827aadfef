//! What was lost with a damaged store and may decide whose readings are, until the operator says that all of it is entered
//! again.
//!
//! An entry that is lost may have said that a device went to another patient, or to nobody, and a server or a message that
//! shows an older link is not asked then: readings of devices without an entry wait (`associations/book.rs`). Sites where
//! nobody ever enters anything are not to wait for somebody: a file beside the store says that it holds no entry. It is there
//! before the store is used, and gone before the first entry is committed; where it is missing there may have been some.

use super::{Store, StoreError, checked_rows};
use crate::associations::Doubt;
use crate::{clock, durable};
use rusqlite::Connection;
use rusqlite::types::Value;
use std::path::Path;

/// Name of the file that says that the store holds no entry.
const WITHOUT_ENTRIES: &str = "store.db.without-entries";

/// What may be in doubt, as the table names it: the tables that were not whole.
pub(super) const SUBJECTS: [&str; 2] = ["association", "sighting"];

/// Whether the store in `folder` held no entry for certain.
pub(super) fn is_without_entries(folder: &Path) -> bool {
    folder.join(WITHOUT_ENTRIES).exists()
}

/// From now on there may be entries. Durable when this returns.
pub(super) fn expect_entries(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(folder.join(WITHOUT_ENTRIES)) {
        Ok(()) => Ok(durable::sync_folder(folder)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Notes that something was lost.
pub(super) fn begin(connection: &Connection, subject: &str) -> rusqlite::Result<()> {
    let row = vec![
        Value::from(subject.to_owned()),
        Value::from(clock::wall().ticks()),
    ];
    checked_rows::put_new(connection, "doubt", row)
}

/// All of it is entered again.
pub(super) fn end(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM doubt", []).map(drop)
}

impl Store {
    /// What was lost with damaged stores and is not entered again.
    pub(super) fn doubt(&self) -> Result<Doubt, StoreError> {
        let subjects = checked_rows::read(&self.connection, "doubt", "", [], |row| row.get::<_, String>(0))?;
        let [entries, sightings] = SUBJECTS.map(|subject| subjects.iter().any(|one| one == subject));
        Ok(Doubt { entries, sightings })
    }

    /// Keeps the note about entries right, for a store that was opened and looked at.
    pub(super) fn note_entries(&self, folder: &Path) -> Result<(), StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM association)";
        let has_entries: bool = self.connection.query_row(sql, [], |row| row.get(0))?;
        if has_entries || self.doubt()?.entries {
            return expect_entries(folder);
        }
        if !is_without_entries(folder) {
            // A disk that has no room for it: then there may have been some.
            let noted = std::fs::File::create(folder.join(WITHOUT_ENTRIES))
                .and_then(|note| durable::sync_file(&note))
                .and_then(|()| durable::sync_folder(folder));
            if let Err(error) = noted {
                tracing::debug!("{WITHOUT_ENTRIES} beside the store: {error}");
            }
        }
        Ok(())
    }
}
