//! The whole agent with a flash budget, through simulated time with the real store: commits become rarer as far as they
//! may, `status` shows it, and no message is refused for it.

use super::*;
use crate::telemetry::status::Status;

const SECONDS: u64 = 45 * 60;
const PER_SECOND: u64 = 10;
/// Between two looks at the status.
const LOOK_SECONDS: u64 = 300;

async fn readings(context: SourceContext) {
    for number in 0..SECONDS * PER_SECOND {
        let text = format!(r#"{{"number":{number},"value":{}}}"#, number * 7 % 90);
        if context.sender.send(context.message(text)).await.is_err() {
            return;
        }
        Timer::after_micros(1_000_000 / PER_SECOND).await;
    }
    std::future::pending::<()>().await;
}

/// What `status` says every five minutes, and how many messages were taken.
fn live(budget: &str) -> (Vec<Status>, u64) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("mappings.d")).unwrap();
    let store = format!("commit_interval = \"1 s\"\ncommit_interval_max = \"4 s\"\n{budget}");
    let config = configuration(folder.path(), &store, "");
    let (lived, _) = clock::simulate(midnight(), async move {
        let (stop, stopped) = watch::channel(false);
        let seen: Rc<RefCell<Vec<Status>>> = Rc::default();
        let looked = Rc::clone(&seen);
        let surroundings = Simulated::sending(readings);
        let summary = run(config, &surroundings, Stopping::default(), stopped, |agent| {
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
