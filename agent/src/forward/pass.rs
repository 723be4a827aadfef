//! The forward loop of a destination for readings.
//!
//! It takes all rows that are due, reads the journal once over their ranges (`batch.rs`), hands over what is complete and
//! takes the fates back into the rows (`settle.rs`).
//!
//! A pass ends before the next begins, and one batch is delivered before the next is handed over, so the order of each
//! Observation is kept; rows that grow meanwhile keep what came. While a batch is under way the next one gathers.

use super::batch::{Batch, Scan, gather};
use super::context::{Context, alive};
use super::correct::{Restored, Searched, correct};
use super::fhir::Held;
use super::gather::Gatherings;
use super::retry::Backoff;
use super::settle::settle;
use super::{Delivery, Group, Link};
use crate::clock;
use crate::corrections::Correction;
use crate::store::StoreError;
use crate::store::outbox::Pending;
use embassy_time::{Duration, with_timeout};
use std::collections::HashSet;
use std::rc::Rc;

/// Observations or events that are handed over at a time.
const BATCH: usize = 1000;

/// A destination for readings.
pub trait Readings {
    /// Delivers groups and says what became of every reading.
    fn deliver(&mut self, groups: Vec<Group>) -> impl Future<Output = Delivery>;

    /// Observations or events that it likes to be handed at a time: more while all goes well, fewer after trouble.
    fn appetite(&self) -> usize {
        BATCH
    }

    /// Looks for readings of a correction that are with somebody else than whose they are, and takes them away there.
    fn correct(&mut self, correction: Correction) -> impl Future<Output = Searched> {
        async { Searched::nothing(correction) }
    }

    /// Moves what was taken away to whose it is, where the journal does not have it any more; `held` says what it has.
    fn restore(&mut self, correction: &Correction, held: &Held) -> impl Future<Output = Restored> {
        let _ = (correction, held);
        async { Restored::done() }
    }
}

/// Forwards readings until stop.
///
/// # Errors
/// [`StoreError::Stopped`] when the store's thread is gone.
pub async fn forward_readings(
    mut context: Context,
    mut destination: impl Readings,
) -> Result<(), StoreError> {
    let mut backoff = Backoff::default();
    loop {
        context.beat();
        match correct(&context, &mut destination).await {
            Ok(None) => {}
            Ok(Some(link)) => {
                if let Some(pause) = context.note_link(&link, &mut backoff)
                    && !context.rest(pause).await
                {
                    return Ok(());
                }
                if link != Link::Up {
                    continue;
                }
            }
            Err(StoreError::Stopped) => return Err(StoreError::Stopped),
            Err(error) => {
                tracing::error!("destination {}: {error}; trying again", context.handle.name);
                if !context.rest(Duration::from_secs(5)).await {
                    return Ok(());
                }
            }
        }
        let now_us = clock::monotonic_us();
        let due = context.pipeline.outbox.borrow().due(context.handle.id, now_us);
        if due.is_empty() {
            if !wait_for_rows(&mut context, now_us).await {
                return Ok(());
            }
            continue;
        }
        match pass(&context, &mut destination, &due).await {
            Ok(link) => {
                if let Some(pause) = context.note_link(&link, &mut backoff)
                    && !context.rest(pause).await
                {
                    return Ok(());
                }
            }
            Err(StoreError::Stopped) => return Err(StoreError::Stopped),
            Err(error) => {
                tracing::error!("destination {}: {error}; trying again", context.handle.name);
                if !context.rest(Duration::from_secs(5)).await {
                    return Ok(());
                }
            }
        }
        if *context.stop.borrow() {
            return Ok(());
        }
    }
}

/// Waits until a row or a correction may be due, at most 5 s, or stop; says whether the loop goes on.
async fn wait_for_rows(context: &mut Context, now_us: u64) -> bool {
    let pipeline = Rc::clone(&context.pipeline);
    let next = pipeline.outbox.borrow().next_due(context.handle.id);
    let correction = pipeline.corrections.borrow().next_due(context.handle.id);
    let wait = next
        .into_iter()
        .chain(correction)
        .min()
        .map_or(5_000_000, |at| at.saturating_sub(now_us))
        .clamp(1_000, 5_000_000);
    let changed = with_timeout(Duration::from_micros(wait), pipeline.normalized.notified());
    tokio::select! {
        _ = changed => true,
        _ = context.stop.wait_for(|stop| *stop) => false,
    }
}

/// One pass over the due rows. Returns the state of the link after the last exchange.
pub(super) async fn pass(
    context: &Context,
    destination: &mut impl Readings,
    due: &[Pending],
) -> Result<Link, StoreError> {
    let pipeline = &context.pipeline;
    let due_ids: HashSet<u64> = due.iter().map(|p| p.row.id).collect();
    let others = pipeline
        .outbox
        .borrow()
        .named_readings(context.handle.id, &due_ids);
    pipeline
        .outbox
        .borrow_mut()
        .begin_pass(context.handle.id, due_ids);
    let mut gatherings = Gatherings::of(due, others);
    let mut scan = Scan::of(gatherings.positions(due));
    let appetite = destination.appetite();
    let mut next = gather(context, &mut gatherings, &mut scan, appetite).await?;
    while let Some(batch) = next {
        let Batch { groups, handed } = batch;
        let appetite = destination.appetite();
        let (delivery, gathered) = tokio::join!(
            deliver(context, destination, groups),
            gather(context, &mut gatherings, &mut scan, appetite)
        );
        let link = settle(context, handed, delivery).await?;
        if link != Link::Up {
            // What gathered meanwhile is still in its rows.
            return Ok(link);
        }
        next = gathered?;
    }
    Ok(Link::Up)
}

async fn deliver(context: &Context, destination: &mut impl Readings, groups: Vec<Group>) -> Delivery {
    if groups.is_empty() {
        return Delivery {
            fates: Vec::new(),
            sent_periods: Vec::new(),
            link: Link::Up,
            written: 0,
        };
    }
    let work = destination.deliver(groups);
    alive(&context.pipeline, &context.handle.name, work).await
}
