//! Vectors of FHIR mappings: `mapping/fhir-*.json`, `fuzz-fhir.json`, `sampleddata.json`, `hashes.json`, and the FHIR half
//! of `template-validation.json`. Each function runs one vector and returns the first difference.

use iomt_mapping::fhir::{
    BuildOptions, ChangedPeriod, FhirMapping, GroupKey, IdentityForm, Reading, ResourceIds, Sample,
    SamplePeriod, fill_slots, parse_datetime, resource_id, stored_samples,
};
use iomt_mapping::{Finding, Measurement, Property, Severity, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;

mod batches;
mod compare;
mod observe;

use super::same::{Extent, difference};
use super::{Outcome, list};
use batches::{final_observations, save_batches};
use compare::{compare_group, first_agreement, lexical};
use observe::groups;

/// A vector of `mapping/fhir-*.json` or `mapping/fuzz-fhir.json`.
///
/// Where a vector allows several results (`anyOf`), each policy that the agent offers for a changed SampledData period
/// may meet it; everything else runs with the policies a fresh installation has.
pub fn fhir(vector: &Value) -> Outcome {
    let expected = vector.get("expected").unwrap_or(&Value::Null);
    if expected.get("templateErrors").is_some() {
        return template_errors(expected, &FhirMapping::load(&mapping_text(vector)).1);
    }
    let first = run_with(vector, expected, ChangedPeriod::KeepStored);
    if first.is_err() && expected.to_string().contains("nyOf\"") {
        return run_with(vector, expected, ChangedPeriod::NewObservation).map_err(|second| {
            format!(
                "{}; with a new Observation: {second}",
                first.err().unwrap_or_default()
            )
        });
    }
    first
}

/// A vector of `kind: fhir` in `mapping/template-validation.json`.
pub fn template_validation(vector: &Value) -> Outcome {
    let findings = match (
        vector.get("mappingText").and_then(Value::as_str),
        vector.get("mapping"),
    ) {
        (Some(text), _) => FhirMapping::load(text).1,
        (None, Some(mapping)) => load(mapping).1,
        (None, None) => return Err("the vector has no mapping".to_owned()),
    };
    let expected = vector.get("expected").unwrap_or(&Value::Null);
    if expected.get("valid") == Some(&Value::Bool(true)) {
        return no_errors(&findings);
    }
    template_errors(expected, &findings)
}

/// A vector of `mapping/sampleddata.json`.
pub fn sampled_data(vector: &Value) -> Outcome {
    let period = vector
        .get("period")
        .and_then(|p| SamplePeriod::from_milliseconds(&p.to_string()));
    let expected = vector.get("expected").unwrap_or(&Value::Null);
    let samples = |name: &str, reading: Option<usize>| -> Result<Vec<Sample>, String> {
        pairs(vector, name)?
            .into_iter()
            .map(|(time, token)| Ok(Sample { time, token, reading }))
            .collect()
    };
    let actual = match vector.get("fn").and_then(Value::as_str) {
        Some("build") => {
            let period = period.ok_or("no period")?;
            let (start, end) = (time_of(vector, "start")?, time_of(vector, "end")?);
            let slotted = fill_slots(samples("values", Some(0))?, start, end, period)
                .map_err(|_| "too many slots".to_owned())?;
            json!({ "data": slotted.data })
        }
        Some("toTimeValues") => {
            let data = vector.get("data").and_then(Value::as_str).unwrap_or_default();
            let period = period.ok_or("no period")?;
            let stored = stored_samples(data, time_of(vector, "start")?, period)
                .map_err(|_| "too many slots".to_owned())?;
            json!({ "values": time_values(&stored) })
        }
        Some("merge") => {
            // One-tick slots merge by instant alone.
            let mut all = samples("existingValues", None)?;
            all.extend(samples("newValues", Some(0))?);
            let start = all.iter().map(|s| s.time).min().ok_or("no values")?;
            let end = all.iter().map(|s| s.time).max().ok_or("no values")?;
            let period = SamplePeriod::from_milliseconds("1").ok_or("no period")?;
            let slotted = fill_slots(all, start, end, period).map_err(|_| "too many slots".to_owned())?;
            json!({ "values": time_values(&slotted.placed) })
        }
        other => return Err(format!("unknown function {other:?}")),
    };
    difference(expected, &actual, Extent::Exact).map_or(Ok(()), Err)
}

/// A vector of `mapping/hashes.json`; partition keys are informative, the agent has no partitioned hub.
pub fn hash(vector: &Value) -> Outcome {
    let Some(identifier) = vector.get("identifier") else {
        return Ok(());
    };
    let text = |name: &str| identifier.get(name).and_then(Value::as_str).unwrap_or_default();
    let actual = json!({ "id": resource_id(text("system"), text("value")) });
    difference(
        vector.get("expected").unwrap_or(&Value::Null),
        &actual,
        Extent::Exact,
    )
    .map_or(Ok(()), Err)
}

fn load(mapping: &Value) -> (Option<FhirMapping>, Vec<Finding>) {
    FhirMapping::load(&mapping.to_string())
}

fn no_errors(findings: &[Finding]) -> Outcome {
    match findings.iter().find(|f| f.severity == Severity::Error) {
        Some(error) => Err(format!("not valid: {} {}", error.kind, error.message)),
        None => Ok(()),
    }
}

/// Every expected error must be among the findings.
pub fn template_errors(expected: &Value, findings: &[Finding]) -> Outcome {
    let errors = expected.get("templateErrors").and_then(Value::as_array);
    for error in errors.into_iter().flatten() {
        if !findings.iter().any(|finding| is_finding(error, finding)) {
            let found: Vec<String> = findings
                .iter()
                .map(|f| format!("{} {:?} {:?}", f.kind, f.template, f.field))
                .collect();
            return Err(format!("{error} is not reported; found {found:?}"));
        }
    }
    if errors.is_none_or(Vec::is_empty) {
        return Err("the vector expects neither errors nor validity".to_owned());
    }
    Ok(())
}

/// Whether a finding is the error that a vector expects: kind, template, field and line, as far as they are given.
pub fn is_finding(expected: &Value, finding: &Finding) -> bool {
    let missing = |kind: &str| matches!(kind, "MissingMember" | "NullMember");
    let kind = expected.get("kind").and_then(Value::as_str).unwrap_or_default();
    let same_kind = kind == finding.kind || missing(kind) && missing(finding.kind);
    let same_number = |name: &str, actual: Option<usize>| match expected.get(name).and_then(Value::as_u64) {
        Some(number) => actual.and_then(|a| u64::try_from(a).ok()) == Some(number),
        None => true,
    };
    let same_field = match expected.get("field").and_then(Value::as_str) {
        Some(field) => finding
            .field
            .as_deref()
            .is_some_and(|f| f.eq_ignore_ascii_case(field)),
        None => true,
    };
    finding.severity == Severity::Error
        && same_kind
        && same_field
        && same_number("template", finding.template)
        && same_number("line", finding.place.map(|place| place.line))
}

fn run_with(vector: &Value, expected: &Value, changed_period: ChangedPeriod) -> Outcome {
    let medtech = vector.get("identity").and_then(Value::as_str) == Some("medtech");
    let options = BuildOptions {
        issued: None,
        identity_form: if medtech {
            IdentityForm::Medtech
        } else {
            IdentityForm::Agent
        },
        changed_period,
        ..BuildOptions::default()
    };
    let alternatives = match expected.get("anyOf").and_then(Value::as_array) {
        Some(alternatives) => alternatives.clone(),
        None => vec![expected.clone()],
    };
    first_agreement(&alternatives, |alternative| {
        if alternative.get("finalObservations").is_some() {
            return final_observations(alternative, &save_batches(vector, &options)?);
        }
        let mapping = checked(&mapping_text(vector))?;
        let ids = resource_ids(vector.get("resourceIds"));
        let readings = readings(vector.get("measurements"))?;
        let actual = groups(&mapping, &ids, &readings, vector.get("existing"), &options);
        let wanted = list(alternative, "groups");
        if wanted.len() != actual.len() {
            return Err(format!("expected {} groups, got {}", wanted.len(), actual.len()));
        }
        for (wanted, actual) in wanted.iter().zip(&actual) {
            compare_group(wanted, actual)?;
        }
        lexical(vector, &actual)
    })
}

/// The text of the vector's FHIR mapping.
fn mapping_text(vector: &Value) -> String {
    match vector.get("fhirMappingText").and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => vector.get("fhirMapping").unwrap_or(&Value::Null).to_string(),
    }
}

