//! Dead letters as the outbox knows them: which there are, by cause, without their messages. The store has the rest.
//!
//! A flood with one cause (a poisoned device, a broken template) must not take the room of good readings, nor hide what
//! failed before it: of one cause the first [`FIRST`] and the newest [`NEWEST`] are kept, and all of them together hold at
//! most a share of the store. What is trimmed is lost: counters and ledger say so in the same transaction.

use super::Outbox;
use crate::message::{Position, SourceId};
use crate::store::Selection;
use crate::store::progress::{DeadLetter, Loss};
use crate::store::read::DeadLetterSummary;
use crate::telemetry::errors::ErrorRecord;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of one cause so many of the first are kept, and so many of the newest.
pub(crate) const FIRST: usize = 100;
pub(crate) const NEWEST: usize = 20;
/// Bytes that all dead letters may hold when nothing else was said.
const DEFAULT_LIMIT: u64 = 16 << 20;
/// Bytes of a row beside its message.
const ROW_BYTES: u64 = 500;

/// What is known of a dead letter without its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterNote {
    /// Its number; never reused while it is there.
    pub id: u64,
    /// Position of its message.
    pub position: Position,
    /// Source of its message.
    pub source: SourceId,
    /// Destinations that count it as dead.
    pub counted: Arc<[u32]>,
    /// Bytes that it holds, roughly.
    pub bytes: u64,
}

/// Dead letters of one cause, oldest first.
#[derive(Debug)]
struct Cause {
    error: ErrorRecord,
    letters: Vec<LetterNote>,
}

/// All dead letters by cause.
#[derive(Debug)]
pub(super) struct Letters {
    causes: BTreeMap<String, Cause>,
    next: u64,
    bytes: u64,
    limit: u64,
}

impl Default for Letters {
    fn default() -> Self {
        Letters {
            causes: BTreeMap::new(),
            next: 1,
            bytes: 0,
            limit: DEFAULT_LIMIT,
        }
    }
}

impl Letters {
    fn insert(&mut self, cause: String, error: &ErrorRecord, note: LetterNote) {
        self.next = self.next.max(note.id + 1);
        self.bytes += note.bytes;
        let known = self.causes.entry(cause).or_insert_with(|| Cause {
            error: error.clone(),
            letters: Vec::new(),
        });
        known.letters.push(note);
    }

    fn remove(&mut self, id: u64) -> Option<LetterNote> {
        let (cause, place) = self.causes.iter().find_map(|(cause, known)| {
            let place = known.letters.iter().position(|note| note.id == id)?;
            Some((cause.clone(), place))
        })?;
        let known = self.causes.get_mut(&cause)?;
        let note = known.letters.remove(place);
        if known.letters.is_empty() {
            self.causes.remove(&cause);
        }
        self.bytes = self.bytes.saturating_sub(note.bytes);
        Some(note)
    }

    /// The letter that leaves next, if there are too many: the first one behind the first of its cause; where their bytes are
    /// too many, of the cause that holds most.
    fn superfluous(&self, cause: &str) -> Option<(String, u64)> {
        if let Some(known) = self.causes.get(cause)
            && known.letters.len() > FIRST + NEWEST
        {
            return known.letters.get(FIRST).map(|note| (cause.to_owned(), note.id));
        }
        if self.bytes <= self.limit {
            return None;
        }
        let weight = |known: &Cause| known.letters.iter().map(|note| note.bytes).sum::<u64>();
        let (largest, known) = self.causes.iter().max_by_key(|(_, known)| weight(known))?;
        // The newest stays, and what was there first as long as there is anything between.
        let place = known.letters.len().saturating_sub(2).min(FIRST);
        known.letters.get(place).map(|note| (largest.clone(), note.id))
    }
}

impl Outbox {
    /// Takes in the dead letters that the store has.
    pub(super) fn restore_letters(&mut self, letters: &[(String, ErrorRecord, LetterNote)]) {
        for (cause, error, note) in letters {
            self.letters.insert(cause.clone(), error, note.clone());
        }
    }

    /// Bytes that dead letters may hold altogether.
    pub fn limit_letters(&mut self, bytes: u64) {
        self.letters.limit = bytes;
    }

