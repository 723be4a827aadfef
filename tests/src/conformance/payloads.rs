//! `vectors/serial/mqtt-payloads.json`: messages of wearables and hubs through intake, decoding and the mapping pack that ships
//! for them, compared value by value with what they must become.

mod judge;
mod values;

use bedside_agent::config::MqttConfig;
use bedside_agent::ingest::payload::annotate::Annotator;
use bedside_agent::ingest::payload::{self, Memory};
use bedside_agent::message::{Message, SourceId, Stamp};
use iomt_mapping::Timestamp;
use judge::judge;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// What became of one sample.
pub struct Outcome {
    /// Its `id`.
    pub id: String,
    /// How it went.
    pub run: Run,
}

/// How it went.
pub enum Run {
    /// It was run; nothing when it holds, else the difference.
    Done(super::Outcome),
    /// Nothing reads it; why.
    NotYet(&'static str),
}

/// A convention: the pack, and what the configuration of the source gives (`format`, `device_id`, `device_id_from`).
struct Source {
    pack: &'static str,
    format: &'static str,
    /// The body is a list of metrics with names.
    metrics: bool,
    device_id: String,
}

/// 2026-03-01T07:15:30Z, when the message came.
const RECEIVED_TICKS: i64 = 17_723_493_300_000_000;

/// Runs all samples of a file, in its order: later ones may refer to earlier ones. None when it has none.
pub fn run(file: &Value) -> Option<Vec<Outcome>> {
    let samples = file.get("samples")?.as_array()?;
    samples.first()?.get("convention")?;
    let mut sources = Sources::default();
    let outcome = |sample: &Value| Outcome {
        id: sample["id"].as_str().unwrap_or("?").to_owned(),
        run: sources.run(sample),
    };
    Some(samples.iter().map(outcome).collect())
}

/// The sources of all conventions, each with what it has learnt so far.
#[derive(Default)]
struct Sources(HashMap<String, Annotator>);

/// What a source makes of a sample.
struct Came {
    /// Somebody is there or away.
    available: Option<bool>,
    /// The body for mappings, or why there is none.
    body: Result<Value, String>,
    /// Parts that were refused.
    refused: Vec<String>,
}

impl Sources {
    fn run(&mut self, sample: &Value) -> Run {
        let Some(source) = source(sample) else {
            return Run::NotYet("no source reads this convention");
        };
        Run::Done(
            self.came(sample, &source)
                .and_then(|came| judge(sample, &source, came)),
        )
    }

    /// The sample through intake and decoding, as the service does it.
    fn came(&mut self, sample: &Value, source: &Source) -> Result<Came, String> {
        let convention = sample["convention"].as_str().unwrap_or_default();
        let annotator = match self.0.entry(convention.to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let mut config = json!({ "url": "mqtt://broker", "topics": ["#"], "format": source.format });
                if source.format == "serial-lines" {
                    config["line"] = json!({ LINE[0].0: LINE[0].1, LINE[1].0: LINE[1].1 });
                }
                let config: MqttConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
                new.insert(Annotator::new(&config, SourceId(1), &Memory::default()))
            }
        };
        let mut message = Message {
            topic: sample["topic"].as_str().map(Arc::from),
            ..Message::new(
                SourceId(1),
                Stamp {
                    boot: 1,
                    monotonic_us: 0,
                    wall: Timestamp::from_ticks(RECEIVED_TICKS).ok_or("no time of reception")?,
                    trusted: true,
                },
                payload(sample)?,
            )
        };
        let said = annotator.annotate(&mut message);
        let mut decoded = payload::decode(&message);
        let refused = decoded
            .as_mut()
            .map(|body| body.take_failed())
            .unwrap_or_default();
        let body = decoded.map_err(|error| error.text).and_then(|body| {
            let read = serde_json::from_slice(body.bytes());
            read.map_err(|error| format!("the body is no JSON: {error}"))
        });
        Ok(Came {
            available: said.availability.map(|(_, available)| available),
            body,
            refused: refused.into_iter().map(|error| error.text).collect(),
        })
    }
}

/// What is in the lines of a serial device within messages.
const LINE: [(&str, &str); 2] = [("format", "label"), ("delimiter", " ")];

fn payload(sample: &Value) -> Result<Vec<u8>, String> {
    let text = |name: &str| sample[name].as_str().unwrap_or_default();
    match text("encoding") {
        "hex" => {
            let digits: Vec<u8> = text("hex")
                .bytes()
                .filter(|byte| !byte.is_ascii_whitespace())
                .collect();
            let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes = digits.chunks(2).map(pair).collect::<Option<_>>();
            bytes.ok_or_else(|| "`hex` is no hexadecimal text".to_owned())
        }
        _ => Ok(text("payload").as_bytes().to_vec()),
    }
}

