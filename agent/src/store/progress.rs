//! What the loops learn between two commits, and how it is written: cursors, counters, rows of the outbox, sent periods,
//! dead letters, ledger lines. All of it is one transaction, together with the intake's batch where there is one.

use super::associations::AssociationChanges;
use super::codec::{Damaged, Reader, put_bytes, put_difference, put_number};
use super::vault::Vault;
use crate::forward::{GroupKey, SentPeriod};
use crate::message::{Position, RevisionId, SourceId, StoredMessage};
use crate::telemetry::errors::ErrorRecord;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Cursors and counters. Counters change in the transaction of the rows that they describe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The last normalized position.
    pub cursor: Position,
    /// Normalized messages: `matched + unmatched + unparsable`.
    pub messages: u64,
    /// Messages that at least one template matched.
    pub matched: u64,
    /// Messages that no template matched.
    pub unmatched: u64,
    /// Messages that are no JSON, or were too large.
    pub unparsable: u64,
    /// Matches that an earlier pack hid.
    pub shadowed: u64,
    /// Template matches, failed ones included.
    pub matches: u64,
    /// Per destination.
    pub destinations: BTreeMap<u32, DestinationProgress>,
}

/// Counters of a destination, per template match; of one that takes raw messages, per message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationProgress {
    /// The last confirmed position, where the destination follows the journal directly.
    pub cursor: Position,
    /// Template matches meant for it.
    pub matches: u64,
    /// Confirmed.
    pub delivered: u64,
    /// A newer reading took the same slot.
    pub superseded: u64,
    /// Dead letters.
    pub dead: u64,
    /// Given up on purpose.
    pub lost: u64,
    /// Observations or events written.
    pub written: u64,
    /// The operator gave up what it had not got: it follows the journal no more, until it is configured again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// A reference to what a destination still has to get.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its number; never reused in the life of a store.
    pub id: u64,
    /// Destination.
    pub destination: u32,
    /// Number of the group key.
    pub series: u32,
    /// Start of the period in ticks of 100 ns; none for period 0, which stands for all unsent readings in the range.
    pub period: Option<i64>,
    /// First position.
    pub first: Position,
    /// Last position.
    pub last: Position,
    /// Unsent matches.
    pub count: u64,
    /// Receive time of the oldest: ticks of 100 ns.
    pub oldest: i64,
    /// The exact readings, when the row stands for some of its range only.
    pub refs: Option<Arc<Vec<(Position, u32)>>>,
    /// Normalize with these packs instead of those in force when the messages came.
    pub revision: Option<RevisionId>,
    /// Why it waits; none when it is due.
    pub waiting: Option<ErrorRecord>,
}

/// Consecutive messages of one source that no template matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmatchedRun {
    /// First position.
    pub first: Position,
    /// Last position.
    pub last: Position,
    /// Source; messages of other sources between first and last do not belong to the run.
    pub source: SourceId,
    /// Messages in it.
    pub count: u64,
    /// The source had no pack when they came.
    pub no_pack: bool,
    /// Receive time of the newest: ticks of 100 ns.
    pub wall: i64,
}

/// A message or reading that could not be processed.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Destination that refused it; none when it failed before any.
    pub destination: Option<u32>,
    /// Which match of the message; none for the whole message.
    pub match_number: Option<u32>,
    /// Stage name.
    pub stage: &'static str,
    /// The exact cause.
    pub error: ErrorRecord,
    /// The packs that it was normalized with.
    pub revision: RevisionId,
    /// Destinations that count it as dead: for a refused reading that one, for a failed match all that take readings.
    pub counted: Arc<[u32]>,
    /// The raw message with its position and revision.
    pub message: Arc<StoredMessage>,
}

impl DeadLetter {
    /// What an operator repairs at one place: stage, error name, template.
    pub fn cause(&self) -> String {
        let place = self
            .error
            .mapping
            .as_ref()
            .map(|m| format!("{}#{}", m.pack, m.template))
            .unwrap_or_default();
        format!("{}|{}|{place}", self.stage, self.error.name)
    }
}

