//! The state of the agent as the command line, the status page and the metrics endpoint show it. No patient data.

use super::errors::ErrorRecord;
use crate::bounds::Outlook;
use crate::store::salvage::State as Salvaged;
use crate::store::{DeadLetterSummary, Statistics, Trouble};
use crate::wear::WearState;
use serde::Serialize;

/// Everything at a glance.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// `[gateway] id`.
    pub gateway: String,
    /// Version of the program.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Wall clock, ISO 8601.
    pub time: String,
    /// Whether the wall clock is trusted.
    pub clock_trusted: bool,
    /// Seconds since a time server was heard last; none when there is no sign of one.
    pub clock_synchronized_seconds: Option<u64>,
    /// How often the wall clock was moved since the start although it was trusted.
    pub clock_jumps: u64,
    /// By how many seconds it was moved, for an hour.
    pub clock_moved_seconds: Option<String>,
    /// Clocks of devices that are corrected by what was measured, or remarkably far off.
    pub device_clocks: Vec<crate::timekeeping::device::Shown>,
    /// `ok`, `degraded` or `trouble`, with the reasons beside it.
    pub health: &'static str,
    /// What is wrong and what to do.
    pub problems: Vec<String>,
    /// All messages and matches, over all destinations.
    pub summary: Summary,
    /// Sources in the order of the configuration.
    pub sources: Vec<SourceState>,
    /// Destinations in the order of the configuration.
    pub destinations: Vec<DestinationState>,
    /// Mapping packs in force.
    pub packs: Vec<PackState>,
    /// The store on its disk.
    pub store: StoreState,
    /// Dead letters by cause.
    pub dead_letters: Vec<DeadLetterSummary>,
    /// Newest lines of the loss ledger.
    pub ledger: Vec<String>,
}

/// The accounting of all messages and template matches; ends `run` and `demo` as one line of JSON.
///
/// `messages = matched + unmatched + unparsable`, and
/// `matches = delivered + superseded + buffered + waiting + dead + lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Messages normalized.
    pub messages: u64,
    /// No template matched.
    pub unmatched: u64,
    /// No JSON, or too large.
    pub unparsable: u64,
    /// Template matches.
    pub matches: u64,
    /// All destinations have them.
    pub delivered: u64,
    /// A newer reading took the same slot.
    pub superseded: u64,
    /// Not sent yet.
    pub buffered: u64,
    /// Wait for a Device, an association or the clock.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// Given up on purpose, see the ledger.
    pub lost: u64,
    /// Observations written.
    pub observations: u64,
}

impl Summary {
    /// Combines the accounts of several destinations: a match is delivered when all have it and lost when one gave it up.
    /// Which matches they are is not kept per destination, so the smallest number delivered and the largest numbers
    /// lost, dead and waiting stand for the whole; the rest counts as buffered.
    pub fn of(base: Summary, destinations: &[DestinationState]) -> Summary {
        let readings: Vec<&DestinationState> =
            destinations.iter().filter(|d| d.counts == "matches").collect();
        let counted: Vec<&DestinationState> = if readings.is_empty() {
            destinations.iter().collect()
        } else {
            readings
        };
        let mut summary = base;
        let Some(first) = counted.first() else {
            summary.buffered = summary.matches;
            return summary;
        };
        summary.observations = destinations
            .iter()
            .filter(|d| d.kind == "fhir")
            .map(|d| d.written)
            .sum();
        summary.matches = counted.iter().map(|d| d.matches).max().unwrap_or(0);
        if counted.len() == 1 {
            summary.delivered = first.delivered;
            summary.superseded = first.superseded;
            summary.buffered = first.buffered;
            summary.waiting = first.waiting;
            summary.dead = first.dead;
            summary.lost = first.lost;
            return summary;
        }
        let most = |of: fn(&DestinationState) -> u64| counted.iter().map(|d| of(d)).max().unwrap_or(0);
        let mut left = summary.matches;
        let mut part = |wanted: u64| {
            let taken = wanted.min(left);
            left -= taken;
            taken
        };
        summary.lost = part(most(|d| d.lost));
        summary.dead = part(most(|d| d.dead));
        summary.waiting = part(most(|d| d.waiting));
        summary.superseded = part(most(|d| d.superseded));
        summary.delivered = part(counted.iter().map(|d| d.delivered).min().unwrap_or(0));
        summary.buffered = left;
        summary
    }
}

