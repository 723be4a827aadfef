use super::*;
use crate::associations::{Command, Who};
use crate::config::{Encryption, SecretRef};
use crate::corrections::Correction;
use crate::forward::{GroupKey, SentPeriod};
use crate::ingest::payload::Remembered;
use crate::message::{Message, Payload, PayloadKind, RevisionId, SourceId, Stamp};
use crate::store::vault::wipe::{Wiped, wipe};
use crate::store::{Changes, DeadLetter, Loss, Recovered, Row, Store, StoreError};
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::Timestamp;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

const DEVICE: &str = "canary-device-4711";
const PATIENT: &str = "canary-patient-0815";
/// In a payload: bytes that compression leaves as they are.
const PAYLOAD: [u8; 32] = [
    0xe3, 0x1b, 0xa8, 0x47, 0x9d, 0x02, 0xf6, 0x5c, 0x71, 0xcb, 0x38, 0x8e, 0x14, 0xd0, 0x69, 0xbf, 0x2a,
    0x93, 0x55, 0xee, 0x07, 0xb4, 0x7d, 0xc2, 0x1f, 0x86, 0x4b, 0xda, 0x60, 0xa5, 0x39, 0xf1,
];

fn message(n: u64) -> (Message, RevisionId) {
    let mut payload: Vec<u8> = (0..600_u64)
        .map(|i| (i.wrapping_mul(n * 2 + 0x9e37_79b9_7f4a_7c15) >> 24) as u8)
        .collect();
    payload.extend_from_slice(&PAYLOAD);
    let message = Message {
        source: SourceId(1),
        stamp: Stamp {
            boot: 1,
            monotonic_us: n,
            wall: Timestamp::from_ticks(17_900_000_000_000_000).unwrap(),
            trusted: true,
        },
        payload: Payload(payload.into()),
        kind: PayloadKind::Whole,
        topic: Some(Arc::from(format!("wearables/{DEVICE}"))),
        properties: vec![("patient".to_owned(), PATIENT.to_owned())],
        device_id: Some(Arc::from(DEVICE)),
        possible_repeat: false,
        record: None,
        ack: None,
    };
    (message, RevisionId(1))
}

/// Something with the canaries in every place that has one.
fn fill(store: &mut Store) {
    let first = store.append(&[message(1), message(2)], &[], None, 0, 0).unwrap();
    let learnt = Remembered {
        source: SourceId(1),
        key: format!("ward3/{DEVICE}"),
        text: format!("{{\"births\":{{\"{DEVICE}\":{{}}}},\"missing\":\"no-birth\"}}"),
    };
    store.remember(&[learnt]).unwrap();
    store.keep_device_clock(DEVICE, "{}").unwrap();
    let stored = store.read_from(first, 1).unwrap().messages.remove(0);
    let error = ErrorRecord::new("PatientNotFoundException", format!("no Patient {PATIENT}"));
    let changes = Changes {
        series: vec![(
            1,
            Arc::new(GroupKey {
                pack: Arc::from("ward"),
                device: Arc::from(DEVICE),
                type_name: Arc::from("rate"),
                patient: Some(Arc::from(PATIENT)),
                encounter: None,
                correlation: None,
            }),
        )],
        rows: vec![Row {
            id: 1,
            destination: 1,
            series: 1,
            period: None,
            first: 1,
            last: 1,
            count: 1,
            oldest: 5,
            refs: Some(Arc::new(vec![(1, 0)])),
            revision: None,
            waiting: Some(error.clone()),
        }],
        sent_periods: vec![(
            1,
            SentPeriod {
                observation: format!("{PATIENT}-obs"),
                memory: DEVICE.as_bytes().to_vec(),
                expires: i64::MAX,
            },
        )],
        dead_letters: vec![(
            1,
            DeadLetter {
                destination: None,
                match_number: None,
                stage: "normalize",
                error,
                revision: RevisionId(1),
                counted: Arc::from([1]),
                message: Arc::new(stored),
            },
        )],
        losses: vec![Loss {
            destination: Some(1),
            source: None,
            range: Some((1, 1)),
            count: 1,
            reason: "no room".to_owned(),
            reading: Some((Arc::from(DEVICE), Arc::from("rate"))),
        }],
        ..Changes::default()
    };
    store.commit_progress(&changes, 7).unwrap();
    let set = Command::Set {
        device: DEVICE.to_owned(),
        patient: Who::parse("Patient", PATIENT),
        encounter: Some(Who::Identifier(format!("visit of {PATIENT}"))),
        from: Some(15),
        to: None,
    };
    let planned = store
        .association_book()
        .unwrap()
        .plan(&set, Some(30), &[3])
        .unwrap();
    let correction = Correction {
        number: 1,
        destination: 3,
        change: crate::associations::Change {
            device: Arc::from(DEVICE),
            from: Some(1),
            to: None,
            before: Some(Who::Identifier(PATIENT.to_owned())),
            after: Some(Who::Id(PATIENT.to_owned())),
        },
    };
    store.enter_association(planned, &[correction]).unwrap();
    // Into the database too, not only into the log.
    store
        .connection
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .unwrap();
    store.append(&[message(3)], &[], None, 1, 1).unwrap();
}

