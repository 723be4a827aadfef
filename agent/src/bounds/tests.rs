//! Floods with the destination down, over the real store, mapping engine and outbox.

use super::*;
use crate::forward::Fate;
use crate::message::{Message, RevisionId};
use crate::testing::{self, destination, normalize, run, settle};
use proptest::prelude::*;
use std::path::Path;
use std::rc::Rc;

const MIB: u64 = 1 << 20;
const READINGS: u32 = 1;
const OTHERS: u32 = 2;

/// Each type in a lane of its own.
const LANES: &str = r#"{"types":{"wave":{"priority":"waveform"},"rate":{"priority":"periodic"},
    "spot":{"priority":"spot"},"alarm":{"priority":"alarm"}}}"#;

fn open(folder: &Path, destinations: &[u32]) -> Pipeline {
    let types = [
        ("wave", "$.wave"),
        ("rate", "$.rate"),
        ("spot", "$.spot"),
        ("alarm", "$.alarm"),
    ];
    let destinations = destinations.iter().map(|id| destination(*id, false)).collect();
    testing::open(folder, testing::packs(&types, Some(LANES)), destinations)
}

/// Digits that do not compress away.
fn noise(n: u64, length: usize) -> String {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'!' + (state % 90) as u8)
        })
        .filter(|c| *c != '"' && *c != '\\')
        .collect()
}

fn message(kind: &str, n: u64, length: usize) -> (Message, RevisionId) {
    let text = format!(
        r#"{{"device":"d{}","time":"2026-11-21T10:00:00Z","{kind}":"{n}","filler":"{}"}}"#,
        n % 3,
        noise(n, length)
    );
    (testing::message(text, n as i64), RevisionId(1))
}

/// What intake and normalizing loop do with a batch, and room is made as the intake asks for it.
async fn take(pipeline: &Rc<Pipeline>, batch: Vec<(Message, RevisionId)>) {
    testing::take(pipeline, batch, 0).await;
    if !room_is_plenty(pipeline).await {
        assert!(make_room(pipeline).await.unwrap() > Room::None || room_is_plenty(pipeline).await);
    }
}

async fn room_is_plenty(pipeline: &Pipeline) -> bool {
    pipeline.store.call(|store| store.room()).await.unwrap() == Room::Plenty
}

async fn progress_commit(pipeline: &Pipeline) {
    let changes = pipeline.outbox.borrow_mut().take_changes();
    pipeline
        .store
        .call(move |store| store.commit_progress(&changes, 0))
        .await
        .unwrap();
    pipeline.outbox.borrow_mut().written();
}

/// `matches = delivered + superseded + buffered + waiting + dead + lost`, and the ledger says every loss.
async fn balance(pipeline: &Pipeline, destination: u32, given: u64) {
    {
        let outbox = pipeline.outbox.borrow();
        let p = &outbox.progress().destinations[&destination];
        let (due, waiting) = outbox.backlog(destination);
        assert_eq!(p.matches, given, "destination {destination}");
        assert_eq!(
            p.matches,
            p.delivered + p.superseded + due + waiting + p.dead + p.lost,
            "destination {destination}"
        );
    }
    progress_commit(pipeline).await;
    let lost = pipeline.outbox.borrow().progress().destinations[&destination].lost;
    let said = pipeline
        .store
        .call(move |store| {
            let sql = "SELECT coalesce(sum(count), 0) FROM ledger WHERE destination = ?1";
            let sum: i64 = store.connection.query_row(sql, [destination], |row| row.get(0))?;
            Ok(sum as u64)
        })
        .await
        .unwrap();
    assert_eq!(lost, said, "ledger of destination {destination}");
}

