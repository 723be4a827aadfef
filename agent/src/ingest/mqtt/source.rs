//! The loop of an MQTT source: connect, take what comes, hand it on, and connect again when the connection is gone
//! (`source/aftermath.rs`).

mod aftermath;

use super::envelope::Topics;
use super::failure::Broker;
use super::gate::Gate;
use super::link::{Event, Failure, Link, Outbox, Plan, Publish, WIDE_PACKET_BYTES};
use super::rebirths::Rebirths;
use super::repeat::{Verdict, packet_hash};
use super::{client_v4, client_v5, tls};
use crate::config::{Broker as Address, MqttConfig, MqttProtocol};
use crate::ingest::backoff::Backoff;
use crate::ingest::outlet::Outlet;
use crate::ingest::payload::annotate::Annotator;
use crate::ingest::stamp::Stamper;
use crate::ingest::{SourceContext, setup_error};
use crate::message::{Message, PayloadKind};
use crate::telemetry::errors::{ErrorRecord, ErrorType};
use bytes::Bytes;
use embassy_time::{Duration, Instant, Timer};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is kept of a payload above the limit, in bytes.
const HEAD_BYTES: usize = 4096;

/// Bytes of messages that may wait for their commit, unless four messages of the largest size are more.
const UNCOMMITTED_BYTES: usize = 8 * 1024 * 1024;

/// Room of a packet beside its payload: topic and fixed header.
const HEADER_BYTES: usize = 64 * 1024 + 8;

/// A connection that lived this long, or delivered something, was a success.
const STABLE: Duration = Duration::from_secs(10);

/// Pause before a refused topic filter is asked for again.
const RESUBSCRIBE: Duration = Duration::from_secs(60);

/// Connections of this process are numbered through, over all sources and their restarts.
static EPOCH: AtomicU64 = AtomicU64::new(1);

/// Why a connection is over.
enum End {
    /// It failed.
    Failed(Failure),
    /// Closed on purpose: too many bytes wait for their commit.
    Backpressure,
    /// Closed on purpose: the session was ended.
    SessionEnded,
    /// The intake is gone.
    Stopped,
}

/// How the next connection is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Normal,
    /// Takes packets up to [`WIDE_PACKET_BYTES`].
    Wide,
    /// Ends the session.
    CleanStart,
}

/// An MQTT source.
pub(super) struct Source {
    config: MqttConfig,
    context: SourceContext,
    broker: Broker,
    tls: bool,
    gate: Arc<Gate>,
    topics: Topics,
    annotator: Arc<Mutex<Annotator>>,
    stamper: Stamper,
    backoff: Backoff,
    outlet: Outlet,
    uncommitted_limit: usize,
    mode: Mode,
    unreadable: Option<(String, u32)>,
    /// Why the session is to be ended.
    given_up: Option<ErrorRecord>,
    subscribed: bool,
    connections: u64,
    rebirths: Rebirths,
}

