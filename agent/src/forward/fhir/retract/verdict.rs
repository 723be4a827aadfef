//! Whether an Observation shows readings of somebody else, and what has to become of it. Pure.

use crate::associations::Ticks;
use iomt_mapping::fhir::{SERVICE_SYSTEM, SamplePeriod, parse_datetime};
use serde_json::{Value, json};

/// `meta.tag` of what we took from a patient, so that a later correction may lift it.
pub(super) const TAG_SYSTEM: &str = "urn:x-bedside-agent:correction";
const TAG_CODE: &str = "retracted";
/// A slot without a reading.
pub(super) const NO_READING: &str = "E";

/// Whose the readings of one device are, over the stretch of time that is looked at.
pub struct Truth<'a> {
    /// First instant.
    pub from: Ticks,
    /// The instant at which it ends.
    pub to: Ticks,
    /// Ids of Patient and, where the operator named one, Encounter at an instant; nobody while readings wait.
    pub whose: &'a dyn Fn(Ticks) -> Option<(String, Option<String>)>,
    /// Instants between which that is the same.
    pub turns: &'a [Ticks],
}

/// What has to become of an Observation.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It stays.
    Right,
    /// It is replaced by this: as `corrected` it keeps some readings, as `entered-in-error` none.
    Replace {
        /// The resource.
        resource: Value,
        /// The stretch of which readings are gone from it: they have to be sent again.
        gone: (Ticks, Ticks),
    },
}

impl Truth<'_> {
    /// Whether a reading of `[first, end)` is not of these.
    fn is_wrong(&self, patient: &str, encounter: Option<&str>, first: Ticks, end: Ticks) -> bool {
        let (first, end) = (first.max(self.from), end.min(self.to));
        if first >= end {
            return false;
        }
        let turns = self
            .turns
            .iter()
            .copied()
            .filter(|turn| first < *turn && *turn < end);
        std::iter::once(first)
            .chain(turns)
            .any(|instant| match (self.whose)(instant) {
                Some((whose, visit)) => {
                    whose != patient || visit.is_some_and(|visit| Some(visit.as_str()) != encounter)
                }
                None => true,
            })
    }
}

/// Id in a reference to a resource of this kind.
pub(super) fn reference<'a>(resource: &'a Value, name: &str, kind: &str) -> Option<&'a str> {
    let text = resource.get(name)?.get("reference")?.as_str()?;
    text.strip_prefix(kind)?.strip_prefix('/')
}

/// Judges an Observation of a device.
pub fn verdict(observation: &Value, device: &str, truth: &Truth<'_>) -> Verdict {
    let reference = |name: &str, kind: &str| reference(observation, name, kind);
    let status = observation.get("status").and_then(Value::as_str);
    let (Some(patient), Some(of_device), Some((start, end))) = (
        reference("subject", "Patient"),
        reference("device", "Device"),
        window(observation),
    ) else {
        return Verdict::Right;
    };
    let passed = matches!(status, Some("entered-in-error" | "cancelled"));
    if of_device != device || passed || identifier_of(observation).is_none() {
        return Verdict::Right;
    }
    let encounter = reference("encounter", "Encounter");
    let wrong = |first, end| truth.is_wrong(patient, encounter, first, end);
    if !wrong(start, end) {
        return Verdict::Right;
    }
    let whole = || Verdict::Replace {
        resource: retracted(observation.clone()),
        gone: (start, end),
    };
    if has_other_value(observation) {
        return whole();
    }
    let mut resource = observation.clone();
    let Some(blanked) = blank(&mut resource, start, &wrong) else {
        return whole();
    };
    match blanked {
        Blanked::Nothing => Verdict::Right,
        Blanked::All(gone) => Verdict::Replace {
            resource: retracted(observation.clone()),
            gone,
        },
        Blanked::Some(gone) => {
            set_status(&mut resource, "corrected");
            Verdict::Replace { resource, gone }
        }
    }
}

enum Blanked {
    Nothing,
    Some((Ticks, Ticks)),
    All((Ticks, Ticks)),
}

/// Empties the slots that hold somebody else's readings; `None` when the slots cannot be told.
fn blank(resource: &mut Value, start: Ticks, wrong: &dyn Fn(Ticks, Ticks) -> bool) -> Option<Blanked> {
    let begin = iomt_mapping::Timestamp::from_ticks(start)?;
    let mut gone: Option<(Ticks, Ticks)> = None;
    let mut kept = false;
    for sampled in samples_mut(resource) {
        let period = SamplePeriod::from_milliseconds(&sampled.get("period")?.to_string())?;
        let data = sampled.get("data")?.as_str()?;
        let mut tokens: Vec<&str> = data.split(' ').collect();
        for (slot, token) in tokens
            .iter_mut()
            .enumerate()
            .filter(|(_, token)| **token != NO_READING)
        {
            let first = period.slot_start(begin, slot)?.ticks();
            let end = period.slot_start(begin, slot + 1)?.ticks();
            if wrong(first, end) {
                *token = NO_READING;
                let (least, most) = gone.unwrap_or((first, end));
                gone = Some((least.min(first), most.max(end)));
            } else {
                kept = true;
            }
        }
        let data = tokens.join(" ");
        sampled.as_object_mut()?.insert("data".to_owned(), json!(data));
    }
    Some(match (gone, kept) {
        (None, _) => Blanked::Nothing,
        (Some(gone), true) => Blanked::Some(gone),
        (Some(gone), false) => Blanked::All(gone),
    })
}

