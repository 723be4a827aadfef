//! `vectors/serial/mqtt-payloads.json`: messages of wearables and hubs through intake, decoding and the mapping pack that ships
//! for them, compared value by value with what they must become.

use bedside_agent::config::MqttConfig;
use bedside_agent::ingest::payload::annotate::Annotator;
use bedside_agent::ingest::payload::{self, Memory};
use bedside_agent::ingest::serial::drivers::{Now, Output};
use bedside_agent::ingest::serial::framing::{self, FramingConfig};
use bedside_agent::message::{Message, Payload, PayloadKind, SourceId, Stamp};
use iomt_mapping::fhir::{BuildOptions, FhirMapping, Reading, ResourceIds, parse_datetime};
use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
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

/// A value of an Observation or of a component.
struct Found {
    device: String,
    codes: Vec<String>,
    value: f64,
    unit: String,
    time: String,
}

/// 2026-03-01T07:15:30Z, when the message came.
const RECEIVED_TICKS: i64 = 17_723_493_300_000_000;

/// Samples give four decimals of a converted value.
const PRECISION: f64 = 0.000_051;

/// Measurement names of the samples and the code that the Observation must have.
const CODES: [(&str, &str); 11] = [
    ("battery", "67996"),
    ("body_temperature", "8310-5"),
    ("body_weight", "29463-7"),
    ("glucose", "2339-0"),
    ("heart_rate", "8867-4"),
    ("nibp_diastolic", "8462-4"),
    ("nibp_systolic", "8480-6"),
    ("respiratory_rate", "9279-1"),
    ("spo2", "59408-5"),
    ("steps", "55423-8"),
    ("temperature", "150344"),
];

/// Names of metrics that the packs know.
const METRIC_CODES: [(&str, &str); 5] = [
    ("hr", "8867-4"),
    ("heart_rate", "8867-4"),
    ("rr", "9279-1"),
    ("spo2", "59408-5"),
    ("temp_c", "150344"),
];

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
            source: SourceId(1),
            stamp: Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::from_ticks(RECEIVED_TICKS).ok_or("no time of reception")?,
                trusted: true,
            },
            payload: Payload(payload(sample)?.into()),
            kind: PayloadKind::Whole,
            topic: sample["topic"].as_str().map(Arc::from),
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record: None,
            ack: None,
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

fn judge(sample: &Value, source: &Source, came: Came) -> super::Outcome {
    let expected = sample["expect"].as_array().map_or(&[][..], Vec::as_slice);
    if sample["valid"] == false {
        return match (&came.body, came.refused.as_slice()) {
            (Ok(_), []) => Err("it is no valid payload, and was taken".to_owned()),
            _ => Ok(()),
        };
    }
    let body = came.body?;
    let said: Vec<&Value> = expected
        .iter()
        .filter_map(|one| one.get("availability"))
        .collect();
    match (said.first(), came.available) {
        (Some(expected), said) if **expected != json!(said) => {
            return Err(format!("availability: expected {expected}, got {said:?}"));
        }
        _ => {}
    }
    let discovers = expected.iter().filter_map(|one| one.get("discovers"));
    for one in discovers {
        let names = [
            ("state_topic", "stateTopic"),
            ("path", "path"),
            ("unit", "unit"),
            ("device", "device"),
        ];
        let same = |entity: &&Value| {
            names
                .iter()
                .all(|(name, of)| one.get(*name).is_none_or(|v| *v == entity[*of]))
        };
        let mut entities = body["entities"].as_array().into_iter().flatten();
        if !entities.any(|entity| same(&entity)) {
            return Err(format!("not discovered: {one}, but {}", body["entities"]));
        }
    }
    if let Some(text) = expected.iter().find_map(|one| one["inner_text"].as_str()) {
        let line = line(text)?;
        if line != body {
            return Err(format!("expected the line to be {line}, got {body}"));
        }
        return Ok(());
    }
    let readings: Vec<Value> = expected
        .iter()
        .filter(|one| one.get("name").is_some())
        .cloned()
        .collect();
    let found = found(sample, source, &body)?;
    match source.metrics {
        true => compare_metrics(&readings, &body, found),
        false => compare(&readings, found),
    }
    .map_err(|difference| match came.refused.first() {
        Some(refused) => format!("{difference}; {refused}"),
        None => difference,
    })
}

