//! MQTT 3.1.1 over rumqttc.

use super::link::{Event, Failure, Link, Outbox, Plan, Publish, tls_error};
use bytes::Bytes;
use rumqttc::mqttbytes;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event as ClientEvent, EventLoop, MqttOptions,
    NetworkOptions, Outgoing, Packet, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
    TlsConfiguration, TlsError, Transport,
};
use std::sync::Arc;
use std::time::Duration;

/// One connection.
pub(super) struct LinkV4 {
    client: AsyncClient,
    events: EventLoop,
}

impl LinkV4 {
    /// A client that connects at the first call of `next`.
    pub(super) fn new(plan: Plan) -> LinkV4 {
        let mut options = MqttOptions::new(plan.client_id, plan.host, plan.port);
        options
            .set_keep_alive(Duration::from_secs(plan.keep_alive.max(5).into()))
            .set_clean_session(plan.clean_start)
            .set_inflight(16)
            .set_manual_acks(true)
            .set_max_packet_size(plan.max_packet, 64 * 1024);
        if let Some((user, password)) = plan.login {
            options.set_credentials(user, password);
        }
        if let Some(tls) = plan.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(
                tls,
            ))));
        }
        let (client, mut events) = AsyncClient::new(options, usize::from(plan.window) + 16);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(super::CONNECT_TIMEOUT_SECONDS);
        events.set_network_options(network);
        LinkV4 { client, events }
    }
}

struct OutboxV4(AsyncClient);

impl Outbox for OutboxV4 {
    fn acknowledge(&self, packet_id: u16) -> bool {
        let mut packet = rumqttc::Publish::from_bytes(String::new(), QoS::AtLeastOnce, Bytes::new());
        packet.pkid = packet_id;
        self.0.try_ack(&packet).is_ok()
    }

    fn subscribe(&self, filters: &[String]) -> bool {
        let filters = filters
            .iter()
            .map(|path| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce));
        self.0.try_subscribe_many(filters).is_ok()
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) -> bool {
        self.0.try_publish(topic, QoS::AtMostOnce, false, payload).is_ok()
    }
}

impl Link for LinkV4 {
    fn outbox(&self) -> Box<dyn Outbox> {
        Box::new(OutboxV4(self.client.clone()))
    }

    async fn next(&mut self) -> Result<Event, Failure> {
        match self.events.poll().await {
            Ok(event) => translate(event),
            Err(error) => Err(failure(error)),
        }
    }

    fn remaining(&mut self) -> Vec<Event> {
        let events = self.events.state.events.drain(..);
        events.filter_map(|event| translate(event).ok()).collect()
    }
}

fn translate(event: ClientEvent) -> Result<Event, Failure> {
    Ok(match event {
        ClientEvent::Incoming(Packet::Publish(packet)) => {
            if packet.qos == QoS::ExactlyOnce {
                return Err(Failure::Undecodable(
                    "a message at QoS 2 although QoS 1 was subscribed".to_owned(),
                ));
            }
            Event::Publish(Publish {
                topic: Bytes::from(packet.topic),
                packet_id: packet.pkid,
                redelivered: packet.dup,
                payload: packet.payload,
                user_properties: Vec::new(),
            })
        }
        ClientEvent::Incoming(Packet::ConnAck(packet)) => Event::Connected {
            session_resumed: packet.session_present,
        },
        ClientEvent::Incoming(Packet::SubAck(packet)) => Event::Subscribed(
            packet
                .return_codes
                .iter()
                .map(|code| matches!(code, SubscribeReasonCode::Success(_)))
                .collect(),
        ),
        ClientEvent::Outgoing(Outgoing::PubAck(packet_id)) => Event::AcknowledgementLeft(packet_id),
        _ => Event::Other,
    })
}

fn failure(error: ConnectionError) -> Failure {
    match error {
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword => Failure::BadLogin,
            ConnectReturnCode::NotAuthorized => Failure::NotAuthorized,
            ConnectReturnCode::RefusedProtocolVersion => Failure::UnsupportedProtocol,
            code => Failure::Refused(format!("{code:?}")),
        },
        ConnectionError::Tls(TlsError::TLS(error)) => Failure::Tls(error),
        ConnectionError::Tls(TlsError::Io(error)) | ConnectionError::Io(error) => match tls_error(&error) {
            Some(error) => Failure::Tls(error),
            None => Failure::Unreachable(error),
        },
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => Failure::Timeout,
        ConnectionError::MqttState(error) => state_failure(error),
        // The packet could hold anything, so that it is not shown.
        ConnectionError::NotConnAck(_) => {
            Failure::Refused("it answered with something else than CONNACK".to_owned())
        }
        error => Failure::Lost(error.to_string()),
    }
}

fn state_failure(error: StateError) -> Failure {
    match error {
        StateError::Deserialization(mqttbytes::Error::Io(error)) | StateError::Io(error) => {
            match tls_error(&error) {
                Some(error) => Failure::Tls(error),
                None => Failure::Lost(error.to_string()),
            }
        }
        StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(size)) => {
            Failure::TooLarge(size)
        }
        StateError::Deserialization(error) => Failure::Undecodable(error.to_string()),
        StateError::AwaitPingResp => Failure::Lost("no answer to a ping".to_owned()),
        StateError::ConnectionAborted => Failure::Lost("the broker closed the connection".to_owned()),
        error @ (StateError::WrongPacket | StateError::InvalidState) => {
            Failure::Undecodable(error.to_string())
        }
        error => Failure::Lost(error.to_string()),
    }
}
