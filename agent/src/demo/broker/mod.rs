//! A minimal MQTT broker in memory: MQTT 3.1.1 and 5, quality of service 0 and 1, wildcards, persistent sessions, window
//! and redelivery, wills. For the demo and for tests; a ward runs a real one.
//!
//! Left out, and said so to clients of MQTT 5 at CONNACK: quality of service 2 (granted down to 1, refused on publish),
//! retained messages, shared subscriptions, subscription identifiers, topic aliases, TLS. A session that is kept is kept
//! until the process ends, whatever its expiry interval.
//!
//! A [`Broker`] can be told to misbehave as networks and brokers do: cut connections, lose sessions, hold deliveries,
//! refuse connections.

mod connection;
mod encode;
pub mod packet;
mod session;

pub use packet::{Property, Publish};
pub use session::Statistics;

use session::Session;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How a broker behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Messages at QoS 1 that are in flight to a client at most; a client of MQTT 5 may ask for fewer.
    pub window: u16,
    /// Messages that wait in a session at most; further ones are refused.
    pub queue_limit: usize,
    /// Largest packet taken from a client, in bytes.
    pub packet_limit: usize,
    /// User name and password that clients must give.
    pub credentials: Option<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            window: 100,
            queue_limit: 100_000,
            packet_limit: 20 << 20,
            credentials: None,
        }
    }
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    statistics: Statistics,
    hold: bool,
    refuse: bool,
    last_connection: u64,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    stop: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Queues a publish for every session that wants it; false when one of them had no room.
    fn route(&mut self, publish: Publish, queue_limit: usize) -> bool {
        self.statistics.published += 1;
        let publish = Arc::new(publish);
        let mut taken = true;
        for session in self.sessions.values_mut() {
            let Some(granted) = session.wants(&publish.topic) else {
                continue;
            };
            if !session.offer(&publish, granted.min(publish.qos), queue_limit) {
                self.statistics.refused += 1;
                taken = false;
            }
        }
        taken
    }

    /// Ends the connection of a session without a word.
    fn end_connection(&mut self, client_id: &str) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        if let Some(connection) = &mut session.connection {
            connection.closing = true;
        }
        session.wake();
    }
}

/// A running broker. Clones are handles to the same one; it runs until [`Broker::stop`].
#[derive(Clone)]
pub struct Broker {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Broker {
    /// Serves `listener` in a task of the current runtime.
    ///
    /// # Errors
    /// When the address of the listener cannot be read.
    pub fn start(listener: TcpListener, options: Options) -> std::io::Result<Broker> {
        let broker = Broker {
            address: listener.local_addr()?,
            shared: Arc::new(Shared {
                options,
                state: Mutex::default(),
                stop: Notify::new(),
            }),
        };
        let shared = Arc::clone(&broker.shared);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = shared.stop.notified() => return,
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => match accepted {
                        Ok((socket, _)) if !shared.state().refuse => {
                            connections.spawn(connection::serve(socket, Arc::clone(&shared)));
                        }
                        // Refused, or the peer was gone before it was accepted.
                        Ok(_) => {}
                        Err(error) => {
                            tracing::warn!(%error, "the demo broker cannot accept a connection");
                            embassy_time::Timer::after_millis(100).await;
                        }
                    },
                }
            }
        });
        Ok(broker)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `mqtt://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Ends all connections and stops listening.
    pub fn stop(&self) {
        self.shared.stop.notify_one();
    }

    /// Publishes as a client would; false when a session had no room.
    pub fn publish(&self, publish: Publish) -> bool {
        self.shared
            .state()
            .route(publish, self.shared.options.queue_limit)
    }

    /// Cuts the connection of a client without a word, as a network does; tells whether there was one.
    pub fn cut(&self, client_id: &str) -> bool {
        let mut state = self.shared.state();
        let connected = state
            .sessions
            .get(client_id)
            .is_some_and(|s| s.connection.is_some());
        state.end_connection(client_id);
        connected
    }

    /// Cuts all connections.
    pub fn cut_all(&self) {
        let mut state = self.shared.state();
        let clients: Vec<String> = state.sessions.keys().cloned().collect();
        for client in clients {
            state.end_connection(&client);
        }
    }

    /// Cuts the connection of a client and forgets its session with all that waits in it, as a broker without
    /// persistence does when it restarts.
    pub fn forget_session(&self, client_id: &str) {
        let mut state = self.shared.state();
        state.end_connection(client_id);
        state.sessions.remove(client_id);
    }

    /// While `hold`, nothing is delivered to subscribers; acknowledgements and pings go on.
    pub fn hold_deliveries(&self, hold: bool) {
        let mut state = self.shared.state();
        state.hold = hold;
        state.sessions.values().for_each(Session::wake);
    }

    /// While `refuse`, new connections are closed at once.
    pub fn refuse_connections(&self, refuse: bool) {
        self.shared.state().refuse = refuse;
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.state().statistics
    }

    /// Identifiers of the clients that are connected.
    pub fn connected(&self) -> Vec<String> {
        let state = self.shared.state();
        let connected = state.sessions.iter().filter(|(_, s)| s.connection.is_some());
        connected.map(|(client, _)| client.clone()).collect()
    }

    /// Messages in flight and waiting for a client; `None` when it has no session.
    pub fn depth(&self, client_id: &str) -> Option<(usize, usize)> {
        self.shared.state().sessions.get(client_id).map(Session::depth)
    }

    /// Whether a session, connected or kept, subscribes to `topic`.
    pub fn has_subscriber(&self, topic: &str) -> bool {
        let state = self.shared.state();
        state
            .sessions
            .values()
            .any(|session| session.wants(topic).is_some())
    }
}

#[cfg(test)]
mod tests;
