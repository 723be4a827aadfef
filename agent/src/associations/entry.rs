//! What an operator enters.

use super::Ticks;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A Patient or an Encounter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Who {
    /// By the id of its resource on the server.
    Id(String),
    /// By an identifier of it, which is looked up on each server.
    Identifier(String),
}

impl Who {
    /// `Patient/ID` (or `Encounter/ID`, as `kind` says) is an id, anything else an identifier.
    pub fn parse(kind: &str, text: &str) -> Who {
        let id = text.strip_prefix(kind).and_then(|rest| rest.strip_prefix('/'));
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        match id.filter(|id| (1..=64).contains(&id.len()) && id.chars().all(plain)) {
            Some(id) => Who::Id(id.to_owned()),
            None => Who::Identifier(text.to_owned()),
        }
    }

    /// The text that [`Who::parse`] reads.
    pub fn text(&self, kind: &str) -> String {
        match self {
            Who::Id(id) => format!("{kind}/{id}"),
            Who::Identifier(identifier) => identifier.clone(),
        }
    }
}

/// An entry of the operator; it is never changed, a later one covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Order of the entries.
    pub number: i64,
    /// Device identifier.
    pub device: Arc<str>,
    /// With whom; nobody where the use ended.
    pub patient: Option<Who>,
    /// The encounter.
    pub encounter: Option<Who>,
    /// First instant; none without limit.
    pub from: Option<Ticks>,
    /// The instant at which it ends; none while it is open.
    pub to: Option<Ticks>,
    /// When it was entered.
    pub entered: Ticks,
}

impl Entry {
    /// Whether it says something about an instant.
    pub fn covers(&self, instant: Ticks) -> bool {
        self.from.is_none_or(|from| from <= instant) && self.to.is_none_or(|to| instant < to)
    }

    /// What stands for entries of any device that may be lost: before all others, and nobody has it. It has an end, so that
    /// nothing that a server shows is newer.
    pub(super) fn lost() -> Entry {
        Entry {
            number: i64::MIN,
            device: Arc::from(""),
            patient: None,
            encounter: None,
            from: None,
            to: Some(Ticks::MAX),
            entered: Ticks::MIN,
        }
    }

    /// Whether it is [`Entry::lost`].
    pub(super) fn is_lost(&self) -> bool {
        self.number == i64::MIN
    }

    /// What the server shows of a later moment is newer than the entry.
    pub(super) fn stated(&self) -> Ticks {
        self.entered.max(self.from.unwrap_or(Ticks::MIN))
    }
}
