//! Damage on the disk: what is behind it goes on, and nothing of it is silent.

use super::super::{Store, StoredBatch};
use super::CheckState;
use crate::clock;
use crate::message::{Message, Payload, PayloadKind, Position, RevisionId, SourceId, Stamp};
use bytes::Bytes;
use std::path::Path;

pub(in crate::store) fn message(n: u64) -> (Message, RevisionId) {
    // Texts that do not compress away, so that a batch fills pages.
    let noise: String = (0..40)
        .map(|i: u64| format!("{:x}", (n * 40 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let message = Message {
        source: SourceId(1),
        stamp: Stamp {
            boot: 1,
            monotonic_us: n,
            wall: clock::wall(),
            trusted: true,
        },
        payload: Payload(Bytes::from(format!("{{\"n\":{n},\"noise\":\"{noise}\"}}"))),
        kind: PayloadKind::Whole,
        topic: None,
        properties: Vec::new(),
        device_id: None,
        possible_repeat: false,
        record: None,
        ack: None,
    };
    (message, RevisionId(1))
}

/// A closed store of `batches` batches of ten messages.
fn filled(folder: &Path, batches: u64) {
    let (mut store, _) = Store::open(folder).unwrap();
    for batch in 0..batches {
        let messages: Vec<_> = (batch * 10..batch * 10 + 10).map(message).collect();
        store.append(&messages, &[], None, 0, 0).unwrap();
    }
}

fn read_all(store: &Store) -> StoredBatch {
    store.read_from(1, usize::MAX).unwrap()
}

/// Every position is in exactly one of what was read and what was said to be damaged.
fn assert_accounted(read: &StoredBatch, last: Position) {
    let mut seen: Vec<Position> = read.messages.iter().map(|m| m.position).collect();
    for (first, last) in &read.damaged {
        seen.extend(*first..=*last);
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
}

fn check_all(store: &mut Store) -> Vec<CheckState> {
    let mut states = Vec::new();
    loop {
        let state = store.check_slice().unwrap();
        states.push(state);
        if states.last().unwrap().done {
            return states;
        }
    }
}

#[test]
fn a_damaged_batch_is_stepped_over_and_said() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 120);
    let file = folder.path().join("store.db");
    let raw = rusqlite::Connection::open(&file).unwrap();
    raw.execute(
        "UPDATE journal_1 SET batch = zeroblob(length(batch)) WHERE first IN (51, 61, 201)",
        [],
    )
    .unwrap();
    drop(raw);
    let (mut store, recovered) = Store::open(folder.path()).unwrap();
    assert_eq!(recovered.set_aside, None);
    let read = read_all(&store);
    assert_eq!(read.damaged, [(51, 60), (61, 70), (201, 210)]);
    assert_eq!(read.messages.len(), 1170);
    assert_accounted(&read, 1200);
    // From the middle of a damaged batch.
    let rest = store.read_from(55, 1).unwrap();
    assert_eq!(rest.damaged.first(), Some(&(55, 60)));
    assert_eq!(rest.messages[0].position, 71);
    let found: Vec<_> = check_all(&mut store)
        .into_iter()
        .flat_map(|s| s.damaged)
        .collect();
    assert_eq!(found, [(51, 60), (61, 70), (201, 210)]);
}

#[test]
fn smashed_pages_of_the_journal_cost_what_lies_on_them_and_nothing_else() {
    let mut set_aside = 0;
    for seed in 0..24_u64 {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 200);
        let file = folder.path().join("store.db");
        let (mut bytes, pages) = {
            let bytes = std::fs::read(&file).unwrap();
            let pages = bytes.len() / 1024;
            (bytes, pages)
        };
        // The tables and the newest batches are at both ends of the file; the journal's older batches between.
        let page = 60 + (seed as usize * 7919) % (pages / 2 - 60);
        for byte in &mut bytes[page * 1024..(page + 2) * 1024] {
            *byte = byte.wrapping_mul(31).wrapping_add(seed as u8 | 1);
        }
        std::fs::write(&file, bytes).unwrap();
        let (mut store, recovered) = Store::open(folder.path()).unwrap();
        if recovered.set_aside.is_some() {
            // An upper page of the tree: the start itself cannot find its way to the newest batches.
            set_aside += 1;
            continue;
        }
        assert_eq!(recovered.next_position, 2001);
        let read = read_all(&store);
        assert_accounted(&read, 2000);
        let missing: u64 = read.damaged.iter().map(|(first, last)| last - first + 1).sum();
        assert!((10..=80).contains(&missing), "seed {seed}: {:?}", read.damaged);
        let found: u64 = check_all(&mut store)
            .iter()
            .flat_map(|s| &s.damaged)
            .map(|(first, last)| last - first + 1)
            .sum();
        assert!(found >= missing, "seed {seed}");
        // The store goes on taking messages.
        store.append(&[message(1)], &[], None, 0, 0).unwrap();
    }
    assert!(set_aside <= 4, "{set_aside} of 24 could not be stepped over");
}

#[test]
fn the_full_check_reads_in_slices_and_not_what_the_loops_have_read() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 300);
    let (mut store, _) = Store::open(folder.path()).unwrap();
    let states = check_all(&mut store);
    let last = states.last().unwrap();
    assert_eq!((last.batches, last.reached), (300, 3001));
    assert!(states.len() > 3, "{} slices", states.len());
    for pair in states.windows(2) {
        assert!(pair[1].bytes - pair[0].bytes < 300 << 10);
    }
    drop(store);
    let (mut store, _) = Store::open(folder.path()).unwrap();
    assert_eq!(read_all(&store).messages.len(), 3000);
    let states = check_all(&mut store);
    assert_eq!(states.last().unwrap().batches, 0);
}

