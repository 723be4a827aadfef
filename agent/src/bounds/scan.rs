//! What a segment holds, and for whom: its messages are normalized once more, and each gets a mask of the destinations and
//! lanes that still need it. What would be freed by giving up some of them is a sum over masks then.

use crate::group;
use crate::message::{Position, SourceId, StoredMessage};
use crate::pipeline::{Entry, Pipeline};
use crate::store::outbox::Outbox;
use crate::store::{Outline, StoreError};
use iomt_mapping::pack_options::Priority;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Four bits for each destination, one a lane; the last ones share theirs.
const MOST_DESTINATIONS: usize = 14;
const UNMATCHED: u64 = 1 << 60;
const NO_PACK: u64 = 1 << 61;

/// Number of the group key, and start of the period.
type SeriesPeriod = (u32, Option<i64>);

/// A row with a range, as the scan found it.
struct Ranged {
    destination: u32,
    first: Position,
    last: Position,
    row: u64,
    bit: u64,
}

/// What was found in a segment.
pub(super) struct Scan {
    last: Position,
    /// Destinations by backlog, the largest first.
    order: Vec<u32>,
    /// Messages as runs of equal masks: first and last position, mask.
    runs: Vec<(Position, Position, u64)>,
    /// Bytes by mask.
    weights: BTreeMap<u64, u64>,
    /// Readings of rows with a range, and the source of one.
    counts: HashMap<u64, (u64, SourceId)>,
    /// Where the rows with a range began.
    began: HashMap<u64, Position>,
    /// Messages of unmatched runs, by first position.
    unmatched: HashMap<Position, u64>,
    /// Bits of rows.
    bits: HashMap<u64, u64>,
    /// Bits of destinations that follow the journal.
    followers: Vec<(u32, u64)>,
}

fn lane_of(pipeline: &Pipeline, outbox: &Outbox, series: u32) -> Priority {
    outbox.key(series).map_or_else(Priority::default, |key| {
        pipeline.packs.borrow().lane(&key.pack, &key.type_name)
    })
}

/// Whether rows or runs of `lane` or a lower lane lie in the segment: worth a look.
pub(super) fn touches(pipeline: &Pipeline, segment: &Outline, lane: Priority) -> bool {
    let outbox = pipeline.outbox.borrow();
    let within = |first: Position, last: Position| first < segment.end && last >= segment.first;
    let rows = outbox
        .rows()
        .filter(|p| within(p.row.first, p.row.last))
        .any(|p| lane_of(pipeline, &outbox, p.row.series) >= lane);
    let runs = outbox
        .unmatched()
        .any(|run| within(run.first, run.last) && (!run.no_pack || lane <= Priority::Periodic));
    let followers = lane <= Priority::Periodic
        && pipeline
            .bounds
            .followers(&outbox)
            .iter()
            .filter_map(|id| outbox.progress().destinations.get(id))
            .any(|d| d.cursor + 1 < segment.end);
    rows || runs || followers
}

impl Scan {
    /// Reads and normalizes a segment. It must lie before the cursor of the normalizing loop.
    pub(super) async fn of(pipeline: &Pipeline, segment: &Outline) -> Result<Scan, StoreError> {
        let last = segment.end.saturating_sub(1);
        let (mut scan, rows) = Scan::begin(pipeline, last);
        // A row that goes on behind the segment loses its head; where its head lies before, that is counted too.
        let heads = rows
            .ranges
            .values()
            .flatten()
            .filter(|r| r.last > last)
            .map(|r| r.first);
        let mut from = heads.chain([segment.first]).min().unwrap_or(segment.first);
        while from <= last {
            let batch = pipeline
                .store
                .call(move |store| store.read_batch_leniently(from))
                .await?;
            let Some((next, messages)) = batch else { break };
            from = next;
            for stored in messages.into_iter().filter(|m| m.position <= last) {
                let entry = Entry::new(stored);
                let mask = scan.mask_of(pipeline, &rows, &entry).await?;
                scan.note(&entry.stored, mask, segment.first);
            }
            pipeline.beat("upkeep");
            tokio::task::yield_now().await;
        }
        Ok(scan)
    }

