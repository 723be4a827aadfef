//! Encryption at rest with the real program: nothing of a patient or a device is in its files, a wrong key is told, and the
//! right one delivers everything.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::{refuse, wait_for};
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{heart_rates, publish_readings};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Whether any file of the store but its key holds this text.
fn is_in_files(folder: &Path, text: &str) -> bool {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).any(|path| {
        let holds = |bytes: Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        path.is_file() && !path.ends_with("store.key") && holds(std::fs::read(path).unwrap())
    })
}

fn run(gateway: &Gateway, words: &[&str]) -> (bool, String) {
    let output = gateway
        .command()
        .args(words)
        .arg("--config")
        .arg(gateway.folder.join("agent.toml"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn the_files_of_an_encrypted_store_name_nobody_and_those_of_an_open_one_do() {
    for encrypted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let broker = Mosquitto::start(folder.path(), "");
        let server = FhirServer::start(&[]);
        let setting = if encrypted {
            "[store]\nencryption = true\n"
        } else {
            "[store]\n"
        };
        let gateway = Gateway::new(folder.path())
            .mqtt(broker.port, "")
            .fhir(&server.base, "resolution = \"create\"")
            .store("progress_interval", "300 ms")
            .replaced("[store]\n", setting);
        gateway.drop_pack("heart-rate");
        let mut agent = gateway.start();
        gateway.wait_connected(LIMIT);
        refuse(&server, true);
        let readings = heart_rates(2, 20, 0);
        publish_readings(broker.port, &readings);
        std::thread::sleep(Duration::from_secs(3));
        agent.kill();
        let store = gateway.folder.join("store");
        for text in ["band-0", "patient-band-1"] {
            assert_eq!(
                is_in_files(&store, text),
                !encrypted,
                "{text}, encrypted: {encrypted}"
            );
        }
        if encrypted {
            let key = store.join("store.key");
            let right = std::fs::read_to_string(&key).unwrap();
            std::fs::write(&key, "00".repeat(32)).unwrap();
            let (good, said) = run(&gateway, &["run"]);
            assert!(!good && said.contains("the key is not the one"), "{said}");
            let (good, said) = run(&gateway, &["store", "check"]);
            assert!(!good && said.contains("the key is not the one"), "{said}");
            std::fs::write(&key, right).unwrap();
        }
        let (good, said) = run(&gateway, &["store", "check"]);
        assert!(good && said.contains("no damage found"), "{said}");
        refuse(&server, false);
        agent = gateway.start();
        wait_for(&server, &readings, LIMIT, || gateway.log());
        let (good, said) = run(&gateway, &["store", "stats"]);
        assert!(good && said.contains("room_bytes"), "{said}");
        let (good, said) = run(&gateway, &["store", "wipe", "--yes-erase-all-readings"]);
        assert!(!good && said.contains("in use by another process"), "{said}");
        let accounts = gateway.stop(&mut agent);
        assert_eq!(
            (&accounts["delivered"], &accounts["lost"]),
            (&40.into(), &0.into()),
            "{accounts}"
        );
        let (good, said) = run(&gateway, &["store", "wipe"]);
        assert!(!good, "not without being told so: {said}");
        let (good, said) = run(&gateway, &["store", "wipe", "--yes-erase-all-readings"]);
        assert!(good && said.contains("destroyed the key") == encrypted, "{said}");
        let left = std::fs::read_dir(&store).unwrap().filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("store.")
        });
        assert_eq!(left.count(), 0);
    }
}
