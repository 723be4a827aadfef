//! `eventhubs/*.json`: signatures, publications and the IoT-Hub-style envelope, as the sender of the agent makes them.

use bedside_agent::config::{AuthConfig, ClockTrust, Envelope, EventHubConfig, SecretRef};
use bedside_agent::forward::event_hub::{EventHubDestination, sas_token};
use bedside_agent::forward::http::{Http, HttpClient, HttpError, HttpRequest, HttpResponse};
use bedside_agent::forward::{Fate, Origin, RawMessage};
use bedside_agent::message::{Message, Payload, RevisionId, SourceId, Stamp, StoredMessage};
use iomt_mapping::Timestamp;
use iomt_mapping::timestamp::read_timestamp;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Runs a vector of one of the three forms; none when it has another.
pub fn run(vector: &Value) -> Option<Result<(), String>> {
    if vector.get("stringToSign").is_some() {
        return Some(signature(vector));
    }
    if vector.get("asSeenByTheMapping").is_some() {
        return Some(envelope(vector));
    }
    (vector.get("batch").is_some() && vector.get("publisher").is_some()).then(|| publications(vector))
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn same(what: &str, made: &str, expected: &str) -> Result<(), String> {
    match made == expected {
        true => Ok(()),
        false => Err(format!("{what}: {made} instead of {expected}")),
    }
}

fn signature(vector: &Value) -> Result<(), String> {
    let expiry = vector.get("expiry").and_then(Value::as_i64).unwrap_or_default();
    let made = sas_token(
        text(vector, "uri"),
        text(vector, "keyName"),
        text(vector, "key"),
        expiry,
    );
    same("token", &made, text(vector, "token"))
}

/// Keeps what is sent and takes all of it.
#[derive(Default)]
struct Recorder(Mutex<Vec<HttpRequest>>);

impl HttpClient for Recorder {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.0.lock().expect("no thread panics with it").push(request);
        Ok(HttpResponse {
            status: 201,
            headers: Vec::new(),
            body: Payload::default(),
        })
    }
}

/// Sends messages (payload, properties) and gives the requests.
fn sent(
    url: &str,
    change: impl FnOnce(&mut EventHubConfig),
    messages: &[(String, Vec<(String, String)>)],
    received: Timestamp,
) -> Result<Vec<HttpRequest>, String> {
    let rest = url.strip_prefix("https://").unwrap_or_default();
    let mut parts = rest.split('/');
    let (namespace, hub) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut config: EventHubConfig =
        serde_json::from_value(json!({"namespace": namespace, "hub": hub})).map_err(|e| e.to_string())?;
    let key = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    std::fs::write(key.path(), "key").map_err(|e| e.to_string())?;
    config.auth = AuthConfig::Sas {
        key_name: Some("gateway".to_owned()),
        key: Some(SecretRef::File(key.path().to_owned())),
        token: None,
    };
    change(&mut config);
    let recorder = Arc::new(Recorder::default());
    let http = Http::inline(Arc::clone(&recorder) as Arc<dyn HttpClient>);
    let origin = Origin {
        gateway: "bed-12".into(),
        store: "s1".into(),
        former: Default::default(),
    };
    let destination = EventHubDestination::new(&config, origin, ClockTrust::Always, http.clone(), http, None)
        .map_err(|error| error.text)?;
    let raw = messages
        .iter()
        .zip(1..)
        .map(|((payload, properties), position)| RawMessage {
            stored: Arc::new(StoredMessage {
                position,
                revision: RevisionId(1),
                message: Message {
                    properties: properties.clone(),
                    device_id: Some("sampleDeviceId".into()),
                    ..Message::new(
                        SourceId(1),
                        Stamp {
                            boot: 1,
                            monotonic_us: position,
                            wall: received,
                            trusted: true,
                        },
                        payload.clone(),
                    )
                },
            }),
            source: "ward".into(),
        });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|e| e.to_string())?;
    let delivery = runtime.block_on(destination.deliver_messages(raw.collect()));
    if delivery.fates.iter().any(|fate| *fate != Fate::Delivered) {
        return Err(format!("{:?}", delivery.fates));
    }
    Ok(std::mem::take(
        &mut *recorder.0.lock().expect("no thread panics with it"),
    ))
}

fn elements(request: &HttpRequest) -> Vec<Value> {
    serde_json::from_slice(request.body.bytes()).unwrap_or_default()
}

fn at(text: &str) -> Result<Timestamp, String> {
    let read = read_timestamp(text).ok_or_else(|| format!("{text} is no instant"))?;
    Ok(read.time)
}