fn source(sample: &Value) -> Option<Source> {
    let topic = sample["topic"].as_str()?;
    let level = |number: usize| topic.split('/').nth(number - 1).map(str::to_owned);
    // Where the message names its device, the id of the source must not get through.
    let other = || Some("id-of-the-source".to_owned());
    let (pack, device_id) = match sample["convention"].as_str()? {
        "theengs" => ("theengs", other()),
        "tasmota" => ("tasmota", level(2)),
        "zigbee2mqtt" => ("zigbee2mqtt", level(2)),
        "home-assistant" => ("home-assistant", other()),
        "open-mhealth" => ("open-mhealth", level(1)),
        "azure-iot-hub" => ("iot-hub-envelope", other()),
        "azure-iot-central" => ("iot-central", other()),
        // The name of a phone has two levels: an id in the configuration.
        "apple-health-exporter" => (
            "health-auto-export",
            topic.rsplit_once('/').map(|(phone, _)| phone.to_owned()),
        ),
        // A flat object of the members that Home Assistant states have too.
        "plain" => ("home-assistant", level(1)),
        // The lines of a device have no pack that ships.
        "omg-serial" => ("theengs", other()),
        "sparkplug-b" => ("sparkplug-b", other()),
        "kura" => ("kura", other()),
        _ => return None,
    };
    let format = match sample["convention"].as_str()? {
        "omg-serial" => "serial-lines",
        "sparkplug-b" => "sparkplug-b",
        "kura" => "kura",
        "home-assistant" => "home-assistant",
        _ => "json",
    };
    Some(Source {
        pack,
        format,
        metrics: matches!(format, "sparkplug-b" | "kura"),
        device_id: device_id?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn samples() -> Vec<Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/serial/mqtt-payloads.json");
        let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        file["samples"].as_array().unwrap().clone()
    }

    #[test]
    fn every_sample_is_run_and_holds() {
        let samples = json!({ "samples": samples() });
        for outcome in run(&samples).unwrap() {
            match outcome.run {
                Run::Done(done) => assert_eq!(done, Ok(()), "{}", outcome.id),
                Run::NotYet(why) => panic!("{}: {why}", outcome.id),
            }
        }
    }

    /// What is said of the sample `id` after `change`, when all before it came too.
    fn difference(id: &str, change: &dyn Fn(&mut Value)) -> String {
        let mut sources = Sources::default();
        for mut sample in samples() {
            let is_it = sample["id"] == id;
            if is_it {
                change(&mut sample);
            }
            let run = sources.run(&sample);
            match run {
                Run::Done(done) if is_it => return done.expect_err(id),
                _ => {}
            }
        }
        panic!("no sample {id}");
    }

    #[test]
    fn each_part_of_a_decoded_message_counts() {
        type Change<'a> = (&'a str, &'a str, &'a dyn Fn(&mut Value));
        let changes: [Change<'_>; 11] = [
            ("sparkplug-dbirth", "expected 71, got 72", &|s| {
                s["expect"][0]["value"] = 71.into()
            }),
            ("sparkplug-dbirth", "expected the device", &|s| {
                s["expect"][1]["device"] = "gw7".into()
            }),
            ("sparkplug-dbirth", "was not expected", &|s| {
                drop(s["expect"].as_array_mut().unwrap().pop())
            }),
            ("sparkplug-ddata-alias", "no metric", &|s| {
                s["topic"] = "spBv1.0/ward3/DDATA/gw7/other".into()
            }),
            ("sparkplug-ddata-alias", "expected 97.5, got null", &|s| {
                s["expect"][1]["value"] = 97.5.into()
            }),
            ("sparkplug-historical", "expected historical", &|s| {
                s["expect"][0]["historical"] = false.into()
            }),
            ("sparkplug-historical", "expected the time", &|s| {
                s["expect"][0]["time"] = "2024-03-05T14:30:01Z".into()
            }),
            ("kura-protobuf", "no metric", &|s| {
                s["expect"][0]["name"] = "rr".into()
            }),
            ("tasmota-lwt", "availability", &|s| s["payload"] = "Online".into()),
            ("ha-discovery", "not discovered", &|s| {
                s["expect"][0]["discovers"]["unit"] = "kPa".into()
            }),
            ("omg-serial", "expected the line", &|s| {
                s["payload"] = "{\"value\":\"SPO2=097 HR=072\"}".into()
            }),
        ];
        for (id, told, change) in changes {
            let difference = difference(id, change);
            assert!(difference.contains(told), "{id}: {difference}");
        }
        let valid = difference("kura-json", &|s| s["valid"] = false.into());
        assert!(valid.contains("was taken"), "{valid}");
    }

    #[test]
    fn each_part_of_an_expected_value_counts() {
        let samples = samples();
        let sample = samples
            .iter()
            .find(|sample| sample["id"] == "omh-blood-pressure")
            .unwrap();
        let outcome = |change: &dyn Fn(&mut Value)| {
            let mut sample = sample.clone();
            change(&mut sample["expect"]);
            match Sources::default().run(&sample) {
                Run::Done(outcome) => outcome,
                Run::NotYet(why) => panic!("{why}"),
            }
        };
        assert_eq!(outcome(&|_| ()), Ok(()));
        type Change<'a> = (&'a str, &'a dyn Fn(&mut Value));
        let changes: [Change<'_>; 6] = [
            ("expected 123, got 122", &|expect| expect[0]["value"] = 123.into()),
            ("expected the unit", &|expect| expect[1]["unit"] = "kPa".into()),
            ("expected the device", &|expect| {
                expect[0]["device"] = "bed8".into()
            }),
            ("expected the time", &|expect| {
                expect[0]["time"] = "2024-03-05T14:30:01Z".into()
            }),
            ("no Observation of spo2", &|expect| {
                expect[0]["name"] = "spo2".into()
            }),
            ("was not expected", &|expect| {
                drop(expect.as_array_mut().unwrap().pop())
            }),
        ];
        for (told, change) in changes {
            let difference = outcome(change).unwrap_err();
            assert!(difference.contains(told), "{difference}");
        }
    }
}
