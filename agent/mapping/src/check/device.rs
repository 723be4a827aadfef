//! Lints of a device mapping: what loads and runs, but probably not as meant.

use std::collections::HashSet;

use crate::document::{Document, Node, Shape, Span};
use crate::finding::{Finding, Severity};

/// Names that expressions of CalculatedContent can start at.
const ENVELOPE: [&str; 3] = ["Body", "Properties", "SystemProperties"];
const MATCHED_TOKEN: &str = "matchedToken";

/// What the checks need of a device template, also when the template has errors elsewhere.
pub(crate) struct DeviceTemplate<'d, 't> {
    pub index: usize,
    /// `CalculatedContent` and the like, without the suffix, in lower case.
    pub kind: String,
    pub type_name: String,
    pub type_name_span: Span,
    /// `valueName` with its place.
    pub values: Vec<(String, Span)>,
    /// Member or value name, the text, whether it is JMESPath, and where it stands.
    pub expressions: Vec<Expression<'d, 't>>,
}

pub(crate) struct Expression<'d, 't> {
    pub field: String,
    pub node: &'d Node<'t>,
    pub text: &'d str,
    pub is_jmespath: bool,
}

impl DeviceTemplate<'_, '_> {
    fn is_calculated(&self) -> bool {
        self.kind == "calculatedcontent"
    }

    /// What decides which messages the template takes: kind, language and text of the type match.
    pub(crate) fn match_key(&self) -> Option<(String, bool, String, String)> {
        let expression = self
            .expressions
            .iter()
            .find(|e| e.field == "typeMatchExpression")?;
        Some((
            self.kind.clone(),
            expression.is_jmespath,
            expression.text.split_whitespace().collect(),
            self.type_name.to_lowercase(),
        ))
    }
}

/// The templates of a device mapping that have a name.
pub(crate) fn device_templates<'d, 't>(document: &'d Document<'t>) -> Vec<DeviceTemplate<'d, 't>> {
    let list = document.root.member("template").and_then(Node::elements);
    let mut templates = Vec::new();
    for (index, element) in list.into_iter().flatten().enumerate() {
        let kind = element
            .member("templateType")
            .and_then(Node::text)
            .unwrap_or_default();
        let kind = kind.to_ascii_lowercase();
        let kind = kind.strip_suffix("template").unwrap_or(&kind).to_owned();
        let Some(body) = element.member("template") else {
            continue;
        };
        let Some(name) = body.member("typeName") else {
            continue;
        };
        let Some(type_name) = name.text() else { continue };
        let by_default = body
            .member("defaultExpressionLanguage")
            .is_some_and(is_jmespath_name);
        let mut template = DeviceTemplate {
            index,
            kind,
            type_name: type_name.to_owned(),
            type_name_span: name.span,
            values: Vec::new(),
            expressions: Vec::new(),
        };
        for member in body.members() {
            let is_expression = member.name.to_ascii_lowercase().ends_with("expression");
            if is_expression
                && let Some(expression) = expression(field_name(&member.name), &member.value, by_default)
            {
                template.expressions.push(expression);
            }
        }
        for value in body
            .member("values")
            .and_then(Node::elements)
            .into_iter()
            .flatten()
        {
            let Some(name) = value.member("valueName") else {
                continue;
            };
            let Some(text) = name.text() else { continue };
            template.values.push((text.to_owned(), name.span));
            if let Some(node) = value.member("valueExpression")
                && let Some(expression) = expression(text.to_owned(), node, by_default)
            {
                template.expressions.push(expression);
            }
        }
        templates.push(template);
    }
    templates
}

/// The member's name as the documentation spells it.
fn field_name(name: &str) -> String {
    let known = [
        "typeMatchExpression",
        "deviceIdExpression",
        "timestampExpression",
        "patientIdExpression",
        "encounterIdExpression",
        "correlationIdExpression",
    ];
    let found = known.iter().find(|k| k.eq_ignore_ascii_case(name));
    (*found.unwrap_or(&name)).to_owned()
}

fn is_jmespath_name(node: &Node<'_>) -> bool {
    match &node.shape {
        Shape::Text(text) => text.eq_ignore_ascii_case("JmesPath") || *text == "1",
        Shape::Number(number) => *number == "1",
        _ => false,
    }
}

fn expression<'d, 't>(field: String, node: &'d Node<'t>, by_default: bool) -> Option<Expression<'d, 't>> {
    let (node, is_jmespath) = if node.is_object() {
        let language = node.member("language");
        (
            node.member("value")?,
            language.map_or(by_default, is_jmespath_name),
        )
    } else {
        (node, by_default)
    };
    Some(Expression {
        field,
        text: node.text()?,
        node,
        is_jmespath,
    })
}