pub(super) fn samples_mut(resource: &mut Value) -> Vec<&mut Value> {
    let Some(resource) = resource.as_object_mut() else {
        return Vec::new();
    };
    let mut samples = Vec::new();
    for (name, member) in resource.iter_mut() {
        match name.as_str() {
            "valueSampledData" => samples.push(member),
            "component" => {
                let components = member.as_array_mut().into_iter().flatten();
                samples.extend(components.filter_map(|one| one.get_mut("valueSampledData")));
            }
            _ => {}
        }
    }
    samples
}

/// The values that are spread over slots, each with its component.
pub(super) fn samples(resource: &Value) -> Vec<(Option<&Value>, &Value)> {
    let own = resource.get("valueSampledData").map(|sampled| (None, sampled));
    let components = resource.get("component").and_then(Value::as_array);
    let of_components = components
        .into_iter()
        .flatten()
        .filter_map(|one| Some((Some(one), one.get("valueSampledData")?)));
    own.into_iter().chain(of_components).collect()
}

/// Whether it holds a value that is not spread over slots.
fn has_other_value(observation: &Value) -> bool {
    let other = |holder: &Value| {
        let mut names = holder.as_object().into_iter().flat_map(|members| members.keys());
        names.any(|name| name.starts_with("value") && name != "valueSampledData")
    };
    let components = observation.get("component").and_then(Value::as_array);
    other(observation) || components.is_some_and(|components| components.iter().any(other))
}

/// The value of our identifier; none when the Observation is somebody else's.
pub fn identifier_of(observation: &Value) -> Option<&str> {
    let identifiers = observation.get("identifier")?.as_array()?;
    let ours = identifiers
        .iter()
        .find(|one| one.get("system").and_then(Value::as_str) == Some(SERVICE_SYSTEM))?;
    ours.get("value")?.as_str()
}

/// First instant, and the one behind the last.
pub fn window(observation: &Value) -> Option<(Ticks, Ticks)> {
    let time = |value: &Value| parse_datetime(value.as_str()?).map(|time| time.ticks());
    for name in ["effectiveDateTime", "effectiveInstant"] {
        if let Some(at) = observation.get(name) {
            let at = time(at)?;
            return Some((at, at + 1));
        }
    }
    let period = observation.get("effectivePeriod")?;
    let start = time(period.get("start")?)?;
    let end = period.get("end").map_or(Some(start), time)?;
    Some((start, end.max(start).saturating_add(1)))
}

pub(super) fn set_status(resource: &mut Value, status: &str) {
    if let Some(resource) = resource.as_object_mut() {
        resource.insert("status".to_owned(), json!(status));
    }
}

/// The Observation as `entered-in-error`, with the mark that it was us.
pub(super) fn retracted(mut observation: Value) -> Value {
    set_status(&mut observation, "entered-in-error");
    if let Some(members) = observation.as_object_mut() {
        let meta = members.entry("meta").or_insert_with(|| json!({}));
        if let Some(meta) = meta.as_object_mut() {
            let tags = meta.entry("tag").or_insert_with(|| json!([]));
            if let Some(tags) = tags.as_array_mut() {
                tags.push(json!({"system": TAG_SYSTEM, "code": TAG_CODE}));
            }
        }
    }
    observation
}

/// Whether a correction of ours took everything from it.
pub fn is_retracted(observation: &Value) -> bool {
    let tags = observation
        .get("meta")
        .and_then(|meta| meta.get("tag")?.as_array());
    let is = |tag: &Value, name: &str, text: &str| tag.get(name).and_then(Value::as_str) == Some(text);
    observation.get("status").and_then(Value::as_str) == Some("entered-in-error")
        && tags.is_some_and(|tags| {
            let mut tags = tags.iter();
            tags.any(|tag| is(tag, "system", TAG_SYSTEM) && is(tag, "code", TAG_CODE))
        })
}

