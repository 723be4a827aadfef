//! What the server checks before it keeps a resource: the rules of FHIR R4 whose breach a sender should hear of, not all
//! of them. Profiles, terminology and most data types are not checked.

use super::outcome::Refusal;
use super::store::{Kind, Store};
use serde_json::Value;

/// Elements of Observation in FHIR R4 (choices written out below).
const OBSERVATION_MEMBERS: &[&str] = &[
    "resourceType",
    "id",
    "meta",
    "implicitRules",
    "language",
    "text",
    "contained",
    "extension",
    "modifierExtension",
    "identifier",
    "basedOn",
    "partOf",
    "status",
    "category",
    "code",
    "subject",
    "focus",
    "encounter",
    "issued",
    "performer",
    "dataAbsentReason",
    "interpretation",
    "note",
    "bodySite",
    "method",
    "specimen",
    "device",
    "referenceRange",
    "hasMember",
    "derivedFrom",
    "component",
];

const VALUES: &[&str] = &[
    "valueQuantity",
    "valueCodeableConcept",
    "valueString",
    "valueBoolean",
    "valueInteger",
    "valueRange",
    "valueRatio",
    "valueSampledData",
    "valueTime",
    "valueDateTime",
    "valuePeriod",
];

const EFFECTIVES: &[&str] = &[
    "effectiveDateTime",
    "effectivePeriod",
    "effectiveTiming",
    "effectiveInstant",
];

/// <http://hl7.org/fhir/R4/valueset-observation-status.html>
const OBSERVATION_STATUS: &[&str] = &[
    "registered",
    "preliminary",
    "final",
    "amended",
    "corrected",
    "cancelled",
    "entered-in-error",
    "unknown",
];

const ENCOUNTER_STATUS: &[&str] = &[
    "planned",
    "arrived",
    "triaged",
    "in-progress",
    "onleave",
    "finished",
    "cancelled",
    "entered-in-error",
    "unknown",
];

/// <http://hl7.org/fhir/R4/valueset-device-statement-status.html>
const STATEMENT_STATUS: &[&str] = &[
    "active",
    "completed",
    "entered-in-error",
    "intended",
    "stopped",
    "on-hold",
];

/// Whether `id` is a FHIR id.
pub(super) fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

