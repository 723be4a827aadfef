//! Loops beside the way of a reading: mapping packs, the clock, the upkeep of the store.

use super::{Agent, Surroundings};
use crate::forward::Destinations;
use crate::packs::{PackFolder, PackProblem, PackSet};
use crate::store::StoreError;
use crate::{bounds, clock, process};
use embassy_time::{Duration, Timer, with_timeout};
use std::rc::Rc;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_local};

/// Loads the packs and keeps watching their folder.
pub(super) async fn start_packs(
    agent: &Rc<Agent>,
    surroundings: &dyn Surroundings,
    destinations: Rc<Destinations>,
    last_good: Option<Vec<u8>>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let texts = last_good
        .and_then(|bundle| PackSet::texts(&bundle))
        .unwrap_or_default();
    let folder = PackFolder::open(&agent.config.mappings.dir, texts);
    let (mut packs, mut problems) = (folder.packs(), folder.problems());
    let (worker, notice) = surroundings.pack_reader()?;
    let watching = spawn_local(folder.watch(worker, notice));
    let (now, wrong) = (
        packs.borrow_and_update().clone(),
        problems.borrow_and_update().clone(),
    );
    take_packs(agent, &destinations, now, wrong).await;
    let agent = Rc::clone(agent);
    let following = spawn_local(async move {
        loop {
            tokio::select! {
                changed = packs.changed() => if changed.is_err() { return },
                changed = problems.changed() => if changed.is_err() { return },
            }
            let (now, wrong) = (
                packs.borrow_and_update().clone(),
                problems.borrow_and_update().clone(),
            );
            take_packs(&agent, &destinations, now, wrong).await;
        }
    });
    Ok(vec![watching, following])
}

/// Takes the packs into use: new messages name them, unmatched ones of a source whose set changed are tried again.
async fn take_packs(
    agent: &Agent,
    destinations: &Destinations,
    packs: Arc<PackSet>,
    problems: Arc<Vec<PackProblem>>,
) {
    let mut changed = Vec::new();
    let clocks = Arc::new(agent.config.clock.rules());
    for entry in &agent.sources {
        let own = packs
            .for_source(entry.config.packs.as_deref())
            .with_clocks(&clocks);
        if agent.pipeline.packs.borrow_mut().set_current(entry.id, own) {
            changed.push(entry.id);
        }
    }
    let bundle = packs.bundle();
    *agent.pack_set.borrow_mut() = packs;
    *agent.pack_problems.borrow_mut() = problems;
    if changed.is_empty() {
        return;
    }
    if let Err(error) = agent
        .pipeline
        .store
        .call(move |store| store.keep_packs(&bundle))
        .await
    {
        tracing::warn!("{error}; the mapping packs in use are not kept for a restart yet");
    }
    for source in changed {
        if let Err(error) = process::normalize_unmatched(&agent.pipeline, destinations, source).await {
            tracing::error!("messages that no template matched cannot be read again: {error}");
        }
    }
}

/// Looks at the clock every second: once it can be trusted, messages of this boot are dated by their distance to now, and
/// readings that waited for that are sent. Jumps are noticed.
pub(super) async fn clock_loop(agent: Rc<Agent>) {
    let pipeline = &agent.pipeline;
    let mut trusted = false;
    loop {
        pipeline.beat("clock");
        let (now_us, wall) = (clock::monotonic_us(), clock::wall().ticks());
        let now = clock::is_trusted(pipeline.trust);
        let jump = pipeline.clock.borrow_mut().look(now, now_us, wall);
        if let Some(ticks) = jump {
            tracing::warn!(
                "the wall clock was moved by {} s: readings without a time of their own that came before and after are that \
                 far apart",
                crate::timekeeping::seconds(ticks)
            );
        }
        if now && !pipeline.has_reference() {
            // On the disk before anything is dated by it: the same reading gets the same time after a restart too.
            let boot = pipeline.boot;
            let stored = pipeline
                .store
                .call(move |store| store.set_reference(boot, now_us, wall))
                .await;
            match stored {
                Ok(reference) => pipeline.take_reference(boot, reference),
                Err(error) => {
                    tracing::warn!(
                        "{error}; readings that wait for the clock are not dated yet, trying again"
                    );
                }
            }
        }
        if !now && trusted {
            tracing::warn!(
                "the wall clock is not trusted any more: readings without a time of their own are dated by the time that \
                 has passed since it was"
            );
        }
        trusted = now;
        Timer::after_secs(1).await;
    }
}

/// The full check of the store, beside everything else: a slice at a time, so that no commit waits for it.
pub(super) async fn check_loop(agent: Rc<Agent>) {
    let pipeline = &agent.pipeline;
    let mut damaged = 0;
    loop {
        let state = match pipeline.store.call(crate::store::Store::check_slice).await {
            Ok(state) => state,
            Err(StoreError::Stopped) => return,
            Err(error) => {
                tracing::warn!("check of the store: {error}; trying again");
                Timer::after_secs(30).await;
                continue;
            }
        };
        damaged += state.damaged.len();
        pipeline.note_damaged(&state.damaged);
        if !state.broken.is_empty() {
            pipeline.condemn(&state.broken.join("; ")).await;
            return;
        }
        if state.done {
            let text = match damaged {
                0 => "no damage found".to_owned(),
                runs => format!("{runs} damaged stretches of the journal, see the ledger"),
            };
            tracing::debug!("check of the store: {text}");
            *pipeline.check.borrow_mut() = text;
            return;
        }
        *pipeline.check.borrow_mut() = format!("at message {} of {}", state.reached, state.end);
        Timer::after_millis(20).await;
    }
}

/// Keeps the store within its bounds: every minute, and at once when room gets short.
pub(super) async fn store_loop(agent: Rc<Agent>) {
    let pipeline = &agent.pipeline;
    loop {
        let short = with_timeout(Duration::from_secs(60), pipeline.bounds.wanted.notified()).await;
        pipeline.beat("upkeep");
        let done = match short {
            Ok(()) => bounds::make_room(pipeline).await.map(drop),
            Err(_) => match super::salvage::tidy(&agent).await {
                Ok(()) => bounds::tend(pipeline).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = done {
            tracing::warn!("upkeep of the store: {error}");
        }
        if let Ok(statistics) = pipeline.store.call(|store| Ok(store.statistics())).await {
            pipeline
                .wear
                .borrow_mut()
                .note(clock::monotonic_us(), statistics.device_bytes);
        }
        // A store that is full of what cannot be given up yet is not asked all the time.
        Timer::after_millis(200).await;
    }
}
