//! `bedside-agent map`: what a message becomes under mapping packs, each step shown. Nothing is sent or stored.

mod explain;
mod show;
#[cfg(test)]
mod tests;

use super::packs::{Located, locate};
use super::{Format, print};
use crate::clock;
use crate::config;
use crate::ingest::payload;
use crate::packs::{Pack, PackFinding, PackSet, refused};
use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use iomt_mapping::message::{Envelope, ParsedMessage, PropertyValue};
use iomt_mapping::timestamp::read_timestamp;
use iomt_mapping::{NormalizeError, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Show what a message becomes under mapping packs, step by step
#[derive(Args, Debug)]
#[command(
    long_about = "\
Shows what a message becomes under mapping packs: which template matched, what each expression found and made of it, which
measurements come out, and the FHIR Observations that they become. For a template that does not match it shows how far its type
match got and which members the message lacks. Nothing is sent or stored, and nothing but the files is needed.

The message is the payload as the device sends it, or a whole envelope {\"Body\": .., \"Properties\": .., \"SystemProperties\": ..}.
The exit code is 0 when there is at least one measurement and nothing failed.",
    after_help = "\
Examples:
  bedside-agent map --pack heart-rate reading.json                    a pack of the service, by its name
  bedside-agent map --pack mappings/heart.device.json reading.json    a pack that is being written
  bedside-agent map --pack mappings.d --format json reading.json      all packs of a folder, for a program
  mosquitto_sub -C 1 -t wearables/+/telemetry | bedside-agent map --pack heart-rate -
  bedside-agent map --pack heart-rate --device-id band-7 --topic wearables/band-7/telemetry reading.json"
)]
pub struct Map {
    /// Pack, folder of packs, or name of a pack of the service
    #[arg(long, value_name = "PACK")]
    pack: PathBuf,
    /// File with the message, - for standard input
    #[arg(value_name = "MESSAGE")]
    message: PathBuf,
    /// MQTT topic that it came on
    #[arg(long)]
    topic: Option<String>,
    /// Connection device id, as device_id or device_id_from of the source give it
    #[arg(long, value_name = "ID")]
    device_id: Option<String>,
    /// MQTT 5 user property; several are possible
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = name_and_value)]
    properties: Vec<(String, String)>,
    /// What the payload is, as format of an MQTT source says it: sparkplug-b, kura, home-assistant; needs --topic
    #[arg(long, value_name = "FORMAT", requires = "topic", value_parser = ["sparkplug-b", "kura", "home-assistant"])]
    payload_format: Option<String>,
    /// When it was received, ISO 8601 [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    received: Option<Timestamp>,
    /// How the result is shown
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Timestamp, String> {
    read_timestamp(text)
        .map(|read| read.time)
        .ok_or_else(|| "write ISO 8601, for example 2026-11-21T07:15:30Z".to_owned())
}

/// A sample of a pack: the message and what it must become.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample<'t> {
    #[serde(borrow)]
    message: &'t RawValue,
    topic: Option<String>,
    #[serde(rename = "deviceId")]
    device_id: Option<String>,
    #[serde(rename = "observations")]
    _observations: serde::de::IgnoredAny,
}

impl Map {
    /// Maps and shows; exit code 1 when nothing matched or something failed.
    ///
    /// # Errors
    /// When a file cannot be read, or no pack loads.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let located = self.located()?;
        let (set, findings) = load(&located);
        for found in &findings {
            eprintln!("{}", found.render());
        }
        anyhow::ensure!(
            !set.packs().is_empty(),
            "no mapping pack could be loaded from {}",
            self.pack.display()
        );
        let message = self.decoded(read_message(&self.message)?)?;
        let explained = self
            .parsed(&message, |parsed| explain::explain(&set, parsed))
            .map_err(|error| {
                anyhow::anyhow!(
                    "{}: {}: {}",
                    self.message.display(),
                    error.kind.name(),
                    error.text
                )
            })?;
        print(&match self.format {
            Format::Text => show::text(&explained),
            Format::Json => format!("{}\n", serde_json::to_string_pretty(&explained)?),
        })?;
        let good = explained.measurements > 0 && explained.failed == 0 && !refused(&findings);
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// The message, decoded where it has a payload format.
    fn decoded(&self, message: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let Some(format) = &self.payload_format else {
            return Ok(message);
        };
        let topic = self.topic.as_deref().unwrap_or_default();
        let message = Bytes::from(message);
        let mut body = payload::decode_parts(Some(format), None, topic, &message)
            .map_err(|error| anyhow::anyhow!("{}: {}: {}", self.message.display(), error.name, error.text))?;
        for error in body.take_failed() {
            eprintln!("{}: {}", error.name, error.text);
        }
        Ok(body.bytes().to_vec())
    }

    /// The packs at the path, or the pack of the service with this name.
    fn located(&self) -> anyhow::Result<Located> {
        let is_name = self.pack.components().count() == 1 && !self.pack.exists();
        match locate(&self.pack) {
            Err(_) if is_name => {
                let dir = config::MappingsConfig::default().dir;
                locate(&dir.join(&self.pack)).with_context(|| {
                    format!(
                        "neither here nor in {} is a pack {}",
                        dir.display(),
                        self.pack.display()
                    )
                })
            }
            found => found,
        }
    }

    /// What `use_it` makes of the message as templates see it.
    fn parsed<T>(
        &self,
        message: &[u8],
        use_it: impl FnOnce(&ParsedMessage<'_>) -> T,
    ) -> Result<T, NormalizeError> {
        if let Ok(parsed) = ParsedMessage::from_envelope(message)
            && parsed.body().is_some()
        {
            return Ok(use_it(&parsed));
        }
        let sample: Option<Sample<'_>> = serde_json::from_slice(message).ok();
        let sample = sample.as_ref();
        let body = sample.map_or(message, |sample| sample.message.get().as_bytes());
        let mut properties: Vec<(&str, PropertyValue<'_>)> = Vec::new();
        let topic = (self.topic.as_deref()).or_else(|| sample?.topic.as_deref());
        properties.extend(topic.map(|topic| ("topic", PropertyValue::Text(topic))));
        properties.extend(
            self.properties
                .iter()
                .map(|(name, value)| (name.as_str(), PropertyValue::Text(value))),
        );
        let received = self.received.unwrap_or_else(clock::wall);
        let mut system: Vec<(&str, PropertyValue<'_>)> = Vec::new();
        let device = (self.device_id.as_deref()).or_else(|| sample?.device_id.as_deref());
        system.extend(device.map(|id| ("iothub-connection-device-id", PropertyValue::Text(id))));
        system.push(("iothub-enqueuedtime", PropertyValue::Time(received)));
        let envelope = Envelope {
            body,
            properties: &properties,
            system_properties: &system,
        };
        envelope.parse().map(|parsed| use_it(&parsed))
    }
}

/// The packs that load, and what is wrong with the others.
fn load(located: &Located) -> (PackSet, Vec<PackFinding>) {
    let mut packs = Vec::new();
    let mut wrong = Vec::new();
    for (name, files) in &located.packs {
        let (pack, findings) = files.load(name);
        let in_folder = |mut found: PackFinding| {
            found.file = located.dir.join(&found.file).display().to_string();
            found
        };
        wrong.extend(findings.into_iter().map(in_folder));
        packs.extend(pack.map(Arc::<Pack>::new));
    }
    (PackSet::new(packs), wrong)
}

fn read_message(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut message = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut message)
            .context("standard input cannot be read")?;
        return Ok(message);
    }
    std::fs::read(path).with_context(|| format!("the message {} cannot be read", path.display()))
}
