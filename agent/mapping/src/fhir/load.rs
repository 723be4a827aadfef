//! Loads a FHIR destination mapping: every error at once, with its place and the reference's wording (`mapping.md` 4.1
//! and 7.1, rules D8 and D13).

use std::collections::HashSet;

use super::decimal;
use super::period::Period;
use super::sampled_data::SamplePeriod;
use super::template::{
    Coding, Component, Concept, FhirMapping, FhirTemplate, Unit, ValueKind, ValueTemplate,
};
use crate::document::{Document, Node, Shape, Span};
use crate::finding::{Finding, Place, has_errors, nearest};

const ROOT_TYPE: &str = "CollectionFhir";
const TEMPLATE_TYPE: &str = "CodeValueFhir";
const TEMPLATE_MEMBERS: [&str; 6] = [
    "typeName",
    "periodInterval",
    "category",
    "codes",
    "value",
    "components",
];
const VALUE_TYPES: [&str; 4] = ["SampledData", "Quantity", "String", "CodeableConcept"];

impl FhirMapping {
    /// Loads a mapping text. All errors are found at once; any of them refuses the whole mapping.
    pub fn load(text: &str) -> (Option<FhirMapping>, Vec<Finding>) {
        let (mapping, findings) = Self::load_partial(text);
        (mapping.filter(|_| !has_errors(&findings)), findings)
    }

    /// As [`FhirMapping::load`], but gives the templates that have no error, for tools that show partial results;
    /// `None` when the document itself is no mapping.
    pub fn load_partial(text: &str) -> (Option<FhirMapping>, Vec<Finding>) {
        let document = match Document::parse(text) {
            Ok(document) => document,
            Err(finding) => return (None, vec![finding]),
        };
        let mut loader = Loader {
            document: &document,
            template: None,
            findings: Vec::new(),
        };
        let mapping = loader.root();
        (mapping, loader.findings)
    }
}

/// Whether a `templateType` is `expected`, with or without the suffix `Template`, in any letter case (rule D8).
fn is_type(actual: &str, expected: &str) -> bool {
    let suffix_at = actual.len().saturating_sub("Template".len());
    let bare = match actual.get(suffix_at..) {
        Some(suffix) if suffix.eq_ignore_ascii_case("Template") => actual.get(..suffix_at).unwrap_or(actual),
        _ => actual,
    };
    bare.eq_ignore_ascii_case(expected)
}

struct Loader<'d, 't> {
    document: &'d Document<'t>,
    template: Option<usize>,
    findings: Vec<Finding>,
}

/// The first byte of an object or array, to point at what lacks a member without marking all of it.
fn opening(node: &Node<'_>) -> Span {
    Span {
        start: node.span.start,
        end: node.span.start + 1,
    }
}

