//! What can be read of stores that were set aside comes into the journal, beside everything else: a portion at a time, each
//! through the intake.

use super::Agent;
use crate::clock;
use crate::message::Position;
use crate::store::salvage::{Portion, Salvage, State, Step};
use crate::store::{Room, StoreError};
use crate::worker::Worker;
use embassy_time::{Duration, Timer};
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot};

/// A portion on its way to the intake; the answer comes when it is committed.
pub struct Handed {
    /// The portion.
    pub portion: Portion,
    /// Takes how far the salvage is then.
    pub committed: oneshot::Sender<State>,
}

/// Pause when there is no room, and when something has to be tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// Salvages one file after the other.
pub(super) async fn salvage_loop(
    agent: Rc<Agent>,
    reader: Worker,
    salvages: Vec<Salvage>,
    intake: mpsc::Sender<Handed>,
) {
    for salvage in salvages {
        match salvage_one(&agent, &reader, salvage, &intake).await {
            Ok(()) => {}
            Err(StoreError::Stopped) => return,
            Err(error) => tracing::error!(
                "a damaged store cannot be salvaged further now: {error}. Its file stays as it is and the next start goes on \
                 with it: look at `dmesg`, then restart the service"
            ),
        }
    }
}

async fn salvage_one(
    agent: &Agent,
    reader: &Worker,
    mut salvage: Salvage,
    intake: &mpsc::Sender<Handed>,
) -> Result<(), StoreError> {
    let pipeline = &agent.pipeline;
    tracing::info!("salvage: {}", salvage.state().text());
    loop {
        if !has_room(agent).await? {
            Timer::after(PAUSE).await;
            continue;
        }
        let (back, step) = reader
            .call(move || {
                let step = salvage.step();
                (salvage, step)
            })
            .await
            .map_err(|_| StoreError::Stopped)?;
        salvage = back;
        match step {
            Step::Looking => {}
            Step::Names => salvage = name(agent, salvage).await?,
            Step::Portion(portion) => {
                let (committed, answer) = oneshot::channel();
                let handed = Handed {
                    portion: *portion,
                    committed,
                };
                intake.send(handed).await.map_err(|_| StoreError::Stopped)?;
                let state = answer.await.map_err(|_| StoreError::Stopped)?;
                pipeline.former.note(&state);
                salvage.committed(state);
            }
            Step::Nothing => break,
        }
        tokio::task::yield_now().await;
    }
    let text = salvage.state().text();
    if salvage.state().lost > 0 || salvage.state().lost_associations() {
        tracing::error!("salvage: {text}; what is lost is in the ledger");
    } else {
        tracing::info!("salvage: {text}");
    }
    if let Err(error) = salvage.write_report() {
        tracing::warn!(
            "the report beside a damaged store cannot be written: {error}. `bedside-agent store salvage` shows the same"
        );
    }
    while !is_normalized(agent, salvage.state().filled_to) {
        Timer::after(PAUSE).await;
    }
    // The cursors behind it are on the medium before the file may go.
    crate::intake::commit_progress(pipeline).await?;
    let (former, settled) = (salvage.id(), salvage);
    let state = pipeline
        .store
        .call(move |store| {
            let mut settled = settled;
            store.settle_salvage(&mut settled)?;
            Ok(settled.state().clone())
        })
        .await?;
    pipeline.former.note(&state);
    pipeline.former.settle(former);
    Ok(())
}

/// Gives names that the salvage has found their numbers here.
async fn name(agent: &Agent, salvage: Salvage) -> Result<Salvage, StoreError> {
    let encryption = agent.config.store.encryption.clone();
    let (salvage, dating) = agent
        .pipeline
        .store
        .call(move |store| {
            let mut salvage = salvage;
            salvage.find_key(&encryption)?;
            store.adopt_salvage(&mut salvage)?;
            Ok((salvage, store.dating()?))
        })
        .await?;
    let mut known = agent.pipeline.dating.borrow_mut();
    for one in dating {
        if !known.iter().any(|known| known.boot == one.boot) {
            known.push(one);
        }
    }
    drop(known);
    agent.pipeline.former.compare(salvage.id(), salvage.wanted());
    Ok(salvage)
}

/// What was set aside is safe where it is: it comes over only while nothing has to be given up for it.
async fn has_room(agent: &Agent) -> Result<bool, StoreError> {
    match agent.pipeline.store.call(|store| store.room()).await {
        Ok(room) => Ok(room == Room::Plenty),
        Err(StoreError::Stopped) => Err(StoreError::Stopped),
        // The disk is in trouble, which is said elsewhere.
        Err(_) => Ok(false),
    }
}

/// Whether normalizing and the destinations that follow the journal are behind everything that was brought.
fn is_normalized(agent: &Agent, filled_to: Position) -> bool {
    let outbox = agent.pipeline.outbox.borrow();
    let progress = outbox.progress();
    let follow = agent.destinations.iter().filter(|d| d.handle.takes_messages);
    let mut cursors = follow.map(|d| progress.destinations.get(&d.handle.id).map_or(0, |of| of.cursor));
    progress.cursor >= filled_to && cursors.all(|cursor| cursor >= filled_to)
}

/// Tells the salvages who takes raw messages, and the loops what destinations have already.
pub(super) fn prepare(agent: &Agent, mut salvages: Vec<Salvage>) -> Vec<Salvage> {
    let configured = agent.destinations.iter();
    let configured = configured
        .map(|d| (&*d.handle.name, d.handle.takes_messages))
        .collect();
    for salvage in &mut salvages {
        salvage.follow(&configured);
        agent.pipeline.former.compare(salvage.id(), salvage.wanted());
    }
    salvages
}

/// Removes set-aside files whose time or room is over.
pub(super) async fn tidy(agent: &Agent) -> Result<(), StoreError> {
    let settings = &agent.pipeline.bounds.settings;
    let (max_bytes, min_free) = (settings.max_bytes, settings.min_free_disk);
    let wall = clock::is_trusted(agent.pipeline.trust).then(|| clock::wall().ticks());
    agent
        .pipeline
        .store
        .call(move |store| {
            let short = store.free_on_disk().is_some_and(|free| free < min_free);
            store.tidy_set_aside(max_bytes, wall, short)
        })
        .await
}
