//! The packs in force at a time, as one thing that can be named by a hash and kept with the messages that it met.

use super::{Pack, PackText, hexadecimal};
use crate::timekeeping::device::{Rule, Rules};
use iomt_mapping::MappingSet;
use ring::digest;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Packs in name order.
#[derive(Clone, Debug, Default)]
pub struct PackSet {
    packs: Vec<Arc<Pack>>,
    mappings: MappingSet,
    clocks: Arc<Rules>,
}

/// What the store keeps of a set.
#[derive(Serialize, Deserialize)]
struct Bundle<T> {
    packs: Vec<T>,
    /// What the configuration says about clocks of devices: readings are dated by it, so it is part of the revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    clocks: Vec<Rule>,
}

impl PackSet {
    /// A set of these packs.
    pub fn new(mut packs: Vec<Arc<Pack>>) -> PackSet {
        packs.sort_by(|a, b| a.text.name.cmp(&b.text.name));
        let named = |pack: &Arc<Pack>| (pack.text.name.clone(), Arc::clone(&pack.device));
        let mappings = MappingSet::new(packs.iter().map(named).collect());
        PackSet {
            packs,
            mappings,
            clocks: Arc::default(),
        }
    }

    /// The same packs with what the configuration says about clocks of devices.
    #[must_use]
    pub fn with_clocks(self: Arc<PackSet>, clocks: &Arc<Rules>) -> Arc<PackSet> {
        if self.clocks == *clocks {
            return self;
        }
        let mut set = Arc::unwrap_or_clone(self);
        set.clocks = Arc::clone(clocks);
        Arc::new(set)
    }

    /// What the configuration says about clocks of devices.
    pub fn clocks(&self) -> &Rules {
        &self.clocks
    }

    /// The packs, in name order.
    pub fn packs(&self) -> &[Arc<Pack>] {
        &self.packs
    }

    /// The device mappings of the packs together, for normalizing; its pack numbers are places in [`PackSet::packs`].
    pub fn mapping_set(&self) -> &MappingSet {
        &self.mappings
    }

    /// The pack with this name.
    pub fn pack(&self, name: &str) -> Option<&Arc<Pack>> {
        self.packs.iter().find(|pack| pack.text.name == name)
    }

    /// The packs that a source sees: those that it names, or all.
    pub fn for_source(self: &Arc<PackSet>, names: Option<&[String]>) -> Arc<PackSet> {
        let Some(names) = names else {
            return Arc::clone(self);
        };
        let named = self.packs.iter().filter(|pack| names.contains(&pack.text.name));
        Arc::new(PackSet::new(named.cloned().collect())).with_clocks(&self.clocks)
    }

    /// SHA-256 over the packs, 64 hexadecimal digits: equal for equal sets.
    pub fn revision(&self) -> String {
        hash(self.packs.iter().map(|pack| pack.text.as_ref()), &self.clocks.0)
    }

    /// The texts as the store keeps them per revision, so that the last good packs survive a restart even when the files
    /// are broken by then.
    pub fn bundle(&self) -> Vec<u8> {
        let packs = self.packs.iter().map(|pack| pack.text.as_ref()).collect();
        let clocks = self.clocks.0.clone();
        // Texts and lists of texts are always representable in JSON.
        serde_json::to_vec(&Bundle { packs, clocks }).unwrap_or_default()
    }

    /// [`PackSet::revision`] of the set that a bundle was made of; none when the bytes are no bundle.
    pub fn revision_of(bundle: &[u8]) -> Option<String> {
        let bundle: Bundle<PackText> = serde_json::from_slice(bundle).ok()?;
        Some(hash(bundle.packs.iter(), &bundle.clocks))
    }

    /// The texts of a bundle.
    pub fn texts(bundle: &[u8]) -> Option<Vec<PackText>> {
        Some(serde_json::from_slice::<Bundle<PackText>>(bundle).ok()?.packs)
    }

    /// The set that a bundle was made of. None when the bytes are no bundle; a pack that this version of the agent does
    /// not load any more is left out.
    pub fn from_bundle(bundle: &[u8]) -> Option<PackSet> {
        let bundle: Bundle<PackText> = serde_json::from_slice(bundle).ok()?;
        let packs = bundle
            .packs
            .into_iter()
            .filter_map(|text| Pack::load(text).0.map(Arc::new));
        let mut set = PackSet::new(packs.collect());
        set.clocks = Arc::new(Rules(bundle.clocks));
        Some(set)
    }
}

/// Hash of the texts; without rules for clocks it is that of the texts alone.
fn hash<'t>(packs: impl Iterator<Item = &'t PackText>, clocks: &[Rule]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for text in packs {
        context.update(text.revision().as_bytes());
    }
    if !clocks.is_empty() {
        context.update(&serde_json::to_vec(clocks).unwrap_or_default());
    }
    hexadecimal(context.finish().as_ref())
}
