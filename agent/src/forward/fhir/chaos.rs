//! Chance against the destination: outages, lost answers, refused entries, other writers, restarts that forget what was
//! confirmed, repeats, any order. Whatever happens, the server holds every reading once, of the right patient.

use super::double::Double;
use super::tests::{destination, group, named_group, simulate, standard};
use super::*;
use crate::packs::Pack;
use crate::random;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DEVICES: [&str; 3] = ["a", "b", "c"];
const MINUTES: i64 = 90;

/// A value that tells where it belongs.
fn value_at(device: usize, minute: i64) -> String {
    format!("{}{minute:03}.5", device + 1)
}

/// One reading as a group of its own: type, device, minute, value name.
type One = (&'static str, usize, i64, &'static str);

fn everything() -> Vec<One> {
    let mut all = Vec::new();
    for device in 0..DEVICES.len() {
        for minute in 0..MINUTES {
            all.push(("hr", device, minute, "hr"));
            if minute % 10 == 0 {
                all.push(("hourly", device, minute, "hr"));
            }
            if minute % 9 == 0 {
                all.push(("bp", device, minute, "sys"));
                all.push(("bp", device, minute, "dia"));
            }
        }
    }
    all
}

/// A few of the open readings, in any order, those of one key together.
fn some(pack: &Arc<Pack>, open: &[One]) -> (Vec<One>, Vec<Group>) {
    let mut chosen: Vec<One> = Vec::new();
    for _ in 0..=random::below(40) {
        let at = usize::try_from(random::below(open.len() as u64)).unwrap();
        if !chosen.contains(&open[at]) {
            chosen.push(open[at]);
        }
    }
    let groups = chosen
        .iter()
        .map(|(kind, device, minute, name)| {
            let value = value_at(*device, *minute);
            let values = [(*minute, *name, value.as_str())];
            let position = u64::try_from(*minute).unwrap() + 1;
            // A patient that the message names makes other groups, which resolve to the same Observations.
            if random::below(2) == 0 {
                named_group(
                    pack,
                    [Some(DEVICES[*device]), Some("p"), None],
                    kind,
                    position,
                    &values,
                )
            } else {
                group(pack, DEVICES[*device], kind, position, &values)
            }
        })
        .collect();
    (chosen, groups)
}

/// Somebody else adds a note to an Observation.
fn meddle(double: &Double) {
    let mut state = double.state();
    let paths: Vec<String> = state
        .resources
        .keys()
        .filter(|path| path.starts_with("Obs"))
        .cloned()
        .collect();
    if paths.is_empty() {
        return;
    }
    let path = &paths[usize::try_from(random::below(paths.len() as u64)).unwrap()];
    let mut resource = state.resources[path].clone();
    let version: u64 = resource["meta"]["versionId"].as_str().unwrap().parse().unwrap();
    resource["meta"]["versionId"] = json!((version + 1).to_string());
    resource["note"] = json!([{"text": "seen"}]);
    state.put(resource);
}

fn judge(double: &Double, seed: u64) {
    let mut hr: BTreeMap<(String, String), String> = BTreeMap::new();
    let (mut hourly, mut bp) = (0, 0);
    let held = double.of_type("Observation");
    for observation in &held {
        let device = observation["device"]["reference"].as_str().unwrap();
        let number = DEVICES
            .iter()
            .position(|name| device == format!("Device/device-{name}"))
            .unwrap();
        assert_eq!(
            observation["subject"]["reference"],
            format!("Patient/patient-{number}"),
            "seed {seed}"
        );
        let start = observation["effectivePeriod"]["start"]
            .as_str()
            .unwrap()
            .to_owned();
        let text = |value: &Value| value["valueQuantity"]["value"].to_string();
        match observation["code"]["text"].as_str().unwrap() {
            "hr" => {
                let written = observation["meta"]["versionId"] == "1" || observation.get("note").is_some();
                assert!(
                    written && observation["status"] == "final",
                    "seed {seed}: written once: {observation}"
                );
                assert!(
                    hr.insert((device.to_owned(), start), text(observation)).is_none(),
                    "seed {seed}"
                );
            }
            "hourly" => {
                hourly += 1;
                let data = observation["valueSampledData"]["data"].as_str().unwrap();
                let first = if start.contains("T00:") { 0 } else { 60 };
                let expected: Vec<String> = (0..6)
                    .map(|slot| first + slot * 10)
                    .map(|minute| {
                        if minute < MINUTES {
                            value_at(number, minute)
                        } else {
                            "E".to_owned()
                        }
                    })
                    .collect();
                assert_eq!(data, expected.join(" "), "seed {seed} {start}");
            }
            _ => {
                bp += 1;
                let values: Vec<String> = observation["component"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(text)
                    .collect();
                assert!(
                    values.len() == 2 && values[0] == values[1],
                    "seed {seed}: {values:?}"
                );
            }
        }
    }
    let devices = DEVICES.len();
    let minutes = usize::try_from(MINUTES).unwrap();
    assert_eq!(
        (hr.len(), hourly, bp),
        (devices * minutes, devices * 2, devices * minutes / 9),
        "seed {seed}"
    );
    let mut values: Vec<String> = hr.into_values().collect();
    let mut expected: Vec<String> = (0..devices)
        .flat_map(|device| (0..MINUTES).map(move |minute| value_at(device, minute)))
        .collect();
    values.sort();
    expected.sort();
    assert_eq!(values, expected, "seed {seed}");
}

#[test]
fn the_server_holds_every_reading_once_whatever_chance_does() {
    let seeds = if std::env::var_os("BEDSIDE_LONG").is_some() {
        400
    } else {
        12
    };
    for seed in 1..=seeds {
        random::seed(seed);
        let devices: Vec<Value> = DEVICES
            .iter()
            .enumerate()
            .map(|(number, name)| super::tests::device(name, &format!("patient-{number}")))
            .collect();
        let (double, http) = Double::new(&devices);
        double.state().chaos = 50 + random::below(150);
        double.state().lagging = random::below(2) == 0;
        let pack = standard();
        let mut open = everything();
        let all = open.clone();
        simulate(async {
            let mut fhir = destination(&http, "");
            let mut stored: HashMap<String, Vec<u8>> = HashMap::new();
            let mut rounds = 0;
            while !open.is_empty() {
                rounds += 1;
                assert!(rounds < 5000, "seed {seed} does not end, {} left", open.len());
                if random::below(10) == 0 {
                    meddle(&double);
                }
                // Now and then a repeat of anything: a crash before the confirmation was stored.
                let (chosen, groups) = some(&pack, if random::below(5) == 0 { &all } else { &open });
                let delivery = fhir.deliver(groups, &stored).await;
                assert_eq!(delivery.fates.len(), chosen.len());
                let forgets = random::below(8) == 0;
                if !forgets {
                    stored.extend(
                        delivery
                            .sent_periods
                            .into_iter()
                            .map(|p| (p.observation, p.memory)),
                    );
                    for (one, fates) in chosen.iter().zip(&delivery.fates) {
                        match &fates[0] {
                            Fate::Delivered | Fate::Superseded => open.retain(|other| other != one),
                            Fate::Retry | Fate::Waiting(_) => {}
                            Fate::Dead(error) => panic!("seed {seed}: {one:?} {error:?}"),
                        }
                    }
                }
                if forgets || random::below(20) == 0 {
                    fhir = destination(&http, "");
                }
                embassy_time::Timer::after_secs(1 + random::below(600)).await;
            }
        });
        judge(&double, seed);
    }
}
