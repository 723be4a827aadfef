//! Messages to measurements: the mapping engine over committed messages.
//!
//! All packs of the source are tried; where two give the same type for one message the first in name order wins and the
//! other is counted as shadowed. A panic inside an evaluation is caught and becomes a dead letter of that message alone.

use crate::forward::{Fate, GIVEN_UP, GroupKey};
use crate::ingest::payload;
use crate::message::{PayloadKind, RevisionId, Stamp, StoredMessage};
use crate::packs::{Pack, PackSet};
use crate::sabotage::{self, Sabotage};
use crate::store::Dating;
use crate::telemetry::errors::{ErrorRecord, MappingPlace};
use crate::timekeeping::device::{AtReading, Clocks};
use iomt_mapping::message::{Envelope, PropertyValue};
use iomt_mapping::phd::time::ClockKind;
use iomt_mapping::{Measurement, NormalizeError, Timestamp};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Bits of a match number that say which match it is; those above are 0, or tell apart what was normalized again with other
/// packs than those of its message, so that its event ids are not those of other readings.
const MATCH_BITS: u32 = 20;

/// The number of a match in references when its message is normalized with `revision` instead of its own packs.
pub fn number_of_revision(number: u32, revision: RevisionId) -> u32 {
    match_of(number) | ((revision.0 % 4095 + 1) << MATCH_BITS)
}

/// Which match of the message a number in references stands for.
pub fn match_of(number: u32) -> u32 {
    number & ((1 << MATCH_BITS) - 1)
}

/// One template match that gave a measurement.
#[derive(Clone, Debug)]
pub struct Match {
    /// Which match of the message, from 0; the same for the same packs.
    pub number: u32,
    /// The pack whose template matched.
    pub pack: Arc<Pack>,
    /// What was measured.
    pub measurement: Arc<Measurement>,
    /// Why it cannot be sent as it is; none when it can.
    pub hold: Option<Box<Hold>>,
    /// The clock of its device, where something is known of it.
    pub clock: Option<Arc<AtReading>>,
}

/// Why a reading cannot be sent: nobody can say when it was taken.
#[derive(Clone, Debug, PartialEq)]
pub enum Hold {
    /// Not yet.
    Waiting(ErrorRecord),
    /// Never.
    Dead(ErrorRecord),
}

impl Hold {
    /// What becomes of the reading at every destination.
    pub fn fate(&self) -> Fate {
        match self {
            Hold::Waiting(error) => Fate::Waiting(error.clone()),
            Hold::Dead(error) => Fate::Dead(error.clone()),
        }
    }
}

/// Names of what readings wait for while nobody can date them.
pub const UNDATED: [&str; 2] = ["ClockNotSynchronized", "ClockNeverSet"];

/// Why a message of this boot has no receive time, and what helps.
fn undated(stamp: &Stamp, dating: &[Dating]) -> Hold {
    match dating.iter().find(|d| d.boot == stamp.boot) {
        Some(boot) if boot.given_up => Hold::Dead(ErrorRecord::new(
            GIVEN_UP,
            "given up by the operator: nobody can say when the readings were taken (`clock give-up`)",
        )),
        Some(boot) if boot.is_current => Hold::Waiting(ErrorRecord::new(
            "ClockNotSynchronized",
            "the reading has no time of its own and the gateway's clock is not synchronised: it is dated and sent when the \
             clock is right (look at `timedatectl`)",
        )),
        _ => Hold::Waiting(ErrorRecord::new(
            "ClockNeverSet",
            "the reading has no time of its own, and the gateway was started anew before its clock was set: nobody knows when \
             it came; date it with `bedside-agent clock date`, or give it up with `bedside-agent clock give-up`",
        )),
    }
}

/// What a message became.
#[derive(Clone, Debug, Default)]
pub struct Normalized {
    /// Matches that gave measurements.
    pub matches: Vec<Match>,
    /// Matches that failed.
    pub failed: Vec<ErrorRecord>,
    /// The message as a whole is no message (no JSON, too large).
    pub unparsable: Option<ErrorRecord>,
    /// Matches that an earlier pack hid.
    pub shadowed: u64,
    /// A reading is dated by what is measured of the clock of its device.
    pub measured: bool,
}

impl Normalized {
    /// Whether at least one template matched, successfully or not.
    pub fn matched(&self) -> bool {
        !self.matches.is_empty() || !self.failed.is_empty()
    }

    /// A message that ended the process when it was normalized: a dead letter, unread.
    pub fn of_killer() -> Normalized {
        Normalized {
            unparsable: Some(ErrorRecord::new(
                "MessageKilledTheProcess",
                "the process ended while it normalized this message, so the message was set aside unread; look at the \
                 journal of the service for how the process ended (`journalctl -u bedside-agent`; memory: `dmesg`)",
            )),
            ..Normalized::default()
        }
    }

