//! MQTT 5 over rumqttc.

use super::link::{Event, Failure, Link, Outbox, Plan, Publish, tls_error};
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, DisconnectReasonCode, Filter, Packet, RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use rumqttc::v5::{
    AsyncClient, ConnectionError, Event as ClientEvent, EventLoop, MqttOptions, StateError, TlsError,
};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};
use std::sync::Arc;
use std::time::Duration;

/// One connection.
pub(super) struct LinkV5 {
    client: AsyncClient,
    events: EventLoop,
}

impl LinkV5 {
    /// A client that connects at the first call of `next`.
    pub(super) fn new(plan: Plan) -> LinkV5 {
        let mut options = MqttOptions::new(plan.client_id, plan.host, plan.port);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options
            .set_keep_alive(Duration::from_secs(plan.keep_alive.max(5).into()))
            .set_clean_start(plan.clean_start)
            .set_connection_timeout(super::CONNECT_TIMEOUT_SECONDS)
            .set_network_options(network)
            .set_manual_acks(true)
            // Without it each connection takes 14 MB for publishes that are never made.
            .set_outgoing_inflight_upper_limit(16)
            // A session that does not expire: a gateway may be without a network for weeks.
            .set_session_expiry_interval(Some(u32::MAX))
            .set_receive_maximum(Some(plan.window.max(1)))
            // The broker drops silently what is larger, so that this must be the widest limit, always.
            .set_max_packet_size(Some(u32::try_from(plan.max_packet).unwrap_or(u32::MAX)));
        if let Some((user, password)) = plan.login {
            options.set_credentials(user, password);
        }
        if let Some(tls) = plan.tls {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(
                tls,
            ))));
        }
        let (client, events) = AsyncClient::new(options, usize::from(plan.window) + 16);
        LinkV5 { client, events }
    }
}

struct OutboxV5(AsyncClient);

impl Outbox for OutboxV5 {
    fn acknowledge(&self, packet_id: u16) -> bool {
        let packet = mqttbytes::v5::Publish {
            qos: QoS::AtLeastOnce,
            pkid: packet_id,
            ..Default::default()
        };
        self.0.try_ack(&packet).is_ok()
    }

    fn subscribe(&self, filters: &[String]) -> bool {
        let filters = filters.iter().map(|path| Filter {
            retain_forward_rule: RetainForwardRule::OnNewSubscribe,
            ..Filter::new(path.clone(), QoS::AtLeastOnce)
        });
        self.0.try_subscribe_many(filters).is_ok()
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) -> bool {
        self.0.try_publish(topic, QoS::AtMostOnce, false, payload).is_ok()
    }
}

impl Link for LinkV5 {
    fn outbox(&self) -> Box<dyn Outbox> {
        Box::new(OutboxV5(self.client.clone()))
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
                topic: packet.topic,
                packet_id: packet.pkid,
                redelivered: packet.dup,
                payload: packet.payload,
                user_properties: packet
                    .properties
                    .map(|properties| properties.user_properties)
                    .unwrap_or_default(),
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
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::BadAuthenticationMethod => {
                Failure::BadLogin
            }
            ConnectReturnCode::NotAuthorized | ConnectReturnCode::Banned => Failure::NotAuthorized,
            ConnectReturnCode::UnsupportedProtocolVersion | ConnectReturnCode::RefusedProtocolVersion => {
                Failure::UnsupportedProtocol
            }
            code => Failure::Refused(format!("{code:?}")),
        },
        ConnectionError::Tls(TlsError::TLS(error)) => Failure::Tls(error),
        ConnectionError::Tls(TlsError::Io(error)) => io_failure(error),
        ConnectionError::Tls(error) => Failure::Lost(error.to_string()),
        ConnectionError::Io(error) => io_failure(error),
        ConnectionError::Timeout(_) => Failure::Timeout,
        ConnectionError::MqttState(error) => state_failure(error),
        // The packet could hold anything, so that it is not shown.
        ConnectionError::NotConnAck(_) => {
            Failure::Refused("it answered with something else than CONNACK".to_owned())
        }
        error => Failure::Lost(error.to_string()),
    }
}

fn io_failure(error: std::io::Error) -> Failure {
    match tls_error(&error) {
        Some(error) => Failure::Tls(error),
        None => Failure::Unreachable(error),
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
        StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded { pkt_size, .. }) => {
            Failure::TooLarge(pkt_size)
        }
        // The broker of an older protocol answers CONNECT with a packet that MQTT 5 does not know.
        StateError::Deserialization(mqttbytes::Error::InvalidConnectReturnCode(1)) => {
            Failure::UnsupportedProtocol
        }
        StateError::Deserialization(error) => Failure::Undecodable(error.to_string()),
        StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        } => Failure::TakenOver,
        StateError::ServerDisconnect { reason_code, .. } => {
            Failure::Lost(format!("the broker closed the connection: {reason_code:?}"))
        }
        StateError::AwaitPingResp => Failure::Lost("no answer to a ping".to_owned()),
        StateError::ConnectionAborted => Failure::Lost("the broker closed the connection".to_owned()),
        error @ (StateError::WrongPacket | StateError::InvalidState) => {
            Failure::Undecodable(error.to_string())
        }
        error => Failure::Lost(error.to_string()),
    }
}
