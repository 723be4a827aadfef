//! All entries and records in memory, and what of them the store does not have yet.

use super::{Answer, Change, Entry, Record, Seen, Statement, Ticks, Version, Who, at, changes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// How much newer than on the disk the last look at an unchanged link may be: ten minutes, to spare the flash.
const LOOK_UNWRITTEN: Ticks = 600 * 10_000_000;

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// The device is or was with a patient.
    Set {
        /// Device identifier.
        device: String,
        /// The patient.
        patient: Who,
        /// The encounter.
        encounter: Option<Who>,
        /// First instant; now, if none is given.
        from: Option<Ticks>,
        /// The instant at which it ended.
        to: Option<Ticks>,
    },
    /// The device was taken away.
    End {
        /// Device identifier.
        device: String,
        /// When; now, if not given.
        at: Option<Ticks>,
    },
    /// The newest entry of the device was a mistake.
    Retract {
        /// Device identifier.
        device: String,
    },
    /// What was lost with a damaged store is entered again: devices without an entry follow the servers and messages.
    Complete,
}

/// What a damaged store left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Entries of the operator may be lost: a reading that none covers waits.
    pub entries: bool,
    /// What servers showed before may be lost: the first link that is seen of a device says nothing about the time before it.
    pub sightings: bool,
}

/// A command with everything that has to be stored in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// A new entry; its number is given by the store.
    pub entry: Option<Entry>,
    /// An entry that goes.
    pub retracted: Option<Entry>,
    /// Nothing is in doubt any more.
    pub is_complete: bool,
    /// Destinations and what changes for them.
    pub corrections: Vec<(u32, Change)>,
}

/// What the store does not have yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unwritten {
    /// Records that changed: destination, device, record.
    pub records: Vec<(u32, Arc<str>, Record)>,
    /// Destinations and what changed for them.
    pub corrections: Vec<(u32, Change)>,
    /// Devices of which something changed: their waiting readings are tried at once.
    pub moved: Vec<Arc<str>>,
}

/// Everything known about who has which device.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<Arc<str>, Vec<Entry>>,
    records: HashMap<(u32, Arc<str>), Record>,
    /// Ids of patients by identifier, as the servers told them last.
    patients: HashMap<(u32, String), String>,
    /// The last look that the store has.
    stored_looks: HashMap<(u32, Arc<str>), Ticks>,
    unwritten: BTreeSet<(u32, Arc<str>)>,
    corrections: Vec<(u32, Change)>,
    moved: BTreeSet<Arc<str>>,
    doubt: Doubt,
    /// What stands for entries that may be lost: the first entry of each device.
    lost: Vec<Entry>,
}

impl Book {
    /// The book as the store had it.
    pub fn restore(entries: Vec<Entry>, records: Vec<(u32, Arc<str>, Record)>, doubt: Doubt) -> Book {
        let mut book = Book {
            doubt,
            lost: doubt.entries.then(Entry::lost).into_iter().collect(),
            ..Book::default()
        };
        for entry in entries {
            book.keep(entry);
        }
        for (destination, device, record) in records {
            let key = (destination, device);
            book.stored_looks.insert(key.clone(), record.last_look());
            book.records.insert(key, record);
        }
        book
    }

    fn keep(&mut self, entry: Entry) {
        let entries = self.entries.entry(Arc::clone(&entry.device));
        entries.or_insert_with(|| self.lost.clone()).push(entry);
    }

    /// What was lost and is not entered again.
    pub fn doubt(&self) -> Doubt {
        self.doubt
    }

    /// The entries of a device; where entries are in doubt, with one in front that says that nobody knows.
    pub fn entries(&self, device: &str) -> &[Entry] {
        self.entries.get(device).map_or(&self.lost, Vec::as_slice)
    }

    /// Whether an entry says something about a device at an instant.
    pub fn is_entered(&self, device: &str, instant: Ticks) -> bool {
        self.entries(device).iter().any(|entry| entry.covers(instant))
    }

