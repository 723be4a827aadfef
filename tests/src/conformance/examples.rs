//! Examples of the hosted service (`medtech/examples.json`) and published samples (`medtech-samples/`): a message in one of
//! several forms, its measurements, and parts of its Observations.

use iomt_mapping::{DeviceMapping, Measurement, Normalized, ParsedMessage};
use serde_json::{Value, json};

use super::device::{self, Values};
use super::same::{Extent, difference};
use super::{Outcome, fhir};

/// One example.
pub fn run(vector: &Value) -> Outcome {
    let expected = vector.get("expected").ok_or("no `expected`")?;
    let measurements = match vector.get("normalizedInput") {
        Some(input) => list_of(input),
        None => measure(vector, expected)?,
    };
    must_not(vector, expected, &measurements)?;
    counts(expected, &measurements)?;
    observations(vector, expected, &measurements)
}

fn list_of(input: &Value) -> Vec<Value> {
    match input {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    }
}

/// The measurements of all messages of the example, after they were compared.
fn measure(vector: &Value, expected: &Value) -> Result<Vec<Value>, String> {
    let text = device::mapping_text(vector).ok_or("no device mapping")?;
    let (mapping, findings) = DeviceMapping::load(&text);
    if expected.get("templateErrors").is_some() {
        fhir::template_errors(expected, &findings)?;
        return Ok(Vec::new());
    }
    let mapping = mapping.ok_or_else(|| format!("the mapping does not load: {findings:?}"))?;
    let mut all = Normalized::default();
    for normalized in messages(&mapping, vector)? {
        all.matches.extend(normalized.matches);
        all.errors.extend(normalized.errors);
    }
    if expected.get("measurements").is_some() {
        let numeric =
            vector.get("valueComparison").or(expected.get("valueComparison")) == Some(&json!("numeric"));
        let values = if numeric { Values::Numeric } else { Values::Exact };
        let mut wanted = json!({ "measurements": expected.get("measurements") });
        if expected.get("errors").is_none() {
            // Failures are named by findings, not listed as errors.
            let found: Vec<_> = std::mem::take(&mut all.errors);
            failures(&mapping, expected, &found)?;
        } else {
            wanted["errors"] = expected["errors"].clone();
        }
        device::compare(&wanted, &all, values)?;
    }
    evaluation_tokens(vector, &mapping, expected)?;
    Ok(all
        .matches
        .iter()
        .map(|matched| measurement_json(&matched.measurement))
        .collect())
}

fn messages(mapping: &DeviceMapping, vector: &Value) -> Result<Vec<Normalized>, String> {
    let message = vector.get("message").unwrap_or(&Value::Null);
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(match vector.get("messageForm").and_then(Value::as_str) {
        Some("body") => vec![device::with_body(mapping, message.to_string().as_bytes())?],
        Some("envelope") => vec![device::with_envelope(mapping, &message.to_string())?],
        Some("raw") => vec![device::with_body(mapping, text(message).as_bytes())?],
        Some("sequence-of-bodies") => {
            let bodies = message.as_array().ok_or("no sequence of messages")?;
            bodies
                .iter()
                .map(|body| device::with_body(mapping, body.to_string().as_bytes()))
                .collect::<Result<_, _>>()?
        }
        other => return Err(format!("unknown form of message {other:?}")),
    })
}