impl Source {
    pub(super) fn new(
        config: MqttConfig,
        address: &Address,
        context: SourceContext,
        gate: Arc<Gate>,
        annotator: Arc<Mutex<Annotator>>,
    ) -> Source {
        let client_id = config
            .client_id
            .clone()
            .unwrap_or_else(|| format!("bedside-agent-{}-{}", context.gateway_id, context.name));
        Source {
            broker: Broker {
                // An address needs its brackets before a port.
                host: match address.host.contains(':') {
                    true => format!("[{}]", address.host),
                    false => address.host.clone(),
                },
                port: address.port,
                username: config.username.clone(),
                client_id,
                protocol: config.protocol,
                max_packet: 0,
            },
            tls: address.tls,
            gate,
            topics: Topics::new(&config),
            annotator,
            stamper: Stamper::new(context.boot, context.trust),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(30)),
            outlet: Outlet::new(context.sender.clone()),
            uncommitted_limit: config.max_message_bytes.saturating_mul(4).max(UNCOMMITTED_BYTES),
            mode: Mode::Normal,
            unreadable: None,
            given_up: None,
            subscribed: false,
            connections: 0,
            rebirths: Rebirths::default(),
            config,
            context,
        }
    }

    /// Runs until the intake is gone.
    pub(super) async fn run(mut self) {
        while !self.outlet.is_closed() {
            let began = Instant::now();
            let came = self.came();
            let end = match self.plan() {
                Ok(plan) => match self.config.protocol {
                    MqttProtocol::V5 => self.connection(client_v5::LinkV5::new(plan)).await,
                    MqttProtocol::V311 => self.connection(client_v4::LinkV4::new(plan)).await,
                },
                Err(record) => {
                    self.report(record, false);
                    self.pause_after_failure().await;
                    continue;
                }
            };
            let worked = began.elapsed() >= STABLE || self.came() != came;
            if worked && !matches!(end, End::Failed(Failure::TakenOver)) {
                self.backoff.reset();
            }
            match end {
                End::Failed(failure) => self.after_failure(failure).await,
                End::Backpressure => self.after_backpressure().await,
                End::SessionEnded => self.mode = Mode::Normal,
                End::Stopped => return,
            }
        }
    }

    /// Messages that came, again or for the first time.
    fn came(&self) -> u64 {
        self.context.status.received.get() + self.context.status.repeats.get()
    }

    fn plan(&mut self) -> Result<Plan, ErrorRecord> {
        let tls = match self.tls {
            true => Some(tls::client_config(&self.config.tls)?),
            false => None,
        };
        let login = match &self.config.username {
            Some(user) => {
                let password = self
                    .config
                    .password
                    .as_ref()
                    .map(super::read_secret)
                    .transpose()?;
                let password = password.as_ref().map_or("", |secret| secret.reveal());
                Some((user.clone(), password.to_owned()))
            }
            None => None,
        };
        let normal = self.config.max_message_bytes.saturating_add(HEADER_BYTES);
        // A broker that is told a limit (MQTT 5) throws away what is larger without a word; so it is told the widest.
        self.broker.max_packet = match (self.config.protocol, self.mode) {
            (MqttProtocol::V311, Mode::Normal) => normal,
            _ => normal.max(WIDE_PACKET_BYTES),
        };
        Ok(Plan {
            host: self.broker.host.clone(),
            port: self.broker.port,
            tls,
            client_id: self.broker.client_id.clone(),
            login,
            keep_alive: self.config.keep_alive,
            window: self.config.window.max(1),
            max_packet: self.broker.max_packet,
            clean_start: self.mode == Mode::CleanStart,
        })
    }

    /// One connection from its attempt to its end.
    async fn connection<L: Link>(&mut self, mut link: L) -> End {
        let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        let end = self.take_events(&mut link, epoch).await;
        self.gate.close();
        // What had been read before the end is kept: it cannot be acknowledged any more, and is recognised when it is
        // delivered again. This way what precedes an unreadable packet comes through.
        for event in link.remaining() {
            match event {
                Event::Publish(publish) => drop(self.take(publish)),
                Event::AcknowledgementLeft(packet_id) => self.gate.acknowledgement_left(packet_id),
                _ => {}
            }
        }
        end
    }

    async fn take_events<L: Link>(&mut self, link: &mut L, epoch: u64) -> End {
        let mut resubscribe_at: Option<Instant> = None;
        // Reading pauses while too much waits for its commit; at this time the connection is closed.
        let mut paused_until: Option<Instant> = None;
        let gate = Arc::clone(&self.gate);
        let outbox = link.outbox();
        loop {
            self.outlet.move_on();
            let event = {
                let Source {
                    outlet,
                    config,
                    uncommitted_limit,
                    ..
                } = &mut *self;
                // Never dropped while the connection lives: it may be in the middle of a write.
                let mut next = pin!(link.next());
                loop {
                    tokio::select! {
                        biased;
                        event = &mut next, if paused_until.is_none() => break event,
                        () = outlet.moved() => {}
                        () = gate.changed.notified(), if paused_until.is_some() => {}
                        () = at(paused_until), if paused_until.is_some() => return End::Backpressure,
                        () = at(resubscribe_at), if resubscribe_at.is_some() => {
                            outbox.subscribe(&config.topics);
                            resubscribe_at = None;
                        }
                    }
                    if outlet.is_closed() {
                        return End::Stopped;
                    }
                    if paused_until.is_some()
                        && gate.uncommitted_bytes() + outlet.bytes() <= *uncommitted_limit / 2
                    {
                        paused_until = None;
                    }
                }
            };
            match event {
                Ok(Event::Publish(publish)) => {
                    let uncommitted = self.take(publish);
                    for (topic, payload) in self.rebirths.requests.drain(..) {
                        outbox.publish(&topic, payload);
                    }
                    if uncommitted > self.uncommitted_limit && paused_until.is_none() {
                        paused_until = Some(Instant::now() + self.longest_pause());
                    }
                }
                Ok(Event::AcknowledgementLeft(packet_id)) => self.gate.acknowledgement_left(packet_id),
                Ok(Event::Connected { session_resumed }) => {
                    if self.mode == Mode::CleanStart {
                        self.session_ended();
                        return End::SessionEnded;
                    }
                    self.connected(link.outbox(), epoch, session_resumed);
                    if !(session_resumed && self.subscribed) {
                        outbox.subscribe(&self.config.topics);
                    }
                }
                Ok(Event::Subscribed(granted)) => {
                    resubscribe_at = self.subscription_answered(&granted);
                }
                Ok(Event::Other) => {}
                Err(failure) => return End::Failed(failure),
            }
        }
    }

    /// How long reading may pause: with it a ping still comes within the one and a half keep-alive times of the broker.
    fn longest_pause(&self) -> Duration {
        Duration::from_secs(self.config.keep_alive.max(5).into()) / 4
    }

    fn connected(&mut self, outbox: Box<dyn Outbox>, epoch: u64, session_resumed: bool) {
        self.gate.open(epoch, outbox, session_resumed);
        if self.connections > 0 {
            self.context.status.reconnects.count();
        }
        self.connections += 1;
        if self.context.status.set_connected() {
            tracing::info!(
                source = &*self.context.name,
                "connected to the broker {}:{}, session {}",
                self.broker.host,
                self.broker.port,
                if session_resumed { "resumed" } else { "new" }
            );
        }
    }

    /// Notes the broker's answer; returns when to ask again.
    fn subscription_answered(&mut self, granted: &[bool]) -> Option<Instant> {
        let refused: Vec<&str> = (self.config.topics.iter().zip(granted))
            .filter(|(_, granted)| !**granted)
            .map(|(topic, _)| topic.as_str())
            .collect();
        if refused.is_empty() {
            self.subscribed = true;
            if self.context.status.error().is_some() {
                self.context.status.set_connected();
                tracing::info!(source = &*self.context.name, "all topic filters are granted now");
            }
            return None;
        }
        self.subscribed = false;
        let text = format!(
            "the broker {}:{} does not grant the topic filter {}: allow the user to read it at the broker",
            self.broker.host,
            self.broker.port,
            refused.join(", ")
        );
        let record = setup_error(
            "UnauthorizedAccessBrokerException",
            ErrorType::AuthenticationError,
            text,
        );
        self.report(record, true);
        Some(Instant::now() + RESUBSCRIBE)
    }

    /// Takes a message; returns the bytes that wait for their commit.
    fn take(&mut self, publish: Publish) -> usize {
        let Publish {
            topic,
            packet_id,
            redelivered,
            payload,
            user_properties,
        } = publish;
        let (payload, kind) = self.bounded(payload);
        let mut message = Message {
            kind,
            properties: user_properties,
            ..Message::new(self.context.id, self.stamper.stamp(), payload)
        };
        let weight = message.weight();
        let mut uncommitted = 0;
        if packet_id != 0 {
            let hash = packet_hash(&topic, message.payload.bytes(), kind);
            let received = self.gate.receive(packet_id, hash, redelivered, weight);
            uncommitted = received.uncommitted_bytes;
            let Verdict::Store { possible_repeat } = received.verdict else {
                self.context.status.repeats.count();
                return uncommitted;
            };
            message.possible_repeat = possible_repeat;
            message.ack = Some(received.token);
        }
        (message.topic, message.device_id) = {
            let (topic, device_id) = self.topics.names(&topic);
            (Some(topic), device_id)
        };
        self.annotate(&mut message);
        if kind != PayloadKind::Whole {
            self.context.status.oversize.count();
        }
        self.context.status.received.count();
        self.outlet.put(message);
        self.outlet.bytes() + uncommitted
    }

    /// Puts beside the message what its payload refers to, and notes who is there or away.
    fn annotate(&mut self, message: &mut Message) {
        let said = {
            let mut annotator = self.annotator.lock().unwrap_or_else(PoisonError::into_inner);
            annotator.annotate(message)
        };
        if let Some(node) = said.incomplete.filter(|_| self.config.request_rebirth) {
            self.rebirths.ask(node, &self.context.name);
        }
        if let Some((who, available)) = said.availability {
            self.context.status.set_available(&who, available);
        }
    }

    /// The payload, or its head when it is above the limit.
    fn bounded(&self, payload: Bytes) -> (Bytes, PayloadKind) {
        if payload.len() <= self.config.max_message_bytes {
            return (payload, PayloadKind::Whole);
        }
        let kind = PayloadKind::Truncated {
            length: u64::try_from(payload.len()).unwrap_or(u64::MAX),
            crc: crc32fast::hash(&payload),
        };
        // A copy, so that the large packet does not stay in memory.
        let head = payload.get(..HEAD_BYTES).unwrap_or(&payload);
        (Bytes::copy_from_slice(head), kind)
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => Timer::at(deadline).await,
        None => std::future::pending().await,
    }
}