    fn begin(pipeline: &Pipeline, last: Position) -> (Scan, Rows) {
        let outbox = pipeline.outbox.borrow();
        let head = pipeline.head.get();
        let mut backlogs: BTreeMap<u32, u64> = BTreeMap::new();
        for pending in outbox.rows() {
            *backlogs.entry(pending.row.destination).or_default() += pending.row.count;
        }
        let following = pipeline.bounds.followers(&outbox);
        for id in &following {
            let cursor = outbox.progress().destinations.get(id).map_or(0, |d| d.cursor);
            backlogs.insert(*id, head.saturating_sub(cursor + 1));
        }
        let mut order: Vec<u32> = backlogs.keys().copied().collect();
        order.sort_by_key(|id| std::cmp::Reverse(backlogs.get(id).copied()));
        let mut scan = Scan {
            last,
            order,
            runs: Vec::new(),
            weights: BTreeMap::new(),
            counts: HashMap::new(),
            began: HashMap::new(),
            unmatched: HashMap::new(),
            bits: HashMap::new(),
            followers: Vec::new(),
        };
        scan.followers = following
            .into_iter()
            .map(|id| (id, scan.bit(id, Priority::Periodic)))
            .collect();
        let mut rows = Rows::default();
        for pending in outbox.rows().filter(|p| p.row.first <= last) {
            let row = &pending.row;
            let bit = scan.bit(row.destination, lane_of(pipeline, &outbox, row.series));
            scan.bits.insert(row.id, bit);
            match &row.refs {
                Some(refs) => {
                    for (at, number) in refs.iter().filter(|(at, _)| *at <= last) {
                        *rows.named.entry(*at).or_default() |= bit;
                        rows.places.insert((row.destination, *at, *number));
                    }
                }
                None => {
                    scan.began.insert(row.id, row.first);
                    let ranged = Ranged {
                        destination: row.destination,
                        first: row.first,
                        last: row.last,
                        row: row.id,
                        bit,
                    };
                    rows.ranges
                        .entry((row.series, row.period))
                        .or_default()
                        .push(ranged);
                }
            }
        }
        for run in outbox.unmatched().filter(|run| run.first <= last) {
            let bit = if run.no_pack { NO_PACK } else { UNMATCHED };
            rows.runs.push((run.first, run.last, run.source, bit));
        }
        for (id, bit) in &scan.followers {
            let cursor = outbox.progress().destinations.get(id).map_or(0, |d| d.cursor);
            rows.cursors.push((cursor, *bit));
        }
        (scan, rows)
    }

    fn bit(&self, destination: u32, lane: Priority) -> u64 {
        let number = self.order.iter().position(|id| *id == destination).unwrap_or(0);
        1 << (number.min(MOST_DESTINATIONS - 1) * 4 + lane as usize)
    }

    async fn mask_of(&mut self, pipeline: &Pipeline, rows: &Rows, entry: &Entry) -> Result<u64, StoreError> {
        let (position, source) = (entry.stored.position, entry.stored.message.source);
        let mut mask = rows.named.get(&position).copied().unwrap_or(0);
        for (cursor, bit) in &rows.cursors {
            mask |= if position > *cursor { *bit } else { 0 };
        }
        for (first, last, of, bit) in &rows.runs {
            if *of == source && (*first..=*last).contains(&position) {
                mask |= bit;
                *self.unmatched.entry(*first).or_default() += 1;
            }
        }
        if rows.ranges.is_empty() {
            return Ok(mask);
        }
        let normalized = pipeline.normalized(entry, None).await?;
        for found in &normalized.matches {
            let series = pipeline
                .outbox
                .borrow_mut()
                .series_of(&found.pack.text.name, &found.measurement);
            let period = group::period_start(found);
            let keys = [(series, period), (series, None)];
            let distinct = if period.is_some() {
                &keys[..]
            } else {
                keys.get(1..).unwrap_or_default()
            };
            for ranged in distinct.iter().filter_map(|key| rows.ranges.get(key)).flatten() {
                if !(ranged.first..=ranged.last).contains(&position)
                    || rows
                        .places
                        .contains(&(ranged.destination, position, found.number))
                {
                    continue;
                }
                mask |= ranged.bit;
                self.counts.entry(ranged.row).or_insert((0, source)).0 += 1;
            }
        }
        Ok(mask)
    }

    fn note(&mut self, stored: &StoredMessage, mask: u64, first: Position) {
        let position = stored.position;
        if position < first {
            return;
        }
        *self.weights.entry(mask).or_default() += stored.message.payload.len() as u64 + 16;
        match self.runs.last_mut() {
            Some((_, last, known)) if *last + 1 == position && *known == mask => *last = position,
            _ => self.runs.push((position, position, mask)),
        }
    }

    /// Bits of `lane` and the lanes below it, of the first `destinations` in order of backlog.
    fn bits_of(&self, lane: Priority, destinations: usize) -> u64 {
        let lanes = Priority::ALL.into_iter().filter(|l| *l >= lane);
        let mut bits = lanes
            .flat_map(|l| self.order.iter().take(destinations).map(move |id| (l, *id)))
            .fold(0, |bits, (l, id)| bits | self.bit(id, l));
        bits |= UNMATCHED;
        if lane <= Priority::Periodic {
            bits |= NO_PACK;
        }
        bits
    }

