//! `vectors/serial`: bytes of devices and what they decode to, in both directions.
//!
//! A vector of a device goes through the decoder of its driver, one of the framing library through the framing that it
//! names. Members of `expect` must be there with these values; others may be.

use bedside_agent::ingest::serial::drivers::{
    Description, Direction, DriverInfo, Now, Output, ble_gatt, driver,
};
use bedside_agent::ingest::serial::framing::{self, FramingConfig};
use serde_json::{Map, Value, json};

/// One vector and, when it does not hold, the difference.
pub struct Outcome {
    /// Its `id`.
    pub id: String,
    /// None when it holds.
    pub difference: Option<String>,
}

/// Runs all vectors of a file; none when the file is not one of this room (`codes.json`, `mqtt-payloads.json`).
pub fn run(file: &Value) -> Option<Vec<Outcome>> {
    let protocol = file.get("protocol")?.as_str()?;
    let vectors = file.get("vectors")?.as_array()?;
    let outcome = |vector: &Value| Outcome {
        id: vector["id"].as_str().unwrap_or("?").to_owned(),
        difference: check(protocol, vector).err(),
    };
    Some(vectors.iter().map(outcome).collect())
}

/// Frames of one protocol that a device may send one after the other.
pub struct Stream {
    /// Driver or framing, and the first vector of the stream.
    pub name: String,
    /// The frames, each as the device sends it.
    pub frames: Vec<Vec<u8>>,
    /// Frames follow each other in this order only.
    pub in_order: bool,
    protocol: String,
    expect: Map<String, Value>,
}

impl Stream {
    /// Frames that follow each other in this order only, of a driver's live dialect.
    pub fn in_order(protocol: &str, frames: Vec<Vec<u8>>) -> Stream {
        Stream {
            name: protocol.to_owned(),
            frames,
            in_order: true,
            protocol: protocol.to_owned(),
            expect: Map::new(),
        }
    }

    /// Decodes bytes of the device.
    pub fn describe(&self, bytes: &[u8]) -> Description {
        describe(&self.protocol, Direction::DeviceToHost, bytes, &self.expect).unwrap_or_default()
    }
}

/// The valid frames of a file, sorted into streams whose frames can follow each other in any order.
pub fn streams(file: &Value) -> Vec<Stream> {
    let protocol = file["protocol"].as_str().unwrap_or("");
    let mut streams: Vec<Stream> = Vec::new();
    for vector in file["vectors"].as_array().unwrap_or(&Vec::new()) {
        let from_device = vector["direction"] != "host-to-device" && vector["valid"] != false;
        let (true, Some(hex), Some(expect)) =
            (from_device, vector["hex"].as_str(), vector["expect"].as_object())
        else {
            continue;
        };
        let (Ok(frame), name) = (unhex(hex), vector["id"].as_str().unwrap_or("?")) else {
            continue;
        };
        // A device keeps to one format.
        let same = |stream: &Stream, name: &str| stream.expect.get(name) == expect.get(name);
        let known =
            |stream: &Stream| same(stream, "framing") && same(stream, "format") && stream.takes(&frame);
        let alone = Stream {
            name: format!("{protocol} {name}"),
            frames: vec![frame.clone()],
            in_order: false,
            protocol: protocol.to_owned(),
            expect: expect.clone(),
        };
        if let Some(stream) = streams.iter_mut().find(|stream| known(stream)) {
            stream.frames.push(frame);
        } else if alone.takes(&frame) {
            streams.push(alone);
        }
    }
    streams
}

impl Stream {
    /// Whether `frame` is one frame before and after every other one.
    fn takes(&self, frame: &[u8]) -> bool {
        let is_two = |first: &[u8], second: &[u8]| {
            let found = self.describe(&[first, second].concat());
            found.frames.len() == 2 && found.errors.is_empty() && found.skipped == 0
        };
        self.frames
            .iter()
            .all(|other| is_two(other, frame) && is_two(frame, other))
    }
}

