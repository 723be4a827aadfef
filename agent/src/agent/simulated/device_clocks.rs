//! Clocks of devices that are off: what is corrected, what waits, and what the server is told about it.

use super::scripted::{Event, Gateway, SECOND, dated_reading, held, text};
use super::*;
use crate::telemetry::status::Status;
use std::collections::BTreeMap;

/// Times with a device clock that is so many seconds ahead, as the server has them.
fn corrected(gateway: &Gateway, pairs: &[(u32, i64)]) {
    let pairs: Vec<(u32, i64)> = pairs
        .iter()
        .map(|(value, second)| (*value, second * SECOND))
        .collect();
    assert_eq!(gateway.held(), held(&pairs));
}

#[test]
fn a_constant_correction_is_part_of_the_revision_that_a_message_names() {
    use Event::Wait;
    let rule = "[[clock.device]]\ndevice = \"ba*\"\nahead = \"5 min\"\n";
    let mut gateway = Gateway::new(rule);
    gateway.run(0, vec![Wait(10), dated_reading(61, 300), Wait(60)]);
    corrected(&gateway, &[(61, 10)]);
    // Sent again with another configuration (the confirmation was lost): the same Observation.
    gateway.more = "[[clock.device]]\ndevice = \"band\"\nahead = \"10 min\"\n".to_owned();
    gateway.forget_progress();
    gateway.run(200 * SECOND, vec![Wait(10), dated_reading(62, 600), Wait(60)]);
    corrected(&gateway, &[(61, 10), (62, 210)]);
}

