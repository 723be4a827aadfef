//! What a destination still has to get, reading by reading.

use super::{Outbox, Position};
use std::collections::{HashMap, HashSet};

/// Series and period of a row.
type Slot = (u32, Option<i64>);

/// Readings in the rows of a destination.
#[derive(Debug, Default)]
pub struct Unsent {
    named: HashSet<(Position, u32)>,
    ranges: HashMap<Slot, Vec<(Position, Position)>>,
}

impl Unsent {
    /// Whether a row has this reading.
    pub fn holds(&self, series: u32, period: Option<i64>, place: (Position, u32)) -> bool {
        let ranges = self.ranges.get(&(series, period)).into_iter().flatten();
        self.named.contains(&place)
            || ranges
                .into_iter()
                .any(|(first, last)| (*first..=*last).contains(&place.0))
    }
}

impl Outbox {
    /// What the rows of a destination hold.
    pub fn unsent(&self, destination: u32) -> Unsent {
        let mut unsent = Unsent {
            named: self.named_readings(destination, &HashSet::new()),
            ..Unsent::default()
        };
        let rows = self.rows.values().map(|pending| &pending.row);
        for row in rows.filter(|row| row.destination == destination && row.refs.is_none()) {
            let ranges = unsent.ranges.entry((row.series, row.period)).or_default();
            ranges.push((row.first, row.last));
        }
        unsent
    }
}
