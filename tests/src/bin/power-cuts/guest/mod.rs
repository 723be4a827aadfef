//! The same with a real kernel and the program for ARM: `power-cuts --guest`.
//!
//! A virtual machine (aarch64, Debian's kernel, ext4) runs the agent as it ships, fed by a sender on this machine, killed and
//! stopped now and then; qemu records every write and flush of its disk. Then the power is cut at random entries of that
//! record: what was flushed is there, of the rest some, torn at sectors. For each cut the disk is given to a second guest,
//! whose kernel recovers ext4's journal and whose agent opens and checks the store; then the files are looked at here.
//!
//! Judged: each acknowledgement that the sender had seen before the cut is for a message that is there, as it was sent, once.
//! An acknowledgement is due from the entry on at which the record stood when it was seen.
//!
//! Seen on two busy cores: 1,000 cuts over 1,385 entries and 631 flushes, 9,388 acknowledgements, none lost and none twice;
//! recorded in 76 s, judged in 1,118 s (500 cuts in 355 s when less else was going on).
//!
//! `--sabotage forget-flushes` replays as if the last flushes had not been asked for: that must be found.

mod machine;
mod sender;
mod write_log;

use crate::story::sqlite_finds_nothing_wrong;
use anyhow::{Context, bail, ensure};
use bedside_agent::store::Store;
use bedside_disk::Chance;
use machine::{Machine, Parts};
use sender::Acknowledged;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use write_log::WriteLog;

/// Replaying as if flushes had not been asked for.
pub const FORGET_FLUSHES: &str = "forget-flushes";

/// Bytes of the guest's disk.
const DISK: u64 = 48 << 20;
/// Lives of the agent that are recorded: two of three end by a kill.
const LIVES: u32 = 6;
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

fn configuration(port: u16) -> String {
    format!(
        "[gateway]\nid = \"guest\"\n[mappings]\ndir = \"/mappings\"\n[clock]\ntrust = \"always\"\n\
         [store]\ndir = \"/state/store\"\nmax_bytes = \"30 MiB\"\nmin_free_disk = \"1 MiB\"\ncommit_interval = \"200 ms\"\n\
         progress_interval = \"1 s\"\n\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://10.0.2.2:{port}\"\nprotocol = \"3.1.1\"\n\
         topics = [\"wearables/+/telemetry\"]\nwindow = 20\n\
         [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://127.0.0.1:1\"\nresolution = \"create\"\n"
    )
}