/// What replaces an Observation that a correction of ours took everything from, built anew of the readings that are its own
/// after all.
pub fn lifted(mut built: Value, retracted: &Value) -> Value {
    set_status(&mut built, "corrected");
    if let (Some(id), Some(members)) = (retracted.get("id"), built.as_object_mut()) {
        members.insert("id".to_owned(), id.clone());
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Ticks = 600_000_000;

    fn noon() -> Ticks {
        parse_datetime("2026-09-22T12:00:00Z").unwrap().ticks()
    }

    fn observation(patient: &str, start: i64, end: i64, value: Value) -> Value {
        let text = |minute: i64| {
            iomt_mapping::Timestamp::from_ticks(noon() + minute * MINUTE)
                .unwrap()
                .to_string()
        };
        let mut resource = json!({
            "resourceType": "Observation", "id": "o", "status": "final", "meta": {"versionId": "3"},
            "identifier": [{"system": SERVICE_SYSTEM, "value": "x"}],
            "subject": {"reference": format!("Patient/{patient}")}, "device": {"reference": "Device/d"},
            "effectivePeriod": {"start": text(start), "end": text(end)},
        });
        for (name, value) in value.as_object().unwrap() {
            resource[name] = value.clone();
        }
        resource
    }

    /// From minute 30 on the device is with bert, before with anna; minutes 20 to 50 are looked at.
    fn judge(observation: &Value) -> String {
        let turn = noon() + 30 * MINUTE;
        let whose = |at: Ticks| Some((if at < turn { "anna" } else { "bert" }.to_owned(), None));
        let truth = Truth {
            from: noon() + 20 * MINUTE,
            to: noon() + 50 * MINUTE,
            whose: &whose,
            turns: &[turn],
        };
        match verdict(observation, "d", &truth) {
            Verdict::Right => "right".to_owned(),
            Verdict::Replace { resource, gone } => {
                let minutes = |at: Ticks| (at - noon()) / MINUTE;
                let data = resource["valueSampledData"]["data"].as_str().unwrap_or_default();
                let status = resource["status"].as_str().unwrap();
                format!("{status} {}..{} {data}", minutes(gone.0), minutes(gone.1))
            }
        }
    }

    #[test]
    fn what_is_somebody_elses_goes_and_the_rest_stays() {
        let quantity = json!({"valueQuantity": {"value": 5}});
        let sampled = |data: &str| json!({"valueSampledData": {"period": 600_000, "data": data}});
        for (name, one, expected) in [
            ("his", observation("bert", 40, 40, quantity.clone()), "right"),
            ("hers", observation("anna", 25, 25, quantity.clone()), "right"),
            (
                "hers when it was his",
                observation("anna", 40, 40, quantity.clone()),
                "entered-in-error 40..40 ",
            ),
            (
                "not looked at",
                observation("anna", 55, 55, quantity.clone()),
                "right",
            ),
            (
                "a value of an hour",
                observation("anna", 0, 59, quantity.clone()),
                "entered-in-error 0..59 ",
            ),
            (
                "slots",
                observation("anna", 0, 59, sampled("0 1 2 3 E 5")),
                "corrected 30..40 0 1 2 E E 5",
            ),
            (
                "all slots",
                observation("anna", 30, 49, sampled("3 4")),
                "entered-in-error 30..50 3 4",
            ),
            (
                "his slots",
                observation("bert", 0, 59, sampled("E E E 3 4 5")),
                "right",
            ),
            (
                "his slots and one of hers",
                observation("bert", 0, 59, sampled("E E 2 3 4 5")),
                "corrected 20..30 E E E 3 4 5",
            ),
            (
                "a slot over the change",
                observation("anna", 5, 64, sampled("0 1 2 3 4 5")),
                "corrected 25..55 0 1 E E E 5",
            ),
        ] {
            assert_eq!(judge(&one), expected, "{name}");
        }
        let mut cancelled = observation("anna", 40, 40, quantity.clone());
        cancelled["status"] = json!("cancelled");
        let mut foreign = observation("anna", 40, 40, quantity.clone());
        foreign["identifier"][0]["system"] = json!("urn:other");
        let mut other_device = observation("anna", 40, 40, quantity);
        other_device["device"]["reference"] = json!("Device/other");
        for one in [cancelled, foreign, other_device] {
            assert_eq!(judge(&one), "right");
        }
    }

    #[test]
    fn only_what_we_took_may_be_lifted() {
        let ours = retracted(observation("anna", 0, 0, json!({"valueQuantity": {"value": 5}})));
        assert!(is_retracted(&ours));
        let mut theirs = ours.clone();
        theirs["meta"]["tag"] = json!([{"system": "urn:other", "code": TAG_CODE}]);
        assert!(!is_retracted(&theirs));
        let again = lifted(json!({"status": "final", "id": "x"}), &ours);
        assert_eq!(again, json!({"status": "corrected", "id": "o"}));
        assert!(!is_retracted(&again));
    }
}
