//! What a server showed of one device: its link to a patient over time, and statements of its use.

use super::Ticks;
use serde::{Deserialize, Serialize};

/// Links that are kept of a device; the oldest go first.
const MOST_STAYS: usize = 500;

/// A link as far as it is certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// Id of the Patient; nobody when the Device had no usable link.
    pub patient: Option<String>,
    /// From when on it is certain.
    pub from: Ticks,
    /// Up to when it is certain: the next link, or the last look at it.
    pub until: Ticks,
}

/// A `DeviceUseStatement` with a timing period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Id of the Patient.
    pub patient: String,
    /// First instant.
    pub from: Option<Ticks>,
    /// Last instant, with all of the second or day that is written.
    pub last: Option<Ticks>,
    /// The end as it is written, where it has a time: another use that begins then or later has the rest of that second.
    pub end: Option<Ticks>,
    /// When the server got it.
    pub recorded: Option<Ticks>,
}

/// One look at the Device on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Id of the Device.
    pub device: String,
    /// `meta.versionId`.
    pub version: Option<String>,
    /// `meta.lastUpdated`.
    pub last_updated: Option<Ticks>,
    /// Id of the Patient.
    pub patient: Option<String>,
    /// When the question left; none while the clock cannot be trusted.
    pub asked: Option<Ticks>,
    /// When the answer was there; none while the clock cannot be trusted.
    pub answered: Option<Ticks>,
}

/// A version of the Device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `meta.versionId`.
    pub version: Option<String>,
    /// `meta.lastUpdated`.
    pub at: Ticks,
    /// Id of the Patient.
    pub patient: Option<String>,
}

/// Everything that a server showed of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Id of the Device.
    pub device: String,
    /// The version seen last.
    pub version: Option<String>,
    /// The first link holds backwards without limit.
    pub backwards: bool,
    /// The first link is known from its first version on.
    pub exact: bool,
    /// The identifier went from one Device to another: the versions of one alone do not tell the whole story.
    #[serde(default)]
    pub several: bool,
    /// Links in order of time; between two of them may be a time of which nothing is known.
    pub stays: Vec<Stay>,
    /// Statements as of the last look.
    #[serde(default)]
    pub statements: Vec<Statement>,
}

/// The link at an instant.
pub(super) enum Link<'a> {
    Known {
        patient: Option<&'a str>,
        began: Began,
    },
    /// It changed somewhere around the instant, to a link that is certain from `from` on.
    Uncertain {
        before: Option<&'a str>,
        after: Option<&'a str>,
        from: Ticks,
    },
}

/// When a link began.
#[derive(Clone, Copy)]
pub(super) enum Began {
    At(Ticks),
    /// Then at the latest.
    By(Ticks),
    /// Before everything that is known.
    Ever,
}

/// What the server says of an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Statement(&'a str),
    Link(&'a str),
    Unlinked,
    Gap,
    Contradiction,
    Uncertain,
}

impl Record {
    /// The first look at a device.
    pub fn first(seen: &Seen) -> Record {
        let from = seen.last_updated.unwrap_or(Ticks::MIN);
        Record {
            device: seen.device.clone(),
            version: seen.version.clone(),
            backwards: true,
            exact: false,
            several: false,
            stays: vec![Stay {
                patient: seen.patient.clone(),
                from,
                until: seen.asked.unwrap_or(from).max(from),
            }],
            statements: Vec::new(),
        }
    }

    /// The last moment at which the server was looked at.
    pub fn last_look(&self) -> Ticks {
        self.stays.last().map_or(Ticks::MIN, |stay| stay.until)
    }

    /// Whether the versions of the Device are needed before `oldest` can be answered after this look.
    pub fn wants_history(&self, seen: &Seen, oldest: Ticks) -> bool {
        let first = self.stays.first().map_or(Ticks::MAX, |stay| stay.from);
        !self.several && (self.differs(seen) || (!self.exact && oldest < first))
    }

    fn differs(&self, seen: &Seen) -> bool {
        let link = self.stays.last().and_then(|stay| stay.patient.as_ref());
        self.device != seen.device || self.version != seen.version || link != seen.patient.as_ref()
    }

    /// A further look without the versions between.
    pub fn look(&mut self, seen: &Seen) {
        let differs = self.differs(seen);
        let next_version = self.device == seen.device && follows(&self.version, &seen.version);
        let Some(last) = self.stays.last_mut() else {
            *self = Record {
                statements: std::mem::take(&mut self.statements),
                ..Record::first(seen)
            };
            return;
        };
        self.several |= self.device != seen.device;
        self.device.clone_from(&seen.device);
        self.version.clone_from(&seen.version);
        let hidden = differs && !(next_version && last.patient == seen.patient);
        if !hidden {
            // The same version, or the next one with the same link: nothing can have been in between.
            if let Some(asked) = seen.asked {
                last.from = last.from.min(asked);
                last.until = last.until.max(asked);
            }
            return;
        }
        // The server's clock counts only where it agrees with ours.
        let between = |at: &Ticks| *at >= last.until && seen.answered.is_none_or(|answered| *at <= answered);
        let from = seen
            .last_updated
            .filter(between)
            .or(seen.asked)
            .unwrap_or(Ticks::MAX)
            .max(last.until);
        self.stays.push(Stay {
            patient: seen.patient.clone(),
            from,
            until: seen.asked.unwrap_or(from).max(from),
        });
        self.forget_oldest();
    }

