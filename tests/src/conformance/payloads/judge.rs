//! What a sample must become, compared with what came: values, metrics, availability, discovery.

use super::super::Outcome;
use super::values::{Found, found};
use super::{Came, LINE, Source};
use bedside_agent::ingest::serial::drivers::{Now, Output};
use bedside_agent::ingest::serial::framing::{self, FramingConfig};
use iomt_mapping::fhir::parse_datetime;
use serde_json::{Value, json};

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

/// Nothing when the sample became what it must, else the difference.
pub(super) fn judge(sample: &Value, source: &Source, came: Came) -> Outcome {
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
fn compare_metrics(expected: &[Value], body: &Value, found: Vec<Found>) -> Outcome {
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

/// Each expected value must be there once, and nothing else.
fn compare(expected: &[Value], mut found: Vec<Found>) -> Outcome {
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