fn checked(mapping: &str) -> Result<FhirMapping, String> {
    let (mapping, findings) = FhirMapping::load(mapping);
    no_errors(&findings)?;
    mapping.ok_or_else(|| "the mapping does not load".to_owned())
}

/// Parses a time of a vector.
pub fn time(text: &str) -> Result<Timestamp, String> {
    parse_datetime(text).ok_or_else(|| format!("{text} is no time"))
}

fn time_of(vector: &Value, name: &str) -> Result<Timestamp, String> {
    time(vector.get(name).and_then(Value::as_str).unwrap_or_default())
}

fn pairs(vector: &Value, name: &str) -> Result<Vec<(Timestamp, String)>, String> {
    let mut pairs = Vec::new();
    for pair in list(vector, name) {
        let part = |i: usize| pair.get(i).and_then(Value::as_str).unwrap_or_default();
        pairs.push((time(part(0))?, part(1).to_owned()));
    }
    Ok(pairs)
}

fn time_values(samples: &[Sample]) -> Vec<Value> {
    samples
        .iter()
        .map(|sample| json!([sample.time.to_string(), sample.token]))
        .collect()
}

fn resource_ids(value: Option<&Value>) -> ResourceIds {
    let text = |name: &str| {
        value
            .and_then(|v| v.get(name))
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    ResourceIds {
        patient: text("patient").unwrap_or_default(),
        device: text("device").unwrap_or_default(),
        encounter: text("encounter"),
    }
}

/// Measurements of a vector, received at their ingestion time or in the order of the list.
pub fn readings(measurements: Option<&Value>) -> Result<Vec<Reading>, String> {
    let mut readings = Vec::new();
    for measurement in measurements.and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| measurement.get(name).and_then(Value::as_str).map(str::to_owned);
        let ingestion = match text("ingestionTimeUtc") {
            Some(text) => time(&text)?.ticks(),
            None => 0,
        };
        let properties = list(measurement, "properties")
            .into_iter()
            .filter_map(|property| {
                Some(Property {
                    name: property.get("name")?.as_str()?.into(),
                    value: property.get("value")?.as_str()?.into(),
                })
            });
        readings.push(Reading {
            measurement: Measurement {
                key: Arc::new(GroupKey {
                    type_name: text("type").unwrap_or_default(),
                    device_id: text("deviceId").unwrap_or_default(),
                    patient_id: text("patientId"),
                    encounter_id: text("encounterId"),
                    correlation_id: text("correlationId"),
                }),
                occurrence_time: time(&text("occurrenceTimeUtc").unwrap_or_default())?,
                properties: properties.collect(),
            },
            ingestion,
        });
    }
    Ok(readings)
}