    /// A look with the versions of the Device, oldest first; `whole` when they begin with the oldest that the server has.
    pub fn look_with_history(&mut self, seen: &Seen, versions: &[Version], whole: bool) {
        let another = !self.stays.is_empty() && self.device != seen.device;
        let Some(oldest) = versions.first().filter(|_| !another && !self.several) else {
            return self.look(seen);
        };
        let last_look = self.last_look();
        let seen_before = versions
            .iter()
            .position(|version| self.version.is_some() && version.version == self.version);
        let mut stays: Vec<Stay> = if whole {
            Vec::new()
        } else {
            let before = self.stays.iter().filter(|stay| stay.from < oldest.at).cloned();
            before
                .map(|stay| Stay {
                    until: stay.until.min(oldest.at),
                    ..stay
                })
                .collect()
        };
        let earlier = !stays.is_empty();
        for (number, version) in versions.iter().enumerate() {
            let stay = |from| Stay {
                patient: version.patient.clone(),
                from,
                until: from,
            };
            // What the last look did not show came after it by our clock; else the clocks differ, and the moment is not known.
            let unseen = seen_before.is_some_and(|before| number > before);
            let agrees = !unseen
                || (version.at >= last_look && seen.answered.is_none_or(|answered| version.at <= answered));
            match stays.last_mut() {
                None => stays.push(stay(version.at)),
                Some(last) if number == 0 => {
                    debug_assert!(last.until <= version.at);
                    stays.push(stay(version.at));
                }
                Some(last) if last.patient == version.patient => last.until = last.until.max(version.at),
                Some(last) if agrees => {
                    last.until = version.at;
                    stays.push(stay(version.at));
                }
                Some(last) => {
                    last.until = last_look;
                    stays.push(stay(seen.asked.unwrap_or(Ticks::MAX)));
                }
            }
        }
        // Versions that came and went while the clocks disagreed have no certain time of their own.
        let newest = stays.len();
        let mut number = 0;
        stays.retain(|stay| {
            number += 1;
            number == newest || stay.from <= stay.until
        });
        if let (Some(last), Some(asked)) = (stays.last_mut(), seen.asked) {
            last.until = last.until.max(asked);
        }
        self.backwards = whole || (earlier && self.backwards);
        self.exact = whole || (earlier && self.exact);
        self.device.clone_from(&seen.device);
        self.version.clone_from(&seen.version);
        self.stays = stays;
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        if self.stays.len() > MOST_STAYS {
            self.stays.drain(..self.stays.len() - MOST_STAYS);
            self.backwards = false;
        }
    }

