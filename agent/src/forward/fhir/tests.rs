//! The destination against the double: what is delivered, what waits, what is dead, and what the server holds then.

use super::double::{BASE, Double, Fault};
use super::*;
use crate::clock;
use crate::forward::{GroupKey, GroupReading};
use crate::message::Stamp;
use crate::packs::{Pack, PackText};
use embassy_time::Duration;
use iomt_mapping::{Measurement, Property, Timestamp};
use serde_json::{Value, json};

const NOON: i64 = 17_900_352_000_000_000;

pub(in crate::forward) fn pack(fhir: &Value) -> Arc<Pack> {
    let text = PackText {
        name: "wearable".to_owned(),
        device: r#"{"templateType": "CollectionContent", "template": []}"#.to_owned(),
        fhir: Some(fhir.to_string()),
        agent: None,
    };
    let (pack, findings) = Pack::load(text);
    Arc::new(pack.unwrap_or_else(|| panic!("{findings:?}")))
}

pub(in crate::forward) fn template(type_name: &str, period: i32, value: Value) -> Value {
    json!({"templateType": "CodeValueFhir", "template": {
        "typeName": type_name, "periodInterval": period,
        "codes": [{"code": type_name, "system": "http://loinc.org"}], "value": value}})
}

pub(in crate::forward) fn quantity(name: &str) -> Value {
    json!({"valueType": "Quantity", "valueName": name, "unit": "/min"})
}

/// Types: `hr` (one instant), `hourly` (SampledData), `bp` (two values in one instant).
pub(in crate::forward) fn standard() -> Arc<Pack> {
    let mut bp = template("bp", 0, Value::Null);
    bp["template"].as_object_mut().unwrap().remove("value");
    bp["template"]["components"] = json!([
        {"codes": [{"code": "8480-6"}], "value": quantity("sys")},
        {"codes": [{"code": "8462-4"}], "value": quantity("dia")}]);
    let sampled =
        json!({"valueType": "SampledData", "valueName": "hr", "defaultPeriod": 600_000, "unit": "/min"});
    pack(&json!({"templateType": "CollectionFhir", "template": [
        template("hr", 0, quantity("hr")), template("hourly", 60, sampled), bp]}))
}

pub(in crate::forward) fn device(identifier: &str, patient: &str) -> Value {
    json!({"resourceType": "Device", "id": format!("device-{identifier}"),
        "identifier": [{"value": identifier}], "patient": {"reference": format!("Patient/{patient}")}})
}

/// (minute after noon, value name, text), by position.
pub(in crate::forward) type Values<'a> = &'a [(i64, &'a str, &'a str)];

pub(in crate::forward) fn group(
    pack: &Arc<Pack>,
    device: &str,
    type_name: &str,
    first: u64,
    values: Values,
) -> Group {
    named_group(pack, [Some(device), None, None], type_name, first, values)
}

/// `[device, patient, encounter]` as the message names them.
pub(in crate::forward) fn named_group(
    pack: &Arc<Pack>,
    [device, patient, encounter]: [Option<&str>; 3],
    type_name: &str,
    first: u64,
    values: Values,
) -> Group {
    let text = |id: Option<&str>| id.map(str::to_owned);
    let readings = values
        .iter()
        .enumerate()
        .map(|(number, (minute, name, value))| GroupReading {
            position: first + number as u64,
            match_number: 0,
            received: Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::from_ticks(NOON + 10_000_000).unwrap(),
                trusted: true,
            },
            measurement: Arc::new(Measurement {
                type_name: type_name.to_owned(),
                occurrence_time: Timestamp::from_ticks(NOON + minute * 600_000_000).unwrap(),
                device_id: device.unwrap().to_owned(),
                patient_id: text(patient),
                encounter_id: text(encounter),
                correlation_id: None,
                properties: vec![Property {
                    name: (*name).to_owned(),
                    value: (*value).to_owned(),
                }],
            }),
        });
    Group {
        key: Arc::new(GroupKey {
            pack: "wearable".into(),
            device: device.unwrap().into(),
            type_name: type_name.into(),
            patient: patient.map(Arc::from),
            encounter: encounter.map(Arc::from),
            correlation: None,
        }),
        pack: Arc::clone(pack),
        readings: readings.collect(),
    }
}

