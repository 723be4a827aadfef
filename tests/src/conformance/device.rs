//! Vectors of device mappings: `mapping/normalize-*.json`, `fuzz-normalize.json`, and the device half of
//! `template-validation.json`.

use iomt_mapping::{
    DeviceMapping, Envelope, Measurement, NormalizeError, Normalized, ParsedMessage, PropertyValue, Timestamp,
};
use serde_json::{Value, json};

use super::{Outcome, fhir};

/// A vector with a device mapping and a message.
pub fn normalize(vector: &Value) -> Outcome {
    let expected = vector.get("expected").ok_or("no `expected`")?;
    let text = mapping_text(vector).ok_or("no device mapping")?;
    let (mapping, findings) = DeviceMapping::load_partial(&text);
    if expected.get("templateErrors").is_some() {
        fhir::template_errors(expected, &findings)?;
        if DeviceMapping::load(&text).0.is_some() {
            return Err("the mapping is not refused".to_owned());
        }
        if expected.get("measurements").is_none() {
            return Ok(());
        }
    } else if let Some(finding) = findings.first() {
        return Err(format!(
            "the mapping does not load: {} {}",
            finding.kind, finding.message
        ));
    }
    let mapping = mapping.ok_or("no mapping is left")?;
    compare(expected, &evaluate(&mapping, vector)?, Values::Exact)
}

/// The text of the vector's device mapping.
pub fn mapping_text(vector: &Value) -> Option<String> {
    match (vector.get("deviceMappingText"), vector.get("deviceMapping")) {
        (Some(text), _) => text.as_str().map(str::to_owned),
        (None, Some(mapping)) => Some(mapping.to_string()),
        (None, None) => None,
    }
}

/// What the vector's message gives, with and without the index.
fn evaluate(mapping: &DeviceMapping, vector: &Value) -> Result<Normalized, String> {
    if let Some(event) = vector.get("event") {
        return with_event(mapping, event);
    }
    match (
        vector.get("messageText").and_then(Value::as_str),
        vector.get("message"),
    ) {
        (Some(text), _) => with_envelope(mapping, text),
        (None, Some(message)) => with_envelope(mapping, &message.to_string()),
        (None, None) => Err("no message".to_owned()),
    }
}

/// What an envelope, as JSON text, gives.
pub fn with_envelope(mapping: &DeviceMapping, text: &str) -> Result<Normalized, String> {
    normalized(mapping, ParsedMessage::from_envelope(text.as_bytes()))
}

/// What a payload without properties gives.
pub fn with_body(mapping: &DeviceMapping, body: &[u8]) -> Result<Normalized, String> {
    normalized(
        mapping,
        Envelope {
            body,
            properties: &[],
            system_properties: &[],
        }
        .parse(),
    )
}

fn with_event(mapping: &DeviceMapping, event: &Value) -> Result<Normalized, String> {
    let body = event
        .get("bodyText")
        .and_then(Value::as_str)
        .ok_or("no `bodyText`")?;
    let numbers = |name: &str| -> Vec<(String, String)> {
        let members = event.get(name).and_then(Value::as_object);
        members
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.to_string()))
            .collect()
    };
    let (spelled, system_spelled) = (numbers("properties"), numbers("systemProperties"));
    let properties = properties(event.get("properties"), &spelled)?;
    let system_properties = properties_of_system(event.get("systemProperties"), &system_spelled)?;
    let envelope = Envelope {
        body: body.as_bytes(),
        properties: &properties,
        system_properties: &system_properties,
    };
    normalized(mapping, envelope.parse())
}

fn properties_of_system<'v>(
    value: Option<&'v Value>,
    spelled: &'v [(String, String)],
) -> Result<Vec<(&'v str, PropertyValue<'v>)>, String> {
    properties(value, spelled)
}

fn properties<'v>(
    value: Option<&'v Value>,
    spelled: &'v [(String, String)],
) -> Result<Vec<(&'v str, PropertyValue<'v>)>, String> {
    let mut found = Vec::new();
    let members = value.and_then(Value::as_object).into_iter().flatten();
    for ((name, value), (_, spelling)) in members.zip(spelled) {
        let property = match value {
            Value::String(text) => PropertyValue::Text(text),
            Value::Bool(flag) => PropertyValue::Bool(*flag),
            Value::Number(_) => PropertyValue::Number(spelling),
            Value::Object(_) => {
                let time = value
                    .get("$dateTime")
                    .and_then(Value::as_str)
                    .ok_or("unknown property")?;
                PropertyValue::Time(fhir::time(time)?)
            }
            Value::Null | Value::Array(_) => return Err(format!("property {name} has no type")),
        };
        found.push((name.as_str(), property));
    }
    Ok(found)
}

