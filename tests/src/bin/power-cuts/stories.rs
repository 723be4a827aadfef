//! First start, damage, migration, checkpoints: each with what must be there afterwards.

mod aside;
mod mapping;
pub mod migration;
pub mod salvage;

pub use aside::SetAside;
pub use mapping::Mapping;
pub use migration::Migration;
pub use salvage::Salvage;

use crate::story::{Sender, Story, nothing_is_readable, sqlite_finds_nothing_wrong};
use anyhow::{Context, ensure};
use bedside_agent::config::Encryption;
use bedside_agent::store::Store;
use bedside_disk::{Chance, Image};
use std::path::Path;

/// The store as every story must find it: it opens, was not taken for damaged, and holds what was acknowledged.
fn judge_store(sender: &Sender, folder: &Path) -> anyhow::Result<()> {
    if sender.encryption != Encryption::Off {
        nothing_is_readable(folder)?;
    }
    let (store, found) = sender.open(folder).context("the store does not open")?;
    ensure!(
        found.set_aside.is_none(),
        "the store was taken for damaged: {:?}",
        store.ledger()
    );
    sender.judge(&store)?;
    drop(store);
    sqlite_finds_nothing_wrong(folder)
}

/// An empty folder becomes a store.
pub struct FirstStart(pub Sender);

impl Story for FirstStart {
    fn begin(&mut self, _: &mut Chance, _: &Path) -> anyhow::Result<Image> {
        Ok(Image::default())
    }

    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()> {
        let (mut store, _) = self.0.open(folder)?;
        for _ in 0..=chance.below(3) {
            self.0.send(&mut store, 1 + chance.below(5))?;
        }
        Ok(())
    }

    fn judge(&mut self, folder: &Path) -> anyhow::Result<()> {
        judge_store(&self.0, folder)
    }

    fn sender(&self) -> &Sender {
        &self.0
    }
}

/// The log fills, is taken into the database and begun anew; segments go, and their pages.
pub struct Checkpoints {
    sender: Sender,
    lives: u64,
}

/// The smallest that the store takes.
const LIMIT: u64 = 8 << 20;
/// Segments that are kept.
const SEGMENTS: usize = 3;

impl Checkpoints {
    pub fn new(mut sender: Sender) -> Checkpoints {
        sender.drawn_bytes = 40_000;
        Checkpoints { sender, lives: 0 }
    }

    fn drop_oldest(&mut self, store: &mut Store) -> anyhow::Result<()> {
        let outline = store.outline()?;
        let Some(kept) = outline.len().checked_sub(SEGMENTS).filter(|above| *above > 0) else {
            return Ok(());
        };
        let drop: Vec<u32> = outline.iter().take(kept).map(|segment| segment.id).collect();
        // Begun to be dropped: they may be gone whenever the power goes from now on.
        self.sender.dropped_before = outline[kept].first;
        store.reclaim(&drop, None, None, 0)?;
        store.give_back()?;
        Ok(())
    }
}

impl Story for Checkpoints {
    fn begin(&mut self, _: &mut Chance, scratch: &Path) -> anyhow::Result<Image> {
        // A store that has used all of its log: the next life begins it anew.
        let folder = tempfile::tempdir_in(scratch)?;
        let (mut store, _) = self.sender.open(folder.path())?;
        store.set_limit(LIMIT)?;
        for _ in 0..30 {
            self.sender.send(&mut store, 1)?;
        }
        Ok(Image::of_folder(folder.path())?)
    }

    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()> {
        self.lives += 1;
        let (mut store, _) = self.sender.open(folder)?;
        if chance.below(4) > 0 {
            store.set_limit(LIMIT)?;
        }
        for _ in 0..chance.below(30) {
            self.sender.send(&mut store, 1 + chance.below(2))?;
            if chance.below(6) == 0 {
                self.drop_oldest(&mut store)?;
            }
            if bedside_disk::cut_has_come() {
                break;
            }
        }
        Ok(())
    }

    fn judge(&mut self, folder: &Path) -> anyhow::Result<()> {
        judge_store(&self.sender, folder)
    }

    fn sender(&self) -> &Sender {
        &self.sender
    }
}
