//! Merges a group into the stored Observation of its period (`mapping.md` 4.4, rules D5, D13, D16, D19, D25).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::Value;

use super::build::{
    BuildOptions, ChangedPeriod, ResourceIds, Use, remember_samples, set_single_value, too_many_slots,
    with_remembered_times,
};
use super::datetime::parse_datetime;
use super::group::{BuildError, ObservationGroup, Tally};
use super::identity::SERVICE_SYSTEM;
use super::json::{Object, set_text};
use super::judge::Usable;
use super::memory::SentMemory;
use super::period::IdSegment;
use super::sampled_data::{Sample, SamplePeriod, fill_slots, stored_samples};
use super::template::{FhirTemplate, ValueKind, ValueTemplate};
use super::{compare_decimals, decimal};
use crate::error::ErrorKind;
use crate::time::Timestamp;

/// What becomes of a stored Observation.
#[derive(Clone, Debug, PartialEq)]
pub enum Merge {
    /// It says already what the group says: nothing is written.
    Unchanged,
    /// It is replaced by this, status `amended`.
    Changed(Value),
    /// It stays; the group belongs to another Observation, whose identifier ends in this segment. The caller asks the
    /// server for that one and creates or merges it with [`ObservationGroup::with_segment`].
    NewObservation {
        /// The group's segment with the suffix of rule D19 or D25.
        id_segment: IdSegment,
    },
}

/// A merge and what is to be remembered of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// What becomes of the stored Observation.
    pub merge: Merge,
    /// To be kept once the server has the result; also when nothing changed.
    pub memory: SentMemory,
    /// Indexes of readings of which nothing is in the result, because stored or other readings are newer.
    pub superseded: Vec<usize>,
}

/// Same or other Observation, found by comparing JSON as FHIR does: texts literally, numbers by value, order of members
/// does not count, a missing member and null are the same.
pub(crate) fn same_json(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => {
            compare_decimals(&a.to_string(), &b.to_string()) == Some(Ordering::Equal)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let within = |a: &Object, b: &Object| {
                a.iter()
                    .all(|(name, value)| same_json(value, b.get(name).unwrap_or(&Value::Null)))
            };
            within(a, b) && within(b, a)
        }
        _ => left == right,
    }
}

impl FhirTemplate {
    /// Merges a group into `existing`, the stored Observation of its identifier. `memory` is what an earlier create or
    /// merge of that Observation gave; without it, of two readings of one slot or value the received one wins.
    ///
    /// Errors: as [`FhirTemplate::create`], and `NotSupportedException` when the stored value is of another type, has
    /// several dimensions, or cannot be read.
    pub fn merge(
        &self,
        group: &ObservationGroup,
        existing: &Value,
        ids: &ResourceIds,
        options: &BuildOptions,
        memory: Option<&SentMemory>,
    ) -> Result<Merged, BuildError> {
        let uses = self.uses(group)?;
        let stored = existing
            .as_object()
            .ok_or_else(|| unsupported("The stored resource is no object."))?;
        let mut memory = memory.cloned().unwrap_or_default();
        if let Some(differs) = self.other_observation(stored, ids, options) {
            let id_segment = group
                .id_segment
                .with_suffix_of(&differs)
                .ok_or_else(|| unsupported("The stored Observation contradicts its own identifier."))?;
            return Ok(Merged {
                merge: Merge::NewObservation { id_segment },
                memory,
                superseded: Vec::new(),
            });
        }
        let mut merged = stored.clone();
        let category = self.category_json();
        if category.is_empty() {
            merged.shift_remove("category");
        } else {
            merged.insert("category".to_owned(), Value::Array(category));
        }
        let (stored_start, stored_end) =
            effective(stored)?.unwrap_or((group.boundary_start, group.boundary_end));
        let window = Window {
            stored_start,
            start: stored_start.min(group.boundary_start),
            end: stored_end.max(group.boundary_end),
        };
        let unchanged_instant = stored.contains_key("effectiveDateTime")
            && self.options.effective_date_time
            && window.start == window.end;
        if !unchanged_instant {
            self.set_effective(&mut merged, window.start, window.end);
        }
        let mut tallies = BTreeMap::new();
        for one in &uses {
            if one.component.is_none() {
                merge_value(&mut merged, one, &window, &mut memory, &mut tallies)?;
                continue;
            }
            let found = merged
                .get_mut("component")
                .and_then(Value::as_array_mut)
                .and_then(|components| components.iter_mut().find(|c| is_component(c, one.name)));
            match found.and_then(Value::as_object_mut) {
                Some(component) => merge_value(component, one, &window, &mut memory, &mut tallies)?,
                None => {
                    let widened = ObservationGroup {
                        boundary_start: window.start,
                        boundary_end: window.end,
                        ..group.clone()
                    };
                    if let Some(component) = self.new_component(one, &widened, &mut memory)? {
                        let list = merged
                            .entry("component")
                            .or_insert_with(|| Value::Array(Vec::new()));
                        if let Some(list) = list.as_array_mut() {
                            list.push(component);
                        }
                    }
                    note_all_used(one, &mut tallies);
                }
            }
        }
        let superseded = tallies
            .iter()
            .filter(|(_, tally)| tally.superseded && !tally.used)
            .map(|(reading, _)| *reading)
            .collect();
        let merge = if same_json(&Value::Object(merged.clone()), existing) {
            Merge::Unchanged
        } else {
            set_text(&mut merged, "status", Some("amended"));
            Merge::Changed(Value::Object(merged))
        };
        Ok(Merged {
            merge,
            memory,
            superseded,
        })
    }

