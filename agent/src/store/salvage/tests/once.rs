//! What comes over comes once, whatever happens meanwhile.

use super::*;

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
fn associations_dead_letters_and_the_ledger_come_over_also_sealed_ones_and_without_the_first_page() {
    let both = |encryption: Encryption| [(encryption.clone(), false), (encryption, true)];
    for (encryption, without_first_page) in [Encryption::Off, Encryption::Own].into_iter().flat_map(both) {
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
        let letter = crate::store::DeadLetter {
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
        changes.losses = vec![crate::store::Loss {
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
        if without_first_page {
            smash(&folder.path().join("store.db"), 1);
        }

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
