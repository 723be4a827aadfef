//! `vectors/serial/mqtt-payloads.json`: messages of wearables and hubs through the mapping pack that ships for them, compared
//! value by value with what they must become. A sample without a pack, or that asks for more than packs do, is not yet run;
//! the reason stands beside it.

use iomt_mapping::fhir::{BuildOptions, FhirMapping, Reading, ResourceIds, parse_datetime};
use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::Value;
use std::path::Path;

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

/// A convention: the pack, and the device id that the configuration of the source gives (`device_id`, `device_id_from`).
struct Source {
    pack: &'static str,
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
const CODES: [(&str, &str); 9] = [
    ("body_temperature", "8310-5"),
    ("body_weight", "29463-7"),
    ("glucose", "2339-0"),
    ("heart_rate", "8867-4"),
    ("nibp_diastolic", "8462-4"),
    ("nibp_systolic", "8480-6"),
    ("respiratory_rate", "9279-1"),
    ("spo2", "59408-5"),
    ("temperature", "150344"),
];

/// Runs all samples of a file; none when it has none.
pub fn run(file: &Value) -> Option<Vec<Outcome>> {
    let samples = file.get("samples")?.as_array()?;
    samples.first()?.get("convention")?;
    let outcome = |sample: &Value| Outcome {
        id: sample["id"].as_str().unwrap_or("?").to_owned(),
        run: run_sample(sample),
    };
    Some(samples.iter().map(outcome).collect())
}

fn run_sample(sample: &Value) -> Run {
    let no_pack = match sample["convention"].as_str().unwrap_or_default() {
        "sparkplug-b" => Some("Sparkplug B is not decoded"),
        "kura" => Some("no pack for Kura"),
        "omg-serial" => Some("a serial line within a message is not read"),
        _ => None,
    };
    if let Some(why) = no_pack {
        return Run::NotYet(why);
    }
    let expected = sample["expect"].as_array().map_or(&[][..], Vec::as_slice);
    for one in expected {
        if one.get("availability").is_some() {
            return Run::NotYet("availability of a device makes no Observation");
        }
        if one.get("discovers").is_some() {
            return Run::NotYet("discovery messages are not read");
        }
        if one["name"] == "battery" {
            return Run::NotYet("no pack writes the charge of a battery");
        }
    }
    if sample["note"] == "only the discovered path is mapped" {
        return Run::NotYet("the pack maps all members that it knows: discovery is not read");
    }
    let Some(source) = source(sample) else {
        return Run::NotYet("no pack for this convention");
    };
    if sample["encoding"] != "json" {
        return Run::NotYet("no pack reads what is no JSON");
    }
    Run::Done(found(sample, &source).and_then(|found| compare(expected, found)))
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
        "home-assistant" => ("home-assistant", level(1)),
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
        _ => return None,
    };
    let device_id = device_id?;
    Some(Source { pack, device_id })
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings")
}

/// All values of the Observations that the pack makes of the sample.
fn found(sample: &Value, source: &Source) -> Result<Vec<Found>, String> {
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
    values(sample, source, &device, &fhir, &mut found).map_err(|error| format!("pack {pack}: {error}"))?;
    Ok(found)
}

fn values(
    sample: &Value,
    source: &Source,
    device: &DeviceMapping,
    fhir: &FhirMapping,
    found: &mut Vec<Found>,
) -> Result<(), String> {
    let received = Timestamp::from_ticks(RECEIVED_TICKS).ok_or("no time of reception")?;
    let payload = sample["payload"].as_str().ok_or("no `payload`")?;
    let topic = sample["topic"].as_str().ok_or("no `topic`")?;
    let envelope = Envelope {
        body: payload.as_bytes(),
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
    fn a_pack_is_tried_with_every_sample_that_it_fits() {
        let samples = samples();
        let done = samples
            .iter()
            .filter(|sample| matches!(run_sample(sample), Run::Done(_)));
        assert_eq!(done.count(), 14);
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
            match run_sample(&sample) {
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
