//! The clock of the gateway (design of the agent: time): not set yet, never set, moved, not trusted any more.

use super::scripted::{Event, Gateway, HOUR, SECOND, held, text, undated_reading};
use super::*;
use crate::timekeeping::undated::ClockCommand;

/// The wall clock of a gateway without a battery: 56 years behind.
const UNSET: i64 = -56 * 365 * 24 * HOUR;

#[test]
fn readings_before_the_clock_is_set_are_held_and_dated_by_the_time_that_passed() {
    use Event::{Jump, Look, Message, Trust, Wait};
    let mut gateway = Gateway::new("");
    let seen = gateway.run(
        UNSET,
        vec![
            Trust(false),
            undated_reading(61),
            // A time of its own goes on at once.
            Message(format!(
                r#"{{"deviceId":"band","patientId":"anna","heartRate":62,"time":"{}"}}"#,
                text(5 * SECOND)
            )),
            Wait(100),
            undated_reading(64),
            Wait(20),
            Look,
            Jump(-UNSET),
            Trust(true),
            Wait(30),
            undated_reading(65),
            Wait(30),
            Look,
        ],
    );
    let (before, after) = (&seen.looks[0], &seen.looks[1]);
    assert_eq!((before.summary.delivered, before.summary.waiting), (1, 2));
    assert!(before.destinations[0].waits[0].0.name == "ClockNotSynchronized");
    assert_eq!(after.problems, [""; 0]);
    assert_eq!(
        gateway.held(),
        held(&[(61, 0), (62, 5 * SECOND), (64, 100 * SECOND), (65, 150 * SECOND)])
    );
}

#[test]
fn what_was_dated_once_keeps_its_time_after_a_restart_of_the_process() {
    use Event::{Jump, Trust, Wait};
    let mut gateway = Gateway::new("");
    gateway.run(
        UNSET,
        vec![
            Trust(false),
            undated_reading(61),
            Wait(50),
            Jump(-UNSET),
            Trust(true),
            Wait(60),
        ],
    );
    assert_eq!(gateway.held(), held(&[(61, 0)]));
    let dating = |gateway: &Gateway| {
        crate::store::Store::open(&gateway.store_folder())
            .unwrap()
            .1
            .dating
    };
    let first = dating(&gateway);
    assert!(first[0].reference.is_some());
    // The same boot, and a clock that is corrected a little: the reference stays.
    gateway.run(200 * SECOND, vec![Wait(5), Jump(3 * SECOND), Wait(60)]);
    assert_eq!(dating(&gateway), first);
    assert_eq!(gateway.held(), held(&[(61, 0)]));
}

#[test]
fn after_a_start_without_a_reference_readings_wait_until_the_operator_dates_them_or_gives_them_up() {
    use Event::{Clock, Look, Trust, Wait};
    let mut gateway = Gateway::new("");
    gateway.run(0, vec![undated_reading(60), Wait(30)]);
    // Two starts whose clock was never set.
    for values in [[61, 62], [71, 72]] {
        clock::simulate_reboot();
        let [first, second] = values.map(undated_reading);
        gateway.run(
            UNSET,
            vec![Trust(false), Wait(10), first, Wait(45), second, Wait(30)],
        );
    }
    clock::simulate_reboot();
    let date = |start, ticks: i64| {
        Clock(ClockCommand::Date {
            start,
            first: midnight().plus_ticks(ticks).unwrap().ticks(),
        })
    };
    let seen = gateway.run(
        24 * HOUR,
        vec![
            Wait(60),
            undated_reading(80),
            Wait(60),
            Look,
            Clock(ClockCommand::List),
            date(2, -SECOND),
            date(2, 24 * HOUR + 30 * SECOND),
            date(9, HOUR),
            date(2, HOUR),
            Clock(ClockCommand::GiveUp { start: 3 }),
            Wait(700),
            Clock(ClockCommand::List),
            Look,
        ],
    );
    let before = &seen.looks[0];
    assert_eq!((before.summary.delivered, before.summary.waiting), (2, 4));
    assert_eq!(before.destinations[0].waits[0].0.name, "ClockNeverSet");
    let list = &seen.answers[0].as_ref().unwrap()["starts"];
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert_eq!((&list[0]["start"], &list[0]["messages"]), (&2.into(), &2.into()));
    assert_eq!(list[0]["not_before"], midnight().to_string());
    assert_eq!(
        list[1]["not_after"],
        midnight()
            .plus_ticks(24 * HOUR + 60 * SECOND)
            .unwrap()
            .to_string()
    );
    assert!(
        seen.answers[1]
            .as_ref()
            .unwrap_err()
            .contains("the message before them")
    );
    assert!(seen.answers[2].as_ref().unwrap_err().contains("would have come"));
    assert!(
        seen.answers[3]
            .as_ref()
            .unwrap_err()
            .contains("no reading of start 9")
    );
    assert_eq!(seen.answers[4].as_ref().unwrap()["messages"], 2);
    assert_eq!(seen.answers[5].as_ref().unwrap()["messages"], 2);
    assert_eq!(seen.answers[6].as_ref().unwrap()["starts"], serde_json::json!([]));
    let after = &seen.looks[1];
    let s = after.summary;
    assert_eq!((s.delivered, s.waiting, s.lost, s.dead), (4, 0, 2, 0), "{s:?}");
    assert!(
        after.ledger[0].contains("given up by the operator"),
        "{:?}",
        after.ledger
    );
    assert_eq!(
        gateway.held(),
        held(&[
            (60, 0),
            (61, HOUR),
            (62, HOUR + 45 * SECOND),
            (80, 24 * HOUR + 60 * SECOND)
        ])
    );
}

#[test]
fn jumps_of_a_trusted_clock_are_shown_and_change_no_reading_that_came() {
    use Event::{Jump, Look, Wait};
    for jump in [HOUR, -HOUR, 40 * 24 * HOUR, -40 * 24 * HOUR] {
        let mut gateway = Gateway::new("");
        let seen = gateway.run(
            0,
            vec![
                Wait(10),
                undated_reading(61),
                Jump(jump),
                Wait(10),
                undated_reading(62),
                Wait(60),
                Look,
                Wait(3700),
                Look,
            ],
        );
        assert_eq!(
            gateway.held(),
            held(&[(61, 10 * SECOND), (62, 20 * SECOND + jump)]),
            "{jump}"
        );
        assert_eq!((seen.looks[0].clock_jumps, seen.looks[1].clock_jumps), (1, 1));
        assert!(
            seen.looks[0].problems[0].contains("was moved"),
            "{:?}",
            seen.looks[0].problems
        );
        assert_eq!(seen.looks[1].problems, [""; 0]);
    }
}

#[test]
fn a_clock_that_is_not_trusted_any_more_is_replaced_by_the_time_that_passed() {
    use Event::{Jump, Trust, Wait};
    let mut gateway = Gateway::new("");
    gateway.run(
        0,
        vec![
            Wait(10),
            undated_reading(61),
            Trust(false),
            Jump(UNSET),
            Wait(10),
            undated_reading(62),
            Wait(60),
        ],
    );
    assert_eq!(gateway.held(), held(&[(61, 10 * SECOND), (62, 20 * SECOND)]));
}
