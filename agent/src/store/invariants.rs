//! The invariants of the store by their numbers: each has a test, here or where the essay says.

use super::check::tests::message;
use super::{Changes, Store, UnmatchedRun};
use crate::message::SourceId;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files as a power cut finds them now, in a folder of their own; the log as far as `log_bytes`.
fn as_cut(folder: &Path, log_bytes: usize) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("store.db"), copy.path().join("store.db")).unwrap();
    let log = std::fs::read(folder.join("store.db-wal")).unwrap();
    let kept = &log[..log_bytes.min(log.len())];
    std::fs::write(copy.path().join("store.db-wal"), kept).unwrap();
    copy
}

/// More than the first commits of a store take in the log, which has its full length from the start.
const LOG_BYTES: usize = 40_000;

fn count(folder: &Path) -> usize {
    let (store, _) = Store::open(folder).unwrap();
    store.read_from(1, usize::MAX).unwrap().messages.len()
}

#[test]
fn acknowledged_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    for n in 1..=5 {
        store.append(&[message(n)], &[], None, 0, 0).unwrap();
        let cut = as_cut(folder.path(), usize::MAX);
        assert_eq!(count(cut.path()), n as usize);
    }
}

#[test]
fn a_batch_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    for batch in 0..2 {
        let messages: Vec<_> = (batch * 10..batch * 10 + 10).map(message).collect();
        store.append(&messages, &[], None, 0, 0).unwrap();
    }
    let mut seen = BTreeSet::new();
    for bytes in (0..LOG_BYTES).step_by(700) {
        seen.insert(count(as_cut(folder.path(), bytes).path()));
    }
    seen.insert(count(as_cut(folder.path(), usize::MAX).path()));
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 10, 20]);
}

#[test]
fn cursor_and_rows_are_one_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    store.append(&[message(1), message(2)], &[], None, 0, 0).unwrap();
    let mut changes = Changes::default();
    changes.progress.cursor = 2;
    changes.unmatched.push(UnmatchedRun {
        first: 1,
        last: 2,
        source: SourceId(1),
        count: 2,
        no_pack: false,
        wall: 0,
    });
    store.commit_progress(&changes, 0).unwrap();
    let mut seen = BTreeSet::new();
    let ends = (0..LOG_BYTES).step_by(300).chain([usize::MAX]);
    for bytes in ends {
        let cut = as_cut(folder.path(), bytes);
        let (_, found) = Store::open(cut.path()).unwrap();
        assert_eq!(found.progress.cursor == 2, !found.unmatched.is_empty());
        seen.insert(found.progress.cursor);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn what_a_failed_commit_left_behind_is_never_taken_for_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    store.append(&[message(1)], &[], None, 0, 0).unwrap();
    store.close_files(super::Trouble::Failing).unwrap();
    let good = store.closed.clone().unwrap();
    store.ensure_open().unwrap();
    // This one is whole in the log; its sync is taken for failed.
    store.append(&[message(2), message(3)], &[], None, 0, 0).unwrap();
    store.close_files(super::Trouble::Failing).unwrap();
    store.closed = Some(good);
    store.next_position = 2;
    store.ensure_open().unwrap();
    assert_eq!(store.read_from(1, usize::MAX).unwrap().messages.len(), 1);
    assert_eq!(store.append(&[message(4)], &[], None, 0, 0).unwrap(), 2);
    assert_eq!(count(as_cut(folder.path(), usize::MAX).path()), 2);
}

#[test]
fn a_store_that_was_exchanged_while_it_was_closed_is_not_taken_up() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut store, _) = Store::open(folder.path()).unwrap();
    drop(Store::open(other.path()).unwrap());
    store.close_files(super::Trouble::ReadOnly).unwrap();
    let file = folder.path().join("store.db");
    let _ = std::fs::remove_file(folder.path().join("store.db-wal"));
    std::fs::rename(&file, folder.path().join("away")).unwrap();
    assert!(matches!(
        store.ensure_open(),
        Err(super::StoreError::Unavailable { .. })
    ));
    assert!(!file.exists(), "nothing is begun in its place");
    std::fs::copy(other.path().join("store.db"), &file).unwrap();
    assert!(matches!(store.ensure_open(), Err(super::StoreError::Lost(_))));
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_invariant_of_the_essay_names_a_test_that_exists() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&package.join("src"), &mut files);
    sources(&package.join("../tests/tests"), &mut files);
    let texts: Vec<String> = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let essay = std::fs::read_to_string(package.join("src/store/mod.rs")).unwrap();
    let part = essay
        .split("# Invariants")
        .nth(1)
        .unwrap()
        .split("# A crash")
        .next()
        .unwrap();
    let whole = part.replace("\n//!     ", " ").replace("\n//!    ", " ");
    let mut number = 0;
    for line in whole.lines().filter_map(|line| line.strip_prefix("//! ")) {
        let Some((found, text)) = line.split_once(". ").filter(|(n, _)| n.parse::<u32>().is_ok()) else {
            continue;
        };
        number += 1;
        assert_eq!(found.parse::<u32>().unwrap(), number);
        let name = text
            .split("test `")
            .nth(1)
            .and_then(|rest| rest.split('`').next());
        let name = name.unwrap_or_else(|| panic!("invariant {number} names no test: {text}"));
        let function = format!("fn {name}(");
        assert!(
            texts.iter().any(|text| text.contains(&function)),
            "invariant {number}: there is no test {name}"
        );
    }
    assert!(number >= 14, "{number} invariants");
}
