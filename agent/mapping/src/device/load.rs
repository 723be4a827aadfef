//! Loading a device mapping: every error of every template, with its place, the reference's wording where it has one, and
//! advice.

mod members;

use crate::device::{DeviceTemplate, TemplateKind, ValueTemplate};
use crate::document::{Document, Node, Shape, Span};
use crate::expression::{Expression, Language};
use crate::finding::{Finding, nearest};

const ROOT_TYPE: &str = "CollectionContentTemplate";
const KINDS: [TemplateKind; 4] = [
    TemplateKind::Calculated,
    TemplateKind::JsonPath,
    TemplateKind::IotJsonPath,
    TemplateKind::IotCentralJsonPath,
];
const MEMBERS: [&str; 8] = [
    "typeName",
    "typeMatchExpression",
    "deviceIdExpression",
    "timestampExpression",
    "patientIdExpression",
    "encounterIdExpression",
    "correlationIdExpression",
    "values",
];
const DEFAULT_LANGUAGE: &str = "defaultExpressionLanguage";

/// Whether `written` names `name`, with or without the suffix, in any letter case (rule D8).
pub(crate) fn names_type(written: &str, name: &str) -> bool {
    const SUFFIX: &str = "Template";
    let without = |text: &str| {
        let length = text.len().saturating_sub(SUFFIX.len());
        match text.split_at_checked(length) {
            Some((start, end)) if end.eq_ignore_ascii_case(SUFFIX) => start.len(),
            _ => text.len(),
        }
    };
    let (written, name) = (written.get(..without(written)), name.get(..without(name)));
    written
        .zip(name)
        .is_some_and(|(written, name)| written.eq_ignore_ascii_case(name))
}

/// The templates without errors, `None` when the document itself is no mapping, and all findings.
pub(super) fn load(text: &str) -> (Option<Vec<DeviceTemplate>>, Vec<Finding>) {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(finding) => return (None, vec![finding]),
    };
    let elements = match root(&document) {
        Ok(elements) => elements,
        Err(finding) => return (None, vec![finding]),
    };
    let mut findings = Vec::new();
    let mut templates = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        let mut loader = Loader {
            document: &document,
            index,
            findings: Vec::new(),
        };
        let template = loader.element(element);
        if loader.findings.is_empty() {
            templates.extend(template);
        }
        findings.append(&mut loader.findings);
    }
    (Some(templates), findings)
}

fn root<'d, 't>(document: &'d Document<'t>) -> Result<&'d [Node<'t>], Finding> {
    let root = &document.root;
    let named = root.named_member("templateType");
    let written = named.map(|member| member.value.text().unwrap_or_default());
    if !written.is_some_and(|written| names_type(written, ROOT_TYPE)) {
        let span = named.map_or(first_byte(root), |member| member.value.span);
        let actual = written.unwrap_or("Not Found");
        let message = format!("Expected TemplateType value {ROOT_TYPE}, actual {actual}.");
        let finding = document
            .error("WrongRootType", span, message)
            .field("templateType");
        let advice = if written.is_some_and(|written| names_type(written, "CollectionFhir")) {
            "This is a FHIR mapping."
        } else {
            "Write \"templateType\": \"CollectionContent\"."
        };
        return Err(finding.suggest(advice));
    }
    let template = root.named_member("template");
    template
        .and_then(|member| member.value.elements())
        .ok_or_else(|| {
            let span = template.map_or(first_byte(root), |member| member.value.span);
            let message =
                format!("Expected an array for the template property value for template type {ROOT_TYPE}.");
            let finding = document
                .error("TemplateNotArray", span, message)
                .field("template");
            finding.suggest("Write \"template\": [ ... ] with one object for each type.")
        })
}

fn first_byte(node: &Node<'_>) -> Span {
    Span {
        start: node.span.start,
        end: node.span.start + 1,
    }
}

/// Loads one inner template.
struct Loader<'d, 't> {
    document: &'d Document<'t>,
    index: usize,
    findings: Vec<Finding>,
}

impl<'d, 't> Loader<'d, 't> {
    fn report(&mut self, finding: Finding) {
        self.findings.push(finding.template(self.index));
    }

    fn error(&mut self, kind: &'static str, span: Span, field: &str, message: String, advice: &str) {
        let finding = self.document.error(kind, span, message).field(field);
        self.report(if advice.is_empty() {
            finding
        } else {
            finding.suggest(advice)
        });
    }

