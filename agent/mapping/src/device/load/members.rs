//! Members of a template that are more than a text: expressions, languages, flags.

use crate::device::load::{Loader, Scope, is_blank, pascal_case, scalar_text};
use crate::document::{Node, Shape};
use crate::expression::{Expression, Language};
use crate::finding::nearest;

impl<'d, 't> Loader<'d, 't> {
    /// The language that a member names; JSONPath when there is no such member, `None` after an error.
    pub(super) fn language(&mut self, node: &'d Node<'t>, name: &str) -> Option<Language> {
        let Some(member) = node.named_member(name) else {
            return Some(Language::JsonPath);
        };
        let value = &member.value;
        let written = match &value.shape {
            Shape::Text(text) => text.as_ref(),
            Shape::Number(spelling) => spelling,
            Shape::Null => "",
            _ => {
                self.wrong_type(value, name, "JsonPath or JmesPath");
                return None;
            }
        };
        let language = Language::of_name(written);
        if language.is_none() {
            let message =
                format!("Error converting value \"{written}\" to type 'TemplateExpressionLanguage'.");
            let advice = match nearest(written, ["JsonPath", "JmesPath"]) {
                Some(near) => format!("Did you mean \"{near}\"?"),
                None => "Languages are JsonPath and JmesPath.".to_owned(),
            };
            self.error("UnknownLanguage", value.span, name, message, &advice);
        }
        language
    }

    pub(super) fn required_expression(&mut self, scope: Scope<'d, 't>, name: &str) -> Option<Expression> {
        let value = self.required(scope.node, name)?;
        self.expression(scope, value, name, name)?
    }

    pub(super) fn optional_expression(&mut self, scope: Scope<'d, 't>, name: &str) -> Option<Expression> {
        let value = scope.node.member(name).filter(|value| !value.is_null())?;
        let blank = value.text().is_some_and(is_blank);
        if blank && !scope.calculated {
            return None;
        }
        self.expression(scope, value, name, name)?
    }

    /// `Some(None)` is an expression that could not be judged, because its default language is an error already.
    #[expect(
        clippy::option_option,
        reason = "an error that was reported, or nothing to report"
    )]
    pub(super) fn expression(
        &mut self,
        scope: Scope<'d, 't>,
        value: &'d Node<'t>,
        member: &str,
        field: &str,
    ) -> Option<Option<Expression>> {
        let (written, language) = match &value.shape {
            Shape::Text(_) => (value, scope.language),
            Shape::Object(_) if scope.calculated => {
                let language = match value.member("language") {
                    Some(node) if !node.is_null() => self.language(value, "language"),
                    _ => scope.language,
                };
                let written = self.required(value, "value");
                (written?, language)
            }
            // The legacy types take any scalar as text.
            Shape::Number(_) | Shape::Bool(_) if !scope.calculated => (value, scope.language),
            _ => {
                let wanted = if scope.calculated {
                    "a text or an object with value and language"
                } else {
                    "a text"
                };
                self.wrong_type(value, field, wanted);
                return None;
            }
        };
        let Some(text) = scalar_text(written) else {
            self.wrong_type(written, field, "a text");
            return None;
        };
        if is_blank(&text) {
            let message = format!("An expression must be set for [{}].", pascal_case(field));
            let advice = format!("Write an expression, or remove \"{member}\" if it is optional.");
            self.error("BlankExpression", written.span, field, message, &advice);
            return None;
        }
        let Some(language) = language else {
            return Some(None);
        };
        match Expression::parse(&text, language) {
            Ok(expression) => Some(Some(expression)),
            Err(error) => {
                let end = text
                    .get(error.offset..)
                    .and_then(|rest| rest.chars().next())
                    .map_or(error.offset, |c| error.offset + c.len_utf8());
                let span = self.document.span_within(written, error.offset, end);
                let message = match language {
                    Language::JmesPath => format!(
                        "The following JmesPath expression could not be parsed: {text}. Cause: {error}"
                    ),
                    Language::JsonPath => format!(
                        "The following JsonPath expression could not be parsed: {text}. Cause: {error}"
                    ),
                };
                self.error("ExpressionSyntax", span, field, message, advice(&text, language));
                None
            }
        }
    }

    /// `required`: a boolean, its text, or a number other than 0.
    pub(super) fn flag(&mut self, node: &'d Node<'t>) -> Option<bool> {
        let Some(member) = node.named_member("required") else {
            return Some(false);
        };
        let flag = match &member.value.shape {
            Shape::Bool(flag) => Some(*flag),
            Shape::Text(text) if text.trim().eq_ignore_ascii_case("true") => Some(true),
            Shape::Text(text) if text.trim().eq_ignore_ascii_case("false") => Some(false),
            Shape::Number(spelling) => spelling.parse::<f64>().ok().map(|number| number != 0.0),
            _ => None,
        };
        if flag.is_none() {
            let message = match &member.value.shape {
                Shape::Text(text) => format!("Could not convert string to boolean: {text}."),
                other => format!(
                    "Error converting value {} to type 'System.Boolean'.",
                    shape_text(other)
                ),
            };
            self.error(
                "WrongType",
                member.value.span,
                "required",
                message,
                "Write true or false.",
            );
        }
        flag
    }
}

fn shape_text(shape: &Shape<'_>) -> &'static str {
    match shape {
        Shape::Null => "{null}",
        Shape::Array(_) => "[...]",
        _ => "{...}",
    }
}

/// Advice for the slips that are seen most.
fn advice(text: &str, language: Language) -> &'static str {
    match language {
        Language::JmesPath if text.trim_start().starts_with('$') => {
            "This looks like JSONPath; set its language to JsonPath, or write it without $."
        }
        Language::JsonPath if text.contains('`') => "This looks like JMESPath; set its language to JmesPath.",
        Language::JsonPath if text.contains('"') => "Texts and names stand in single quotes.",
        Language::JsonPath if text.matches('\'').count() % 2 == 1 => "A single quote is missing.",
        Language::JsonPath if text.matches('[').count() != text.matches(']').count() => {
            "A bracket is missing."
        }
        Language::JsonPath if text.matches('(').count() != text.matches(')').count() => {
            "A parenthesis is missing."
        }
        Language::JsonPath if text.contains("&&") || text.contains("||") => {
            "Put a space after a number; conditions have neither parentheses nor !."
        }
        _ => "",
    }
}
