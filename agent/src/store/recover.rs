//! What a start finds in the file, for the loops to go on where they stopped.

use super::codec;
use super::open::collect;
use super::outbox::LetterNote;
use super::progress::{Progress, Row, UnmatchedRun, decode_key, decode_refs, read_progress};
use super::salvage::{Run, Salvage};
use super::set_aside::is_corrupt;
use super::vault::{Vault, unreadable};
use super::{Segment, Store, StoreError, boots};
use crate::forward::GroupKey;
use crate::ingest::StoredPacket;
use crate::message::{Position, RevisionId, SourceId};
use crate::telemetry::errors::ErrorRecord;
use crate::{clock, random};
use rusqlite::{Connection, OptionalExtension};
use std::path::PathBuf;
use std::sync::Arc;

/// Batches at the end of the journal that are handed to the sources to recognise redelivered messages.
const RESUME_BATCHES: i64 = 64;

/// What ties the monotonic time of a boot to trusted wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dating {
    /// Number of the boot.
    pub boot: u32,
    /// It is the boot that this process runs in: its reference may still come.
    pub is_current: bool,
    /// Monotonic time in microseconds, and the trusted wall time then in ticks of 100 ns. Once known it never changes, so
    /// that a reading that was dated by it gets the same time whenever it is built again.
    pub reference: Option<(u64, i64)>,
    /// The operator has given up readings of it that nobody can date.
    pub given_up: bool,
}

/// A message that may come again: committed shortly before the end, so that its acknowledgement may not have arrived.
#[derive(Clone, Copy, Debug)]
pub struct LastPacket {
    /// Where it came from.
    pub source: SourceId,
    /// Its place in the journal.
    pub position: Position,
    /// What it is recognised by.
    pub packet: StoredPacket,
}

/// What was found at a start.
#[derive(Debug)]
pub struct Recovered {
    /// Id of the store, part of every event id.
    pub store_id: String,
    /// Number of this boot.
    pub boot: u32,
    /// All boots with their references.
    pub dating: Vec<Dating>,
    /// What is measured of clocks of devices: device and state.
    pub device_clocks: Vec<(String, String)>,
    /// Cursors and counters.
    pub progress: Progress,
    /// Group keys by number.
    pub series: Vec<(u32, Arc<GroupKey>)>,
    /// Outbox and waiting rows.
    pub rows: Vec<Row>,
    /// Runs of unmatched messages.
    pub unmatched: Vec<UnmatchedRun>,
    /// Sets of mapping packs: number and hash.
    pub revisions: Vec<(RevisionId, String)>,
    /// Position of the next message.
    pub next_position: Position,
    /// The last messages that have a packet id, oldest first.
    pub resume: Vec<LastPacket>,
    /// How the messages behind the cursor are treated.
    pub isolation: super::Isolation,
    /// Dead letters: cause, error, and what is known of each without its message.
    pub letters: Vec<(String, ErrorRecord, LetterNote)>,
    /// Messages that came from stores before this one.
    pub former_runs: Vec<Run>,
    /// What is to be salvaged of stores that were set aside.
    pub salvages: Vec<Salvage>,
    /// Where a damaged file was put.
    pub set_aside: Option<PathBuf>,
}

