//! What a server must hold after `turns` turns, value by value.

use super::readings::{DEVICES, IN_AN_HOUR, PRESSURE_EVERY, pulse, time};
use super::server::{ChaosServer, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What is not as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// Values that are in no Observation.
    pub lost: Vec<String>,
    /// Observations of which there is another one.
    pub duplicates: Vec<String>,
    /// Observations with a value or patient that is not theirs.
    pub wrong: Vec<String>,
    /// Changes of others that were written over.
    pub lost_notes: usize,
    /// Observations that others deleted and that are there again.
    pub resurrected: usize,
}

impl Finding {
    /// Whether all is as it must be.
    pub fn is_clean(&self) -> bool {
        *self == Finding::default()
    }
}

/// Kind, device and start of the time of an Observation.
type Slot = (String, u64, String);

/// Compares what the server holds with what was measured. What others deleted is exempt, but must stay deleted.
pub fn judge(server: &ChaosServer, turns: u64) -> Finding {
    let mut finding = Finding {
        lost_notes: server.lost_notes(),
        ..Finding::default()
    };
    let deleted = server.deleted();
    let mut held: BTreeMap<Slot, Vec<String>> = BTreeMap::new();
    for observation in server.observations() {
        let Some((slot, values)) = read(&observation) else {
            finding
                .wrong
                .push(format!("unreadable {}", text(&observation, "id")));
            continue;
        };
        let mut identifiers = observation["identifier"].as_array().into_iter().flatten();
        if identifiers.any(|one| deleted.contains(text(one, "value"))) {
            finding.resurrected += 1;
        }
        if text(&observation["subject"], "reference") != format!("Patient/patient-{}", slot.1) {
            finding.wrong.push(format!("patient of {slot:?}"));
        }
        if held.insert(slot.clone(), values).is_some() {
            finding.duplicates.push(format!("{slot:?}"));
        }
    }
    let mut missing = 0;
    for (slot, values) in expected(turns) {
        match held.remove(&slot) {
            None => {
                missing += 1;
                if missing > deleted.len() {
                    finding.lost.push(format!("{slot:?}"));
                }
            }
            Some(found) if found == values => {}
            Some(found) => {
                let lacks = found
                    .iter()
                    .zip(&values)
                    .any(|(found, value)| found != value && found == "E");
                let list = if lacks || found.len() < values.len() {
                    &mut finding.lost
                } else {
                    &mut finding.wrong
                };
                list.push(format!("{slot:?}: {found:?} instead of {values:?}"));
            }
        }
    }
    finding
        .wrong
        .extend(held.keys().map(|slot| format!("nobody measured {slot:?}")));
    finding
}

fn expected(turns: u64) -> BTreeMap<Slot, Vec<String>> {
    let mut all = BTreeMap::new();
    for device in 0..DEVICES {
        for turn in 0..turns {
            let at = time(turn).to_seven_digits();
            let value = pulse(device, turn);
            all.insert(("pulse".to_owned(), device, at.clone()), vec![value.to_string()]);
            if turn % PRESSURE_EVERY == 0 {
                let values = vec![value.to_string(), (value + 500_000).to_string()];
                all.insert(("pressure".to_owned(), device, at), values);
            }
            let hour = time(turn - turn % IN_AN_HOUR).to_seven_digits();
            let slots = all
                .entry(("wave".to_owned(), device, hour))
                .or_insert_with(|| vec!["E".to_owned(); IN_AN_HOUR as usize]);
            slots[(turn % IN_AN_HOUR) as usize] = value.to_string();
        }
    }
    all
}

fn read(observation: &Value) -> Option<(Slot, Vec<String>)> {
    let device = text(&observation["device"], "reference").strip_prefix("Device/device-")?;
    let start = observation["effectivePeriod"]["start"]
        .as_str()
        .or_else(|| observation["effectiveDateTime"].as_str())?;
    let codes = observation["code"]["coding"].as_array()?;
    let known: BTreeSet<&str> = ["pulse", "wave", "pressure"].into();
    let kind = codes
        .iter()
        .map(|coding| text(coding, "code"))
        .find(|code| known.contains(code))?;
    let number = |value: &Value| value["valueQuantity"]["value"].to_string();
    let values = match kind {
        "pulse" => vec![number(observation)],
        "wave" => text(&observation["valueSampledData"], "data")
            .split(' ')
            .map(str::to_owned)
            .collect(),
        // In any order: the diastolic value may have come first.
        _ => {
            let components = observation["component"].as_array()?;
            let of = |code: &str| {
                let found = components
                    .iter()
                    .find(|one| text(&one["code"]["coding"][0], "code") == code);
                found.map_or_else(|| "E".to_owned(), number)
            };
            vec![of("sys"), of("dia")]
        }
    };
    Some(((kind.to_owned(), device.parse().ok()?, start.to_owned()), values))
}
