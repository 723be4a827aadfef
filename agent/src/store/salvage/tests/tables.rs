//! Damage of the small tables, and of what leads to them: which rows come over.

use super::super::super::associations::AssociationChanges;
use super::super::super::{Loss, Store};
use super::super::former::COPIED;
use super::super::pages::Pages;
use super::*;
use crate::associations::{Book, Change, Command, Seen, Who};
use crate::corrections::Correction;
use crate::forward::SentPeriod;
use crate::forward::fhir::sent_memory;
use crate::store::log::Log;
use crate::timekeeping::device::carried_over;
use iomt_mapping::fhir::SentMemory;
use std::sync::Arc;

/// Rows of each table.
const ROWS: u64 = 60;

fn set(device: &str, patient: &str, from: i64) -> Command {
    Command::Set {
        device: device.to_owned(),
        patient: Who::parse("Patient", patient),
        encounter: Some(Who::Identifier(format!("visit of {patient}"))),
        from: Some(from),
        to: None,
    }
}

fn enter(store: &mut Store, book: &mut Book, command: &Command) {
    let planned = book.plan(command, Some(1_000_000), &[]).unwrap();
    book.take(&store.enter_association(planned, &[]).unwrap());
}

fn clock_state(n: u64) -> String {
    format!(
        "{{\"entries\":[{{\"from\":0,\"correction\":{n},\"received\":5,\"began\":null}}],\"suspect\":null,\"seen\":9}}"
    )
}

/// A closed store with [`ROWS`] rows in each table that is copied, on several pages each.
fn rich(folder: &Path, encryption: &Encryption) {
    let (mut store, _) = Store::open_with(folder, encryption).unwrap();
    store.source("ward").unwrap();
    let ehr = store.destination("ehr").unwrap();
    let mut book = store.association_book().unwrap();
    for n in 0..ROWS {
        let command = set(&format!("band-{}", n % 20), &format!("Patient/p-{n}"), n as i64);
        enter(&mut store, &mut book, &command);
        store
            .keep_device_clock(&format!("device with a clock {n:03}"), &clock_state(n))
            .unwrap();
    }
    let mut changes = Changes::default();
    for n in 0..ROWS {
        let device: Arc<str> = Arc::from(format!("seen-{n:03}"));
        let seen = Seen {
            device: format!("d-{n}"),
            version: Some("1".to_owned()),
            last_updated: Some(10),
            patient: Some(format!("p-{n}")),
            asked: Some(20),
            answered: Some(21),
        };
        book.look(ehr, &device, &seen, None, Some(Vec::new()));
        changes.sent_periods.push((
            ehr,
            SentPeriod {
                observation: format!("observation-{n:03}"),
                memory: sent_memory::encode(Some(&format!("version {n}")), &SentMemory::default()),
                expires: i64::MAX,
            },
        ));
        changes.losses.push(Loss {
            destination: Some(ehr),
            source: Some(SourceId(1)),
            range: Some((1, 2)),
            count: n,
            reason: format!("given up {n:03}"),
            reading: Some((device, "hr".into())),
        });
        changes.associations.corrections.push(Correction {
            number: n as i64 + 1,
            destination: ehr,
            change: Change {
                device: format!("moved-{n:03}").into(),
                from: Some(n as i64),
                to: None,
                before: Some(Who::Id(format!("p-{n}"))),
                after: None,
            },
        });
    }
    changes.associations = AssociationChanges {
        sightings: book.take_unwritten().records,
        ..changes.associations
    };
    changes.progress.cursor = 10 * ROWS;
    for batch in 0..ROWS {
        let messages: Vec<_> = (batch * 10 + 1..=batch * 10 + 10)
            .map(|n| {
                let (mut message, revision) = message(n);
                message.record = Some(n);
                (message, revision)
            })
            .collect();
        store.append(&messages, &[], None, 0, 0).unwrap();
    }
    store.commit_progress(&changes, 0).unwrap();
}

