//! The small tables of a store that was set aside: its id, its names, how far it was, and what it knew of devices.
//!
//! They are read from their roots, with the log as SQLite would take it, so that cursors and rows are of one moment. Cursors
//! and rows that are not whole are not believed: without them everything in the journal counts as not delivered. Of the
//! tables that are copied each row counts that is certain (`certain.rs`).

use super::super::log::Log;
use super::super::progress::{Progress, decode_key, decode_refs, read_progress};
use super::super::read::Ranges;
use super::super::vault::{MasterKey, Vault};
use super::super::{StoreError, doubt, set_aside::beside};
use super::certain::{self, Proof};
use super::pages::{Pages, Place};
use super::record::{Row, Value, kinds};
use super::tables::Tables;
use super::{Run, Runs};
use crate::config::Encryption;
use crate::forward::GroupKey;
use crate::message::Position;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Marks a row of the table `identity`, so that it is recognised wherever it is found.
const IDENTITY_MARK: &str = "bedside-store";
/// Error of a message that ended the process: it is not read again.
const KILLER: &str = "MessageKilledTheProcess";

/// A boot: number, id, and its reference (running time, wall time).
pub(super) type Boot = (u32, String, Option<(i64, i64)>);

/// An unsent row of the outbox.
#[derive(Debug)]
pub(super) struct FormerRow {
    pub(super) destination: u32,
    pub(super) key: Option<Arc<GroupKey>>,
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) count: u64,
    pub(super) refs: Option<Vec<(Position, u32)>>,
    /// Its match numbers are those of other packs than the message names.
    pub(super) renumbered: bool,
}

/// What is known of a dead letter without its message.
#[derive(Debug)]
pub(super) struct FormerLetter {
    pub(super) position: Position,
    pub(super) destination: Option<u32>,
    pub(super) match_number: Option<u32>,
    pub(super) place: Place,
    pub(super) is_killer: bool,
}

/// Cursors and rows of one moment.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) progress: Progress,
    pub(super) rows: Vec<FormerRow>,
    pub(super) unmatched: Ranges,
    pub(super) letters: Vec<FormerLetter>,
    /// First position that the journal still held, and one that is not before its end.
    pub(super) first: Position,
    pub(super) end: Position,
}

/// What the small tables say.
#[derive(Debug, Default)]
pub(super) struct Former {
    pub(super) store_id: Option<String>,
    pub(super) vault: Arc<Vault>,
    pub(super) sources: HashMap<u32, String>,
    pub(super) destinations: HashMap<u32, String>,
    pub(super) boots: Vec<Boot>,
    /// Sets of mapping packs: number, hash, texts.
    pub(super) revisions: Vec<(u32, String, Vec<u8>)>,
    /// None when something of it could not be read. With a log that is damaged it is of an earlier moment: more counts as not
    /// delivered than was not.
    pub(super) known: Option<Known>,
    /// The log hides no commit.
    pub(super) log_is_whole: bool,
    /// Rows of tables that are copied, with their columns as stored: those that are certain.
    pub(super) copied: HashMap<&'static str, Vec<Row>>,
    /// How many rows of such tables were found and are not certain.
    pub(super) left_out: BTreeMap<String, u64>,
    /// Files that it had taken over itself; none when that cannot be read.
    pub(super) taken_over: Option<HashSet<String>>,
    /// Tables that could not be read whole.
    pub(super) missing: Vec<String>,
    /// Messages that this store had from one before it.
    pub(super) recovered: Runs,
    /// What it had lost itself, and what it may have.
    pub(super) doubts: Vec<&'static str>,
    /// Bytes of its files.
    pub(super) bytes: u64,
}

/// Tables whose rows are copied.
pub(super) const COPIED: &[&str] = &[
    "association",
    "correction",
    "sighting",
    "ledger",
    "sent_record",
    "sent_period",
    "device_clock",
];

fn unsigned(row: &[Value], column: usize) -> Option<u64> {
    row.get(column)?.integer().map(|number| number as u64)
}

fn small(row: &[Value], column: usize) -> Option<u32> {
    u32::try_from(row.get(column)?.integer()?).ok()
}

fn text(row: &[Value], column: usize) -> Option<&str> {
    row.get(column)?.text()
}

