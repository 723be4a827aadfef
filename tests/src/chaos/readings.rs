//! What the wearables of a chaos run measure: every value tells what it is, so that a wrong one is seen.

use iomt_mapping::Timestamp;
use serde_json::{Value, json};
use std::path::Path;

/// Wearables.
pub const DEVICES: u64 = 3;
/// Minutes from one reading of a wearable to the next.
pub const EVERY: u64 = 30;
/// Readings in an hour.
pub const IN_AN_HOUR: u64 = 60 / EVERY;
/// Blood pressure is taken every so many readings.
pub const PRESSURE_EVERY: u64 = 8;

/// 2026-03-01T00:00:00Z, when the first reading is taken.
const FIRST: i64 = 17_723_232_000_000_000;

/// When reading `turn` is taken.
pub fn time(turn: u64) -> Timestamp {
    Timestamp::from_ticks(FIRST + (turn * EVERY) as i64 * 600_000_000).expect("in range")
}

/// The pulse of a wearable: unlike any other of the run.
pub fn pulse(device: u64, turn: u64) -> u64 {
    (device + 1) * 1_000_000 + turn
}

/// The messages of one turn in three parts: pulse and hourly pulse; systolic pressure; diastolic pressure, which comes later.
pub fn messages(turn: u64) -> [Vec<String>; 3] {
    let of_all = |make: &dyn Fn(String, u64) -> Value| -> Vec<String> {
        (0..DEVICES)
            .map(|device| make(format!("band-{device}"), device).to_string())
            .collect()
    };
    let time = time(turn).to_string();
    let mut pulses =
        of_all(&|name, device| json!({"device": name, "time": time, "pulse": pulse(device, turn)}));
    pulses.extend(of_all(
        &|name, device| json!({"device": name, "time": time, "wave": pulse(device, turn)}),
    ));
    if !turn.is_multiple_of(PRESSURE_EVERY) {
        return [pulses, Vec::new(), Vec::new()];
    }
    [
        pulses,
        of_all(&|name, device| json!({"device": name, "time": time, "sys": pulse(device, turn)})),
        of_all(&|name, device| json!({"device": name, "time": time, "dia": pulse(device, turn) + 500_000})),
    ]
}

/// Matches of one turn.
pub fn matches(turn: u64) -> u64 {
    messages(turn).iter().map(|part| part.len() as u64).sum()
}

/// The resources that the server has from the beginning.
pub fn resources() -> Vec<Value> {
    (0..DEVICES)
        .flat_map(|device| {
            let patient = format!("patient-{device}");
            [
                json!({"resourceType": "Device", "id": format!("device-{device}"),
                    "identifier": [{"value": format!("band-{device}")}],
                    "patient": {"reference": format!("Patient/{patient}")}}),
                json!({"resourceType": "Patient", "id": patient}),
            ]
        })
        .collect()
}

/// Writes the mapping pack into `folder`.
///
/// # Errors
/// Of the file system.
pub fn write_pack(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let device = |name: &str, values: &[&str], required: bool| {
        let any: Vec<String> = values.iter().map(|value| format!("@.{value}")).collect();
        let values: Vec<Value> = values
            .iter()
            .map(|value| {
                json!({"required": required, "valueExpression": format!("$.matchedToken.{value}"), "valueName": value})
            })
            .collect();
        json!({"templateType": "CalculatedContent", "template": {"typeName": name,
            "typeMatchExpression": format!("$..[?({})]", any.join(" || ")),
            "deviceIdExpression": "$.matchedToken.device", "timestampExpression": "$.matchedToken.time",
            "values": values}})
    };
    let devices = json!({"templateType": "CollectionContent", "template": [
        device("pulse", &["pulse"], true), device("wave", &["wave"], true),
        device("pressure", &["sys", "dia"], false)]});
    let quantity = |name: &str| json!({"valueType": "Quantity", "valueName": name, "unit": "1"});
    let fhir = |name: &str, period: i32, rest: Value| {
        let mut template = json!({"typeName": name, "periodInterval": period,
            "codes": [{"code": name, "system": "http://chaos.example"}]});
        for (member, value) in rest.as_object().expect("an object") {
            template[member] = value.clone();
        }
        json!({"templateType": "CodeValueFhir", "template": template})
    };
    let sampled = json!({"valueType": "SampledData", "valueName": "wave", "defaultPeriod": EVERY * 60_000, "unit": "1"});
    let component = |name: &str| json!({"codes": [{"code": name}], "value": quantity(name)});
    let templates = json!({"templateType": "CollectionFhir", "template": [
        fhir("pulse", 0, json!({"value": quantity("pulse")})),
        fhir("wave", 60, json!({"value": sampled})),
        fhir("pressure", 0, json!({"components": [component("sys"), component("dia")]}))]});
    std::fs::write(folder.join("devicecontent.json"), devices.to_string())?;
    std::fs::write(folder.join("fhirmapping.json"), templates.to_string())
}
