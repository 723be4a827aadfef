//! What comes over at the opening: names and mapping packs, and the rows that must be there before anything is forwarded.

use super::super::vault::Vault;
use super::super::{Store, StoreError};
use super::former::{Former, Wanted};
use super::pages::{Row, Value};
use super::{Salvage, State};
use crate::clock;
use crate::config::Encryption;
use crate::message::{RevisionId, SourceId};
use crate::packs::PackSet;
use rusqlite::types::ToSqlOutput;
use rusqlite::{OptionalExtension, ToSql, Transaction, TransactionBehavior, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Numbers of now for those of then.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) sources: HashMap<u32, SourceId>,
    pub(super) destinations: HashMap<u32, u32>,
    pub(super) boots: HashMap<u32, u32>,
    pub(super) revisions: HashMap<u32, RevisionId>,
    /// For what has no name any more.
    pub(super) unknown_source: u32,
    pub(super) unknown_boot: u32,
}

/// Beginning of the name of a file that was set aside.
const ASIDE: &str = "store.db.damaged-";

/// Files in `folder` that were set aside, oldest name first.
pub(super) fn set_aside_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(rest) = name.strip_prefix(ASIDE) else {
            continue;
        };
        // A log can be all that is left of a store.
        let stem = rest.strip_suffix("-wal").unwrap_or(rest);
        if stem.ends_with("-shm") || stem.contains('.') || path.is_dir() {
            continue;
        }
        let file = folder.join(format!("{ASIDE}{stem}"));
        if !files.contains(&file) && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

impl Store {
    /// Takes up what is to be salvaged beside the store. What cannot be read yet is noted, and never keeps the store from
    /// opening.
    ///
    /// # Errors
    /// SQLite's, of this store.
    pub fn begin_salvages(
        &mut self,
        folder: &Path,
        encryption: &Encryption,
    ) -> Result<Vec<Salvage>, StoreError> {
        let files = set_aside_files(folder)?;
        let mut salvages = Vec::new();
        for file in &files {
            salvages.extend(self.begin_salvage(file, encryption)?);
        }
        for (id, mut state) in self.salvage_rows()? {
            let is_there = files.iter().any(|file| file.ends_with(&state.file));
            if !state.settled && !is_there {
                state.waits = Some("the file was removed".to_owned());
                state.settled = true;
                self.keep_salvage(id, &state)?;
            }
        }
        Ok(salvages)
    }

    /// Takes up the salvage of one file; none when it is done.
    ///
    /// # Errors
    /// SQLite's, of this store.
    pub fn begin_salvage(
        &mut self,
        file: &Path,
        encryption: &Encryption,
    ) -> Result<Option<Salvage>, StoreError> {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let row = self
            .salvage_rows()?
            .into_iter()
            .find(|(_, state)| state.file == name);
        let is_new = row.is_none();
        let (id, mut state) = match row {
            Some((_, state)) if state.settled => return Ok(None),
            Some(row) => row,
            None => (
                0,
                State {
                    file: name,
                    ..State::default()
                },
            ),
        };
        let former = match Former::read(file, encryption) {
            Ok(former) => former,
            Err(error) => {
                state.waits = Some(error.to_string());
                if is_new {
                    self.insert_salvage(&state)?;
                } else {
                    self.keep_salvage(id, &state)?;
                }
                tracing::error!("{} cannot be salvaged yet: {error}", file.display());
                return Ok(None);
            }
        };
        state.waits = None;
        if is_new || state.store.is_empty() {
            state.known = former.known.is_some();
            state.missing.clone_from(&former.missing);
            state.store = former.store_id.clone().unwrap_or_default();
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let names = match former.store_id {
            Some(_) => Some(adopt_names(&transaction, &former, &state.file)?),
            None => None,
        };
        let text = serde_json::to_string(&state).map_err(std::io::Error::from)?;
        let id = if is_new {
            if let Some(names) = &names {
                copy_rows(&transaction, &former, names, &self.codec.vault())?;
            }
            transaction.query_row(
                "INSERT INTO former (file, state) VALUES (?1, ?2) RETURNING id",
                params![state.file, text],
                |row| row.get(0),
            )?
        } else {
            transaction.execute("UPDATE former SET state = ?2 WHERE id = ?1", params![id, text])?;
            id
        };
        transaction.commit()?;
        Ok(Some(Salvage::new(id, file, state, former, names)?))
    }

    /// Gives a salvage the numbers of the names that it has found by itself.
    ///
    /// # Errors
    /// SQLite's; then nothing was changed.
    pub fn adopt_salvage(&mut self, salvage: &mut Salvage) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let names = adopt_names(&transaction, salvage.former(), &salvage.state().file)?;
        transaction.commit()?;
        salvage.take_names(names);
        let (id, state) = (salvage.id(), salvage.state().clone());
        self.keep_salvage(id, &state)
    }
}

