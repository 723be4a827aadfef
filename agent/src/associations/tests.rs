//! The timeline as tables: what was entered and seen, and whose a reading of each minute is.

use super::*;
use std::sync::Arc;

fn entry(
    number: i64,
    patient: Option<&str>,
    from: Option<Ticks>,
    to: Option<Ticks>,
    entered: Ticks,
) -> Entry {
    Entry {
        number,
        device: Arc::from("d"),
        patient: patient.map(|id| Who::Id(id.to_owned())),
        encounter: None,
        from,
        to,
        entered,
    }
}

fn seen(version: u64, last_updated: Ticks, patient: &str, asked: Ticks) -> Seen {
    Seen {
        device: "device-d".to_owned(),
        version: Some(version.to_string()),
        last_updated: Some(last_updated),
        patient: some(patient),
        asked: Some(asked),
        answered: Some(asked),
    }
}

/// `-` is nobody.
fn some(patient: &str) -> Option<String> {
    (patient != "-").then(|| patient.to_owned())
}

fn versions(all: &[(u64, Ticks, &str)]) -> Vec<Version> {
    let version = |(version, at, patient): &(u64, Ticks, &str)| Version {
        version: Some(version.to_string()),
        at: *at,
        patient: some(patient),
    };
    all.iter().map(version).collect()
}

fn statement(patient: &str, from: Option<Ticks>, end: Option<Ticks>) -> Statement {
    Statement {
        patient: patient.to_owned(),
        from,
        last: end,
        end,
        recorded: from,
    }
}

/// Looks without versions between.
fn looks(all: &[(u64, Ticks, &str, Ticks)]) -> Record {
    let mut record = Record::default();
    for (version, last_updated, patient, asked) in all {
        record.look(&seen(*version, *last_updated, patient, *asked));
    }
    record
}

fn short(answer: &Answer) -> String {
    match answer {
        Answer::Patient {
            patient: Who::Id(id) | Who::Identifier(id),
            ..
        } => id.clone(),
        Answer::Waits(wait) => format!("{wait:?}").to_lowercase(),
    }
}

/// Answers as `from:answer` wherever they change, over the minutes 0 to 99.
fn over_time(entries: &[Entry], record: Option<&Record>) -> String {
    let mut line: Vec<String> = Vec::new();
    let mut before = String::new();
    for instant in 0..100 {
        let now = short(&at(
            entries,
            record,
            &|who| match who {
                Who::Id(id) => Some(id.clone()),
                Who::Identifier(_) => None,
            },
            instant,
        ));
        if now != before {
            line.push(format!("{instant}:{now}"));
            before = now;
        }
    }
    line.join(" ")
}

#[test]
fn a_server_without_history_is_certain_only_where_it_was_seen() {
    for (name, all, expected) in [
        ("never linked", vec![(1, 10, "-", 50)], "0:unlinked"),
        ("one look, backwards without limit", vec![(1, 40, "a", 50)], "0:a"),
        (
            "the same version again",
            vec![(1, 40, "a", 50), (1, 40, "a", 60)],
            "0:a",
        ),
        (
            "changed between two looks",
            vec![(1, 10, "a", 20), (2, 40, "b", 50)],
            "0:a 21:uncertain 40:b",
        ),
        (
            "the next version with the same link",
            vec![(1, 10, "a", 20), (2, 40, "a", 50)],
            "0:a",
        ),
        (
            "versions were missed",
            vec![(1, 10, "a", 20), (3, 40, "a", 50)],
            "0:a 21:uncertain 40:a",
        ),
        (
            "unlinked",
            vec![(1, 10, "a", 20), (2, 40, "-", 50)],
            "0:a 21:uncertain 40:gap",
        ),
        (
            "linked later",
            vec![(1, 10, "-", 20), (2, 40, "b", 50)],
            "0:gap 21:uncertain 40:b",
        ),
        (
            "its clock is behind ours",
            vec![(1, 10, "a", 20), (2, 15, "b", 50)],
            "0:a 21:uncertain 50:b",
        ),
        (
            "its clock is ahead of ours",
            vec![(1, 10, "a", 20), (2, 70, "b", 50)],
            "0:a 21:uncertain 50:b",
        ),
        (
            "three patients",
            vec![(1, 0, "a", 20), (2, 30, "b", 40), (3, 60, "c", 70)],
            "0:a 21:uncertain 30:b 41:uncertain 60:c",
        ),
    ] {
        assert_eq!(over_time(&[], Some(&looks(&all))), expected, "{name}");
    }
}

