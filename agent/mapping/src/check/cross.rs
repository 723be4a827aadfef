//! Whether the files of a pack fit each other and the packs before it (`mapping.md` 7.2).

use super::device::DeviceTemplate;
use super::ucum::{UCUM_SYSTEM, check_ucum, suggest_ucum};
use crate::document::Document;
use crate::fhir::{FhirMapping, FhirTemplate, ValueKind};
use crate::finding::{Finding, Severity, nearest};
use crate::pack_options::PackOptions;

/// Codes of the system data-absent-reason (FHIR R4).
const DATA_ABSENT_REASONS: [&str; 15] = [
    "unknown",
    "asked-unknown",
    "temp-unknown",
    "not-asked",
    "asked-declined",
    "masked",
    "not-applicable",
    "unsupported",
    "as-text",
    "error",
    "not-a-number",
    "negative-infinity",
    "positive-infinity",
    "not-performed",
    "not-permitted",
];

/// What of the device mapping finds no place in the FHIR mapping; findings stand in the device mapping.
pub(crate) fn device_against_fhir(
    document: &Document<'_>,
    templates: &[DeviceTemplate<'_, '_>],
    fhir: &FhirMapping,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in templates {
        let place = document.place(device.type_name_span);
        let Some(template) = fhir.template(&device.type_name) else {
            let known: Vec<&str> = fhir.templates().iter().map(|t| t.type_name.as_str()).collect();
            let message = format!(
                "No matching Fhir Template exists for Device Mapping [{}]. Ensure case matches. Available Fhir Templates: [{}].",
                device.type_name,
                known.join(" ,")
            );
            let mut finding = Finding::warning("NoFhirTemplate", message)
                .at(place)
                .template(device.index)
                .field("typeName");
            finding.suggestion =
                nearest(&device.type_name, known).map(|near| format!("Did you mean \"{near}\"?"));
            findings.push(finding);
            continue;
        };
        if template.type_name != device.type_name {
            let message = format!(
                "The type is '{}' here and '{}' in the FHIR mapping; the Observation says '{}'.",
                device.type_name, template.type_name, device.type_name
            );
            findings.push(
                Finding::warning("DivergingCase", message)
                    .at(place)
                    .template(device.index)
                    .field("typeName")
                    .suggest(format!("Write \"{}\" in both.", template.type_name)),
            );
        }
        let available = value_names(template);
        for (name, span) in &device.values {
            if available.contains(&name.as_str()) {
                continue;
            }
            let message = format!(
                "The value [{name}] in Device Mapping [{}] is not represented within the Fhir Template of type [{}]. \
                 Available values are: [{}]. No value will appear inside of Observations.",
                device.type_name,
                template.type_name,
                available.join(" ,")
            );
            let mut finding = Finding::warning("ValueNotInFhirTemplate", message)
                .at(document.place(*span))
                .template(device.index)
                .field(name.as_str());
            finding.suggestion = match nearest(name, available.iter().copied()) {
                Some(near) if near.eq_ignore_ascii_case(name) => {
                    Some(format!("Letter case counts: write \"{near}\"."))
                }
                near => near.map(|near| format!("Did you mean \"{near}\"?")),
            };
            findings.push(finding);
        }
    }
    findings
}

fn value_names(template: &FhirTemplate) -> Vec<&str> {
    template
        .values()
        .filter_map(|(_, value)| value.name.as_deref())
        .collect()
}

/// FHIR templates and values that no device template feeds; findings stand in the FHIR mapping.
pub(crate) fn fhir_against_device(templates: &[DeviceTemplate<'_, '_>], fhir: &FhirMapping) -> Vec<Finding> {
    let mut findings = Vec::new();
    for template in fhir.templates() {
        let feeding: Vec<&DeviceTemplate<'_, '_>> = templates
            .iter()
            .filter(|d| d.type_name.to_lowercase() == template.type_name.to_lowercase())
            .collect();
        if feeding.is_empty() {
            let message = format!(
                "No device template gives the type '{}'; this template is never used.",
                template.type_name
            );
            let mut finding = Finding::new(Severity::Information, "FhirTemplateUnused", message)
                .template(template.index)
                .field("typeName");
            finding.place = template.type_name_place;
            findings.push(finding);
            continue;
        }
        for (_, value) in template.values() {
            let Some(name) = value.name.as_deref() else {
                continue;
            };
            if feeding.iter().any(|d| d.values.iter().any(|(n, _)| n == name)) {
                continue;
            }
            let message = format!(
                "No device template of type '{}' gives the value '{name}'.",
                template.type_name
            );
            let measured = feeding
                .iter()
                .flat_map(|d| d.values.iter().map(|(n, _)| n.as_str()));
            let near = nearest(name, measured);
            // Without a similar name it is rather a component that this device does not have.
            let severity = if near.is_some() {
                Severity::Warning
            } else {
                Severity::Information
            };
            let mut finding = Finding::new(severity, "ValueNeverMeasured", message)
                .template(template.index)
                .field(name);
            finding.place = value.place;
            finding.suggestion = near.map(|near| format!("Did you mean \"{near}\"?"));
            findings.push(finding);
        }
    }
    findings
}

