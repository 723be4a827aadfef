//! `agent.toml`: sources, destinations, store and web page. Read as a whole: every error is shown at once, with its line,
//! a mark below what is wrong, and a suggestion; unknown members are errors. Secrets are never in it.

mod auth;
mod azure;
mod destination;
mod device_clock;
mod encryption;
mod error;
mod reader;
#[cfg(test)]
mod reference_tests;
mod secret;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod trouble;
mod units;
mod validate;

pub use auth::{AuthConfig, TlsConfig};
#[cfg(not(feature = "amqp"))]
pub use destination::NO_AMQP;
pub use destination::{
    DestinationConfig, DestinationKind, Envelope, EventHubConfig, EventPayload, FhirConfig, IdentityConfig,
    Measurements, PartitionKey, Resolution, Transport,
};
pub use device_clock::{DeviceClock, Zone};
pub use encryption::Encryption;
pub use error::{Checked, ConfigError, one_line};
pub use secret::{Secret, SecretError, SecretRef};
pub use source::{Broker, DeviceIdFrom, MqttConfig, MqttProtocol, SerialConfig, SourceConfig, SourceKind};
pub use units::{ByteSize, TextDuration};

use crate::timekeeping::device::Rules;
use crate::wear::FlashBudget;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Reads and validates the configuration at `path`. Relative paths in it start at its folder. Warnings go to the log.
///
/// # Errors
/// When the file cannot be read, or with all that is wrong in it.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let checked = check(path)?;
    for warning in checked.one_line_each() {
        tracing::warn!("{warning}");
    }
    checked.into_config()
}

/// Reads and validates the configuration at `path` and keeps the warnings too, for `check`.
///
/// # Errors
/// When the file cannot be read.
pub fn check(path: &Path) -> Result<Checked, ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable {
        file: path.display().to_string(),
        why,
    };
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        unreadable(format!(
            "it is no UTF-8 text (byte {})",
            error.utf8_error().valid_up_to()
        ))
    })?;
    let mut checked = check_text(&path.display().to_string(), &text);
    if let Some(config) = &mut checked.config {
        config.start_paths_at(path.parent().unwrap_or(Path::new("")));
    }
    Ok(checked)
}

/// Validates the text of a configuration; `file` names it in messages.
pub fn check_text(file: &str, text: &str) -> Checked {
    let (config, findings) = reader::read(text);
    Checked::new(file, text, config, findings)
}

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: GatewayConfig,
    /// Where mapping packs are dropped.
    #[serde(default)]
    pub mappings: MappingsConfig,
    /// Where files about who has which device are dropped.
    #[serde(default)]
    pub associations: AssociationsConfig,
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

impl Config {
    /// How long delivered messages stay, in microseconds: as configured, else as long as corrections of a FHIR server reach
    /// back, so that they find the readings here, and a day where there is none. The room for it is bounded beside.
    pub fn history_us(&self) -> u64 {
        const DAY_US: u64 = 86_400_000_000;
        let windows = self.destinations.iter().filter_map(|one| match &one.kind {
            DestinationKind::Fhir(fhir) => Some(fhir.correction_window.0),
            DestinationKind::EventHub(_) => None,
        });
        let configured = self.store.history.map(|history| history.0);
        configured.unwrap_or_else(|| windows.max().unwrap_or(0).max(DAY_US))
    }

    /// Makes relative paths absolute: they start at the folder of the configuration.
    fn start_paths_at(&mut self, folder: &Path) {
        let start = |path: &mut PathBuf| *path = folder.join(&*path);
        start(&mut self.mappings.dir);
        start(&mut self.associations.dir);
        if let Some(token) = &mut self.web.token {
            token.start_at(folder);
        }
        self.store.dir.iter_mut().for_each(start);
        self.store.encryption.start_at(folder);
        for source in &mut self.sources {
            if let SourceKind::Mqtt(mqtt) = &mut source.kind {
                mqtt.password
                    .iter_mut()
                    .for_each(|secret| secret.start_at(folder));
                mqtt.tls.start_at(folder);
            }
        }
        for destination in &mut self.destinations {
            let (auth, tls) = match &mut destination.kind {
                DestinationKind::Fhir(fhir) => (&mut fhir.auth, &mut fhir.tls),
                DestinationKind::EventHub(hub) => (&mut hub.auth, &mut hub.tls),
            };
            auth.start_at(folder);
            tls.start_at(folder);
        }
    }
}

/// `[gateway]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Name of the gateway, unique in the fleet; part of every event id. Letters, digits, `-`, `_`, `.`.
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

/// `[associations]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct AssociationsConfig {
    /// The drop-in folder for files of associations; one that does not exist is empty.
    pub dir: PathBuf,
}

impl Default for AssociationsConfig {
    fn default() -> Self {
        AssociationsConfig {
            dir: PathBuf::from("/etc/bedside-agent/associations.d"),
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
    /// How far `flash_budget` may widen `commit_interval`.
    pub commit_interval_max: TextDuration,
    /// What may be written in a day; commits become rarer to hold it.
    pub flash_budget: Option<FlashBudget>,
    /// Longest time between commits of progress.
    pub progress_interval: TextDuration,
    /// How long delivered messages stay for explain, replay and corrections ([`Config::history_us`] where it is absent).
    pub history: Option<TextDuration>,
    /// How long messages stay that no template matched, and at most a tenth of `max_bytes`.
    pub unmatched_keep: TextDuration,
    /// How long an unsent reading stays; as long as there is room when absent.
    pub max_age: Option<TextDuration>,
    /// Free bytes to leave to others on the file system of the store: `max_bytes` shrinks for it.
    pub min_free_disk: ByteSize,
    /// Encryption at rest: `true`, `"credential:NAME"` or `"file:PATH"`.
    pub encryption: Encryption,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            dir: None,
            max_bytes: ByteSize(512 * 1024 * 1024),
            commit_interval: TextDuration(1_000_000),
            commit_interval_max: TextDuration(10_000_000),
            flash_budget: None,
            progress_interval: TextDuration(10_000_000),
            history: None,
            unmatched_keep: TextDuration(24 * 3_600_000_000),
            max_age: None,
            min_free_disk: ByteSize(0),
            encryption: Encryption::Off,
        }
    }
}

/// `[web]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct WebConfig {
    /// Address of the status page (`127.0.0.1:8080`); no page when absent.
    pub listen: Option<String>,
    /// What has to be known to enter associations on the page; without it they cannot be.
    pub token: Option<SecretRef>,
}

/// `[clock]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ClockConfig {
    /// What makes the wall clock trustworthy.
    pub trust: ClockTrust,
    /// Clocks of devices that are apart from the gateway's; the first that fits counts.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceClock>,
}

impl ClockConfig {
    /// The clocks of devices as normalizing uses them.
    pub fn rules(&self) -> Rules {
        Rules(self.devices.iter().map(DeviceClock::rule).collect())
    }
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