#[test]
fn a_broken_table_is_told_and_the_next_start_sets_the_file_aside() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 3);
    let file = folder.path().join("store.db");
    let raw = rusqlite::Connection::open(&file).unwrap();
    let root: i64 = raw
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'ledger'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    drop(raw);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = (root as usize - 1) * 1024;
    bytes[at..at + 1024].fill(0x77);
    std::fs::write(&file, bytes).unwrap();
    let (mut store, first) = Store::open(folder.path()).unwrap();
    let broken: Vec<_> = check_all(&mut store).into_iter().flat_map(|s| s.broken).collect();
    assert!(broken.iter().any(|line| line.contains("ledger")), "{broken:?}");
    store.condemn("ledger: page 12").unwrap();
    drop(store);
    let (store, second) = Store::open(folder.path()).unwrap();
    assert_ne!(first.store_id, second.store_id);
    assert!(second.set_aside.unwrap().exists());
    assert!(store.ledger().unwrap()[0].1.contains("found while running"));
    drop(store);
    // The note is gone: the new store stays.
    assert_eq!(Store::open(folder.path()).unwrap().1.store_id, second.store_id);
}

#[test]
fn whatever_is_found_in_the_place_of_the_file_a_store_is_there_at_once() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 8] = [
        ("garbage", |file| std::fs::write(file, [0x5a; 8192]).unwrap()),
        ("garbage header", |file| {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[..100].fill(0x11);
            std::fs::write(file, bytes).unwrap();
        }),
        ("truncated", |file| {
            let bytes = std::fs::read(file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() / 3]).unwrap();
        }),
        ("folder", |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir(file).unwrap();
        }),
        ("empty beside a log", |file| {
            std::fs::write(file, []).unwrap();
            std::fs::write(file.with_file_name("store.db-wal"), [1; 4096]).unwrap();
        }),
        ("another program's", |file| {
            let raw = rusqlite::Connection::open(file).unwrap();
            raw.pragma_update(None, "application_id", 7).unwrap();
        }),
        ("unreadable progress", |file| {
            let raw = rusqlite::Connection::open(file).unwrap();
            raw.execute("INSERT INTO progress (id, state) VALUES (1, '{\"cursor\":')", [])
                .unwrap();
        }),
        ("progress without its checksum", |file| {
            let raw = rusqlite::Connection::open(file).unwrap();
            raw.execute("INSERT INTO progress (id, state) VALUES (1, '{}')", [])
                .unwrap();
        }),
    ];
    for (name, damage) in cases {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 30);
        damage(&folder.path().join("store.db"));
        let (mut store, recovered) = Store::open(folder.path()).unwrap();
        let aside = recovered
            .set_aside
            .unwrap_or_else(|| panic!("{name}: not set aside"));
        assert!(aside.exists(), "{name}");
        assert!(store.ledger().unwrap()[0].1.contains("set aside"), "{name}");
        assert_eq!(store.append(&[message(1)], &[], None, 0, 0).unwrap(), 1, "{name}");
    }
}
