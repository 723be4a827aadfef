//! The source against a scripted broker: what happens when the connection, the session or the broker misbehaves.

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

#[test]
fn an_edge_node_is_asked_for_its_births_only_when_the_site_wants_it() {
    run(async {
        for (config, asks) in [("", false), ("request_rebirth = true", true)] {
            let mut rig = Rig::start(&format!("format = 'sparkplug-b'\n{config}")).await;
            let mut peer = rig.broker.session(false).await;
            for _ in 0..3 {
                peer.publish_on("spBv1.0/ward3/DDATA/gw7/oxi7", hex(DDATA), &[])
                    .await;
                let message = rig.message().await;
                assert_eq!(message.payload.bytes(), hex(DDATA));
                assert!(message.properties.iter().any(|(name, _)| name == NAMES_PROPERTY));
            }
            if asks {
                let Some(Packet::Publish(request)) = peer.next().await else {
                    panic!("no request")
                };
                assert_eq!(request.topic, "spBv1.0/ward3/NCMD/gw7");
                assert!(!request.retain && request.qos == QoS::AtMostOnce);
                let name = b"Node Control/Rebirth";
                assert!(request.payload.windows(name.len()).any(|part| part == name));
            }
            // Once, not for every message.
            peer.silence().await;
        }
    });
}

#[test]
fn nobody_else_says_what_a_payload_means() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        let forged = [
            (FORMAT_PROPERTY, "sparkplug-b"),
            ("ward", "7"),
            (NAMES_PROPERTY, "{}"),
        ];
        peer.publish_on("wearables/d1/telemetry", "{}", &forged).await;
        assert_eq!(
            rig.message().await.properties,
            [("ward".to_owned(), "7".to_owned())]
        );
    });
}

#[test]
fn a_device_that_says_goodbye_is_shown_as_away() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        for (payload, away) in [("Offline", vec!["tele/bed7".to_owned()]), ("Online", vec![])] {
            peer.publish_on("tele/bed7/LWT", payload, &[]).await;
            rig.message().await;
            assert_eq!(rig.status.away(), away);
        }
    });
}

#[test]
fn a_message_is_acknowledged_after_its_commit() {
    run(async {
        let mut rig = Rig::start("window = 7\ndevice_id_from = { topic_level = 2 }").await;
        let mut peer = rig.broker.accept().await;
        let (connect, login) = peer.connect().await;
        assert_eq!(connect.client_id, "bedside-agent-bed-12-ward");
        assert!(!connect.clean_start && login.is_none());
        let properties = connect.properties.unwrap();
        assert_eq!(properties.receive_maximum, Some(7));
        assert_eq!(properties.session_expiry_interval, Some(u32::MAX));
        assert_eq!(properties.topic_alias_max, None);
        peer.accept_client(false).await;
        assert_eq!(
            peer.subscribe().await,
            [("wearables/+/telemetry".to_owned(), QoS::AtLeastOnce)]
        );

        peer.publish(1, "{\"heartRate\":72}").await;
        let message = rig.message().await;
        assert_eq!(message.source, SourceId(3));
        assert_eq!(message.payload.bytes(), b"{\"heartRate\":72}");
        assert_eq!(message.topic.as_deref(), Some("wearables/d1/telemetry"));
        assert_eq!(message.device_id.as_deref(), Some("d1"));
        assert_eq!(message.properties, [("ward".to_owned(), "7".to_owned())]);
        assert_eq!((message.stamp.boot, message.stamp.trusted), (9, true));
        assert_eq!(
            (message.possible_repeat, message.kind),
            (false, PayloadKind::Whole)
        );
        peer.silence().await;
        rig.commit(&message);
        assert_eq!(peer.puback().await, 1);
        assert!(rig.status.is_connected() && rig.status.error().is_none());

        peer.publish(0, "at most once").await;
        assert_eq!(rig.message().await.ack, None);
    });
}

