//! MQTT to Event Hubs and to FHIR at once, each with its own progress, with real parts.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::event_hub_endpoint::{EventHubEndpoint, Fault, Settings};
use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::{place_of, refuse, wait_for};
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{Sent, heart_rates, payload, publish_readings};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Bodies by event id; an id with two bodies fails.
fn taken(endpoint: &EventHubEndpoint) -> BTreeMap<String, String> {
    let mut events = BTreeMap::new();
    for event in endpoint.events() {
        let body = String::from_utf8(event.body.clone()).unwrap();
        let before = events.insert(event.id().to_owned(), body.clone());
        assert!(
            before.is_none_or(|before| before == body),
            "one id, two bodies: {}",
            event.id()
        );
    }
    events
}

fn wait_for_events(endpoint: &EventHubEndpoint, sent: &[Sent], log: impl Fn() -> String) {
    let expected: BTreeSet<String> = sent.iter().map(payload).collect();
    let until = std::time::Instant::now() + LIMIT;
    while taken(endpoint).into_values().collect::<BTreeSet<_>>() != expected {
        assert!(
            std::time::Instant::now() < until,
            "{} of {} events; refused: {:?}; the agent said:\n{}",
            taken(endpoint).len(),
            expected.len(),
            endpoint.refusals(),
            log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn of_two_destinations_one_that_is_down_never_holds_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let endpoint = EventHubEndpoint::start(Settings::default());
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .fhir(&server.base, "resolution = \"create\"")
        .with(&endpoint.destination("cloud", "message"));
    gateway.drop_pack("heart-rate");
    refuse(&server, true);
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let readings = heart_rates(2, 30, 0);
    publish_readings(broker.port, &readings);
    wait_for_events(&endpoint, &readings, || gateway.log());
    assert_eq!(
        endpoint.events().len(),
        readings.len(),
        "nothing twice without a reason"
    );
    refuse(&server, false);
    wait_for(&server, &readings, LIMIT, || gateway.log());
    assert_eq!(endpoint.refusals(), Vec::<String>::new());
    // And the other way round: the hub is down, and the server gets everything.
    endpoint.set_fault(Some(Fault::Down));
    let later = heart_rates(2, 30, 100);
    publish_readings(broker.port, &later);
    let all = [readings, later].concat();
    wait_for(&server, &all, LIMIT, || gateway.log());
    endpoint.set_fault(None);
    wait_for_events(&endpoint, &all, || gateway.log());
    gateway.stop(&mut agent);
}

#[test]
fn a_lost_answer_and_a_kill_repeat_events_with_the_same_id_and_lose_none() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let endpoint = EventHubEndpoint::start(Settings::default());
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .with(&endpoint.destination("cloud", "message"));
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let mut all = heart_rates(2, 20, 0);
    endpoint.fail_next([Fault::ResetAfterCommit]);
    publish_readings(broker.port, &all);
    std::thread::sleep(Duration::from_millis(700));
    agent.kill();
    agent = gateway.start();
    let later = heart_rates(2, 20, 100);
    publish_readings(broker.port, &later);
    all.extend(later);
    wait_for_events(&endpoint, &all, || gateway.log());
    gateway.stop(&mut agent);
}

#[test]
fn mqtt_to_observations_on_an_event_hub_through_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let endpoint = EventHubEndpoint::start(Settings::default());
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .store("progress_interval", "200 ms")
        .with(&endpoint.destination("cloud", "observation"));
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let observations = || -> BTreeMap<String, serde_json::Value> {
        let bodies = taken(&endpoint).into_values();
        let resources = bodies.map(|body| serde_json::from_str::<serde_json::Value>(&body).unwrap());
        resources
            .map(|resource| (resource["id"].as_str().unwrap().to_owned(), resource))
            .collect()
    };
    let wait = |count: usize| {
        let until = std::time::Instant::now() + LIMIT;
        while observations().len() < count {
            assert!(
                std::time::Instant::now() < until,
                "{} of {count}; refused: {:?}; the agent said:\n{}",
                observations().len(),
                endpoint.refusals(),
                gateway.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let first = heart_rates(2, 10, 0);
    publish_readings(broker.port, &first);
    wait(first.len());
    agent.kill();
    agent = gateway.start();
    let second = heart_rates(2, 10, 100);
    publish_readings(broker.port, &second);
    wait(first.len() + second.len());
    let held = observations();
    let place = |one: &serde_json::Value| {
        let time = match &one["effectivePeriod"]["start"] {
            serde_json::Value::Null => &one["effectiveDateTime"],
            start => start,
        };
        place_of(
            one["device"]["identifier"]["value"].as_str().unwrap(),
            time.as_str().unwrap(),
        )
    };
    for reading in first.iter().chain(&second) {
        let found = held
            .values()
            .find(|one| place(one) == place_of(&reading.device, &reading.time));
        let found = found.unwrap_or_else(|| panic!("no Observation of {reading:?}"));
        assert_eq!(
            found["valueQuantity"]["value"].as_f64(),
            reading.value.parse().ok()
        );
        assert_eq!(
            found["subject"]["identifier"]["value"],
            format!("patient-{}", reading.device)
        );
    }
    assert_eq!(held.len(), first.len() + second.len(), "each once");
    gateway.stop(&mut agent);
}
