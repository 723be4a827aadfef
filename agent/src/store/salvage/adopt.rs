//! What comes over at the opening: names and mapping packs, and the rows that must be there before anything is forwarded
//! (`copy.rs`).

use super::super::{Store, StoreError, boots, doubt};
use super::copy::copy_rows;
use super::former::Former;
use super::needed::Wanted;
use super::{Salvage, Stage, State, keep};
use crate::clock;
use crate::config::Encryption;
use crate::message::{RevisionId, SourceId};
use crate::packs::PackSet;
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::{HashMap, HashSet};
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

/// Files whose small tables are in those of a newer one.
#[derive(Debug, Default)]
struct TakenOver {
    files: HashSet<String>,
    /// There is a newer one that does not tell: each takes over those before it, if it can read them.
    perhaps: bool,
}

impl TakenOver {
    fn add(&mut self, former: &Former) {
        match &former.taken_over {
            Some(files) => self.files.extend(files.iter().cloned()),
            None => self.perhaps = true,
        }
    }
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
        let mut taken = TakenOver::default();
        // The newest first: what it had taken over of an older one is in its own tables, as it became since.
        for file in files.iter().rev() {
            salvages.extend(self.begin_salvage_beside(file, encryption, &mut taken)?);
        }
        salvages.reverse();
        for (id, mut state) in self.salvage_rows()? {
            let is_there = files.iter().any(|file| file.ends_with(&state.file));
            if !state.settled && !is_there {
                let text = "the file is gone before all of it was salvaged: where there is a copy, put it back beside the \
                            store under this name and restart";
                state.waits = Some(text.to_owned());
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
        self.begin_salvage_beside(file, encryption, &mut TakenOver::default())
    }

    fn begin_salvage_beside(
        &mut self,
        file: &Path,
        encryption: &Encryption,
        taken: &mut TakenOver,
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
        // Where it held entries, or may have, what is lost of them is in doubt.
        let folder = self.folder();
        let had_entries = folder
            .as_ref()
            .is_none_or(|folder| !doubt::is_without_entries(folder));
        let in_doubt = |subject: &&str| had_entries || *subject != "association";
        let (id, mut state) = match row {
            // One that was gone may be back.
            Some((_, state)) if state.settled && state.stage == Stage::Done => {
                taken.perhaps = true;
                return Ok(None);
            }
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
                taken.perhaps = true;
                state.waits = Some(error.to_string());
                if !state.has_been_read() {
                    for subject in doubt::SUBJECTS.iter().filter(|subject| in_doubt(subject)) {
                        doubt::begin(&self.connection, subject)?;
                    }
                }
                if is_new {
                    self.insert_salvage(&state)?;
                } else {
                    self.keep_salvage(id, &state)?;
                }
                tracing::error!("{} cannot be salvaged yet: {error}", file.display());
                return Ok(None);
            }
        };
        // It may have waited for its key until now.
        let is_first_look = !state.has_been_read() && (is_new || state.waits.is_some());
        (state.waits, state.settled) = (None, false);
        let brings_entries = former
            .copied
            .get("association")
            .is_some_and(|rows| !rows.is_empty());
        if let (Some(folder), true, true) = (&folder, is_first_look, brings_entries) {
            doubt::expect_entries(folder)?;
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let names = match former.store_id {
            Some(_) => Some(adopt_names(&transaction, &former, &state.file)?),
            None => None,
        };
        let id = match is_new {
            true => keep::insert(&transaction, &state)?,
            false => id,
        };
        if is_new || state.store.is_empty() {
            state.known = former.known.is_some() && former.log_is_whole;
            state.missing.clone_from(&former.missing);
            state.store = former.store_id.clone().unwrap_or_default();
        }
        if is_first_look {
            state.tables_taken = true;
            if taken.files.contains(&state.file) {
                // What became of its rows is in the newer one.
            } else if taken.perhaps {
                let rows = former.copied.iter().filter(|(_, rows)| !rows.is_empty());
                state.left_out = rows
                    .map(|(table, rows)| ((*table).to_owned(), rows.len() as u64))
                    .collect();
                for subject in doubt::SUBJECTS.iter().filter(|subject| in_doubt(subject)) {
                    if former.doubts.contains(subject) || state.left_out.contains_key(*subject) {
                        doubt::begin(&transaction, subject)?;
                    }
                }
            } else {
                let none = Names::default();
                let names = names.as_ref().unwrap_or(&none);
                state.left_out.clone_from(&former.left_out);
                copy_rows(
                    &transaction,
                    &former,
                    names,
                    &self.codec.vault(),
                    id,
                    &mut state.left_out,
                )?;
                for subject in former.doubts.iter().filter(|subject| in_doubt(subject)) {
                    doubt::begin(&transaction, subject)?;
                }
            }
        }
        keep::write(&transaction, id, &state)?;
        transaction.commit()?;
        taken.add(&former);
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
    let boot = |name: &str, reference: Option<(i64, i64)>| boots::enter(transaction, name, reference);
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
