//! The Event Hubs destination over AMQP 1.0, with TLS and over WebSockets, against an endpoint on another implementation of
//! the protocol that refuses what Azure refuses.
#![allow(clippy::disallowed_methods, reason = "a test of real sockets in real time")]

use bedside_agent::config::EventHubConfig;
use bedside_agent::forward::{Fate, Link};
use bedside_tests::amqp::endpoint::AmqpEndpoint;
use bedside_tests::amqp::{Taken, config, destination, message, messages};
use bedside_tests::event_hub_sender::{deliver, drain};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn ids(events: &[Taken]) -> Vec<String> {
    events.iter().map(|event| event.id.clone()).collect()
}

fn expected(positions: impl Iterator<Item = u64>) -> Vec<String> {
    positions
        .map(|position| format!("bed-12/store-1/{position}"))
        .collect()
}

fn dead(fates: &[(u64, Fate)]) -> Vec<u64> {
    let dead = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Dead(_)));
    dead.map(|(position, _)| *position).collect()
}

/// Name and text of the trouble, and what the hub asked for.
fn trouble(link: Link) -> (String, String, Option<u64>) {
    match link {
        Link::Down { error, retry_after } => {
            (error.name, error.text, retry_after.map(|after| after.as_secs()))
        }
        other => panic!("no trouble: {other:?}"),
    }
}

#[test]
fn every_message_arrives_once_in_order_with_its_bytes_over_tls_and_over_websockets() {
    let endpoint = AmqpEndpoint::start(&[]);
    let mut next = 1;
    for transport in ["amqp", "amqp-websocket"] {
        let destination = destination(&config(&endpoint.destination(transport)));
        let sent = messages(next..next + 600, 3000);
        let before = endpoint.events().len();
        let delivery = deliver(&destination, sent.clone());
        assert_eq!(delivery.link, Link::Up, "{:?}", endpoint.refusals());
        assert!(delivery.fates.iter().all(|fate| *fate == Fate::Delivered));
        let events = endpoint.events().split_off(before);
        assert_eq!(ids(&events), expected(next..next + 600));
        for (message, event) in sent.iter().zip(&events) {
            let position = message.stored.position;
            assert_eq!(event.body, message.stored.message.payload.bytes());
            assert_eq!(event.partition_key.as_deref(), Some("bed-12"));
            assert_eq!(
                event.properties["bedside-event-id"],
                format!("bed-12/store-1/{position}")
            );
            assert_eq!(
                event.properties["iothub-connection-device-id"],
                format!("band-{}", position % 3)
            );
            assert_eq!(event.properties["unit"], "/min");
            assert!(event.durable);
        }
        next += 600;
    }
    let state = endpoint.state();
    assert_eq!(endpoint.refusals(), Vec::<String>::new());
    assert_eq!(
        (state["connections"].as_u64(), state["attached"].as_u64()),
        (Some(2), Some(2))
    );
    // 1.8 MB each way in publications of at most 1 MiB, as one message of Azure's batch format.
    let publications = state["publications"].as_u64().unwrap();
    assert!((4..=8).contains(&publications), "{publications}");
    assert!(endpoint.log().contains("message-format=0x80013700"));
    assert_eq!(state["tokens"].as_array().unwrap().len(), 2);
}

#[test]
fn each_disposition_and_each_end_of_the_link_has_its_fate_and_its_name() {
    let endpoint = AmqpEndpoint::start(&[]);
    let destination = destination(&config(&endpoint.destination("amqp")));
    let busy = "The request was terminated because the namespace is being throttled.";
    let producer = "EventHubProducerClientException";
    assert_eq!(deliver(&destination, messages(1..2, 9)).link, Link::Up);
    for (outcome, name, after) in [
        (
            json!(["reject", "com.microsoft:server-busy", busy]),
            producer,
            Some(4),
        ),
        (
            json!(["detach", "com.microsoft:server-busy", busy]),
            producer,
            Some(4),
        ),
        (json!(["reject", "com.microsoft:timeout", "x"]), producer, None),
        (
            json!(["detach", "amqp:link:detach-forced", "idle"]),
            producer,
            None,
        ),
        (json!(["release"]), producer, Some(4)),
        (json!(["modify", false]), producer, Some(4)),
        (json!(["cut"]), producer, None),
        (
            json!(["detach", "amqp:unauthorized-access", "x"]),
            "UnauthorizedAccessEventHubException",
            None,
        ),
        (
            json!(["detach", "amqp:not-found", "x"]),
            "InvalidEventHubException",
            None,
        ),
        (
            json!(["reject", "com.microsoft:entity-disabled", "x"]),
            "InvalidEventHubException",
            None,
        ),
    ] {
        endpoint.behave(&json!({ "outcomes": [outcome] }));
        let delivery = deliver(&destination, messages(2..5, 9));
        assert_eq!(delivery.fates, vec![Fate::Retry; 3], "{outcome}");
        let (found, text, asked) = trouble(delivery.link);
        assert_eq!((found.as_str(), asked), (name, after), "{outcome}: {text}");
    }
    assert_eq!(endpoint.events().len(), 1, "nothing was taken meanwhile");
    // What one message is to blame for costs that message: found by halves, the others go on.
    endpoint
        .behave(&json!({ "outcomes": [["modify", true], ["accept"], ["modify", true], ["modify", true]] }));
    assert_eq!(dead(&drain(&destination, messages(2..5, 9))), [3]);
    assert_eq!(ids(&endpoint.events()), expected([1, 2, 4].into_iter()));
    assert_eq!(endpoint.refusals(), Vec::<String>::new());
}

