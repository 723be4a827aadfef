//! What a source knew when the agent stopped: out of the store, before its loop begins.

use crate::config::{SourceConfig, SourceKind};
use crate::ingest::payload::sparkplug::births;
use crate::ingest::payload::{Memory, PayloadFormat};
use crate::message::SourceId;
use crate::store::{Store, StoreError};

/// What the payload format of the source remembers; nothing where that cannot be read: then it is learnt again.
pub(super) fn recall(store: &Store, id: SourceId, source: &SourceConfig) -> Memory {
    read(store, id, source).unwrap_or_else(|error| {
        tracing::warn!(
            source = &*source.name,
            "what was learnt of its devices cannot be read: {error}"
        );
        Memory::default()
    })
}

fn read(store: &Store, id: SourceId, source: &SourceConfig) -> Result<Memory, StoreError> {
    let format = match &source.kind {
        SourceKind::Mqtt(mqtt) => mqtt.format,
        SourceKind::Serial(_) => PayloadFormat::Json,
    };
    let mut memory = Memory::default();
    if !matches!(format, PayloadFormat::SparkplugB | PayloadFormat::HomeAssistant) {
        return Ok(memory);
    }
    memory.recalled = store.recalled(id)?;
    if format == PayloadFormat::SparkplugB {
        let nodes = memory.recalled.iter().map(|(key, _)| key.clone()).collect();
        let last = store.last_messages(id, nodes, births::node_of)?;
        let parts = last.into_values().filter_map(|m| Some((m.topic?, m.payload.0)));
        memory.last = parts.collect();
    }
    Ok(memory)
}
