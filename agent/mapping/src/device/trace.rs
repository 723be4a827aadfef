//! How a mapping came to what it gave for a message: for people at the bedside, and for tools. Holds values of the message.

use serde::Serialize;

use crate::device::DeviceTemplate;
use crate::device::normalize::{Found, Outcome, Recorder};
use crate::expression::Expression;
use crate::finding::nearest;
use crate::index::needed_names;
use crate::message::{ParsedMessage, Token};

/// What every template made of a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// In template order.
    pub templates: Vec<TemplateTrace>,
}

/// What one template made of a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TemplateTrace {
    /// Index of the template, from 0.
    pub template: usize,
    /// Its `typeName`.
    pub type_name: String,
    /// Its line in the mapping text.
    pub line: usize,
    /// Its type match expression.
    pub type_match: String,
    /// Whether the type match found anything.
    pub matched: bool,
    /// Why the type match failed, when it could not be evaluated.
    pub error: Option<String>,
    /// The part of the type match up to which something was found, when it found nothing in the end.
    pub found_up_to: Option<String>,
    /// Members that the type match needs and the message does not have.
    pub missing: Vec<MissingMember>,
    /// The matches.
    pub matches: Vec<MatchTrace>,
}

/// A member that a type match needs and the message does not have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissingMember {
    /// Its name.
    pub name: String,
    /// The nearest name that the message has, such as one in another letter case.
    pub similar: Option<String>,
}

/// What became of one match.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatchTrace {
    /// Index of the match, from 0.
    pub match_index: usize,
    /// What was matched.
    pub token: serde_json::Value,
    /// Each expression that was evaluated, in order, up to the first that failed.
    pub fields: Vec<FieldTrace>,
    /// Whether it became a measurement.
    pub measured: bool,
}

/// The evaluation of one expression.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldTrace {
    /// Member of the mapping, or the value name.
    pub field: String,
    /// The expression.
    pub expression: String,
    /// Its language.
    pub language: &'static str,
    /// What it gave, `None` for nothing.
    pub found: Option<serde_json::Value>,
    /// The text or time that this became.
    pub text: Option<String>,
    /// What else is to say: why it was left out or failed, or that a date has two readings.
    pub note: Option<String>,
    /// Whether it fails the match.
    pub failed: bool,
}

#[derive(Default)]
struct Fields(Vec<FieldTrace>);

impl Recorder for Fields {
    fn field(&mut self, field: &str, expression: &Expression, found: &Found<'_>, outcome: Outcome<'_>) {
        let (text, note, failed) = match outcome {
            Outcome::Text(text) => (Some(text.to_owned()), None, false),
            Outcome::Time(read) => {
                let note = read
                    .two_readings
                    .then(|| "day and month could be the other way round".to_owned());
                (Some(read.time.to_string()), note, false)
            }
            Outcome::LeftOut(reason) => (None, Some(reason.to_owned()), false),
            Outcome::Failed(reason) => (None, Some(reason.to_owned()), true),
        };
        let found = match found {
            Ok(Some(value)) => Some(value.to_tree().root().to_value()),
            _ => None,
        };
        self.0.push(FieldTrace {
            field: field.to_owned(),
            expression: expression.text().to_owned(),
            language: expression.language().name(),
            found,
            text,
            note,
            failed,
        });
    }
}

impl DeviceTemplate {
    pub(super) fn trace(&self, message: &ParsedMessage<'_>) -> TemplateTrace {
        let root = message.root();
        let mut trace = TemplateTrace {
            template: self.index,
            type_name: self.type_name.clone(),
            line: self.line(),
            type_match: self.type_match.text().to_owned(),
            matched: false,
            error: None,
            found_up_to: None,
            missing: Vec::new(),
            matches: Vec::new(),
        };
        match self.find(root) {
            Ok(found) if found.is_empty() => {
                trace.missing = missing_members(&self.type_match, root);
                trace.found_up_to = match &self.type_match {
                    Expression::JsonPath(path) => path.found_up_to(root),
                    Expression::JmesPath(_) => None,
                };
            }
            Ok(found) => {
                trace.matched = true;
                for (match_index, matched) in found.iter().enumerate() {
                    let mut fields = Fields::default();
                    let measured = self.measure(root, matched, None, &mut fields).is_ok();
                    if !measured {
                        fields.mark_last_failed();
                    }
                    let token = matched.to_tree().root().to_value();
                    trace.matches.push(MatchTrace {
                        match_index,
                        token,
                        fields: fields.0,
                        measured,
                    });
                }
            }
            Err(failure) => {
                trace.error = Some(failure.into_error(self.index, None).text);
            }
        }
        trace
    }
}

impl Fields {
    fn mark_last_failed(&mut self) {
        if let Some(last) = self.0.last_mut() {
            last.failed = true;
        }
    }
}

fn missing_members(type_match: &Expression, root: Token<'_>) -> Vec<MissingMember> {
    let present: Vec<&str> = root.with_descendants().filter_map(|(name, _)| name).collect();
    let missing = needed_names(type_match)
        .into_iter()
        .filter(|name| !present.contains(&&**name));
    missing
        .map(|name| MissingMember {
            similar: nearest(&name, present.iter().copied()).map(str::to_owned),
            name: name.into(),
        })
        .collect()
}
