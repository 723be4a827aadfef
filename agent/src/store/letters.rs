//! Dead letters in the store: each with its message, so that it can be shown and redriven when the journal has dropped it
//! long ago, and how a message gets back into the journal for that.

use super::codec::{self, Codec};
use super::open::collect;
use super::outbox::LetterNote;
use super::progress::{DeadLetter, sql_error};
use super::vault::Vault;
use super::{Store, StoreError};
use crate::message::{Position, RevisionId, SourceId, StoredMessage};
use crate::telemetry::errors::ErrorRecord;
use rusqlite::{OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const COLUMNS: &str =
    "id, destination, position, match_number, source, stage, cause, error, revision, wall, counted, message";

/// A dead letter as the store has it.
#[derive(Clone, Debug)]
pub struct StoredLetter {
    /// Its number.
    pub id: u64,
    /// Destination that refused it; none when it failed before any.
    pub destination: Option<u32>,
    /// Which match of the message; none for the whole message, or a match that failed.
    pub match_number: Option<u32>,
    /// Stage name.
    pub stage: String,
    /// Stage, error name and template.
    pub cause: String,
    /// The exact cause.
    pub error: ErrorRecord,
    /// The packs that it was normalized with.
    pub revision: RevisionId,
    /// When it failed: ticks of 100 ns.
    pub wall: i64,
    /// Destinations that count it as dead; none when an older version wrote it.
    pub counted: Option<Arc<[u32]>>,
    /// The raw message.
    pub message: Arc<StoredMessage>,
}

/// Which dead letters are meant. Without anything none is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// These.
    #[serde(default)]
    pub ids: Vec<u64>,
    /// Those whose cause (stage, error name, template) contains this text.
    #[serde(default)]
    pub cause: Option<String>,
    /// All.
    #[serde(default)]
    pub all: bool,
}

impl Selection {
    /// Whether a letter is meant.
    pub fn includes(&self, id: u64, cause: &str) -> bool {
        self.all
            || self.ids.contains(&id)
            || self
                .cause
                .as_ref()
                .is_some_and(|text| cause.contains(text.as_str()))
    }
}

/// Writes a dead letter inside the caller's transaction.
pub(super) fn write(
    transaction: &Transaction<'_>,
    codec: &mut Codec,
    id: u64,
    letter: &DeadLetter,
    wall: i64,
) -> rusqlite::Result<()> {
    let stored = &letter.message;
    let blob = codec
        .encode(
            stored.position,
            std::iter::once((&stored.message, stored.revision)),
        )
        .map_err(sql_error)?;
    let error = serde_json::to_string(&letter.error).map_err(sql_error)?;
    transaction
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO dead_letter ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
        ))?
        .execute(params![
            id as i64,
            letter.destination,
            stored.position as i64,
            letter.match_number,
            stored.message.source.0,
            letter.stage,
            letter.cause(),
            codec.vault().text("dead_letter.error", &error),
            letter.revision.0,
            wall,
            serde_json::to_string(&letter.counted[..]).map_err(sql_error)?,
            blob
        ])?;
    Ok(())
}

fn counted(text: Option<String>) -> Option<Arc<[u32]>> {
    let list: Vec<u32> = serde_json::from_str(&text?).ok()?;
    Some(Arc::from(list))
}

impl Store {
    /// What a start needs of the dead letters. One whose error cannot be read keeps its place under a name that says so.
    pub(super) fn letter_notes(&self) -> Result<Vec<(String, ErrorRecord, LetterNote)>, StoreError> {
        let vault = self.codec.vault();
        let destinations: Vec<u32> =
            collect(&self.connection, "SELECT id FROM destination", |row| row.get(0))?;
        let sql = "SELECT id, cause, error, position, source, counted, destination, stage, length(message)
                   FROM dead_letter ORDER BY id";
        Ok(collect(&self.connection, sql, |row| {
            let error = vault.read_text("dead_letter.error", row.get(2)?)?;
            let destination: Option<u32> = row.get(6)?;
            let stage: String = row.get(7)?;
            let older = || match (destination, stage.as_str()) {
                (Some(one), _) => Arc::from([one]),
                (None, "normalize") => Arc::from(destinations.as_slice()),
                (None, _) => Arc::from([]),
            };
            let note = LetterNote {
                id: row.get::<_, i64>(0)? as u64,
                position: row.get::<_, i64>(3)? as u64,
                source: SourceId(row.get(4)?),
                counted: counted(row.get(5)?).unwrap_or_else(older),
                bytes: row.get::<_, i64>(8)? as u64,
            };
            Ok((row.get(1)?, error_of(&error), note))
        })?)
    }

