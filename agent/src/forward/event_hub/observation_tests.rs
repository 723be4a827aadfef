//! Observations as events over a scripted hub.

use super::super::tests::{Bench, bodies, elements, response};
use super::*;
use crate::associations::{Book, Command, Who};
use crate::config::EventPayload;
use crate::forward::Link;
use crate::forward::fhir::double::Double;
use crate::forward::fhir::tests::{Values, destination, device, named_group, simulate, standard};
use crate::forward::http::HttpRequest;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

fn group(type_name: &str, patient: Option<&str>, first: u64, values: Values) -> Group {
    named_group(
        &standard(),
        [Some("band-1"), patient, None],
        type_name,
        first,
        values,
    )
}

fn bench(status: &Arc<AtomicU16>, identity: Option<FhirDestination>) -> Bench {
    let status = Arc::clone(status);
    let answer = move |_: &HttpRequest| response(status.load(Ordering::Relaxed));
    Bench::with_identity(
        |config| config.payload = EventPayload::Observation,
        answer,
        identity,
    )
}

/// The Observations of all publications, with their event ids.
fn sent(bench: &Bench) -> Vec<(String, Value)> {
    let seen = bench.seen();
    let of_one = |request: &HttpRequest| {
        let ids = elements(request).into_iter().map(|element| {
            element["UserProperties"]["bedside-event-id"]
                .as_str()
                .unwrap()
                .to_owned()
        });
        let bodies = bodies(request)
            .into_iter()
            .map(|body| serde_json::from_str(&body).unwrap());
        ids.zip(bodies).collect::<Vec<(String, Value)>>()
    };
    seen.iter().flat_map(of_one).collect()
}

fn stored(delivery: &Delivery) -> HashMap<String, Vec<u8>> {
    let rows = delivery.sent_periods.iter().filter(|row| row.expires > 0);
    rows.map(|row| (row.observation.clone(), row.memory.clone()))
        .collect()
}

#[test]
fn an_observation_names_patient_and_device_as_create_would_and_by_identifier() {
    let mut bench = bench(&Arc::new(AtomicU16::new(201)), None);
    let with_encounter = named_group(
        &standard(),
        [Some("band-1"), Some("p-7"), Some("e-3")],
        "hr",
        5,
        &[(0, "hr", "61.50")],
    );
    let delivery = simulate(bench.destination.deliver(vec![with_encounter], &HashMap::new()));
    assert_eq!(
        (&delivery.fates, delivery.written),
        (&vec![vec![Fate::Delivered]], 1)
    );
    let (id, observation) = sent(&bench).remove(0);
    // Computed elsewhere: sha256 of "_p-7" and "_band-1".
    let hash = |text: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    assert_eq!(
        observation["subject"]["reference"],
        format!("Patient/{}", hash("_p-7"))
    );
    assert_eq!(observation["subject"]["identifier"]["value"], "p-7");
    assert_eq!(
        observation["device"]["reference"],
        format!("Device/{}", hash("_band-1"))
    );
    assert_eq!(
        observation["encounter"],
        serde_json::json!({"identifier": {"value": "e-3"}})
    );
    assert_eq!(observation["valueQuantity"]["value"].to_string(), "61.50");
    assert_eq!(id, format!("bed-12/s1/{}/5", observation["id"].as_str().unwrap()));
}

#[test]
fn who_is_not_named_waits_and_others_go() {
    let mut bench = bench(&Arc::new(AtomicU16::new(201)), None);
    let groups = vec![
        group("hr", None, 1, &[(0, "hr", "61")]),
        group("hr", Some("p-7"), 2, &[(0, "hr", "62")]),
        group("unknown", Some("p-7"), 3, &[(0, "hr", "62")]),
    ];
    let delivery = simulate(bench.destination.deliver(groups, &HashMap::new()));
    let name = |fate: &Fate| match fate {
        Fate::Waiting(error) | Fate::Dead(error) => error.name.clone(),
        other => format!("{other:?}"),
    };
    let names: Vec<String> = delivery.fates.iter().flatten().map(name).collect();
    assert_eq!(
        names,
        [
            "ResourceIdentityNotDefinedException",
            "Delivered",
            "TemplateNotFoundException"
        ]
    );
}

