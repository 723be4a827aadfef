//! The same with a real kernel and the program for ARM: `power-cuts --guest`.
//!
//! A virtual machine (aarch64, Debian's kernel, ext4) runs the agent as it ships, fed by a sender on this machine, killed and
//! stopped now and then; qemu records every write and flush of its disk. Then the power is cut at random entries of that
//! record, half of them while the agent starts: what was flushed is there, of the rest some, torn at sectors. For each cut
//! the disk is given to a second guest, whose kernel recovers ext4's journal and whose agent opens and checks the store;
//! then the files are looked at here.
//!
//! Judged: each acknowledgement that the sender had seen before the cut is for a message that is there, as it was sent, once.
//! An acknowledgement is due from the entry on at which the record stood when it was seen.
//!
//! | Class | What the agent lives with |
//! |---|---|
//! | `journal` | an empty disk |
//! | `sealed` | the same with encryption at rest: also, no file holds a readable payload |
//! | `migration` | a store of each released version, one after the other: also, what it held stays |
//! | `salvage` | damaged stores, with their log and without, sealed and not: they are put aside, another one is begun, what can be read comes over; also, each message of then is there once under its identity |
//!
//! Seen on two busy cores, of the acknowledged none lost and none twice:
//!
//! | Class | Cuts | Entries | Flushes | Acknowledged | Recorded | Judged |
//! |---|---|---|---|---|---|---|
//! | `journal` | 1,000 | 1,385 | 631 | 9,388 | 76 s | 1,118 s |
//! | `journal`, half of the cuts at starts | 300 | 1,403 | 637 | 9,724 | 76 s | 220 s |
//! | `sealed` | 300 | 1,701 | 760 | 11,705 | 74 s | 220 s |
//! | `migration`, versions 1 to 10 | 60 | 2,821 | 1,205 | 14,295 | 103 s | 196 s |
//! | `salvage` | 250 | 1,692 | 753 | 8,342 | 68 s | 362 s |
//!
//! `--sabotage forget-flushes` replays as if the last flushes had not been asked for, `--sabotage ack-before-commit` judges as
//! if each acknowledgement had been seen a commit earlier: both must be found.

mod judge;
mod machine;
mod sender;
mod stores;
mod write_log;

use anyhow::{Context, ensure};
use bedside_disk::Chance;
use judge::Judge;
use machine::{Machine, Parts};
use sender::Acknowledged;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use stores::Place;
pub use stores::{CLASSES, Class};
use write_log::WriteLog;

/// What is made wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The record is replayed as if the last flushes had not been asked for.
    ForgetFlushes,
    /// Acknowledgements are taken for seen before the commit that they wait for.
    AckBeforeCommit,
}

/// What can be made wrong, by name.
pub const WRONGS: &[(&str, Wrong)] = &[
    ("forget-flushes", Wrong::ForgetFlushes),
    ("ack-before-commit", Wrong::AckBeforeCommit),
];

/// Entries of the record that a commit takes at least.
const COMMIT: u64 = 4;

/// In every payload of the sender, and in nothing else that the guest writes.
const READABLE: &[u8] = b"\"note\":\"";

/// Bytes of the guest's disk.
const DISK: u64 = 48 << 20;
/// Entries behind the first acknowledgement of a life that belong to its start: what is salvaged comes over beside new messages.
const BEHIND_START: u64 = 40;
/// A line that does not come for so long never comes: the guest is emulated, and other work may be going on.
const SILENCE: Duration = Duration::from_secs(240);

/// What was found out.
pub struct Outcome {
    pub cuts: u64,
    pub acknowledged: usize,
    pub writes: u64,
    pub flushes: usize,
    pub recorded: Duration,
    pub judged: Duration,
}

fn command(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.to_owned())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

fn parts() -> anyhow::Result<Parts> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let prepare = package.join("guest/prepare");
    ensure!(
        Command::new(&prepare).status()?.success(),
        "{} could not bring what the guest needs",
        prepare.display()
    );
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| package.join("../target"), PathBuf::from);
    let agent = std::env::var_os("BEDSIDE_GUEST_AGENT").map_or_else(
        || target.join("cross/aarch64-unknown-linux-musl/release/bedside-agent"),
        PathBuf::from,
    );
    Ok(Parts {
        tools: target.join("tools/guest"),
        init: package.join("guest/init"),
        agent,
    })
}

