//! Trees as SQLite wrote them, and pages of noise.

use super::super::record::Row;
use super::*;
use rusqlite::{Connection, params};

fn rows(pages: &Pages, root: u32) -> (Vec<Row>, bool) {
    let mut rows = Vec::new();
    let lost = pages.walk(root, &mut |row, _| rows.push(row));
    (rows, lost.is_empty())
}

#[test]
fn tables_are_read_as_sqlite_wrote_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let connection = Connection::open(&file).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL;
             CREATE TABLE one (id INTEGER PRIMARY KEY, number INTEGER, text TEXT, bytes BLOB);
             CREATE TABLE other (key TEXT PRIMARY KEY, value) WITHOUT ROWID;",
        )
        .unwrap();
    let numbers = [
        0,
        1,
        -1,
        127,
        -128,
        40_000,
        -9_000_000,
        1 << 40,
        i64::MIN,
        i64::MAX,
    ];
    for n in 0..400_i64 {
        let number = (n % 11 != 0).then(|| numbers[(n % 10) as usize]);
        let bytes = vec![n as u8; (n * n % 5003) as usize];
        connection
            .execute(
                "INSERT INTO one VALUES (?1, ?2, ?3, ?4)",
                params![n * 7, number, "ä".repeat(n as usize), bytes],
            )
            .unwrap();
        connection
            .execute(
                "INSERT INTO other VALUES (?1, ?2)",
                params![format!("key {n:05}"), "v".repeat(n as usize % 900)],
            )
            .unwrap();
    }
    let root = |name: &str| -> u32 {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get(0)).unwrap()
    };
    let pages = Pages::open(&file, &Log::default(), true).unwrap();
    let (found, whole) = rows(&pages, root("one"));
    assert!(whole);
    assert_eq!(found.len(), 400);
    for (n, (id, columns)) in (0_i64..).zip(&found) {
        assert_eq!(*id, n * 7);
        let number = columns[1].integer();
        assert_eq!(number, (n % 11 != 0).then(|| numbers[(n % 10) as usize]));
        assert_eq!(columns[2].text(), Some("ä".repeat(n as usize).as_str()));
        assert_eq!(columns[3].blob().map(<[u8]>::len), Some((n * n % 5003) as usize));
    }
    let (found, whole) = rows(&pages, root("other"));
    assert!(whole);
    let keys: Vec<_> = found
        .iter()
        .filter_map(|(_, columns)| columns[0].text())
        .collect();
    assert_eq!(keys, (0..400).map(|n| format!("key {n:05}")).collect::<Vec<_>>());
}

#[test]
fn pages_of_noise_end_nothing_but_themselves() {
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    for round in 0..200 {
        let mut bytes = vec![0; 64 * PAGE];
        for byte in &mut bytes {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (noise >> 40) as u8;
        }
        for page in 0..64 {
            bytes[page * PAGE] = [TABLE_LEAF, TABLE_INNER, INDEX_LEAF, INDEX_INNER][(page + round) % 4];
            bytes[page * PAGE + 3] = 0;
        }
        std::fs::write(&file, bytes).unwrap();
        let pages = Pages::open(&file, &Log::default(), true).unwrap();
        for page in 1..=pages.count() {
            let (_, whole) = rows(&pages, page);
            let _ = whole;
            pages.rows_on(page, |_, _, _, place| drop(pages.row_at(place)));
        }
    }
}