/// Readings that rows refer to, read back from the journal: exactly as many as the rows count.
async fn readable(pipeline: &Pipeline, destination: u32) -> HashMap<String, u64> {
    let rows: Vec<_> = pipeline
        .outbox
        .borrow()
        .rows()
        .filter(|p| p.row.destination == destination)
        .map(|p| p.row.clone())
        .collect();
    let mut counts: HashMap<u64, u64> = HashMap::new();
    let mut types: HashMap<String, u64> = HashMap::new();
    let mut from = 1;
    loop {
        let batch = pipeline.read(from).await.unwrap();
        let Some(last) = batch.last() else { break };
        from = last.stored.position + 1;
        for entry in &batch {
            let normalized = pipeline.normalized(entry, None).await.unwrap();
            for found in &normalized.matches {
                let series = pipeline.outbox.borrow_mut().series_of("ward", &found.measurement);
                let at = entry.stored.position;
                for row in rows
                    .iter()
                    .filter(|r| r.series == series && (r.first..=r.last).contains(&at))
                {
                    if row
                        .refs
                        .as_ref()
                        .is_none_or(|refs| refs.contains(&(at, found.number)))
                    {
                        *counts.entry(row.id).or_default() += 1;
                        *types.entry(found.measurement.type_name.clone()).or_default() += 1;
                    }
                }
            }
        }
    }
    for row in &rows {
        assert_eq!(counts.get(&row.id), Some(&row.count), "row {row:?}");
    }
    types
}

async fn size(pipeline: &Pipeline) -> u64 {
    pipeline.store.call(|store| Ok(store.size())).await.unwrap()
}

#[test]
fn a_flood_with_the_destination_down_never_makes_the_store_larger_than_max_bytes() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let pipeline = Rc::new(open(folder.path(), &[READINGS]));
        let mut given = 0;
        for round in 0..120 {
            let batch: Vec<_> = (0..100).map(|n| message("rate", round * 100 + n, 900)).collect();
            given += 100;
            take(&pipeline, batch).await;
            assert!(size(&pipeline).await <= 8 * MIB, "round {round}");
        }
        balance(&pipeline, READINGS, given).await;
        let lost = pipeline.outbox.borrow().progress().destinations[&READINGS].lost;
        assert!(lost > 0 && lost < given);
        let newest = pipeline.outbox.borrow().rows().map(|p| p.row.last).max();
        assert_eq!(newest, Some(given), "the newest reading stays");
        readable(&pipeline, READINGS).await;
    });
}

#[test]
fn waveforms_go_first_then_periodic_readings_and_alarms_and_spot_readings_stay() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let pipeline = Rc::new(open(folder.path(), &[READINGS]));
        let kinds = |n: u64| match n % 10 {
            0 => "alarm",
            1 => "spot",
            2..=4 => "rate",
            _ => "wave",
        };
        let length = |n: u64| if n % 10 < 2 { 20 } else { 900 };
        let mut given = 0;
        for round in 0..40 {
            let batch: Vec<_> = (0..100_u64)
                .map(|n| message(kinds(n), round * 100 + n, length(n)))
                .collect();
            given += 100;
            take(&pipeline, batch).await;
        }
        let early = readable(&pipeline, READINGS).await;
        assert_eq!((early["alarm"], early["spot"], early["rate"]), (400, 400, 1200));
        for round in 40..120 {
            let batch: Vec<_> = (0..100_u64)
                .map(|n| message(kinds(n), round * 100 + n, length(n)))
                .collect();
            given += 100;
            take(&pipeline, batch).await;
            assert!(size(&pipeline).await <= 8 * MIB);
        }
        let types = readable(&pipeline, READINGS).await;
        assert_eq!((types["alarm"], types["spot"]), (given / 10, given / 10));
        assert!(types["rate"] < given * 3 / 10);
        balance(&pipeline, READINGS, given).await;
    });
}

