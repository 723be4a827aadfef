//! The destination over a scripted hub; the real wire is tested against a strict endpoint in the package of whole-system
//! tests.

use super::*;
use crate::clock;
use crate::config::{Envelope, Measurements, SecretRef};
use crate::forward::http::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use crate::forward::{GroupKey, GroupReading};
use crate::message::{Message, Payload, PayloadKind, RevisionId, SourceId, Stamp, StoredMessage};
use crate::packs::{Pack, PackText};
use iomt_mapping::{Measurement, Property, Timestamp};
use serde_json::Value;
use std::collections::HashMap;
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

/// A destination with a key file that lives as long as the test.
pub(super) struct Bench {
    pub destination: EventHubDestination,
    hub: Arc<Hub>,
    _key: tempfile::NamedTempFile,
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
        change(&mut config);
        let hub = Arc::new(Hub {
            answer: Box::new(answer),
            seen: Mutex::default(),
        });
        let http = Http {
            worker: Worker::inline(),
            client: Arc::clone(&hub) as Arc<dyn HttpClient>,
        };
        let origin = Origin {
            gateway: "bed-12".into(),
            store: "s1".into(),
            former: Default::default(),
        };
        let destination =
            EventHubDestination::new(&config, origin, ClockTrust::Always, http.clone(), http, identity)
                .unwrap();
        Bench {
            destination,
            hub,
            _key: key,
        }
    }

    fn deliver(&mut self, messages: Vec<RawMessage>) -> MessageDelivery {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.destination.deliver_messages(messages))
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
                source: SourceId(1),
                stamp: stamp(),
                payload: Payload(payload.to_vec().into()),
                kind: PayloadKind::Whole,
                topic: Some("wearables/x/telemetry".into()),
                properties: vec![("unit".to_owned(), "/min".to_owned())],
                device_id: Some(device.into()),
                possible_repeat: false,
                record: None,
                ack: None,
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

#[test]
fn a_message_arrives_as_it_came_with_its_envelope_as_user_properties() {
    let mut bench = Bench::new(|_| {}, |_| response(201));
    let mut binary = message(8, &[0xff, 0x00, 0x41], "d1");
    Arc::get_mut(&mut binary.stored).unwrap().message.stamp.trusted = false;
    let text = "{\"heartRate\": \"7\\u00f6 \"}";
    let delivery = bench.deliver(vec![message(7, text.as_bytes(), "d1"), binary]);
    assert_eq!(
        (delivery.fates, delivery.link),
        (vec![Fate::Delivered; 2], Link::Up)
    );
    let seen = bench.seen();
    assert_eq!(
        seen[0].url,
        "https://ward.servicebus.windows.net/devicedata/messages?timeout=60&api-version=2014-01"
    );
    assert!(seen[0].headers.contains(&(
        "content-type",
        "application/vnd.microsoft.servicebus.json".to_owned()
    )));
    assert!(
        seen[0]
            .headers
            .contains(&("brokerproperties", "{\"PartitionKey\":\"bed-12\"}".to_owned()))
    );
    assert!(
        seen[0]
            .headers
            .contains(&("x-ms-retrypolicy", "NoRetry".to_owned()))
    );
    assert!(
        seen[0]
            .authorization
            .as_ref()
            .unwrap()
            .starts_with("SharedAccessSignature sr=https%3A%2F%2Fward.")
    );
    let elements = elements(&seen[0]);
    assert_eq!(elements[0]["Body"], text);
    let expected = serde_json::json!({
        "unit": "/min",
        "bedside-event-id": "bed-12/s1/7",
        "bedside-gateway": "bed-12",
        "iothub-enqueuedtime": "2026-09-21T14:13:20Z",
        "bedside-source": "ward",
        "topic": "wearables/x/telemetry",
        "iothub-connection-device-id": "d1"
    });
    assert_eq!(elements[0]["UserProperties"], expected);
    assert_eq!(elements[1]["Body"], "/wBB");
    assert_eq!(elements[1]["IsBodyBase64"], true);
    assert_eq!(elements[1]["UserProperties"]["bedside-body"], "base64");
    assert!(
        elements[1]["UserProperties"].get("iothub-enqueuedtime").is_none(),
        "no invented time"
    );
}

