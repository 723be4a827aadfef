//! What is inside a frame of a device without a driver: JSON, columns, labelled values, or bytes shown as hexadecimal text.

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::FramingConfig;
use super::checksum::to_hex;
use super::cutter::{Cut, FramingKind};
use super::frames::Reason;

/// What is inside a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON value.
    #[default]
    Json,
    /// Columns: named by the configuration or by a header line, else a list `fields`.
    Csv,
    /// `LABEL=value` pairs.
    Label,
    /// `{"hex": "..."}`.
    Hex,
}

/// The body of a frame, or why there is none. `Ok(None)`: the frame says nothing by itself (a header line, a blank line).
pub fn body(
    config: &FramingConfig,
    header: &mut Option<Vec<String>>,
    cut: &Cut,
) -> Result<Option<Vec<u8>>, Reason> {
    if config.format == Format::Hex {
        if cut.payload.is_empty() {
            return Ok(None);
        }
        let details = cut
            .details
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()));
        return Ok(Some(object(
            details.chain([("hex".to_owned(), Value::from(to_hex(&cut.payload)))]),
        )));
    }
    let text = std::str::from_utf8(&cut.payload).map_err(|_| Reason::Invalid)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    match config.format {
        Format::Json => {
            serde_json::from_str::<&serde_json::value::RawValue>(text).map_err(|_| Reason::Invalid)?;
            Ok(Some(text.trim().as_bytes().to_vec()))
        }
        Format::Csv if config.framing == FramingKind::Mllp => Ok(Some(segments(text))),
        Format::Csv => columns(config, header, text),
        Format::Label => labels(config, text),
        Format::Hex => Ok(None),
    }
}

fn object(members: impl IntoIterator<Item = (String, Value)>) -> Vec<u8> {
    Value::Object(members.into_iter().collect::<Map<_, _>>())
        .to_string()
        .into_bytes()
}

/// An HL7 version 2 message: its segments as lists of fields.
fn segments(text: &str) -> Vec<u8> {
    let separator = text.chars().nth(3).unwrap_or('|');
    let segments = text.split('\r').filter(|segment| !segment.is_empty());
    let segments: Vec<Value> = segments
        .map(|segment| segment.split(separator).collect())
        .collect();
    object([("segments".to_owned(), Value::from(segments))])
}

fn columns(
    config: &FramingConfig,
    header: &mut Option<Vec<String>>,
    text: &str,
) -> Result<Option<Vec<u8>>, Reason> {
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Reason::Invalid);
    }
    let fields = split_quoted(text, config.delimiter, config.quote).ok_or(Reason::Invalid)?;
    if config.header && header.as_ref().is_none_or(|names| *names == fields) {
        *header = Some(fields);
        return Ok(None);
    }
    let names = if config.columns.is_empty() {
        header.as_deref().unwrap_or(&[])
    } else {
        &config.columns
    };
    if names.is_empty() {
        let list: Vec<Value> = fields.into_iter().map(Value::from).collect();
        return Ok(Some(object([("fields".to_owned(), Value::from(list))])));
    }
    if fields.len() != names.len() {
        // A line that was cut, or joined from two: its values would stand under the wrong names.
        return Err(Reason::Invalid);
    }
    let members = names.iter().zip(&fields).filter(|(name, _)| !name.is_empty());
    let members = members.filter_map(|(name, field)| Some((name.clone(), value(config, name, field)?)));
    Ok(Some(object(members)))
}

/// Labels with their values, and what stands after the last one.
pub type Labels = (Vec<(String, String)>, Option<String>);

/// Pairs, and what stands after the value of the last one.
pub fn split_labels(config: &FramingConfig, text: &str) -> Option<Labels> {
    let mut pairs = Vec::new();
    let mut trailing = None;
    let words: Vec<&str> = text.trim().split(config.delimiter).collect();
    for word in words {
        let word = word.trim();
        let Some((name, value)) = word.split_once(config.separator) else {
            if !word.is_empty() {
                trailing = Some(word.to_owned());
            }
            continue;
        };
        let value = value.trim();
        let (value, rest) = match value.split_once(' ') {
            Some((value, rest)) => (value, Some(rest.trim().to_owned())),
            None => (value, None),
        };
        pairs.push((name.trim().to_owned(), value.to_owned()));
        if rest.is_some() {
            trailing = rest;
        }
    }
    (!pairs.is_empty()).then_some((pairs, trailing))
}

fn labels(config: &FramingConfig, text: &str) -> Result<Option<Vec<u8>>, Reason> {
    if text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\r')) {
        return Err(Reason::Invalid);
    }
    let (pairs, trailing) = split_labels(config, text).ok_or(Reason::Invalid)?;
    let members = pairs
        .iter()
        .filter_map(|(name, text)| Some((name.clone(), value(config, name, text)?)));
    Ok(Some(object(members.chain(
        trailing.map(|text| ("trailing".to_owned(), Value::from(text))),
    ))))
}

/// A field: none when its text means "no value", a number when it is a decimal, else text.
fn value(config: &FramingConfig, name: &str, field: &str) -> Option<Value> {
    let field = field.trim();
    if config.missing.iter().any(|token| token == field) {
        return None;
    }
    let as_text = config.text.iter().any(|column| column == name);
    let number = if as_text { None } else { decimal(field) };
    Some(number.map_or_else(|| Value::from(field), Value::Number))
}

/// A decimal as a JSON number with its digits kept (`36.50`), without a plus sign and leading zeros.
fn decimal(text: &str) -> Option<Number> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits =
        |part: &str| !part.is_empty() && part.len() <= 30 && part.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let text = match digits.split_once('.') {
        Some((_, fraction)) => format!("{sign}{whole}.{fraction}"),
        None => format!("{sign}{whole}"),
    };
    serde_json::from_str(&text).ok()
}

/// Fields of a line, as RFC 4180 quotes them; none when a quote stays open.
pub fn split_quoted(line: &str, delimiter: char, quote: char) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        let field = fields.last_mut()?;
        if quoted {
            if c != quote {
                field.push(c);
            } else if characters.next_if_eq(&quote).is_some() {
                field.push(quote);
            } else {
                quoted = false;
            }
        } else if c == quote && field.trim().is_empty() {
            field.clear();
            quoted = true;
        } else if c == delimiter {
            fields.push(String::new());
        } else {
            field.push(c);
        }
    }
    (!quoted).then_some(fields)
}
