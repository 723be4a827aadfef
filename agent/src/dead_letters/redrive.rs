//! Sending dead letters again: their messages are normalized with today's packs, and what becomes of them takes the usual way.
//!
//! Invariants:
//! 1. A letter and the rows that replace it are one transaction: a crash leaves the one or the other, never both or none.
//! 2. A letter that is gone is not found again: redriven twice is redriven once.
//! 3. Position and, with unchanged packs, match number stay, so Observation ids and event ids do. A reading that other packs
//!    than its message's made has a number of its own ([`number_of_revision`]): its event id is nobody else's.
//! 4. What fails again stays a letter, with today's error.
//! 5. The accounts hold: what was counted as dead is counted as due then.
//!
//! The journal may have dropped the message since; it is put back before anything refers to it.

use super::{AT_A_TIME, DeadLetters};
use crate::clock;
use crate::forward::{DestinationHandle, Destinations};
use crate::message::RevisionId;
use crate::normalize::{Match, Normalized, match_of, number_of_revision};
use crate::packs::PackSet;
use crate::pipeline::Entry;
use crate::process::{Anew, add_match, take_matches};
use crate::store::outbox::Outbox;
use crate::store::{DeadLetter, Selection, StoreError, StoredLetter};
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// What a redrive did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Redriven {
    /// Letters that are none any more.
    pub redriven: u64,
    /// Readings, or raw messages, that are on their way now.
    pub readings: u64,
    /// Messages among them that no template matches today: they are kept as unmatched ones.
    pub unmatched: u64,
    /// Letters that stay, and why.
    pub kept: Vec<Kept>,
}

/// A letter that stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Number that it has now.
    pub id: u64,
    /// Why.
    pub error: ErrorRecord,
}

/// Pack and measurement type.
type Kind = (String, String);

/// The letters of one message, and what it becomes.
struct Case {
    letters: Vec<StoredLetter>,
    entry: Rc<Entry>,
    /// Today's packs.
    revision: RevisionId,
    now: Rc<Normalized>,
    /// What fails of it today, with pack and type of the template.
    failing: Vec<(Option<Kind>, ErrorRecord)>,
    /// What it became with the packs of each letter.
    then: HashMap<RevisionId, Rc<Normalized>>,
    /// Pack and type that the failed template of a letter belongs to, by letter.
    types: HashMap<u64, Kind>,
    /// The journal has it.
    readable: bool,
}

