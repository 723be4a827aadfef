//! Readings that nobody can date without the operator: they have no time of their own, and the gateway was started anew
//! before its clock was set. What is known of them is how far apart they came, and what came before and after.

use crate::clock;
use crate::message::Position;
use crate::normalize::{UNDATED, receive_time};
use crate::pipeline::Pipeline;
use crate::store::StoreError;
use iomt_mapping::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What an operator asks or says about such readings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum ClockCommand {
    /// Which there are.
    List,
    /// When the first message of a start came.
    Date {
        /// Number of the start, as the list shows it.
        start: u32,
        /// When: ticks of 100 ns.
        first: i64,
    },
    /// Nobody knows: they are given up.
    GiveUp {
        /// Number of the start.
        start: u32,
    },
}

/// Messages of one start of the gateway with readings that wait for a date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Undated {
    messages: u64,
    first: (Position, u64),
    last: (Position, u64),
    /// What came before was received then at the latest, and what came after then at the earliest: ticks.
    after: Option<i64>,
    before: Option<i64>,
}

/// Answers a question, or does what the operator says.
///
/// # Errors
/// What is wrong with it, for the operator.
pub async fn answer(pipeline: &Pipeline, command: &ClockCommand) -> Result<Value, String> {
    let failed = |error: StoreError| format!("{error}; nothing was changed");
    let found = find(pipeline).await.map_err(failed)?;
    let current = |start: u32| {
        let dating = pipeline.dating.borrow();
        dating.iter().any(|d| d.boot == start && d.is_current)
    };
    let of = |start: u32| {
        match found.get(&start) {
        Some(_) if current(start) => Err(
            "the gateway is still running since then: its readings are dated by themselves once its clock is set \
             (`timedatectl`)"
                .to_owned(),
        ),
        Some(undated) => Ok(undated.clone()),
        None => Err(format!(
            "no reading of start {start} waits for a date; see `bedside-agent clock list`"
        )),
    }
    };
    match command {
        ClockCommand::List => {
            let starts = found
                .iter()
                .map(|(start, one)| line(*start, one, current(*start)));
            Ok(json!({ "starts": starts.collect::<Vec<_>>() }))
        }
        ClockCommand::Date { start, first } => {
            let undated = of(*start)?;
            undated.check(*first)?;
            let (start, monotonic_us, wall) = (*start, undated.first.1, *first);
            let reference = pipeline
                .store
                .call(move |store| store.set_reference(start, monotonic_us, wall))
                .await
                .map_err(failed)?;
            pipeline.take_reference(start, reference);
            Ok(json!({ "messages": undated.messages, "dated": true }))
        }
        ClockCommand::GiveUp { start } => {
            let undated = of(*start)?;
            let (start, wall) = (*start, clock::wall().ticks());
            pipeline
                .store
                .call(move |store| store.give_up_boot(start, wall))
                .await
                .map_err(failed)?;
            for dating in pipeline
                .dating
                .borrow_mut()
                .iter_mut()
                .filter(|d| d.boot == start)
            {
                dating.given_up = true;
            }
            pipeline.wake_undated();
            Ok(json!({ "messages": undated.messages, "given_up": true }))
        }
    }
}

impl Undated {
    /// From the first message to the last: ticks.
    fn span(&self) -> i64 {
        let us = self.last.1.saturating_sub(self.first.1);
        i64::try_from(us).unwrap_or(i64::MAX / 10).saturating_mul(10)
    }

    /// Nothing came before what stands before it in the journal, nor after what stands behind it.
    fn check(&self, first: i64) -> Result<(), String> {
        let text =
            |ticks: i64| Timestamp::from_ticks(ticks).map_or_else(String::new, |time| time.to_string());
        if let Some(after) = self.after.filter(|after| first < *after) {
            return Err(format!(
                "that cannot be: the message before them came at {}",
                text(after)
            ));
        }
        let last = first.saturating_add(self.span());
        let before = self.before.unwrap_or_else(|| clock::wall().ticks());
        if last > before {
            return Err(format!(
                "that cannot be: the last of them would have come at {}, and what came after it came at {}",
                text(last),
                text(before)
            ));
        }
        Ok(())
    }
}

