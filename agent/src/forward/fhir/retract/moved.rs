//! Where the readings of an Observation belong that was taken from somebody, when the journal does not have them any more:
//! what was retracted still holds them, and so the server is the memory. Pure.
//!
//! Of an Observation that keeps some readings, the others would be gone with the correction: they are left first as an
//! Observation of their own, `entered-in-error` from the beginning ([`remainder`]).

use super::slots::{each_slot, without_empty};
use super::verdict::{
    NO_READING, TAG_SYSTEM, Truth, identifier_of, is_retracted, reference, retracted, samples, window,
};
use crate::associations::Ticks;
use iomt_mapping::fhir::{Identity, SERVICE_SYSTEM, resource_id};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// When the readings of a device were taken that the journal has, by type.
#[derive(Clone, Debug, Default)]
pub struct Held(BTreeMap<Box<str>, Vec<Ticks>>);

impl Held {
    /// Notes a reading.
    pub fn note(&mut self, type_name: &str, taken: Ticks) {
        match self.0.get_mut(type_name) {
            Some(times) => times.push(taken),
            None => drop(self.0.insert(type_name.into(), vec![taken])),
        }
    }

    /// To be called when all are noted.
    pub fn sort(&mut self) {
        self.0.values_mut().for_each(|times| times.sort_unstable());
    }

    /// Whether one of `[first, end)` is there.
    pub fn has(&self, type_name: &str, first: Ticks, end: Ticks) -> bool {
        self.0.get(type_name).is_some_and(|times| {
            let after = times.partition_point(|time| *time < first);
            times.get(after).is_some_and(|time| *time < end)
        })
    }
}

/// Readings that have to be in an Observation.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// The Observation that they belong to.
    pub identity: Identity,
    /// It, with these readings alone.
    pub resource: Value,
    /// The encounter that it had with somebody else. It stays where it is one of the patient's: a message may have named it.
    pub encounter: Option<String>,
}

impl Moved {
    /// Gives it back the encounter that it had.
    pub fn keep_encounter(&mut self) {
        if let (Some(encounter), Some(members)) = (self.encounter.take(), self.resource.as_object_mut()) {
            let reference = json!({"reference": format!("Encounter/{encounter}")});
            members.insert("encounter".to_owned(), reference);
        }
    }

    /// Id of its patient.
    pub fn patient(&self) -> Option<&str> {
        reference(&self.resource, "subject", "Patient")
    }
}

/// What can be made of an Observation that was taken from somebody.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moves {
    /// Readings with whose they are.
    pub moved: Vec<Moved>,
    /// Readings that are nobody's now: they stay where they are, and move when somebody says whose they are.
    pub of_nobody: u64,
    /// Values of a stretch in which the device changed hands: nobody can say whose they are.
    pub unclear: u64,
}

/// Whose a stretch is.
enum Of {
    One(String, Option<String>),
    Nobody,
    Several,
}

