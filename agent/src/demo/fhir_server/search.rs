//! Search: `identifier`, `_id`, references and, on Observations, `code`, `status` and `date`, joined by AND; commas are OR.
//! Any other parameter is refused, because a server that ignores one answers a different question.

use super::outcome::Refusal;
use super::store::{Kind, Store, Stored, identifiers};
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use serde_json::Value;
use std::sync::Arc;

/// Entries on a page when the client does not say.
const PAGE: usize = 50;

/// What a search found.
pub(super) struct Found {
    pub total: usize,
    /// The resources of this page.
    pub page: Vec<Arc<Stored>>,
    /// Offset of the next page.
    pub next: Option<usize>,
    /// `_summary=count`.
    pub count_only: bool,
}

/// Runs a search over resources of a type.
pub(super) fn search(store: &Store, kind: Kind, query: &[(String, String)]) -> Result<Found, Refusal> {
    let (mut offset, mut count, mut count_only) = (0, PAGE, false);
    let mut filters = Vec::new();
    for (name, text) in query {
        let number = || {
            text.parse::<usize>()
                .map_err(|_| Refusal::invalid(format!("{name} is not a number")))
        };
        match name.as_str() {
            "_count" => count = number()?.clamp(1, 1000),
            "_offset" => offset = number()?,
            "_summary" if text == "count" => count_only = true,
            "_format" if text.contains("json") => {}
            _ => filters.push(filter(kind, name, text)?),
        }
    }
    let by_identifier = filters.iter().find_map(|filter| match filter {
        Filter::Identifier(tokens) => Some(tokens),
        _ => None,
    });
    // Identifiers are indexed; everything else looks at all resources of the type.
    let mut candidates: Vec<&Arc<Stored>> = match by_identifier {
        Some(tokens) if tokens.iter().all(|token| !token.value.is_empty()) => tokens
            .iter()
            .flat_map(|token| store.with_identifier(kind, &token.value))
            .collect(),
        _ => store.all(kind).collect(),
    };
    let mut seen = std::collections::HashSet::new();
    candidates.retain(|stored| {
        seen.insert(Arc::as_ptr(stored))
            && store.is_indexed(stored)
            && filters.iter().all(|f| f.takes(&stored.resource))
    });
    let total = candidates.len();
    let page: Vec<_> = candidates.into_iter().skip(offset).take(count).cloned().collect();
    let end = offset + page.len();
    Ok(Found {
        total,
        page,
        next: (end < total).then_some(end),
        count_only,
    })
}

/// `[system|]value`; no system means any, an empty one none.
struct Token {
    system: Option<String>,
    value: String,
}

enum Filter {
    Identifier(Vec<Token>),
    Id(Vec<String>),
    Reference(&'static str, Vec<String>),
    Code(Vec<Token>),
    Status(Vec<String>),
    Date(String, (Timestamp, Timestamp)),
}

fn filter(kind: Kind, name: &str, text: &str) -> Result<Filter, Refusal> {
    let observation = kind == Kind::Observation;
    Ok(match name {
        "identifier" => Filter::Identifier(tokens(text)),
        "_id" => Filter::Id(split(text, ',')),
        "patient" if kind == Kind::Device => Filter::Reference("patient", targets(text, "Patient")),
        "patient" if kind != Kind::Patient => Filter::Reference("subject", targets(text, "Patient")),
        "subject" if observation => Filter::Reference("subject", targets(text, "")),
        "device" if observation || kind == Kind::DeviceUseStatement => {
            Filter::Reference("device", targets(text, "Device"))
        }
        "encounter" if observation => Filter::Reference("encounter", targets(text, "Encounter")),
        "code" if observation => Filter::Code(tokens(text)),
        "status" if observation => Filter::Status(split(text, ',')),
        "date" if observation => {
            let (prefix, date) = match text.as_bytes().first() {
                Some(b'a'..=b'z') => text.split_at_checked(2).unwrap_or(("", text)),
                _ => ("eq", text),
            };
            match (prefix, bounds(date)) {
                ("eq" | "ge" | "le" | "gt" | "lt", Some(bounds)) => Filter::Date(prefix.to_owned(), bounds),
                _ => {
                    return Err(Refusal::invalid(
                        "date is not a date with one of eq, ge, le, gt, lt",
                    ));
                }
            }
        }
        _ => {
            return Err(Refusal::not_done(format!(
                "search parameter {name} of {}",
                kind.name()
            )));
        }
    })
}

impl Filter {
    fn takes(&self, resource: &Value) -> bool {
        match self {
            Filter::Identifier(tokens) => identifiers(resource)
                .any(|(system, value)| tokens.iter().any(|token| token.takes(system, value))),
            Filter::Id(ids) => resource
                .get("id")
                .and_then(Value::as_str)
                .is_some_and(|id| ids.iter().any(|i| i == id)),
            Filter::Reference(field, targets) => resource
                .get(*field)
                .and_then(|reference| reference.get("reference"))
                .and_then(Value::as_str)
                .is_some_and(|reference| {
                    targets
                        .iter()
                        .any(|target| target == reference || reference.ends_with(&format!("/{target}")))
                }),
            Filter::Code(tokens) => resource
                .pointer("/code/coding")
                .and_then(Value::as_array)
                .is_some_and(|list| {
                    list.iter().any(|coding| {
                        let code = coding.get("code").and_then(Value::as_str).unwrap_or_default();
                        let system = coding.get("system").and_then(Value::as_str);
                        tokens.iter().any(|token| token.takes(system, code))
                    })
                }),
            Filter::Status(codes) => {
                let status = resource.get("status").and_then(Value::as_str);
                status.is_some_and(|status| codes.iter().any(|code| code == status))
            }
            Filter::Date(prefix, (first, last)) => {
                effective(resource).is_some_and(|(begin, end)| match prefix.as_str() {
                    "ge" => end >= *first,
                    "le" => begin <= *last,
                    "gt" => end > *last,
                    "lt" => begin < *first,
                    _ => *first <= begin && end <= *last,
                })
            }
        }
    }
}

impl Token {
    fn takes(&self, system: Option<&str>, value: &str) -> bool {
        let system_fits = match &self.system {
            None => true,
            Some(wanted) => wanted == system.unwrap_or_default(),
        };
        system_fits && (self.value.is_empty() || self.value == value)
    }
}

/// Splits at a separator that no backslash escapes; escapes stay for a further split.
fn split_raw(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == separator && !escaped {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        });
    }
    plain
}