#[test]
fn what_the_operator_has_entered_for_the_time_of_a_reading_comes_before_the_message() {
    let mut bench = bench(&Arc::new(AtomicU16::new(201)), None);
    let noon = group("hr", None, 1, &[(0, "hr", "61")]).readings[0]
        .measurement
        .occurrence_time
        .ticks();
    let minute = |minute: i64| Some(noon + minute * 600_000_000);
    let mut book = Book::default();
    let commands = [
        Command::Set {
            device: "band-1".to_owned(),
            patient: Who::Identifier("p-9".to_owned()),
            encounter: None,
            from: minute(-30),
            to: minute(-20),
        },
        Command::Set {
            device: "band-1".to_owned(),
            patient: Who::Id("anna".to_owned()),
            encounter: None,
            from: minute(-20),
            to: None,
        },
        Command::End {
            device: "band-1".to_owned(),
            at: minute(-10),
        },
    ];
    for (number, command) in (1..).zip(commands) {
        let mut planned = book.plan(&command, minute(0), &[]).unwrap();
        planned.entry.iter_mut().for_each(|entry| entry.number = number);
        book.take(&planned);
    }
    bench.destination.share_associations(Rc::new(RefCell::new(book)));
    let groups = vec![group(
        "hr",
        Some("p-7"),
        1,
        &[
            (-35, "hr", "60"),
            (-25, "hr", "61"),
            (-15, "hr", "62"),
            (-5, "hr", "63"),
        ],
    )];
    let delivery = simulate(bench.destination.deliver(groups, &HashMap::new()));
    assert!(
        matches!(delivery.fates[0][3], Fate::Waiting(_)),
        "{:?}",
        delivery.fates
    );
    let whose: Vec<String> = sent(&bench)
        .into_iter()
        .map(|(_, one)| match &one["subject"]["identifier"]["value"] {
            Value::String(identifier) => identifier.clone(),
            _ => one["subject"]["reference"].as_str().unwrap().to_owned(),
        })
        .collect();
    assert_eq!(whose, ["p-7", "p-9", "Patient/anna"]);
}

#[test]
fn a_value_that_comes_later_makes_a_further_event_of_the_same_observation_also_after_a_restart() {
    let status = Arc::new(AtomicU16::new(201));
    let systolic = || vec![group("bp", Some("p-7"), 1, &[(0, "sys", "120")])];
    let diastolic = || vec![group("bp", Some("p-7"), 2, &[(0, "dia", "80")])];
    for restart in [false, true] {
        let mut bench = bench(&status, None);
        let first = simulate(bench.destination.deliver(systolic(), &HashMap::new()));
        let before = sent(&bench).remove(0);
        if restart {
            bench = self::bench(&status, None);
        }
        let second = simulate(bench.destination.deliver(diastolic(), &stored(&first)));
        let (id, observation) = sent(&bench).remove(0);
        assert_eq!(
            (&observation["id"], &observation["status"]),
            (&before.1["id"], &"amended".into())
        );
        assert_eq!(observation["component"].as_array().map(Vec::len), Some(2));
        assert!(before.0.ends_with("/1") && id.ends_with("/2"));
        // What is complete needs no memory in the store any more.
        assert_eq!(stored(&second), HashMap::new());
        assert_eq!(second.sent_periods.len(), 1);
        // The same again is no event.
        let again = simulate(bench.destination.deliver(diastolic(), &HashMap::new()));
        assert_eq!((again.fates, again.written), (vec![vec![Fate::Delivered]], 0));
        assert!(sent(&bench).is_empty());
    }
}

