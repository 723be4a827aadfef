//! Dead letters through the command line: the real program, a real broker and a FHIR server; shown, sent again after a repair,
//! dropped, with the service up and down, over a kill in the middle.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::wait_for;
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{Sent, heart_rates, publish, publish_readings};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `dead-letters` and gives what it prints; with `--json` among the words, parsed.
fn letters(gateway: &Gateway, words: &[&str]) -> (bool, String) {
    let output = gateway
        .command()
        .arg("dead-letters")
        .args(words)
        .arg("--config")
        .arg(gateway.folder.join("agent.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text + &error)
}

fn as_json(gateway: &Gateway, words: &[&str]) -> Value {
    let mut words = words.to_vec();
    words.push("--json");
    let (_, text) = letters(gateway, &words);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

fn wait_for_dead(gateway: &Gateway, dead: u64) {
    let until = std::time::Instant::now() + LIMIT;
    loop {
        let status = gateway.status().unwrap_or_default();
        if status["summary"]["dead"] == dead {
            return;
        }
        assert!(
            std::time::Instant::now() < until,
            "{dead} dead letters: {status}\n{}",
            gateway.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The ready heart-rate pack, looking for the time at a place where no message has it.
fn break_mapping(gateway: &Gateway) {
    gateway.drop_pack("heart-rate");
    let file = gateway.folder.join("mappings.d/heart-rate/devicecontent.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("$.matchedToken.time", "$.matchedToken.at")).unwrap();
}

#[test]
fn what_failed_is_explained_and_sent_once_when_the_mapping_is_repaired_and_the_server_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .store("progress_interval", "300 ms")
        .fhir(&server.base, "resolution = \"create\"");
    break_mapping(&gateway);
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let failed = heart_rates(2, 5, 0);
    publish_readings(broker.port, &failed);
    wait_for_dead(&gateway, 10);

    let (good, listed) = letters(&gateway, &["list"]);
    assert!(
        good && listed.contains("10  normalize|IncompatibleDataException|heart-rate#0"),
        "{listed}"
    );
    assert!(
        listed.contains("in pack heart-rate, template 0, line 6"),
        "{listed}"
    );
    let causes = as_json(&gateway, &["list", "--each"]);
    let first = causes[0]["letters"][0]["id"].to_string();
    let (_, shown) = letters(&gateway, &["show", &first]);
    assert!(
        shown.contains("mapping revision 1") && !shown.contains("band-"),
        "{shown}"
    );
    let (_, shown) = letters(&gateway, &["show", &first, "--payload"]);
    assert!(shown.contains("\"patientId\":\"patient-band-"), "{shown}");

    // Not repaired: they stay, and the exit code says so.
    let (good, said) = letters(&gateway, &["redrive", "--all"]);
    assert!(
        !good && said.contains("0 dead letters are none any more"),
        "{said}"
    );
    gateway.drop_pack("heart-rate");
    let late = heart_rates(2, 3, 100);
    bedside_tests::real::wait_for("the repaired mapping", LIMIT, || {
        gateway.log().contains("mapping pack") && {
            publish_readings(broker.port, &late[..1]);
            std::thread::sleep(Duration::from_millis(500));
            !server.held("Observation").is_empty()
        }
    });
    publish_readings(broker.port, &late[1..]);
    let one = as_json(&gateway, &["redrive", &first]);
    assert_eq!(
        (&one["redriven"], &one["readings"]),
        (&json!(1), &json!(1)),
        "{one}"
    );
    assert_eq!(as_json(&gateway, &["redrive", &first])["redriven"], 0);
    // The process ends in the middle; what was told as done is done, the rest is asked for again, by the store alone.
    let all = as_json(&gateway, &["redrive", "--cause", "heart-rate#0"]);
    agent.kill();
    let again = as_json(&gateway, &["redrive", "--cause", "heart-rate#0"]);
    let done = |value: &Value| value["redriven"].as_u64().unwrap();
    assert!(done(&all) >= 9 && done(&again) == 0, "{all} {again}");
    agent = gateway.start();
    let sent: Vec<Sent> = failed.iter().chain(&late).cloned().collect();
    wait_for(&server, &sent, LIMIT, || gateway.log());
    let (_, listed) = letters(&gateway, &["list"]);
    assert_eq!(listed, "no dead letters\n");
    let accounts = gateway.stop(&mut agent);
    assert_eq!(
        (&accounts["dead"], &accounts["lost"]),
        (&json!(0), &json!(0)),
        "{accounts}"
    );
}
#[test]
fn what_the_server_refused_is_sent_again_and_what_never_fits_is_dropped_with_a_ledger_line() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .store("progress_interval", "300 ms")
        .fhir(&server.base, "resolution = \"create\"");
    // A code that no FHIR server takes: two spaces in a row.
    gateway.drop_pack("heart-rate");
    let file = gateway.folder.join("mappings.d/heart-rate/fhirmapping.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"8867-4\"", "\"8867  4\"")).unwrap();
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let refused = heart_rates(1, 4, 10);
    publish_readings(broker.port, &refused);
    wait_for_dead(&gateway, 4);
    gateway.drop_pack("heart-rate");
    let known = heart_rates(1, 1, 0);
    bedside_tests::real::wait_for("the repaired mapping", LIMIT, || {
        publish_readings(broker.port, &known);
        std::thread::sleep(Duration::from_secs(1));
        !server.held("Observation").is_empty()
    });
    let nonsense = r#"{"deviceId":"band-0","patientId":"patient-band-0","time":"2026-03-01T11:00:00Z","heartRate":"fast"}"#;
    publish(
        broker.port,
        &[("wearables/band-0/telemetry".to_owned(), nonsense.to_owned())],
    );
    wait_for_dead(&gateway, 5);
    let causes = as_json(&gateway, &["list"]);
    let names: Vec<&str> = causes
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["cause"].as_str())
        .collect();
    assert_eq!(names.len(), 2, "{causes}");
    assert!(names.iter().all(|name| name.starts_with("forward|")), "{causes}");

    // With the service down.
    gateway.stop(&mut agent);
    let done = as_json(&gateway, &["redrive", "--all"]);
    assert_eq!(done["redriven"], 5, "{done}");
    agent = gateway.start();
    let sent: Vec<Sent> = known.iter().chain(&refused).cloned().collect();
    wait_for(&server, &sent, LIMIT, || gateway.log());
    wait_for_dead(&gateway, 1);
    let (good, said) = letters(&gateway, &["drop", "--cause", "InvalidQuantity"]);
    assert!(good && said.starts_with("1 dead letters given up"), "{said}");
    let status = gateway.status().unwrap();
    assert!(
        status["ledger"]
            .to_string()
            .contains("dropped by the operator: forward|InvalidQuantity"),
        "{status}"
    );
    let accounts = gateway.stop(&mut agent);
    assert_eq!(
        (&accounts["dead"], &accounts["lost"]),
        (&json!(0), &json!(1)),
        "{accounts}"
    );
    let (_, listed) = letters(&gateway, &["list"]);
    assert_eq!(listed, "no dead letters\n");
}