#[test]
fn the_event_that_the_hub_refuses_is_found_and_the_others_arrive_in_order() {
    let mut bench = Bench::new(
        |_| {},
        |request| {
            response(if bodies(request).iter().any(|b| b == "5" || b == "14") {
                400
            } else {
                201
            })
        },
    );
    let delivery = bench.deliver(numbered(20));
    assert_eq!(dead(&delivery.fates), [4, 13]);
    assert_eq!(delivery.link, Link::Up);
    let taken: Vec<u64> = bench
        .seen()
        .iter()
        .map(bodies)
        .filter(|bodies| !bodies.iter().any(|b| b == "5" || b == "14"))
        .flatten()
        .map(|body| body.parse().unwrap())
        .collect();
    let expected: Vec<u64> = (1..=20).filter(|n| *n != 5 && *n != 14).collect();
    assert_eq!(taken, expected);
}

#[test]
fn a_hub_that_refuses_everything_costs_no_event_at_first() {
    let mut bench = Bench::new(|_| {}, |_| response(400));
    for _ in 0..2 {
        let delivery = bench.deliver(numbered(4));
        assert_eq!(dead(&delivery.fates), [0_usize; 0]);
        assert!(matches!(delivery.link, Link::Down { .. }));
    }
    // The third attempt gives the first event up, so that one bad event cannot block the others for ever.
    assert_eq!(dead(&bench.deliver(numbered(4)).fates), [0]);
}

#[test]
fn a_smaller_tier_is_learned_and_an_event_above_the_limit_is_given_up_alone() {
    let mut bench = Bench::new(
        |config| config.max_batch_bytes = 100_000,
        |request| response(if request.body.len() > 20_000 { 413 } else { 201 }),
    );
    let mut messages: Vec<RawMessage> = (0..40).map(|n| message(n, &[b'x'; 1500], "d1")).collect();
    messages.insert(3, message(90, &[b'y'; 30_000], "d1"));
    messages.insert(9, message(91, &[b'z'; 120_000], "d1"));
    let delivery = bench.deliver(messages.clone());
    assert_eq!(dead(&delivery.fates), [3, 9]);
    assert!(
        delivery
            .fates
            .iter()
            .enumerate()
            .all(|(n, fate)| n == 3 || n == 9 || *fate == Fate::Delivered)
    );
    bench.seen();
    messages.remove(9);
    messages.remove(3);
    bench.deliver(messages);
    let refused = bench
        .seen()
        .iter()
        .filter(|request| request.body.len() > 20_000)
        .count();
    assert!(refused <= 2, "the size is known by now: {refused}");
}

#[test]
fn whatever_is_not_created_leaves_the_rest_where_it_is() {
    let cases: Vec<(Result<HttpResponse, HttpError>, &str)> = vec![
        (response(200), "EventHubProducerClientException"),
        (response(401), "UnauthorizedAccessEventHubException"),
        (response(403), "UnauthorizedAccessEventHubException"),
        (response(404), "InvalidEventHubException"),
        (response(410), "InvalidEventHubException"),
        (response(429), "EventHubProducerClientException"),
        (response(500), "EventHubProducerClientException"),
        (
            Err(HttpError::new(HttpErrorKind::Reset, "cut")),
            "EventHubProducerClientException",
        ),
    ];
    for (answer, name) in cases {
        let script = answer.clone();
        let mut bench = Bench::new(
            |config| config.max_batch_bytes = 3000,
            move |request| match bodies(request).contains(&"1".to_owned()) {
                true => response(201),
                false => script.clone(),
            },
        );
        let mut messages = numbered(3);
        messages.push(message(4, &[b'x'; 400], "d1"));
        let delivery = bench.deliver(messages);
        let delivered = delivery
            .fates
            .iter()
            .take_while(|fate| **fate == Fate::Delivered)
            .count();
        assert!((1..4).contains(&delivered), "{answer:?}");
        assert!(
            delivery.fates[delivered..]
                .iter()
                .all(|fate| *fate == Fate::Retry)
        );
        match delivery.link {
            Link::Down { error, .. } => assert_eq!(error.name, name),
            other => panic!("{answer:?}: {other:?}"),
        }
    }
}

