//! Vectors of expressions: `mapping/expressions-*.json`, `medtech/custom-functions*.json`.

use iomt_mapping::expression::{EvaluationError, Expression, Language};
use iomt_mapping::jmespath::Value as Found;
use iomt_mapping::message::{Kind, Token, parse};
use serde_json::{Value, json};

use super::Outcome;
use super::same::{Extent, difference};

/// One expression on one document.
pub fn run(vector: &Value) -> Outcome {
    let text = |name: &str| vector.get(name).and_then(Value::as_str);
    let expected = vector.get("expected").ok_or("no `expected`")?;
    let language = text("language")
        .and_then(Language::of_name)
        .ok_or("unknown language")?;
    let written = text("expression").ok_or("no `expression`")?;
    let expression = match Expression::parse(written, language) {
        // A blank expression is refused by the loader of mappings, before any language sees it.
        Ok(_) if written.trim().is_empty() => Err("the expression is blank".to_owned()),
        Ok(expression) => Ok(expression),
        Err(error) => Err(error.to_string()),
    };
    let expression = match (expression, expected.get("parseError")) {
        (Err(_), Some(_)) => return Ok(()),
        (Ok(_), Some(_)) => return Err("is not refused".to_owned()),
        (Err(error), None) => return Err(format!("does not parse: {error}")),
        (Ok(expression), None) => expression,
    };
    let document = match (text("documentText"), vector.get("document")) {
        (Some(text), _) => text.to_owned(),
        (None, Some(document)) => document.to_string(),
        (None, None) => return Err("no document".to_owned()),
    };
    let tree = parse(document.as_bytes()).map_err(|error| format!("the document: {error}"))?;
    check(expected, "selectMany", select_many(&expression, tree.root()))?;
    check(expected, "selectOne", select_one(&expression, tree.root()))
}

fn select_many(expression: &Expression, root: Token<'_>) -> Result<Value, EvaluationError> {
    match expression {
        Expression::JsonPath(path) => path.select_all(root).map(|found| {
            found
                .into_iter()
                .map(|token| described(&Found::Token(token)))
                .collect()
        }),
        Expression::JmesPath(path) => path
            .select_all(root)
            .map(|found| found.iter().map(described).collect()),
    }
}

fn select_one(expression: &Expression, root: Token<'_>) -> Result<Value, EvaluationError> {
    let found = match expression {
        Expression::JsonPath(path) => path.select_one(root)?.map(Found::Token),
        Expression::JmesPath(path) => path.select_one(root)?,
    };
    Ok(found.as_ref().map_or(Value::Null, described))
}

fn described(found: &Found<'_>) -> Value {
    let token_type = match found.kind() {
        Kind::Null => "Null",
        Kind::Boolean => "Boolean",
        Kind::Integer => "Integer",
        Kind::Float => "Float",
        Kind::String => "String",
        Kind::Array => "Array",
        Kind::Object => "Object",
    };
    let json = match found {
        Found::Float(float) => json!(float),
        other => other.to_tree().root().to_value(),
    };
    match found.to_text() {
        Some(text) => json!({ "tokenType": token_type, "json": json, "text": text }),
        None => json!({ "tokenType": token_type, "json": json, "noText": true }),
    }
}

fn check(expected: &Value, name: &str, actual: Result<Value, EvaluationError>) -> Outcome {
    let error_name = format!("{name}Error");
    let wanted_error = expected.get(&error_name).and_then(Value::as_str);
    match (expected.get(name), wanted_error, actual) {
        (None, None, _) => Ok(()),
        (_, Some(wanted), Err(error)) if wanted == error.kind.name() => Ok(()),
        (_, Some(wanted), actual) => {
            let actual = actual.map_or_else(|error| error.kind.name().to_owned(), |found| found.to_string());
            Err(format!("{name}: expected {wanted}, got {actual}"))
        }
        (Some(_), None, Err(error)) => Err(format!("{name}: {} {}", error.kind.name(), error.text)),
        (Some(wanted), None, Ok(actual)) => match exact_text(wanted, &actual) {
            Some(difference) => Err(format!("{name}: {difference}")),
            None => difference(wanted, &actual, Extent::Exact).map_or(Ok(()), |d| Err(format!("{name}{d}"))),
        },
    }
}

/// `text` compares as a text, also where it looks like a time.
fn exact_text(wanted: &Value, actual: &Value) -> Option<String> {
    match (wanted, actual) {
        (Value::Array(wanted), Value::Array(actual)) => wanted
            .iter()
            .zip(actual)
            .find_map(|(wanted, actual)| exact_text(wanted, actual)),
        (Value::Object(_), Value::Object(_)) if wanted.get("text") != actual.get("text") => Some(format!(
            "expected text {:?}, got {:?}",
            wanted.get("text"),
            actual.get("text")
        )),
        _ => None,
    }
}
