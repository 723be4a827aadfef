//! The pieces of an Observation as FHIR JSON; what would be empty is left out, because FHIR forbids it.

use serde_json::{Map, Value};

use super::identity::SERVICE_SYSTEM;
use super::template::{Coding, Concept, Unit};
use crate::pack_options::{Interpretation, ReferenceRange, ValueOptions};

const INTERPRETATION_SYSTEM: &str = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation";
const DATA_ABSENT_SYSTEM: &str = "http://terminology.hl7.org/CodeSystem/data-absent-reason";
const MDC_SYSTEM: &str = "urn:iso:std:iso:11073:10101";

pub(crate) type Object = Map<String, Value>;

/// Sets a text unless it is absent or blank.
pub(crate) fn set_text(object: &mut Object, name: &str, text: Option<&str>) {
    if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
        object.insert(name.to_owned(), Value::from(text));
    }
}

/// Sets an array unless it is empty.
pub(crate) fn set_list(object: &mut Object, name: &str, list: Vec<Value>) {
    if !list.is_empty() {
        object.insert(name.to_owned(), Value::Array(list));
    }
}

/// A JSON number that keeps the spelling of a decimal made by [`super::decimal`].
pub(crate) fn number(spelled: &str) -> Value {
    serde_json::from_str::<serde_json::Number>(spelled).map_or_else(|_| Value::from(spelled), Value::Number)
}

pub(crate) fn coding(system: Option<&str>, code: Option<&str>, display: Option<&str>) -> Option<Value> {
    let mut object = Object::new();
    set_text(&mut object, "system", system);
    set_text(&mut object, "code", code);
    set_text(&mut object, "display", display);
    (!object.is_empty()).then_some(Value::Object(object))
}

fn codings(codes: &[Coding]) -> Vec<Value> {
    codes
        .iter()
        .filter_map(|c| coding(c.system.as_deref(), c.code.as_deref(), c.display.as_deref()))
        .collect()
}

/// A CodeableConcept; `None` when it would be empty.
pub(crate) fn concept(concept: &Concept) -> Option<Value> {
    let mut object = Object::new();
    set_list(&mut object, "coding", codings(&concept.codes));
    set_text(&mut object, "text", concept.text.as_deref());
    (!object.is_empty()).then_some(Value::Object(object))
}

/// `code` of an Observation or component: the mapping's codes, the IEEE 11073 code, and the service's own coding by
/// which it is found again.
pub(crate) fn code(codes: &[Coding], mdc_code: Option<&str>, name: &str) -> Value {
    let mut list = codings(codes);
    if mdc_code.is_some() {
        list.extend(coding(Some(MDC_SYSTEM), mdc_code, None));
    }
    list.extend(coding(Some(SERVICE_SYSTEM), Some(name), Some(name)));
    let mut object = Object::new();
    set_list(&mut object, "coding", list);
    set_text(&mut object, "text", Some(name));
    Value::Object(object)
}

/// A Quantity of a decimal; a system and code of the pack's third file stand in where the mapping has none.
pub(crate) fn quantity(spelled: &str, unit: &Unit, options: Option<&ValueOptions>) -> Value {
    let of_options = |pick: fn(&ValueOptions) -> &Option<String>| options.and_then(|o| pick(o).as_deref());
    let mut object = Object::new();
    object.insert("value".to_owned(), number(spelled));
    set_text(&mut object, "unit", unit.unit.as_deref());
    set_text(
        &mut object,
        "system",
        unit.system.as_deref().or_else(|| of_options(|o| &o.system)),
    );
    set_text(
        &mut object,
        "code",
        unit.code.as_deref().or_else(|| of_options(|o| &o.code)),
    );
    Value::Object(object)
}

pub(crate) fn reference(target: &str) -> Value {
    let mut object = Object::new();
    object.insert("reference".to_owned(), Value::from(target));
    Value::Object(object)
}

fn coded(code: Option<Value>) -> Value {
    let mut object = Object::new();
    set_list(&mut object, "coding", code.into_iter().collect());
    Value::Object(object)
}

pub(crate) fn data_absent_reason(reason: &str) -> Value {
    coded(coding(Some(DATA_ABSENT_SYSTEM), Some(reason), None))
}

pub(crate) fn interpretation(rule: &Interpretation) -> Value {
    let system = rule.system.as_deref().unwrap_or(INTERPRETATION_SYSTEM);
    Value::Array(vec![coded(coding(
        Some(system),
        Some(&rule.code),
        rule.display.as_deref(),
    ))])
}

pub(crate) fn reference_ranges(ranges: &[ReferenceRange], unit: &Unit, options: &ValueOptions) -> Vec<Value> {
    let as_object = |range: &ReferenceRange| {
        let mut object = Object::new();
        for (name, limit) in [("low", &range.low), ("high", &range.high)] {
            if let Some(limit) = limit {
                object.insert(name.to_owned(), quantity(limit, unit, Some(options)));
            }
        }
        set_text(&mut object, "text", range.text.as_deref());
        (!object.is_empty()).then_some(Value::Object(object))
    };
    ranges.iter().filter_map(as_object).collect()
}