    /// What makes the group another Observation than the stored one (rules D25 and D19): the text whose hash becomes
    /// the suffix.
    fn other_observation(
        &self,
        stored: &Object,
        ids: &ResourceIds,
        options: &BuildOptions,
    ) -> Option<String> {
        let encounter = ids.encounter.as_deref();
        let stored_encounter = stored
            .get("encounter")
            .and_then(|e| e.get("reference"))
            .and_then(Value::as_str)
            .and_then(encounter_id);
        if let (Some(ours), Some(stored)) = (encounter, stored_encounter)
            && ours != stored
        {
            return Some(ours.to_owned());
        }
        for (component, template) in self.values() {
            let ValueKind::SampledData {
                unit, spelled_period, ..
            } = &template.kind
            else {
                continue;
            };
            let Some(sampled) = stored_sampled_data(stored, component, template) else {
                continue;
            };
            let stored_unit = sampled
                .get("origin")
                .and_then(|origin| origin.get("unit"))
                .and_then(Value::as_str)
                .unwrap_or_default();
            let our_unit = unit.unit.as_deref().unwrap_or_default();
            if stored_unit != our_unit {
                return Some(our_unit.to_owned());
            }
            let stored_period = sampled.get("period").map(Value::to_string);
            if options.changed_period == ChangedPeriod::NewObservation
                && let Some(stored_period) = stored_period
                && compare_decimals(&stored_period, spelled_period) != Some(Ordering::Equal)
            {
                return Some(spelled_period.clone());
            }
        }
        None
    }
}

/// The window of the merged Observation, and where the stored one starts.
struct Window {
    stored_start: Timestamp,
    start: Timestamp,
    end: Timestamp,
}

fn unsupported(text: &str) -> BuildError {
    BuildError::new(ErrorKind::NotSupportedException, text)
}

/// The id within a reference to an Encounter, relative or absolute, with or without a version.
fn encounter_id(reference: &str) -> Option<&str> {
    let (_, id) = reference.rsplit_once("Encounter/")?;
    id.split('/').next().filter(|id| !id.is_empty())
}

fn is_component(component: &Value, name: &str) -> bool {
    let codings = component
        .get("code")
        .and_then(|code| code.get("coding"))
        .and_then(Value::as_array);
    codings.into_iter().flatten().any(|coding| {
        let is = |member: &str, text: &str| coding.get(member).and_then(Value::as_str) == Some(text);
        is("system", SERVICE_SYSTEM) && is("code", name)
    })
}

fn stored_sampled_data<'v>(
    stored: &'v Object,
    component: Option<usize>,
    template: &ValueTemplate,
) -> Option<&'v Object> {
    let holder = match (component, template.name.as_deref()) {
        (None, _) => stored,
        (Some(_), Some(name)) => stored
            .get("component")?
            .as_array()?
            .iter()
            .find(|c| is_component(c, name))?
            .as_object()?,
        (Some(_), None) => return None,
    };
    holder.get("valueSampledData")?.as_object()
}

/// First and last instant that the stored Observation tells; `None` when it tells none.
fn effective(stored: &Object) -> Result<Option<(Timestamp, Timestamp)>, BuildError> {
    let read = |value: &Value| {
        value
            .as_str()
            .and_then(parse_datetime)
            .ok_or_else(|| unsupported("The stored effective time cannot be read."))
    };
    if let Some(instant) = stored
        .get("effectiveDateTime")
        .or_else(|| stored.get("effectiveInstant"))
    {
        let time = read(instant)?;
        return Ok(Some((time, time)));
    }
    if stored.contains_key("effectiveTiming") {
        return Err(unsupported("The stored Observation has an effectiveTiming."));
    }
    let Some(period) = stored.get("effectivePeriod") else {
        return Ok(None);
    };
    let start = period.get("start").map(read).transpose()?;
    let end = period.get("end").map(read).transpose()?;
    Ok(match (start, end) {
        (Some(start), Some(end)) => Some((start, end.max(start))),
        (Some(one), None) | (None, Some(one)) => Some((one, one)),
        (None, None) => None,
    })
}

fn note_all_used(one: &Use<'_>, tallies: &mut BTreeMap<usize, Tally>) {
    let samples = match &one.judged.usable {
        Usable::Samples(samples) => samples.as_slice(),
        _ => &[],
    };
    let of_samples = samples.iter().filter_map(|sample| sample.reading);
    for reading in one.judged.used.iter().copied().chain(of_samples) {
        tallies.entry(reading).or_default().used = true;
    }
    for reading in &one.judged.left_out {
        tallies.entry(*reading).or_default().superseded = true;
    }
}

