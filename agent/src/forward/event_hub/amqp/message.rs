//! Events as AMQP messages: the body in a data section, the user properties as application properties, the event id as
//! message id too, the partition key as the annotation that Event Hubs reads.

use super::Publication;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fe2o3_amqp::Sendable;
use fe2o3_amqp::types::messaging::message::__private::Serializable;
use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Batch, Data, Header, Message, MessageAnnotations, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The message format of Azure for several events in one message.
const BATCHED: u32 = 0x8001_3700;

const PARTITION_KEY: &str = "x-opt-partition-key";

/// An element of the array that the REST interface takes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Element {
    body: String,
    #[serde(default)]
    is_body_base64: bool,
    #[serde(default)]
    user_properties: Map<String, Value>,
}

/// The message of a publication; none when it holds no event that can be written.
pub(super) fn of_publication(publication: &Publication) -> Option<Sendable<Batch<Data>>> {
    let elements: Vec<Element> = serde_json::from_slice(&publication.body).ok()?;
    let key = publication.partition_key.as_deref();
    let single = elements.len() == 1;
    let mut messages = elements.into_iter().map(|element| of_element(element, key));
    if single {
        return Some(Sendable {
            message: messages.next()??,
            message_format: 0,
            settled: Some(false),
        });
    }
    let sections: Vec<Data> = messages
        .map(|message| {
            let encoded = serde_amqp::to_vec(&Serializable(message?)).ok()?;
            Some(Data(Binary::from(encoded)))
        })
        .collect::<Option<_>>()?;
    let mut envelope = Message::builder().header(durable()).data_batch(sections).build();
    envelope.message_annotations = annotations(key);
    Some(Sendable {
        message: envelope,
        message_format: BATCHED,
        settled: Some(false),
    })
}

fn of_element(element: Element, key: Option<&str>) -> Option<Message<Batch<Data>>> {
    let body = match element.is_body_base64 {
        true => BASE64_STANDARD.decode(element.body).ok()?,
        false => element.body.into_bytes(),
    };
    let mut properties = ApplicationProperties::builder();
    let mut id = None;
    let is_group = element.user_properties.contains_key("IsMeasurementGroup");
    for (name, value) in element.user_properties {
        // Bytes travel as bytes here.
        if element.is_body_base64 && name == "bedside-body" {
            continue;
        }
        if name == "bedside-event-id" {
            id = value.as_str().map(str::to_owned);
        }
        properties = properties.insert(name, simple(value));
    }
    let mut message = Message::builder()
        .header(durable())
        .application_properties(properties.build())
        .data_batch([Data(Binary::from(body))])
        .build();
    message.properties = id.map(|id| {
        let properties = Properties::builder().message_id(id);
        match is_group {
            true => properties.content_type("application/gzip").build(),
            false => properties.build(),
        }
    });
    message.message_annotations = annotations(key);
    Some(message)
}

/// A broker keeps it over a restart; Event Hubs always does.
fn durable() -> Header {
    Header {
        durable: true,
        ..Header::default()
    }
}

fn annotations(key: Option<&str>) -> Option<MessageAnnotations> {
    key.map(|key| MessageAnnotations::builder().insert(PARTITION_KEY, key).build())
}

fn simple(value: Value) -> SimpleValue {
    match value {
        Value::Null => SimpleValue::Null,
        Value::Bool(value) => SimpleValue::from(value),
        Value::String(text) => SimpleValue::from(text),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => SimpleValue::from(whole),
            (None, Some(fraction)) => SimpleValue::from(fraction),
            (None, None) => SimpleValue::from(number.to_string()),
        },
        other => SimpleValue::from(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Credential;
    use super::*;
    use fe2o3_amqp::types::messaging::message::__private::Deserializable;
    use fe2o3_amqp::types::messaging::{Body, MessageId};

    fn publication(body: Value) -> Publication {
        Publication {
            body: body.to_string().into_bytes(),
            partition_key: Some("bed-12".to_owned()),
            credential: Credential::of_header("Bearer x").unwrap(),
        }
    }

    fn event(number: u32) -> Value {
        serde_json::json!({
            "Body": format!("{{\"n\":{number}}}"),
            "UserProperties": { "bedside-event-id": format!("bed-12/s1/{number}"), "count": number }
        })
    }

    #[test]
    fn one_event_is_a_plain_message_with_its_id_properties_and_partition_key() {
        let body = serde_json::json!([{
            "Body": "/wBB", "IsBodyBase64": true,
            "UserProperties": { "bedside-event-id": "bed-12/s1/8", "bedside-body": "base64", "unit": "/min" }
        }]);
        let sendable = of_publication(&publication(body)).unwrap();
        assert_eq!(sendable.message_format, 0);
        let message = sendable.message;
        assert_eq!(message.body.into_inner()[0].0.as_ref(), [0xff, 0x00, 0x41]);
        let properties = message.application_properties.unwrap();
        let names: Vec<&str> = properties.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["bedside-event-id", "unit"]);
        assert_eq!(
            message.properties.unwrap().message_id,
            Some(MessageId::String("bed-12/s1/8".to_owned()))
        );
        assert_eq!(message.message_annotations, annotations(Some("bed-12")));
        assert!(message.header.unwrap().durable);
    }

    #[test]
    fn several_events_are_one_message_of_encoded_messages_in_order() {
        let body = Value::Array((1..=3).map(event).collect());
        let sendable = of_publication(&publication(body)).unwrap();
        assert_eq!(sendable.message_format, 0x8001_3700);
        let sections = sendable.message.body.into_inner();
        assert_eq!(sections.len(), 3);
        for (number, section) in (1_i64..).zip(sections) {
            let inner: Deserializable<Message<Body<fe2o3_amqp::types::primitives::Value>>> =
                serde_amqp::from_slice(section.0.as_ref()).unwrap();
            let properties = inner.0.application_properties.unwrap();
            assert_eq!(properties.0.get("count"), Some(&SimpleValue::from(number)));
            assert_eq!(inner.0.message_annotations, annotations(Some("bed-12")));
        }
    }
}