/// What a source has received, and whether it works.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceState {
    /// Name in the configuration.
    pub name: String,
    /// `mqtt` or `serial`.
    pub kind: &'static str,
    /// Connected, or the port is open.
    pub connected: bool,
    /// Messages received since the start.
    pub received: u64,
    /// Times that the connection was made again.
    pub reconnects: u64,
    /// Bytes or frames that could not be read (serial), packets above the limit (MQTT).
    pub refused: u64,
    /// The last trouble.
    pub error: Option<ErrorRecord>,
    /// Messages wait because the source has no mapping pack.
    pub without_packs: bool,
    /// Devices that have said that they are away.
    pub away: Vec<String>,
}

/// What a destination has, still has to get, and whether it can be reached.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DestinationState {
    /// Name in the configuration.
    pub name: String,
    /// `fhir` or `event-hub`.
    pub kind: &'static str,
    /// What the figures count: `matches` or `messages`.
    pub counts: &'static str,
    /// `up`, `down`, or `idle` before the first exchange.
    pub link: &'static str,
    /// `closed` (it is used), `open` (not before the next try) or `half-open` (it is being tried).
    pub circuit: &'static str,
    /// Why it cannot be reached.
    pub error: Option<ErrorRecord>,
    /// Seconds until the next try.
    pub next_try_seconds: Option<u64>,
    /// Matches, or messages, that are meant for it.
    pub matches: u64,
    /// It has confirmed them.
    pub delivered: u64,
    /// A newer reading took the same slot.
    pub superseded: u64,
    /// Not sent yet.
    pub buffered: u64,
    /// Wait for what [`DestinationState::waits`] says.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// Given up on purpose, see the ledger.
    pub lost: u64,
    /// Observations or events written.
    pub written: u64,
    /// Age of the oldest unsent reading in seconds.
    pub oldest_unsent_seconds: Option<u64>,
    /// What the waiting readings wait for.
    pub waits: Vec<(ErrorRecord, u64)>,
    /// Corrections that are not done.
    pub corrections: u64,
}

/// A mapping pack in force.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PackState {
    /// Its name: of its folder, or of its files before the first dot.
    pub name: String,
    /// First digits of the hash of its texts.
    pub revision: String,
    /// Names of the measurement types that it gives.
    pub types: Vec<String>,
    /// What is wrong with the files on the disk now; the last good version is used.
    pub problem: Option<String>,
}

/// The store on its disk.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreState {
    /// Its id, part of every event id.
    pub id: String,
    /// Folder of its files.
    pub folder: String,
    /// Bytes of database and write-ahead log.
    pub bytes: u64,
    /// Why it cannot be written.
    pub trouble: Option<String>,
    /// What is the matter with its disk.
    pub trouble_kind: Option<Trouble>,
    /// How far the full check since the start is.
    pub check: String,
    /// Messages that were found damaged since the start.
    pub damaged: u64,
    /// Whether payloads and identifiers are sealed at rest.
    pub encrypted: bool,
    /// What was salvaged of damaged stores that were set aside.
    pub salvages: Vec<Salvaged>,
    /// What is to be done where entries about who had which device were lost and are not entered again.
    pub doubt: Option<&'static str>,
    /// Bytes of their files.
    pub set_aside_bytes: u64,
    /// How full it is, and for how long that goes on.
    #[serde(flatten)]
    pub outlook: Outlook,
    /// What the store does to its medium.
    pub wear: WearState,
    /// Written since the start.
    #[serde(flatten)]
    pub statistics: Statistics,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(delivered: u64, buffered: u64, dead: u64) -> DestinationState {
        DestinationState {
            counts: "matches",
            kind: "fhir",
            matches: delivered + buffered + dead,
            delivered,
            buffered,
            dead,
            ..DestinationState::default()
        }
    }

    #[test]
    fn the_equation_holds_over_several_destinations() {
        let base = Summary {
            messages: 100,
            matches: 100,
            ..Summary::default()
        };
        for destinations in [
            vec![destination(90, 9, 1)],
            vec![destination(90, 9, 1), destination(20, 80, 0)],
            vec![destination(0, 100, 0), destination(100, 0, 0)],
            vec![],
        ] {
            let s = Summary::of(base, &destinations);
            assert_eq!(
                s.matches,
                s.delivered + s.superseded + s.buffered + s.waiting + s.dead + s.lost
            );
            assert_eq!(s.matches, 100);
        }
        let both = Summary::of(base, &[destination(90, 9, 1), destination(20, 80, 0)]);
        assert_eq!((both.delivered, both.dead, both.buffered), (20, 1, 79));
    }
}