#[test]
fn a_throttled_hub_says_how_long_and_a_wrong_clock_is_no_alarm() {
    let busy = HttpResponse {
        status: 503,
        headers: vec![("retry-after".to_owned(), "11".to_owned())],
        body: Payload::default(),
    };
    let mut bench = Bench::new(|_| {}, move |_| Ok(busy.clone()));
    match bench.deliver(numbered(1)).link {
        Link::Down { retry_after, .. } => assert_eq!(retry_after.map(|d| d.as_secs()), Some(11)),
        other => panic!("{other:?}"),
    }
    crate::clock::simulate(stamp().wall, async {
        crate::clock::simulate_trust(false);
        let bench = Bench::new(|_| {}, |_| response(401));
        let delivery = bench.destination.deliver_messages(numbered(1)).await;
        assert_eq!(
            (delivery.fates, delivery.link),
            (vec![Fate::Retry], Link::WaitingForClock)
        );
    })
    .unwrap();
}

#[test]
fn with_the_device_as_partition_key_every_device_keeps_its_order() {
    let mut bench = Bench::new(
        |config| config.partition_key = PartitionKey::Device,
        |_| response(201),
    );
    let messages = (0..6)
        .map(|n| message(n, n.to_string().as_bytes(), ["a", "b"][n as usize % 2]))
        .collect();
    assert_eq!(bench.deliver(messages).fates, vec![Fate::Delivered; 6]);
    let seen = bench.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(bodies(&seen[0]), ["0", "2", "4"]);
    assert_eq!(bodies(&seen[1]), ["1", "3", "5"]);
    assert!(
        seen[1]
            .headers
            .contains(&("brokerproperties", "{\"PartitionKey\":\"b\"}".to_owned()))
    );
}

/// Answers after a pause; notes how many were open, of each key and of all.
struct Slow(Mutex<(HashMap<String, usize>, usize, usize, usize)>);

#[allow(clippy::disallowed_methods, reason = "an answer that takes its time")]
impl HttpClient for Slow {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let key = request
            .headers
            .iter()
            .find(|(name, _)| *name == "brokerproperties");
        let key = key.map(|(_, value)| value.clone()).unwrap_or_default();
        {
            let mut open = self.0.lock().unwrap();
            let of_key = open.0.entry(key.clone()).or_default();
            *of_key += 1;
            open.2 = open.2.max(open.0[&key]);
            open.1 += 1;
            open.3 = open.3.max(open.1);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut open = self.0.lock().unwrap();
        open.1 -= 1;
        *open.0.get_mut(&key).unwrap() -= 1;
        response(201)
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "threads that wait in real time")]
fn several_devices_are_sent_at_the_same_time_and_each_has_one_request_in_flight() {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "secret").unwrap();
    let mut config: EventHubConfig = serde_json::from_value(serde_json::json!({
        "namespace": "ward.servicebus.windows.net", "hub": "devicedata", "partition_key": "device",
        "max_batch_bytes": 3000
    }))
    .unwrap();
    config.auth = AuthConfig::Sas {
        token: None,
        key_name: Some("gateway".to_owned()),
        key: Some(SecretRef::File(key.path().to_owned())),
    };
    let slow = Arc::new(Slow(Mutex::default()));
    let http = Http {
        client: Arc::clone(&slow) as Arc<dyn HttpClient>,
        ..http_of("test", &config).unwrap()
    };
    let origin = Origin {
        gateway: "bed-12".into(),
        store: "s1".into(),
        former: Default::default(),
    };
    let hub =
        EventHubDestination::new(&config, origin, ClockTrust::Always, http.clone(), http, None).unwrap();
    let messages: Vec<RawMessage> = (0..60)
        .map(|n| message(n, &[b'x'; 200], ["a", "b", "c", "d", "e", "f"][n as usize % 6]))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let delivery = runtime.block_on(hub.deliver_messages(messages));
    assert_eq!(delivery.fates, vec![Fate::Delivered; 60]);
    let open = slow.0.lock().unwrap();
    assert_eq!((open.2, open.3), (1, KEYS_AT_ONCE), "of one key, of all");
}

