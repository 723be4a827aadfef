//! What tests of several stages share: the pipeline over a real store, its stages called by hand instead of by loops.

use crate::bounds::{Bounds, Settings};
use crate::config::ClockTrust;
use crate::former::FormerStores;
use crate::forward::{DestinationHandle, Destinations, Fate};
use crate::message::{Message, Position, RevisionId, SourceId, Stamp};
use crate::normalize::match_of;
use crate::packs::{Pack, PackSet, PackText};
use crate::pipeline::{DiskState, PackBook, Pipeline, Recent};
use crate::process;
use crate::store::outbox::{Outbox, Settled};
use crate::store::{Store, StoreHandle};
use crate::worker::Worker;
use iomt_mapping::Timestamp;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

/// Where the simulations of these tests begin: 2026-09-21T14:13:20Z, in ticks.
pub(crate) const BEGIN: i64 = 17_900_000_000_000_000;
/// The only source.
pub(crate) const WARD: SourceId = SourceId(1);

/// Runs in simulated time.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let start = Timestamp::from_ticks(BEGIN).unwrap();
    crate::clock::simulate(start, future).unwrap().0
}

/// A destination whose rows are due at once.
pub(crate) fn destination(id: u32, takes_messages: bool) -> DestinationHandle {
    DestinationHandle {
        id,
        name: Arc::from(format!("d{id}")),
        takes_messages,
        groups_by_period: false,
        flush_interval_us: 0,
    }
}

/// The pack `ward`: for each type name the expression of its value; a message of that type has a member of that name.
pub(crate) fn packs(types: &[(&str, &str)], agent: Option<&str>) -> Arc<PackSet> {
    let template = |(name, value): &(&str, &str)| {
        format!(
            r#"{{"templateType":"JsonPathContent","template":{{"typeName":"{name}","typeMatchExpression":"$..[?(@.{name})]",
            "deviceIdExpression":"$.device","timestampExpression":"$.time",
            "values":[{{"required":"true","valueExpression":"{value}","valueName":"{name}"}}]}}}}"#
        )
    };
    let templates: Vec<String> = types.iter().map(template).collect();
    let text = PackText {
        name: "ward".to_owned(),
        device: format!(
            r#"{{"templateType":"CollectionContent","template":[{}]}}"#,
            templates.join(",")
        ),
        fhir: None,
        agent: agent.map(str::to_owned),
    };
    let (pack, findings) = Pack::load(text);
    let pack = pack.unwrap_or_else(|| panic!("{findings:?}"));
    Arc::new(PackSet::new(vec![Arc::new(pack)]))
}

/// Opens the store in `folder`, which may take 8 MiB.
pub(crate) fn open(folder: &Path, packs: Arc<PackSet>, destinations: Vec<DestinationHandle>) -> Pipeline {
    const MAX_BYTES: u64 = 8 << 20;
    let (mut store, recovered) = Store::open(folder).unwrap();
    store.set_limit(MAX_BYTES).unwrap();
    let mut book = PackBook::restore(&recovered.revisions);
    book.set_current(WARD, packs);
    let ids: Vec<u32> = destinations.iter().map(|handle| handle.id).collect();
    Pipeline {
        store: StoreHandle::new(store, Worker::inline()),
        outbox: RefCell::new(Outbox::restore(&recovered, &ids, 0)),
        recent: RefCell::new(Recent::default()),
        packs: RefCell::new(book),
        associations: Rc::default(),
        corrections: RefCell::default(),
        clock: RefCell::default(),
        device_clocks: RefCell::default(),
        dating: RefCell::new(recovered.dating.clone()),
        head: Cell::new(recovered.next_position),
        committed: Notify::new(),
        normalized: Notify::new(),
        boot: recovered.boot,
        trust: ClockTrust::Always,
        isolation: recovered.isolation.clone(),
        bounds: Bounds::new(Settings {
            max_bytes: MAX_BYTES,
            history_us: 86_400_000_000,
            unmatched_keep: i64::MAX / 2,
            max_age: None,
            min_free_disk: 0,
            destinations,
        }),
        learnt: Default::default(),
        former: FormerStores::default(),
        disk: DiskState::new(folder.to_owned()),
        beats: RefCell::default(),
        wear: crate::wear::Governor::new(None, 1_000_000, 10_000_000).into(),
        check: RefCell::default(),
        ending: Notify::new(),
        fatal: RefCell::default(),
    }
}