    /// The dead letters with these numbers. One that is not there, or whose message is damaged on the medium, is left out.
    ///
    /// # Errors
    /// SQLite's.
    pub fn letters(&self, ids: &[u64]) -> Result<Vec<StoredLetter>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM dead_letter WHERE id = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let vault = self.codec.vault();
        let mut letters = Vec::new();
        for id in ids {
            let found = statement
                .query_row([*id as i64], |row| read_letter(row, &vault))
                .optional()?;
            letters.extend(found.flatten());
        }
        Ok(letters)
    }

    /// Makes sure that the journal holds a message at its position, with stamp and revision as it had them. Says whether it
    /// does: it cannot where the batch around it is damaged. When it returns, it survives a power cut.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was changed.
    pub fn put_back(&mut self, stored: &StoredMessage) -> Result<bool, StoreError> {
        let at = stored.position;
        let holds = |segment: &&mut super::Segment| segment.first <= at;
        let place = self
            .segments
            .iter_mut()
            .rposition(|s| holds(&s))
            .unwrap_or_default();
        let Some(segment) = self.segments.get_mut(place) else {
            return Ok(false);
        };
        let table = format!("journal_{}", segment.id);
        let around: Option<(i64, i64, Vec<u8>)> = self
            .connection
            .query_row(
                &format!(
                    "SELECT first, count, batch FROM {table} WHERE first <= ?1 ORDER BY first DESC LIMIT 1"
                ),
                [at as i64],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?
            .filter(|(first, count, _): &(i64, i64, _)| first + count > at as i64);
        let (first, count, mut batch) = match around {
            None => (at, 1, Vec::new()),
            Some((first, count, blob)) => {
                match codec::decode(&self.codec.vault(), first as u64, count as u64, &blob) {
                    Ok(messages) => (first as u64, count as u64, messages),
                    Err(_) => return Ok(false),
                }
            }
        };
        if batch.iter().any(|known| known.position == at) {
            return Ok(true);
        }
        batch.push(stored.clone());
        batch.sort_by_key(|known| known.position);
        let blob = self.codec.encode_with_holes(&batch)?;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            &format!("INSERT OR REPLACE INTO {table} (first, count, batch) VALUES (?1, ?2, ?3)"),
            params![first as i64, count as i64, blob],
        )?;
        transaction.execute(
            "UPDATE segment SET first = min(first, ?2) WHERE id = ?1",
            params![segment.id, at as i64],
        )?;
        super::commit(transaction)?;
        segment.first = segment.first.min(at);
        segment.bytes += blob.len() as u64;
        self.statistics.committed(blob.len() as u64);
        self.statistics.rewritten_bytes += blob.len() as u64;
        Ok(true)
    }
}

fn error_of(text: &str) -> ErrorRecord {
    serde_json::from_str(text).unwrap_or_else(|_| {
        ErrorRecord::new("UnhandledException", "the cause was written by another version")
    })
}

