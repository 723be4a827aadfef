//! Whose a device was when a reading was taken: what each look at its Device showed, and the versions of the Device
//! where a look alone does not tell enough. The book of all of it is shared with the operator's commands and stored.

use super::statements::{question, told};
use super::{Found, Key, Kind, Known, id_of, link_of, patient_id, version_of};
use crate::associations::{Answer, Book, Record, Seen, Statement, Ticks, Version, Who};
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
    /// `DeviceUseStatement`s are asked for.
    pub(super) statements: bool,
    /// Until when the server is believed to have none.
    without_statements_until: u64,
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
            statements: false,
            without_statements_until: 0,
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
        mut statements: BTreeMap<String, Vec<Statement>>,
        known: &mut Known,
    ) -> Option<Down> {
        let answered = self.now();
        let now = clock::monotonic_us();
        self.without_history.retain(|_, until| *until > now);
        let mut wanting: Vec<(Arc<str>, Seen)> = Vec::new();
        let mut new: Vec<(Arc<str>, Seen)> = Vec::new();
        for (device, oldest) in oldest {
            let Some(Found::One(resource)) = known.get(&(Kind::Device, Arc::clone(device))) else {
                continue;
            };
            let Some(seen) = seen(resource, asked, answered) else {
                continue;
            };
            // Seen for the first time, or its identifier is on another Device now: nobody has asked for its uses.
            if self.asks_statements() && !statements.contains_key(&seen.device) {
                new.push((Arc::clone(device), seen.clone()));
            }
            let book = self.book.borrow();
            let wants = match book.record(self.destination, device) {
                Some(record) => record.wants_history(&seen, *oldest),
                None => Record::first(&seen).wants_history(&seen, *oldest),
            };
            drop(book);
            if wants && !self.without_history.contains_key(device) {
                wanting.push((Arc::clone(device), seen));
            } else if new.last().is_none_or(|(last, _)| last != device) {
                self.look(device, &seen, None, statements.get(&seen.device).cloned());
            }
        }
        if wanting.is_empty() && new.is_empty() {
            return None;
        }
        let mut entries: Vec<Entry> = wanting
            .iter()
            .map(|(_, seen)| Entry::get(format!("Device/{}/_history?_count=100", seen.device)))
            .collect();
        entries.extend(new.iter().map(|(_, seen)| question(&seen.device)));
        let exchange = server.send(&entries).await;
        let mut down = exchange.down;
        let mut answers = exchange.answers.into_iter();
        let of_versions: Vec<Option<Response>> = answers.by_ref().take(wanting.len()).collect();
        let mut unknown: Vec<Arc<str>> = Vec::new();
        for ((device, seen), answer) in new.iter().zip(answers) {
            match self
                .take_statements(server, &seen.device, answer, &mut statements)
                .await
            {
                Ok(true) => {}
                Ok(false) => unknown.push(Arc::clone(device)),
                Err(now_down) => {
                    down = Some(now_down);
                    unknown.push(Arc::clone(device));
                }
            }
        }
        for (device, seen) in &new {
            if !unknown.contains(device) && wanting.iter().all(|(other, _)| other != device) {
                self.look(device, seen, None, statements.get(&seen.device).cloned());
            }
        }
        for ((device, seen), answer) in wanting.into_iter().zip(of_versions) {
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
            let uses = statements.get(&seen.device).cloned();
            match versions {
                Versions::Told(versions, whole) => {
                    self.look(&device, &seen, Some((&versions, whole)), uses);
                }
                Versions::Unsupported => {
                    self.look(&device, &seen, None, uses);
                    self.without_history
                        .insert(device, now.saturating_add(WITHOUT_HISTORY_FOR_US));
                }
                Versions::Unknown => {
                    let text = "Device: its versions could not be read now; they are asked for again";
                    known.insert((Kind::Device, device), Found::Failed(stuck(text.to_owned())));
                }
            }
        }
        for device in unknown {
            let text = "Device: statements of its use could not be read now; they are asked for again";
            known.insert((Kind::Device, device), Found::Failed(stuck(text.to_owned())));
        }
        down
    }

    /// Whether the server is asked for statements of use now.
    fn asks_statements(&self) -> bool {
        self.statements && clock::monotonic_us() >= self.without_statements_until
    }

    /// Devices of a batch that the server has shown before, by their ids there: their statements are asked for with them.
    pub fn statement_questions(&self, devices: impl Iterator<Item = Arc<str>>) -> Vec<(String, Entry)> {
        if !self.asks_statements() {
            return Vec::new();
        }
        let ids = devices.filter_map(|device| self.device_id(&device));
        ids.map(|id| (id.clone(), question(&id))).collect()
    }

    /// Takes the answer to a question for statements; a server that refuses it is believed to have none for an hour. Says
    /// whether it is known now.
    pub async fn take_statements(
        &mut self,
        server: &mut Server,
        device: &str,
        answer: Option<Response>,
        statements: &mut BTreeMap<String, Vec<Statement>>,
    ) -> Result<bool, Down> {
        let refused = answer.as_ref().is_some_and(|a| {
            !a.is_passing() && (matches!(a.status, 501 | 505) || (400..500).contains(&a.status))
        });
        if refused {
            self.without_statements_until = clock::monotonic_us() + WITHOUT_HISTORY_FOR_US;
            return Ok(true);
        }
        let told = told(server, device, answer).await?;
        let known = told.is_some();
        statements.extend(told.map(|told| (device.to_owned(), told)));
        Ok(known)
    }

    fn look(
        &self,
        device: &Arc<str>,
        seen: &Seen,
        history: Option<(&[Version], bool)>,
        statements: Option<Vec<Statement>>,
    ) {
        let mut book = self.book.borrow_mut();
        book.look(self.destination, device, seen, history, statements);
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