/// Checks a resource on its own.
pub(super) fn shape(kind: Kind, resource: &Value) -> Result<(), Refusal> {
    if resource.get("resourceType").and_then(Value::as_str) != Some(kind.name()) {
        return Err(Refusal::invalid(format!("resourceType is not {}", kind.name())));
    }
    match resource.get("id").map(Value::as_str) {
        Some(Some(id)) if is_id(id) => {}
        None => {}
        Some(_) => return Err(Refusal::invalid("id is not a FHIR id")),
    }
    if let Some(identifier) = resource.get("identifier") {
        let list = identifier
            .as_array()
            .ok_or_else(|| Refusal::invalid("identifier is not a list"))?;
        if list.is_empty() || !list.iter().all(|entry| text(entry, "value").is_some()) {
            return Err(Refusal::invalid("an identifier has no value"));
        }
    }
    match kind {
        Kind::Observation => observation(resource),
        Kind::Encounter => {
            one_of(resource, "status", ENCOUNTER_STATUS)?;
            match resource.get("class").is_some_and(Value::is_object) {
                true => Ok(()),
                false => Err(Refusal::required("Encounter.class is missing")),
            }
        }
        Kind::DeviceUseStatement => one_of(resource, "status", STATEMENT_STATUS),
        Kind::Device | Kind::Patient => Ok(()),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

fn one_of(resource: &Value, name: &str, codes: &[&str]) -> Result<(), Refusal> {
    match text(resource, name) {
        None => Err(Refusal::required(format!("{name} is missing"))),
        Some(code) if codes.contains(&code) => Ok(()),
        Some(_) => Err(Refusal::new(
            400,
            "code-invalid",
            format!("{name} is not one of {}", codes.join(", ")),
        )),
    }
}

fn observation(resource: &Value) -> Result<(), Refusal> {
    let members = resource
        .as_object()
        .ok_or_else(|| Refusal::invalid("not an object"))?;
    for name in members.keys() {
        let plain = name.strip_prefix('_').unwrap_or(name);
        if ![OBSERVATION_MEMBERS, VALUES, EFFECTIVES]
            .iter()
            .any(|known| known.contains(&plain))
        {
            return Err(Refusal::new(
                400,
                "structure",
                format!("Observation has no element {name}"),
            ));
        }
    }
    one_of(resource, "status", OBSERVATION_STATUS)?;
    concept(resource, "Observation.code")?;
    at_most_one(resource, EFFECTIVES)?;
    let has_value = value(resource)?;
    if has_value && resource.get("dataAbsentReason").is_some() {
        return Err(Refusal::invariant("obs-6: dataAbsentReason beside a value"));
    }
    if let Some(start) = resource.pointer("/effectivePeriod/start").and_then(Value::as_str) {
        let begin = super::search::bounds(start).ok_or_else(|| Refusal::invalid("effectivePeriod.start"))?;
        let end = resource.pointer("/effectivePeriod/end").and_then(Value::as_str);
        let end =
            end.map(|end| super::search::bounds(end).ok_or_else(|| Refusal::invalid("effectivePeriod.end")));
        if end.transpose()?.is_some_and(|end| end.1 < begin.0) {
            return Err(Refusal::invariant("per-1: effectivePeriod ends before it starts"));
        }
    }
    let components = resource.get("component").map(|list| list.as_array().ok_or(()));
    let components = match components {
        Some(Err(())) => return Err(Refusal::invalid("component is not a list")),
        Some(Ok(list)) => list.as_slice(),
        None => &[],
    };
    for component in components {
        concept(component, "Observation.component.code")?;
        value(component)?;
    }
    Ok(())
}

/// Whether there is a value; at most one, and a quantity with a number.
fn value(of: &Value) -> Result<bool, Refusal> {
    let found = at_most_one(of, VALUES)?;
    if let Some(quantity) = of.get("valueQuantity")
        && quantity.get("value").is_some_and(|number| !number.is_number())
    {
        return Err(Refusal::invalid("valueQuantity.value is not a number"));
    }
    Ok(found)
}

fn at_most_one(of: &Value, names: &[&str]) -> Result<bool, Refusal> {
    match names.iter().filter(|name| of.get(**name).is_some()).count() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Refusal::new(
            400,
            "structure",
            format!("more than one of {}", names.join(", ")),
        )),
    }
}

fn concept(of: &Value, name: &str) -> Result<(), Refusal> {
    let code = of
        .get("code")
        .ok_or_else(|| Refusal::required(format!("{name} is missing")))?;
    let codings = code.get("coding").and_then(Value::as_array);
    let coded = codings.is_some_and(|list| {
        !list.is_empty()
            && list
                .iter()
                .all(|coding| text(coding, "code").or(text(coding, "display")).is_some())
    });
    match coded || text(code, "text").is_some() {
        true => Ok(()),
        false => Err(Refusal::required(format!(
            "{name} has neither a coding nor a text"
        ))),
    }
}

/// Checks that what a resource refers to is on this server.
pub(super) fn references(store: &Store, kind: Kind, resource: &Value) -> Result<(), Refusal> {
    let fields: &[(&str, &[Kind])] = match kind {
        Kind::Observation => &[
            ("subject", &[Kind::Patient, Kind::Device]),
            ("device", &[Kind::Device]),
            ("encounter", &[Kind::Encounter]),
        ],
        Kind::DeviceUseStatement => &[("subject", &[Kind::Patient]), ("device", &[Kind::Device])],
        Kind::Device => &[("patient", &[Kind::Patient])],
        Kind::Encounter => &[("subject", &[Kind::Patient])],
        Kind::Patient => &[],
    };
    for (field, kinds) in fields {
        let Some(reference) = resource.get(*field).and_then(|value| value.get("reference")) else {
            continue;
        };
        let target = reference.as_str().and_then(|text| text.split_once('/'));
        let exists = target.is_some_and(|(name, id)| {
            Kind::from_name(name).is_some_and(|of| kinds.contains(&of) && store.get(of, id).is_some())
        });
        if !exists {
            let text = format!("{}.{field} refers to nothing on this server", kind.name());
            return Err(Refusal::new(400, "not-found", text));
        }
    }
    Ok(())
}