pub(in crate::forward) fn destination(http: &Http, more: &str) -> FhirDestination {
    let config: FhirConfig = toml::from_str(&format!("url = \"{BASE}\"\n{more}")).unwrap();
    FhirDestination::new(&config, ClockTrust::Ntp, http.clone(), http.clone()).unwrap()
}

pub(in crate::forward) fn simulate<T>(future: impl Future<Output = T>) -> T {
    clock::simulate(Timestamp::from_ticks(NOON).unwrap(), future)
        .unwrap()
        .0
}

pub(in crate::forward) fn none() -> HashMap<String, Vec<u8>> {
    HashMap::new()
}

/// Fates as words; with the error's name for `Dead` and `Waiting`.
fn words(fates: &[Vec<Fate>]) -> Vec<String> {
    fates
        .iter()
        .flatten()
        .map(|fate| match fate {
            Fate::Delivered => "delivered".to_owned(),
            Fate::Superseded => "superseded".to_owned(),
            Fate::Dead(error) => format!("dead {}", error.name),
            Fate::Waiting(error) => format!("waiting {}", error.name),
            Fate::Retry => "retry".to_owned(),
        })
        .collect()
}

fn value_of(observation: &Value) -> String {
    observation["valueQuantity"]["value"].to_string()
}

#[test]
fn readings_become_observations_of_their_patient_each_once() {
    let (double, http) = Double::new(&[device("a", "anna"), device("b", "bert")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    let groups = vec![
        group(&pack, "a", "hr", 1, &[(0, "hr", "61.50"), (1, "hr", "62")]),
        group(&pack, "b", "hr", 3, &[(0, "hr", "90")]),
    ];
    simulate(async {
        let delivery = fhir.deliver(groups.clone(), &none()).await;
        assert_eq!(words(&delivery.fates), ["delivered"; 3]);
        assert_eq!((delivery.link, delivery.written), (Link::Up, 3));
        let held = double.of_type("Observation");
        let mut shown: Vec<String> = held
            .iter()
            .map(|o| format!("{} {}", o["subject"]["reference"].as_str().unwrap(), value_of(o)))
            .collect();
        shown.sort();
        assert_eq!(
            shown,
            ["Patient/anna 61.50", "Patient/anna 62", "Patient/bert 90"]
        );
        assert_eq!(held[0]["issued"], "2026-09-22T00:00:01Z");
        assert_eq!(
            double.state().requests,
            3,
            "look-up, read and write in a batch each"
        );

        // Sent again, as after a crash before the confirmation was stored.
        let mut restarted = destination(&http, "");
        let delivery = restarted.deliver(groups, &none()).await;
        assert_eq!(
            (words(&delivery.fates), delivery.written),
            (vec!["delivered".to_owned(); 3], 0)
        );
        assert!(
            double
                .of_type("Observation")
                .iter()
                .all(|o| o["meta"]["versionId"] == "1")
        );
    });
}

#[test]
fn a_failing_entry_never_stops_the_others() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().write_statuses = [0, 422, 0].into();
    let groups = vec![
        group(
            &pack,
            "a",
            "hr",
            1,
            &[
                (0, "hr", "61"),
                (1, "hr", "62"),
                (2, "hr", "63"),
                (3, "hr", "36,6"),
            ],
        ),
        group(&pack, "nobody", "hr", 5, &[(0, "hr", "1")]),
        group(&pack, "a", "unknown type", 6, &[(0, "hr", "1")]),
    ];
    let delivery = simulate(fhir.deliver(groups, &none()));
    let mut fates = words(&delivery.fates);
    fates[..3].sort();
    assert_eq!(
        fates[..3],
        ["dead FhirServiceException", "delivered", "delivered"]
    );
    assert_eq!(
        fates[3..],
        [
            "dead InvalidQuantityFhirValueException",
            "waiting FhirResourceNotFoundException",
            "dead TemplateNotFoundException"
        ]
    );
    assert_eq!(
        (delivery.link, double.of_type("Observation").len()),
        (Link::Up, 2)
    );
}

#[test]
fn an_open_period_grows_under_its_version_without_being_read_again() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    simulate(async {
        let first = fhir
            .deliver(vec![group(&pack, "a", "hourly", 1, &[(0, "hr", "60")])], &none())
            .await;
        assert_eq!(
            (words(&first.fates), first.sent_periods.len()),
            (vec!["delivered".to_owned()], 1)
        );
        double.state().log.clear();
        let more = group(&pack, "a", "hourly", 2, &[(25, "hr", "62"), (11, "hr", "61")]);
        let second = fhir.deliver(vec![more], &none()).await;
        assert_eq!(words(&second.fates), ["delivered", "delivered"]);
        let held = double.of_type("Observation");
        assert_eq!(held.len(), 1);
        assert_eq!(held[0]["valueSampledData"]["data"], "60 61 62 E E E");
        assert_eq!(
            (held[0]["status"].as_str(), held[0]["meta"]["versionId"].as_str()),
            (Some("amended"), Some("2"))
        );
        let log = double.state().log.clone();
        assert_eq!(
            log.iter().filter(|line| line.contains("Observation")).count(),
            1,
            "{log:?}"
        );

        // A new process knows the times of the readings from the store.
        let sent: HashMap<String, Vec<u8>> = second
            .sent_periods
            .into_iter()
            .map(|p| (p.observation, p.memory))
            .collect();
        let mut restarted = destination(&http, "");
        let older = group(&pack, "a", "hourly", 4, &[(24, "hr", "99"), (40, "hr", "64")]);
        let third = restarted.deliver(vec![older], &sent).await;
        assert_eq!(words(&third.fates), ["superseded", "delivered"]);
        assert_eq!(
            double.of_type("Observation")[0]["valueSampledData"]["data"],
            "60 61 62 E 64 E"
        );
    });
}

