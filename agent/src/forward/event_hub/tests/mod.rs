//! The destination over a scripted hub; the real wire is tested against a strict endpoint in the package of whole-system
//! tests.

mod events;
mod measurements;
mod over_amqp;
mod partition_keys;
mod refusals;
mod sign_in;

use super::*;
use crate::clock;
use crate::config::SecretRef;
use crate::forward::http::{HttpClient, HttpError, HttpRequest, HttpResponse};
use crate::message::{Message, Payload, RevisionId, SourceId, Stamp, StoredMessage};
use iomt_mapping::Timestamp;
use serde_json::Value;
use std::sync::Mutex;

type Answer = Box<dyn Fn(&HttpRequest) -> Result<HttpResponse, HttpError> + Send + Sync>;

struct Hub {
    answer: Answer,
    seen: Mutex<Vec<HttpRequest>>,
}

impl HttpClient for Hub {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = (self.answer)(&request);
        self.seen.lock().unwrap().push(request);
        answer
    }
}

pub(super) fn response(status: u16) -> Result<HttpResponse, HttpError> {
    Ok(HttpResponse {
        status,
        headers: Vec::new(),
        body: Payload::default(),
    })
}

pub(super) fn elements(request: &HttpRequest) -> Vec<Value> {
    serde_json::from_slice(request.body.bytes()).unwrap()
}

pub(super) fn bodies(request: &HttpRequest) -> Vec<String> {
    elements(request)
        .iter()
        .map(|element| element["Body"].as_str().unwrap().to_owned())
        .collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

/// A hub whose key is in a file that lives as long as the second value.
fn configuration() -> (EventHubConfig, tempfile::NamedTempFile) {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "secret").unwrap();
    let mut config: EventHubConfig = serde_json::from_value(serde_json::json!({
        "namespace": "ward.servicebus.windows.net", "hub": "devicedata"
    }))
    .unwrap();
    config.auth = AuthConfig::Sas {
        token: None,
        key_name: Some("gateway".to_owned()),
        key: Some(SecretRef::File(key.path().to_owned())),
    };
    (config, key)
}

fn origin() -> Origin {
    Origin {
        gateway: "bed-12".into(),
        store: "s1".into(),
        former: Default::default(),
    }
}

/// A destination with a key file that lives as long as the test.
pub(super) struct Bench {
    pub destination: EventHubDestination,
    hub: Arc<Hub>,
    key: tempfile::NamedTempFile,
}

impl Bench {
    fn new(
        change: impl FnOnce(&mut EventHubConfig),
        answer: impl Fn(&HttpRequest) -> Result<HttpResponse, HttpError> + Send + Sync + 'static,
    ) -> Bench {
        Bench::with_identity(change, answer, None)
    }

    pub(super) fn with_identity(
        change: impl FnOnce(&mut EventHubConfig),
        answer: impl Fn(&HttpRequest) -> Result<HttpResponse, HttpError> + Send + Sync + 'static,
        identity: Option<FhirDestination>,
    ) -> Bench {
        let (mut config, key) = configuration();
        change(&mut config);
        let hub = Arc::new(Hub {
            answer: Box::new(answer),
            seen: Mutex::default(),
        });
        let http = Http::inline(Arc::clone(&hub) as Arc<dyn HttpClient>);
        let destination = EventHubDestination::new(
            &config,
            origin(),
            ClockTrust::Always,
            http.clone(),
            http,
            identity,
        )
        .unwrap();
        Bench {
            destination,
            hub,
            key,
        }
    }

    fn deliver(&mut self, messages: Vec<RawMessage>) -> MessageDelivery {
        block_on(self.destination.deliver_messages(messages))
    }

    fn deliver_groups(&mut self, groups: Vec<Group>) -> Delivery {
        block_on(self.destination.deliver(groups, &HashMap::new()))
    }

    pub(super) fn seen(&self) -> Vec<HttpRequest> {
        std::mem::take(&mut *self.hub.seen.lock().unwrap())
    }
}

fn stamp() -> Stamp {
    Stamp {
        boot: 1,
        monotonic_us: 5,
        wall: Timestamp::from_ticks(17_900_000_000_000_000).unwrap(),
        trusted: true,
    }
}

fn message(position: u64, payload: &[u8], device: &str) -> RawMessage {
    RawMessage {
        stored: Arc::new(StoredMessage {
            position,
            revision: RevisionId(1),
            message: Message {
                topic: Some("wearables/x/telemetry".into()),
                properties: vec![("unit".to_owned(), "/min".to_owned())],
                device_id: Some(device.into()),
                ..Message::new(SourceId(1), stamp(), payload.to_vec())
            },
        }),
        source: "ward".into(),
    }
}

fn numbered(count: u64) -> Vec<RawMessage> {
    (1..=count)
        .map(|n| message(n, n.to_string().as_bytes(), "d1"))
        .collect()
}

fn dead(fates: &[Fate]) -> Vec<usize> {
    let dead = fates
        .iter()
        .enumerate()
        .filter(|(_, fate)| matches!(fate, Fate::Dead(_)));
    dead.map(|(index, _)| index).collect()
}
