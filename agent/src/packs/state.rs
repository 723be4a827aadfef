//! What becomes of a change in the drop-in folder: pure, on the time that it is told, so that it can be tested on any clock.
//!
//! Invariants:
//! 1. What is in use always loads: a wrong or half-written file leaves the last good pack in use.
//! 2. A change is judged when the files of its pack have been quiet for [`QUIET_US`].
//! 3. While only one of device and FHIR mapping has changed, a pair in which a type would lose its FHIR template waits for
//!    the other file, at most [`HOLD_US`].
//! 4. A folder that cannot be read removes nothing.

use super::folder::{PackFiles, Snapshot};
use super::{Pack, PackFinding, PackSet, PackText};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long the files of a pack must not change before they are read as a pack.
pub const QUIET_US: u64 = 500_000;

/// How long a pair that looks half copied waits for its other file.
pub const HOLD_US: u64 = 60_000_000;

/// What became of a pack.
#[derive(Clone, Debug)]
pub enum PackEvent {
    /// It is in use from now on.
    Loaded {
        /// The pack.
        pack: Arc<Pack>,
        /// What is doubtful in it.
        warnings: Vec<PackFinding>,
    },
    /// Its files are gone; so is the pack.
    Removed {
        /// Its name.
        name: String,
    },
    /// It does not load.
    Rejected {
        /// Its name.
        name: String,
        /// Whether an older version stays in use.
        kept: bool,
        /// Why.
        findings: Vec<PackFinding>,
    },
    /// It loads, and waits for its other file.
    Held {
        /// Its name.
        name: String,
        /// Types that would lose their FHIR template.
        types: Vec<String>,
        /// Monotonic microseconds at which it is taken as it is.
        until_us: u64,
    },
}

/// Kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Files do not load.
    Rejected,
    /// A pair waits for its other file.
    Held,
    /// A file or folder that is part of no pack.
    NotAPack,
    /// The folder cannot be read.
    Folder,
}

/// A problem that lasts, for status and web page.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PackProblem {
    /// Kind.
    pub kind: ProblemKind,
    /// Pack, file or folder.
    pub name: String,
    /// Whether a version of the pack is in use all the same.
    pub in_use: bool,
    /// One line each.
    pub lines: Vec<String>,
    /// The same with the lines of the file and marks below them.
    pub details: String,
}

/// All packs: in use, changing, wrong.
#[derive(Debug, Default)]
pub struct PackState {
    packs: BTreeMap<String, Tracked>,
    strays: Vec<PackFinding>,
    folder: Option<String>,
}

#[derive(Debug, Default)]
struct Tracked {
    /// The version in use.
    current: Option<Arc<Pack>>,
    /// The files as they were seen last.
    seen: Option<PackFiles>,
    /// When they changed.
    changed_us: u64,
    standing: Standing,
}

/// Where the files seen last stand.
#[derive(Debug, Default, PartialEq)]
enum Standing {
    /// Still changing.
    #[default]
    Changing,
    /// In use, or as the version in use is.
    Taken,
    Rejected(Vec<PackFinding>),
    Held(Vec<String>),
}

impl PackState {
    /// A state in which the last good packs of the store are in use until the folder says otherwise.
    pub fn new(last_good: Vec<PackText>) -> PackState {
        let mut state = PackState::default();
        for text in last_good {
            if let (Some(pack), _) = Pack::load(text) {
                let tracked = state.packs.entry(pack.text.name.clone()).or_default();
                tracked.current = Some(Arc::new(pack));
            }
        }
        state
    }

    /// Takes the first look: what is on the disk at start has been quiet long enough.
    pub fn observe_at_start(&mut self, snapshot: &Snapshot, now_us: u64) -> Vec<PackEvent> {
        self.look(snapshot, now_us, now_us.saturating_sub(QUIET_US))
    }

    /// Takes another look at the folder. To be called when something has changed, at [`PackState::next_due`], and now and
    /// then.
    pub fn observe(&mut self, snapshot: &Snapshot, now_us: u64) -> Vec<PackEvent> {
        self.look(snapshot, now_us, now_us)
    }

    fn look(&mut self, snapshot: &Snapshot, now_us: u64, changed_us: u64) -> Vec<PackEvent> {
        self.folder = snapshot.folder.as_ref().err().cloned();
        if self.folder.is_some() {
            return Vec::new();
        }
        self.strays.clone_from(&snapshot.strays);
        for name in snapshot.packs.keys() {
            if !self.packs.contains_key(name) {
                self.packs.insert(name.clone(), Tracked::default());
            }
        }
        let mut events = Vec::new();
        self.packs.retain(|name, tracked| {
            let files = snapshot.packs.get(name);
            let first_look = tracked.standing == Standing::Changing && tracked.changed_us == 0;
            if first_look || tracked.seen.as_ref() != files {
                tracked.seen = files.cloned();
                tracked.changed_us = changed_us.max(1);
                tracked.standing = Standing::Changing;
            }
            if tracked.due_us().is_none_or(|due| now_us < due) {
                return true;
            }
            events.extend(tracked.judge(name, now_us));
            tracked.seen.is_some() || tracked.current.is_some()
        });
        events
    }

