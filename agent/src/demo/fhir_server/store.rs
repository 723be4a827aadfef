//! The resources of the server, with their versions and an index of identifiers.
//!
//! Invariant: a change is complete or undone; `undo` with what `put` gave back restores the earlier state.

use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Resource types that the server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `Device`.
    Device,
    /// `Patient`.
    Patient,
    /// `Encounter`.
    Encounter,
    /// `Observation`.
    Observation,
    /// `DeviceUseStatement`.
    DeviceUseStatement,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [
        Kind::Device,
        Kind::Patient,
        Kind::Encounter,
        Kind::Observation,
        Kind::DeviceUseStatement,
    ];

    /// The name in addresses and in `resourceType`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Device => "Device",
            Kind::Patient => "Patient",
            Kind::Encounter => "Encounter",
            Kind::Observation => "Observation",
            Kind::DeviceUseStatement => "DeviceUseStatement",
        }
    }

    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A resource with its version.
#[derive(Debug)]
pub(super) struct Stored {
    pub resource: Value,
    pub version: u64,
    /// Order of the last change.
    changed: u64,
    /// When it was created: ticks of 100 ns.
    created: i64,
}

/// What a change replaced.
pub(super) struct Undo {
    kind: Kind,
    id: String,
    before: Option<Arc<Stored>>,
}

#[derive(Default)]
pub(super) struct Store {
    resources: BTreeMap<(Kind, String), Arc<Stored>>,
    by_identifier: HashMap<(Kind, String), Vec<String>>,
    changes: u64,
    /// Versions of Devices, oldest first, when they are kept.
    versions: Option<BTreeMap<String, Vec<Arc<Stored>>>>,
    /// How long a new resource is invisible for searches: ticks of 100 ns.
    search_lag: i64,
}

/// `identifier` of a resource as pairs of system and value.
pub(super) fn identifiers(resource: &Value) -> impl Iterator<Item = (Option<&str>, &str)> {
    let list = resource
        .get("identifier")
        .and_then(Value::as_array)
        .map(Vec::as_slice);
    list.unwrap_or_default().iter().filter_map(|identifier| {
        let value = identifier.get("value")?.as_str()?;
        Some((identifier.get("system").and_then(Value::as_str), value))
    })
}

impl Store {
    pub fn get(&self, kind: Kind, id: &str) -> Option<&Arc<Stored>> {
        self.resources.get(&(kind, id.to_owned()))
    }

    /// All resources of a type, by id.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Stored>> {
        self.resources
            .range((kind, String::new())..)
            .take_while(move |((of, _), _)| *of == kind)
            .map(|(_, stored)| stored)
    }

    /// Resources that have an identifier with this value, of whatever system.
    pub fn with_identifier(&self, kind: Kind, value: &str) -> impl Iterator<Item = &Arc<Stored>> {
        self.by_identifier
            .get(&(kind, value.to_owned()))
            .into_iter()
            .flatten()
            .filter_map(move |id| self.get(kind, id))
    }

    /// From now on versions of Devices are kept.
    pub fn keep_versions(&mut self) {
        self.versions.get_or_insert_default();
    }

    /// Versions of a Device, oldest first; `None` when they are not kept.
    pub fn versions(&self, kind: Kind, id: &str) -> Option<&[Arc<Stored>]> {
        let versions = self.versions.as_ref().filter(|_| kind == Kind::Device)?;
        versions.get(id).map(Vec::as_slice)
    }

    /// From now on a new resource is invisible for searches for so many ticks of 100 ns.
    pub fn set_search_lag(&mut self, ticks: i64) {
        self.search_lag = ticks;
    }

    /// Whether a search sees a resource already.
    pub fn is_indexed(&self, stored: &Stored) -> bool {
        self.search_lag == 0 || stored.created + self.search_lag <= crate::clock::wall().ticks()
    }

    /// The Observation that was written last.
    pub fn last_observation(&self) -> Option<&Arc<Stored>> {
        self.all(Kind::Observation).max_by_key(|stored| stored.changed)
    }

    /// Writes a resource as the next version of its id; `resource` gets `id` and `meta`.
    pub fn put(&mut self, kind: Kind, id: &str, mut resource: Value) -> (Arc<Stored>, Undo) {
        let version = self.get(kind, id).map_or(0, |stored| stored.version) + 1;
        if let Some(members) = resource.as_object_mut() {
            members.insert("id".to_owned(), json!(id));
            let meta = members.entry("meta").or_insert_with(|| json!({}));
            if let Some(meta) = meta.as_object_mut() {
                meta.insert("versionId".to_owned(), json!(version.to_string()));
                // A FHIR instant; milliseconds are what servers give.
                let now = crate::clock::wall().floor_to(10_000).to_string();
                meta.insert("lastUpdated".to_owned(), json!(now));
            }
        }
        self.changes += 1;
        let stored = Arc::new(Stored {
            resource,
            version,
            changed: self.changes,
            created: self
                .get(kind, id)
                .map_or_else(|| crate::clock::wall().ticks(), |stored| stored.created),
        });
        if let Some(versions) = self.versions.as_mut().filter(|_| kind == Kind::Device) {
            versions
                .entry(id.to_owned())
                .or_default()
                .push(Arc::clone(&stored));
        }
        let before = self.replace(kind, id, Some(Arc::clone(&stored)));
        let undo = Undo {
            kind,
            id: id.to_owned(),
            before,
        };
        (stored, undo)
    }

    /// Takes a change back.
    pub fn undo(&mut self, undo: Undo) {
        self.replace(undo.kind, &undo.id, undo.before);
    }

    fn replace(&mut self, kind: Kind, id: &str, stored: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        let key = (kind, id.to_owned());
        let before = self.resources.remove(&key);
        for (_, value) in before.iter().flat_map(|stored| identifiers(&stored.resource)) {
            if let Some(ids) = self.by_identifier.get_mut(&(kind, value.to_owned())) {
                ids.retain(|known| known != id);
            }
        }
        if let Some(stored) = stored {
            for (_, value) in identifiers(&stored.resource) {
                let ids = self.by_identifier.entry((kind, value.to_owned())).or_default();
                if !ids.iter().any(|known| known == id) {
                    ids.push(id.to_owned());
                }
            }
            self.resources.insert(key, stored);
        }
        before
    }
}
