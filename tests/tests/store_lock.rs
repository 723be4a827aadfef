//! Two agents on one state directory.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::wait_for;
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{heart_rates, publish_readings};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_second_agent_says_who_has_the_store_and_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .fhir(&server.base, "resolution = \"create\"");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let before = heart_rates(2, 20, 0);
    publish_readings(broker.port, &before);
    wait_for(&server, &before, LIMIT, || gateway.log());
    // A note that would have a start put the file aside: only its owner may.
    let store = gateway.folder.join("store");
    for note in [false, true] {
        if note {
            std::fs::write(store.join("store.db.condemned"), "a test").unwrap();
        }
        let begin = Instant::now();
        let mut second = gateway.command();
        let configuration = gateway.folder.join("agent.toml");
        let output = second
            .args(["run", "--config"])
            .arg(&configuration)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("is in use by another process: stop it first"),
            "{text}"
        );
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
    std::fs::remove_file(store.join("store.db.condemned")).unwrap();
    let after = heart_rates(2, 20, 100);
    publish_readings(broker.port, &after);
    let all = [before, after].concat();
    wait_for(&server, &all, LIMIT, || gateway.log());
    assert_eq!(gateway.status().unwrap()["health"], "ok", "{}", gateway.log());
    let accounts = gateway.stop(&mut agent);
    assert_eq!(
        (&accounts["messages"], &accounts["lost"]),
        (&80.into(), &0.into()),
        "{accounts}"
    );
    assert!(!gateway.log().contains("set aside"), "{}", gateway.log());
}
