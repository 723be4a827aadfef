//! Messages of an MQTT broker.
//!
//! Invariants:
//! 1. A message is acknowledged after its commit, on the connection on which it came, in receive order ([`gate`]).
//! 2. A message that the broker delivers again is stored twice rather than never ([`repeat`]).
//! 3. Reading from the socket does not wait for the store: the broker would drop what it cannot send, and pings would
//!    stop. What waits for the store is bounded by the window and by bytes (mosquitto 2.0.11 sends up to a window for
//!    each acknowledgement). Beyond that reading pauses for a moment, shorter than any ping; then the connection is
//!    closed on purpose, and the session keeps the rest at the broker.
//! 4. A message above the size limit costs nothing but itself: its head is handed on. Only a packet that cannot be read
//!    at all ends the session, after several attempts, and that is told.

mod client_v4;
mod client_v5;
mod envelope;
mod failure;
mod gate;
mod link;
mod rebirths;
mod repeat;
mod source;
mod tls;

#[cfg(test)]
#[path = "tests/mod.rs"]
mod broker_tests;
#[cfg(test)]
mod scripted_broker;

pub use repeat::StoredPacket;
#[cfg(feature = "amqp")]
pub(crate) use tls::client_config as tls_client_config;

use crate::config::{MqttConfig, MqttProtocol, Secret, SecretRef};
use crate::ingest::payload::annotate::Annotator;
use crate::ingest::{SourceContext, SourceHandle, SourceLoop, setup_error, supervise};
use crate::telemetry::errors::{ErrorRecord, ErrorType};
use std::sync::{Arc, Mutex, PoisonError};

/// Seconds until a connection attempt is given up.
const CONNECT_TIMEOUT_SECONDS: u64 = 10;

/// The window of a broker that cannot be told one: what mosquitto allows by default.
const WINDOW_3_1_1: u16 = 20;

/// No broker that takes free packet ids again is known to allow more.
const LARGEST_WINDOW_3_1_1: u16 = 1000;

/// Prepares the source; it runs while the returned loop is polled (single-threaded, needs tokio's I/O and time).
///
/// # Errors
/// When the configuration can never work. What the network, the broker or a missing file cause is retried for ever and
/// shown by the source's status.
pub fn start(config: &MqttConfig, context: SourceContext) -> Result<(SourceHandle, SourceLoop), ErrorRecord> {
    let broker = config.broker().map_err(|why| invalid(format!("`url`: {why}")))?;
    let wrong = |topic: &&String| !rumqttc::mqttbytes::valid_filter(topic);
    if let Some(topic) = config.topics.iter().find(wrong) {
        return Err(invalid(format!("`topics`: \"{topic}\" is no topic filter")));
    }
    let window = match config.protocol {
        MqttProtocol::V5 => config.window,
        MqttProtocol::V311 => config.window.max(LARGEST_WINDOW_3_1_1),
    };
    let gate = Arc::new(gate::Gate::new(
        window,
        &context.resume,
        Arc::clone(&context.status),
    ));
    let handle = SourceHandle {
        id: context.id,
        name: Arc::clone(&context.name),
        acknowledger: Some(Arc::clone(&gate) as _),
        window: match config.protocol {
            MqttProtocol::V5 => config.window.max(1),
            MqttProtocol::V311 => config.window.clamp(1, WINDOW_3_1_1),
        },
    };
    let config = config.clone();
    let annotator = Annotator::new(&config, context.id, &context.memory);
    let annotator = Arc::new(Mutex::new(annotator));
    let mut started = false;
    let source = supervise::run(context, move |context| {
        gate.restart();
        if std::mem::replace(&mut started, true) {
            annotator.clear_poison();
            annotator.lock().unwrap_or_else(PoisonError::into_inner).restart();
        }
        let (gate, annotator) = (Arc::clone(&gate), Arc::clone(&annotator));
        source::Source::new(config.clone(), &broker, context.clone(), gate, annotator).run()
    });
    Ok((handle, Box::pin(source)))
}

fn invalid(text: String) -> ErrorRecord {
    ErrorRecord {
        retry: false,
        ..setup_error("InvalidBrokerException", ErrorType::GeneralError, text)
    }
}

/// Reads a secret anew, so that a changed one is in use from the next connection on.
fn read_secret(place: &SecretRef) -> Result<Secret, ErrorRecord> {
    place.read().map_err(|error| {
        setup_error(
            "SecretException",
            ErrorType::AuthenticationError,
            error.to_string(),
        )
    })
}