    /// When [`PackState::observe`] can judge something that it could not judge yet.
    pub fn next_due(&self) -> Option<u64> {
        self.packs.values().filter_map(Tracked::due_us).min()
    }

    /// The packs in use.
    pub fn set(&self) -> PackSet {
        PackSet::new(
            self.packs
                .values()
                .filter_map(|tracked| tracked.current.clone())
                .collect(),
        )
    }

    /// What is wrong now, in name order.
    pub fn problems(&self) -> Vec<PackProblem> {
        let of_findings = |kind, name: &str, in_use, findings: &[PackFinding]| PackProblem {
            kind,
            name: name.to_owned(),
            in_use,
            lines: findings.iter().map(PackFinding::one_line).collect(),
            details: findings
                .iter()
                .map(PackFinding::render)
                .collect::<Vec<_>>()
                .join("\n"),
        };
        let plain = |kind, name: &str, in_use, line: String| PackProblem {
            kind,
            name: name.to_owned(),
            in_use,
            details: line.clone(),
            lines: vec![line],
        };
        let folder = self.folder.iter().map(|why| {
            plain(
                ProblemKind::Folder,
                "mappings",
                !self.packs.is_empty(),
                format!("the folder of the mapping packs cannot be read: {why}"),
            )
        });
        let packs = self
            .packs
            .iter()
            .filter_map(|(name, tracked)| match &tracked.standing {
                Standing::Rejected(findings) => Some(of_findings(
                    ProblemKind::Rejected,
                    name,
                    tracked.current.is_some(),
                    findings,
                )),
                Standing::Held(types) => Some(plain(ProblemKind::Held, name, true, held_text(name, types))),
                _ => None,
            });
        let strays = self.strays.iter().map(|stray| {
            of_findings(
                ProblemKind::NotAPack,
                &stray.file,
                false,
                std::slice::from_ref(stray),
            )
        });
        folder.chain(packs).chain(strays).collect()
    }
}

/// Why a pair waits, and what to do.
pub fn held_text(name: &str, types: &[String]) -> String {
    format!(
        "{name}: only one file of the pack has changed, and {} would lose the FHIR template; waiting up to 60 s for the other \
         file, the old pair stays in use. Copy both files.",
        types.join(", ")
    )
}

impl Tracked {
    fn due_us(&self) -> Option<u64> {
        match self.standing {
            Standing::Changing => Some(self.changed_us.saturating_add(QUIET_US)),
            Standing::Held(_) => Some(self.changed_us.saturating_add(HOLD_US)),
            Standing::Taken | Standing::Rejected(_) => None,
        }
    }

    /// Decides about files that are quiet.
    fn judge(&mut self, name: &str, now_us: u64) -> Option<PackEvent> {
        let Some(files) = self.seen.clone() else {
            self.standing = Standing::Taken;
            return self.current.take().map(|_| PackEvent::Removed {
                name: name.to_owned(),
            });
        };
        let text = files.text(name).ok();
        if text.is_some() && text.as_ref() == self.current.as_ref().map(|current| &*current.text) {
            self.standing = Standing::Taken;
            return None;
        }
        let (pack, findings) = files.load(name);
        let Some(pack) = pack else {
            return Some(self.reject(name, findings));
        };
        let until_us = self.changed_us.saturating_add(HOLD_US);
        if let Some(types) = self
            .current
            .as_deref()
            .and_then(|current| half_copied(current, &pack))
            && now_us < until_us
        {
            self.standing = Standing::Held(types.clone());
            return Some(PackEvent::Held {
                name: name.to_owned(),
                types,
                until_us,
            });
        }
        let pack = Arc::new(pack);
        self.current = Some(Arc::clone(&pack));
        self.standing = Standing::Taken;
        Some(PackEvent::Loaded {
            pack,
            warnings: findings,
        })
    }

    fn reject(&mut self, name: &str, findings: Vec<PackFinding>) -> PackEvent {
        self.standing = Standing::Rejected(findings.clone());
        PackEvent::Rejected {
            name: name.to_owned(),
            kept: self.current.is_some(),
            findings,
        }
    }
}

/// The types that lose their FHIR template, when only one of the two files differs from the pack in use.
fn half_copied(current: &Pack, new: &Pack) -> Option<Vec<String>> {
    let device_changed = current.text.device != new.text.device;
    let fhir_changed = current.text.fhir != new.text.fhir;
    if device_changed == fhir_changed || current.text.fhir.is_none() && new.text.fhir.is_none() {
        return None;
    }
    let before = current.types_without_template();
    let lost: Vec<String> = new
        .types_without_template()
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    (!lost.is_empty()).then_some(lost)
}
