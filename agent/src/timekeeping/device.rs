//! Clocks of devices: how far they are apart from the gateway's, said by the operator or measured, and what that makes of the
//! time of a reading.
//!
//! A measured offset comes from messages: what the gateway's trusted clock showed when one came, less what its device wrote
//! into it. Delay makes that larger, never smaller, so the smallest difference on which several messages agree is believed;
//! messages that come together count as one, and records from a device's memory, repeats and times of an untrusted clock do not
//! count at all.
//!
//! Invariants:
//! 1. What a reading is corrected by follows from its message and position, and from what the store holds: built again, after a
//!    restart or by a correction, it gets the same time. Rules are part of the mapping revision that the message names; a
//!    measured offset holds from a position on, and is on the disk before anything is dated by it.
//! 2. No date is invented: before the first offset is measured readings wait; when messages contradict it they wait until it is
//!    clear whether the clock was set or the readings are old; what was taken before the clock was set cannot be dated, and
//!    is a dead letter.
//! 3. Memory is bounded: so many devices, so many messages and offsets of each.

use crate::former::Identities;
use crate::message::{Position, StoredMessage};
use crate::normalize::Hold;
use crate::store::salvage::Identity;
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::Timestamp;
use iomt_mapping::phd::time::{ClockKind, DeviceTime, Treatment, treat};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const SECOND: i64 = 10_000_000;
/// Messages that come within this time count as one.
const APART: i64 = 5 * SECOND;
/// How far differences of messages that agree may be apart, and how far an offset may drift before it is measured anew.
const TOLERANCE: i64 = 2 * SECOND;
/// A reading that is this far from the offset is old, or the clock of its device was set.
const DEVIATES: i64 = 60 * SECOND;
/// An offset of a device without a rule that is worth an operator's attention.
const REMARKABLE: i64 = 120 * SECOND;
/// Messages that agree before an offset is shown for a device that has no rule.
const SHOWN_SAMPLES: usize = 5;
/// Offsets that are kept of a device.
const ENTRIES: usize = 64;
/// Devices that are watched.
const DEVICES: usize = 2000;

/// Names of what readings wait for while the clock of their device is not understood.
pub const WAITS: [&str; 2] = ["DeviceClockNotMeasured", "DeviceClockUncertain"];

/// What is said about the clocks of some devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Device identifier; `*` stands for anything.
    pub device: String,
    /// Ticks of 100 ns to add to what the clock shows.
    pub correction: i64,
    /// What it counts.
    pub kind: ClockKind,
    /// It is kept right.
    pub synchronized: bool,
    /// What else it is off is measured.
    pub measured: Option<Measured>,
}

/// How an offset is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Messages that have to agree.
    pub samples: usize,
    /// The largest offset that is believed: ticks.
    pub limit: i64,
}

/// The rules of a configuration; the first that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The rule of a device.
    pub fn of(&self, device: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| fits(&rule.device, device))
    }
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = left.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

/// The clock of a device at a reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtReading {
    /// What the device wrote.
    pub shown: Timestamp,
    /// What was added to it: ticks.
    pub correction: i64,
    /// How much of that was measured.
    pub measured: i64,
    /// What it counts.
    pub kind: ClockKind,
    /// It is kept right.
    pub synchronized: bool,
    /// Its reading refers to a record of what the clock of the device showed at a time of the gateway.
    pub coincident: bool,
    /// When that was seen (ticks, gateway time); none where the operator says it, for all times.
    pub seen: Option<i64>,
}

/// From a position on a clock is off by so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    from: Position,
    /// Ticks to add.
    correction: i64,
    /// When the message came that it was measured by: ticks.
    received: i64,
    /// When the clock was set, or started anew (gateway time, ticks): what was taken before is of another timeline.
    began: Option<i64>,
}

/// What is measured of a device; the part that the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    entries: Vec<Entry>,
    /// From here on readings that contradict the offset wait.
    suspect: Option<Position>,
    /// Messages up to here were measured.
    seen: Position,
    /// What held in stores before this one, for the messages that came from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<FormerKnown>,
}

/// What was measured in a store before this one, by its positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FormerKnown {
    /// Number of the salvage that brought it.
    salvage: i64,
    entries: Vec<Entry>,
    suspect: Option<Position>,
}

