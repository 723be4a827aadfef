//! The MQTT source alone: a real broker before it, an intake behind it that stores in memory.

use super::mosquitto::Mosquitto;
use bedside_agent::config::{ClockTrust, MqttConfig};
use bedside_agent::ingest::{SourceContext, SourceHandle, SourceStatus, StoredPacket, mqtt};
use bedside_agent::message::{AckToken, Message, SourceId};
use std::collections::HashSet;
use std::io::Write as _;
use std::ops::Deref;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A broker with a folder of its own.
pub struct Broker {
    mosquitto: Mosquitto,
    // Dropped last.
    _folder: tempfile::TempDir,
}

/// Starts a broker; `lines` are added to its configuration.
pub fn broker(lines: &str) -> Broker {
    let folder = tempfile::tempdir().expect("a folder");
    Broker {
        mosquitto: Mosquitto::start(folder.path(), lines),
        _folder: folder,
    }
}

impl Deref for Broker {
    type Target = Mosquitto;

    fn deref(&self) -> &Mosquitto {
        &self.mosquitto
    }
}

impl Broker {
    /// Ends it without a chance to save anything, and starts it again without what it had saved.
    pub fn lose_everything(&mut self) {
        self.mosquitto.lose_everything();
    }
}

/// Publishes each line as a message at QoS 1, with more arguments.
pub fn publish(broker: &Broker, lines: String, more: &[&str]) -> std::thread::JoinHandle<()> {
    let mut publisher = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-q", "1"])
        .args(["-t", "wearables/d1/telemetry", "-l"])
        .args(more)
        .stdin(Stdio::piped())
        .spawn()
        .expect("mosquitto_pub is installed");
    std::thread::spawn(move || {
        let mut input = publisher.stdin.take().expect("piped");
        input.write_all(lines.as_bytes()).expect("it reads");
        drop(input);
        assert!(publisher.wait().expect("it ends").success());
    })
}

/// A line with each number.
pub fn numbered(range: std::ops::Range<usize>) -> String {
    range
        .map(|number| format!("{{\"number\":{number},\"heartRate\":72}}\n"))
        .collect()
}

/// A source and an intake that stores in batches.
pub struct Intake {
    /// The source, as the intake knows it.
    pub handle: SourceHandle,
    /// What has not been taken yet.
    pub messages: mpsc::Receiver<Message>,
    /// What the source shows of itself.
    pub status: Arc<SourceStatus>,
    /// What was taken, in order.
    pub stored: Vec<Message>,
    /// Its loop.
    pub source: JoinHandle<()>,
}

impl Intake {
    /// A source at this broker, with more members, that goes on from these packets; the clock can be trusted.
    pub fn start(url: &str, members: &str, resume: Vec<StoredPacket>) -> Intake {
        Intake::with_clock(url, members, resume, ClockTrust::Always)
    }

    /// The same with such a clock.
    pub fn with_clock(url: &str, members: &str, resume: Vec<StoredPacket>, trust: ClockTrust) -> Intake {
        let config = format!("url = '{url}'\ntopics = ['wearables/+/telemetry']\n{members}");
        let config: MqttConfig = toml::from_str(&config).expect("a right configuration");
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
        let (handle, source) = mqtt::start(&config, context)
            .map_err(|error| error.text)
            .expect("a right configuration");
        let source = tokio::task::spawn_local(source);
        Intake {
            handle,
            messages,
            status,
            stored: Vec::new(),
            source,
        }
    }

    /// Waits until the source is connected.
    pub async fn connected(&self) {
        until("connected", || self.status.is_connected()).await;
    }

    /// One batch: taken, written for a moment, acknowledged.
    pub async fn commit_batch(&mut self) {
        let before = self.stored.len();
        if self.messages.recv_many(&mut self.stored, 200).await == 0 {
            panic!("the source has ended");
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        let tokens: Vec<AckToken> = self.stored[before..]
            .iter()
            .filter_map(|message| message.ack)
            .collect();
        self.handle
            .acknowledger
            .as_ref()
            .expect("MQTT has one")
            .committed(&tokens);
    }

    /// Stores until nothing has come for a while and `count` different messages are there.
    pub async fn store_all(&mut self, count: usize) {
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

    /// The different payloads of such messages.
    pub fn payloads(&self, which: impl Fn(&Message) -> bool) -> HashSet<Vec<u8>> {
        self.stored
            .iter()
            .filter(|m| which(m))
            .map(|m| m.payload.bytes().to_vec())
            .collect()
    }

    /// Nothing lost, nothing twice without a mark.
    pub fn assert_all(&self, count: usize) {
        assert_eq!(self.payloads(|_| true).len(), count);
        let unmarked = self
            .stored
            .iter()
            .filter(|message| !message.possible_repeat)
            .count();
        let different = self.payloads(|message| !message.possible_repeat).len();
        assert_eq!(unmarked, different, "the same message twice without a mark");
    }

    /// How many messages were stored more than once.
    pub fn repeats_stored(&self) -> usize {
        self.stored.len() - self.payloads(|_| true).len()
    }
}

/// Waits up to 20 seconds until it is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not seen: {what}");
}

/// Runs a test with local tasks.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}