/// Lints of one device mapping.
pub(crate) fn lint_device(document: &Document<'_>, templates: &[DeviceTemplate<'_, '_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for template in templates {
        let mut seen = HashSet::new();
        for (name, span) in &template.values {
            if !seen.insert(name.as_str()) {
                findings.push(
                    Finding::warning(
                        "DuplicateValueName",
                        format!("The value '{name}' stands twice in this template; the first one that is found counts."),
                    )
                    .at(document.place(*span))
                    .template(template.index)
                    .field(name.as_str()),
                );
            }
        }
        for expression in &template.expressions {
            let found = unreachable(template, expression)
                .into_iter()
                .chain(precedence(expression));
            findings.extend(found.map(|finding| {
                finding
                    .at(document.place(expression.node.span))
                    .template(template.index)
                    .field(expression.field.as_str())
            }));
        }
    }
    findings.extend(letter_case(document, templates));
    findings
}

/// The same type name in different letter case makes separate groups and Observations.
fn letter_case(document: &Document<'_>, templates: &[DeviceTemplate<'_, '_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, template) in templates.iter().enumerate() {
        let other = templates.iter().take(at).find(|earlier| {
            earlier.type_name != template.type_name
                && earlier.type_name.to_lowercase() == template.type_name.to_lowercase()
        });
        if let Some(other) = other {
            let message = format!(
                "'{}' and '{}' differ in letter case only: their readings go into separate Observations.",
                template.type_name, other.type_name
            );
            findings.push(
                Finding::warning("DivergingCase", message)
                    .at(document.place(template.type_name_span))
                    .template(template.index)
                    .field("typeName")
                    .suggest(format!("Write \"{}\" in both.", other.type_name)),
            );
        }
    }
    findings
}

/// An expression that starts at a name which the scope never has.
fn unreachable(template: &DeviceTemplate<'_, '_>, expression: &Expression<'_, '_>) -> Option<Finding> {
    let name = if expression.is_jmespath {
        first_jmespath_name(expression.text)
    } else {
        first_jsonpath_name(expression.text)
    }?;
    let is_match = expression.field == "typeMatchExpression";
    if !template.is_calculated() {
        // The legacy types see the matched token as `$`; there is no member of this name unless the device sends one.
        return (name == MATCHED_TOKEN).then(|| {
            Finding::warning(
                "UnreachableExpression",
                format!(
                    "'{MATCHED_TOKEN}' exists in CalculatedContent only; here $ is the matched token itself."
                ),
            )
            .suggest(format!(
                "Write \"{}\".",
                expression.text.replacen(".matchedToken", "", 1)
            ))
        });
    }
    let mut allowed = ENVELOPE.to_vec();
    if !is_match {
        allowed.push(MATCHED_TOKEN);
    }
    if allowed.contains(&name.as_str()) {
        return None;
    }
    let advice = match allowed.iter().find(|a| a.eq_ignore_ascii_case(&name)) {
        Some(right) => format!("Letter case counts: write \"{right}\"."),
        None if is_match && name == MATCHED_TOKEN => {
            "The type match sees the message only; start at Body.".to_owned()
        }
        None if is_match => format!("Did you mean \"Body.{name}\"?"),
        None => format!("Did you mean \"{MATCHED_TOKEN}.{name}\" or \"Body.{name}\"?"),
    };
    let message = format!(
        "The expression starts at '{name}' and can never find anything: the scope has {}.",
        allowed.join(", ")
    );
    Some(Finding::warning("UnreachableExpression", message).suggest(advice))
}

/// The first name of a JSONPath that starts at the root; `None` when it does not start with a name.
fn first_jsonpath_name(text: &str) -> Option<String> {
    let text = text.trim();
    let rest = match text.strip_prefix('$') {
        Some("") => return None,
        Some(rest) if rest.starts_with(['.', '[']) => rest,
        _ => text,
    };
    if rest.starts_with("..") {
        return None;
    }
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    if let Some(quoted) = rest.strip_prefix("['") {
        return quoted.split_once('\'').map(|(name, _)| name.to_owned());
    }
    let end = rest.find(['.', '[', '(', ' ']).unwrap_or(rest.len());
    let name = rest.get(..end).unwrap_or_default();
    (!name.is_empty() && name != "*").then(|| name.to_owned())
}

/// The first name of a JMESPath that is a plain member access.
fn first_jmespath_name(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("@.").unwrap_or(text);
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted.split_once('"').map(|(name, _)| name.to_owned());
    }
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (is_name && !rest.starts_with('(')).then(|| name.to_owned())
}

/// `&&` beside `||` in a JSONPath filter, which has no precedence in this dialect.
fn precedence(expression: &Expression<'_, '_>) -> Option<Finding> {
    if expression.is_jmespath {
        return None;
    }
    let mut outside = String::new();
    for (at, part) in expression.text.split('\'').enumerate() {
        if at % 2 == 0 {
            outside.push_str(part);
        }
    }
    let (and, or) = (outside.find("&&")?, outside.find("||")?);
    let (first, means) = if and < or {
        ("a && b || c", "a && (b || c)")
    } else {
        ("a || b && c", "a || (b && c)")
    };
    let message = format!(
        "&& and || have no precedence here: `{first}` means `{means}`, everything to the right is grouped."
    );
    let severity = if and < or {
        Severity::Warning
    } else {
        Severity::Information
    };
    Some(
        Finding::new(severity, "LogicalPrecedence", message)
            .suggest("Check that this is what you mean, or use two templates with one operator each."),
    )
}