    fn element(&mut self, element: &'d Node<'t>) -> Option<DeviceTemplate> {
        if !element.is_object() {
            let message = format!(
                "Expected an object for an inner template, found {}.",
                element.kind_name()
            );
            self.error(
                "TemplateNotObject",
                element.span,
                "template",
                message,
                "Write { \"templateType\": ..., \"template\": { ... } }.",
            );
            return None;
        }
        let kind = self.kind(element)?;
        let template = element.named_member("template");
        match template
            .map(|member| &member.value)
            .filter(|template| template.is_object())
        {
            Some(template) => self.template(kind, template),
            None => {
                let written = element
                    .member("templateType")
                    .and_then(Node::text)
                    .unwrap_or_default();
                let message = format!(
                    "Expected an object for the template property value for template type {written}."
                );
                let span = template.map_or(first_byte(element), |member| member.value.span);
                self.error(
                    "TemplateNotObject",
                    span,
                    "template",
                    message,
                    "Write \"template\": { \"typeName\": ..., ... }.",
                );
                None
            }
        }
    }

    fn kind(&mut self, element: &'d Node<'t>) -> Option<TemplateKind> {
        let member = element.member("templateType");
        let written = member.and_then(Node::text).unwrap_or_default();
        let kind = KINDS.into_iter().find(|kind| names_type(written, kind.name()));
        if kind.is_none() {
            let span = member.map_or(first_byte(element), |member| member.span);
            let message = format!("No match found for template type {written}.");
            let advice = match nearest(written, KINDS.map(TemplateKind::name)) {
                Some(near) => format!("Did you mean \"{near}\"?"),
                None if names_type(written, "CodeValueFhir") => {
                    "This template belongs into a FHIR mapping.".to_owned()
                }
                None => format!("Known types are {}.", KINDS.map(TemplateKind::name).join(", ")),
            };
            self.error("UnknownTemplateType", span, "templateType", message, &advice);
        }
        kind
    }

    fn template(&mut self, kind: TemplateKind, node: &'d Node<'t>) -> Option<DeviceTemplate> {
        let calculated = kind == TemplateKind::Calculated;
        let (type_name, own_language) = match kind {
            TemplateKind::Calculated => ("CalculatedFunctionContentTemplate", Some(DEFAULT_LANGUAGE)),
            TemplateKind::JsonPath => ("JsonPathContentTemplate", None),
            TemplateKind::IotJsonPath => ("IotJsonPathContentTemplate", None),
            TemplateKind::IotCentralJsonPath => ("IotCentralJsonPathContentTemplate", None),
        };
        let known: Vec<&str> = MEMBERS.into_iter().chain(own_language).collect();
        for finding in self.document.unknown_members(node, &known, type_name) {
            let wrong_kind = !calculated
                && finding
                    .field
                    .as_deref()
                    .is_some_and(|f| f.eq_ignore_ascii_case(DEFAULT_LANGUAGE));
            self.report(if wrong_kind {
                finding.suggest("Only CalculatedContent knows other languages than JSONPath.")
            } else {
                finding
            });
        }
        let language = if calculated {
            self.language(node, DEFAULT_LANGUAGE)
        } else {
            Some(Language::JsonPath)
        };
        let scope = Scope {
            node,
            calculated,
            language,
        };
        let type_name = self.text(node, "typeName");
        let type_match = self.required_expression(scope, "typeMatchExpression");
        let (device_id, timestamp, timestamp_fallback) = match kind {
            TemplateKind::Calculated | TemplateKind::JsonPath => {
                let device_id = self.required_expression(scope, "deviceIdExpression");
                (
                    device_id,
                    self.required_expression(scope, "timestampExpression"),
                    None,
                )
            }
            TemplateKind::IotJsonPath => (
                fixed("$.SystemProperties.iothub-connection-device-id"),
                fixed("$.Properties.iothub-creation-time-utc"),
                fixed("$.SystemProperties.iothub-enqueuedtime"),
            ),
            TemplateKind::IotCentralJsonPath => (fixed("$.deviceId"), fixed("$.enqueuedTime"), None),
        };
        let patient_id = self.optional_expression(scope, "patientIdExpression");
        let encounter_id = self.optional_expression(scope, "encounterIdExpression");
        let correlation_id = self.optional_expression(scope, "correlationIdExpression");
        let values = self.values(scope);
        Some(
            DeviceTemplate {
                index: self.index,
                kind,
                type_name: type_name?,
                place: self.document.place(node.span),
                type_match: type_match?,
                device_id: device_id?,
                timestamp: timestamp?,
                timestamp_fallback,
                patient_id,
                encounter_id,
                correlation_id,
                values,
                one_key: false,
            }
            .with_one_key(),
        )
    }