    /// What to give up so that the segment is worth rewriting: half of it, for the fewest destinations; else for all of them
    /// at least an eighth (periodic readings) or anything (spot readings, alarms). None when that is not to be had.
    pub(super) fn choose(&self, lane: Priority) -> Option<u64> {
        let most = self.order.len().max(1);
        for destinations in 1..=most {
            let bits = self.bits_of(lane, destinations);
            let (kept, all) = self.weight(bits);
            if (all - kept) * 2 >= all {
                return Some(bits);
            }
        }
        let bits = self.bits_of(lane, most);
        let (kept, all) = self.weight(bits);
        let freed = all - kept;
        let enough = match lane {
            Priority::Waveform => false,
            Priority::Periodic => freed * 8 >= all,
            Priority::Spot | Priority::Alarm => freed > 0,
        };
        enough.then_some(bits)
    }

    /// Bytes that stay when `given_up` goes, and all bytes.
    pub(super) fn weight(&self, given_up: u64) -> (u64, u64) {
        self.weights.iter().fold((0, 0), |(kept, all), (mask, bytes)| {
            let stays = mask & !given_up != 0;
            (kept + if stays { *bytes } else { 0 }, all + bytes)
        })
    }

    /// Positions that stay.
    pub(super) fn kept(&self, given_up: u64) -> Vec<(Position, Position)> {
        let mut kept: Vec<(Position, Position)> = Vec::new();
        for (first, last, _) in self.runs.iter().filter(|(_, _, mask)| mask & !given_up != 0) {
            match kept.last_mut() {
                Some(before) if before.1 + 1 == *first => before.1 = *last,
                _ => kept.push((*first, *last)),
            }
        }
        kept
    }

    /// Takes what is given up out of rows, cursors and runs. Refuses, and changes nothing, when a destination has confirmed
    /// some of it since the scan: the counts would not hold.
    pub(super) fn apply(&self, outbox: &mut Outbox, given_up: u64, reason: &str) -> bool {
        let concerned: Vec<u64> = outbox
            .rows()
            .filter(|p| p.row.first <= self.last)
            .filter(|p| self.bits.get(&p.row.id).is_none_or(|bit| bit & given_up != 0))
            .map(|p| p.row.id)
            .collect();
        let moved = outbox.rows().any(|p| {
            let row = &p.row;
            let goes_on = row.refs.is_none() && row.last > self.last && row.first <= self.last;
            let gives = self.bits.get(&row.id).is_some_and(|bit| bit & given_up != 0);
            goes_on && gives && self.began.get(&row.id) != Some(&row.first)
        });
        if moved {
            return false;
        }
        for id in concerned {
            // A row that appeared since the scan names readings that waited or failed: its own lane is not known, so it stays
            // if its positions stay.
            if !self.bits.contains_key(&id) {
                self.give_up_new_row(outbox, id, given_up, reason);
                continue;
            }
            let (count, source) = self.counts.get(&id).copied().unzip();
            outbox.give_up_row(id, self.last, count.unwrap_or(0), source, reason);
        }
        for (id, bit) in &self.followers {
            if bit & given_up != 0 {
                outbox.give_up_messages(*id, self.last, reason);
            }
        }
        for (first, count) in &self.unmatched {
            let no_pack = outbox
                .unmatched()
                .find(|run| run.first == *first)
                .map(|run| run.no_pack);
            let bit = if no_pack == Some(true) { NO_PACK } else { UNMATCHED };
            if bit & given_up != 0 {
                outbox.give_up_unmatched(*first, self.last, *count, reason);
            }
        }
        true
    }

    /// A row that is younger than the scan: it goes when none of its positions stays.
    fn give_up_new_row(&self, outbox: &mut Outbox, id: u64, given_up: u64, reason: &str) {
        let kept = self.kept(given_up);
        let stays = |at: Position| {
            let after = kept.partition_point(|(_, last)| *last < at);
            kept.get(after).is_some_and(|(first, _)| *first <= at)
        };
        let row = outbox.rows().find(|p| p.row.id == id).map(|p| p.row.clone());
        let refs = row.and_then(|row| row.refs);
        let gone = refs.is_some_and(|refs| refs.iter().all(|(at, _)| *at <= self.last && !stays(*at)));
        if gone {
            outbox.give_up_row(id, self.last, 0, None, reason);
        }
    }
}

/// What the rows need, by position.
#[derive(Default)]
struct Rows {
    ranges: HashMap<SeriesPeriod, Vec<Ranged>>,
    named: HashMap<Position, u64>,
    places: HashSet<(u32, Position, u32)>,
    runs: Vec<(Position, Position, SourceId, u64)>,
    cursors: Vec<(Position, u64)>,
}