#[test]
fn a_stale_acknowledgement_is_not_sent_on_a_new_connection() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        peer.publish(1, "before").await;
        let before = rig.message().await;
        drop(peer);
        // The session is lost, and its id 1 is another message now.
        let mut peer = rig.broker.session(false).await;
        peer.publish(1, "after").await;
        let after = rig.message().await;
        assert_eq!(after.ack.unwrap().session, before.ack.unwrap().session + 1);
        rig.commit(&before);
        peer.silence().await;
        rig.commit(&after);
        assert_eq!(peer.puback().await, 1);
        assert_eq!(rig.status.stale_acknowledgements.get(), 1);
        assert_eq!(rig.status.reconnects.get(), 1);
    });
}

#[test]
fn a_redelivered_message_is_recognised_before_and_after_its_commit() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        for id in 1..=3 {
            peer.publish(id, format!("m{id}")).await;
        }
        let messages = [rig.message().await, rig.message().await, rig.message().await];
        drop(peer);
        rig.until("the end of the connection", |status| !status.is_connected())
            .await;
        rig.commit(&messages[0]);

        let mut peer = rig.broker.session(true).await;
        for id in 1..=3 {
            peer.redeliver(id, format!("m{id}")).await;
        }
        assert_eq!(peer.puback().await, 1);
        peer.silence().await;
        rig.commit(&messages[1]);
        rig.commit(&messages[2]);
        assert_eq!((peer.puback().await, peer.puback().await), (2, 3));
        rig.no_message().await;
        assert_eq!(rig.status.repeats.get(), 3);
    });
}

#[test]
fn what_was_committed_last_is_acknowledged_before_the_source_stops() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        for id in 1..=3 {
            peer.publish(id, format!("m{id}")).await;
        }
        for _ in 1..=3 {
            let message = rig.message().await;
            rig.commit(&message);
        }
        drop(rig.messages);
        for id in 1..=3 {
            assert_eq!(peer.puback().await, id);
        }
        peer.closed().await;
    });
}

#[test]
fn a_redelivered_message_in_doubt_is_stored_and_marked() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        peer.publish(5, "same bytes").await;
        let message = rig.message().await;
        rig.commit(&message);
        assert_eq!(peer.puback().await, 5);
        drop(peer);
        // The broker may have used id 5 again for a message with the same bytes: nobody can tell.
        let mut peer = rig.broker.session(true).await;
        peer.redeliver(5, "same bytes").await;
        let message = rig.message().await;
        assert!(message.possible_repeat);
        rig.commit(&message);
        assert_eq!(peer.puback().await, 5);
        // Another message is certainly another message.
        drop(peer);
        let mut peer = rig.broker.session(true).await;
        peer.redeliver(5, "other bytes").await;
        assert!(!rig.message().await.possible_repeat);
    });
}

