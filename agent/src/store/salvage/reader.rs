//! Going through a set-aside file: which batches there are, which are needed, and what of them can be believed.
//!
//! A pass looks at every page and remembers where batches begin, the lowest [`INDEX`] positions behind the mark; then
//! they are read in order. So the memory is bounded, and what comes out is in the order in which it came in. Pages that
//! were freed still show batches that were dropped: nobody needs those, as far as cursors and rows are known.

use super::super::log::{Log, PAGE};
use super::super::set_aside::beside;
use super::super::{StoreError, codec};
use super::adopt::{Names, now};
use super::feed::Portion;
use super::former::{Former, is_killer};
use super::needed::Needs;
use super::pages::{Pages, Place};
use super::record::{integer, kinds};
use super::{INDEX, Run, Stage, State};
use crate::message::{Position, RevisionId, SourceId, StoredMessage};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pages that one step looks at: some 20 ms of a slow card.
const STEP_PAGES: u32 = 1024;
/// Messages and payload bytes of a portion.
const PORTION_MESSAGES: usize = 1000;
const PORTION_BYTES: usize = 256 << 10;
/// Runs of lost positions that the report names.
const NAMED_RUNS: usize = 64;
/// Columns of a dead letter, in the first version and now, and which one is the message.
const LETTER_COLUMNS: [usize; 2] = [11, 12];
const LETTER_MESSAGE: usize = 10;

/// What a step of a salvage found.
#[derive(Debug)]
pub enum Step {
    /// Nothing yet: there is more to be looked at.
    Looking,
    /// Names were found: [`crate::store::Store::adopt_salvage`] gives them their numbers.
    Names,
    /// To be stored, before the next step.
    Portion(Box<Portion>),
    /// Everything was gone through.
    Nothing,
}

/// A salvage that is under way.
pub struct Salvage {
    id: i64,
    file: PathBuf,
    state: State,
    former: Former,
    names: Option<Names>,
    pages: Pages,
    needs: Needs,
    index: BTreeSet<Candidate>,
    /// The page that the pass has reached, from 1; none between passes.
    page: Option<u32>,
    /// The pass has seen everything up to here.
    complete_to: Position,
    /// Bad pages are counted once.
    counted: bool,
    letters: Vec<(Position, Place)>,
    letters_found: bool,
}

/// A row that looks like a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    first: Position,
    count: u64,
    place: Place,
}

