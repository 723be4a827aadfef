//! The intake loop: messages from all sources into the journal, a batch per commit, and the acknowledgements after it.
//!
//! A commit is due when enough has gathered, after `commit_interval` at the latest, or on a short pause once a sender's
//! window is full: so a fast sender is not held, and a slow one does not wear the flash. The window of a sender that holds
//! less than configured (mosquitto's 20, say) is learnt from where it stops. The first batch of all is due on a short pause
//! too: after a start senders hand over what they have kept, and how large their windows are is not known yet.
//!
//! Invariants:
//! 1. Acknowledgements leave after the commit of their messages, in receive order, never before.
//! 2. A commit that fails is tried again with the same messages; meanwhile nothing is acknowledged, and the channel fills
//!    until the sources slow down. It is tried again for as long as it takes, whatever the disk says.
//! 3. What is salvaged of a former store is committed here too, between batches of the sources and never before one.
//! 4. Progress rides on a commit of messages; it makes one of its own only when intake is idle.

mod sender;

use crate::agent::Handed;
use crate::bounds;
use crate::clock;
use crate::ingest::SourceHandle;
use crate::message::{AckToken, Message, Position, RevisionId, SourceId, StoredMessage};
use crate::pipeline::{Entry, Pipeline};
use crate::sabotage::{self, Sabotage};
use crate::store::{Changes, Room, Store, StoreError};
use embassy_time::{Duration, Instant, Timer, with_deadline};
use sender::Sender;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// When to commit.
#[derive(Clone, Copy, Debug)]
pub struct CommitPolicy {
    /// Longest wait of progress.
    pub progress_interval: Duration,
    /// Messages that make a batch.
    pub messages: usize,
    /// Bytes that make a batch.
    pub bytes: usize,
}

/// Pause that ends a batch once a sender's window is full.
const FULL_WINDOW_PAUSE: Duration = Duration::from_millis(2);
/// First and longest pause after a commit that failed.
const DISK_PAUSE: Duration = Duration::from_millis(500);
const DISK_PAUSE_LONGEST: Duration = Duration::from_secs(10);

/// Runs until `stop` turns true and every message that was taken is committed.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
pub async fn run(
    pipeline: Rc<Pipeline>,
    policy: CommitPolicy,
    sources: Vec<SourceHandle>,
    mut messages: mpsc::Receiver<Message>,
    mut salvaged: mpsc::Receiver<Handed>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let mut senders: HashMap<SourceId, Sender> = sources
        .into_iter()
        .map(|handle| (handle.id, Sender::new(handle)))
        .collect();
    let mut progress_due = Instant::now() + policy.progress_interval;
    let mut is_first = true;
    loop {
        pipeline.beat("intake");
        let first = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            message = messages.recv() => message,
            Some(handed) = salvaged.recv() => {
                commit_salvaged(&pipeline, handed).await?;
                continue;
            }
            () = Timer::at(progress_due) => {
                progress_due = Instant::now() + policy.progress_interval;
                commit_progress(&pipeline).await?;
                continue;
            }
        };
        let Some(first) = first else {
            // What the sources have put into the channel is kept too; then the channel closes, and they end.
            messages.close();
            let mut rest = Vec::new();
            while let Some(message) = messages.recv().await {
                rest.push(message);
            }
            if !rest.is_empty() {
                commit(&pipeline, &mut senders, rest, false, false).await?;
            }
            return Ok(());
        };
        // Longest wait of a message: `commit_interval`, or what the flash budget makes of it.
        let interval_us = pipeline.wear.borrow().interval_us();
        let (batch, waited) =
            gather(&policy, interval_us, is_first, &mut senders, &mut messages, first).await;
        is_first = false;
        let progress_is_due = Instant::now() >= progress_due;
        if progress_is_due {
            progress_due = Instant::now() + policy.progress_interval;
        }
        commit(&pipeline, &mut senders, batch, waited, progress_is_due).await?;
        // Sources that never rest leave a turn to it too.
        if let Ok(handed) = salvaged.try_recv() {
            commit_salvaged(&pipeline, handed).await?;
        }
    }
}

/// Gathers a batch, in a `hurry` until the first pause; tells whether it had to wait for the interval.
async fn gather(
    policy: &CommitPolicy,
    interval_us: u64,
    hurry: bool,
    senders: &mut HashMap<SourceId, Sender>,
    messages: &mut mpsc::Receiver<Message>,
    first: Message,
) -> (Vec<Message>, bool) {
    let deadline = Instant::now() + Duration::from_micros(interval_us);
    let mut bytes = first.weight();
    let mut full = arrived(senders, &first) || hurry;
    let mut batch = vec![first];
    loop {
        // Everything that is there already, without asking for the time.
        while batch.len() < policy.messages && bytes < policy.bytes {
            let Ok(message) = messages.try_recv() else { break };
            bytes += message.weight();
            full |= arrived(senders, &message);
            batch.push(message);
        }
        if batch.len() >= policy.messages || bytes >= policy.bytes {
            return (batch, false);
        }
        let until = if full {
            (Instant::now() + FULL_WINDOW_PAUSE).min(deadline)
        } else {
            deadline
        };
        match with_deadline(until, messages.recv()).await {
            Ok(Some(message)) => {
                bytes += message.weight();
                full |= arrived(senders, &message);
                batch.push(message);
            }
            Ok(None) => return (batch, false),
            Err(_) => return (batch, !full),
        }
    }
}

