//! What the server must hold in the end: every reading once, with whom it was taken; nobody's readings wait.

use crate::schedule::{Reading, Resolution, Schedule, start};
use crate::ward::Outcome;
use serde_json::Value;
use std::collections::HashMap;

/// Numbers of a schedule.
#[derive(Default)]
pub struct Found {
    pub readings: u64,
    pub wrong: Vec<String>,
    pub missing: Vec<String>,
    pub twice: Vec<String>,
    /// Observations that were taken from somebody.
    pub retracted: u64,
    /// Observations that were changed by a correction.
    pub corrected: u64,
    /// Readings that the ledger leaves to somebody's hands.
    pub by_hand: u64,
}

pub fn judge(schedule: &Schedule, outcome: &Outcome) -> Found {
    let mut found = Found::default();
    let by_value: HashMap<String, &Reading> = schedule
        .readings
        .iter()
        .map(|reading| (reading.value.to_string(), reading))
        .collect();
    let mut held: HashMap<(&str, String), Vec<u64>> = HashMap::new();
    for observation in &outcome.observations {
        match observation["status"].as_str() {
            Some("entered-in-error") => {
                found.retracted += 1;
                continue;
            }
            Some("corrected") => found.corrected += 1,
            _ => {}
        }
        let subject = observation["subject"]["reference"].as_str().unwrap_or_default();
        let patient: u64 = subject
            .trim_start_matches("Patient/patient-")
            .parse()
            .unwrap_or(u64::MAX);
        let visit = observation["encounter"]["reference"].as_str();
        let visited = schedule.resolution == Resolution::LookupWithEncounter;
        if visited && visit != Some(&*format!("Encounter/visit-{patient}")) {
            found
                .wrong
                .push(format!("an Observation of patient {patient} is of {visit:?}"));
        }
        for (kind, value) in values(observation) {
            held.entry((kind, value)).or_default().push(patient);
        }
    }
    for ((kind, value), patients) in &held {
        let Some(reading) = by_value.get(value) else {
            found.wrong.push(format!("{kind} {value} was never taken"));
            continue;
        };
        let truth = schedule.patient_of(reading);
        if patients.iter().any(|patient| Some(*patient) != truth) {
            found.wrong.push(format!(
                "{kind} {}: with {patients:?}, not {truth:?}",
                name(reading)
            ));
        } else if patients.len() > 1 {
            found.twice.push(format!("{kind} {}", name(reading)));
        }
    }
    let mut of_nobody = 0;
    for reading in &schedule.readings {
        found.readings += 1;
        if schedule.patient_of(reading).is_none() {
            of_nobody += 2;
            continue;
        }
        for kind in ["single", "hourly"] {
            if !held.contains_key(&(kind, reading.value.to_string())) {
                // A slot in which the device changed hands cannot be told apart on the server; the ledger has it.
                let slot = reading.taken..reading.taken + crate::schedule::MINUTE;
                let by_hand = kind == "hourly" && outcome.by_hand > 0;
                if schedule.short_history && by_hand && schedule.turns().any(|turn| slot.contains(&turn)) {
                    found.by_hand += 1;
                    continue;
                }
                found.missing.push(format!("{kind} {}", name(reading)));
            }
        }
    }
    let summary = &outcome.summary;
    let accounted = summary.delivered
        + summary.superseded
        + summary.buffered
        + summary.waiting
        + summary.dead
        + summary.lost;
    let balanced = accounted == summary.matches && summary.dead + summary.lost + summary.buffered == 0;
    // Without history what was taken away and is nobody's waits on the server.
    let waiting = match schedule.short_history {
        true => summary.waiting <= of_nobody,
        false => summary.waiting == of_nobody,
    };
    if !balanced || !waiting {
        found
            .missing
            .push(format!("the accounts: {summary:?}, and {of_nobody} are nobody's"));
    }
    found
}

fn name(reading: &Reading) -> String {
    let minute = (reading.taken - start()) / crate::schedule::MINUTE;
    format!(
        "{} of device {} at {}:{:02}",
        reading.value,
        reading.device,
        minute / 60,
        minute % 60
    )
}

/// Kind and value of each reading in an Observation.
fn values(observation: &Value) -> Vec<(&'static str, String)> {
    match observation["valueSampledData"]["data"].as_str() {
        Some(data) => {
            let tokens = data.split(' ').filter(|token| *token != "E");
            tokens.map(|token| ("hourly", token.to_owned())).collect()
        }
        None => vec![("single", observation["valueQuantity"]["value"].to_string())],
    }
}