/// A state of a store before this one, as this one keeps it: the last offset holds until another one is measured, and those
/// before it for the messages that come with the salvage of this number. None for what is no state.
pub(crate) fn carried_over(state: &str, salvage: i64) -> Option<String> {
    let then: Known = serde_json::from_str(state).ok()?;
    let last = then.entries.last().map(|last| Entry { from: 0, ..*last });
    let now = Known {
        entries: last.into_iter().collect(),
        // Whether the clock was set is as open as it was.
        suspect: then.suspect.map(|_| 0),
        seen: 0,
        former: vec![FormerKnown {
            salvage,
            entries: then.entries,
            suspect: then.suspect,
        }],
    };
    serde_json::to_string(&now).ok()
}

/// What holds at a position.
fn holding(entries: &[Entry], position: Position) -> Option<&Entry> {
    let holds = entries.iter().rev().find(|entry| entry.from <= position);
    holds.or(entries.first())
}

impl Known {
    fn enter(&mut self, entry: Entry) {
        self.suspect = None;
        self.entries.push(entry);
        if self.entries.len() > ENTRIES {
            self.entries.remove(0);
        }
    }

    /// What holds for a message, which came from a store before this one where that is said.
    fn at(&self, position: Position, identity: Option<&Identity>) -> Option<&Entry> {
        match self.of(identity) {
            Some((then, position)) => holding(&then.entries, position),
            None => holding(&self.entries, position),
        }
    }

    /// Whether it is open at a message if its clock was set.
    fn is_suspect(&self, position: Position, identity: Option<&Identity>) -> bool {
        match self.of(identity) {
            Some(_) => false,
            None => self.suspect.is_some_and(|from| from <= position),
        }
    }

    /// What the store that a message came from knew about it; nothing where that was open then.
    fn of(&self, identity: Option<&Identity>) -> Option<(&FormerKnown, Position)> {
        let identity = identity?;
        let then = self.former.iter().find(|then| then.salvage == identity.former)?;
        let is_open = then.suspect.is_some_and(|from| from <= identity.position);
        (!is_open).then_some((then, identity.position))
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    received: i64,
    /// Received less shown (and corrected by the rule): ticks.
    difference: i64,
}

#[derive(Debug, Default)]
struct Clock {
    known: Known,
    window: VecDeque<Sample>,
    /// The newest estimate, believed or not.
    estimate: Option<i64>,
    limit: Option<i64>,
    is_measured: bool,
    used: u64,
}

/// What a message changed about the clock of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The device.
    pub device: Arc<str>,
    /// Its state, for the store.
    pub state: String,
    known: Known,
    /// Readings that waited may go on.
    pub wakes: bool,
}

/// For `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shown {
    /// Device identifier.
    pub device: String,
    /// Seconds that its clock is behind the gateway's after what the configuration says; negative when it is ahead.
    pub behind_seconds: Option<f64>,
    /// Seconds that are added to its times because that was measured.
    pub corrected_seconds: Option<f64>,
    /// What is wrong, and what to do.
    pub problem: Option<String>,
}

/// The clocks of all devices.
#[derive(Debug, Default)]
pub struct Clocks {
    devices: HashMap<Arc<str>, Clock>,
    turn: u64,
    /// Messages that came from stores before this one: what was measured there holds for them.
    former: Identities,
}

impl Clocks {
    /// From what the store holds: device and state. What cannot be read is measured anew.
    pub fn restore(stored: &[(String, String)], former: Identities) -> Clocks {
        let devices = stored.iter().map(|(device, state)| {
            let clock = Clock {
                known: serde_json::from_str(state).unwrap_or_default(),
                is_measured: true,
                ..Clock::default()
            };
            (Arc::from(device.as_str()), clock)
        });
        Clocks {
            devices: devices.collect(),
            turn: 0,
            former,
        }
    }

