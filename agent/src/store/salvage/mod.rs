//! Salvage: what can be read of a store that was set aside comes into the new one, while the agent runs.
//!
//! The set-aside file is only read, page by page and without SQLite (`pages.rs`), with the memory of an index of
//! [`INDEX`] batches. Three things come over:
//!
//! * **At the opening**, before anything is forwarded: associations, corrections, sightings, the ledger, the records of
//!   devices, the memory of sent periods, what was measured of clocks (`adopt.rs`), and names and mapping packs. These are
//!   small tables, read from their roots, which are found with or without the schema (`tables.rs`); around pages that cannot be
//!   read the rows that are certain (`certain.rs`).
//! * **Messages of the journal**: every batch whose checksum fits and that somebody still has to get, as far as cursors and
//!   rows say; when those cannot be read, every batch that is found.
//! * **Dead letters**, from the copy of the message that each of them has.
//!
//! # Invariants
//!
//! 1. A recovered message keeps stamp, packs and **identity**: its events carry the store id and the position that they had
//!    before (the table `recovered`), so whoever got it already sees the same event id, and the same resource id.
//! 2. A portion, the mark up to which the former journal was gone through, and the runs that give the identities are one
//!    commit: a crash repeats nothing and leaves nothing out.
//! 3. What a destination has confirmed is not sent again where that is known ([`Wanted`]); what cannot be known is sent again.
//! 4. What was needed and cannot be read is counted in the ledger when the salvage ends.
//! 5. No association is invented, nor one taken that a lost one may have ended: of a table that is not whole only entries count
//!    that were entered after everything that is lost. What was left out is said, and while it is not entered again readings
//!    that no entry covers wait (`doubt.rs`).
//! 6. Small tables come over once, from the newest store that had them, and what was entered since comes first.
//! 7. The set-aside file is never changed, and not removed before all of it was gone through and normalized.
//!
//! # How long the files stay
//!
//! Until their salvage is done they take their size from `max_bytes`, up to half of it. After that they are evidence: for a
//! week, as long as all of them fit into an eighth of `max_bytes` and `min_free_disk` is kept; the oldest goes first. The
//! report beside a file stays.

mod adopt;
mod certain;
mod copy;
mod feed;
mod former;
mod keep;
mod needed;
mod pages;
mod pointers;
mod reader;
mod record;
mod runs;
mod shapes;
mod tables;
#[cfg(test)]
mod tests;
mod walk;

pub use feed::Portion;
pub use needed::Wanted;
pub use reader::{Salvage, Step};
pub use runs::{Identity, Run, Runs};

use crate::message::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Batches that are known by their place at a time: a few megabytes. What is behind them is found by another pass.
const INDEX: usize = 50_000;

/// How long a file stays as evidence: a week in ticks of 100 ns.
const EVIDENCE: i64 = 7 * 86_400 * 10_000_000;

/// How far a salvage is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Messages of the journal.
    #[default]
    Journal,
    /// Dead letters.
    Letters,
    /// Everything was gone through.
    Done,
}

/// What a salvage has done, as the store keeps it and as it is shown. No patient data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Name of the set-aside file.
    pub file: String,
    /// Id of the store that it was.
    pub store: String,
    /// How far it is.
    pub stage: Stage,
    /// The former journal was gone through up to this position.
    pub mark: Position,
    /// Dead letters gone through.
    pub letters_seen: u64,
    /// Cursors and rows could be read: only what was not confirmed is taken over.
    pub known: bool,
    /// Messages taken over, those of dead letters included.
    pub messages: u64,
    /// Messages of dead letters among them.
    pub letters: u64,
    /// Messages that were needed, or may have been, and cannot be read.
    pub lost: u64,
    /// Where they were: the first runs of positions.
    pub lost_runs: Vec<(Position, Position)>,
    /// Readings for destinations that are not configured any more: they stay in the file.
    #[serde(default)]
    pub left_behind: u64,
    /// Bytes of batches that were found and are damaged, and of pages that the disk does not give.
    pub unreadable_bytes: u64,
    /// Tables that could not be read whole.
    pub missing: Vec<String>,
    /// Rows of small tables that were found and left out because they are not certain.
    #[serde(default)]
    pub left_out: BTreeMap<String, u64>,
    /// What is certain of the small tables came over.
    #[serde(default)]
    pub tables_taken: bool,
    /// Why it does not go on; none when it does.
    pub waits: Option<String>,
    /// The last position here that it filled.
    pub filled_to: Position,
    /// Wall time of its end: ticks of 100 ns.
    pub finished: Option<i64>,
    /// Everything that came over was normalized: the file is not needed any more.
    pub settled: bool,
}