/// Readings given up on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Destination that lost them; none for all.
    pub destination: Option<u32>,
    /// Source.
    pub source: Option<SourceId>,
    /// First and last position, where known.
    pub range: Option<(Position, Position)>,
    /// How many, where known (0: unknown).
    pub count: u64,
    /// Why.
    pub reason: String,
    /// Device and measurement type, where all of them have one.
    pub reading: Option<(Arc<str>, Arc<str>)>,
}

/// Everything that changed since the last commit of progress.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Cursors and counters.
    pub progress: Progress,
    /// New group keys.
    pub series: Vec<(u32, Arc<GroupKey>)>,
    /// Numbers of group keys that no row names any more.
    pub series_gone: Vec<u32>,
    /// Rows that are new or changed.
    pub rows: Vec<Row>,
    /// Rows that left.
    pub rows_gone: Vec<u64>,
    /// Sent periods by destination.
    pub sent_periods: Vec<(u32, SentPeriod)>,
    /// New dead letters with their numbers.
    pub dead_letters: Vec<(u64, DeadLetter)>,
    /// Dead letters that left.
    pub letters_gone: Vec<u64>,
    /// New ledger lines.
    pub losses: Vec<Loss>,
    /// Runs of unmatched messages that are new or longer.
    pub unmatched: Vec<UnmatchedRun>,
    /// Runs that left, by first position.
    pub unmatched_gone: Vec<Position>,
    /// What servers showed of devices, with corrections that are new or done.
    pub associations: AssociationChanges,
}

/// A group key as bytes.
pub fn encode_key(key: &GroupKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    for text in [&key.pack, &key.device, &key.type_name] {
        put_bytes(&mut out, text.as_bytes());
    }
    for text in [&key.patient, &key.encounter, &key.correlation] {
        match text {
            Some(text) => {
                out.push(1);
                put_bytes(&mut out, text.as_bytes());
            }
            None => out.push(0),
        }
    }
    out
}

/// A group key from its bytes; `None` when they are damaged.
pub fn decode_key(bytes: &[u8]) -> Option<GroupKey> {
    let mut reader = Reader(bytes);
    let pack = Arc::from(reader.text()?);
    let device = Arc::from(reader.text()?);
    let type_name = Arc::from(reader.text()?);
    let mut optional = || match reader.byte()? {
        0 => Some(None),
        _ => Some(Some(Arc::from(reader.text()?))),
    };
    Some(GroupKey {
        pack,
        device,
        type_name,
        patient: optional()?,
        encounter: optional()?,
        correlation: optional()?,
    })
}

