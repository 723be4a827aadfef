//! Payloads that are no plain JSON, or need what came before them: formats of MQTT sources (`format = "..."`).
//!
//! Two halves, so that the journal keeps the bytes as they came and every message means the same whenever it is read:
//!
//! * The **intake** half ([`annotate`]) sees all messages of a source in order. It knows what later messages refer to (births of
//!   Sparkplug B, discovery of Home Assistant) and puts what a message needs beside it, as a property that is journaled with it.
//! * **Decoding** ([`decode`]) is pure: message in, JSON body out. It runs whenever a message is normalized: by the loops, in
//!   `map`, `replay` and `explain`.
//!
//! Invariants:
//! 1. Decoding depends on nothing but the message: payload, topic and its own properties.
//! 2. What the intake half learns of a message is in the store no later than the message ([`Memory`]).
//! 3. Nobody else can set the properties of this module: those of a sender with these names are dropped.
//! 4. No payload makes more than a bounded number of values; what is larger is refused.

pub mod annotate;
pub mod availability;
pub mod home_assistant;
pub mod kura;
pub(crate) mod lines;
pub mod memory;
pub mod sparkplug;

pub use memory::{Memory, Remembered};

use crate::message::Message;
use crate::telemetry::errors::ErrorRecord;
use bytes::Bytes;
use serde::Deserialize;
use std::borrow::Cow;

/// Property with the format of the message; absent for JSON.
pub const FORMAT_PROPERTY: &str = "bedside-payload-format";

/// Property with what a message refers to: names of aliases, or discovered entities.
pub const NAMES_PROPERTY: &str = "bedside-names";

/// `format` of an MQTT source.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadFormat {
    /// JSON as it is.
    #[default]
    Json,
    /// Sparkplug B.
    SparkplugB,
    /// Eclipse Kura and Kapua.
    Kura,
    /// Home Assistant discovery and the states that it announces.
    HomeAssistant,
    /// Lines of a serial device within `{"value": "..."}`, as OpenMQTTGateway sends them.
    SerialLines,
}

impl PayloadFormat {
    /// As it is written in configuration and property.
    pub fn name(self) -> &'static str {
        match self {
            PayloadFormat::Json => "json",
            PayloadFormat::SparkplugB => "sparkplug-b",
            PayloadFormat::Kura => "kura",
            PayloadFormat::HomeAssistant => "home-assistant",
            PayloadFormat::SerialLines => "serial-lines",
        }
    }
}

/// A decoded message.
#[derive(Debug)]
pub struct Decoded {
    /// The body for mappings, JSON.
    pub body: Vec<u8>,
    /// Parts that are refused; the others are in the body.
    pub failed: Vec<ErrorRecord>,
}

impl From<Vec<u8>> for Decoded {
    fn from(body: Vec<u8>) -> Decoded {
        Decoded {
            body,
            failed: Vec::new(),
        }
    }
}

/// Why a payload cannot be decoded; no patient data.
#[derive(Debug)]
pub struct Unreadable(String);

impl Unreadable {
    fn new(text: impl Into<String>) -> Unreadable {
        Unreadable(text.into())
    }
}

/// What decoding makes of a message.
#[derive(Debug)]
pub enum Body<'m> {
    /// The payload is JSON already.
    AsItIs(&'m [u8]),
    /// It was decoded.
    Decoded(Decoded),
}

impl Body<'_> {
    /// The JSON.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Body::AsItIs(bytes) => bytes,
            Body::Decoded(decoded) => &decoded.body,
        }
    }

    /// Parts that are refused.
    pub fn take_failed(&mut self) -> Vec<ErrorRecord> {
        match self {
            Body::AsItIs(_) => Vec::new(),
            Body::Decoded(decoded) => std::mem::take(&mut decoded.failed),
        }
    }
}

/// The body of a message as mappings see it.
///
/// # Errors
/// `InvalidDataFormatException` with what is wrong with the payload.
pub fn decode(message: &Message) -> Result<Body<'_>, ErrorRecord> {
    let property = |name: &str| {
        let mut found = message.properties.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    };
    let topic = message.topic.as_deref().unwrap_or_default();
    decode_parts(
        property(FORMAT_PROPERTY),
        property(NAMES_PROPERTY),
        topic,
        &message.payload.0,
    )
}

/// The same from the parts of a message.
///
/// # Errors
/// As [`decode`].
pub fn decode_parts<'m>(
    format: Option<&str>,
    names: Option<&str>,
    topic: &str,
    payload: &'m Bytes,
) -> Result<Body<'m>, ErrorRecord> {
    let (format, options) = match format {
        Some(format) => format.split_once(' ').unwrap_or((format, "{}")),
        None => ("json", "{}"),
    };
    let decoded = match format {
        "sparkplug-b" => match sparkplug::Topic::read(topic) {
            Some(topic) => {
                let names: Cow<'_, _> = match names.map(serde_json::from_str) {
                    Some(Ok(names)) => Cow::Owned(names),
                    _ => Cow::Owned(sparkplug::births::Names::default()),
                };
                sparkplug::decode(&topic, payload, &names)
            }
            None => return Ok(json_or_availability(topic, payload)),
        },
        "kura" => kura::decode(topic, payload),
        "home-assistant" => home_assistant::decode(topic, payload, names),
        "serial-lines" => lines::decode(payload, options),
        _ => return Ok(json_or_availability(topic, payload)),
    };
    decoded.map(Body::Decoded).map_err(|Unreadable(why)| {
        let text = format!("the payload cannot be read as format \"{format}\": {why}");
        ErrorRecord::new("InvalidDataFormatException", text)
    })
}

/// JSON stays as it is. The words `online` and `offline` on a topic of availability are no JSON, and no error either.
fn json_or_availability<'m>(topic: &str, payload: &'m Bytes) -> Body<'m> {
    match availability::of_words(topic, payload) {
        Some(available) => Body::Decoded(availability::body(available).into()),
        None => Body::AsItIs(payload),
    }
}
