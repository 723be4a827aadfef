//! One connection of a client: from CONNECT to the end of the socket.

use super::packet::{self, Connect, Packet, Property, Publish, Refusal, Version};
use super::session::{self, Connection, Session};
use super::{Shared, encode};
use bytes::BytesMut;
use embassy_time::{Duration, with_timeout};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

/// A client that does not read its answers may leave so many bytes of them behind.
const CONTROL_LIMIT: usize = 1 << 20;

/// Time that a client has for its CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How a connection ended.
enum End {
    /// DISCONNECT, or the broker cut it.
    Quiet,
    /// The socket closed or broke, or the client broke the protocol: the will is published.
    Broken(Option<Refusal>),
}

struct Link {
    client_id: String,
    number: u64,
    version: Version,
    keep_alive: u16,
    wake: Arc<Notify>,
}

/// Serves a socket until it ends.
pub(super) async fn serve(socket: TcpStream, shared: Arc<Shared>) {
    // Small packets both ways: without this PUBACKs wait for the peer's delayed acknowledgement.
    let _ = socket.set_nodelay(true);
    let (mut reader, mut writer) = socket.into_split();
    let mut buffer = BytesMut::new();
    let first = with_timeout(
        CONNECT_TIMEOUT,
        next_packet(&mut reader, &mut buffer, None, &shared),
    );
    let Ok(Ok(Some(Packet::Connect(mut connect)))) = first.await else {
        return;
    };
    let will = connect.will.take();
    let link = match open(&shared, *connect) {
        Ok(link) => link,
        Err(answer) => {
            // The socket closes in any case.
            let _ = writer.write_all(&answer).await;
            return;
        }
    };
    let end = tokio::select! {
        end = receive(&shared, &link, &mut reader, &mut buffer) => end,
        end = send(&shared, &link, &mut writer) => end,
    };
    close(&shared, &link, will, &end);
    if let End::Broken(Some(refusal)) = end {
        tracing::debug!(client = link.client_id, %refusal, "the demo broker ends a connection");
        let mut goodbye = BytesMut::new();
        encode::disconnect(&mut goodbye, link.version, refusal.reason);
        let _ = writer.write_all(&goodbye).await;
    }
}

