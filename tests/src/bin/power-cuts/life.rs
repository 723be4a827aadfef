//! What the sender, the destinations and the loops of the gateway do in the journal's story.

use anyhow::{Context, bail};
use bedside_agent::clock;
use bedside_agent::config::Encryption;
use bedside_agent::forward::Fate;
use bedside_agent::ingest::StoredPacket;
use bedside_agent::message::{
    AckToken, Message, Payload, PayloadKind, Position, RevisionId, SourceId, Stamp, StoredMessage,
};
use bedside_agent::sabotage::{self, Sabotage};
use bedside_agent::store::outbox::{Outbox, Settled};
use bedside_agent::store::{DeadLetter, NewRevision, Recovered, Row, Store, StoreError, Trouble};
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_disk::Chance;
use iomt_mapping::Measurement;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

pub const DESTINATIONS: [u32; 2] = [1, 2];
const SOURCE: SourceId = SourceId(1);

/// What outlives the gateway's power: sender, destinations, chance, time.
#[derive(Default)]
pub struct World {
    /// Whether the store seals what it holds.
    pub encryption: Encryption,
    pub now_us: u64,
    pub sent: u64,
    /// Not acknowledged yet, to be sent again in the next life.
    pub open: BTreeSet<u64>,
    pub acknowledged: BTreeSet<u64>,
    /// Where the store said that a message is.
    pub stored_at: BTreeMap<u64, Position>,
    /// By destination and message: the event id under which the destination saw its reading.
    pub seen: BTreeMap<(u32, u64), String>,
    /// By destination and event id: the message.
    pub ids: BTreeMap<(u32, String), u64>,
    /// Readings that left the outbox: all, those whose leaving is committed, and those that wait for the next commit.
    pub told: BTreeSet<(u32, u64)>,
    pub committed: BTreeSet<(u32, u64)>,
    pub uncommitted: BTreeSet<(u32, u64)>,
    /// Messages that no template matched, given up.
    pub forgotten: BTreeSet<u64>,
    /// Messages or readings that came twice.
    pub twice: BTreeSet<u64>,
    /// Calls of the disk fail between the cuts, and how many did.
    pub troubles: bool,
    pub failures: u64,
    pub refusals: Vec<String>,
    /// Failed operations after which the life went on, and how often the files were opened again.
    pub survived: u64,
    pub reopened: u64,
}

/// What a message is, by its number: most give a reading.
pub fn kind(serial: u64) -> &'static str {
    match serial % 20 {
        7 => "unmatched",
        13 => "unparsable",
        _ => "matched",
    }
}

pub fn device(serial: u64) -> String {
    format!("band-{}", serial % 3)
}

pub fn serial_of(stored: &StoredMessage) -> u64 {
    let text = String::from_utf8_lossy(stored.message.payload.bytes()).into_owned();
    let number = text.split("\"heartRate\":").nth(1).unwrap_or_default();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("every message has its number")
}

fn message(serial: u64, again: bool, now_us: u64) -> (Message, RevisionId) {
    let room = "x".repeat((serial % 7 * 150) as usize);
    let message = Message {
        source: SOURCE,
        stamp: Stamp {
            boot: 1,
            monotonic_us: now_us,
            wall: clock::wall(),
            trusted: true,
        },
        payload: Payload(
            format!(
                r#"{{"deviceId":"{}","note":"{room}","heartRate":{serial}}}"#,
                device(serial)
            )
            .into(),
        ),
        kind: PayloadKind::Whole,
        topic: None,
        properties: Vec::new(),
        device_id: None,
        possible_repeat: again,
        record: None,
        ack: Some(AckToken {
            epoch: 0,
            packet_id: (serial % 65_535 + 1) as u16,
            session: 1,
        }),
    };
    (message, RevisionId(1))
}

/// One life of the gateway: store and outbox as the loops hold them.
pub struct Life<'a> {
    pub world: &'a mut World,
    pub chance: &'a mut Chance,
    store: Store,
    outbox: Outbox,
    store_id: String,
    /// To send again, with the mark of a repeat.
    again: Vec<u64>,
    next_position: Position,
    first_batch: bool,
}

