//! Who a device was with, and when: the timeline that gives each reading the patient of its time.
//!
//! Everything here is pure: what was entered and what was seen go in, the patient of an instant comes out, or the reason
//! why the reading has to wait. Instants are UTC ticks of 100 ns.
//!
//! Invariants:
//! 1. The operator comes first; of two entries for one instant the one entered last counts.
//! 2. An open entry of the operator holds until the server shows a different link that is newer than the entry; readings
//!    from then on wait as a conflict until somebody confirms one of the two.
//! 3. A `DeviceUseStatement` with a period is exact: outside of its period its patient does not have the device, unless
//!    the Device was linked to the patient anew.
//! 4. `Device.patient` holds from the version that carries it to the next one, the first known one backwards without
//!    limit. Where versions are not known, nothing is guessed between the last look at the old link and the moment
//!    from which the new one is certain.
//! 5. A reading in a gap, in a conflict or in an uncertain time belongs to nobody; it never goes to the last patient.
//! 6. What an entry or a look changes about the past is listed ([`Change`]), so that it can be corrected.
//! 7. Where entries were lost with a damaged store ([`Doubt`]), a reading that no entry covers belongs to nobody, whatever a server or
//!    a message says, until the operator says that all of them are entered again; where sightings were lost, the first link that
//!    is seen does not hold backwards.

mod book;
mod change;
pub mod dropped;
mod entry;
mod record;
pub mod time;

pub use book::{Book, Command, Doubt, Planned, Unwritten};
pub use change::{Change, changes};
pub use entry::{Entry, Who};
pub use record::{Record, Seen, Statement, Stay, Version};

use record::Said;

/// UTC in units of 100 ns since 1970.
pub type Ticks = i64;

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An entry of the operator.
    Operator,
    /// A `DeviceUseStatement` of the server.
    DeviceUseStatement,
    /// A version of the Device on the server.
    Device,
}

/// Whose reading it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The reading belongs to this patient.
    Patient {
        /// The patient.
        patient: Who,
        /// The encounter, where the operator named one.
        encounter: Option<Who>,
        /// Who said it.
        source: Source,
    },
    /// Nobody can say; the reading waits.
    Waits(Wait),
}

/// Why nobody can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The device was never with anybody.
    Unlinked,
    /// The device was with nobody then.
    Gap,
    /// An entry of the operator that was lost may say it.
    Doubt,
    /// The server contradicts the operator, and is newer.
    Conflict,
    /// Statements of the server contradict each other.
    Contradiction,
    /// The link changed at an unknown moment around it.
    Uncertain,
}

/// The patient of a device at an instant. `entries` are the operator's for this device, `record` is what the server showed
/// of it; `id_of` gives the id that a patient has on that server, where it is known.
pub fn at(
    entries: &[Entry],
    record: Option<&Record>,
    id_of: &dyn Fn(&Who) -> Option<String>,
    instant: Ticks,
) -> Answer {
    let said = record.map_or(Said::Unlinked, |record| record.at(instant));
    let entry = entries
        .iter()
        .filter(|entry| entry.covers(instant))
        .max_by_key(|entry| entry.number);
    let Some(entry) = entry else {
        return said.answer();
    };
    if entry.is_lost() {
        return Answer::Waits(Wait::Doubt);
    }
    let Some(patient) = &entry.patient else {
        // The device was taken away: only what the server says of a later moment ends that.
        let ended = entry.from.unwrap_or(Ticks::MIN);
        let newer = record.is_some_and(|record| entry.to.is_none() && record.is_newer(instant, ended));
        return if newer {
            said.answer()
        } else {
            Answer::Waits(Wait::Gap)
        };
    };
    let contradicted = entry.to.is_none()
        && record.is_some_and(|record| {
            let ours = id_of(patient);
            record.contradicts(ours.as_deref(), entry.stated(), instant)
        });
    if contradicted {
        return Answer::Waits(Wait::Conflict);
    }
    Answer::Patient {
        patient: patient.clone(),
        encounter: entry.encounter.clone(),
        source: Source::Operator,
    }
}

impl Said<'_> {
    fn answer(self) -> Answer {
        let (patient, source) = match self {
            Said::Statement(patient) => (patient, Source::DeviceUseStatement),
            Said::Link(patient) => (patient, Source::Device),
            Said::Unlinked => return Answer::Waits(Wait::Unlinked),
            Said::Gap => return Answer::Waits(Wait::Gap),
            Said::Contradiction => return Answer::Waits(Wait::Contradiction),
            Said::Uncertain => return Answer::Waits(Wait::Uncertain),
        };
        Answer::Patient {
            patient: Who::Id(patient.to_owned()),
            encounter: None,
            source,
        }
    }
}

#[cfg(test)]
mod tests;