#[test]
fn a_measured_correction_dates_what_waited_for_it_and_survives_restarts() {
    use Event::{Look, Message, Wait};
    let rule = "[[clock.device]]\ndevice = \"band\"\nmeasured = true\nsamples = 3\n";
    let mut gateway = Gateway::new(rule);
    let live = |value, ahead| [dated_reading(value, ahead), Wait(30)];
    let seen = gateway.run(
        0,
        [
            live(61, 3600).as_slice(),
            &[Look],
            &live(62, 3600),
            &live(63, 3600),
            &live(64, 3600),
            // A reading of its memory, half an hour old.
            &[Event::Record(
                r#"{"deviceId":"band","patientId":"anna","heartRate":65,"time":"NOW+1800"}"#.to_owned(),
            )],
            &[Wait(60), Look],
        ]
        .concat(),
    );
    assert_eq!(
        seen.looks[0].destinations[0].waits[0].0.name,
        "DeviceClockNotMeasured"
    );
    let clock = &seen.looks[1].device_clocks[0];
    assert_eq!(
        (clock.device.as_str(), clock.corrected_seconds),
        ("band", Some(-3600.0))
    );
    assert_eq!(seen.looks[1].problems, [""; 0]);
    corrected(
        &gateway,
        &[(61, 0), (62, 30), (63, 60), (64, 90), (65, 120 - 1800)],
    );
    // Everything is normalized and sent again after a restart, and the clock is set right meanwhile.
    gateway.forget_progress();
    let late =
        Message(r#"{"deviceId":"band","patientId":"anna","heartRate":70,"time":"NOW-7199"}"#.to_owned());
    let seen = gateway.run(
        1000 * SECOND,
        [
            live(71, 1).as_slice(),
            &[Look],
            &live(72, 1),
            &live(73, 1),
            &live(74, 1),
            // It was offline: what it kept comes late, and waits until it is clear that it is late.
            &[late, Wait(10), Look],
            &live(75, 1),
            &live(76, 1),
            &[Wait(60), Look],
        ]
        .concat(),
    );
    let waits = |look: &Status| {
        look.destinations[0]
            .waits
            .iter()
            .map(|(e, _)| e.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(waits(&seen.looks[0]), ["DeviceClockUncertain"]);
    assert!(
        seen.looks[0]
            .problems
            .iter()
            .any(|p| p.contains("contradict each other"))
    );
    assert_eq!(waits(&seen.looks[1]), ["DeviceClockUncertain"]);
    // Taken before the clock was set: nobody can date it.
    assert_eq!(
        waits(&seen.looks[2]),
        [""; 0],
        "{:?} {:?}",
        seen.looks[2].device_clocks,
        seen.looks[2].destinations
    );
    assert_eq!(gateway.summary.dead, 1, "{:?}", seen.looks[2].dead_letters);
    corrected(
        &gateway,
        &[
            (61, 0),
            (62, 30),
            (63, 60),
            (64, 90),
            (65, 120 - 1800),
            (71, 1000),
            (72, 1030),
            (73, 1060),
            (74, 1090),
            (75, 1130),
            (76, 1160),
        ],
    );
}

#[test]
fn a_device_far_off_is_a_problem_in_the_status_although_nothing_is_configured() {
    use Event::{Look, Wait};
    let mut gateway = Gateway::new("");
    let mut script: Vec<Event> = (0..6)
        .flat_map(|n| [dated_reading(61 + n, -900), Wait(60)])
        .collect();
    script.push(Look);
    let seen = gateway.run(0, script);
    let problem = &seen.looks[0].problems[0];
    assert!(
        problem.contains("device band") && problem.contains("900 s behind"),
        "{problem}"
    );
    // They go as the device dated them.
    assert_eq!(gateway.held()["61"], text(-900 * SECOND));
    let page = crate::telemetry::metrics::render(&seen.looks[0]);
    assert!(page.contains("bedside_device_clock_behind_seconds{device=\"band\"} 900\n"));
}

/// A coincident timestamp that an Observation refers to, and the Observation.
fn with_record<'o>(
    all: &'o [serde_json::Value],
    value: &str,
) -> (&'o serde_json::Value, &'o serde_json::Value) {
    let wanted: serde_json::Value = serde_json::from_str(value).unwrap();
    let reading = all
        .iter()
        .find(|one| one["valueQuantity"]["value"] == wanted)
        .unwrap();
    let url = |end: &str| {
        let extensions = reading["extension"].as_array().unwrap();
        let found = extensions
            .iter()
            .find(|one| one["url"].as_str().unwrap().ends_with(end))
            .unwrap();
        found["valueReference"]["reference"].as_str().unwrap().to_owned()
    };
    let record = url("CoincidentTimeStampReference");
    let record = all
        .iter()
        .find(|one| format!("Observation/{}", one["id"].as_str().unwrap()) == record)
        .unwrap();
    assert_eq!(record["device"]["reference"], url("observation-gatewayDevice"));
    (reading, record)
}

#[test]
fn a_corrected_reading_refers_to_what_the_clock_of_its_device_showed() {
    use Event::Wait;
    let option = "coincident_timestamp = true\n";
    let mut gateway = Gateway::new(&format!(
        "{option}[[clock.device]]\ndevice = \"band\"\nahead = \"5 min\"\n"
    ));
    gateway.run(
        3600 * SECOND,
        vec![dated_reading(61, 300), Wait(10), dated_reading(62, 300), Wait(60)],
    );
    let all = gateway.server.observations();
    assert_eq!(all.len(), 3, "one record for the day");
    let (reading, record) = with_record(&all, "61");
    assert_eq!(reading["effectivePeriod"]["start"], text(3600 * SECOND));
    // By what the device wrote: an hour and five minutes after midnight.
    let identifier = &reading["identifier"][1];
    let seconds = (midnight().ticks() / SECOND) - 946_684_800 + 3900;
    assert_eq!(
        identifier["system"],
        "http://hl7.org/fhir/uv/phd/StructureDefinition/PhdBaseObservation"
    );
    assert!(
        identifier["value"]
            .as_str()
            .unwrap()
            .ends_with(&format!("-heartRate-{seconds}")),
        "{identifier}"
    );
    assert_eq!(record["code"]["coding"][0]["code"], "67975");
    assert_eq!(record["effectiveDateTime"], "2026-03-01T00:00:00Z");
    assert_eq!(record["valueDateTime"], "2026-03-01T00:05:00Z");
    assert_eq!(record["subject"], reading["device"]);
    // A restart sends everything again: nothing new, nothing written over.
    gateway.forget_progress();
    gateway.run(7200 * SECOND, vec![Wait(60)]);
    let versions = |all: &[serde_json::Value]| {
        let each = all
            .iter()
            .map(|one| (one["id"].to_string(), one["meta"]["versionId"].to_string()));
        each.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(versions(&gateway.server.observations()), versions(&all));
}

#[test]
fn a_counter_is_recorded_in_microseconds_at_the_time_at_which_it_was_measured() {
    use Event::{Message, Wait};
    let rule = "coincident_timestamp = true\n[[clock.device]]\ndevice = \"band\"\nmeasured = true\nticks = true\nsamples = 2\n";
    let mut gateway = Gateway::new(rule);
    // Switched on 100 s before midnight; a reading each minute.
    let ticks = |value: u32, second: i64| {
        let shown = Timestamp::from_ticks((second + 100) * SECOND)
            .unwrap()
            .to_seven_digits();
        Message(format!(
            r#"{{"deviceId":"band","patientId":"anna","heartRate":{value},"time":"{shown}"}}"#
        ))
    };
    gateway.run(0, vec![ticks(61, 0), Wait(60), ticks(62, 60), Wait(60)]);
    corrected(&gateway, &[(61, 0), (62, 60)]);
    let all = gateway.server.observations();
    assert_eq!(all.len(), 3, "one record for what was measured once");
    let (reading, record) = with_record(&all, "61");
    assert!(
        reading["identifier"][1]["value"]
            .as_str()
            .unwrap()
            .ends_with("-heartRate-100.000")
    );
    assert_eq!(record["code"]["coding"][0]["code"], "67983");
    assert_eq!(record["effectiveDateTime"], "2026-03-01T00:01:00Z");
    assert_eq!(record["valueQuantity"]["value"].to_string(), "160000000");
    assert_eq!(record["valueQuantity"]["unit"], "us");
}

#[test]
fn what_no_message_ever_explains_is_a_dead_letter_after_max_wait() {
    use Event::{Look, Wait};
    let rule = "max_wait = \"2 h\"\n[[clock.device]]\ndevice = \"band\"\nmeasured = true\n";
    let mut gateway = Gateway::new(rule);
    let seen = gateway.run(
        0,
        vec![dated_reading(61, 300), Wait(3600), Look, Wait(4800), Look],
    );
    assert_eq!(seen.looks[0].summary.waiting, 1);
    let s = seen.looks[1].summary;
    assert_eq!((s.waiting, s.dead), (0, 1), "{s:?}");
    assert_eq!(seen.looks[1].dead_letters[0].error.name, "DeviceClockNotMeasured");
}
