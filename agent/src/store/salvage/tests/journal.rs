//! Damage of every kind of page, and of the log: what becomes of the messages.

use super::*;

/// The pages of a filled store by kind, with the first positions of the batches that they hold.
fn pages_by_kind(folder: &Path) -> BTreeMap<String, Vec<(u32, BTreeSet<u64>)>> {
    let file = folder.join("store.db");
    let connection = rusqlite::Connection::open(&file).unwrap();
    let mut kinds: BTreeMap<String, Vec<(u32, BTreeSet<u64>)>> = BTreeMap::new();
    let roots: Vec<(String, u32)> = connection
        .prepare("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    kinds.insert("header".to_owned(), vec![(1, BTreeSet::new())]);
    let header = std::fs::read(&file).unwrap();
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let trunk = word(32);
    let leaf = word((trunk as usize - 1) * 1024 + 8);
    kinds.insert("freelist trunk".to_owned(), vec![(trunk, BTreeSet::new())]);
    kinds.insert("freelist leaf".to_owned(), vec![(leaf, BTreeSet::new())]);
    // The second page of an auto-vacuum file maps pages to their parents.
    kinds.insert("pointer map".to_owned(), vec![(2, BTreeSet::new())]);
    for (page, kind, _) in pages_of(&file, 1)
        .into_iter()
        .filter(|(page, kind, _)| *page > 1 && *kind != "row")
    {
        kinds
            .entry(format!("schema {kind}"))
            .or_default()
            .push((page, BTreeSet::new()));
    }
    for (name, root) in roots {
        let is_journal = name.starts_with("journal_");
        let mut held: BTreeMap<(String, u32), BTreeSet<u64>> = BTreeMap::new();
        for (page, kind, row) in pages_of(&file, root) {
            let kind = match (is_journal, kind) {
                (true, "row") => "journal leaf".to_owned(),
                (true, kind) => format!("journal {kind}"),
                (false, _) => name.clone(),
            };
            let rows = held.entry((kind, page)).or_default();
            rows.extend(row.filter(|_| is_journal).map(|row| row as u64));
        }
        for ((kind, page), rows) in held {
            kinds.entry(kind).or_default().push((page, rows));
        }
    }
    kinds
}

#[test]
fn whatever_page_is_damaged_every_other_batch_arrives_once_under_its_identity_and_the_rest_is_in_the_ledger()
{
    let template = tempfile::tempdir().unwrap();
    let id = filled(template.path(), &Encryption::Off);
    let kinds = pages_by_kind(template.path());
    for wanted in [
        "header",
        "schema leaf",
        "journal leaf",
        "journal inner",
        "journal overflow",
        "freelist trunk",
        "outbox",
        "progress",
        "meta",
        "identity",
    ] {
        assert!(
            kinds.contains_key(wanted),
            "no page of the kind {wanted}: {:?}",
            kinds.keys()
        );
    }
    let mut set_aside = BTreeSet::new();
    for (kind, pages) in &kinds {
        let middle = pages.len() / 2;
        let is_journal = kind.starts_with("journal");
        let chosen: BTreeSet<usize> = if is_journal {
            [0, middle, pages.len() - 1].into()
        } else {
            [middle].into()
        };
        for (page, batches) in chosen.into_iter().map(|at| &pages[at]) {
            // As the agent meets it, and with the whole file given up.
            for condemned in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("store.db");
                std::fs::copy(template.path().join("store.db"), &file).unwrap();
                smash(&file, *page);
                if condemned {
                    Store::condemn_in(folder.path(), "a test").unwrap();
                }
                let what = format!("{kind} page {page}, condemned: {condemned}");
                let (store, messages, state) = salvaged(folder.path());
                let damaged: BTreeSet<u64> = batches.iter().flat_map(|first| *first..first + 10).collect();
                let whole: BTreeSet<u64> = (DROPPED + 1..=LAST).filter(|n| !damaged.contains(n)).collect();
                // What was dropped comes again only where nobody knows that it was.
                let known = state.as_ref().is_none_or(|state| state.known);
                assert!(!known || messages.keys().all(|n| *n > DROPPED), "{what}");
                let found: BTreeSet<u64> = messages.keys().copied().filter(|n| *n > DROPPED).collect();
                assert!(
                    found.is_superset(&whole),
                    "{what}: {:?} are missing",
                    whole.difference(&found)
                );
                assert!(
                    messages.iter().all(|(n, known)| *known == (id.clone(), *n)),
                    "{what}"
                );
                let missing = LAST - DROPPED - found.len() as u64;
                let Some(state) = state else {
                    let run = store.read_from(1, usize::MAX).unwrap().damaged;
                    let damaged: u64 = run.iter().map(|(first, last)| last - first + 1).sum();
                    assert_eq!(damaged, missing, "{what}");
                    continue;
                };
                set_aside.insert(kind.clone());
                // The end of the journal is not written anywhere else.
                let end = batches.contains(&(LAST - 9));
                assert!(
                    state.lost == missing || end && state.lost <= missing,
                    "{what}: {state:?}, {missing} missing"
                );
                let ledger = store.ledger().unwrap();
                let lines: u64 = ledger.iter().map(|(count, _)| count).sum();
                assert_eq!(lines, state.lost, "{what}: {ledger:?}");
                assert!(
                    ledger[0].1.starts_with("salvaged store.db.damaged-"),
                    "{what}: {ledger:?}"
                );
                assert!(kind != "journal overflow" || state.unreadable_bytes > 0, "{what}");
            }
        }
    }
    assert!(set_aside.contains("header"));
}

