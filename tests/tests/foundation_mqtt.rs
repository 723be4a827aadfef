//! MQTT to FHIR with a real broker, a real FHIR server and the real program, compared value by value.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::Process;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::{refuse, wait_for};
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{Sent, heart_rates, payload, publish, publish_readings};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A broker, a FHIR server and a gateway between them.
struct Ward {
    broker: Mosquitto,
    server: FhirServer,
    gateway: Gateway,
    // Dropped last.
    _folder: tempfile::TempDir,
}

impl Ward {
    /// Starts the servers; `extra` lines are added to the gateway's source.
    fn start(extra: &str) -> Ward {
        Ward::resolving("create", extra)
    }

    fn resolving(resolution: &str, extra: &str) -> Ward {
        let folder = tempfile::tempdir().unwrap();
        let broker = Mosquitto::start(folder.path(), "");
        let server = FhirServer::start(&[]);
        let gateway = Gateway::new(folder.path())
            .mqtt(broker.port, extra)
            .fhir(&server.base, &format!("resolution = \"{resolution}\""));
        Ward {
            _folder: folder,
            broker,
            server,
            gateway,
        }
    }

    /// The agent, connected to the broker.
    fn connected(&self) -> Process {
        let agent = self.gateway.start();
        self.gateway.wait_connected(LIMIT);
        agent
    }

    fn publish(&self, readings: &[Sent]) {
        publish_readings(self.broker.port, readings);
    }

    /// Waits until the server holds these readings, and no others.
    fn arrived(&self, readings: &[Sent]) {
        wait_for(&self.server, readings, LIMIT, || self.gateway.log());
    }
}

#[test]
fn mqtt_to_fhir_every_reading_is_one_observation() {
    let ward = Ward::start("");
    ward.gateway.drop_pack("heart-rate");
    let mut agent = ward.connected();
    let readings = heart_rates(3, 40, 0);
    ward.publish(&readings);
    ward.arrived(&readings);
    let accounts = ward.gateway.stop(&mut agent);
    assert_eq!(accounts["messages"], 120, "{accounts}");
    assert_eq!(accounts["delivered"], 120, "{accounts}");
    assert_eq!(accounts["observations"], 120, "{accounts}");
}

#[test]
fn network_down_for_a_while_then_up_loses_nothing_and_doubles_nothing() {
    let ward = Ward::start("");
    ward.gateway.drop_pack("heart-rate");
    let mut agent = ward.connected();
    let before = heart_rates(2, 20, 0);
    ward.publish(&before);
    ward.arrived(&before);
    refuse(&ward.server, true);
    let during = heart_rates(2, 30, 100);
    ward.publish(&during);
    std::thread::sleep(Duration::from_secs(3));
    refuse(&ward.server, false);
    let all: Vec<_> = before.into_iter().chain(during).collect();
    ward.arrived(&all);
    ward.gateway.stop(&mut agent);
}

#[test]
fn kill_minus_nine_in_the_middle_then_restart() {
    let ward = Ward::start("");
    ward.gateway.drop_pack("heart-rate");
    let mut agent = ward.connected();
    let mut all = Vec::new();
    for round in 0..4 {
        let readings = heart_rates(2, 25, round * 100);
        ward.publish(&readings);
        all.extend(readings);
        // Each time at another moment of the way: before the commit, during the delivery, after it.
        std::thread::sleep(Duration::from_millis(40 + 170 * round as u64));
        agent.kill();
        agent = ward.gateway.start();
    }
    ward.arrived(&all);
    let accounts = ward.gateway.stop(&mut agent);
    assert_eq!(accounts["lost"], 0, "{accounts}");
    assert_eq!(accounts["dead"], 0, "{accounts}");
}

#[test]
fn a_mapping_dropped_in_while_running_takes_the_messages_that_waited() {
    let ward = Ward::start("");
    let mut agent = ward.connected();
    let early = heart_rates(1, 5, 0);
    ward.publish(&early);
    std::thread::sleep(Duration::from_secs(1));
    ward.gateway.drop_pack("heart-rate");
    ward.arrived(&early);
    // A broken file changes nothing, and is said with its place.
    let file = ward
        .gateway
        .folder
        .join("mappings.d/heart-rate/devicecontent.json");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let late = heart_rates(1, 5, 50);
    ward.publish(&late);
    let all: Vec<_> = early.into_iter().chain(late).collect();
    ward.arrived(&all);
    let status = ward.gateway.status().expect("the agent answers");
    assert!(
        status["packs"][0]["problem"]
            .as_str()
            .unwrap_or_default()
            .contains("devicecontent.json"),
        "{status}"
    );
    ward.gateway.stop(&mut agent);
}

#[test]
fn what_cannot_be_processed_is_kept_and_stops_nothing() {
    let ward = Ward::start("max_message_bytes = 4096");
    ward.gateway.drop_pack("heart-rate");
    let mut agent = ward.connected();
    let good = heart_rates(1, 4, 0);
    let topic = "wearables/band-0/telemetry".to_owned();
    publish(
        ward.broker.port,
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
    ward.publish(&good[1..]);
    ward.arrived(&good);
    let status = ward.gateway.status().expect("the agent answers");
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
        assert!(
            names.contains(&name),
            "{name} in {names:?}\n{}",
            ward.gateway.log()
        );
    }
    let accounts = ward.gateway.stop(&mut agent);
    assert_eq!(accounts["unparsable"], 2, "{accounts}");
    assert_eq!(accounts["unmatched"], 1, "{accounts}");
    assert_eq!(accounts["dead"], 1, "{accounts}");
}

#[test]
fn a_reading_of_an_unknown_device_waits_visibly_and_goes_when_the_device_is_registered() {
    let ward = Ward::resolving("lookup", "");
    ward.gateway.drop_pack("heart-rate");
    ward.server.put_device("band-0", "patient-known");
    let mut agent = ward.connected();
    let readings = heart_rates(2, 5, 0);
    ward.publish(&readings);
    let known: Vec<_> = readings
        .iter()
        .filter(|r| r.device == "band-0")
        .cloned()
        .collect();
    ward.arrived(&known);
    let status = ward.gateway.status().expect("the agent answers");
    assert_eq!(status["summary"]["waiting"], 5, "{status}");
    assert!(
        status["problems"].to_string().contains("readings wait"),
        "{status}"
    );
    // A restart forgets none of them.
    agent.kill();
    ward.server.put_device("band-1", "patient-late");
    agent = ward.gateway.start();
    ward.arrived(&readings);
    let accounts = ward.gateway.stop(&mut agent);
    assert_eq!(
        (&accounts["delivered"], &accounts["waiting"]),
        (&10.into(), &0.into()),
        "{accounts}"
    );
}
