//! Bytes to messages: one client per broker, one loop per serial port. Sources put messages into a bounded channel that
//! the intake loop empties; when the store is slow, the source slows down and drops nothing.

mod backoff;
mod ending;
pub mod mqtt;
mod outlet;
pub mod payload;
pub mod serial;
mod stamp;
pub mod status;
mod supervise;

use crate::config::ClockTrust;
use crate::message::{AckToken, Message, SourceId};
use crate::telemetry::errors::{ErrorRecord, ErrorSeverity, ErrorType, Operation, Repair};
use bytes::Bytes;
use stamp::Stamper;
use std::pin::Pin;
use std::sync::Arc;

pub use ending::Ending;
pub use mqtt::StoredPacket;
pub use status::SourceStatus;

/// Called by the intake loop after the commit that made messages safe against a power cut.
pub trait Acknowledger: Send + Sync {
    /// The messages behind `tokens` are committed; acknowledge them in this order, each only on the connection that its
    /// epoch names. Never blocks.
    fn committed(&self, tokens: &[AckToken]);
}

/// What the intake loop knows of a source.
#[derive(Clone)]
pub struct SourceHandle {
    /// Number in the store.
    pub id: SourceId,
    /// Name in the configuration.
    pub name: Arc<str>,
    /// How its messages are acknowledged; none for serial lines.
    pub acknowledger: Option<Arc<dyn Acknowledger>>,
    /// Messages that its sender lets be unacknowledged at a time; 0 when it does not wait for acknowledgements.
    pub window: u16,
}

/// Where sources put their messages. Bounded: waits when the store is slow.
pub type MessageSender = tokio::sync::mpsc::Sender<Message>;

/// The loop of a source. It ends when the intake is gone; dropping it closes the connection or the port.
pub type SourceLoop = Pin<Box<dyn Future<Output = ()>>>;

/// What a source is given when it starts.
#[derive(Clone)]
pub struct SourceContext {
    /// Number in the store.
    pub id: SourceId,
    /// Name in the configuration.
    pub name: Arc<str>,
    /// `[gateway] id`; part of the default client identifier.
    pub gateway_id: Arc<str>,
    /// Number of this boot in the store.
    pub boot: u32,
    /// When the wall clock may be trusted.
    pub trust: ClockTrust,
    /// Where messages go.
    pub sender: MessageSender,
    /// The journal's last messages of this source that had a packet id, oldest first ([`StoredPacket::of`]); two windows
    /// and some are enough.
    pub resume: Vec<StoredPacket>,
    /// What its payload format remembers over restarts.
    pub memory: payload::Memory,
    /// Records of its devices that were committed in an earlier life, oldest first.
    pub records: Vec<u64>,
    /// How the source is told that the agent stops.
    pub ending: Arc<Ending>,
    /// What the source shows of itself.
    pub status: Arc<SourceStatus>,
    /// What the agent has to write down.
    pub events: tokio::sync::mpsc::UnboundedSender<SourceEvent>,
}

impl SourceContext {
    /// What the intake knows of a source whose sender does not wait for acknowledgements.
    pub fn handle(&self) -> SourceHandle {
        SourceHandle {
            id: self.id,
            name: Arc::clone(&self.name),
            acknowledger: None,
            window: 0,
        }
    }

    /// A message that comes now.
    pub fn message(&self, payload: impl Into<Bytes>) -> Message {
        Message::new(self.id, Stamper::new(self.boot, self.trust).stamp(), payload)
    }
}

/// What a source tells the agent beside messages.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// The session with the broker is ended because of a packet that cannot be read: what the broker still held for this
    /// gateway is lost, its number unknown. For the loss ledger.
    SessionGivenUp {
        /// The source.
        source: SourceId,
        /// Why.
        error: ErrorRecord,
    },
}

/// An error record of a source: connecting, opening, configuration of the site; a retry can help.
fn setup_error(name: &str, error_type: ErrorType, text: String) -> ErrorRecord {
    ErrorRecord {
        operation: Operation::Setup,
        severity: ErrorSeverity::Critical,
        error_type,
        repair: Repair::Site,
        retry: true,
        ..ErrorRecord::new(name, text)
    }
}