    /// What a rule makes of the time that a device wrote: the time of the reading, and why it cannot be sent, if so.
    /// `received` is when the message came, where that is known.
    pub fn judge(
        &self,
        rule: &Rule,
        device: &str,
        stored: &StoredMessage,
        shown: Timestamp,
        received: Option<i64>,
    ) -> (AtReading, Timestamp, Option<Hold>) {
        let identity = self.former.of(stored.position);
        let known = self.devices.get(device).map(|clock| &clock.known);
        let known = known.filter(|_| rule.measured.is_some());
        let entry = known.and_then(|known| known.at(stored.position, identity.as_ref()));
        let correction = rule.correction + entry.map_or(0, |entry| entry.correction);
        let time = shown.plus_ticks(correction).unwrap_or(shown);
        // What was taken before the clock was set is of another timeline.
        let current = entry
            .and_then(|entry| entry.began)
            .is_none_or(|began| time.ticks() >= began - DEVIATES);
        let verdict = treat(DeviceTime {
            kind: rule.kind,
            current,
            synchronized: rule.synchronized,
            has_offset: false,
        });
        let at = AtReading {
            shown,
            correction,
            measured: correction - rule.correction,
            kind: rule.kind,
            synchronized: rule.synchronized,
            coincident: verdict.coincident_timestamp == Some(true),
            seen: entry.map(|entry| entry.received),
        };
        let hold = match (rule.measured, entry) {
            (Some(_), None) => Some(not_measured()),
            (Some(_), Some(_)) => {
                let off = received.map_or(0, |received| received - time.ticks());
                let is_suspect =
                    known.is_some_and(|known| known.is_suspect(stored.position, identity.as_ref()));
                // A record is old by nature; nothing comes before it was taken.
                let contradicts = off < -DEVIATES || off > DEVIATES && stored.message.record.is_none();
                match () {
                    () if contradicts && is_suspect => Some(uncertain()),
                    () if verdict.treatment == Treatment::Discard || off < -DEVIATES => Some(clock_was_set()),
                    () => None,
                }
            }
            (None, _) => None,
        };
        (at, time, hold)
    }

    /// Looks at a message that came, in order of position. `shown` is the time of its newest reading as the device wrote it
    /// (after the constant part of the rule). Gives what has to be stored before the message is taken.
    pub fn observe(
        &mut self,
        rule: Option<&Rule>,
        device: &str,
        stored: &StoredMessage,
        shown: i64,
    ) -> Option<Change> {
        let (stamp, position) = (stored.message.stamp, stored.position);
        let received = stamp.wall.ticks();
        // A mapping that takes the time of reception shows no clock of a device.
        let counts = stamp.trusted
            && stored.message.record.is_none()
            && !stored.message.possible_repeat
            && received != shown;
        if !counts {
            return None;
        }
        let measured = rule.and_then(|rule| rule.measured);
        self.turn += 1;
        let (turn, is_new) = (self.turn, !self.devices.contains_key(device));
        if is_new && self.devices.len() >= DEVICES && !self.make_room() {
            return None;
        }
        let clock = match is_new {
            true => self.devices.entry(Arc::from(device)).or_default(),
            false => self.devices.get_mut(device)?,
        };
        clock.used = turn;
        clock.is_measured = measured.is_some();
        clock.limit = measured.map(|one| one.limit);
        if measured.is_some() && position <= clock.known.seen {
            return None;
        }
        // What stands among younger messages would take the measure of another time.
        let is_settled = !clock.known.entries.is_empty() && clock.known.suspect.is_none();
        if is_settled && self.former.of(position).is_some() {
            return None;
        }
        let samples = measured.map_or(SHOWN_SAMPLES, |one| one.samples);
        clock.sample(received, received - shown, samples);
        clock.estimate = clock.agreed(samples).or(clock.estimate);
        let (mut known, wakes) = clock.learn(position, received, received - shown, measured?)?;
        known.seen = position;
        Some(Change {
            device: Arc::from(device),
            state: serde_json::to_string(&known).unwrap_or_default(),
            known,
            wakes,
        })
    }

    /// The store has it: from now on readings are dated by it.
    pub fn take(&mut self, change: Change) {
        if let Some(clock) = self.devices.get_mut(&change.device) {
            clock.known = change.known;
        }
    }

    /// Forgets the device without a measured clock that was seen longest ago.
    fn make_room(&mut self) -> bool {
        let watched = self.devices.iter().filter(|(_, clock)| !clock.is_measured);
        let oldest = watched
            .min_by_key(|(_, clock)| clock.used)
            .map(|(device, _)| Arc::clone(device));
        oldest.is_some_and(|device| self.devices.remove(&device).is_some())
    }

    /// Clocks that are corrected by what was measured, and those that are remarkably far off.
    pub fn shown(&self) -> Vec<Shown> {
        let mut shown: Vec<Shown> = self
            .devices
            .iter()
            .filter_map(|(device, clock)| clock.shown(device))
            .collect();
        shown.sort_by(|a, b| (a.problem.is_none(), &a.device).cmp(&(b.problem.is_none(), &b.device)));
        shown
    }
}

impl Clock {
    /// Takes a difference in; as many are kept as it takes for new ones to outvote old ones.
    fn sample(&mut self, received: i64, difference: i64, samples: usize) {
        if let Some(last) = self.window.back_mut() {
            let since = received - last.received;
            if (0..APART).contains(&since) {
                // The newest of what came together.
                last.difference = last.difference.min(difference);
                return;
            }
            if since < 0 {
                // The gateway's clock was set back: what it showed before is of no use.
                self.window.clear();
            }
        }
        self.window.push_back(Sample { received, difference });
        while self.window.len() > samples * 2 - 1 {
            self.window.pop_front();
        }
    }