    /// Whether what becomes of any measurement may still change.
    pub fn may_change(&self) -> bool {
        self.measured || self.matches.iter().any(|m| m.hold.is_some())
    }
}

/// When a message was received, and whether that is known.
///
/// A stamp of an untrusted clock is corrected by the monotonic distance to a moment of the same boot at which the clock
/// could be trusted.
pub fn receive_time(stamp: &Stamp, dating: &[Dating]) -> (Timestamp, bool) {
    if stamp.trusted {
        return (stamp.wall, true);
    }
    let reference = dating
        .iter()
        .find(|d| d.boot == stamp.boot)
        .and_then(|d| d.reference);
    let dated = reference.and_then(|(monotonic_us, wall)| {
        let distance_us = stamp.monotonic_us as i64 - monotonic_us as i64;
        Timestamp::from_ticks(wall.checked_add(distance_us.checked_mul(10)?)?)
    });
    dated.map_or((stamp.wall, false), |time| (time, true))
}

/// What a message becomes under `packs`.
pub fn normalize(stored: &StoredMessage, packs: &PackSet, dating: &[Dating], clocks: &Clocks) -> Normalized {
    if let PayloadKind::Truncated { length, .. } = stored.message.kind {
        let text = format!(
            "a payload of {length} bytes is larger than max_message_bytes of its source; the first 4 KiB are kept"
        );
        return Normalized {
            unparsable: Some(ErrorRecord::new("MessageTooLargeException", text)),
            ..Normalized::default()
        };
    }
    let (received, known) = receive_time(&stored.message.stamp, dating);
    let at = At {
        received,
        known,
        clocks,
    };
    let mut result = evaluate(stored, packs, &at);
    if !known && !result.matches.is_empty() {
        // Whatever changes with the receive time took something of it.
        let later = another_time(received);
        let other = evaluate(
            stored,
            packs,
            &At {
                received: later,
                ..at
            },
        );
        let same_matches = result.matches.len() == other.matches.len();
        let mut others = other.matches.iter();
        for one in &mut result.matches {
            let same = others
                .next()
                .is_some_and(|two| one.measurement == two.measurement);
            if !(same && same_matches) {
                one.hold = Some(Box::new(undated(&stored.message.stamp, dating)));
            }
        }
    }
    result
}

/// A time that has nothing in common with `time`: neither year, month, day, day of the week, hour, minute, second nor
/// fraction. A mapping may take any of them from the gateway (the date, to a time of day that the device sends).
fn another_time(time: Timestamp) -> Timestamp {
    const DAYS: i64 = 398;
    let forward = (DAYS * 86_400 + 3_600 + 60 + 1) * 10_000_000 + 1_111_111;
    time.plus_ticks(forward)
        .or_else(|| time.plus_ticks(-forward))
        .unwrap_or(time)
}

/// When a message came, and what is known of clocks.
struct At<'c> {
    received: Timestamp,
    known: bool,
    clocks: &'c Clocks,
}

fn evaluate(stored: &StoredMessage, packs: &PackSet, at: &At<'_>) -> Normalized {
    if sabotage::is_on(Sabotage::AbortOnMarker) {
        let marker = sabotage::ABORT_MARKER;
        let mut parts = stored.message.payload.bytes().windows(marker.len());
        if parts.any(|part| part == marker) {
            std::process::abort();
        }
    }
    match catch_unwind(AssertUnwindSafe(|| evaluate_unguarded(stored, packs, at))) {
        Ok(result) => result,
        Err(_) => Normalized {
            failed: vec![ErrorRecord::new(
                "UnhandledException",
                "the mapping engine failed on this message; please report it with `dead-letters show`",
            )],
            ..Normalized::default()
        },
    }
}

