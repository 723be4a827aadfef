//! The forward loop of a destination for raw messages: it follows the journal with a cursor, whatever packs, clock or
//! identity say.

use super::context::{Context, alive};
use super::retry::Backoff;
use super::{Fate, Link, MessageDelivery, RawMessage};
use crate::clock;
use crate::message::Position;
use crate::pipeline::Entry;
use crate::store::outbox::{Outbox, Pending, Settled};
use crate::store::{Loss, StoreError};
use embassy_time::{Duration, Timer, with_timeout};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Raw messages that are handed over at a time, and bytes after which no more are read for it.
const MESSAGE_BATCH: usize = 2000;
const MESSAGE_BATCH_BYTES: usize = 2 << 20;

/// A destination for raw messages.
pub trait Messages {
    /// Delivers messages in order and says what became of each.
    fn deliver_messages(&mut self, messages: Vec<RawMessage>) -> impl Future<Output = MessageDelivery>;
}

/// Forwards raw messages until stop.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
pub async fn forward_messages(
    mut context: Context,
    mut destination: impl Messages,
) -> Result<(), StoreError> {
    let mut backoff = Backoff::default();
    let id = context.handle.id;
    let cursor = context.pipeline.outbox.borrow_mut().destination_mut(id).cursor;
    if cursor + 1 < context.pipeline.head.get() && !context.rest(Backoff::before_backlog()).await {
        return Ok(());
    }
    loop {
        context.beat();
        if !forward_again(&mut context, &mut destination, &mut backoff).await? {
            return Ok(());
        }
        let cursor = context.pipeline.outbox.borrow_mut().destination_mut(id).cursor;
        let mut batch: Vec<Rc<Entry>> = Vec::new();
        let mut bytes = 0;
        while batch.len() < MESSAGE_BATCH && bytes < MESSAGE_BATCH_BYTES {
            let from = batch.last().map_or(cursor + 1, |e| e.stored.position + 1);
            match context.pipeline.read(from).await {
                Ok(more) if more.is_empty() => break,
                Ok(more) => {
                    bytes += more
                        .iter()
                        .map(|entry| entry.stored.message.weight())
                        .sum::<usize>();
                    batch.extend(more);
                }
                Err(StoreError::Stopped) => return Err(StoreError::Stopped),
                Err(error) => {
                    tracing::error!("destination {}: {error}; trying again", context.handle.name);
                    break;
                }
            }
        }
        if batch.is_empty() {
            skip_damaged_end(&context, cursor);
            let committed = with_timeout(Duration::from_secs(5), context.pipeline.committed.notified());
            tokio::select! {
                _ = committed => {}
                () = context.pipeline.normalized.notified() => {}
                _ = context.stop.wait_for(|stop| *stop) => return Ok(()),
            }
            continue;
        }
        let has_it = |entry: &Rc<Entry>| context.pipeline.former.has_message(id, entry.stored.position);
        let has: Vec<bool> = batch.iter().map(has_it).collect();
        let missing = batch.iter().zip(&has).filter(|(_, has)| !**has);
        let raw: Vec<RawMessage> = missing.map(|(entry, _)| raw_message(&context, entry)).collect();
        let mut delivery = if raw.is_empty() {
            MessageDelivery {
                fates: Vec::new(),
                link: Link::Up,
            }
        } else {
            let delivering = destination.deliver_messages(raw);
            alive(&context.pipeline, &context.handle.name, delivering).await
        };
        let mut fates = std::mem::take(&mut delivery.fates).into_iter();
        // What a former store knows to be there counts as delivered.
        delivery.fates = has
            .iter()
            .map(|has| {
                if *has {
                    Fate::Superseded
                } else {
                    fates.next().unwrap_or(Fate::Retry)
                }
            })
            .collect();
        settle_messages(&context, &batch, &delivery);
        if let Some(pause) = context.note_link(&delivery.link, &mut backoff)
            && !context.rest(pause).await
        {
            return Ok(());
        }
        if *context.stop.borrow() {
            return Ok(());
        }
        // Bursts become batches: a sender of single messages costs no request each. A backlog waits for nothing.
        if batch.len() < MESSAGE_BATCH && bytes < MESSAGE_BATCH_BYTES {
            Timer::after_millis(50).await;
        }
    }
}

