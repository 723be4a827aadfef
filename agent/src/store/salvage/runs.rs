//! Which messages of the journal came from a former store, and under which id and position they were known there.

use super::super::open::collect;
use super::super::{Store, StoreError};
use crate::message::Position;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Consecutive messages that came from consecutive positions of a former store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First position here.
    pub first: Position,
    /// How many.
    pub count: u64,
    /// Number of the salvage that brought them.
    pub former: i64,
    /// First position in the file that was salvaged.
    pub position: Position,
    /// Store that gave them their identity: that file's, or one before it.
    pub store: Arc<str>,
    /// First position in that store.
    pub known_as: Position,
}

/// Store and position that a message is known by to whoever has got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Number of the salvage that brought it.
    pub former: i64,
    /// Its position in the file that was salvaged.
    pub position: Position,
    /// Id of its store.
    pub store: Arc<str>,
    /// Its position there.
    pub known_as: Position,
}

/// All runs, by their first position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<Position, Run>);

impl Runs {
    /// From what the store holds.
    pub fn new(runs: Vec<Run>) -> Runs {
        Runs(runs.into_iter().map(|run| (run.first, run)).collect())
    }

    /// Adds runs that were committed.
    pub fn add(&mut self, runs: Vec<Run>) {
        for run in runs {
            let before = self.0.range_mut(..run.first).next_back();
            match before.filter(|(_, before)| before.is_continued_by(&run)) {
                Some((_, before)) => before.count += run.count,
                None => drop(self.0.insert(run.first, run)),
            }
        }
    }

    /// The identity of a message that came from a former store; none when it came from a source of this one.
    pub fn identity(&self, position: Position) -> Option<Identity> {
        let (_, run) = self.0.range(..=position).next_back()?;
        let distance = position - run.first;
        (distance < run.count).then(|| Identity {
            former: run.former,
            position: run.position + distance,
            store: Arc::clone(&run.store),
            known_as: run.known_as + distance,
        })
    }
}

impl Run {
    fn is_continued_by(&self, next: &Run) -> bool {
        self.first + self.count == next.first
            && self.position + self.count == next.position
            && self.known_as + self.count == next.known_as
            && self.former == next.former
            && self.store == next.store
    }

    /// Adds a message behind the others, if it continues the last run.
    pub(super) fn push(runs: &mut Vec<Run>, next: Run) {
        match runs.last_mut().filter(|last| last.is_continued_by(&next)) {
            Some(last) => last.count += next.count,
            None => runs.push(next),
        }
    }
}

pub(super) fn write(connection: &Connection, runs: &[Run]) -> rusqlite::Result<()> {
    for run in runs {
        connection
            .prepare_cached(
                "INSERT INTO recovered (first, count, former, position, store, known_as) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                run.first as i64,
                run.count as i64,
                run.former,
                run.position as i64,
                &*run.store,
                run.known_as as i64
            ])?;
    }
    Ok(())
}

impl Store {
    /// Runs of messages that came from former stores.
    ///
    /// # Errors
    /// SQLite's.
    pub fn recovered_runs(&self) -> Result<Vec<Run>, StoreError> {
        let sql = "SELECT first, count, former, position, store, known_as FROM recovered ORDER BY first";
        Ok(collect(&self.connection, sql, |row| {
            Ok(Run {
                first: row.get::<_, i64>(0)? as u64,
                count: row.get::<_, i64>(1)? as u64,
                former: row.get(2)?,
                position: row.get::<_, i64>(3)? as u64,
                store: Arc::from(row.get::<_, String>(4)?),
                known_as: row.get::<_, i64>(5)? as u64,
            })
        })?)
    }
}
