//! A broker that does what a test says, packet by packet, also what no broker should do.

use bytes::{Bytes, BytesMut};
use embassy_time::{Duration, with_timeout};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, Connect, ConnectReturnCode, Login, Packet, Publish, PublishProperties,
    SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for anything in a test.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match with_timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("nothing came: {what}"),
    }
}

/// The broker's socket.
pub(super) struct ScriptedBroker(TcpListener);

/// One connection of a client.
pub(super) struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
}

impl ScriptedBroker {
    pub(super) async fn start() -> ScriptedBroker {
        ScriptedBroker(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(super) fn url(&self) -> String {
        format!("mqtt://{}", self.0.local_addr().unwrap())
    }

    pub(super) async fn accept(&self) -> Peer {
        let (stream, _) = soon("a connection", self.0.accept()).await.unwrap();
        Peer {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// A connection up to the answered CONNECT and, without a session, SUBSCRIBE.
    pub(super) async fn session(&self, session_present: bool) -> Peer {
        let mut peer = self.accept().await;
        peer.connect().await;
        peer.accept_client(session_present).await;
        if !session_present {
            peer.subscribe().await;
        }
        peer
    }
}

impl Peer {
    async fn fill(&mut self) -> bool {
        soon("bytes of the client", self.stream.read_buf(&mut self.buffer))
            .await
            .unwrap_or(0)
            > 0
    }

    /// The next packet; none at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, None) {
                Ok(packet) => return Some(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) if self.fill().await => {}
                Err(mqttbytes::Error::InsufficientBytes(_)) => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        // The client may close the connection in the middle on purpose.
        drop(soon("room", self.stream.write_all(bytes)).await);
    }

    pub(super) async fn connect(&mut self) -> (Connect, Option<Login>) {
        match self.next().await {
            Some(Packet::Connect(connect, _, login)) => (connect, login),
            other => panic!("no CONNECT: {other:?}"),
        }
    }

    pub(super) async fn answer(
        &mut self,
        code: ConnectReturnCode,
        session_present: bool,
        keep_alive: Option<u16>,
    ) {
        let properties = ConnAckProperties {
            session_expiry_interval: None,
            receive_max: None,
            max_qos: None,
            retain_available: None,
            max_packet_size: None,
            assigned_client_identifier: None,
            topic_alias_max: None,
            reason_string: None,
            user_properties: Vec::new(),
            wildcard_subscription_available: None,
            subscription_identifiers_available: None,
            shared_subscription_available: None,
            server_keep_alive: keep_alive,
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        };
        self.send(Packet::ConnAck(ConnAck {
            session_present,
            code,
            properties: Some(properties),
        }))
        .await;
    }

    pub(super) async fn accept_client(&mut self, session_present: bool) {
        self.answer(ConnectReturnCode::Success, session_present, None)
            .await;
    }

    /// Waits for SUBSCRIBE and grants it; returns the filters with their QoS.
    pub(super) async fn subscribe(&mut self) -> Vec<(String, QoS)> {
        self.answer_subscribe(SubscribeReasonCode::Success(QoS::AtLeastOnce))
            .await
    }

    pub(super) async fn answer_subscribe(&mut self, answer: SubscribeReasonCode) -> Vec<(String, QoS)> {
        let Some(Packet::Subscribe(subscribe)) = self.next().await else {
            panic!("no SUBSCRIBE");
        };
        self.send(Packet::SubAck(SubAck {
            pkid: subscribe.pkid,
            return_codes: vec![answer; subscribe.filters.len()],
            properties: None,
        }))
        .await;
        subscribe
            .filters
            .into_iter()
            .map(|filter| (filter.path, filter.qos))
            .collect()
    }

    pub(super) async fn publish(&mut self, packet_id: u16, payload: impl Into<Bytes>) {
        self.publish_packet(packet_id, payload, false).await;
    }

    /// A message at QoS 0 with user properties.
    pub(super) async fn publish_on(&mut self, topic: &str, payload: impl Into<Bytes>, user: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let properties = PublishProperties {
            user_properties: user.iter().map(owned).collect(),
            ..PublishProperties::default()
        };
        let publish = Publish::new(topic, QoS::AtMostOnce, payload, Some(properties));
        self.send(Packet::Publish(publish)).await;
    }

    pub(super) async fn redeliver(&mut self, packet_id: u16, payload: impl Into<Bytes>) {
        self.publish_packet(packet_id, payload, true).await;
    }

    async fn publish_packet(&mut self, packet_id: u16, payload: impl Into<Bytes>, dup: bool) {
        let properties = PublishProperties {
            user_properties: vec![("ward".to_owned(), "7".to_owned())],
            ..PublishProperties::default()
        };
        let qos = if packet_id == 0 {
            QoS::AtMostOnce
        } else {
            QoS::AtLeastOnce
        };
        self.send(Packet::Publish(Publish {
            dup,
            pkid: packet_id,
            ..Publish::new("wearables/d1/telemetry", qos, payload, Some(properties))
        }))
        .await;
    }

    /// The next acknowledgement; pings are answered.
    pub(super) async fn puback(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some(Packet::PubAck(packet)) => return packet.pkid,
                Some(Packet::PingReq(_)) => self.send(Packet::PingResp(mqttbytes::v5::PingResp)).await,
                other => panic!("no PUBACK: {other:?}"),
            }
        }
    }

    /// That the client sends nothing for a while.
    pub(super) async fn silence(&mut self) {
        let next = with_timeout(Duration::from_millis(300), self.next()).await;
        assert!(next.is_err(), "unexpected: {:?}", next.ok().flatten());
    }

    /// Waits for the end of the connection.
    pub(super) async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The next packet of MQTT 3.1.1.
    pub(super) async fn next_v4(&mut self) -> Option<v4::Packet> {
        loop {
            match v4::Packet::read(&mut self.buffer, usize::MAX) {
                Ok(packet) => return Some(packet),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) if self.fill().await => {}
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) async fn send_v4(&mut self, packet: v4::Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.send_bytes(&bytes).await;
    }
}
