//! What the loops share: the store, the outbox in memory, the messages committed last, the packs. One thread owns it; the
//! loops are tasks of that thread, so a borrow never lives across an await.

mod recent;

use crate::associations::Book;
use crate::bounds::Bounds;
use crate::clock;
use crate::config::ClockTrust;
use crate::corrections::Corrections;
use crate::former::FormerStores;
use crate::ingest::payload::memory::Learnt;
use crate::message::{Position, RevisionId, SourceId, StoredMessage};
use crate::normalize::{Normalized, UNDATED};
use crate::packs::PackSet;
use crate::store::outbox::Outbox;
use crate::store::{Dating, Isolation, NewRevision, StoreError, StoreHandle, Trouble};
use crate::timekeeping::ClockWatch;
use crate::timekeeping::device::{self, Clocks};
use crate::wear::Governor;
use iomt_mapping::pack_options::Priority;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

pub use recent::{Entry, Recent, weight_of_measurement};

/// Compressed bytes that one read of the journal decodes.
pub const READ_BYTES: usize = 16 << 10;

/// The sets of packs by number, and which one each source uses now.
#[derive(Debug, Default)]
pub struct PackBook {
    sets: HashMap<RevisionId, Arc<PackSet>>,
    by_hash: HashMap<String, RevisionId>,
    current: HashMap<SourceId, RevisionId>,
    unsaved: Vec<NewRevision>,
    next: u32,
}

impl PackBook {
    /// The sets that the store knows: numbers and hashes; their texts are loaded when a message names them.
    pub fn restore(known: &[(RevisionId, String)]) -> PackBook {
        let next = known.iter().map(|(id, _)| id.0 + 1).max().unwrap_or(1);
        let by_hash = known.iter().map(|(id, hash)| (hash.clone(), *id)).collect();
        PackBook {
            by_hash,
            next,
            ..PackBook::default()
        }
    }

    /// From now on messages of `source` are normalized with `packs`. Tells whether that changed.
    pub fn set_current(&mut self, source: SourceId, packs: Arc<PackSet>) -> bool {
        let id = if packs.packs().is_empty() {
            RevisionId(0)
        } else {
            self.number(&packs)
        };
        self.sets.insert(id, packs);
        self.current.insert(source, id) != Some(id)
    }

    fn number(&mut self, packs: &PackSet) -> RevisionId {
        let hash = packs.revision();
        if let Some(id) = self.by_hash.get(&hash) {
            return *id;
        }
        let id = RevisionId(self.next);
        self.next += 1;
        self.by_hash.insert(hash.clone(), id);
        self.unsaved.push(NewRevision {
            id,
            hash,
            bundle: packs.bundle(),
        });
        id
    }

    /// The packs that messages of `source` name now; 0 while it has none.
    pub fn current(&self, source: SourceId) -> RevisionId {
        self.current.get(&source).copied().unwrap_or_default()
    }

    /// Lane of a measurement type of the pack with this name, by the pack's third file; periodic where nothing is said.
    pub fn lane(&self, pack: &str, type_name: &str) -> Priority {
        self.current
            .values()
            .filter_map(|id| self.sets.get(id))
            .flat_map(|set| set.packs())
            .find(|known| known.text.name == pack)
            .map_or_else(Priority::default, |known| known.options.priority(type_name))
    }

    /// Sets that the store does not have yet.
    pub fn unsaved(&self) -> Vec<NewRevision> {
        self.unsaved.clone()
    }

    /// These sets are stored now.
    pub fn saved(&mut self, sets: &[RevisionId]) {
        self.unsaved.retain(|set| !sets.contains(&set.id));
    }
}

/// The disk of the store as the loops meet it.
#[derive(Debug)]
pub struct DiskState {
    folder: PathBuf,
    trouble: RefCell<Option<DiskTrouble>>,
    /// Commits in a row that failed for damage of the file.
    damaged: Cell<u32>,
}

/// Why the store cannot be written.
#[derive(Clone, Debug)]
pub struct DiskTrouble {
    /// What is the matter, when the disk is the reason.
    pub kind: Option<Trouble>,
    /// What is the matter and what helps.
    pub text: String,
    /// Monotonic microseconds.
    pub since_us: u64,
    said_us: u64,
}

/// A trouble that lasts is said again after this long: microseconds.
const SAID_AGAIN_US: u64 = 600_000_000;

/// Commits in a row that may fail for damage: SQLite tells a read that the device refused once as damage too.
const DAMAGED_COMMITS: u32 = 4;

