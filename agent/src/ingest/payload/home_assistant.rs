//! Home Assistant over MQTT: retained discovery messages say which topic has which value of which device and in which unit;
//! only what they announce is a reading. Topics `homeassistant/COMPONENT/[NODE/]OBJECT/config`, for one entity (`sensor`) or for
//! a whole device (`device`, members `components`); long and short member names, `~` for the base topic.
//!
//! The body of a state is
//!
//! ```json
//! { "kind": "home-assistant", "readings": [ { "device": "oxi7", "deviceName": "Oximeter 7", "entity": "oxi7_spo2",
//!   "name": "SpO2", "measure": "spo2", "path": "spo2", "value": 97, "unit": "%", "deviceClass": null } ] }
//! ```
//!
//! `measure` is the last member of `path`, or the entity where the whole payload is the value. Numbers sent as text are numbers;
//! `unknown`, `unavailable` and `None` are null. A value template may be a path (`{{ value_json.a.b }}`, `value_json['a'][0]`), or
//! `{{ value }}`, with the filters `float`, `int`, `round`, `string`, `trim` and `default`, which change the way a value is shown and are
//! left out here. What computes is not read: its entity is marked `"unsupported": true` and makes no reading.

use super::{Decoded, Unreadable, availability};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Entities that are remembered.
const MOST_ENTITIES: usize = 4096;

/// Longest text of an entity that is remembered.
const LONGEST: usize = 512;

/// Sensors of a discovery message.
const PREFIX: &str = "homeassistant/";

/// An announced value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entity {
    /// Unique id, else the object of the topic.
    pub entity: String,
    /// First identifier of the device, else the entity.
    pub device: String,
    /// Name of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// Name of the entity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where its state is published.
    pub state_topic: String,
    /// Members and places that lead to the value; empty when the payload is the value, none when the template computes.
    pub path: Option<Vec<String>>,
    /// Unit of measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// `device_class`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_class: Option<String>,
    /// Where its device says whether it is there, with the words for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub availability: Vec<Availability>,
}

/// An availability topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    topic: String,
    available: String,
    not_available: String,
}

/// Component and object of a discovery topic.
pub(super) fn discovery(topic: &str) -> Option<(&str, &str)> {
    let rest = topic.strip_prefix(PREFIX)?.strip_suffix("/config")?;
    let mut levels = rest.split('/');
    let component = levels.next()?;
    let object = levels.next_back()?;
    // At most a node between them.
    (levels.next().is_none() || levels.next().is_none()).then_some((component, object))
}

/// A member by its long or short name.
fn member<'v>(config: &'v Map<String, Value>, long: &str, short: &str) -> Option<&'v Value> {
    config
        .get(long)
        .or_else(|| config.get(short))
        .filter(|value| !value.is_null())
}

fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) if !text.is_empty() && text.len() <= LONGEST => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `~` at the beginning or the end of a topic stands for the base topic.
fn topic_of(config: &Map<String, Value>, base: Option<&str>, long: &str, short: &str) -> Option<String> {
    let topic = text(member(config, long, short))?;
    let Some(base) = base else { return Some(topic) };
    Some(if let Some(rest) = topic.strip_prefix('~') {
        format!("{base}{rest}")
    } else if let Some(rest) = topic.strip_suffix('~') {
        format!("{rest}{base}")
    } else {
        topic
    })
}

/// The entities that a discovery message announces; none of it when the payload is empty: it removes them.
fn announced(topic: &str, payload: &[u8]) -> Result<Vec<Entity>, Unreadable> {
    let (component, object) =
        discovery(topic).ok_or_else(|| Unreadable::new("its topic announces nothing"))?;
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    let config: Map<String, Value> = serde_json::from_slice(payload)
        .map_err(|_| Unreadable::new("a discovery message is a JSON object, or empty"))?;
    let mut found = Vec::new();
    if component == "device" {
        let components = member(&config, "components", "cmps").and_then(Value::as_object);
        let components =
            components.ok_or_else(|| Unreadable::new("the discovery of a device has no `components`"))?;
        for (id, one) in components {
            let Some(own) = one.as_object() else { continue };
            if text(member(own, "platform", "p")).as_deref() != Some("sensor") {
                continue;
            }
            // What all have stands at the device; what a component says itself counts.
            let mut whole = config.clone();
            whole.remove("components");
            whole.remove("cmps");
            for (name, value) in own {
                whole.insert(name.clone(), value.clone());
            }
            found.extend(entity(&whole, id));
        }
    } else if component == "sensor" {
        let one = entity(&config, object);
        found.push(
            one.ok_or_else(|| Unreadable::new("the discovery message of a sensor has no `state_topic`"))?,
        );
    }
    Ok(found)
}