#[test]
fn somebody_elses_change_in_between_is_read_and_kept() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    simulate(async {
        fhir.deliver(vec![group(&pack, "a", "hourly", 1, &[(0, "hr", "60")])], &none())
            .await;
        {
            let mut state = double.state();
            let mut held = state
                .resources
                .iter()
                .find(|(path, _)| path.starts_with("Obs"))
                .unwrap()
                .1
                .clone();
            held["note"] = json!([{"text": "patient was running"}]);
            held["meta"]["versionId"] = json!("2");
            state.put(held);
        }
        let more = group(&pack, "a", "hourly", 2, &[(10, "hr", "61")]);
        let delivery = fhir.deliver(vec![more], &none()).await;
        assert_eq!(words(&delivery.fates), ["delivered"]);
        let held = &double.of_type("Observation")[0];
        assert_eq!(held["note"][0]["text"], "patient was running");
        assert_eq!(held["valueSampledData"]["data"], "60 61 E E E E");
        assert_eq!(held["meta"]["versionId"], "3");
    });
}

#[test]
fn an_observation_that_changes_all_the_time_waits() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().write_statuses = vec![409; 20].into();
    let delivery = simulate(fhir.deliver(vec![group(&pack, "a", "hr", 1, &[(0, "hr", "60")])], &none()));
    assert_eq!(words(&delivery.fates), ["waiting FhirServiceException"]);
    assert_eq!(double.state().write_statuses.len(), 16, "four tries");
}

#[test]
fn what_was_deleted_or_marked_on_the_server_is_not_written_again() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    simulate(async {
        let one = group(&pack, "a", "hourly", 1, &[(0, "hr", "60")]);
        destination(&http, "").deliver(vec![one], &none()).await;
        let held = double.of_type("Observation")[0].clone();
        let path = format!("Observation/{}", held["id"].as_str().unwrap());
        let late = group(&pack, "a", "hourly", 2, &[(30, "hr", "61")]);
        {
            let mut state = double.state();
            state.resources.remove(&path);
            state.deleted.insert(path.clone());
        }
        let delivery = destination(&http, "").deliver(vec![late.clone()], &none()).await;
        assert_eq!(words(&delivery.fates), ["dead FhirServiceException"]);
        for status in ["entered-in-error", "cancelled"] {
            let mut marked = held.clone();
            marked["status"] = json!(status);
            double.state().put(marked.clone());
            let delivery = destination(&http, "").deliver(vec![late.clone()], &none()).await;
            assert_eq!(words(&delivery.fates), ["dead FhirServiceException"], "{status}");
            assert_eq!(double.state().resources[&path], marked);
        }
    });
}

