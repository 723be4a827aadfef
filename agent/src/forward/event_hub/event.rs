//! Messages, measurements and Observations as events: elements of the JSON array that the hub takes as a batch.
//!
//! An element is `{"Body": TEXT, "UserProperties": {..}}`. The body of a message is its payload as it came, so that MedTech
//! mappings in the cloud stay as they are; one that is not UTF-8 is sent as base64 with `IsBodyBase64`, a member that the
//! Service Bus form of the batch knows, and marked with the property `bedside-body` in case the hub does not decode it. The
//! body of a measurement is the JSON that the IoMT FHIR Connector passes between its stages, that of an Observation the
//! FHIR JSON.
//!
//! User properties of every event: `bedside-event-id`, which is the same whenever the event is sent again, gateway and
//! source or pack. A message has its topic, the MQTT 5 user properties, `iothub-connection-device-id` and
//! `iothub-enqueuedtime` too; the time only when the clock could be trusted.

use crate::config::Envelope;
use crate::forward::{Group, GroupReading, Origin, RawMessage};
use crate::message::{Message, PayloadKind, Stamp};
use crate::telemetry::errors::ErrorRecord;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iomt_mapping::{Measurement, Property, Timestamp};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::io::Write as _;
use std::sync::Arc;

/// An event, ready to send.
#[derive(Clone)]
pub(super) struct Event {
    /// The same whenever it is sent again.
    pub id: String,
    /// Device that it is about, for the partition key.
    pub device: Option<Arc<str>>,
    /// Element of the batch.
    pub element: Vec<u8>,
    /// It leaves alone, in the form of a single event.
    pub is_single: bool,
}

/// What the bodies of messages are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bodies {
    /// The payload alone, or in an envelope.
    pub envelope: Envelope,
    /// JSON objects get the event id as a member.
    pub with_id: bool,
}

/// `gateway/store/position` with the match number where there is one.
fn event_id(origin: &Origin, position: u64, match_number: Option<u32>) -> String {
    let (store, position) = origin.former.known_as(&origin.store, position);
    let id = format!("{}/{store}/{position}", origin.gateway);
    match match_number {
        Some(number) => format!("{id}/{number}"),
        None => id,
    }
}

fn common(origin: &Origin, id: &str, received: Stamp) -> Map<String, Value> {
    let mut properties = Map::new();
    properties.insert("bedside-event-id".to_owned(), json!(id));
    properties.insert("bedside-gateway".to_owned(), json!(&*origin.gateway));
    let name = received_name(received);
    properties.insert(name.to_owned(), json!(received.wall.to_string()));
    properties
}

fn received_name(received: Stamp) -> &'static str {
    if received.trusted {
        "iothub-enqueuedtime"
    } else {
        "bedside-untrusted-time"
    }
}

/// A body that is a JSON object with the event id as its last member, every other byte as it came; any other body as it is.
fn with_id(body: &str, id: &str) -> String {
    let object: Result<Map<String, Value>, _> = serde_json::from_str(body);
    match (object, body.trim_end().strip_suffix('}')) {
        (Ok(object), Some(open)) if !object.contains_key("bedsideEventId") => {
            let comma = if object.is_empty() { "" } else { "," };
            format!("{open}{comma}\"bedsideEventId\":{}}}", json!(id))
        }
        _ => body.to_owned(),
    }
}

/// The event of a message.
///
/// # Errors
/// The record of a message of which only the head was kept.
pub(super) fn of_message(origin: &Origin, raw: &RawMessage, bodies: Bodies) -> Result<Event, ErrorRecord> {
    let message = &raw.stored.message;
    if let PayloadKind::Truncated { length, .. } = message.kind {
        let text = format!("the message has {length} bytes, more than the source takes (max_message_bytes)");
        return Err(ErrorRecord::new("MessageTooLargeException", text));
    }
    let id = event_id(origin, raw.stored.position, None);
    let mut properties = Map::new();
    for (name, value) in &message.properties {
        properties.insert(name.clone(), json!(value));
    }
    properties.extend(common(origin, &id, message.stamp));
    properties.insert("bedside-source".to_owned(), json!(&*raw.source));
    if let Some(topic) = &message.topic {
        properties.insert("topic".to_owned(), json!(&**topic));
    }
    if let Some(device) = &message.device_id {
        properties.insert("iothub-connection-device-id".to_owned(), json!(&**device));
    }
    if message.possible_repeat {
        properties.insert("bedside-possible-repeat".to_owned(), json!("true"));
    }
    let text = match bodies.envelope {
        Envelope::None => std::str::from_utf8(message.payload.bytes()).map(Cow::Borrowed),
        Envelope::IotHub => Ok(Cow::Owned(iot_hub_envelope(message))),
    };
    let element = match text {
        Ok(text) if bodies.with_id => element(&with_id(&text, &id), &properties),
        Ok(text) => element(&text, &properties),
        Err(_) => {
            properties.insert("bedside-body".to_owned(), json!("base64"));
            let body = BASE64_STANDARD.encode(message.payload.bytes());
            let element = json!({ "Body": body, "IsBodyBase64": true, "UserProperties": properties });
            element.to_string().into_bytes()
        }
    };
    Ok(Event {
        id,
        device: message.device_id.clone(),
        element,
        is_single: false,
    })
}

