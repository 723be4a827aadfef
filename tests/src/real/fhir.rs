//! What the FHIR server of `tests/fhir-server` holds, compared with what was published.

use super::publisher::Sent;
use crate::fhir_server::FhirServer;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Device identifier and time.
type Place = (String, String);

/// From now on every request is refused with 503, or none.
pub fn refuse(server: &FhirServer, refuse: bool) {
    server.fault(&json!({ "fail": if refuse { 1_000_000_000 } else { 0 }, "status": 503 }));
}

/// What the server holds as readings: every value at each place, so that a doubled reading is seen.
pub fn readings(server: &FhirServer) -> BTreeMap<Place, Vec<f64>> {
    let devices: BTreeMap<String, String> = server
        .held("Device")
        .into_iter()
        .map(|held| {
            let id = format!("Device/{}", held.resource["id"].as_str().unwrap_or_default());
            (
                id,
                held.resource["identifier"][0]["value"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            )
        })
        .collect();
    let mut readings: BTreeMap<Place, Vec<f64>> = BTreeMap::new();
    for held in server.held("Observation") {
        let observation = held.resource;
        let device = observation["device"]["reference"].as_str().unwrap_or_default();
        let time = observation["effectivePeriod"]["start"]
            .as_str()
            .or_else(|| observation["effectiveDateTime"].as_str())
            .unwrap_or_default();
        let value = observation["valueQuantity"]["value"].as_f64().unwrap_or(f64::NAN);
        let device = devices.get(device).cloned().unwrap_or_else(|| device.to_owned());
        readings.entry((device, whole(time))).or_default().push(value);
    }
    readings
}

/// Waits until the server holds exactly these readings, each once with its value.
pub fn wait_for(server: &FhirServer, sent: &[Sent], limit: Duration, log: impl Fn() -> String) {
    let mut expected: BTreeMap<Place, Vec<f64>> = BTreeMap::new();
    for one in sent {
        let value = one.value.parse().expect("a decimal");
        expected
            .entry((one.device.clone(), whole(&one.time)))
            .or_default()
            .push(value);
    }
    let until = Instant::now() + limit;
    loop {
        let held = readings(server);
        if held == expected {
            return;
        }
        if Instant::now() > until {
            let missing: Vec<_> = expected
                .keys()
                .filter(|key| !held.contains_key(*key))
                .take(5)
                .collect();
            let strange: Vec<_> = held
                .iter()
                .filter(|(key, value)| expected.get(*key) != Some(*value))
                .take(5)
                .collect();
            panic!(
                "{} of {} readings within {limit:?}; missing {missing:?}; strange {strange:?}; the agent said:\n{}",
                held.len(),
                expected.len(),
                log()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The place of a reading as [`readings`] spells it.
pub fn place_of(device: &str, time: &str) -> (String, String) {
    (device.to_owned(), whole(time))
}

/// A time with seven fraction digits, so that equal instants are equal texts.
fn whole(time: &str) -> String {
    let time = time.trim_end_matches('Z');
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    format!("{seconds}.{fraction:0<7}Z")
}