impl Former {
    /// Reads the small tables of `file`.
    ///
    /// # Errors
    /// A file that cannot be opened; [`StoreError::Key`] without its key.
    pub(super) fn read(file: &Path, encryption: &Encryption) -> Result<Former, StoreError> {
        if super::super::set_aside::is_newer(file)? {
            return Err(StoreError::Newer(file.to_owned()));
        }
        let log = Log::read(&beside(file, "-wal"))?;
        let pages = Pages::open(file, &log, true)?;
        let tables = Tables::find(&pages);
        let mut former = Former {
            bytes: u64::from(pages.count()) * super::super::log::PAGE as u64 + log.bytes(),
            ..Former::default()
        };
        if !tables.whole {
            former.missing.push("sqlite_schema".to_owned());
        }
        let proof = Proof::of(&tables);
        former.read_identity(&tables);
        former.find_key(file, encryption)?;
        former.read_names(&tables, &proof);
        former.known = former.read_known(&tables);
        former.recovered = Runs::new(recovered(&tables));
        former.taken_over = taken_over(&tables);
        let state = log.state(file, &beside(file, "-wal"));
        former.log_is_whole = state.is_ok_and(|state| state.reason().is_none());
        former.read_copied(&tables, &proof);
        former.read_doubts(&tables, &proof);
        Ok(former)
    }

    /// What is in doubt: what it had lost itself, and what cannot be told of it now.
    fn read_doubts(&mut self, tables: &Tables<'_>, proof: &Proof) {
        let table = tables.table("doubt");
        let subjects = table.filter(|table| table.lost.is_empty() && !proof.is_short("doubt", table));
        let (is_told, rows) = match subjects {
            Some(table) => (table.rows.iter().all(|row| proof.holds("doubt", row)), table.rows),
            // Versions before this table had no such notes.
            None => (!proof.has_checksums(), Vec::new()),
        };
        let had_lost = |subject: &str| rows.iter().any(|(_, row)| text(row, 0) == Some(subject));
        let doubts = doubt::SUBJECTS.into_iter();
        self.doubts = doubts
            .filter(|subject| !is_told || had_lost(subject) || self.is_in_doubt(subject))
            .collect();
    }

    fn read_copied(&mut self, tables: &Tables<'_>, proof: &Proof) {
        for name in COPIED.iter().copied() {
            let Some(table) = tables.table(name) else {
                // Tables of later versions are not in every store.
                if !tables.whole {
                    self.missing.push(name.to_owned());
                }
                continue;
            };
            let is_whole = table.lost.is_empty()
                && !proof.is_short(name, &table)
                && (self.log_is_whole || name != "association");
            if !is_whole {
                self.missing.push(name.to_owned());
            }
            let (rows, left_out) = certain::rows(name, table, &self.vault, proof, self.log_is_whole);
            if left_out > 0 {
                self.left_out.insert(name.to_owned(), left_out);
            }
            self.copied.insert(name, rows);
        }
        // What is right is judged by the associations: without some of them it would be judged wrong. Entering them again
        // makes the corrections again.
        if self.is_in_doubt("association") {
            let corrections = self.copied.remove("correction").unwrap_or_default().len() as u64;
            if corrections > 0 {
                *self.left_out.entry("correction".to_owned()).or_default() += corrections;
            }
        }
    }

    /// Whether something of a table was lost or left out.
    fn is_in_doubt(&self, table: &str) -> bool {
        self.missing.iter().any(|name| name == table) || self.left_out.contains_key(table)
    }

    fn read_identity(&mut self, tables: &Tables<'_>) {
        for (_, row) in tables.rows("identity").into_iter().flatten() {
            self.take_identity(&row);
        }
        for (_, row) in tables.rows("meta").into_iter().flatten() {
            if text(&row, 0) == Some("store_id") {
                self.store_id = text(&row, 1).map(str::to_owned);
            }
        }
    }

