//! `format` of an MQTT source and what belongs to it.

use super::Check;
use super::Step::{Item, Member};
use crate::config::MqttConfig;
use crate::ingest::payload::{PayloadFormat, lines};
use crate::ingest::serial::framing::Format;

impl Check<'_> {
    /// Everything about the payloads of a broker.
    pub(super) fn payload(&mut self, number: usize, mqtt: &MqttConfig) {
        let at = |name| [Member("source"), Item(number), Member(name)];
        if !mqtt.line.is_empty() && mqtt.format != PayloadFormat::SerialLines {
            self.error(
                "ConflictingMembers",
                &at("line"),
                "Only lines of a serial device have this member.",
                "Write format = \"serial-lines\" too, or remove it.",
            );
        } else if mqtt.format == PayloadFormat::SerialLines {
            match lines::options(&mqtt.line) {
                Err(why) => self.error(
                    "WrongValue",
                    &at("line"),
                    &super::as_sentence(&why),
                    "For example line = { format = \"label\", delimiter = \" \" } for \"SPO2=098 HR=072\".",
                ),
                Ok(line) if line.format == Format::Csv && line.columns.is_empty() => self.warning(
                    "MissingMember",
                    &at("line"),
                    "Columns without names become a list, which mappings can read by number only.",
                    "Name them: line = { format = \"csv\", columns = [\"spo2\", \"hr\"] }.",
                ),
                Ok(_) => {}
            }
        }
        if mqtt.request_rebirth && mqtt.format != PayloadFormat::SparkplugB {
            self.error(
                "ConflictingMembers",
                &at("request_rebirth"),
                "Only edge nodes of Sparkplug B can be asked for their births.",
                "Write format = \"sparkplug-b\" too, or remove it.",
            );
        }
        if mqtt.topics.is_empty() {
            return;
        }
        match mqtt.format {
            PayloadFormat::SparkplugB => {
                let reached = |kind| mqtt.topics.iter().any(|filter| reaches(filter, kind));
                let (births, data) = (reached("BIRTH"), reached("DATA"));
                if !births && !data {
                    self.warning(
                        "NoTopicOfFormat",
                        &at("topics"),
                        "No filter reaches a topic of Sparkplug B.",
                        "For example topics = [\"spBv1.0/ward3/#\"].",
                    );
                } else if !births {
                    self.warning(
                        "NoTopicOfFormat",
                        &at("topics"),
                        "No filter reaches the births, and data messages have only the numbers that births define.",
                        "Subscribe a whole group: topics = [\"spBv1.0/ward3/#\"].",
                    );
                }
            }
            PayloadFormat::HomeAssistant if !mqtt.topics.iter().any(|filter| may_announce(filter)) => self
                .warning(
                    "NoTopicOfFormat",
                    &at("topics"),
                    "No filter reaches the discovery messages, and only what they announce is a reading.",
                    "Add \"homeassistant/#\" to the filters of the state topics.",
                ),
            _ => {}
        }
    }
}

/// Whether node or device messages of a kind (`BIRTH`, `DATA`) come through a filter.
fn reaches(filter: &str, kind: &str) -> bool {
    let mut levels = filter.split('/');
    if levels.clone().take(3).any(|level| level == "#") {
        return matches!(levels.next(), Some("#" | "+" | "spBv1.0"));
    }
    let of_kind = |level: &str| level == "+" || level.strip_prefix(['N', 'D']) == Some(kind);
    matches!(levels.next(), Some("+" | "spBv1.0")) && levels.nth(1).is_some_and(of_kind)
}

fn may_announce(filter: &str) -> bool {
    matches!(filter.split('/').next(), Some("homeassistant" | "+" | "#"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_sparkplug_reach_births_or_not() {
        for (filter, birth, data) in [
            ("#", true, true),
            ("spBv1.0/#", true, true),
            ("spBv1.0/ward3/#", true, true),
            ("spBv1.0/+/+/gw7/#", true, true),
            ("spBv1.0/ward3/DDATA/#", false, true),
            ("+/ward3/DBIRTH/+/+", true, false),
            ("spAv1.0/#", false, false),
            ("wearables/+/telemetry", false, false),
        ] {
            assert_eq!(
                (reaches(filter, "BIRTH"), reaches(filter, "DATA")),
                (birth, data),
                "{filter}"
            );
        }
    }
}