impl<'a> Life<'a> {
    pub fn begin(folder: &Path, world: &'a mut World, chance: &'a mut Chance) -> anyhow::Result<Life<'a>> {
        let (store, found) = Store::open_with(folder, &world.encryption)?;
        if found.set_aside.is_some() {
            bail!("a store that nothing harmed was set aside: {:?}", store.ledger());
        }
        world.uncommitted.clear();
        let mut life = Life {
            again: Vec::new(),
            outbox: Outbox::restore(&found, &DESTINATIONS, world.now_us),
            store_id: found.store_id.clone(),
            next_position: found.next_position,
            first_batch: true,
            store,
            world,
            chance,
        };
        life.recognise(&found);
        Ok(life)
    }

    /// What was stored before the cut and is sent again is acknowledged and not stored again, as the sources do.
    fn recognise(&mut self, found: &Recovered) {
        let known: BTreeMap<u64, Position> = found
            .resume
            .iter()
            .map(|last| (last.packet.hash, last.position))
            .collect();
        for serial in self.world.open.clone() {
            let hash =
                StoredPacket::of(&message(serial, true, self.world.now_us).0).map(|packet| packet.hash);
            if let Some(at) = hash.and_then(|hash| known.get(&hash)) {
                self.world.stored_at.insert(serial, *at);
                self.acknowledge(serial);
            } else {
                self.again.push(serial);
            }
        }
    }

    fn acknowledge(&mut self, serial: u64) {
        // What leaves a gateway without power is seen by nobody.
        if !bedside_disk::cut_has_come() {
            self.world.open.remove(&serial);
            self.world.acknowledged.insert(serial);
        }
    }

    fn intake(&mut self) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        let again = std::mem::take(&mut self.again);
        batch.extend(again.into_iter().map(|serial| (serial, true)));
        for _ in 0..self.chance.below(12) + 1 {
            self.world.sent += 1;
            self.world.open.insert(self.world.sent);
            batch.push((self.world.sent, false));
        }
        let too_early = sabotage::is_on(Sabotage::AckBeforeCommit);
        if too_early {
            batch.iter().for_each(|(serial, _)| self.acknowledge(*serial));
        }
        let now_us = self.world.now_us;
        let messages: Vec<_> = batch
            .iter()
            .map(|(serial, again)| message(*serial, *again, now_us))
            .collect();
        let revisions = self.first_batch.then(|| NewRevision {
            id: RevisionId(1),
            hash: "h".to_owned(),
            bundle: b"packs".to_vec(),
        });
        let with_progress = self.chance.below(2) == 0;
        let changes = with_progress.then(|| self.outbox.take_changes());
        let wall = clock::wall().ticks();
        let result = self
            .store
            .append(&messages, revisions.as_slice(), changes.as_ref(), now_us, wall);
        if with_progress {
            self.after_commit(result.is_ok());
        }
        if result.is_err() {
            // The intake holds them and tries again.
            self.again.extend(batch.iter().map(|(serial, _)| *serial));
        }
        let first = result?;
        assert_eq!(first, self.next_position, "positions follow each other");
        self.next_position += batch.len() as u64;
        self.first_batch = false;
        for (at, (serial, _)) in (first..).zip(batch) {
            self.world.stored_at.insert(serial, at);
            self.acknowledge(serial);
        }
        Ok(())
    }

    fn after_commit(&mut self, done: bool) {
        if !done {
            return self.outbox.not_written();
        }
        self.outbox.written();
        if !bedside_disk::cut_has_come() {
            let done = &mut self.world.uncommitted;
            self.world.committed.append(done);
        }
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let changes = self.outbox.take_changes();
        let result = self.store.commit_progress(&changes, clock::wall().ticks());
        self.after_commit(result.is_ok());
        result
    }

    fn normalize(&mut self) -> Result<(), StoreError> {
        let from = self.outbox.progress().cursor + 1;
        for stored in self.store.read_from(from, 3000)?.messages {
            let serial = serial_of(&stored);
            let progress = self.outbox.progress_mut();
            progress.cursor = stored.position;
            progress.messages += 1;
            match kind(serial) {
                "unmatched" => {
                    progress.unmatched += 1;
                    self.outbox.note_unmatched(&stored, false);
                }
                "unparsable" => {
                    progress.unparsable += 1;
                    self.outbox.dead(DeadLetter {
                        destination: None,
                        match_number: None,
                        stage: "normalize",
                        error: ErrorRecord::new("InvalidDataFormatException", "no JSON"),
                        revision: stored.revision,
                        counted: Arc::from([]),
                        message: Arc::new(stored),
                    });
                }
                _ => {
                    progress.matched += 1;
                    progress.matches += 1;
                    self.outbox.note_matched(SOURCE);
                    let measurement = Measurement {
                        key: Arc::new(iomt_mapping::GroupKey {
                            type_name: "heartrate".to_owned(),
                            device_id: device(serial),
                            ..Default::default()
                        }),
                        occurrence_time: clock::wall(),
                        properties: Vec::new(),
                    };
                    let series = self.outbox.series_of("pack", &measurement);
                    for destination in DESTINATIONS {
                        let (at, now) = (stored.position, self.world.now_us);
                        self.outbox.add(destination, series, None, at, 0, now);
                    }
                }
            }
        }
        Ok(())
    }

    /// A pass: some rows that are due, each up to some position.
    fn deliver(&mut self, destination: u32, quiet: bool) -> anyhow::Result<()> {
        let now_us = self.world.now_us;
        let due = self.outbox.due(destination, now_us);
        let ids: HashSet<u64> = due.iter().map(|pending| pending.row.id).collect();
        let named = self.outbox.named_readings(destination, &ids);
        let (mut covered, mut settled) = (HashMap::new(), Vec::new());
        let mut read = Vec::new();
        for row in due.into_iter().map(|pending| pending.row) {
            let limit = 1 + self.chance.below(3000) as usize;
            let batch = self.store.read_from(row.first, limit)?;
            read.push((row, batch));
        }
        self.outbox.begin_pass(destination, ids);
        for (row, batch) in read {
            let Row {
                id,
                last,
                series,
                refs,
                ..
            } = row;
            let end = batch.messages.last().map_or(last, |m| m.position).min(last);
            covered.insert(id, end);
            let of_device = self
                .outbox
                .key(series)
                .context("a row without its key")?
                .device
                .clone();
            for stored in batch.messages.into_iter().filter(|m| m.position <= end) {
                let serial = serial_of(&stored);
                let place = (stored.position, 0);
                let wanted = match &refs {
                    Some(refs) => refs.contains(&place),
                    None => {
                        !named.contains(&place) && kind(serial) == "matched" && device(serial) == *of_device
                    }
                };
                if !wanted {
                    continue;
                }
                let fate = self.send(destination, serial, stored.position, quiet)?;
                settled.push(Settled {
                    row: id,
                    position: stored.position,
                    match_number: 0,
                    fate,
                    message: Some(Arc::new(stored)),
                });
            }
        }
        self.outbox.settle(destination, &covered, settled, now_us);
        Ok(())
    }

    /// The destination sees a reading, and its answer may be lost on the way back.
    fn send(&mut self, destination: u32, serial: u64, at: Position, quiet: bool) -> anyhow::Result<Fate> {
        let chance = if quiet { 99 } else { self.chance.below(100) };
        if chance < 10 {
            return Ok(Fate::Retry);
        }
        if chance < 15 {
            return Ok(Fate::Waiting(ErrorRecord::new(
                "DeviceNotFoundException",
                "register it",
            )));
        }
        let key = (destination, serial);
        if chance < 18 {
            self.leave(key);
            return Ok(Fate::Dead(ErrorRecord::new("Refused", "no decimal")));
        }
        if self.world.committed.contains(&key) {
            self.world.twice.insert(serial);
            bail!("reading {serial} was confirmed by destination {destination} and is sent again");
        }
        let id = format!("{}/{at}", self.store_id);
        if let Some(other) = self
            .world
            .seen
            .insert(key, id.clone())
            .filter(|before| *before != id)
        {
            self.world.twice.insert(serial);
            bail!("reading {serial} came to destination {destination} as {other} and as {id}");
        }
        if let Some(other) = self.world.ids.insert((destination, id.clone()), serial)
            && other != serial
        {
            bail!("event id {id} was given to readings {other} and {serial}");
        }
        if chance < 28 {
            return Ok(Fate::Retry);
        }
        self.leave(key);
        Ok(Fate::Delivered)
    }

    fn leave(&mut self, key: (u32, u64)) {
        self.world.told.insert(key);
        self.world.uncommitted.insert(key);
    }

    /// Gives up runs of unmatched messages, and what nothing needs any more: after the commit that says so.
    fn tidy(&mut self) -> Result<(), StoreError> {
        let runs: Vec<(Position, Position)> =
            self.outbox.unmatched().map(|run| (run.first, run.last)).collect();
        for (first, last) in runs {
            for stored in self.store.read_from(first, usize::MAX)?.messages {
                let serial = serial_of(&stored);
                if stored.position <= last && kind(serial) == "unmatched" {
                    self.world.forgotten.insert(serial);
                }
            }
            self.outbox.forget_unmatched(first);
        }
        self.commit()?;
        let needed = self.outbox.needed_from(&[]);
        let outline = self.store.outline()?;
        let drop: Vec<u32> = outline.iter().filter(|s| s.end <= needed).map(|s| s.id).collect();
        if !drop.is_empty() {
            self.store.reclaim(&drop, None, None, 0)?;
        }
        Ok(())
    }

    /// Goes on after a failed operation as the agent does: with the files as they are, or closed and opened again.
    ///
    /// # Errors
    /// The failure, when only a new start can help.
    pub fn go_on_after(&mut self, failure: anyhow::Error, folder: &Path) -> anyhow::Result<()> {
        let trouble = match failure.downcast_ref::<StoreError>() {
            // SQLite tells a read that was refused as damage too; the agent tries again.
            Some(error @ StoreError::Sqlite(_)) => Trouble::of(error, folder),
            Some(error) if Trouble::of(error, folder).is_some() => Trouble::of(error, folder),
            _ => return Err(failure),
        };
        if let Some(trouble) = trouble.filter(|trouble| trouble.needs_reopening()) {
            self.store.close_files(trouble)?;
            for _ in 0..100 {
                match self.store.ensure_open() {
                    Ok(()) => {
                        self.world.reopened += 1;
                        break;
                    }
                    Err(StoreError::Unavailable { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.store.ensure_open()?;
        }
        self.world.survived += 1;
        Ok(())
    }

    pub fn step(&mut self) -> anyhow::Result<()> {
        // Segments are an hour long: some end within a life.
        self.world.now_us += [1_000, 200_000, 5_000_000, 1_300_000_000][self.chance.below(4) as usize];
        match self.chance.below(10) {
            0..4 => self.intake()?,
            4..6 => self.normalize()?,
            6..8 => {
                let destination = DESTINATIONS[self.chance.below(2) as usize];
                self.deliver(destination, false)?;
            }
            8 => self.commit()?,
            _ => self.tidy()?,
        }
        Ok(())
    }

    /// Until every reading has come through.
    pub fn drain(&mut self) -> anyhow::Result<()> {
        self.intake()?;
        for _ in 0..10_000 {
            self.world.now_us += 700_000_000;
            self.normalize()?;
            for destination in DESTINATIONS {
                self.deliver(destination, true)?;
            }
            self.commit()?;
            let left = DESTINATIONS.map(|destination| self.outbox.backlog(destination));
            if self.outbox.progress().cursor + 1 == self.next_position && left == [(0, 0); 2] {
                return Ok(());
            }
        }
        bail!("the outbox is never empty")
    }
}
