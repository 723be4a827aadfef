//! `[[destination]]`: FHIR servers and event hubs.

use super::auth::{AuthConfig, TlsConfig};
use super::units::TextDuration;
use serde::Deserialize;

/// `[[destination]]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct DestinationConfig {
    /// Unique name.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: DestinationKind,
}

/// `kind = "fhir" | "event-hub"` and its members.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DestinationKind {
    /// A FHIR R4 server.
    Fhir(FhirConfig),
    /// Azure Event Hubs.
    EventHub(EventHubConfig),
}

/// A FHIR destination.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct FhirConfig {
    /// Base address (`https://fhir.hospital.example/r4`) without a slash at its end. May be written as the resource id of
    /// an Azure FHIR service; reading the configuration makes the address of it.
    #[serde(default)]
    pub url: String,
    /// Workspace of an Azure FHIR service, with `service` in place of `url`.
    #[serde(default)]
    pub workspace: Option<String>,
    /// Name of the Azure FHIR service in `workspace`.
    #[serde(default)]
    pub service: Option<String>,
    /// How device and patient are resolved.
    #[serde(default)]
    pub resolution: Resolution,
    /// System of the device identifiers; none by default, as in the reference.
    #[serde(default)]
    pub device_identifier_system: Option<String>,
    /// Form of the Observation identity.
    #[serde(default)]
    pub identity: IdentityConfig,
    /// Authentication.
    #[serde(default)]
    pub auth: AuthConfig,
    /// TLS.
    #[serde(default)]
    pub tls: TlsConfig,
    /// HTTP proxy (`http://proxy:3128`).
    #[serde(default)]
    pub proxy: Option<String>,
    /// Longest time that changed hourly and daily Observations wait for more readings, in seconds.
    #[serde(default = "default_flush_interval")]
    pub flush_interval: u64,
    /// How long a search of the server may lag behind a write, in seconds; counts where the server chooses ids.
    #[serde(default = "default_index_lag")]
    pub index_lag: u64,
    /// Longest time that a reading waits for somebody to say whose it is; then it is a dead letter.
    #[serde(default = "default_max_wait")]
    pub max_wait: TextDuration,
    /// How far back a correction reaches, and how long sent periods are remembered.
    #[serde(default = "default_correction_window")]
    pub correction_window: TextDuration,
    /// Asks for `DeviceUseStatement`s too: they say exactly when a patient used a device.
    #[serde(default)]
    pub device_use_statements: bool,
    /// Writes what the Personal Health Device guide asks for: records of what clocks of devices showed (coincident
    /// timestamps), the gateway that a reading came through, and the guide's identifiers.
    #[serde(default)]
    pub coincident_timestamp: bool,
}

impl FhirConfig {
    /// [`FhirConfig::correction_window`] in ticks of 100 ns.
    pub fn correction_ticks(&self) -> i64 {
        i64::try_from(self.correction_window.0.saturating_mul(10)).unwrap_or(i64::MAX)
    }
}

fn default_correction_window() -> TextDuration {
    TextDuration(7 * 86_400_000_000)
}

fn default_max_wait() -> TextDuration {
    TextDuration(7 * 86_400_000_000)
}

fn default_flush_interval() -> u64 {
    300
}

fn default_index_lag() -> u64 {
    60
}

/// Resolution type; the reference's spellings are taken too.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// Device and Patient must exist.
    #[default]
    #[serde(alias = "Lookup")]
    Lookup,
    /// Missing Device and Patient are created.
    #[serde(alias = "Create")]
    Create,
    /// As lookup, and the Encounter must exist.
    #[serde(alias = "LookupWithEncounter")]
    LookupWithEncounter,
}

/// `identity = "agent" | "medtech"` (rule D6).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityConfig {
    /// 100 ns precision.
    #[default]
    Agent,
    /// Whole seconds, continues the resources of the service.
    Medtech,
}

/// An Event Hubs destination.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct EventHubConfig {
    /// `{namespace}.servicebus.windows.net`.
    pub namespace: String,
    /// Name of the event hub.
    pub hub: String,
    /// What carries the events.
    #[serde(default)]
    pub transport: Transport,
    /// What is sent.
    #[serde(default)]
    pub payload: EventPayload,
    /// `gateway` (default) or `device`.
    #[serde(default)]
    pub partition_key: PartitionKey,
    /// Sends as this publisher (`/hub/publishers/NAME/messages`), with a signature for it alone; it is the partition key.
    #[serde(default)]
    pub publisher: Option<String>,
    /// Puts the event id into bodies that are JSON objects too, as member `bedsideEventId`.
    #[serde(default)]
    pub event_id_in_body: bool,
    /// Largest publication in bytes: 262144 for the Basic tier, 1048576 otherwise.
    #[serde(default = "default_max_event_batch")]
    pub max_batch_bytes: usize,
    /// Authentication.
    #[serde(default)]
    pub auth: AuthConfig,
    /// TLS.
    #[serde(default)]
    pub tls: TlsConfig,
    /// HTTP proxy.
    #[serde(default)]
    pub proxy: Option<String>,
    /// `host:port` to connect to instead of the namespace (private endpoint, test); the name in the certificate stays.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// With `payload = "measurement"`: each alone, or many in one compressed event.
    #[serde(default)]
    pub measurements: Measurements,
    /// With `payload = "message"`: the payload alone, or an envelope around it.
    #[serde(default)]
    pub envelope: Envelope,
    /// With `payload = "observation"`: the FHIR destination whose server says whose a reading is. Without it the message
    /// says it, and the ids are those of `resolution = "create"`.
    #[serde(default)]
    pub identity_of: Option<String>,
    /// With `payload = "observation"` and without `identity_of`: system of the device identifiers.
    #[serde(default)]
    pub device_identifier_system: Option<String>,
}

/// How measurements become events.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Measurements {
    /// An event each.
    #[default]
    Single,
    /// Many as a JSON array compressed with gzip, as iomt-fhir sends them with `UseCompressionOnSend`.
    Grouped,
}

/// What is around a raw message.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Envelope {
    /// Nothing: the body of the event is the payload as it came.
    #[default]
    None,
    /// `{"Body": .., "Properties": {..}, "SystemProperties": {..}}` with device id and creation time, as mappings see a
    /// message that came through an IoT Hub.
    IotHub,
}

fn default_max_event_batch() -> usize {
    1_048_576
}

/// `transport = "https" | "amqp" | "amqp-websocket"`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// The REST interface, port 443.
    #[default]
    Https,
    /// AMQP 1.0 over TLS, port 5671.
    Amqp,
    /// AMQP 1.0 over WebSockets, port 443.
    AmqpWebsocket,
}

/// Why a transport over AMQP cannot be used, and what to do.
#[cfg(not(feature = "amqp"))]
pub const NO_AMQP: &str = "this program was built without AMQP: leave `transport` out (HTTPS on port 443 needs nothing else), \
     or install a build with the feature `amqp` (cross/build --features amqp)";

/// What an event hub gets.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum EventPayload {
    /// Every raw message.
    #[default]
    Message,
    /// Normalized measurements.
    Measurement,
    /// FHIR Observations.
    Observation,
}

/// Partition key of events.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionKey {
    /// The gateway id: one order for everything.
    #[default]
    Gateway,
    /// The device id.
    Device,
}
