//! What travels between publisher, broker, agent and server, and who has acknowledged what.

use super::publisher::{Sent, heart_rates, payload};
use super::tap::Way;
use rumqttc::{Client, Event, Incoming, MqttOptions, QoS};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// The broker has sent a message to the agent.
    HandedOver,
    /// A PUBACK has left the agent.
    Acknowledged,
    /// Bytes of a request have left the agent.
    Request,
    /// Bytes of an answer came for the agent.
    Answer,
}

/// A reading: device and time.
pub type Place = (String, String);

/// What the taps have seen.
#[derive(Default)]
pub struct Chain {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Events of this life of the agent.
    counts: HashMap<Seen, u64>,
    /// Bytes that are no whole packet yet, by connection and way (to the server?).
    partial: HashMap<(u64, bool), Vec<u8>>,
    /// Readings under their packet ids, by connection.
    in_flight: HashMap<(u64, u16), Place>,
    /// Readings whose PUBACK left the agent.
    acknowledged: BTreeMap<Place, u32>,
}

impl Chain {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no tap panics")
    }

    /// A new life of the agent begins.
    pub fn begin(&self) {
        self.state().counts.clear();
    }

    /// Notes an event.
    pub fn count(&self, seen: Seen) {
        *self.state().counts.entry(seen).or_default() += 1;
        self.changed.notify_all();
    }

    /// Waits until `seen` has happened `number` times in this life, or `limit` has passed.
    pub fn wait_for(&self, seen: Seen, number: u64, limit: Duration) {
        let waiting = |state: &mut State| state.counts.get(&seen).copied().unwrap_or(0) < number;
        let state = self.state();
        drop(
            self.changed
                .wait_timeout_while(state, limit, waiting)
                .expect("no tap panics"),
        );
    }

    /// Readings whose PUBACK left the agent.
    pub fn acknowledged(&self) -> Vec<Place> {
        self.state().acknowledged.keys().cloned().collect()
    }

    /// Listens to the connection between agent and broker.
    pub fn mqtt(&self, connection: u64, way: Way, bytes: &[u8]) {
        let mut state = self.state();
        let to_server = way == Way::ToServer;
        let mut buffer = state.partial.remove(&(connection, to_server)).unwrap_or_default();
        buffer.extend_from_slice(bytes);
        let mut rest = buffer.as_slice();
        while let Some((kind, body, after)) = packet(rest) {
            match (way, kind >> 4) {
                (Way::ToClient, 3) => {
                    if let Some((packet_id, place)) = publish(body) {
                        state.in_flight.insert((connection, packet_id), place);
                        *state.counts.entry(Seen::HandedOver).or_default() += 1;
                    }
                }
                (Way::ToServer, 4) => {
                    let packet_id = u16::from_be_bytes([body[0], body[1]]);
                    let place = state.in_flight.remove(&(connection, packet_id));
                    let place = place.expect("a PUBACK belongs to a message of its connection");
                    *state.acknowledged.entry(place).or_default() += 1;
                    *state.counts.entry(Seen::Acknowledged).or_default() += 1;
                }
                _ => {}
            }
            rest = after;
        }
        let rest = rest.to_vec();
        state.partial.insert((connection, to_server), rest);
        drop(state);
        self.changed.notify_all();
    }
}

/// First byte, body, and what follows; none while the packet is not complete.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, mut rest) = bytes.split_first()?;
    let mut length = 0_usize;
    for place in 0..4 {
        let (digit, after) = rest.split_first()?;
        length |= usize::from(digit & 0x7f) << (7 * place);
        rest = after;
        if digit & 0x80 == 0 {
            break;
        }
    }
    (rest.len() >= length).then(|| (*kind, &rest[..length], &rest[length..]))
}

/// Packet id and reading of a PUBLISH at QoS 1. Behind the packet id the payload is the only part with a brace.
fn publish(body: &[u8]) -> Option<(u16, Place)> {
    let topic = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let packet_id = u16::from_be_bytes([*body.get(2 + topic)?, *body.get(3 + topic)?]);
    let rest = body.get(4 + topic..)?;
    let payload = &rest[rest.iter().position(|byte| *byte == b'{')?..];
    let message: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    Some((packet_id, (text("deviceId"), text("time"))))
}

/// Publishes readings without end, a few at a time.
pub struct Publisher {
    readings: Arc<Mutex<Vec<Sent>>>,
    paused: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
}

/// Devices that take turns.
const DEVICES: usize = 4;
/// Pause between two readings.
const PAUSE: Duration = Duration::from_millis(15);

impl Publisher {
    /// Starts to publish to the broker on `port`.
    pub fn start(port: u16) -> Publisher {
        let mut options = MqttOptions::new("publisher", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 64);
        let publisher = Publisher {
            readings: Arc::default(),
            paused: Arc::default(),
            acknowledged: Arc::default(),
        };
        let (readings, paused) = (Arc::clone(&publisher.readings), Arc::clone(&publisher.paused));
        std::thread::spawn(move || {
            for round in 0.. {
                for reading in heart_rates(DEVICES, 1, round) {
                    // Under the lock, so that a pause means that nothing is on its way unnoticed.
                    let mut sent = readings.lock().expect("nobody panics");
                    while paused.load(Ordering::SeqCst) {
                        drop(sent);
                        std::thread::sleep(PAUSE);
                        sent = readings.lock().expect("nobody panics");
                    }
                    let topic = format!("wearables/{}/telemetry", reading.device);
                    let text = payload(&reading);
                    if client.publish(topic, QoS::AtLeastOnce, false, text).is_err() {
                        // The broker goes only at the end of the program.
                        return;
                    }
                    sent.push(reading);
                    drop(sent);
                    std::thread::sleep(PAUSE);
                }
            }
        });
        let acknowledged = Arc::clone(&publisher.acknowledged);
        std::thread::spawn(move || {
            for event in connection.iter() {
                let Ok(event) = event else { return };
                if let Event::Incoming(Incoming::PubAck(_)) = event {
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        publisher
    }

    /// Pauses, waits until the broker has everything, and gives all readings that it has.
    pub fn pause(&mut self) -> anyhow::Result<Vec<Sent>> {
        self.paused.store(true, Ordering::SeqCst);
        let sent = self.readings.lock().expect("nobody panics").clone();
        let until = Instant::now() + Duration::from_secs(20);
        while self.acknowledged.load(Ordering::SeqCst) < sent.len() {
            anyhow::ensure!(Instant::now() < until, "the broker does not acknowledge");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(sent)
    }

    /// Goes on.
    pub fn go_on(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }
}