fn evaluate_unguarded(stored: &StoredMessage, packs: &PackSet, at: &At<'_>) -> Normalized {
    let message = &stored.message;
    let mut properties: Vec<(&str, PropertyValue<'_>)> = Vec::with_capacity(message.properties.len() + 1);
    if let Some(topic) = &message.topic {
        properties.push(("topic", PropertyValue::Text(topic)));
    }
    properties.extend(
        message
            .properties
            .iter()
            .map(|(k, v)| (k.as_str(), PropertyValue::Text(v))),
    );
    let mut system: Vec<(&str, PropertyValue<'_>)> = Vec::with_capacity(2);
    if let Some(device) = &message.device_id {
        system.push(("iothub-connection-device-id", PropertyValue::Text(device)));
    }
    system.push(("iothub-enqueuedtime", PropertyValue::Time(at.received)));
    let mut body = match payload::decode(message) {
        Ok(body) => body,
        Err(error) => {
            return Normalized {
                unparsable: Some(error),
                ..Normalized::default()
            };
        }
    };
    // Without a pack the message waits for one, whatever is in it.
    let refused = match packs.packs().is_empty() {
        true => Vec::new(),
        false => body.take_failed(),
    };
    let envelope = Envelope {
        body: body.bytes(),
        properties: &properties,
        system_properties: &system,
    };
    let parsed = match envelope.parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            return Normalized {
                unparsable: Some(ErrorRecord::new(error.kind.name(), error.text)),
                ..Normalized::default()
            };
        }
    };
    let set = packs.mapping_set().normalize(&parsed);
    // The samples of a block have the same type, and so the same correction.
    let mut of_last: Option<(usize, Arc<iomt_mapping::GroupKey>, i64)> = None;
    let matches = set.matches.into_iter().enumerate().filter_map(|(number, found)| {
        let pack = Arc::clone(packs.packs().get(found.pack)?);
        let mut measurement = found.measurement;
        let of_pack = match &of_last {
            Some((pack, key, ticks)) if *pack == found.pack && Arc::ptr_eq(key, &measurement.key) => *ticks,
            _ => {
                let ticks = pack.options.correction(&measurement.type_name);
                of_last = Some((found.pack, Arc::clone(&measurement.key), ticks));
                ticks
            }
        };
        let (clock, hold) = correct(&mut measurement, of_pack, packs, stored, at);
        Some(Match {
            number: number as u32,
            pack,
            measurement: Arc::new(measurement),
            hold: hold.map(Box::new),
            clock: clock.map(Arc::new),
        })
    });
    let mut matches: Vec<Match> = matches.collect();
    // They are collected in the place of what they were made of, which was larger, and stay in memory for a while.
    matches.shrink_to_fit();
    let is_measured = |found: &Match| {
        let rule = packs.clocks().of(&found.measurement.device_id);
        rule.is_some_and(|rule| rule.measured.is_some())
    };
    Normalized {
        measured: !packs.clocks().0.is_empty() && matches.iter().any(is_measured),
        matches,
        failed: refused
            .into_iter()
            .chain(
                set.errors
                    .into_iter()
                    .map(|(pack, error)| failed(packs, pack, error)),
            )
            .collect(),
        unparsable: None,
        shadowed: set.shadowed as u64,
    }
}

/// Takes out of the time of a reading what the clock of its device is off: what the third file of its pack says (`of_pack`, in
/// ticks), then what the configuration says of its device.
fn correct(
    measurement: &mut Measurement,
    of_pack: i64,
    packs: &PackSet,
    stored: &StoredMessage,
    at: &At<'_>,
) -> (Option<AtReading>, Option<Hold>) {
    let shown = measurement.occurrence_time;
    let by_pack = shown.plus_ticks(of_pack).unwrap_or(shown);
    measurement.occurrence_time = by_pack;
    let of_pack = by_pack.ticks() - shown.ticks();
    // The time of reception is no time of a device.
    let rule = match shown == at.received {
        true => None,
        false => packs.clocks().of(&measurement.device_id),
    };
    let Some(rule) = rule else {
        let clock = AtReading {
            shown,
            correction: of_pack,
            measured: 0,
            kind: ClockKind::Utc,
            synchronized: false,
            coincident: true,
            seen: None,
        };
        return ((of_pack != 0).then_some(clock), None);
    };
    let received = at.known.then(|| at.received.ticks());
    let (mut clock, time, hold) = at
        .clocks
        .judge(rule, &measurement.device_id, stored, by_pack, received);
    measurement.occurrence_time = time;
    clock.shown = shown;
    clock.correction += of_pack;
    (Some(clock), hold)
}

fn failed(packs: &PackSet, pack: usize, error: NormalizeError) -> ErrorRecord {
    let record = ErrorRecord::new(error.kind.name(), error.text);
    match (packs.packs().get(pack), error.template) {
        (Some(pack), Some(template)) => {
            let line = pack.device.templates().get(template).map(|t| t.line());
            record.at(MappingPlace {
                pack: pack.text.name.clone(),
                template,
                field: error.field,
                line,
            })
        }
        _ => record,
    }
}

/// The key under which a match is grouped (rule D14).
pub fn group_key(found: &Match) -> GroupKey {
    let m = &found.measurement;
    let text = |t: &Option<String>| t.as_deref().map(Arc::from);
    GroupKey {
        pack: Arc::from(found.pack.text.name.as_str()),
        device: Arc::from(m.device_id.as_str()),
        type_name: Arc::from(m.type_name.as_str()),
        patient: text(&m.patient_id),
        encounter: text(&m.encounter_id),
        correlation: text(&m.correlation_id),
    }
}
