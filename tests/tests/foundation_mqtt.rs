//! MQTT to FHIR with a real broker, a real FHIR server and the real program, compared value by value.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::{refuse, wait_for};
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{heart_rates, payload, publish, publish_readings};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A broker, a FHIR server and a gateway between them.
struct Ward {
    folder: tempfile::TempDir,
    broker: Mosquitto,
    server: FhirServer,
    gateway: Gateway,
}

impl Ward {
    /// Starts the servers; `extra` lines are added to the gateway's source.
    fn start(extra: &str) -> Ward {
        let folder = tempfile::tempdir().unwrap();
        let broker = Mosquitto::start(folder.path(), "");
        let server = FhirServer::start(&[]);
        let gateway = Gateway::new(folder.path())
            .mqtt(broker.port, extra)
            .fhir(&server.base, "resolution = \"create\"");
        Ward {
            folder,
            broker,
            server,
            gateway,
        }
    }
}

#[test]
fn mqtt_to_fhir_every_reading_is_one_observation() {
    let Ward {
        folder: _folder,
        broker,
        server,
        gateway,
    } = Ward::start("");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let readings = heart_rates(3, 40, 0);
    publish_readings(broker.port, &readings);
    wait_for(&server, &readings, LIMIT, || gateway.log());
    let accounts = gateway.stop(&mut agent);
    assert_eq!(accounts["messages"], 120, "{accounts}");
    assert_eq!(accounts["delivered"], 120, "{accounts}");
    assert_eq!(accounts["observations"], 120, "{accounts}");
}

#[test]
fn network_down_for_a_while_then_up_loses_nothing_and_doubles_nothing() {
    let Ward {
        folder: _folder,
        broker,
        server,
        gateway,
    } = Ward::start("");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let before = heart_rates(2, 20, 0);
    publish_readings(broker.port, &before);
    wait_for(&server, &before, LIMIT, || gateway.log());
    refuse(&server, true);
    let during = heart_rates(2, 30, 100);
    publish_readings(broker.port, &during);
    std::thread::sleep(Duration::from_secs(3));
    refuse(&server, false);
    let all: Vec<_> = before.into_iter().chain(during).collect();
    wait_for(&server, &all, LIMIT, || gateway.log());
    gateway.stop(&mut agent);
}

#[test]
fn kill_minus_nine_in_the_middle_then_restart() {
    let Ward {
        folder: _folder,
        broker,
        server,
        gateway,
    } = Ward::start("");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let mut all = Vec::new();
    for round in 0..4 {
        let readings = heart_rates(2, 25, round * 100);
        publish_readings(broker.port, &readings);
        all.extend(readings);
        // Each time at another moment of the way: before the commit, during the delivery, after it.
        std::thread::sleep(Duration::from_millis(40 + 170 * round as u64));
        agent.kill();
        agent = gateway.start();
    }
    wait_for(&server, &all, LIMIT, || gateway.log());
    let accounts = gateway.stop(&mut agent);
    assert_eq!(accounts["lost"], 0, "{accounts}");
    assert_eq!(accounts["dead"], 0, "{accounts}");
}

#[test]
fn a_mapping_dropped_in_while_running_takes_the_messages_that_waited() {
    let Ward {
        folder: _folder,
        broker,
        server,
        gateway,
    } = Ward::start("");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let early = heart_rates(1, 5, 0);
    publish_readings(broker.port, &early);
    std::thread::sleep(Duration::from_secs(1));
    gateway.drop_pack("heart-rate");
    wait_for(&server, &early, LIMIT, || gateway.log());
    // A broken file changes nothing, and is said with its place.
    let file = gateway.folder.join("mappings.d/heart-rate/devicecontent.json");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let late = heart_rates(1, 5, 50);
    publish_readings(broker.port, &late);
    let all: Vec<_> = early.into_iter().chain(late).collect();
    wait_for(&server, &all, LIMIT, || gateway.log());
    let status = gateway.status().expect("the agent answers");
    assert!(
        status["packs"][0]["problem"]
            .as_str()
            .unwrap_or_default()
            .contains("devicecontent.json"),
        "{status}"
    );
    gateway.stop(&mut agent);
}

#[test]
fn what_cannot_be_processed_is_kept_and_stops_nothing() {
    let Ward {
        folder: _folder,
        broker,
        server,
        gateway,
    } = Ward::start("max_message_bytes = 4096");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let good = heart_rates(1, 4, 0);
    let topic = "wearables/band-0/telemetry".to_owned();
    publish(
        broker.port,
        &[
            (topic.clone(), "{ this is no JSON".to_owned()),
            (topic.clone(), r#"{"nobody":"knows"}"#.to_owned()),
            (
                topic.clone(),
                format!("{{\"padding\":\"{}\"}}", "x".repeat(20_000)),
            ),
            (
                topic.clone(),
                r#"{"deviceId":"band-0","time":"yesterday","heartRate":70}"#.to_owned(),
            ),
            (topic, payload(&good[0])),
        ],
    );
    publish_readings(broker.port, &good[1..]);
    wait_for(&server, &good, LIMIT, || gateway.log());
    let status = gateway.status().expect("the agent answers");
    let names: Vec<&str> = status["dead_letters"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|letters| letters["error"]["name"].as_str())
        .collect();
    for name in [
        "InvalidDataFormatException",
        "MessageTooLargeException",
        "IncompatibleDataException",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}\n{}", gateway.log());
    }
    let accounts = gateway.stop(&mut agent);
    assert_eq!(accounts["unparsable"], 2, "{accounts}");
    assert_eq!(accounts["unmatched"], 1, "{accounts}");
    assert_eq!(accounts["dead"], 1, "{accounts}");
}

#[test]
fn a_reading_of_an_unknown_device_waits_visibly_and_goes_when_the_device_is_registered() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .fhir(&server.base, "resolution = \"lookup\"");
    gateway.drop_pack("heart-rate");
    server.put_device("band-0", "patient-known");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let readings = heart_rates(2, 5, 0);
    publish_readings(broker.port, &readings);
    let known: Vec<_> = readings
        .iter()
        .filter(|r| r.device == "band-0")
        .cloned()
        .collect();
    wait_for(&server, &known, LIMIT, || gateway.log());
    let status = gateway.status().expect("the agent answers");
    assert_eq!(status["summary"]["waiting"], 5, "{status}");
    assert!(
        status["problems"].to_string().contains("readings wait"),
        "{status}"
    );
    // A restart forgets none of them.
    agent.kill();
    server.put_device("band-1", "patient-late");
    agent = gateway.start();
    wait_for(&server, &readings, LIMIT, || gateway.log());
    let accounts = gateway.stop(&mut agent);
    assert_eq!(
        (&accounts["delivered"], &accounts["waiting"]),
        (&10.into(), &0.into()),
        "{accounts}"
    );
}
