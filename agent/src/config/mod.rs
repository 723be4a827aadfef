//! `agent.toml`: sources, destinations, store and web page. Validated as a whole; unknown members are errors.

use serde::Deserialize;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: GatewayConfig,
    /// Where mapping packs are dropped.
    #[serde(default)]
    pub mappings: MappingsConfig,
    /// Brokers and serial lines.
    #[serde(default, rename = "source")]
    pub sources: Vec<SourceConfig>,
    /// FHIR servers and event hubs.
    #[serde(default, rename = "destination")]
    pub destinations: Vec<DestinationConfig>,
    /// The store.
    #[serde(default)]
    pub store: StoreConfig,
    /// The local status page.
    #[serde(default)]
    pub web: WebConfig,
    /// When the wall clock may be trusted.
    #[serde(default)]
    pub clock: ClockConfig,
}

/// `[gateway]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Name of the gateway, unique in the fleet; part of every event id.
    pub id: String,
}

/// `[mappings]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct MappingsConfig {
    /// The drop-in folder.
    pub dir: PathBuf,
}

impl Default for MappingsConfig {
    fn default() -> Self {
        MappingsConfig {
            dir: PathBuf::from("/etc/bedside-agent/mappings.d"),
        }
    }
}

/// `[[source]]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct SourceConfig {
    /// Unique name; letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Names of the packs that see its messages; all when absent.
    #[serde(default)]
    pub packs: Option<Vec<String>>,
    /// What it is.
    #[serde(flatten)]
    pub kind: SourceKind,
}

/// `kind = "mqtt" | "serial"` and its members.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SourceKind {
    /// An MQTT broker.
    Mqtt(MqttConfig),
    /// A serial line.
    Serial(SerialConfig),
}

/// An MQTT source.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct MqttConfig {
    /// `mqtt://host[:1883]` or `mqtts://host[:8883]`.
    pub url: String,
    /// Topic filters, subscribed at QoS 1.
    pub topics: Vec<String>,
    /// Client identifier; default `bedside-agent-<gateway id>-<source name>`.
    #[serde(default)]
    pub client_id: Option<String>,
    /// `"5"` (default) or `"3.1.1"`.
    #[serde(default)]
    pub protocol: MqttProtocol,
    /// User name.
    #[serde(default)]
    pub username: Option<String>,
    /// Password.
    #[serde(default)]
    pub password: Option<SecretRef>,
    /// Fixed connection device id of all messages.
    #[serde(default)]
    pub device_id: Option<String>,
    /// Where in the topic the connection device id is.
    #[serde(default)]
    pub device_id_from: Option<DeviceIdFrom>,
    /// Messages that may be unacknowledged at a time (MQTT 5 receive maximum; for 3.1.1 what the broker allows).
    #[serde(default = "default_window")]
    pub window: u16,
    /// Largest payload that is taken whole, in bytes; a larger one becomes a dead letter.
    #[serde(default = "default_max_message")]
    pub max_message_bytes: usize,
    /// Seconds between pings.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: u16,
    /// TLS of `mqtts`.
    #[serde(default)]
    pub tls: TlsConfig,
}

fn default_window() -> u16 {
    100
}
fn default_max_message() -> usize {
    256 * 1024
}
fn default_keep_alive() -> u16 {
    30
}

/// MQTT protocol version.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum MqttProtocol {
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
}

/// `device_id_from`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DeviceIdFrom {
    /// Level of the topic, counted from 1.
    pub topic_level: usize,
}

/// TLS towards a broker or a server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file of the certificate authorities to trust instead of the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// The client's private key (PEM).
    pub key: Option<SecretRef>,
}

/// A serial source.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct SerialConfig {
    /// Device file, best below `/dev/serial/by-id/`.
    pub port: PathBuf,
    /// Name of a device driver (`nonin`, ...).
    #[serde(default)]
    pub driver: Option<String>,
    /// Generic framing when there is no driver (`lines`, ...), with its further members.
    #[serde(flatten)]
    pub framing: toml::Table,
    /// Connection device id of its messages.
    #[serde(default)]
    pub device_id: Option<String>,
}

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
pub struct FhirConfig {
    /// Base address (`https://fhir.hospital.example/r4`).
    pub url: String,
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
}