/// Every failure must be named by a finding and every finding about the message must have failed.
fn failures(mapping: &DeviceMapping, expected: &Value, errors: &[iomt_mapping::NormalizeError]) -> Outcome {
    let findings = expected
        .get("findings")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    // Findings with the name of a type are about its Observations.
    let about_message = |finding: &&Value| finding.get("typeName").is_none();
    let wanted = findings
        .iter()
        .filter(|finding| finding.get("logType").or(finding.get("error")).is_some())
        .filter(about_message);
    let mut left: Vec<_> = errors.iter().collect();
    for finding in wanted {
        let text = |name: &str| finding.get(name).and_then(Value::as_str);
        let kind = text("logType").or(text("error")).unwrap_or_default();
        let of_template = |index: Option<usize>| {
            let template = mapping
                .templates()
                .iter()
                .find(|template| Some(template.index()) == index);
            template.map(|template| template.type_name())
        };
        let place = left.iter().position(|error| {
            error.kind.name() == kind
                && text("field").is_none_or(|field| {
                    error
                        .field
                        .as_deref()
                        .is_some_and(|f| f.eq_ignore_ascii_case(field))
                })
                && text("template").is_none_or(|name| of_template(error.template) == Some(name))
        });
        match place {
            Some(place) => drop(left.swap_remove(place)),
            None => {
                return Err(format!(
                    "finding {finding} did not occur; failures were {errors:?}"
                ));
            }
        }
    }
    match left.first() {
        Some(error) => Err(format!(
            "unexpected failure {}: {}",
            error.kind.name(),
            error.text
        )),
        None => Ok(()),
    }
}

/// What the documentation prints as the token that later expressions see.
fn evaluation_tokens(vector: &Value, mapping: &DeviceMapping, expected: &Value) -> Outcome {
    let wanted: Vec<&Value> = match (expected.get("evaluationToken"), expected.get("evaluationTokens")) {
        (Some(one), _) => vec![one],
        (None, Some(Value::Array(several))) => several.iter().collect(),
        _ => return Ok(()),
    };
    let text = vector.get("message").map(Value::to_string).unwrap_or_default();
    let message = ParsedMessage::from_envelope(text.as_bytes()).map_err(|error| error.text)?;
    let trace = mapping.trace(&message);
    let tokens: Vec<Value> = trace
        .templates
        .into_iter()
        .flat_map(|template| template.matches)
        .map(|matched| {
            let mut token = message.root().to_value();
            token["matchedToken"] = matched.token;
            token
        })
        .collect();
    if wanted.len() != tokens.len() {
        return Err(format!(
            "expected {} evaluation tokens, got {}",
            wanted.len(),
            tokens.len()
        ));
    }
    let differing = wanted
        .iter()
        .zip(&tokens)
        .find_map(|(wanted, token)| difference(wanted, token, Extent::Subset));
    differing.map_or(Ok(()), |difference| Err(format!("evaluation token{difference}")))
}

fn measurement_json(measurement: &Measurement) -> Value {
    let properties: Vec<Value> = measurement
        .properties
        .iter()
        .map(|property| json!({ "name": property.name, "value": property.value }))
        .collect();
    json!({
        "type": measurement.type_name, "occurrenceTimeUtc": measurement.occurrence_time.to_string(),
        "deviceId": measurement.device_id, "patientId": measurement.patient_id,
        "encounterId": measurement.encounter_id, "correlationId": measurement.correlation_id,
        "properties": properties,
    })
}

/// Values that must not appear in any measurement.
fn must_not(vector: &Value, expected: &Value, measurements: &[Value]) -> Outcome {
    let Some(forbidden) = expected.get("mustNot").or(vector.get("mustNot")) else {
        return Ok(());
    };
    let texts = |value: &Value| -> Vec<String> {
        match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::Object(members) => members
                .values()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            _ => Vec::new(),
        }
    };
    let written = Value::Array(measurements.to_vec()).to_string();
    match texts(forbidden)
        .iter()
        .find(|text| written.contains(json!(text).to_string().as_str()))
    {
        Some(text) => Err(format!("{text} is in a measurement")),
        None => Ok(()),
    }
}

fn counts(expected: &Value, measurements: &[Value]) -> Outcome {
    let counted = |name: &str| {
        expected
            .get("counts")
            .and_then(|counts| counts.get(name))
            .and_then(Value::as_u64)
    };
    match counted("measurements").or(counted("normalizedMessages")) {
        Some(count) if usize::try_from(count) != Ok(measurements.len()) => Err(format!(
            "documented are {count} measurements, got {}",
            measurements.len()
        )),
        _ => Ok(()),
    }
}