fn adopt_names(transaction: &Transaction<'_>, former: &Former, file: &str) -> Result<Names, StoreError> {
    let number = |table: &str, name: &str| super::super::open::number_of(transaction, table, name);
    let boot = |name: &str, reference: Option<(i64, i64)>| -> rusqlite::Result<u32> {
        let (us, wall) = reference.unzip();
        transaction.execute(
            "INSERT INTO boot (boot_id, reference_us, reference_wall) VALUES (?1, ?2, ?3) ON CONFLICT (boot_id) DO UPDATE
             SET reference_us = coalesce(reference_us, excluded.reference_us),
                 reference_wall = coalesce(reference_wall, excluded.reference_wall)",
            params![name, us, wall],
        )?;
        transaction.query_row("SELECT id FROM boot WHERE boot_id = ?1", [name], |row| row.get(0))
    };
    let mut names = Names {
        unknown_source: number("source", &format!("unknown source of {file}"))?,
        unknown_boot: boot(&format!("unknown boot of {file}"), None)?,
        ..Names::default()
    };
    for (id, name) in &former.sources {
        names.sources.insert(*id, SourceId(number("source", name)?));
    }
    for (id, name) in &former.destinations {
        names.destinations.insert(*id, number("destination", name)?);
    }
    for (id, name, reference) in &former.boots {
        names.boots.insert(*id, boot(name, *reference)?);
    }
    for (id, hash, bundle) in &former.revisions {
        // Texts have no checksum but this one.
        if PackSet::revision_of(bundle).as_ref() != Some(hash) {
            continue;
        }
        let known: Option<u32> = transaction
            .query_row("SELECT id FROM revision WHERE hash = ?1", [hash], |row| {
                row.get(0)
            })
            .optional()?;
        let now = match known {
            Some(now) => now,
            None => transaction.query_row(
                "INSERT INTO revision (hash, bundle) VALUES (?1, ?2) RETURNING id",
                params![hash, bundle],
                |row| row.get(0),
            )?,
        };
        names.revisions.insert(*id, RevisionId(now));
    }
    Ok(names)
}

/// A column on its way from one store to the other.
struct Column<'a>(&'a Value);

impl ToSql for Column<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Null | Value::Real => ToSqlOutput::from(rusqlite::types::Null),
            Value::Integer(number) => ToSqlOutput::from(*number),
            Value::Text(text) => ToSqlOutput::from(text.as_str()),
            Value::Blob(bytes) => ToSqlOutput::from(bytes.as_slice()),
        })
    }
}