fn entity(config: &Map<String, Value>, object: &str) -> Option<Entity> {
    let base = text(config.get("~"));
    let base = base.as_deref();
    let entity = text(member(config, "unique_id", "uniq_id")).unwrap_or_else(|| object.to_owned());
    let device = member(config, "device", "dev").and_then(Value::as_object);
    let identifier = device.and_then(|device| {
        let identifiers = member(device, "identifiers", "ids")?;
        text(
            identifiers
                .as_array()
                .map_or(Some(identifiers), |list| list.first()),
        )
    });
    let template = text(member(config, "value_template", "val_tpl"));
    Some(Entity {
        device: identifier.unwrap_or_else(|| entity.clone()),
        device_name: device.and_then(|device| text(device.get("name"))),
        name: text(config.get("name")),
        state_topic: topic_of(config, base, "state_topic", "stat_t")?,
        path: template.map_or(Some(Vec::new()), |template| path(&template)),
        unit: text(member(config, "unit_of_measurement", "unit_of_meas")),
        device_class: text(member(config, "device_class", "dev_cla")),
        availability: availability_topics(config, base),
        entity,
    })
}

fn availability_topics(config: &Map<String, Value>, base: Option<&str>) -> Vec<Availability> {
    let words = |holder: &Map<String, Value>, topic| Availability {
        topic,
        available: text(member(holder, "payload_available", "pl_avail"))
            .unwrap_or_else(|| "online".to_owned()),
        not_available: text(member(holder, "payload_not_available", "pl_not_avail"))
            .unwrap_or_else(|| "offline".to_owned()),
    };
    let mut topics = Vec::new();
    if let Some(topic) = topic_of(config, base, "availability_topic", "avty_t") {
        topics.push(words(config, topic));
    }
    let list = member(config, "availability", "avty").and_then(Value::as_array);
    for one in list.into_iter().flatten().filter_map(Value::as_object).take(8) {
        topics.extend(topic_of(one, base, "topic", "t").map(|topic| words(one, topic)));
    }
    topics
}

/// The path of a value template; none when it computes.
fn path(template: &str) -> Option<Vec<String>> {
    let inside = template.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inside = inside.trim_matches('-');
    if inside.contains("{{") || inside.contains("{%") {
        return None;
    }
    let mut parts = inside.split('|').map(str::trim);
    let variable = parts.next()?;
    for filter in parts {
        let name = filter.split('(').next().unwrap_or_default().trim();
        if !matches!(
            name,
            "float" | "int" | "round" | "string" | "trim" | "default" | "d"
        ) {
            return None;
        }
    }
    if variable == "value" || variable == "value_json" {
        return Some(Vec::new());
    }
    let mut rest = variable.strip_prefix("value_json")?;
    let mut path = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, after) = after.split_at_checked(end)?;
            let plain = |c: char| c.is_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(plain) {
                return None;
            }
            path.push(name.to_owned());
            rest = after;
        } else {
            let (name, after) = rest.strip_prefix('[')?.split_once(']')?;
            let quoted = ['\'', '"']
                .into_iter()
                .find_map(|quote| name.strip_prefix(quote)?.strip_suffix(quote));
            if quoted.is_none() && !name.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            path.push(quoted.unwrap_or(name).to_owned());
            rest = after;
        }
    }
    Some(path)
}

/// What discovery has announced, for the intake.
#[derive(Debug, Default)]
pub struct Entities {
    /// By discovery topic.
    announced: BTreeMap<String, Vec<Entity>>,
}

impl Entities {
    /// What was written down before a restart.
    pub fn recall(&mut self, key: &str, text: &str) {
        if let Ok(entities) = serde_json::from_str(text) {
            self.announced.insert(key.to_owned(), entities);
        }
    }