#[test]
fn a_message_above_the_limit_is_handed_on_as_its_head_and_costs_nothing_else() {
    run(async {
        let mut rig = Rig::start("max_message_bytes = 10000").await;
        let mut peer = rig.broker.session(false).await;
        let large = vec![b'x'; 1_000_000];
        peer.publish(1, large.clone()).await;
        peer.publish(2, "small").await;
        let (head, small) = (rig.message().await, rig.message().await);
        assert_eq!(head.payload.bytes(), &large[..4096]);
        let crc = crc32fast::hash(&large);
        assert_eq!(
            head.kind,
            PayloadKind::Truncated {
                length: 1_000_000,
                crc
            }
        );
        assert_eq!(small.payload.bytes(), b"small");
        rig.commit(&head);
        rig.commit(&small);
        assert_eq!((peer.puback().await, peer.puback().await), (1, 2));
        assert_eq!((rig.status.oversize.get(), rig.status.reconnects.get()), (1, 0));
    });
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

fn publish_v4(packet_id: u16, payload: Vec<u8>) -> v4::Packet {
    let mut publish = v4::Publish::new(
        "wearables/d1/telemetry",
        rumqttc::mqttbytes::QoS::AtLeastOnce,
        payload,
    );
    publish.pkid = packet_id;
    v4::Packet::Publish(publish)
}

#[test]
fn with_3_1_1_a_message_above_the_limit_is_taken_by_one_wider_connection() {
    run(async {
        let mut rig = Rig::start("protocol = '3.1.1'\nmax_message_bytes = 10000").await;
        let mut peer = session_v4(&rig.broker, false).await;
        peer.send_v4(publish_v4(1, b"small".to_vec())).await;
        let small = rig.message().await;
        rig.commit(&small);
        assert!(matches!(peer.next_v4().await, Some(v4::Packet::PubAck(ack)) if ack.pkid == 1));
        peer.send_v4(publish_v4(2, vec![b'x'; 300_000])).await;

        let mut peer = session_v4(&rig.broker, true).await;
        peer.send_v4(publish_v4(2, vec![b'x'; 300_000])).await;
        let head = rig.message().await;
        assert!(matches!(
            head.kind,
            PayloadKind::Truncated { length: 300_000, .. }
        ));
        rig.commit(&head);
        assert!(matches!(peer.next_v4().await, Some(v4::Packet::PubAck(ack)) if ack.pkid == 2));
        assert_eq!(rig.status.reconnects.get(), 1);
        assert!(rig.status.error().is_none());
    });
}

#[test]
fn a_refused_password_is_said_and_tried_again() {
    run(async {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "wrong\n").unwrap();
        let members = format!(
            "username = 'gateway'\npassword = 'file:{}'",
            secret.path().display()
        );
        let rig = Rig::start(&members).await;
        let mut peer = rig.broker.accept().await;
        let (_, login) = peer.connect().await;
        assert_eq!(login.unwrap().password, "wrong");
        peer.answer(ConnectReturnCode::BadUserNamePassword, false, None)
            .await;
        rig.until("an error", |status| status.error().is_some()).await;
        let error = rig.status.error().unwrap();
        assert_eq!(error.name, "UnauthorizedAccessBrokerException");
        assert!(
            error
                .text
                .contains("refused user name or password (user \"gateway\")"),
            "{}",
            error.text
        );
        assert!(!error.text.contains("wrong"), "{}", error.text);
        // A changed secret is in use without a restart.
        std::fs::write(secret.path(), "right\n").unwrap();
        loop {
            let mut peer = rig.broker.accept().await;
            let (_, login) = peer.connect().await;
            if login.unwrap().password == "right" {
                peer.accept_client(false).await;
                peer.subscribe().await;
                break;
            }
            peer.answer(ConnectReturnCode::BadUserNamePassword, false, None)
                .await;
        }
        rig.until("the connection", SourceStatus::is_connected).await;
        assert!(rig.status.error().is_none());
    });
}

#[test]
fn a_broker_of_another_version_is_said() {
    for (answer, expected) in [
        (&[0x20, 2, 0, 1][..], "protocol = \"3.1.1\""),
        (&[0x20, 3, 0, 0x84, 0], "protocol = \"3.1.1\""),
        (&[0x20, 3, 0, 0x89, 0], "ServerBusy"),
    ] {
        run(async {
            let rig = Rig::start("").await;
            let mut peer = rig.broker.accept().await;
            peer.connect().await;
            peer.send_bytes(answer).await;
            drop(peer);
            rig.until("an error", |status| status.error().is_some()).await;
            let text = rig.status.error().unwrap().text;
            assert!(text.contains(expected), "{text}");
        });
    }
}

#[test]
fn a_refused_topic_filter_is_said_and_the_connection_stays() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.accept().await;
        peer.connect().await;
        peer.accept_client(false).await;
        peer.answer_subscribe(SubscribeReasonCode::NotAuthorized).await;
        rig.until("an error", |status| status.error().is_some()).await;
        assert!(rig.status.error().unwrap().text.contains("wearables/+/telemetry"));
        assert!(rig.status.is_connected());
        peer.publish(1, "still taken").await;
        rig.message().await;
    });
}

#[test]
fn a_burst_with_a_slow_store_keeps_the_pings_and_loses_nothing() {
    run(async {
        const WINDOW: u16 = 100;
        const BURST: u16 = 1000;
        // Far less room than the window: the source has to keep what the intake does not take.
        let mut rig = Rig::with_room(&format!("window = {WINDOW}"), 4).await;
        let mut peer = rig.broker.accept().await;
        peer.connect().await;
        peer.answer(ConnectReturnCode::Success, false, Some(1)).await;
        peer.subscribe().await;
        for id in 1..=WINDOW {
            peer.publish(id, id.to_string()).await;
        }
        // The store does nothing for a while: the next thing to be heard is a ping.
        let Some(Packet::PingReq(_)) = peer.next().await else {
            panic!("no ping");
        };
        peer.send(Packet::PingResp(PingResp)).await;
        let intake = async {
            for number in 1..=BURST {
                let message = rig.message().await;
                assert_eq!(message.payload.bytes(), number.to_string().as_bytes());
                if number % 25 == 0 {
                    Timer::after_millis(10).await;
                }
                rig.commit(&message);
            }
        };
        let sender = async {
            for id in WINDOW + 1..=BURST + WINDOW {
                assert_eq!(peer.puback().await, id - WINDOW);
                if id <= BURST {
                    peer.publish(id, id.to_string()).await;
                }
            }
        };
        soon("the burst", async { tokio::join!(intake, sender) }).await;
        assert_eq!(
            (rig.status.received.get(), rig.status.reconnects.get()),
            (1000, 0)
        );
    });
}

