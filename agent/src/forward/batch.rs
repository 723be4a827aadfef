//! From the journal to a batch: the ranges of the due rows are read once, every row that covers a reading gets it, and
//! what is complete is taken out, with what is needed to account for it afterwards.
//!
//! A row whose group is not complete goes on gathering, unless memory is full: then it is sent so far and merged later.

use super::context::Context;
use super::gather::Gatherings;
use super::settle::{Handed, Place, give_up_waiting};
use super::{Fate, Group, GroupReading};
use crate::message::Position;
use crate::normalize::{Match, match_of};
use crate::pipeline::Entry;
use crate::store::StoreError;
use crate::store::outbox::Settled;
use crate::timekeeping::device::WAITS;
use std::collections::{HashMap, VecDeque};
use std::iter::Peekable;
use std::rc::Rc;
use std::sync::Arc;

/// After so many messages it is looked whether enough has gathered; whether memory is full is looked after each.
const LOOK_EVERY: usize = 32;

/// How far a pass has read.
pub(super) struct Scan {
    /// Positions that still have to be read, in order.
    ranges: VecDeque<(Position, Position)>,
    /// Messages that were read and not looked at yet.
    entries: Peekable<std::vec::IntoIter<Rc<Entry>>>,
    /// The last batch was made.
    ended: bool,
}

impl Scan {
    /// Nothing of these disjoint ranges, which are in order, is read.
    pub(super) fn of(ranges: Vec<(Position, Position)>) -> Scan {
        Scan {
            ranges: ranges.into(),
            entries: Vec::new().into_iter().peekable(),
            ended: false,
        }
    }

    /// The next message of the ranges.
    async fn next(&mut self, context: &Context) -> Result<Option<Rc<Entry>>, StoreError> {
        while let Some((first, last)) = self.ranges.front().copied() {
            if first > last {
                self.ranges.pop_front();
                continue;
            }
            let Some(next) = self.entries.peek().map(|entry| entry.stored.position) else {
                self.entries = context.pipeline.read(first).await?.into_iter().peekable();
                if self.entries.len() == 0 {
                    self.ranges.pop_front();
                }
                context.beat();
                tokio::task::yield_now().await;
                continue;
            };
            if next > last {
                // The next range may begin in what was read.
                self.ranges.pop_front();
                continue;
            }
            let entry = self.entries.next();
            if next >= first {
                if let Some((first, _)) = self.ranges.front_mut() {
                    *first = next + 1;
                }
                return Ok(entry);
            }
        }
        Ok(None)
    }
}

/// Readings on their way, as they go and as they are accounted for.
pub(super) struct Batch {
    pub(super) groups: Vec<Group>,
    pub(super) handed: Handed,
}

/// Reads on until enough has gathered; `None` when all rows are through.
pub(super) async fn gather(
    context: &Context,
    gatherings: &mut Gatherings,
    scan: &mut Scan,
    appetite: usize,
) -> Result<Option<Batch>, StoreError> {
    let mut looked = 0;
    while let Some(entry) = scan.next(context).await? {
        let reached = entry.stored.position;
        feed(context, gatherings, entry).await?;
        looked += 1;
        if looked % LOOK_EVERY == 0 || gatherings.is_full() {
            if gatherings.are_enough(reached, appetite) {
                return Ok(Some(take(context, gatherings, reached, false)));
            }
            // The intake has its turn: senders wait for their acknowledgements.
            tokio::task::yield_now().await;
        }
    }
    if scan.ended || gatherings.rows.is_empty() {
        return Ok(None);
    }
    scan.ended = true;
    Ok(Some(take(context, gatherings, Position::MAX, true)))
}

/// Gives the matches of a message to the rows that cover them.
async fn feed(context: &Context, gatherings: &mut Gatherings, entry: Rc<Entry>) -> Result<(), StoreError> {
    let pipeline = &context.pipeline;
    let stored = &entry.stored;
    let position = stored.position;
    let normalized = pipeline.normalized(&entry, None).await?;
    for found in &normalized.matches {
        let place = (position, found.number);
        if let Some(id) = gatherings.refs.get(&place).copied() {
            gatherings.push(id, stored, found);
            continue;
        }
        if gatherings.ranges.is_empty() || gatherings.excluded.contains(&place) {
            continue;
        }
        let series = pipeline
            .outbox
            .borrow_mut()
            .series_of(&found.pack.text.name, &found.measurement);
        let period = if context.handle.groups_by_period {
            crate::group::period_start(found)
        } else {
            None
        };
        if let Some(id) = gatherings.row_of_range(series, period, position) {
            gatherings.push(id, stored, found);
        }
    }
    // Readings that only a later mapping matches are normalized with that one.
    for (revision, id, number) in gatherings.revised.remove(&position).unwrap_or_default() {
        let normalized = pipeline.normalized(&entry, Some(revision)).await?;
        if let Some(found) = normalized.matches.iter().find(|m| m.number == match_of(number)) {
            let found = Match {
                number,
                ..found.clone()
            };
            gatherings.push(id, stored, &found);
        }
    }
    Ok(())
}

/// Takes the readings of the ready rows.
fn take(context: &Context, gatherings: &mut Gatherings, reached: Position, end: bool) -> Batch {
    let mut covered = HashMap::new();
    let mut groups = Vec::new();
    let mut owners = Vec::new();
    let mut settled = Vec::new();
    let mut taken = 0;
    for id in gatherings.ready(reached, end) {
        let Some(row) = gatherings.rows.get_mut(&id) else {
            continue;
        };
        covered.insert(id, reached.min(row.last));
        for (position, match_number, received, fate) in row.held.drain(..) {
            // The gateway's own clock is waited for without limit: the operator may still date what waits for it.
            let is_of_device = matches!(&fate, Fate::Waiting(error) if WAITS.contains(&error.name.as_str()));
            let fate = match is_of_device {
                true => give_up_waiting(context, fate, &received),
                false => fate,
            };
            settled.push(Settled {
                row: id,
                position,
                match_number,
                fate,
                message: None,
            });
        }
        let readings = std::mem::take(&mut row.readings);
        taken += readings.len();
        let key = context.pipeline.outbox.borrow().key(row.series).cloned();
        let (Some(key), Some((_, pack))) = (key, readings.last()) else {
            continue;
        };
        let pack = Arc::clone(pack);
        let readings: Vec<GroupReading> = readings.into_iter().map(|(reading, _)| reading).collect();
        let places = readings.iter().map(|reading| Place {
            position: reading.position,
            match_number: reading.match_number,
            received: reading.received,
        });
        owners.push((id, places.collect()));
        groups.push(Group { key, pack, readings });
    }
    gatherings.taken(taken);
    Batch {
        groups,
        handed: Handed {
            covered,
            owners,
            settled,
        },
    }
}