#[test]
fn a_server_with_history_is_exact() {
    let all = versions(&[
        (1, 10, "-"),
        (2, 20, "a"),
        (3, 25, "a"),
        (4, 40, "b"),
        (5, 60, "-"),
        (6, 80, "a"),
    ]);
    let exact = "0:gap 20:a 40:b 60:gap 80:a";
    let mut record = Record::default();
    record.look_with_history(&seen(6, 80, "a", 90), &all, true);
    assert_eq!(over_time(&[], Some(&record)), exact);
    // The same with looks between.
    let mut record = Record::default();
    record.look(&seen(3, 25, "a", 30));
    assert!(
        record.wants_history(&seen(6, 80, "a", 90), 35) && record.wants_history(&seen(3, 25, "a", 31), 10)
    );
    record.look_with_history(&seen(6, 80, "a", 90), &all, true);
    assert_eq!(over_time(&[], Some(&record)), exact);
    assert!(!record.wants_history(&seen(6, 80, "a", 95), 0));
    // A change that the server dates before our last look at the old link.
    let mut record = looks(&[(1, 5, "a", 30)]);
    record.look_with_history(
        &seen(2, 28, "b", 50),
        &versions(&[(1, 5, "a"), (2, 28, "b")]),
        true,
    );
    assert_eq!(over_time(&[], Some(&record)), "0:a 31:uncertain 50:b");
    // Two of them: the one between has no time of its own.
    let mut record = looks(&[(1, 5, "a", 30)]);
    let all = versions(&[(1, 5, "a"), (2, 27, "c"), (3, 28, "b")]);
    record.look_with_history(&seen(3, 28, "b", 50), &all, true);
    assert_eq!(over_time(&[], Some(&record)), "0:a 31:uncertain 50:b");
    // A history that is cut off adds to what is known.
    let mut record = looks(&[(1, 5, "a", 30)]);
    record.look_with_history(
        &seen(9, 60, "c", 70),
        &versions(&[(8, 50, "b"), (9, 60, "c")]),
        false,
    );
    assert_eq!(over_time(&[], Some(&record)), "0:a 31:uncertain 50:b 60:c");
    // And alone says nothing about before.
    let mut record = Record::default();
    record.look_with_history(
        &seen(9, 60, "c", 70),
        &versions(&[(8, 50, "b"), (9, 60, "c")]),
        false,
    );
    assert_eq!(over_time(&[], Some(&record)), "0:uncertain 50:b 60:c");
}

#[test]
fn another_device_with_the_identifier_does_not_change_the_past() {
    let mut record = looks(&[(1, 10, "a", 20)]);
    let mut other = seen(4, 15, "b", 50);
    other.device = "device-new".to_owned();
    record.look_with_history(&other, &versions(&[(3, 1, "b"), (4, 15, "b")]), true);
    assert_eq!(over_time(&[], Some(&record)), "0:a 21:uncertain 50:b");
    assert_eq!(record.device, "device-new");
}

#[test]
fn statements_of_use_are_exact() {
    let with = |statements: Vec<Statement>, all: &[(u64, Ticks, &str, Ticks)]| {
        let mut record = looks(all);
        record.statements = statements;
        over_time(&[], Some(&record))
    };
    let linked = [(1, 10, "a", 90)];
    for (name, statements, all, expected) in [
        (
            "alone",
            vec![statement("b", Some(20), Some(40))],
            &[][..],
            "0:gap 20:b 41:gap",
        ),
        (
            "beside another link",
            vec![statement("b", Some(20), Some(40))],
            &linked[..],
            "0:a 20:b 41:a",
        ),
        (
            "its patient is not there outside of it",
            vec![statement("a", Some(20), Some(40))],
            &linked[..],
            "0:gap 20:a 41:gap",
        ),
        (
            "open",
            vec![statement("b", Some(20), None)],
            &linked[..],
            "0:a 20:b",
        ),
        (
            "one after the other",
            vec![statement("b", Some(20), Some(40)), statement("c", Some(40), None)],
            &linked[..],
            "0:a 20:b 40:c",
        ),
        (
            "at the same time",
            vec![statement("b", Some(20), Some(40)), statement("c", Some(30), None)],
            &[][..],
            "0:gap 20:b 30:contradiction 41:c",
        ),
        (
            "linked anew after it",
            vec![statement("b", Some(20), Some(40))],
            &[(1, 1, "-", 50), (2, 60, "b", 70)][..],
            "0:gap 20:b 41:gap 51:uncertain 60:b",
        ),
    ] {
        assert_eq!(with(statements, all), expected, "{name}");
    }
}