fn check(protocol: &str, vector: &Value) -> Result<(), String> {
    let expect = vector["expect"].as_object().ok_or("no `expect`")?;
    if let Some(transcript) = expect.get("transcript") {
        return check_transcript(protocol, transcript, expect);
    }
    let bytes = unhex(vector["hex"].as_str().ok_or("no `hex`")?)?;
    let direction = match vector["direction"].as_str() {
        Some("host-to-device") => Direction::HostToDevice,
        _ => Direction::DeviceToHost,
    };
    let described = describe(protocol, direction, &bytes, expect)?;
    if vector["valid"] == false {
        return check_refused(protocol, &bytes, &described, expect);
    }
    if let (Some(skipped), Some(packet)) = (expect.get("skipped_bytes"), expect.get("packet")) {
        if *skipped != described.skipped {
            return Err(format!("skipped {} bytes, not {skipped}", described.skipped));
        }
        let frame = described
            .frames
            .first()
            .ok_or("no frame after the skipped bytes")?;
        return contains(frame, packet, "packet");
    }
    if let Some(error) = described.errors.first() {
        return Err(format!("refused: {}", error.reason.name()));
    }
    let skipped = described.skipped;
    let mut frame = joined(described.frames, expect);
    // Bytes in front of the frame, told beside its members.
    for name in ["skipped_bytes", "discarded_bytes"] {
        if expect.contains_key(name) {
            frame[name] = json!(skipped);
        }
    }
    contains(&frame, &Value::Object(expect.clone()), "expect")
}

/// Several frames are compared as one object: `frames` (their number), `joined_text`.
fn joined(mut frames: Vec<Value>, expect: &Map<String, Value>) -> Value {
    if expect.contains_key("joined_text") {
        let text: String = frames.iter().filter_map(|frame| frame["text"].as_str()).collect();
        return json!({"frames": frames.len(), "joined_text": text});
    }
    if let Some(expected) = expect.get("frames").and_then(Value::as_array)
        && expected.iter().all(Value::is_string)
        && frames.iter().all(|frame| frame["payload_hex"].is_string())
    {
        // Payloads, each as the vector writes it: text or hexadecimal digits.
        let shown = frames.iter().enumerate().map(|(index, frame)| {
            let text = &frame["payload_text"];
            if expected.get(index) == Some(text) {
                text
            } else {
                &frame["payload_hex"]
            }
            .clone()
        });
        return json!({"framing": expect.get("framing"), "frames": shown.collect::<Vec<_>>()});
    }
    if frames.len() == 1 {
        return frames.remove(0);
    }
    json!({"frames": frames})
}

fn check_refused(
    protocol: &str,
    bytes: &[u8],
    described: &Description,
    expect: &Map<String, Value>,
) -> Result<(), String> {
    let error = described.errors.first().ok_or("was not refused")?;
    if !described.frames.is_empty() {
        return Err("was refused and gave a frame too".to_owned());
    }
    let mut found = json!({"error": error.reason.name()});
    if let Some(index) = error.frame_index {
        found["frame_index"] = json!(index);
    }
    if let Some(need) = error.need_bytes {
        found["need_bytes"] = json!(need);
    }
    if let Some(framing) = expect.get("framing") {
        found["framing"] = framing.clone();
    }
    if expect.contains_key("reply") {
        found["reply"] = json!(reply(protocol, bytes)?);
    }
    contains(&found, &Value::Object(expect.clone()), "expect")
}

/// What the driver answers to the bytes, as hexadecimal text.
fn reply(protocol: &str, bytes: &[u8]) -> Result<String, String> {
    let mut driver = info(protocol, &Map::new())?.create();
    let mut out = Output::default();
    driver.bytes(bytes, at(0), &mut out);
    Ok(out.send.concat().iter().map(|b| format!("{b:02x}")).collect())
}

fn at(monotonic_us: u64) -> Now {
    let wall = i64::try_from(monotonic_us)
        .ok()
        .and_then(|us| iomt_mapping::Timestamp::from_ticks(17_100_000_000_000_000 + us * 10));
    Now { monotonic_us, wall }
}

