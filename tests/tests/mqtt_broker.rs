//! The MQTT source against a real mosquitto: cut links, restarts of the source and of the broker, TLS and passwords,
//! messages of all sizes. Judged by what the publisher sent: nothing lost, and what comes twice is marked.
#![allow(clippy::disallowed_methods, reason = "the tests live in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use bedside_agent::config::{ClockTrust, MqttConfig};
use bedside_agent::ingest::{SourceContext, SourceHandle, SourceStatus, StoredPacket, mqtt};
use bedside_agent::message::{AckToken, Message, PayloadKind, SourceId};
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A mosquitto of its own, stopped at the end.
struct Mosquitto {
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Mosquitto {
    fn start(lines: &str) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut text = format!("listener {port} 127.0.0.1\n");
        if std::env::var("USER").is_ok_and(|user| user == "root") || Path::new("/root").read_dir().is_ok() {
            text.push_str("user root\n");
        }
        write!(
            text,
            "persistence true\npersistence_location {}/\nmax_queued_messages 0\n{}",
            folder.path().display(),
            lines.replace("DIR", &folder.path().display().to_string())
        )
        .unwrap();
        if !lines.contains("allow_anonymous") {
            text.push_str("\nallow_anonymous true\n");
        }
        std::fs::write(folder.path().join("mosquitto.conf"), text).unwrap();
        let process = Mosquitto::spawn(folder.path());
        let broker = Mosquitto {
            folder,
            port,
            process,
        };
        broker.wait();
        broker
    }

    fn spawn(folder: &Path) -> Child {
        let log = std::fs::File::create(folder.join("log")).unwrap();
        Command::new("mosquitto")
            .arg("-c")
            .arg(folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mosquitto is installed")
    }

    fn wait(&self) {
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "{}",
            std::fs::read_to_string(self.folder.path().join("log")).unwrap()
        );
    }

    /// Ends it without a chance to save anything, and starts it again without what it had saved.
    fn lose_everything(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        drop(std::fs::remove_file(self.folder.path().join("mosquitto.db")));
        self.process = Mosquitto::spawn(self.folder.path());
        self.wait();
    }