fn observations(vector: &Value, expected: &Value, measurements: &[Value]) -> Outcome {
    let Some(mapping) = vector.get("fhirMapping") else {
        return Ok(());
    };
    let (built, errors) = fhir::observations_of(mapping, &Value::Array(measurements.to_vec()))?;
    let findings = expected.get("findings").and_then(Value::as_array);
    let mut named: Vec<(String, String)> = Vec::new();
    for finding in findings.into_iter().flatten() {
        let text = |name: &str| finding.get(name).and_then(Value::as_str).unwrap_or_default();
        if finding.get("typeName").is_some() {
            named.push((text("typeName").to_owned(), text("logType").to_owned()));
        }
    }
    let Some(wanted) = expected.get("observations").and_then(Value::as_array) else {
        return Ok(());
    };
    if sorted(&errors) != sorted(&named) {
        return Err(format!("expected failures {named:?}, got {errors:?}"));
    }
    if wanted.len() != built.len() {
        return Err(format!(
            "expected {} Observations, got {}",
            wanted.len(),
            built.len()
        ));
    }
    // Resources have no order of their own.
    let mut left = built;
    for wanted in wanted {
        let differences: Vec<_> = left.iter().map(|built| same_observation(wanted, built)).collect();
        let of_code = |built: &Value| built["code"]["text"] == wanted["code"]["text"];
        match differences.iter().position(Result::is_ok) {
            Some(place) => drop(left.swap_remove(place)),
            None => {
                let near = left
                    .iter()
                    .position(of_code)
                    .and_then(|place| differences.into_iter().nth(place));
                let difference = near
                    .and_then(Result::err)
                    .unwrap_or_else(|| "there is none".to_owned());
                return Err(format!("Observation {}: {difference}", wanted["code"]["text"]));
            }
        }
    }
    Ok(())
}

fn same_observation(wanted: &Value, built: &Value) -> Outcome {
    let mut wanted = wanted.clone();
    tokens_of_data(&mut wanted, built)?;
    if let Some(members) = wanted.as_object_mut() {
        members.remove("match");
    }
    difference(&wanted, built, Extent::Subset).map_or(Ok(()), Err)
}

/// `dataTokens` stands for `data`: checked here and removed.
fn tokens_of_data(wanted: &mut Value, built: &Value) -> Outcome {
    match wanted {
        Value::Object(members) => {
            if let Some(tokens) = members.remove("dataTokens") {
                let data = built.get("data").and_then(Value::as_str).unwrap_or_default();
                same_tokens(&tokens, data)?;
            }
            for (name, member) in members.iter_mut() {
                tokens_of_data(member, built.get(name).unwrap_or(&Value::Null))?;
            }
            Ok(())
        }
        Value::Array(elements) => elements.iter_mut().enumerate().try_for_each(|(index, element)| {
            tokens_of_data(element, built.get(index).unwrap_or(&Value::Null))
        }),
        _ => Ok(()),
    }
}

fn same_tokens(wanted: &Value, data: &str) -> Outcome {
    let tokens: Vec<&str> = data.split(' ').collect();
    let length = wanted.get("length").and_then(Value::as_u64).unwrap_or_default();
    if usize::try_from(length) != Ok(tokens.len()) {
        return Err(format!("expected {length} tokens of data, got {}", tokens.len()));
    }
    let default = wanted.get("defaultToken").and_then(Value::as_str).unwrap_or("E");
    for (index, token) in tokens.iter().enumerate() {
        let other = wanted
            .get("nonDefault")
            .and_then(|others| others.get(index.to_string()))
            .and_then(Value::as_str);
        if *token != other.unwrap_or(default) {
            return Err(format!(
                "token {index}: expected {}, got {token}",
                other.unwrap_or(default)
            ));
        }
    }
    Ok(())
}

fn sorted(errors: &[(String, String)]) -> Vec<&(String, String)> {
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort();
    errors
}