/// What the same line is on a serial port.
fn line(text: &str) -> Result<Value, String> {
    let config = json!({ LINE[0].0: LINE[0].1, LINE[1].0: LINE[1].1 });
    let config: FramingConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
    let mut driver = framing::from_config(&config);
    let mut out = Output::default();
    let now = Now {
        monotonic_us: 0,
        wall: None,
    };
    driver.bytes(format!("{text}\n").as_bytes(), now, &mut out);
    let message = out.messages.first().ok_or("no line is read")?;
    serde_json::from_slice(&message.body).map_err(|error| error.to_string())
}

/// The metrics of a decoded message, name by name; those with a code have their Observation, too.
fn compare_metrics(expected: &[Value], body: &Value, found: Vec<Found>) -> super::Outcome {
    let mut metrics: Vec<&Value> = body["metrics"].as_array().into_iter().flatten().collect();
    for one in expected {
        let name = one["name"].as_str().unwrap_or_default();
        let index = metrics.iter().position(|metric| metric["name"] == name);
        let metric = metrics.remove(index.ok_or_else(|| format!("no metric {name}"))?);
        let time = metric["time"]
            .as_str()
            .or(body["time"].as_str())
            .unwrap_or_default();
        let same_value = match (one["value"].as_f64(), metric["value"].as_f64()) {
            (Some(expected), Some(value)) => (expected - value).abs() <= PRECISION,
            _ => one["value"] == metric["value"],
        };
        if !same_value {
            return Err(format!(
                "{name}: expected {}, got {}",
                one["value"], metric["value"]
            ));
        }
        if one.get("device").is_some_and(|device| *device != body["device"]) {
            return Err(format!(
                "{name}: expected the device {}, got {}",
                one["device"], body["device"]
            ));
        }
        for flag in ["historical", "transient"] {
            if one.get(flag).unwrap_or(&json!(false)) != metric.get(flag).unwrap_or(&json!(false)) {
                return Err(format!(
                    "{name}: expected {flag} {}, got {}",
                    one[flag], metric[flag]
                ));
            }
        }
        if let Some(expected) = one["time"].as_str()
            && (parse_datetime(expected) != parse_datetime(time) || parse_datetime(time).is_none())
        {
            return Err(format!("{name}: expected the time {expected}, got {time}"));
        }
        let code = METRIC_CODES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, code)| *code);
        if let (Some(code), Some(value)) = (code, one["value"].as_f64()) {
            let is_it = |found: &Found| {
                found.codes.iter().any(|known| known == code)
                    && (found.value - value).abs() <= PRECISION
                    && body["device"] == found.device.as_str()
                    && parse_datetime(&found.time) == parse_datetime(time)
            };
            if !found.iter().any(is_it) {
                return Err(format!(
                    "{name}: no Observation of {code} with this value, device and time"
                ));
            }
        }
    }
    let more = |metric: &&&Value| {
        let name = metric["name"].as_str().unwrap_or_default();
        metric["value"].is_number() && name != "bdSeq" && !name.contains("Control/")
    };
    match metrics.iter().find(more) {
        Some(more) => Err(format!("a metric {} was not expected", more["name"])),
        None => Ok(()),
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

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings")
}

/// All values of the Observations that the pack makes of the sample.
fn found(sample: &Value, source: &Source, body: &Value) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    let pack = source.pack;
    let text = |file: &str| {
        let path = folder().join(pack).join(file);
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let device = DeviceMapping::load(&text("devicecontent.json")?).0;
    let fhir = FhirMapping::load(&text("fhirmapping.json")?).0;
    let (device, fhir) = device
        .zip(fhir)
        .ok_or_else(|| format!("pack {pack} does not load"))?;
    values(sample, source, body, &device, &fhir, &mut found)
        .map_err(|error| format!("pack {pack}: {error}"))?;
    Ok(found)
}