    /// Publishes each line as a message at QoS 1.
    fn publish(&self, lines: String, more: &[&str]) -> std::thread::JoinHandle<()> {
        let mut publisher = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q", "1"])
            .args(["-t", "wearables/d1/telemetry", "-l"])
            .args(more)
            .stdin(Stdio::piped())
            .spawn()
            .expect("mosquitto_pub is installed");
        std::thread::spawn(move || {
            publisher
                .stdin
                .take()
                .unwrap()
                .write_all(lines.as_bytes())
                .unwrap();
            assert!(publisher.wait().unwrap().success());
        })
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A source and an intake that stores in batches.
struct Rig {
    handle: SourceHandle,
    messages: mpsc::Receiver<Message>,
    status: Arc<SourceStatus>,
    stored: Vec<Message>,
    source: JoinHandle<()>,
}

impl Rig {
    fn start(url: &str, members: &str, resume: Vec<StoredPacket>) -> Rig {
        Rig::with_clock(url, members, resume, ClockTrust::Always)
    }

    fn with_clock(url: &str, members: &str, resume: Vec<StoredPacket>, trust: ClockTrust) -> Rig {
        let config = format!("url = '{url}'\ntopics = ['wearables/+/telemetry']\n{members}");
        let config: MqttConfig = toml::from_str(&config).unwrap();
        let (sender, messages) = mpsc::channel(64);
        let status = Arc::new(SourceStatus::default());
        let context = SourceContext {
            id: SourceId(1),
            name: "ward".into(),
            gateway_id: "bed-12".into(),
            boot: 1,
            trust,
            sender,
            resume,
            memory: Default::default(),
            records: Vec::new(),
            ending: std::sync::Arc::default(),
            status: Arc::clone(&status),
            events: mpsc::unbounded_channel().0,
        };
        let (handle, source) = mqtt::start(&config, context).unwrap();
        let source = tokio::task::spawn_local(source);
        Rig {
            handle,
            messages,
            status,
            stored: Vec::new(),
            source,
        }
    }

    async fn connected(&self) {
        until("connected", || self.status.is_connected()).await;
    }

    /// One batch: taken, written for a moment, acknowledged.
    async fn commit_batch(&mut self) {
        let before = self.stored.len();
        if self.messages.recv_many(&mut self.stored, 200).await == 0 {
            panic!("the source has ended");
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        let tokens: Vec<AckToken> = self.stored[before..]
            .iter()
            .filter_map(|message| message.ack)
            .collect();
        self.handle.acknowledger.as_ref().unwrap().committed(&tokens);
    }

    /// Stores until nothing has come for a while and `count` different messages are there.
    async fn store_all(&mut self, count: usize) {
        let work = async {
            loop {
                let quiet = tokio::time::timeout(Duration::from_millis(800), self.commit_batch())
                    .await
                    .is_err();
                if quiet && self.payloads(|_| true).len() >= count {
                    return;
                }
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(120), work).await;
        assert!(done.is_ok(), "{} of {count} came", self.payloads(|_| true).len());
    }

    fn payloads(&self, which: impl Fn(&Message) -> bool) -> HashSet<Vec<u8>> {
        self.stored
            .iter()
            .filter(|m| which(m))
            .map(|m| m.payload.bytes().to_vec())
            .collect()
    }

    /// Nothing lost, nothing twice without a mark.
    fn assert_all(&self, count: usize) {
        assert_eq!(self.payloads(|_| true).len(), count);
        let unmarked = self
            .stored
            .iter()
            .filter(|message| !message.possible_repeat)
            .count();
        let different = self.payloads(|message| !message.possible_repeat).len();
        assert_eq!(unmarked, different, "the same message twice without a mark");
    }

    fn repeats_stored(&self) -> usize {
        self.stored.len() - self.payloads(|_| true).len()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not seen: {what}");
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}

fn numbered(range: std::ops::Range<usize>) -> String {
    range
        .map(|number| format!("{{\"number\":{number},\"heartRate\":72}}\n"))
        .collect()
}

/// Passes connections on to `port` and cuts them, without a word, every `pause` while it is not zero.
async fn cutting_proxy(port: u16, pause: Rc<Cell<Duration>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    tokio::task::spawn_local(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let Ok(mut broker) = TcpStream::connect(("127.0.0.1", port)).await else {
                continue;
            };
            let pause = Rc::clone(&pause);
            tokio::task::spawn_local(async move {
                let cut = async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    while pause.get().is_zero() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    tokio::time::sleep(pause.get()).await;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut broker) => {}
                    () = cut => {}
                }
            });
        }
    });
    url
}

#[test]
fn a_link_that_is_cut_again_and_again_loses_nothing() {
    // The window of the gateway's own configuration, and none at all (mosquitto then takes no heed of ours either).
    for (protocol, in_flight) in [("5", 500), ("3.1.1", 500), ("5", 0)] {
        run(async {
            const COUNT: usize = 20_000;
            let broker = Mosquitto::start(&format!("max_inflight_messages {in_flight}"));
            let pause = Rc::new(Cell::new(Duration::ZERO));
            let url = cutting_proxy(broker.port, Rc::clone(&pause)).await;
            let mut rig = Rig::start(&url, &format!("protocol = '{protocol}'"), Vec::new());
            rig.connected().await;
            // Let it be seen that this broker counts its packet ids up.
            let warm_up = broker.publish(numbered(0..1000), &[]);
            rig.store_all(1000).await;
            warm_up.join().unwrap();
            pause.set(Duration::from_millis(60));
            let publisher = broker.publish(numbered(1000..COUNT), &[]);
            let cuts = Rc::clone(&pause);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                cuts.set(Duration::ZERO);
            });
            rig.store_all(COUNT).await;
            publisher.join().unwrap();
            let reconnects = rig.status.reconnects.get();
            println!(
                "MQTT {protocol}, {in_flight} in flight: {reconnects} reconnects, {} redeliveries recognised, {} stored again",
                rig.status.repeats.get(),
                rig.repeats_stored()
            );
            assert!(reconnects >= 5, "{reconnects}");
            rig.assert_all(COUNT);
            // This broker counts its ids up; in doubt are only acknowledgements lost on the way long ago.
            assert!(rig.repeats_stored() < COUNT / 10, "{}", rig.repeats_stored());
        });
    }
}

#[test]
fn a_restarted_source_recognises_what_was_stored_but_not_acknowledged() {
    run(async {
        const COUNT: usize = 10_000;
        let broker = Mosquitto::start("");
        let url = format!("mqtt://127.0.0.1:{}", broker.port);
        let mut rig = Rig::start(&url, "", Vec::new());
        rig.connected().await;
        let publisher = broker.publish(numbered(0..COUNT), &[]);
        while rig.stored.len() < 3000 {
            rig.commit_batch().await;
        }
        // Stored, and then the process dies before any of these acknowledgements leaves.
        let before = rig.stored.len();
        while rig.stored.len() < before + 50 {
            rig.messages.recv_many(&mut rig.stored, 50).await;
        }
        rig.source.abort();
        let stored = std::mem::take(&mut rig.stored);
        let resume: Vec<_> = stored.iter().filter_map(StoredPacket::of).collect();
        let mut rig = Rig::start(&url, "", resume);
        rig.stored = stored;
        rig.store_all(COUNT).await;
        publisher.join().unwrap();
        rig.assert_all(COUNT);
        assert_eq!(rig.repeats_stored(), 0);
        assert!(rig.status.repeats.get() >= 50, "{}", rig.status.repeats.get());
    });
}

