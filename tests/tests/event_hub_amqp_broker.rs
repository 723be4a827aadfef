//! The Event Hubs destination against RabbitMQ with its AMQP 1.0 plugin: another broker, with name and password.
#![allow(clippy::disallowed_methods, reason = "a test of real sockets in real time")]

use bedside_agent::forward::{Fate, Link};
use bedside_tests::amqp::rabbit::Rabbit;
use bedside_tests::amqp::{config, destination, messages};
use bedside_tests::event_hub_sender::{deliver, drain};

#[test]
fn rabbitmq_takes_each_event_as_a_message_and_keeps_it_over_a_power_cut() {
    let mut rabbit = Rabbit::start();
    let destination = destination(&config(&rabbit.destination()));
    std::fs::write(rabbit.password_file(), "wrong").unwrap();
    match deliver(&destination, messages(1..2, 9)).link {
        Link::Down { error, .. } => {
            assert_eq!(
                error.name, "UnauthorizedAccessEventHubException",
                "{}",
                error.text
            );
        }
        other => panic!("{other:?}"),
    }
    std::fs::write(rabbit.password_file(), "secret").unwrap();
    let sent = messages(1..201, 100);
    let fates = drain(&destination, sent.clone());
    assert!(fates.iter().all(|(_, fate)| *fate == Fate::Delivered));

    // What was accepted is on its disk.
    rabbit.kill();
    match deliver(&destination, messages(201..203, 9)).link {
        Link::Down { error, .. } => assert_eq!(error.name, "EventHubProducerClientException"),
        other => panic!("{other:?}"),
    }
    rabbit.run();
    let later = messages(201..203, 9);
    drain(&destination, later.clone());
    let taken = rabbit.take(202);
    for (message, event) in sent.iter().chain(&later).zip(&taken) {
        assert_eq!(event.id, format!("bed-12/store-1/{}", message.stored.position));
        assert_eq!(event.body, message.stored.message.payload.bytes());
        assert_eq!(event.properties["bedside-event-id"], event.id.as_str());
        assert_eq!(event.partition_key.as_deref(), Some("bed-12"));
    }
}
