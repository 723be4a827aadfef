//! What all loops share, made from the configuration and what the store held at its opening.

use super::DestinationEntry;
use crate::bounds::{self, Bounds};
use crate::clock;
use crate::config::{Config, DestinationConfig, DestinationKind, EventPayload};
use crate::former::FormerStores;
use crate::forward::DestinationHandle;
use crate::ingest::payload::memory::Learnt;
use crate::pipeline::{DiskState, PackBook, Pipeline, Recent};
use crate::store::outbox::Outbox;
use crate::store::{Recovered, StoreHandle};
use crate::timekeeping::device::Clocks;
use crate::wear::Governor;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

/// The folder of the store: configured, or the service's state directory.
pub fn store_folder(config: &Config) -> PathBuf {
    config.store.dir.clone().unwrap_or_else(|| {
        std::env::var_os("STATE_DIRECTORY")
            .map_or_else(|| Path::new("/var/lib/bedside-agent").to_owned(), PathBuf::from)
    })
}

/// The shared state; `destinations`: their numbers in the store, in the order of the configuration.
pub(super) fn pipeline(
    config: &Config,
    recovered: &Recovered,
    store: StoreHandle,
    destinations: &[u32],
) -> Pipeline {
    let mut outbox = Outbox::restore(recovered, destinations, clock::monotonic_us());
    // A share of their own: a flood of them takes nothing from good readings.
    outbox.limit_letters(config.store.max_bytes.0 / 32);
    let former = FormerStores::new(recovered.former_runs.clone());
    Pipeline {
        store,
        outbox: RefCell::new(outbox),
        recent: RefCell::new(Recent::default()),
        packs: RefCell::new(PackBook::restore(&recovered.revisions)),
        associations: Rc::default(),
        corrections: RefCell::default(),
        clock: RefCell::default(),
        device_clocks: RefCell::new(Clocks::restore(
            &recovered.device_clocks,
            former.identities.clone(),
        )),
        dating: RefCell::new(recovered.dating.clone()),
        head: Cell::new(recovered.next_position),
        committed: Notify::new(),
        normalized: Notify::new(),
        boot: recovered.boot,
        trust: config.clock.trust,
        learnt: Learnt::default(),
        isolation: recovered.isolation.clone(),
        bounds: Bounds::new(bounds::Settings {
            max_bytes: config.store.max_bytes.0,
            history_us: config.history_us(),
            unmatched_keep: (config.store.unmatched_keep.0 * 10) as i64,
            max_age: config.store.max_age.map(|age| (age.0 * 10) as i64),
            min_free_disk: config.store.min_free_disk.0,
            destinations: destinations
                .iter()
                .zip(&config.destinations)
                .map(|(id, d)| destination_entry(*id, d).handle)
                .collect(),
        }),
        former,
        disk: DiskState::new(store_folder(config)),
        wear: RefCell::new(Governor::new(
            config.store.flash_budget,
            config.store.commit_interval.0,
            config.store.commit_interval_max.0,
        )),
        check: RefCell::default(),
        fatal: RefCell::default(),
        ending: Notify::new(),
        beats: RefCell::default(),
    }
}

/// A destination under its number in the store.
pub(super) fn destination_entry(id: u32, config: &DestinationConfig) -> DestinationEntry {
    let (kind, takes_messages, groups_by_period, flush_interval) = match &config.kind {
        DestinationKind::Fhir(fhir) => ("fhir", false, true, fhir.flush_interval),
        DestinationKind::EventHub(hub) => (
            "event-hub",
            hub.payload == EventPayload::Message,
            hub.payload == EventPayload::Observation,
            300,
        ),
    };
    DestinationEntry {
        handle: DestinationHandle {
            id,
            name: Arc::from(config.name.as_str()),
            takes_messages,
            groups_by_period,
            flush_interval_us: flush_interval * 1_000_000,
        },
        kind,
        link: Rc::default(),
    }
}