fn default_flush_interval() -> u64 {
    300
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
pub struct EventHubConfig {
    /// `{namespace}.servicebus.windows.net`.
    pub namespace: String,
    /// Name of the event hub.
    pub hub: String,
    /// What is sent.
    #[serde(default)]
    pub payload: EventPayload,
    /// `gateway` (default) or `device`.
    #[serde(default)]
    pub partition_key: PartitionKey,
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
    /// With `payload = "observation"`: how device and patient are resolved needs a FHIR destination of this name.
    #[serde(default)]
    pub identity_of: Option<String>,
}

fn default_max_event_batch() -> usize {
    1_048_576
}

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

/// `auth = { kind = ..., ... }`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AuthConfig {
    /// No authentication.
    #[default]
    None,
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: SecretRef,
    },
    /// A bearer token that something else keeps fresh.
    Bearer {
        /// The token.
        token: SecretRef,
    },
    /// Shared access signature of Event Hubs.
    Sas {
        /// Name of the shared access rule.
        key_name: String,
        /// Its key as shown in the portal.
        key: SecretRef,
    },
    /// A connection string of Event Hubs.
    ConnectionString {
        /// `Endpoint=sb://...;SharedAccessKeyName=...;SharedAccessKey=...`.
        value: SecretRef,
    },
    /// OAuth 2 client credentials.
    ClientCredentials {
        /// Token endpoint.
        token_url: String,
        /// Client id.
        client_id: String,
        /// Client secret.
        secret: SecretRef,
        /// Scope, such as `https://fhir.example/.default`.
        #[serde(default)]
        scope: Option<String>,
    },
    /// SMART Backend Services (private key JWT).
    SmartBackend {
        /// Client id.
        client_id: String,
        /// Private key (PEM, PKCS#8, P-384 or RSA).
        key: SecretRef,
        /// Key id.
        #[serde(default)]
        key_id: Option<String>,
        /// Scope.
        #[serde(default)]
        scope: Option<String>,
        /// Token endpoint, when the server has no `.well-known/smart-configuration`.
        #[serde(default)]
        token_url: Option<String>,
    },
    /// Managed identity of Azure (virtual machine or Arc agent).
    ManagedIdentity {
        /// Resource, such as `https://eventhubs.azure.net/`.
        resource: String,
        /// Client id of a user-assigned identity.
        #[serde(default)]
        client_id: Option<String>,
    },
}

/// Where a secret is: `credential:NAME`, `file:PATH` or `env:NAME`. Never the secret itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum SecretRef {
    /// A systemd credential: `$CREDENTIALS_DIRECTORY/NAME` or `$CREDENTIALS_DIRECTORY/credentials_NAME`.
    Credential(String),
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl TryFrom<String> for SecretRef {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once(':') {
            Some(("credential", name)) if !name.is_empty() => Ok(SecretRef::Credential(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(PathBuf::from(path))),
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Env(name.to_owned())),
            _ => Err(
                "a secret is never written into agent.toml: use \"credential:NAME\", \"file:PATH\" or \
                      \"env:NAME\""
                    .to_owned(),
            ),
        }
    }
}

/// `[store]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Folder of the store; default `$STATE_DIRECTORY`, else `/var/lib/bedside-agent`.
    pub dir: Option<PathBuf>,
    /// Largest size of database and write-ahead log (`"512 MiB"`).
    pub max_bytes: ByteSize,
    /// Longest time that a message waits for its commit.
    pub commit_interval: TextDuration,
    /// Longest time between commits of progress.
    pub progress_interval: TextDuration,
    /// How long delivered messages stay for explain, replay and corrections.
    pub history: TextDuration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            dir: None,
            max_bytes: ByteSize(512 * 1024 * 1024),
            commit_interval: TextDuration(1_000_000),
            progress_interval: TextDuration(10_000_000),
            history: TextDuration(24 * 3_600_000_000),
        }
    }
}

/// A size such as `"512 MiB"`, `"2 GB"` or `"4096 B"`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct ByteSize(
    /// Bytes.
    pub u64,
);

/// A duration such as `"250 ms"`, `"1 s"`, `"5 min"`, `"24 h"` or `"7 d"`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct TextDuration(
    /// Microseconds.
    pub u64,
);

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = number_and_unit(&text).and_then(|(n, unit)| {
            let factor = match unit {
                "B" => 1,
                "kB" | "KB" => 1000,
                "KiB" => 1 << 10,
                "MB" => 1_000_000,
                "MiB" => 1 << 20,
                "GB" => 1_000_000_000,
                "GiB" => 1 << 30,
                _ => return None,
            };
            n.checked_mul(factor)
        });
        parsed
            .map(ByteSize)
            .ok_or_else(|| format!("\"{text}\" is no size: write a number and a unit, such as \"512 MiB\""))
    }
}

impl TryFrom<String> for TextDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = number_and_unit(&text).and_then(|(n, unit)| {
            let factor = match unit {
                "ms" => 1_000,
                "s" => 1_000_000,
                "min" => 60_000_000,
                "h" => 3_600_000_000,
                "d" => 86_400_000_000,
                _ => return None,
            };
            n.checked_mul(factor)
        });
        parsed.map(TextDuration).ok_or_else(|| {
            format!("\"{text}\" is no duration: write a number and a unit, such as \"1 s\" or \"5 min\"")
        })
    }
}

/// `[web]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct WebConfig {
    /// Address of the status page (`127.0.0.1:8080`); no page when absent.
    pub listen: Option<String>,
}

/// `[clock]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ClockConfig {
    /// What makes the wall clock trustworthy.
    pub trust: ClockTrust,
}

/// `trust = "ntp" | "rtc" | "always"`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ClockTrust {
    /// Trusted once time synchronisation has said so.
    #[default]
    Ntp,
    /// A battery-backed clock is trusted from the start.
    Rtc,
    /// Trusted always.
    Always,
}
