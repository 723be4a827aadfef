//! Slots of `SampledData`, the readings of an Observation with a period: visited, emptied, filled. Pure.

use super::verdict::{NO_READING, reference, samples, samples_mut, set_status};
use crate::associations::Ticks;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::SamplePeriod;
use serde_json::{Value, json};

/// Visits all slots with their limits; those without a reading have no length.
pub(super) fn each_slot(
    resource: &mut Value,
    start: Ticks,
    visit: &mut dyn FnMut(Ticks, Ticks, &mut String),
) {
    let Some(begin) = Timestamp::from_ticks(start) else {
        return;
    };
    for sampled in samples_mut(resource) {
        let period = sampled.get("period").map(Value::to_string);
        let Some(period) = period.and_then(|text| SamplePeriod::from_milliseconds(&text)) else {
            continue;
        };
        let mut tokens = split(sampled.get("data").and_then(Value::as_str).unwrap_or_default());
        for (slot, token) in tokens.iter_mut().enumerate() {
            let limits = period
                .slot_start(begin, slot)
                .zip(period.slot_start(begin, slot + 1));
            if let Some((first, end)) = limits.filter(|_| token != NO_READING) {
                visit(first.ticks(), end.ticks(), token);
            } else {
                visit(start, start, token);
            }
        }
        if let Some(sampled) = sampled.as_object_mut() {
            sampled.insert("data".to_owned(), json!(tokens.join(" ")));
        }
    }
}

/// Takes out values of which no slot is left.
pub(super) fn without_empty(resource: &mut Value) {
    let is_empty = |holder: &Value| {
        let data = holder
            .get("valueSampledData")
            .and_then(|sampled| sampled.get("data")?.as_str());
        data.is_some_and(|data| {
            data.split(' ')
                .all(|token| token == NO_READING || token.is_empty())
        })
    };
    let own = is_empty(resource);
    if let Some(members) = resource.as_object_mut() {
        if own {
            members.shift_remove("valueSampledData");
        }
        if let Some(components) = members.get_mut("component").and_then(Value::as_array_mut) {
            components.retain(|component| !is_empty(component));
            if components.is_empty() {
                members.shift_remove("component");
            }
        }
    }
}

/// Fills what `target` lacks with the readings of `moved`; whether that changed it. `Err` when they do not fit: the target
/// has slots of another length, or is of another encounter.
pub fn fill(target: &mut Value, moved: &Value) -> Result<bool, ()> {
    let visits = |resource: &Value| reference(resource, "encounter", "Encounter").map(str::to_owned);
    if visits(target)
        .zip(visits(moved))
        .is_some_and(|(one, other)| one != other)
    {
        return Err(());
    }
    let mut changed = false;
    for (holder, sampled) in samples(moved) {
        let found = match holder {
            None => target.get_mut("valueSampledData"),
            Some(component) => components_mut(target)
                .find(|one| one.get("code") == component.get("code"))
                .and_then(|one| one.get_mut("valueSampledData")),
        };
        let Some(there) = found else {
            changed = true;
            add(target, holder, sampled).ok_or(())?;
            continue;
        };
        if there.get("period").map(Value::to_string) != sampled.get("period").map(Value::to_string) {
            return Err(());
        }
        let text = |value: &Value| {
            value
                .get("data")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (mut tokens, news) = (split(&text(there)), split(&text(sampled)));
        tokens.resize(tokens.len().max(news.len()), NO_READING.to_owned());
        for (token, new) in tokens.iter_mut().zip(news) {
            if *token == NO_READING && new != NO_READING {
                changed = true;
                *token = new;
            }
        }
        if let Some(there) = there.as_object_mut() {
            there.insert("data".to_owned(), json!(tokens.join(" ")));
        }
    }
    if changed {
        set_status(target, "amended");
    }
    Ok(changed)
}

fn split(data: &str) -> Vec<String> {
    data.split(' ')
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
        .collect()
}

fn add(target: &mut Value, holder: Option<&Value>, sampled: &Value) -> Option<()> {
    let members = target.as_object_mut()?;
    match holder {
        None => drop(members.insert("valueSampledData".to_owned(), sampled.clone())),
        Some(component) => {
            let components = members.entry("component").or_insert_with(|| json!([]));
            components.as_array_mut()?.push(component.clone());
        }
    }
    Some(())
}

fn components_mut(target: &mut Value) -> impl Iterator<Item = &mut Value> {
    let components = target.get_mut("component").and_then(Value::as_array_mut);
    components.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Observation with this value.
    fn with(value: &Value) -> Value {
        let mut resource = json!({
            "resourceType": "Observation", "status": "final", "encounter": {"reference": "Encounter/e"},
        });
        for (name, value) in value.as_object().unwrap() {
            resource[name] = value.clone();
        }
        resource
    }

    fn quantity() -> Value {
        json!({"valueQuantity": {"value": 5}})
    }

    fn sampled(data: &str) -> Value {
        json!({"valueSampledData": {"period": 600_000, "data": data}})
    }

    #[test]
    fn only_what_is_missing_is_filled_in() {
        let mut target = with(&sampled("9 E E E E E"));
        let moved = with(&sampled("0 1 E E E 5"));
        assert_eq!(fill(&mut target, &moved), Ok(true));
        assert_eq!(target["valueSampledData"]["data"], "9 1 E E E 5");
        assert_eq!(target["status"], "amended");
        assert_eq!(fill(&mut target, &moved), Ok(false));
        // A value that is there already is newer.
        let mut target = with(&quantity());
        assert_eq!(fill(&mut target, &with(&quantity())), Ok(false));
        let of = |code: &str, data: &str| json!({"component": [{"code": {"text": code}, "valueSampledData": {"period": 600_000, "data": data}}]});
        let mut target = with(&of("sys", "1 E E E E E"));
        assert_eq!(fill(&mut target, &with(&of("dia", "2 E E E E E"))), Ok(true));
        assert_eq!(target["component"].as_array().unwrap().len(), 2);
        let other = json!({"valueSampledData": {"period": 5000, "data": "1 2"}});
        let mut target = with(&sampled("9 E E E E E"));
        assert_eq!(fill(&mut target, &with(&other)), Err(()));
        let mut visit = with(&sampled("E E E E E 5"));
        visit["encounter"]["reference"] = json!("Encounter/other");
        assert_eq!(fill(&mut target, &visit), Err(()));
    }
}
