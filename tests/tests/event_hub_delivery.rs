//! The Event Hubs destination over TLS against an endpoint that refuses what Azure refuses.
#![allow(clippy::disallowed_methods, reason = "a test of real sockets in real time")]

use bedside_agent::config::{ClockTrust, Config, DestinationKind, EventHubConfig, check_text};
use bedside_agent::forward::event_hub::{EventHubDestination, http_of, sas_token};
use bedside_agent::forward::{Fate, Link, Origin, RawMessage};
use bedside_agent::message::{Message, RevisionId, SourceId, Stamp, StoredMessage};
use bedside_tests::event_hub_endpoint::{EventHubEndpoint, Fault, Settings};
use bedside_tests::event_hub_sender::{deliver, drain};
use iomt_mapping::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn config(endpoint: &EventHubEndpoint, change: impl FnOnce(String) -> String) -> EventHubConfig {
    let text = format!(
        "[gateway]\nid = \"bed-12\"\n\n{}",
        endpoint.destination("cloud", "message")
    );
    let config: Config = check_text("agent.toml", &change(text)).into_config().unwrap();
    match config.destinations.into_iter().next().unwrap().kind {
        DestinationKind::EventHub(config) => config,
        DestinationKind::Fhir(_) => unreachable!("an event hub was configured"),
    }
}

fn destination(config: &EventHubConfig) -> EventHubDestination {
    let http = http_of("event-hub", config).unwrap();
    let origin = Origin {
        gateway: "bed-12".into(),
        store: "store-1".into(),
        former: Default::default(),
    };
    EventHubDestination::new(config, origin, ClockTrust::Always, http.clone(), http, None).unwrap()
}

fn messages(positions: std::ops::Range<u64>, length: usize) -> Vec<RawMessage> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    positions
        .map(|position| RawMessage {
            stored: Arc::new(StoredMessage {
                position,
                revision: RevisionId(1),
                message: Message {
                    topic: Some("wearables/band/telemetry".into()),
                    device_id: Some("band-1".into()),
                    ..Message::new(
                        SourceId(1),
                        Stamp {
                            boot: 1,
                            monotonic_us: position,
                            wall: Timestamp::from_ticks(i64::try_from(now).unwrap() * 10_000_000).unwrap(),
                            trusted: true,
                        },
                        format!("{{\"n\":{position},\"x\":\"{}\"}}", "ä\"".repeat(length)),
                    )
                },
            }),
            source: "ward".into(),
        })
        .collect()
}

#[test]
fn every_message_arrives_once_in_order_with_its_bytes_and_within_the_size_of_the_tier() {
    for limit in [262_144, 1_048_576] {
        let endpoint = EventHubEndpoint::start(Settings {
            limit,
            ..Settings::default()
        });
        let destination = destination(&config(&endpoint, |text| text));
        let sent = messages(1..3001, 100);
        let delivery = deliver(&destination, sent.clone());
        assert_eq!(delivery.link, Link::Up, "{:?}", endpoint.refusals());
        assert!(delivery.fates.iter().all(|fate| *fate == Fate::Delivered));
        let events = endpoint.events();
        assert_eq!(events.len(), sent.len());
        for (message, event) in sent.iter().zip(&events) {
            assert_eq!(event.body, message.stored.message.payload.bytes());
            assert_eq!(event.id(), format!("bed-12/store-1/{}", message.stored.position));
            assert_eq!(event.partition_key.as_deref(), Some("bed-12"));
            assert_eq!(event.properties["iothub-connection-device-id"], "band-1");
        }
        assert_eq!(endpoint.refusals(), Vec::<String>::new());
        assert_eq!(
            (endpoint.connections(), endpoint.most_in_flight()),
            (1, 1),
            "one connection, kept alive"
        );
    }
}

