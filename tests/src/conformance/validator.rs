//! Vectors of the mapping validator: `mapping/mapping-validator.json`, `medtech/validation.json`,
//! `medtech/runtime-errors.json`.

use super::list;
use iomt_mapping::check::{Category, Level, SampleEvent, Validation, ValidationReport, validate};
use serde_json::Value;

/// Whether a vector is one of the mapping validator.
pub fn is_validator_vector(vector: &Value) -> bool {
    let expected = vector.get("expected");
    let expects = |name: &str| expected.is_some_and(|expected| expected.get(name).is_some());
    vector.get("deviceEvents").is_some() || (expects("findings") && !expects("measurements"))
}

/// One vector; the difference when it does not hold.
pub fn run(vector: &Value) -> Result<(), String> {
    let expected = vector.get("expected").ok_or("no `expected`")?;
    let report = report(vector);
    if let Some(error) = expected.get("error").and_then(Value::as_str) {
        return match report {
            Err(kind) if kind == error => Ok(()),
            Err(kind) => Err(format!("expected {error}, got {kind}")),
            Ok(_) => Err(format!("expected {error}, got a report")),
        };
    }
    let report = report?;
    if let Some(findings) = expected.get("findings").and_then(Value::as_array) {
        let of_events = report.events.iter().flat_map(|event| &event.findings);
        let all: Vec<&Validation> = report.mappings.iter().chain(of_events).collect();
        return same_findings(findings, &all);
    }
    let of_mappings: Vec<&Validation> = report.mappings.iter().collect();
    same_findings(&list(expected, "template"), &of_mappings).map_err(|e| format!("template: {e}"))?;
    let devices = list(expected, "devices");
    if devices.len() != report.events.len() {
        return Err(format!(
            "expected {} device results, got {}: {:?}",
            devices.len(),
            report.events.len(),
            report
                .events
                .iter()
                .map(|event| &event.findings)
                .collect::<Vec<_>>()
        ));
    }
    for (at, (wanted, event)) in devices.iter().zip(&report.events).enumerate() {
        let counts = [
            ("measurementCount", event.measurements.len()),
            ("aggregatedCount", event.aggregated_count),
        ];
        for (name, actual) in counts {
            let wanted = wanted.get(name).and_then(Value::as_u64);
            if wanted.is_some_and(|wanted| usize::try_from(wanted) != Ok(actual)) {
                return Err(format!("device {at}: {name} is {actual}, not {wanted:?}"));
            }
        }
        let findings: Vec<&Validation> = event.findings.iter().collect();
        same_findings(&list(wanted, "errors"), &findings).map_err(|e| format!("device {at}: {e}"))?;
        if wanted.get("observations").is_some() {
            observations(&list(wanted, "observations"), &event.observations)
                .map_err(|e| format!("device {at}: {e}"))?;
        }
    }
    Ok(())
}

fn report(vector: &Value) -> Result<ValidationReport, String> {
    let mapping = |text: &str, object: &str| {
        let given = |name: &str| vector.get(name).filter(|m| !m.is_null());
        match (given(text).and_then(Value::as_str), given(object)) {
            (Some(text), _) => Some(text.to_owned()),
            (None, object) => object.map(Value::to_string),
        }
    };
    let device = mapping("deviceMappingText", "deviceMapping");
    let fhir = mapping("fhirMappingText", "fhirMapping");
    let form = vector
        .get("messageForm")
        .and_then(Value::as_str)
        .unwrap_or("body");
    let messages = match vector.get("message") {
        Some(Value::Array(several)) if form == "sequence-of-bodies" => several.clone(),
        Some(one) => vec![one.clone()],
        None => list(vector, "deviceEvents"),
    };
    let texts: Vec<(bool, String)> = messages
        .iter()
        .map(|message| {
            let is_envelope = form == "envelope" || (form == "body" && message.get("Body").is_some());
            match (form, message.as_str()) {
                ("raw", Some(text)) => (false, text.to_owned()),
                _ => (is_envelope, message.to_string()),
            }
        })
        .collect();
    let events: Vec<SampleEvent<'_>> = texts
        .iter()
        .map(|(is_envelope, text)| match is_envelope {
            true => SampleEvent::Envelope(text.as_bytes()),
            false => SampleEvent::Body(text.as_bytes()),
        })
        .collect();
    let aggregate = vector.get("aggregateDeviceEvents") == Some(&Value::Bool(true));
    validate(device.as_deref(), fhir.as_deref(), &events, aggregate).map_err(|kind| kind.name().to_owned())
}

