//! The broker with the client that the agent uses.
#![expect(clippy::disallowed_methods, reason = "a test waits for sockets in real time")]

use super::*;
use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5::Packet as Packet5;
use rumqttc::{Event, MqttOptions, Packet, QoS};
use std::time::Duration;

async fn broker(options: Options) -> Broker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Broker::start(listener, options).unwrap()
}

fn message(number: usize) -> Publish {
    Publish {
        topic: "ward/bed-1/pulse".to_owned(),
        qos: 1,
        payload: number.to_string().into(),
        properties: vec![Property {
            id: 0x26,
            value: bytes::Bytes::from_static(b"\0\x04unit\0\x04/min"),
        }],
        ..Publish::default()
    }
}

/// A client of MQTT 3.1.1 with a session that is kept and acknowledgements by hand.
fn client(broker: &Broker) -> (rumqttc::AsyncClient, rumqttc::EventLoop) {
    let mut options = MqttOptions::new("reader", "127.0.0.1", broker.address().port());
    options.set_clean_session(false).set_manual_acks(true);
    options.set_max_packet_size(1 << 20, 1 << 20);
    rumqttc::AsyncClient::new(options, 10)
}

async fn next_publish(events: &mut rumqttc::EventLoop) -> Option<rumqttc::Publish> {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => return Some(publish),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen");
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_with_dup_after_a_cut() {
    let broker = broker(Options {
        window: 3,
        ..Options::default()
    })
    .await;
    let (client, mut events) = client(&broker);
    client.subscribe("ward/+/pulse", QoS::AtLeastOnce).await.unwrap();
    while !matches!(events.poll().await, Ok(Event::Incoming(Packet::SubAck(_)))) {}
    for number in 0..5 {
        assert!(broker.publish(message(number)));
    }
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(next_publish(&mut events).await.unwrap());
    }
    client.ack(&seen[0]).await.unwrap();
    let fourth = next_publish(&mut events).await.unwrap();
    assert_eq!(&fourth.payload[..], b"3");
    assert_eq!(broker.depth("reader"), Some((3, 1)));

    assert!(broker.cut("reader"));
    assert!(next_publish(&mut events).await.is_none());
    let mut again = Vec::new();
    for _ in 0..3 {
        again.push(next_publish(&mut events).await.unwrap());
    }
    let payloads: Vec<&[u8]> = again.iter().map(|publish| &publish.payload[..]).collect();
    assert_eq!(payloads, [b"1", b"2", b"3"]);
    assert!(again.iter().all(|publish| publish.dup));
    for publish in &again {
        client.ack(publish).await.unwrap();
    }
    let last = next_publish(&mut events).await.unwrap();
    assert_eq!((&last.payload[..], last.dup), (&b"4"[..], false));
    client.ack(&last).await.unwrap();
    let watch = broker.clone();
    let reading = tokio::spawn(async move { while events.poll().await.is_ok() {} });
    until("the last acknowledgement", || {
        watch.depth("reader") == Some((0, 0))
    })
    .await;
    let statistics = broker.statistics();
    assert_eq!((statistics.delivered, statistics.redelivered), (5, 3));
    assert_eq!(
        (
            statistics.acknowledged_out_of_order,
            statistics.acknowledged_unknown
        ),
        (0, 0)
    );
    reading.abort();
}

#[tokio::test]
async fn a_forgotten_session_is_told_and_keeps_nothing() {
    let broker = broker(Options::default()).await;
    let (client, mut events) = client(&broker);
    client.subscribe("ward/#", QoS::AtLeastOnce).await.unwrap();
    while !matches!(events.poll().await, Ok(Event::Incoming(Packet::SubAck(_)))) {}
    broker.forget_session("reader");
    while events.poll().await.is_ok() {}
    assert!(!broker.has_subscriber("ward/bed-1/pulse"));
    loop {
        if let Ok(Event::Incoming(Packet::ConnAck(answer))) = events.poll().await {
            assert!(!answer.session_present);
            break;
        }
    }
}

