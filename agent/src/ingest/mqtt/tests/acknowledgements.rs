//! When a message is acknowledged, and what comes again.

use super::*;

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
