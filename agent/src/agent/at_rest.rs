//! What the loops share while none of them runs: for commands that work on the store of a service that is down.

use super::shared::{destination_entry, pipeline, store_folder};
use crate::config::Config;
use crate::forward::Destinations;
use crate::message::SourceId;
use crate::packs::{PackFolder, PackSet};
use crate::pipeline::Pipeline;
use crate::store::{Store, StoreHandle};
use crate::worker::Worker;
use anyhow::Context as _;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What the loops of the service share, for a command while the service is down. Nothing runs.
pub struct AtRest {
    /// Shared state, over the store.
    pub pipeline: Rc<Pipeline>,
    /// The destinations of the configuration.
    pub destinations: Destinations,
    /// Names of the sources.
    pub sources: HashMap<SourceId, Arc<str>>,
}

/// Opens the store of a service that is down, with the packs and destinations that the configuration names now.
///
/// # Errors
/// When the service runs, or the store cannot be opened.
pub fn at_rest(config: &Config) -> anyhow::Result<AtRest> {
    let folder = store_folder(config);
    let (mut store, recovered) = Store::open_at_rest(&folder, &config.store.encryption)
        .with_context(|| format!("store in {}", folder.display()))?;
    store.set_limit(config.store.max_bytes.0)?;
    let mut ids = Vec::new();
    for destination in &config.destinations {
        ids.push(store.destination(&destination.name)?);
    }
    let mut sources = HashMap::new();
    for source in &config.sources {
        sources.insert(store.source(&source.name)?, Arc::from(source.name.as_str()));
    }
    let last_good = store
        .last_good_packs()?
        .and_then(|bundle| PackSet::texts(&bundle));
    let packs = PackFolder::open(&config.mappings.dir, last_good.unwrap_or_default()).packs();
    let packs = packs.borrow().clone();
    let pipeline = pipeline(
        config,
        &recovered,
        StoreHandle::new(store, Worker::inline()),
        &ids,
    );
    for source in &config.sources {
        let id = sources
            .iter()
            .find(|(_, name)| ***name == *source.name)
            .map(|(id, _)| *id);
        if let Some(id) = id {
            let own = packs
                .for_source(source.packs.as_deref())
                .with_clocks(&Arc::new(config.clock.rules()));
            pipeline.packs.borrow_mut().set_current(id, own);
        }
    }
    let handles = ids
        .iter()
        .zip(&config.destinations)
        .map(|(id, d)| destination_entry(*id, d).handle);
    Ok(AtRest {
        destinations: Destinations(handles.collect()),
        sources,
        pipeline: Rc::new(pipeline),
    })
}