    /// A message in the order in which it came: what to put beside it, and what to write down.
    pub fn observe(&mut self, topic: &str, payload: &[u8]) -> (Option<String>, Option<(String, String)>) {
        if discovery(topic).is_some() {
            let Ok(found) = announced(topic, payload) else {
                return (None, None);
            };
            let count: usize = self.announced.values().map(Vec::len).sum();
            if found.len() + count > MOST_ENTITIES || self.announced.get(topic) == Some(&found) {
                return (None, None);
            }
            // Empty stays written down as empty: it was removed.
            let text = serde_json::to_string(&found).unwrap_or_default();
            self.announced.insert(topic.to_owned(), found);
            return (None, Some((topic.to_owned(), text)));
        }
        let on_topic: Vec<&Entity> = self.all().filter(|entity| entity.state_topic == topic).collect();
        let names = (!on_topic.is_empty()).then(|| serde_json::to_string(&on_topic).unwrap_or_default());
        (names, None)
    }

    fn all(&self) -> impl Iterator<Item = &Entity> {
        self.announced.values().flatten()
    }

    /// Whether the message says that a device is there or away.
    pub fn availability(&self, topic: &str, payload: &[u8]) -> Option<(String, bool)> {
        let said = std::str::from_utf8(payload).ok()?.trim();
        self.all().find_map(|entity| {
            let of_topic = entity.availability.iter().find(|known| known.topic == topic)?;
            let available = if said == of_topic.available {
                true
            } else if said == of_topic.not_available {
                false
            } else {
                return None;
            };
            Some((entity.device.clone(), available))
        })
    }
}

/// The body of a message; `names` are the entities of its topic.
pub(super) fn decode(topic: &str, payload: &Bytes, names: Option<&str>) -> Result<Decoded, Unreadable> {
    if discovery(topic).is_some() {
        let entities: Vec<Value> = announced(topic, payload)?.iter().map(shown).collect();
        let body = json!({ "kind": "home-assistant-discovery", "removed": payload.is_empty(), "entities": entities });
        return Ok(body.to_string().into_bytes().into());
    }
    let Some(names) = names else {
        if let Some((_, available)) = availability::of(topic, payload) {
            return Ok(availability::body(available).into());
        }
        // Nothing was announced: whatever it is, it is no reading.
        let body = json!({ "kind": "home-assistant", "readings": [] });
        return Ok(body.to_string().into_bytes().into());
    };
    let entities: Vec<Entity> =
        serde_json::from_str(names).map_err(|_| Unreadable::new("its announced entities cannot be read"))?;
    let words = std::str::from_utf8(payload).map_err(|_| Unreadable::new("it is no text"))?;
    let state: Option<Value> = serde_json::from_str(words).ok();
    let mut readings = Vec::new();
    for entity in &entities {
        let Some(path) = &entity.path else { continue };
        let found = match (path.is_empty(), &state) {
            (true, _) => Some(&Value::Null),
            (false, Some(state)) => along(state, path),
            (false, None) => {
                return Err(Unreadable::new(
                    "it is no JSON, and the announced value is a member of it",
                ));
            }
        };
        // A device publishes what it has: a member that is not there says nothing.
        let Some(found) = found else { continue };
        let value = match path.is_empty() {
            true => number_or_text(words.trim()),
            false => match found {
                Value::String(text) => number_or_text(text.trim()),
                other => other.clone(),
            },
        };
        let mut reading = shown(entity);
        if let Some(members) = reading.as_object_mut() {
            members.remove("stateTopic");
            members.insert("value".to_owned(), value);
        }
        readings.push(reading);
    }
    let body = json!({ "kind": "home-assistant", "readings": readings });
    Ok(body.to_string().into_bytes().into())
}

/// An entity as bodies show it.
fn shown(entity: &Entity) -> Value {
    let path = entity.path.as_deref();
    json!({
        "device": entity.device,
        "deviceName": entity.device_name,
        "entity": entity.entity,
        "name": entity.name,
        "measure": path.and_then(<[String]>::last).unwrap_or(&entity.entity),
        "path": path.map(|path| path.join(".")),
        "unsupported": path.is_none(),
        "stateTopic": entity.state_topic,
        "unit": entity.unit,
        "deviceClass": entity.device_class,
    })
}

fn along<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match value {
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        other => other.get(step),
    })
}

fn number_or_text(text: &str) -> Value {
    if matches!(text, "unknown" | "unavailable" | "None" | "none" | "null" | "") {
        return Value::Null;
    }
    match serde_json::from_str::<serde_json::Number>(text) {
        Ok(number) => Value::Number(number),
        Err(_) => text.into(),
    }
}

#[cfg(test)]
#[path = "home_assistant_tests.rs"]
mod tests;
