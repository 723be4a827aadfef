//! The estimator alone, message by message.

use super::clock::SECOND;
use super::*;
use crate::message::{Message, Position, RevisionId, SourceId, Stamp};
use crate::store::salvage::Run;

/// 2026-03-01T00:00:00Z.
const MIDNIGHT: i64 = 17_723_232_000_000_000;

fn message(position: Position, second: i64) -> StoredMessage {
    StoredMessage {
        position,
        revision: RevisionId(1),
        message: Message::new(
            SourceId(1),
            Stamp {
                boot: 1,
                monotonic_us: second as u64 * 1_000_000,
                wall: Timestamp::from_ticks(MIDNIGHT + second * SECOND).unwrap(),
                trusted: true,
            },
            "",
        ),
    }
}

fn measured(kind: ClockKind, samples: usize) -> Rule {
    Rule {
        device: "*".to_owned(),
        correction: 0,
        kind,
        synchronized: false,
        measured: Some(Measured {
            samples,
            limit: 24 * 3600 * SECOND,
        }),
    }
}

/// Feeds one message a minute whose clock is behind by so many seconds (an arrival of delay included), and tells for each
/// how it would be dated when it comes: W waits, X dead, else the seconds that are added.
fn feed(clocks: &mut Clocks, rule: &Rule, from: i64, behind: &[i64]) -> Vec<String> {
    let told = behind.iter().enumerate().map(|(number, behind)| {
        let second = (from + number as i64) * 60;
        let stored = message((from + number as i64) as u64 + 1, second);
        let shown = MIDNIGHT + (second - behind) * SECOND;
        if let Some(change) = clocks.observe(Some(rule), "band", &stored, shown) {
            clocks.take(change);
        }
        tell(clocks, rule, &stored, shown)
    });
    told.collect()
}

fn tell(clocks: &Clocks, rule: &Rule, stored: &StoredMessage, shown: i64) -> String {
    let received = Some(stored.message.stamp.wall.ticks());
    let shown = Timestamp::from_ticks(shown).unwrap();
    match clocks.judge(rule, "band", stored, shown, received) {
        (_, _, Some(Hold::Waiting(_))) => "W".to_owned(),
        (_, _, Some(Hold::Dead(_))) => "X".to_owned(),
        (at, time, None) => {
            assert_eq!(time.ticks() - shown.ticks(), at.correction);
            (at.correction / SECOND).to_string()
        }
    }
}

#[test]
fn an_offset_is_believed_once_enough_messages_agree_whatever_is_late() {
    for (samples, behind, expected) in [
        (3, vec![300, 301, 300, 300], "W W 300 300"),
        // Delays make differences larger, never smaller.
        (3, vec![900, 300, 4000, 301, 300], "W W W W 300"),
        // Nothing agrees: a backlog that is drained.
        (3, vec![4000, 3000, 2000, 1000, 500, 250], "W W W W W W"),
        (1, vec![-40, -40], "-40 -40"),
        // More than is believed.
        (1, vec![900_000, 900_000], "W W"),
        // It drifts.
        (2, vec![10, 10, 13, 13, 13], "W 10 10 10 13"),
    ] {
        let mut clocks = Clocks::default();
        let told = feed(&mut clocks, &measured(ClockKind::Utc, samples), 0, &behind);
        assert_eq!(told.join(" "), expected, "{behind:?}");
    }
}

#[test]
fn a_clock_that_is_set_is_told_from_readings_that_are_late() {
    let rule = measured(ClockKind::Utc, 3);
    for (then, expected) in [
        // Late ones wait until it is clear that they are, then go with the offset that holds.
        (vec![5000, 300, 300, 300], "W 300 300 300"),
        // Set back, set ahead: those that came meanwhile wait, and get the new offset.
        (vec![7200, 7200, 7200, 7200], "W W 7200 7200"),
        (vec![-3600, -3600, -3600], "W W -3600"),
    ] {
        let mut clocks = Clocks::default();
        assert_eq!(feed(&mut clocks, &rule, 0, &[300; 4]).join(" "), "W W 300 300");
        assert_eq!(feed(&mut clocks, &rule, 4, &then).join(" "), expected, "{then:?}");
        // Looked at again: what was dated keeps its time, what waited has one.
        let again: Vec<String> = then
            .iter()
            .enumerate()
            .map(|(number, behind)| {
                let second = (4 + number as i64) * 60;
                let stored = message(5 + number as u64, second);
                tell(&clocks, &rule, &stored, MIDNIGHT + (second - behind) * SECOND)
            })
            .collect();
        assert!(!again.contains(&"W".to_owned()), "{again:?}");
        assert_eq!(
            tell(&clocks, &rule, &message(3, 120), MIDNIGHT + (120 - 300) * SECOND),
            "300"
        );
    }
}

#[test]
fn what_was_taken_before_the_clock_was_set_cannot_be_dated() {
    let rule = measured(ClockKind::Tick, 2);
    let rule = Rule {
        measured: Some(Measured {
            samples: 2,
            limit: i64::MAX,
        }),
        ..rule
    };
    let mut clocks = Clocks::default();
    // It has run for 1000 s at midnight, and starts anew at minute 5.
    let offset = MIDNIGHT / SECOND - 1000;
    let behind = [offset; 4];
    let told = feed(&mut clocks, &rule, 0, &behind);
    assert_eq!(
        told[1..],
        [offset.to_string(), offset.to_string(), offset.to_string()]
    );
    let anew = MIDNIGHT / SECOND + 300;
    assert_eq!(
        feed(&mut clocks, &rule, 6, &[anew; 3])[1..],
        [anew.to_string(), anew.to_string()]
    );
    // A record of its memory, from before it started anew: its counter says nothing any more.
    let mut record = message(20, 1200);
    record.message.record = Some(7);
    assert_eq!(tell(&clocks, &rule, &record, 1100 * SECOND), "X");
    assert_eq!(tell(&clocks, &rule, &record, 200 * SECOND), anew.to_string());
}

