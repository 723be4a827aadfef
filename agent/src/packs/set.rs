//! The packs in force at a time, as one thing that can be named by a hash and kept with the messages that it met.

use super::{Pack, PackText, hexadecimal};
use iomt_mapping::MappingSet;
use ring::digest;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Packs in name order.
#[derive(Clone, Debug, Default)]
pub struct PackSet {
    packs: Vec<Arc<Pack>>,
    mappings: MappingSet,
}

/// What the store keeps of a set.
#[derive(Serialize, Deserialize)]
struct Bundle<T> {
    packs: Vec<T>,
}

impl PackSet {
    /// A set of these packs.
    pub fn new(mut packs: Vec<Arc<Pack>>) -> PackSet {
        packs.sort_by(|a, b| a.text.name.cmp(&b.text.name));
        let named = |pack: &Arc<Pack>| (pack.text.name.clone(), Arc::clone(&pack.device));
        let mappings = MappingSet::new(packs.iter().map(named).collect());
        PackSet { packs, mappings }
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
        Arc::new(PackSet::new(named.cloned().collect()))
    }

    /// SHA-256 over the packs, 64 hexadecimal digits: equal for equal sets.
    pub fn revision(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        for pack in &self.packs {
            context.update(pack.text.revision().as_bytes());
        }
        hexadecimal(context.finish().as_ref())
    }

    /// The texts as the store keeps them per revision, so that the last good packs survive a restart even when the files
    /// are broken by then.
    pub fn bundle(&self) -> Vec<u8> {
        let packs = self.packs.iter().map(|pack| pack.text.as_ref()).collect();
        // Texts and lists of texts are always representable in JSON.
        serde_json::to_vec(&Bundle { packs }).unwrap_or_default()
    }

    /// [`PackSet::revision`] of the set that a bundle was made of; none when the bytes are no bundle.
    pub fn revision_of(bundle: &[u8]) -> Option<String> {
        let mut context = digest::Context::new(&digest::SHA256);
        for text in PackSet::texts(bundle)? {
            context.update(text.revision().as_bytes());
        }
        Some(hexadecimal(context.finish().as_ref()))
    }

    /// The texts of a bundle.
    pub fn texts(bundle: &[u8]) -> Option<Vec<PackText>> {
        Some(serde_json::from_slice::<Bundle<PackText>>(bundle).ok()?.packs)
    }

    /// The set that a bundle was made of. None when the bytes are no bundle; a pack that this version of the agent does
    /// not load any more is left out.
    pub fn from_bundle(bundle: &[u8]) -> Option<PackSet> {
        let packs = PackSet::texts(bundle)?
            .into_iter()
            .filter_map(|text| Pack::load(text).0.map(Arc::new));
        Some(PackSet::new(packs.collect()))
    }
}
