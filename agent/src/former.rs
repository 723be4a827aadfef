//! Messages that came from a store before this one: under which identity they are known, and who still has to get them.

use crate::forward::GroupKey;
use crate::message::Position;
use crate::store::salvage::{Identity, Run, Runs, State, Wanted};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Identities of messages that came from former stores, shared by the loops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities(Rc<RefCell<Runs>>);

impl Identities {
    /// From what the store holds.
    pub fn new(runs: Vec<Run>) -> Identities {
        Identities(Rc::new(RefCell::new(Runs::new(runs))))
    }

    /// Adds runs that were committed.
    pub fn add(&self, runs: Vec<Run>) {
        self.0.borrow_mut().add(runs);
    }

    /// The identity of a message that came from a former store.
    pub fn of(&self, position: Position) -> Option<Identity> {
        self.0.borrow().identity(position)
    }

    /// Store and position that a message is known by; `store` is this one.
    pub fn known_as(&self, store: &Arc<str>, position: Position) -> (Arc<str>, Position) {
        match self.of(position) {
            Some(known) => (known.store, known.known_as),
            None => (Arc::clone(store), position),
        }
    }
}

/// What the loops know of former stores.
#[derive(Debug, Default)]
pub struct FormerStores {
    /// Identities.
    pub identities: Identities,
    /// What destinations still have to get, by the number of the salvage, until all of it was normalized.
    wanted: RefCell<HashMap<i64, Wanted>>,
    /// How far the salvages are, for `status`.
    pub states: RefCell<Vec<State>>,
}

impl FormerStores {
    /// With the identities that the store holds.
    pub fn new(runs: Vec<Run>) -> FormerStores {
        FormerStores {
            identities: Identities::new(runs),
            ..FormerStores::default()
        }
    }

    /// From now on readings of this salvage are held against what was confirmed.
    pub fn compare(&self, former: i64, wanted: Wanted) {
        self.wanted.borrow_mut().insert(former, wanted);
    }

    /// Everything of this salvage was normalized.
    pub fn settle(&self, former: i64) {
        self.wanted.borrow_mut().remove(&former);
    }

    /// Notes how far a salvage is.
    pub fn note(&self, state: &State) {
        let mut states = self.states.borrow_mut();
        match states.iter_mut().find(|known| known.file == state.file) {
            Some(known) => known.clone_from(state),
            None => states.push(state.clone()),
        }
    }

    /// Whether a former store says that `destination` has this reading already.
    pub fn has_reading(
        &self,
        destination: u32,
        key: &GroupKey,
        position: Position,
        match_number: u32,
    ) -> bool {
        self.ask(position, |wanted, then| {
            !wanted.wants(destination, key, then, match_number)
        })
    }

    /// Whether a former store says that `destination`, which takes raw messages, has this message already.
    pub fn has_message(&self, destination: u32, position: Position) -> bool {
        self.ask(position, |wanted, then| !wanted.wants_message(destination, then))
    }

    fn ask(&self, position: Position, answer: impl Fn(&Wanted, Position) -> bool) -> bool {
        let wanted = self.wanted.borrow();
        if wanted.is_empty() {
            return false;
        }
        let Some(identity) = self.identities.of(position) else {
            return false;
        };
        wanted
            .get(&identity.former)
            .is_some_and(|wanted| answer(wanted, identity.position))
    }
}