/// What each table holds, as the program reads it and without the numbers that are given anew.
fn picture(store: &Store) -> BTreeMap<&'static str, BTreeSet<String>> {
    let book = store.association_book().unwrap();
    let text = |sql: &str| -> BTreeSet<String> {
        let mut statement = store.connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let records = book.all_records();
    let corrections = store.corrections().unwrap();
    let sent = (0..ROWS).map(|n| format!("observation-{n:03}"));
    BTreeMap::from([
        (
            "association",
            book.all_entries().map(|one| format!("{one:?}")).collect(),
        ),
        (
            "correction",
            corrections
                .iter()
                .map(|one| format!("{} {:?}", one.destination, one.change))
                .collect(),
        ),
        ("sighting", records.map(|one| format!("{one:?}")).collect()),
        (
            "ledger",
            text("SELECT reason FROM ledger WHERE reason LIKE 'given up %'"),
        ),
        ("sent_record", text("SELECT record || '' FROM sent_record")),
        (
            "sent_period",
            sent.filter_map(|id| {
                store
                    .sent_period(1, &id)
                    .unwrap()
                    .map(|memory| format!("{id} {memory:?}"))
            })
            .collect(),
        ),
        (
            "device_clock",
            store
                .device_clocks()
                .unwrap()
                .into_iter()
                .map(|(device, state)| format!("{device} {}", carried_over(&state, 1).unwrap_or(state)))
                .collect(),
        ),
    ])
}

/// As [`picture`], of a store that took them over: states of clocks are as they became.
fn picture_after(store: &Store) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut all = picture(store);
    let clocks = store.device_clocks().unwrap().into_iter();
    all.insert(
        "device_clock",
        clocks
            .map(|(device, state)| format!("{device} {state}"))
            .collect(),
    );
    all
}

fn roots(folder: &Path) -> BTreeMap<String, u32> {
    let connection = rusqlite::Connection::open(folder.join("store.db")).unwrap();
    let mut statement = connection
        .prepare("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'")
        .unwrap();
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

/// The pages of a table that hold rows, in their order, with the numbers of the rows (0 where rows have none), and those
/// that hold none.
fn pages_of_table(file: &Path, root: u32) -> (Vec<(u32, Vec<i64>)>, Vec<u32>) {
    let pages = Pages::open(file, &Log::default(), true).unwrap();
    let mut with_rows: Vec<(u32, Vec<i64>)> = Vec::new();
    let lost = pages.walk(root, &mut |(number, _), place| match with_rows
        .iter_mut()
        .find(|(page, _)| *page == place.page)
    {
        Some((_, rows)) => rows.push(number),
        None => with_rows.push((place.page, vec![number])),
    });
    assert!(lost.is_empty());
    let mut inner: Vec<u32> = pages_of(file, root)
        .into_iter()
        .filter(|(_, kind, _)| *kind == "inner")
        .map(|(page, ..)| page)
        .collect();
    inner.retain(|page| with_rows.iter().all(|(other, _)| other != page));
    (with_rows, inner)
}

fn after_damage(
    template: &Path,
    encryption: &Encryption,
    pages: &[u32],
) -> (BTreeMap<&'static str, BTreeSet<String>>, State) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.key"] {
        if template.join(name).exists() {
            std::fs::copy(template.join(name), folder.path().join(name)).unwrap();
        }
    }
    for page in pages {
        smash(&folder.path().join("store.db"), *page);
    }
    Store::condemn_in(folder.path(), "a test").unwrap();
    let (store, recovered) = Store::open_with(folder.path(), encryption).unwrap();
    let salvage = recovered.salvages.first().unwrap();
    (picture_after(&store), salvage.state().clone())
}