impl DeadLetters<'_> {
    /// Sends letters again. When it returns, that survives a power cut.
    ///
    /// # Errors
    /// [`StoreError`]; what was done until then stays done, and asking again goes on.
    pub async fn redrive(&self, which: &Selection) -> Result<Redriven, StoreError> {
        self.commit().await?;
        let selected = self.pipeline.outbox.borrow().select_letters(which, true);
        let mut by_position: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (_, note) in selected {
            by_position.entry(note.position).or_default().push(note.id);
        }
        let mut result = Redriven::default();
        let messages: Vec<Vec<u64>> = by_position.into_values().collect();
        for some in messages.chunks(AT_A_TIME) {
            // No segment may leave between putting a message back and its row. A letter that leaves is noticed.
            let upkeep = self.pipeline.bounds.hold().await;
            let mut cases = Vec::new();
            for ids in some {
                cases.extend(self.case(ids.clone(), &mut result).await?);
            }
            {
                let mut outbox = self.pipeline.outbox.borrow_mut();
                for case in &cases {
                    self.take(&mut outbox, case, &mut result);
                }
            }
            drop(upkeep);
            self.commit().await?;
            self.pipeline.normalized.notify_waiters();
            self.pipeline.beat("normalize");
        }
        Ok(result)
    }

    async fn case(&self, ids: Vec<u64>, result: &mut Redriven) -> Result<Option<Case>, StoreError> {
        let pipeline = self.pipeline;
        let letters = pipeline.store.call(move |store| store.letters(&ids)).await?;
        let Some(first) = letters.first() else {
            return Ok(None);
        };
        // Not even looked at: it would end this process too.
        if let Some(killer) = letters.iter().find(|l| l.error.name == "MessageKilledTheProcess") {
            keep(result, killer.id, killer.error.clone());
            return Ok(None);
        }
        let stored = Arc::clone(&first.message);
        let entry = Entry::new((*stored).clone());
        let revision = pipeline.packs.borrow().current(stored.message.source);
        let now = pipeline.normalized(&entry, Some(revision)).await?;
        let (mut then, mut types) = (HashMap::new(), HashMap::new());
        let today = pipeline.pack_set(revision).await?;
        let errors = now.failed.iter().chain(&now.unparsable);
        let failing = errors
            .map(|error| (kind_of(&today, error), error.clone()))
            .collect();
        for letter in &letters {
            let before = pipeline.normalized(&entry, Some(letter.revision)).await?;
            then.insert(letter.revision, before);
            let set = pipeline.pack_set(letter.revision).await?;
            types.extend(kind_of(&set, &letter.error).map(|kind| (letter.id, kind)));
        }
        let readable = pipeline.store.call(move |store| store.put_back(&stored)).await?;
        Ok(Some(Case {
            letters,
            entry,
            revision,
            now,
            failing,
            then,
            types,
            readable,
        }))
    }

    /// Takes the letters of a message into the outbox, between two awaits.
    fn take(&self, outbox: &mut Outbox, case: &Case, result: &mut Redriven) {
        let mut failed: BTreeMap<&str, Vec<&StoredLetter>> = BTreeMap::new();
        for letter in &case.letters {
            if !outbox.has_letter(letter.id) {
                continue;
            }
            match (letter.destination, letter.match_number) {
                _ if !case.readable => keep(
                    result,
                    letter.id,
                    ErrorRecord::new(
                        "UnhandledException",
                        "the journal is damaged where this message was: it can be shown, and sent again by hand",
                    ),
                ),
                (Some(destination), None) => self.take_message(outbox, case, letter, destination, result),
                _ if case.revision == RevisionId(0) => keep(
                    result,
                    letter.id,
                    ErrorRecord::new(
                        "NormalizationDataMappingException",
                        "the source of this message has no mapping pack now: add one, then redrive again",
                    ),
                ),
                (Some(destination), Some(number)) => {
                    self.take_refused(outbox, case, letter, destination, number, result);
                }
                (None, _) => failed.entry(&letter.cause).or_default().push(letter),
            }
        }
        for letters in failed.into_values() {
            if case.now.unparsable.is_none()
                && letters.iter().all(|l| l.error.mapping.is_none() && of_message(l))
            {
                self.take_unparsable(outbox, case, &letters, result);
            } else {
                self.take_failed(outbox, case, &letters, result);
            }
        }
    }

    /// A raw message that a destination did not take.
    fn take_message(
        &self,
        outbox: &mut Outbox,
        case: &Case,
        letter: &StoredLetter,
        destination: u32,
        result: &mut Redriven,
    ) {
        if !self.destinations.followers().contains(&destination) {
            let text = "its destination is not configured any more, or does not take raw messages now";
            return keep(
                result,
                letter.id,
                ErrorRecord::new("InvalidEventHubException", text),
            );
        }
        outbox.take_letter(letter.id);
        let counters = outbox.destination_mut(destination);
        counters.dead = counters.dead.saturating_sub(1);
        let wall = case.entry.stored.message.stamp.wall.ticks();
        outbox.add_message_again(
            destination,
            case.entry.stored.position,
            wall,
            clock::monotonic_us(),
        );
        result.redriven += 1;
        result.readings += 1;
    }

    /// A reading that a destination refused: the same match of the same type, as today's packs read it.
    fn take_refused(
        &self,
        outbox: &mut Outbox,
        case: &Case,
        letter: &StoredLetter,
        destination: u32,
        number: u32,
        result: &mut Redriven,
    ) {
        let Some(handle) = self.destinations.of_readings().find(|d| d.id == destination) else {
            let text = "its destination is not configured any more, or takes raw messages now";
            return keep(
                result,
                letter.id,
                ErrorRecord::new("InvalidFhirServiceException", text),
            );
        };
        let same = |found: &Match, as_of: &Match| {
            found.pack.text.name == as_of.pack.text.name
                && found.measurement.type_name == as_of.measurement.type_name
        };
        let found = case.then.get(&letter.revision).and_then(|then| {
            let number = match_of(number);
            let refused = then.matches.iter().find(|m| m.number == number)?;
            let before = then
                .matches
                .iter()
                .filter(|m| m.number < number && same(m, refused))
                .count();
            case.now.matches.iter().filter(|m| same(m, refused)).nth(before)
        });
        let Some(found) = found else {
            return self.fails_again(outbox, letter, None, result);
        };
        outbox.take_letter(letter.id);
        // Counted as new by the row.
        let counters = outbox.destination_mut(destination);
        counters.dead = counters.dead.saturating_sub(1);
        counters.matches = counters.matches.saturating_sub(1);
        send(outbox, case, &Destinations(vec![handle.clone()]), &[found]);
        result.redriven += 1;
        result.readings += 1;
    }

    /// A message that was none: it is counted anew as a whole.
    fn take_unparsable(
        &self,
        outbox: &mut Outbox,
        case: &Case,
        letters: &[&StoredLetter],
        result: &mut Redriven,
    ) {
        for letter in letters {
            outbox.take_letter(letter.id);
            result.redriven += 1;
        }
        let progress = outbox.progress_mut();
        progress.unparsable = progress.unparsable.saturating_sub(1);
        if !case.now.matched() {
            progress.unmatched += 1;
            outbox.note_unmatched_alone(&case.entry.stored, false);
            result.unmatched += 1;
            return;
        }
        progress.matched += 1;
        let mut anew = Some(Anew::with(case.revision));
        take_matches(self.destinations, outbox, &case.entry, &case.now, &mut anew, None);
        if let Some(anew) = anew {
            anew.into_outbox(outbox);
        }
        result.readings += case.now.matches.len() as u64;
    }

    /// Matches that failed, all of one cause: what today's packs make of the message and those of then did not.
    fn take_failed(
        &self,
        outbox: &mut Outbox,
        case: &Case,
        letters: &[&StoredLetter],
        result: &mut Redriven,
    ) {
        let Some(first) = letters.first() else { return };
        let then = case.then.get(&first.revision);
        let kind = case.types.get(&first.id);
        let fresh = fresh(case, then.map(Rc::as_ref), kind);
        let again: Vec<&ErrorRecord> = case
            .failing
            .iter()
            .filter(|(now, _)| kind.is_none() || now.is_none() || now.as_ref() == kind)
            .map(|(_, error)| error)
            .collect();
        let nothing_left =
            case.now.matches.is_empty() && case.now.failed.is_empty() && case.now.unparsable.is_none();
        let was_alone = then.is_some_and(|then| then.matches.is_empty());
        let solved = if fresh.is_empty() && !(nothing_left && was_alone) {
            0
        } else {
            letters.len().saturating_sub(again.len())
        };
        let (solved, unsolved) = letters.split_at(solved);
        for (number, letter) in unsolved.iter().enumerate() {
            self.fails_again(
                outbox,
                letter,
                again.get(number).or(again.last()).copied(),
                result,
            );
        }
        if solved.is_empty() {
            return;
        }
        let all: Vec<u32> = self.destinations.of_readings().map(|d| d.id).collect();
        for letter in solved {
            outbox.take_letter(letter.id);
            let progress = outbox.progress_mut();
            progress.matches = progress.matches.saturating_sub(1);
            for destination in letter.counted.as_deref().unwrap_or(&all) {
                let counters = outbox.destination_mut(*destination);
                counters.dead = counters.dead.saturating_sub(1);
                counters.matches = counters.matches.saturating_sub(1);
            }
            result.redriven += 1;
        }
        outbox.progress_mut().matches += fresh.len() as u64;
        if fresh.is_empty() {
            let others = case.letters.len() > letters.len();
            let progress = outbox.progress_mut();
            if !others {
                progress.matched = progress.matched.saturating_sub(1);
                progress.unmatched += 1;
                outbox.note_unmatched_alone(&case.entry.stored, false);
                result.unmatched += 1;
            }
            return;
        }
        let counted = first.counted.as_deref().unwrap_or(&all);
        let handles = counted.iter().map(|id| self.handle(*id)).collect();
        send(outbox, case, &Destinations(handles), &fresh);
        result.readings += fresh.len() as u64;
    }

    /// A destination by number; one that is not configured any more keeps what it has not got, as its other rows.
    fn handle(&self, id: u32) -> DestinationHandle {
        let known = self.destinations.0.iter().find(|d| d.id == id).cloned();
        known.unwrap_or_else(|| DestinationHandle {
            id,
            name: Arc::from(""),
            takes_messages: false,
            groups_by_period: false,
            flush_interval_us: 0,
        })
    }

    /// The letter stays, with today's error.
    fn fails_again(
        &self,
        outbox: &mut Outbox,
        letter: &StoredLetter,
        error: Option<&ErrorRecord>,
        result: &mut Redriven,
    ) {
        let gone = || {
            let text = "today's mapping makes no such reading of this message; look at it with `dead-letters show`, and drop \
                        it when that is meant";
            ErrorRecord::new("TemplateNotFoundException", text)
        };
        let error = error.cloned().unwrap_or_else(gone);
        if error == letter.error {
            return keep(result, letter.id, error);
        }
        let Some(note) = outbox.take_letter(letter.id) else {
            return;
        };
        let id = outbox.next_letter();
        outbox.dead(DeadLetter {
            destination: letter.destination,
            match_number: letter.match_number,
            stage: if letter.destination.is_some() {
                "forward"
            } else {
                "normalize"
            },
            error: error.clone(),
            // A refused reading is found by the packs that numbered it.
            revision: letter.revision,
            counted: note.counted,
            message: Arc::clone(&letter.message),
        });
        keep(result, id, error);
    }
}

