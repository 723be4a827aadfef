//! Power cuts against the store, its outbox and everything else that must survive them:
//! `power-cuts [--cuts N] [--seed S] [--class NAME] [--troubles] [--guest] [--sabotage NAME]`.
//!
//! The real code runs on a disk that forgets what was not synced ([`bedside_disk`]): a file's content is durable after a
//! sync of the file, a name after one of its folder; of the rest anything may be kept, dropped, reordered or torn at
//! sectors. At a random file operation the power goes; what is left of the disk is judged, and the next life starts on it.
//!
//! | Class | What is cut |
//! |---|---|
//! | `journal` | the whole way of a reading, see below |
//! | `sealed` | the same with encryption at rest |
//! | `start` | the first start: folder, database, log and key come into being |
//! | `set-aside` | a damaged store is put aside, another one begun |
//! | `migration` | a store of each released version is brought to the newest, some with commits in their log, some encrypted at the same start |
//! | `salvage` | what can be read of a damaged store comes into the new one, beside new messages: each once, under its former identity |
//! | `checkpoint` | the log is taken into the database and begun anew, pages are given back |
//! | `mapping` | mapping packs are installed and exchanged while messages name them: the old or the new one is in use, whole, and every message names the one that it met |
//!
//! **Journal.** The loops around the store are played in one thread in the order of chance: a sender that sends again what
//! was not acknowledged, normalizing, two destinations that take, refuse or park readings, commits of progress, dropped
//! segments, orderly restarts. Sender and destinations outlive the cuts, which also come within opening and closing.
//! Judged after every cut: each message whose acknowledgement was seen is in the journal once, or all its readings came
//! through and its segment was dropped; each reading is told to its destination, or behind the cursor, or in a row; no
//! confirmed reading is sent again, and none ever under another event id; the counters balance; SQLite finds nothing
//! wrong. After a chain of cuts every acknowledged reading has come through.
//!
//! **Sealed.** Also: nothing is ever sealed twice with the same random bytes, also what no cut left on the disk; the key is
//! there whenever something was acknowledged; no file holds a readable payload.
//!
//! With `--troubles` (journal only) calls of the disk fail between the cuts too, at any place and for any number of calls:
//! no room, a write cut short, a device that refuses writes, syncs or reads, a medium that is read-only.
//!
//! With `--guest` a virtual machine with ext4 and the program for ARM takes the place of all this, for the classes
//! `journal`, `sealed`, `migration` and `salvage` (`guest/mod.rs`).
//!
//! The last line is JSON; the exit code is 1 at the first finding, with the seed that repeats it.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a proof must stop at once when it is itself broken, and measures its own time"
)]

mod guest;
mod journal;
mod life;
mod stories;
mod story;

use anyhow::{Context, bail, ensure};
use bedside_agent::config::Encryption;
use bedside_agent::sabotage;
use life::World;
use std::path::{Path, PathBuf};

/// Cuts in a row before the chain is drained and a new store begun.
const CHAIN: u64 = 25;

/// The classes with their share of the cuts, in percent.
const CLASSES: &[(&str, u64)] = &[
    ("journal", 30),
    ("sealed", 10),
    ("start", 14),
    ("set-aside", 16),
    ("migration", 10),
    ("checkpoint", 6),
    ("mapping", 10),
    ("salvage", 4),
];

struct Arguments {
    cuts: u64,
    seed: u64,
    class: Option<String>,
    fault: Option<String>,
    troubles: bool,
    guest: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut arguments = Arguments {
        cuts: 2000,
        seed: 1,
        class: None,
        fault: None,
        troubles: false,
        guest: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--troubles" {
            arguments.troubles = true;
            continue;
        }
        if word == "--guest" {
            arguments.guest = true;
            continue;
        }
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--cuts" => arguments.cuts = value.parse()?,
            "--seed" => arguments.seed = value.parse()?,
            "--class" if is_class(&value) => arguments.class = Some(value),
            "--sabotage" => arguments.fault = Some(value),
            _ => bail!(
                "usage: power-cuts [--cuts N] [--seed S] [--class {}] [--troubles] [--guest] [--sabotage NAME]",
                class_names()
            ),
        }
    }
    Ok(arguments)
}

fn is_class(wanted: &str) -> bool {
    CLASSES.iter().any(|(name, _)| *name == wanted)
}

fn class_names() -> String {
    let names: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).collect();
    names.join("|")
}

/// What a class has come to so far.
#[derive(Default)]
struct Tally {
    cuts: u64,
    acknowledged: u64,
    duplicated: usize,
    failures: u64,
    survived: u64,
    reopened: u64,
}