fn read_letter(row: &Row<'_>, vault: &Vault) -> rusqlite::Result<Option<StoredLetter>> {
    let position: Position = row.get::<_, i64>(2)? as u64;
    let blob = row.get_ref(11)?.as_blob().map_err(rusqlite::Error::from)?;
    let Some(message) = codec::decode(vault, position, 1, blob)
        .ok()
        .and_then(|mut m| m.pop())
    else {
        return Ok(None);
    };
    let error = vault.read_text("dead_letter.error", row.get(7)?)?;
    Ok(Some(StoredLetter {
        id: row.get::<_, i64>(0)? as u64,
        destination: row.get(1)?,
        match_number: row.get(3)?,
        stage: row.get(5)?,
        cause: row.get(6)?,
        error: error_of(&error),
        revision: RevisionId(row.get(8)?),
        wall: row.get(9)?,
        counted: counted(row.get(10)?),
        message: Arc::new(message),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::message;
    use super::super::{Changes, Rewrite};
    use super::*;

    fn positions(store: &Store) -> Vec<Position> {
        let batch = store.read_from(1, usize::MAX).unwrap();
        batch.messages.iter().map(|m| m.position).collect()
    }

    #[test]
    fn a_message_that_was_dropped_gets_back_to_its_position_and_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        for hour in 0..4 {
            let batch: Vec<_> = (0..5).map(|n| message(hour * 5 + n)).collect();
            store.append(&batch, &[], None, hour * 3_600_000_001, 0).unwrap();
        }
        let all = store.read_from(1, usize::MAX).unwrap().messages;
        let rewrite = Rewrite {
            segment: 3,
            keep: vec![(11, 11), (15, 15)],
            into: None,
        };
        store.reclaim(&[1, 2], Some(&rewrite), None, 0).unwrap();
        assert_eq!(positions(&store), [11, 15, 16, 17, 18, 19, 20]);
        // Before the first segment; between two messages of a batch with a hole; one that is there.
        for at in [3, 13, 4, 3, 17] {
            assert!(store.put_back(&all[at - 1]).unwrap());
        }
        let expected = [3, 4, 11, 13, 15, 16, 17, 18, 19, 20];
        assert_eq!(positions(&store), expected);
        drop(store);
        let (mut store, recovered) = Store::open(folder.path()).unwrap();
        assert_eq!(positions(&store), expected);
        assert_eq!(recovered.next_position, 21);
        let read = store.read_from(13, 1).unwrap().messages;
        assert_eq!(format!("{:?}", read[0]), format!("{:?}", all[12]));
        assert_eq!(store.outline().unwrap()[0].first, 3);
        while !store.check_slice().unwrap().done {}
    }

    #[test]
    fn what_is_meant_is_told_by_number_by_part_of_the_cause_or_all() {
        let cause = "normalize|IncompatibleDataException|ward#2";
        let by = |ids: &[u64], text: Option<&str>, all| Selection {
            ids: ids.to_vec(),
            cause: text.map(str::to_owned),
            all,
        };
        for (selection, expected) in [
            (by(&[], None, false), false),
            (by(&[7, 9], None, false), true),
            (by(&[8], None, false), false),
            (by(&[], Some("ward#2"), false), true),
            (by(&[], Some("ward#3"), false), false),
            (by(&[], None, true), true),
        ] {
            assert_eq!(selection.includes(9, cause), expected, "{selection:?}");
        }
    }

    #[test]
    fn a_letter_reads_back_with_everything_that_was_known_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let (given, revision) = message(7);
        let letter = DeadLetter {
            destination: Some(2),
            match_number: Some(1),
            stage: "forward",
            error: ErrorRecord::new("InvalidQuantityFhirValueException", "no number"),
            revision: RevisionId(4),
            counted: Arc::from([2]),
            message: Arc::new(StoredMessage {
                position: 77,
                revision,
                message: given,
            }),
        };
        let mut changes = Changes {
            dead_letters: vec![(5, letter.clone())],
            ..Changes::default()
        };
        store.commit_progress(&changes, 33).unwrap();
        let read = store.letters(&[4, 5, 6]).unwrap().remove(0);
        assert_eq!((read.id, read.wall, read.revision), (5, 33, RevisionId(4)));
        assert_eq!(read.counted.as_deref(), Some(&[2][..]));
        assert_eq!(format!("{:?}", read.message), format!("{:?}", letter.message));
        assert_eq!((read.cause, read.error), (letter.cause(), letter.error));
        changes.letters_gone = vec![5];
        store.commit_progress(&changes, 34).unwrap();
        assert!(store.letters(&[5]).unwrap().is_empty());
    }
}