/// Where the readings of a retracted Observation of a device belong, but for those that `held` has.
pub fn moves(observation: &Value, device: &str, truth: &Truth<'_>, held: &Held) -> Moves {
    let mut moves = Moves::default();
    // A remainder names the version that it was taken from behind the identifier.
    let of_remainder = || Some(identifier_in(observation, TAG_SYSTEM)?.rsplit_once('#')?.0);
    let value = identifier_of(observation).or_else(of_remainder);
    let (Some(patient), Some(of_device), Some((start, end)), Some(value), Some(type_name)) = (
        reference(observation, "subject", "Patient"),
        reference(observation, "device", "Device"),
        window(observation),
        value,
        type_of(observation),
    ) else {
        return moves;
    };
    let Some(rest) = value.strip_prefix(&format!("{patient}.{device}.")) else {
        return moves;
    };
    if of_device != device || !is_retracted(observation) {
        return moves;
    }
    let place = |resource: Value, (whose, visit): (String, Option<String>)| {
        let identity = identity_of(&format!("{whose}.{device}.{rest}"));
        let had = reference(observation, "encounter", "Encounter");
        let encounter = had
            .filter(|_| visit.is_none() && whose != patient)
            .map(str::to_owned);
        Moved {
            resource: with(resource, &identity, &whose, visit, patient),
            identity,
            encounter,
        }
    };
    if samples(observation).is_empty() {
        if start < truth.from || end > truth.to || held.has(type_name, start, end) {
            return moves;
        }
        match of(truth, start, end) {
            Of::One(whose, visit) => moves.moved.push(place(observation.clone(), (whose, visit))),
            Of::Nobody => moves.of_nobody += 1,
            Of::Several => moves.unclear += 1,
        }
        return moves;
    }
    let mut owners: BTreeMap<(String, Option<String>), ()> = BTreeMap::new();
    let mut decide = |first: Ticks, end: Ticks, count: bool| {
        let is_empty = first == end;
        if is_empty || first < truth.from || end > truth.to || held.has(type_name, first, end) {
            return None;
        }
        match of(truth, first, end) {
            Of::One(whose, visit) => return Some((whose, visit)),
            Of::Nobody => moves.of_nobody += u64::from(count),
            Of::Several => moves.unclear += u64::from(count),
        }
        None
    };
    each_slot(&mut observation.clone(), start, &mut |first, end, _| {
        owners.extend(decide(first, end, true).map(|owner| (owner, ())));
    });
    let mut moved = Vec::new();
    for owner in owners.into_keys() {
        let mut resource = observation.clone();
        each_slot(&mut resource, start, &mut |first, end, token| {
            if decide(first, end, false).as_ref() != Some(&owner) {
                *token = NO_READING.to_owned();
            }
        });
        without_empty(&mut resource);
        moved.push(place(resource, owner));
    }
    moves.moved = moved;
    moves
}

/// The readings that a correction takes out of an Observation, as one that is `entered-in-error`: `before` is what the
/// server holds, `after` what it shall keep. None when `held` has all of them.
pub fn remainder(before: &Value, after: &Value, held: &Held) -> Option<Moved> {
    let (start, type_name) = (window(before)?.0, type_of(before)?);
    let value = identifier_of(before)?;
    let version = before.get("meta")?.get("versionId")?.as_str()?;
    let mut kept: Vec<String> = Vec::new();
    each_slot(&mut after.clone(), start, &mut |_, _, token| {
        kept.push(token.clone())
    });
    let mut kept = kept.into_iter();
    let mut taken = 0;
    let mut resource = before.clone();
    each_slot(&mut resource, start, &mut |first, end, token| {
        let stays = kept.next().as_ref() == Some(&*token);
        if stays || *token == NO_READING || held.has(type_name, first, end) {
            *token = NO_READING.to_owned();
        } else {
            taken += 1;
        }
    });
    if taken == 0 {
        return None;
    }
    without_empty(&mut resource);
    let value = format!("{value}#{version}");
    let identity = Identity {
        system: TAG_SYSTEM,
        id: resource_id(TAG_SYSTEM, &value),
        value,
    };
    if let Some(members) = resource.as_object_mut() {
        members.shift_remove("meta");
        members.insert("id".to_owned(), json!(identity.id));
        members.insert(
            "identifier".to_owned(),
            json!([{"system": identity.system, "value": identity.value}]),
        );
    }
    Some(Moved {
        resource: retracted(resource),
        identity,
        encounter: None,
    })
}

/// Whose all of `[first, end)` is.
fn of(truth: &Truth<'_>, first: Ticks, end: Ticks) -> Of {
    let turns = truth.turns.iter().copied();
    let mut instants = std::iter::once(first).chain(turns.filter(|turn| first < *turn && *turn < end));
    let mut found: Option<Option<(String, Option<String>)>> = None;
    let several = instants.any(|instant| {
        let now = (truth.whose)(instant);
        let differs = found.as_ref().is_some_and(|before| *before != now);
        found = Some(now);
        differs
    });
    match found.flatten() {
        _ if several => Of::Several,
        Some((whose, visit)) => Of::One(whose, visit),
        None => Of::Nobody,
    }
}

