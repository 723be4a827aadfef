//! What can be read of a store that was set aside comes into the new one, beside new messages.

use crate::story::{Sender, Story, nothing_is_readable, sqlite_finds_nothing_wrong};
use anyhow::{Context, ensure};
use bedside_agent::config::Encryption;
use bedside_agent::message::StoredMessage;
use bedside_agent::store::Store;
use bedside_agent::store::salvage::Runs;
use bedside_disk::{Chance, Image};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Numbers of messages that come after the damage are larger.
const BEHIND: u64 = 1_000_000;

/// A store before the damage: what was acknowledged, and what its messages are known by.
pub struct Former {
    sender: Sender,
    id: String,
}

/// How a store is damaged.
#[derive(Clone, Copy)]
pub enum Damage {
    /// Its head is gone: nothing of it is read by SQLite any more, and all pages are there.
    Head,
    /// It was found damaged and condemned while it ran, and its log is there.
    CondemnedWithLog,
    /// It was condemned, and closed.
    Condemned,
}

impl Former {
    pub fn new(encryption: &Encryption) -> Former {
        let mut sender = Sender::new(encryption.clone());
        // Enough for several portions.
        sender.drawn_bytes = 12_000;
        Former {
            sender,
            id: String::new(),
        }
    }

    /// Fills a store and damages it.
    pub fn begin(&mut self, damage: Damage, chance: &mut Chance, scratch: &Path) -> anyhow::Result<Image> {
        let folder = tempfile::tempdir_in(scratch)?;
        let (mut store, found) = self.sender.open(folder.path())?;
        self.id = found.store_id;
        for _ in 0..20 + chance.below(20) {
            self.sender.send(&mut store, 1 + chance.below(5))?;
        }
        if !matches!(damage, Damage::Head) {
            store.condemn("a page is broken")?;
        }
        if matches!(damage, Damage::CondemnedWithLog) {
            return Ok(Image::of_folder(folder.path())?);
        }
        drop(store);
        let mut image = Image::of_folder(folder.path())?;
        if matches!(damage, Damage::Head) {
            let name = PathBuf::from("store.db");
            let database = image.0.get_mut(&name).context("no database")?;
            database.iter_mut().take(16).for_each(|byte| *byte = 0x5a);
        }
        Ok(image)
    }

    /// Looks that what was acknowledged before is here once, as it was sent, and known by what it was known by. `is_other`
    /// says which messages are of somebody else.
    pub fn judge(&self, store: &Store, is_other: impl Fn(&StoredMessage) -> bool) -> anyhow::Result<()> {
        let runs = Runs::new(store.recovered_runs()?);
        let mut found = BTreeSet::new();
        for stored in store.read_from(1, usize::MAX)?.messages {
            if is_other(&stored) {
                continue;
            }
            let serial = Sender::serial(&stored).context("a message without its number")?;
            let at = self.sender.acknowledged.get(&serial);
            let at = at.with_context(|| format!("message {serial} was never acknowledged"))?;
            ensure!(found.insert(serial), "message {serial} was salvaged twice");
            ensure!(
                self.sender.is_whole(serial, &stored),
                "message {serial} is not what was sent"
            );
            let known = runs.identity(stored.position);
            ensure!(
                known
                    .as_ref()
                    .is_some_and(|known| *known.store == *self.id && known.known_as == *at),
                "message {serial} was known as {at} and is known as {known:?}"
            );
        }
        let sent = self.sender.acknowledged.keys();
        let lost = sent.filter(|serial| !found.contains(serial)).count();
        ensure!(
            lost == 0,
            "{lost} messages were not salvaged: {:?}",
            store.salvages()
        );
        Ok(())
    }
}

pub struct Salvage {
    former: Former,
    sender: Sender,
}

impl Salvage {
    pub fn new(mut sender: Sender) -> Salvage {
        sender.begin_at(BEHIND);
        Salvage {
            former: Former::new(&sender.encryption),
            sender,
        }
    }
}

impl Story for Salvage {
    fn begin(&mut self, chance: &mut Chance, scratch: &Path) -> anyhow::Result<Image> {
        let damage = match (chance.below(2), chance.below(2)) {
            (0, 0) => Damage::CondemnedWithLog,
            (0, _) => Damage::Condemned,
            _ => Damage::Head,
        };
        self.former.begin(damage, chance, scratch)
    }

    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()> {
        let (mut store, found) = self.sender.open(folder)?;
        for mut salvage in found.salvages {
            let steps = chance.below(30);
            for _ in 0..steps {
                if !store.salvage_step(&mut salvage, &self.sender.encryption)? {
                    break;
                }
                if chance.below(3) == 0 {
                    self.sender.send(&mut store, 1 + chance.below(3))?;
                }
            }
        }
        Ok(())
    }

    fn judge(&mut self, folder: &Path) -> anyhow::Result<()> {
        let encryption = self.sender.encryption.clone();
        if encryption != Encryption::Off {
            nothing_is_readable(folder)?;
        }
        let (mut store, found) = self.sender.open(folder).context("the store does not open")?;
        for mut salvage in found.salvages {
            while store.salvage_step(&mut salvage, &encryption)? {}
        }
        self.former.judge(&store, |stored| {
            Sender::serial(stored).is_some_and(|serial| serial > BEHIND)
        })?;
        self.sender.judge(&store)?;
        drop(store);
        sqlite_finds_nothing_wrong(folder)
    }

    fn sender(&self) -> &Sender {
        &self.sender
    }
}
