//! A bit that changes on the medium in what an operator has entered: nothing goes to the wrong patient by it, and nothing is
//! lost.

use super::waits::{HOUR, Step, counts, device, held, play_in, step};
use super::*;
use crate::associations::{Command, Who};
use rusqlite::Connection;

fn set(patient: &'static str, from: i64) -> Command {
    Command::Set {
        device: "band-1".to_owned(),
        patient: Who::parse("Patient", patient),
        encounter: None,
        from: Some(from),
        to: None,
    }
}

fn associate(second: u64, command: Command) -> Step {
    step(second, move |agent: Rc<Agent>, _, _| async move {
        agent.associate(&command).await.unwrap();
    })
}

fn look(second: u64) -> Step {
    step(second, |_, _, _| async {})
}

/// Changes a row without its checksum.
fn damage(folder: &Path, sql: &str) {
    let raw = Connection::open(folder.join("store/store.db")).unwrap();
    assert_eq!(raw.execute(sql, []).unwrap(), 1, "{sql}");
}

/// Changes a bit of the number of the entry that names this device and patient.
fn damage_number(folder: &Path, device: &str, patient: &str, number: u8) {
    let file = folder.join("store/store.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let text = format!("{device}{patient}");
    let found = bytes
        .windows(text.len())
        .rposition(|window| window == text.as_bytes());
    // In front of the columns are their kinds, the length of that, the number and the length of all (a byte each).
    let at = found.unwrap() - 11;
    assert_eq!((bytes[at], bytes[at + 1]), (number, 10));
    bytes[at] ^= 2;
    std::fs::write(&file, bytes).unwrap();
}

fn is_set_aside(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder.join("store")).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.any(|name| name.starts_with("store.db.damaged-"))
}

/// A server on which the device is linked to anna, and a store in which the operator says that bert has it, both used for a
/// day.
fn first_day(folder: &Path, entries: &[Command]) -> FhirServer {
    let server = FhirServer::in_process();
    server.keep_versions();
    let mut steps = vec![step(0, |_, server: FhirServer, _| async move {
        device(&server, Some("anna"));
    })];
    steps.extend(entries.iter().map(|entry| associate(0, entry.clone())));
    steps.push(look(2 * HOUR));
    let statuses = play_in(folder, &server, 0, "", steps);
    let last = statuses.last().unwrap();
    assert_eq!(counts(last), (0, 0), "{:?}", last.problems);
    server
}

#[test]
fn a_bit_that_changed_in_an_entry_puts_no_reading_on_another_patient_and_loses_none() {
    let midnight = midnight().ticks();
    // The patient (b and c differ in one bit), the beginning, the number by which the newest entry counts.
    let damages = [
        "UPDATE association SET patient = 'Patient/cert' WHERE id = 2",
        "UPDATE association SET valid_from = valid_from + (1 << 40) WHERE id = 2",
        "",
    ];
    for sql in damages {
        let folder = tempfile::tempdir().unwrap();
        // The entry that counts is the second one.
        let entries = [set("Patient/anna", midnight), set("Patient/bert", midnight)];
        let server = first_day(folder.path(), &entries);
        match sql {
            "" => damage_number(folder.path(), "band-1", "Patient/bert", 2),
            sql => damage(folder.path(), sql),
        }
        let steps = vec![
            look(90 * 60),
            associate(2 * HOUR, set("Patient/bert", midnight)),
            look(3 * HOUR),
            associate(3 * HOUR + 1, Command::Complete),
        ];
        let statuses = play_in(folder.path(), &server, 1, "", steps);
        let says = |at: usize, what: &str| statuses[at].problems.iter().any(|one| one.contains(what));
        assert_eq!(counts(&statuses[0]), (2, 0), "{sql}: {:?}", statuses[0].problems);
        assert!(
            says(0, "a damaged one was set aside"),
            "{:?}",
            statuses[0].problems
        );
        assert!(says(0, "associations were lost"), "{:?}", statuses[0].problems);
        assert_eq!(counts(&statuses[2]), (0, 0), "{sql}");
        assert!(says(2, "associations were lost"));
        assert!(!says(3, "associations were lost"));
        let bert = ["Patient/bert 61 final", "Patient/bert 62 final"];
        assert_eq!(
            held(&server),
            [bert[0], bert[0], bert[1], bert[1]],
            "{sql}: {:?}",
            statuses[2].problems
        );
    }
}

#[test]
fn readings_that_wait_for_lost_entries_follow_the_server_when_the_operator_says_that_nothing_is_missing() {
    let midnight = midnight().ticks();
    let folder = tempfile::tempdir().unwrap();
    let server = first_day(folder.path(), &[set("Patient/bert", midnight)]);
    damage(folder.path(), "UPDATE association SET entered = entered + 1");
    let link = step(0, move |_, server: FhirServer, _| async move {
        device(&server, Some("bert"));
    });
    let steps = vec![
        link,
        look(2 * HOUR),
        associate(2 * HOUR, Command::Complete),
        look(12 * HOUR),
    ];
    let statuses = play_in(folder.path(), &server, 1, "", steps);
    // Whatever the server shows.
    assert_eq!(counts(&statuses[1]), (2, 0), "{:?}", statuses[1].problems);
    assert_eq!(counts(&statuses[3]), (0, 0), "{:?}", statuses[3].problems);
    // A day later nothing is in doubt, in a store that is whole.
    let statuses = play_in(folder.path(), &server, 2, "", vec![look(2 * HOUR)]);
    assert_eq!(counts(&statuses[0]), (0, 0), "{:?}", statuses[0].problems);
    assert_eq!(held(&server).len(), 6);
    assert!(held(&server).iter().all(|one| one.starts_with("Patient/bert")));
}

#[test]
fn where_nobody_ever_entered_anything_a_damaged_store_keeps_no_reading_waiting() {
    for sql in [
        "UPDATE sighting SET record = replace(record, 'anna', 'cnna')",
        "UPDATE row_sum SET sum = sum + 1 WHERE name = 'association'",
        "UPDATE boot SET reference_wall = reference_wall + 36000000000 WHERE id = 1",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = first_day(folder.path(), &[]);
        damage(folder.path(), sql);
        let statuses = play_in(folder.path(), &server, 1, "", vec![look(2 * HOUR)]);
        let problems = &statuses[0].problems;
        assert!(is_set_aside(folder.path()), "{sql}: {problems:?}");
        assert_eq!(counts(&statuses[0]), (0, 0), "{sql}: {problems:?}");
        let anna = ["Patient/anna 61 final", "Patient/anna 62 final"];
        assert_eq!(held(&server), [anna[0], anna[0], anna[1], anna[1]], "{sql}");
    }
}