#[test]
fn a_device_that_cannot_be_reached_leaves_what_other_devices_have_sent() {
    let mut bench = Bench::new(
        |config| config.partition_key = PartitionKey::Device,
        |request| response(if bodies(request)[0] == "1" { 503 } else { 201 }),
    );
    let messages = (0..6)
        .map(|n| message(n, n.to_string().as_bytes(), ["a", "b", "c"][n as usize % 3]))
        .collect();
    let delivery = bench.deliver(messages);
    assert!(matches!(delivery.link, Link::Down { .. }));
    assert_eq!(delivery.fates[0], Fate::Delivered);
    assert_eq!([&delivery.fates[1], &delivery.fates[4]], [&Fate::Retry; 2]);
}

#[test]
fn an_envelope_has_device_and_creation_time_and_the_body_as_it_came() {
    let mut bench = Bench::new(|config| config.envelope = Envelope::IotHub, |_| response(201));
    let mut own = message(2, b"{\"hr\": 7.50}", "d1");
    let mut offset = message(3, b"78 bpm", "d1");
    let mut untrusted = message(4, &[0xff, 0x00], "d1");
    let time = |text: &str| vec![("iothub-creation-time-utc".to_owned(), text.to_owned())];
    Arc::get_mut(&mut own.stored).unwrap().message.properties = time("2021-04-21T11:30:16Z");
    Arc::get_mut(&mut offset.stored).unwrap().message.properties = time("2021-04-21T11:30:16-07:00");
    Arc::get_mut(&mut untrusted.stored).unwrap().message.stamp.trusted = false;
    bench.deliver(vec![message(1, b"{\"hr\": 7.50}", "d1"), own, offset, untrusted]);
    let system = "\"SystemProperties\":{\"iothub-connection-device-id\":\"d1\",\"iothub-enqueuedtime\":\"2026-09-21T14:13:20Z\"}}";
    let here = "\"iothub-creation-time-utc\":\"2026-09-21T14:13:20Z\"";
    let topic = "\"topic\":\"wearables/x/telemetry\"";
    let expected = [
        format!("{{\"Body\":{{\"hr\": 7.50}},\"Properties\":{{\"unit\":\"/min\",{topic},{here}}},{system}"),
        format!(
            "{{\"Body\":{{\"hr\": 7.50}},\"Properties\":{{\"iothub-creation-time-utc\":\"2021-04-21T11:30:16Z\",{topic}}},{system}"
        ),
        format!("{{\"Body\":\"78 bpm\",\"Properties\":{{{topic},{here}}},{system}"),
        format!(
            "{{\"Body\":\"/wA=\",\"Properties\":{{\"unit\":\"/min\",{topic}}},\"SystemProperties\":{{\"iothub-connection-device-id\":\"d1\"}}}}"
        ),
    ];
    assert_eq!(bodies(&bench.seen()[0]), expected);
}

