//! What an association that was entered or changed afterwards makes wrong on a server, and how it is put right.
//!
//! Invariants:
//! 1. A correction is durable with the entry that it follows from, and leaves with the rows of what is sent again.
//! 2. Retraction comes before resend: nothing is sent to the right patient while the wrong one still shows it, as far as the
//!    server tells.
//! 3. The server is searched by device and time, also where nothing is recorded as sent, and again once its index has had
//!    [`INDEX_LAG_US`]: an answer that was lost, and a search that lags, hide nothing.
//! 4. Readings that the journal does not have any more are moved on the server, out of what was taken away there; nothing is
//!    taken away that would then be nowhere. What cannot be moved is in the ledger.
//! 5. What is right is judged when it is done, by all that is known then: corrections may follow each other in any order.

use crate::associations::{Change, Ticks};
use crate::config::{DestinationConfig, DestinationKind};
use std::collections::{BTreeMap, HashMap};

/// How far back a correction reaches where the configuration does not say: 7 days, in ticks of 100 ns.
pub const WINDOW: Ticks = 7 * 86_400 * 10_000_000;
/// How long a search may lag behind a write: microseconds.
pub const INDEX_LAG_US: u64 = 60_000_000;

/// A stretch of time of a device whose readings may be with a patient that is not theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Correction {
    /// Its number.
    pub number: i64,
    /// The destination.
    pub destination: u32,
    /// What changed.
    pub change: Change,
}

impl Correction {
    /// Makes it reach over `gone` too; says whether it did not.
    pub fn widen(&mut self, gone: (Ticks, Ticks)) -> bool {
        let change = &mut self.change;
        let reached =
            change.from.is_none_or(|from| from <= gone.0) && change.to.is_none_or(|to| gone.1 <= to);
        change.from = change.from.map(|from| from.min(gone.0));
        change.to = change.to.map(|to| to.max(gone.1));
        !reached
    }
}

/// A correction with what only memory knows of it.
#[derive(Clone, Debug)]
pub struct Open {
    /// The correction.
    pub correction: Correction,
    /// When a search was complete for the first time: monotonic microseconds.
    pub searched_us: Option<u64>,
    /// When it is to be gone on with: monotonic microseconds.
    pub due_us: u64,
}

/// How far back corrections of each destination reach, by its number.
#[derive(Clone, Debug, Default)]
pub struct Windows(HashMap<u32, Ticks>);

impl Windows {
    /// As the configuration says; `numbers` are those of the destinations, in its order.
    pub fn of(destinations: &[DestinationConfig], numbers: &[u32]) -> Windows {
        let window = |config: &DestinationConfig| match &config.kind {
            DestinationKind::Fhir(fhir) => Some(fhir.correction_ticks()),
            DestinationKind::EventHub(_) => None,
        };
        let all = numbers.iter().zip(destinations);
        Windows(
            all.filter_map(|(number, one)| Some((*number, window(one)?)))
                .collect(),
        )
    }

    fn window(&self, destination: u32) -> Ticks {
        self.0.get(&destination).copied().unwrap_or(WINDOW)
    }
}

/// All corrections that are not done.
#[derive(Debug, Default)]
pub struct Corrections {
    open: BTreeMap<i64, Open>,
    next: i64,
    windows: Windows,
}

impl Corrections {
    /// The corrections as the store had them.
    pub fn restore(stored: Vec<Correction>, windows: Windows) -> Corrections {
        let mut corrections = Corrections {
            windows,
            ..Corrections::default()
        };
        for correction in stored {
            corrections.take(correction);
        }
        corrections
    }

    /// Gives changes their numbers; `now` is the trusted wall time, which bounds how far back they reach. What is older
    /// than that stays as it is.
    pub fn number(&mut self, changes: Vec<(u32, Change)>, now: Option<Ticks>) -> Vec<Correction> {
        let mut numbered = Vec::new();
        for (destination, mut change) in changes {
            if let Some(earliest) = now.map(|now| now.saturating_sub(self.windows.window(destination))) {
                if change.to.is_some_and(|to| to <= earliest) {
                    continue;
                }
                change.from = Some(change.from.map_or(earliest, |from| from.max(earliest)));
            }
            self.next += 1;
            numbered.push(Correction {
                number: self.next,
                destination,
                change,
            });
        }
        numbered
    }

    /// Takes a correction up: it is in the store, or on its way there.
    pub fn take(&mut self, correction: Correction) {
        self.next = self.next.max(correction.number);
        let open = Open {
            correction,
            searched_us: None,
            due_us: 0,
        };
        self.open.insert(open.correction.number, open);
    }

    /// The first correction of a destination that is due.
    pub fn due(&self, destination: u32, now_us: u64) -> Option<Open> {
        let mut of = self
            .open
            .values()
            .filter(|o| o.correction.destination == destination);
        of.find(|open| open.due_us <= now_us).cloned()
    }

    /// When the next one of a destination is due: monotonic microseconds.
    pub fn next_due(&self, destination: u32) -> Option<u64> {
        let of = self
            .open
            .values()
            .filter(|o| o.correction.destination == destination);
        of.map(|open| open.due_us).min()
    }

    /// A correction to be changed.
    pub fn get_mut(&mut self, number: i64) -> Option<&mut Open> {
        self.open.get_mut(&number)
    }

    /// A correction is done.
    pub fn finish(&mut self, number: i64) {
        self.open.remove(&number);
    }

    /// How many of a destination are not done.
    pub fn count(&self, destination: u32) -> u64 {
        self.open
            .values()
            .filter(|open| open.correction.destination == destination)
            .count() as u64
    }
}