/// Records a disk and cuts its power `cuts` times; the error is the first finding.
pub fn run(cuts: u64, seed: u64, forgetful: bool, scratch: &Path) -> anyhow::Result<Outcome> {
    let parts = parts()?;
    let folder = tempfile::tempdir_in(scratch)?;
    let at = |name: &str| folder.path().join(name);
    let (disk, before, log, archive) = (
        at("disk.img"),
        at("before.img"),
        at("writes.log"),
        at("first.cpio"),
    );
    File::create(&disk)?.set_len(DISK)?;
    let name = disk.display().to_string();
    // Blocks as on a card of many gigabytes.
    let options = [
        "-q",
        "-F",
        "-b",
        "4096",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
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
    let files = [
        ("agent.toml", configuration(port)),
        ("mappings/heart-rate/devicecontent.json", device),
        ("mappings/heart-rate/fhirmapping.json", fhir),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    parts.write_archive(&archive, &files)?;

    let begin = Instant::now();
    record(&parts, &archive, &disk, &log)?;
    let recorded = begin.elapsed();
    let acknowledged = acknowledged
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    ensure!(
        !acknowledged.is_empty(),
        "nothing was acknowledged: the proof proves nothing"
    );
    let mut log = WriteLog::read(&log, &before)?;
    eprintln!(
        "recorded {} entries, {} flushes and {} acknowledgements in {} s",
        log.len(),
        log.flushes(),
        acknowledged.len(),
        recorded.as_secs()
    );
    let begin = Instant::now();
    let mut judge = Judge {
        machine: None,
        parts: &parts,
        archive: &archive,
        disk: &disk,
        folder: folder.path(),
        acknowledged: &acknowledged,
    };
    let mut chance = Chance(seed);
    let mut places: Vec<u64> = (0..cuts).map(|_| 1 + chance.below(log.len())).collect();
    places.sort_unstable();
    for (number, cut) in places.iter().enumerate() {
        let left = log.cut(*cut, &mut chance, forgetful);
        let verdict = judge.look(number, *cut, &left);
        verdict.with_context(|| format!("cut {number}, before entry {cut} of the record"))?;
        if number % 100 == 99 {
            eprintln!("{} cuts in {} s", number + 1, begin.elapsed().as_secs());
        }
    }
    Ok(Outcome {
        cuts,
        acknowledged: acknowledged.len(),
        writes: log.len(),
        flushes: log.flushes(),
        recorded,
        judged: begin.elapsed(),
    })
}

/// Lets the agent live in a guest whose disk is recorded.
fn record(parts: &Parts, archive: &Path, disk: &Path, log: &Path) -> anyhow::Result<()> {
    let drives = [
        format!("driver=file,filename={},node-name=file", disk.display()),
        format!("driver=file,filename={},node-name=log", log.display()),
        "driver=blklogwrites,node-name=d0,file=file,log=log,log-super-update-interval=1".to_owned(),
    ];
    let arguments: Vec<String> = drives
        .into_iter()
        .flat_map(|drive| ["-blockdev".to_owned(), drive])
        .collect();
    let machine = Machine::boot(parts, archive, &format!("guest=record lives={LIVES}"), &arguments)?;
    machine.wait("recorded", SILENCE)?;
    Ok(())
}

struct Judge<'a> {
    machine: Option<Machine>,
    parts: &'a Parts,
    archive: &'a Path,
    disk: &'a Path,
    folder: &'a Path,
    acknowledged: &'a BTreeMap<u64, u64>,
}

impl Judge<'_> {
    /// Gives a disk to the guest, then looks at it here.
    fn look(&mut self, number: usize, cut: u64, left: &[u8]) -> anyhow::Result<()> {
        // Between two cuts the guest has the disk not mounted, and keeps nothing of it.
        File::options()
            .write(true)
            .open(self.disk)?
            .write_all_at(left, 0)?;
        let machine = match &mut self.machine {
            Some(machine) => machine,
            none => {
                let drive = format!(
                    "file={},format=raw,if=none,id=d0,cache=unsafe",
                    self.disk.display()
                );
                let machine = Machine::boot(
                    self.parts,
                    self.archive,
                    "guest=judge",
                    &["-drive".to_owned(), drive],
                )?;
                machine.wait("ready", SILENCE)?;
                none.insert(machine)
            }
        };
        machine.say(&format!("cut {number}"))?;
        let said = machine.wait(&format!("cut {number} "), SILENCE)?;
        let due: Vec<u64> = self
            .acknowledged
            .iter()
            .filter(|(_, entries)| **entries <= cut)
            .map(|(serial, _)| *serial)
            .collect();
        let code = said.split(' ').next().unwrap_or_default();
        match code {
            "0" => {}
            "not-mounted" | "not-unmounted" => bail!("the guest's kernel cannot use the disk: {said}"),
            // Before the first commit there may be no store yet.
            _ if due.is_empty() => return Ok(()),
            _ => bail!("the agent finds fault with the store: {said}"),
        }
        let out = tempfile::tempdir_in(self.folder)?;
        let request = format!("rdump /store {}", out.path().display());
        command("debugfs", &["-R", &request, &self.disk.display().to_string()])?;
        judge_store(&out.path().join("store"), &due)
    }
}

fn judge_store(folder: &Path, due: &[u64]) -> anyhow::Result<()> {
    let (store, found) = Store::open(folder).context("the store does not open")?;
    ensure!(
        found.set_aside.is_none(),
        "the store was taken for damaged: {:?}",
        store.ledger()
    );
    let read = store.read_from(1, usize::MAX)?;
    ensure!(read.damaged.is_empty(), "damaged batches: {:?}", read.damaged);
    let mut there = BTreeSet::new();
    for stored in &read.messages {
        let text = std::str::from_utf8(stored.message.payload.bytes())?;
        let serial = text
            .split("\"heartRate\":")
            .nth(1)
            .and_then(|rest| rest.trim_end_matches('}').parse().ok());
        let serial: u64 = serial.context("a message without its number")?;
        ensure!(
            text == sender::payload(serial),
            "message {serial} is not what was sent"
        );
        ensure!(there.insert(serial), "message {serial} is stored twice");
    }
    let lost: Vec<u64> = due
        .iter()
        .copied()
        .filter(|serial| !there.contains(serial))
        .collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    drop(store);
    sqlite_finds_nothing_wrong(folder)
}