#[test]
fn a_ready_made_token_is_sent_as_it_is_and_a_new_one_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let token = |number: u32| format!("SharedAccessSignature sr=x&sig=y{number}&se=1900000000&skn=z");
    std::fs::write(file.path(), token(1) + "\n").unwrap();
    let value = SecretRef::File(file.path().to_owned());
    let mut bench = Bench::new(
        |config| {
            config.auth = AuthConfig::Sas {
                key_name: None,
                key: None,
                token: Some(value),
            }
        },
        |_| response(201),
    );
    for number in [1, 2] {
        std::fs::write(file.path(), token(number)).unwrap();
        assert_eq!(bench.deliver(numbered(1)).link, Link::Up);
        assert_eq!(bench.seen()[0].authorization, Some(token(number)));
    }
    std::fs::write(file.path(), "secret-key").unwrap();
    match bench.deliver(numbered(1)).link {
        Link::Down { error, .. } => {
            assert!(error.text.contains("the ready-made token is none") && !error.text.contains("secret-key"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_head_of_a_message_is_not_sent_as_if_it_were_the_message() {
    let mut bench = Bench::new(|_| {}, |_| response(201));
    let mut messages = numbered(2);
    Arc::get_mut(&mut messages[0].stored).unwrap().message.kind =
        PayloadKind::Truncated { length: 9, crc: 1 };
    let delivery = bench.deliver(messages);
    assert_eq!(dead(&delivery.fates), [0]);
    assert_eq!(bodies(&bench.seen()[0]), ["2"]);
}

fn heart_rates(device: &str, readings: &[(u64, u32)]) -> Group {
    Group {
        key: Arc::new(GroupKey {
            pack: "heart".into(),
            device: device.into(),
            type_name: "heartrate".into(),
            patient: None,
            encounter: None,
            correlation: None,
        }),
        pack: Arc::new(
            Pack::load(PackText {
                name: "heart".to_owned(),
                device: r#"{ "templateType": "CollectionContent", "template": [] }"#.to_owned(),
                fhir: None,
                agent: None,
            })
            .0
            .unwrap(),
        ),
        readings: readings
            .iter()
            .map(|(position, match_number)| GroupReading {
                clock: None,
                position: *position,
                match_number: *match_number,
                received: stamp(),
                measurement: Arc::new(Measurement {
                    type_name: "heartrate".to_owned(),
                    occurrence_time: stamp().wall,
                    device_id: device.to_owned(),
                    patient_id: None,
                    encounter_id: None,
                    correlation_id: None,
                    properties: vec![Property {
                        name: "hr".to_owned(),
                        value: "78".to_owned(),
                    }],
                }),
            })
            .collect(),
    }
}

#[test]
fn measurements_leave_in_the_order_in_which_they_came_as_the_reference_writes_them() {
    let mut bench = Bench::new(
        |config| config.payload = EventPayload::Measurement,
        |_| response(201),
    );
    let groups = vec![
        heart_rates("a", &[(1, 0), (4, 1)]),
        heart_rates("b", &[(2, 0), (4, 0)]),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let delivery = runtime.block_on(bench.destination.deliver(groups, &HashMap::new()));
    assert_eq!(delivery.fates, vec![vec![Fate::Delivered; 2]; 2]);
    assert_eq!(delivery.written, 4);
    let elements = elements(&bench.seen()[0]);
    let ids: Vec<&str> = elements
        .iter()
        .map(|e| e["UserProperties"]["bedside-event-id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        ["bed-12/s1/1/0", "bed-12/s1/2/0", "bed-12/s1/4/0", "bed-12/s1/4/1"]
    );
    assert_eq!(
        elements[0]["Body"],
        "{\"Type\":\"heartrate\",\"OccurrenceTimeUtc\":\"2026-09-21T14:13:20Z\",\
         \"IngestionTimeUtc\":\"2026-09-21T14:13:20Z\",\"DeviceId\":\"a\",\"PatientId\":null,\"EncounterId\":null,\
         \"CorrelationId\":null,\"Properties\":[{\"Name\":\"hr\",\"Value\":\"78\"}]}"
    );
}

#[test]
fn a_publisher_is_in_address_and_signature_and_no_other_partition_key_is_named() {
    let mut bench = Bench::new(
        |config| config.publisher = Some("bed-12".to_owned()),
        |_| response(201),
    );
    assert_eq!(bench.deliver(numbered(2)).link, Link::Up);
    let seen = bench.seen();
    assert_eq!(
        seen[0].url,
        "https://ward.servicebus.windows.net/devicedata/publishers/bed-12/messages?timeout=60&api-version=2014-01"
    );
    let token = seen[0].authorization.as_ref().unwrap();
    assert!(
        token.contains("sr=https%3A%2F%2Fward.servicebus.windows.net%2Fdevicedata%2Fpublishers%2Fbed-12&")
    );
    assert!(
        seen[0]
            .headers
            .iter()
            .all(|(name, _)| *name != "brokerproperties")
    );
}

#[test]
fn the_event_id_in_the_body_leaves_every_other_byte_as_it_came() {
    let mut bench = Bench::new(|config| config.event_id_in_body = true, |_| response(201));
    let messages = ["{\"a\": 1.50 }", "{}", "[1]", "x", "{\"bedsideEventId\":7}"];
    let messages = messages
        .iter()
        .zip(1..)
        .map(|(text, n)| message(n, text.as_bytes(), "d1"))
        .collect();
    bench.deliver(messages);
    assert_eq!(
        bodies(&bench.seen()[0]),
        [
            "{\"a\": 1.50 ,\"bedsideEventId\":\"bed-12/s1/1\"}",
            "{\"bedsideEventId\":\"bed-12/s1/2\"}",
            "[1]",
            "x",
            "{\"bedsideEventId\":7}"
        ]
    );
}

#[test]
fn a_ready_made_token_that_is_over_is_not_sent_and_named_unless_the_clock_is_to_blame() {
    for (trusted, expected) in [(true, "has expired"), (false, "clock")] {
        crate::clock::simulate(stamp().wall, async move {
            crate::clock::simulate_trust(trusted);
            let file = tempfile::NamedTempFile::new().unwrap();
            let text = "Endpoint=sb://ward.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature \
                        sr=x&sig=y&se=1700000000&skn=z";
            std::fs::write(file.path(), text).unwrap();
            let value = SecretRef::File(file.path().to_owned());
            let change = |config: &mut EventHubConfig| config.auth = AuthConfig::ConnectionString { value };
            let bench = Bench::new(change, |_| response(201));
            let delivery = bench.destination.deliver_messages(numbered(1)).await;
            match delivery.link {
                Link::Down { error, .. } => assert!(trusted && error.text.contains(expected), "{}", error.text),
                other => assert!(!trusted && other == Link::WaitingForClock, "{other:?}"),
            }
            assert_eq!(delivery.fates, vec![Fate::Retry]);
            assert!(bench.seen().is_empty(), "an expired token must not travel");
        })
        .unwrap();
    }
}

#[test]
fn a_refused_token_blames_the_clock_only_when_it_differs_from_that_of_the_hub() {
    for (date, expected) in [
        (Some("Mon, 21 Sep 2026 14:53:20 GMT"), "40 minutes off"),
        (Some("Mon, 21 Sep 2026 13:33:20 GMT"), "40 minutes off"),
        (Some("Mon, 21 Sep 2026 14:14:00 GMT"), "check key name"),
        (None, "check key name"),
    ] {
        crate::clock::simulate(stamp().wall, async move {
            let refusal = HttpResponse {
                status: 401,
                headers: date
                    .iter()
                    .map(|date| ("date".to_owned(), (*date).to_owned()))
                    .collect(),
                body: Payload::default(),
            };
            let bench = Bench::new(|_| {}, move |_| Ok(refusal.clone()));
            match bench.destination.deliver_messages(numbered(1)).await.link {
                Link::Down { error, .. } => {
                    assert!(error.text.contains(expected), "{date:?}: {}", error.text)
                }
                other => panic!("{other:?}"),
            }
        })
        .unwrap();
    }
}

/// A wire that answers what it is told, one after the other, and keeps what it got.
struct ScriptedWire {
    answers: std::cell::RefCell<Vec<amqp::Answer>>,
    seen: std::rc::Rc<std::cell::RefCell<Vec<amqp::Publication>>>,
}

impl amqp::Wire for ScriptedWire {
    fn publish(
        &self,
        publication: amqp::Publication,
    ) -> std::pin::Pin<Box<dyn Future<Output = amqp::Answer> + '_>> {
        self.seen.borrow_mut().push(publication);
        let mut answers = self.answers.borrow_mut();
        let answer = match answers.is_empty() {
            true => amqp::Answer::Accepted,
            false => answers.remove(0),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[test]
fn over_amqp_the_same_events_leave_and_the_refused_one_is_found() {
    let mut bench = Bench::new(|_| {}, |_| panic!("nothing goes over HTTPS"));
    let seen = std::rc::Rc::default();
    let refused = || amqp::Answer::Rejected(None);
    *bench.destination.sender.wire_mut() = Some(Box::new(ScriptedWire {
        // Four events, the first two, the first alone; then the second is the one.
        answers: std::cell::RefCell::new(vec![
            amqp::Answer::Accepted,
            refused(),
            refused(),
            amqp::Answer::Accepted,
            refused(),
        ]),
        seen: std::rc::Rc::clone(&seen),
    }));
    bench.deliver(numbered(1));
    let delivery = bench.deliver(numbered(4));
    assert_eq!(dead(&delivery.fates), [1]);
    assert_eq!(delivery.link, Link::Up);
    let bodies: Vec<Vec<String>> = seen
        .borrow()
        .iter()
        .map(|publication| {
            let elements: Vec<Value> = serde_json::from_slice(&publication.body).unwrap();
            assert_eq!(publication.partition_key.as_deref(), Some("bed-12"));
            elements
                .iter()
                .map(|e| e["Body"].as_str().unwrap().to_owned())
                .collect()
        })
        .collect();
    assert_eq!(
        bodies,
        [
            vec!["1"],
            vec!["1", "2", "3", "4"],
            vec!["1", "2"],
            vec!["1"],
            vec!["2"],
            vec!["3", "4"]
        ]
    );
}

#[test]
fn a_token_that_cbs_refuses_is_renewed_once() {
    let mut bench = Bench::new(|_| {}, |_| panic!("nothing goes over HTTPS"));
    let seen = std::rc::Rc::default();
    let refused = || amqp::Answer::TokenRefused {
        status: 401,
        description: "InvalidSignature".to_owned(),
    };
    *bench.destination.sender.wire_mut() = Some(Box::new(ScriptedWire {
        answers: std::cell::RefCell::new(vec![refused(), refused()]),
        seen: std::rc::Rc::clone(&seen),
    }));
    clock::simulate(stamp().wall, async move {
        // The same key gives the same token: it is not tried again.
        let delivery = bench.destination.deliver_messages(numbered(1)).await;
        assert_eq!(seen.borrow().len(), 1);
        assert!(matches!(delivery.link, Link::Down { error, .. } if error.text.contains("InvalidSignature")));
        // Another key does, once.
        std::fs::write(bench._key.path(), "new").unwrap();
        let delivery = bench.destination.deliver_messages(numbered(1)).await;
        assert_eq!((delivery.link, seen.borrow().len()), (Link::Up, 3));
    })
    .unwrap();
}

fn unzipped(bytes: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(bytes), &mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn grouped_measurements_are_one_compressed_array_for_each_partition_key() {
    for (key, expected) in [
        (PartitionKey::Gateway, vec![("bed-12/s1/1.0-4.1", 4)]),
        (
            PartitionKey::Device,
            vec![("bed-12/s1/1.0-4.1", 2), ("bed-12/s1/2.0-4.0", 2)],
        ),
    ] {
        let mut bench = Bench::new(
            |config| {
                config.payload = EventPayload::Measurement;
                config.measurements = Measurements::Grouped;
                config.partition_key = key;
                config.event_id_in_body = true;
            },
            |_| response(201),
        );
        let groups = vec![
            heart_rates("a", &[(1, 0), (4, 1)]),
            heart_rates("b", &[(2, 0), (4, 0)]),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let delivery = runtime.block_on(bench.destination.deliver(groups, &HashMap::new()));
        assert_eq!(delivery.fates, vec![vec![Fate::Delivered; 2]; 2]);
        let seen = bench.seen();
        let property = |request: &HttpRequest, name: &str| {
            let found = request.properties.iter().find(|(one, _)| one == name);
            found.map(|(_, value)| value.clone()).unwrap()
        };
        let made: Vec<(String, usize)> = seen
            .iter()
            .map(|request| {
                assert!(
                    request
                        .headers
                        .contains(&("content-type", "application/gzip".to_owned()))
                );
                assert_eq!(property(request, "IsMeasurementGroup"), "true");
                (
                    property(request, "bedside-event-id"),
                    unzipped(request.body.bytes()).len(),
                )
            })
            .collect();
        let expected: Vec<(String, usize)> = expected
            .iter()
            .map(|(id, count)| (format!("\"{id}\""), *count))
            .collect();
        assert_eq!(made, expected);
        let first = &unzipped(seen[0].body.bytes())[0];
        assert_eq!(
            (&first["DeviceId"], &first["bedsideEventId"]),
            (&"a".into(), &"bed-12/s1/1/0".into())
        );
    }
}

#[test]
fn an_array_that_the_hub_does_not_take_leaves_one_by_one_and_only_the_culprit_is_given_up() {
    let mut bench = Bench::new(
        |config| {
            config.payload = EventPayload::Measurement;
            config.measurements = Measurements::Grouped;
        },
        |request| {
            let is_array = request
                .headers
                .contains(&("content-type", "application/gzip".to_owned()));
            let has_culprit = !is_array
                && bodies(request)
                    .iter()
                    .any(|body| body.contains("\"DeviceId\":\"b\""));
            response(if is_array || has_culprit { 400 } else { 201 })
        },
    );
    let groups = || vec![heart_rates("a", &[(1, 0), (3, 0)]), heart_rates("b", &[(2, 0)])];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut delivery = None;
    for _ in 0..3 {
        delivery = Some(runtime.block_on(bench.destination.deliver(groups(), &HashMap::new())));
    }
    let fates = delivery.unwrap().fates;
    assert_eq!(fates[0], vec![Fate::Delivered; 2]);
    assert!(matches!(fates[1][0], Fate::Dead(_)));
}

#[test]
fn an_application_of_entra_gets_a_token_for_event_hubs_and_renews_it_once_at_a_refusal() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s").unwrap();
    let client = AuthConfig::ClientCredentials {
        token_url: "https://login.example/t/oauth2/v2.0/token".to_owned(),
        client_id: "bedside".to_owned(),
        secret: Some(SecretRef::File(secret.path().to_owned())),
        certificate: None,
        key: None,
        scope: None,
    };
    let tokens = std::sync::atomic::AtomicU32::new(0);
    let mut bench = Bench::new(
        |config| config.auth = client,
        move |request| {
            if request.url.starts_with("https://login.example/") {
                let number = tokens.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut answer = response(200)?;
                let text = format!("{{\"access_token\":\"t{number}\",\"expires_in\":3600}}");
                answer.body = Payload(text.into_bytes().into());
                return Ok(answer);
            }
            response(match request.authorization.as_deref() {
                Some("Bearer t1") => 201,
                _ => 401,
            })
        },
    );
    assert_eq!(bench.deliver(numbered(2)).link, Link::Up);
    assert_eq!(bench.deliver(numbered(2)).link, Link::Up);
    let seen = bench.seen();
    let asked: Vec<&HttpRequest> = seen
        .iter()
        .filter(|request| request.url.contains("/token"))
        .collect();
    assert_eq!(asked.len(), 2, "one token, and one more after the refusal");
    let form = String::from_utf8(asked[0].body.bytes().to_vec()).unwrap();
    assert!(
        form.contains("scope=https%3A%2F%2Feventhubs.azure.net%2F.default"),
        "{form}"
    );
}
