//! What somebody still has to get of a store that was set aside: positions, for going through its file; readings of each
//! destination, for what comes out of it.

use super::super::read::Ranges;
use super::adopt::Names;
use super::former::{Former, Known};
use crate::forward::GroupKey;
use crate::message::Position;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Which positions somebody still has to get.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) everything: bool,
    first: Position,
    /// All behind it.
    after: Position,
    ranges: Ranges,
    /// Messages that ended the process.
    pub(super) killers: HashSet<Position>,
    pub(super) end: Position,
}

impl Needs {
    /// Of what is known; `followers` are the destinations that take raw messages.
    pub(super) fn of(known: Option<&Known>, followers: &HashSet<u32>) -> Needs {
        let Some(known) = known else {
            return Needs {
                everything: true,
                ..Needs::default()
            };
        };
        let mut needs = Needs {
            everything: false,
            first: known.first,
            end: known.end,
            ranges: known.unmatched.clone(),
            ..Needs::default()
        };
        // Only a destination that takes raw messages moves a cursor; one that has none yet is named.
        let cursors = known.progress.destinations.iter();
        let cursors = cursors.filter(|(id, d)| !d.dropped && (d.cursor > 0 || followers.contains(id)));
        let cursors = cursors.map(|(_, d)| d.cursor);
        needs.after = cursors.chain([known.progress.cursor]).min().unwrap_or_default();
        for row in &known.rows {
            match &row.refs {
                Some(refs) => {
                    for (position, _) in refs {
                        needs.ranges.add(*position, *position);
                    }
                }
                None => drop(needs.ranges.add(row.first, row.last)),
            }
        }
        let killers = known.letters.iter().filter(|letter| letter.is_killer);
        needs.killers = killers.map(|letter| letter.position).collect();
        needs
    }

    /// Whether any of these positions is needed.
    pub(super) fn touch(&self, first: Position, last: Position) -> bool {
        last >= self.first && (self.everything || last > self.after || self.ranges.touches(first, last))
    }

    /// How many of these positions are needed.
    pub(super) fn count(&self, first: Position, last: Position) -> u64 {
        let first = first.max(self.first).max(1);
        if first > last {
            return 0;
        }
        if self.everything {
            return last - first + 1;
        }
        let behind = last.saturating_sub(self.after.max(first - 1));
        behind + self.ranges.count_within(first, last.min(self.after))
    }
}

/// What destinations still have to get of a store that was set aside, as far as it told.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Nothing is known, or not enough: everything is sent again.
    everything: bool,
    cursor: Position,
    unmatched: Ranges,
    destinations: HashMap<u32, OfDestination>,
}

#[derive(Debug, Default)]
struct OfDestination {
    cursor: Position,
    named: HashSet<(Position, u32)>,
    /// All readings of these messages.
    messages: HashSet<Position>,
    ranges: HashMap<Arc<GroupKey>, Vec<(Position, Position)>>,
}

impl Wanted {
    /// From the tables; `destinations` gives the numbers of now for those of then.
    /// With other packs than then a message has other matches: nothing can be told then either.
    pub(super) fn of(former: &Former, names: Option<&Names>) -> Wanted {
        let all_packs = |names: &Names| {
            let mut packs = former.revisions.iter();
            packs.all(|(id, ..)| names.revisions.contains_key(id))
                && !former.missing.iter().any(|name| name == "revision")
        };
        let (Some(known), Some(names)) = (&former.known, names.filter(|names| all_packs(names))) else {
            return Wanted {
                everything: true,
                ..Wanted::default()
            };
        };
        let mut wanted = Wanted {
            everything: false,
            cursor: known.progress.cursor,
            unmatched: known.unmatched.clone(),
            destinations: HashMap::new(),
        };
        let destinations = &names.destinations;
        for (then, now) in destinations {
            let counters = known.progress.destinations.get(then);
            let of = wanted.destinations.entry(*now).or_default();
            of.cursor = counters.map_or(0, |counters| counters.cursor);
        }
        let now = |then: u32| destinations.get(&then);
        for row in &known.rows {
            let of = now(row.destination).and_then(|now| wanted.destinations.get_mut(now));
            let Some(of) = of else { continue };
            match (&row.refs, &row.key) {
                (Some(refs), _) if row.renumbered => of.messages.extend(refs.iter().map(|(at, _)| *at)),
                (Some(refs), _) => of.named.extend(refs.iter().copied()),
                (None, Some(key)) => {
                    of.ranges
                        .entry(Arc::clone(key))
                        .or_default()
                        .push((row.first, row.last));
                }
                (None, None) => wanted.everything = true,
            }
        }
        for letter in &known.letters {
            let of = letter.destination.and_then(now);
            let Some(of) = of.and_then(|now| wanted.destinations.get_mut(now)) else {
                continue;
            };
            match letter.match_number {
                Some(number) => drop(of.named.insert((letter.position, number))),
                None => drop(of.messages.insert(letter.position)),
            }
        }
        wanted
    }

    /// Whether a destination still has to get a reading of the message at `position` of the store that was.
    pub fn wants(&self, destination: u32, key: &GroupKey, position: Position, match_number: u32) -> bool {
        if self.everything || position > self.cursor || self.unmatched.end_of(position).is_some() {
            return true;
        }
        self.destinations.get(&destination).is_some_and(|of| {
            let ranges = of.ranges.get(key).into_iter().flatten();
            of.named.contains(&(position, match_number))
                || of.messages.contains(&position)
                || ranges
                    .into_iter()
                    .any(|(first, last)| (*first..=*last).contains(&position))
        })
    }

    /// Whether a destination that takes raw messages still has to get the message at `position` of the store that was.
    pub fn wants_message(&self, destination: u32, position: Position) -> bool {
        if self.everything {
            return true;
        }
        self.destinations.get(&destination).is_some_and(|of| {
            position > of.cursor || of.messages.contains(&position) || of.named.contains(&(position, 0))
        })
    }
}