/// Messages that the destination gets once more though its cursor has passed them (redriven dead letters): they have rows.
/// Says whether the loop goes on.
async fn forward_again(
    context: &mut Context,
    destination: &mut impl Messages,
    backoff: &mut Backoff,
) -> Result<bool, StoreError> {
    let id = context.handle.id;
    let pipeline = Rc::clone(&context.pipeline);
    let due = pipeline.outbox.borrow().due(id, clock::monotonic_us());
    if due.is_empty() {
        return Ok(true);
    }
    let rows = due.iter().map(|pending| pending.row.id).collect();
    pipeline.outbox.borrow_mut().begin_pass(id, rows);
    let mut covered = HashMap::new();
    let (mut places, mut raw) = (Vec::new(), Vec::new());
    for Pending { row, .. } in due {
        covered.insert(row.id, row.last);
        for (position, number) in row.refs.iter().flat_map(|refs| refs.iter()) {
            // What the journal does not have any more is lost, and said, when the row is settled.
            let batch = pipeline.read(*position).await?;
            let found = batch.iter().find(|entry| entry.stored.position == *position);
            if let Some(entry) = found {
                raw.push(raw_message(context, entry));
                places.push((row.id, *position, *number, Arc::clone(&entry.stored)));
            }
        }
    }
    let mut settled = Vec::new();
    let mut link = Link::Up;
    if !raw.is_empty() {
        let delivery = alive(&pipeline, &context.handle.name, destination.deliver_messages(raw)).await;
        link = delivery.link;
        for ((row, position, match_number, message), fate) in places.into_iter().zip(delivery.fates) {
            settled.push(Settled {
                row,
                position,
                match_number,
                fate,
                message: Some(message),
            });
        }
    }
    let written = settled.iter().filter(|s| s.fate == Fate::Delivered).count() as u64;
    {
        let mut outbox = pipeline.outbox.borrow_mut();
        outbox.destination_mut(id).written += written;
        outbox.settle(id, &covered, settled, clock::monotonic_us());
    }
    match context.note_link(&link, backoff) {
        Some(pause) => Ok(context.rest(pause).await),
        None => Ok(true),
    }
}

fn raw_message(context: &Context, entry: &Entry) -> RawMessage {
    let source = context.sources.get(&entry.stored.message.source);
    RawMessage {
        stored: Arc::clone(&entry.stored),
        source: source.cloned().unwrap_or_default(),
    }
}

/// The journal ends in damaged messages: they are lost to this destination, which would wait for them for ever.
fn skip_damaged_end(context: &Context, cursor: Position) {
    let last = context.pipeline.head.get().saturating_sub(1);
    let mut outbox = context.pipeline.outbox.borrow_mut();
    if last > cursor && outbox.is_damaged(cursor + 1) {
        let end = outbox.damaged_until(cursor + 1).min(last);
        lose_gap(&mut outbox, context.handle.id, cursor + 1, end);
    }
}

/// Messages that the journal cannot give: counted, in the ledger, and behind the cursor.
fn lose_gap(outbox: &mut Outbox, destination: u32, first: Position, last: Position) {
    let counters = outbox.destination_mut(destination);
    // A destination that is new was never meant to have what was dropped before it.
    let is_new = counters.cursor == 0 && counters.matches == 0;
    counters.cursor = last;
    if is_new && !outbox.is_damaged(first) {
        return;
    }
    let count = last - first + 1;
    let reason = outbox.reason_of_gap(first, last);
    let counters = outbox.destination_mut(destination);
    counters.matches += count;
    counters.lost += count;
    outbox.lose(Loss {
        destination: Some(destination),
        source: None,
        range: Some((first, last)),
        count,
        reason,
        reading: None,
    });
}

fn settle_messages(context: &Context, batch: &[Rc<Entry>], delivery: &MessageDelivery) {
    let id = context.handle.id;
    let mut outbox = context.pipeline.outbox.borrow_mut();
    for (entry, fate) in batch.iter().zip(&delivery.fates) {
        let expected = outbox.destination_mut(id).cursor + 1;
        if entry.stored.position > expected {
            lose_gap(&mut outbox, id, expected, entry.stored.position - 1);
        }
        let counters = outbox.destination_mut(id);
        if entry.stored.position <= counters.cursor {
            // Given up while it was being sent: it is accounted for.
            continue;
        }
        match fate {
            Fate::Delivered => {
                counters.delivered += 1;
                counters.written += 1;
            }
            Fate::Superseded => counters.delivered += 1,
            Fate::Dead(error) => {
                counters.dead += 1;
                outbox.dead(crate::store::DeadLetter {
                    destination: Some(id),
                    match_number: None,
                    stage: "forward",
                    error: error.clone(),
                    revision: entry.stored.revision,
                    counted: Arc::from([id]),
                    message: Arc::clone(&entry.stored),
                });
            }
            // Order is kept: what comes after waits too.
            Fate::Waiting(_) | Fate::Retry => return,
        }
        let counters = outbox.destination_mut(id);
        counters.matches += 1;
        counters.cursor = entry.stored.position;
    }
}
