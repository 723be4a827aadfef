//! The source against a scripted broker: what happens when the connection, the session or the broker misbehaves.

mod acknowledgements;
mod connection;
mod limits;
mod payloads;

use super::scripted_broker::{Peer, ScriptedBroker, soon};
use super::{SourceContext, start};
use crate::config::{ClockTrust, MqttConfig};
use crate::ingest::payload::{FORMAT_PROPERTY, NAMES_PROPERTY};
use crate::ingest::{SourceEvent, SourceHandle, SourceStatus};
use crate::message::{Message, PayloadKind, SourceId};
use bytes::Bytes;
use embassy_time::{Duration, Timer, with_timeout};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, PingResp, SubscribeReasonCode};
use std::sync::Arc;
use tokio::sync::mpsc;

/// A running source and what it is connected to.
struct Rig {
    broker: ScriptedBroker,
    handle: SourceHandle,
    messages: mpsc::Receiver<Message>,
    events: mpsc::UnboundedReceiver<SourceEvent>,
    status: Arc<SourceStatus>,
}

impl Rig {
    async fn start(members: &str) -> Rig {
        Rig::with_room(members, 16).await
    }

    async fn with_room(members: &str, room: usize) -> Rig {
        let broker = ScriptedBroker::start().await;
        let config = format!(
            "url = '{}'\ntopics = ['wearables/+/telemetry']\n{members}",
            broker.url()
        );
        let config: MqttConfig = toml::from_str(&config).unwrap();
        let (sender, messages) = mpsc::channel(room);
        let (events_sender, events) = mpsc::unbounded_channel();
        let status = Arc::new(SourceStatus::default());
        let context = SourceContext {
            id: SourceId(3),
            name: "ward".into(),
            gateway_id: "bed-12".into(),
            boot: 9,
            trust: ClockTrust::Always,
            sender,
            resume: Vec::new(),
            memory: Default::default(),
            records: Vec::new(),
            ending: std::sync::Arc::default(),
            status: Arc::clone(&status),
            events: events_sender,
        };
        let (handle, source) = start(&config, context).unwrap();
        tokio::task::spawn_local(source);
        Rig {
            broker,
            handle,
            messages,
            events,
            status,
        }
    }

    async fn message(&mut self) -> Message {
        soon("a message", self.messages.recv()).await.unwrap()
    }

    async fn no_message(&mut self) {
        assert!(
            with_timeout(Duration::from_millis(300), self.messages.recv())
                .await
                .is_err()
        );
    }

    fn commit(&self, message: &Message) {
        let acknowledger = self.handle.acknowledger.as_ref().unwrap();
        acknowledger.committed(&[message.ack.unwrap()]);
    }

    async fn until(&self, what: &str, is_so: impl Fn(&SourceStatus) -> bool) {
        soon(what, async {
            while !is_so(&self.status) {
                Timer::after_millis(5).await;
            }
        })
        .await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}

/// DDATA of oxi7, sequence number 1: alias 1 is 73.
const DDATA: &str = "08a8f495f8e031120d100118a8f495f8e031200350491801";

fn hex(text: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(pair).collect()
}

async fn session_v4(broker: &ScriptedBroker, session_present: bool) -> Peer {
    let mut peer = broker.accept().await;
    let Some(v4::Packet::Connect(connect)) = peer.next_v4().await else {
        panic!("no CONNECT");
    };
    assert!(!connect.clean_session);
    peer.send_v4(v4::Packet::ConnAck(v4::ConnAck::new(
        v4::ConnectReturnCode::Success,
        session_present,
    )))
    .await;
    if !session_present {
        let Some(v4::Packet::Subscribe(subscribe)) = peer.next_v4().await else {
            panic!("no SUBSCRIBE");
        };
        let granted = v4::SubscribeReasonCode::Success(rumqttc::mqttbytes::QoS::AtLeastOnce);
        peer.send_v4(v4::Packet::SubAck(v4::SubAck::new(subscribe.pkid, vec![granted])))
            .await;
    }
    peer
}

impl Peer {
    async fn publish_or_repeat(&mut self, repeat: bool) {
        if repeat {
            self.redeliver(8, "before").await;
        } else {
            self.publish(8, "before").await;
        }
    }
}
