//! A damaged store under the real program: it is ready within seconds, and what was in it arrives at its destinations, once
//! under one event id, through kills in the middle.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use bedside_agent::clock;
use bedside_agent::message::{Message, Payload, PayloadKind, RevisionId, SourceId, Stamp};
use bedside_agent::store::Store;
use bedside_tests::event_hub_endpoint::{EventHubEndpoint, Fault, Settings};
use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::{refuse, wait_for as wait_for_observations};
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{Sent, heart_rates, payload, publish_readings};
use bedside_tests::real::wait_for;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const PAGE: usize = 1024;

/// Ids under which each body came, one for each time.
fn ids(endpoint: &EventHubEndpoint) -> BTreeMap<String, Vec<String>> {
    let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in endpoint.events() {
        let body = String::from_utf8(event.body.clone()).unwrap();
        ids.entry(body).or_default().push(event.id().to_owned());
    }
    ids
}

fn has_all(endpoint: &EventHubEndpoint, sent: &[Sent]) -> bool {
    let ids = ids(endpoint);
    sent.iter().all(|one| ids.contains_key(&payload(one)))
}

/// The first page, in the file and wherever it is in the log: nothing is left of the schema.
fn damage_first_page(store: &Path) {
    let noise = |bytes: &mut [u8]| {
        for byte in bytes {
            *byte = byte.wrapping_mul(29).wrapping_add(0x77);
        }
    };
    let mut database = std::fs::read(store.join("store.db")).unwrap();
    noise(&mut database[..PAGE]);
    std::fs::write(store.join("store.db"), database).unwrap();
    let mut log = std::fs::read(store.join("store.db-wal")).unwrap();
    let frames = (log.len() - 32) / (PAGE + 24);
    for frame in 0..frames {
        let begin = 32 + frame * (PAGE + 24);
        if log[begin..begin + 4] == [0, 0, 0, 1] {
            noise(&mut log[begin + 24..begin + 24 + PAGE]);
        }
    }
    // The header too: nothing of the log is reachable for SQLite.
    noise(&mut log[..32]);
    std::fs::write(store.join("store.db-wal"), log).unwrap();
}

/// The whole file is given up; everything in it can be read.
fn condemn(store: &Path) {
    std::fs::write(store.join("store.db.condemned"), "a test").unwrap();
}

fn set_aside(store: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_file = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("store.db.damaged-")
            && name.chars().filter(|c| *c == '.').count() == 2
            && !name.ends_with("-wal")
    };
    names.filter(is_file).collect()
}

fn salvage_through_kills(damage: fn(&Path), is_known: bool) {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let endpoint = EventHubEndpoint::start(Settings::default());
    let gateway = Gateway::new(folder.path())
        .store("progress_interval", "300 ms")
        .mqtt(broker.port, "")
        .fhir(&server.base, "resolution = \"create\"")
        .with(&endpoint.destination("cloud", "message"));
    gateway.drop_pack("heart-rate");
    let store = gateway.folder.join("store");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let delivered = heart_rates(4, 50, 0);
    publish_readings(broker.port, &delivered);
    wait_for_observations(&server, &delivered, LIMIT, || gateway.log());
    wait_for("events", LIMIT, || has_all(&endpoint, &delivered));
    // The confirmations are stored.
    std::thread::sleep(Duration::from_millis(1500));

    refuse(&server, true);
    endpoint.set_fault(Some(Fault::Down));
    let kept = heart_rates(4, 150, 1000);
    publish_readings(broker.port, &kept);
    wait_for("everything is stored", LIMIT, || {
        let status = gateway.status().unwrap_or_default();
        status["summary"]["messages"] == (delivered.len() + kept.len()) as u64
    });
    std::thread::sleep(Duration::from_secs(1));
    agent.kill();
    damage(&store);

    let begin = Instant::now();
    agent = gateway.start();
    gateway.wait_connected(LIMIT);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "ready after {:?}",
        begin.elapsed()
    );
    assert_eq!(set_aside(&store).len(), 1, "{}", gateway.log());
    // Killed while it salvages, with nothing delivered, and again while it delivers and new readings come.
    std::thread::sleep(Duration::from_millis(150));
    agent.kill();
    agent = gateway.start();
    gateway.wait_connected(LIMIT);
    endpoint.set_fault(None);
    refuse(&server, false);
    let live = heart_rates(4, 25, 2000);
    publish_readings(broker.port, &live);
    agent.kill();
    agent = gateway.start();

    let all = [delivered.clone(), kept, live].concat();
    wait_for_observations(&server, &all, LIMIT, || gateway.log());
    wait_for("events", LIMIT, || has_all(&endpoint, &all));
    let mut status = Value::Null;
    wait_for("the salvage is over", LIMIT, || {
        status = gateway.status().unwrap_or_default();
        status["store"]["salvages"][0]["settled"] == true
    });
    let salvage = &status["store"]["salvages"][0];
    assert_eq!(
        (&salvage["lost"], &salvage["known"]),
        (&Value::from(0), &Value::from(is_known)),
        "{salvage}"
    );
    let ledger: Vec<&str> = status["ledger"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        ledger
            .iter()
            .any(|line| line.starts_with("0: salvaged store.db.damaged-")),
        "{ledger:?}"
    );
    for (body, ids) in ids(&endpoint) {
        let different: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(different.len(), 1, "one message, several ids: {body} {ids:?}");
    }
    if is_known {
        let ids = ids(&endpoint);
        let again = delivered
            .iter()
            .filter(|one| ids[&payload(one)].len() > 1)
            .count();
        assert_eq!(again, 0, "messages that were confirmed were sent again");
    }
    let file = &set_aside(&store)[0];
    let report = std::fs::read_to_string(format!("{}.report", file.display())).unwrap();
    assert!(report.contains("0 lost"), "{report}");
    let configuration = gateway.folder.join("agent.toml");
    let told = |command: &str| {
        let mut program = gateway.command();
        let output = program
            .args(["store", command, "--config"])
            .arg(&configuration)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(told("salvage").contains("; done"), "{}", told("salvage"));
    assert!(told("stats").contains("salvage   "), "{}", told("stats"));
    gateway.stop(&mut agent);
    assert!(told("salvage").contains("; done"), "{}", told("salvage"));
}