#[test]
fn the_operator_comes_first_until_the_server_shows_something_newer() {
    let linked = looks(&[(1, 10, "a", 95)]);
    let mut moved = Record::default();
    let history = versions(&[(1, 10, "a"), (2, 60, "c")]);
    moved.look_with_history(&seen(2, 60, "c", 95), &history, true);
    let mut unlinked = Record::default();
    unlinked.look_with_history(
        &seen(2, 60, "-", 95),
        &versions(&[(1, 10, "a"), (2, 60, "-")]),
        true,
    );
    let mut to_ours = Record::default();
    to_ours.look_with_history(
        &seen(2, 60, "b", 95),
        &versions(&[(1, 10, "a"), (2, 60, "b")]),
        true,
    );
    let mut in_use = linked.clone();
    in_use.statements = vec![statement("c", Some(60), Some(80))];
    let unseen = looks(&[(1, 10, "a", 20), (5, 60, "c", 70)]);
    let touched = looks(&[(1, 10, "a", 20), (5, 60, "a", 70)]);
    let open = |entered| vec![entry(1, Some("b"), Some(30), None, entered)];
    for (name, entries, record, expected) in [
        ("no server", open(30), None, "0:unlinked 30:b"),
        ("an older link", open(30), Some(&linked), "0:a 30:b"),
        (
            "closed",
            vec![entry(1, Some("b"), Some(30), Some(50), 30)],
            Some(&linked),
            "0:a 30:b 50:a",
        ),
        (
            "closed, and the server moves on",
            vec![entry(1, Some("b"), Some(30), Some(70), 30)],
            Some(&moved),
            "0:a 30:b 70:c",
        ),
        (
            "a newer link of another patient",
            open(30),
            Some(&moved),
            "0:a 30:b 60:conflict",
        ),
        ("entered after the link", open(70), Some(&moved), "0:a 30:b"),
        (
            "confirmed",
            vec![open(30).remove(0), entry(2, Some("c"), Some(60), None, 90)],
            Some(&moved),
            "0:a 30:b 60:c",
        ),
        (
            "confirmed the other way",
            vec![open(30).remove(0), entry(2, Some("b"), Some(60), None, 90)],
            Some(&moved),
            "0:a 30:b",
        ),
        ("the server agrees", open(30), Some(&to_ours), "0:a 30:b"),
        (
            "the server ended it",
            open(30),
            Some(&unlinked),
            "0:a 30:b 60:conflict",
        ),
        (
            "a statement of another patient",
            open(30),
            Some(&in_use),
            "0:a 30:b 60:conflict 81:b",
        ),
        (
            "changed between two looks",
            open(15),
            Some(&unseen),
            "0:a 21:uncertain 30:conflict",
        ),
        (
            "touched between two looks",
            open(25),
            Some(&touched),
            "0:a 21:uncertain 30:b",
        ),
        (
            "taken away",
            vec![entry(1, None, Some(30), None, 30)],
            Some(&linked),
            "0:a 30:gap",
        ),
        (
            "taken away, then linked anew",
            vec![entry(1, None, Some(30), None, 90)],
            Some(&moved),
            "0:a 30:gap 60:c",
        ),
        (
            "taken away, then touched",
            vec![entry(1, None, Some(30), None, 30)],
            Some(&touched),
            "0:a 21:uncertain 60:gap",
        ),
        (
            "the last entry counts",
            vec![
                entry(1, Some("b"), Some(30), None, 30),
                entry(2, Some("c"), Some(50), Some(60), 55),
            ],
            Some(&linked),
            "0:a 30:b 50:c 60:b",
        ),
        (
            "without a beginning",
            vec![entry(1, Some("b"), None, Some(20), 30)],
            Some(&linked),
            "0:b 20:a",
        ),
    ] {
        assert_eq!(over_time(&entries, record), expected, "{name}");
    }
}