/// Plays a dialogue: what the device says goes in, what the host says must come out in this order; deadlines pass while
/// the host owes something. What the host thinks of a damaged frame shows in its answer.
fn check_transcript(protocol: &str, transcript: &Value, expect: &Map<String, Value>) -> Result<(), String> {
    let steps = transcript.as_array().ok_or("`transcript` is no list")?;
    let mut driver = match expect
        .get("framing")
        .and_then(Value::as_str)
        .and_then(framing_config)
    {
        Some(config) if protocol == "framings" => framing::from_config(&config),
        _ => info(protocol, expect)?.create(),
    };
    let mut out = Output::default();
    let mut now = 0;
    driver.start(at(now), &mut out);
    // A driver that keeps a stream coming may say more than a transcript shows; where every byte is an answer it may not.
    let may_say_more = !driver.acknowledges();
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let (host, bytes) = transcript_step(step).ok_or(format!("step {index} is not understood"))?;
        if !host {
            driver.bytes(&bytes, at(now), &mut out);
            continue;
        }
        let mut found = None;
        for _ in 0..100 {
            sent.append(&mut out.send);
            let last = if may_say_more { sent.len() } else { 1 };
            found = (0..last.min(sent.len())).find(|from| said(&sent, *from).starts_with(&bytes));
            let Some(deadline) = driver.deadline().filter(|_| found.is_none()) else {
                break;
            };
            now = now.max(deadline);
            driver.timeout(at(now), &mut out);
        }
        let from = found.ok_or(format!("step {index}: the host sends something else"))?;
        sent.drain(..from);
        let mut left = bytes.len();
        while let Some(first) = sent.first_mut().filter(|_| left > 0) {
            let taken = left.min(first.len());
            first.drain(..taken);
            left -= taken;
            if first.is_empty() {
                sent.remove(0);
            }
        }
    }
    Ok(())
}

/// The bytes of the writes from the given one on.
fn said(sent: &[Vec<u8>], from: usize) -> Vec<u8> {
    sent.iter().skip(from).flatten().copied().collect()
}

fn transcript_step(step: &Value) -> Option<(bool, Vec<u8>)> {
    let is_host = |who: &str| {
        ["host", "gateway", "tx", "out"]
            .iter()
            .any(|name| who.starts_with(name))
    };
    if let Some(pair) = step.as_array() {
        let (who, hex) = (pair.first()?.as_str()?, pair.get(1)?.as_str()?);
        return Some((is_host(who), unhex(hex).ok()?));
    }
    let members = step.as_object()?;
    let who = ["from", "direction", "dir", "who", "sender"]
        .iter()
        .find_map(|name| members.get(*name)?.as_str());
    if let Some(who) = who {
        let hex = ["hex", "bytes", "data"]
            .iter()
            .find_map(|name| members.get(*name)?.as_str())?;
        return Some((is_host(who), unhex(hex).ok()?));
    }
    let (who, hex) = members
        .iter()
        .find(|(name, _)| matches!(name.as_str(), "host" | "device"))?;
    Some((who == "host", unhex(hex.as_str()?).ok()?))
}

fn info(protocol: &str, expect: &Map<String, Value>) -> Result<&'static DriverInfo, String> {
    let dialect = expect
        .get("dialect")
        .or_else(|| expect.get("packet")?.get("dialect"));
    let name = match (protocol, dialect.and_then(Value::as_str)) {
        ("contec-cms50", Some("berry-bci")) => "berry-bci",
        ("contec-cms50", Some("cms50-v7")) => "contec-cms50-v7",
        _ => protocol,
    };
    driver(name).ok_or(format!("no driver `{name}`"))
}