impl Store {
    pub(super) fn recover(&mut self, service: bool) -> Result<Recovered, StoreError> {
        let store_id = match self.meta_text("store_id")? {
            Some(id) => id,
            None => {
                let id = random::id();
                self.connection
                    .execute("INSERT INTO meta (key, value) VALUES ('store_id', ?1)", [&id])?;
                id
            }
        };
        let connection = &self.connection;
        let boot = boots::enter(connection, &clock::boot_id(), None)?;
        let dating = self.dating()?;
        let progress: Option<(String, Option<i64>)> = connection
            .query_row("SELECT state, crc FROM progress", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let progress = match progress {
            Some((state, crc)) => read_progress(&state, crc)?,
            None => Progress::default(),
        };
        let vault = self.codec.vault();
        let series = collect(connection, "SELECT id, key FROM series", |row| {
            let key = row.get_ref(1)?.as_blob()?;
            let key = vault.open_bytes("series.key", key).map_err(unreadable)?;
            Ok((row.get(0)?, decode_key(&key)))
        })?;
        let series = series
            .into_iter()
            .map(|(id, key)| Ok((id, Arc::new(key.ok_or(codec::Damaged::Content)?))))
            .collect::<Result<_, codec::Damaged>>()?;
        let rows = collect(
            connection,
            "SELECT id, destination, series, period, first, last, count, oldest, refs, revision, waiting FROM outbox ORDER BY id",
            |row| read_row(row, &vault),
        )?;
        let unmatched = collect(
            connection,
            "SELECT first, last, source, count, no_pack, wall FROM unmatched ORDER BY first",
            |row| {
                Ok(UnmatchedRun {
                    first: row.get::<_, i64>(0)? as u64,
                    last: row.get::<_, i64>(1)? as u64,
                    source: SourceId(row.get(2)?),
                    count: row.get::<_, i64>(3)? as u64,
                    no_pack: row.get(4)?,
                    wall: row.get(5)?,
                })
            },
        )?;
        let revisions = collect(connection, "SELECT id, hash FROM revision ORDER BY id", |row| {
            Ok((RevisionId(row.get(0)?), row.get(1)?))
        })?;
        let resume = self.last_packets()?;
        let letters = self.letter_notes()?;
        let isolation = if service {
            self.note_start(progress.cursor)?
        } else {
            self.known_killers()?
        };
        Ok(Recovered {
            store_id,
            boot,
            dating,
            device_clocks: self.device_clocks()?,
            progress,
            series,
            rows,
            unmatched,
            revisions,
            next_position: self.next_position,
            resume,
            isolation,
            letters,
            former_runs: self.recovered_runs()?,
            salvages: Vec::new(),
            set_aside: None,
        })
    }

    pub(super) fn meta_text(&self, key: &str) -> rusqlite::Result<Option<String>> {
        meta_text(&self.connection, key)
    }

    /// Batch by batch: a start takes the memory of one of them.
    fn last_packets(&self) -> Result<Vec<LastPacket>, StoreError> {
        let mut packets = Vec::new();
        for segment in self.segments.iter().rev().take(2) {
            let mut statement = self.connection.prepare(&format!(
                "SELECT first, count, batch FROM journal_{} ORDER BY first DESC LIMIT {RESUME_BATCHES}",
                segment.id
            ))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (first, count) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
                let blob = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
                let batch = codec::decode(&self.codec.vault(), first, count, blob)?;
                packets.extend(batch.iter().rev().filter_map(|stored| {
                    Some(LastPacket {
                        source: stored.message.source,
                        position: stored.position,
                        packet: StoredPacket::of(&stored.message)?,
                    })
                }));
            }
        }
        packets.reverse();
        Ok(packets)
    }
}

pub(super) fn meta_text(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .optional()
}

pub(super) fn read_segments(connection: &Connection) -> rusqlite::Result<Vec<Segment>> {
    let mut segments = collect(
        connection,
        "SELECT id, first, opened_us FROM segment ORDER BY id",
        |row| {
            Ok(Segment {
                id: row.get(0)?,
                first: row.get::<_, i64>(1)? as u64,
                bytes: 0,
                opened_us: row.get::<_, i64>(2)? as u64,
            })
        },
    )?;
    if let Some(last) = segments.last_mut() {
        let sql = format!("SELECT coalesce(sum(length(batch)), 0) FROM journal_{}", last.id);
        last.bytes = match connection.query_row(&sql, [], |row| row.get::<_, i64>(0)) {
            Ok(bytes) => bytes as u64,
            // A page of it is broken: it counts as full, so that nothing more is written into it.
            Err(error) if is_corrupt(&error) => super::Limits::default().segment,
            Err(error) => return Err(error),
        };
    }
    // Monotonic time starts anew with each boot: a segment of the future is one of an earlier boot.
    let now = clock::monotonic_us();
    for segment in &mut segments {
        segment.opened_us = segment.opened_us.min(now);
    }
    Ok(segments)
}

pub(super) fn next_position(connection: &Connection, segments: &[Segment]) -> rusqlite::Result<Position> {
    let kept: Option<i64> = connection
        .query_row("SELECT value FROM meta WHERE key = 'next_position'", [], |row| {
            row.get(0)
        })
        .optional()?;
    let mut next = kept.unwrap_or(1) as u64;
    for segment in segments.iter().rev() {
        next = next.max(segment.first);
        let sql = format!(
            "SELECT first + count FROM journal_{} ORDER BY first DESC LIMIT 1",
            segment.id
        );
        if let Some(end) = connection
            .query_row(&sql, [], |row| row.get::<_, i64>(0))
            .optional()?
        {
            next = next.max(end as u64);
            break;
        }
    }
    Ok(next)
}

fn read_row(row: &rusqlite::Row<'_>, vault: &Vault) -> rusqlite::Result<Row> {
    let damaged =
        |column| rusqlite::Error::InvalidColumnType(column, "outbox".to_owned(), rusqlite::types::Type::Blob);
    let refs = match row.get_ref(8)?.as_blob_or_null()? {
        Some(bytes) => Some(Arc::new(decode_refs(bytes).ok_or_else(|| damaged(8))?)),
        None => None,
    };
    let waiting: Option<String> = row.get(10)?;
    let waiting = waiting
        .map(|text| vault.read_text("outbox.waiting", text))
        .transpose()?
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|_| damaged(10))?;
    Ok(Row {
        id: row.get::<_, i64>(0)? as u64,
        destination: row.get(1)?,
        series: row.get(2)?,
        period: row.get(3)?,
        first: row.get::<_, i64>(4)? as u64,
        last: row.get::<_, i64>(5)? as u64,
        count: row.get::<_, i64>(6)? as u64,
        oldest: row.get(7)?,
        refs,
        revision: row.get::<_, Option<u32>>(9)?.map(RevisionId),
        waiting,
    })
}
