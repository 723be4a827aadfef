//! Event hubs and brokers that speak AMQP 1.0, on implementations that share nothing with the agent's, and what the tests of
//! that transport share.

pub mod endpoint;
pub mod rabbit;

use crate::real::root;
use bedside_agent::config::{ClockTrust, Config, DestinationKind, EventHubConfig, check_text};
use bedside_agent::forward::event_hub::{EventHubDestination, http_of};
use bedside_agent::forward::{Origin, RawMessage};
use bedside_agent::message::{Message, RevisionId, SourceId, Stamp, StoredMessage};
use iomt_mapping::Timestamp;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Debian's Python, which has the packages that apt installs; another one may come first in the path.
const PYTHON: &str = "/usr/bin/python3";

/// Host name of the namespace of all tests.
pub const NAMESPACE: &str = "ward-tests.servicebus.windows.net";

/// Name of the hub of all tests.
pub const HUB: &str = "devicedata";

fn script(name: &str) -> PathBuf {
    root().join("tests/amqp-endpoint").join(name)
}

/// Writes a certificate for [`NAMESPACE`] and its key into `folder`.
fn certificate(folder: &Path) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec![NAMESPACE.to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    std::fs::write(folder.join("ca.pem"), certificate.pem()).expect("the certificate is written");
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).expect("the key is written");
}

/// An event that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// Body.
    pub body: Vec<u8>,
    /// Application properties.
    pub properties: Map<String, Value>,
    /// Annotation `x-opt-partition-key`.
    pub partition_key: Option<String>,
    /// Message id.
    pub id: String,
    /// Header `durable`.
    pub durable: bool,
    /// Number of its publication, from 0.
    pub publication: u64,
}

impl Taken {
    fn of(event: &Value) -> Taken {
        use base64::Engine as _;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Taken {
            body: base64::prelude::BASE64_STANDARD
                .decode(event["body"].as_str().expect("a body"))
                .expect("base64"),
            properties: event["properties"].as_object().expect("properties").clone(),
            partition_key: text(&event["annotations"]["x-opt-partition-key"]),
            id: text(&event["id"]).unwrap_or_default(),
            durable: event["durable"] == true,
            publication: event["publication"].as_u64().unwrap_or_default(),
        }
    }
}

/// The configuration of a destination, from its text.
pub fn config(text: &str) -> EventHubConfig {
    let text = format!("[gateway]\nid = \"bed-12\"\n\n{text}");
    let config: Config = check_text("agent.toml", &text)
        .into_config()
        .expect("a configuration that is right");
    match config
        .destinations
        .into_iter()
        .next()
        .expect("one destination")
        .kind
    {
        DestinationKind::EventHub(config) => config,
        DestinationKind::Fhir(_) => panic!("an event hub was configured"),
    }
}

/// The destination itself, without an agent around it.
pub fn destination(config: &EventHubConfig) -> EventHubDestination {
    let http = http_of("event-hub", config).expect("threads");
    let origin = Origin {
        gateway: "bed-12".into(),
        store: "store-1".into(),
        former: Default::default(),
    };
    EventHubDestination::new(config, origin, ClockTrust::Always, http.clone(), http, None)
        .expect("a destination")
}

/// Messages of the devices `band-0` to `band-2` in turn, with bodies of about `length` bytes.
pub fn messages(positions: std::ops::Range<u64>, length: usize) -> Vec<RawMessage> {
    positions.map(|position| message(position, length)).collect()
}

/// One message.
pub fn message(position: u64, length: usize) -> RawMessage {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let wall = i64::try_from(now).expect("before 30000 AD") * 10_000_000;
    RawMessage {
        stored: Arc::new(StoredMessage {
            position,
            revision: RevisionId(1),
            message: Message {
                topic: Some("wearables/band/telemetry".into()),
                properties: vec![("unit".to_owned(), "/min".to_owned())],
                device_id: Some(format!("band-{}", position % 3).into()),
                ..Message::new(
                    SourceId(1),
                    Stamp {
                        boot: 1,
                        monotonic_us: position,
                        wall: Timestamp::from_ticks(wall).expect("a time"),
                        trusted: true,
                    },
                    format!("{{\"n\":{position},\"x\":\"{}\"}}", "ä\"".repeat(length / 3)),
                )
            },
        }),
        source: "ward".into(),
    }
}
