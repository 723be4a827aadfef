//! A store of each released version is opened by this program.

use crate::story::{Sender, Story, sqlite_finds_nothing_wrong};
use anyhow::{Context, ensure};
use bedside_agent::message::SourceId;
use bedside_agent::store::{Recovered, Store};
use bedside_disk::{Chance, Image};
use rusqlite::Connection;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The position behind what the fixtures hold.
const END: u64 = 6;

pub struct Migration {
    sender: Sender,
    /// What an opening without a cut finds.
    expected: String,
    newest: i64,
}

/// The stores that released versions have left, oldest first.
pub fn fixtures() -> anyhow::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src/store/schema");
    let mut found = Vec::new();
    loop {
        let path = folder.join(format!("version_{}.sql", found.len() + 1));
        if !path.exists() {
            break;
        }
        found.push(path);
    }
    ensure!(!found.is_empty(), "there are no stores of released versions");
    Ok(found)
}

/// Everything that the fixtures hold, as this program reads it.
fn picture(store: &Store, found: &Recovered) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{} {:?} {:?}", found.store_id, found.progress, found.series)?;
    writeln!(text, "{:?} {:?}", found.rows, found.unmatched)?;
    for (cause, error, note) in &found.letters {
        writeln!(text, "{cause} {error:?} {} {:?}", note.position, note.counted)?;
    }
    let letters: Vec<u64> = found.letters.iter().map(|(_, _, note)| note.id).collect();
    for letter in store.letters(&letters)? {
        writeln!(text, "{:?}", letter.message.message.payload.bytes())?;
    }
    writeln!(text, "{:?}", found.dating.first())?;
    writeln!(text, "{:?}", found.revisions.first())?;
    for stored in store.read_from(1, usize::MAX)?.messages {
        if stored.position < END {
            writeln!(text, "{} {:?}", stored.position, stored.message.payload.bytes())?;
        }
    }
    writeln!(text, "{:?} {:?}", store.association_book()?, store.corrections()?)?;
    writeln!(
        text,
        "{:?} {:?}",
        store.sent_period(1, "obs")?,
        store.last_good_packs()?
    )?;
    writeln!(text, "{:?} {:?}", store.ledger()?, store.recalled(SourceId(1))?)?;
    Ok(text)
}

/// The store of a fixture; with all of it in its log, as when the old program was cut off too, or none.
pub fn lay_down(fixture: &Path, with_log: bool, scratch: &Path) -> anyhow::Result<Image> {
    let text = std::fs::read_to_string(fixture)?;
    let folder = tempfile::tempdir_in(scratch)?;
    let old = Connection::open(folder.path().join("store.db"))?;
    if with_log {
        old.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = WAL;")?;
    }
    old.execute_batch(&text)?;
    let mut image = Image::of_folder(folder.path())?;
    drop(old);
    if !with_log {
        image = Image::of_folder(folder.path())?;
    }
    image.0.remove(Path::new("store.db-shm"));
    Ok(image)
}

/// Of what the fixtures hold that which stays while the agent works, and the version of the schema.
pub fn what_stays(folder: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let (store, found) = Store::open(folder).context("the store does not open")?;
        ensure!(
            found.set_aside.is_none(),
            "the store was taken for damaged: {:?}",
            store.ledger()
        );
        writeln!(text, "{} {:?}", found.store_id, store.association_book()?)?;
        writeln!(
            text,
            "{:?} {:?}",
            store.sent_period(1, "obs")?,
            store.recalled(SourceId(1))?
        )?;
        let ledger = store.ledger()?;
        let lines = ledger
            .iter()
            .filter(|(count, reason)| *count == 2 && reason == "history");
        writeln!(text, "{} lines", lines.count())?;
        for stored in store.read_from(1, usize::MAX)?.messages {
            if stored.position < END {
                writeln!(text, "{} {:?}", stored.position, stored.message.payload.bytes())?;
            }
        }
        for letter in store.letters(&[1])? {
            writeln!(text, "{:?}", letter.message.message.payload.bytes())?;
        }
    }
    let plain = Connection::open(folder.join("store.db"))?;
    let version: i64 = plain.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    writeln!(text, "version {version}")?;
    Ok(text)
}

impl Migration {
    pub fn new(sender: Sender) -> Migration {
        Migration {
            sender,
            expected: String::new(),
            newest: 0,
        }
    }
}

impl Story for Migration {
    fn begin(&mut self, chance: &mut Chance, scratch: &Path) -> anyhow::Result<Image> {
        let fixtures = fixtures()?;
        self.newest = fixtures.len() as i64;
        let fixture = &fixtures[chance.below(fixtures.len() as u64) as usize];
        let image = lay_down(fixture, chance.below(2) == 0, scratch)?;
        let copy = tempfile::tempdir_in(scratch)?;
        image.write_to(copy.path())?;
        let (store, found) = Store::open(copy.path())?;
        self.expected = picture(&store, &found)?;
        Ok(image)
    }

    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()> {
        let (mut store, _) = self.sender.open(folder)?;
        for _ in 0..chance.below(3) {
            self.sender.send(&mut store, 1 + chance.below(3))?;
        }
        Ok(())
    }

    fn judge(&mut self, folder: &Path) -> anyhow::Result<()> {
        let (store, found) = self.sender.open(folder).context("the store does not open")?;
        ensure!(
            found.set_aside.is_none(),
            "the store was taken for damaged: {:?}",
            store.ledger()
        );
        let now = picture(&store, &found)?;
        let differs = now
            .lines()
            .zip(self.expected.lines())
            .find(|(now, expected)| now != expected);
        ensure!(differs.is_none(), "the store is not what it was: {differs:?}");
        self.sender.judge(&store)?;
        drop(store);
        sqlite_finds_nothing_wrong(folder)?;
        let plain = Connection::open(folder.join("store.db"))?;
        let version: i64 = plain.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        ensure!(version == self.newest, "the store is of version {version}");
        Ok(())
    }

    fn sender(&self) -> &Sender {
        &self.sender
    }
}