/// A copy of a store whose process ended without closing it: everything in the log since the last checkpoint.
fn cut_off(folder: &Path) -> (tempfile::TempDir, String) {
    let (mut store, recovered) = Store::open(folder).unwrap();
    store.source("ward").unwrap();
    for batch in 0..40_u64 {
        let messages: Vec<_> = (batch * 10 + 1..=batch * 10 + 10).map(message).collect();
        store.append(&messages, &[], None, 0, 0).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    (copy, recovered.store_id)
}

#[test]
fn a_log_that_is_damaged_in_the_middle_hides_no_commit_behind_it() {
    let template = tempfile::tempdir().unwrap();
    let (cut, id) = cut_off(template.path());
    let log = std::fs::read(cut.path().join("store.db-wal")).unwrap();
    let frame = |number: usize| 32 + number * (24 + 1024);
    let last = (0..)
        .take_while(|number| {
            log.get(frame(*number)).is_some() && log[frame(*number)..frame(*number) + 4] != [0; 4]
        })
        .count();
    assert!(last > 100, "{last} frames");
    // Where the damage is, its length, and what is to become of it.
    let cases = [
        ("header", 0, 32, true),
        ("a page of an early frame", frame(20) + 500, 8, true),
        ("the header of an early frame", frame(20), 24, true),
        ("a frame in the middle", frame(last / 2), 1048, true),
        ("a stretch in the middle", frame(last / 2), 1048 * 5, true),
        ("the last frame", frame(last - 1) + 100, 8, false),
        ("nothing", 0, 0, false),
    ];
    for (what, place, length, is_set_aside) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(cut.path().join("store.db"), folder.path().join("store.db")).unwrap();
        let mut damaged = log.clone();
        for byte in &mut damaged[place..place + length] {
            *byte = byte.wrapping_mul(29).wrapping_add(0x77);
        }
        std::fs::write(folder.path().join("store.db-wal"), damaged).unwrap();
        let (store, messages, state) = salvaged(folder.path());
        assert_eq!(state.is_some(), is_set_aside, "{what}");
        let missing = 400 - messages.len() as u64;
        match state {
            Some(state) => {
                assert!(
                    messages.iter().all(|(n, known)| *known == (id.clone(), *n)),
                    "{what}"
                );
                assert!(missing <= 60, "{what}: {missing} messages are gone");
                assert_eq!(state.lost, missing, "{what}: {state:?}");
                let ledger = store.ledger().unwrap();
                let said = ledger
                    .iter()
                    .any(|(_, reason)| reason.contains("write-ahead log is damaged"));
                assert!(said, "{what}: {ledger:?}");
            }
            // The last commit may be one that was under way.
            None => assert!(
                missing == 0 || what == "the last frame" && missing == 10,
                "{what}: {missing}"
            ),
        }
    }
}
