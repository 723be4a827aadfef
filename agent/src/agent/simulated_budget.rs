//! The whole agent with a flash budget, through simulated time with the real store: commits become rarer as far as they
//! may, `status` shows it, and no message is refused for it.

use super::*;
use crate::config::DestinationConfig;
use crate::forward::http::Http;
use crate::ingest::{SourceHandle, SourceLoop};
use crate::message::{Payload, PayloadKind, Stamp};
use crate::packs::Notice;
use crate::telemetry::errors::ErrorRecord;
use crate::telemetry::status::Status;
use crate::worker::Worker;
use iomt_mapping::Timestamp;
use std::io;

const SECONDS: u64 = 45 * 60;
const PER_SECOND: u64 = 10;
/// Between two looks at the status.
const LOOK_SECONDS: u64 = 300;

struct Line;

impl Surroundings for Line {
    fn store_worker(&self) -> io::Result<Worker> {
        Ok(Worker::inline())
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::inline(), Notice::Poll))
    }

    fn http(&self, _: &DestinationConfig) -> io::Result<(Http, Http)> {
        Err(io::Error::other("there is no destination"))
    }

    fn start_source(
        &self,
        _: &SourceConfig,
        context: SourceContext,
    ) -> Result<(SourceHandle, SourceLoop), ErrorRecord> {
        let handle = SourceHandle {
            id: context.id,
            name: context.name.clone(),
            acknowledger: None,
            window: 0,
        };
        Ok((handle, Box::pin(readings(context))))
    }
}

async fn readings(context: SourceContext) {
    for number in 0..SECONDS * PER_SECOND {
        let message = Message {
            source: context.id,
            stamp: Stamp {
                boot: context.boot,
                monotonic_us: clock::monotonic_us(),
                wall: clock::wall(),
                trusted: true,
            },
            payload: Payload(format!(r#"{{"number":{number},"value":{}}}"#, number * 7 % 90).into()),
            kind: PayloadKind::Whole,
            topic: None,
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record: None,
            ack: None,
        };
        if context.sender.send(message).await.is_err() {
            return;
        }
        Timer::after_micros(1_000_000 / PER_SECOND).await;
    }
    std::future::pending::<()>().await;
}

/// What `status` says every five minutes, and how many messages were taken.
fn live(budget: &str) -> (Vec<Status>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let configuration = format!(
        "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
         commit_interval = \"1 s\"\ncommit_interval_max = \"4 s\"\n{budget}\n\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n",
        folder.path().display()
    );
    std::fs::create_dir_all(folder.path().join("mappings.d")).unwrap();
    let config: Config = toml::from_str(&configuration).unwrap();
    let start = Timestamp::from_ticks(17_723_232_000_000_000).unwrap();
    let (lived, _) = clock::simulate(start, async move {
        let (stop, stopped) = watch::channel(false);
        let seen: Rc<RefCell<Vec<Status>>> = Rc::default();
        let looked = Rc::clone(&seen);
        let summary = run(config, &Line, Stopping::default(), stopped, |agent| {
            drop(spawn_local(async move {
                for _ in 0..SECONDS / LOOK_SECONDS {
                    Timer::after_secs(LOOK_SECONDS).await;
                    let status = agent.status().await;
                    looked.borrow_mut().push(status);
                }
                Timer::after_secs(10).await;
                stop.send_replace(true);
            }));
        })
        .await
        .unwrap();
        (seen.take(), summary.messages)
    })
    .unwrap();
    lived
}

/// Commits and bytes of the medium between two looks.
fn between(before: &Status, after: &Status) -> (u64, u64) {
    let (before, after) = (&before.store.statistics, &after.store.statistics);
    (
        after.commits - before.commits,
        after.device_bytes - before.device_bytes,
    )
}

#[test]
fn a_tight_flash_budget_widens_the_commit_interval_within_its_maximum_and_status_shows_it() {
    let (seen, messages) = live("flash_budget = \"550 MB/day\"");
    assert_eq!(messages, SECONDS * PER_SECOND);
    let intervals: Vec<u64> = seen.iter().map(|s| s.store.wear.commit_interval_ms).collect();
    let (first, last) = (intervals[0], intervals[intervals.len() - 1]);
    assert!(first <= 1500 && last > 2000 && last <= 4000, "{intervals:?}");
    let wear = &seen[seen.len() - 1].store.wear;
    assert_eq!(wear.budget_per_day, Some(550_000_000));
    assert!(!wear.exceeded, "{wear:?}");
    let early = seen[0].store.statistics.commits;
    let (late, bytes) = between(&seen[seen.len() - 2], &seen[seen.len() - 1]);
    assert!(late * 3 < early * 2, "{early} commits became {late}");
    assert!(bytes * 86_400 / LOOK_SECONDS <= 550_000_000, "{bytes} bytes");
}

#[test]
fn a_flash_budget_that_cannot_be_held_is_said_and_costs_no_message() {
    let (seen, messages) = live("flash_budget = \"20 MB/day\"");
    assert_eq!(messages, SECONDS * PER_SECOND);
    let last = &seen[seen.len() - 1];
    assert_eq!(last.store.wear.commit_interval_ms, 4000);
    assert!(last.store.wear.exceeded);
    let said = last
        .problems
        .iter()
        .any(|problem| problem.contains("flash budget"));
    assert!(said, "{:?}", last.problems);
}
