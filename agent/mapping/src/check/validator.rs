//! The mapping validator: both mappings and sample events in, levelled findings and what the events become out, as the
//! validator library of the reference does it (`mapping.md` 7.2). Tools and CI use it before a mapping goes into service.

use serde_json::Value;

use super::cross;
use super::device::device_templates;
use crate::device::DeviceMapping;
use crate::document::Document;
use crate::error::ErrorKind;
use crate::fhir::{BuildOptions, FhirMapping, Reading, ResourceIds};
use crate::finding::{Finding, Severity, has_errors};
use crate::measurement::{Measurement, NormalizeError};
use crate::message::{Envelope, ParsedMessage};

/// A sample event.
#[derive(Clone, Copy, Debug)]
pub enum SampleEvent<'e> {
    /// What a device sends.
    Body(&'e [u8]),
    /// The whole envelope `{Body, Properties, SystemProperties}`.
    Envelope(&'e [u8]),
}

impl SampleEvent<'_> {
    fn parse(&self) -> Result<ParsedMessage<'_>, NormalizeError> {
        match self {
            SampleEvent::Body(body) => Envelope {
                body,
                properties: &[],
                system_properties: &[],
            }
            .parse(),
            SampleEvent::Envelope(text) => ParsedMessage::from_envelope(text),
        }
    }
}

/// How serious the validator takes a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// `ERROR`
    Error,
    /// `WARN`
    Warn,
}

/// The stage that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Category {
    /// `NORMALIZATION`
    Normalization,
    /// `FHIRTRANSFORMATION`
    FhirTransformation,
}

/// A finding of the validator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Validation {
    /// How serious.
    pub level: Level,
    /// Which stage.
    pub category: Category,
    /// Kind of template error or warning, or the name of the error that an event ends in.
    pub kind: &'static str,
    /// Member of the mapping or value name.
    pub field: Option<String>,
    /// Line in the mapping.
    pub line: Option<usize>,
    /// The wording.
    pub message: String,
}

impl Validation {
    fn of(finding: Finding, category: Category) -> Validation {
        Validation {
            level: if finding.severity == Severity::Error {
                Level::Error
            } else {
                Level::Warn
            },
            category,
            kind: finding.kind,
            field: finding.field,
            line: finding.place.map(|place| place.line),
            message: finding.message,
        }
    }

    fn error(category: Category, kind: ErrorKind, message: String) -> Validation {
        Validation {
            level: Level::Error,
            category,
            kind: kind.name(),
            field: None,
            line: None,
            message,
        }
    }
}

/// What became of an event, or of all events that ended in the same finding.
#[derive(Clone, Debug, PartialEq)]
pub struct EventResult {
    /// Index of the event, of several the first.
    pub event: usize,
    /// How many events ended so; 0 where events are not summed up.
    pub aggregated_count: usize,
    /// Its measurements.
    pub measurements: Vec<Measurement>,
    /// An Observation of each measurement alone, without grouping.
    pub observations: Vec<Value>,
    /// What went wrong.
    pub findings: Vec<Validation>,
    /// What the reference does not look for ([`super::lint_message`]).
    pub lints: Vec<Finding>,
}

/// The result of a validation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValidationReport {
    /// About the mappings.
    pub mappings: Vec<Validation>,
    /// About the events; empty when a mapping has errors.
    pub events: Vec<EventResult>,
}