/// Copies the rows that must be there before anything is forwarded; sealed columns are sealed anew. A row that cannot be
/// opened, or names a destination that has no name any more, stays behind.
fn copy_rows(
    transaction: &Transaction<'_>,
    former: &Former,
    names: &Names,
    vault: &Vault,
) -> rusqlite::Result<()> {
    let none = Vec::new();
    let rows = |table: &str| former.copied.get(table).unwrap_or(&none);
    let copy = |table: &str, columns: &[&str], row: &[Value]| -> rusqlite::Result<()> {
        let Some(row) = resealed(table, columns, row, former, vault) else {
            return Ok(());
        };
        let marks: Vec<String> = (1..=columns.len()).map(|n| format!("?{n}")).collect();
        let sql = format!(
            "INSERT OR IGNORE INTO {table} ({}) VALUES ({})",
            columns.join(", "),
            marks.join(", ")
        );
        let values: Vec<Column<'_>> = row.iter().map(Column).collect();
        transaction
            .prepare_cached(&sql)?
            .execute(rusqlite::params_from_iter(values))
            .map(drop)
    };
    let destination = |value: &Value| -> Option<Value> {
        let then = u32::try_from(value.integer()?).ok()?;
        names
            .destinations
            .get(&then)
            .map(|now| Value::Integer(i64::from(*now)))
    };
    let source = |value: &Value| -> Option<Value> {
        let then = u32::try_from(value.integer()?).ok()?;
        names
            .sources
            .get(&then)
            .map(|now| Value::Integer(i64::from(now.0)))
    };
    for (_, row) in rows("association") {
        let columns = [
            "device",
            "patient",
            "encounter",
            "valid_from",
            "valid_to",
            "source",
            "entered",
        ];
        copy("association", &columns, row.get(1..).unwrap_or_default())?;
    }
    for (_, row) in rows("correction") {
        if let Some(row) = replaced(row, 1, destination) {
            let columns = [
                "destination",
                "device",
                "valid_from",
                "valid_to",
                "patient_before",
                "patient_after",
                "state",
            ];
            copy("correction", &columns, row.get(1..).unwrap_or_default())?;
        }
    }
    for (_, row) in rows("sighting") {
        if let Some(row) = replaced(row, 0, destination) {
            copy("sighting", &["destination", "device", "record"], &row)?;
        }
    }
    for (_, row) in rows("ledger") {
        let or_none = |name: Option<Value>| Some(name.unwrap_or(Value::Null));
        let row = replaced(row, 1, |value| or_none(destination(value)));
        // Positions are those of the former store.
        let row = row.and_then(|row| replaced(&row, 2, |value| or_none(source(value))));
        if let Some(row) = row {
            let columns = [
                "destination",
                "source",
                "device",
                "type",
                "first",
                "last",
                "count",
                "reason",
                "wall",
            ];
            copy("ledger", &columns, row.get(1..).unwrap_or_default())?;
        }
    }
    copy_records(former, names, |row| {
        copy("sent_record", &["source", "position", "record"], row)
    })
}

/// Records that devices keep and show again: those that were processed. One that was only stored may be lost, and comes
/// again when its device shows it.
fn copy_records(
    former: &Former,
    names: &Names,
    mut copy: impl FnMut(&[Value]) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    /// In front of all positions of this store.
    const BEFORE: i64 = 1 << 60;
    let Some(known) = &former.known else { return Ok(()) };
    let rows: &[Row] = former.copied.get("sent_record").map_or(&[], Vec::as_slice);
    for (_, row) in rows {
        let [source, position, record] = row.as_slice() else {
            continue;
        };
        let (Some(then), Some(at)) = (source.integer(), position.integer()) else {
            continue;
        };
        let now = u32::try_from(then).ok().and_then(|then| names.sources.get(&then));
        if let Some(now) = now
            && at.unsigned_abs() <= known.progress.cursor
        {
            copy(&[
                Value::Integer(i64::from(now.0)),
                Value::Integer(at - BEFORE),
                record.clone(),
            ])?;
        }
    }
    Ok(())
}

/// The row with one column replaced; none when there is nothing to replace it with.
fn replaced(row: &[Value], column: usize, with: impl Fn(&Value) -> Option<Value>) -> Option<Vec<Value>> {
    let mut row = row.to_vec();
    let place = row.get_mut(column)?;
    if *place != Value::Null {
        *place = with(place)?;
    }
    Some(row)
}

/// The columns with the seals of this store instead of the former one's.
fn resealed(
    table: &str,
    columns: &[&str],
    row: &[Value],
    former: &Former,
    vault: &Vault,
) -> Option<Vec<Value>> {
    if row.len() < columns.len() {
        return None;
    }
    let mut sealed = Vec::with_capacity(columns.len());
    for (column, value) in columns.iter().zip(row) {
        let is_sealed = super::super::vault::TEXTS.contains(&(table, *column));
        sealed.push(match value {
            Value::Text(text) if is_sealed => {
                let name = format!("{table}.{column}");
                let plain = former.vault.open_text(&name, text.clone()).ok()?;
                Value::Text(vault.text(&name, &plain).into_owned())
            }
            other => other.clone(),
        });
    }
    Some(sealed)
}

impl Salvage {
    /// What destinations still have to get of the former store.
    pub fn wanted(&self) -> Wanted {
        Wanted::of(self.former(), self.names())
    }
}

/// The wall time now, for the end of a salvage.
pub(super) fn now() -> i64 {
    clock::wall().ticks()
}