#[test]
fn what_changes_about_the_past_is_listed_for_what_was_somebodys() {
    let mut book = Book::default();
    let device: Arc<str> = Arc::from("d");
    let line = |changes: &[(u32, Change)]| {
        let one = |(destination, change): &(u32, Change)| {
            let time = |at: Option<Ticks>| at.map_or("…".to_owned(), |at| at.to_string());
            let name = |who: &Option<Who>| who.as_ref().map_or("-".to_owned(), |who| who.text("Patient"));
            let before = name(&change.before);
            format!(
                "{destination} {}..{} {before}>{}",
                time(change.from),
                time(change.to),
                name(&change.after)
            )
        };
        changes.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    book.look(1, &device, &seen(1, 10, "a", 20), None, None);
    assert_eq!(book.take_unwritten().moved, [Arc::clone(&device)]);
    // A move is nothing about the past.
    book.look(1, &device, &seen(2, 30, "b", 40), None, Some(Vec::new()));
    assert_eq!(book.take_unwritten().corrections, []);
    // A statement that is entered afterwards is.
    book.look(
        1,
        &device,
        &seen(2, 30, "b", 50),
        None,
        Some(vec![statement("c", Some(15), Some(34))]),
    );
    let unwritten = book.take_unwritten();
    assert_eq!(
        line(&unwritten.corrections),
        "1 15..21 Patient/a>Patient/c; 1 30..35 Patient/b>Patient/c"
    );
    // And so is an entry, for each destination.
    let set = |patient: &str, from, to| Command::Set {
        device: "d".to_owned(),
        patient: Who::Id(patient.to_owned()),
        encounter: None,
        from: Some(from),
        to,
    };
    let mut number = 0;
    let mut give = |book: &mut Book, command: &Command| {
        let mut planned = book.plan(command, Some(60), &[1, 2]).unwrap();
        number += 1;
        planned.entry.iter_mut().for_each(|entry| entry.number = number);
        book.take(&planned);
        line(&planned.corrections)
    };
    assert_eq!(
        give(&mut book, &set("z", 5, Some(12))),
        "1 5..12 Patient/a>Patient/z; 2 5..12 ->Patient/z"
    );
    assert_eq!(
        give(&mut book, &set("y", 45, None)),
        "1 45..… Patient/b>Patient/y; 2 45..… ->Patient/y"
    );
    let end = Command::End {
        device: "d".to_owned(),
        at: Some(50),
    };
    assert_eq!(give(&mut book, &end), "1 50..… Patient/y>-; 2 50..… Patient/y>-");
    let retract = Command::Retract {
        device: "d".to_owned(),
    };
    assert_eq!(
        give(&mut book, &retract),
        "1 50..… ->Patient/y; 2 50..… ->Patient/y",
        "by the book nothing was sent, but the message may have named somebody"
    );
    assert_eq!(
        give(&mut book, &retract),
        "1 45..… Patient/y>Patient/b; 2 45..… Patient/y>-"
    );
    for (wrong, now) in [
        (set("z", 5, Some(5)), Some(60)),
        (
            Command::End {
                device: "d".to_owned(),
                at: None,
            },
            None,
        ),
    ] {
        assert!(book.plan(&wrong, now, &[1]).is_err());
    }
    assert!(
        book.plan(
            &Command::Retract {
                device: "other".to_owned()
            },
            Some(60),
            &[1]
        )
        .is_err()
    );
}

#[test]
fn a_look_that_shows_nothing_new_is_written_every_ten_minutes() {
    let mut book = Book::default();
    let device: Arc<str> = Arc::from("d");
    let second = 10_000_000;
    let mut written = Vec::new();
    for asked in 0..2000 {
        book.look(
            1,
            &device,
            &seen(1, 0, "a", asked * second),
            None,
            Some(Vec::new()),
        );
        if !book.take_unwritten().records.is_empty() {
            written.push(asked);
        }
    }
    assert_eq!(written, [0, 600, 1200, 1800]);
}

#[test]
fn who_is_an_id_or_an_identifier() {
    for (text, expected) in [
        ("Patient/p-1", Who::Id("p-1".to_owned())),
        ("mrn 4711", Who::Identifier("mrn 4711".to_owned())),
        ("Encounter/e", Who::Identifier("Encounter/e".to_owned())),
        ("Patient/", Who::Identifier("Patient/".to_owned())),
    ] {
        let who = Who::parse("Patient", text);
        assert_eq!((who.text("Patient").as_str(), &who), (text, &expected));
    }
}

#[test]
fn where_entries_may_be_lost_nobody_fills_the_gap_until_all_are_entered_again() {
    let device: Arc<str> = Arc::from("d");
    let lost = Doubt {
        entries: true,
        sightings: false,
    };
    let record = looks(&[(1, 10, "a", 20)]);
    let mut book = Book::restore(
        vec![entry(4, Some("b"), Some(30), Some(40), 30)],
        vec![
            (1, Arc::clone(&device), record.clone()),
            (1, Arc::from("e"), record),
        ],
        lost,
    );
    let whose = |book: &Book, device: &Arc<str>, instant| match book.at(1, device, instant) {
        Answer::Patient { patient, .. } => patient.text("Patient"),
        Answer::Waits(wait) => format!("{wait:?}"),
    };
    let other: Arc<str> = Arc::from("e");
    // What is certain counts; whatever a server shows, also of later moments, does not.
    let before: Vec<_> = [5, 15, 35, 50].map(|at| whose(&book, &device, at)).into();
    assert_eq!(before, ["Doubt", "Doubt", "Patient/b", "Doubt"]);
    book.look(1, &other, &seen(2, 60, "c", 70), None, None);
    assert_eq!(
        (whose(&book, &other, 15), whose(&book, &other, 65)),
        ("Doubt".into(), "Doubt".into())
    );
    // Also where a message names somebody: an entry says that nobody has it.
    assert!(book.is_entered("never seen", 15));
    assert_eq!(book.all_entries().count(), 1);
    let retract = |device: &str| Command::Retract {
        device: device.to_owned(),
    };
    assert!(book.plan(&retract("e"), Some(80), &[1]).is_err());
    let planned = book.plan(&retract("d"), Some(80), &[1]).unwrap();
    book.take(&planned);
    assert_eq!(whose(&book, &device, 35), "Doubt");
    let set = Command::Set {
        device: "e".to_owned(),
        patient: Who::Id("f".to_owned()),
        encounter: None,
        from: Some(10),
        to: Some(20),
    };
    let mut planned = book.plan(&set, Some(80), &[1]).unwrap();
    // What a store that is gone has sent may be wrong.
    assert_eq!(planned.corrections.len(), 1);
    planned.entry.as_mut().unwrap().number = 5;
    book.take(&planned);
    assert_eq!(
        (whose(&book, &other, 15), whose(&book, &other, 25)),
        ("Patient/f".into(), "Doubt".into())
    );
    drop(book.take_unwritten());

    let planned = book.plan(&Command::Complete, None, &[1]).unwrap();
    assert_eq!((&planned.entry, &planned.retracted), (&None, &None));
    book.take(&planned);
    assert_eq!(book.doubt(), Doubt::default());
    let after: Vec<_> = [15, 65].map(|at| whose(&book, &other, at)).into();
    assert_eq!(after, ["Patient/f", "Patient/c"]);
    assert_eq!(whose(&book, &device, 15), "Patient/a");
    assert!(!book.is_entered("never seen", 15));
    assert_eq!(book.take_unwritten().moved, [device, other]);
}

#[test]
fn where_sightings_are_lost_the_first_link_that_is_seen_does_not_hold_backwards() {
    let lost = Doubt {
        entries: false,
        sightings: true,
    };
    let device: Arc<str> = Arc::from("d");
    for (doubt, history, expected) in [
        (Doubt::default(), false, Some("a")),
        (lost, false, None),
        // The server tells all its versions.
        (lost, true, Some("b")),
    ] {
        let mut book = Book::restore(Vec::new(), Vec::new(), doubt);
        let all = versions(&[(1, 5, "b"), (2, 10, "a")]);
        let history = history.then_some((&all[..], true));
        book.look(1, &device, &seen(2, 10, "a", 20), history, None);
        let patient = |instant| match book.at(1, &device, instant) {
            Answer::Patient { patient, .. } => Some(patient.text("Patient")),
            Answer::Waits(_) => None,
        };
        let expected = expected.map(|id| format!("Patient/{id}"));
        assert_eq!(
            (patient(7), patient(15)),
            (expected, Some("Patient/a".to_owned())),
            "{doubt:?}"
        );
    }
}
