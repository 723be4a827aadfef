//! What the protocols say, fact by fact, where the acceptance data has no vector: every state bit, every "no value" code, border
//! values, negative numbers, commands of the host, and why frames are refused.

mod meters;
mod monitors;
mod others;
mod oximeters;

use serde_json::Value;

use super::*;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn describe(name: &str, direction: Direction, bytes: &[u8]) -> Description {
    (driver(name).unwrap().describe)(direction, bytes)
}

/// The one frame that `bytes` are.
fn read(name: &str, bytes: &[u8]) -> Value {
    let mut described = describe(name, Direction::DeviceToHost, bytes);
    assert!(
        described.errors.is_empty() && described.skipped == 0 && described.frames.len() == 1,
        "{name}: {described:?}"
    );
    described.frames.remove(0)
}

#[track_caller]
fn has(found: &Value, expected: &Value) {
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(&found[member], value, "{member} of {found}");
    }
}

#[track_caller]
fn refused(name: &str, bytes: &[u8], reason: Reason) {
    let described = describe(name, Direction::DeviceToHost, bytes);
    assert!(described.frames.is_empty(), "{name}: {described:?}");
    assert_eq!(
        described.errors.first().map(|error| error.reason),
        Some(reason),
        "{name}: {described:?}"
    );
}

fn command(name: &str, bytes: &[u8]) -> Value {
    let mut described = describe(name, Direction::HostToDevice, bytes);
    assert_eq!(described.frames.len(), 1, "{name}: {described:?}");
    described.frames.remove(0)
}

/// The bodies that a driver makes of bytes that come a second apart.
fn bodies(name: &str, said: &[Vec<u8>]) -> Vec<Value> {
    let mut driver = driver(name).unwrap().create();
    let mut out = Output::default();
    let now = |second: usize| Now {
        monotonic_us: second as u64 * 1_000_000,
        wall: Timestamp::from_ticks(17_723_484_000_000_000 + second as i64 * 10_000_000),
    };
    driver.start(now(0), &mut out);
    for (second, bytes) in said.iter().enumerate() {
        driver.bytes(bytes, now(second), &mut out);
    }
    driver.closed(now(said.len()), &mut out);
    out.messages
        .iter()
        .map(|message| serde_json::from_slice(&message.body).unwrap())
        .collect()
}