/// Everything that was filled in, read back.
fn assert_whole(store: &mut Store, found: &Recovered) {
    assert_eq!(found.set_aside, None);
    assert_eq!(
        (&*found.series[0].1.device, found.series[0].1.patient.as_deref()),
        (DEVICE, Some(PATIENT))
    );
    assert!(found.rows[0].waiting.as_ref().unwrap().text.contains(PATIENT));
    assert!(found.letters[0].1.text.contains(PATIENT));
    let letter = store.letters(&[1]).unwrap().remove(0);
    let read = store.read_from(1, usize::MAX).unwrap();
    assert!(read.damaged.is_empty());
    for (given, stored) in (1..=3).map(message).zip(&read.messages) {
        assert_eq!(given.0.payload, stored.message.payload);
        assert_eq!(stored.message.device_id.as_deref(), Some(DEVICE));
    }
    assert_eq!(letter.message.message.payload, read.messages[0].message.payload);
    let memory = store.sent_period(1, &format!("{PATIENT}-obs")).unwrap();
    assert_eq!(memory.as_deref(), Some(DEVICE.as_bytes()));
    let entries: Vec<_> = store.association_book().unwrap().all_entries().cloned().collect();
    assert_eq!((entries.len(), &*entries[0].device), (1, DEVICE));
    assert_eq!(entries[0].patient, Some(Who::parse("Patient", PATIENT)));
    let correction = store.corrections().unwrap().remove(0).change;
    assert_eq!(correction.before, Some(Who::Identifier(PATIENT.to_owned())));
    assert_eq!(correction.after, Some(Who::Id(PATIENT.to_owned())));
}

/// Which canaries the files of the store hold, but for the key: device, patient, payload.
fn found_in_files(folder: &Path) -> [bool; 3] {
    let mut found = [false; 3];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("store.key") {
            continue;
        }
        let bytes = std::fs::read(path).unwrap();
        let holds = |canary: &[u8]| bytes.windows(canary.len()).any(|window| window == canary);
        for (found, canary) in found
            .iter_mut()
            .zip([DEVICE.as_bytes(), PATIENT.as_bytes(), &PAYLOAD[..]])
        {
            *found |= holds(canary);
        }
    }
    found
}