fn publications(vector: &Value) -> Result<(), String> {
    let batch = &vector["batch"];
    let now = at("2026-03-01T07:15:30Z")?;
    for bodies in batch["bodies"].as_array().into_iter().flatten() {
        let bodies = bodies.as_array().cloned().unwrap_or_default();
        let messages: Vec<(String, Vec<(String, String)>)> = bodies
            .iter()
            .map(|element| {
                let properties = element.get("UserProperties").and_then(Value::as_object);
                let properties = properties.into_iter().flatten();
                let properties = properties
                    .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
                (text(element, "Body").to_owned(), properties.collect())
            })
            .collect();
        let requests = sent(text(batch, "url"), |_| {}, &messages, now)?;
        let [request] = requests.as_slice() else {
            return Err(format!("{} requests", requests.len()));
        };
        same("method", request.method.name(), text(batch, "method"))?;
        same("url", &request.url, text(batch, "url"))?;
        for (name, value) in batch["headers"].as_object().into_iter().flatten() {
            let made = request
                .headers
                .iter()
                .find(|(header, _)| header.eq_ignore_ascii_case(name));
            let made = made.map(|(_, value)| value.as_str()).unwrap_or_default();
            same(name, made, value.as_str().unwrap_or_default())?;
        }
        let key = request
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("brokerproperties"));
        let key: Value = key
            .and_then(|(_, value)| serde_json::from_str(value).ok())
            .unwrap_or_default();
        let documented = &vector["singleWithPartitionKey"]["value"];
        if key.as_object().map(|key| key.keys().collect::<Vec<_>>())
            != documented.as_object().map(|key| key.keys().collect::<Vec<_>>())
        {
            return Err(format!("broker properties: {key}"));
        }
        let made = elements(request);
        if made.len() != bodies.len() {
            return Err(format!("{} elements", made.len()));
        }
        for (made, wanted) in made.iter().zip(&bodies) {
            same("body", text(made, "Body"), text(wanted, "Body"))?;
            for (name, value) in wanted["UserProperties"].as_object().into_iter().flatten() {
                if made["UserProperties"].get(name) != Some(value) {
                    return Err(format!("{name} is missing in {made}"));
                }
            }
        }
    }
    let url = text(&vector["publisher"], "url")
        .replace("{namespace}", "your-namespace")
        .replace("{eventHub}", "your-event-hub")
        .replace("{publisherId}", "bed-12");
    let as_publisher = |config: &mut EventHubConfig| config.publisher = Some("bed-12".to_owned());
    let requests = sent(&url, as_publisher, &[("x".to_owned(), Vec::new())], now)?;
    let made = requests
        .first()
        .map(|request| request.url.clone())
        .unwrap_or_default();
    same(
        "url of a publisher",
        made.split('?').next().unwrap_or_default(),
        &url,
    )
}

fn envelope(vector: &Value) -> Result<(), String> {
    let wanted = &vector["asSeenByTheMapping"];
    let enqueued = at(text(&wanted["SystemProperties"], "iothub-enqueuedtime"))?;
    let created = "iothub-creation-time-utc";
    let made_of = |creation: &str| -> Result<Value, String> {
        let message = (
            wanted["Body"].to_string(),
            vec![(created.to_owned(), creation.to_owned())],
        );
        let with_envelope = |config: &mut EventHubConfig| config.envelope = Envelope::IotHub;
        let requests = sent(
            "https://ns.servicebus.windows.net/hub",
            with_envelope,
            &[message],
            enqueued,
        )?;
        let element = requests
            .first()
            .and_then(|request| elements(request).into_iter().next());
        let body = element
            .map(|element| text(&element, "Body").to_owned())
            .unwrap_or_default();
        serde_json::from_str(&body).map_err(|e| e.to_string())
    };
    let made = made_of(text(&wanted["Properties"], created))?;
    if made != *wanted {
        return Err(format!("{made} instead of {wanted}"));
    }
    for (list, is_kept) in [("valid", true), ("invalid", false)] {
        for time in vector["creationTimeRule"][list].as_array().into_iter().flatten() {
            let time = time.as_str().unwrap_or_default();
            let made = made_of(time)?;
            let kept = made["Properties"][created] == *time;
            if kept != is_kept || !text(&made["Properties"], created).ends_with('Z') {
                return Err(format!("{time}: {}", made["Properties"]));
            }
        }
    }
    Ok(())
}
