//! Looks at what a cut left: the guest's kernel and agent first, then this program at the files.

use super::machine::{Machine, Parts};
use super::stores::Place;
use super::{SILENCE, command};
use anyhow::{Context, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Judges one disk after the other, in a guest that stays.
pub struct Judge<'a> {
    machine: Option<Machine>,
    parts: &'a Parts,
    archive: &'a Path,
    disk: &'a Path,
    acknowledged: &'a BTreeMap<u64, u64>,
    places: &'a [Place],
    lived_with: usize,
}

/// What the guest found: the stores with which its agent finds fault, by their numbers from 1.
fn at_fault(said: &str) -> anyhow::Result<BTreeSet<usize>> {
    let code = said.split(' ').next().unwrap_or_default();
    let Some(numbers) = code.strip_prefix("checked") else {
        bail!("the guest's kernel cannot use the disk: {said}");
    };
    let numbers = numbers.split(',').skip(1).map(str::parse);
    numbers
        .collect::<Result<_, _>>()
        .with_context(|| format!("the guest says {said:?}"))
}

impl Judge<'_> {
    /// `acknowledged` holds the entry from which on each message is due, `disk` the file that is the guest's disk.
    pub fn new<'a>(
        parts: &'a Parts,
        archive: &'a Path,
        disk: &'a Path,
        acknowledged: &'a BTreeMap<u64, u64>,
        places: &'a [Place],
    ) -> Judge<'a> {
        Judge {
            machine: None,
            parts,
            archive,
            disk,
            acknowledged,
            places,
            lived_with: 0,
        }
    }

    /// Stores that held messages of the sender after the last cut.
    pub fn lived_with(&self) -> usize {
        self.lived_with
    }

    /// Judges the cut before entry `cut`, which left this disk; the error is a finding.
    pub fn look(&mut self, number: usize, cut: u64, left: &[u8]) -> anyhow::Result<()> {
        // Between two cuts the guest has the disk not mounted, and keeps nothing of it.
        File::options()
            .write(true)
            .open(self.disk)?
            .write_all_at(left, 0)?;
        let machine = match &mut self.machine {
            Some(machine) => machine,
            none => none.insert(self.parts.judging(self.archive, self.disk, self.places.len())?),
        };
        machine.say(&format!("cut {number}"))?;
        let said = machine.wait(&format!("cut {number} "), SILENCE)?;
        let at_fault = at_fault(&said)?;
        let due = self.acknowledged.iter().filter(|(_, entries)| **entries <= cut);
        let due: BTreeSet<u64> = due.map(|(serial, _)| *serial).collect();

        let out = tempfile::tempdir_in(self.disk.parent().context("the disk is in no folder")?)?;
        let mut there = BTreeSet::new();
        self.lived_with = 0;
        for (store, place) in (1..).zip(self.places) {
            let folder = out.path().join(&place.name);
            let request = format!("rdump /{} {}", place.name, out.path().display());
            command("debugfs", &["-R", &request, &self.disk.display().to_string()])?;
            // It may not be on the disk yet.
            std::fs::create_dir_all(&folder)?;
            let held = place.judge(&folder).with_context(|| place.name.clone())?;
            // Before the first commit there may be no store yet, or a damaged one that is to be put aside.
            ensure!(
                !at_fault.contains(&store) || !place.is_always_whole() && held.is_disjoint(&due),
                "the agent finds fault with {}: {said}",
                place.name
            );
            let twice = held.intersection(&there).next();
            ensure!(twice.is_none(), "message {twice:?} is in two stores");
            self.lived_with += usize::from(!held.is_empty());
            there.extend(held);
        }
        let lost: Vec<u64> = due.difference(&there).copied().collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        Ok(())
    }
}
