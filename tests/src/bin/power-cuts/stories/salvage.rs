//! What can be read of a store that was set aside comes into the new one, beside new messages.

use crate::story::{Sender, Story, nothing_is_readable, sqlite_finds_nothing_wrong};
use anyhow::{Context, ensure};
use bedside_agent::config::Encryption;
use bedside_agent::store::Store;
use bedside_agent::store::salvage::Runs;
use bedside_disk::{Chance, Image};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub struct Salvage {
    /// What was acknowledged before the damage, and the id of that store.
    old: Sender,
    old_id: String,
    sender: Sender,
}

impl Salvage {
    pub fn new(mut sender: Sender) -> Salvage {
        let mut old = Sender::new(sender.encryption.clone());
        // Enough for several portions.
        old.drawn_bytes = 12_000;
        sender.begin_at(1_000_000);
        Salvage {
            old,
            old_id: String::new(),
            sender,
        }
    }

    /// Looks that what was acknowledged before is here once, as it was sent, and known by what it was known by.
    fn judge_old(&self, store: &Store) -> anyhow::Result<()> {
        let runs = Runs::new(store.recovered_runs()?);
        let mut found = BTreeSet::new();
        for stored in store.read_from(1, usize::MAX)?.messages {
            let serial = Sender::serial(&stored).context("a message without its number")?;
            let Some(at) = self.old.acknowledged.get(&serial) else {
                ensure!(serial > 1_000_000, "message {serial} was never acknowledged");
                continue;
            };
            ensure!(found.insert(serial), "message {serial} was salvaged twice");
            ensure!(
                self.old.is_whole(serial, &stored),
                "message {serial} is not what was sent"
            );
            let known = runs.identity(stored.position);
            ensure!(
                known
                    .as_ref()
                    .is_some_and(|known| *known.store == *self.old_id && known.known_as == *at),
                "message {serial} was known as {at} and is known as {known:?}"
            );
        }
        let lost = self
            .old
            .acknowledged
            .keys()
            .filter(|serial| !found.contains(serial))
            .count();
        ensure!(
            lost == 0,
            "{lost} messages were not salvaged: {:?}",
            store.salvages()
        );
        Ok(())
    }
}

impl Story for Salvage {
    fn begin(&mut self, chance: &mut Chance, scratch: &Path) -> anyhow::Result<Image> {
        let folder = tempfile::tempdir_in(scratch)?;
        let (mut store, found) = self.old.open(folder.path())?;
        self.old_id = found.store_id;
        for _ in 0..20 + chance.below(20) {
            self.old.send(&mut store, 1 + chance.below(5))?;
        }
        if chance.below(2) == 0 {
            store.condemn("a page is broken")?;
            let with_log = Image::of_folder(folder.path())?;
            drop(store);
            return if chance.below(2) == 0 {
                Ok(with_log)
            } else {
                Ok(Image::of_folder(folder.path())?)
            };
        }
        drop(store);
        let mut image = Image::of_folder(folder.path())?;
        let database = image
            .0
            .get_mut(&PathBuf::from("store.db"))
            .context("no database")?;
        // SQLite's header: no page is read by it any more, and all of them are there.
        database.iter_mut().take(16).for_each(|byte| *byte = 0x5a);
        Ok(image)
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
        self.judge_old(&store)?;
        self.sender.judge(&store)?;
        drop(store);
        sqlite_finds_nothing_wrong(folder)
    }

    fn sender(&self) -> &Sender {
        &self.sender
    }
}
