//! What the source needs of an MQTT client. A connection is a link of its own from CONNECT to its end: nothing of an
//! earlier one (queued acknowledgements, buffered packets, requests) can reach it. A successor of the client library
//! implements these two traits and nothing else changes.

use bytes::Bytes;

/// Limit of what any connection takes, in bytes: a packet above the limit for messages is read up to here.
pub(super) const WIDE_PACKET_BYTES: usize = 16 * 1024 * 1024;

/// Everything that a client needs for one connection.
pub(super) struct Plan {
    pub(super) host: String,
    pub(super) port: u16,
    /// TLS of `mqtts`.
    pub(super) tls: Option<rustls::ClientConfig>,
    pub(super) client_id: String,
    /// User name and password.
    pub(super) login: Option<(String, String)>,
    /// Seconds.
    pub(super) keep_alive: u16,
    /// Packets that may be unacknowledged.
    pub(super) window: u16,
    /// Largest packet in bytes.
    pub(super) max_packet: usize,
    /// Ends the session that the broker keeps.
    pub(super) clean_start: bool,
}

/// A PUBLISH that came.
pub(super) struct Publish {
    pub(super) topic: Bytes,
    /// 0 at QoS 0.
    pub(super) packet_id: u16,
    /// DUP.
    pub(super) redelivered: bool,
    pub(super) payload: Bytes,
    pub(super) user_properties: Vec<(String, String)>,
}

/// What happened on a connection.
pub(super) enum Event {
    /// CONNACK; the broker still had the session or not.
    Connected { session_resumed: bool },
    /// A message.
    Publish(Publish),
    /// A PUBACK may have left.
    AcknowledgementLeft(u16),
    /// SUBACK: for each filter in order whether the broker grants it.
    Subscribed(Vec<bool>),
    /// Pings and the like.
    Other,
}

/// Why a connection ended or did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    /// The broker refused user name or password.
    BadLogin,
    /// The broker knows the user but does not let it in.
    NotAuthorized,
    /// The broker does not speak this version of MQTT.
    UnsupportedProtocol,
    /// The broker refused for another reason.
    Refused(String),
    /// TLS.
    Tls(rustls::Error),
    /// Nothing listens there, or the network is down.
    Unreachable(std::io::Error),
    /// No answer in time.
    Timeout,
    /// Another client took the session over.
    TakenOver,
    /// A packet above the limit, with its size.
    TooLarge(usize),
    /// A packet that is no MQTT.
    Undecodable(String),
    /// The connection was lost.
    Lost(String),
}

/// What is sent on one connection. Sending never waits: what has no room is to be tried again.
pub(super) trait Outbox: Send {
    /// Queues a PUBACK; false when there is no room.
    fn acknowledge(&self, packet_id: u16) -> bool;

    /// Queues a SUBSCRIBE for `filters` at QoS 1; false when there is no room.
    fn subscribe(&self, filters: &[String]) -> bool;

    /// Queues a PUBLISH at QoS 0; false when there is no room. The only one that the agent sends asks an edge node of Sparkplug B
    /// for its births.
    fn publish(&self, topic: &str, payload: Vec<u8>) -> bool;
}

/// One connection.
pub(super) trait Link {
    /// The way out on this connection.
    fn outbox(&self) -> Box<dyn Outbox>;

    /// The next event; connects at the first call. Not to be cancelled and called again.
    async fn next(&mut self) -> Result<Event, Failure>;

    /// What had been read when the connection ended, and which acknowledgements may have left.
    fn remaining(&mut self) -> Vec<Event>;
}

/// Whether an error chain holds an error of TLS.
pub(super) fn tls_error(error: &std::io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}
