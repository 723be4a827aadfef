//! A broker of one subscriber that sends at a pace, keeps to a window, and times every acknowledgement.

use anyhow::{Context as _, bail, ensure};
use std::collections::HashMap;
use std::io::{BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Longest time without any acknowledgement.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent.
pub struct Load {
    /// Messages that may be unacknowledged.
    pub window: usize,
    /// Messages per second; none keeps the window full.
    pub rate: Option<f64>,
    /// Bytes of a payload.
    pub payload: usize,
    /// Sends so many messages at most.
    pub messages: u64,
    /// Sends for so long at most.
    pub time: Duration,
}

/// What became of it.
pub struct Sent {
    pub messages: u64,
    pub payload_bytes: u64,
    /// From the first message to the last acknowledgement.
    pub seconds: f64,
    /// Milliseconds from the sending of each message to its acknowledgement, in order of size.
    pub waits: Vec<f32>,
}

impl Sent {
    /// The wait in milliseconds that this part (0.99) of the messages do not exceed.
    pub fn wait(&self, part: f64) -> f64 {
        let last = self.waits.len().saturating_sub(1);
        let place = (last as f64 * part).round() as usize;
        let wait = self.waits.get(place).copied().unwrap_or(0.0);
        (f64::from(wait) * 100.0).round() / 100.0
    }
}

#[derive(Default)]
struct State {
    /// Where the subscriber is, once it has subscribed.
    subscriber: Option<TcpStream>,
    /// When each message that is not acknowledged was sent.
    in_flight: HashMap<u16, Instant>,
    waits: Vec<f32>,
    last_acknowledgement: Option<Instant>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the sender panics")
    }
}

/// The broker.
pub struct Sender {
    pub port: u16,
    shared: Arc<Shared>,
    sent: u64,
    noise: u64,
}

impl Sender {
    /// Waits for a subscriber on a free port.
    pub fn start() -> anyhow::Result<Sender> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A connection ends when its subscriber ends.
                drop(connection(stream, &own));
                let mut state = own.state();
                state.subscriber = None;
                state.in_flight.clear();
                own.changed.notify_all();
            }
        });
        Ok(Sender {
            port,
            shared,
            sent: 0,
            noise: 0x9E37_79B9_7F4A_7C15,
        })
    }

    /// Waits until somebody has subscribed.
    pub fn wait_subscribed(&self) -> anyhow::Result<()> {
        let waits = |state: &mut State| state.subscriber.is_none();
        let (_state, late) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), PATIENCE, waits)
            .ok()
            .context("no thread of the sender panics")?;
        ensure!(!late.timed_out(), "the agent did not subscribe");
        Ok(())
    }

    /// Sends, and waits for the last acknowledgement.
    pub fn send(&mut self, load: &Load) -> anyhow::Result<Sent> {
        self.wait_subscribed()?;
        let mut stream = {
            let mut state = self.shared.state();
            state.waits.clear();
            let stream = state.subscriber.as_ref().context("a subscriber")?;
            stream.try_clone()?
        };
        let (begin, mut payload_bytes, mut messages) = (Instant::now(), 0, 0);
        let mut packet = Vec::new();
        while messages < load.messages && begin.elapsed() < load.time {
            if let Some(rate) = load.rate {
                let due = begin + Duration::from_secs_f64(messages as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let id = (self.sent % 65_535 + 1) as u16;
            let payload = self.payload(load.payload);
            payload_bytes += payload.len() as u64;
            encode(&mut packet, &topic(self.sent), id, payload.as_bytes());
            self.sent += 1;
            messages += 1;
            self.wait_until(|state| state.in_flight.len() < load.window)?;
            self.shared.state().in_flight.insert(id, Instant::now());
            stream.write_all(&packet)?;
        }
        self.wait_until(|state| state.in_flight.is_empty())?;
        let mut state = self.shared.state();
        let end = state.last_acknowledgement.context("an acknowledgement")?;
        let mut waits = std::mem::take(&mut state.waits);
        waits.sort_by(f32::total_cmp);
        ensure!(
            waits.len() as u64 == messages,
            "{} acknowledgements of {messages} messages",
            waits.len()
        );
        Ok(Sent {
            messages,
            payload_bytes,
            seconds: end.saturating_duration_since(begin).as_secs_f64(),
            waits,
        })
    }

    fn wait_until(&self, done: impl Fn(&State) -> bool) -> anyhow::Result<()> {
        let waits = |state: &mut State| state.subscriber.is_some() && !done(state);
        let (state, late) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), PATIENCE, waits)
            .ok()
            .context("no thread of the sender panics")?;
        ensure!(state.subscriber.is_some(), "the agent has gone");
        ensure!(!late.timed_out(), "no acknowledgement for {PATIENCE:?}");
        Ok(())
    }

    /// One heart rate; up to 300 bytes as a wearable pads them, beyond with noise as waveforms have it, which does not compress.
    fn payload(&mut self, bytes: usize) -> String {
        let (device, second) = (self.sent % 10, self.sent / 10);
        let mut text = format!(
            r#"{{"deviceId":"band-{device}","patientId":"patient-{device}","time":"2026-03-{:02}T{:02}:{:02}:{:02}.{:03}Z","heartRate":{},"battery":{},"firmware":"2.4.1","signal":{{"rssi":-{},"quality":"good"}},"note":""#,
            1 + second / 86_400 % 28,
            second / 3600 % 24,
            second / 60 % 60,
            second % 60,
            self.sent % 1000,
            50 + (self.sent * 7) % 90,
            100 - self.sent % 100,
            40 + self.sent % 50
        );
        while text.len() + 2 < bytes.min(300) {
            text.push('x');
        }
        while text.len() + 2 < bytes {
            self.noise ^= self.noise << 13;
            self.noise ^= self.noise >> 7;
            self.noise ^= self.noise << 17;
            let six_bits = (self.noise >> 32 & 63) as u8;
            text.push(char::from(match six_bits {
                0..=25 => b'A' + six_bits,
                26..=51 => b'a' + six_bits - 26,
                52..=61 => b'0' + six_bits - 52,
                62 => b'+',
                _ => b'/',
            }));
        }
        text.push_str("\"}");
        text
    }
}