fn normalized(
    mapping: &DeviceMapping,
    message: Result<ParsedMessage<'_>, NormalizeError>,
) -> Result<Normalized, String> {
    let message = match message {
        Ok(message) => message,
        Err(error) => {
            return Ok(Normalized {
                matches: Vec::new(),
                errors: vec![error],
            });
        }
    };
    let normalized = mapping.normalize(&message);
    if normalized != mapping.normalize_each(&message) {
        return Err("the index changes the result".to_owned());
    }
    let trace = mapping.trace(&message);
    let measured = trace
        .templates
        .iter()
        .flat_map(|template| &template.matches)
        .filter(|m| m.measured)
        .count();
    if measured != normalized.matches.len() {
        return Err("the trace tells another number of measurements".to_owned());
    }
    Ok(normalized)
}

/// How values of measurements compare.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// As texts.
    Exact,
    /// As numbers.
    Numeric,
}

/// Compares measurements in order, and errors.
pub fn compare(expected: &Value, actual: &Normalized, values: Values) -> Outcome {
    let measurements: Vec<&Measurement> = actual
        .matches
        .iter()
        .map(|matched| &matched.measurement)
        .collect();
    let wanted = expected
        .get("measurements")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    if wanted.len() != measurements.len() {
        let errors: Vec<&str> = actual.errors.iter().map(|error| error.text.as_str()).collect();
        return Err(format!(
            "expected {} measurements, got {}; errors {errors:?}",
            wanted.len(),
            measurements.len()
        ));
    }
    for (index, (wanted, actual)) in wanted.iter().zip(&measurements).enumerate() {
        compare_measurement(wanted, actual, values)
            .map_err(|difference| format!("measurement {index}: {difference}"))?;
    }
    if expected.get("templateErrors").is_some() {
        return Ok(());
    }
    let wanted = expected
        .get("errors")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let found: Vec<Value> = actual.errors.iter().map(error_json).collect();
    if wanted.len() != found.len() {
        return Err(format!("expected {} errors, got {found:?}", wanted.len()));
    }
    match wanted
        .iter()
        .zip(&found)
        .find(|(wanted, found)| !same_error(wanted, found))
    {
        Some((wanted, found)) => Err(format!("expected error {wanted}, got {found}")),
        None => Ok(()),
    }
}

fn compare_measurement(wanted: &Value, actual: &Measurement, values: Values) -> Outcome {
    let text = |name: &str| wanted.get(name).and_then(Value::as_str);
    let time: Timestamp = fhir::time(text("occurrenceTimeUtc").unwrap_or_default())?;
    if time != actual.occurrence_time {
        return Err(format!("expected time {time}, got {}", actual.occurrence_time));
    }
    let ids = [
        ("type", Some(actual.type_name.as_str())),
        ("deviceId", Some(actual.device_id.as_str())),
        ("patientId", actual.patient_id.as_deref()),
        ("encounterId", actual.encounter_id.as_deref()),
        ("correlationId", actual.correlation_id.as_deref()),
    ];
    for (name, found) in ids {
        if text(name) != found {
            return Err(format!("{name}: expected {:?}, got {found:?}", text(name)));
        }
    }
    let properties = wanted
        .get("properties")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    if properties.len() != actual.properties.len() {
        return Err(format!(
            "expected {} values, got {:?}",
            properties.len(),
            actual.properties
        ));
    }
    for (wanted, found) in properties.iter().zip(&actual.properties) {
        let text = |name: &str| wanted.get(name).and_then(Value::as_str).unwrap_or_default();
        let same_value = text("value") == found.value
            || values == Values::Numeric && same_number(text("value"), &found.value);
        if text("name") != found.name || !same_value {
            return Err(format!(
                "expected value {wanted}, got {} = {}",
                found.name, found.value
            ));
        }
    }
    Ok(())
}

fn same_number(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-14 * a.abs().max(b.abs()),
        _ => false,
    }
}

fn error_json(error: &NormalizeError) -> Value {
    json!({ "error": error.kind.name(), "template": error.template, "match": error.match_index, "field": error.field })
}

fn same_error(wanted: &Value, found: &Value) -> bool {
    let same =
        |name: &str| wanted.get(name).unwrap_or(&Value::Null) == found.get(name).unwrap_or(&Value::Null);
    let field = |value: &Value| value.get("field").and_then(Value::as_str).map(str::to_lowercase);
    let same_field = field(wanted).is_none() || field(wanted) == field(found);
    same("error") && same("template") && same("match") && same_field
}

/// A vector of `kind: device` in `template-validation.json`.
pub fn template_validation(vector: &Value) -> Outcome {
    let text = match (
        vector.get("mappingText").and_then(Value::as_str),
        vector.get("mapping"),
    ) {
        (Some(text), _) => text.to_owned(),
        (None, Some(mapping)) => mapping.to_string(),
        (None, None) => return Err("the vector has no mapping".to_owned()),
    };
    let expected = vector.get("expected").unwrap_or(&Value::Null);
    let (mapping, findings) = DeviceMapping::load(&text);
    if expected.get("valid") != Some(&Value::Bool(true)) {
        return fhir::template_errors(expected, &findings);
    }
    match findings.first() {
        Some(finding) => Err(format!("not valid: {} {}", finding.kind, finding.message)),
        None => mapping
            .map(|_| ())
            .ok_or_else(|| "no mapping and no error".to_owned()),
    }
}
