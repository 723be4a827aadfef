//! What an entry or a look changes about the past.

use super::{Answer, Ticks, Who};
use std::sync::Arc;

/// A stretch of time whose readings may have gone to a patient that is not theirs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Device identifier.
    pub device: Arc<str>,
    /// First instant; none without limit.
    pub from: Option<Ticks>,
    /// The instant at which it ends; none without limit.
    pub to: Option<Ticks>,
    /// To whom readings of that time went; none where that is not known.
    pub before: Option<Who>,
    /// Whose they are; none when they wait.
    pub after: Option<Who>,
}

type Of = Option<(Who, Option<Who>)>;

fn of(answer: Answer) -> Of {
    match answer {
        Answer::Patient {
            patient, encounter, ..
        } => Some((patient, encounter)),
        Answer::Waits(_) => None,
    }
}

/// The stretches, among times up to `until`, in which `before` gave a patient and `after` gives another or none, or
/// another encounter. `instants` are all instants at which either may change its answer. The last stretch is open when it
/// reaches `until`. With `of_nobody` also those in which `before` gave nobody: then nothing was sent by it, but the
/// message may have named a patient, or a store that is gone knew one.
pub fn changes(
    device: &Arc<str>,
    mut instants: Vec<Ticks>,
    until: Ticks,
    before: &dyn Fn(Ticks) -> Answer,
    after: &dyn Fn(Ticks) -> Answer,
    of_nobody: bool,
) -> Vec<Change> {
    instants.retain(|instant| *instant > Ticks::MIN && *instant <= until);
    instants.push(Ticks::MIN);
    instants.sort_unstable();
    instants.dedup();
    let mut found: Vec<(Ticks, Option<Ticks>, Of, Of)> = Vec::new();
    for (number, from) in instants.iter().copied().enumerate() {
        let to = instants.get(number + 1).copied();
        let (was, is) = (of(before(from)), of(after(from)));
        match found.last_mut() {
            Some((_, end, last_was, last_is)) if *last_was == was && *last_is == is => *end = to,
            _ => found.push((from, to, was, is)),
        }
    }
    let differing = found
        .into_iter()
        .filter(|(_, _, was, is)| (of_nobody || was.is_some()) && was != is);
    let change = differing.map(|(from, to, was, is)| Change {
        device: Arc::clone(device),
        from: (from > Ticks::MIN).then_some(from),
        to,
        before: was.map(|(patient, _)| patient),
        after: is.map(|(patient, _)| patient),
    });
    change.collect()
}
