//! What the HL7 Personal Health Device guide makes of the time of a reading, by what kind of clock its device has
//! (`StructureDefinition-PhdBaseObservation-notes`, the time table).
//!
//! The guide's last column says whether the reading refers to a coincident timestamp: a record of what the clock of the
//! device showed at a time of the gateway. "With the gateway's offset" is UTC here: the agent writes all times as UTC.

use serde::{Deserialize, Serialize};

/// What the clock of a device counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClockKind {
    /// UTC (base offset time), with or without a local offset beside it.
    Utc,
    /// The time of a place, without saying which (absolute time).
    Local,
    /// Units since it was switched on (relative time).
    Tick,
}

/// The clock of a device at a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTime {
    /// What it counts.
    pub kind: ClockKind,
    /// The reading is of the timeline that the clock is on now: it was not set, and did not start anew, since the reading.
    pub current: bool,
    /// It is kept right by a time server or the like.
    pub synchronized: bool,
    /// It says how far local time is from UTC.
    pub has_offset: bool,
}

/// What becomes of the time of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It stays.
    Keep,
    /// It stays, with the offset of the gateway.
    KeepWithGatewayOffset,
    /// It is moved by what the clock of the device is off from that of the gateway, which must be known.
    ToGatewayTimeline,
    /// The local time is right: its offset to UTC is taken out.
    LocalToUtc,
    /// Nobody can say when it was.
    Discard,
}

impl Treatment {
    /// As the guide's table names it.
    pub fn name(self) -> &'static str {
        match self {
            Treatment::Keep => "keep",
            Treatment::KeepWithGatewayOffset => "keep + gateway offset",
            Treatment::ToGatewayTimeline => "to gateway timeline + gateway offset",
            Treatment::LocalToUtc => "to UTC+offset with gateway offset",
            Treatment::Discard => "discard",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the time.
    pub treatment: Treatment,
    /// Whether the reading refers to a coincident timestamp; open where it is discarded.
    pub coincident_timestamp: Option<bool>,
}

/// The time table of the guide.
///
/// ```
/// use iomt_mapping::phd::time::{ClockKind, DeviceTime, Treatment, treat};
///
/// let time = DeviceTime { kind: ClockKind::Tick, current: false, synchronized: false, has_offset: false };
/// assert_eq!(treat(time).treatment, Treatment::Discard);
/// ```
pub fn treat(time: DeviceTime) -> Verdict {
    use Treatment::{Discard, Keep, KeepWithGatewayOffset, LocalToUtc, ToGatewayTimeline};
    let is_utc = time.kind == ClockKind::Utc || time.kind == ClockKind::Local && time.has_offset;
    let synchronized = time.synchronized && time.kind != ClockKind::Tick;
    let (treatment, coincident) = match (synchronized, time.current, is_utc) {
        (true, _, true) if time.has_offset => (Keep, false),
        (true, _, true) => (KeepWithGatewayOffset, false),
        (true, current, false) => (LocalToUtc, current),
        (false, true, _) => (ToGatewayTimeline, true),
        (false, false, _) => (Discard, false),
    };
    Verdict {
        treatment,
        coincident_timestamp: (treatment != Discard).then_some(coincident),
    }
}

/// System of the codes of IEEE 11073-10101.
pub const MDC_SYSTEM: &str = "urn:iso:std:iso:11073:10101";

/// Code and name of the clock that a coincident timestamp shows: with an offset, without one, a counter.
pub fn clock_code(kind: ClockKind, has_offset: bool) -> (&'static str, &'static str) {
    match kind {
        ClockKind::Tick => ("67983", "MDC_ATTR_TIME_REL"),
        _ if has_offset => ("68225", "MDC_ATTR_TIME_BO"),
        ClockKind::Utc | ClockKind::Local => ("67975", "MDC_ATTR_TIME_ABS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clock_that_cannot_be_related_to_ours_is_discarded_and_no_other() {
        for kind in [ClockKind::Utc, ClockKind::Local, ClockKind::Tick] {
            for bits in 0..8 {
                let time = DeviceTime {
                    kind,
                    current: bits & 1 != 0,
                    synchronized: bits & 2 != 0,
                    has_offset: bits & 4 != 0,
                };
                let related = time.current || time.synchronized && kind != ClockKind::Tick;
                let verdict = treat(time);
                assert_eq!(verdict.treatment != Treatment::Discard, related, "{time:?}");
                assert_eq!(verdict.coincident_timestamp.is_some(), related, "{time:?}");
                // What is moved can be traced.
                if verdict.treatment == Treatment::ToGatewayTimeline {
                    assert_eq!(verdict.coincident_timestamp, Some(true), "{time:?}");
                }
            }
        }
    }
}
