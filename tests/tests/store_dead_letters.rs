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
fn what_fits_no_observation_is_sent_again_with_another_fhir_mapping_or_dropped_with_a_ledger_line() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .store("progress_interval", "300 ms")
        .fhir(&server.base, "resolution = \"create\"");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let texts: Vec<(String, String)> = (0..4)
        .map(|n| {
            let text = format!(
                r#"{{"deviceId":"band-0","patientId":"patient-0","time":"2026-03-01T11:00:0{n}Z","heartRate":"fast {n}"}}"#
            );
            ("wearables/band-0/telemetry".to_owned(), text)
        })
        .collect();
    publish(broker.port, &texts);
    wait_for_dead(&gateway, 4);
    let causes = as_json(&gateway, &["list", "--each"]);
    assert_eq!(
        causes[0]["cause"], "forward|InvalidQuantityFhirValueException|",
        "{causes}"
    );
    let ids: Vec<String> = causes[0]["letters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| letter["id"].to_string())
        .collect();

    // With the service down, and another mapping by now.
    gateway.stop(&mut agent);
    let file = gateway.folder.join("mappings.d/heart-rate/fhirmapping.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"Quantity\"", "\"String\"")).unwrap();
    let done = as_json(&gateway, &["redrive", &ids[0], &ids[1], &ids[2]]);
    assert_eq!(
        (&done["redriven"], &done["readings"]),
        (&json!(3), &json!(3)),
        "{done}"
    );
    agent = gateway.start();
    bedside_tests::real::wait_for("the Observations", LIMIT, || {
        let held = server.held("Observation");
        let texts = held
            .iter()
            .filter_map(|held| held.resource["valueString"].as_str());
        texts.filter(|text| text.starts_with("fast ")).count() == 3 && held.len() == 3
    });
    let (good, said) = letters(&gateway, &["drop", "--cause", "InvalidQuantity"]);
    assert!(good && said.starts_with("1 dead letters given up"), "{said}");
    let status = gateway.status().unwrap();
    let ledger = status["ledger"].to_string();
    assert!(
        ledger.contains("dropped by the operator: forward|InvalidQuantity"),
        "{status}"
    );
    let accounts = gateway.stop(&mut agent);
    assert_eq!(
        (&accounts["delivered"], &accounts["dead"], &accounts["lost"]),
        (&json!(3), &json!(0), &json!(1)),
        "{accounts}"
    );
    let (_, listed) = letters(&gateway, &["list"]);
    assert_eq!(listed, "no dead letters\n");
}