fn arrived(senders: &mut HashMap<SourceId, Sender>, message: &Message) -> bool {
    match senders.get_mut(&message.source) {
        Some(sender) => {
            sender.arrived(Instant::now());
            sender.is_full()
        }
        None => false,
    }
}

async fn commit(
    pipeline: &Pipeline,
    senders: &mut HashMap<SourceId, Sender>,
    batch: Vec<Message>,
    waited: bool,
    with_progress: bool,
) -> Result<(), StoreError> {
    let named: Vec<(Message, RevisionId)> = {
        let packs = pipeline.packs.borrow();
        let with_packs = |message: Message| {
            let revision = packs.current(message.source);
            (message, revision)
        };
        batch.into_iter().map(with_packs).collect()
    };
    // Shared with the store's thread: a call that is refused must not take the messages with it.
    let named = Arc::new(named);
    let mut pause = DISK_PAUSE;
    let too_early = sabotage::is_on(Sabotage::AckBeforeCommit);
    if too_early {
        acknowledge(senders, &named, waited);
    }
    let (first, room) = loop {
        let writing = match with_progress {
            true => Some(pipeline.bounds.writing.lock().await),
            false => None,
        };
        let changes = changes(pipeline, with_progress);
        let took_changes = changes.is_some();
        let revisions = pipeline.packs.borrow().unsaved();
        let saved: Vec<RevisionId> = revisions.iter().map(|set| set.id).collect();
        let (now_us, wall) = (clock::monotonic_us(), clock::wall().ticks());
        let batch = Arc::clone(&named);
        // What the messages taught is written before them.
        let learnt = Arc::new(pipeline.learnt.take());
        let learnt_too = Arc::clone(&learnt);
        let (result, room) = pipeline
            .store
            .call(move |store| {
                let result = store
                    .remember(&learnt_too)
                    .and_then(|()| store.append(&batch, &revisions, changes.as_ref(), now_us, wall));
                let room = store.room().unwrap_or_default();
                Ok((result, room))
            })
            .await
            .unwrap_or_else(|error| (Err(error), Room::Plenty));
        match result {
            Ok(first) => {
                pipeline.packs.borrow_mut().saved(&saved);
                after_commit(pipeline, took_changes);
                break (first, room);
            }
            Err(error) => {
                pipeline.learnt.put_back(Arc::unwrap_or_clone(learnt));
                failed_commit(pipeline, error, took_changes, room).await?;
                drop(writing);
                if room == Room::None {
                    make_room(pipeline).await?;
                }
                Timer::after(pause).await;
                pause = (pause * 2).min(DISK_PAUSE_LONGEST);
                pipeline.beat("intake");
            }
        }
    };
    let named = Arc::unwrap_or_clone(named);
    if !too_early {
        acknowledge(senders, &named, waited);
    }
    pipeline.publish(entries(named, first));
    match room {
        Room::Plenty => {}
        Room::Short => pipeline.bounds.wanted.notify_one(),
        // The reserve is reached: nothing more is taken until there is room. The senders wait meanwhile.
        Room::None => make_room(pipeline).await?,
    }
    Ok(())
}

/// What was committed from position `first` on, for the other loops.
fn entries(batch: Vec<(Message, RevisionId)>, first: Position) -> Vec<Rc<Entry>> {
    let mut entries: Vec<_> = batch
        .into_iter()
        .zip(first..)
        .map(|((message, revision), position)| {
            Entry::new(StoredMessage {
                position,
                revision,
                message,
            })
        })
        .collect();
    // Collected in the place of the messages themselves; they stay in memory for a while.
    entries.shrink_to_fit();
    entries
}

