//! Every Observation that a run of vectors builds, for validators that are not ours.

use serde_json::Value;
use std::cell::RefCell;

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
    static BUILT: RefCell<Option<Vec<(String, Value)>>> = const { RefCell::new(None) };
}

/// From now on Observations are kept.
pub fn keep() {
    BUILT.with_borrow_mut(|built| *built = Some(Vec::new()));
}

/// What was kept: file and vector, Observation.
pub fn kept() -> Vec<(String, Value)> {
    BUILT.with_borrow_mut(Option::take).unwrap_or_default()
}

/// The vector that runs now.
pub(super) fn place(place: &str) {
    PLACE.with_borrow_mut(|now| place.clone_into(now));
}

/// An Observation was built.
pub(super) fn note(observation: &Value) {
    BUILT.with_borrow_mut(|built| {
        if let Some(built) = built {
            built.push((PLACE.with_borrow(Clone::clone), observation.clone()));
        }
    });
}