#[test]
fn a_lone_waiting_reading_does_not_pin_the_segments_after_it_nor_its_own() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let pipeline = Rc::new(open(folder.path(), &[READINGS]));
        take(&pipeline, vec![message("spot", 1, 20)]).await;
        let before = pipeline.read(1).await.unwrap();
        for round in 0..120 {
            take(
                &pipeline,
                (0..100).map(|n| message("rate", round * 100 + n, 900)).collect(),
            )
            .await;
            settle(&pipeline, READINGS, Some("rate"), Fate::Delivered).await;
        }
        assert_eq!(pipeline.outbox.borrow().backlog(READINGS), (1, 0));
        assert_eq!(
            pipeline.outbox.borrow().progress().destinations[&READINGS].lost,
            0
        );
        let after = pipeline.read(1).await.unwrap();
        assert_eq!(
            format!("{:?}", after[0].stored),
            format!("{:?}", before[0].stored),
            "position, stamp and revision stay"
        );
        let used = pipeline.store.call(|store| store.used_bytes()).await.unwrap();
        assert!(used < 8 * MIB);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// Any order of appending, settling, shedding and starting anew keeps the accounts, the size and the readings of rows.
    #[test]
    fn nothing_disappears_without_a_ledger_line(steps in proptest::collection::vec((0_u8..8, 0_u8..4), 20..60)) {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let both = [READINGS, OTHERS];
            let mut pipeline = Rc::new(open(folder.path(), &both));
            let mut given = 0_u64;
            for (step, kind) in steps {
                let name = ["wave", "rate", "spot", "alarm"][usize::from(kind)];
                match step {
                    0..=3 => {
                        let batch = (0..400).map(|n| message(name, given + n, 900)).collect();
                        given += 400;
                        take(&pipeline, batch).await;
                    }
                    4 => {
                        settle(&pipeline, READINGS, Some(name), Fate::Delivered).await;
                    }
                    5 => {
                        let waits = crate::telemetry::errors::ErrorRecord::new("DeviceNotFoundException", "register it");
                        settle(&pipeline, READINGS, Some(name), Fate::Waiting(waits)).await;
                    }
                    6 => {
                        make_room(&pipeline).await.unwrap();
                    }
                    _ => {
                        // A stop, or a crash that forgets what was not committed.
                        if kind % 2 == 0 {
                            progress_commit(&pipeline).await;
                        }
                        drop(pipeline);
                        pipeline = Rc::new(open(folder.path(), &both));
                        normalize(&pipeline).await;
                    }
                }
                assert!(size(&pipeline).await <= 8 * MIB);
            }
            for destination in both {
                if given > 0 {
                    balance(&pipeline, destination, given).await;
                    readable(&pipeline, destination).await;
                }
            }
        });
    }
}

/// Readings that come now, an hour's worth at a time.
async fn take_now(pipeline: &Rc<Pipeline>, kind: &str, first: u64, count: u64, length: usize) {
    let batch: Vec<_> = (first..first + count)
        .map(|n| {
            let (mut message, revision) = message(kind, n, length);
            message.stamp.wall = crate::clock::wall();
            message.stamp.monotonic_us = crate::clock::monotonic_us();
            (message, revision)
        })
        .collect();
    testing::take(pipeline, batch, crate::clock::monotonic_us()).await;
}

fn with_settings(folder: &Path, change: impl FnOnce(&mut Settings)) -> Rc<Pipeline> {
    let mut pipeline = open(folder, &[READINGS, OTHERS]);
    let mut settings = pipeline.bounds.settings.clone();
    change(&mut settings);
    pipeline.bounds = Bounds::new(settings);
    Rc::new(pipeline)
}

#[test]
fn readings_beyond_max_age_are_given_up_with_a_ledger_line_and_younger_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let hour = 3_600 * 10_000_000_i64;
        let pipeline = with_settings(folder.path(), |settings| settings.max_age = Some(3 * hour));
        let mut given = 0;
        for _ in 0..8 {
            take_now(&pipeline, "alarm", given, 50, 100).await;
            given += 50;
            for _ in 0..61 {
                embassy_time::Timer::after_secs(60).await;
                tend(&pipeline).await.unwrap();
            }
        }
        for destination in [READINGS, OTHERS] {
            balance(&pipeline, destination, given).await;
            let lost = pipeline.outbox.borrow().progress().destinations[&destination].lost;
            // Whole segments, an hour long: what is older than three hours is gone, what is younger than two is there.
            assert!((200..=300).contains(&lost), "{lost} of {given}");
        }
        let first = pipeline.outbox.borrow().first_unsent(READINGS).unwrap();
        let oldest = pipeline.read(first).await.unwrap()[0].stored.message.stamp.wall;
        let age = crate::clock::wall().ticks() - oldest.ticks();
        assert!(age <= 4 * hour + hour / 10, "{} min", age / (hour / 60));
        let reasons = pipeline.store.call(|store| store.ledger()).await.unwrap();
        assert!(
            reasons
                .iter()
                .all(|(_, reason)| reason == "older than [store] max_age"),
            "{reasons:?}"
        );
        readable(&pipeline, READINGS).await;
    });
}

