//! What serde says about a section, in the words of an operator.

use super::azure;
use iomt_mapping::Finding;
use iomt_mapping::finding::nearest;
use serde::de::DeserializeOwned;

/// What serde says, taken apart.
pub(super) enum Trouble<'e> {
    Missing(&'e str),
    Unknown(&'e str, Vec<&'e str>),
    Variant(&'e str, Vec<&'e str>),
    Other(&'e str),
}

impl<'e> Trouble<'e> {
    pub(super) fn of(message: &'e str) -> Trouble<'e> {
        let mut quoted = message.split('`').skip(1).step_by(2);
        let first = quoted.next().unwrap_or_default();
        if message.starts_with("missing field") {
            Trouble::Missing(first)
        } else if message.starts_with("unknown field") {
            Trouble::Unknown(first, quoted.collect())
        } else if message.starts_with("unknown variant") {
            Trouble::Variant(first, quoted.collect())
        } else {
            Trouble::Other(message)
        }
    }

    pub(super) fn finding(&self, what: &str) -> Finding {
        match self {
            Trouble::Missing(name) => missing_member(what, name),
            Trouble::Unknown(name, known) => unknown_member(what, name, known),
            Trouble::Variant(word, known) => {
                let finding = Finding::error("UnknownValue", format!("\"{word}\" is not known here."));
                // The reference's spellings are taken too; the one to learn is in small letters.
                let small = || {
                    known
                        .iter()
                        .copied()
                        .filter(|word| !word.contains(char::is_uppercase))
                };
                match nearest(word, small()) {
                    Some(near) => finding.suggest(format!("Did you mean \"{near}\"?")),
                    None => finding.suggest(format!(
                        "It is one of {}.",
                        small().collect::<Vec<_>>().join(", ")
                    )),
                }
            }
            Trouble::Other(message) if message.starts_with("invalid type") => {
                let number = ["usize", "u8", "u16", "u32", "u64"]
                    .iter()
                    .find_map(|kind| message.strip_suffix(kind));
                let words = number.map(|before| format!("{before}a whole number"));
                Finding::error("WrongType", sentence(words.as_deref().unwrap_or(message)))
            }
            Trouble::Other(message) => Finding::error("WrongValue", sentence(message)),
        }
    }
}

pub(super) fn unknown_member(what: &str, name: &str, known: &[&str]) -> Finding {
    let finding = Finding::error("UnknownMember", format!("{what} has no member \"{name}\".")).field(name);
    match nearest(name, known.iter().copied()) {
        Some(near) => finding.suggest(format!("Did you mean \"{near}\"?")),
        None => finding.suggest(format!("Remove it; known members are {}.", known.join(", "))),
    }
}

pub(super) fn missing_member(what: &str, name: &str) -> Finding {
    let finding = match name {
        "namespace" => Finding::error("InvalidEventHubException", azure::INVALID_NAMESPACE),
        _ => Finding::error("MissingMember", format!("{what} needs the member \"{name}\".")),
    };
    let finding = finding.field(name);
    let example = match name {
        "kind" => "kind = \"mqtt\", \"serial\", \"fhir\" or \"event-hub\"",
        "url" => "url = \"mqtts://broker.ward.example:8883\"",
        "topics" => "topics = [\"wearables/+/telemetry\"]",
        "port" => "port = \"/dev/serial/by-id/NAME\"",
        "topic_level" => "device_id_from = { topic_level = 2 }, counted from 1",
        "namespace" => "namespace = \"{namespace}.servicebus.windows.net\"",
        "hub" => "hub = \"devicedata\"",
        _ => return finding,
    };
    finding.suggest(format!("For example {example}."))
}

/// A message as a sentence.
pub(super) fn sentence(message: &str) -> String {
    let message = message.trim().trim_end_matches('.');
    let mut characters = message.chars();
    match characters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), characters.as_str()),
        None => "It cannot be read.".to_owned(),
    }
}

/// Names of the members of a structure, as its derived `Deserialize` tells them to a format.
pub(super) fn members_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'n>(&'n mut &'static [&'static str]);
    impl<'de> serde::Deserializer<'de> for Names<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_struct<V: serde::de::Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(serde::de::Error::custom("only the names were asked for"))
        }

        fn deserialize_any<V: serde::de::Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("not a structure"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    // The answer is always an error; the names have been noted by then.
    let _ = T::deserialize(Names(&mut names));
    names
}