/// What of the third file finds no place in the FHIR mapping, or is no code; findings stand in the third file.
pub(crate) fn options_against_fhir(options: &PackOptions, fhir: Option<&FhirMapping>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |kind: &'static str, place, field: &str, message: String, advice: Option<String>| {
        let mut finding = Finding::warning(kind, message).field(field);
        finding.place = place;
        finding.suggestion = advice;
        findings.push(finding);
    };
    for (type_name, of_type) in options.types() {
        let template = fhir.and_then(|f| f.template(type_name));
        if let (Some(fhir), None) = (fhir, template) {
            let known = fhir.templates().iter().map(|t| t.type_name.as_str());
            let near = nearest(type_name, known).map(|near| format!("Did you mean \"{near}\"?"));
            let message = format!("The FHIR mapping has no template of type '{type_name}'.");
            add("NoFhirTemplate", of_type.place, "types", message, near);
        }
        for reference in &of_type.performer {
            if !reference.contains('/') && !reference.starts_with("urn:") {
                let message = format!("'{reference}' is no FHIR reference.");
                let advice = "Write it as \"Organization/ID\" or \"Practitioner/ID\".".to_owned();
                add("NotAReference", of_type.place, "performer", message, Some(advice));
            }
        }
        for (name, of_value) in &of_type.values {
            let value = template.and_then(|t| t.values().find(|(_, v)| v.name.as_deref() == Some(name)));
            if let (Some(template), None) = (template, value) {
                let near = nearest(name, value_names(template)).map(|n| format!("Did you mean \"{n}\"?"));
                let message = format!("The FHIR template of type '{type_name}' has no value '{name}'.");
                add("ValueNotInFhirTemplate", of_value.place, name, message, near);
            }
            let is_quantity = value.is_none_or(|(_, v)| matches!(v.kind, ValueKind::Quantity(_)));
            if !of_value.interpretation.is_empty() && !is_quantity {
                let message = format!("'{name}' is no Quantity: its interpretation rules are not applied.");
                add(
                    "OptionWithoutEffect",
                    of_value.place,
                    "interpretation",
                    message,
                    None,
                );
            }
            for (_, reason) in &of_value.data_absent_reason {
                if !DATA_ABSENT_REASONS.contains(&reason.as_str()) {
                    let near = nearest(reason, DATA_ABSENT_REASONS).map(|n| format!("Did you mean \"{n}\"?"));
                    let message = format!("'{reason}' is no code of data-absent-reason.");
                    add(
                        "UnknownDataAbsentReason",
                        of_value.place,
                        "dataAbsentReason",
                        message,
                        near,
                    );
                }
            }
            if let (Some(UCUM_SYSTEM), Some(code)) = (of_value.system.as_deref(), of_value.code.as_deref())
                && let Err(error) = check_ucum(code)
            {
                let message = format!("The code \"{code}\" is no UCUM unit: {}.", error.message);
                let advice = suggest_ucum(code).map(|right| format!("Did you mean \"{right}\"?"));
                add("NonUcumUnit", of_value.place, "code", message, advice);
            }
        }
    }
    findings
}

/// Templates that a pack earlier in name order always shadows: the same type from the same matches.
pub(crate) fn shadowed(
    document: &Document<'_>,
    templates: &[DeviceTemplate<'_, '_>],
    earlier_name: &str,
    earlier: &[DeviceTemplate<'_, '_>],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for template in templates {
        let Some(key) = template.match_key() else { continue };
        if earlier
            .iter()
            .any(|other| other.match_key().as_ref() == Some(&key))
        {
            let message = format!(
                "The pack '{earlier_name}' has a template for '{}' with the same match and comes first: this one never counts.",
                template.type_name
            );
            findings.push(
                Finding::warning("ShadowedTemplate", message)
                    .at(document.place(template.type_name_span))
                    .template(template.index)
                    .field("typeName")
                    .suggest("Remove one of the two, give the packs different sources, or make the match narrower."),
            );
        }
    }
    findings
}
