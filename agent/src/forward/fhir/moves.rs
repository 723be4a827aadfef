//! Devices that move between patients while the server cannot be reached: whose the late readings become.

use super::double::{Double, Fault};
use super::tests::{destination, device, group, none, simulate, standard};
use super::*;
use embassy_time::Timer;
use iomt_mapping::Timestamp;
use serde_json::{Value, json};

/// A version of the Device `a`; `-` is nobody. It was written so many minutes after noon (before, when negative).
pub(super) fn version(number: u64, minute: i64, patient: &str) -> Value {
    let mut resource = device("a", patient);
    if patient == "-" {
        resource.as_object_mut().unwrap().remove("patient");
    }
    let (day, minute) = if minute < 0 {
        (21, 1440 + minute)
    } else {
        (22, minute)
    };
    let at = format!("2026-09-{day}T{:02}:{:02}:00.5+00:00", minute / 60, minute % 60);
    resource["meta"] = json!({"versionId": number.to_string(), "lastUpdated": at});
    resource
}

/// The server shows the last version, and with `history` all of them.
pub(super) fn show(double: &Double, versions: &[Value], history: bool) {
    let mut state = double.state();
    state.put(versions.last().unwrap().clone());
    if history {
        state
            .versions
            .insert("Device/device-a".to_owned(), versions.to_vec());
    }
}

/// Readings of these minutes that came when they were taken; the value is the minute.
pub(super) fn readings(first: u64, type_name: &str, minutes: &[i64]) -> Group {
    let texts: Vec<String> = minutes.iter().map(i64::to_string).collect();
    let values: Vec<(i64, &str, &str)> = minutes
        .iter()
        .zip(&texts)
        .map(|(minute, text)| (*minute, "hr", text.as_str()))
        .collect();
    let mut group = group(&standard(), "a", type_name, first, &values);
    for reading in &mut group.readings {
        let taken = reading.measurement.occurrence_time.ticks();
        reading.received.wall = Timestamp::from_ticks(taken + 10_000_000).unwrap();
    }
    group
}

/// `patient values`, sorted; for a period its data.
pub(super) fn held(double: &Double) -> Vec<String> {
    let line = |o: &Value| {
        let value = match o["valueSampledData"]["data"].as_str() {
            Some(data) => data.to_owned(),
            None => o["valueQuantity"]["value"].to_string(),
        };
        let patient = o["subject"]["reference"].as_str().unwrap();
        format!("{} {value}", patient.trim_start_matches("Patient/"))
    };
    let mut lines: Vec<String> = double.of_type("Observation").iter().map(line).collect();
    lines.sort();
    lines
}

fn histories(double: &Double) -> usize {
    let log = &double.state().log;
    log.iter().filter(|line| line.contains("/_history")).count()
}

/// Fates in short: D delivered, W waiting, R retry.
pub(super) fn short(delivery: &Delivery) -> String {
    let letter = |fate: &Fate| match fate {
        Fate::Delivered => 'D',
        Fate::Waiting(_) => 'W',
        Fate::Retry => 'R',
        Fate::Superseded | Fate::Dead(_) => '?',
    };
    delivery.fates.iter().flatten().map(letter).collect()
}

#[test]
fn late_readings_go_to_the_patient_of_their_time_also_within_one_hour() {
    for (name, seen_before) in [("seen before the outage", true), ("never seen", false)] {
        for more in ["", "resolution = \"create\"\n"] {
            let (double, http) = Double::new(&[]);
            let mut fhir = destination(&http, more);
            simulate(async {
                show(&double, &[version(1, -60, "anna")], true);
                if seen_before {
                    fhir.deliver(vec![readings(1, "hr", &[0])], &none()).await;
                    assert_eq!(held(&double), ["anna 0"], "{name}");
                    assert_eq!(histories(&double), 0, "one look tells enough");
                }
                Timer::after_secs(55 * 60).await;
                show(&double, &[version(1, -60, "anna"), version(2, 30, "bert")], true);
                let late = vec![
                    readings(2, "hourly", &[10, 20, 40, 50]),
                    readings(6, "hr", &[29, 31]),
                ];
                let delivery = fhir.deliver(late, &none()).await;
                assert_eq!(short(&delivery), "DDDDDD", "{name}");
                let mut expected = vec!["anna 29", "anna E 10 20 E E E", "bert 31", "bert E E E E 40 50"];
                if seen_before {
                    expected.insert(0, "anna 0");
                }
                assert_eq!(held(&double), expected, "{name}");
                assert_eq!(histories(&double), 1);

                // An even later one, and a new one: the versions are known.
                let requests = double.state().requests;
                let more = vec![readings(8, "hr", &[15, 54])];
                assert_eq!(short(&fhir.deliver(more, &none()).await), "DD");
                assert!(held(&double).contains(&"anna 15".to_owned()), "{name}");
                assert!(held(&double).contains(&"bert 54".to_owned()), "{name}");
                assert_eq!((histories(&double), double.state().requests), (1, requests + 3));
            });
        }
    }
}