#[test]
fn a_late_reading_of_an_hour_is_merged_with_what_was_sent_before_the_restart() {
    let status = Arc::new(AtomicU16::new(201));
    let mut first = bench(&status, None);
    let early = group("hourly", Some("p-7"), 1, &[(0, "hr", "60"), (20, "hr", "62")]);
    let delivery = simulate(first.destination.deliver(vec![early], &HashMap::new()));
    let mut restarted = bench(&status, None);
    let late = group("hourly", Some("p-7"), 9, &[(10, "hr", "61"), (20, "hr", "62")]);
    let merged = simulate(restarted.destination.deliver(vec![late], &stored(&delivery)));
    assert!(
        merged
            .fates
            .iter()
            .flatten()
            .all(|fate| matches!(fate, Fate::Delivered | Fate::Superseded))
    );
    let (id, observation) = sent(&restarted).remove(0);
    assert_eq!(observation["valueSampledData"]["data"], "60 61 62 E E E");
    assert!(id.ends_with("/10"), "{id}");
}

#[test]
fn what_the_hub_has_not_taken_is_not_remembered_as_sent() {
    let status = Arc::new(AtomicU16::new(503));
    let mut bench = bench(&status, None);
    let reading = || vec![group("bp", Some("p-7"), 1, &[(0, "sys", "120")])];
    let delivery = simulate(bench.destination.deliver(reading(), &HashMap::new()));
    assert_eq!(delivery.fates, vec![vec![Fate::Retry]]);
    assert!(matches!(delivery.link, Link::Down { .. }) && delivery.sent_periods.is_empty());
    let before = sent(&bench);
    status.store(201, Ordering::Relaxed);
    let delivery = simulate(bench.destination.deliver(reading(), &HashMap::new()));
    assert_eq!(delivery.fates, vec![vec![Fate::Delivered]]);
    assert_eq!(sent(&bench), before, "the same event, byte for byte");
}

#[test]
fn two_groups_of_one_observation_are_two_events_and_the_second_has_both() {
    let mut bench = bench(&Arc::new(AtomicU16::new(201)), None);
    let groups = vec![
        group("hourly", Some("p-7"), 4, &[(20, "hr", "62")]),
        named_group(
            &standard(),
            [Some("band-1"), Some("p-7"), Some(" ")],
            "hourly",
            2,
            &[(0, "hr", "60")],
        ),
    ];
    let delivery = simulate(bench.destination.deliver(groups, &HashMap::new()));
    assert_eq!(delivery.fates, vec![vec![Fate::Delivered]; 2]);
    let data: Vec<Value> = sent(&bench)
        .into_iter()
        .map(|(_, observation)| observation["valueSampledData"]["data"].clone())
        .collect();
    assert_eq!(data.last(), Some(&"60 E 62 E E E".into()));
}

#[test]
fn the_server_that_identity_of_names_says_whose_a_reading_is_and_is_not_written_to() {
    let (double, http) = Double::new(&[device("band-1", "anna")]);
    let mut bench = bench(&Arc::new(AtomicU16::new(201)), Some(destination(&http, "")));
    let groups = vec![group("hr", None, 1, &[(0, "hr", "61")])];
    let delivery = simulate(bench.destination.deliver(groups, &HashMap::new()));
    assert_eq!(delivery.fates, vec![vec![Fate::Delivered]]);
    let (_, observation) = sent(&bench).remove(0);
    assert_eq!(
        observation["subject"],
        serde_json::json!({"reference": "Patient/anna"})
    );
    assert!(double.of_type("Observation").is_empty());
}

#[test]
fn stored_bytes_come_back_and_foreign_ones_are_refused() {
    let state = Stored {
        version: Some("7".to_owned()),
        resource: serde_json::json!({"resourceType": "Observation", "v": 1.50}),
        memory: Some(SentMemory::default()),
    };
    let back = decode(&encode(&state)).unwrap();
    assert_eq!(
        (back.version, back.resource.to_string()),
        (state.version.clone(), state.resource.to_string())
    );
    for foreign in [&[][..], &[1, 0, 0], &[255, 255, 255, 255, 0], &[0; 9]] {
        assert!(decode(foreign).is_none(), "{foreign:?}");
    }
}