fn key_error(folder: &Path, encryption: &Encryption) -> String {
    match Store::open_with(folder, encryption).map(|_| ()) {
        Err(StoreError::Key(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_file_holds_a_device_a_patient_or_a_payload_and_those_of_an_open_store_do() {
    for (encryption, expected) in [(Encryption::Off, [true; 3]), (Encryption::Own, [false; 3])] {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open_with(folder.path(), &encryption).unwrap();
        fill(&mut store);
        assert_eq!(found_in_files(folder.path()), expected, "{encryption:?}, open");
        drop(store);
        assert_eq!(found_in_files(folder.path()), expected, "{encryption:?}, closed");
        let (mut store, found) = Store::open_with(folder.path(), &encryption).unwrap();
        assert_whole(&mut store, &found);
    }
}

#[test]
fn every_column_that_is_named_is_sealed_and_no_other_holds_a_canary() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    fill(&mut store);
    for (table, column) in TEXTS.iter().filter(|(table, _)| *table != "sighting") {
        let sql = format!("SELECT {column} FROM {table} WHERE {column} IS NOT NULL");
        let value: String = store.connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert!(value.starts_with(TEXT_MARK), "{table}.{column}");
    }
    for (table, column) in BLOBS {
        let sql = format!("SELECT {column} FROM {table}");
        let value: Vec<u8> = store.connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert!(value.starts_with(BYTES_MARK), "{table}.{column}");
    }
}

#[test]
fn a_wrong_or_missing_key_is_said_and_the_store_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    fill(&mut store);
    drop(store);
    let key = folder.path().join("store.key");
    let right = std::fs::read_to_string(&key).unwrap();
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for (wrong, said) in [
        ("ab".repeat(32), "is not the one"),
        ("short".to_owned(), "64 hexadecimal digits"),
    ] {
        std::fs::write(&key, wrong).unwrap();
        assert!(key_error(folder.path(), &Encryption::Own).contains(said));
    }
    std::fs::remove_file(&key).unwrap();
    assert!(key_error(folder.path(), &Encryption::Own).contains("key is not there"));
    assert!(!key.exists(), "no new key for a store that has one");
    assert!(key_error(folder.path(), &Encryption::Off).contains("store wipe"));
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().contains("damaged")),
        "{names:?}"
    );
    std::fs::write(folder.path().join("elsewhere"), right).unwrap();
    let at = Encryption::At(SecretRef::File(folder.path().join("elsewhere")));
    let (mut store, found) = Store::open_with(folder.path(), &at).unwrap();
    assert_whole(&mut store, &found);
}

#[test]
fn a_store_with_data_is_encrypted_from_the_start_that_turns_it_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    fill(&mut store);
    drop(store);
    let (mut store, found) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    assert_whole(&mut store, &found);
    for (table, column) in TEXTS {
        let sql = format!("SELECT count(*) FROM {table} WHERE {column} LIKE '%canary%'");
        let plain: i64 = store.connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(plain, 0, "{table}.{column}");
    }
    let first = store.append(&[message(9)], &[], None, 2, 2).unwrap();
    let version = |position: u64| -> u8 {
        let sql = "SELECT batch FROM journal_1 WHERE first = ?1";
        let blob: Vec<u8> = store
            .connection
            .query_row(sql, [position as i64], |row| row.get(0))
            .unwrap();
        blob[4]
    };
    assert_eq!(
        (version(1), version(first)),
        (1, 3),
        "old batches stay, new ones are sealed"
    );
}

#[test]
fn what_was_changed_or_moved_does_not_open() {
    let vault = Vault::new(&MasterKey::of(1), "store");
    let sealed = vault.batch(7, b"payload").unwrap().unwrap();
    assert_eq!(vault.open_batch(7, &sealed).unwrap(), b"payload");
    assert_ne!(
        vault.batch(7, b"payload").unwrap().unwrap(),
        sealed,
        "each with its own random bytes"
    );
    assert_eq!(vault.open_batch(8, &sealed), Err(Damaged::Sealed));
    for other in [
        Vault::new(&MasterKey::of(2), "store"),
        Vault::new(&MasterKey::of(1), "other"),
    ] {
        assert_eq!(other.open_batch(7, &sealed), Err(Damaged::Sealed));
    }
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(vault.open_batch(7, &changed), Err(Damaged::Sealed), "bit {bit}");
    }
    let text = vault.text("ledger.device", DEVICE).into_owned();
    assert_eq!(
        vault.text("ledger.device", DEVICE),
        text,
        "equal texts stay equal"
    );
    assert_ne!(vault.text("sighting.device", DEVICE), text);
    assert!(vault.open_text("sighting.device", text.clone()).is_err());
    assert_eq!(vault.open_text("ledger.device", text).unwrap(), DEVICE);
    assert_eq!(Vault::default().text("ledger.device", DEVICE), DEVICE);
}

#[test]
fn wiping_destroys_the_key_and_the_files_and_not_while_the_service_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    fill(&mut store);
    std::fs::write(folder.path().join("store.db.damaged-20261121"), "old").unwrap();
    std::fs::write(folder.path().join("control.sock"), "").unwrap();
    assert!(matches!(
        wipe(folder.path(), &Encryption::Own),
        Err(StoreError::Locked(_))
    ));
    drop(store);
    let Wiped { key, files } = wipe(folder.path(), &Encryption::Own).unwrap();
    assert_eq!(key, Some(folder.path().join("store.key")));
    assert!(files.len() >= 2);
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["control.sock"]);
    let (_, found) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    assert_eq!(found.next_position, 1);
}
