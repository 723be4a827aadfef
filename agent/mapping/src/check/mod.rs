//! Checks a mapping pack as a whole: load errors of its files, whether they fit each other, and lints for what loads
//! but is probably not meant. Every finding has a severity, a place where there is one, and a suggestion.
//!
//! | Kind | Severity | What it is about |
//! |---|---|---|
//! | `NoFhirTemplate`, `ValueNotInFhirTemplate` | warning | a type or value of the device mapping without a place in the FHIR mapping |
//! | `FhirTemplateUnused`, `ValueNeverMeasured` | information, warning where a name is similar | the reverse |
//! | `DivergingCase` | warning | names that differ in letter case only |
//! | `UnreachableExpression` | warning | starts at none of Body, Properties, SystemProperties, matchedToken |
//! | `LogicalPrecedence` | warning | `&&` and `\|\|` together, which have no precedence |
//! | `DuplicateValueName` | warning | a value name twice in a device template |
//! | `NonUcumUnit`, `NoUnit` | warning, information | units |
//! | `WrongLoinc`, `LoincCheckDigit` | warning, information | codes |
//! | `ComponentRepeatsCode` | warning | FHIR rule obs-7 |
//! | `SampledDataWithoutPeriod`, `PeriodDoesNotDivide`, `TooManySlots` | warning | SampledData |
//! | `OnlyLastReading` | information | a Quantity or String with a period |
//! | `VitalSignsProfile` | warning, information | FHIR vital signs and US Core profiles |
//! | `ShadowedTemplate` | warning | a pack earlier in name order always wins |
//! | `AmbiguousDate` | warning | a date with two readings in a sample message |
//! | `NotAReference`, `UnknownDataAbsentReason`, `OptionWithoutEffect` | warning | the third file |

mod cross;
mod device;
mod fhir;
mod loinc;
mod loinc_table;
#[cfg(test)]
mod tests;
mod ucum;
mod ucum_atoms;
mod validator;

pub use loinc::{LOINC_SYSTEM, LoincCode, has_loinc_check_digit, loinc, loinc_codes};
pub use ucum::{UCUM_SYSTEM, UcumError, check_ucum, suggest_ucum};
pub use validator::{Category, EventResult, Level, SampleEvent, Validation, ValidationReport, validate};

use serde_json::{Value, json};

use crate::device::DeviceMapping;
use crate::document::Document;
use crate::fhir::FhirMapping;
use crate::finding::{Finding, Severity, has_errors};
use crate::message::ParsedMessage;
use crate::pack_options::PackOptions;
use crate::timestamp::read_timestamp;

/// A file of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackFile {
    /// The device mapping.
    Device,
    /// The FHIR destination mapping.
    Fhir,
    /// The third file.
    Agent,
}

impl PackFile {
    /// The end of its name in a drop-in folder.
    pub fn ending(self) -> &'static str {
        match self {
            PackFile::Device => ".device.json",
            PackFile::Fhir => ".fhir.json",
            PackFile::Agent => ".agent.json",
        }
    }
}

/// A finding and the file that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFinding {
    /// The file.
    pub file: PackFile,
    /// What was found.
    pub finding: Finding,
}

/// A pack that comes before the one that is checked, in name order, for the same sources.
#[derive(Clone, Copy, Debug)]
pub struct EarlierPack<'p> {
    /// Its name.
    pub name: &'p str,
    /// The text of its device mapping.
    pub device_text: &'p str,
}