#[test]
fn what_was_transferred_when_the_connection_broke_is_repeated_under_the_same_id() {
    let endpoint = AmqpEndpoint::start(&[]);
    for transport in ["amqp", "amqp-websocket"] {
        let text = endpoint.destination(transport).replace("1048576", "40000");
        let destination = destination(&config(&text));
        endpoint.behave(
            &json!({ "events": [], "outcomes": [["accept"], ["take-and-cut"], ["accept"], ["cut"]] }),
        );
        let fates = drain(&destination, messages(1..400, 100));
        assert!(fates.iter().all(|(_, fate)| *fate == Fate::Delivered));
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for event in endpoint.events() {
            *count.entry(event.id).or_default() += 1;
        }
        assert_eq!(count.len(), 399);
        let repeated = count.values().filter(|count| **count > 1).count();
        assert!(
            repeated > 0 && repeated < 200 && count.values().all(|count| *count <= 2),
            "{repeated} repeated"
        );
    }
    assert_eq!(endpoint.refusals(), Vec::<String>::new());
}

#[test]
fn an_event_that_is_too_large_or_refused_is_given_up_alone() {
    // The hub says at attach what it takes, or only when it gets more, or not at all until the tier is exceeded.
    for option in ["--max-message-size", "--tier"] {
        let endpoint = AmqpEndpoint::start(&[option, "60000"]);
        let destination = destination(&config(&endpoint.destination("amqp")));
        endpoint.behave(&json!({ "refuse_text": "{\"n\":77," }));
        let mut sent = messages(1..300, 400);
        sent.insert(150, message(1000, 90_000));
        let fates = drain(&destination, sent);
        assert_eq!(dead(&fates), [77, 1000]);
        let large = fates.iter().find(|(position, _)| *position == 1000);
        assert!(matches!(large, Some((_, Fate::Dead(error))) if error.name == "EventTooLargeException"));
        assert_eq!(ids(&endpoint.events()), expected((1..300).filter(|n| *n != 77)));
        assert_eq!(endpoint.refusals(), Vec::<String>::new());
    }
}

#[test]
fn credit_is_waited_for_and_the_order_of_each_device_is_kept() {
    let endpoint = AmqpEndpoint::start(&[]);
    let text = endpoint
        .destination("amqp")
        .replace("1048576", "8000\npartition_key = \"device\"");
    let destination = destination(&config(&text));
    endpoint.behave(&json!({ "credit": 0 }));
    let sent = messages(1..200, 100);
    let waiting = Instant::now();
    let delivery = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(endpoint.events().len(), 0, "nothing without credit");
            endpoint.behave(&json!({ "credit": 1 }));
        });
        deliver(&destination, sent)
    });
    assert!(waiting.elapsed() >= Duration::from_secs(2));
    assert_eq!(delivery.link, Link::Up);
    let events = endpoint.events();
    assert_eq!(events.len(), 199);
    for device in 0..3 {
        let key = format!("band-{device}");
        let of_device: Vec<Taken> = events
            .iter()
            .filter(|event| event.partition_key.as_deref() == Some(&key))
            .cloned()
            .collect();
        assert_eq!(ids(&of_device), expected((1..200).filter(|n| n % 3 == device)));
    }
}