#[test]
fn a_store_without_its_first_page_is_salvaged_through_kills() {
    salvage_through_kills(damage_first_page, false);
}

#[test]
fn what_a_store_that_was_given_up_had_confirmed_is_not_sent_again() {
    salvage_through_kills(condemn, true);
}

/// Memory of a process without the pages of its program, which are larger in a build for tests: bytes.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap_or_default();
    let kilobytes = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// A store of `bytes` that nobody has confirmed anything of, without its first page.
fn large_store(folder: &Path, bytes: u64) -> u64 {
    let (mut store, _) = Store::open(folder).unwrap();
    store.set_limit(bytes * 2).unwrap();
    store.source("ward").unwrap();
    let mut noise = 1_u64;
    let mut messages = 0;
    while store.size() < bytes {
        let batch: Vec<_> = (0..200)
            .map(|_| {
                let mut text = String::from("{\"noise\":\"");
                for _ in 0..48 {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    text.push_str(&format!("{:08x}", noise >> 32));
                }
                text.push_str("\"}");
                (message(text), RevisionId(0))
            })
            .collect();
        messages += batch.len() as u64;
        store.append(&batch, &[], None, 0, 0).unwrap();
    }
    drop(store);
    let file = std::fs::File::options()
        .write(true)
        .open(folder.join("store.db"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; PAGE], 0).unwrap();
    messages
}

fn message(text: String) -> Message {
    Message {
        source: SourceId(1),
        stamp: Stamp {
            boot: 1,
            monotonic_us: 1,
            wall: clock::wall(),
            trusted: true,
        },
        payload: Payload(text.into_bytes().into()),
        kind: PayloadKind::Whole,
        topic: None,
        properties: Vec::new(),
        device_id: None,
        possible_repeat: false,
        record: None,
        ack: None,
    }
}

#[test]
fn a_large_damaged_store_is_no_reason_to_wait_nor_to_need_more_memory() {
    let megabytes = if std::env::var_os("BEDSIDE_LONG").is_some() {
        1024
    } else {
        24
    };
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let gateway = Gateway::new(folder.path())
        .store("max_bytes", "4 GiB")
        .mqtt(broker.port, "")
        .fhir("http://127.0.0.1:9", "resolution = \"create\"");
    let store = gateway.folder.join("store");
    let messages = large_store(&store, megabytes << 20);
    let begin = Instant::now();
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    publish_readings(broker.port, &heart_rates(1, 1, 0));
    let ready = begin.elapsed();
    assert!(
        ready < Duration::from_secs(3),
        "the first acknowledgement came after {ready:?}"
    );
    let (mut salvage, mut peak) = (Value::Null, 0);
    wait_for("everything came over", LIMIT * 20, || {
        peak = peak.max(memory(agent.child.id()));
        salvage = gateway.status().unwrap_or_default()["store"]["salvages"][0].clone();
        salvage["settled"] == true
    });
    println!(
        "{megabytes} MiB: first acknowledgement {ready:?}, all over after {:?}, peak {peak} bytes",
        begin.elapsed()
    );
    assert_eq!(
        (&salvage["messages"], &salvage["lost"]),
        (&Value::from(messages), &Value::from(0)),
        "{salvage}"
    );
    assert!(peak < 16 << 20, "{peak} bytes of memory");
    gateway.stop(&mut agent);
}
