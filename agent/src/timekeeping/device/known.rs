//! What is known of the clock of a device, as the store holds it; also of stores before this one.

use crate::message::Position;
use crate::store::salvage::Identity;
use serde::{Deserialize, Serialize};

/// Offsets that are kept of a device.
const ENTRIES: usize = 64;

/// From a position on a clock is off by so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) from: Position,
    /// Ticks to add.
    pub(super) correction: i64,
    /// When the message came that it was measured by: ticks.
    pub(super) received: i64,
    /// When the clock was set, or started anew (gateway time, ticks): what was taken before is of another timeline.
    pub(super) began: Option<i64>,
}

/// What is measured of a device; the part that the store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) entries: Vec<Entry>,
    /// From here on readings that contradict the offset wait.
    pub(super) suspect: Option<Position>,
    /// Messages up to here were measured.
    pub(super) seen: Position,
    /// What held in stores before this one, for the messages that came from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<FormerKnown>,
}

/// What was measured in a store before this one, by its positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FormerKnown {
    /// Number of the salvage that brought it.
    salvage: i64,
    entries: Vec<Entry>,
    suspect: Option<Position>,
}

/// A state of a store before this one, as this one keeps it: the last offset holds until another one is measured, and those
/// before it for the messages that come with the salvage of this number. None for what is no state.
pub(crate) fn carried_over(state: &str, salvage: i64) -> Option<String> {
    let then: Known = serde_json::from_str(state).ok()?;
    let last = then.entries.last().map(|last| Entry { from: 0, ..*last });
    let now = Known {
        entries: last.into_iter().collect(),
        // Whether the clock was set is as open as it was.
        suspect: then.suspect.map(|_| 0),
        seen: 0,
        former: vec![FormerKnown {
            salvage,
            entries: then.entries,
            suspect: then.suspect,
        }],
    };
    serde_json::to_string(&now).ok()
}

/// What holds at a position.
fn holding(entries: &[Entry], position: Position) -> Option<&Entry> {
    let holds = entries.iter().rev().find(|entry| entry.from <= position);
    holds.or(entries.first())
}

impl Known {
    /// The newest offset.
    pub(super) fn enter(&mut self, entry: Entry) {
        self.suspect = None;
        self.entries.push(entry);
        if self.entries.len() > ENTRIES {
            self.entries.remove(0);
        }
    }

    /// What holds for a message, which came from a store before this one where that is said.
    pub(super) fn at(&self, position: Position, identity: Option<&Identity>) -> Option<&Entry> {
        match self.of(identity) {
            Some((then, position)) => holding(&then.entries, position),
            None => holding(&self.entries, position),
        }
    }

    /// Whether it is open at a message if its clock was set.
    pub(super) fn is_suspect(&self, position: Position, identity: Option<&Identity>) -> bool {
        match self.of(identity) {
            Some(_) => false,
            None => self.suspect.is_some_and(|from| from <= position),
        }
    }

    /// What the store that a message came from knew about it; nothing where that was open then.
    fn of(&self, identity: Option<&Identity>) -> Option<(&FormerKnown, Position)> {
        let identity = identity?;
        let then = self.former.iter().find(|then| then.salvage == identity.former)?;
        let is_open = then.suspect.is_some_and(|from| from <= identity.position);
        (!is_open).then_some((then, identity.position))
    }
}