/// Element of the batch, written at once: a waveform is thousands of events a second, or long ones.
fn element(body: &str, properties: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Element<'e, P> {
        body: &'e str,
        user_properties: &'e P,
    }
    let mut element = Vec::with_capacity(body.len() + body.len() / 4 + 320);
    let parts = Element {
        body,
        user_properties: properties,
    };
    // Texts and maps of texts can always be written to memory.
    let _ = serde_json::to_writer(&mut element, &parts);
    element
}

/// The message as a MedTech mapping of the template type `IotJsonPathContent` sees one that came through an IoT Hub. What the
/// hub itself would stamp is from this gateway; a time is never invented.
fn iot_hub_envelope(message: &Message) -> String {
    let bytes = message.payload.bytes();
    let json: Option<&RawValue> = serde_json::from_slice(bytes).ok();
    let body = match (json, std::str::from_utf8(bytes)) {
        (Some(json), _) => json.get().to_owned(),
        (None, Ok(text)) => json!(text).to_string(),
        (None, Err(_)) => json!(BASE64_STANDARD.encode(bytes)).to_string(),
    };
    let mut properties: Map<String, Value> = message
        .properties
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    if let Some(topic) = &message.topic {
        properties.insert("topic".to_owned(), json!(&**topic));
    }
    // The device may have written its own; IoT Hub takes it as UTC with Z only.
    let own = properties
        .get(CREATION_TIME)
        .and_then(Value::as_str)
        .is_some_and(is_utc);
    if !own {
        properties.shift_remove(CREATION_TIME);
    }
    let mut system = Map::new();
    if let Some(device) = &message.device_id {
        system.insert("iothub-connection-device-id".to_owned(), json!(&**device));
    }
    if message.stamp.trusted {
        let received = message.stamp.wall.to_string();
        if !own {
            properties.insert(CREATION_TIME.to_owned(), json!(received));
        }
        system.insert("iothub-enqueuedtime".to_owned(), json!(received));
    }
    let (properties, system) = (Value::Object(properties), Value::Object(system));
    format!("{{\"Body\":{body},\"Properties\":{properties},\"SystemProperties\":{system}}}")
}

const CREATION_TIME: &str = "iothub-creation-time-utc";

/// Whether a text is an instant in UTC as IoT Hub takes it: `2021-04-21T11:30:16Z`, and no offset.
fn is_utc(text: &str) -> bool {
    text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok()
}

/// The event of an Observation as it is with `reading`, the newest in it.
pub(super) fn of_observation(
    origin: &Origin,
    observation: &str,
    group: &Group,
    reading: &GroupReading,
    body: String,
) -> Event {
    let (store, position) = origin.former.known_as(&origin.store, reading.position);
    let id = format!("{}/{store}/{observation}/{position}", origin.gateway);
    let mut properties = common(origin, &id, reading.received);
    properties.insert("bedside-pack".to_owned(), json!(&*group.key.pack));
    properties.insert("bedside-observation".to_owned(), json!(observation));
    let element = json!({ "Body": body, "UserProperties": properties });
    Event {
        id,
        device: Some(Arc::clone(&group.key.device)),
        element: element.to_string().into_bytes(),
        is_single: false,
    }
}

/// The event of a measurement.
pub(super) fn of_measurement(
    origin: &Origin,
    group: &Group,
    reading: &GroupReading,
    id_in_body: bool,
) -> Event {
    let id = event_id(origin, reading.position, Some(reading.match_number));
    let properties = MeasurementProperties {
        id: &id,
        gateway: &origin.gateway,
        received: reading.received,
        pack: &group.key.pack,
    };
    let mut body = measurement_json(&reading.measurement, reading.received);
    if id_in_body {
        body = with_id(&body, &id);
    }
    let element = element(&body, &properties);
    Event {
        id,
        device: Some(Arc::clone(&group.key.device)),
        element,
        is_single: false,
    }
}