/// The Observation as one of this patient, without the encounter that it had with somebody else.
fn with(
    mut resource: Value,
    identity: &Identity,
    patient: &str,
    encounter: Option<String>,
    before: &str,
) -> Value {
    let Some(members) = resource.as_object_mut() else {
        return resource;
    };
    members.shift_remove("text");
    members.insert("id".to_owned(), json!(identity.id));
    if let Some(meta) = members.get_mut("meta").and_then(Value::as_object_mut) {
        meta.retain(|name, _| name == "profile");
        if meta.is_empty() {
            members.shift_remove("meta");
        }
    }
    let mut identifiers = vec![json!({"system": identity.system, "value": identity.value})];
    let others = members.get("identifier").and_then(Value::as_array);
    identifiers.extend(others.into_iter().flatten().filter(|one| !is_ours(one)).cloned());
    members.insert("identifier".to_owned(), Value::Array(identifiers));
    members.insert("status".to_owned(), json!("final"));
    members.insert(
        "subject".to_owned(),
        json!({"reference": format!("Patient/{patient}")}),
    );
    match encounter {
        Some(encounter) => {
            let reference = json!({"reference": format!("Encounter/{encounter}")});
            members.insert("encounter".to_owned(), reference);
        }
        None if before != patient => drop(members.shift_remove("encounter")),
        None => {}
    }
    resource
}

fn is_ours(identifier: &Value) -> bool {
    let system = identifier.get("system").and_then(Value::as_str);
    matches!(system, Some(SERVICE_SYSTEM | TAG_SYSTEM))
}

fn identity_of(value: &str) -> Identity {
    Identity {
        system: SERVICE_SYSTEM,
        value: value.to_owned(),
        id: resource_id(SERVICE_SYSTEM, value),
    }
}

fn identifier_in<'a>(observation: &'a Value, system: &str) -> Option<&'a str> {
    let mut all = observation.get("identifier")?.as_array()?.iter();
    let ours = all.find(|one| one.get("system").and_then(Value::as_str) == Some(system))?;
    ours.get("value")?.as_str()
}