fn describe(
    protocol: &str,
    direction: Direction,
    bytes: &[u8],
    expect: &Map<String, Value>,
) -> Result<Description, String> {
    if let (Some(uuid), "ble-gatt") = (expect.get("characteristic").and_then(Value::as_str), protocol) {
        let uuid = u16::from_str_radix(uuid, 16).map_err(|_| "`characteristic` is no UUID")?;
        return Ok(Description::of(ble_gatt::decode(uuid, bytes).map(Value::Object)));
    }
    if protocol != "framings" {
        return Ok((info(protocol, expect)?.describe)(direction, bytes));
    }
    let name = expect
        .get("framing")
        .and_then(Value::as_str)
        .ok_or("no `framing`")?;
    let config = framing_config(name).ok_or(format!("no framing `{name}`"))?;
    let mut described = framing::describe(&config, bytes);
    for frame in &mut described.frames {
        frame["framing"] = json!(name);
    }
    if name == "ndjson" {
        // All lines of the input in order, the refused ones marked.
        let lines = bytes.split_inclusive(|b| *b == b'\n').flat_map(|line| {
            let line = framing::describe(&config, line);
            let invalid = line.errors.into_iter().map(|_| json!("<invalid>"));
            let valid = line.frames.into_iter().map(|frame| frame["payload_text"].clone());
            invalid.chain(valid).collect::<Vec<_>>()
        });
        if !expect.contains_key("error") {
            described.frames = vec![json!({"framing": name, "frames": lines.collect::<Vec<_>>()})];
            described.errors.clear();
        }
    }
    Ok(described)
}

fn framing_config(name: &str) -> Option<FramingConfig> {
    let text = match name {
        "ndjson" | "json" => r#"{"framing": "lines", "format": "json"}"#,
        "csv" => r#"{"framing": "lines", "format": "csv"}"#,
        "key_value" | "label" => r#"{"framing": "lines", "format": "label"}"#,
        "stx_etx" => r#"{"framing": "stx-etx", "format": "hex"}"#,
        "stx_etx_xor" => r#"{"framing": "stx-etx", "checksum": "xor8", "format": "hex"}"#,
        "stx_etx_sum8" => r#"{"framing": "stx-etx", "checksum": "sum8", "format": "hex"}"#,
        "stx_etx_sum8hex" => r#"{"framing": "stx-etx", "checksum": "sum8-hex", "format": "hex"}"#,
        "stx_etx_xorhex" | "stx_etx_xor8hex" => {
            r#"{"framing": "stx-etx", "checksum": "xor8-hex", "format": "hex"}"#
        }
        "slip" => r#"{"framing": "slip", "format": "hex"}"#,
        "cobs" => r#"{"framing": "cobs", "format": "hex"}"#,
        "cobs_crc16le" | "cobs_crc16" | "cobs_crc16_modbus" => {
            r#"{"framing": "cobs", "checksum": "crc16-modbus", "format": "hex"}"#
        }
        "len8_crc16_modbus" | "len8_crc16" => r#"{"framing": "length-crc16", "format": "hex"}"#,
        "len16_crc16_modbus" | "len16le_crc16_modbus" | "len16_crc16" => {
            r#"{"framing": "length-crc16", "length_bytes": 2, "format": "hex"}"#
        }
        "modbus_rtu" => r#"{"framing": "modbus-rtu", "format": "hex"}"#,
        "astm_e1381" => r#"{"framing": "astm", "format": "hex"}"#,
        "mllp" => r#"{"framing": "mllp", "format": "hex"}"#,
        "nmea" => r#"{"framing": "nmea", "format": "hex"}"#,
        _ => return None,
    };
    serde_json::from_str(text).ok()
}

/// Whether `found` has every member of `expected`; null and absent are the same, numbers compare as numbers.
fn contains(found: &Value, expected: &Value, path: &str) -> Result<(), String> {
    let differs = || Err(format!("{path}: {found} instead of {expected}"));
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected.iter().try_for_each(|(name, value)| {
            contains(
                found.get(name).unwrap_or(&Value::Null),
                value,
                &format!("{path}.{name}"),
            )
        }),
        (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => found
            .iter()
            .zip(expected)
            .try_for_each(|(found, expected)| contains(found, expected, path)),
        (Value::Number(found), Value::Number(expected)) => match (found.as_f64(), expected.as_f64()) {
            (Some(a), Some(b)) if (a - b).abs() <= 1e-9 * b.abs().max(1.0) => Ok(()),
            _ => differs(),
        },
        (found, expected) if found == expected => Ok(()),
        _ => differs(),
    }
}

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| "not hexadecimal".to_owned())
        })
        .collect()
}
