//! The intake half: sees the messages of a source in order, and puts beside each what it refers to.

use super::home_assistant::Entities;
use super::sparkplug::{Topic, births::Births};
use super::{FORMAT_PROPERTY, Memory, NAMES_PROPERTY, PayloadFormat, Remembered, availability};
use crate::config::MqttConfig;
use crate::message::{Message, PayloadKind, SourceId};

/// What the intake knows of the messages of one source.
#[derive(Debug)]
pub struct Annotator {
    format: PayloadFormat,
    /// Format and options as the property has them; none for JSON.
    property: Option<String>,
    births: Births,
    entities: Entities,
    source: SourceId,
    memory: super::memory::Learnt,
}

/// What an annotated message says of its sender.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Somebody is there or away.
    pub availability: Option<(String, bool)>,
    /// Group and edge node whose births are missing.
    pub incomplete: Option<(String, String)>,
}

impl Annotator {
    /// For a source as it is configured, with what it knew before.
    pub fn new(config: &MqttConfig, source: SourceId, memory: &Memory) -> Annotator {
        let options = serde_json::to_string(&config.line).unwrap_or_default();
        let property = match config.format {
            PayloadFormat::Json => None,
            PayloadFormat::SerialLines => Some(format!("{} {options}", config.format.name())),
            format => Some(format.name().to_owned()),
        };
        let mut annotator = Annotator {
            format: config.format,
            property,
            births: Births::default(),
            entities: Entities::default(),
            source,
            memory: memory.learnt.clone(),
        };
        for (key, text) in &memory.recalled {
            match annotator.format {
                PayloadFormat::SparkplugB => annotator.births.recall(key, text),
                PayloadFormat::HomeAssistant => annotator.entities.recall(key, text),
                _ => {}
            }
        }
        for (topic, payload) in &memory.last {
            if let Some(topic) = Topic::read(topic) {
                annotator.births.recall_last(&topic, payload);
            }
        }
        annotator
    }

    /// The source was started again after a fault: what it missed is not known.
    pub fn restart(&mut self) {
        self.births.forget_all();
    }

    /// Puts beside the message what it refers to. Each message of the source once, in the order in which they came.
    pub fn annotate(&mut self, message: &mut Message) -> Said {
        message
            .properties
            .retain(|(name, _)| name != FORMAT_PROPERTY && name != NAMES_PROPERTY);
        let topic = message.topic.clone().unwrap_or_default();
        let whole = message.kind == PayloadKind::Whole;
        let payload = &message.payload.0;
        let mut said = Said::default();
        let (mut names, mut remember) = (None, None);
        match self.format {
            PayloadFormat::SparkplugB => {
                if let Some(topic) = Topic::read(&topic) {
                    let observed = match whole {
                        true => self.births.observe(&topic, payload),
                        false => self.births.observe_unreadable(&topic),
                    };
                    names = observed
                        .names
                        .and_then(|names| serde_json::to_string(&names).ok());
                    remember = observed.remember;
                    said.incomplete = observed
                        .incomplete
                        .then(|| (topic.group.to_owned(), topic.node.to_owned()));
                }
            }
            PayloadFormat::HomeAssistant if whole => {
                (names, remember) = self.entities.observe(&topic, payload);
                said.availability = self.entities.availability(&topic, payload);
            }
            _ => {}
        }
        if said.availability.is_none() && whole {
            said.availability = availability::of(&topic, payload);
        }
        if let Some((key, text)) = remember {
            self.memory.put(Remembered {
                source: self.source,
                key,
                text,
            });
        }
        let beside = [(FORMAT_PROPERTY, self.property.clone()), (NAMES_PROPERTY, names)];
        for (name, value) in beside {
            message
                .properties
                .extend(value.map(|value| (name.to_owned(), value)));
        }
        said
    }
}