    /// Takes a row of `identity` that was found anywhere; says whether it is one.
    fn take_identity(&mut self, row: &[Value]) -> bool {
        let (Some(IDENTITY_MARK), Some(key), Some(value)) = (text(row, 1), text(row, 2), text(row, 3)) else {
            return false;
        };
        let numbered = |kind: &str| key.strip_prefix(kind).and_then(|n| n.parse::<u32>().ok());
        if key == "store" {
            self.store_id.get_or_insert_with(|| value.to_owned());
        } else if let Some(number) = numbered("source/") {
            self.sources.entry(number).or_insert_with(|| value.to_owned());
        } else if let Some(number) = numbered("destination/") {
            self.destinations
                .entry(number)
                .or_insert_with(|| value.to_owned());
        } else if let Some(number) = numbered("boot/")
            && !self.boots.iter().any(|(known, ..)| *known == number)
        {
            self.boots.push((number, value.to_owned(), None));
        }
        true
    }

    /// Looks for the rows of `identity` on every page: their table cannot be found.
    pub(super) fn find_identity(&mut self, pages: &Pages) {
        for page in 1..=pages.count() {
            let mut places = Vec::new();
            pages.rows_on(page, |_, local, _, place| {
                if kinds(local).is_some_and(|(kinds, _)| kinds.len() == 4) {
                    places.push(place);
                }
            });
            for place in places {
                if let Some((_, row)) = pages.row_at(place) {
                    self.take_identity(&row);
                }
            }
        }
    }

    /// The vault of the former store; open when the agent is configured so.
    pub(super) fn find_key(&mut self, file: &Path, encryption: &Encryption) -> Result<(), StoreError> {
        if let (Some(id), true) = (&self.store_id, *encryption != Encryption::Off) {
            let folder = file.parent().unwrap_or(Path::new(""));
            let key = MasterKey::find(encryption, folder, false)?;
            self.vault = Arc::new(Vault::new(&key, id));
        }
        Ok(())
    }

    fn read_names(&mut self, tables: &Tables<'_>, proof: &Proof) {
        for (id, row) in tables.rows("source").into_iter().flatten() {
            if let (Ok(id), Some(name)) = (u32::try_from(id), text(&row, 1)) {
                self.sources.insert(id, name.to_owned());
            }
        }
        for (id, row) in tables.rows("destination").into_iter().flatten() {
            if let (Ok(id), Some(name)) = (u32::try_from(id), text(&row, 1)) {
                self.destinations.insert(id, name.to_owned());
            }
        }
        match tables.table("boot") {
            Some(table) => {
                let is_short = proof.is_short("boot", &table);
                if !table.lost.is_empty() || is_short {
                    self.missing.push("boot".to_owned());
                }
                for row in table.rows {
                    // Its readings wait until the operator dates them; its name is in `identity` too.
                    if !proof.holds("boot", &row) {
                        *self.left_out.entry("boot".to_owned()).or_default() += 1;
                        continue;
                    }
                    let (id, mut row) = row;
                    if is_short {
                        row.truncate(2);
                    }
                    let reference = row
                        .get(2)
                        .and_then(Value::integer)
                        .zip(row.get(3).and_then(Value::integer));
                    if let (Ok(id), Some(name)) = (u32::try_from(id), text(&row, 1)) {
                        self.boots.retain(|(known, ..)| *known != id);
                        self.boots.push((id, name.to_owned(), reference));
                    }
                }
            }
            None => self.missing.push("boot".to_owned()),
        }
        match tables.table("revision") {
            Some(table) => {
                if !table.lost.is_empty() {
                    self.missing.push("revision".to_owned());
                }
                for (id, row) in table.rows {
                    let bundle = row.get(2).and_then(Value::blob);
                    if let (Ok(id), Some(hash), Some(bundle)) = (u32::try_from(id), text(&row, 1), bundle) {
                        self.revisions.push((id, hash.to_owned(), bundle.to_vec()));
                    }
                }
            }
            None => self.missing.push("revision".to_owned()),
        }
    }