#[test]
fn whatever_page_is_damaged_the_rows_of_small_tables_that_are_certain_come_over_and_the_rest_is_said() {
    for encryption in [Encryption::Off, Encryption::Own] {
        let template = tempfile::tempdir().unwrap();
        rich(template.path(), &encryption);
        let file = template.path().join("store.db");
        let before = {
            let (store, _) = Store::open_at_rest(template.path(), &encryption).unwrap();
            picture(&store)
        };
        assert!(COPIED.iter().all(|table| !before[table].is_empty()), "{before:?}");
        let roots = roots(template.path());

        // What leads to the tables: nothing of them is lost with it.
        let schema = pages_of(&file, 1);
        let of_schema = schema
            .iter()
            .filter(|(page, kind, _)| *page > 1 && *kind == "leaf");
        let mut leading = vec![vec![1], vec![2], vec![1, 2], vec![1, 2, 3, 4]];
        leading.extend(of_schema.map(|(page, ..)| vec![*page]));
        assert!(leading.len() > 6, "{schema:?}");
        for pages in leading {
            let (after, state) = after_damage(template.path(), &encryption, &pages);
            for table in COPIED {
                // Without the cursor nobody knows which records were processed: they come again.
                if *table == "sent_record" && !state.known {
                    assert!(after[table].is_empty());
                    continue;
                }
                assert_eq!(after[table], before[table], "{table} after {pages:?}: {state:?}");
            }
            assert!(
                state.left_out.is_empty() && !state.lost_associations(),
                "{state:?}"
            );
            if pages == [1] {
                assert!(state.known && state.missing.is_empty(), "{state:?}");
            }
        }

        for table in COPIED {
            let (with_rows, inner) = pages_of_table(&file, roots[*table]);
            assert!(with_rows.len() > 2, "{table}: {with_rows:?}");
            for page in inner {
                let (after, state) = after_damage(template.path(), &encryption, &[page]);
                assert_eq!(after, before, "{table}, page {page} above its rows: {state:?}");
            }
            let last = with_rows.len() - 1;
            for place in [0, last / 2, last] {
                let (page, numbers) = &with_rows[place];
                let (after, state) = after_damage(template.path(), &encryption, &[*page]);
                let what = format!("{table} page {page} with {numbers:?}: {state:?}");
                let is_last = place == last;
                let left = match (*table, is_last) {
                    // Whatever was entered last may have ended any of them.
                    ("association", true) => 0,
                    ("association", false) => ROWS as usize - *numbers.last().unwrap() as usize,
                    _ => before[table].len() - numbers.len(),
                };
                assert!(after[table].is_subset(&before[table]), "{what}");
                assert_eq!(after[table].len(), left, "{what}");
                assert!(state.missing.contains(&(*table).to_owned()), "{what}");
                let of_associations = *table == "association";
                assert_eq!(state.lost_associations(), of_associations, "{what}");
                assert!(state.text().contains("tables not read whole"), "{what}");
                for other in COPIED.iter().filter(|other| *other != table) {
                    // Corrections are judged by the associations.
                    let left_out = of_associations && *other == "correction";
                    let expected = if left_out { 0 } else { before[other].len() };
                    assert_eq!(after[other].len(), expected, "{other} beside {what}");
                }
                if of_associations {
                    assert_eq!(state.left_out["correction"], ROWS, "{what}");
                    let left_out = ROWS as usize - numbers.len() - left;
                    let said = state.left_out.get("association").copied().unwrap_or_default();
                    assert_eq!(said as usize, left_out, "{what}");
                }
            }
        }
    }
}

#[test]
fn an_entry_that_was_taken_back_does_not_come_back_with_an_older_file() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    let mut book = store.association_book().unwrap();
    enter(&mut store, &mut book, &set("band-1", "Patient/anna", 5));
    enter(&mut store, &mut book, &set("band-1", "Patient/bert", 9));
    let loss = Loss {
        destination: None,
        source: None,
        range: None,
        count: 3,
        reason: "a reason".to_owned(),
        reading: None,
    };
    let changes = Changes {
        losses: vec![loss],
        ..Changes::default()
    };
    store.commit_progress(&changes, 0).unwrap();
    drop(store);
    Store::condemn_in(folder.path(), "the first").unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    let mut book = store.association_book().unwrap();
    assert_eq!(book.entries("band-1").len(), 2);
    let back = Command::Retract {
        device: "band-1".to_owned(),
    };
    enter(&mut store, &mut book, &back);
    drop(store);
    Store::condemn_in(folder.path(), "the second").unwrap();
    let (store, recovered) = Store::open(folder.path()).unwrap();
    assert_eq!(recovered.salvages.len(), 2, "both files are here");
    let book = store.association_book().unwrap();
    let patients: Vec<_> = book
        .entries("band-1")
        .iter()
        .map(|entry| &entry.patient)
        .collect();
    assert_eq!(patients, [&Some(Who::Id("anna".to_owned()))]);
    let ledger = store.ledger().unwrap();
    let lines = ledger.iter().filter(|(_, reason)| reason == "a reason");
    assert_eq!(lines.count(), 1, "{ledger:?}");
}

