//! Portions: what a salvage hands to the intake, and how the store takes them, each in one commit with the mark behind it.

use super::super::{Store, StoreError};
use super::runs::{self, Run};
use super::{Salvage, Stage, State, Step};
use crate::clock;
use crate::config::Encryption;
use crate::message::{Message, Position, RevisionId};
use crate::sabotage::{self, Sabotage};
use rusqlite::{OptionalExtension, Transaction, params};
use std::sync::Arc;

/// Messages of a former store on their way into the journal, and how far that store was gone through with them.
#[derive(Clone, Debug, Default)]
pub struct Portion {
    /// Number of the salvage.
    pub former: i64,
    /// The messages, with the packs that were in force when they came; none where those are not known any more.
    pub batch: Vec<(Message, Option<RevisionId>)>,
    /// Where they came from; `first` counts from 0 until the store gives positions.
    pub(super) runs: Vec<Run>,
    /// The messages are those of dead letters: some may have come before.
    pub(super) letters: bool,
    /// It ends the salvage.
    pub(super) ends: bool,
    pub(super) state: State,
    bytes: usize,
}

impl Portion {
    pub(super) fn new(former: i64) -> Portion {
        Portion {
            former,
            ..Portion::default()
        }
    }

    pub(super) fn take(&mut self, message: Message, revision: Option<RevisionId>) {
        self.bytes += message.payload.len();
        self.batch.push((message, revision));
    }

    /// Payload bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Leaves out messages that came over before: of the journal, of another letter, or of another store that had them from
    /// the same one.
    fn without_known(&mut self, store: &Store) -> Result<(), StoreError> {
        let several = "SELECT count(*) > 1 FROM former";
        let several = store
            .connection
            .query_row(several, [], |row| row.get::<_, bool>(0))?;
        if !self.letters && !several {
            return Ok(());
        }
        let before = self.batch.len() as u64;
        let sql = "SELECT 1 FROM recovered WHERE store = ?1 AND known_as <= ?2 AND known_as + count > ?2";
        let mut statement = store.connection.prepare_cached(sql)?;
        let (mut batch, mut runs): (Vec<(Message, Option<RevisionId>)>, Vec<Run>) = (Vec::new(), Vec::new());
        let places = self.runs.iter().flat_map(|run| {
            (0..run.count).map(|distance| Run {
                first: 0,
                count: 1,
                position: run.position + distance,
                known_as: run.known_as + distance,
                store: Arc::clone(&run.store),
                former: run.former,
            })
        });
        for (message, mut place) in self.batch.drain(..).zip(places) {
            let known = statement.query_row(params![&*place.store, place.known_as as i64], |_| Ok(()));
            let twice = runs.iter().any(|run| {
                run.store == place.store && (run.known_as..run.known_as + run.count).contains(&place.known_as)
            });
            if twice || known.optional()?.is_some() {
                continue;
            }
            place.first = batch.len() as u64;
            Run::push(&mut runs, place);
            batch.push(message);
        }
        (self.batch, self.runs) = (batch, runs);
        let left = self.batch.len() as u64;
        if self.letters {
            self.state.messages += left;
            self.state.letters += left;
        } else {
            self.state.messages -= before - left;
        }
        Ok(())
    }
}

/// A portion that was committed.
#[derive(Debug)]
pub struct Stored {
    /// Position of its first message.
    pub first: Position,
    /// The messages with their packs.
    pub batch: Arc<Vec<(Message, RevisionId)>>,
    /// Where they came from.
    pub runs: Vec<Run>,
    /// How far the salvage is.
    pub state: State,
}

impl Store {
    /// Does one step of a salvage, with the commit that it needs, for a command while the service is down; says whether
    /// there is more.
    ///
    /// # Errors
    /// [`StoreError`]; the same call may be made again.
    pub fn salvage_step(
        &mut self,
        salvage: &mut Salvage,
        encryption: &Encryption,
    ) -> Result<bool, StoreError> {
        match salvage.step() {
            Step::Looking => {}
            Step::Names => {
                salvage.find_key(encryption)?;
                self.adopt_salvage(salvage)?;
            }
            Step::Portion(portion) => {
                // Without the packs of then a message waits for those that its source gets.
                let none = |_: &Message| RevisionId(0);
                let (now_us, wall) = (clock::monotonic_us(), clock::wall().ticks());
                let stored = self.append_salvaged(&portion, none, now_us, wall)?;
                salvage.committed(stored.state);
            }
            Step::Nothing => return Ok(false),
        }
        Ok(true)
    }

    /// Commits a portion: its messages, where they came from, and how far the former store was gone through, in one
    /// transaction. `current` says which packs a message gets whose own are not known any more. When it returns, all of it
    /// survives a power cut.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is stored, and the same call may be made again.
    pub fn append_salvaged(
        &mut self,
        portion: &Portion,
        current: impl Fn(&Message) -> RevisionId,
        now_us: u64,
        wall: i64,
    ) -> Result<Stored, StoreError> {
        let mut portion = portion.clone();
        portion.without_known(self)?;
        let first = self.next_position;
        let named = portion.batch.into_iter();
        let batch: Vec<(Message, RevisionId)> = named
            .map(|(message, revision)| {
                let revision = revision.unwrap_or_else(|| current(&message));
                (message, revision)
            })
            .collect();
        let mut runs = portion.runs;
        for run in &mut runs {
            run.first += first;
        }
        let mut state = portion.state;
        if !batch.is_empty() {
            state.filled_to = first + batch.len() as u64 - 1;
        }
        let (former, ends) = (portion.former, portion.ends && state.stage == Stage::Done);
        if sabotage::is_on(Sabotage::SalvageMarkFirst) {
            super::keep::write(&self.connection, former, &state)?;
        }
        self.append_with(&batch, &[], None, now_us, wall, |transaction| {
            runs::write(transaction, &runs)?;
            super::keep::write(transaction, former, &state)?;
            if ends {
                enter_in_ledger(transaction, &state, wall)?;
            }
            Ok(())
        })?;
        Ok(Stored {
            first,
            batch: Arc::new(batch),
            runs,
            state,
        })
    }
}

/// The lines that end a salvage.
fn enter_in_ledger(transaction: &Transaction<'_>, state: &State, wall: i64) -> rusqlite::Result<()> {
    let enter = |count: u64, reason: String| {
        let sql = "INSERT INTO ledger (count, reason, wall) VALUES (?1, ?2, ?3)";
        transaction
            .execute(sql, params![count as i64, reason, wall])
            .map(drop)
    };
    if state.lost > 0 {
        let runs: Vec<String> = state
            .lost_runs
            .iter()
            .take(8)
            .map(|(a, b)| format!("{a}-{b}"))
            .collect();
        let at_most = if state.known {
            ""
        } else {
            " (some of them may have been delivered before)"
        };
        enter(
            state.lost,
            format!(
                "not readable in the damaged store {}: messages {}{at_most}",
                state.file,
                runs.join(", ")
            ),
        )?;
    }
    if state.left_behind > 0 {
        let reason = "of destinations that are not configured any more, left in the damaged store";
        enter(state.left_behind, format!("{reason} {}", state.file))?;
    }
    enter(0, format!("salvaged {}", state.text()))
}
