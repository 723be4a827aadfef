//! A message under packs, with every step.

use crate::packs::{Pack, PackSet};
use iomt_mapping::fhir::{
    BuildError, BuildOptions, FhirTemplate, GroupKey, GroupTrace, ObservationGroup, Reading, ResourceIds,
};
use iomt_mapping::message::ParsedMessage;
use iomt_mapping::{Measurement, NormalizeError, SetNormalized, Trace};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Stand for the resources that a destination finds or creates; the id of the Observation depends on them.
pub(super) const PATIENT: &str = "PATIENT";
pub(super) const DEVICE: &str = "DEVICE";
const ENCOUNTER: &str = "ENCOUNTER";

/// What a message became.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    /// Measurements of all packs.
    pub measurements: usize,
    /// Matches and Observations that failed.
    pub failed: usize,
    /// Measurements left out because an earlier pack gives their type.
    pub shadowed: usize,
    /// In name order.
    pub packs: Vec<PackExplained>,
}

/// What one pack made of it.
#[derive(Debug, Serialize)]
pub(super) struct PackExplained {
    pub pack: String,
    pub trace: Trace,
    /// As the IoMT FHIR Connector writes them between its stages.
    pub measurements: Vec<Value>,
    pub errors: Vec<Failed>,
    /// None when the pack has no FHIR mapping.
    pub observations: Option<Vec<ObservationExplained>>,
}

/// Something that failed.
#[derive(Debug, Serialize)]
pub(super) struct Failed {
    pub name: &'static str,
    pub template: Option<usize>,
    pub field: Option<String>,
    pub text: String,
}

/// What measurements of one type became.
#[derive(Debug, Serialize)]
pub(super) struct ObservationExplained {
    pub type_name: String,
    /// Index of the FHIR template, from 0.
    pub template: Option<usize>,
    /// First and last instant of its period.
    pub period: Option<(String, String)>,
    /// How the group comes to it, value by value; none when there is no group.
    pub trace: Option<GroupTrace>,
    pub resource: Option<Value>,
    pub error: Option<Failed>,
}

/// Maps a message with every step noted.
pub(super) fn explain(set: &PackSet, message: &ParsedMessage<'_>) -> Explained {
    let normalized = set.mapping_set().normalize(message);
    let packs: Vec<PackExplained> = set
        .packs()
        .iter()
        .enumerate()
        .map(|(number, pack)| explain_pack(number, pack, &normalized, message))
        .collect();
    let failed_observations = |pack: &PackExplained| {
        let all = pack.observations.iter().flatten();
        all.filter(|observation| observation.error.is_some()).count()
    };
    Explained {
        measurements: normalized.matches.len(),
        failed: normalized.errors.len() + packs.iter().map(failed_observations).sum::<usize>(),
        shadowed: normalized.shadowed,
        packs,
    }
}

fn explain_pack(
    number: usize,
    pack: &Arc<Pack>,
    normalized: &SetNormalized,
    message: &ParsedMessage<'_>,
) -> PackExplained {
    let of_pack = normalized.matches.iter().filter(|found| found.pack == number);
    let measurements: Vec<Measurement> = of_pack
        .map(|found| {
            let mut measurement = found.measurement.clone();
            measurement.occurrence_time = pack
                .options
                .corrected(&measurement.type_name, measurement.occurrence_time);
            measurement
        })
        .collect();
    let errors = normalized.errors.iter().filter(|(pack, _)| *pack == number);
    PackExplained {
        pack: pack.text.name.clone(),
        trace: pack.device.trace(message),
        errors: errors.map(|(_, error)| Failed::of_match(error)).collect(),
        observations: pack.fhir.is_some().then(|| observations(pack, &measurements)),
        measurements: measurements.iter().map(measurement_json).collect(),
    }
}

impl Failed {
    fn of_match(error: &NormalizeError) -> Failed {
        Failed {
            name: error.kind.name(),
            template: error.template,
            field: error.field.clone(),
            text: error.text.clone(),
        }
    }

    fn of_build(error: BuildError, template: Option<usize>) -> Failed {
        Failed {
            name: error.kind.name(),
            template,
            field: None,
            text: error.text,
        }
    }
}

/// The JSON contract between the stages of the IoMT FHIR Connector.
fn measurement_json(measurement: &Measurement) -> Value {
    let properties: Vec<Value> = measurement
        .properties
        .iter()
        .map(|property| json!({ "Name": property.name, "Value": property.value }))
        .collect();
    json!({
        "Type": measurement.type_name,
        "OccurrenceTimeUtc": measurement.occurrence_time.to_string(),
        "DeviceId": measurement.device_id,
        "PatientId": measurement.patient_id,
        "EncounterId": measurement.encounter_id,
        "CorrelationId": measurement.correlation_id,
        "Properties": properties
    })
}

/// Groups the measurements as the agent does and builds an Observation of each group.
fn observations(pack: &Pack, measurements: &[Measurement]) -> Vec<ObservationExplained> {
    let mut groups: Vec<(GroupKey, Vec<Reading>)> = Vec::new();
    for (arrival, measurement) in (0_i64..).zip(measurements) {
        let key = GroupKey::of(measurement);
        let reading = Reading {
            measurement: measurement.clone(),
            ingestion: arrival,
        };
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, readings)) => readings.push(reading),
            None => groups.push((key, vec![reading])),
        }
    }
    groups
        .iter()
        .flat_map(|(key, readings)| of_group(pack, key, readings))
        .collect()
}

fn of_group(pack: &Pack, key: &GroupKey, readings: &[Reading]) -> Vec<ObservationExplained> {
    let type_name = &key.type_name;
    let failed = |template: Option<usize>, error: Failed| ObservationExplained {
        type_name: type_name.clone(),
        template,
        period: None,
        trace: None,
        resource: None,
        error: Some(error),
    };
    let Some(template) = pack.fhir.as_ref().and_then(|fhir| fhir.template(type_name)) else {
        let text = format!("The FHIR mapping has no template with typeName \"{type_name}\".");
        let error = Failed {
            name: "TemplateNotFoundException",
            template: None,
            field: None,
            text,
        };
        return vec![failed(None, error)];
    };
    let ids = ResourceIds {
        patient: PATIENT.to_owned(),
        device: DEVICE.to_owned(),
        encounter: key.encounter_id.as_ref().map(|_| ENCOUNTER.to_owned()),
    };
    match template.observation_groups(readings) {
        Ok(groups) => groups
            .iter()
            .map(|group| built(template, group, &ids, type_name))
            .collect(),
        Err(error) => vec![failed(
            Some(template.index),
            Failed::of_build(error, Some(template.index)),
        )],
    }
}

fn built(
    template: &FhirTemplate,
    group: &ObservationGroup,
    ids: &ResourceIds,
    type_name: &str,
) -> ObservationExplained {
    let options = BuildOptions::default();
    let mut trace = template.trace(group, ids, type_name, &options);
    // It stands beside the trace.
    trace.resource = None;
    let built = template.create(group, ids, type_name, &options);
    let (resource, error) = match built {
        Ok(built) => (Some(built.resource), None),
        Err(error) => (None, Some(Failed::of_build(error, Some(template.index)))),
    };
    ObservationExplained {
        type_name: type_name.to_owned(),
        template: Some(template.index),
        period: Some((group.boundary_start.to_string(), group.boundary_end.to_string())),
        trace: Some(trace),
        resource,
        error,
    }
}