#[test]
fn what_was_entered_while_a_file_waited_for_its_key_comes_before_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut old, _) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    let mut book = old.association_book().unwrap();
    enter(&mut old, &mut book, &set("band-1", "Patient/anna", 5));
    enter(&mut old, &mut book, &set("band-2", "Patient/anna", 5));
    drop(old);
    let other = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(other.path()).unwrap();
    let file = other.path().join("store.db.damaged-1");
    std::fs::copy(folder.path().join("store.db"), &file).unwrap();
    assert!(store.begin_salvage(&file, &Encryption::Own).unwrap().is_none());
    let mut book = store.association_book().unwrap();
    enter(&mut store, &mut book, &set("band-1", "Patient/cara", 5));
    std::fs::copy(folder.path().join("store.key"), other.path().join("store.key")).unwrap();
    for _ in 0..2 {
        // The second time nothing comes twice.
        assert!(store.begin_salvage(&file, &Encryption::Own).unwrap().is_some());
        let book = store.association_book().unwrap();
        assert_eq!(
            (book.entries("band-1").len(), book.entries("band-2").len()),
            (2, 1)
        );
        let newest = book.entries("band-1").iter().max_by_key(|entry| entry.number);
        assert_eq!(newest.unwrap().patient, Some(Who::Id("cara".to_owned())));
    }
}

#[test]
fn associations_do_not_come_from_beside_a_log_that_hides_newer_ones() {
    let template = tempfile::tempdir().unwrap();
    drop(Store::open(template.path()).unwrap());
    let (mut store, _) = Store::open(template.path()).unwrap();
    let mut book = store.association_book().unwrap();
    enter(&mut store, &mut book, &set("band-1", "Patient/anna", 5));
    drop(store);
    let (mut store, _) = Store::open(template.path()).unwrap();
    store.source("ward").unwrap();
    let end = Command::End {
        device: "band-1".to_owned(),
        at: Some(9),
    };
    enter(&mut store, &mut book, &end);
    for n in 0..10 {
        store.append(&[message(n)], &[], None, 0, 0).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(template.path().join(name), folder.path().join(name)).unwrap();
    }
    // The header of the log: SQLite sees nothing of it, and the end of the use with it.
    let log = folder.path().join("store.db-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[..32].fill(0x5b);
    std::fs::write(&log, bytes).unwrap();
    let (store, recovered) = Store::open(folder.path()).unwrap();
    let state = recovered.salvages[0].state();
    let book = store.association_book().unwrap();
    assert_eq!(book.all_entries().count(), 0, "{state:?}");
    assert!(state.lost_associations());
    assert_eq!(state.left_out["association"], 1);
    assert!(
        state.text().contains("enter the associations of devices again"),
        "{}",
        state.text()
    );
}

/// Whichever bit of the entry in the middle changed: what is older than it is not believed, and nothing is that was never
/// entered.
#[test]
fn of_entries_with_a_changed_bit_only_those_that_are_newer_come_over_and_the_others_are_in_doubt() {
    let template = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(template.path()).unwrap();
    let mut book = store.association_book().unwrap();
    for (device, patient) in [
        ("band-1", "Patient/anna"),
        ("band-2", "Patient/bert"),
        ("band-3", "Patient/cara"),
    ] {
        let command = Command::Set {
            device: device.to_owned(),
            patient: Who::parse("Patient", patient),
            encounter: None,
            from: Some(500),
            to: None,
        };
        enter(&mut store, &mut book, &command);
    }
    drop(store);
    let before: Vec<_> = book.all_entries().cloned().collect();
    let good = std::fs::read(template.path().join("store.db")).unwrap();
    let text = b"band-2Patient/bert";
    let place = good
        .windows(text.len())
        .rposition(|window| window == text)
        .unwrap();
    // Nine kinds in front of the columns, the length of that, the number and the length of all.
    let begin = place - 12;
    assert_eq!(good[begin + 1..begin + 3], [2, 10]);
    let end = begin + 2 + usize::from(good[begin]);
    let mut whole = 0;
    for place in begin..end {
        let bit = place % 8;
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = good.clone();
        bytes[place] ^= 1 << bit;
        std::fs::write(folder.path().join("store.db"), bytes).unwrap();
        Store::condemn_in(folder.path(), "a test").unwrap();
        let (store, recovered) = Store::open(folder.path()).unwrap();
        let book = store.association_book().unwrap();
        let after: Vec<_> = book.all_entries().cloned().collect();
        let what = format!("byte {} bit {bit}: {after:?}", place - begin);
        let state = recovered.salvages[0].state();
        if after == before {
            whole += 1;
            assert!(!book.doubt().entries && !state.lost_associations(), "{what}");
            continue;
        }
        assert!(after.is_empty() || after == before[2..], "{what}");
        assert!(book.doubt().entries && state.lost_associations(), "{what}");
    }
    // Bytes that say nothing of their own: a length with room to spare.
    assert!(whole <= 2, "{whole} of {} bytes", end - begin);
}
