//! Bytes to messages: one client per broker, one loop per serial port. Sources put messages into a bounded channel that
//! the intake loop empties; when the store is slow, the source slows down and drops nothing.

pub mod serial;

use crate::message::{AckToken, Message, SourceId};
use std::sync::Arc;

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
