//! What a broker refuses, and what ends a session.

use super::*;

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