/// Readings by group, groups in order of first appearance (rule D14).
pub fn by_group(readings: &[Reading]) -> Vec<(GroupKey, Vec<Reading>)> {
    let mut groups: Vec<(GroupKey, Vec<Reading>)> = Vec::new();
    for reading in readings {
        let key = GroupKey::of(&reading.measurement);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(reading.clone()),
            None => groups.push((key, vec![reading.clone()])),
        }
    }
    groups
}

/// Observations, and the type and error of each group that gave none.
pub type Observed = (Vec<Value>, Vec<(String, String)>);

/// The Observations that measurements become as if nothing was stored, in order of their groups, and the type and error of
/// each group and Observation that fails.
pub fn observations_of(mapping: &Value, measurements: &Value) -> Result<Observed, String> {
    let mapping = checked(&mapping.to_string())?;
    let ids = ResourceIds {
        patient: "patient".to_owned(),
        device: "device".to_owned(),
        encounter: None,
    };
    let options = BuildOptions {
        issued: None,
        identity_form: IdentityForm::Agent,
        changed_period: ChangedPeriod::KeepStored,
        ..BuildOptions::default()
    };
    let (mut built, mut errors) = (Vec::new(), Vec::new());
    for group in groups(&mapping, &ids, &readings(Some(measurements))?, None, &options) {
        let of_type = group["measureType"].as_str().unwrap_or_default();
        let observations = list(&group, "observations");
        for part in std::iter::once(&group).chain(&observations) {
            let error = part.get("error").and_then(Value::as_str);
            errors.extend(error.map(|error| (of_type.to_owned(), error.to_owned())));
            built.extend(part.get("observation").cloned());
        }
    }
    Ok((built, errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Runner = fn(&Value) -> Outcome;

    fn run_file(file: &str, run: Runner) -> (usize, Vec<String>) {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/");
        let text = std::fs::read_to_string(format!("{root}{file}")).unwrap();
        let vectors: Vec<Value> = serde_json::from_str(&text).unwrap();
        let failed = vectors
            .iter()
            .filter_map(|v| run(v).err().map(|e| format!("{file} {}: {e}", v["name"])))
            .collect();
        (vectors.len(), failed)
    }

    #[test]
    fn vectors_of_fhir_mappings_pass() {
        let files: [(&str, Runner); 9] = [
            ("mapping/fhir-create.json", fhir),
            ("mapping/fhir-merge.json", fhir),
            ("mapping/fhir-errors.json", fhir),
            ("mapping/fhir-grouping.json", fhir),
            ("mapping/fhir-rules.json", fhir),
            ("mapping/fuzz-fhir.json", fhir),
            ("mapping/sampleddata.json", sampled_data),
            ("mapping/hashes.json", hash),
            ("mapping/template-validation.json", |v| {
                if v["kind"] == "fhir" {
                    template_validation(v)
                } else {
                    Ok(())
                }
            }),
        ];
        let mut failed = Vec::new();
        let mut total = 0;
        for (file, run) in files {
            let (count, differences) = run_file(file, run);
            total += count;
            failed.extend(differences);
        }
        assert!(total > 200, "{total}");
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