impl std::fmt::Debug for Salvage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Salvage")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Salvage {
    pub(super) fn new(
        id: i64,
        file: &Path,
        state: State,
        former: Former,
        names: Option<Names>,
    ) -> Result<Salvage, StoreError> {
        let log = Log::read(&beside(file, "-wal"))?;
        let pages = Pages::open(file, &log, false)?;
        // What was copied is not needed any more.
        let mut former = former;
        former.copied.clear();
        former
            .revisions
            .iter_mut()
            .for_each(|(.., bundle)| *bundle = Vec::new());
        let mut salvage = Salvage {
            id,
            file: file.to_owned(),
            needs: Needs::default(),
            state,
            former,
            names,
            pages,
            index: BTreeSet::new(),
            page: None,
            complete_to: 0,
            counted: false,
            letters: Vec::new(),
            letters_found: false,
        };
        if salvage.state.mark == 0 && salvage.state.stage == Stage::Journal {
            salvage.state.unreadable_bytes = log.bad_frames() * PAGE as u64;
        } else {
            salvage.counted = true;
        }
        salvage.needs = Needs::of(salvage.former.known.as_ref(), &HashSet::new());
        Ok(salvage)
    }

    /// Names of the configured destinations, and whether each takes raw messages: what such a one has not got is needed too,
    /// and readings for one that is not there any more stay behind.
    pub fn follow(&mut self, configured: &HashMap<&str, bool>) {
        let then = self.former.destinations.iter();
        let then = then.filter(|(_, name)| configured.get(name.as_str()) == Some(&true));
        let followers = then.map(|(id, _)| *id).collect();
        self.needs = Needs::of(self.former.known.as_ref(), &followers);
        let is_there = |id: &u32| {
            let name = self.former.destinations.get(id);
            name.is_some_and(|name| configured.contains_key(name.as_str()))
        };
        let rows = self.former.known.iter().flat_map(|known| &known.rows);
        let behind = rows.filter(|row| !is_there(&row.destination));
        self.state.left_behind = behind.map(|row| row.count).sum();
    }

    /// Its number in the store.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// How far it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Notes that everything that it brought is normalized.
    pub fn settle(&mut self) {
        self.state.settled = true;
    }

    pub(super) fn former(&self) -> &Former {
        &self.former
    }

    pub(super) fn names(&self) -> Option<&Names> {
        self.names.as_ref()
    }

    pub(super) fn take_names(&mut self, names: Names) {
        self.state.store = self.former.store_id.clone().unwrap_or_default();
        self.names = Some(names);
    }

    /// Bytes of the set-aside files.
    pub fn bytes(&self) -> u64 {
        self.former.bytes
    }

    /// Writes the report beside the file.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_report(&self) -> std::io::Result<()> {
        std::fs::write(beside(&self.file, ".report"), self.state.report())
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        if self.names.is_none() {
            self.former.find_identity(&self.pages);
            let unknown = || format!("unknown-{:08x}", crc32fast::hash(self.state.file.as_bytes()));
            let id = self.former.store_id.clone().unwrap_or_else(unknown);
            self.former.store_id = Some(id);
            return Step::Names;
        }
        match self.state.stage {
            Stage::Journal => self.journal(),
            Stage::Letters => self.dead_letters(),
            Stage::Done => Step::Nothing,
        }
    }

    /// Seals need the id that was found.
    ///
    /// # Errors
    /// [`StoreError::Key`].
    pub fn find_key(&mut self, encryption: &crate::config::Encryption) -> Result<(), StoreError> {
        self.former.find_key(&self.file, encryption)
    }

    fn journal(&mut self) -> Step {
        let Some(page) = self.page else {
            if self.index.is_empty() {
                if self.complete_to == Position::MAX {
                    return self.end_of_journal();
                }
                self.page = Some(1);
                self.complete_to = Position::MAX;
                return Step::Looking;
            }
            return self.portion();
        };
        self.look_from(page);
        Step::Looking
    }

    fn look_from(&mut self, page: u32) {
        let end = page.saturating_add(STEP_PAGES).min(self.pages.count() + 1);
        for page in page..end {
            self.look_at(page);
        }
        self.page = (end <= self.pages.count()).then_some(end);
        if self.page.is_none() {
            (self.counted, self.letters_found) = (true, true);
            self.letters.sort_unstable();
            if self.former.known.is_none() {
                self.find_killers();
            }
        }
    }

    /// Messages that ended the process are not read again, also where their letters are known by their look only.
    fn find_killers(&mut self) {
        for (_, place) in &self.letters {
            if let Some((_, row)) = self.pages.row_at(*place)
                && is_killer(&row)
                && let Some(position) = row.get(2).and_then(|at| at.integer())
            {
                self.needs.killers.insert(position as u64);
            }
        }
    }

    /// Takes up the rows on a page that look like batches, and those that look like dead letters.
    fn look_at(&mut self, page: u32) {
        let (mark, needs, complete_to) = (self.state.mark, &self.needs, &mut self.complete_to);
        let (index, letters) = (&mut self.index, &mut self.letters);
        let by_shape = self.former.known.is_none() && !self.letters_found;
        let readable = self.pages.rows_on(page, |row, local, _, place| {
            let Some((kinds, body)) = kinds(local) else { return };
            if by_shape && LETTER_COLUMNS.contains(&kinds.len()) {
                let is_blob = kinds
                    .get(LETTER_MESSAGE)
                    .is_some_and(|kind| *kind >= 12 && kind % 2 == 0);
                if is_blob {
                    letters.push((0, place));
                }
                return;
            }
            let Some((first, count)) = batch_of(row, &kinds, body) else {
                return;
            };
            let last = first.saturating_add(count - 1);
            if last <= mark || first > *complete_to || !needs.touch(first, last) {
                return;
            }
            index.insert(Candidate { first, count, place });
            if index.len() > INDEX
                && let Some(gone) = index.pop_last()
            {
                // All that begin where it does belong to the next pass.
                *complete_to = gone.first - 1;
                while index.last().is_some_and(|last| last.first > *complete_to) {
                    index.pop_last();
                }
            }
        });
        if !readable && !self.counted {
            self.state.unreadable_bytes += PAGE as u64;
        }
    }

    /// Messages of the next batches.
    fn portion(&mut self) -> Step {
        let mut portion = Portion::new(self.id);
        while portion.batch.len() < PORTION_MESSAGES && portion.bytes() < PORTION_BYTES {
            let Some(first) = self.index.first().map(|candidate| candidate.first) else {
                break;
            };
            self.take_batch(first, &mut portion);
        }
        self.finish(portion)
    }

    fn finish(&mut self, mut portion: Portion) -> Step {
        self.state.messages += portion.batch.len() as u64;
        portion.state = self.state.clone();
        Step::Portion(Box::new(portion))
    }

    /// Takes the batch that begins at `first` from the index into the portion. Of several with the same beginning (an
    /// earlier form of it on a page that was freed) the one with the most messages.
    fn take_batch(&mut self, first: Position, portion: &mut Portion) {
        let mut best: Option<(u64, Vec<StoredMessage>)> = None;
        let mut bad = None;
        while let Some(candidate) = self.index.first().copied().filter(|c| c.first == first) {
            self.index.pop_first();
            match self.decode(candidate) {
                Ok(messages) if best.as_ref().is_none_or(|(_, best)| messages.len() > best.len()) => {
                    best = Some((candidate.count, messages));
                }
                Ok(_) => {}
                Err(bytes) => bad = Some((candidate.count, bytes)),
            }
        }
        let mark = self.state.mark;
        match best {
            Some((count, messages)) => {
                let last = first + count - 1;
                if last <= mark {
                    return;
                }
                self.lose(mark + 1, first.saturating_sub(1));
                for stored in messages.into_iter().filter(|stored| stored.position > mark) {
                    if !self.needs.killers.contains(&stored.position) {
                        self.take(stored, portion);
                    }
                }
                self.state.mark = last;
            }
            // What it held is lost with it, unless another batch has it.
            None => {
                if let Some((count, bytes)) = bad {
                    self.state.unreadable_bytes += bytes;
                    self.needs.end = self.needs.end.max(first.saturating_add(count));
                }
            }
        }
    }

    fn decode(&self, candidate: Candidate) -> Result<Vec<StoredMessage>, u64> {
        let Some((_, row)) = self.pages.row_at(candidate.place) else {
            return Err(PAGE as u64);
        };
        let blob = row.get(2).and_then(|value| value.blob()).unwrap_or_default();
        codec::decode(&self.former.vault, candidate.first, candidate.count, blob)
            .map_err(|_| blob.len() as u64)
    }

    /// Positions that no batch has: lost as far as they were needed.
    fn lose(&mut self, first: Position, last: Position) {
        let count = self.needs.count(first, last);
        // What was before the first thing that is found of an unknown store was dropped long ago.
        if count == 0 || (self.needs.everything && self.state.mark == 0) {
            return;
        }
        self.state.lost += count;
        let runs = &mut self.state.lost_runs;
        if let Some((_, end)) = runs.last_mut().filter(|(_, end)| end + 1 == first) {
            *end = last;
        } else if runs.len() < NAMED_RUNS {
            runs.push((first, last));
        }
    }

    /// Takes a message into the portion with the numbers of now.
    fn take(&self, stored: StoredMessage, portion: &mut Portion) {
        let Some(names) = &self.names else { return };
        let StoredMessage {
            position,
            revision,
            mut message,
        } = stored;
        let source = names.sources.get(&message.source.0).copied();
        message.source = source.unwrap_or(SourceId(names.unknown_source));
        let boot = names.boots.get(&message.stamp.boot).copied();
        message.stamp.boot = boot.unwrap_or(names.unknown_boot);
        // It was acknowledged, or will come again under another packet id.
        message.ack = None;
        let revision = match revision {
            RevisionId(0) => Some(RevisionId(0)),
            then => names.revisions.get(&then.0).copied(),
        };
        let known = self.former.recovered.identity(position);
        let (store, known_as) = match known {
            Some(known) => (known.store, known.known_as),
            None => (Arc::from(self.state.store.as_str()), position),
        };
        let run = Run {
            first: portion.batch.len() as u64,
            count: 1,
            former: self.id,
            position,
            store,
            known_as,
        };
        Run::push(&mut portion.runs, run);
        portion.take(message, revision);
    }

    fn end_of_journal(&mut self) -> Step {
        let end = self.needs.end.saturating_sub(1);
        self.lose(self.state.mark + 1, end);
        self.state.mark = self.state.mark.max(end);
        self.state.stage = Stage::Letters;
        let portion = Portion::new(self.id);
        self.finish(portion)
    }

    /// Messages of dead letters that the journal did not bring.
    fn dead_letters(&mut self) -> Step {
        if let Some(known) = &self.former.known
            && self.letters.is_empty()
        {
            let letters = known.letters.iter().filter(|letter| !letter.is_killer);
            self.letters = letters.map(|letter| (letter.position, letter.place)).collect();
            self.letters.sort_unstable();
        } else if self.former.known.is_none() && !self.letters_found {
            // Taken up where a process before this one stopped.
            self.look_from(self.page.unwrap_or(1));
            return Step::Looking;
        }
        let mut portion = Portion::new(self.id);
        while portion.batch.len() < PORTION_MESSAGES && portion.bytes() < PORTION_BYTES {
            let at = usize::try_from(self.state.letters_seen).unwrap_or(usize::MAX);
            let Some((_, place)) = self.letters.get(at).copied() else {
                self.state.stage = Stage::Done;
                self.state.finished = Some(now());
                portion.ends = true;
                break;
            };
            self.state.letters_seen += 1;
            match self.letter(place) {
                Some(stored) if self.needs.killers.contains(&stored.position) => {}
                // Whether the journal brought it, or another letter of the same message, the store knows.
                Some(stored) => {
                    portion.letters = true;
                    self.take(stored, &mut portion);
                }
                None => self.state.unreadable_bytes += PAGE as u64,
            }
        }
        portion.state = self.state.clone();
        Step::Portion(Box::new(portion))
    }

    fn letter(&self, place: Place) -> Option<StoredMessage> {
        // Known letters were found with the log as SQLite takes it; the pages are the same but for a damaged log.
        let (_, row) = self.pages.row_at(place)?;
        let position = row.get(2)?.integer().map(|position| position as u64)?;
        let blob = row.get(LETTER_MESSAGE)?.blob()?;
        let messages = codec::decode(&self.former.vault, position, 1, blob).ok()?;
        messages.into_iter().next()
    }

    /// Takes what a commit made of a portion.
    pub fn committed(&mut self, state: State) {
        self.state = state;
    }
}

/// Position and number of messages of a row that looks like a batch: no first column (it is the row's number), a count, bytes.
fn batch_of(row: i64, kinds: &[u64], body: &[u8]) -> Option<(Position, u64)> {
    let [0, count, bytes] = *kinds else { return None };
    if bytes < 12 || bytes % 2 == 1 {
        return None;
    }
    let count = match count {
        9 => 1,
        1..=6 => {
            let length = match count {
                5 => 6,
                6 => 8,
                short => usize::try_from(short).ok()?,
            };
            integer(body.get(..length)?)
        }
        _ => return None,
    };
    let (first, count) = (u64::try_from(row).ok()?, u64::try_from(count).ok()?);
    (first > 0 && count > 0 && first.checked_add(count).is_some()).then_some((first, count))
}
