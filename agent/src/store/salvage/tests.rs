//! Damage of every kind of page, and what comes out of it.

use super::super::check::tests::message;
use super::super::progress::Row;
use super::super::{Changes, Recovered, Store, StoredLetter};
use super::pages::pages_of;
use super::*;
use crate::config::Encryption;
use crate::message::{RevisionId, SourceId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

const BATCHES: u64 = 120;
const LAST: u64 = BATCHES * 10;

/// A closed store of [`BATCHES`] batches of ten messages, nothing of it delivered; its id.
fn filled(folder: &Path) -> String {
    let (mut store, recovered) = Store::open(folder).unwrap();
    assert_eq!(store.source("ward").unwrap(), SourceId(1));
    for batch in 0..BATCHES {
        let messages: Vec<_> = (batch * 10 + 1..=batch * 10 + 10).map(message).collect();
        store.append(&messages, &[], None, 0, 0).unwrap();
    }
    // Some pages that are free, with an old batch on them.
    store.commit_progress(&Changes::default(), 0).unwrap();
    recovered.store_id
}

fn smash(file: &Path, page: u32) {
    let mut bytes = std::fs::read(file).unwrap();
    let place = (page as usize - 1) * 1024;
    for byte in &mut bytes[place..place + 1024] {
        *byte = byte.wrapping_mul(31).wrapping_add(0x5b);
    }
    std::fs::write(file, bytes).unwrap();
}

/// The number that [`message`] was made with.
fn number(message: &crate::message::Message) -> u64 {
    let text = String::from_utf8_lossy(message.payload.bytes()).into_owned();
    text[5..].split(',').next().unwrap().parse().unwrap()
}

fn drain(store: &mut Store, salvage: &mut Salvage, portions: usize) {
    for _ in 0..portions {
        match next_portion(store, salvage) {
            Some(portion) => {
                let stored = store.append_salvaged(&portion, |_| RevisionId(0), 0, 0).unwrap();
                salvage.committed(stored.state);
            }
            None => return,
        }
    }
}

fn next_portion(store: &mut Store, salvage: &mut Salvage) -> Option<Portion> {
    loop {
        match salvage.step() {
            Step::Looking => {}
            Step::Names => store.adopt_salvage(salvage).unwrap(),
            Step::Portion(portion) => return Some(portion),
            Step::Nothing => return None,
        }
    }
}

/// Opens the folder, salvages what was set aside, and gives the numbers of all messages with their identities.
fn salvaged(folder: &Path) -> (Store, BTreeMap<u64, (String, u64)>, Option<State>) {
    let begin = Instant::now();
    let (mut store, mut recovered) = Store::open(folder).unwrap();
    assert!(begin.elapsed().as_secs() < 3, "ready after {:?}", begin.elapsed());
    let mut state = None;
    for salvage in &mut recovered.salvages {
        drain(&mut store, salvage, usize::MAX);
        state = Some(salvage.state().clone());
    }
    let messages = messages_of(&store, &recovered);
    (store, messages, state)
}

fn messages_of(store: &Store, recovered: &Recovered) -> BTreeMap<u64, (String, u64)> {
    let runs = Runs::new(store.recovered_runs().unwrap());
    let id = store.meta_text("store_id").unwrap().unwrap();
    assert_eq!(id, recovered.store_id);
    let mut messages = BTreeMap::new();
    for stored in store.read_from(1, usize::MAX).unwrap().messages {
        let known = runs.identity(stored.position);
        let known = known.map_or((id.clone(), stored.position), |known| {
            (known.store.to_string(), known.known_as)
        });
        let doubled = messages.insert(number(&stored.message), known);
        assert_eq!(doubled, None, "message {} came twice", number(&stored.message));
    }
    messages
}

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
    let id = filled(template.path());
    let kinds = pages_by_kind(template.path());
    for wanted in [
        "header",
        "schema leaf",
        "journal leaf",
        "journal inner",
        "journal overflow",
        "outbox",
        "progress",
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
                let whole: BTreeSet<u64> = (1..=LAST).filter(|n| !damaged.contains(n)).collect();
                let found: BTreeSet<u64> = messages.keys().copied().collect();
                assert!(
                    found.is_superset(&whole),
                    "{what}: {:?} are missing",
                    whole.difference(&found)
                );
                assert!(
                    messages.iter().all(|(n, known)| *known == (id.clone(), *n)),
                    "{what}"
                );
                let missing = LAST - found.len() as u64;
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

#[test]
fn a_salvage_that_is_cut_off_anywhere_neither_loses_nor_doubles() {
    let folder = tempfile::tempdir().unwrap();
    let id = filled(folder.path());
    smash(&folder.path().join("store.db"), 1);
    let mut rounds = 0;
    loop {
        let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
        let Some(mut salvage) = recovered.salvages.pop() else {
            break;
        };
        rounds += 1;
        assert!(rounds < 100);
        // Messages of the sources come in between, and the portion after the last commit is lost.
        store.append(&[message(LAST + rounds)], &[], None, 0, 0).unwrap();
        drain(&mut store, &mut salvage, 1);
        let lost = next_portion(&mut store, &mut salvage);
        if lost.is_none() {
            store.settle_salvage(&mut salvage).unwrap();
        }
    }
    let (store, recovered) = Store::open(folder.path()).unwrap();
    let messages = messages_of(&store, &recovered);
    assert_eq!(messages.len() as u64, LAST + rounds);
    let old = messages.iter().filter(|(n, _)| **n <= LAST);
    assert!(old.clone().all(|(n, known)| *known == (id.clone(), *n)));
    assert!(rounds > 3, "{rounds} rounds");
}

#[test]
fn what_was_confirmed_is_neither_taken_over_nor_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    store.source("ward").unwrap();
    let ehr = store.destination("ehr").unwrap();
    for batch in 0..20_u64 {
        let messages: Vec<_> = (batch * 10 + 1..=batch * 10 + 10).map(message).collect();
        store.append(&messages, &[], None, 0, 0).unwrap();
    }
    let key = |device: &str| {
        std::sync::Arc::new(crate::forward::GroupKey {
            device: device.into(),
            ..crate::forward::GroupKey::of_messages()
        })
    };
    let row = |id, series, first, last, refs: Option<Vec<(u64, u32)>>| Row {
        id,
        destination: ehr,
        series,
        period: None,
        first,
        last,
        count: 1,
        oldest: 0,
        refs: refs.map(std::sync::Arc::new),
        revision: None,
        waiting: None,
    };
    let mut changes = Changes::default();
    changes.progress.cursor = 150;
    changes.series = vec![(1, key("a")), (2, key("b"))];
    changes.rows = vec![row(1, 1, 31, 35, None), row(2, 2, 72, 72, Some(vec![(72, 1)]))];
    store.commit_progress(&changes, 0).unwrap();
    drop(store);
    Store::condemn_in(folder.path(), "a test").unwrap();

    let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
    let ehr = store.destination("ehr").unwrap();
    let mut salvage = recovered.salvages.pop().unwrap();
    let wanted = salvage.wanted();
    assert!(wanted.wants(ehr, &key("a"), 33, 0));
    assert!(!wanted.wants(ehr, &key("b"), 33, 0));
    assert!(wanted.wants(ehr, &key("b"), 72, 1));
    assert!(!wanted.wants(ehr, &key("b"), 72, 0));
    assert!(wanted.wants(ehr, &key("b"), 151, 0));
    drain(&mut store, &mut salvage, usize::MAX);
    let found: BTreeSet<u64> = messages_of(&store, &recovered).into_keys().collect();
    let expected: BTreeSet<u64> = (31..=40).chain(71..=80).chain(151..=200).collect();
    assert_eq!(found, expected);
    assert_eq!((salvage.state().lost, salvage.state().known), (0, true));
}

#[test]
fn associations_dead_letters_and_the_ledger_come_over_also_sealed_ones() {
    for encryption in [Encryption::Off, Encryption::Own] {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open_with(folder.path(), &encryption).unwrap();
        store.source("ward").unwrap();
        let ehr = store.destination("ehr").unwrap();
        let batch: Vec<_> = (1..=10).map(message).collect();
        store.append(&batch, &[], None, 0, 0).unwrap();
        let mut book = store.association_book().unwrap();
        let set = crate::associations::Command::Set {
            device: "band-1".to_owned(),
            patient: crate::associations::Who::parse("Patient", "Patient/anna"),
            encounter: None,
            from: Some(5),
            to: None,
        };
        let planned = book.plan(&set, Some(30), &[ehr]).unwrap();
        book.take(&store.enter_association(planned, &[]).unwrap());
        let stored = store.read_from(3, 1).unwrap().messages.remove(0);
        let letter = super::super::DeadLetter {
            destination: Some(ehr),
            match_number: Some(0),
            stage: "forward",
            error: crate::telemetry::errors::ErrorRecord::new("NotSupportedException", "refused"),
            revision: RevisionId(1),
            counted: [ehr].into(),
            message: std::sync::Arc::new(stored),
        };
        let mut changes = Changes::default();
        changes.progress.cursor = 10;
        changes.dead_letters = vec![(1, letter.clone()), (2, letter)];
        changes.losses = vec![super::super::Loss {
            destination: Some(ehr),
            source: Some(SourceId(1)),
            range: Some((1, 2)),
            count: 2,
            reason: "a reason".to_owned(),
            reading: Some(("band-1".into(), "hr".into())),
        }];
        store.commit_progress(&changes, 0).unwrap();
        drop(store);
        Store::condemn_in(folder.path(), "a test").unwrap();

        let (mut store, mut recovered) = Store::open_with(folder.path(), &encryption).unwrap();
        assert_eq!(
            store.association_book().unwrap().entries("band-1"),
            book.entries("band-1")
        );
        assert!(store.ledger().unwrap().contains(&(2, "a reason".to_owned())));
        let mut salvage = recovered.salvages.pop().unwrap();
        assert!(
            salvage
                .wanted()
                .wants(ehr, &crate::forward::GroupKey::of_messages(), 3, 0)
        );
        drain(&mut store, &mut salvage, usize::MAX);
        let found: Vec<u64> = messages_of(&store, &recovered).into_keys().collect();
        assert_eq!(found, [3], "the message of both letters, once");
        assert_eq!((salvage.state().letters, salvage.state().messages), (1, 1));
        let letters: Vec<StoredLetter> = store.letters(&[1, 2]).unwrap();
        assert!(letters.is_empty(), "they fail again, or do not");
    }
}