/// Every expected finding is there, and nothing else but further errors beside an expected one of the same stage.
fn same_findings(expected: &[Value], actual: &[&Validation]) -> Result<(), String> {
    let mut left = actual.to_vec();
    for wanted in expected {
        match left.iter().position(|finding| is_finding(wanted, finding)) {
            Some(at) => {
                left.remove(at);
            }
            None => return Err(format!("{wanted} is not found; found are {actual:?}")),
        }
    }
    let beside_another = |finding: &Validation| {
        finding.level == Level::Error
            && expected.iter().any(|wanted| {
                wanted.get("level").and_then(Value::as_str) == Some("ERROR")
                    && wanted.get("category").and_then(Value::as_str) == Some(category(finding.category))
            })
    };
    match left.into_iter().find(|finding| !beside_another(finding)) {
        Some(more) => Err(format!("not expected: {more:?}")),
        None => Ok(()),
    }
}

fn category(category: Category) -> &'static str {
    match category {
        Category::Normalization => "NORMALIZATION",
        Category::FhirTransformation => "FHIRTRANSFORMATION",
    }
}

fn is_finding(wanted: &Value, finding: &Validation) -> bool {
    let text = |name: &str| wanted.get(name).and_then(Value::as_str);
    let level = match finding.level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
    };
    let missing = |kind: &str| matches!(kind, "MissingMember" | "NullMember");
    let kind = text("kind").or(text("error"));
    let same_kind = kind.is_none_or(|kind| kind == finding.kind || (missing(kind) && missing(finding.kind)));
    let same_field = text("field").is_none_or(|field| {
        finding
            .field
            .as_deref()
            .is_some_and(|actual| actual.eq_ignore_ascii_case(field))
    });
    let line = wanted.get("line").and_then(Value::as_u64);
    let same_line =
        line.is_none_or(|line| finding.line.and_then(|actual| u64::try_from(actual).ok()) == Some(line));
    text("level").is_none_or(|wanted| wanted == level)
        && text("category").is_none_or(|wanted| wanted == category(finding.category))
        && same_kind
        && same_field
        && same_line
}

/// Observations by the texts of their codes and what their SampledData contains.
fn observations(expected: &[Value], actual: &[Value]) -> Result<(), String> {
    if expected.len() != actual.len() {
        return Err(format!(
            "expected {} Observations, got {}",
            expected.len(),
            actual.len()
        ));
    }
    for (wanted, made) in expected.iter().zip(actual) {
        part(wanted, made)?;
        let components = list(made, "component");
        let wanted_components = list(wanted, "components");
        if wanted.get("components").is_some() && wanted_components.len() != components.len() {
            return Err(format!(
                "expected {} components in {made}",
                wanted_components.len()
            ));
        }
        for (wanted, made) in wanted_components.iter().zip(&components) {
            part(wanted, made)?;
        }
    }
    Ok(())
}

fn part(wanted: &Value, made: &Value) -> Result<(), String> {
    let code = made.pointer("/code/text").and_then(Value::as_str);
    let wanted_code = wanted.get("codeText").and_then(Value::as_str);
    let data = made
        .pointer("/valueSampledData/data")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let token = wanted.get("sampledDataContains").and_then(Value::as_str);
    if wanted_code.is_some() && wanted_code != code {
        return Err(format!("expected the code {wanted_code:?}, got {code:?}"));
    }
    if token.is_some_and(|token| !data.split(' ').any(|one| one == token)) {
        return Err(format!("{token:?} is not in the data of {code:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_the_validator_pass() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/");
        let mut failed = Vec::new();
        for file in [
            "mapping/mapping-validator",
            "medtech/validation",
            "medtech/runtime-errors",
        ] {
            let text = std::fs::read_to_string(format!("{root}{file}.json")).unwrap();
            let vectors: Vec<Value> = serde_json::from_str(&text).unwrap();
            for vector in &vectors {
                assert!(is_validator_vector(vector), "{}", vector["name"]);
                failed.extend(
                    run(vector)
                        .err()
                        .map(|e| format!("{} {}: {e}", file, vector["name"])),
                );
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