fn split(text: &str, separator: char) -> Vec<String> {
    split_raw(text, separator)
        .iter()
        .map(|part| unescape(part))
        .collect()
}

fn tokens(text: &str) -> Vec<Token> {
    let token = |part: &String| match split(part, '|').as_slice() {
        [value] => Token {
            system: None,
            value: value.clone(),
        },
        [system, rest @ ..] => Token {
            system: Some(system.clone()),
            value: rest.join("|"),
        },
        [] => Token {
            system: None,
            value: String::new(),
        },
    };
    split_raw(text, ',').iter().map(token).collect()
}

/// `Type/id` for each of the references, where `id` alone stands for `default_type/id`.
fn targets(text: &str, default_type: &str) -> Vec<String> {
    split(text, ',')
        .into_iter()
        .map(|target| match target.contains('/') || default_type.is_empty() {
            true => target,
            false => format!("{default_type}/{target}"),
        })
        .collect()
}

/// First and last instant of a FHIR date, dateTime or instant, as precise as it is written.
pub(super) fn bounds(text: &str) -> Option<(Timestamp, Timestamp)> {
    if let Some((_, time)) = text.split_once('T') {
        let first: Timestamp = text.parse().ok()?;
        let width = match time.split_once('.') {
            Some((_, fraction)) => {
                let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
                10_i64.checked_pow(9_u32.checked_sub(u32::try_from(digits).ok()?)?)?
            }
            None => 1_000_000_000,
        };
        return Some((
            first,
            first.checked_add(SignedDuration::from_nanos(width - 1)).ok()?,
        ));
    }
    let (from, to) = match text.len() {
        4 => (format!("{text}-01-01"), format!("{text}-12-31")),
        7 => (format!("{text}-01"), String::new()),
        _ => (text.to_owned(), text.to_owned()),
    };
    let from: Date = from.parse().ok()?;
    let to: Date = if to.is_empty() {
        from.last_of_month()
    } else {
        to.parse().ok()?
    };
    let start = |day: Date| Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp());
    let end = start(to.tomorrow().ok()?)?
        .checked_sub(SignedDuration::from_nanos(1))
        .ok()?;
    Some((start(from)?, end))
}

/// The time an Observation is about.
fn effective(resource: &Value) -> Option<(Timestamp, Timestamp)> {
    for single in ["effectiveDateTime", "effectiveInstant"] {
        if let Some(text) = resource.get(single).and_then(Value::as_str) {
            return bounds(text);
        }
    }
    let of = |path| resource.pointer(path).and_then(Value::as_str).map(bounds);
    // An open end is the end of time, an open start its beginning.
    let begin = of("/effectivePeriod/start")
        .unwrap_or(Some((Timestamp::MIN, Timestamp::MIN)))?
        .0;
    let end = of("/effectivePeriod/end")
        .unwrap_or(Some((Timestamp::MAX, Timestamp::MAX)))?
        .1;
    resource.get("effectivePeriod").map(|_| (begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_names_a_system_no_system_or_any() {
        let device = json!({ "identifier": [{ "system": "urn:a", "value": "x,1" }, { "value": "y" }] });
        for (text, taken) in [
            ("x\\,1", true),
            ("urn:a|x\\,1", true),
            ("|x\\,1", false),
            ("|y", true),
            ("y,z", true),
            ("urn:a|y", false),
            ("urn:a|", true),
            ("urn:b|", false),
        ] {
            let filter = filter(Kind::Device, "identifier", text).unwrap();
            assert_eq!(filter.takes(&device), taken, "{text}");
        }
    }

    #[test]
    fn dates_are_as_wide_as_they_are_written() {
        let reading = json!({ "effectiveDateTime": "2026-03-01T07:15:30.2500000Z" });
        let hour = json!({
            "effectivePeriod": { "start": "2026-03-01T07:00:00.0000000Z", "end": "2026-03-01T07:59:59.9999999Z" }
        });
        for (text, at_reading, at_hour) in [
            ("2026-03-01", true, true),
            ("2026-03", true, true),
            ("2026-03-01T07:15:30Z", true, false),
            ("ge2026-03-01T07:15:30.250Z", true, true),
            ("gt2026-03-01T07:15:31Z", false, true),
            ("lt2026-03-01T07:15:30.2500000Z", false, true),
            ("le2026-03-01T08:15:31+01:00", true, true),
            ("2027", false, false),
        ] {
            let filter = filter(Kind::Observation, "date", text).unwrap();
            assert_eq!(
                (filter.takes(&reading), filter.takes(&hour)),
                (at_reading, at_hour),
                "{text}"
            );
        }
    }
}