fn values(
    sample: &Value,
    source: &Source,
    body: &Value,
    device: &DeviceMapping,
    fhir: &FhirMapping,
    found: &mut Vec<Found>,
) -> Result<(), String> {
    let received = Timestamp::from_ticks(RECEIVED_TICKS).ok_or("no time of reception")?;
    let body = body.to_string();
    let topic = sample["topic"].as_str().ok_or("no `topic`")?;
    let envelope = Envelope {
        body: body.as_bytes(),
        properties: &[("topic", PropertyValue::Text(topic))],
        system_properties: &[
            (
                "iothub-connection-device-id",
                PropertyValue::Text(&source.device_id),
            ),
            ("iothub-enqueuedtime", PropertyValue::Time(received)),
        ],
    };
    let parsed = envelope.parse().map_err(|error| error.text.clone())?;
    let normalized = device.normalize(&parsed);
    if let Some(error) = normalized.errors.first() {
        return Err(format!("{error:?}"));
    }
    let ids = ResourceIds {
        patient: "p".to_owned(),
        device: "d".to_owned(),
        encounter: None,
    };
    for (ingestion, one) in (0..).zip(normalized.matches) {
        let (device, type_name) = (
            one.measurement.device_id.clone(),
            one.measurement.type_name.clone(),
        );
        let template = fhir
            .template(&type_name)
            .ok_or_else(|| format!("no template for {type_name}"))?;
        let reading = Reading {
            measurement: one.measurement,
            ingestion,
        };
        let groups = template
            .observation_groups(&[reading])
            .map_err(|error| format!("{error:?}"))?;
        for group in groups {
            let built = template.create(&group, &ids, &type_name, &BuildOptions::default());
            let observation = built.map_err(|error| format!("{error:?}"))?.resource;
            super::built::note(&observation);
            let start = observation["effectivePeriod"]["start"].as_str();
            let time = start
                .or(observation["effectiveDateTime"].as_str())
                .unwrap_or_default();
            let components = observation["component"].as_array().into_iter().flatten();
            for holder in std::iter::once(&observation).chain(components) {
                found.extend(quantity(holder, &device, time));
            }
        }
    }
    Ok(())
}

fn quantity(holder: &Value, device: &str, time: &str) -> Option<Found> {
    let quantity = holder.get("valueQuantity")?;
    let codings = holder["code"]["coding"].as_array()?.iter();
    Some(Found {
        device: device.to_owned(),
        codes: codings
            .filter_map(|coding| Some(coding["code"].as_str()?.to_owned()))
            .collect(),
        value: quantity["value"].as_f64()?,
        unit: quantity["code"].as_str()?.to_owned(),
        time: time.to_owned(),
    })
}

/// Each expected value must be there once, and nothing else.
fn compare(expected: &[Value], mut found: Vec<Found>) -> super::Outcome {
    for one in expected {
        let name = one["name"].as_str().ok_or("an expected value has no name")?;
        let (_, code) = CODES
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| format!("no code is known for {name}"))?;
        let index = found
            .iter()
            .position(|value| value.codes.iter().any(|known| known == code))
            .ok_or_else(|| format!("no Observation of {name} ({code})"))?;
        let value = found.remove(index);
        let number = one["value"]
            .as_f64()
            .ok_or_else(|| format!("{name}: no number is expected"))?;
        if (value.value - number).abs() > PRECISION {
            return Err(format!("{name}: expected {number}, got {}", value.value));
        }
        if one["unit"] != value.unit.as_str() {
            return Err(format!(
                "{name}: expected the unit {}, got {}",
                one["unit"], value.unit
            ));
        }
        if one["device"] != value.device.as_str() {
            return Err(format!(
                "{name}: expected the device {}, got {}",
                one["device"], value.device
            ));
        }
        if let Some(time) = one.get("time").and_then(Value::as_str) {
            // Without a zone it is UTC.
            let zoned = if time.ends_with('Z') {
                time.to_owned()
            } else {
                format!("{time}Z")
            };
            if parse_datetime(&zoned) != parse_datetime(&value.time) || parse_datetime(&zoned).is_none() {
                return Err(format!("{name}: expected the time {zoned}, got {}", value.time));
            }
        }
    }
    match found.first() {
        Some(more) => Err(format!("a value of {} was not expected", more.codes.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
