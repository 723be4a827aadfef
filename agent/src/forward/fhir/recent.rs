//! Observations that were read or written a moment ago, so that open periods and measurements in several messages are
//! merged without asking the server again. A stale entry does no harm: every write over a known Observation carries its
//! version, and a refused one is read anew.

use iomt_mapping::fhir::SentMemory;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Bytes of resources that are kept, roughly.
const MOST_BYTES: usize = 4 * 1024 * 1024;

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

/// The most recent ones, bounded by bytes.
#[derive(Default)]
pub struct Recent {
    by_id: HashMap<String, (u64, usize, Stored)>,
    order: BTreeMap<u64, String>,
    next: u64,
    bytes: usize,
}

impl Recent {
    /// The Observation with this identity.
    pub fn get(&self, id: &str) -> Option<&Stored> {
        self.by_id.get(id).map(|(_, _, stored)| stored)
    }

    /// Keeps an Observation; without a version it could not be written over safely and is not kept.
    pub fn insert(&mut self, id: String, stored: Stored) {
        self.remove(&id);
        if stored.version.is_none() {
            return;
        }
        let bytes = weight(&stored.resource) + 256;
        self.next += 1;
        self.bytes += bytes;
        self.order.insert(self.next, id.clone());
        self.by_id.insert(id, (self.next, bytes, stored));
        while self.bytes > MOST_BYTES {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            self.remove(&oldest);
        }
    }

    /// Forgets an Observation.
    pub fn remove(&mut self, id: &str) {
        if let Some((number, bytes, _)) = self.by_id.remove(id) {
            self.order.remove(&number);
            self.bytes -= bytes;
        }
    }
}

/// Bytes that a resource takes in memory, roughly.
fn weight(value: &Value) -> usize {
    32 + match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| name.len() + 48 + weight(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
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
            recent.insert(id.to_owned(), stored(Some("1")));
        }
        recent.insert("e".to_owned(), stored(None));
        let kept: Vec<bool> = ["a", "b", "c", "d", "e"]
            .iter()
            .map(|id| recent.get(id).is_some())
            .collect();
        assert_eq!(kept, [true, false, true, true, false]);
        assert!(recent.bytes <= MOST_BYTES && recent.order.len() == recent.by_id.len());
    }
}