/// The next packet; `None` when the socket ends between packets.
async fn next_packet(
    reader: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    version: Option<Version>,
    shared: &Shared,
) -> Result<Option<Packet>, Refusal> {
    loop {
        if let Some(packet) = packet::read(buffer, version, shared.options.packet_limit)? {
            return Ok(Some(packet));
        }
        match reader.read_buf(buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

/// Lets a client in, or gives the CONNACK that refuses it.
fn open(shared: &Shared, connect: Connect) -> Result<Link, BytesMut> {
    let version = connect.version;
    let refused = |reason| {
        let mut answer = BytesMut::new();
        encode::connected(&mut answer, version, false, reason, &[]);
        answer
    };
    if let Some((username, password)) = &shared.options.credentials {
        let (given_name, given_password) = &connect.credentials;
        if given_name.as_ref() != Some(username) || given_password.as_deref() != Some(password.as_bytes()) {
            return Err(refused(0x86));
        }
    }
    // A session without a name can only be a new one (3.1.1: 3.1.3-8; MQTT 5: the server assigns a name).
    if connect.client_id.is_empty() && version == Version::V311 && !connect.clean_start {
        return Err(refused(0x85));
    }
    let mut state = shared.state();
    state.last_connection += 1;
    state.statistics.connections += 1;
    let number = state.last_connection;
    let mut answer = properties_of(shared);
    let client_id = match connect.client_id.is_empty() {
        true => {
            let assigned = format!("assigned-{number}");
            answer.push(Property::text(0x12, &assigned));
            assigned
        }
        false => connect.client_id,
    };
    // The older connection of the same name finds itself taken over.
    state.end_connection(&client_id);
    if connect.clean_start {
        state.sessions.remove(&client_id);
    }
    let present = state.sessions.contains_key(&client_id);
    let session = state.sessions.entry(client_id.clone()).or_default();
    session.keep = connect.keep_session;
    let wake = Arc::new(Notify::new());
    let mut control = BytesMut::new();
    encode::connected(&mut control, version, present, 0, &answer);
    session.connection = Some(Connection {
        number,
        version,
        receive_maximum: usize::from(connect.receive_maximum.min(shared.options.window)),
        maximum_packet: connect
            .maximum_packet
            .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        control,
        closing: false,
        wake: Arc::clone(&wake),
    });
    wake.notify_one();
    Ok(Link {
        client_id,
        number,
        version,
        keep_alive: connect.keep_alive,
        wake,
    })
}

/// What a client of MQTT 5 is told at CONNACK: maximum quality of service 1; no retained messages, subscription
/// identifiers or shared subscriptions; the packet limit.
fn properties_of(shared: &Shared) -> Vec<Property> {
    let mut properties: Vec<Property> = [(0x24, 1), (0x25, 0), (0x29, 0), (0x2a, 0)]
        .into_iter()
        .map(|(id, value)| Property {
            id,
            value: bytes::Bytes::from(vec![value]),
        })
        .collect();
    let limit = u32::try_from(shared.options.packet_limit).unwrap_or(u32::MAX);
    properties.push(Property {
        id: 0x27,
        value: bytes::Bytes::from(limit.to_be_bytes().to_vec()),
    });
    properties
}

async fn receive(shared: &Shared, link: &Link, reader: &mut OwnedReadHalf, buffer: &mut BytesMut) -> End {
    // One and a half times the keep alive interval (MQTT 5, 3.1.2.10).
    let patience = match link.keep_alive {
        0 => Duration::from_secs(u64::from(u32::MAX)),
        seconds => Duration::from_millis(u64::from(seconds) * 1500),
    };
    loop {
        let next = with_timeout(patience, next_packet(reader, buffer, Some(link.version), shared)).await;
        let packet = match next {
            Ok(Ok(Some(packet))) => packet,
            Ok(Ok(None)) => return End::Broken(None),
            Ok(Err(refusal)) => return End::Broken(Some(refusal)),
            Err(_) => {
                return End::Broken(Some(Refusal {
                    reason: 0x8d,
                    text: "keep alive timeout",
                }));
            }
        };
        match take(shared, link, packet) {
            Ok(None) => {}
            Ok(Some(end)) => return end,
            Err(refusal) => return End::Broken(Some(refusal)),
        }
    }
}

/// Acts on a packet; tells when it ends the connection.
fn take(shared: &Shared, link: &Link, packet: Packet) -> Result<Option<End>, Refusal> {
    let mut guard = shared.state();
    let state = &mut *guard;
    let mut answer = BytesMut::new();
    match packet {
        Packet::Connect(_) => return Ok(Some(End::Broken(None))),
        Packet::Publish(publish) if publish.retain && link.version == Version::V5 => {
            return Err(Refusal {
                reason: 0x9a,
                text: "retained messages are not supported",
            });
        }
        Packet::Publish(publish) => {
            let (qos, packet_id) = (publish.qos, publish.packet_id);
            let taken = state.route(publish, shared.options.queue_limit);
            if qos > 0 {
                let reason = if taken { 0 } else { 0x97 };
                encode::publish_acknowledged(&mut answer, link.version, packet_id, reason);
            }
        }
        Packet::PublishAcknowledged(packet_id) => {
            if let Some(session) = session_of(&mut state.sessions, link) {
                session.acknowledge(packet_id, &mut state.statistics);
            }
        }
        Packet::Subscribe(packet_id, filters) => {
            let Some(session) = session_of(&mut state.sessions, link) else {
                return Ok(Some(End::Quiet));
            };
            let mut codes = Vec::with_capacity(filters.len());
            for (filter, qos) in filters {
                if !session::is_filter(&filter) {
                    codes.push(match link.version {
                        Version::V5 => 0x8f,
                        Version::V311 => 0x80,
                    });
                    continue;
                }
                session.subscriptions.retain(|(known, _)| *known != filter);
                session.subscriptions.push((filter, qos.min(1)));
                codes.push(qos.min(1));
            }
            encode::subscribed(&mut answer, link.version, 0x90, packet_id, &codes);
        }
        Packet::Unsubscribe(packet_id, filters) => {
            let Some(session) = session_of(&mut state.sessions, link) else {
                return Ok(Some(End::Quiet));
            };
            let mut codes = Vec::with_capacity(filters.len());
            for filter in filters {
                let before = session.subscriptions.len();
                session.subscriptions.retain(|(known, _)| *known != filter);
                // 0x11: no subscription existed.
                codes.push(if session.subscriptions.len() < before {
                    0
                } else {
                    0x11
                });
            }
            encode::subscribed(&mut answer, link.version, 0xb0, packet_id, &codes);
        }
        Packet::Ping => encode::pong(&mut answer),
        Packet::Disconnect {
            with_will,
            end_session,
        } => {
            if let Some(session) = session_of(&mut state.sessions, link) {
                session.keep &= !end_session;
            }
            return Ok(Some(if with_will { End::Broken(None) } else { End::Quiet }));
        }
    }
    if answer.is_empty() {
        return Ok(None);
    }
    if let Some(connection) =
        session_of(&mut state.sessions, link).and_then(|session| session.connection.as_mut())
    {
        if connection.control.len() > CONTROL_LIMIT {
            return Ok(Some(End::Broken(None)));
        }
        connection.control.unsplit(answer);
        connection.wake.notify_one();
    }
    Ok(None)
}

/// The session while this connection is the one it has.
fn session_of<'a>(
    sessions: &'a mut std::collections::HashMap<String, Session>,
    link: &Link,
) -> Option<&'a mut Session> {
    sessions.get_mut(&link.client_id).filter(|session| {
        session
            .connection
            .as_ref()
            .is_some_and(|connection| connection.number == link.number)
    })
}

async fn send(shared: &Shared, link: &Link, writer: &mut OwnedWriteHalf) -> End {
    let mut out = BytesMut::new();
    loop {
        let close = {
            let mut guard = shared.state();
            let state = &mut *guard;
            let exists = state.sessions.contains_key(&link.client_id);
            match session_of(&mut state.sessions, link) {
                Some(session) => session.output(state.hold, &mut state.statistics, &mut out),
                None if exists => {
                    return End::Broken(Some(Refusal {
                        reason: 0x8e,
                        text: "session taken over",
                    }));
                }
                // Forgotten.
                None => true,
            }
        };
        if !out.is_empty() {
            if writer.write_all(&out).await.is_err() {
                return End::Broken(None);
            }
            out.clear();
            if !close {
                continue;
            }
        }
        if close {
            return End::Quiet;
        }
        link.wake.notified().await;
    }
}

/// Leaves the session, or ends it, and publishes the will where one is due.
fn close(shared: &Shared, link: &Link, will: Option<Publish>, end: &End) {
    let mut state = shared.state();
    if let Some(session) = session_of(&mut state.sessions, link) {
        session.connection = None;
        if !session.keep {
            state.sessions.remove(&link.client_id);
        }
    }
    if let (End::Broken(_), Some(will)) = (end, will) {
        state.route(will, shared.options.queue_limit);
    }
}