#[test]
fn a_disk_that_others_fill_lowers_the_limit_and_a_disk_with_room_raises_it_again() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let pipeline = with_settings(folder.path(), |settings| {
            settings.max_bytes = 64 * MIB;
            settings.min_free_disk = 100 * MIB;
        });
        let mut given = 0;
        let free = |bytes: Option<u64>| {
            pipeline.store.call(move |store| {
                store.free_for_tests = bytes;
                Ok(())
            })
        };
        free(Some(1000 * MIB)).await.unwrap();
        tend(&pipeline).await.unwrap();
        assert_eq!(pipeline.bounds.limit.get(), 64 * MIB);
        for _ in 0..160 {
            take_now(&pipeline, "rate", given, 100, 900).await;
            given += 100;
        }
        let full = size(&pipeline).await;
        assert!(full > 11 * MIB, "{full}");
        // 2 MiB more than it may use are taken by others.
        free(Some(98 * MIB)).await.unwrap();
        tend(&pipeline).await.unwrap();
        let limit = pipeline.bounds.limit.get();
        assert!(limit < full, "{limit}");
        for _ in 0..10 {
            tend(&pipeline).await.unwrap();
        }
        assert!(
            size(&pipeline).await <= limit,
            "{} of {limit}",
            size(&pipeline).await
        );
        balance(&pipeline, READINGS, given).await;
        let lost = pipeline.outbox.borrow().progress().destinations[&READINGS].lost;
        assert!(lost > 0 && lost < given, "{lost} of {given}");
        readable(&pipeline, READINGS).await;
        free(Some(1000 * MIB)).await.unwrap();
        tend(&pipeline).await.unwrap();
        assert_eq!(pipeline.bounds.limit.get(), 64 * MIB);
    });
}

#[test]
fn a_destination_for_raw_messages_that_is_away_loses_its_oldest_messages_and_the_others_theirs_when_needed() {
    const RAW: u32 = OTHERS;
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let pipeline = with_settings(folder.path(), |settings| {
            for destination in &mut settings.destinations {
                destination.takes_messages = destination.id == RAW;
            }
        });
        let mut given = 0;
        for round in 0..120 {
            take(
                &pipeline,
                (0..100).map(|n| message("rate", round * 100 + n, 900)).collect(),
            )
            .await;
            given += 100;
            // The destination for readings is there; the other one is not.
            settle(&pipeline, READINGS, Some("rate"), Fate::Delivered).await;
            assert!(size(&pipeline).await <= 8 * MIB, "round {round}");
        }
        progress_commit(&pipeline).await;
        let (readings, raw) = {
            let outbox = pipeline.outbox.borrow();
            let progress = &outbox.progress().destinations;
            (progress[&READINGS].clone(), progress[&RAW].clone())
        };
        assert_eq!((readings.delivered, readings.lost), (given, 0));
        assert!(raw.lost > 0 && raw.lost < given);
        assert_eq!(
            (raw.matches, raw.cursor),
            (raw.lost, raw.lost),
            "the oldest, without a gap"
        );
        let said = pipeline
            .store
            .call(|store| {
                let sql = "SELECT sum(count), min(first), max(last) FROM ledger WHERE destination = 2";
                let read = |row: &rusqlite::Row<'_>| {
                    Ok((
                        row.get::<_, i64>(0)?,
                        row.get::<_, i64>(1)?,
                        row.get::<_, i64>(2)?,
                    ))
                };
                Ok(store.connection.query_row(sql, [], read)?)
            })
            .await
            .unwrap();
        let lost = raw.lost as i64;
        assert_eq!(said, (lost, 1, lost));
        let next = pipeline.read(raw.cursor + 1).await.unwrap();
        assert_eq!(next[0].stored.position, raw.cursor + 1, "the next one is there");
    });
}