/// Checks the files of a pack, each as far as it is there. Findings are ordered by file and place.
///
/// ```
/// use iomt_mapping::check::{PackFile, check_pack, render};
///
/// let fhir = r#"{ "templateType": "CollectionFhir", "template": [
///   { "templateType": "CodeValueFhir", "template": { "typeName": "bp",
///       "codes": [{ "code": "8867-4", "system": "http://loinc.org", "display": "Diastolic blood pressure" }],
///       "value": { "valueType": "Quantity", "valueName": "dia", "unit": "mmHg" } } }] }"#;
/// let findings = check_pack(None, Some(fhir), None, &[]);
/// let wrong = findings.iter().find(|f| f.finding.kind == "WrongLoinc").unwrap();
/// assert_eq!(wrong.file, PackFile::Fhir);
/// let shown = render(&wrong.finding, "ward.fhir.json", fhir);
/// assert!(shown.contains("Did you mean 8462-4 (Diastolic blood pressure)?"), "{shown}");
/// ```
pub fn check_pack(
    device_text: Option<&str>,
    fhir_text: Option<&str>,
    agent_text: Option<&str>,
    earlier_packs: &[EarlierPack<'_>],
) -> Vec<PackFinding> {
    let mut found = Vec::new();
    let mut add = |file: PackFile, findings: Vec<Finding>| {
        found.extend(findings.into_iter().map(|finding| PackFinding { file, finding }));
    };
    let options = agent_text.and_then(|text| {
        let (options, findings) = PackOptions::load(text);
        add(PackFile::Agent, findings);
        options
    });
    let fhir = fhir_text.and_then(|text| {
        let (mapping, findings) = FhirMapping::load_partial(text);
        let usable = !has_errors(&findings);
        add(PackFile::Fhir, findings);
        let mapping = match &options {
            Some(options) => mapping.map(|m| m.with_options(options)),
            None => mapping,
        };
        if let Some(mapping) = &mapping {
            add(PackFile::Fhir, fhir::lint_fhir(mapping));
        }
        // A template that did not load would be missed below.
        mapping.filter(|_| usable)
    });
    if let Some(options) = &options {
        add(
            PackFile::Agent,
            cross::options_against_fhir(options, fhir.as_ref()),
        );
    }
    if let Some(text) = device_text {
        add(PackFile::Device, DeviceMapping::load(text).1);
        if let Ok(document) = Document::parse(text) {
            let templates = device::device_templates(&document);
            add(PackFile::Device, device::lint_device(&document, &templates));
            if let Some(fhir) = &fhir {
                add(
                    PackFile::Device,
                    cross::device_against_fhir(&document, &templates, fhir),
                );
                add(PackFile::Fhir, cross::fhir_against_device(&templates, fhir));
            }
            for earlier in earlier_packs {
                let Ok(earlier_document) = Document::parse(earlier.device_text) else {
                    continue;
                };
                let of_earlier = device::device_templates(&earlier_document);
                add(
                    PackFile::Device,
                    cross::shadowed(&document, &templates, earlier.name, &of_earlier),
                );
            }
        }
    }
    found.sort_by_key(|f| (f.file, f.finding.place.map_or(0, |place| place.start)));
    found
}

/// `AmbiguousDate` warnings for what a mapping met in a message: times whose day and month could be read the other way
/// round (rule D10).
///
/// ```
/// use iomt_mapping::check::lint_message;
/// use iomt_mapping::{DeviceMapping, ParsedMessage};
///
/// let (mapping, _) = DeviceMapping::load(r#"{ "templateType": "CollectionContent", "template": [
///   { "templateType": "JsonPathContent", "template": { "typeName": "hr", "typeMatchExpression": "$..[?(@hr)]",
///     "deviceIdExpression": "$.id", "timestampExpression": "$.time" } } ] }"#);
/// let text = br#"{ "Body": { "hr": 60, "id": "a", "time": "02/01/2019 22:46:01" } }"#;
/// let message = ParsedMessage::from_envelope(text).unwrap();
/// assert_eq!(lint_message(&mapping.unwrap(), &message)[0].kind, "AmbiguousDate");
/// ```
pub fn lint_message(mapping: &DeviceMapping, message: &ParsedMessage<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for template in mapping.trace(message).templates {
        let place = mapping
            .templates()
            .iter()
            .find(|known| known.index() == template.template)
            .map(|known| known.place());
        let fields = template.matches.iter().flat_map(|matched| &matched.fields);
        let two_readings = fields.into_iter().any(|field| {
            let found = field.found.as_ref().and_then(Value::as_str);
            field.field == "timestampExpression"
                && found
                    .and_then(read_timestamp)
                    .is_some_and(|read| read.two_readings)
        });
        if two_readings {
            let mut finding = Finding::warning(
                "AmbiguousDate",
                "The date of the reading can be read in two ways; it is read month first.",
            )
            .template(template.template)
            .field("timestampExpression")
            .suggest("Let the device send ISO 8601, for example 2019-02-01T22:46:01Z.");
            finding.place = place;
            findings.push(finding);
        }
    }
    findings
}

/// A finding as a compiler shows it: file, line and column, the line with a mark below, the suggestion.
pub fn render(finding: &Finding, file: &str, text: &str) -> String {
    finding.render(file, text)
}

/// A finding for programs.
pub fn to_json(finding: &Finding, file: &str) -> Value {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Information => "information",
    };
    json!({
        "file": file,
        "severity": severity,
        "kind": finding.kind,
        "template": finding.template,
        "field": finding.field,
        "line": finding.place.map(|place| place.line),
        "column": finding.place.map(|place| place.column),
        "length": finding.place.map(|place| place.length),
        "message": finding.message,
        "suggestion": finding.suggestion,
    })
}
