//! Compares groups and Observations with what a vector expects.

use serde_json::Value;

use super::{Outcome, list};
use crate::conformance::same::{Extent, difference};

/// One group with its Observations.
pub(super) fn compare_group(expected: &Value, actual: &Value) -> Outcome {
    let alternatives = list(expected, "observationsAnyOf");
    let without = |value: &Value| {
        let mut value = value.clone();
        if let Some(object) = value.as_object_mut() {
            for name in [
                "observations",
                "observationsAnyOf",
                "referenceMessage",
                "note",
                "blocks",
            ] {
                object.remove(name);
            }
        }
        value
    };
    if let Some(difference) = difference(&without(expected), &without(actual), Extent::Exact) {
        return Err(difference);
    }
    let made = list(actual, "observations");
    if alternatives.is_empty() {
        return compare_observations(&list(expected, "observations"), &made);
    }
    first_agreement(&alternatives, |alternative| {
        let wanted = match alternative {
            Value::Array(wanted) => wanted.clone(),
            one => vec![one.clone()],
        };
        compare_observations(&wanted, &made)
    })
}

/// Nothing when one of the alternatives agrees, else all differences.
pub(super) fn first_agreement(alternatives: &[Value], compare: impl Fn(&Value) -> Outcome) -> Outcome {
    let mut differences = Vec::new();
    for alternative in alternatives {
        match compare(alternative) {
            Ok(()) => return Ok(()),
            Err(difference) => differences.push(difference),
        }
    }
    Err(differences.join("; or "))
}

fn compare_observations(expected: &[Value], actual: &[Value]) -> Outcome {
    if expected.len() != actual.len() {
        return Err(format!(
            "expected {} observations, got {}",
            expected.len(),
            actual.len()
        ));
    }
    for (expected, actual) in expected.iter().zip(actual) {
        compare_observation(expected, actual)?;
    }
    Ok(())
}

fn compare_observation(expected: &Value, actual: &Value) -> Outcome {
    let mut expected = expected.clone();
    let mut actual = actual.clone();
    let (Some(wanted), Some(made)) = (expected.as_object_mut(), actual.as_object_mut()) else {
        return Err("an observation is no object".to_owned());
    };
    wanted.remove("referenceMessage");
    wanted.remove("note");
    let resource = made.remove("observation").unwrap_or_default();
    if let Some(prefix) = wanted.remove("idSegmentStartsWith") {
        let segment = made.remove("idSegment").unwrap_or_default();
        let starts = segment
            .as_str()
            .unwrap_or_default()
            .starts_with(prefix.as_str().unwrap_or_default());
        if !starts {
            return Err(format!("idSegment {segment} does not start with {prefix}"));
        }
    }
    let by_subset = wanted
        .remove("match")
        .is_some_and(|extent| extent.as_str() == Some("subset"));
    let mut subset = wanted.remove("observationSubset");
    let mut whole = wanted.remove("observation");
    if by_subset && subset.is_none() {
        subset = whole.take();
    }
    for optional in ["idSegment", "values", "boundaryStart", "boundaryEnd", "operation"] {
        if (subset.is_some() || by_subset) && !wanted.contains_key(optional) {
            made.remove(optional);
        }
    }
    let of_resource = match (&whole, &subset) {
        (_, Some(subset)) => difference(subset, &resource, Extent::Subset),
        (Some(whole), None) => difference(whole, &resource, Extent::Exact),
        (None, None) => None,
    };
    match difference(&expected, &actual, Extent::Exact).or(of_resource) {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

/// Checks the exact spelling of numbers: a path within the Observation -> its text.
pub(super) fn lexical(vector: &Value, groups: &[Value]) -> Outcome {
    let Some(paths) = vector.get("lexical").and_then(Value::as_object) else {
        return Ok(());
    };
    for (path, spelled) in paths {
        let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
        let found = groups
            .iter()
            .flat_map(|group| list(group, "observations"))
            .filter_map(|made| made.get("observation").and_then(|o| o.pointer(&pointer)).cloned())
            .any(|number| Some(number.to_string().as_str()) == spelled.as_str());
        if !found {
            return Err(format!("{path} is not written as {spelled}"));
        }
    }
    Ok(())
}
