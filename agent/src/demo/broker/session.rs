//! What the broker remembers of a client: subscriptions, messages that wait and messages in flight.
//!
//! Invariants:
//! 1. A message at QoS 1 stays in flight until its PUBACK; after a reconnect of a kept session it is sent again, first,
//!    in the old order, with the same packet identifier and DUP.
//! 2. Never more messages at QoS 1 are in flight than the client's receive maximum.
//! 3. Queues are bounded; what does not fit is refused and counted.

use super::encode;
use super::packet::{Publish, Version};
use bytes::BytesMut;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes that are encoded at a time, so that a slow client does not fill the memory.
const OUTPUT_AT_A_TIME: usize = 64 * 1024;

/// What happened in the broker since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections that were let in.
    pub connections: u64,
    /// Publishes taken from clients (and from the handle).
    pub published: u64,
    /// Messages sent to subscribers for the first time.
    pub delivered: u64,
    /// Messages sent again with DUP.
    pub redelivered: u64,
    /// PUBACKs that confirmed a message.
    pub acknowledged: u64,
    /// PUBACKs for a message that was not the oldest in flight (MQTT 3.1.1 4.6 wants them in order).
    pub acknowledged_out_of_order: u64,
    /// PUBACKs for nothing that is in flight.
    pub acknowledged_unknown: u64,
    /// Messages that did not fit into a queue, or were larger than the client takes.
    pub refused: u64,
}

struct InFlight {
    packet_id: u16,
    message: Arc<Publish>,
    /// Number of the connection on which it was sent last.
    sent_on: u64,
}

/// The connection of a session while there is one.
pub(super) struct Connection {
    pub number: u64,
    pub version: Version,
    pub receive_maximum: usize,
    pub maximum_packet: usize,
    /// Packets that are no publishes.
    pub control: BytesMut,
    /// The socket is to be closed after `control` is written.
    pub closing: bool,
    /// Wakes the writer.
    pub wake: Arc<Notify>,
}

/// A client's session.
#[derive(Default)]
pub(super) struct Session {
    pub subscriptions: Vec<(String, u8)>,
    pub keep: bool,
    pub connection: Option<Connection>,
    queue: VecDeque<(Arc<Publish>, u8)>,
    in_flight: VecDeque<InFlight>,
    last_id: u16,
}

impl Session {
    /// Messages in flight and messages that wait.
    pub fn depth(&self) -> (usize, usize) {
        (self.in_flight.len(), self.queue.len())
    }

    /// Quality of service at which `topic` is subscribed, if it is.
    pub fn wants(&self, topic: &str) -> Option<u8> {
        self.subscriptions
            .iter()
            .filter(|(filter, _)| matches(filter, topic))
            .map(|(_, qos)| *qos)
            .max()
    }

    /// Queues a message; false when it does not fit.
    pub fn offer(&mut self, message: &Arc<Publish>, qos: u8, limit: usize) -> bool {
        // At QoS 0 nothing is kept for a client that is away (MQTT 5, 4.1 leaves it to the server).
        if qos == 0 && self.connection.is_none() {
            return true;
        }
        if self.queue.len() >= limit {
            return false;
        }
        self.queue.push_back((Arc::clone(message), qos));
        self.wake();
        true
    }

    /// Wakes the writer of the connection.
    pub fn wake(&self) {
        if let Some(connection) = &self.connection {
            connection.wake.notify_one();
        }
    }

    /// Takes a PUBACK.
    pub fn acknowledge(&mut self, packet_id: u16, statistics: &mut Statistics) {
        match self.in_flight.iter().position(|m| m.packet_id == packet_id) {
            Some(index) => {
                self.in_flight.remove(index);
                statistics.acknowledged += 1;
                statistics.acknowledged_out_of_order += u64::from(index > 0);
            }
            None => statistics.acknowledged_unknown += 1,
        }
        self.wake();
    }

    /// What is to be written next, encoded: control packets, then what is in flight from an earlier connection, then
    /// waiting messages as far as the window goes. Tells whether the socket is to be closed afterwards.
    pub fn output(&mut self, hold: bool, statistics: &mut Statistics, out: &mut BytesMut) -> bool {
        let Some(connection) = &mut self.connection else {
            return true;
        };
        out.unsplit(connection.control.split());
        if hold || connection.closing {
            return connection.closing;
        }
        for message in self.in_flight.iter_mut().take(connection.receive_maximum) {
            if message.sent_on != connection.number && out.len() < OUTPUT_AT_A_TIME {
                message.sent_on = connection.number;
                encode::publish(
                    out,
                    connection.version,
                    &message.message,
                    1,
                    message.packet_id,
                    true,
                );
                statistics.redelivered += 1;
            }
        }
        let resent = self.in_flight.iter().all(|m| m.sent_on == connection.number);
        while resent && out.len() < OUTPUT_AT_A_TIME {
            let Some((_, qos)) = self.queue.front() else {
                break;
            };
            if *qos > 0 && self.in_flight.len() >= connection.receive_maximum {
                break;
            }
            let Some((message, qos)) = self.queue.pop_front() else {
                break;
            };
            let begin = out.len();
            let packet_id = match qos {
                0 => 0,
                _ => next_id(&mut self.last_id, &self.in_flight),
            };
            encode::publish(out, connection.version, &message, qos, packet_id, false);
            if out.len() - begin > connection.maximum_packet {
                // MQTT 5, 3.1.2.11.4: discarded as if it had been sent.
                out.truncate(begin);
                statistics.refused += 1;
                continue;
            }
            statistics.delivered += 1;
            if qos > 0 {
                self.in_flight.push_back(InFlight {
                    packet_id,
                    message,
                    sent_on: connection.number,
                });
            }
        }
        false
    }
}

