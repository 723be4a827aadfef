//! Whose a reading is.

use super::*;

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
    let link = |state: &mut crate::forward::fhir::double::State| {
        let mut linked = device("a", "anna");
        linked["id"] = json!("dv");
        linked["meta"] = json!({"versionId": "2"});
        state.put(linked);
    };
    // Before the write of the Device: look-up, read of the Patient, creation of the Patient come first.
    double.state().before = vec![
        Box::new(|_: &mut _| ()) as crate::forward::fhir::double::Step,
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