impl DiskState {
    /// The disk below `folder`.
    pub fn new(folder: PathBuf) -> DiskState {
        DiskState {
            folder,
            trouble: RefCell::default(),
            damaged: Cell::default(),
        }
    }

    /// Why the last commit failed; none when it did not.
    pub fn trouble(&self) -> Option<DiskTrouble> {
        self.trouble.borrow().clone()
    }

    /// A commit failed: `full` when the store itself has no room left. Said once, and again when it lasts.
    pub fn failed(&self, error: &StoreError, full: bool) -> Option<Trouble> {
        let kind = match Trouble::of(error, &self.folder) {
            Some(Trouble::Full) if full => Some(Trouble::Limit),
            other => other,
        };
        let text = match (kind, error) {
            (Some(_), StoreError::Unavailable { advice, .. }) => advice.clone(),
            (Some(kind), _) => format!("{} ({error})", kind.advice(&self.folder)),
            (None, _) => error.to_string(),
        };
        let now_us = clock::monotonic_us();
        let mut trouble = self.trouble.borrow_mut();
        let known = trouble.as_ref().filter(|known| known.kind == kind);
        let is_news = known.is_none_or(|known| now_us.saturating_sub(known.said_us) >= SAID_AGAIN_US);
        if is_news {
            tracing::error!(
                "{text}; nothing is acknowledged until the store can be written, the senders keep their messages"
            );
        }
        *trouble = Some(DiskTrouble {
            kind,
            text,
            since_us: trouble.as_ref().map_or(now_us, |known| known.since_us),
            said_us: match known_said(trouble.as_ref(), is_news) {
                Some(said) => said,
                None => now_us,
            },
        });
        kind
    }

    /// Counts commits in a row that failed for damage of the file; tells whether no further try can help.
    pub fn is_beyond_repair(&self, error: &StoreError) -> bool {
        let count = if error.is_damage() {
            self.damaged.get() + 1
        } else {
            0
        };
        self.damaged.set(count);
        count >= DAMAGED_COMMITS
    }

    /// A commit succeeded.
    pub fn works(&self) {
        self.damaged.set(0);
        if let Some(trouble) = self.trouble.take() {
            let seconds = clock::monotonic_us().saturating_sub(trouble.since_us) / 1_000_000;
            tracing::info!("the store can be written again, after {seconds} s");
        }
    }
}

fn known_said(known: Option<&DiskTrouble>, is_news: bool) -> Option<u64> {
    known.filter(|_| !is_news).map(|known| known.said_us)
}

/// Everything that the loops share.
pub struct Pipeline {
    /// The store.
    pub store: StoreHandle,
    /// The outbox of all destinations.
    pub outbox: RefCell<Outbox>,
    /// The messages committed last.
    pub recent: RefCell<Recent>,
    /// Packs.
    pub packs: RefCell<PackBook>,
    /// Who had which device, for all destinations.
    pub associations: Rc<RefCell<Book>>,
    /// What an association that came afterwards makes wrong.
    pub corrections: RefCell<Corrections>,
    /// What the wall clock does.
    pub clock: RefCell<ClockWatch>,
    /// What is measured of clocks of devices.
    pub device_clocks: RefCell<Clocks>,
    /// What dates messages of an untrusted clock.
    pub dating: RefCell<Vec<Dating>>,
    /// Position of the next message.
    pub head: Cell<Position>,
    /// Wakes the normalizing loop.
    pub committed: Notify,
    /// Wakes the forward loops: new rows, or a reason to try again.
    pub normalized: Notify,
    /// Number of this boot.
    pub boot: u32,
    /// When the wall clock is trusted.
    pub trust: ClockTrust,
    /// How the messages behind the cursor of this start are normalized.
    pub isolation: Isolation,
    /// What keeps the store within its size.
    pub bounds: Bounds,
    /// What sources have learnt and the store does not have yet.
    pub learnt: Learnt,
    /// What came from stores before this one.
    pub former: FormerStores,
    /// State of the disk.
    pub disk: DiskState,
    /// Holds the flash budget: how long a message may wait for its commit.
    pub wear: RefCell<Governor>,
    /// How far the full check of the store is, for `status`.
    pub check: RefCell<String>,
    /// Why the program has to end and start again.
    pub fatal: RefCell<Option<String>>,
    /// Wakes whoever ends it.
    pub ending: Notify,
    /// Beats of the loops, for the watchdog: name and monotonic microseconds.
    pub beats: RefCell<HashMap<String, u64>>,
}