#[test]
fn values_of_one_instant_in_two_messages_are_one_observation() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    for restart in [false, true] {
        double
            .state()
            .resources
            .retain(|path, _| path.starts_with("Device"));
        let mut fhir = destination(&http, "");
        simulate(async {
            fhir.deliver(vec![group(&pack, "a", "bp", 1, &[(0, "sys", "120")])], &none())
                .await;
            if restart {
                fhir = destination(&http, "");
            }
            let second = fhir
                .deliver(vec![group(&pack, "a", "bp", 2, &[(0, "dia", "80")])], &none())
                .await;
            assert_eq!(words(&second.fates), ["delivered"]);
        });
        let held = double.of_type("Observation");
        let values: Vec<_> = held[0]["component"]
            .as_array()
            .unwrap()
            .iter()
            .map(value_of)
            .collect();
        assert_eq!(
            (held.len(), values),
            (1, vec!["120".to_owned(), "80".to_owned()]),
            "restart {restart}"
        );
    }
}

#[test]
fn groups_that_resolve_to_one_observation_are_merged() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    let mut other = named_group(
        &pack,
        [Some("a"), Some("p1"), None],
        "hourly",
        2,
        &[(10, "hr", "61"), (1, "hr", "59")],
    );
    let one = group(&pack, "a", "hourly", 1, &[(0, "hr", "60")]);
    // Another revision of the mapping: built apart, saved one after the other.
    let third = group(&standard(), "a", "hourly", 9, &[(20, "hr", "62")]);
    other.readings[1].position = 7;
    let delivery = simulate(fhir.deliver(vec![other, one, third], &none()));
    assert_eq!(
        words(&delivery.fates),
        ["delivered", "delivered", "superseded", "delivered"]
    );
    let held = double.of_type("Observation");
    assert_eq!(
        (held.len(), held[0]["valueSampledData"]["data"].as_str()),
        (1, Some("59 61 62 E E E"))
    );
}