fn topic(number: u64) -> String {
    format!("wearables/band-{}/telemetry", number % 10)
}

/// PUBLISH at QoS 1 without properties (MQTT 5, section 3.3).
fn encode(packet: &mut Vec<u8>, topic: &str, id: u16, payload: &[u8]) {
    packet.clear();
    packet.push(0x32);
    let mut length = 2 + topic.len() + 2 + 1 + payload.len();
    while length > 127 {
        packet.push((length % 128) as u8 | 0x80);
        length /= 128;
    }
    packet.push(length as u8);
    packet.extend((topic.len() as u16).to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.extend(id.to_be_bytes());
    packet.push(0);
    packet.extend(payload);
}

/// One connection of the subscriber, from CONNECT to its end.
fn connection(stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (kind, body) = read(&mut reader)?;
        match kind {
            // CONNECT: CONNACK without a session and without properties.
            1 => {
                ensure!(
                    body.get(6) == Some(&5),
                    "the agent speaks another version than MQTT 5"
                );
                answers.write_all(&[0x20, 3, 0, 0, 0])?;
            }
            4 => {
                let id = u16::from_be_bytes(body.get(..2).context("a packet id")?.try_into()?);
                let now = Instant::now();
                let mut state = shared.state();
                let sent = state.in_flight.remove(&id).context("an acknowledgement twice")?;
                let wait = now - sent;
                state.waits.push(wait.as_secs_f32() * 1000.0);
                state.last_acknowledgement = Some(now);
                drop(state);
                shared.changed.notify_all();
            }
            // SUBSCRIBE of one filter.
            8 => {
                let id = body.get(..2).context("a packet id")?;
                answers.write_all(&[0x90, 4, id[0], id[1], 0, 1])?;
                shared.state().subscriber = Some(answers.try_clone()?);
                shared.changed.notify_all();
            }
            12 => answers.write_all(&[0xd0, 0])?,
            14 => return Ok(()),
            other => bail!("a packet of kind {other}"),
        }
    }
}

/// Kind and body of the next packet.
fn read(reader: &mut impl Read) -> anyhow::Result<(u8, Vec<u8>)> {
    let mut byte = [0];
    reader.read_exact(&mut byte)?;
    let kind = byte[0] >> 4;
    let (mut length, mut shift) = (0, 0);
    loop {
        reader.read_exact(&mut byte)?;
        length |= usize::from(byte[0] & 127) << shift;
        shift += 7;
        if byte[0] < 128 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((kind, body))
}