/// Commits a portion of a former store, for as long as it takes; there is nobody to be acknowledged.
async fn commit_salvaged(pipeline: &Pipeline, handed: Handed) -> Result<(), StoreError> {
    let portion = Arc::new(handed.portion);
    let mut pause = DISK_PAUSE;
    let stored = loop {
        // A message whose own packs are not known any more gets those of now, which must be stored before it.
        let ready = pipeline.save_packs().await;
        let current: HashMap<SourceId, RevisionId> = portion
            .batch
            .iter()
            .map(|(message, _)| message.source)
            .map(|source| (source, pipeline.packs.borrow().current(source)))
            .collect();
        let (portion, now_us, wall) = (Arc::clone(&portion), clock::monotonic_us(), clock::wall().ticks());
        let result = match ready {
            Ok(()) => {
                let append = move |store: &mut Store| {
                    let packs = |message: &Message| current.get(&message.source).copied().unwrap_or_default();
                    store.append_salvaged(&portion, packs, now_us, wall)
                };
                pipeline.store.call(append).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(stored) => break stored,
            Err(error) => {
                failed_commit(pipeline, error, false, Room::Plenty).await?;
                Timer::after(pause).await;
                pause = (pause * 2).min(DISK_PAUSE_LONGEST);
                pipeline.beat("intake");
            }
        }
    };
    after_commit(pipeline, false);
    pipeline.former.identities.add(stored.runs);
    let entries = entries(Arc::unwrap_or_clone(stored.batch), stored.first);
    if !entries.is_empty() {
        pipeline.publish(entries);
    }
    // Whoever waits for it may have stopped.
    let _ = handed.committed.send(stored.state);
    Ok(())
}

/// Waits until the store has room. What fails is said, and tried again: a full disk recovers too.
async fn make_room(pipeline: &Pipeline) -> Result<(), StoreError> {
    for _ in 0..100 {
        match bounds::make_room(pipeline).await {
            Ok(Room::None) => Timer::after_millis(50).await,
            Ok(_) => return Ok(()),
            Err(error @ (StoreError::Stopped | StoreError::Lost(_))) => return Err(error),
            Err(error) => {
                tracing::error!("{error}; no room can be made in the store, trying again");
                Timer::after(DISK_PAUSE).await;
            }
        }
        pipeline.beat("intake");
    }
    Ok(())
}

fn acknowledge(senders: &mut HashMap<SourceId, Sender>, batch: &[(Message, RevisionId)], waited: bool) {
    let now = Instant::now();
    for sender in senders.values_mut().filter(|s| s.gathered > 0) {
        let id = sender.handle.id;
        if let Some(acknowledger) = &sender.handle.acknowledger {
            let tokens: Vec<AckToken> = batch
                .iter()
                .filter(|(m, _)| m.source == id)
                .filter_map(|(m, _)| m.ack)
                .collect();
            acknowledger.committed(&tokens);
        }
        sender.committed(waited, now);
    }
}

fn changes(pipeline: &Pipeline, wanted: bool) -> Option<Changes> {
    let mut outbox = pipeline.outbox.borrow_mut();
    (wanted && outbox.has_changes()).then(|| outbox.take_changes())
}

fn after_commit(pipeline: &Pipeline, took_changes: bool) {
    if took_changes {
        pipeline.outbox.borrow_mut().written();
    }
    pipeline.disk.works();
}

/// Notes a commit that failed. Files that may have suffered are closed; the next try opens them again.
///
/// # Errors
/// When trying again is of no use.
async fn failed_commit(
    pipeline: &Pipeline,
    error: StoreError,
    took_changes: bool,
    room: Room,
) -> Result<(), StoreError> {
    if took_changes {
        pipeline.outbox.borrow_mut().not_written();
    }
    if matches!(error, StoreError::Stopped | StoreError::Lost(_)) {
        return Err(error);
    }
    let trouble = pipeline.disk.failed(&error, room == Room::None);
    if pipeline.disk.is_beyond_repair(&error) {
        pipeline.condemn(&error.to_string()).await;
    }
    let is_closed = matches!(error, StoreError::Unavailable { .. });
    if let Some(trouble) = trouble.filter(|trouble| trouble.needs_reopening() && !is_closed) {
        let closed = pipeline.store.call(move |store| store.close_files(trouble)).await;
        if let Err(error @ StoreError::Lost(_)) = closed {
            return Err(error);
        }
    }
    Ok(())
}

/// Writes cursors, rows and confirmations on their own: intake is idle, or the program stops.
///
/// # Errors
/// [`StoreError::Stopped`]; a disk that cannot be written is noted and tried again with the next commit.
pub async fn commit_progress(pipeline: &Pipeline) -> Result<(), StoreError> {
    let _writing = pipeline.bounds.writing.lock().await;
    // Rows may name packs that no message has named yet.
    if let Err(error) = pipeline.save_packs().await {
        return failed_commit(pipeline, error, false, Room::Plenty).await;
    }
    let Some(changes) = changes(pipeline, true) else {
        return Ok(());
    };
    let wall = clock::wall().ticks();
    let done = pipeline
        .store
        .call(move |store| store.commit_progress(&changes, wall))
        .await;
    match done {
        Ok(()) => after_commit(pipeline, true),
        Err(error) => failed_commit(pipeline, error, true, Room::Plenty).await?,
    }
    Ok(())
}