impl Pipeline {
    /// Stores the sets of packs that the store does not have yet, before anything is stored that names them.
    ///
    /// # Errors
    /// [`StoreError`] of the commit.
    pub async fn save_packs(&self) -> Result<(), StoreError> {
        let revisions = self.packs.borrow().unsaved();
        if revisions.is_empty() {
            return Ok(());
        }
        let ids: Vec<RevisionId> = revisions.iter().map(|set| set.id).collect();
        let (now_us, wall) = (clock::monotonic_us(), clock::wall().ticks());
        self.store
            .call(move |store| store.append(&[], &revisions, None, now_us, wall))
            .await?;
        self.packs.borrow_mut().saved(&ids);
        Ok(())
    }

    /// Puts a committed batch where the other loops find it.
    pub fn publish(&self, batch: Vec<Rc<Entry>>) {
        if let Some(last) = batch.last() {
            self.head.set(last.stored.position + 1);
        }
        self.recent.borrow_mut().push(batch, clock::monotonic_us());
        self.committed.notify_waiters();
    }

    /// Messages from `from` on: from memory, else from the journal; empty at its end.
    ///
    /// # Errors
    /// [`StoreError`] of the read.
    pub async fn read(&self, from: Position) -> Result<Vec<Rc<Entry>>, StoreError> {
        if from >= self.head.get() {
            return Ok(Vec::new());
        }
        if let Some(batch) = self.recent.borrow().from(from) {
            return Ok(batch);
        }
        let batch = self
            .store
            .call(move |store| store.read_from(from, READ_BYTES))
            .await?;
        self.note_damaged(&batch.damaged);
        Ok(batch.messages.into_iter().map(Entry::new).collect())
    }

    /// Notes positions that cannot be read; the loops that need them step over them and account for them.
    pub fn note_damaged(&self, damaged: &[(Position, Position)]) {
        for (first, last) in damaged {
            if self.outbox.borrow_mut().note_damaged(*first, *last) {
                tracing::error!(
                    "messages {first} to {last} of the journal are damaged on the disk: those that were not sent yet are lost \
                     and in the ledger, the others go on; look at `dmesg`, the storage may be worn out"
                );
            }
        }
    }

    /// The set of packs with this number.
    ///
    /// # Errors
    /// [`StoreError`] of the read; a set that is not in the store is empty.
    pub async fn pack_set(&self, id: RevisionId) -> Result<Arc<PackSet>, StoreError> {
        if let Some(set) = self.packs.borrow().sets.get(&id) {
            return Ok(Arc::clone(set));
        }
        let bundle = if id == RevisionId(0) {
            None
        } else {
            self.store.call(move |store| store.revision_bundle(id)).await?
        };
        let set = bundle
            .and_then(|bytes| PackSet::from_bundle(&bytes))
            .unwrap_or_default();
        let set = Arc::new(set);
        self.packs.borrow_mut().sets.insert(id, Arc::clone(&set));
        Ok(set)
    }

    /// What a message became, normalized with `revision` or with the packs that it names.
    ///
    /// # Errors
    /// [`StoreError`] while its packs are read.
    pub async fn normalized(
        &self,
        entry: &Entry,
        revision: Option<RevisionId>,
    ) -> Result<Rc<Normalized>, StoreError> {
        self.normalized_for(entry, revision, true).await
    }

    /// The same; `others` tells whether somebody else may ask for it soon, so that it is worth to be kept.
    ///
    /// # Errors
    /// [`StoreError`] while its packs are read.
    pub async fn normalized_for(
        &self,
        entry: &Entry,
        revision: Option<RevisionId>,
        others: bool,
    ) -> Result<Rc<Normalized>, StoreError> {
        let position = entry.stored.position;
        if revision.is_none()
            && let Some(known) = self.recent.borrow().result(position)
        {
            return Ok(known);
        }
        // Whoever asks: a forward loop reads over it too, in the range of a row.
        if self.isolation.holds(&entry.stored) {
            return Ok(Rc::new(Normalized::of_killer()));
        }
        let packs = self.pack_set(revision.unwrap_or(entry.stored.revision)).await?;
        let result = Rc::new(crate::normalize::normalize(
            &entry.stored,
            &packs,
            &self.dating.borrow(),
            &self.device_clocks.borrow(),
        ));
        if others && revision.is_none() && !result.may_change() {
            // Somebody else may have been quicker: both results are equal.
            self.recent.borrow_mut().keep(position, &result);
        }
        Ok(result)
    }