impl State {
    /// What happened and what is to be done, for the report and the log.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: {} messages recovered ({} of dead letters), {} lost, {} bytes unreadable",
            self.file, self.messages, self.letters, self.lost, self.unreadable_bytes
        );
        match (&self.waits, self.stage) {
            (Some(reason), _) => {
                let _ = write!(text, "; waits: {reason}");
            }
            (None, Stage::Done) => text.push_str("; done"),
            (None, _) => {
                let _ = write!(text, "; at message {} of the former journal", self.mark);
            }
        }
        if !self.known {
            text.push_str(
                "; how far it was could not be read, so everything found is sent again under its event id",
            );
        }
        if self.left_behind > 0 {
            let _ = write!(
                text,
                "; {} readings for destinations that are not configured any more stay in the file",
                self.left_behind
            );
        }
        let lost_tables: Vec<&str> = self.missing.iter().map(String::as_str).collect();
        if !lost_tables.is_empty() {
            let _ = write!(text, "; tables not read whole: {}", lost_tables.join(", "));
        }
        if !self.left_out.is_empty() {
            let rows: Vec<String> = self
                .left_out
                .iter()
                .map(|(table, rows)| format!("{rows} of {table}"))
                .collect();
            let _ = write!(
                text,
                "; rows left out because they are not certain: {}",
                rows.join(", ")
            );
        }
        if self.lost_associations() {
            text.push_str(
                "; enter the associations of devices again (`bedside-agent association list` shows what is there), then say so \
                 with `bedside-agent association complete`",
            );
        } else if self.left_out.contains_key("correction")
            || self.missing.iter().any(|name| name == "correction")
        {
            text.push_str(
                "; what was entered about devices in the last days may not be corrected on the servers: take it back and enter \
                 it again (`bedside-agent association retract`, `association set`)",
            );
        }
        text
    }

    /// Whether what an operator entered about devices is not all there.
    pub fn lost_associations(&self) -> bool {
        self.missing.iter().any(|name| name == "association") || self.left_out.contains_key("association")
    }

    /// Whether the file could be opened and read once, so that its small tables came over.
    fn has_been_read(&self) -> bool {
        self.tables_taken || !self.store.is_empty()
    }

    /// Whether an operator should know of it now: it is under way, or something was lost within the last week.
    pub fn concerns(&self, now: i64) -> bool {
        let is_new = self.finished.is_none_or(|then| now - then < EVIDENCE);
        !self.settled || (self.lost > 0 || self.lost_associations() || self.waits.is_some()) && is_new
    }

    /// The report that lies beside the file.
    fn report(&self) -> String {
        let mut text = format!("{}\n\nStore id: {}\n", self.text(), self.store);
        for (first, last) in &self.lost_runs {
            let _ = writeln!(text, "not readable: messages {first} to {last}");
        }
        text.push_str(
            "\nThe storage may be worn out: look at `dmesg` and at the wear in `bedside-agent status`, and plan to replace it. \
             The file is kept for a week as evidence while there is room (`max_bytes`, `min_free_disk`); it may be deleted.\n",
        );
        text
    }
}
