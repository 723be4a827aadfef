//! Large messages, bursts and a slow store.

use super::*;

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
