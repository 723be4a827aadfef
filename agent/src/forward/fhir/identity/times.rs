//! Whose a device was when a reading was taken: what each look at its Device showed, and the versions of the Device
//! where a look alone does not tell enough. The book of all of it is shared with the operator's commands and stored.

use super::{Found, Key, Kind, Known, id_of, link_of, patient_id, version_of};
use crate::associations::{Answer, Book, Record, Seen, Ticks, Version, Who};
use crate::clock;
use crate::config::ClockTrust;
use crate::forward::fhir::answer::{Answer as Response, hits, stuck};
use crate::forward::fhir::server::{Down, Entry, Server};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// How long a server is believed to keep no versions of a Device, in microseconds: an hour.
const WITHOUT_HISTORY_FOR_US: u64 = 3_600_000_000;
/// Most pages of versions that are read of a Device.
const MOST_PAGES: usize = 20;

/// Times of the devices on one server.
pub(super) struct Times {
    trust: ClockTrust,
    pub(super) book: Rc<RefCell<Book>>,
    pub(super) destination: u32,
    /// Devices whose versions the server does not tell, and until when that is believed.
    without_history: HashMap<Arc<str>, u64>,
}

/// What the versions of a Device are.
enum Versions {
    /// Oldest first; `true` when they begin with the oldest that the server has.
    Told(Vec<Version>, bool),
    /// The server does not keep them.
    Unsupported,
    /// They could not be read now.
    Unknown,
}

impl Times {
    pub fn new(trust: ClockTrust) -> Times {
        Times {
            trust,
            book: Rc::default(),
            destination: 0,
            without_history: HashMap::new(),
        }
    }

    /// The time now, while the clock can be trusted.
    pub fn now(&self) -> Option<Ticks> {
        clock::is_trusted(self.trust).then(|| clock::wall().ticks())
    }

    /// Notes what a look showed that was `asked` at that time; `oldest` has the devices whose readings follow the link,
    /// with the instant of their oldest reading. Devices whose versions are needed and cannot be read now become failed
    /// in `known`.
    pub async fn note(
        &mut self,
        server: &mut Server,
        oldest: &BTreeMap<Arc<str>, Ticks>,
        asked: Option<Ticks>,
        known: &mut Known,
    ) -> Option<Down> {
        let answered = self.now();
        let now = clock::monotonic_us();
        self.without_history.retain(|_, until| *until > now);
        let mut wanting: Vec<(Arc<str>, Seen)> = Vec::new();
        for (device, oldest) in oldest {
            let Some(Found::One(resource)) = known.get(&(Kind::Device, Arc::clone(device))) else {
                continue;
            };
            let Some(seen) = seen(resource, asked, answered) else {
                continue;
            };
            let book = self.book.borrow();
            let wants = match book.record(self.destination, device) {
                Some(record) => record.wants_history(&seen, *oldest),
                None => Record::first(&seen).wants_history(&seen, *oldest),
            };
            drop(book);
            if wants && !self.without_history.contains_key(device) {
                wanting.push((Arc::clone(device), seen));
            } else {
                self.look(device, &seen, None);
            }
        }
        if wanting.is_empty() {
            return None;
        }
        let entries: Vec<Entry> = wanting
            .iter()
            .map(|(_, seen)| Entry::get(format!("Device/{}/_history?_count=100", seen.device)))
            .collect();
        let exchange = server.send(&entries).await;
        let mut down = exchange.down;
        for ((device, seen), answer) in wanting.into_iter().zip(exchange.answers) {
            let versions = match answer {
                Some(answer) if down.is_none() => match versions(server, &seen, answer).await {
                    Ok(versions) => versions,
                    Err(now_down) => {
                        down = Some(now_down);
                        Versions::Unknown
                    }
                },
                _ => Versions::Unknown,
            };
            match versions {
                Versions::Told(versions, whole) => {
                    self.look(&device, &seen, Some((&versions, whole)));
                }
                Versions::Unsupported => {
                    self.look(&device, &seen, None);
                    self.without_history
                        .insert(device, now.saturating_add(WITHOUT_HISTORY_FOR_US));
                }
                Versions::Unknown => {
                    let text = "Device: its versions could not be read now; they are asked for again";
                    known.insert((Kind::Device, device), Found::Failed(stuck(text.to_owned())));
                }
            }
        }
        down
    }

    fn look(&self, device: &Arc<str>, seen: &Seen, history: Option<(&[Version], bool)>) {
        let mut book = self.book.borrow_mut();
        book.look(self.destination, device, seen, history, None);
    }

    /// Whether the operator entered anything about a device.
    pub fn has_entries(&self, device: &str) -> bool {
        !self.book.borrow().entries(device).is_empty()
    }

    /// Whether an entry of the operator says something about a device at an instant.
    pub fn is_entered(&self, device: &str, instant: Ticks) -> bool {
        self.book.borrow().is_entered(device, instant)
    }