#[test]
fn a_token_that_is_refused_a_wrong_clock_a_stranger_and_an_unknown_hub_each_have_their_name() {
    let endpoint = AmqpEndpoint::start(&["--clock-offset", "2400"]);
    let sas = |change: &dyn Fn(String) -> String| config(&change(endpoint.destination("amqp")));
    let name_of = |config: &EventHubConfig| {
        let delivery = deliver(&destination(config), messages(1..3, 9));
        assert_eq!(delivery.fates, vec![Fate::Retry; 2]);
        trouble(delivery.link)
    };
    // The hub's clock is 40 minutes ahead of ours: that is said instead of "check the key".
    std::fs::write(endpoint.key_file(), "wrong").unwrap();
    let (name, text, _) = name_of(&sas(&|text| text));
    assert_eq!(name, "UnauthorizedAccessEventHubException");
    assert!(
        text.contains("InvalidSignature") && text.contains("40 minutes off"),
        "{text}"
    );
    assert!(!text.contains("wrong"), "{text}");
    std::fs::write(endpoint.key_file(), "c2VjcmV0LWtleS1mb3ItdGVzdHM=").unwrap();
    let (name, text, _) = name_of(&sas(&|text| text.replace("\"gateway\"", "\"other\"")));
    assert_eq!(name, "UnauthorizedAccessEventHubException");
    assert!(text.contains("no such rule"), "{text}");
    endpoint.behave(&json!({ "refuse_tokens": [503, "Throttled"] }));
    let (name, _, after) = name_of(&sas(&|text| text));
    assert_eq!(
        (name.as_str(), after),
        ("EventHubProducerClientException", Some(4))
    );
    endpoint.behave(&json!({
        "refuse_tokens": null,
        "attach_error": ["amqp:not-found", "The messaging entity 'devicedata' could not be found."]
    }));
    let (name, text, _) = name_of(&sas(&|text| text));
    assert_eq!(name, "InvalidEventHubException", "{text}\n{}", endpoint.log());
    assert!(text.contains("could not be found"), "{text}");
    endpoint.behave(&json!({ "attach_error": null }));
    for transport in ["amqp", "amqp-websocket"] {
        let without_ca = |text: String| {
            let lines = text.lines().filter(|line| !line.starts_with("tls"));
            lines.collect::<Vec<_>>().join("\n")
        };
        let (name, text, _) = name_of(&config(&without_ca(endpoint.destination(transport))));
        assert_eq!(name, "InvalidEventHubException");
        assert!(text.contains("tls.ca_file"), "{text}");
    }
    assert_eq!(endpoint.events().len(), 0);
    assert_eq!(
        deliver(&destination(&sas(&|text| text)), messages(1..3, 9)).link,
        Link::Up
    );
}

#[test]
fn a_token_is_renewed_on_the_same_connection_before_it_is_over() {
    // Entra gives tokens of 8 s here; a link whose token is over is ended by the endpoint, and that would be noted.
    let endpoint = AmqpEndpoint::start(&["--token-life", "8"]);
    let text = endpoint.destination("amqp-websocket");
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("auth")).collect();
    let text = format!(
        "{}\nauth = {{ kind = \"client-credentials\", token_url = \"{}\", client_id = \"bedside\", \
         secret = \"file:{}\", scope = \"https://eventhubs.azure.net/.default\" }}\n",
        text.join("\n"),
        endpoint.token_url(),
        endpoint.key_file().display()
    );
    std::fs::write(endpoint.key_file(), "other-secret").unwrap();
    let destination = destination(&config(&text));
    let (name, text, _) = trouble(deliver(&destination, messages(1..2, 9)).link);
    assert_eq!(name, "UnauthorizedAccessEventHubException");
    assert!(text.contains("invalid_client"), "{text}");
    std::fs::write(endpoint.key_file(), "client-secret").unwrap();
    let until = Instant::now() + Duration::from_secs(13);
    let mut position = 1;
    while Instant::now() < until {
        assert_eq!(
            deliver(&destination, messages(position..position + 1, 9)).link,
            Link::Up
        );
        position += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ids(&endpoint.events()), expected(1..position));
    let state = endpoint.state();
    let tokens = state["tokens"].as_array().unwrap();
    assert!(
        tokens.len() >= 3
            && tokens
                .iter()
                .all(|put| put["status"] == 200 && put["type"] == "jwt")
    );
    assert_eq!(
        (endpoint.refusals(), state["connections"].as_u64()),
        (Vec::new(), Some(1))
    );
}

#[test]
fn an_outage_is_named_and_what_ended_while_idle_is_opened_again_without_a_word() {
    let mut endpoint = AmqpEndpoint::start(&[]);
    let destination = destination(&config(&endpoint.destination("amqp")));
    assert_eq!(deliver(&destination, messages(1..10, 9)).link, Link::Up);
    let before = endpoint.events();
    endpoint.stop();
    // The connection may end under the first publication; the next finds nobody.
    for expected in ["", "refuses connections"] {
        let delivery = deliver(&destination, messages(10..20, 9));
        assert_eq!(delivery.fates, vec![Fate::Retry; 10]);
        let (name, text, _) = trouble(delivery.link);
        assert_eq!(name, "EventHubProducerClientException");
        assert!(text.contains(expected), "{text}");
    }
    endpoint.run();
    assert_eq!(deliver(&destination, messages(10..20, 9)).link, Link::Up);
    let between = endpoint.events();
    // The hub comes back before anything is sent: the old link is dead, and nobody has to know.
    endpoint.stop();
    endpoint.run();
    assert_eq!(deliver(&destination, messages(20..30, 9)).link, Link::Up);
    let all: Vec<Taken> = [before, between, endpoint.events()].concat();
    assert_eq!(ids(&all), expected(1..30));
}
