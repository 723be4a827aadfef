//! From groups to a destination. The forward loop reads the journal, fills groups and hands them over; a destination
//! resolves, transforms and sends them, and says what became of every reading.

pub mod auth;
mod batch;
pub mod context;
pub mod correct;
mod endpoint;
pub mod event_hub;
pub mod fhir;
pub mod follow;
mod gather;
pub mod http;
pub mod link;
pub mod pass;
pub mod retry;
mod settle;

use crate::former::Identities;
use crate::message::{Position, Stamp, StoredMessage};
use crate::packs::Pack;
use crate::telemetry::errors::ErrorRecord;
use crate::timekeeping::device::AtReading;
use embassy_time::Duration;
use iomt_mapping::Measurement;
use std::sync::Arc;

/// What makes readings belong together, as the message names them (rule D14).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// Name of the mapping pack.
    pub pack: Arc<str>,
    /// Device identifier.
    pub device: Arc<str>,
    /// Measurement type.
    pub type_name: Arc<str>,
    /// Patient identifier.
    pub patient: Option<Arc<str>>,
    /// Encounter identifier.
    pub encounter: Option<Arc<str>>,
    /// Correlation id.
    pub correlation: Option<Arc<str>>,
}

impl GroupKey {
    /// The key of rows that stand for raw messages (a destination with `payload = "message"` gets one again): no pack, and
    /// nothing of what is in them.
    pub fn of_messages() -> GroupKey {
        GroupKey {
            pack: Arc::from(""),
            device: Arc::from(""),
            type_name: Arc::from(""),
            patient: None,
            encounter: None,
            correlation: None,
        }
    }

    /// Whether it is that key.
    pub fn is_of_messages(&self) -> bool {
        self.pack.is_empty() && self.type_name.is_empty()
    }
}

/// One template match on its way to a destination.
#[derive(Clone, Debug)]
pub struct GroupReading {
    /// Position of its message.
    pub position: Position,
    /// Which match of the message, from 0.
    pub match_number: u32,
    /// When the message came.
    pub received: Stamp,
    /// What was measured.
    pub measurement: Arc<Measurement>,
    /// The clock of its device, where something is known of it.
    pub clock: Option<Arc<AtReading>>,
}

/// Readings of one key, in order of arrival. They may lie in several periods; a destination splits them.
#[derive(Clone, Debug)]
pub struct Group {
    /// Their key.
    pub key: Arc<GroupKey>,
    /// The pack of the newest reading.
    pub pack: Arc<Pack>,
    /// Never empty.
    pub readings: Vec<GroupReading>,
}

/// Name of the error of readings that the operator has given up: they are lost, and no dead letters.
pub const GIVEN_UP: &str = "GivenUpByOperator";

/// What became of a reading.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// The destination has confirmed it.
    Delivered,
    /// A newer reading took the same slot, and that one is confirmed (D5, D15, D16).
    Superseded,
    /// It can never be delivered as it is.
    Dead(ErrorRecord),
    /// It needs somebody or something else first (a Device, an association, a clock); the others go on.
    Waiting(ErrorRecord),
    /// Nothing became of it; it stays in its row.
    Retry,
}

/// Whether a destination can be reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// It answered.
    Up,
    /// It did not, or refuses everything for now.
    Down {
        /// Why, and what to do.
        error: ErrorRecord,
        /// What the server asked for (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// TLS or a token failed and the wall clock cannot be trusted: no growing back-off, no alarm.
    WaitingForClock,
}

/// What a later reading needs to be merged after its readings have left the outbox: stored per Observation.
#[derive(Clone, Debug, PartialEq)]
pub struct SentPeriod {
    /// Resource id of the Observation.
    pub observation: String,
    /// Bytes of the mapping engine's sent memory, with the server's version in front.
    pub memory: Vec<u8>,
    /// When it may be forgotten: UTC ticks of 100 ns.
    pub expires: i64,
}

/// Whether these are the bytes of a sent period ([`SentPeriod::memory`]) of any destination; no bytes stand for one that is
/// forgotten with the next cleaning.
pub(crate) fn is_sent_memory(bytes: &[u8]) -> bool {
    bytes.is_empty() || fhir::sent_memory::decode(bytes).is_some() || event_hub::is_stored_observation(bytes)
}

/// Answer of a destination to a batch of groups.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// One list per group, one fate per reading, in the order given.
    pub fates: Vec<Vec<Fate>>,
    /// To be stored with the confirmation.
    pub sent_periods: Vec<SentPeriod>,
    /// Whether the destination can be reached.
    pub link: Link,
    /// Observations created or updated (FHIR), or events taken (Event Hubs).
    pub written: u64,
}

/// Answer of a destination that takes raw messages.
#[derive(Clone, Debug)]
pub struct MessageDelivery {
    /// One fate per message, in the order given.
    pub fates: Vec<Fate>,
    /// Whether the destination can be reached.
    pub link: Link,
}

/// Raw messages with the name of their source, for `payload = "message"`.
#[derive(Clone, Debug)]
pub struct RawMessage {
    /// The message.
    pub stored: Arc<StoredMessage>,
    /// Name of its source.
    pub source: Arc<str>,
}

/// Ids of events and Observations start with these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `[gateway] id`.
    pub gateway: Arc<str>,
    /// Id of the store: new when a damaged store was set aside, so that event ids stay unique.
    pub store: Arc<str>,
    /// Messages that came from a store before this one keep their ids.
    pub former: Identities,
}

/// What the other loops know of a destination.
#[derive(Clone, Debug)]
pub struct DestinationHandle {
    /// Number in the store.
    pub id: u32,
    /// Name in the configuration.
    pub name: Arc<str>,
    /// It takes raw messages and follows the journal; else it takes readings.
    pub takes_messages: bool,
    /// Hourly and daily readings wait for their group.
    pub groups_by_period: bool,
    /// Longest time that a changed group waits: microseconds.
    pub flush_interval_us: u64,
}

/// The destinations of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Destinations(pub Vec<DestinationHandle>);

impl Destinations {
    /// Those that take readings.
    pub fn of_readings(&self) -> impl Iterator<Item = &DestinationHandle> {
        self.0.iter().filter(|d| !d.takes_messages)
    }

    /// Numbers of those that follow the journal.
    pub fn followers(&self) -> Vec<u32> {
        self.0.iter().filter(|d| d.takes_messages).map(|d| d.id).collect()
    }
}