/// Exact readings as bytes: differences of positions and match numbers.
pub fn encode_refs(refs: &[(Position, u32)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(refs.len() * 3 + 4);
    put_number(&mut out, refs.len() as u64);
    let mut before = 0_i64;
    for (position, match_number) in refs {
        put_difference(&mut out, *position as i64 - before);
        put_number(&mut out, u64::from(*match_number));
        before = *position as i64;
    }
    out
}

/// Exact readings from their bytes; `None` when they are damaged.
pub fn decode_refs(bytes: &[u8]) -> Option<Vec<(Position, u32)>> {
    let mut reader = Reader(bytes);
    let count = reader.number()?;
    let mut refs = Vec::new();
    let mut position = 0_i64;
    for _ in 0..count {
        position = position.checked_add(reader.difference()?)?;
        refs.push((
            u64::try_from(position).ok()?,
            u32::try_from(reader.number()?).ok()?,
        ));
    }
    Some(refs)
}

pub(super) fn sql_error(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

/// Of the stored form of cursors and counters.
fn checksum(state: &str) -> i64 {
    i64::from(crc32fast::hash(state.as_bytes()))
}

/// Cursors and counters from their stored form.
///
/// # Errors
/// [`Damaged`]: a cursor that was changed on the medium would pass over messages that nobody got, so nothing of it is
/// believed. The store is set aside then, and everything that its journal holds goes on from there: what was delivered before
/// is sent again as the same resource or under the same event id.
pub(super) fn read_progress(state: &str, crc: Option<i64>) -> Result<Progress, Damaged> {
    if crc != Some(checksum(state)) {
        return Err(Damaged::Checksum);
    }
    serde_json::from_str(state).map_err(|_| Damaged::Content)
}

/// Gives the row of an older version its checksum.
pub(super) fn add_checksum(connection: &Connection) -> rusqlite::Result<()> {
    let state: Option<String> = connection
        .query_row("SELECT state FROM progress", [], |row| row.get(0))
        .optional()?;
    if let Some(state) = state {
        connection.execute("UPDATE progress SET crc = ?1", [checksum(&state)])?;
    }
    Ok(())
}

impl Changes {
    /// Writes everything inside the caller's transaction.
    pub(super) fn write(
        &self,
        transaction: &Transaction<'_>,
        codec: &mut super::codec::Codec,
        wall: i64,
    ) -> rusqlite::Result<()> {
        self.write_progress(transaction)?;
        let vault = codec.vault();
        for (id, key) in &self.series {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO series (id, key) VALUES (?1, ?2)")?
                .execute(params![id, vault.bytes("series.key", &encode_key(key))])?;
        }
        for id in &self.series_gone {
            transaction
                .prepare_cached("DELETE FROM series WHERE id = ?1")?
                .execute([id])?;
        }
        for row in &self.rows {
            self.write_row(transaction, row, &vault)?;
        }
        for id in &self.rows_gone {
            transaction
                .prepare_cached("DELETE FROM outbox WHERE id = ?1")?
                .execute([*id as i64])?;
        }
        for (destination, sent) in &self.sent_periods {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO sent_period (destination, observation, memory, expires) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    destination,
                    vault.text("sent_period.observation", &sent.observation),
                    vault.bytes("sent_period.memory", &sent.memory),
                    sent.expires
                ])?;
        }
        for run in &self.unmatched {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO unmatched (first, last, source, count, no_pack, wall) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![run.first as i64, run.last as i64, run.source.0, run.count as i64, run.no_pack, run.wall])?;
        }
        for first in &self.unmatched_gone {
            transaction
                .prepare_cached("DELETE FROM unmatched WHERE first = ?1")?
                .execute([*first as i64])?;
        }
        self.associations.write(transaction, &vault)?;
        for (id, letter) in &self.dead_letters {
            super::letters::write(transaction, codec, *id, letter, wall)?;
        }
        // After the new ones: a letter may be both when a commit failed in between.
        for id in &self.letters_gone {
            transaction
                .prepare_cached("DELETE FROM dead_letter WHERE id = ?1")?
                .execute([*id as i64])?;
        }
        for loss in &self.losses {
            write_loss(transaction, loss, wall, &vault)?;
        }
        Ok(())
    }

    /// Writes cursors and counters.
    pub(super) fn write_progress(&self, connection: &Connection) -> rusqlite::Result<()> {
        let state = serde_json::to_string(&self.progress).map_err(sql_error)?;
        connection
            .prepare_cached(
                "INSERT INTO progress (id, state, crc) VALUES (1, ?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET state = ?1, crc = ?2",
            )?
            .execute(params![state, checksum(&state)])?;
        Ok(())
    }

    fn write_row(&self, transaction: &Transaction<'_>, row: &Row, vault: &Vault) -> rusqlite::Result<()> {
        let waiting = row
            .waiting
            .as_ref()
            .map(serde_json::to_string)
            .transpose()
            .map_err(sql_error)?;
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO outbox (id, destination, series, period, first, last, count, oldest, refs, revision, waiting)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                row.id as i64,
                row.destination,
                row.series,
                row.period,
                row.first as i64,
                row.last as i64,
                row.count as i64,
                row.oldest,
                row.refs.as_ref().map(|refs| encode_refs(refs)),
                row.revision.map(|r| r.0),
                waiting.as_deref().map(|text| vault.text("outbox.waiting", text))
            ])?;
        Ok(())
    }
}

