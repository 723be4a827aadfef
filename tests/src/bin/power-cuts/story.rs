//! Short stories about one thing that is done with files, cut at any of their operations up to three times in a row.

use crate::stories::{Checkpoints, FirstStart, Mapping, Migration, Salvage, SetAside};
use anyhow::{Context, bail, ensure};
use bedside_agent::clock;
use bedside_agent::config::Encryption;
use bedside_agent::message::{
    Message, Payload, PayloadKind, Position, RevisionId, SourceId, Stamp, StoredMessage,
};
use bedside_agent::random;
use bedside_agent::sabotage::{self, Sabotage};
use bedside_agent::store::{NewRevision, Store, StoreError};
use bedside_disk::{Chance, Image};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Cuts of one story at most.
const CUTS: u64 = 3;

/// What is done, and what must be there whenever the power goes.
pub trait Story {
    /// The disk before.
    fn begin(&mut self, chance: &mut Chance, scratch: &Path) -> anyhow::Result<Image>;

    /// A start of the agent and what follows. Called again after a cut, on what it left.
    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()>;

    /// Looks at what a cut left: a copy, which may be changed.
    fn judge(&mut self, folder: &Path) -> anyhow::Result<()>;

    /// The sender of its messages.
    fn sender(&self) -> &Sender;
}

fn story(class: &str, encryption: Encryption) -> Box<dyn Story> {
    let sender = Sender::new(encryption);
    match class {
        "start" => Box::new(FirstStart(sender)),
        "set-aside" => Box::new(SetAside::new(sender)),
        "salvage" => Box::new(Salvage::new(sender)),
        "mapping" => Box::new(Mapping::new(sender)),
        "migration" => Box::new(Migration::new(sender)),
        _ => Box::new(Checkpoints::new(sender)),
    }
}

/// Plays stories of this class until the power was cut `cuts` times.
pub fn play(
    class: &str,
    cuts: u64,
    seed: u64,
    scratch: &Path,
    done: &mut u64,
    acknowledged: &mut u64,
) -> anyhow::Result<()> {
    random::seed(seed);
    let mut chance = Chance(seed);
    // Operations of a life, learnt from those that were not cut, so that cuts come everywhere.
    let mut length = 200;
    while *done < cuts {
        let encryption = if chance.below(2) == 0 {
            Encryption::Off
        } else {
            Encryption::Own
        };
        let mut story = story(class, encryption);
        let of_story = chance.0;
        let result = tell(&mut *story, cuts, &mut chance, scratch, done, &mut length);
        *acknowledged += story.sender().acknowledged.len() as u64;
        result.with_context(|| format!("story {of_story}"))?;
    }
    Ok(())
}

fn tell(
    story: &mut dyn Story,
    cuts: u64,
    chance: &mut Chance,
    scratch: &Path,
    done: &mut u64,
    length: &mut u64,
) -> anyhow::Result<()> {
    let mut nonces = Nonces::default();
    let mut image = story.begin(chance, scratch)?;
    for _ in 0..=chance.below(CUTS) {
        if *done >= cuts {
            break;
        }
        let folder = tempfile::tempdir_in(scratch)?;
        bedside_disk::attach(folder.path(), &image, chance.number(), Box::new(|| {}))?;
        bedside_disk::cut_after(1 + chance.below(*length));
        let ended = story.live(folder.path(), chance);
        let cut = bedside_disk::cut_has_come();
        *length = match cut {
            true => *length + *length / 16 + 1,
            false => (bedside_disk::operations() + 2).max(*length / 2),
        };
        image = bedside_disk::detach().context("no disk")?;
        match ended {
            Err(error) if !cut || !is_of_the_cut(&error) => return Err(error),
            _ => {}
        }
        nonces.check()?;
        let copy = tempfile::tempdir_in(scratch)?;
        image.write_to(copy.path())?;
        story.judge(copy.path())?;
        *done += 1;
    }
    Ok(())
}

/// Whether an error is what a program without power sees; everything else is a finding.
fn is_of_the_cut(error: &anyhow::Error) -> bool {
    error.is::<StoreError>() || error.is::<std::io::Error>()
}

/// Looks that nothing is sealed twice with the same random bytes, unless it is the same.
#[derive(Default)]
pub struct Nonces(HashMap<Vec<u8>, u32>);

impl Nonces {
    /// Takes what was sealed since the last call, whether or not a cut left it on the disk.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for sealing in sabotage::take_sealings() {
            let before = self.0.insert(sealing.random, sealing.content);
            ensure!(
                before.is_none_or(|content| content == sealing.content),
                "two values were sealed with the same key and nonce"
            );
        }
        Ok(())
    }
}

/// Looks that no file below `folder` but the key holds a readable payload.
pub fn nothing_is_readable(folder: &Path) -> anyhow::Result<()> {
    for (name, content) in Image::of_folder(folder)?.0 {
        // In every payload, and in nothing else.
        let found = content.windows(8).any(|window| window == b"\"note\":\"");
        ensure!(!found, "{} holds a readable payload", name.display());
    }
    Ok(())
}