/// The measurement type: the code that every Observation of ours has.
fn type_of(observation: &Value) -> Option<&str> {
    let mut codings = observation.get("code")?.get("coding")?.as_array()?.iter();
    let ours = codings.find(|one| one.get("system").and_then(Value::as_str) == Some(SERVICE_SYSTEM))?;
    ours.get("code")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iomt_mapping::Timestamp;
    use iomt_mapping::fhir::parse_datetime;

    const MINUTE: Ticks = 600_000_000;

    fn noon() -> Ticks {
        parse_datetime("2026-09-22T12:00:00Z").unwrap().ticks()
    }

    fn text(minute: i64) -> String {
        Timestamp::from_ticks(noon() + minute * MINUTE)
            .unwrap()
            .to_string()
    }

    /// Of anna, from minute `start` to `end`.
    fn observation(start: i64, end: i64, value: &Value) -> Value {
        let mut resource = json!({
            "resourceType": "Observation", "id": "o", "status": "final",
            "meta": {"versionId": "3", "profile": ["urn:p"]},
            "identifier": [{"system": SERVICE_SYSTEM, "value": "anna.d.hr.segment"}],
            "code": {"coding": [{"system": SERVICE_SYSTEM, "code": "hr"}]},
            "subject": {"reference": "Patient/anna"}, "device": {"reference": "Device/d"},
            "encounter": {"reference": "Encounter/e"},
            "effectivePeriod": {"start": text(start), "end": text(end)},
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

    /// Until minute 20 it is anna's, from 30 on bert's, and nobody's in between.
    fn whose(at: Ticks) -> Option<(String, Option<String>)> {
        match (at - noon()) / MINUTE {
            ..20 => Some(("anna".to_owned(), None)),
            20..30 => None,
            _ => Some(("bert".to_owned(), None)),
        }
    }

    fn truth<'a>(turns: &'a [Ticks; 2]) -> Truth<'a> {
        Truth {
            from: noon(),
            to: noon() + 60 * MINUTE,
            whose: &whose,
            turns,
        }
    }

    fn turns() -> [Ticks; 2] {
        [noon() + 20 * MINUTE, noon() + 30 * MINUTE]
    }

    fn shown(observation: &Value, held: &Held) -> String {
        let moves = moves(observation, "d", &truth(&turns()), held);
        let of = |moved: &Moved| {
            let resource = &moved.resource;
            assert_eq!(resource["id"], moved.identity.id.as_str());
            assert_eq!(resource["status"], "final");
            assert_eq!(resource["meta"], json!({"profile": ["urn:p"]}));
            let data = resource["valueSampledData"]["data"]
                .as_str()
                .unwrap_or("quantity");
            format!("{} {data}", moved.identity.value.split('.').next().unwrap())
        };
        let moved: Vec<String> = moves.moved.iter().map(of).collect();
        format!(
            "{} of nobody {} unclear {}",
            moved.join(", "),
            moves.of_nobody,
            moves.unclear
        )
    }

    #[test]
    fn what_was_taken_away_goes_to_whose_it_is_but_for_what_the_journal_has() {
        let none = Held::default();
        for (name, start, end, value, expected) in [
            ("his", 40, 40, quantity(), "bert quantity of nobody 0 unclear 0"),
            (
                "hers after all",
                10,
                10,
                quantity(),
                "anna quantity of nobody 0 unclear 0",
            ),
            ("nobody's", 25, 25, quantity(), " of nobody 1 unclear 0"),
            ("of all of them", 0, 59, quantity(), " of nobody 0 unclear 1"),
            ("not looked at", 70, 70, quantity(), " of nobody 0 unclear 0"),
            (
                "slots",
                0,
                59,
                sampled("0 1 2 3 E 5"),
                "anna 0 1 E E E E, bert E E E 3 E 5 of nobody 1 unclear 0",
            ),
            (
                "a slot over a turn",
                5,
                64,
                sampled("0 1 2 3 4 5"),
                "anna 0 E E E E E, bert E E E 3 4 E of nobody 0 unclear 2",
            ),
        ] {
            let taken = retracted(observation(start, end, &value));
            assert_eq!(shown(&taken, &none), expected, "{name}");
        }
        let mut held = Held::default();
        held.note("hr", noon() + 31 * MINUTE);
        held.note("hr", noon() + 10 * MINUTE);
        held.note("other", noon() + 40 * MINUTE);
        held.sort();
        let taken = |value: &Value| retracted(observation(0, 59, value));
        assert_eq!(
            shown(&taken(&sampled("0 1 2 3 4 5")), &held),
            "anna 0 E E E E E, bert E E E E 4 5 of nobody 1 unclear 0"
        );
        assert_eq!(shown(&taken(&quantity()), &held), " of nobody 0 unclear 0");
        // What others took back is not ours to move.
        let theirs = observation(40, 40, &quantity());
        assert_eq!(shown(&theirs, &none), " of nobody 0 unclear 0");
    }

    #[test]
    fn an_encounter_goes_along_only_where_it_is_the_patients() {
        let taken = retracted(observation(40, 40, &quantity()));
        let mut moved = moves(&taken, "d", &truth(&turns()), &Held::default())
            .moved
            .remove(0);
        assert_eq!(
            (moved.patient(), moved.resource.get("encounter")),
            (Some("bert"), None)
        );
        moved.keep_encounter();
        assert_eq!(moved.resource["encounter"]["reference"], "Encounter/e");
        let taken = retracted(observation(10, 10, &quantity()));
        let moved = moves(&taken, "d", &truth(&turns()), &Held::default())
            .moved
            .remove(0);
        assert_eq!(moved.resource["encounter"]["reference"], "Encounter/e");
    }

    #[test]
    fn what_would_be_gone_is_left_as_an_observation_of_its_own_and_can_be_moved() {
        let before = observation(0, 59, &sampled("0 1 2 3 4 5"));
        let after = observation(0, 59, &sampled("0 1 E E E E"));
        let mut held = Held::default();
        held.note("hr", noon() + 55 * MINUTE);
        let left = remainder(&before, &after, &held).unwrap();
        assert_eq!(left.resource["valueSampledData"]["data"], "E E 2 3 4 E");
        assert!(is_retracted(&left.resource) && identifier_of(&left.resource).is_none());
        assert_eq!(
            shown(&retracted_with_profile(&left.resource), &Held::default()),
            "bert E E E 3 4 E of nobody 1 unclear 0"
        );
        for minute in 20..60 {
            held.note("hr", noon() + minute * MINUTE);
        }
        held.sort();
        assert_eq!(remainder(&before, &after, &held), None);
    }

    /// [`shown`] expects the profile of the original.
    fn retracted_with_profile(left: &Value) -> Value {
        let mut left = left.clone();
        left["meta"]["profile"] = json!(["urn:p"]);
        left
    }
}
