//! The FHIR destination over real sockets against a FHIR server that is not ours, judged by what that server holds.

use bedside_agent::config::{ClockTrust, FhirConfig, TlsConfig};
use bedside_agent::forward::fhir::FhirDestination;
use bedside_agent::forward::http::Http;
use bedside_agent::forward::{Fate, Group, GroupKey, GroupReading, Link};
use bedside_agent::message::Stamp;
use bedside_agent::packs::{Pack, PackText};
use bedside_tests::fhir_server::FhirServer;
use iomt_mapping::{Measurement, Property, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const NOON: i64 = 17_900_352_000_000_000;

fn pack() -> Arc<Pack> {
    let template = |name: &str, period: i32, value: Value| {
        json!({"templateType": "CodeValueFhir", "template": {
            "typeName": name, "periodInterval": period,
            "codes": [{"code": "8867-4", "system": "http://loinc.org", "display": "Heart rate"}], "value": value}})
    };
    let fhir = json!({"templateType": "CollectionFhir", "template": [
        template("spot", 0, json!({"valueType": "Quantity", "valueName": "hr", "unit": "/min",
            "system": "http://unitsofmeasure.org", "code": "/min"})),
        template("hourly", 60, json!({"valueType": "SampledData", "valueName": "hr", "defaultPeriod": 60_000,
            "unit": "/min"}))]});
    let text = PackText {
        name: "wearable".to_owned(),
        device: r#"{"templateType": "CollectionContent", "template": []}"#.to_owned(),
        fhir: Some(fhir.to_string()),
        agent: None,
    };
    Arc::new(Pack::load(text).0.expect("the pack loads"))
}

/// Readings of a device, one a minute, as one group.
fn group(pack: &Arc<Pack>, device: &str, type_name: &str, minutes: &[i64]) -> Group {
    let reading = |minute: &i64| GroupReading {
        clock: None,
        position: u64::try_from(*minute).expect("not negative") + 1,
        match_number: 0,
        received: Stamp {
            boot: 1,
            monotonic_us: 0,
            wall: Timestamp::from_ticks(NOON).expect("in range"),
            trusted: true,
        },
        measurement: Arc::new(Measurement {
            key: Arc::new(iomt_mapping::GroupKey {
                type_name: type_name.to_owned(),
                device_id: device.to_owned(),
                patient_id: Some(format!("patient of {device}")),
                ..Default::default()
            }),
            occurrence_time: Timestamp::from_ticks(NOON + minute * 600_000_000).expect("in range"),
            properties: vec![Property {
                name: "hr".into(),
                value: value_at(device, *minute).into(),
            }],
        }),
    };
    Group {
        key: Arc::new(GroupKey {
            pack: "wearable".into(),
            device: device.into(),
            type_name: type_name.into(),
            patient: Some(format!("patient of {device}").into()),
            encounter: None,
            correlation: None,
        }),
        pack: Arc::clone(pack),
        readings: minutes.iter().map(reading).collect(),
    }
}

fn value_at(device: &str, minute: i64) -> String {
    format!(
        "{}.{}",
        50 + (minute * 7 + device.len() as i64) % 90,
        minute % 9 + 1
    )
}

fn destination(server: &FhirServer, resolution: &str) -> FhirDestination {
    let config = json!({"url": server.base, "resolution": resolution});
    let config: FhirConfig = serde_json::from_value(config).expect("a configuration");
    let http = Http::real("fhir", 1, &TlsConfig::default(), None).expect("a thread");
    FhirDestination::new(&config, ClockTrust::Always, http.clone(), http).expect("a destination")
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Delivers until nothing is left to retry, as the forward loop does; gives the number of deliveries.
async fn deliver_all(
    fhir: &mut FhirDestination,
    groups: Vec<Group>,
    sent: &mut HashMap<String, Vec<u8>>,
) -> usize {
    let mut open = groups;
    for round in 1..100 {
        let delivery = fhir.deliver(open.clone(), &*sent).await;
        sent.extend(
            delivery
                .sent_periods
                .into_iter()
                .map(|p| (p.observation, p.memory)),
        );
        let mut left = Vec::new();
        for (group, fates) in open.into_iter().zip(delivery.fates) {
            let mut rest = group.clone();
            let mut fates = fates.into_iter();
            rest.readings.retain(|_| match fates.next() {
                Some(Fate::Delivered | Fate::Superseded) => false,
                Some(Fate::Retry) => true,
                other => panic!("{other:?}"),
            });
            if !rest.readings.is_empty() {
                left.push(rest);
            }
        }
        if left.is_empty() {
            return round;
        }
        assert!(
            matches!(delivery.link, Link::Down { .. }),
            "only an outage leaves something to retry"
        );
        open = left;
    }
    panic!("it does not end");
}

/// What the server holds of a type: (device identifier, start of the effective period) -> value, each once.
fn observations(server: &FhirServer, type_name: &str) -> BTreeMap<(String, String), (String, u64)> {
    let devices: HashMap<String, Value> = server
        .held("Device")
        .into_iter()
        .map(|held| {
            (
                format!("Device/{}", held.resource["id"].as_str().unwrap()),
                held.resource,
            )
        })
        .collect();
    let mut found = BTreeMap::new();
    for held in server.held("Observation") {
        let observation = &held.resource;
        if observation["code"]["text"] != type_name {
            continue;
        }
        let device = &devices[observation["device"]["reference"].as_str().unwrap()];
        assert_eq!(
            observation["subject"], device["patient"],
            "the patient of its device"
        );
        let value = match observation["valueSampledData"]["data"].as_str() {
            Some(data) => data.to_owned(),
            None => observation["valueQuantity"]["value"].to_string(),
        };
        let identifier = device["identifier"][0]["value"].as_str().unwrap().to_owned();
        let start = observation["effectivePeriod"]["start"]
            .as_str()
            .unwrap()
            .to_owned();
        let before = found.insert((identifier, start), (value, held.versions));
        assert!(before.is_none(), "two Observations of one instant");
    }
    found
}

fn time(minute: i64) -> String {
    Timestamp::from_ticks(NOON + minute * 600_000_000)
        .unwrap()
        .to_seven_digits()
}

#[test]
fn every_reading_is_there_once_whatever_the_server_and_the_network_do() {
    let server = FhirServer::start(&[]);
    let pack = pack();
    let devices = ["a", "bb", "ccc"];
    let minutes: Vec<i64> = (0..120).collect();
    let groups: Vec<Group> = devices
        .iter()
        .flat_map(|device| {
            [
                group(&pack, device, "spot", &minutes),
                group(&pack, device, "hourly", &minutes),
            ]
        })
        .collect();
    let mut sent = HashMap::new();
    run(async {
        let faults = [
            json!({"drop": 1}),
            json!({"reset": 1}),
            json!({"fail": 1, "status": 503, "retryAfter": "1"}),
            json!({"fail": 1, "status": 429}),
            json!({}),
        ];
        for (number, fault) in faults.iter().enumerate() {
            // Each time another part of the readings, and some of them again, by a new process.
            let mut fhir = destination(&server, "create");
            let part: Vec<Group> = groups
                .iter()
                .map(|whole| {
                    let mut part = whole.clone();
                    part.readings.retain(|reading| {
                        reading.position % 5 == number as u64 || reading.position % 11 == 0
                    });
                    part
                })
                .collect();
            server.fault(fault);
            deliver_all(&mut fhir, part, &mut sent).await;
        }
    });
    let spot = observations(&server, "spot");
    let expected: BTreeMap<_, _> = devices
        .iter()
        .flat_map(|device| minutes.iter().map(move |minute| (device, *minute)))
        .map(|(device, minute)| {
            (
                ((*device).to_owned(), time(minute)),
                (value_at(device, minute), 1),
            )
        })
        .collect();
    assert_eq!(spot, expected, "each instant once, written once");
    let hourly = observations(&server, "hourly");
    assert_eq!(hourly.len(), devices.len() * 2);
    for device in devices {
        for hour in 0..2 {
            let values: Vec<String> = (hour * 60..hour * 60 + 60).map(|m| value_at(device, m)).collect();
            let (data, _) = &hourly[&(device.to_owned(), time(hour * 60))];
            assert_eq!(*data, values.join(" "), "{device} hour {hour}");
        }
    }
}

#[test]
fn two_gateways_that_write_to_one_hour_lose_nothing() {
    for arguments in [&[][..], &["--if-none-match"]] {
        let server = FhirServer::start(arguments);
        server.put_device("a", "anna");
        let pack = pack();
        run(async {
            let mut one = destination(&server, "lookup");
            let mut other = destination(&server, "lookup");
            for minute in 0..20 {
                let fhir = if minute % 2 == 0 { &mut one } else { &mut other };
                let group = group(&pack, "a", "hourly", &[minute]);
                deliver_all(fhir, vec![group], &mut HashMap::new()).await;
            }
        });
        let hourly = observations(&server, "hourly");
        let mut values: Vec<String> = (0..20).map(|minute| value_at("a", minute)).collect();
        values.extend(vec!["E".to_owned(); 40]);
        assert_eq!(
            hourly[&("a".to_owned(), time(0))],
            (values.join(" "), 20),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_thousand_readings_take_few_requests() {
    let server = FhirServer::start(&[]);
    server.put_device("a", "anna");
    let pack = pack();
    let minutes: Vec<i64> = (0..1000).collect();
    run(deliver_all(
        &mut destination(&server, "lookup"),
        vec![group(&pack, "a", "spot", &minutes)],
        &mut HashMap::new(),
    ));
    assert_eq!(observations(&server, "spot").len(), 1000);
    let stats = server.stats();
    println!("{stats}");
    assert!(stats["requests"].as_u64().unwrap() < 40, "{stats}");
}
