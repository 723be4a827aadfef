//! A damaged store is put aside whole, and another one begun.

use crate::story::{Sender, Story, sqlite_finds_nothing_wrong};
use anyhow::{Context, ensure};
use bedside_disk::{Chance, Image};
use std::path::{Path, PathBuf};

pub struct SetAside {
    sender: Sender,
    /// Database and log as the damage left them: evidence, and what is salvaged.
    database: Vec<u8>,
    log: Option<Vec<u8>>,
}

impl SetAside {
    pub fn new(sender: Sender) -> SetAside {
        SetAside {
            sender,
            database: Vec::new(),
            log: None,
        }
    }

    /// Looks that database and log are somewhere, whole, and belong together by their names.
    fn judge_evidence(&self, folder: &Path) -> anyhow::Result<()> {
        let files = Image::of_folder(folder)?.0;
        let is_whole = |name: &PathBuf| {
            let log = PathBuf::from(format!("{}-wal", name.display()));
            let log_fits = self.log.is_none() || files.get(&log) == self.log.as_ref();
            // Of an empty database only the log says something.
            (self.database.is_empty() || files.get(name) == Some(&self.database)) && log_fits
        };
        let names = files.keys().filter_map(|name| {
            let text = name.to_str()?;
            text.starts_with("store.db")
                .then(|| PathBuf::from(text.trim_end_matches("-wal")))
        });
        ensure!(
            names.into_iter().any(|name| is_whole(&name)),
            "the damaged store is not whole any more: {:?}",
            files
                .iter()
                .map(|(name, content)| (name, content.len()))
                .collect::<Vec<_>>()
        );
        Ok(())
    }
}

impl Story for SetAside {
    fn begin(&mut self, chance: &mut Chance, scratch: &Path) -> anyhow::Result<Image> {
        let folder = tempfile::tempdir_in(scratch)?;
        let mut old = Sender::new(self.sender.encryption.clone());
        let (mut store, _) = old.open(folder.path())?;
        for _ in 0..4 {
            old.send(&mut store, 3)?;
        }
        let with_log = chance.below(2) == 0;
        let kind = chance.below(2);
        if kind == 0 {
            store.condemn("a page is broken")?;
        }
        let running = Image::of_folder(folder.path())?;
        drop(store);
        let mut image = if with_log {
            running
        } else {
            Image::of_folder(folder.path())?
        };
        let (file, log) = (PathBuf::from("store.db"), PathBuf::from("store.db-wal"));
        let database = image.0.get_mut(&file).context("no database")?;
        match (kind, with_log) {
            (0, _) => {}
            // The file was cut off, its log is there.
            (_, true) => database.clear(),
            (_, false) => database.iter_mut().take(1024).for_each(|byte| *byte = 0x5a),
        }
        self.database.clone_from(database);
        self.log = image.0.get(&log).cloned().filter(|log| !log.is_empty());
        Ok(image)
    }

    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()> {
        let (mut store, _) = self.sender.open(folder)?;
        for _ in 0..chance.below(3) {
            self.sender.send(&mut store, 1 + chance.below(5))?;
        }
        Ok(())
    }

    fn judge(&mut self, folder: &Path) -> anyhow::Result<()> {
        // A cut between two renames is mended by the next start.
        let (store, found) = self.sender.open(folder).context("the store does not open")?;
        ensure!(
            found.set_aside.is_none() || self.sender.acknowledged.is_empty(),
            "a store that nothing harmed was set aside"
        );
        self.sender.judge(&store)?;
        drop(store);
        ensure!(
            !folder.join("store.db.condemned").exists(),
            "a note is left that condemns the new store"
        );
        sqlite_finds_nothing_wrong(folder)?;
        self.judge_evidence(folder)
    }

    fn sender(&self) -> &Sender {
        &self.sender
    }
}