/// Records a disk with the stores of a class and cuts its power `cuts` times; the error is the first finding.
pub fn run(
    class: &Class,
    cuts: u64,
    seed: u64,
    wrong: Option<Wrong>,
    scratch: &Path,
) -> anyhow::Result<Outcome> {
    let Class {
        name: class,
        lives,
        seconds,
        ..
    } = class;
    let parts = parts()?;
    let folder = tempfile::tempdir_in(scratch)?;
    let content = tempfile::tempdir_in(scratch)?;
    let places = stores::lay_down_all(class, seed, scratch, content.path())?;
    let at = |name: &str| folder.path().join(name);
    let (disk, before, log, archive) = (
        at("disk.img"),
        at("before.img"),
        at("writes.log"),
        at("first.cpio"),
    );
    File::create(&disk)?.set_len(DISK)?;
    let name = disk.display().to_string();
    let content = content.path().display().to_string();
    // Blocks as on a card of many gigabytes.
    let options = [
        "-q",
        "-F",
        "-b",
        "4096",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        "-d",
        &content,
        &name,
    ];
    command("mkfs.ext4", &options)?;
    std::fs::copy(&disk, &before)?;
    File::create(&log)?.set_len(2 << 30)?;

    let acknowledged = Acknowledged::default();
    let port = sender::start(&log, &acknowledged)?;
    let packs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings/heart-rate");
    let device = std::fs::read_to_string(packs.join("devicecontent.json"))?;
    let fhir = std::fs::read_to_string(packs.join("fhirmapping.json"))?;
    let mut files = vec![
        ("mappings/heart-rate/devicecontent.json".to_owned(), device),
        ("mappings/heart-rate/fhirmapping.json".to_owned(), fhir),
    ];
    for (number, place) in (1..).zip(&places) {
        files.push((format!("agent-{number}.toml"), place.configuration(port)));
    }
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    parts.write_archive(&archive, &files)?;

    let begin = Instant::now();
    let task = format!("seconds={seconds} stores={}", places.len());
    let begun = record(&parts, &archive, &task, lives * places.len(), &disk, &log)?;
    let recorded = begin.elapsed();
    let mut acknowledged = acknowledged
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    if wrong == Some(Wrong::AckBeforeCommit) {
        let entries = acknowledged.values_mut();
        entries.for_each(|entries| *entries = entries.saturating_sub(COMMIT));
    }
    ensure!(
        !acknowledged.is_empty(),
        "nothing was acknowledged: the proof proves nothing"
    );
    let mut log = WriteLog::read(&log, &before)?;
    let starts = starts(&begun, &acknowledged, log.len());
    eprintln!(
        "{class}: recorded {} entries, {} flushes and {} acknowledgements in {} s; the starts of lives: {starts:?}",
        log.len(),
        log.flushes(),
        acknowledged.len(),
        recorded.as_secs()
    );
    if places.iter().all(Place::is_sealed) {
        let readable = log.first_with(READABLE);
        ensure!(
            readable.is_none(),
            "a readable payload went to the disk: entry {readable:?}"
        );
    }
    let begin = Instant::now();
    let mut judge = Judge::new(&parts, &archive, &disk, &acknowledged, &places);
    let mut chance = Chance(seed);
    let mut cut_before: Vec<u64> = (1..cuts)
        .map(|_| {
            // Half of them while the agent starts: store made, migrated, put aside, salvaged, recovered.
            if chance.below(2) == 0 {
                return 1 + chance.below(log.len());
            }
            let (from, until) = starts[chance.below(starts.len() as u64) as usize];
            from + chance.below(until - from + 1)
        })
        .collect();
    // The last one comes when all is recorded: every store must have been lived with by then.
    cut_before.push(log.len());
    cut_before.sort_unstable();
    for (number, cut) in cut_before.iter().enumerate() {
        let left = log.cut(*cut, &mut chance, wrong == Some(Wrong::ForgetFlushes));
        let verdict = judge.look(number, *cut, &left);
        verdict.with_context(|| format!("cut {number}, before entry {cut} of the record"))?;
        if number % 100 == 99 {
            eprintln!("{class}: {} cuts in {} s", number + 1, begin.elapsed().as_secs());
        }
    }
    ensure!(
        judge.lived_with() == places.len(),
        "the agent took messages into {} of {} stores: the proof proves little",
        judge.lived_with(),
        places.len()
    );
    Ok(Outcome {
        cuts,
        acknowledged: acknowledged.len(),
        writes: log.len(),
        flushes: log.flushes(),
        recorded,
        judged: begin.elapsed(),
    })
}

/// Entries of the record in which each life started: from its begin to some way behind its first acknowledgement.
fn starts(begun: &[u64], acknowledged: &BTreeMap<u64, u64>, end: u64) -> Vec<(u64, u64)> {
    begun
        .iter()
        .map(|from| {
            let later = acknowledged.values().copied().filter(|entries| entries > from);
            let first = later.min().unwrap_or(*from);
            ((*from).max(1), (first + BEHIND_START).min(end))
        })
        .collect()
}

/// Lets the agent live in a guest whose disk is recorded; gives the entries at which its lives began.
fn record(
    parts: &Parts,
    archive: &Path,
    task: &str,
    lives: usize,
    disk: &Path,
    log: &Path,
) -> anyhow::Result<Vec<u64>> {
    let drives = [
        format!("driver=file,filename={},node-name=file", disk.display()),
        format!("driver=file,filename={},node-name=log", log.display()),
        "driver=blklogwrites,node-name=d0,file=file,log=log,log-super-update-interval=1".to_owned(),
    ];
    let arguments: Vec<String> = drives
        .into_iter()
        .flat_map(|drive| ["-blockdev".to_owned(), drive])
        .collect();
    let task = format!("guest=record lives={lives} {task}");
    let machine = Machine::boot(parts, archive, &task, &arguments)?;
    let mut begun = Vec::new();
    for life in 1..=lives {
        machine.wait(&format!("life {life} begins"), SILENCE)?;
        begun.push(write_log::entries(log)?);
    }
    machine.wait("recorded", SILENCE)?;
    Ok(begun)
}
