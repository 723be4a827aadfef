//! Deliveries to an event hub as the forward loop asks for them, over either transport.

use bedside_agent::forward::event_hub::EventHubDestination;
use bedside_agent::forward::{Fate, Link, MessageDelivery, RawMessage};
use std::time::Duration;

/// One delivery, as the forward loop asks for it.
pub fn deliver(destination: &EventHubDestination, messages: Vec<RawMessage>) -> MessageDelivery {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(destination.deliver_messages(messages))
}

/// Sends until everything is delivered or dead, as the forward loop does, with short pauses while the broker is down.
pub fn drain(destination: &EventHubDestination, mut left: Vec<RawMessage>) -> Vec<(u64, Fate)> {
    let mut fates = Vec::new();
    let mut said = String::new();
    for _ in 0..50 {
        let delivery = deliver(destination, left.clone());
        said = format!("{:?}", delivery.link);
        let mut retry = Vec::new();
        for (message, fate) in left.into_iter().zip(delivery.fates) {
            match fate {
                Fate::Retry => retry.push(message),
                fate => fates.push((message.stored.position, fate)),
            }
        }
        left = retry;
        if left.is_empty() {
            return fates;
        }
        if matches!(delivery.link, Link::Down { .. }) {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    panic!("{} messages are not delivered: {said}", left.len());
}