    /// The value of a required member; reports when it is missing or null.
    fn required(&mut self, node: &'d Node<'t>, name: &str) -> Option<&'d Node<'t>> {
        let pascal = pascal_case(name);
        match node.named_member(name) {
            Some(member) if member.value.is_null() => {
                let message = format!("Required property '{pascal}' expects a value but got null.");
                self.error(
                    "NullMember",
                    member.value.span,
                    name,
                    message,
                    &format!("Give \"{name}\" a value."),
                );
                None
            }
            Some(member) => Some(&member.value),
            None => {
                let message = format!("Required property '{pascal}' not found in JSON.");
                let near = nearest(name, node.members().iter().map(|member| &*member.name));
                let advice = match near {
                    Some(near) => format!("Is \"{near}\" meant to be \"{name}\"?"),
                    None => format!("Add \"{name}\"."),
                };
                self.error("MissingMember", first_byte(node), name, message, &advice);
                None
            }
        }
    }

    /// A required text; numbers and booleans are taken as text, as the reference does.
    fn text(&mut self, node: &'d Node<'t>, name: &str) -> Option<String> {
        let value = self.required(node, name)?;
        let text = scalar_text(value);
        if text.is_none() {
            self.wrong_type(value, name, "a text");
        }
        text
    }

    fn wrong_type(&mut self, value: &Node<'_>, field: &str, wanted: &str) {
        let message = format!(
            "Error reading {field}: expected {wanted}, found {}.",
            value.kind_name()
        );
        self.error("WrongType", value.span, field, message, "");
    }

    fn values(&mut self, scope: Scope<'d, 't>) -> Vec<ValueTemplate> {
        let list = if scope.calculated {
            self.required(scope.node, "values")
        } else {
            scope.node.member("values").filter(|list| !list.is_null())
        };
        let Some(list) = list else { return Vec::new() };
        let Some(elements) = list.elements() else {
            self.wrong_type(list, "values", "an array");
            return Vec::new();
        };
        elements
            .iter()
            .filter_map(|element| self.value(scope, element))
            .collect()
    }

    fn value(&mut self, scope: Scope<'d, 't>, node: &'d Node<'t>) -> Option<ValueTemplate> {
        if !node.is_object() {
            self.wrong_type(node, "values", "an object with valueName and valueExpression");
            return None;
        }
        const KNOWN: [&str; 3] = ["valueName", "valueExpression", "required"];
        let type_name = if scope.calculated {
            "CalculatedFunctionValueExpression"
        } else {
            "JsonPathValueExpression"
        };
        for finding in self.document.unknown_members(node, &KNOWN, type_name) {
            self.report(finding);
        }
        let name = self.text(node, "valueName");
        let required = self.flag(node);
        let written = self.required(node, "valueExpression");
        let scope = Scope { node, ..scope };
        let blank = written.and_then(Node::text).is_some_and(is_blank);
        let expression = match written {
            // A legacy value that is optional and blank is no value.
            Some(_) if blank && !scope.calculated && required == Some(false) => Some(None),
            Some(written) => {
                let field = name.clone().unwrap_or_else(|| "valueExpression".to_owned());
                self.expression(scope, written, "valueExpression", &field)
            }
            None => None,
        };
        Some(ValueTemplate {
            name: name?.into(),
            expression: expression?,
            required: required?,
            place: self.document.place(node.span),
        })
    }
}

#[derive(Clone, Copy)]
struct Scope<'d, 't> {
    node: &'d Node<'t>,
    /// CalculatedContent, with languages and expression objects.
    calculated: bool,
    /// Of expressions that name none; `None` when the default is an error.
    language: Option<Language>,
}

fn fixed(path: &str) -> Option<Expression> {
    Expression::parse(path, Language::JsonPath).ok()
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

fn scalar_text(node: &Node<'_>) -> Option<String> {
    match &node.shape {
        Shape::Text(text) => Some(text.to_string()),
        Shape::Number(spelling) => Some((*spelling).to_owned()),
        Shape::Bool(flag) => Some(if *flag { "True" } else { "False" }.to_owned()),
        Shape::Null | Shape::Array(_) | Shape::Object(_) => None,
    }
}

/// `deviceIdExpression` as the reference's messages name it.
pub(super) fn pascal_case(name: &str) -> String {
    let is_member =
        MEMBERS.contains(&name) || matches!(name, "valueName" | "valueExpression" | "value" | "language");
    let mut characters = name.chars();
    match characters.next() {
        Some(first) if is_member => first.to_uppercase().chain(characters).collect(),
        _ => name.to_owned(),
    }
}