    /// The smallest difference on which so many of the last messages agree.
    fn agreed(&self, samples: usize) -> Option<i64> {
        let mut differences: Vec<i64> = self.window.iter().map(|sample| sample.difference).collect();
        differences.sort_unstable();
        differences.windows(samples).find_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            (last - first <= TOLERANCE).then_some(*first)
        })
    }

    /// What is known with the newest difference, and whether readings that wait may go on; none when nothing changes.
    fn learn(
        &self,
        position: Position,
        received: i64,
        difference: i64,
        rule: Measured,
    ) -> Option<(Known, bool)> {
        let agreed = self
            .agreed(rule.samples)
            .filter(|estimate| estimate.abs() <= rule.limit);
        let mut known = self.known.clone();
        let Some(last) = known.entries.last().copied() else {
            known.entries.push(Entry {
                from: 0,
                correction: agreed?,
                received,
                began: None,
            });
            return Some((known, true));
        };
        let now = last.correction;
        let deviates = (difference - now).abs() > DEVIATES;
        let wakes = match (agreed, known.suspect) {
            // The clock was set: that explains what did not fit.
            (Some(agreed), suspect) if deviates && (agreed - now).abs() > DEVIATES => {
                let of_it = |sample: &&Sample| (sample.difference - agreed).abs() <= TOLERANCE;
                let began = self.window.iter().find(of_it)?.received;
                known.enter(Entry {
                    from: suspect.unwrap_or(position),
                    correction: agreed,
                    received,
                    began: Some(began),
                });
                true
            }
            // It fits again: the others were late.
            (Some(agreed), Some(_)) if !deviates && (agreed - now).abs() <= DEVIATES => {
                known.suspect = None;
                true
            }
            (_, None) if deviates => {
                known.suspect = Some(position);
                false
            }
            (Some(agreed), None) if (agreed - now).abs() > TOLERANCE => {
                known.enter(Entry {
                    from: position + 1,
                    correction: agreed,
                    received,
                    began: last.began,
                });
                false
            }
            _ => return None,
        };
        Some((known, wakes))
    }

    fn shown(&self, device: &str) -> Option<Shown> {
        let seconds = |ticks: i64| (ticks / (SECOND / 10)) as f64 / 10.0;
        let corrected = self.known.entries.last().map(|entry| entry.correction);
        let estimate = self.estimate;
        let problem = match (self.is_measured, estimate) {
            (false, Some(off)) if off.abs() > REMARKABLE => Some(format!(
                "its clock is {} s {} that of the gateway: set it, or say so in [[clock.device]]",
                seconds(off.abs()),
                if off > 0 { "behind" } else { "ahead of" }
            )),
            (true, Some(off)) if self.limit.is_some_and(|limit| off.abs() > limit) => Some(format!(
                "its clock seems to be {} s off, more than `limit` of [[clock.device]] believes: its readings wait; set it, \
                 or raise `limit`",
                seconds(off)
            )),
            (true, _) if self.known.suspect.is_some() => Some(
                "its times contradict each other: readings wait until it is clear whether its clock was set or they are old"
                    .to_owned(),
            ),
            _ => None,
        };
        (corrected.is_some() || problem.is_some()).then(|| Shown {
            device: device.to_owned(),
            behind_seconds: estimate.map(seconds),
            corrected_seconds: corrected.filter(|_| self.is_measured).map(seconds),
            problem,
        })
    }
}

fn not_measured() -> Hold {
    Hold::Waiting(ErrorRecord::new(
        "DeviceClockNotMeasured",
        "how far the clock of the device is off is not measured yet: readings are dated once enough of its messages agree \
         (`samples` of [[clock.device]])",
    ))
}

fn uncertain() -> Hold {
    Hold::Waiting(ErrorRecord::new(
        "DeviceClockUncertain",
        "the time of the reading does not fit the clock of its device as measured: it waits until it is clear whether the clock \
         was set or the reading is old",
    ))
}

fn clock_was_set() -> Hold {
    Hold::Dead(ErrorRecord::new(
        "DeviceClockWasSet",
        "the clock of the device was set, or started anew, after the reading: nobody can say when it was taken",
    ))
}

#[cfg(test)]
mod tests;