#[test]
fn what_was_taken_before_the_answer_was_lost_is_repeated_under_the_same_id() {
    let endpoint = EventHubEndpoint::start(Settings::default());
    let config = config(&endpoint, |text| text.replace("1048576", "40000"));
    let destination = destination(&config);
    endpoint.fail_next([
        Fault::ResetAfterCommit,
        Fault::Answer(503, Some(1)),
        Fault::Delay(Duration::from_millis(50)),
        Fault::ResetAfterCommit,
    ]);
    let fates = drain(&destination, messages(1..400, 40));
    assert!(fates.iter().all(|(_, fate)| *fate == Fate::Delivered));
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for event in endpoint.events() {
        *count.entry(event.id().to_owned()).or_default() += 1;
    }
    assert_eq!(count.len(), 399);
    // Two answers were lost, and what they were about is repeated, nothing else.
    let repeated = count.values().filter(|count| **count > 1).count();
    assert!(
        repeated > 0 && count.values().all(|count| *count <= 3),
        "{repeated} repeated"
    );
    assert_eq!(endpoint.refusals(), Vec::<String>::new());
}

#[test]
fn the_refused_event_is_found_on_the_wire_and_a_tier_smaller_than_configured_is_learned() {
    let endpoint = EventHubEndpoint::start(Settings {
        limit: 60_000,
        ..Settings::default()
    });
    let config = config(&endpoint, |text| {
        text.replace("max_batch_bytes = 60000", "max_batch_bytes = 1048576")
    });
    let destination = destination(&config);
    endpoint.set_fault(Some(Fault::RefuseText("\\\"n\\\":77,".to_owned())));
    let fates = drain(&destination, messages(1..300, 200));
    let dead: Vec<u64> = fates
        .iter()
        .filter(|(_, fate)| matches!(fate, Fate::Dead(_)))
        .map(|(position, _)| *position)
        .collect();
    assert_eq!(dead, [77]);
    let taken: Vec<String> = endpoint
        .events()
        .iter()
        .map(|event| event.id().to_owned())
        .collect();
    let expected: Vec<String> = (1..300)
        .filter(|n| *n != 77)
        .map(|position| format!("bed-12/store-1/{position}"))
        .collect();
    assert_eq!(taken, expected);
    assert!(
        endpoint
            .refusals()
            .iter()
            .all(|text| text.contains("the tier takes 60000"))
    );
    assert!(
        endpoint.refusals().len() <= 4,
        "{} refusals",
        endpoint.refusals().len()
    );
}

#[test]
fn a_wrong_key_an_unknown_hub_a_stranger_and_an_outage_each_have_their_name() {
    let endpoint = EventHubEndpoint::start(Settings::default());
    let name_of = |config: &EventHubConfig| {
        let delivery = deliver(&destination(config), messages(1..3, 1));
        assert!(delivery.fates.iter().all(|fate| *fate == Fate::Retry));
        match delivery.link {
            Link::Down { error, .. } => (error.name, error.text),
            other => panic!("{other:?}"),
        }
    };
    let (name, text) = name_of(&config(&endpoint, |text| {
        text.replace("\"gateway\"", "\"other\"")
    }));
    assert_eq!(name, "UnauthorizedAccessEventHubException");
    assert!(text.contains("no such rule"), "{text}");

    std::fs::write(endpoint.key_file(), "wrong").unwrap();
    let (name, text) = name_of(&config(&endpoint, |text| text));
    assert_eq!(name, "UnauthorizedAccessEventHubException");
    assert!(
        text.contains("invalid signature") && !text.contains("wrong"),
        "{text}"
    );
    std::fs::write(endpoint.key_file(), &endpoint.settings().rule.1).unwrap();

    let stranger = name_of(&config(&endpoint, |text| {
        text.lines()
            .filter(|line| !line.starts_with("tls"))
            .collect::<Vec<_>>()
            .join("\n")
    }));
    assert_eq!(stranger.0, "InvalidEventHubException");
    assert!(stranger.1.contains("tls.ca_file"), "{}", stranger.1);

    endpoint.set_fault(Some(Fault::Down));
    let (name, _) = name_of(&config(&endpoint, |text| text));
    assert_eq!(name, "EventHubProducerClientException");
    endpoint.set_fault(None);
    let delivery = deliver(&destination(&config(&endpoint, |text| text)), messages(1..3, 1));
    assert_eq!(delivery.link, Link::Up);
    assert_eq!(endpoint.events().len(), 2);
}

