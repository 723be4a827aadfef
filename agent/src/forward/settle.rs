//! What became of a batch, taken into the outbox: every reading that was handed over gets its fate, and what can never be
//! delivered becomes a dead letter with its message, which is read from the journal once more.
//!
//! A journal that cannot be read is no reason to lose a fate: the others are taken all the same, and the reading without
//! its message is tried again.

use super::context::Context;
use super::{Delivery, Fate, GIVEN_UP, Link};
use crate::clock;
use crate::message::{Position, Stamp, StoredMessage};
use crate::normalize::receive_time;
use crate::pipeline::Entry;
use crate::store::StoreError;
use crate::store::outbox::Settled;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What a batch took out of its rows.
pub(super) struct Handed {
    /// Up to which position the readings of each row are in the batch.
    pub(super) covered: HashMap<u64, Position>,
    /// Row of each group, and where its readings came from.
    pub(super) owners: Vec<(u64, Vec<Place>)>,
    /// Readings whose fate is known without the destination.
    pub(super) settled: Vec<Settled>,
}

/// Where a reading came from: what is needed of it once it is handed over. Its message stays in the journal.
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) match_number: u32,
    pub(super) received: Stamp,
}

/// What has waited for longer than `max_wait` is a dead letter, with the name of what it waited for. Ages are told by
/// trusted time only.
pub(super) fn give_up_waiting(context: &Context, fate: Fate, received: &Stamp) -> Fate {
    let Fate::Waiting(mut error) = fate else {
        return fate;
    };
    let (came, known) = receive_time(received, &context.pipeline.dating.borrow());
    let now = context.pipeline.trusted_now().filter(|_| known);
    if now.is_none_or(|now| now - came.ticks() <= context.max_wait) {
        return Fate::Waiting(error);
    }
    error
        .text
        .push_str(" (it has waited for as long as max_wait says)");
    error.retry = false;
    Fate::Dead(error)
}

/// Takes the fates of a batch into the outbox; gives the state of the link.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
pub(super) async fn settle(
    context: &Context,
    handed: Handed,
    delivery: Delivery,
) -> Result<Link, StoreError> {
    let mut settled = handed.settled;
    for ((id, places), fates) in handed.owners.into_iter().zip(delivery.fates) {
        for (place, fate) in places.into_iter().zip(fates) {
            settled.push(Settled {
                row: id,
                position: place.position,
                match_number: place.match_number,
                fate: give_up_waiting(context, fate, &place.received),
                message: None,
            });
        }
    }
    fetch_messages(context, &mut settled).await?;
    let now_us = clock::monotonic_us();
    let mut outbox = context.pipeline.outbox.borrow_mut();
    outbox.destination_mut(context.handle.id).written += delivery.written;
    outbox.remember_sent(context.handle.id, delivery.sent_periods);
    outbox.settle(context.handle.id, &handed.covered, settled, now_us);
    Ok(delivery.link)
}

/// Reads the messages of those that become dead letters. Where the journal cannot give one now, its reading is tried again;
/// what is gone for good is accounted for by that pass.
async fn fetch_messages(context: &Context, settled: &mut [Settled]) -> Result<(), StoreError> {
    let is_letter = |one: &&mut Settled| {
        let is_dead = matches!(&one.fate, Fate::Dead(error) if error.name != GIVEN_UP);
        is_dead && one.message.is_none()
    };
    let mut letters: Vec<&mut Settled> = settled.iter_mut().filter(is_letter).collect();
    letters.sort_by_key(|one| one.position);
    let mut batch: Vec<Rc<Entry>> = Vec::new();
    let mut is_refused = false;
    for one in letters {
        one.message = message_at(&batch, one.position);
        if one.message.is_none() && !is_refused {
            batch = match context.pipeline.read(one.position).await {
                Ok(batch) => batch,
                Err(StoreError::Stopped) => return Err(StoreError::Stopped),
                Err(error) => {
                    tracing::error!("destination {}: {error}; trying again", context.handle.name);
                    is_refused = true;
                    Vec::new()
                }
            };
            one.message = message_at(&batch, one.position);
        }
        if one.message.is_none() {
            one.fate = Fate::Retry;
        }
    }
    Ok(())
}

fn message_at(batch: &[Rc<Entry>], position: Position) -> Option<Arc<StoredMessage>> {
    let found = batch.binary_search_by_key(&position, |entry| entry.stored.position);
    batch.get(found.ok()?).map(|entry| Arc::clone(&entry.stored))
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