    /// A failed match or message. Its destinations have counted it as dead; what it pushes out is counted as lost.
    pub fn dead(&mut self, letter: DeadLetter) {
        self.pending.any = true;
        let cause = letter.cause();
        let note = LetterNote {
            id: self.letters.next,
            position: letter.message.position,
            source: letter.message.message.source,
            counted: Arc::clone(&letter.counted),
            bytes: letter.message.message.weight() as u64 + ROW_BYTES,
        };
        self.pending.dead_letters.push((note.id, letter.clone()));
        self.letters.insert(cause.clone(), &letter.error, note);
        while let Some((of, id)) = self.letters.superfluous(&cause) {
            let reason = format!(
                "dead letters of one cause beyond the first {FIRST} and the newest {NEWEST}, or beyond their share: {of}"
            );
            if !self.lose_letter(id, &reason) {
                break;
            }
        }
    }

    /// Number of the next dead letter.
    pub fn next_letter(&self) -> u64 {
        self.letters.next
    }

    /// Whether there are dead letters that the store does not have yet.
    pub fn has_unwritten_letters(&self) -> bool {
        !self.pending.dead_letters.is_empty()
            || self
                .in_flight
                .as_ref()
                .is_some_and(|f| !f.dead_letters.is_empty())
    }

    /// Whether there is a dead letter with this number.
    pub fn has_letter(&self, id: u64) -> bool {
        let mut notes = self.letters.causes.values().flat_map(|known| &known.letters);
        notes.any(|note| note.id == id)
    }

    /// Takes a dead letter away without counting it anywhere: who calls says what becomes of it.
    pub fn take_letter(&mut self, id: u64) -> Option<LetterNote> {
        let note = self.letters.remove(id)?;
        self.pending.any = true;
        let before = self.pending.dead_letters.len();
        self.pending.dead_letters.retain(|(known, _)| *known != id);
        if self.pending.dead_letters.len() == before {
            self.pending.letters_gone.insert(id);
        }
        Some(note)
    }

    /// Gives a dead letter up: lost to every destination that counted it, with a ledger line. Says whether there was one.
    pub fn lose_letter(&mut self, id: u64, reason: &str) -> bool {
        let Some(note) = self.take_letter(id) else {
            return false;
        };
        for destination in note.counted.iter() {
            let counters = self.destination_mut(*destination);
            counters.dead = counters.dead.saturating_sub(1);
            counters.lost += 1;
        }
        let of_all = [None];
        let each: Vec<Option<u32>> = note.counted.iter().map(|id| Some(*id)).collect();
        for destination in if each.is_empty() { &of_all[..] } else { &each } {
            self.lose_one(*destination, &note, reason);
        }
        true
    }

    /// A ledger line of one reading; a flood makes the line before it longer.
    fn lose_one(&mut self, destination: Option<u32>, note: &LetterNote, reason: &str) {
        let alike = self.pending.losses.iter_mut().rev().take(16).find(|loss| {
            (loss.destination, loss.source) == (destination, Some(note.source))
                && loss.reason == reason
                && loss.range.is_some_and(|(_, last)| last < note.position)
        });
        if let Some(loss) = alike {
            loss.count += 1;
            loss.range = loss.range.map(|(first, _)| (first, note.position));
            return;
        }
        self.lose(Loss {
            destination,
            source: Some(note.source),
            range: Some((note.position, note.position)),
            count: 1,
            reason: reason.to_owned(),
            reading: None,
        });
    }

    /// The dead letters that are meant, with their causes, in order of position; with `siblings` also those of the same
    /// message and cause, which can only be told apart together.
    pub fn select_letters(&self, selection: &Selection, siblings: bool) -> Vec<(String, LetterNote)> {
        let mut selected = Vec::new();
        for (cause, known) in &self.letters.causes {
            // A refused reading has a number of its own.
            let siblings = siblings && cause.starts_with("normalize|");
            let meant: std::collections::BTreeSet<Position> = known
                .letters
                .iter()
                .filter(|note| selection.includes(note.id, cause))
                .map(|note| note.position)
                .collect();
            let wanted = known.letters.iter().filter(|note| {
                selection.includes(note.id, cause) || siblings && meant.contains(&note.position)
            });
            selected.extend(wanted.map(|note| (cause.clone(), note.clone())));
        }
        selected.sort_by_key(|(_, note)| (note.position, note.id));
        selected
    }

