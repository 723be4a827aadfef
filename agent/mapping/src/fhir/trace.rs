//! How a group comes to its Observation, step by step: for people at the bedside, and for tools. Made only when it is
//! asked for; holds values of the readings.

use serde::Serialize;
use serde_json::Value;

use super::build::{BuildOptions, ResourceIds};
use super::group::{ObservationGroup, ReadingOutcome};
use super::identity::identity;
use super::judge::{Usable, judge};
use super::sampled_data::fill_slots;
use super::template::{FhirTemplate, ValueKind, ValueTemplate};
use crate::finding::nearest;

/// What a template makes of a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupTrace {
    /// `typeName` of the template.
    pub type_name: String,
    /// Index of the template, from 0.
    pub template: usize,
    /// Its line in the mapping text.
    pub line: Option<usize>,
    /// `periodInterval`.
    pub period_interval: i32,
    /// First and last instant of the Observation.
    pub period: (String, String),
    /// How many instants the readings have.
    pub instants: usize,
    /// The identifier's value.
    pub identifier: String,
    /// The resource id.
    pub id: String,
    /// Each value of the template.
    pub values: Vec<ValueTrace>,
    /// Values that were measured and that the template does not use.
    pub unused: Vec<UnusedValue>,
    /// How many readings took part, were superseded, were refused.
    pub readings: (usize, usize, usize),
    /// The Observation that would be created.
    pub resource: Option<Value>,
    /// Why there is none.
    pub error: Option<String>,
}

/// What becomes of one value of a template.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueTrace {
    /// Index of the component; `None` is the value of the Observation.
    pub component: Option<usize>,
    /// `valueName`.
    pub name: String,
    /// `valueType`.
    pub value_type: &'static str,
    /// Its line in the mapping text.
    pub line: Option<usize>,
    /// How many readings have it.
    pub readings: usize,
    /// What is written: the number or text, the reason for none, or the filled and all slots (`3 of 720 slots`).
    pub taken: Option<String>,
    /// Readings that a later one replaced.
    pub left_out: usize,
    /// Readings that are no usable value.
    pub refused: usize,
    /// What else is to say.
    pub note: Option<String>,
}

/// A measured value that a template does not use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnusedValue {
    /// Its name.
    pub name: String,
    /// The nearest `valueName` of the template, such as one in another letter case.
    pub similar: Option<String>,
}

impl FhirTemplate {
    /// Every step from a group to the Observation that [`FhirTemplate::create`] makes of it.
    ///
    /// ```
    /// use iomt_mapping::fhir::*;
    /// use iomt_mapping::{Measurement, Property, Timestamp};
    ///
    /// let (mapping, _) = FhirMapping::load(r#"{ "templateType": "CollectionFhir", "template": [
    ///   { "templateType": "CodeValueFhir", "template": { "typeName": "hr", "codes": [],
    ///       "value": { "valueType": "Quantity", "valueName": "rate" } } } ] }"#);
    /// let mapping = mapping.unwrap();
    /// let measurement = Measurement {
    ///     key: GroupKey { type_name: "hr".to_owned(), device_id: "d".to_owned(), ..GroupKey::default() }.into(),
    ///     occurrence_time: Timestamp::from_ticks(0).unwrap(),
    ///     properties: vec![Property { name: "Rate".into(), value: "60".into() }],
    /// };
    /// let template = mapping.template("hr").unwrap();
    /// let groups = template.observation_groups(&[Reading { measurement, ingestion: 0 }]).unwrap();
    /// let trace = template.trace(&groups[0], &ResourceIds::default(), "hr", &BuildOptions::default());
    /// assert_eq!(trace.values[0].readings, 0);
    /// assert_eq!(trace.unused[0].similar.as_deref(), Some("rate"));
    /// ```
    pub fn trace(
        &self,
        group: &ObservationGroup,
        ids: &ResourceIds,
        type_name: &str,
        options: &BuildOptions,
    ) -> GroupTrace {
        let identity = identity(
            &ids.patient,
            &ids.device,
            type_name,
            &group.id_segment,
            options.identity_form,
        );
        let names: Vec<&str> = self
            .values()
            .filter_map(|(_, value)| value.name.as_deref())
            .collect();
        let unused = group
            .values
            .iter()
            .filter(|series| !names.contains(&series.name.as_str()))
            .map(|series| UnusedValue {
                name: series.name.clone(),
                similar: nearest(&series.name, names.iter().copied()).map(str::to_owned),
            });
        let count = |wanted: fn(ReadingOutcome) -> bool| {
            group
                .readings
                .iter()
                .filter(|reading| wanted(reading.outcome))
                .count()
        };
        let built = self.create(group, ids, type_name, options);
        GroupTrace {
            type_name: self.type_name.clone(),
            template: self.index,
            line: self.type_name_place.map(|place| place.line),
            period_interval: self.period.number(),
            period: (group.boundary_start.to_string(), group.boundary_end.to_string()),
            instants: group.instants,
            identifier: identity.value,
            id: identity.id,
            values: self
                .values()
                .map(|(component, value)| self.trace_value(group, component, value))
                .collect(),
            unused: unused.collect(),
            readings: (
                count(|outcome| outcome == ReadingOutcome::TookPart),
                count(|outcome| outcome == ReadingOutcome::Superseded),
                count(|outcome| matches!(outcome, ReadingOutcome::Refused(_))),
            ),
            error: built.as_ref().err().map(ToString::to_string),
            resource: built.ok().map(|built| built.resource),
        }
    }

    fn trace_value(
        &self,
        group: &ObservationGroup,
        component: Option<usize>,
        value: &ValueTemplate,
    ) -> ValueTrace {
        let name = value.name.clone().unwrap_or_default();
        let mut trace = ValueTrace {
            component,
            value_type: match value.kind {
                ValueKind::Quantity(_) => "Quantity",
                ValueKind::String => "String",
                ValueKind::CodeableConcept(_) => "CodeableConcept",
                ValueKind::SampledData { .. } => "SampledData",
            },
            line: value.place.map(|place| place.line),
            readings: 0,
            taken: None,
            left_out: 0,
            refused: 0,
            note: None,
            name,
        };
        let Some(series) = group.series(&trace.name) else {
            trace.note = Some("no reading has this value".to_owned());
            return trace;
        };
        let judged = judge(value, self.options.value(&trace.name), series);
        trace.readings = series.points.len();
        trace.left_out = judged.left_out.len();
        trace.refused = judged.refused.len();
        match (judged.usable, &value.kind) {
            (Usable::Nothing, _) => trace.note = Some("every reading was refused".to_owned()),
            (Usable::Number { text, time } | Usable::Text { text, time }, _) => {
                trace.taken = Some(text);
                trace.note = Some(format!("taken at {time}"));
            }
            (Usable::Concept, _) => trace.note = Some("the measured value is ignored".to_owned()),
            (Usable::Absent { reason }, _) => trace.taken = Some(format!("no value: {reason}")),
            (Usable::Samples(samples), ValueKind::SampledData { period, .. }) => {
                match fill_slots(samples, group.boundary_start, group.boundary_end, *period) {
                    Ok(slotted) => {
                        let slots = period.slots(group.boundary_start, group.boundary_end);
                        trace.taken = Some(format!("{} of {slots} slots", slotted.placed.len()));
                        trace.left_out = slotted.superseded.len();
                        if !slotted.outside.is_empty() {
                            trace.note = Some(format!("{} outside the period", slotted.outside.len()));
                        }
                    }
                    Err(_) => trace.note = Some("too many slots".to_owned()),
                }
            }
            (Usable::Samples(_), _) => {}
        }
        trace
    }
}