    /// Patients and encounters that the operator named for an instant by an identifier: they have to be looked up.
    pub fn entered(&self, device: &str, instant: Ticks) -> Vec<Key> {
        let book = self.book.borrow();
        let covering = book.entries(device).iter().filter(|entry| entry.covers(instant));
        let keys = covering.flat_map(|entry| {
            let of = |kind: Kind, who: &Option<Who>| match who {
                Some(Who::Identifier(identifier)) => Some((kind, Arc::from(identifier.as_str()))),
                _ => None,
            };
            [
                of(Kind::Patient, &entry.patient),
                of(Kind::Encounter, &entry.encounter),
            ]
        });
        keys.flatten().collect()
    }

    /// The id of a patient whom the operator may name by this identifier.
    pub fn learn_patient(&self, identifier: &str, id: &str) {
        let mut book = self.book.borrow_mut();
        book.learn_patient(self.destination, identifier, id);
    }

    /// Id that a device had on the server when it was seen last.
    pub fn device_id(&self, device: &Arc<str>) -> Option<String> {
        let book = self.book.borrow();
        let id = &book.record(self.destination, device)?.device;
        (!id.is_empty()).then(|| id.clone())
    }

    /// Instants at which it may change whose a device is.
    pub fn turns(&self, device: &Arc<str>) -> Vec<Ticks> {
        self.book.borrow().turns(self.destination, device)
    }

    /// Whose a device was.
    pub fn at(&self, device: &Arc<str>, instant: Ticks) -> Answer {
        self.book.borrow().at(self.destination, device, instant)
    }
}

/// A look, as a resource shows it.
fn seen(resource: &Value, asked: Option<Ticks>, answered: Option<Ticks>) -> Option<Seen> {
    Some(Seen {
        device: id_of(resource)?.to_owned(),
        version: version_of(resource),
        last_updated: last_updated(resource),
        patient: patient_of(resource),
        asked,
        answered,
    })
}

fn patient_of(resource: &Value) -> Option<String> {
    link_of(resource).and_then(patient_id).map(str::to_owned)
}

fn last_updated(resource: &Value) -> Option<Ticks> {
    ticks(resource.get("meta")?.get("lastUpdated")?.as_str()?)
}

fn ticks(instant: &str) -> Option<Ticks> {
    let instant: jiff::Timestamp = instant.parse().ok()?;
    Ticks::try_from(instant.as_nanosecond() / 100).ok()
}

/// All pages of the versions, in order of time.
async fn versions(server: &mut Server, seen: &Seen, answer: Response) -> Result<Versions, Down> {
    if !answer.is_success() {
        let unsupported = !answer.is_passing()
            && (matches!(answer.status, 501 | 505) || (400..500).contains(&answer.status));
        return Ok(if unsupported {
            Versions::Unsupported
        } else {
            Versions::Unknown
        });
    }
    let mut pages = 0;
    let mut bundle = answer.resource;
    let mut versions: Vec<Version> = Vec::new();
    let whole = loop {
        let Some(page) = bundle.filter(|bundle| bundle.get("entry").is_some_and(Value::is_array)) else {
            break false;
        };
        let removals = removals(&page);
        let (resources, next) = hits(page);
        for resource in &resources {
            // A version without its time could stand anywhere: nothing is guessed from such a list.
            let Some(at) = last_updated(resource) else {
                return Ok(Versions::Unsupported);
            };
            versions.push(Version {
                version: version_of(resource),
                at,
                patient: patient_of(resource),
            });
        }
        versions.extend(removals);
        pages += 1;
        match next {
            None => break true,
            Some(_) if pages == MOST_PAGES => break false,
            Some(url) => bundle = server.page(&url).await?,
        }
    };
    // The newest comes first.
    versions.reverse();
    versions.sort_by_key(|version| version.at);
    // What the look showed has to be among them, and a lone later version means that no others are kept.
    let has_seen = versions.iter().any(|version| version.version == seen.version);
    let number = |version: &Version| version.version.as_ref()?.parse::<u64>().ok();
    let lone = matches!(versions.as_slice(), [one] if number(one).is_some_and(|number| number > 1));
    Ok(if !has_seen || lone {
        Versions::Unsupported
    } else {
        Versions::Told(versions, whole)
    })
}

/// Deletions among the versions: from then on the device was with nobody.
fn removals(page: &Value) -> Vec<Version> {
    let entries = page.get("entry").and_then(Value::as_array);
    let removal = |entry: &Value| {
        let is_removal = entry.get("request")?.get("method")?.as_str()? == "DELETE";
        let at = entry.get("response")?.get("lastModified")?.as_str()?;
        is_removal.then_some(())?;
        Some(Version {
            version: None,
            at: ticks(at)?,
            patient: None,
        })
    };
    entries.into_iter().flatten().filter_map(removal).collect()
}