/// It failed as a whole: no destination has counted anything of it.
fn of_message(letter: &StoredLetter) -> bool {
    letter.counted.as_ref().is_some_and(|counted| counted.is_empty())
        || matches!(
            letter.error.name.as_str(),
            "InvalidDataFormatException" | "MessageTooLargeException" | "MessageKilledTheProcess"
        )
}

/// Pack and type of the template that an error points at.
fn kind_of(packs: &PackSet, error: &ErrorRecord) -> Option<Kind> {
    let place = error.mapping.as_ref()?;
    let template = packs.pack(&place.pack)?.device.templates().get(place.template)?;
    Some((place.pack.clone(), template.type_name().to_owned()))
}

fn keep(result: &mut Redriven, id: u64, error: ErrorRecord) {
    result.kept.push(Kept { id, error });
}

/// Rows for these readings of the message, by today's packs.
fn send(outbox: &mut Outbox, case: &Case, destinations: &Destinations, readings: &[&Match]) {
    let stored = &case.entry.stored;
    let mut anew = Some(Anew::with(case.revision));
    for found in readings {
        let number = if case.revision == stored.revision {
            found.number
        } else {
            number_of_revision(found.number, case.revision)
        };
        let found = Match {
            number,
            ..(*found).clone()
        };
        add_match(
            destinations,
            outbox,
            stored,
            &found,
            &mut anew,
            &|_, _| false,
            (clock::monotonic_us(), clock::wall()),
        );
    }
    if let Some(anew) = anew {
        anew.into_outbox(outbox);
    }
}