/// A message that came so many ticks after [`BEGIN`].
pub(crate) fn message(text: String, ticks: i64) -> Message {
    let stamp = Stamp {
        boot: 1,
        monotonic_us: ticks as u64,
        wall: Timestamp::from_ticks(BEGIN + ticks).unwrap(),
        trusted: true,
    };
    Message::new(WARD, stamp, text)
}

/// What the intake does with a batch: it is committed. Then the normalizing loop has it.
pub(crate) async fn take(pipeline: &Rc<Pipeline>, batch: Vec<(Message, RevisionId)>, now_us: u64) {
    let revisions = pipeline.packs.borrow().unsaved();
    let saved: Vec<RevisionId> = revisions.iter().map(|set| set.id).collect();
    let count = batch.len() as u64;
    pipeline
        .store
        .call(move |store| store.append(&batch, &revisions, None, now_us, 0))
        .await
        .unwrap();
    pipeline.packs.borrow_mut().saved(&saved);
    pipeline.head.set(pipeline.head.get() + count);
    normalize(pipeline).await;
}

/// What the normalizing loop does with what was committed.
pub(crate) async fn normalize(pipeline: &Rc<Pipeline>) {
    let destinations = Rc::new(Destinations(pipeline.bounds.settings.destinations.clone()));
    let (_stop, stopped) = tokio::sync::watch::channel(true);
    process::run(Rc::clone(pipeline), destinations, stopped)
        .await
        .unwrap();
}

/// Gives the due readings of a destination this fate, of one type or of all; tells which they were: position, match
/// number, type.
pub(crate) async fn settle(
    pipeline: &Pipeline,
    destination: u32,
    only: Option<&str>,
    fate: Fate,
) -> Vec<(Position, u32, String)> {
    let mut seen = Vec::new();
    let due = pipeline.outbox.borrow().due(destination, u64::MAX);
    for pending in due {
        let row = pending.row;
        let key = pipeline.outbox.borrow().key(row.series).cloned().unwrap();
        if only.is_some_and(|only| only != &*key.type_name) {
            continue;
        }
        let mut settled = Vec::new();
        let mut from = row.first;
        while from <= row.last {
            let batch = pipeline.read(from).await.unwrap();
            let Some(last) = batch.last() else { break };
            from = last.stored.position + 1;
            for entry in batch.iter().filter(|entry| entry.stored.position <= row.last) {
                let at = entry.stored.position;
                let normalized = pipeline.normalized(entry, row.revision).await.unwrap();
                let numbers: Vec<u32> = match &row.refs {
                    Some(refs) => refs.iter().filter(|one| one.0 == at).map(|one| one.1).collect(),
                    None => {
                        let mut outbox = pipeline.outbox.borrow_mut();
                        let of_row = normalized
                            .matches
                            .iter()
                            .filter(|found| outbox.series_of("ward", &found.measurement) == row.series);
                        of_row.map(|found| found.number).collect()
                    }
                };
                for number in numbers {
                    let matched = normalized
                        .matches
                        .iter()
                        .find(|found| found.number == match_of(number));
                    let name = matched.map(|found| found.measurement.type_name.clone());
                    seen.push((at, number, name.unwrap_or_default()));
                    settled.push(Settled {
                        row: row.id,
                        position: at,
                        match_number: number,
                        fate: fate.clone(),
                        message: Some(Arc::clone(&entry.stored)),
                    });
                }
            }
        }
        let covered = HashMap::from([(row.id, row.last)]);
        let mut outbox = pipeline.outbox.borrow_mut();
        outbox.settle(destination, &covered, settled, 0);
    }
    seen.sort();
    seen
}
