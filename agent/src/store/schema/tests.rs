//! Stores of every version that was ever written open with this program, whole.

use super::super::{Store, StoreError};
use super::*;
use crate::associations::Doubt;
use crate::message::RevisionId;
use std::path::Path;

/// A store of each version, from the first on, with data in every table. A new migration comes with the store that the
/// new version leaves: `sqlite3 store.db .dump` of one that was filled, and its two pragmas.
const FIXTURES: &[&str] = &[
    include_str!("version_1.sql"),
    include_str!("version_2.sql"),
    include_str!("version_3.sql"),
    include_str!("version_4.sql"),
    include_str!("version_5.sql"),
    include_str!("version_6.sql"),
    include_str!("version_7.sql"),
    include_str!("version_8.sql"),
    include_str!("version_9.sql"),
    include_str!("version_10.sql"),
];

fn lay_down(folder: &Path, fixture: &str) -> Connection {
    let connection = Connection::open(folder.join("store.db")).unwrap();
    connection.execute_batch(fixture).unwrap();
    connection
}

fn version(connection: &Connection) -> i64 {
    connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap()
}

fn tables(connection: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut statement = connection.prepare(sql).unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

#[test]
fn every_version_has_a_store_with_data_in_every_table() {
    assert_eq!(
        FIXTURES.len() as i64,
        VERSION,
        "a migration came without the store that it leaves"
    );
    for (number, fixture) in FIXTURES.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let connection = lay_down(folder.path(), fixture);
        assert_eq!(version(&connection), number as i64 + 1);
        let mut bare = Connection::open_in_memory().unwrap();
        migrate_by(&mut bare, &MIGRATIONS[..=number]).unwrap();
        let names = tables(&connection);
        let fixed: Vec<_> = names
            .iter()
            .filter(|name| !name.starts_with("journal_"))
            .collect();
        assert_eq!(fixed, tables(&bare).iter().collect::<Vec<_>>());
        for table in names {
            let sql = format!("SELECT count(*) FROM {table}");
            let rows: i64 = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
            assert!(rows > 0, "{table} of version {} is empty", number + 1);
        }
    }
}

#[test]
fn a_store_of_every_version_is_read_whole() {
    for fixture in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        drop(lay_down(folder.path(), fixture));
        assert_whole(folder.path());
    }
}

/// Opens the store and looks at everything that the fixtures hold.
fn assert_whole(folder: &Path) {
    let (mut store, found) = Store::open(folder).unwrap();
    assert_eq!(found.set_aside, None);
    assert_eq!(version(&store.connection), VERSION);
    assert_eq!(found.store_id, "5bca216503a1b156c17722b311e154ae");
    assert_eq!((found.next_position, found.progress.cursor), (6, 4));
    assert_eq!((found.progress.matched, found.progress.unmatched), (3, 1));
    assert_eq!(found.progress.destinations[&1].delivered, 1);
    assert_eq!(found.dating[0].reference, Some((77, 88)));
    assert_eq!(found.revisions, [(RevisionId(1), "hash".to_owned())]);
    assert_eq!(&*found.series[0].1.device, "band-1");
    assert_eq!(found.rows.len(), 2);
    assert_eq!(found.rows[0].period, Some(36_000_000_000));
    assert_eq!(found.rows[1].refs.as_deref(), Some(&vec![(3, 1), (4, 0)]));
    assert_eq!(
        found.rows[1].waiting.as_ref().unwrap().name,
        "PatientNotFoundException"
    );
    assert_eq!((found.unmatched[0].first, found.unmatched[0].wall), (4, 6));
    assert_eq!(found.resume.len(), 3);

    let batch = store.read_from(1, usize::MAX).unwrap();
    let texts: Vec<_> = batch.messages.iter().map(|m| m.message.payload.bytes()).collect();
    assert_eq!(texts, [b"{\"n\":3}", b"{\"n\":4}", b"{\"n\":5}"]);
    assert_eq!(batch.damaged, []);
    assert_eq!(
        store.revision_bundle(RevisionId(1)).unwrap().as_deref(),
        Some(&b"packs"[..])
    );
    assert_eq!(
        store.last_good_packs().unwrap().as_deref(),
        Some(&b"kept packs"[..])
    );
    assert_eq!(
        store.sent_period(1, "obs").unwrap().as_deref(),
        Some(&b"memory"[..])
    );
    let (_, error, note) = &found.letters[0];
    assert_eq!(
        (found.letters.len(), note.position, &note.counted[..]),
        (1, 3, &[1][..])
    );
    assert_eq!(error.name, "NotSupportedException");
    assert_eq!(store.letters(&[note.id]).unwrap()[0].message.position, 3);
    assert_eq!(store.ledger().unwrap(), [(2, "history".to_owned())]);
    assert_eq!(
        (store.source("ward").unwrap().0, store.destination("ehr").unwrap()),
        (1, 1)
    );
    // Rows that decide about patient and time have their checksums, whatever version wrote them.
    assert_eq!(checked_rows::damage(&store.connection).unwrap(), [""; 0]);
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table} WHERE crc IS NOT NULL");
        store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("association"), count("correction")), (1, 1));
    assert_eq!(store.corrections().unwrap()[0].change.device, "band-1".into());
    // It goes on where the old program stopped.
    let message = batch.messages[0].message.clone();
    let appended = store
        .append(&[(message, RevisionId(1))], &[], None, 1, 1)
        .unwrap();
    assert_eq!(appended, 6);
}