#[test]
fn too_many_bytes_without_a_commit_close_the_connection_until_they_are_stored() {
    run(async {
        const MIB: usize = 1 << 20;
        let mut rig = Rig::start("max_message_bytes = 1048576\nkeep_alive = 5").await;
        let mut peer = rig.broker.session(false).await;
        let payload = Bytes::from(vec![b'x'; MIB]);
        for id in 1..=10 {
            peer.publish(id, payload.clone()).await;
        }
        peer.closed().await;
        rig.until("the count", |status| status.closed_for_backpressure.get() == 1)
            .await;
        assert_eq!(rig.status.error().unwrap().name, "BackpressureException");
        let mut taken = Vec::new();
        while let Ok(message) = rig.messages.try_recv() {
            taken.push(message);
        }
        assert!((8..=10).contains(&taken.len()), "{}", taken.len());
        for message in &taken {
            rig.commit(message);
        }
        let mut peer = rig.broker.session(true).await;
        for id in 1..=10 {
            peer.redeliver(id, payload.clone()).await;
        }
        for id in 1..=10_u16 {
            if usize::from(id) > taken.len() {
                let message = rig.message().await;
                rig.commit(&message);
            }
            assert_eq!(peer.puback().await, id);
        }
        assert_eq!(rig.status.received.get(), 10);
    });
}

#[test]
fn only_an_unreadable_packet_ends_the_session_and_that_is_told() {
    run(async {
        let mut rig = Rig::start("").await;
        // A property that does not exist.
        let unreadable = [0x32, 0x0a, 0, 1, b't', 0, 9, 2, 99, 0, b'x', b'y'];
        let mut resumed = false;
        for _ in 0..5 {
            let mut peer = rig.broker.session(resumed).await;
            peer.publish_or_repeat(resumed).await;
            peer.send_bytes(&unreadable).await;
            peer.closed().await;
            resumed = true;
        }
        let mut peer = rig.broker.accept().await;
        assert!(peer.connect().await.0.clean_start);
        peer.accept_client(false).await;
        let SourceEvent::SessionGivenUp { source, error } =
            soon("the event", rig.events.recv()).await.unwrap();
        assert_eq!(
            (source, error.name.as_str()),
            (SourceId(3), "BrokerProtocolException")
        );
        // Goes on with a session of its own, and the message before the unreadable one came through, once.
        let mut peer = rig.broker.accept().await;
        assert!(!peer.connect().await.0.clean_start);
        peer.accept_client(true).await;
        peer.subscribe().await;
        let before = rig.message().await;
        assert_eq!(before.payload.bytes(), b"before");
        peer.publish(8, "after").await;
        let after = rig.message().await;
        assert_eq!(after.payload.bytes(), b"after");
        assert!(after.ack.unwrap().session > before.ack.unwrap().session);
    });
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

#[test]
fn nothing_listening_is_said_with_the_address() {
    run(async {
        let rig = Rig::start("").await;
        let url = rig.broker.url();
        drop(rig.broker);
        let status = Arc::clone(&rig.status);
        soon("an error", async {
            while status
                .error()
                .is_none_or(|error| !error.text.contains("cannot be reached"))
            {
                Timer::after_millis(5).await;
            }
        })
        .await;
        let error = rig.status.error().unwrap();
        assert!(
            error.text.contains(url.trim_start_matches("mqtt://")),
            "{}",
            error.text
        );
        assert!(!rig.status.is_connected() && error.retry);
    });
}