/// One ledger row per run: what continues a run of the last day makes its row longer, so that a long shedding is one row for
/// each device, type and destination and day.
fn write_loss(transaction: &Transaction<'_>, loss: &Loss, wall: i64, vault: &Vault) -> rusqlite::Result<()> {
    const DAY: i64 = 86_400 * 10_000_000;
    let (first, last) = loss.range.unzip();
    let (device, type_name) = loss.reading.as_ref().map(|(d, t)| (&**d, &**t)).unzip();
    let device = device.map(|device| vault.text("ledger.device", device));
    let source = loss.source.map(|s| s.0);
    let (first, last) = (first.map(|p| p as i64), last.map(|p| p as i64));
    if let Some(first) = first {
        let grown = transaction
            .prepare_cached(
                "UPDATE ledger SET last = ?1, count = count + ?2, wall = ?3 WHERE id = (SELECT max(id) FROM ledger
                     WHERE destination IS ?4 AND source IS ?5 AND device IS ?6 AND type IS ?7 AND reason = ?8)
                 AND last < ?9 AND wall > ?10",
            )?
            .execute(params![
                last,
                loss.count as i64,
                wall,
                loss.destination,
                source,
                device,
                type_name,
                loss.reason,
                first,
                wall.saturating_sub(DAY)
            ])?;
        if grown > 0 {
            return Ok(());
        }
    }
    transaction
        .prepare_cached(
            "INSERT INTO ledger (destination, source, device, type, first, last, count, reason, wall)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            loss.destination,
            source,
            device,
            type_name,
            first,
            last,
            loss.count as i64,
            loss.reason,
            wall
        ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::check::tests::message;
    use super::*;
    use crate::config::Encryption;

    /// A cursor that jumps ahead on a worn card would pass over acknowledged readings without a word.
    #[test]
    fn a_cursor_that_changed_on_the_medium_passes_over_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let batch: Vec<_> = (1..=30).map(message).collect();
        let mut changes = Changes::default();
        changes.progress.cursor = 10;
        store.append(&batch, &[], Some(&changes), 0, 0).unwrap();
        drop(store);
        let raw = Connection::open(folder.path().join("store.db")).unwrap();
        let sql = r#"UPDATE progress SET state = replace(state, '"cursor":10', '"cursor":29')"#;
        assert_eq!(raw.execute(sql, []).unwrap(), 1);
        drop(raw);
        let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
        assert!(recovered.set_aside.is_some());
        let mut salvage = recovered.salvages.pop().unwrap();
        while store.salvage_step(&mut salvage, &Encryption::Off).unwrap() {}
        let read = store.read_from(1, usize::MAX).unwrap();
        assert_eq!(read.messages.len(), 30);
        assert_eq!((salvage.state().lost, salvage.state().known), (0, false));
    }

    #[test]
    fn group_keys_with_equal_joined_texts_stay_apart() {
        let key = |device: &str, type_name: &str| GroupKey {
            pack: Arc::from("ward"),
            device: Arc::from(device),
            type_name: Arc::from(type_name),
            patient: None,
            encounter: Some(Arc::from("")),
            correlation: None,
        };
        let (one, other) = (key("a-b", "c"), key("a", "b-c"));
        assert_ne!(encode_key(&one), encode_key(&other));
        assert_eq!(decode_key(&encode_key(&one)), Some(one));
        assert_eq!(decode_key(&[3, 1]), None);
    }

    #[test]
    fn references_read_back_in_any_order() {
        let refs = vec![(1_000_000, 0), (1_000_000, 3), (999, 1)];
        assert_eq!(decode_refs(&encode_refs(&refs)), Some(refs));
    }
}
