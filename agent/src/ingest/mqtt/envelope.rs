//! Topic and device id of messages. The same few topics come again and again, so that both are kept and shared.

use crate::config::MqttConfig;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// Topics that are kept; a sender that makes up a new topic each time must not fill the memory.
const KEPT_TOPICS: usize = 1024;

/// Topic and device id as messages hold them.
type Names = (Arc<str>, Option<Arc<str>>);

/// The topics of one source.
pub(super) struct Topics {
    device_id: Option<Arc<str>>,
    /// Counted from 1.
    device_level: Option<usize>,
    known: HashMap<Bytes, Names>,
}

impl Topics {
    /// Device ids as `config` says: from the topic where it has that level, else the fixed one.
    pub(super) fn new(config: &MqttConfig) -> Topics {
        Topics {
            device_id: config.device_id.as_deref().map(Arc::from),
            device_level: config.device_id_from.as_ref().map(|from| from.topic_level),
            known: HashMap::new(),
        }
    }

    /// Topic and device id of a message on `topic`.
    pub(super) fn names(&mut self, topic: &Bytes) -> Names {
        if let Some(names) = self.known.get(topic) {
            return names.clone();
        }
        let text: Arc<str> = String::from_utf8_lossy(topic).into();
        let level = self
            .device_level
            .and_then(|level| text.split('/').nth(level.checked_sub(1)?));
        let device_id = level
            .filter(|level| !level.is_empty())
            .map(Arc::from)
            .or_else(|| self.device_id.clone());
        if self.known.len() >= KEPT_TOPICS {
            self.known.clear();
        }
        // A copy, so that the packet's memory is not held by its topic.
        let names = (text, device_id);
        self.known.insert(Bytes::copy_from_slice(topic), names.clone());
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &str, topic: &'static str) -> (String, Option<String>) {
        let config: MqttConfig =
            toml::from_str(&format!("url = 'mqtt://b'\ntopics = ['t']\n{config}")).unwrap();
        let (topic, device) = Topics::new(&config).names(&Bytes::from_static(topic.as_bytes()));
        (topic.to_string(), device.map(|device| device.to_string()))
    }

    #[test]
    fn the_device_id_comes_from_the_topic_or_the_configuration() {
        let level = "device_id_from = { topic_level = 2 }";
        let both = "device_id = 'fixed'\ndevice_id_from = { topic_level = 2 }";
        for (config, topic, device) in [
            ("", "wearables/d7/telemetry", None),
            (level, "wearables/d7/telemetry", Some("d7")),
            (level, "wearables", None),
            (level, "wearables//x", None),
            ("device_id = 'fixed'", "wearables/d7", Some("fixed")),
            (both, "wearables/d7", Some("d7")),
            (both, "wearables", Some("fixed")),
        ] {
            assert_eq!(
                names(config, topic),
                (topic.to_owned(), device.map(str::to_owned)),
                "{config} {topic}"
            );
        }
    }

    #[test]
    fn topics_are_shared_and_bounded() {
        let config: MqttConfig = toml::from_str("url = 'mqtt://b'\ntopics = ['t']").unwrap();
        let mut topics = Topics::new(&config);
        let (first, _) = topics.names(&Bytes::from_static(b"a"));
        let (again, _) = topics.names(&Bytes::from_static(b"a"));
        assert!(Arc::ptr_eq(&first, &again));
        for number in 0..3000 {
            topics.names(&Bytes::from(format!("t/{number}")));
        }
        assert!(topics.known.len() <= KEPT_TOPICS);
    }
}