#[test]
fn another_encounter_in_the_window_is_another_observation() {
    let encounter = |id: &str| json!({"resourceType": "Encounter", "id": format!("enc-{id}"), "identifier": [{"value": id}]});
    let (double, http) = Double::new(&[device("a", "anna"), encounter("e1"), encounter("e2")]);
    let pack = standard();
    let of = |encounter, position, minute, value| {
        named_group(
            &pack,
            [Some("a"), None, Some(encounter)],
            "hourly",
            position,
            &[(minute, "hr", value)],
        )
    };
    let mut fhir = destination(&http, "resolution = \"lookup-with-encounter\"");
    simulate(async {
        let both = vec![of("e1", 1, 0, "60"), of("e2", 2, 10, "70")];
        assert_eq!(words(&fhir.deliver(both, &none()).await.fates), ["delivered"; 2]);
        let more = vec![
            of("e2", 3, 20, "71"),
            group(&pack, "a", "hourly", 4, &[(30, "hr", "1")]),
        ];
        let delivery = fhir.deliver(more, &none()).await;
        assert_eq!(
            words(&delivery.fates),
            ["delivered", "waiting ResourceIdentityNotDefinedException"]
        );
    });
    let mut held: Vec<(String, String)> = double
        .of_type("Observation")
        .iter()
        .map(|o| {
            (
                o["encounter"]["reference"].to_string(),
                o["valueSampledData"]["data"].to_string(),
            )
        })
        .collect();
    held.sort();
    let expected = [
        ("\"Encounter/enc-e1\"", "\"60 E E E E E\""),
        ("\"Encounter/enc-e2\"", "\"E 70 71 E E E\""),
    ];
    assert_eq!(held, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn a_device_that_moved_writes_to_its_new_patient_in_the_next_batch() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    simulate(async {
        fhir.deliver(vec![group(&pack, "a", "hr", 1, &[(0, "hr", "60")])], &none())
            .await;
        double.state().put(device("a", "bert"));
        fhir.deliver(vec![group(&pack, "a", "hr", 2, &[(1, "hr", "61")])], &none())
            .await;
    });
    let mut held: Vec<String> = double
        .of_type("Observation")
        .iter()
        .map(|o| format!("{} {}", o["subject"]["reference"].as_str().unwrap(), value_of(o)))
        .collect();
    held.sort();
    assert_eq!(held, ["Patient/anna 60", "Patient/bert 61"]);
}

#[test]
fn a_missing_device_is_asked_for_again_after_some_seconds() {
    let (double, http) = Double::new(&[]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    let one = group(&pack, "a", "hr", 1, &[(0, "hr", "60")]);
    simulate(async {
        fhir.deliver(vec![one.clone()], &none()).await;
        double.state().put(device("a", "anna"));
        let soon = fhir.deliver(vec![one.clone()], &none()).await;
        assert_eq!(words(&soon.fates), ["waiting FhirResourceNotFoundException"]);
        assert_eq!(double.state().requests, 1, "asked once");
        embassy_time::Timer::after_secs(11).await;
        assert_eq!(
            words(&fhir.deliver(vec![one], &none()).await.fates),
            ["delivered"]
        );
    });
}

#[test]
fn a_lost_answer_is_sent_again_and_makes_no_second_observation() {
    let pack = standard();
    for lost in 0..3 {
        let (double, http) = Double::new(&[device("a", "anna")]);
        let mut fhir = destination(&http, "");
        let mut faults = vec![None; lost];
        faults.push(Some(Fault::LoseAnswer));
        double.state().faults = faults.into();
        let groups = vec![
            group(&pack, "a", "hr", 1, &[(0, "hr", "60"), (1, "hr", "61")]),
            group(&pack, "a", "hourly", 3, &[(0, "hr", "60")]),
        ];
        simulate(async {
            let first = fhir.deliver(groups.clone(), &none()).await;
            assert_eq!(words(&first.fates), ["retry"; 3]);
            assert!(matches!(first.link, Link::Down { .. }));
            let second = fhir.deliver(groups.clone(), &none()).await;
            assert_eq!(
                (words(&second.fates), second.link),
                (vec!["delivered".to_owned(); 3], Link::Up)
            );
        });
        let held = double.of_type("Observation");
        assert_eq!(held.len(), 3);
        assert!(
            held.iter()
                .all(|o| o["meta"]["versionId"] == "1" && o["status"] == "final"),
            "lost answer {lost}"
        );
    }
}

#[test]
fn every_refusal_of_the_whole_server_keeps_the_readings_and_says_what_to_do() {
    let pack = standard();
    let html = "<html><h1>Hotel WLAN</h1></html>";
    let outcome = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"security"}]}"#;
    let json = vec![("content-type", "application/fhir+json")];
    let cases: Vec<(Fault, &str, &str, Option<Duration>)> = vec![
        (
            Fault::Status(401, json.clone(), outcome),
            "UnauthorizedAccessFhirServiceException",
            "check auth",
            None,
        ),
        (
            Fault::Status(403, json.clone(), outcome),
            "UnauthorizedAccessFhirServiceException",
            "grant",
            None,
        ),
        (
            Fault::Status(503, vec![("retry-after", "120")], ""),
            "FhirServiceException",
            "tried again",
            Some(Duration::from_secs(120)),
        ),
        (
            Fault::Status(429, vec![("x-ms-retry-after-ms", "500")], "{}"),
            "FhirServiceException",
            "tried again",
            Some(Duration::from_millis(500)),
        ),
        (
            Fault::Status(500, json, outcome),
            "FhirServiceException",
            "error security",
            None,
        ),
        (
            Fault::Status(200, vec![("content-type", "text/html; charset=utf-8")], html),
            "InvalidFhirServiceException",
            "text/html",
            None,
        ),
        (
            Fault::Status(302, vec![], ""),
            "InvalidFhirServiceException",
            "not FHIR",
            None,
        ),
        (
            Fault::Truncate,
            "InvalidFhirServiceException",
            "not complete",
            None,
        ),
        (Fault::Reset, "FhirServiceException", "broke", None),
        (
            Fault::CertificateTime,
            "FhirServiceException",
            "not valid yet",
            None,
        ),
    ];
    for (fault, name, word, pause) in cases {
        let (double, http) = Double::new(&[device("a", "anna")]);
        double.state().faults = vec![None, None, Some(fault.clone())].into();
        let mut fhir = destination(&http, "");
        let one = group(&pack, "a", "hr", 1, &[(0, "hr", "60")]);
        let delivery = simulate(fhir.deliver(vec![one], &none()));
        assert_eq!(words(&delivery.fates), ["retry"], "{fault:?}");
        let Link::Down { error, retry_after } = delivery.link else {
            panic!("{fault:?}: {:?}", delivery.link);
        };
        assert_eq!((error.name.as_str(), retry_after), (name, pause), "{fault:?}");
        assert!(error.text.contains(word), "{fault:?}: {}", error.text);
    }
}

