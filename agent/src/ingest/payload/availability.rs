//! Devices that say whether they are there: last wills and availability topics. No reading: the source shows who is away.
//!
//! Recognised by topic, in every format: the last level is `LWT` (Tasmota, OpenMQTTGateway) or `availability` (zigbee2mqtt);
//! births and deaths of Sparkplug B and of Kura; and the topics that Home Assistant's discovery names. The payload is one of the
//! words `online` and `offline` (letter case ignored), or `{"state": "..."}` with one of them.

use super::{kura, sparkplug};
use serde_json::{Value, json};

/// Who says it, and whether it is there; none for other messages.
pub fn of(topic: &str, payload: &[u8]) -> Option<(String, bool)> {
    if let Some(read) = sparkplug::Topic::read(topic) {
        let available = match read.kind {
            sparkplug::Kind::Birth => true,
            sparkplug::Kind::Death => false,
            sparkplug::Kind::Data | sparkplug::Kind::Command => return None,
        };
        let node = format!("{}/{}", read.group, read.node);
        return Some(match read.device {
            Some(device) => (format!("{node}/{device}"), available),
            None => (node, available),
        });
    }
    if let Some(found) = kura::availability(topic) {
        return Some(found);
    }
    let who = topic_of_availability(topic)?;
    Some((who.to_owned(), state(payload)?))
}

/// The same for a payload of a word, that is no JSON.
pub(super) fn of_words(topic: &str, payload: &[u8]) -> Option<bool> {
    topic_of_availability(topic)?;
    word(std::str::from_utf8(payload).ok()?)
}

/// Body of a message that says nothing else.
pub(super) fn body(available: bool) -> Vec<u8> {
    json!({ "kind": "availability", "available": available })
        .to_string()
        .into_bytes()
}

/// The topic without its last level, where that names availability.
fn topic_of_availability(topic: &str) -> Option<&str> {
    let (who, last) = topic.rsplit_once('/')?;
    matches!(last, "LWT" | "availability").then_some(who)
}

/// What a payload says.
fn state(payload: &[u8]) -> Option<bool> {
    if payload.len() > 256 {
        return None;
    }
    let text = std::str::from_utf8(payload).ok()?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::String(text)) => word(&text),
        Ok(value) => word(value.get("state")?.as_str()?),
        Err(_) => word(text),
    }
}

fn word(text: &str) -> Option<bool> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("online") {
        Some(true)
    } else if text.eq_ignore_ascii_case("offline") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_there_or_away_are_recognised_by_topic_and_payload() {
        let who = |topic, payload: &str| of(topic, payload.as_bytes());
        let some = |who: &str, available| Some((who.to_owned(), available));
        for (topic, payload, expected) in [
            ("tele/bed7/LWT", "Offline", some("tele/bed7", false)),
            ("tele/bed7/LWT", "Online", some("tele/bed7", true)),
            (
                "home/OpenMQTTGateway/LWT",
                "online",
                some("home/OpenMQTTGateway", true),
            ),
            (
                "zigbee2mqtt/bed/7/availability",
                r#"{"state":"offline"}"#,
                some("zigbee2mqtt/bed/7", false),
            ),
            (
                "zigbee2mqtt/bed7/availability",
                "offline",
                some("zigbee2mqtt/bed7", false),
            ),
            (
                "zigbee2mqtt/bed7/availability",
                r#""online""#,
                some("zigbee2mqtt/bed7", true),
            ),
            ("zigbee2mqtt/bed7/availability", r#"{"state":"paused"}"#, None),
            ("zigbee2mqtt/bed7", "offline", None),
            ("LWT", "offline", None),
            ("spBv1.0/ward3/NDEATH/gw7", "", some("ward3/gw7", false)),
            ("spBv1.0/ward3/DBIRTH/gw7/oxi7", "", some("ward3/gw7/oxi7", true)),
            ("spBv1.0/ward3/DDATA/gw7/oxi7", "", None),
            ("$EDC/acme/gw7/MQTT/LWT", "", some("acme/gw7", false)),
        ] {
            assert_eq!(who(topic, payload), expected, "{topic} {payload}");
        }
    }
}