    fn link_at(&self, instant: Ticks) -> Option<Link<'_>> {
        let after = self.stays.partition_point(|stay| stay.from <= instant);
        let next = self.stays.get(after);
        let Some(stay) = after.checked_sub(1).and_then(|at| self.stays.get(at)) else {
            let first = next?;
            let patient = first.patient.as_deref();
            return Some(if self.backwards {
                // Without the versions it may have begun at any time before the version that was seen.
                let began = if self.exact {
                    Began::Ever
                } else {
                    Began::By(first.from)
                };
                Link::Known { patient, began }
            } else {
                Link::Uncertain {
                    before: None,
                    after: patient,
                    from: first.from,
                }
            });
        };
        let patient = stay.patient.as_deref();
        Some(match next {
            Some(next) if instant > stay.until => Link::Uncertain {
                before: patient,
                after: next.patient.as_deref(),
                from: next.from,
            },
            _ => Link::Known {
                patient,
                began: self.began(after - 1),
            },
        })
    }

    /// When the link of a stay began; looks that show the same patient again are no new link.
    fn began(&self, at: usize) -> Began {
        let patient = |at: usize| self.stays.get(at).map(|stay| &stay.patient);
        let mut first = at;
        while first > 0 && patient(first - 1) == patient(at) {
            first -= 1;
        }
        let from = self.stays.get(first).map_or(Ticks::MIN, |stay| stay.from);
        if first > 0 || self.exact {
            Began::At(from)
        } else {
            Began::By(from)
        }
    }

    /// Statements about an instant, without those whose last second belongs to the next use.
    fn statements_at(&self, instant: Ticks) -> Vec<&Statement> {
        let covering: Vec<&Statement> = self
            .statements
            .iter()
            .filter(|one| {
                one.from.is_none_or(|from| from <= instant) && one.last.is_none_or(|last| instant <= last)
            })
            .collect();
        let next_began = covering.iter().filter_map(|one| one.from).max();
        let replaced = |one: &Statement| {
            let ended = one.end.zip(next_began).is_some_and(|(end, began)| end <= began);
            ended && one.from != next_began
        };
        covering.iter().copied().filter(|one| !replaced(one)).collect()
    }

    pub(super) fn at(&self, instant: Ticks) -> Said<'_> {
        let statements = self.statements_at(instant);
        if let Some(first) = statements.first() {
            let one = statements.iter().all(|other| other.patient == first.patient);
            return if one {
                Said::Statement(&first.patient)
            } else {
                Said::Contradiction
            };
        }
        match self.link_at(instant) {
            Some(Link::Known {
                patient: Some(patient),
                began,
            }) => {
                if self.is_outside_of_use(patient, began, instant) {
                    Said::Gap
                } else {
                    Said::Link(patient)
                }
            }
            Some(Link::Uncertain { .. }) => Said::Uncertain,
            Some(Link::Known { patient: None, .. }) | None => {
                let never =
                    self.stays.iter().all(|stay| stay.patient.is_none()) && self.statements.is_empty();
                if never { Said::Unlinked } else { Said::Gap }
            }
        }
    }

    /// The server says exactly when this patient has the device, and the instant is not then.
    fn is_outside_of_use(&self, patient: &str, began: Began, instant: Ticks) -> bool {
        self.statements
            .iter()
            .filter(|one| one.patient == patient)
            .any(|one| {
                let begins_later = one.from.is_some_and(|from| from > instant);
                let ended = one.last.is_some_and(|last| {
                    let linked_anew = matches!(began, Began::At(began) if began > one.end.unwrap_or(last));
                    last < instant && !linked_anew
                });
                begins_later || ended
            })
    }

    /// Whether the server shows another patient than `ours` at an instant, and that is newer than `stated`.
    pub(super) fn contradicts(&self, ours: Option<&str>, stated: Ticks, instant: Ticks) -> bool {
        if instant < stated {
            return false;
        }
        let statement = self.statements_at(instant).into_iter().any(|one| {
            Some(one.patient.as_str()) != ours
                && one.from.max(one.recorded).is_some_and(|since| since > stated)
        });
        let link = match self.link_at(instant) {
            Some(Link::Known {
                patient,
                began: Began::At(began) | Began::By(began),
            }) => patient != ours && began > stated,
            Some(Link::Uncertain { before, after, from }) => {
                after != ours && before != after && from > stated
            }
            Some(Link::Known {
                began: Began::Ever, ..
            })
            | None => false,
        };
        statement || (self.statements_at(instant).is_empty() && link)
    }

    /// Whether what the server says of an instant began after `ended`.
    pub(super) fn is_newer(&self, instant: Ticks, ended: Ticks) -> bool {
        let statements = self.statements_at(instant);
        if !statements.is_empty() {
            return statements
                .iter()
                .any(|one| one.from.is_some_and(|from| from >= ended));
        }
        match self.link_at(instant) {
            Some(Link::Known {
                began: Began::At(began),
                ..
            }) => began >= ended,
            Some(Link::Uncertain { from, .. }) => from >= ended,
            Some(Link::Known { .. }) | None => false,
        }
    }

    /// Instants between which [`super::at`] answers alike.
    pub(super) fn instants(&self) -> impl Iterator<Item = Ticks> + '_ {
        let stays = self
            .stays
            .iter()
            .flat_map(|stay| [stay.from, stay.until, stay.until.saturating_add(1)]);
        let statements = self.statements.iter().flat_map(|one| {
            let last = one
                .last
                .into_iter()
                .flat_map(|last| [last, last.saturating_add(1)]);
            one.from.into_iter().chain(last).chain(one.end)
        });
        stays.chain(statements)
    }

    /// The patients of the links around an instant whose own is not certain.
    pub fn around(&self, instant: Ticks) -> [Option<&str>; 2] {
        let after = self.stays.partition_point(|stay| stay.from <= instant);
        let patient = |at: Option<usize>| at.and_then(|at| self.stays.get(at)?.patient.as_deref());
        [patient(after.checked_sub(1)), patient(Some(after))]
    }

    /// The last look alone, without what was known before.
    pub fn link(&self) -> Option<&str> {
        self.stays.last()?.patient.as_deref()
    }
}

/// Whether `next` is the version right after `before`: only numbers tell.
fn follows(before: &Option<String>, next: &Option<String>) -> bool {
    let number = |version: &Option<String>| version.as_ref()?.parse::<u64>().ok();
    match (number(before), number(next)) {
        (Some(before), Some(next)) => before.checked_add(1) == Some(next),
        _ => false,
    }
}
