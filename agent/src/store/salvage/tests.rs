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

const BATCHES: u64 = 120;
const LAST: u64 = BATCHES * 10;

/// Messages of a segment that was dropped: free pages still show them.
const DROPPED: u64 = 100;

/// A closed store of [`BATCHES`] batches of ten messages, the first [`DROPPED`] delivered and dropped, the others not; its id.
fn filled(folder: &Path, encryption: &Encryption) -> String {
    let (mut store, recovered) = Store::open_with(folder, encryption).unwrap();
    assert_eq!(store.source("ward").unwrap(), SourceId(1));
    for batch in 0..BATCHES {
        let messages: Vec<_> = (batch * 10 + 1..=batch * 10 + 10).map(message).collect();
        let now_us = if batch * 10 < DROPPED { 0 } else { 3_700_000_000 };
        store.append(&messages, &[], None, now_us, 0).unwrap();
    }
    let mut changes = Changes::default();
    changes.progress.cursor = DROPPED;
    store.commit_progress(&changes, 0).unwrap();
    store.reclaim(&[1], None, None, 0).unwrap();
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
        match next_portion(store, salvage, &Encryption::Off) {
            Some(portion) => {
                let stored = store.append_salvaged(&portion, |_| RevisionId(0), 0, 0).unwrap();
                salvage.committed(stored.state);
            }
            None => return,
        }
    }
}

fn next_portion(store: &mut Store, salvage: &mut Salvage, encryption: &Encryption) -> Option<Portion> {
    loop {
        match salvage.step() {
            Step::Looking => {}
            Step::Names => {
                salvage.find_key(encryption).unwrap();
                store.adopt_salvage(salvage).unwrap();
            }
            Step::Portion(portion) => return Some(*portion),
            Step::Nothing => return None,
        }
    }
}

/// Opens the folder, salvages what was set aside, and gives the numbers of all messages with their identities.
fn salvaged(folder: &Path) -> (Store, BTreeMap<u64, (String, u64)>, Option<State>) {
    let begin = crate::clock::monotonic_us();
    let (mut store, mut recovered) = Store::open(folder).unwrap();
    let took_us = crate::clock::monotonic_us() - begin;
    assert!(took_us < 3_000_000, "ready after {took_us} us");
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

#[test]
fn a_salvage_that_is_cut_off_anywhere_neither_loses_nor_doubles() {
    let folder = tempfile::tempdir().unwrap();
    let id = filled(folder.path(), &Encryption::Off);
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
        let lost = next_portion(&mut store, &mut salvage, &Encryption::Off);
        if lost.is_none() {
            store.settle_salvage(&mut salvage).unwrap();
        }
    }
    let (store, recovered) = Store::open(folder.path()).unwrap();
    let messages = messages_of(&store, &recovered);
    let found = messages.keys().filter(|n| **n > DROPPED).count() as u64;
    assert_eq!(found, LAST - DROPPED + rounds);
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
    // One that takes raw messages has them up to 142, and one that is not configured any more waits for a reading.
    let hub = store.destination("cloud").unwrap();
    changes.progress.destinations.entry(hub).or_default().cursor = 142;
    let gone = store.destination("gone").unwrap();
    changes.rows.push(Row {
        destination: gone,
        ..row(3, 2, 91, 91, Some(vec![(91, 0)]))
    });
    store.commit_progress(&changes, 0).unwrap();
    drop(store);
    Store::condemn_in(folder.path(), "a test").unwrap();

    let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
    let ehr = store.destination("ehr").unwrap();
    let hub = store.destination("cloud").unwrap();
    let mut salvage = recovered.salvages.pop().unwrap();
    salvage.follow(&[("ehr", false), ("cloud", true)].into());
    let wanted = salvage.wanted();
    assert!(wanted.wants(ehr, &key("a"), 33, 0));
    assert!(!wanted.wants(ehr, &key("b"), 33, 0));
    assert!(wanted.wants(ehr, &key("b"), 72, 1));
    assert!(!wanted.wants(ehr, &key("b"), 72, 0));
    assert!(wanted.wants(ehr, &key("b"), 151, 0));
    assert!(!wanted.wants_message(hub, 142) && wanted.wants_message(hub, 143));
    drain(&mut store, &mut salvage, usize::MAX);
    let found: BTreeSet<u64> = messages_of(&store, &recovered).into_keys().collect();
    let batches = [31..=40, 71..=80, 91..=100, 141..=150, 151..=200];
    assert_eq!(found, batches.into_iter().flatten().collect());
    let ledger = store.ledger().unwrap();
    assert!(
        ledger
            .iter()
            .any(|(count, reason)| *count == 1 && reason.contains("not configured any more"))
    );
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

#[test]
fn a_sealed_store_without_its_first_page_finds_its_id_and_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let id = filled(folder.path(), &Encryption::Own);
    smash(&folder.path().join("store.db"), 1);
    let (mut store, mut recovered) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    let mut salvage = recovered.salvages.pop().unwrap();
    while store.salvage_step(&mut salvage, &Encryption::Own).unwrap() {}
    let messages = messages_of(&store, &recovered);
    assert!((DROPPED + 1..=LAST).all(|n| messages[&n] == (id.clone(), n)));
    assert_eq!(salvage.state().lost, 0);
}

