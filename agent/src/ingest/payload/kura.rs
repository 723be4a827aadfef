//! Eclipse Kura and Kapua: topics `ACCOUNT/CLIENT/APPLICATION/...`, payloads in Protocol Buffers (KuraPayload), compressed or
//! not, or in JSON. The body that mappings see:
//!
//! ```json
//! { "kind": "kura", "account": "acme", "device": "gw7", "application": "vitals", "topic": "oxi7",
//!   "time": "2024-03-05T14:30:00Z",
//!   "metrics": [ { "name": "hr", "type": "INT32", "value": 72 }, { "name": "spo2", "type": "DOUBLE", "value": 97.5 } ],
//!   "position": { "latitude": 48.1, "longitude": 11.5 } }
//! ```
//!
//! `value` is null where the sender has none. Messages of the control topics `$EDC/...` have `control` in place of `metrics`:
//! they say how the gateway is, not how a patient is.

use super::sparkplug::value::{double_json, float_json, time};
use super::{Decoded, Unreadable};
use crate::telemetry::errors::ErrorRecord;
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use iomt_mapping::timestamp::read_timestamp;
use prost::Message as _;
use serde_json::{Map, Value, json};
use std::io::Read;

/// Largest payload after it was unpacked, in bytes.
const LARGEST: u64 = 1024 * 1024;

/// Metrics of one message.
const MOST_METRICS: usize = 10_000;

#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(int64, optional, tag = "1")]
    timestamp: Option<i64>,
    /// A [`Position`].
    #[prost(bytes = "bytes", optional, tag = "2")]
    position: Option<Bytes>,
    /// Each a [`Metric`]; bytes, so that very many cost no more than they weigh.
    #[prost(bytes = "bytes", repeated, tag = "5000")]
    metrics: Vec<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "5001")]
    body: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metric {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(int32, optional, tag = "2")]
    datatype: Option<i32>,
    #[prost(double, optional, tag = "3")]
    double_value: Option<f64>,
    #[prost(float, optional, tag = "4")]
    float_value: Option<f32>,
    #[prost(int64, optional, tag = "5")]
    long_value: Option<i64>,
    #[prost(int32, optional, tag = "6")]
    int_value: Option<i32>,
    #[prost(bool, optional, tag = "7")]
    bool_value: Option<bool>,
    #[prost(string, optional, tag = "8")]
    string_value: Option<String>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    bytes_value: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Position {
    #[prost(double, optional, tag = "1")]
    latitude: Option<f64>,
    #[prost(double, optional, tag = "2")]
    longitude: Option<f64>,
    #[prost(double, optional, tag = "3")]
    altitude: Option<f64>,
    #[prost(double, optional, tag = "4")]
    precision: Option<f64>,
    #[prost(double, optional, tag = "5")]
    heading: Option<f64>,
    #[prost(double, optional, tag = "6")]
    speed: Option<f64>,
    #[prost(int64, optional, tag = "7")]
    timestamp: Option<i64>,
    #[prost(int32, optional, tag = "8")]
    satellites: Option<i32>,
    #[prost(int32, optional, tag = "9")]
    status: Option<i32>,
}

/// Account, client and the rest of a topic, and whether it is a control topic.
fn levels(topic: &str) -> Option<(&str, &str, &str, bool)> {
    let (rest, control) = match topic.strip_prefix("$EDC/") {
        Some(rest) => (rest, true),
        None => (topic, false),
    };
    let (account, rest) = rest.split_once('/')?;
    let (client, rest) = rest.split_once('/').unwrap_or((rest, ""));
    Some((account, client, rest, control))
}

/// Births and deaths of gateways on the control topics.
pub(super) fn availability(topic: &str) -> Option<(String, bool)> {
    let (account, client, rest, control) = levels(topic)?;
    let available = match rest {
        "MQTT/BIRTH" => true,
        "MQTT/DC" | "MQTT/LWT" | "MQTT/MISSING" => false,
        _ => return None,
    };
    control.then(|| (format!("{account}/{client}"), available))
}