/// The event of several measurements, which have one partition key, as iomt-fhir sends them with `UseCompressionOnSend`: a
/// JSON array, compressed with gzip, marked by the property `IsMeasurementGroup`. It is named by the first and the last.
///
/// # Errors
/// When it cannot be compressed.
pub(super) fn of_measurements(
    origin: &Origin,
    readings: &[(&Group, &GroupReading)],
    id_in_body: bool,
) -> Result<Event, ErrorRecord> {
    let failed = |text: String| ErrorRecord::new("MeasurementGroupProcessingException", text);
    let (Some((first_group, first)), Some((_, last))) = (readings.first(), readings.last()) else {
        return Err(failed("there is no measurement".to_owned()));
    };
    let (store, from) = origin.former.known_as(&origin.store, first.position);
    let (_, to) = origin.former.known_as(&origin.store, last.position);
    let id = format!(
        "{}/{store}/{from}.{}-{to}.{}",
        origin.gateway, first.match_number, last.match_number
    );
    let bodies: Vec<String> = readings
        .iter()
        .map(|(_, reading)| {
            let body = measurement_json(&reading.measurement, reading.received);
            let own = event_id(origin, reading.position, Some(reading.match_number));
            if id_in_body { with_id(&body, &own) } else { body }
        })
        .collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let compressed = gzip
        .write_all(format!("[{}]", bodies.join(",")).as_bytes())
        .and_then(|()| gzip.finish())
        .map_err(|error| failed(error.to_string()))?;
    let mut properties = common(origin, &id, last.received);
    properties.insert("IsMeasurementGroup".to_owned(), json!(true));
    let body = BASE64_STANDARD.encode(compressed);
    let element = json!({ "Body": body, "IsBodyBase64": true, "UserProperties": properties });
    Ok(Event {
        id,
        device: Some(Arc::clone(&first_group.key.device)),
        element: element.to_string().into_bytes(),
        is_single: true,
    })
}

/// Body and headers.
type SingleEvent = (Vec<u8>, Vec<(String, String)>);

/// An event that is sent in the form of a single one; none when it is no element of a batch.
pub(super) fn as_single(element: &[u8]) -> Option<SingleEvent> {
    let element: Value = serde_json::from_slice(element).ok()?;
    let body = element.get("Body")?.as_str()?;
    let body = match element.get("IsBodyBase64") {
        Some(Value::Bool(true)) => BASE64_STANDARD.decode(body).ok()?,
        _ => body.as_bytes().to_vec(),
    };
    // Numbers and booleans are typed by their spelling, a text by its quotes: as in JSON.
    let properties = element.get("UserProperties").and_then(Value::as_object)?;
    let headers = properties
        .iter()
        .map(|(name, value)| (name.clone(), value.to_string()));
    Some((body, headers.collect()))
}

/// Bytes that a measurement takes as JSON, at most.
pub(super) fn weight_of(measurement: &Measurement) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let properties = measurement.properties.iter();
    let properties: usize = properties.map(|one| one.name.len() + one.value.len() + 32).sum();
    let ids = [
        &measurement.patient_id,
        &measurement.encounter_id,
        &measurement.correlation_id,
    ];
    let ids: usize = ids.into_iter().map(text).sum();
    320 + measurement.type_name.len() + measurement.device_id.len() + ids + properties
}

/// User properties of a measurement: those of every event, and its pack.
struct MeasurementProperties<'e> {
    id: &'e str,
    gateway: &'e str,
    received: Stamp,
    pack: &'e str,
}

impl Serialize for MeasurementProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("bedside-event-id", self.id)?;
        map.serialize_entry("bedside-gateway", self.gateway)?;
        map.serialize_entry(received_name(self.received), &Shown(self.received.wall))?;
        map.serialize_entry("bedside-pack", self.pack)?;
        map.end()
    }
}

/// A time as text.
struct Shown(Timestamp);

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MeasurementBody<'m> {
    r#type: &'m str,
    occurrence_time_utc: Shown,
    ingestion_time_utc: Option<Shown>,
    device_id: &'m str,
    patient_id: Option<&'m str>,
    encounter_id: Option<&'m str>,
    correlation_id: Option<&'m str>,
    properties: Named<'m>,
}

/// Named values of a measurement.
struct Named<'m>(&'m [Property]);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct One<'m> {
            name: &'m str,
            value: &'m str,
        }
        serializer.collect_seq(self.0.iter().map(|one| One {
            name: &one.name,
            value: &one.value,
        }))
    }
}

/// The JSON contract between the stages of the IoMT FHIR Connector.
fn measurement_json(measurement: &Measurement, received: Stamp) -> String {
    let body = MeasurementBody {
        r#type: &measurement.type_name,
        occurrence_time_utc: Shown(measurement.occurrence_time),
        ingestion_time_utc: received.trusted.then_some(Shown(received.wall)),
        device_id: &measurement.device_id,
        patient_id: measurement.patient_id.as_deref(),
        encounter_id: measurement.encounter_id.as_deref(),
        correlation_id: measurement.correlation_id.as_deref(),
        properties: Named(&measurement.properties),
    };
    // Texts can always be written to memory.
    serde_json::to_string(&body).unwrap_or_default()
}