#[test]
fn a_publisher_is_taken_with_the_signature_for_it_alone() {
    let endpoint = EventHubEndpoint::start(Settings::default());
    let config = config(&endpoint, |text| {
        text.replace("max_batch_bytes", "publisher = \"bed-12\"\nmax_batch_bytes")
    });
    let delivery = deliver(&destination(&config), messages(1..4, 1));
    assert_eq!(delivery.link, Link::Up, "{:?}", endpoint.refusals());
    let keys: Vec<_> = endpoint
        .events()
        .into_iter()
        .map(|event| event.partition_key)
        .collect();
    assert_eq!(keys, vec![Some("bed-12".to_owned()); 3]);
}

#[test]
fn a_ready_made_token_is_taken_until_it_is_over_and_a_new_one_is_in_use_at_once() {
    let endpoint = EventHubEndpoint::start(Settings::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let (rule, key) = endpoint.settings().rule.clone();
    let uri = format!(
        "https://{}/{}",
        endpoint.settings().namespace,
        endpoint.settings().hub
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = |expiry: u64| sas_token(&uri, &rule, &key, i64::try_from(expiry).unwrap());
    let config = config(&endpoint, |text| {
        let auth = format!(
            "auth = {{ kind = \"sas\", token = \"file:{}\" }}",
            file.path().display()
        );
        let lines = text
            .lines()
            .map(|line| if line.starts_with("auth") { &auth } else { line });
        lines.collect::<Vec<_>>().join("\n")
    });
    let destination = destination(&config);
    std::fs::write(file.path(), token(now - 10)).unwrap();
    match deliver(&destination, messages(1..3, 1)).link {
        Link::Down { error, .. } => assert!(error.text.contains("has expired"), "{}", error.text),
        other => panic!("{other:?}"),
    }
    assert_eq!(endpoint.refusals(), Vec::<String>::new(), "it did not travel");
    std::fs::write(file.path(), token(now + 3600)).unwrap();
    assert_eq!(deliver(&destination, messages(1..3, 1)).link, Link::Up);
    assert_eq!(endpoint.events().len(), 2);
}

#[test]
fn devices_as_partition_keys_share_the_line_and_each_keeps_its_order() {
    let endpoint = EventHubEndpoint::start(Settings::default());
    endpoint.set_fault(Some(Fault::Delay(Duration::from_millis(30))));
    let config = config(&endpoint, |text| {
        text.replace(
            "max_batch_bytes = 1048576",
            "partition_key = \"device\"\nmax_batch_bytes = 20000",
        )
    });
    let mut sent = messages(1..801, 40);
    for message in &mut sent {
        let stored = Arc::make_mut(&mut message.stored);
        stored.message.device_id = Some(format!("band-{}", stored.position % 7).into());
    }
    let before = std::time::Instant::now();
    let delivery = deliver(&destination(&config), sent);
    let took = before.elapsed();
    assert_eq!(delivery.link, Link::Up, "{:?}", endpoint.refusals());
    let mut last: BTreeMap<Option<String>, u64> = BTreeMap::new();
    for event in endpoint.events() {
        let position: u64 = event.id().rsplit('/').next().unwrap().parse().unwrap();
        let before = last.insert(event.partition_key, position);
        assert!(before.is_none_or(|before| before < position));
    }
    assert_eq!(last.len(), 7);
    assert_eq!(endpoint.most_in_flight(), 1, "of each key");
    let publications = endpoint
        .events()
        .iter()
        .map(|event| event.publication)
        .max()
        .unwrap()
        + 1;
    let alone = Duration::from_millis(30) * u32::try_from(publications).unwrap();
    assert!(
        (2..=4).contains(&endpoint.connections()) && took < alone,
        "{publications} in {took:?}"
    );
}
