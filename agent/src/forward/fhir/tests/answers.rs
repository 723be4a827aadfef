//! What answers mean, and how much is under way.

use super::*;

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

#[test]
fn the_pause_that_is_asked_for_within_a_batch_is_told() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let answer =
        r#"{"resourceType":"Bundle","type":"batch-response","entry":[{"response":{"status":"429"}}]}"#;
    let busy = Fault::Status(200, vec![("retry-after", "30")], answer);
    double.state().faults = vec![None, None, Some(busy)].into();
    let one = group(&pack, "a", "hr", 1, &[(0, "hr", "60")]);
    let delivery = simulate(destination(&http, "").deliver(vec![one], &none()));
    assert_eq!(words(&delivery.fates), ["retry"]);
    match delivery.link {
        Link::Down { retry_after, .. } => assert_eq!(retry_after, Some(Duration::from_secs(30))),
        other => panic!("{other:?}"),
    }
}

/// A destination over a line with a round trip of 100 ms.
fn over_a_long_line(http: &Http) -> FhirDestination {
    let worker = crate::worker::Worker::delayed(|| Duration::from_millis(50));
    let http = Http {
        worker,
        ..http.clone()
    };
    destination(&http, "")
}

fn thousand(pack: &Arc<Pack>, first: i64) -> Vec<Group> {
    let values: Vec<(i64, &str, &str)> = (first..first + 1000).map(|minute| (minute, "hr", "60")).collect();
    vec![group(pack, "a", "hr", first as u64 + 1, &values)]
}

#[test]
fn several_requests_are_under_way_while_the_round_trip_holds() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = over_a_long_line(&http);
    let took = simulate(async {
        for first in [0, 1000] {
            fhir.deliver(thousand(&pack, first), &none()).await;
        }
        let begin = embassy_time::Instant::now();
        let delivery = fhir.deliver(thousand(&pack, 2000), &none()).await;
        assert_eq!(words(&delivery.fates), vec!["delivered"; 1000]);
        begin.elapsed()
    });
    // Look-up, reads, writes: one after the other it would be a second.
    assert!(took <= Duration::from_millis(500), "{took:?}");
    assert_eq!(double.of_type("Observation").len(), 3000);
}

#[test]
fn answers_of_requests_under_way_are_kept_when_one_of_them_fails() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = over_a_long_line(&http);
    simulate(async {
        for first in [0, 1000] {
            fhir.deliver(thousand(&pack, first), &none()).await;
        }
        let before = double.state().requests;
        fhir.deliver(thousand(&pack, 2000), &none()).await;
        let each = double.state().requests - before;
        // The last but one request of the next delivery is one of its writes.
        let mut faults = vec![None; each - 2];
        faults.push(Some(Fault::Status(503, Vec::new(), "{}")));
        double.state().faults = faults.into();
        let groups = thousand(&pack, 3000);
        let delivery = fhir.deliver(groups.clone(), &none()).await;
        let delivered = words(&delivery.fates)
            .iter()
            .filter(|word| *word == "delivered")
            .count();
        assert!((1..1000).contains(&delivered), "{delivered}");
        assert_eq!(double.of_type("Observation").len(), 3000 + delivered);
        assert!(matches!(delivery.link, Link::Down { .. }));
        let again = fhir.deliver(groups, &none()).await;
        assert_eq!(
            (words(&again.fates), again.written),
            (vec!["delivered".to_owned(); 1000], 1000 - delivered as u64)
        );
    });
}

#[test]
fn a_server_that_cannot_say_who_chooses_ids_is_asked_again() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    double.state().refuses_ids_with = Some(400);
    // Look-up, read, write, and the question.
    double.state().faults = vec![None, None, None, Some(Fault::Reset)].into();
    let pack = standard();
    let mut fhir = destination(&http, "");
    simulate(async {
        let one = group(&pack, "a", "hr", 1, &[(0, "hr", "60")]);
        let first = fhir.deliver(vec![one.clone()], &none()).await;
        assert_eq!(
            words(&first.fates),
            ["retry"],
            "a refusal that may not be about the reading"
        );
        fhir.deliver(vec![one.clone()], &none()).await;
        embassy_time::Timer::after_secs(60).await;
        let later = fhir.deliver(vec![one], &none()).await;
        assert_eq!(words(&later.fates), ["delivered"]);
    });
}