#[test]
fn a_sealed_store_waits_for_its_key() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Own);
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("store.db.damaged-1");
    std::fs::copy(folder.path().join("store.db"), &file).unwrap();
    drop(Store::open(other.path()).unwrap());
    let (mut store, recovered) = Store::open(other.path()).unwrap();
    assert_eq!(
        recovered.salvages.len(),
        1,
        "without a key what is not sealed comes over"
    );
    assert!(store.begin_salvage(&file, &Encryption::Own).unwrap().is_none());
    let state = store.salvages().unwrap().remove(0);
    assert!(
        state.waits.as_ref().unwrap().contains("its key is not there"),
        "{state:?}"
    );
    assert!(state.concerns(adopt::now()) && !state.settled);
    std::fs::copy(folder.path().join("store.key"), other.path().join("store.key")).unwrap();
    let mut salvage = store.begin_salvage(&file, &Encryption::Own).unwrap().unwrap();
    assert_eq!(salvage.state().waits, None);
    while store.salvage_step(&mut salvage, &Encryption::Own).unwrap() {}
    assert_eq!(salvage.state().messages, LAST - DROPPED);
}

#[test]
fn a_store_that_is_damaged_while_it_takes_over_another_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let id = filled(folder.path(), &Encryption::Off);
    Store::condemn_in(folder.path(), "the first").unwrap();
    let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
    drain(&mut store, &mut recovered.salvages[0], 1);
    let between = LAST + 1;
    let position = store.append(&[message(between)], &[], None, 0, 0).unwrap();
    let second = recovered.store_id.clone();
    drop(store);
    Store::condemn_in(folder.path(), "the second").unwrap();
    let (store, messages, _) = salvaged(folder.path());
    let found: BTreeSet<u64> = messages.keys().copied().collect();
    assert_eq!(found, (DROPPED + 1..=between).collect());
    assert_eq!(messages[&between], (second, position));
    assert!(
        messages
            .iter()
            .all(|(n, known)| *n == between || *known == (id.clone(), *n))
    );
    assert_eq!(store.salvages().unwrap().len(), 2);
}

#[test]
fn set_aside_files_stay_until_they_are_salvaged_and_then_as_evidence_for_a_while() {
    const DAY: i64 = 86_400 * 10_000_000;
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Off);
    Store::condemn_in(folder.path(), "a test").unwrap();
    let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
    let mut salvage = recovered.salvages.pop().unwrap();
    let file = folder.path().join(&salvage.state().file);
    let bytes = store.set_aside_bytes();
    assert!(bytes > MIB / 4, "{bytes}");
    assert_eq!(store.limit_beside_former(100 * MIB), 100 * MIB - bytes);
    assert_eq!(store.limit_beside_former(bytes), bytes - bytes / 2);
    let now = adopt::now();
    // Not salvaged: neither age nor room removes it.
    store.tidy_set_aside(MIB, Some(now + 100 * DAY), true).unwrap();
    assert!(file.exists());
    drain(&mut store, &mut salvage, usize::MAX);
    store.tidy_set_aside(MIB, Some(now + 100 * DAY), true).unwrap();
    assert!(file.exists(), "not everything was normalized");
    store.settle_salvage(&mut salvage).unwrap();
    for (what, max_bytes, wall, short, stays) in [
        ("fresh", 100 * MIB, Some(now + DAY), false, true),
        ("the clock is not trusted", 100 * MIB, None, false, true),
        ("a week is over", 100 * MIB, Some(now + 8 * DAY), false, false),
        ("the disk is short", 100 * MIB, None, true, false),
        ("more than its share", bytes * 7, None, false, false),
    ] {
        let copy = std::fs::read(&file).unwrap();
        store.tidy_set_aside(max_bytes, wall, short).unwrap();
        assert_eq!(file.exists(), stays, "{what}");
        std::fs::write(&file, copy).unwrap();
    }
}