    /// All entries, by device.
    pub fn all_entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().flatten().filter(|entry| !entry.is_lost())
    }

    /// All records, in no order.
    pub fn all_records(&self) -> impl Iterator<Item = (u32, &Arc<str>, &Record)> {
        self.records
            .iter()
            .map(|((destination, device), record)| (*destination, device, record))
    }

    /// What a destination showed of a device.
    pub fn record(&self, destination: u32, device: &Arc<str>) -> Option<&Record> {
        self.records.get(&(destination, Arc::clone(device)))
    }

    /// The patient of a device at an instant, for a destination.
    pub fn at(&self, destination: u32, device: &Arc<str>, instant: Ticks) -> Answer {
        let id_of = |who: &Who| self.id_of(destination, who);
        at(
            self.entries(device),
            self.record(destination, device),
            &id_of,
            instant,
        )
    }

    /// Instants at which it may change whose a device is, in order.
    pub fn turns(&self, destination: u32, device: &Arc<str>) -> Vec<Ticks> {
        let of_record = self.record(destination, device).into_iter();
        let mut turns: Vec<Ticks> = entry_instants(self.entries(device))
            .chain(of_record.flat_map(Record::instants))
            .collect();
        turns.sort_unstable();
        turns.dedup();
        turns
    }

    fn id_of(&self, destination: u32, who: &Who) -> Option<String> {
        match who {
            Who::Id(id) => Some(id.clone()),
            Who::Identifier(text) => self.patients.get(&(destination, text.clone())).cloned(),
        }
    }

    /// The id that a patient with this identifier has on a destination.
    pub fn learn_patient(&mut self, destination: u32, identifier: &str, id: &str) {
        self.patients
            .insert((destination, identifier.to_owned()), id.to_owned());
    }

    /// A look at a device on a destination, with its versions (and whether they begin with the first) where they were
    /// asked for, and its statements where they were.
    pub fn look(
        &mut self,
        destination: u32,
        device: &Arc<str>,
        seen: &Seen,
        history: Option<(&[Version], bool)>,
        statements: Option<Vec<Statement>>,
    ) {
        let key = (destination, Arc::clone(device));
        let old = self.records.get(&key);
        let mut new = old.cloned().unwrap_or_default();
        match history {
            Some((versions, whole)) => new.look_with_history(seen, versions, whole),
            None => new.look(seen),
        }
        if old.is_none() && self.doubt.sightings && !new.exact {
            // An earlier look may have shown another link.
            new.backwards = false;
        }
        let with_links = new.clone();
        if let Some(statements) = statements {
            new.statements = statements;
        }
        let looked = |stays: &[super::Stay]| {
            let mut stays = stays.to_vec();
            if let Some(last) = stays.last_mut() {
                last.until = 0;
            }
            stays
        };
        let same = old.is_some_and(|old| {
            (
                &old.device,
                &old.version,
                &old.statements,
                old.backwards,
                old.exact,
            ) == (
                &new.device,
                &new.version,
                &new.statements,
                new.backwards,
                new.exact,
            ) && looked(&old.stays) == looked(&new.stays)
        });
        if same {
            let stored = self.stored_looks.get(&key).copied().unwrap_or(Ticks::MIN);
            if new.last_look() >= stored.saturating_add(LOOK_UNWRITTEN) {
                self.unwritten.insert(key.clone());
            }
            self.records.insert(key, new);
            return;
        }
        if let Some(old) = old {
            // Nothing of a time after the last look can have been sent by it.
            let mut found = self.compared(destination, device, old, &with_links, old.last_look());
            let now = seen.answered.unwrap_or(Ticks::MAX);
            found.extend(self.compared(destination, device, &with_links, &new, now));
            self.corrections
                .extend(found.into_iter().map(|change| (destination, change)));
        }
        self.moved.insert(Arc::clone(device));
        self.unwritten.insert(key.clone());
        self.records.insert(key, new);
    }

    fn compared(
        &self,
        destination: u32,
        device: &Arc<str>,
        old: &Record,
        new: &Record,
        until: Ticks,
    ) -> Vec<Change> {
        if old == new {
            return Vec::new();
        }
        let entries = self.entries(device);
        let id_of = |who: &Who| self.id_of(destination, who);
        let instants = entry_instants(entries)
            .chain(old.instants())
            .chain(new.instants());
        changes(
            device,
            instants.collect(),
            until,
            &|instant| at(entries, Some(old), &id_of, instant),
            &|instant| at(entries, Some(new), &id_of, instant),
            false,
        )
    }

    /// What a command means, without doing it: store it, then [`Book::take`] it. `now` is the trusted wall time.
    ///
    /// # Errors
    /// What is wrong with the command, for the operator.
    pub fn plan(
        &self,
        command: &Command,
        now: Option<Ticks>,
        destinations: &[u32],
    ) -> Result<Planned, String> {
        const NO_CLOCK: &str = "the clock is not synchronised: give the time (--from, --at)";
        let (device, entry, retracted) = match command {
            Command::Set {
                device,
                patient,
                encounter,
                from,
                to,
            } => {
                let from = from.or(now).ok_or(NO_CLOCK)?;
                if to.is_some_and(|to| to <= from) {
                    return Err("it would end before it begins".to_owned());
                }
                let entry = Entry {
                    number: i64::MAX,
                    device: Arc::from(device.as_str()),
                    patient: Some(patient.clone()),
                    encounter: encounter.clone(),
                    from: Some(from),
                    to: *to,
                    entered: now.unwrap_or(from),
                };
                (device, Some(entry), None)
            }
            Command::End { device, at } => {
                let from = at.or(now).ok_or(NO_CLOCK)?;
                let entry = Entry {
                    number: i64::MAX,
                    device: Arc::from(device.as_str()),
                    patient: None,
                    encounter: None,
                    from: Some(from),
                    to: None,
                    entered: now.unwrap_or(from),
                };
                (device, Some(entry), None)
            }
            Command::Retract { device } => {
                let entries = self.entries(device).iter().filter(|entry| !entry.is_lost());
                let newest = entries.max_by_key(|entry| entry.number);
                let newest = newest.ok_or("there is no entry of this device to take back")?;
                (device, None, Some(newest.clone()))
            }
            Command::Complete => {
                return Ok(Planned {
                    entry: None,
                    retracted: None,
                    is_complete: true,
                    corrections: Vec::new(),
                });
            }
        };
        if device.trim().is_empty() {
            return Err("the device has no identifier".to_owned());
        }
        let device: Arc<str> = Arc::from(device.as_str());
        let old = self.entries(&device);
        let mut new = old.to_vec();
        new.retain(|one| Some(one.number) != retracted.as_ref().map(|entry| entry.number));
        new.extend(entry.clone());
        let mut corrections = Vec::new();
        for destination in destinations {
            let record = self.record(*destination, &device);
            let id_of = |who: &Who| self.id_of(*destination, who);
            let of_record = record.into_iter().flat_map(Record::instants);
            let instants = entry_instants(old).chain(entry_instants(&new)).chain(of_record);
            let found = changes(
                &device,
                instants.collect(),
                now.unwrap_or(Ticks::MAX),
                &|instant| at(old, record, &id_of, instant),
                &|instant| at(&new, record, &id_of, instant),
                true,
            );
            corrections.extend(found.into_iter().map(|change| (*destination, change)));
        }
        Ok(Planned {
            entry,
            retracted,
            is_complete: false,
            corrections,
        })
    }

    /// Takes a command that is stored; its entry has got its number. The corrections are in the store already.
    pub fn take(&mut self, planned: &Planned) {
        if let Some(entry) = &planned.entry {
            self.moved.insert(Arc::clone(&entry.device));
            self.keep(entry.clone());
        }
        if let Some(gone) = &planned.retracted {
            self.moved.insert(Arc::clone(&gone.device));
            if let Some(entries) = self.entries.get_mut(&gone.device) {
                entries.retain(|entry| entry.number != gone.number);
            }
        }
        if planned.is_complete {
            self.doubt = Doubt::default();
            self.lost.clear();
            for entries in self.entries.values_mut() {
                entries.retain(|entry| !entry.is_lost());
            }
            let seen = self.records.keys().map(|(_, device)| device);
            self.moved.extend(self.entries.keys().chain(seen).cloned());
        }
    }

    /// What changed since the last call.
    pub fn take_unwritten(&mut self) -> Unwritten {
        let keys = std::mem::take(&mut self.unwritten);
        let mut records = Vec::new();
        for key in keys {
            if let Some(record) = self.records.get(&key) {
                self.stored_looks.insert(key.clone(), record.last_look());
                records.push((key.0, key.1, record.clone()));
            }
        }
        Unwritten {
            records,
            corrections: std::mem::take(&mut self.corrections),
            moved: std::mem::take(&mut self.moved).into_iter().collect(),
        }
    }
}

fn entry_instants(entries: &[Entry]) -> impl Iterator<Item = Ticks> + '_ {
    entries
        .iter()
        .flat_map(|entry| entry.from.into_iter().chain(entry.to).chain([entry.stated()]))
}