    /// Takes what the servers showed of devices into the next commit: sightings, what they change about the past, and
    /// readings that waited for it.
    pub fn note_associations(&self) {
        let unwritten = self.associations.borrow_mut().take_unwritten();
        let mut outbox = self.outbox.borrow_mut();
        outbox.remember_sightings(unwritten.records);
        if !unwritten.corrections.is_empty() {
            let mut corrections = self.corrections.borrow_mut();
            for correction in corrections.number(unwritten.corrections, self.trusted_now()) {
                corrections.take(correction.clone());
                outbox.remember_correction(correction);
            }
        }
        let now_us = clock::monotonic_us();
        for device in &unwritten.moved {
            outbox.wake_device(device, now_us);
        }
        if !unwritten.moved.is_empty() {
            self.normalized.notify_waiters();
        }
    }

    /// The wall time in ticks of 100 ns, while it can be trusted.
    pub fn trusted_now(&self) -> Option<i64> {
        clock::is_trusted(self.trust).then(|| clock::wall().ticks())
    }

    /// The file is damaged where nothing can step over it: it is set aside by the next start, and this run ends for that.
    pub async fn condemn(&self, reason: &str) {
        let note = reason.to_owned();
        if let Err(error) = self.store.call(move |store| store.condemn(&note)).await {
            tracing::error!("the store is damaged, which cannot be noted: {error}");
        }
        *self.fatal.borrow_mut() = Some(format!(
            "the store is damaged ({reason}): the next start sets it aside and goes on with a new one"
        ));
        self.ending.notify_one();
    }

    /// Whether messages of this boot can be dated, however they are stamped.
    pub fn has_reference(&self) -> bool {
        let dating = self.dating.borrow();
        dating
            .iter()
            .any(|d| d.boot == self.boot && d.reference.is_some())
    }

    /// Dates messages of a boot by this moment, which the store has: readings that waited for it are tried.
    pub fn take_reference(&self, boot: u32, reference: (u64, i64)) {
        for dating in self.dating.borrow_mut().iter_mut().filter(|d| d.boot == boot) {
            dating.reference = Some(reference);
        }
        self.wake_undated();
    }

    /// Takes what a message showed of the clock of its device; tells whether readings get another time by that. It is on the
    /// disk before anything is dated by it.
    ///
    /// # Errors
    /// [`StoreError::Stopped`]; a disk that refuses is waited for.
    pub async fn observe_clocks(
        &self,
        stored: &StoredMessage,
        normalized: &Normalized,
    ) -> Result<bool, StoreError> {
        // The newest reading of each device, as its clock showed it.
        let mut newest: Vec<(&str, i64)> = Vec::new();
        for found in &normalized.matches {
            let measured = found.clock.as_ref().map_or(0, |clock| clock.measured);
            let shown = found.measurement.occurrence_time.ticks() - measured;
            let device = found.measurement.device_id.as_str();
            match newest.iter_mut().find(|(known, _)| *known == device) {
                Some((_, latest)) => *latest = shown.max(*latest),
                None => newest.push((device, shown)),
            }
        }
        if newest.is_empty() {
            return Ok(false);
        }
        let packs = self.pack_set(stored.revision).await?;
        let mut changed = false;
        for (name, shown) in newest {
            let rule = packs.clocks().of(name);
            let change = self.device_clocks.borrow_mut().observe(rule, name, stored, shown);
            let Some(change) = change else { continue };
            loop {
                let (device, state) = (Arc::clone(&change.device), change.state.clone());
                let kept = self
                    .store
                    .call(move |store| store.keep_device_clock(&device, &state))
                    .await;
                match kept {
                    Ok(()) => break,
                    Err(error @ (StoreError::Stopped | StoreError::Lost(_))) => return Err(error),
                    Err(error) => {
                        tracing::error!(
                            "{error}; what is measured of a device's clock cannot be stored, trying again"
                        );
                        self.beat("normalize");
                        embassy_time::Timer::after_secs(5).await;
                    }
                }
            }
            let wakes = change.wakes;
            self.device_clocks.borrow_mut().take(change);
            changed = true;
            if wakes {
                for name in device::WAITS {
                    let now_us = clock::monotonic_us();
                    self.outbox.borrow_mut().wake_waiting(name, now_us);
                }
            }
        }
        Ok(changed)
    }

    /// Tries readings that could not be dated.
    pub fn wake_undated(&self) {
        let now_us = clock::monotonic_us();
        for name in UNDATED {
            self.outbox.borrow_mut().wake_waiting(name, now_us);
        }
        self.normalized.notify_waiters();
    }

    /// Notes that a loop is alive.
    pub fn beat(&self, name: &str) {
        let now = clock::monotonic_us();
        let mut beats = self.beats.borrow_mut();
        match beats.get_mut(name) {
            Some(beat) => *beat = now,
            None => drop(beats.insert(name.to_owned(), now)),
        }
    }
}