/// A packet identifier that is not in flight; there is one, because a receive maximum is at most 65,535.
fn next_id(last_id: &mut u16, in_flight: &VecDeque<InFlight>) -> u16 {
    loop {
        *last_id = last_id.checked_add(1).unwrap_or(1);
        if in_flight.iter().all(|message| message.packet_id != *last_id) {
            return *last_id;
        }
    }
}

/// Whether a topic filter can be subscribed to (MQTT 5, 4.7.1); shared subscriptions are not supported.
pub(super) fn is_filter(filter: &str) -> bool {
    let levels: Vec<&str> = filter.split('/').collect();
    !filter.is_empty()
        && !filter.contains('\0')
        && !filter.starts_with("$share/")
        && levels
            .iter()
            .enumerate()
            .all(|(index, level)| match level.contains(['+', '#']) {
                true => *level == "+" || (*level == "#" && index + 1 == levels.len()),
                false => true,
            })
}

/// Whether a topic filter takes a topic (MQTT 5, 4.7).
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && !filter.starts_with('$') {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            // `ward/#` takes `ward` too.
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (text, Some(level)) if text == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_the_topics_of_the_standard() {
        for (filter, topic, taken) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("+/+", "/b", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "$SYS/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("a/+/c", "a//c", true),
            ("a", "a/", false),
        ] {
            assert_eq!(matches(filter, topic), taken, "{filter} {topic}");
        }
        for (filter, good) in [
            ("#", true),
            ("a/#/b", false),
            ("a+", false),
            ("+/a/#", true),
            ("", false),
        ] {
            assert_eq!(is_filter(filter), good, "{filter}");
        }
    }

    fn session(number: u64, receive_maximum: usize) -> Connection {
        Connection {
            number,
            version: Version::V5,
            receive_maximum,
            maximum_packet: 200,
            control: BytesMut::new(),
            closing: false,
            wake: Arc::new(Notify::new()),
        }
    }

    #[test]
    fn the_window_is_kept_and_a_new_connection_gets_what_is_in_flight_first() {
        let mut statistics = Statistics::default();
        let mut client = Session {
            connection: Some(session(1, 2)),
            ..Session::default()
        };
        let message = |text: &'static str| {
            Arc::new(Publish {
                topic: "t".to_owned(),
                payload: bytes::Bytes::from_static(text.as_bytes()),
                ..Publish::default()
            })
        };
        for text in ["one", "two", "three"] {
            assert!(client.offer(&message(text), 1, 3));
        }
        assert!(!client.offer(&message("four"), 1, 3));
        let mut out = BytesMut::new();
        client.output(false, &mut statistics, &mut out);
        assert_eq!(client.depth(), (2, 1));

        client.connection = Some(session(2, 2));
        client.acknowledge(7, &mut statistics);
        let mut again = BytesMut::new();
        client.output(false, &mut statistics, &mut again);
        let mut expected = BytesMut::new();
        encode::publish(&mut expected, Version::V5, &message("one"), 1, 1, true);
        encode::publish(&mut expected, Version::V5, &message("two"), 1, 2, true);
        assert_eq!(again, expected);

        client.acknowledge(2, &mut statistics);
        client.acknowledge(1, &mut statistics);
        client.output(false, &mut statistics, &mut again);
        assert_eq!(client.depth(), (1, 0));
        assert_eq!(
            statistics,
            Statistics {
                delivered: 3,
                redelivered: 2,
                acknowledged: 2,
                acknowledged_out_of_order: 1,
                acknowledged_unknown: 1,
                ..Statistics::default()
            }
        );
    }

    #[test]
    fn a_message_larger_than_the_client_takes_is_not_sent() {
        let mut statistics = Statistics::default();
        let mut client = Session {
            connection: Some(session(1, 9)),
            ..Session::default()
        };
        let large = Publish {
            topic: "t".to_owned(),
            payload: vec![0; 300].into(),
            ..Publish::default()
        };
        client.offer(&Arc::new(large), 1, 9);
        let mut out = BytesMut::new();
        client.output(false, &mut statistics, &mut out);
        assert!(out.is_empty());
        assert_eq!((client.depth(), statistics.refused), ((0, 0), 1));
    }
}