/// A member name as the reference writes it in its messages.
fn pascal(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

impl Loader<'_, '_> {
    fn root(&mut self) -> Option<FhirMapping> {
        let root = &self.document.root;
        let type_member = root.member("templateType");
        let actual = type_member.and_then(Node::text).unwrap_or("Not Found");
        if !type_member.is_some_and(|t| t.text().is_some_and(|t| is_type(t, ROOT_TYPE))) {
            let span = type_member.map_or_else(|| opening(root), |node| node.span);
            let message = format!("Expected TemplateType value {ROOT_TYPE}Template, actual {actual}.");
            let advice = if is_type(actual, "CollectionContent") {
                "This is a device mapping; is it in the wrong file?".to_owned()
            } else {
                format!("Write \"templateType\": \"{ROOT_TYPE}\".")
            };
            self.error("WrongRootType", span, "templateType", message, Some(advice));
            return None;
        }
        let list = root.member("template");
        let Some(elements) = list.and_then(Node::elements) else {
            let span = list.map_or_else(|| opening(root), |node| node.span);
            let message =
                format!("Expected an array for the template property value for template type {actual}.");
            let advice = "Write \"template\": [ ... ] with one object per measurement type.".to_owned();
            self.error("TemplateNotArray", span, "template", message, Some(advice));
            return None;
        };
        let mut templates: Vec<FhirTemplate> = Vec::new();
        let mut names = HashSet::new();
        for (index, element) in elements.iter().enumerate() {
            self.template = Some(index);
            let Some(template) = self.element(element, index) else {
                continue;
            };
            if !names.insert(template.type_name.to_lowercase()) {
                let message = format!(
                    "Duplicate template defined for type name: '{}'",
                    template.type_name
                );
                let mut finding = Finding::error("DuplicateTypeName", message)
                    .field("typeName")
                    .template(index)
                    .suggest(
                        "Each type has one FHIR template; letter case does not count. Join the two or rename one.",
                    );
                finding.place = template.type_name_place;
                self.findings.push(finding);
                continue;
            }
            templates.push(template);
        }
        self.template = None;
        Some(FhirMapping::new(templates))
    }

    fn element(&mut self, element: &Node<'_>, index: usize) -> Option<FhirTemplate> {
        if !element.is_object() {
            let message = format!(
                "Expected an object with templateType and template, found {}.",
                element.kind_name()
            );
            self.error("TemplateNotObject", element.span, "template", message, None);
            return None;
        }
        let type_member = element.member("templateType");
        if !type_member.is_some_and(|t| t.text().is_some_and(|t| is_type(t, TEMPLATE_TYPE))) {
            let actual = type_member.and_then(Node::text).unwrap_or("Not Found");
            let span = type_member.map_or_else(|| opening(element), |node| node.span);
            let message = format!("Expected TemplateType value {TEMPLATE_TYPE}Template, actual {actual}.");
            let advice = format!("Write \"templateType\": \"{TEMPLATE_TYPE}\".");
            self.error("UnknownTemplateType", span, "templateType", message, Some(advice));
            return None;
        }
        match element.member("template") {
            Some(body) if body.is_object() => self.body(body, index),
            other => {
                let span = other.map_or_else(|| opening(element), |node| node.span);
                let message = format!(
                    "Expected an object for the template property value for template type {TEMPLATE_TYPE}."
                );
                self.error("TemplateNotObject", span, "template", message, None);
                None
            }
        }
    }

    /// The template, unless it has errors.
    fn body(&mut self, body: &Node<'_>, index: usize) -> Option<FhirTemplate> {
        let errors_before = self.findings.len();
        self.unknown_members(body, &TEMPLATE_MEMBERS, "CodeValueFhirTemplate");
        let type_name = self
            .required(body, "typeName")
            .and_then(|node| self.text(node, "typeName"));
        if let Some((name, place)) = &type_name
            && name.trim().is_empty()
        {
            let message = format!("Empty type name is not allowed: '{name}'");
            self.findings.push(
                Finding::error("BlankTypeName", message)
                    .at(*place)
                    .field("typeName")
                    .template(index),
            );
        }
        let (period, period_place) = self.period(body);
        let codes = self.required(body, "codes").map(|node| self.codes(node, "codes"));
        let category = self.list(body, "category", |loader, node| loader.category(node));
        let value = match body.member("value") {
            Some(node) if !node.is_null() => self.value(node),
            _ => None,
        };
        let components = self.list(body, "components", |loader, node| loader.component(node));
        if self.findings.len() > errors_before {
            return None;
        }
        let (type_name, type_name_place) = type_name?;
        Some(FhirTemplate {
            type_name,
            type_name_place: Some(type_name_place),
            index,
            period,
            period_place: Some(period_place),
            codes: codes.unwrap_or_default(),
            category,
            value,
            components,
            options: Default::default(),
        })
    }

    fn period(&mut self, body: &Node<'_>) -> (Period, Place) {
        let Some(node) = body.member("periodInterval") else {
            return (Period::Single, self.document.place(opening(body)));
        };
        let spelled = match &node.shape {
            Shape::Number(number) => *number,
            Shape::Text(text) => text,
            _ => {
                let message = format!(
                    "Error converting value to type 'ObservationPeriodInterval': found {}.",
                    node.kind_name()
                );
                self.error("WrongType", node.span, "periodInterval", message, None);
                return (Period::Single, self.document.place(node.span));
            }
        };
        let period = Period::from_text(spelled).unwrap_or_else(|| {
            let message = format!("ObservationPeriodInterval {spelled} is not supported.");
            let advice = "Use 0 (each instant), 60 (hour), 1440 (day) or -1 (correlation id).".to_owned();
            self.error(
                "UnknownPeriodInterval",
                node.span,
                "periodInterval",
                message,
                Some(advice),
            );
            Period::Single
        });
        (period, self.document.place(node.span))
    }

    fn category(&mut self, node: &Node<'_>) -> Option<Concept> {
        if !self.is_object(node, "category") {
            return None;
        }
        self.unknown_members(node, &["text", "codes"], "FhirCodeableConcept");
        Some(self.concept(node))
    }

    fn concept(&mut self, node: &Node<'_>) -> Concept {
        let codes = match node.member("codes") {
            Some(codes) if !codes.is_null() => self.codes(codes, "codes"),
            _ => Vec::new(),
        };
        Concept {
            text: self.optional_text(node, "text"),
            codes,
        }
    }

    fn component(&mut self, node: &Node<'_>) -> Option<Component> {
        if !self.is_object(node, "components") {
            return None;
        }
        self.unknown_members(node, &["codes", "value"], "CodeValueMapping");
        let codes = self
            .required(node, "codes")
            .map(|codes| self.codes(codes, "codes"));
        let value = self.required(node, "value").and_then(|value| self.value(value));
        Some(Component {
            codes: codes?,
            value: value?,
        })
    }

    fn codes(&mut self, node: &Node<'_>, field: &'static str) -> Vec<Coding> {
        let Some(elements) = node.elements() else {
            let message = format!("Expected an array for {field}, found {}.", node.kind_name());
            let advice = "Write [ { \"code\": ..., \"system\": ..., \"display\": ... } ].".to_owned();
            self.error("WrongType", node.span, field, message, Some(advice));
            return Vec::new();
        };
        let mut codes = Vec::new();
        for element in elements {
            if !self.is_object(element, field) {
                continue;
            }
            self.unknown_members(element, &["code", "system", "display"], "FhirCode");
            codes.push(Coding {
                code: self.optional_text(element, "code"),
                system: self.optional_text(element, "system"),
                display: self.optional_text(element, "display"),
                place: Some(self.document.place(element.span)),
            });
        }
        codes
    }

    fn value(&mut self, node: &Node<'_>) -> Option<ValueTemplate> {
        if !self.is_object(node, "value") {
            return None;
        }
        let type_node = match node.member("valueType") {
            Some(type_node) if !type_node.is_null() => type_node,
            _ => {
                let advice = format!("Known value types are {}.", VALUE_TYPES.join(", "));
                let message = "Property ValueType is missing.".to_owned();
                self.error("MissingMember", opening(node), "valueType", message, Some(advice));
                return None;
            }
        };
        let (type_name, _) = self.text(type_node, "valueType")?;
        let name_node = node.member("valueName").filter(|name| !name.is_null());
        let place = self
            .document
            .place(name_node.map_or_else(|| opening(node), |name| name.span));
        let name = self.optional_text(node, "valueName");
        let kind = match type_name.to_ascii_lowercase().as_str() {
            "quantity" => ValueKind::Quantity(self.unit(node, true)),
            "string" => ValueKind::String,
            "codeableconcept" => {
                self.required(node, "codes")?;
                ValueKind::CodeableConcept(self.concept(node))
            }
            "sampleddata" => self.sampled_data(node)?,
            _ => {
                let advice = match nearest(&type_name, VALUE_TYPES) {
                    Some(known) => format!("Did you mean \"{known}\"?"),
                    None => format!("Known value types are {}.", VALUE_TYPES.join(", ")),
                };
                self.error(
                    "UnknownValueType",
                    type_node.span,
                    "valueType",
                    type_name,
                    Some(advice),
                );
                return None;
            }
        };
        Some(ValueTemplate {
            name,
            place: Some(place),
            kind,
        })
    }

    fn sampled_data(&mut self, node: &Node<'_>) -> Option<ValueKind> {
        let unit = self.unit(node, false);
        let period_node = self.required(node, "defaultPeriod")?;
        let spelled = match &period_node.shape {
            Shape::Number(number) => Some(*number),
            Shape::Text(text) => Some(&**text),
            _ => None,
        };
        let Some(number) = spelled.and_then(decimal) else {
            let shown = spelled.unwrap_or(period_node.kind_name());
            let message = format!("Could not convert string to decimal: {shown}.");
            self.error("WrongType", period_node.span, "defaultPeriod", message, None);
            return None;
        };
        let Some(period) = SamplePeriod::from_milliseconds(&number) else {
            let message =
                format!("The defaultPeriod {number} is not the length of a slot in milliseconds above zero.");
            let advice = "Write the milliseconds between two samples, for example 5000.".to_owned();
            self.error(
                "InvalidDefaultPeriod",
                period_node.span,
                "defaultPeriod",
                message,
                Some(advice),
            );
            return None;
        };
        Some(ValueKind::SampledData {
            spelled_period: number,
            period,
            period_place: Some(self.document.place(period_node.span)),
            unit,
        })
    }

    fn unit(&mut self, node: &Node<'_>, with_system: bool) -> Unit {
        let at = |name| node.member(name).map(|n| n.span);
        let coded = with_system.then(|| at("code")).flatten();
        let span = coded.or_else(|| at("unit")).unwrap_or_else(|| opening(node));
        let mut text = |name| {
            self.optional_text(node, name)
                .filter(|text| !text.trim().is_empty())
        };
        Unit {
            unit: text("unit"),
            system: if with_system { text("system") } else { None },
            code: if with_system { text("code") } else { None },
            place: Some(self.document.place(span)),
        }
    }

    // The parts that every object shares.

    fn list<T>(
        &mut self,
        node: &Node<'_>,
        name: &'static str,
        mut read: impl FnMut(&mut Self, &Node<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(member) = node.member(name).filter(|member| !member.is_null()) else {
            return Vec::new();
        };
        let Some(elements) = member.elements() else {
            let message = format!("Expected an array for {name}, found {}.", member.kind_name());
            self.error("WrongType", member.span, name, message, None);
            return Vec::new();
        };
        elements
            .iter()
            .filter_map(|element| read(self, element))
            .collect()
    }

    fn required<'n, 'x>(&mut self, node: &'n Node<'x>, name: &'static str) -> Option<&'n Node<'x>> {
        match node.named_member(name) {
            None => {
                let message = format!("Required property '{}' not found in JSON.", pascal(name));
                let advice = format!("Add \"{name}\".");
                self.error("MissingMember", opening(node), name, message, Some(advice));
                None
            }
            Some(member) if member.value.is_null() => {
                let message = format!(
                    "Required property '{}' expects a value but got null.",
                    pascal(name)
                );
                self.error("NullMember", member.value.span, name, message, None);
                None
            }
            Some(member) => Some(&member.value),
        }
    }

    /// A text; numbers and booleans become text, as the reference's reader lets them.
    fn text(&mut self, node: &Node<'_>, field: &'static str) -> Option<(String, Place)> {
        let text = match &node.shape {
            Shape::Text(text) => text.to_string(),
            Shape::Number(number) => (*number).to_owned(),
            Shape::Bool(true) => "True".to_owned(),
            Shape::Bool(false) => "False".to_owned(),
            Shape::Null => return None,
            Shape::Array(_) | Shape::Object(_) => {
                let token = if node.is_object() {
                    "StartObject"
                } else {
                    "StartArray"
                };
                let message = format!("Error reading string. Unexpected token: {token}.");
                let advice = "Write a text in quotes.".to_owned();
                self.error("WrongType", node.span, field, message, Some(advice));
                return None;
            }
        };
        Some((text, self.document.place(node.span)))
    }

    fn optional_text(&mut self, node: &Node<'_>, name: &'static str) -> Option<String> {
        self.text(node.member(name)?, name).map(|(text, _)| text)
    }

    fn is_object(&mut self, node: &Node<'_>, field: &'static str) -> bool {
        if !node.is_object() {
            let message = format!("Expected an object in {field}, found {}.", node.kind_name());
            self.error("WrongType", node.span, field, message, None);
        }
        node.is_object()
    }

    fn unknown_members(&mut self, node: &Node<'_>, known: &[&str], type_name: &str) {
        let template = self.template;
        let unknown = self.document.unknown_members(node, known, type_name);
        self.findings
            .extend(unknown.into_iter().map(|finding| Finding { template, ..finding }));
    }

    fn error(
        &mut self,
        kind: &'static str,
        span: Span,
        field: &str,
        message: String,
        suggestion: Option<String>,
    ) {
        let mut finding = self.document.error(kind, span, message).field(field);
        finding.template = self.template;
        finding.suggestion = suggestion;
        self.findings.push(finding);
    }
}