    /// Dead letters grouped by cause.
    pub fn letters_by_cause(&self) -> Vec<DeadLetterSummary> {
        let summary = |(cause, known): (&String, &Cause)| {
            let positions = known.letters.iter().map(|note| note.position);
            DeadLetterSummary {
                cause: cause.clone(),
                count: known.letters.len() as u64,
                error: known.error.clone(),
                first: positions.clone().min().unwrap_or(0),
                last: positions.max().unwrap_or(0),
            }
        };
        self.letters.causes.iter().map(summary).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Payload, PayloadKind, RevisionId, Stamp, StoredMessage};
    use iomt_mapping::Timestamp;

    fn letter(position: Position, name: &str, length: usize) -> DeadLetter {
        DeadLetter {
            destination: None,
            match_number: None,
            stage: "normalize",
            error: ErrorRecord::new(name, "text"),
            revision: RevisionId(1),
            counted: Arc::from([1, 2]),
            message: Arc::new(StoredMessage {
                position,
                revision: RevisionId(1),
                message: Message {
                    source: SourceId(1),
                    stamp: Stamp {
                        boot: 1,
                        monotonic_us: 0,
                        wall: Timestamp::from_ticks(17_900_000_000_000_000).unwrap(),
                        trusted: true,
                    },
                    payload: Payload(vec![b'x'; length].into()),
                    kind: PayloadKind::Whole,
                    topic: None,
                    properties: Vec::new(),
                    device_id: None,
                    possible_repeat: false,
                    record: None,
                    ack: None,
                },
            }),
        }
    }

    fn fail(outbox: &mut Outbox, position: Position, name: &str, length: usize) {
        for destination in [1, 2] {
            let counters = outbox.destination_mut(destination);
            counters.matches += 1;
            counters.dead += 1;
        }
        outbox.dead(letter(position, name, length));
    }

    #[test]
    fn of_a_flood_the_first_and_the_newest_stay_and_the_rest_is_lost_in_counters_and_ledger() {
        let mut outbox = Outbox::default();
        for position in 1..=1000 {
            fail(&mut outbox, position, "IncompatibleDataException", 100);
            if position == 300 {
                // What the store has by then has to be deleted there.
                outbox.take_changes();
                outbox.written();
            }
        }
        fail(&mut outbox, 1001, "TemplateNotFoundException", 100);
        let kept: Vec<u64> = outbox.letters.causes["normalize|IncompatibleDataException|"]
            .letters
            .iter()
            .map(|note| note.position)
            .collect();
        let expected: Vec<u64> = (1..=100).chain(981..=1000).collect();
        assert_eq!(kept, expected);
        let changes = outbox.take_changes();
        assert_eq!(changes.letters_gone.len(), 20, "281 to 300 were written before");
        assert_eq!(changes.dead_letters.len(), 21, "the others never were");
        for destination in [1, 2] {
            let counters = &changes.progress.destinations[&destination];
            assert_eq!((counters.matches, counters.dead, counters.lost), (1001, 121, 880));
            let lines = changes
                .losses
                .iter()
                .filter(|l| l.destination == Some(destination));
            assert_eq!(
                lines.map(|l| l.count).sum::<u64>(),
                700,
                "180 were in the first commit"
            );
        }
        assert!(changes.losses.len() <= 4, "a flood is few lines");
    }

    #[test]
    fn large_dead_letters_have_a_share_and_the_rare_cause_outlives_the_flood() {
        let mut outbox = Outbox::default();
        outbox.limit_letters(1 << 20);
        fail(&mut outbox, 1, "TemplateNotFoundException", 50_000);
        for position in 2..100 {
            fail(&mut outbox, position, "IncompatibleDataException", 100_000);
        }
        assert!(outbox.letters.bytes <= 1 << 20);
        let by_cause = outbox.letters_by_cause();
        assert_eq!(by_cause.len(), 2);
        let counters = &outbox.progress().destinations[&1];
        let kept: u64 = by_cause.iter().map(|c| c.count).sum();
        assert_eq!((counters.dead, counters.dead + counters.lost), (kept, 99));
    }

    #[test]
    fn a_letter_that_was_taken_before_its_commit_failed_is_deleted_by_the_next_one() {
        let mut outbox = Outbox::default();
        fail(&mut outbox, 1, "IncompatibleDataException", 10);
        let id = outbox.take_changes().dead_letters[0].0;
        assert!(outbox.lose_letter(id, "dropped"));
        outbox.not_written();
        let changes = outbox.take_changes();
        assert_eq!(
            changes.dead_letters.len() + changes.letters_gone.len(),
            2,
            "written, then deleted"
        );
        assert!(!outbox.lose_letter(id, "dropped"), "once");
    }
}