#[test]
fn a_broker_that_lost_everything_is_subscribed_again_in_a_new_session() {
    run(async {
        let mut broker = Mosquitto::start("");
        let mut rig = Rig::start(&format!("mqtt://127.0.0.1:{}", broker.port), "", Vec::new());
        rig.connected().await;
        broker.publish(numbered(0..10), &[]).join().unwrap();
        rig.store_all(10).await;
        broker.lose_everything();
        until("connected again", || rig.status.reconnects.get() == 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        broker.publish(numbered(10..20), &[]).join().unwrap();
        rig.store_all(20).await;
        rig.assert_all(20);
        let sessions: Vec<u32> = rig
            .stored
            .iter()
            .map(|message| message.ack.unwrap().session)
            .collect();
        assert!(sessions[..10].iter().all(|session| *session == sessions[0]));
        assert!(
            sessions[10..].iter().all(|session| *session == sessions[0] + 1),
            "{sessions:?}"
        );
    });
}

#[test]
fn messages_of_all_sizes_come_and_large_ones_as_their_head() {
    for protocol in ["5", "3.1.1"] {
        run(async {
            let broker = Mosquitto::start("");
            let url = format!("mqtt://127.0.0.1:{}", broker.port);
            let mut rig = Rig::start(&url, &format!("protocol = '{protocol}'"), Vec::new());
            rig.connected().await;
            let sizes = [1, 100, 20_000, 262_144, 262_145, 3_000_000, 50];
            for size in sizes {
                broker
                    .publish(format!("{}\n", "x".repeat(size)), &[])
                    .join()
                    .unwrap();
            }
            while rig.stored.len() < sizes.len() {
                rig.commit_batch().await;
            }
            let seen: Vec<u64> = rig
                .stored
                .iter()
                .map(|message| match message.kind {
                    PayloadKind::Whole => message.payload.len() as u64,
                    PayloadKind::Truncated { length, .. } => {
                        assert_eq!(message.payload.len(), 4096);
                        length
                    }
                })
                .collect();
            assert_eq!(seen, sizes.map(|size| size as u64));
            assert_eq!(rig.status.oversize.get(), 2);
        });
    }
}

#[test]
fn tls_with_a_private_authority_and_a_client_certificate() {
    run(async {
        let certificates = tempfile::tempdir().unwrap();
        write_certificates(certificates.path());
        let at = |name: &str| certificates.path().join(name).display().to_string();
        let broker = Mosquitto::start(&format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
            at("ca.pem"),
            at("server.pem"),
            at("server.key")
        ));
        let url = format!("mqtts://localhost:{}", broker.port);
        let (ca, client) = (
            format!("tls.ca_file = '{}'\n", at("ca.pem")),
            format!(
                "tls.cert_file = '{}'\ntls.key = 'file:{}'\n",
                at("client.pem"),
                at("client.key")
            ),
        );
        for (members, expected) in [
            (String::new(), "set `tls.ca_file`"),
            (
                format!("tls.ca_file = '{}'\n", at("other-ca.pem")),
                "set `tls.ca_file`",
            ),
            (ca.clone(), "wants a client certificate"),
        ] {
            let rig = Rig::start(&url, &members, Vec::new());
            until("an error", || rig.status.error().is_some()).await;
            let error = rig.status.error().unwrap();
            assert!(error.text.contains(expected), "{}", error.text);
            rig.source.abort();
        }
        let wrong_name = format!("mqtts://127.0.0.1:{}", broker.port);
        let rig = Rig::start(&wrong_name, &format!("{ca}{client}"), Vec::new());
        until("an error", || rig.status.error().is_some()).await;
        assert!(rig.status.error().unwrap().text.contains("another name"));
        rig.source.abort();

        for protocol in ["5", "3.1.1"] {
            let members = format!("protocol = '{protocol}'\n{ca}{client}");
            let mut rig = Rig::start(&url, &members, Vec::new());
            rig.connected().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let tls = [
                "--cafile",
                &at("ca.pem"),
                "--cert",
                &at("client.pem"),
                "--key",
                &at("client.key"),
                "-h",
                "localhost",
            ]
            .map(str::to_owned);
            let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
            broker.publish(numbered(0..100), &tls).join().unwrap();
            rig.store_all(100).await;
            rig.assert_all(100);
            rig.source.abort();
        }
    });
}

