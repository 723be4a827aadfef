//! The program on real file systems that are full, read-only or not ours, at the start and in the middle: it says so, it
//! acknowledges nothing that is not stored, and it goes on by itself.
#![allow(clippy::disallowed_methods, reason = "the tests live in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use bedside_agent::store::Store;
use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::chain::Chain;
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{Sent, heart_rates, payload, publish};
use bedside_tests::real::tap::tap;
use bedside_tests::real::volume::{Kind, Volume};
use bedside_tests::real::{Process, fhir, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(40);

/// Broker, tap, agent with its store on `volume`, FHIR server.
struct Ward {
    folder: tempfile::TempDir,
    broker: Mosquitto,
    chain: Arc<Chain>,
    server: FhirServer,
    gateway: Gateway,
    sent: Vec<Sent>,
}

impl Ward {
    fn new(folder: tempfile::TempDir, store: &Path) -> Ward {
        let broker = Mosquitto::start(folder.path(), "");
        let chain = Arc::new(Chain::default());
        let seen = Arc::clone(&chain);
        let address = format!("127.0.0.1:{}", broker.port);
        let port = tap(
            &address,
            Arc::new(move |number, way, bytes| seen.mqtt(number, way, bytes)),
        );
        let server = FhirServer::start(&[]);
        let run = folder.path().join("run");
        std::fs::create_dir_all(&run).unwrap();
        let gateway = Gateway::new(folder.path())
            .env("RUNTIME_DIRECTORY", &run.display().to_string())
            .store_in(store)
            .store("max_bytes", "32 MiB")
            .mqtt(port, "")
            .fhir(&server.base, "resolution = \"create\"");
        gateway.drop_pack("heart-rate");
        Ward {
            folder,
            broker,
            chain,
            server,
            gateway,
            sent: Vec::new(),
        }
    }

    /// Publishes `count` readings of 20 kB that do not compress away.
    fn publish(&mut self, count: usize) {
        let readings = heart_rates(4, count / 4, self.sent.len() / 4);
        let messages: Vec<(String, String)> = readings
            .iter()
            .zip(self.sent.len() as u64..)
            .map(|(reading, n)| {
                let mut noise = String::with_capacity(20_000);
                for i in 0..1250_u64 {
                    let mixed = (n * 1250 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    noise.push_str(&format!("{:016x}", mixed ^ (mixed >> 31)));
                }
                let text = payload(reading).replacen('{', &format!("{{\"noise\":\"{noise}\","), 1);
                (format!("wearables/{}/telemetry", reading.device), text)
            })
            .collect();
        publish(self.broker.port, &messages);
        self.sent.extend(readings);
    }

    fn status(&self) -> Value {
        self.gateway.status().unwrap_or_default()
    }

    /// Waits until `status` shows this trouble, and gives its text.
    fn wait_for_trouble(&self, kind: &str) -> String {
        let mut text = String::new();
        wait_for(&format!("trouble {kind}"), LONG, || {
            let status = self.status();
            text = status["problems"][0].as_str().unwrap_or_default().to_owned();
            status["store"]["trouble_kind"] == kind && status["health"] == "trouble"
        });
        text
    }

    fn wait_until_all_is_well(&self, agent: &mut Process) {
        fhir::wait_for(&self.server, &self.sent, LONG, || self.gateway.log());
        wait_for("health", LONG, || self.status()["health"] == "ok");
        assert!(agent.is_running(), "{}", self.gateway.log());
    }

    /// Every reading whose acknowledgement left the agent is in the store as it is now, or on the server.
    fn assert_acknowledged_is_true(&self, store: &Path) {
        let acknowledged: BTreeSet<_> = self.chain.acknowledged().into_iter().collect();
        let copy = self.folder.path().join("copy");
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir_all(&copy).unwrap();
        for name in ["store.db", "store.db-wal"] {
            if store.join(name).exists() {
                std::fs::copy(store.join(name), copy.join(name)).unwrap();
            }
        }
        let (opened, _) = Store::open(&copy).unwrap();
        let batch = opened.read_from(1, usize::MAX).unwrap();
        assert!(batch.damaged.is_empty());
        let mut known: BTreeSet<(String, String)> = fhir::readings(&self.server).into_keys().collect();
        for stored in &batch.messages {
            let message: Value = serde_json::from_slice(stored.message.payload.bytes()).unwrap();
            let text = |name: &str| message[name].as_str().unwrap().to_owned();
            known.insert(fhir::place_of(&text("deviceId"), &text("time")));
        }
        for (device, time) in acknowledged {
            let place = fhir::place_of(&device, &time);
            assert!(known.contains(&place), "acknowledged and not stored: {place:?}");
        }
    }
}

fn volume(kind: Kind, bytes: u64) -> Option<(tempfile::TempDir, Volume)> {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::mount(folder.path(), kind, bytes)?;
    Some((folder, volume))
}

fn a_full_disk_presses_back(kind: Kind) {
    let Some((folder, volume)) = volume(kind, 24 * MIB) else {
        return;
    };
    let store = volume.point.join("store");
    let mut ward = Ward::new(folder, &store);
    let mut agent = ward.gateway.start();
    ward.gateway.wait_connected(LONG);
    ward.publish(40);
    ward.wait_until_all_is_well(&mut agent);

    volume.fill();
    ward.publish(400);
    let text = ward.wait_for_trouble("full");
    assert!(text.contains("is full") && text.contains("df "), "{text}");
    let before = ward.chain.acknowledged().len();
    assert!(before < ward.sent.len(), "the disk was not full");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        ward.chain.acknowledged().len(),
        before,
        "acknowledged on a full disk"
    );
    ward.assert_acknowledged_is_true(&store);

    volume.free();
    ward.wait_until_all_is_well(&mut agent);
    assert_eq!(
        ward.gateway.log().matches("is full: free").count(),
        1,
        "said once:\n{}",
        ward.gateway.log()
    );
    ward.gateway.stop(&mut agent);
}

#[test]
fn a_full_disk_presses_back_and_recovers_without_a_restart_on_ext4() {
    a_full_disk_presses_back(Kind::Ext4);
}

#[test]
fn a_full_disk_presses_back_and_recovers_without_a_restart_on_tmpfs() {
    a_full_disk_presses_back(Kind::Tmpfs);
}

#[test]
fn a_file_system_that_becomes_read_only_is_let_go_and_taken_up_after_its_repair() {
    let Some((folder, volume)) = volume(Kind::Ext4, 24 * MIB) else {
        return;
    };
    let store = volume.point.join("store");
    let mut ward = Ward::new(folder, &store);
    let mut agent = ward.gateway.start();
    ward.gateway.wait_connected(LONG);
    ward.publish(40);
    ward.wait_until_all_is_well(&mut agent);

    volume.break_it();
    ward.publish(40);
    let text = ward.wait_for_trouble("read-only");
    assert!(text.contains("fsck") && text.contains("dmesg"), "{text}");
    ward.assert_acknowledged_is_true(&store);
    // No files are held, so that an operator can repair it beside the running agent.
    wait_for("the volume is let go", LONG, || volume.unmount());
    std::thread::sleep(Duration::from_secs(2));
    assert!(!store.exists(), "a new store was begun in the empty folder");
    volume.repair();
    assert!(volume.mount_again());
    ward.wait_until_all_is_well(&mut agent);
    ward.gateway.stop(&mut agent);
}

#[test]
fn a_start_on_a_disk_that_cannot_be_used_waits_says_so_and_goes_on() {
    let Some((folder, volume)) = volume(Kind::Ext4, 24 * MIB) else {
        return;
    };
    let store = volume.point.join("store");
    std::fs::create_dir(&store).unwrap();
    let mut ward = Ward::new(folder, &store);
    // Full from the first byte on; a disk that is read-only; a folder that is not ours.
    volume.fill();
    let mut agent = ward.gateway.start();
    let text = ward.wait_for_trouble("full");
    assert!(
        text.contains("nothing is taken until the store can be opened"),
        "{text}"
    );
    volume.free();
    ward.gateway.wait_connected(LONG);
    ward.publish(40);
    ward.wait_until_all_is_well(&mut agent);
    ward.gateway.stop(&mut agent);

    assert!(volume.remount("ro"));
    let mut agent = ward.gateway.start();
    ward.wait_for_trouble("read-only");
    ward.publish(40);
    assert!(volume.remount("rw"));
    ward.wait_until_all_is_well(&mut agent);
    ward.gateway.stop(&mut agent);

    let lock = |sign: &str| {
        let done = Command::new("chattr").args(["-R", sign]).arg(&store).status();
        done.is_ok_and(|status| status.success())
    };
    assert!(lock("+i"));
    let mut agent = ward.gateway.start();
    let text = ward.wait_for_trouble("denied");
    assert!(text.contains("may not write") && text.contains("chown"), "{text}");
    ward.publish(40);
    // A stop does not wait for the disk.
    assert!(
        agent.terminate(Duration::from_secs(10)).success(),
        "{}",
        ward.gateway.log()
    );
    let mut agent = ward.gateway.start();
    ward.wait_for_trouble("denied");
    assert!(lock("-i"));
    ward.wait_until_all_is_well(&mut agent);
    ward.gateway.stop(&mut agent);
}
