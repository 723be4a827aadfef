//! What an Observation holds: merging, versions, deletions, and who chooses its id.

use super::*;

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
                Box::new(|_: &mut _| ()) as crate::forward::fhir::double::Step,
                Box::new(|_: &mut _| ()),
                Box::new(move |state: &mut crate::forward::fhir::double::State| state.put(created)),
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
            // The process before this one may have written it a moment ago, and the search not show it yet.
            assert_eq!(
                words(&fhir.deliver(vec![first.clone()], &none()).await.fates),
                ["waiting FhirServiceException"],
                "{status}"
            );
            embassy_time::Timer::after_secs(60).await;
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
fn what_a_server_that_chooses_ids_has_not_indexed_yet_is_not_created_twice_once_it_is_forgotten_here() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    double.state().refuses_ids_with = Some(405);
    double.state().tells_ids = true;
    let pack = standard();
    let mut fhir = destination(&http, "");
    let hours = |double: &Double| -> Vec<String> {
        let all = double.of_type("Observation");
        let data = all.iter().filter_map(|o| o["valueSampledData"]["data"].as_str());
        data.map(str::to_owned).collect()
    };
    simulate(async {
        // What the process before this one may have written is in the index.
        let first = group(&pack, "a", "hourly", 1, &[(0, "hr", "60")]);
        fhir.deliver(vec![first.clone()], &none()).await;
        embassy_time::Timer::after_secs(60).await;
        double.state().lagging = true;
        assert_eq!(
            words(&fhir.deliver(vec![first], &none()).await.fates),
            ["delivered"]
        );
        // So many others that the first one is not remembered any more.
        let others = (0..1500).map(|n| group(&pack, "a", "hr", 2 + n, &[(n as i64, "hr", "70")]));
        fhir.deliver(others.collect(), &none()).await;
        assert_eq!(double.of_type("Observation").len(), 1501);
        let second = group(&pack, "a", "hourly", 1502, &[(10, "hr", "61")]);
        assert_eq!(
            words(&fhir.deliver(vec![second.clone()], &none()).await.fates),
            ["waiting FhirServiceException"]
        );
        assert_eq!(hours(&double), ["60 E E E E E"]);
        double.state().unindexed.clear();
        assert_eq!(
            words(&fhir.deliver(vec![second], &none()).await.fates),
            ["delivered"]
        );
        assert_eq!(hours(&double), ["60 61 E E E E"]);
    });
}

#[test]
fn identity_medtech_continues_what_the_service_wrote_and_identity_agent_does_not() {
    use iomt_mapping::fhir::{SERVICE_SYSTEM, resource_id};
    // As the service writes it: whole seconds in the identifier, the value last received.
    let identifier = "anna.device-a.hr.20260922000000Z.20260922000000Z";
    let by_service = json!({"resourceType": "Observation", "id": resource_id(SERVICE_SYSTEM, identifier), "status": "final",
        "identifier": [{"system": SERVICE_SYSTEM, "value": identifier}],
        "code": {"text": "hr", "coding": [{"code": "hr", "system": "http://loinc.org"},
            {"system": SERVICE_SYSTEM, "code": "hr", "display": "hr"}]},
        "subject": {"reference": "Patient/anna"}, "device": {"reference": "Device/device-a"},
        "issued": "2026-09-22T00:00:01+00:00",
        "effectivePeriod": {"start": "2026-09-22T00:00:00.0000000Z", "end": "2026-09-22T00:00:00.0000000Z"},
        "valueQuantity": {"value": 60, "unit": "/min"}});
    for (identity, values) in [("medtech", vec!["61"]), ("agent", vec!["60", "61"])] {
        let (double, http) = Double::new(&[device("a", "anna"), by_service.clone()]);
        let mut group = group(&standard(), "a", "hr", 1, &[(0, "hr", "61")]);
        for reading in &mut group.readings {
            let mut measurement = Measurement::clone(&reading.measurement);
            measurement.occurrence_time = Timestamp::from_ticks(NOON + 5_000_000).unwrap();
            reading.measurement = Arc::new(measurement);
        }
        let mut fhir = destination(&http, &format!("identity = \"{identity}\"\n"));
        let delivery = simulate(fhir.deliver(vec![group], &none()));
        assert_eq!(words(&delivery.fates), ["delivered"], "{identity}");
        let held = double.of_type("Observation");
        let mut found: Vec<String> = held.iter().map(value_of).collect();
        found.sort();
        assert_eq!(found, values, "{identity}");
        if identity == "medtech" {
            assert_eq!(
                (
                    held[0]["id"].clone(),
                    held[0]["issued"].clone(),
                    held[0]["status"].clone()
                ),
                (
                    by_service["id"].clone(),
                    by_service["issued"].clone(),
                    json!("amended")
                )
            );
        }
    }
}