#[test]
fn a_restart_knows_what_was_known_and_dates_alike() {
    let rule = measured(ClockKind::Utc, 2);
    let mut clocks = Clocks::default();
    let mut stored = String::new();
    let behind = [300, 300, 300, 7200, 300, 300, 7200, 7200];
    for (number, behind) in behind.iter().enumerate() {
        let one = message(number as u64 + 1, number as i64 * 60);
        let shown = MIDNIGHT + (number as i64 * 60 - behind) * SECOND;
        if let Some(change) = clocks.observe(Some(&rule), "band", &one, shown) {
            stored.clone_from(&change.state);
            clocks.take(change);
        }
    }
    let restored = Clocks::restore(&[("band".to_owned(), stored)], Identities::default());
    for (number, behind) in behind.iter().enumerate() {
        let one = message(number as u64 + 1, number as i64 * 60);
        let shown = MIDNIGHT + (number as i64 * 60 - behind) * SECOND;
        assert_eq!(
            tell(&restored, &rule, &one, shown),
            tell(&clocks, &rule, &one, shown),
            "{number}"
        );
    }
    // What was measured already is not measured again.
    let mut restored = restored;
    assert_eq!(
        restored.observe(Some(&rule), "band", &message(3, 120), MIDNIGHT),
        None
    );
}

#[test]
fn records_repeats_and_untrusted_stamps_measure_nothing() {
    let rule = measured(ClockKind::Utc, 1);
    let mut clocks = Clocks::default();
    let change = |edit: fn(&mut StoredMessage), clocks: &mut Clocks| {
        let mut one = message(1, 60);
        edit(&mut one);
        clocks.observe(Some(&rule), "band", &one, MIDNIGHT)
    };
    assert_eq!(change(|one| one.message.record = Some(1), &mut clocks), None);
    assert_eq!(
        change(|one| one.message.possible_repeat = true, &mut clocks),
        None
    );
    assert_eq!(change(|one| one.message.stamp.trusted = false, &mut clocks), None);
    assert_eq!(
        change(
            |one| one.message.stamp.wall = Timestamp::from_ticks(MIDNIGHT).unwrap(),
            &mut clocks
        ),
        None
    );
    assert!(change(|_| {}, &mut clocks).is_some());
}

#[test]
fn a_clock_that_nobody_spoke_of_is_shown_when_it_is_far_off_and_never_corrected() {
    let mut clocks = Clocks::default();
    for (device, behind) in [("good", 2), ("slow", 3600), ("fast", -600)] {
        for minute in 0..6 {
            let stored = message(minute + 1, minute as i64 * 60);
            let shown = MIDNIGHT + (minute as i64 * 60 - behind) * SECOND;
            assert_eq!(clocks.observe(None, device, &stored, shown), None);
        }
    }
    let shown = clocks.shown();
    let lines: Vec<_> = shown
        .iter()
        .map(|one| (one.device.as_str(), one.behind_seconds, one.corrected_seconds))
        .collect();
    assert_eq!(
        lines,
        [("fast", Some(-600.0), None), ("slow", Some(3600.0), None)]
    );
    assert!(shown[0].problem.as_ref().unwrap().contains("ahead of"));
    // So many devices are watched, the newest ones.
    for number in 0..DEVICES + 10 {
        let one = message(1, 60);
        clocks.observe(None, &format!("device {number}"), &one, MIDNIGHT);
    }
    assert_eq!(clocks.devices.len(), DEVICES);
}

#[test]
fn what_was_measured_in_a_store_before_this_one_dates_its_messages_as_it_did() {
    let rule = measured(ClockKind::Utc, 2);
    let mut clocks = Clocks::default();
    let mut state = String::new();
    let behind = [300, 300, 300, 7200, 7200, 7200, 7200];
    let of = |position: u64| message(position, (position as i64 - 1) * 60);
    let shown = |number: usize| MIDNIGHT + (number as i64 * 60 - behind[number]) * SECOND;
    for number in 0..behind.len() {
        if let Some(change) = clocks.observe(Some(&rule), "band", &of(number as u64 + 1), shown(number)) {
            state.clone_from(&change.state);
            clocks.take(change);
        }
    }
    // They come as 101 and on, behind one of now.
    let run = Run {
        first: 101,
        count: behind.len() as u64,
        former: 3,
        position: 1,
        store: "then".into(),
        known_as: 1,
    };
    let carried = carried_over(&state, 3).unwrap();
    let mut now = Clocks::restore(&[("band".to_owned(), carried)], Identities::new(vec![run]));
    let live = message(1, 3600);
    let live_shown = MIDNIGHT + (3600 - 7200) * SECOND;
    assert_eq!(
        tell(&now, &rule, &live, live_shown),
        "7200",
        "the last offset holds on"
    );
    for number in 0..behind.len() {
        let mut again = of(number as u64 + 1);
        again.position += 100;
        assert_eq!(
            tell(&now, &rule, &again, shown(number)),
            tell(&clocks, &rule, &of(number as u64 + 1), shown(number)),
            "{number}"
        );
        // And measures nothing.
        assert_eq!(now.observe(Some(&rule), "band", &again, shown(number)), None);
    }
    assert_eq!(carried_over("{\"entries\":[]}", 3), None, "half a state is none");
}
