//! The mapping pack of a driver reads what the driver says of its simulated device.

use bedside_agent::ingest::serial::drivers::{Now, Output, driver, drivers};
use bedside_agent::simulate::serial::{names, simulator};
use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// 2026-03-01T07:00:00Z.
const BEGIN_TICKS: i64 = 17_723_484_000_000_000;

fn at(monotonic_us: u64) -> Now {
    let wall = Timestamp::from_ticks(BEGIN_TICKS + i64::try_from(monotonic_us).unwrap() * 10);
    Now { monotonic_us, wall }
}

/// What the driver says in two minutes with its simulated device.
fn bodies(name: &str) -> Vec<Vec<u8>> {
    let (mut driver, mut device) = (driver(name).unwrap().create(), simulator(name, 3).unwrap());
    let (mut out, mut now, mut bodies) = (Output::default(), 0, Vec::new());
    driver.start(at(0), &mut out);
    while now < 120_000_000 {
        let mut said = Vec::new();
        for bytes in out.send.drain(..) {
            device.bytes(&bytes, at(now), &mut said);
        }
        if device.deadline().is_some_and(|deadline| deadline <= now) {
            device.step(at(now), &mut said);
        }
        driver.bytes(&said, at(now), &mut out);
        if driver.deadline().is_some_and(|deadline| deadline <= now) {
            driver.timeout(at(now), &mut out);
        }
        bodies.extend(out.messages.drain(..).map(|message| message.body));
        now += 4000;
    }
    bodies
}

fn mapping(pack: &str) -> DeviceMapping {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings");
    let text = std::fs::read_to_string(folder.join(pack).join("devicecontent.json")).unwrap();
    DeviceMapping::load(&text).0.unwrap()
}

#[test]
fn every_pack_that_a_driver_names_is_there() {
    for info in drivers().iter().filter(|info| !info.pack.is_empty()) {
        mapping(info.pack);
    }
}

#[test]
fn every_reading_of_a_simulated_device_becomes_a_measurement() {
    for name in names() {
        let mapping = mapping(driver(name).unwrap().pack);
        let mut kinds = BTreeSet::new();
        for body in bodies(name) {
            let json: Value = serde_json::from_slice(&body).unwrap();
            let kind = json["kind"].as_str().unwrap().to_owned();
            let envelope = Envelope {
                body: &body,
                properties: &[],
                system_properties: &[
                    ("iothub-connection-device-id", PropertyValue::Text("bed-1")),
                    ("iothub-enqueuedtime", PropertyValue::Time(at(0).wall.unwrap())),
                ],
            };
            let normalized = mapping.normalize(&envelope.parse().unwrap());
            assert_eq!(normalized.errors, [], "{name}");
            let unmapped = match kind.as_str() {
                "vitals" | "record" => false,
                // Only the waveforms with a code have a template.
                "waveform" => !matches!(json["waveform"].as_str(), Some("pleth_waveform" | "ecg_waveform")),
                _ => true,
            };
            assert!(
                unmapped || !normalized.matches.is_empty(),
                "{name}: nothing reads a body of kind {kind}"
            );
            kinds.insert(kind);
        }
        assert!(
            kinds.contains("vitals") || kinds.contains("record"),
            "{name}: {kinds:?}"
        );
    }
}