/// The body of a message.
pub(super) fn decode(topic: &str, payload: &Bytes) -> Result<Decoded, Unreadable> {
    let unpacked;
    let payload = if payload.starts_with(&[0x1F, 0x8B]) {
        unpacked = unpack(payload)?;
        &unpacked
    } else {
        payload
    };
    let mut failed = Vec::new();
    let said = match payload.trim_ascii_start().first() {
        Some(b'{') => of_json(payload)?,
        _ => of_protobuf(payload, &mut failed)?,
    };
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    put("kind", "kura".into());
    let mut control = false;
    if let Some((account, client, rest, is_control)) = levels(topic) {
        control = is_control;
        put("account", account.into());
        put("device", client.into());
        let (application, rest) = rest.split_once('/').unwrap_or((rest, ""));
        put("application", application.into());
        put("topic", rest.into());
    }
    for (name, value) in said {
        let name = if name == "metrics" && control {
            "control"
        } else {
            name
        };
        put(name, value);
    }
    Ok(Decoded {
        body: Value::Object(body).to_string().into_bytes(),
        failed,
    })
}

/// Time, metrics and the rest, by the names of the body.
type Said = Vec<(&'static str, Value)>;

fn unpack(payload: &[u8]) -> Result<Bytes, Unreadable> {
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(payload)
        .take(LARGEST + 1)
        .read_to_end(&mut unpacked)
        .map_err(|_| Unreadable::new("it begins as gzip data, but cannot be unpacked"))?;
    if unpacked.len() as u64 > LARGEST {
        return Err(Unreadable::new(format!(
            "it is larger than {LARGEST} bytes when unpacked"
        )));
    }
    Ok(unpacked.into())
}

fn of_time(milliseconds: i64) -> Result<Value, Unreadable> {
    let time = u64::try_from(milliseconds).ok().and_then(time);
    time.map(Value::from)
        .ok_or_else(|| Unreadable::new("its timestamp is not between 1970 and 9999"))
}

fn too_many() -> Unreadable {
    Unreadable::new(format!("it holds more than {MOST_METRICS} metrics"))
}

fn of_protobuf(payload: &Bytes, failed: &mut Vec<ErrorRecord>) -> Result<Said, Unreadable> {
    let no_kura = |error| Unreadable::new(format!("it is no Kura message: {error}"));
    let payload = Payload::decode(payload.clone()).map_err(no_kura)?;
    if payload.metrics.len() > MOST_METRICS {
        return Err(too_many());
    }
    let mut said = Said::new();
    if let Some(timestamp) = payload.timestamp {
        said.push(("time", of_time(timestamp)?));
    }
    let mut metrics = Vec::with_capacity(payload.metrics.len());
    for (number, metric) in payload.metrics.into_iter().enumerate() {
        let metric = Metric::decode(metric).map_err(no_kura)?;
        match of_metric(metric) {
            Ok(metric) => metrics.push(metric),
            Err(why) => {
                let text = format!("metric {} of the Kura message: {why}", number + 1);
                failed.push(ErrorRecord::new("InvalidDataFormatException", text));
            }
        }
    }
    said.push(("metrics", metrics.into()));
    if let Some(position) = payload.position {
        said.push((
            "position",
            of_position(Position::decode(position).map_err(no_kura)?),
        ));
    }
    if let Some(body) = payload.body {
        said.push(("body", BASE64_STANDARD.encode(body).into()));
    }
    Ok(said)
}

fn of_metric(metric: Metric) -> Result<Value, &'static str> {
    let name = metric
        .name
        .filter(|name| !name.is_empty())
        .ok_or("it has no name")?;
    let fields = [
        metric.double_value.is_some(),
        metric.float_value.is_some(),
        metric.long_value.is_some(),
        metric.int_value.is_some(),
        metric.bool_value.is_some(),
        metric.string_value.is_some(),
        metric.bytes_value.is_some(),
    ];
    let (datatype, value) = match metric.datatype {
        Some(0) => ("DOUBLE", metric.double_value.map(double_json)),
        Some(1) => ("FLOAT", metric.float_value.map(float_json)),
        Some(2) => ("INT64", metric.long_value.map(Value::from)),
        Some(3) => ("INT32", metric.int_value.map(Value::from)),
        Some(4) => ("BOOL", metric.bool_value.map(Value::from)),
        Some(5) => ("STRING", metric.string_value.map(Value::from)),
        Some(6) => (
            "BYTES",
            metric
                .bytes_value
                .map(|bytes| BASE64_STANDARD.encode(bytes).into()),
        ),
        Some(_) => return Err("its type is none of Kura"),
        None => return Err("it has no type"),
    };
    if value.is_none() && fields.contains(&true) {
        return Err("the value is not in the field that its type has");
    }
    Ok(json!({ "name": name, "type": datatype, "value": value }))
}