#[tokio::test]
async fn a_client_of_mqtt_5_gets_user_properties_within_its_receive_maximum() {
    let broker = broker(Options::default()).await;
    let mut options = rumqttc::v5::MqttOptions::new("five", "127.0.0.1", broker.address().port());
    options.set_manual_acks(true);
    options.set_connect_properties(rumqttc::v5::mqttbytes::v5::ConnectProperties {
        receive_maximum: Some(2),
        session_expiry_interval: Some(3600),
        ..rumqttc::v5::mqttbytes::v5::ConnectProperties::new()
    });
    let (client, mut events) = rumqttc::v5::AsyncClient::new(options, 10);
    client.subscribe("#", QoS5::AtLeastOnce).await.unwrap();
    let mut publishes = Vec::new();
    loop {
        let rumqttc::v5::Event::Incoming(packet) = events.poll().await.unwrap() else {
            continue;
        };
        match packet {
            Packet5::ConnAck(answer) => {
                let properties = answer.properties.unwrap();
                assert_eq!(properties.max_qos, Some(1));
                assert_eq!(properties.retain_available, Some(0));
            }
            Packet5::SubAck(_) => (0..3).for_each(|n| assert!(broker.publish(message(n)))),
            Packet5::Publish(publish) => publishes.push(publish),
            _ => {}
        }
        if publishes.len() == 2 {
            break;
        }
    }
    assert_eq!(broker.depth("five"), Some((2, 1)));
    let properties = publishes[0].properties.clone().unwrap();
    assert_eq!(
        properties.user_properties,
        [("unit".to_owned(), "/min".to_owned())]
    );
    // The receive maximum counts what is not acknowledged: the third comes after the first PUBACK.
    client.ack(&publishes[0]).await.unwrap();
    loop {
        if let rumqttc::v5::Event::Incoming(Packet5::Publish(third)) = events.poll().await.unwrap() {
            assert_eq!(&third.payload[..], b"2");
            break;
        }
    }
}

#[tokio::test]
async fn held_deliveries_wait_and_a_wrong_password_is_refused() {
    let broker = broker(Options {
        credentials: Some(("gateway".to_owned(), "right".to_owned())),
        ..Options::default()
    })
    .await;
    let (wrong, mut events) = client(&broker);
    let refused = events.poll().await.unwrap_err();
    assert!(matches!(
        refused,
        rumqttc::ConnectionError::ConnectionRefused(rumqttc::ConnectReturnCode::BadUserNamePassword)
    ));
    drop(wrong);

    let mut options = MqttOptions::new("reader", "127.0.0.1", broker.address().port());
    options.set_credentials("gateway", "right");
    let (client, mut events) = rumqttc::AsyncClient::new(options, 10);
    client
        .subscribe("ward/bed-1/pulse", QoS::AtLeastOnce)
        .await
        .unwrap();
    while !matches!(events.poll().await, Ok(Event::Incoming(Packet::SubAck(_)))) {}
    broker.hold_deliveries(true);
    broker.publish(message(1));
    let held = tokio::time::timeout(Duration::from_millis(200), next_publish(&mut events)).await;
    assert!(held.is_err());
    broker.hold_deliveries(false);
    assert_eq!(&next_publish(&mut events).await.unwrap().payload[..], b"1");
}

#[tokio::test]
async fn a_publisher_is_acknowledged_and_its_will_is_published_when_it_is_gone() {
    let broker = broker(Options::default()).await;
    let (reader, mut events) = client(&broker);
    reader.subscribe("#", QoS::AtLeastOnce).await.unwrap();
    while !matches!(events.poll().await, Ok(Event::Incoming(Packet::SubAck(_)))) {}
    let mut options = MqttOptions::new("writer", "127.0.0.1", broker.address().port());
    options.set_max_packet_size(1 << 20, 1 << 20);
    options.set_last_will(rumqttc::LastWill::new(
        "ward/bed-1/state",
        "gone",
        QoS::AtLeastOnce,
        false,
    ));
    let (writer, mut writing) = rumqttc::AsyncClient::new(options, 10);
    writer
        .publish("ward/bed-1/pulse", QoS::AtLeastOnce, false, vec![b'x'; 200_000])
        .await
        .unwrap();
    while !matches!(writing.poll().await, Ok(Event::Incoming(Packet::PubAck(_)))) {}
    // The socket just closes.
    drop((writer, writing));
    let first = next_publish(&mut events).await.unwrap();
    assert_eq!((first.payload.len(), first.qos), (200_000, QoS::AtLeastOnce));
    assert_eq!(&next_publish(&mut events).await.unwrap().payload[..], b"gone");
    assert_eq!(broker.statistics().published, 2);
}
