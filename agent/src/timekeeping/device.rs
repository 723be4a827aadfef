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

mod clock;
mod known;
mod rules;

pub use clock::Shown;
pub(crate) use known::carried_over;
pub use rules::{Measured, Rule, Rules};

use crate::former::Identities;
use crate::message::StoredMessage;
use crate::normalize::Hold;
use crate::telemetry::errors::ErrorRecord;
use clock::{Clock, DEVIATES, SHOWN_SAMPLES};
use iomt_mapping::Timestamp;
use iomt_mapping::phd::time::{ClockKind, DeviceTime, Treatment, treat};
use known::Known;
use std::collections::HashMap;
use std::sync::Arc;

/// Devices that are watched.
const DEVICES: usize = 2000;

/// Names of what readings wait for while the clock of their device is not understood.
pub const WAITS: [&str; 2] = ["DeviceClockNotMeasured", "DeviceClockUncertain"];

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
            let clock = Clock::restored(serde_json::from_str(state).unwrap_or_default());
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
