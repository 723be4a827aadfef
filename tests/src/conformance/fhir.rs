//! Vectors of FHIR mappings: `mapping/fhir-*.json`, `fuzz-fhir.json`, `sampleddata.json`, `hashes.json`, and the FHIR half
//! of `template-validation.json`. Each function runs one vector and returns the first difference.

use iomt_mapping::fhir::{
    BuildError, BuildOptions, ChangedPeriod, FhirMapping, FhirTemplate, GroupKey, IdentityForm, Merge,
    ObservationGroup, Reading, ResourceIds, Sample, SamplePeriod, SentMemory, ValueKind, fill_slots,
    identity, parse_datetime, resource_id, stored_samples,
};
use iomt_mapping::{Finding, Measurement, Property, Severity, Timestamp};
use serde_json::{Map, Value, json};

use super::same::{Extent, difference};

/// What a vector's run gives: nothing when it agrees, else the first difference.
pub type Outcome = Result<(), String>;

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

fn list(value: &Value, name: &str) -> Vec<Value> {
    value
        .get(name)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
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
                    name: property.get("name")?.as_str()?.to_owned(),
                    value: property.get("value")?.as_str()?.to_owned(),
                })
            });
        readings.push(Reading {
            measurement: Measurement {
                type_name: text("type").unwrap_or_default(),
                occurrence_time: time(&text("occurrenceTimeUtc").unwrap_or_default())?,
                device_id: text("deviceId").unwrap_or_default(),
                patient_id: text("patientId"),
                encounter_id: text("encounterId"),
                correlation_id: text("correlationId"),
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

fn groups(
    mapping: &FhirMapping,
    ids: &ResourceIds,
    readings: &[Reading],
    existing: Option<&Value>,
    options: &BuildOptions,
) -> Vec<Value> {
    let mut results = Vec::new();
    for (key, members) in by_group(readings) {
        let mut instants: Vec<Timestamp> = members.iter().map(|r| r.measurement.occurrence_time).collect();
        instants.sort_unstable();
        instants.dedup();
        let mut group = json!({
            "deviceId": key.device_id, "measureType": key.type_name, "patientId": key.patient_id,
            "encounterId": key.encounter_id, "correlationId": key.correlation_id,
            "measurementCount": instants.len(), "observations": [],
        });
        let Some(template) = mapping.template(&key.type_name) else {
            set(&mut group, "error", json!("TemplateNotFoundException"));
            results.push(group);
            continue;
        };
        match template.observation_groups(&members) {
            Err(error) => set(&mut group, "error", json!(error.kind.name())),
            Ok(split) => {
                let observations = split
                    .iter()
                    .map(|one| observation(template, one, ids, &key.type_name, existing, options))
                    .collect();
                set(&mut group, "observations", Value::Array(observations));
            }
        }
        results.push(group);
    }
    results
}

fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// Rule D22: the same Observation when the id, or an identifier's system and value, is equal.
fn is_same_observation(stored: &Value, system: &str, value: &str, id: &str) -> bool {
    let identifiers = list(stored, "identifier");
    let by_identifier = identifiers.iter().any(|identifier| {
        let is = |name: &str, text: &str| identifier.get(name).and_then(Value::as_str) == Some(text);
        is("system", system) && is("value", value)
    });
    by_identifier || stored.get("id").and_then(Value::as_str) == Some(id)
}

/// What the server has for an identity, and what is remembered of it.
type Known = Option<(Value, Option<SentMemory>)>;

enum Written {
    Create(Value, SentMemory),
    Update(Value, SentMemory),
    None,
}

/// Creates or merges, following to the Observation that rules D19 and D25 ask for. `stored` gives what the server has
/// for an identity, and what is remembered of it.
fn write(
    template: &FhirTemplate,
    group: &mut ObservationGroup,
    ids: &ResourceIds,
    type_name: &str,
    options: &BuildOptions,
    stored: &dyn Fn(&str, &str, &str) -> Known,
) -> Result<Written, BuildError> {
    loop {
        let made = identity(
            &ids.patient,
            &ids.device,
            type_name,
            &group.id_segment,
            options.identity_form,
        );
        let Some((existing, memory)) = stored(made.system, &made.value, &made.id) else {
            let built = template.create(group, ids, type_name, options)?;
            return Ok(Written::Create(built.resource, built.memory));
        };
        let merged = template.merge(group, &existing, ids, options, memory.as_ref())?;
        match merged.merge {
            Merge::Unchanged => return Ok(Written::None),
            Merge::Changed(resource) => return Ok(Written::Update(resource, merged.memory)),
            Merge::NewObservation { id_segment } => group.id_segment = id_segment,
        }
    }
}

fn observation(
    template: &FhirTemplate,
    group: &ObservationGroup,
    ids: &ResourceIds,
    type_name: &str,
    existing: Option<&Value>,
    options: &BuildOptions,
) -> Value {
    let mut group = group.clone();
    let stored = |system: &str, value: &str, id: &str| {
        existing
            .filter(|e| is_same_observation(e, system, value, id))
            .map(|e| (e.clone(), None))
    };
    let written = write(template, &mut group, ids, type_name, options, &stored);
    let values: Map<String, Value> = group
        .values
        .iter()
        .map(|series| {
            let points = series
                .points
                .iter()
                .map(|p| json!([p.time.to_string(), p.text]))
                .collect();
            (series.name.clone(), Value::Array(points))
        })
        .collect();
    let mut result = json!({
        "boundaryStart": group.boundary_start.to_string(), "boundaryEnd": group.boundary_end.to_seven_digits(),
        "idSegment": group.id_segment.text(options.identity_form), "values": values,
    });
    let (operation, resource) = match written {
        Err(error) => {
            set(&mut result, "error", json!(error.kind.name()));
            return result;
        }
        Ok(Written::Create(resource, _)) => ("create", resource),
        Ok(Written::Update(resource, _)) => ("update", resource),
        Ok(Written::None) => ("none", existing.cloned().unwrap_or_default()),
    };
    set(&mut result, "operation", json!(operation));
    set(&mut result, "observation", resource);
    if group.left_out > 0 {
        set(&mut result, "leftOut", json!(group.left_out));
    }
    if group.outside_period > 0 {
        set(&mut result, "outsidePeriod", json!(group.outside_period));
    }
    // Refused readings of a Quantity or String beside a usable one are in leftOut (D16), the others are listed (D5).
    let is_listed = |name: &str| {
        template.values().any(|(_, value)| {
            value.name.as_deref() == Some(name) && matches!(value.kind, ValueKind::SampledData { .. })
        })
    };
    let errors: Vec<Value> = group
        .reading_errors
        .iter()
        .filter(|error| group.left_out == 0 || is_listed(&error.name))
        .map(|error| {
            let text = group
                .series(&error.name)
                .and_then(|series| series.points.iter().find(|p| p.time == error.time))
                .map(|point| point.text.clone());
            json!({ "error": error.error.name(), "time": error.time.to_string(), "value": text })
        })
        .collect();
    if !errors.is_empty() {
        set(&mut result, "readingErrors", Value::Array(errors));
    }
    result
}

fn compare_group(expected: &Value, actual: &Value) -> Outcome {
    let alternatives = list(expected, "observationsAnyOf");
    let without = |value: &Value| {
        let mut value = value.clone();
        if let Some(object) = value.as_object_mut() {
            for name in [
                "observations",
                "observationsAnyOf",
                "referenceMessage",
                "note",
                "blocks",
            ] {
                object.remove(name);
            }
        }
        value
    };
    if let Some(difference) = difference(&without(expected), &without(actual), Extent::Exact) {
        return Err(difference);
    }
    let made = list(actual, "observations");
    if alternatives.is_empty() {
        return compare_observations(&list(expected, "observations"), &made);
    }
    first_agreement(&alternatives, |alternative| {
        let wanted = match alternative {
            Value::Array(wanted) => wanted.clone(),
            one => vec![one.clone()],
        };
        compare_observations(&wanted, &made)
    })
}

fn first_agreement(alternatives: &[Value], compare: impl Fn(&Value) -> Outcome) -> Outcome {
    let mut differences = Vec::new();
    for alternative in alternatives {
        match compare(alternative) {
            Ok(()) => return Ok(()),
            Err(difference) => differences.push(difference),
        }
    }
    Err(differences.join("; or "))
}

fn compare_observations(expected: &[Value], actual: &[Value]) -> Outcome {
    if expected.len() != actual.len() {
        return Err(format!(
            "expected {} observations, got {}",
            expected.len(),
            actual.len()
        ));
    }
    for (expected, actual) in expected.iter().zip(actual) {
        compare_observation(expected, actual)?;
    }
    Ok(())
}

fn compare_observation(expected: &Value, actual: &Value) -> Outcome {
    let mut expected = expected.clone();
    let mut actual = actual.clone();
    let (Some(wanted), Some(made)) = (expected.as_object_mut(), actual.as_object_mut()) else {
        return Err("an observation is no object".to_owned());
    };
    wanted.remove("referenceMessage");
    wanted.remove("note");
    let resource = made.remove("observation").unwrap_or_default();
    if let Some(prefix) = wanted.remove("idSegmentStartsWith") {
        let segment = made.remove("idSegment").unwrap_or_default();
        let starts = segment
            .as_str()
            .unwrap_or_default()
            .starts_with(prefix.as_str().unwrap_or_default());
        if !starts {
            return Err(format!("idSegment {segment} does not start with {prefix}"));
        }
    }
    let by_subset = wanted
        .remove("match")
        .is_some_and(|extent| extent.as_str() == Some("subset"));
    let mut subset = wanted.remove("observationSubset");
    let mut whole = wanted.remove("observation");
    if by_subset && subset.is_none() {
        subset = whole.take();
    }
    for optional in ["idSegment", "values", "boundaryStart", "boundaryEnd", "operation"] {
        if (subset.is_some() || by_subset) && !wanted.contains_key(optional) {
            made.remove(optional);
        }
    }
    let of_resource = match (&whole, &subset) {
        (_, Some(subset)) => difference(subset, &resource, Extent::Subset),
        (Some(whole), None) => difference(whole, &resource, Extent::Exact),
        (None, None) => None,
    };
    match difference(&expected, &actual, Extent::Exact).or(of_resource) {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

/// Checks the exact spelling of numbers: a path within the Observation -> its text.
fn lexical(vector: &Value, groups: &[Value]) -> Outcome {
    let Some(paths) = vector.get("lexical").and_then(Value::as_object) else {
        return Ok(());
    };
    for (path, spelled) in paths {
        let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
        let found = groups
            .iter()
            .flat_map(|group| list(group, "observations"))
            .filter_map(|made| made.get("observation").and_then(|o| o.pointer(&pointer)).cloned())
            .any(|number| Some(number.to_string().as_str()) == spelled.as_str());
        if !found {
            return Err(format!("{path} is not written as {spelled}"));
        }
    }
    Ok(())
}

struct Stored {
    resource: Value,
    memory: SentMemory,
}

/// Saves the batches one after the other, as an agent does that remembers what it sent.
fn save_batches(vector: &Value, options: &BuildOptions) -> Result<Vec<Value>, String> {
    let existing = vector.get("existing").filter(|existing| !existing.is_null());
    let mut server: Vec<Stored> = existing
        .map(|resource| Stored {
            resource: resource.clone(),
            memory: SentMemory::default(),
        })
        .into_iter()
        .collect();
    let batches = match vector.get("batches").and_then(Value::as_array) {
        Some(batches) => batches.clone(),
        None => vec![vector.get("measurements").cloned().unwrap_or_default()],
    };
    for (number, batch) in batches.iter().enumerate() {
        let of_batch = |many: &str, one: &str| {
            vector
                .get(many)
                .and_then(|all| all.get(number))
                .or(vector.get(one))
                .cloned()
        };
        let text = match vector.get("fhirMappings").and_then(|all| all.get(number)) {
            Some(mapping) => mapping.to_string(),
            None => mapping_text(vector),
        };
        let mapping = checked(&text)?;
        let ids = resource_ids(of_batch("batchResourceIds", "resourceIds").as_ref());
        for (key, members) in by_group(&readings(Some(batch))?) {
            // What fails becomes a dead letter; the others go on (rule D17).
            let Some(template) = mapping.template(&key.type_name) else {
                continue;
            };
            let Ok(split) = template.observation_groups(&members) else {
                continue;
            };
            for mut group in split {
                let stored = |system: &str, value: &str, id: &str| {
                    server
                        .iter()
                        .find(|s| is_same_observation(&s.resource, system, value, id))
                        .map(|s| (s.resource.clone(), Some(s.memory.clone())))
                };
                match write(template, &mut group, &ids, &key.type_name, options, &stored) {
                    Ok(Written::Create(resource, memory)) => server.push(Stored { resource, memory }),
                    Ok(Written::Update(resource, memory)) => {
                        let id = resource.get("id").cloned();
                        if let Some(stored) = server.iter_mut().find(|s| s.resource.get("id") == id.as_ref())
                        {
                            // What is remembered goes through its stored form, as in the agent.
                            let memory = SentMemory::from_bytes(&memory.to_bytes());
                            *stored = Stored {
                                resource,
                                memory: memory.ok_or("the memory does not come back")?,
                            };
                        }
                    }
                    Ok(Written::None) | Err(_) => {}
                }
            }
        }
    }
    Ok(server.into_iter().map(|stored| stored.resource).collect())
}

/// What the server holds at the end, in any order, nothing else.
fn final_observations(expected: &Value, stored: &[Value]) -> Outcome {
    let wanted = list(expected, "finalObservations");
    let mut left: Vec<&Value> = stored.iter().collect();
    for one in &wanted {
        let subset = one.get("match").and_then(Value::as_str) == Some("subset");
        let extent = if subset { Extent::Subset } else { Extent::Exact };
        let observation = one.get("observation").unwrap_or(one);
        let found = left
            .iter()
            .position(|candidate| difference(observation, candidate, extent).is_none());
        match found {
            Some(at) => {
                left.remove(at);
            }
            None => return Err(format!("{observation} is not stored; stored are {left:?}")),
        }
    }
    match left.first() {
        Some(more) => Err(format!("not expected: {more}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Runner = fn(&Value) -> Outcome;

    fn run_file(file: &str, run: Runner) -> (usize, Vec<String>) {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors/");
        let Ok(text) = std::fs::read_to_string(format!("{root}{file}")) else {
            return (0, Vec::new());
        };
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
        println!("{total} vectors, {} failed", failed.len());
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
