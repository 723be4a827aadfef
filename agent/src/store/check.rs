//! Looking for damage: the fast check before the first acknowledgement, and the full one beside the intake.
//!
//! The full check goes through the file in slices between two commits, oldest batch first, with the memory of one batch.
//! What a loop has read since the start was checked by that and is not read again, so that a start reads each byte of
//! the journal once.
//!
//! A damaged batch is stepped over: the rest goes on, and the loops account for its messages where they get to them.

use super::open::collect;
use super::read::{Found, Ranges};
use super::set_aside::is_corrupt;
use super::{Segment, Store, StoreError};
use super::{checked_rows, codec};
use crate::message::Position;
use rusqlite::Connection;
use std::cell::{Cell, RefCell};

/// Batches at the end of the journal whose checksum is looked at before the first acknowledgement.
const CHECKED_BATCHES: i64 = 16;
/// Bytes of batches that one slice of the full check reads: some 10 ms of a slow card.
const SLICE_BYTES: usize = 256 << 10;

/// How far the full check of this start is, and what was found since.
#[derive(Debug, Default)]
pub(crate) struct Check {
    stage: Stage,
    /// Positions that were read and are good.
    pub(super) seen: RefCell<Ranges>,
    /// Position of a read that the disk refused, and how often.
    pub(super) refused: Cell<(Position, u32)>,
    batches: u64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Tables,
    Journal(Position),
    Done,
}

/// What a slice of the full check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckState {
    /// Everything was looked at.
    pub done: bool,
    /// Batches and bytes read by the check itself until now.
    pub batches: u64,
    /// See `batches`.
    pub bytes: u64,
    /// Position that the check has reached, and the one after the last.
    pub reached: Position,
    /// Position after the last message.
    pub end: Position,
    /// Runs of positions that this slice found damaged.
    pub damaged: Vec<(Position, Position)>,
    /// What SQLite says of the other tables; not empty: the file cannot be trusted for writing.
    pub broken: Vec<String>,
}

impl Store {
    /// The next slice of the full check: first all small tables, then some batches of the journal.
    ///
    /// # Errors
    /// [`StoreError`] of a disk that refuses to read; the same slice is looked at again by the next call.
    pub fn check_slice(&mut self) -> Result<CheckState, StoreError> {
        let mut state = CheckState {
            end: self.next_position,
            ..CheckState::default()
        };
        match self.check.stage {
            Stage::Tables => {
                state.broken = self.check_tables()?;
                if !state.broken.is_empty() {
                    // A read that the device refused once is no reason to give the file up.
                    state.broken = self.check_tables()?;
                }
                let first = self.segments.first().map_or(self.next_position, |s| s.first);
                self.check.stage = Stage::Journal(first);
            }
            Stage::Journal(from) => {
                let next = self.check_journal(from, &mut state)?;
                self.check.stage = next.map_or(Stage::Done, Stage::Journal);
            }
            Stage::Done => {}
        }
        state.done = self.check.stage == Stage::Done;
        state.batches = self.check.batches;
        state.bytes = self.check.bytes;
        state.reached = match self.check.stage {
            Stage::Tables => 0,
            Stage::Journal(from) => from,
            Stage::Done => self.next_position,
        };
        if state.done {
            self.check.seen.borrow_mut().clear();
        }
        Ok(state)
    }

    /// What `PRAGMA quick_check` says of every table but the journal's, and of the free pages (with the schema's table), and
    /// what is wrong with rows that have checksums.
    fn check_tables(&self) -> Result<Vec<String>, StoreError> {
        let sql =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'journal\\_%' ESCAPE '\\'";
        let mut tables: Vec<String> = collect(&self.connection, sql, |row| row.get(0))?;
        tables.push("sqlite_schema".to_owned());
        let mut broken = Vec::new();
        for table in tables {
            let sql = format!("PRAGMA quick_check('{table}')");
            let lines: Vec<String> = match collect(&self.connection, &sql, |row| row.get(0)) {
                Ok(lines) => lines,
                // SQLite gives up on what is broken enough.
                Err(error) if is_corrupt(&error) => vec![error.to_string()],
                Err(error) => return Err(error.into()),
            };
            broken.extend(
                lines
                    .into_iter()
                    .filter(|line| line != "ok")
                    .map(|line| format!("{table}: {}", line.replace('\n', "; "))),
            );
        }
        match checked_rows::damage(&self.connection) {
            Ok(lines) => broken.extend(lines),
            Err(error) if is_corrupt(&error) => broken.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(broken)
    }

    /// Checks batches from `from` on; gives the position to go on from, none at the end.
    fn check_journal(
        &mut self,
        from: Position,
        state: &mut CheckState,
    ) -> Result<Option<Position>, StoreError> {
        let (mut batches, mut bytes, mut reached) = (0, 0, from);
        let skip = self.check.seen.borrow().end_of(from);
        if let Some(end) = skip {
            return Ok((end < self.next_position).then_some(end));
        }
        self.walk(from, |found| {
            match found {
                Found::Batch { first, count, blob } => {
                    batches += 1;
                    bytes += blob.len();
                    if codec::verify(blob).is_err() {
                        state.damaged.push((first, first + count - 1));
                    }
                    reached = first + count;
                }
                Found::Damaged { first, last } => {
                    state.damaged.push((first, last));
                    reached = last + 1;
                }
            }
            bytes < SLICE_BYTES && self.check.seen.borrow().end_of(reached).is_none()
        })?;
        self.check.batches += batches;
        self.check.bytes += bytes as u64;
        Ok((reached > from && reached < self.next_position).then_some(reached))
    }
}

/// Checksums of the last batches: what a power cut or a worn card harms first.
pub(super) fn check_last_batches(connection: &Connection, segments: &[Segment]) -> Result<(), StoreError> {
    let Some(last) = segments.last() else {
        return Ok(());
    };
    let sql = format!(
        "SELECT batch FROM journal_{} ORDER BY first DESC LIMIT {CHECKED_BATCHES}",
        last.id
    );
    for blob in collect(connection, &sql, |row| row.get::<_, Vec<u8>>(0))? {
        codec::verify(&blob)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