#[test]
fn a_device_that_moves_inside_an_open_day_leaves_each_reading_with_the_patient_of_its_time() {
    let (double, http) = Double::new(&[]);
    let mut fhir = destination(&http, "");
    let values = || -> Vec<String> {
        let lines = held(&double);
        let without_gaps = lines.iter().map(|line| line.replace(" E", ""));
        without_gaps.collect()
    };
    simulate(async {
        show(&double, &[version(1, -60, "anna")], true);
        fhir.deliver(vec![readings(1, "daily", &[10, 40])], &none()).await;
        assert_eq!(values(), ["anna 10 40"]);
        // It moves during an outage; what was read before and after comes together.
        Timer::after_secs(4 * 3600).await;
        show(&double, &[version(1, -60, "anna"), version(2, 120, "bert")], true);
        let late = vec![readings(3, "daily", &[60, 110, 130, 200])];
        assert_eq!(short(&fhir.deliver(late, &none()).await), "DDDD");
        assert_eq!(values(), ["anna 10 40 60 110", "bert 130 200"]);
    });
}

#[test]
fn a_reading_in_a_gap_waits_and_its_neighbours_do_not() {
    let (double, http) = Double::new(&[]);
    let mut fhir = destination(&http, "");
    simulate(async {
        Timer::after_secs(55 * 60).await;
        let all = [
            version(1, -60, "anna"),
            version(2, 20, "-"),
            version(3, 40, "bert"),
        ];
        show(&double, &all, true);
        let delivery = fhir
            .deliver(vec![readings(1, "hr", &[10, 30, 50])], &none())
            .await;
        assert_eq!(short(&delivery), "DWD");
        assert_eq!(held(&double), ["anna 10", "bert 50"]);
        let Fate::Waiting(error) = &delivery.fates[0][1] else {
            panic!("it waits");
        };
        assert!(error.text.contains("linked to nobody"), "{}", error.text);
        // Nobody has it now: what was taken before still has its patient.
        Timer::after_secs(5 * 60).await;
        let all = [
            version(1, -60, "anna"),
            version(2, 20, "-"),
            version(3, 40, "bert"),
            version(4, 57, "-"),
        ];
        show(&double, &all, true);
        let delivery = fhir.deliver(vec![readings(4, "hr", &[56, 58])], &none()).await;
        assert_eq!(short(&delivery), "DW");
        assert_eq!(held(&double), ["anna 10", "bert 50", "bert 56"]);
    });
}

#[test]
fn without_versions_nothing_is_guessed_between_two_looks() {
    let (double, http) = Double::new(&[]);
    let mut fhir = destination(&http, "");
    simulate(async {
        Timer::after_secs(5 * 60).await;
        show(&double, &[version(1, -60, "anna")], false);
        fhir.deliver(vec![readings(1, "hr", &[4])], &none()).await;
        Timer::after_secs(50 * 60).await;
        show(&double, &[version(3, 40, "bert")], false);
        let late = || vec![readings(2, "hr", &[3, 20, 45])];
        assert_eq!(short(&fhir.deliver(late(), &none()).await), "DWD");
        assert_eq!(held(&double), ["anna 3", "anna 4", "bert 45"]);
        assert_eq!(histories(&double), 1);
        // It moves again within the hour: the versions are not asked for in vain.
        show(&double, &[version(5, 54, "carl")], false);
        assert_eq!(short(&fhir.deliver(late(), &none()).await), "DWD");
        assert_eq!(histories(&double), 1);
        assert_eq!(held(&double), ["anna 3", "anna 4", "bert 45"]);
    });
}

#[test]
fn versions_that_cannot_be_read_now_keep_the_readings() {
    let (double, http) = Double::new(&[]);
    let mut fhir = destination(&http, "");
    simulate(async {
        Timer::after_secs(55 * 60).await;
        show(&double, &[version(1, -60, "anna"), version(2, 30, "bert")], true);
        double.state().faults = vec![None, Some(Fault::Reset)].into();
        let late = || vec![readings(1, "hr", &[10, 50])];
        let delivery = fhir.deliver(late(), &none()).await;
        assert_eq!(short(&delivery), "RR");
        assert!(held(&double).is_empty());
        Timer::after_secs(120).await;
        assert_eq!(short(&fhir.deliver(late(), &none()).await), "DD");
        assert_eq!(held(&double), ["anna 10", "bert 50"]);
    });
}
