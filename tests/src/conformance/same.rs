//! How Observations of vectors compare (vectors/README.md, "How to compare").

use std::cmp::Ordering;

use iomt_mapping::fhir::{compare_decimals, parse_datetime};
use serde_json::Value;

/// Whether what is expected must be all there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Nothing else may be there.
    Exact,
    /// Members may be there that are not expected; codings compare as "contains".
    Subset,
}

/// The first difference between what is expected and what is there, with its path; `None` when there is none.
pub fn difference(expected: &Value, actual: &Value, extent: Extent) -> Option<String> {
    compare("", expected, actual, extent)
}

fn compare(path: &str, expected: &Value, actual: &Value, extent: Extent) -> Option<String> {
    let differs = || Some(format!("{path}: expected {expected}, got {actual}"));
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            for (name, value) in expected {
                let of_member = actual.get(name).unwrap_or(&Value::Null);
                let found = compare(&format!("{path}.{name}"), value, of_member, extent);
                if found.is_some() {
                    return found;
                }
            }
            let more = actual
                .iter()
                .find(|(name, value)| !expected.contains_key(*name) && !is_nothing(value));
            match more {
                Some((name, value)) if extent == Extent::Exact => {
                    Some(format!("{path}.{name}: not expected, got {value}"))
                }
                _ => None,
            }
        }
        (Value::Array(expected), Value::Array(actual)) => {
            if extent == Extent::Subset && path.ends_with(".coding") {
                return expected
                    .iter()
                    .find(|wanted| {
                        !actual
                            .iter()
                            .any(|one| compare(path, wanted, one, extent).is_none())
                    })
                    .map(|missing| format!("{path}: {missing} is missing"));
            }
            if expected.len() != actual.len() {
                return Some(format!(
                    "{path}: expected {} elements, got {}: {}",
                    expected.len(),
                    actual.len(),
                    Value::Array(actual.clone())
                ));
            }
            expected
                .iter()
                .zip(actual)
                .enumerate()
                .find_map(|(i, (e, a))| compare(&format!("{path}[{i}]"), e, a, extent))
        }
        (Value::Number(e), Value::Number(a)) => {
            if same_number(&e.to_string(), &a.to_string()) {
                None
            } else {
                differs()
            }
        }
        (Value::String(e), Value::String(a)) => {
            let same_instant =
                || matches!((parse_datetime(e), parse_datetime(a)), (Some(e), Some(a)) if e == a);
            if e == a || (e.contains('T') && a.contains('T') && same_instant()) {
                None
            } else {
                differs()
            }
        }
        _ if expected == actual || (is_nothing(expected) && is_nothing(actual)) => None,
        _ => differs(),
    }
}

/// Null; and the empty text, which FHIR forbids and the agent leaves out.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

/// By value; beyond 1e21 and below 1e-7 with a relative tolerance of 1e-14.
fn same_number(expected: &str, actual: &str) -> bool {
    if compare_decimals(expected, actual) == Some(Ordering::Equal) {
        return true;
    }
    let (Ok(e), Ok(a)) = (expected.parse::<f64>(), actual.parse::<f64>()) else {
        return false;
    };
    (e.abs() > 1e21 || e.abs() < 1e-7) && (e - a).abs() <= e.abs() * 1e-14
}
