//! The stores of a class: what is on the disk of the guest at the beginning, and what must be in them after a cut.

use super::sender;
use crate::stories::migration::{fixtures, lay_down, what_stays};
use crate::stories::salvage::{Damage, Former};
use crate::story::{nothing_is_readable, sqlite_finds_nothing_wrong};
use anyhow::{Context, bail, ensure};
use bedside_agent::config::Encryption;
use bedside_agent::message::StoredMessage;
use bedside_agent::store::Store;
use bedside_disk::Chance;
use std::collections::BTreeSet;
use std::path::Path;

/// What the agent lives with, and for how long.
pub struct Class {
    pub name: &'static str,
    /// Part of all cuts, in percent.
    pub share: u64,
    /// Lives of the agent with each of the stores.
    pub lives: usize,
    /// Seconds of a life, of the emulated machine.
    pub seconds: u32,
}

/// All classes.
pub const CLASSES: &[Class] = &[
    Class {
        name: "journal",
        share: 40,
        lives: 6,
        seconds: 12,
    },
    Class {
        name: "sealed",
        share: 20,
        lives: 6,
        seconds: 12,
    },
    Class {
        name: "migration",
        share: 20,
        lives: 1,
        seconds: 10,
    },
    Class {
        name: "salvage",
        share: 20,
        lives: 2,
        seconds: 8,
    },
];

/// What a store is before the agent's first life with it.
enum Before {
    Nothing,
    /// Of an older version; what of it must stay.
    Older(String),
    Damaged(Former),
}

/// One store of the guest.
pub struct Place {
    /// Folder on the disk.
    pub name: String,
    encryption: Encryption,
    before: Before,
}

/// The number of a message of the guest's sender that is as it was sent; none for others.
fn serial_of(stored: &StoredMessage) -> Option<u64> {
    let text = std::str::from_utf8(stored.message.payload.bytes()).ok()?;
    let serial = text
        .split("\"heartRate\":")
        .nth(1)?
        .trim_end_matches('}')
        .parse()
        .ok()?;
    (text == sender::payload(serial)).then_some(serial)
}

/// Lays the stores of a class down in `disk`, each in a folder of its own.
pub fn lay_down_all(class: &str, seed: u64, scratch: &Path, disk: &Path) -> anyhow::Result<Vec<Place>> {
    let mut chance = Chance(seed);
    let mut places = Vec::new();
    let mut place = |encryption: &Encryption, before: Before| {
        places.push(Place {
            name: format!("store-{}", places.len() + 1),
            encryption: encryption.clone(),
            before,
        });
        disk.join(format!("store-{}", places.len()))
    };
    match class {
        "journal" => drop(place(&Encryption::Off, Before::Nothing)),
        "sealed" => drop(place(&Encryption::Own, Before::Nothing)),
        "migration" => {
            for fixture in fixtures()? {
                let image = lay_down(&fixture, chance.below(2) == 0, scratch)?;
                let copy = tempfile::tempdir_in(scratch)?;
                image.write_to(copy.path())?;
                let expected = what_stays(copy.path())?;
                image.write_to(&place(&Encryption::Off, Before::Older(expected)))?;
            }
        }
        "salvage" => {
            for encryption in [Encryption::Off, Encryption::Own] {
                for damage in [Damage::Head, Damage::CondemnedWithLog] {
                    let mut former = Former::new(&encryption);
                    let image = former.begin(damage, &mut chance, scratch)?;
                    image.write_to(&place(&encryption, Before::Damaged(former)))?;
                }
            }
        }
        other => bail!("the guest has no class {other}"),
    }
    Ok(places)
}

impl Place {
    /// The agent's configuration for it.
    pub fn configuration(&self, port: u16) -> String {
        let encryption = self.is_sealed();
        format!(
            "[gateway]\nid = \"guest\"\n[mappings]\ndir = \"/mappings\"\n[clock]\ntrust = \"always\"\n\
             [store]\ndir = \"/state/{}\"\nencryption = {encryption}\nmax_bytes = \"30 MiB\"\nmin_free_disk = \"1 MiB\"\n\
             commit_interval = \"200 ms\"\nprogress_interval = \"1 s\"\n\
             [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://10.0.2.2:{port}\"\nprotocol = \"3.1.1\"\n\
             topics = [\"wearables/+/telemetry\"]\nwindow = 20\n\
             [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://127.0.0.1:1\"\nresolution = \"create\"\n",
            self.name
        )
    }

    /// Whether the agent's own check must find nothing wrong, whenever the power went.
    pub fn is_always_whole(&self) -> bool {
        matches!(self.before, Before::Older(_))
    }

    /// Whether what the guest writes must be readable for nobody.
    pub fn is_sealed(&self) -> bool {
        self.encryption != Encryption::Off
    }

    /// Looks at the store after a cut; gives the messages of the guest's sender that are there.
    pub fn judge(&self, folder: &Path) -> anyhow::Result<BTreeSet<u64>> {
        if self.is_sealed() {
            nothing_is_readable(folder)?;
        }
        if let Before::Older(expected) = &self.before {
            let now = what_stays(folder)?;
            ensure!(
                now == *expected,
                "the store is not what it was: {now} instead of {expected}"
            );
        }
        let opened = Store::open_with(folder, &self.encryption);
        let (mut store, found) = opened.context("the store does not open")?;
        match &self.before {
            Before::Damaged(former) => {
                for mut salvage in found.salvages {
                    while store.salvage_step(&mut salvage, &self.encryption)? {}
                }
                former.judge(&store, |stored| serial_of(stored).is_some())?;
                let salvages = store.salvages()?;
                ensure!(salvages.len() == 1, "set aside more than once: {salvages:?}");
            }
            _ => ensure!(
                found.set_aside.is_none(),
                "the store was taken for damaged: {:?}",
                store.ledger()
            ),
        }
        let read = store.read_from(1, usize::MAX)?;
        ensure!(read.damaged.is_empty(), "damaged batches: {:?}", read.damaged);
        let mut there = BTreeSet::new();
        for stored in &read.messages {
            match serial_of(stored) {
                Some(serial) => ensure!(there.insert(serial), "message {serial} is stored twice"),
                None => ensure!(
                    !matches!(self.before, Before::Nothing),
                    "the message at {} is not what was sent",
                    stored.position
                ),
            }
        }
        drop(store);
        sqlite_finds_nothing_wrong(folder)?;
        Ok(there)
    }
}