fn line(start: u32, one: &Undated, current: bool) -> Value {
    let time = |ticks: Option<i64>| ticks.and_then(Timestamp::from_ticks).map(|time| time.to_string());
    json!({
        "start": start,
        "running": current,
        "messages": one.messages,
        "positions": [one.first.0, one.last.0],
        "seconds_after_start": [one.first.1 / 1_000_000, one.last.1 / 1_000_000],
        "not_before": time(one.after),
        "not_after": time(one.before),
    })
}

/// Messages with readings that wait for a date, by start.
async fn find(pipeline: &Pipeline) -> Result<BTreeMap<u32, Undated>, StoreError> {
    let positions: BTreeSet<Position> = {
        let outbox = pipeline.outbox.borrow();
        let waits = outbox.rows().filter(|pending| {
            let waiting = pending.row.waiting.as_ref();
            waiting.is_some_and(|error| UNDATED.contains(&error.name.as_str()))
        });
        waits
            .filter_map(|pending| pending.row.refs.clone())
            .flat_map(|refs| refs.iter().map(|(at, _)| *at).collect::<Vec<_>>())
            .collect()
    };
    let mut found: BTreeMap<u32, Undated> = BTreeMap::new();
    let mut from = positions.first().copied();
    while let Some(at) = from {
        let batch = pipeline.read(at).await?;
        let Some(reached) = batch.last().map(|entry| entry.stored.position) else {
            break;
        };
        for entry in batch
            .iter()
            .filter(|entry| positions.contains(&entry.stored.position))
        {
            let stamp = entry.stored.message.stamp;
            let here = (entry.stored.position, stamp.monotonic_us);
            let of_start = found.entry(stamp.boot).or_insert_with(|| Undated {
                first: here,
                ..Undated::default()
            });
            of_start.messages += 1;
            of_start.last = here;
        }
        pipeline.beat("undated");
        from = positions.range(reached + 1..).next().copied();
    }
    for one in found.values_mut() {
        // What was salvaged from a damaged store stands among younger messages.
        if pipeline.former.identities.of(one.first.0).is_some() {
            continue;
        }
        one.after = newest_before(pipeline, one.first.0).await?;
        one.before = oldest_after(pipeline, one.last.0).await?;
    }
    Ok(found)
}

/// When the last message before `position` came whose time is known.
async fn newest_before(pipeline: &Pipeline, position: Position) -> Result<Option<i64>, StoreError> {
    let outline = pipeline.store.call(|store| store.outline()).await?;
    for segment in outline.iter().rev().filter(|segment| segment.first < position) {
        let (mut from, mut newest) = (segment.first, None);
        while from < position {
            let batch = pipeline.read(from).await?;
            let Some(reached) = batch.last().map(|entry| entry.stored.position) else {
                break;
            };
            let before = batch.iter().filter(|entry| entry.stored.position < position);
            let times = before.filter_map(|entry| known(pipeline, &entry.stored.message.stamp));
            newest = times.last().or(newest);
            from = reached + 1;
        }
        if newest.is_some() {
            return Ok(newest);
        }
    }
    Ok(None)
}

/// When the first message after `position` came whose time is known.
async fn oldest_after(pipeline: &Pipeline, position: Position) -> Result<Option<i64>, StoreError> {
    let mut from = position + 1;
    loop {
        let batch = pipeline.read(from).await?;
        let Some(reached) = batch.last().map(|entry| entry.stored.position) else {
            return Ok(None);
        };
        let salvaged = |position| pipeline.former.identities.of(position).is_some();
        let mut times = batch
            .iter()
            .filter(|entry| !salvaged(entry.stored.position))
            .filter_map(|entry| known(pipeline, &entry.stored.message.stamp));
        if let Some(time) = times.next() {
            return Ok(Some(time));
        }
        from = reached + 1;
    }
}

fn known(pipeline: &Pipeline, stamp: &crate::message::Stamp) -> Option<i64> {
    let (time, known) = receive_time(stamp, &pipeline.dating.borrow());
    known.then_some(time.ticks())
}