/// Merges one value into the stored Observation or component.
fn merge_value(
    target: &mut Object,
    one: &Use<'_>,
    window: &Window,
    memory: &mut SentMemory,
    tallies: &mut BTreeMap<usize, Tally>,
) -> Result<(), BuildError> {
    let expected = match (&one.judged.usable, &one.template.kind) {
        (Usable::Nothing, _) => return Ok(()),
        (Usable::Absent { .. }, _) => {
            // A stored value is more than the news that there is none now.
            if target.keys().any(|name| name.starts_with("value")) {
                for reading in &one.judged.used {
                    tallies.entry(*reading).or_default().superseded = true;
                }
            } else {
                set_single_value(target, one, memory);
                note_all_used(one, tallies);
            }
            return Ok(());
        }
        (_, ValueKind::Quantity(_)) => "valueQuantity",
        (_, ValueKind::String) => "valueString",
        (_, ValueKind::CodeableConcept(_)) => "valueCodeableConcept",
        (_, ValueKind::SampledData { .. }) => "valueSampledData",
    };
    let stored = target.get(expected);
    let only_a_reason = target.contains_key("dataAbsentReason")
        && !target.keys().any(|name| name.starts_with("value"))
        && expected != "valueSampledData";
    if stored.is_none() && !only_a_reason {
        return Err(unsupported(&format!(
            "The stored Observation has no {expected} to merge with."
        )));
    }
    match &one.judged.usable {
        Usable::Samples(samples) => merge_samples(target, one, samples, window, memory, tallies),
        Usable::Number { time, .. } | Usable::Text { time, .. } => {
            let stored_text = match stored {
                Some(Value::String(text)) => Some(text.clone()),
                Some(quantity) => quantity.get("value").map(Value::to_string),
                None => None,
            };
            let key = one.memory_key();
            let stored_time = stored_text.and_then(|text| {
                memory
                    .times_of(&key, &text)
                    .and_then(|times| times.last().copied())
            });
            if stored_time.is_some_and(|stored_time| stored_time > *time) {
                for reading in one.judged.used.iter().chain(&one.judged.left_out) {
                    tallies.entry(*reading).or_default().superseded = true;
                }
            } else {
                set_single_value(target, one, memory);
                note_all_used(one, tallies);
            }
            Ok(())
        }
        _ => {
            set_single_value(target, one, memory);
            note_all_used(one, tallies);
            Ok(())
        }
    }
}

fn merge_samples(
    target: &mut Object,
    one: &Use<'_>,
    samples: &[Sample],
    window: &Window,
    memory: &mut SentMemory,
    tallies: &mut BTreeMap<usize, Tally>,
) -> Result<(), BuildError> {
    let sampled = target
        .get_mut("valueSampledData")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| unsupported("The stored SampledData cannot be read."))?;
    let differs = |name: &str, expected: &str| {
        sampled
            .get(name)
            .is_some_and(|value| compare_decimals(&value.to_string(), expected) != Some(Ordering::Equal))
    };
    if differs("dimensions", "1") {
        return Err(unsupported("The stored SampledData has several dimensions."));
    }
    let shifted = sampled
        .get("origin")
        .and_then(|origin| origin.get("value"))
        .is_some_and(|value| compare_decimals(&value.to_string(), "0") != Some(Ordering::Equal));
    if differs("factor", "1") || shifted {
        return Err(unsupported("The stored SampledData is scaled."));
    }
    // The stored period stays (rule D19): its slots are what the stored values mean.
    let stored_period = sampled
        .get("period")
        .and_then(|period| decimal(&period.to_string()))
        .and_then(|period| SamplePeriod::from_milliseconds(&period));
    let period = match (&one.template.kind, stored_period) {
        (_, Some(period)) => period,
        (ValueKind::SampledData { period, .. }, None) => *period,
        _ => return Err(unsupported("The stored SampledData has no period.")),
    };
    let data = sampled.get("data").and_then(Value::as_str).unwrap_or_default();
    let mut all = stored_samples(data, window.stored_start, period).map_err(too_many_slots)?;
    if let Some(times) = memory.times_of(&one.memory_key(), data) {
        let times = times.to_vec();
        with_remembered_times(&mut all, &times, window.stored_start, period);
    }
    all.extend_from_slice(samples);
    let slotted = fill_slots(all, window.start, window.end, period).map_err(too_many_slots)?;
    set_text(sampled, "data", Some(&slotted.data));
    remember_samples(memory, one, &slotted);
    for reading in slotted.placed.iter().filter_map(|sample| sample.reading) {
        tallies.entry(reading).or_default().used = true;
    }
    for reading in slotted.superseded.iter().filter_map(|sample| sample.reading) {
        tallies.entry(reading).or_default().superseded = true;
    }
    for reading in &one.judged.used {
        tallies.entry(*reading).or_default().used = true;
    }
    Ok(())
}
