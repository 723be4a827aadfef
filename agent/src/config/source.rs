//! `[[source]]`: brokers and serial lines.

use super::auth::TlsConfig;
use super::azure::{is_host, port_of};
use super::secret::SecretRef;
use crate::ingest::payload::PayloadFormat;
use crate::ingest::serial::drivers::PortSettings;
use crate::ingest::serial::framing::FramingConfig;
use crate::ingest::serial::port_name::PortName;
use serde::Deserialize;

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
#[serde(deny_unknown_fields)]
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
    /// What the payloads are.
    #[serde(default)]
    pub format: PayloadFormat,
    /// What is in a line of `format = "serial-lines"`: members of a serial source.
    #[serde(default)]
    pub line: toml::Table,
    /// Whether edge nodes of Sparkplug B whose births are missing are asked to be born again (a command that reads nothing
    /// but this).
    #[serde(default)]
    pub request_rebirth: bool,
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

/// A serial source.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct SerialConfig {
    /// Device file, best below `/dev/serial/by-id/`, or the USB device.
    pub port: PortName,
    /// Name of a device driver (`nonin`, ...).
    #[serde(default)]
    pub driver: Option<String>,
    /// `{ baud = 9600, data_bits = 8, parity = "none", stop_bits = 1, flow = "none" }`; what is absent there is this.
    /// Without it the port is as the driver's devices are set, or 9600 8N1.
    #[serde(default)]
    pub settings: Option<PortSettings>,
    /// All other members as they are written; [`SerialConfig::generic_framing`] gives them their types.
    #[serde(flatten)]
    pub framing: toml::Table,
    /// Connection device id of its messages.
    #[serde(default)]
    pub device_id: Option<String>,
}

impl SerialConfig {
    /// Framing and format of a device without a driver; none when there is a driver.
    ///
    /// # Errors
    /// Which member is wrong; never after the configuration was validated.
    pub fn generic_framing(&self) -> Result<Option<FramingConfig>, String> {
        if self.driver.is_some() {
            return Ok(None);
        }
        let read = FramingConfig::deserialize(self.framing.clone());
        read.map(Some).map_err(|error| error.message().to_owned())
    }
}

/// Where a broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Host name or address, an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether the connection is TLS.
    pub tls: bool,
}

impl MqttConfig {
    /// Where the broker is; the port is 1883 without TLS and 8883 with it, unless the address names one.
    ///
    /// # Errors
    /// What is wrong with the address; never after the configuration was validated.
    pub fn broker(&self) -> Result<Broker, &'static str> {
        let form = "write mqtt://HOST or mqtts://HOST, with :PORT where it is not 1883 or 8883";
        let uri: ureq::http::Uri = self.url.parse().map_err(|_| form)?;
        let tls = match uri.scheme_str() {
            Some("mqtt") => false,
            Some("mqtts") => true,
            _ => return Err(form),
        };
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err("user name and password have members of their own: username, password");
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("an MQTT address has no path");
        }
        let host = uri.host().unwrap_or_default();
        if !is_host(host) {
            return Err(form);
        }
        let named = uri.authority().map_or(Ok(None), port_of)?;
        let port = named.unwrap_or(if tls { 8883 } else { 1883 });
        Ok(Broker {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            tls,
        })
    }
}
