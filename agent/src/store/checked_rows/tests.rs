//! Bits that changed on the medium, and what else can happen to small tables.

use super::super::associations::AssociationChanges;
use super::super::check::tests::message;
use super::super::{Changes, CheckState, Store};
use super::*;
use crate::associations::{Command, Seen, Who};
use crate::config::Encryption;
use crate::corrections::Correction;
use std::path::Path;
use std::sync::Arc;

/// A closed store with some rows in each table; without an encounter, so that no record is long.
fn filled(folder: &Path, encryption: &Encryption) {
    let (mut store, recovered) = Store::open_with(folder, encryption).unwrap();
    store.set_reference(recovered.boot, 5, 17).unwrap();
    let mut book = store.association_book().unwrap();
    for (device, patient) in [("band-1", "anna"), ("band-2", "bert"), ("band-1", "cara")] {
        let command = Command::Set {
            device: device.to_owned(),
            patient: Who::Id(patient.to_owned()),
            encounter: None,
            from: Some(17_723_232_000_000_000),
            to: None,
        };
        let planned = book.plan(&command, Some(17_723_232_000_000_000), &[1]).unwrap();
        let corrections = planned.corrections.iter().enumerate();
        let corrections: Vec<_> = corrections
            .map(|(number, (destination, change))| Correction {
                number: number as i64 + 1 + book.all_entries().count() as i64 * 10,
                destination: *destination,
                change: change.clone(),
            })
            .collect();
        book.take(&store.enter_association(planned, &corrections).unwrap());
    }
    for device in ["band-1", "band-2"] {
        let seen = Seen {
            device: format!("id of {device}"),
            version: Some("1".to_owned()),
            last_updated: Some(10),
            patient: Some("anna".to_owned()),
            asked: Some(20),
            answered: Some(21),
        };
        book.look(1, &Arc::from(device), &seen, None, Some(Vec::new()));
        store.keep_device_clock(device, r#"{"seen":9}"#).unwrap();
    }
    let changes = Changes {
        associations: AssociationChanges {
            sightings: book.take_unwritten().records,
            ..AssociationChanges::default()
        },
        ..Changes::default()
    };
    let batch: Vec<_> = (1..=3)
        .map(|n| {
            let (mut message, revision) = message(n);
            message.record = Some(100 + n);
            (message, revision)
        })
        .collect();
    store.append(&batch, &[], Some(&changes), 0, 0).unwrap();
    begin_doubt(&store);
}

fn begin_doubt(store: &Store) {
    super::super::doubt::begin(&store.connection, "sighting").unwrap();
}

/// What `store check` would say.
fn check(folder: &Path) -> Vec<String> {
    let mut store = Store::open_for_command(folder, &Encryption::Off).unwrap();
    let mut broken = Vec::new();
    loop {
        let state: CheckState = store.check_slice().unwrap();
        broken.extend(state.broken);
        if state.done {
            return broken;
        }
    }
}

#[test]
fn a_store_that_is_whole_is_not_taken_for_damaged_whatever_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        filled(folder.path(), &Encryption::Off);
        assert_eq!(check(folder.path()), [""; 0]);
        let (mut store, recovered) = Store::open(folder.path()).unwrap();
        assert_eq!(recovered.set_aside, None);
        // Taken back, done, and forgotten.
        let book = store.association_book().unwrap();
        let device = "band-1".to_owned();
        let planned = book.plan(&Command::Retract { device }, Some(30), &[]).unwrap();
        store.enter_association(planned, &[]).unwrap();
        let mut wider = store.corrections().unwrap().remove(0);
        wider.change.from = Some(11);
        store.keep_correction(&wider).unwrap();
        let changes = Changes {
            associations: AssociationChanges {
                corrections_done: vec![wider.number],
                ..AssociationChanges::default()
            },
            ..Changes::default()
        };
        store.commit_progress(&changes, 0).unwrap();
        store.give_up_boot(recovered.boot, 5).unwrap();
        let planned = book.plan(&Command::Complete, None, &[]).unwrap();
        store.enter_association(planned, &[]).unwrap();
        drop(store);
        assert_eq!(check(folder.path()), [""; 0]);
    }
}

/// The bytes of the second entry, which is of `device`, with its length and number in front, in the file. All lengths in front are one byte.
fn cell_of(bytes: &[u8], device: &str) -> std::ops::Range<usize> {
    let columns = table("association").unwrap().columns.len() + 1;
    let at = |place: usize| {
        let begin = place.checked_sub(columns + 3)?;
        let head = usize::from(bytes[begin + 2]) == columns + 1;
        (head && bytes[begin + 1] == 2).then(|| begin..begin + 2 + usize::from(bytes[begin]))
    };
    let places = bytes.windows(device.len()).enumerate();
    let found: Vec<_> = places
        .filter(|(_, text)| *text == device.as_bytes())
        .filter_map(|(place, _)| at(place))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn a_bit_that_changed_in_any_byte_of_an_entry_is_found() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Off);
    let file = folder.path().join("store.db");
    let good = std::fs::read(&file).unwrap();
    let entries = |connection: &Connection| -> rusqlite::Result<Vec<Vec<Value>>> {
        let mut statement = connection.prepare("SELECT * FROM association")?;
        let rows = statement.query_map([], |row| (0..9).map(|at| row.get(at)).collect())?;
        rows.collect()
    };
    let expected = entries(&Connection::open(&file).unwrap()).unwrap();
    let cell = cell_of(&good, "band-2");
    assert!(cell.len() > 40, "{cell:?}");
    let mut harmless = Vec::new();
    for place in cell.clone() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[place] ^= 1 << bit;
            std::fs::write(&file, &bytes).unwrap();
            let connection = Connection::open(&file).unwrap();
            if verify(&connection).is_ok() {
                assert_eq!(
                    entries(&connection).unwrap(),
                    expected,
                    "byte {} of {cell:?}, bit {bit}",
                    place - cell.start
                );
                harmless.push((place - cell.start, bit));
            }
        }
    }
    // The length in front may be larger than what SQLite needs of it, and it does not look at the place that the number has
    // among the columns too.
    let unused = |byte: &usize| [0, 3].contains(byte);
    assert!(harmless.iter().all(|(byte, _)| unused(byte)), "{harmless:?}");
    assert!(harmless.len() < 8, "{harmless:?}");
}

