//! Observations that were read or written a moment ago, so that open periods and measurements in several messages are
//! merged without asking the server again. A stale entry does no harm: every write over a known Observation carries its
//! version, and a refused one is read anew.

use iomt_mapping::fhir::SentMemory;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes that are kept.
const MOST_BYTES: usize = 256 * 1024;

/// An Observation as the server holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The resource.
    pub resource: Value,
    /// Its version, if the server told one.
    pub version: Option<String>,
    /// When its readings were taken.
    pub memory: Option<SentMemory>,
}

/// As it is kept: as text, for as a tree of values it takes five times the memory. The text is that of the request, shared.
#[derive(Debug)]
pub struct Kept {
    number: u64,
    resource: Arc<RawValue>,
    version: String,
    memory: Option<Box<[u8]>>,
}

impl Kept {
    /// The Observation itself.
    pub fn open(&self) -> Option<Stored> {
        Some(Stored {
            resource: serde_json::from_str(self.resource.get()).ok()?,
            version: Some(self.version.clone()),
            memory: self.memory.as_deref().and_then(SentMemory::from_bytes),
        })
    }

    /// Bytes with what the two maps need for it.
    fn weight(&self, id: &str) -> usize {
        let memory = self.memory.as_ref().map_or(0, |memory| memory.len());
        self.resource.get().len() + memory + self.version.len() + 2 * id.len() + 256
    }
}

/// The most recent ones, bounded by bytes.
#[derive(Default)]
pub struct Recent {
    by_id: HashMap<String, Arc<Kept>>,
    order: BTreeMap<u64, String>,
    next: u64,
    bytes: usize,
}

impl Recent {
    /// The Observation with this identity, as it is kept.
    pub fn kept(&self, id: &str) -> Option<&Arc<Kept>> {
        self.by_id.get(id)
    }

    /// The Observation with this identity.
    pub fn get(&self, id: &str) -> Option<Stored> {
        self.kept(id)?.open()
    }

    /// Keeps an Observation; without a version it could not be written over safely and is not kept.
    pub fn insert(&mut self, id: String, stored: &Stored) {
        // Serializing JSON into memory does not fail.
        let resource = to_raw_value(&stored.resource).ok().map(Arc::from);
        self.keep(id, resource, stored.version.clone(), stored.memory.as_ref());
    }

    /// The same for a resource that is text already.
    pub fn keep(
        &mut self,
        id: String,
        resource: Option<Arc<RawValue>>,
        version: Option<String>,
        memory: Option<&SentMemory>,
    ) {
        self.remove(&id);
        let (Some(resource), Some(version)) = (resource, version) else {
            return;
        };
        self.next += 1;
        let kept = Kept {
            number: self.next,
            resource,
            version,
            memory: memory.map(|memory| memory.to_bytes().into()),
        };
        self.bytes += kept.weight(&id);
        self.order.insert(self.next, id.clone());
        self.by_id.insert(id, Arc::new(kept));
        while self.bytes > MOST_BYTES {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            self.remove(&oldest);
        }
    }

    /// Forgets an Observation.
    pub fn remove(&mut self, id: &str) {
        if let Some(kept) = self.by_id.remove(id) {
            self.order.remove(&kept.number);
            self.bytes -= kept.weight(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_leave_when_the_bytes_are_used_up() {
        let stored = |version: Option<&str>| Stored {
            resource: Value::String("x".repeat(MOST_BYTES / 4)),
            version: version.map(str::to_owned),
            memory: None,
        };
        let mut recent = Recent::default();
        for id in ["a", "b", "a", "c", "d"] {
            recent.insert(id.to_owned(), &stored(Some("1")));
        }
        recent.insert("e".to_owned(), &stored(None));
        let kept: Vec<bool> = ["a", "b", "c", "d", "e"]
            .iter()
            .map(|id| recent.get(id).is_some())
            .collect();
        assert_eq!(kept, [true, false, true, true, false]);
        assert!(recent.bytes <= MOST_BYTES && recent.order.len() == recent.by_id.len());
    }
}