#[test]
fn a_wrong_address_is_told_from_a_server_without_bundles() {
    let pack = standard();
    let one = group(&pack, "a", "hr", 1, &[(0, "hr", "60")]);
    let (double, http) = Double::new(&[device("a", "anna")]);
    double.state().no_bundles = true;
    let mut fhir = destination(&http, "");
    let delivery = simulate(fhir.deliver(vec![one.clone()], &none()));
    assert_eq!(
        (words(&delivery.fates), delivery.link),
        (vec!["delivered".to_owned()], Link::Up)
    );

    let (double, http) = Double::new(&[]);
    let nothing = || {
        Some(Fault::Status(
            404,
            vec![("content-type", "text/plain")],
            "no such page",
        ))
    };
    double.state().faults = vec![nothing(), nothing()].into();
    let delivery = simulate(destination(&http, "").deliver(vec![one], &none()));
    match delivery.link {
        Link::Down { error, .. } => assert!(error.text.contains("check url"), "{}", error.text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn certificates_wait_for_the_clock_while_it_is_not_trusted() {
    let pack = standard();
    let (double, http) = Double::new(&[device("a", "anna")]);
    double.state().faults = vec![Some(Fault::CertificateTime)].into();
    let mut fhir = destination(&http, "");
    let delivery = simulate(async {
        clock::simulate_trust(false);
        fhir.deliver(vec![group(&pack, "a", "hr", 1, &[(0, "hr", "60")])], &none())
            .await
    });
    assert_eq!(
        (words(&delivery.fates), delivery.link),
        (vec!["retry".to_owned()], Link::WaitingForClock)
    );
}

#[test]
fn too_many_requests_within_a_batch_keep_what_was_written_and_ask_for_a_pause() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().write_statuses = [0, 0, 429, 429].into();
    let values: Vec<(i64, &str, &str)> = (0..4).map(|minute| (minute, "hr", "60")).collect();
    simulate(async {
        let groups = vec![group(&pack, "a", "hr", 1, &values)];
        let first = fhir.deliver(groups.clone(), &none()).await;
        let mut fates = words(&first.fates);
        fates.sort();
        assert_eq!(fates, ["delivered", "delivered", "retry", "retry"]);
        assert!(matches!(first.link, Link::Down { .. }));
        let second = fhir.deliver(groups, &none()).await;
        assert_eq!(
            (words(&second.fates), second.written),
            (vec!["delivered".to_owned(); 4], 2)
        );
    });
}

#[test]
fn one_entry_that_spoils_every_bundle_is_found_and_the_others_go_through() {
    let (double, http) = Double::new(&[device("a", "anna"), device("b", "bert")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().refuses_bundles_with = Some("13.25");
    let values: Vec<(i64, &str, &str)> = (0..20)
        .map(|n| (n, "hr", if n == 13 { "13.25" } else { "60" }))
        .collect();
    let groups = vec![group(&pack, "a", "hr", 1, &values)];
    let delivery = simulate(fhir.deliver(groups, &none()));
    assert_eq!(words(&delivery.fates), vec!["delivered"; 20], "alone it is taken");
    assert_eq!(double.of_type("Observation").len(), 20);
    assert!(
        double.state().requests < 20,
        "the others still travel in bundles: {}",
        double.state().requests
    );
}

#[test]
fn bundles_grow_while_the_server_takes_them_and_shrink_when_it_does_not() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    let values: Vec<(i64, &str, &str)> = (0..1000).map(|n| (n, "hr", "60")).collect();
    double.state().most_entries = Some(120);
    let delivery = simulate(fhir.deliver(vec![group(&pack, "a", "hr", 1, &values)], &none()));
    assert_eq!(words(&delivery.fates), vec!["delivered"; 1000]);
    let requests = double.state().requests;
    assert!(
        requests < 50,
        "{requests} requests for 1000 reads, 50 searches and 1000 writes"
    );
}

#[test]
fn what_the_search_does_not_see_yet_is_found_by_its_id() {
    let (double, http) = Double::new(&[]);
    let pack = standard();
    double.state().lagging = true;
    let create = "resolution = \"create\"";
    let of = |position, minute, value| {
        named_group(
            &pack,
            [Some("a"), Some("p"), None],
            "hourly",
            position,
            &[(minute, "hr", value)],
        )
    };
    simulate(async {
        for (position, minute, value) in [(1, 0, "60"), (2, 10, "61")] {
            // A new process each time: it has no memory of its own.
            let delivery = destination(&http, create)
                .deliver(vec![of(position, minute, value)], &none())
                .await;
            assert_eq!(words(&delivery.fates), ["delivered"]);
        }
    });
    let held = double.of_type("Observation");
    assert_eq!(
        (held.len(), held[0]["valueSampledData"]["data"].as_str()),
        (1, Some("60 61 E E E E"))
    );
    assert_eq!(
        (double.of_type("Device").len(), double.of_type("Patient").len()),
        (1, 1)
    );
    assert_eq!(
        double.of_type("Device")[0]["meta"]["versionId"],
        "1",
        "created once"
    );
}

#[test]
fn a_device_that_is_linked_by_somebody_else_meanwhile_is_not_linked_over() {
    let unlinked = json!({"resourceType": "Device", "id": "dv", "identifier": [{"value": "a"}]});
    let (double, http) = Double::new(&[unlinked]);
    let pack = standard();
    let link = |state: &mut super::double::State| {
        let mut linked = device("a", "anna");
        linked["id"] = json!("dv");
        linked["meta"] = json!({"versionId": "2"});
        state.put(linked);
    };
    // Before the write of the Device: look-up, read of the Patient, creation of the Patient come first.
    double.state().before = vec![
        Box::new(|_: &mut _| ()) as super::double::Step,
        Box::new(|_: &mut _| ()),
        Box::new(|_: &mut _| ()),
        Box::new(link),
    ]
    .into();
    let one = named_group(&pack, [Some("a"), Some("p"), None], "hr", 1, &[(0, "hr", "60")]);
    let delivery = simulate(destination(&http, "resolution = \"create\"").deliver(vec![one], &none()));
    assert_eq!(words(&delivery.fates), ["waiting PatientDeviceMismatchException"]);
    assert_eq!(
        double.of_type("Device")[0]["patient"]["reference"],
        "Patient/anna"
    );
}

#[test]
fn no_error_text_holds_an_identifier_or_a_value() {
    let (double, http) = Double::new(&[device("secret-device", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().write_statuses = vec![422, 400].into();
    let groups = vec![
        group(
            &pack,
            "secret-device",
            "hr",
            1,
            &[(0, "hr", "60.125"), (1, "hr", "60.125"), (2, "hr", "60,125")],
        ),
        named_group(
            &pack,
            [Some("secret-other"), Some("secret-patient"), None],
            "hr",
            4,
            &[(0, "hr", "1")],
        ),
    ];
    let delivery = simulate(fhir.deliver(groups, &none()));
    for fate in delivery.fates.iter().flatten() {
        let (Fate::Dead(error) | Fate::Waiting(error)) = fate else {
            panic!("{fate:?}");
        };
        assert!(
            !error.text.contains("secret") && !error.text.contains("125"),
            "{}",
            error.text
        );
    }
}

#[test]
fn a_server_that_honours_if_none_match_is_found_out_without_a_needless_version() {
    for honours in [false, true] {
        let (double, http) = Double::new(&[device("a", "anna")]);
        double.state().honours_none_match = honours;
        let pack = standard();
        let mut fhir = destination(&http, "");
        simulate(async {
            for (position, minute) in [(1, 0), (2, 10), (3, 20)] {
                let one = group(&pack, "a", "hourly", position, &[(minute, "hr", "60")]);
                assert_eq!(
                    words(&fhir.deliver(vec![one], &none()).await.fates),
                    ["delivered"]
                );
            }
            let held = double.of_type("Observation");
            assert_eq!(
                (held.len(), held[0]["meta"]["versionId"].as_str()),
                (1, Some("3")),
                "honours {honours}"
            );

            // Another gateway creates the next hour between our read and our write.
            let theirs = group(&pack, "a", "hourly", 9, &[(60, "hr", "70")]);
            let copy = Double::new(&[device("a", "anna")]);
            destination(&copy.1, "").deliver(vec![theirs], &none()).await;
            let created = copy.0.of_type("Observation")[0].clone();
            double.state().before = vec![
                Box::new(|_: &mut _| ()) as super::double::Step,
                Box::new(|_: &mut _| ()),
                Box::new(move |state: &mut super::double::State| state.put(created)),
            ]
            .into();
            let ours = group(&pack, "a", "hourly", 10, &[(70, "hr", "71")]);
            assert_eq!(
                words(&fhir.deliver(vec![ours], &none()).await.fates),
                ["delivered"]
            );
        });
        let data: Vec<String> = double
            .of_type("Observation")
            .iter()
            .map(|o| o["valueSampledData"]["data"].to_string())
            .collect();
        assert_eq!(
            data.contains(&"\"70 71 E E E E\"".to_owned()),
            honours,
            "{data:?}"
        );
    }
}

#[test]
fn a_server_that_chooses_ids_gets_conditional_writes_and_no_duplicates() {
    for status in [405, 400, 422] {
        let (double, http) = Double::new(&[device("a", "anna")]);
        double.state().refuses_ids_with = Some(status);
        let pack = standard();
        let mut fhir = destination(&http, "");
        simulate(async {
            let first = group(&pack, "a", "hourly", 1, &[(0, "hr", "60")]);
            assert_eq!(
                words(&fhir.deliver(vec![first], &none()).await.fates),
                ["delivered"],
                "{status}"
            );
            let second = group(&pack, "a", "hourly", 2, &[(10, "hr", "61")]);
            assert_eq!(
                words(&fhir.deliver(vec![second], &none()).await.fates),
                ["delivered"]
            );
            let held = double.of_type("Observation");
            assert_eq!(
                (held.len(), held[0]["valueSampledData"]["data"].as_str()),
                (1, Some("60 61 E E E E"))
            );

            // Created, the answer is lost, and the search lags behind.
            {
                let mut state = double.state();
                state.lagging = true;
                state.faults = vec![None, None, Some(Fault::LoseAnswer)].into();
            }
            let next_hour = group(&pack, "a", "hourly", 3, &[(60, "hr", "62")]);
            assert_eq!(
                words(&fhir.deliver(vec![next_hour.clone()], &none()).await.fates),
                ["retry"]
            );
            let again = fhir.deliver(vec![next_hour.clone()], &none()).await;
            assert_eq!(words(&again.fates), ["waiting FhirServiceException"]);
            embassy_time::Timer::after_secs(30).await;
            double.state().unindexed.clear();
            assert_eq!(
                words(&fhir.deliver(vec![next_hour], &none()).await.fates),
                ["delivered"]
            );
        });
        assert_eq!(double.of_type("Observation").len(), 2, "{status}");
    }
}

#[test]
fn an_unreadable_entry_of_an_answer_makes_its_reading_wait_and_no_other() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let answer = r#"{"resourceType":"Bundle","type":"batch-response","entry":[
        {"response":{"status":"?"}},{"response":{"status":"404"}},
        {"resource":{"resourceType":"Bundle","entry":[]},"response":{"status":"200"}}]}"#;
    double.state().faults = vec![None, Some(Fault::Status(200, Vec::new(), answer))].into();
    let one = group(&pack, "a", "hr", 1, &[(0, "hr", "60"), (1, "hr", "61")]);
    let delivery = simulate(destination(&http, "").deliver(vec![one], &none()));
    assert_eq!(
        words(&delivery.fates),
        ["waiting FhirServiceException", "delivered"]
    );
    assert_eq!(delivery.link, Link::Up);
}
