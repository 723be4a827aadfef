//! A device whose clock is off, on a FHIR server that is not ours: the reading gets the right time, and refers to a record of
//! what the clock showed.

use bedside_agent::config::{ClockTrust, DeviceClock, FhirConfig, TlsConfig};
use bedside_agent::forward::fhir::FhirDestination;
use bedside_agent::forward::http::Http;
use bedside_agent::forward::{Fate, Group, GroupReading};
use bedside_agent::message::{Message, RevisionId, SourceId, Stamp, StoredMessage};
use bedside_agent::normalize::{group_key, normalize};
use bedside_agent::packs::{Pack, PackSet, PackText};
use bedside_agent::timekeeping::device::{Clocks, Rules};
use bedside_tests::fhir_server::FhirServer;
use iomt_mapping::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// 2026-09-22T12:00:00Z.
const NOON: i64 = 17_900_784_000_000_000;

fn pack_set(rule: &str) -> PackSet {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../board-configs/mappings/heart-rate"
    );
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).expect("a ready pack");
    let text = PackText {
        name: "heart-rate".to_owned(),
        device: read("devicecontent.json"),
        fhir: Some(read("fhirmapping.json")),
        agent: None,
    };
    let pack = Arc::new(Pack::load(text).0.expect("the pack loads"));
    let rule: DeviceClock = toml::from_str(rule).expect("a rule");
    let set = Arc::new(PackSet::new(vec![pack])).with_clocks(&Arc::new(Rules(vec![rule.rule()])));
    Arc::unwrap_or_clone(set)
}

/// What becomes of a message that comes at noon.
fn group(packs: &PackSet, payload: &Value) -> Group {
    let stored = StoredMessage {
        position: 1,
        revision: RevisionId(1),
        message: Message::new(
            SourceId(1),
            Stamp {
                boot: 1,
                monotonic_us: 1,
                wall: Timestamp::from_ticks(NOON).expect("in range"),
                trusted: true,
            },
            payload.to_string(),
        ),
    };
    let normalized = normalize(&stored, packs, &[], &Clocks::default());
    let found = normalized.matches.first().expect("it matches");
    Group {
        key: Arc::new(group_key(found)),
        pack: Arc::clone(&found.pack),
        readings: vec![GroupReading {
            position: 1,
            match_number: 0,
            received: stored.message.stamp,
            measurement: Arc::clone(&found.measurement),
            clock: found.clock.clone(),
        }],
    }
}

fn deliver(server: &FhirServer, group: &Group) {
    let config = json!({"url": server.base, "resolution": "create", "coincident_timestamp": true});
    let config: FhirConfig = serde_json::from_value(config).expect("a configuration");
    let http = Http::real("fhir", 1, &TlsConfig::default(), None).expect("a thread");
    let mut fhir = FhirDestination::new(&config, ClockTrust::Ntp, http.clone(), http).expect("a destination");
    fhir.write_clocks("bed-12", &config.url, ClockTrust::Ntp);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let delivery = runtime.block_on(fhir.deliver(vec![group.clone()], &HashMap::<String, Vec<u8>>::new()));
    assert_eq!(delivery.fates, [[Fate::Delivered]], "{:?}", delivery.link);
}

#[test]
fn a_corrected_reading_and_the_record_of_its_clock_are_on_the_server_once() {
    let server = FhirServer::start(&[]);
    let packs = pack_set("device = \"74e8fffeff051c00\"\nzone = \"+02:00\"\nbehind = \"90 s\"");
    // Its display shows two hours more than UTC, less a minute and a half.
    let payload = json!({"deviceId": "74e8fffeff051c00", "patientId": "anna", "time": "2026-09-22T13:58:30", "heartRate": 71});
    let group = group(&packs, &payload);
    // Twice, by two processes: the second finds all of it there.
    deliver(&server, &group);
    deliver(&server, &group);
    let held = server.held("Observation");
    assert!(held.iter().all(|one| one.versions == 1));
    let (records, readings): (Vec<_>, Vec<_>) = held
        .iter()
        .map(|held| &held.resource)
        .partition(|one| one.get("valueDateTime").is_some());
    let ([record], [reading]) = (records.as_slice(), readings.as_slice()) else {
        panic!("{held:?}");
    };
    println!("{reading:#}\n{record:#}");
    assert_eq!(
        reading["effectivePeriod"]["start"],
        "2026-09-22T12:00:00.0000000Z"
    );
    assert_eq!(
        reading["extension"][1]["valueReference"]["reference"],
        format!("Observation/{}", record["id"].as_str().expect("an id"))
    );
    let gateway = server
        .held("Device")
        .into_iter()
        .find(|held| held.resource["version"].is_array());
    let gateway = gateway.expect("the gateway").resource;
    assert_eq!(gateway["identifier"][0]["value"], "bed-12");
    let reference = format!("Device/{}", gateway["id"].as_str().expect("an id"));
    assert_eq!(reading["extension"][0]["valueReference"]["reference"], reference);
    assert_eq!(record["device"]["reference"], reference);
    assert_eq!(record["subject"], reading["device"]);
    assert_eq!(record["code"]["coding"][0]["code"], "67975");
    assert_eq!(
        (&record["effectiveDateTime"], &record["valueDateTime"]),
        (&json!("2026-09-22T00:00:00Z"), &json!("2026-09-22T01:58:30Z"))
    );
    // The device's own time: 2026-09-22T13:58:30 in seconds since 2000.
    let value = reading["identifier"][1]["value"].as_str().expect("a value");
    assert!(
        value.starts_with("74E8FFFEFF051C00-") && value.ends_with("-843400710"),
        "{value}"
    );
}
