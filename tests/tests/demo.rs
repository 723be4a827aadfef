//! The demo as a newcomer starts it: the program alone, without a terminal.

use bedside_tests::real::agent::{Gateway, assert_balanced};
use bedside_tests::real::{Process, wait_for};
use serde_json::Value;
use std::time::Duration;

/// The members of the account, in their order.
const MEMBERS: [&str; 11] = [
    "messages",
    "unmatched",
    "unparsable",
    "matches",
    "delivered",
    "superseded",
    "buffered",
    "waiting",
    "dead",
    "lost",
    "observations",
];

#[test]
fn demo_for_a_while_ends_with_one_line_of_json_and_every_reading_is_an_observation() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Gateway::new(folder.path())
        .env("TMPDIR", folder.path().to_str().unwrap())
        .command();
    let output = command
        .args(["demo", "--for", "4s", "--json", "--rate", "5"])
        .output()
        .unwrap();
    let (out, log) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{log}");
    assert_eq!(out.lines().count(), 1, "{out}");
    let accounts: serde_json::Map<String, Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(accounts.keys().map(String::as_str).collect::<Vec<_>>(), MEMBERS);
    let accounts = Value::Object(accounts);
    assert_balanced(&accounts);
    let number = |name: &str| accounts[name].as_u64().unwrap();
    assert!(number("messages") >= 80, "{accounts}");
    assert_eq!(
        (number("unmatched"), number("unparsable"), number("buffered")),
        (0, 0, 0),
        "{accounts}\n{log}"
    );
    assert_eq!(number("delivered"), number("matches"), "{accounts}\n{log}");
    assert_eq!(number("observations"), number("matches"), "{accounts}\n{log}");
}

#[test]
fn demo_stops_at_once_when_told_so_and_leaves_its_store_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Gateway::new(folder.path())
        .env("TMPDIR", folder.path().to_str().unwrap())
        .command();
    let log = folder.path().join("demo.log");
    let shown = || std::fs::read_to_string(&log).unwrap();
    let mut demo = Process::start("bedside-agent demo", command.arg("demo"), &log);
    wait_for("the demo shows figures", Duration::from_secs(30), || {
        shown().contains("Observations written; last: ")
    });
    assert!(demo.terminate(Duration::from_secs(15)).success(), "{}", shown());
    let text = shown();
    assert!(text.contains("\"resourceType\": \"Observation\""), "{text}");
    let left = text.rsplit("stay in ").next().unwrap().trim();
    assert!(
        std::path::Path::new(left).join("store/store.db").exists(),
        "{text}"
    );
    // What is left behind is a start for a configuration of one's own.
    let check = Gateway::new(folder.path())
        .command()
        .args(["check", "--config"])
        .arg(std::path::Path::new(left).join("agent.toml"))
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
}