    fn read_known(&mut self, tables: &Tables<'_>) -> Option<Known> {
        let known = (|| {
            let progress = match tables.rows("progress")?.first() {
                // Rows of versions before the checksum have no third column.
                Some((_, row)) if row.len() < 3 => serde_json::from_str(text(row, 1)?).ok()?,
                Some((_, row)) => read_progress(text(row, 1)?, row.get(2)?.integer()).ok()?,
                None => Progress::default(),
            };
            let mut keys = HashMap::new();
            for (id, row) in tables.rows("series")? {
                let key = self.vault.open_bytes("series.key", row.get(1)?.blob()?).ok()?;
                keys.insert(id, Arc::new(decode_key(&key)?));
            }
            let mut rows = Vec::new();
            for (_, row) in tables.rows("outbox")? {
                rows.push(FormerRow {
                    destination: small(&row, 1)?,
                    key: keys.get(&row.get(2)?.integer()?).cloned(),
                    first: unsigned(&row, 4)?,
                    last: unsigned(&row, 5)?,
                    count: unsigned(&row, 6)?,
                    refs: match row.get(8)?.blob() {
                        Some(bytes) => Some(decode_refs(bytes)?),
                        None => None,
                    },
                    renumbered: row.get(9)?.integer().is_some(),
                });
            }
            let mut unmatched = Ranges::default();
            for (first, row) in tables.rows("unmatched")? {
                unmatched.add(first as u64, unsigned(&row, 1)?);
            }
            let segments = tables.rows("segment")?;
            let starts: Vec<Position> = segments.iter().filter_map(|(_, row)| unsigned(row, 1)).collect();
            // Where it cannot be read the end is the last thing that is known of.
            let meta = tables.table("meta").unwrap_or_default().rows;
            let kept = meta.iter().find(|(_, row)| text(row, 0) == Some("next_position"));
            let ends = rows.iter().map(|row: &FormerRow| row.last + 1);
            let cursors = progress_cursors(&progress).map(|cursor| cursor + 1);
            let end = ends
                .chain(cursors)
                .chain(starts.iter().copied())
                .chain(kept.and_then(|(_, row)| unsigned(row, 1)))
                .max();
            Some(Known {
                letters: letters(tables)?,
                first: starts.iter().copied().min().unwrap_or(1),
                end: end.unwrap_or(1),
                progress,
                rows,
                unmatched,
            })
        })();
        if known.is_none() {
            self.missing.push("progress".to_owned());
        }
        known
    }
}

fn recovered(tables: &Tables<'_>) -> Vec<Run> {
    // Each stands for itself.
    let rows = tables
        .table("recovered")
        .map(|table| table.rows)
        .into_iter()
        .flatten();
    let run = |(first, row): (i64, Vec<Value>)| {
        Some(Run {
            first: first as u64,
            count: unsigned(&row, 1)?,
            former: row.get(2)?.integer()?,
            position: unsigned(&row, 3)?,
            store: Arc::from(text(&row, 4)?),
            known_as: unsigned(&row, 5)?,
        })
    };
    rows.filter_map(run).collect()
}

fn progress_cursors(progress: &Progress) -> impl Iterator<Item = Position> + '_ {
    let followers = progress.destinations.values().map(|d| d.cursor);
    followers.chain([progress.cursor])
}

fn letters(tables: &Tables<'_>) -> Option<Vec<FormerLetter>> {
    let mut letters = Vec::new();
    let mut fits = true;
    let lost = tables
        .pages
        .walk(*tables.roots.get("dead_letter")?, &mut |(_, row), place| {
            let Some(position) = unsigned(&row, 2) else {
                fits = false;
                return;
            };
            letters.push(FormerLetter {
                position,
                destination: small(&row, 1),
                match_number: small(&row, 3),
                place,
                is_killer: is_killer(&row),
            });
        });
    (lost.is_empty() && fits).then_some(letters)
}

/// Whether a dead letter is that of a message that ended the process.
pub(super) fn is_killer(letter: &[Value]) -> bool {
    text(letter, 6).is_some_and(|cause| cause.contains(KILLER))
}

/// Names of the files that a store had taken over: what was in their small tables is in its own.
fn taken_over(tables: &Tables<'_>) -> Option<HashSet<String>> {
    if !tables.roots.contains_key("former") && tables.whole {
        return Some(HashSet::new());
    }
    let states = tables.rows("former")?.into_iter().map(|(_, row)| {
        let state: super::State = serde_json::from_str(text(&row, 2)?).ok()?;
        Some((state.has_been_read(), state.file))
    });
    let states: Option<Vec<(bool, String)>> = states.collect();
    Some(
        states?
            .into_iter()
            .filter_map(|(read, file)| read.then_some(file))
            .collect(),
    )
}