fn of_position(position: Position) -> Value {
    let mut members = Map::new();
    let doubles = [
        ("latitude", position.latitude),
        ("longitude", position.longitude),
        ("altitude", position.altitude),
        ("precision", position.precision),
        ("heading", position.heading),
        ("speed", position.speed),
    ];
    for (name, value) in doubles {
        members.extend(value.map(|value| (name.to_owned(), double_json(value))));
    }
    let at = position.timestamp.and_then(|at| of_time(at).ok());
    members.extend(at.map(|at| ("time".to_owned(), at)));
    for (name, value) in [("satellites", position.satellites), ("status", position.status)] {
        members.extend(value.map(|value| (name.to_owned(), value.into())));
    }
    Value::Object(members)
}

/// The simple JSON of Kura (`metrics` by name) and that of Kapua (a list of `name`, `valueType`, `value`).
fn of_json(payload: &[u8]) -> Result<Said, Unreadable> {
    let mut payload: Map<String, Value> =
        serde_json::from_slice(payload).map_err(|_| Unreadable::new("it begins as JSON, but is none"))?;
    let mut said = Said::new();
    match payload.remove("sentOn") {
        None | Some(Value::Null) => {}
        Some(Value::Number(milliseconds)) => {
            let milliseconds = milliseconds.as_i64();
            let milliseconds =
                milliseconds.ok_or_else(|| Unreadable::new("`sentOn` is no time in milliseconds"))?;
            said.push(("time", of_time(milliseconds)?));
        }
        Some(Value::String(text)) => {
            let read = read_timestamp(&text).ok_or_else(|| Unreadable::new("`sentOn` is no time"))?;
            said.push(("time", read.time.to_string().into()));
        }
        Some(_) => return Err(Unreadable::new("`sentOn` is no time")),
    }
    let metrics: Vec<Value> = match payload.remove("metrics") {
        Some(Value::Object(metrics)) => metrics
            .into_iter()
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect(),
        Some(Value::Array(metrics)) => metrics
            .into_iter()
            .map(|metric| {
                let name = metric.get("name").filter(|name| name.is_string());
                let name = name.ok_or_else(|| Unreadable::new("a metric has no name"))?;
                let datatype = metric.get("valueType").or(metric.get("type"));
                Ok(json!({ "name": name, "type": datatype, "value": metric.get("value") }))
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(Unreadable::new("`metrics` is neither an object nor a list")),
        None if said.is_empty() => return Err(Unreadable::new("it has neither `sentOn` nor `metrics`")),
        None => Vec::new(),
    };
    if metrics.len() > MOST_METRICS {
        return Err(too_many());
    }
    said.push(("metrics", metrics.into()));
    for name in ["position", "body"] {
        said.extend(payload.remove(name).map(|value| (name, value)));
    }
    Ok(said)
}

#[cfg(test)]
#[path = "kura_tests.rs"]
mod tests;