#[test]
fn a_certificate_out_of_its_time_waits_for_the_clock_while_that_is_not_set() {
    run(async {
        let certificates = tempfile::tempdir().unwrap();
        write_certificates(certificates.path());
        let at = |name: &str| certificates.path().join(name).display().to_string();
        let broker = Mosquitto::start(&format!(
            "cafile {}\ncertfile {}\nkeyfile {}\n",
            at("ca.pem"),
            at("expired.pem"),
            at("expired.key")
        ));
        let url = format!("mqtts://localhost:{}", broker.port);
        let members = format!("tls.ca_file = '{}'\n", at("ca.pem"));
        // Nothing says here that the time is synchronised.
        for (trust, waiting) in [(ClockTrust::Ntp, true), (ClockTrust::Always, false)] {
            let rig = Rig::with_clock(&url, &members, Vec::new(), trust);
            until("an error", || rig.status.error().is_some()).await;
            assert!(
                rig.status
                    .error()
                    .unwrap()
                    .text
                    .contains("not valid at this time")
            );
            assert_eq!(
                rig.status.is_waiting_for_clock(),
                waiting && !Path::new("/run/systemd/timesync/synchronized").exists()
            );
            rig.source.abort();
        }
    });
}

fn write_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ca, other) = (authority("ward"), authority("somebody else"));
    write("ca.pem", ca.pem());
    write("other-ca.pem", other.pem());
    for (file, name) in [
        ("server", "localhost"),
        ("client", "gateway-12"),
        ("expired", "localhost"),
    ] {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if file == "expired" {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        write(&format!("{file}.pem"), params.signed_by(&key, &ca).unwrap().pem());
        write(&format!("{file}.key"), key.serialize_pem());
    }
}

#[test]
fn a_wrong_password_is_said_and_the_right_one_taken_without_a_restart() {
    for protocol in ["5", "3.1.1"] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let (passwords, secret) = (folder.path().join("passwords"), folder.path().join("secret"));
            let made = Command::new("mosquitto_passwd")
                .args(["-c", "-b"])
                .arg(&passwords)
                .args(["gateway-12", "correct horse"])
                .status();
            assert!(made.expect("mosquitto_passwd is installed").success());
            let broker = Mosquitto::start(&format!(
                "allow_anonymous false\npassword_file {}\n",
                passwords.display()
            ));
            std::fs::write(&secret, "guess").unwrap();
            let url = format!("mqtt://127.0.0.1:{}", broker.port);
            let members = format!(
                "protocol = '{protocol}'\nusername = 'gateway-12'\npassword = 'file:{}'",
                secret.display()
            );
            let mut rig = Rig::start(&url, &members, Vec::new());
            until("an error", || rig.status.error().is_some()).await;
            let error = rig.status.error().unwrap();
            assert_eq!(error.name, "UnauthorizedAccessBrokerException");
            assert!(
                error.text.contains("gateway-12") && error.text.contains("`password`"),
                "{}",
                error.text
            );
            std::fs::write(&secret, "correct horse\n").unwrap();
            rig.connected().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            broker
                .publish(numbered(0..5), &["-u", "gateway-12", "-P", "correct horse"])
                .join()
                .unwrap();
            rig.store_all(5).await;
        });
    }
}

#[test]
fn a_backlog_far_above_the_window_is_taken_without_losing_the_connection() {
    for protocol in ["5", "3.1.1"] {
        run(async {
            const COUNT: usize = 40_000;
            let broker = Mosquitto::start("max_inflight_messages 500");
            let url = format!("mqtt://127.0.0.1:{}", broker.port);
            let members = format!("protocol = '{protocol}'");
            let rig = Rig::start(&url, &members, Vec::new());
            rig.connected().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            rig.source.abort();
            let pad = "x".repeat(250);
            let backlog = (0..COUNT).map(|number| format!("{{\"number\":{number},\"pad\":\"{pad}\"}}\n"));
            broker.publish(backlog.collect(), &[]).join().unwrap();
            let mut rig = Rig::start(&url, &members, Vec::new());
            rig.store_all(COUNT).await;
            rig.assert_all(COUNT);
            assert_eq!(rig.repeats_stored(), 0);
            let status = &rig.status;
            assert_eq!(
                (status.reconnects.get(), status.closed_for_backpressure.get()),
                (0, 0)
            );
        });
    }
}