#[test]
fn a_row_that_is_not_what_was_written_or_is_gone_is_damage_at_the_start_and_said_by_the_check() {
    let without_triggers = "DROP TRIGGER sum_association_gone; DROP TRIGGER sum_boot_gone; \
                            DROP TRIGGER sum_association_new; DROP TRIGGER sum_association_changed;";
    let cases = [
        (
            "association",
            "UPDATE association SET patient = 'Patient/anne' WHERE id = 1",
        ),
        (
            "association",
            "UPDATE association SET device = 'band-3' WHERE id = 1",
        ),
        (
            "association",
            "UPDATE association SET valid_from = valid_from + 1 WHERE id = 1",
        ),
        ("association", "UPDATE association SET valid_to = 9 WHERE id = 1"),
        ("association", "UPDATE association SET entered = 9 WHERE id = 1"),
        (
            "association",
            "UPDATE association SET source = 'Operator' WHERE id = 1",
        ),
        ("association", "UPDATE association SET id = 9 WHERE id = 1"),
        ("association", "UPDATE association SET crc = NULL WHERE id = 1"),
        ("association", "UPDATE association SET crc = crc + 1 WHERE id = 1"),
        ("association", "DELETE FROM association WHERE id = 3"),
        ("association", "DELETE FROM association"),
        // Each row is good, and of an earlier time.
        (
            "association",
            "UPDATE association SET crc = (SELECT crc FROM association WHERE id = 2) WHERE id = 1",
        ),
        (
            "row_sum",
            "UPDATE row_sum SET sum = sum + 1 WHERE name = 'association'",
        ),
        ("row_sum", "DELETE FROM row_sum WHERE name = 'boot'"),
        ("correction", "UPDATE correction SET valid_to = 5"),
        ("correction", "UPDATE correction SET destination = 2"),
        (
            "sighting",
            "UPDATE sighting SET record = replace(record, 'anna', 'bnna') WHERE device = 'band-1'",
        ),
        (
            "sighting",
            "UPDATE sighting SET device = 'band-3' WHERE device = 'band-1'",
        ),
        (
            "device_clock",
            r#"UPDATE device_clock SET state = '{"seen":8}' WHERE device = 'band-1'"#,
        ),
        ("boot", "UPDATE boot SET reference_wall = reference_wall + 1"),
        ("boot", "UPDATE boot SET reference_us = reference_us + 1"),
        ("boot", "UPDATE boot SET given_up = 1"),
        ("boot", "DELETE FROM boot"),
        ("doubt", "UPDATE doubt SET subject = 'sighting_'"),
        (
            "sent_record",
            "UPDATE sent_record SET record = 103 WHERE record = 101",
        ),
    ];
    let template = tempfile::tempdir().unwrap();
    filled(template.path(), &Encryption::Off);
    for (table, sql) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(template.path().join("store.db"), folder.path().join("store.db")).unwrap();
        let raw = Connection::open(folder.path().join("store.db")).unwrap();
        raw.execute_batch(&format!("{without_triggers} {sql}")).unwrap();
        assert!(raw.changes() > 0, "{sql}");
        drop(raw);
        let said = check(folder.path());
        assert!(said.iter().any(|line| line.starts_with(table)), "{sql}: {said:?}");
        let (store, recovered) = Store::open(folder.path()).unwrap();
        assert!(recovered.set_aside.is_some(), "{sql}");
        let ledger = store.ledger().unwrap();
        assert!(
            ledger[0].1.contains("is not what was written"),
            "{sql}: {ledger:?}"
        );
    }
}

#[test]
fn the_checksum_of_a_sealed_row_says_nothing_of_what_is_sealed() {
    let checksums = || {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), &Encryption::Own);
        let raw = Connection::open(folder.path().join("store.db")).unwrap();
        let mut statement = raw.prepare("SELECT crc FROM association ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap();
        rows.map(Result::unwrap).collect::<Vec<_>>()
    };
    let (one, other) = (checksums(), checksums());
    assert!(
        one.iter().zip(&other).all(|(one, other)| one != other),
        "{one:?} {other:?}"
    );
}

#[test]
fn what_lies_beside_sealed_values_is_checked_too_and_so_is_a_store_that_becomes_sealed() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Off);
    let (store, recovered) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    assert_eq!(recovered.set_aside, None);
    assert_eq!(store.association_book().unwrap().all_entries().count(), 3);
    drop(store);
    let raw = Connection::open(folder.path().join("store.db")).unwrap();
    let sql = "UPDATE association SET valid_from = valid_from + 1 WHERE id = 1";
    assert_eq!(raw.execute(sql, []).unwrap(), 1);
    drop(raw);
    let (_, recovered) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    assert!(recovered.set_aside.is_some());
    // Damaged before it was to be sealed: it gets no good checksum by that.
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Off);
    let raw = Connection::open(folder.path().join("store.db")).unwrap();
    assert_eq!(raw.execute(sql, []).unwrap(), 1);
    drop(raw);
    let (store, recovered) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    assert!(recovered.set_aside.is_some());
    // The two that are newer than the damaged one.
    assert_eq!(store.association_book().unwrap().all_entries().count(), 2);
}
