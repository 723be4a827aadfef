//! What the engine makes of a vector's measurements, in the form in which vectors expect it.

use super::super::built;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::{
    BuildError, BuildOptions, FhirMapping, FhirTemplate, Merge, ObservationGroup, Reading, ResourceIds,
    SentMemory, ValueKind, identity,
};
use serde_json::{Map, Value, json};

use super::{by_group, list};

/// Groups with their Observations, groups in order of first appearance.
pub(super) fn groups(
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
pub(super) fn is_same_observation(stored: &Value, system: &str, value: &str, id: &str) -> bool {
    let identifiers = list(stored, "identifier");
    let by_identifier = identifiers.iter().any(|identifier| {
        let is = |name: &str, text: &str| identifier.get(name).and_then(Value::as_str) == Some(text);
        is("system", system) && is("value", value)
    });
    by_identifier || stored.get("id").and_then(Value::as_str) == Some(id)
}

/// What the server has for an identity, and what is remembered of it.
pub(super) type Known = Option<(Value, Option<SentMemory>)>;

pub(super) enum Written {
    Create(Value, SentMemory),
    Update(Value, SentMemory),
    None,
}

/// Creates or merges, following to the Observation that rules D19 and D25 ask for. `stored` gives what the server has
/// for an identity, and what is remembered of it.
pub(super) fn write(
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
            built::note(&built.resource);
            return Ok(Written::Create(built.resource, built.memory));
        };
        let merged = template.merge(group, &existing, ids, options, memory.as_ref())?;
        match merged.merge {
            Merge::Unchanged => return Ok(Written::None),
            Merge::Changed(resource) => {
                built::note(&resource);
                return Ok(Written::Update(resource, merged.memory));
            }
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