/// The rows of small tables of every version come over when its file is damaged elsewhere.
#[test]
fn a_store_of_every_version_is_salvaged_with_its_associations() {
    for (number, fixture) in FIXTURES.iter().enumerate() {
        let version = number as i64 + 1;
        let folder = tempfile::tempdir().unwrap();
        // As the program lays it out; a salvage reads pages.
        let layout = "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL;";
        drop(lay_down(folder.path(), &format!("{layout}\n{fixture}")));
        Store::condemn_in(folder.path(), "a test").unwrap();
        let (store, found) = Store::open(folder.path()).unwrap();
        assert!(found.set_aside.is_some());
        let state = found.salvages[0].state();
        // What the fixtures hold as the memory of a sent period is none.
        let left_out: Vec<_> = state.left_out.iter().collect();
        assert_eq!(
            left_out,
            [(&"sent_period".to_owned(), &1)],
            "version {version}: {state:?}"
        );
        let sql = "SELECT device || patient || valid_from || entered FROM association";
        let entry: String = store.connection.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(entry, "band-1p12", "version {version}");
        assert_eq!(store.corrections().unwrap().len(), 1, "version {version}");
        let book = store.association_book().unwrap();
        assert_eq!(book.all_records().count(), usize::from(version > 2));
        // The one of version 10 had lost sightings before.
        let doubt = Doubt {
            entries: false,
            sightings: version > 9,
        };
        assert_eq!(book.doubt(), doubt, "version {version}");
        let dating = store.dating().unwrap();
        assert!(dating.iter().any(|boot| boot.reference == Some((77, 88))));
        assert_eq!(checked_rows::damage(&store.connection).unwrap(), [""; 0]);
    }
}

#[test]
fn a_step_that_fails_leaves_the_version_before_it_whole() {
    for (number, fixture) in FIXTURES.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = lay_down(folder.path(), fixture);
        let before = tables(&connection);
        let mut steps = MIGRATIONS[..=number].to_vec();
        steps.push(
            "CREATE TABLE half (id INTEGER); DELETE FROM outbox; DROP TABLE ledger;
             INSERT INTO nothing_of_this_name VALUES (1);",
        );
        assert!(migrate_by(&mut connection, &steps).is_err());
        assert_eq!(version(&connection), number as i64 + 1);
        assert_eq!(tables(&connection), before);
        drop(connection);
        assert_whole(folder.path());
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let connection = lay_down(folder.path(), FIXTURES[FIXTURES.len() - 1]);
    connection
        .pragma_update(None, "user_version", VERSION + 1)
        .unwrap();
    drop(connection);
    let file = folder.path().join("store.db");
    let before = std::fs::read(&file).unwrap();
    assert!(matches!(
        Store::open(folder.path()).map(|_| ()),
        Err(StoreError::Newer(_))
    ));
    // Whatever else is the matter with it: damaged, or given up by the newer program.
    let mut damaged = before.clone();
    damaged[120..].fill(0x5a);
    std::fs::write(&file, &damaged).unwrap();
    for note in [false, true] {
        if note {
            Store::condemn_in(folder.path(), "a newer program says so").unwrap();
        }
        let Err(error) = Store::open(folder.path()) else {
            panic!("it was opened, with a note: {note}");
        };
        assert!(
            error.to_string().contains("install that version again"),
            "{error}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), damaged);
    }
    std::fs::remove_file(folder.path().join("store.db.condemned")).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.path().join(format!("store.db{suffix}")));
    }
    std::fs::write(&file, before).unwrap();
    let connection = Connection::open(folder.path().join("store.db")).unwrap();
    assert_eq!(version(&connection), VERSION + 1);
}