type Reading<'a> = (&'a str, &'a str, Timestamp, Option<&'a str>, Option<&'a str>);

fn reading(found: &Match) -> Reading<'_> {
    let m = &*found.measurement;
    (
        m.type_name.as_str(),
        m.device_id.as_str(),
        m.occurrence_time,
        m.patient_id.as_deref(),
        m.correlation_id.as_deref(),
    )
}

/// Readings that today's packs make and those of then did not: of the pack and type that failed, or of any when those make
/// none (the type was renamed).
fn fresh<'a>(case: &'a Case, then: Option<&Normalized>, kind: Option<&Kind>) -> Vec<&'a Match> {
    let mut known: Vec<Reading<'_>> = then
        .map(|then| then.matches.iter().map(reading).collect())
        .unwrap_or_default();
    let mut fresh: Vec<&Match> = Vec::new();
    for found in &case.now.matches {
        match known.iter().position(|before| *before == reading(found)) {
            Some(place) => drop(known.swap_remove(place)),
            None => fresh.push(found),
        }
    }
    let of_kind: Vec<&Match> = fresh
        .iter()
        .copied()
        .filter(|found| {
            kind.is_some_and(|(pack, name)| {
                *pack == found.pack.text.name && *name == found.measurement.type_name
            })
        })
        .collect();
    if of_kind.is_empty() { fresh } else { of_kind }
}
