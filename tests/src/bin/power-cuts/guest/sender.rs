//! The sender of the guest's messages: an MQTT 3.1.1 broker with one subscriber, which sees every acknowledgement itself.

use super::write_log;
use anyhow::{Context, bail};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Messages under way at a time.
const WINDOW: usize = 20;
/// Pause after an acknowledgement: the store must never have to give something up.
const PAUSE: Duration = Duration::from_millis(5);

/// By message: entries of the write log when its acknowledgement was seen.
pub type Acknowledged = Arc<Mutex<BTreeMap<u64, u64>>>;

/// The payload of a message.
pub fn payload(serial: u64) -> String {
    let mut chance = bedside_disk::Chance(serial);
    let filler: String = (0..chance.below(80))
        .map(|_| format!("{:016x}", chance.number()))
        .collect();
    format!(
        "{{\"deviceId\":\"band\",\"time\":\"2026-01-01T00:00:00Z\",\"note\":\"{filler}\",\"heartRate\":{serial}}}"
    )
}

/// Serves connections from now on; gives the port.
pub fn start(log: &Path, acknowledged: &Acknowledged) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let (log, acknowledged) = (log.to_owned(), Arc::clone(acknowledged));
    std::thread::spawn(move || {
        let mut next = 1;
        for connection in listener.incoming().flatten() {
            // A connection ends when the agent is killed; what was not acknowledged is not sent again.
            let _ = serve(connection, &log, &acknowledged, &mut next);
        }
    });
    Ok(port)
}

fn serve(
    mut connection: TcpStream,
    log: &Path,
    acknowledged: &Acknowledged,
    next: &mut u64,
) -> anyhow::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut under_way: HashMap<u16, u64> = HashMap::new();
    let mut subscribed = false;
    loop {
        let (kind, body) = packet(&mut connection)?;
        match kind >> 4 {
            1 => connection.write_all(&[0x20, 2, 0, 0])?,
            4 => {
                let id = u16::from_be_bytes([body[0], body[1]]);
                if let Some(serial) = under_way.remove(&id) {
                    let entries = write_log::entries(log)?;
                    acknowledged
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(serial, entries);
                    std::thread::sleep(PAUSE);
                }
            }
            8 => {
                let mut answer = vec![0x90, 3, body[0], body[1], 1];
                answer[1] = (answer.len() - 2) as u8;
                connection.write_all(&answer)?;
                subscribed = true;
            }
            12 => connection.write_all(&[0xd0, 0])?,
            14 => return Ok(()),
            _ => {}
        }
        while subscribed && under_way.len() < WINDOW {
            let serial = *next;
            *next += 1;
            let id = (serial % 65_000 + 1) as u16;
            under_way.insert(id, serial);
            connection.write_all(&publish(id, &payload(serial)))?;
        }
    }
}

/// A PUBLISH with QoS 1 (MQTT 3.1.1, 3.3).
fn publish(id: u16, payload: &str) -> Vec<u8> {
    const TOPIC: &[u8] = b"wearables/band/telemetry";
    let mut body = (TOPIC.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(TOPIC);
    body.extend_from_slice(&id.to_be_bytes());
    body.extend_from_slice(payload.as_bytes());
    let mut packet = vec![0x32];
    let mut length = body.len();
    loop {
        let more = length >= 128;
        packet.push((length % 128) as u8 | if more { 128 } else { 0 });
        length /= 128;
        if !more {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn packet(connection: &mut TcpStream) -> anyhow::Result<(u8, Vec<u8>)> {
    let mut byte = [0];
    connection.read_exact(&mut byte)?;
    let kind = byte[0];
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        connection.read_exact(&mut byte)?;
        length |= usize::from(byte[0] & 127) << shift;
        shift += 7;
        if byte[0] < 128 {
            break;
        }
        if shift > 21 {
            bail!("no MQTT");
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).context("a packet ends early")?;
    Ok((kind, body))
}