/// Sends messages, each once, and remembers which were acknowledged and where they are.
pub struct Sender {
    pub encryption: Encryption,
    /// Messages up to this number are those of another sender.
    begins: u64,
    sent: u64,
    next: Position,
    pub acknowledged: BTreeMap<u64, Position>,
    /// The store may have dropped what is before.
    pub dropped_before: Position,
    /// Largest part of a payload that is drawn, in bytes.
    pub drawn_bytes: u64,
}

impl Sender {
    pub fn new(encryption: Encryption) -> Sender {
        Sender {
            encryption,
            begins: 0,
            sent: 0,
            next: 1,
            acknowledged: BTreeMap::new(),
            dropped_before: 1,
            drawn_bytes: 900,
        }
    }

    /// Numbers its messages from behind this one.
    pub fn begin_at(&mut self, number: u64) {
        (self.begins, self.sent) = (number, number);
    }

    /// Whether a message is as it was sent.
    pub fn is_whole(&self, serial: u64, stored: &StoredMessage) -> bool {
        self.message(serial).payload.bytes() == stored.message.payload.bytes()
    }

    /// Number of the message sent last.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Opens the store as a start does.
    pub fn open(&self, folder: &Path) -> Result<(Store, bedside_agent::store::Recovered), StoreError> {
        Store::open_with(folder, &self.encryption)
    }

    fn message(&self, serial: u64) -> Message {
        let mut chance = Chance(serial);
        let mut text = format!("{{\"deviceId\":\"band\",\"heartRate\":{serial},\"note\":\"");
        for _ in 0..chance.below(self.drawn_bytes + 1) / 16 {
            text.push_str(&format!("{:016x}", chance.number()));
        }
        text.push_str("\"}");
        Message {
            source: SourceId(1),
            stamp: Stamp {
                boot: 1,
                monotonic_us: serial,
                wall: clock::wall(),
                trusted: true,
            },
            payload: Payload(text.into()),
            kind: PayloadKind::Whole,
            topic: None,
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record: None,
            ack: None,
        }
    }

    /// Sends a batch that names this revision, and sees its acknowledgement if the power is still there.
    pub fn send_as(
        &mut self,
        store: &mut Store,
        count: u64,
        revision: RevisionId,
        new: &[NewRevision],
    ) -> Result<(), StoreError> {
        let serials: Vec<u64> = (self.sent + 1..=self.sent + count).collect();
        self.sent += count;
        let batch: Vec<_> = serials
            .iter()
            .map(|serial| (self.message(*serial), revision))
            .collect();
        if sabotage::is_on(Sabotage::AckBeforeCommit) {
            self.see(&serials, self.next);
        }
        let first = store.append(&batch, new, None, self.sent, clock::wall().ticks())?;
        self.see(&serials, first);
        self.next = first + count;
        Ok(())
    }

    /// Sends a batch.
    pub fn send(&mut self, store: &mut Store, count: u64) -> Result<(), StoreError> {
        let new = NewRevision {
            id: RevisionId(1),
            hash: "hash".to_owned(),
            bundle: b"packs".to_vec(),
        };
        self.send_as(store, count, RevisionId(1), &[new])
    }

    fn see(&mut self, serials: &[u64], first: Position) {
        // What leaves a gateway without power is seen by nobody.
        if !bedside_disk::cut_has_come() {
            self.acknowledged.extend(serials.iter().copied().zip(first..));
        }
    }

    /// Number of a message of this sender; none for others.
    pub fn serial(stored: &StoredMessage) -> Option<u64> {
        let text = std::str::from_utf8(stored.message.payload.bytes()).ok()?;
        text.split("\"heartRate\":")
            .nth(1)?
            .split(',')
            .next()?
            .parse()
            .ok()
    }

    /// Looks that the store holds what was acknowledged and not dropped, once and as it was sent.
    pub fn judge(&self, store: &Store) -> anyhow::Result<()> {
        let read = store.read_from(1, usize::MAX)?;
        ensure!(read.damaged.is_empty(), "damaged batches: {:?}", read.damaged);
        let mut found = BTreeSet::new();
        for stored in &read.messages {
            let Some(serial) = Sender::serial(stored) else {
                continue;
            };
            if serial <= self.begins {
                continue;
            }
            if !found.insert(serial) {
                bail!("message {serial} is stored twice");
            }
            ensure!(
                self.is_whole(serial, stored),
                "message {serial} is not what was sent"
            );
            let place = self.acknowledged.get(&serial);
            ensure!(
                place.is_none_or(|at| *at == stored.position),
                "message {serial} is at {} and was acknowledged at {place:?}",
                stored.position
            );
        }
        let lost: Vec<u64> = self
            .acknowledged
            .iter()
            .filter(|(serial, at)| **at >= self.dropped_before && !found.contains(serial))
            .map(|(serial, _)| *serial)
            .collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        Ok(())
    }
}

/// Looks at the file itself, after the store was closed.
pub fn sqlite_finds_nothing_wrong(folder: &Path) -> anyhow::Result<()> {
    let plain = rusqlite::Connection::open(folder.join("store.db"))?;
    let verdict: String = plain.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "integrity: {verdict}");
    Ok(())
}