/// Cuts of one class.
fn cut(
    class: &str,
    arguments: &Arguments,
    cuts: u64,
    scratch: &Path,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let seed = arguments.seed.wrapping_mul(1_000_003);
    if !matches!(class, "journal" | "sealed") {
        return story::play(
            class,
            cuts,
            seed,
            scratch,
            &mut tally.cuts,
            &mut tally.acknowledged,
        );
    }
    while tally.cuts < cuts {
        let number = CHAIN.min(cuts - tally.cuts);
        let mut world = World {
            troubles: arguments.troubles,
            encryption: if class == "sealed" {
                Encryption::Own
            } else {
                Encryption::Off
            },
            ..World::default()
        };
        // Chains of one seed differ, and so do those of neighbouring seeds.
        let of_chain = seed.wrapping_add(tally.cuts);
        let result = journal::chain(of_chain, number, scratch, &mut world);
        tally.acknowledged += world.acknowledged.len() as u64;
        tally.duplicated += world.twice.len();
        tally.failures += world.failures;
        tally.survived += world.survived;
        tally.reopened += world.reopened;
        if result.is_err() && arguments.troubles {
            eprintln!("calls that failed before it: {:?}", world.refusals);
        }
        result.with_context(|| format!("chain {of_chain}"))?;
        tally.cuts += number;
    }
    Ok(())
}

/// Where the disks are: in memory, where there is a file system for it.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

fn in_guest(arguments: &Arguments) -> anyhow::Result<()> {
    let wrong = arguments.fault.as_deref().map(|wanted| {
        let found = guest::WRONGS.iter().find(|(name, _)| *name == wanted);
        let names: Vec<&str> = guest::WRONGS.iter().map(|(name, _)| *name).collect();
        found
            .map(|(_, wrong)| *wrong)
            .with_context(|| format!("the guest knows --sabotage {} only", names.join(", ")))
    });
    let wrong = wrong.transpose()?;
    let (mut cuts, mut acknowledged) = (0, 0);
    let mut classes = serde_json::Map::new();
    for class in guest::CLASSES {
        let of_class = match arguments.class.as_deref() {
            Some(only) if only == class.name => arguments.cuts,
            Some(_) => continue,
            None => (arguments.cuts * class.share).div_ceil(100),
        };
        match guest::run(class, of_class, arguments.seed, wrong, &scratch()) {
            Ok(done) => {
                cuts += done.cuts;
                acknowledged += done.acknowledged;
                let figures = serde_json::json!({"cuts": done.cuts, "acknowledged": done.acknowledged,
                    "writes": done.writes, "flushes": done.flushes, "recorded_s": done.recorded.as_secs(),
                    "judged_s": done.judged.as_secs()});
                classes.insert(class.name.to_owned(), figures);
            }
            Err(finding) => {
                eprintln!("finding: {finding:#}");
                let line = serde_json::json!({"cuts": of_class, "finding": true, "what": format!("{finding:#}"),
                    "class": class.name, "seed": arguments.seed, "sabotage": arguments.fault});
                println!("{line}");
                std::process::exit(1);
            }
        }
    }
    ensure!(!classes.is_empty(), "the guest does not have this class");
    println!(
        "{}",
        serde_json::json!({"cuts": cuts, "acknowledged": acknowledged, "lost": 0, "duplicated": 0, "guest": classes})
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    if arguments.guest {
        return in_guest(&arguments);
    }
    if let Some(name) = &arguments.fault {
        sabotage::turn_on(name)?;
    }
    sabotage::watch_exchanges(bedside_disk::exchange);
    let only = arguments
        .class
        .as_deref()
        .or(arguments.troubles.then_some("journal"));
    let scratch = scratch();
    let mut total = Tally::default();
    let mut classes = serde_json::Map::new();
    for (class, share) in CLASSES {
        let cuts = match only {
            Some(only) if only == *class => arguments.cuts,
            Some(_) => continue,
            None => (arguments.cuts * share).div_ceil(100),
        };
        let begin = std::time::Instant::now();
        let mut tally = Tally::default();
        let result = cut(class, &arguments, cuts, &scratch, &mut tally);
        total.cuts += tally.cuts;
        total.acknowledged += tally.acknowledged;
        total.duplicated += tally.duplicated;
        total.failures += tally.failures;
        total.survived += tally.survived;
        total.reopened += tally.reopened;
        if let Err(finding) = result {
            let (cuts, seed) = (tally.cuts, arguments.seed);
            eprintln!("finding after {cuts} cuts of class {class}, seed {seed}: {finding:#}");
            let line = serde_json::json!({"cuts": total.cuts, "acknowledged": total.acknowledged, "finding": true,
                "what": format!("{finding:#}"), "class": class, "duplicated": total.duplicated, "seed": seed,
                "sabotage": arguments.fault});
            println!("{line}");
            std::process::exit(1);
        }
        ensure!(
            tally.acknowledged > 0,
            "{class}: nothing was acknowledged, the proof proves nothing"
        );
        eprintln!("{class}: {cuts} cuts in {} ms", begin.elapsed().as_millis());
        classes.insert((*class).to_owned(), cuts.into());
    }
    let mut line = serde_json::json!({"cuts": total.cuts, "acknowledged": total.acknowledged, "lost": 0, "duplicated": 0,
        "classes": classes});
    if arguments.troubles {
        ensure!(
            total.failures > 0 && total.survived > 0 && total.reopened > 0,
            "nothing failed: the proof proves nothing"
        );
        line["failed_calls"] = total.failures.into();
        line["survived"] = total.survived.into();
        line["reopened"] = total.reopened.into();
    }
    println!("{line}");
    Ok(())
}