/// Validates mappings with sample events. At least one mapping must be given, else `ArgumentException`. With
/// `aggregate` there is one result per distinct finding, and events without one are left out.
///
/// ```
/// use iomt_mapping::check::{SampleEvent, validate};
///
/// let device = r#"{ "templateType": "CollectionContent", "template": [ { "templateType": "JsonPathContent", "template": {
///     "typeName": "hr", "typeMatchExpression": "$..[?(@hr)]", "deviceIdExpression": "$.id", "timestampExpression": "$.time",
///     "values": [{ "valueName": "hr", "valueExpression": "$.hr" }] } } ] }"#;
/// let event = SampleEvent::Body(br#"{ "hr": 60, "time": "2024-01-01T00:00:00Z" }"#);
/// let report = validate(Some(device), None, &[event], false).unwrap();
/// assert_eq!(report.events[0].findings[0].kind, "IncompatibleDataException");
/// assert_eq!(report.events[0].findings[0].field.as_deref(), Some("deviceIdExpression"));
/// ```
pub fn validate(
    device_text: Option<&str>,
    fhir_text: Option<&str>,
    events: &[SampleEvent<'_>],
    aggregate: bool,
) -> Result<ValidationReport, ErrorKind> {
    if device_text.is_none() && fhir_text.is_none() {
        return Err(ErrorKind::ArgumentException);
    }
    let mut report = ValidationReport::default();
    let mut failed = false;
    let mut note = |findings: Vec<Finding>, category| {
        failed |= has_errors(&findings);
        let errors = findings.into_iter().filter(|f| f.severity == Severity::Error);
        report
            .mappings
            .extend(errors.map(|finding| Validation::of(finding, category)));
    };
    let device = device_text.and_then(|text| {
        let (mapping, findings) = DeviceMapping::load(text);
        note(findings, Category::Normalization);
        mapping
    });
    let fhir = fhir_text.and_then(|text| {
        let (mapping, findings) = FhirMapping::load(text);
        note(findings, Category::FhirTransformation);
        mapping
    });
    if failed {
        return Ok(report);
    }
    if let (Some(text), Some(fhir)) = (device_text, &fhir)
        && let Ok(document) = Document::parse(text)
    {
        let found = cross::device_against_fhir(&document, &device_templates(&document), fhir);
        let of_reference = found
            .into_iter()
            .filter(|f| matches!(f.kind, "NoFhirTemplate" | "ValueNotInFhirTemplate"));
        report
            .mappings
            .extend(of_reference.map(|finding| Validation::of(finding, Category::FhirTransformation)));
    }
    let Some(device) = device else { return Ok(report) };
    for (index, event) in events.iter().enumerate() {
        let result = validate_event(index, event, &device, fhir.as_ref());
        if aggregate {
            sum_up(&mut report.events, result);
        } else {
            report.events.push(result);
        }
    }
    Ok(report)
}

/// Adds each finding of an event to the result that has the same one.
fn sum_up(results: &mut Vec<EventResult>, result: EventResult) {
    for finding in &result.findings {
        match results.iter_mut().find(|known| known.findings.contains(finding)) {
            Some(known) => known.aggregated_count += 1,
            None => results.push(EventResult {
                aggregated_count: 1,
                findings: vec![finding.clone()],
                ..result.clone()
            }),
        }
    }
}

fn validate_event(
    index: usize,
    event: &SampleEvent<'_>,
    device: &DeviceMapping,
    fhir: Option<&FhirMapping>,
) -> EventResult {
    let mut result = EventResult {
        event: index,
        aggregated_count: 0,
        measurements: Vec::new(),
        observations: Vec::new(),
        findings: Vec::new(),
        lints: Vec::new(),
    };
    let mut failures = Vec::new();
    match event.parse() {
        Ok(message) => {
            let normalized = device.normalize(&message);
            failures = normalized.errors;
            result.lints = super::lint_message(device, &message);
            result.measurements = normalized.matches.into_iter().map(|m| m.measurement).collect();
        }
        Err(error) => failures.push(error),
    }
    let none = failures.is_empty() && result.measurements.is_empty();
    result
        .findings
        .extend(failures.into_iter().map(|error| Validation {
            field: error.field,
            ..Validation::error(Category::Normalization, error.kind, error.text)
        }));
    if none {
        result.findings.push(Validation {
            level: Level::Warn,
            category: Category::Normalization,
            kind: "NoMeasurements",
            field: None,
            line: None,
            message: "No measurements were produced for the given device data.".to_owned(),
        });
    }
    let Some(fhir) = fhir else { return result };
    for measurement in &result.measurements {
        match observe(measurement, fhir) {
            Ok(observations) => result.observations.extend(observations),
            Err(finding) => result.findings.push(finding),
        }
    }
    result
}

/// The Observation of one measurement alone.
fn observe(measurement: &Measurement, fhir: &FhirMapping) -> Result<Vec<Value>, Validation> {
    let type_name = &measurement.type_name;
    let category = Category::FhirTransformation;
    let template = fhir.template(type_name).ok_or_else(|| {
        let message = format!(
            "No Fhir Template exists with the type name [{type_name}]. Ensure that all Fhir Template type names match \
             Device Mapping type names (including casing)"
        );
        Validation::error(category, ErrorKind::TemplateNotFoundException, message)
    })?;
    let reading = Reading {
        measurement: measurement.clone(),
        ingestion: 0,
    };
    let ids = ResourceIds {
        patient: "patientId".to_owned(),
        device: "deviceId".to_owned(),
        encounter: measurement
            .encounter_id
            .as_ref()
            .map(|_| "encounterId".to_owned()),
    };
    let groups = template.observation_groups(&[reading]);
    let built = groups.and_then(|groups| {
        groups
            .iter()
            .map(|group| template.create(group, &ids, type_name, &BuildOptions::default()))
            .map(|built| built.map(|built| built.resource))
            .collect()
    });
    built.map_err(|error| Validation::error(category, error.kind, error.text))
}
