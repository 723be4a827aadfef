//! Who a reading belongs to: Device, Patient and Encounter on the server (`mapping.md` 5.1, rules D18 and D24).
//!
//! Invariants:
//! 1. Every batch begins with one look-up of its devices: no answer is used for a later batch, so that a device that
//!    moved to another patient never writes to the old one.
//! 2. That something does not exist is remembered for a few seconds only, and never in `create`.
//! 3. A Device is linked to a patient only when it has no link, under the version that was read.
//! 4. A reading follows the link that the Device had when it was taken, however late it is sent; in a gap it waits.
//! 5. What cannot be resolved waits; it never stops the readings of other devices.

mod cache;
mod create;
mod look;
mod statements;
mod times;
mod trouble;

pub(in crate::forward) use trouble::nobody_then;

use super::answer::{Answer, has_identifier, hits, stuck, version_of};
use super::server::{Down, Entry, Server};
use crate::associations::{Answer as Whose, Book, Source, Ticks, Wait, Who};
use crate::clock;
use crate::config::{ClockTrust, Resolution};
use crate::forward::http::percent_encode;
use crate::telemetry::errors::ErrorRecord;
use create::{stub, write};
use iomt_mapping::fhir::{ResourceIds, resource_id};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use times::Times;
use trouble::{entered, many, missing, undefined};

/// How long "there is none" is believed, in microseconds.
const ABSENT_FOR_US: u64 = 10_000_000;
/// Most absent things that are remembered.
const MOST_ABSENT: usize = 4096;
/// How often a Device is read again because somebody changed it meanwhile.
const ATTEMPTS: usize = 3;

/// What a message names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    /// Device identifier.
    pub device: Arc<str>,
    /// Patient identifier, not blank.
    pub patient: Option<Arc<str>>,
    /// Encounter identifier, not blank.
    pub encounter: Option<Arc<str>>,
    /// When the reading was taken ([`Resolver::instant`]).
    pub instant: Ticks,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolved {
    /// The ids of the resources.
    Ids(ResourceIds),
    /// Somebody has to do something first.
    Waiting(ErrorRecord),
}

/// Kind of a resource that is searched by identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Device,
    Patient,
    Encounter,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Device => "Device",
            Kind::Patient => "Patient",
            Kind::Encounter => "Encounter",
        }
    }
}

/// What a search by identifier gave.
#[derive(Clone, Debug)]
enum Found {
    None,
    One(Value),
    Many,
    Failed(ErrorRecord),
}

/// Kind and identifier.
type Key = (Kind, Arc<str>);
type Known = BTreeMap<Key, Found>;

/// A resource to be written, and the version that the server must still hold.
struct Write {
    resource: Value,
    version: Option<String>,
}

pub use look::Looked;

/// Looks up and creates what readings belong to.
pub struct Resolver {
    resolution: Resolution,
    device_system: Option<String>,
    absent: HashMap<Key, u64>,
    times: Times,
    believed: cache::Believed,
}

/// What has to be written before a name is resolved.
struct Plan {
    name: Arc<str>,
    /// Identifier of a patient who has to be created first.
    patient: Option<Arc<str>>,
    /// The Device with its link.
    device: Value,
    /// Its version on the server; none for a new one.
    version: Option<String>,
}

enum Decision {
    Is(Resolved),
    Needs(Box<Plan>),
}

impl Resolver {
    /// A resolver; `device_system` is the system of device identifiers, if they have one.
    pub fn new(resolution: Resolution, device_system: Option<String>, trust: ClockTrust) -> Resolver {
        Resolver {
            resolution,
            device_system: device_system.filter(|system| !system.trim().is_empty()),
            absent: HashMap::new(),
            times: Times::new(trust),
            believed: HashMap::new(),
        }
    }

    /// Uses this book, in which this destination has that number, in place of one of its own.
    pub fn share(&mut self, book: Rc<RefCell<Book>>, destination: u32) {
        self.times.book = book;
        self.times.destination = destination;
    }

    /// Asks for `DeviceUseStatement`s too.
    pub fn ask_statements(&mut self) {
        self.times.statements = true;
    }

    /// The instant that decides whose a reading is; always the same where the message itself names the patient.
    pub fn instant(&self, device: &str, patient: Option<&Arc<str>>, taken: Ticks) -> Ticks {
        if self.follows_link(patient) || self.times.has_entries(device) {
            taken
        } else {
            Ticks::MAX
        }
    }

    fn follows_link(&self, patient: Option<&Arc<str>>) -> bool {
        self.resolution != Resolution::Create || patient.is_none()
    }

    async fn resolve_now(
        &mut self,
        server: &mut Server,
        named: &[Named],
    ) -> (HashMap<Named, Resolved>, Option<Down>) {
        let mut resolved = HashMap::new();
        let mut open: Vec<Named> = named.to_vec();
        open.sort_unstable();
        open.dedup();
        let (mut known, down) = self.look_up(server, &open).await;
        if down.is_some() {
            return (resolved, down);
        }
        for _ in 0..ATTEMPTS {
            let plans = self.decide_all(&mut open, &known, &mut resolved);
            if plans.is_empty() {
                return (resolved, None);
            }
            let changed = match write(server, plans, &mut known).await {
                Ok(changed) => changed,
                Err(down) => return (resolved, Some(down)),
            };
            // Somebody else was quicker: what the server holds now decides.
            let again: Vec<Named> = open
                .iter()
                .filter(|name| changed.contains(&name.device))
                .cloned()
                .collect();
            let (fresh, down) = self.look_up(server, &again).await;
            if down.is_some() {
                return (resolved, down);
            }
            known.extend(fresh);
        }
        let text = "Device: it changes on the server again and again while it is linked";
        resolved.extend(
            open.into_iter()
                .map(|name| (name, Resolved::Waiting(stuck(text.to_owned())))),
        );
        (resolved, None)
    }

    /// Takes what can be decided out of `open`, and plans one write per device for the rest.
    fn decide_all(
        &self,
        open: &mut Vec<Named>,
        known: &Known,
        resolved: &mut HashMap<Named, Resolved>,
    ) -> Vec<Plan> {
        let mut plans: Vec<Plan> = Vec::new();
        open.retain(|name| match self.decide(name, known) {
            Decision::Is(result) => {
                resolved.insert(name.clone(), result);
                false
            }
            Decision::Needs(plan) => {
                // Others of the same device see what became of it in the next round.
                if plans.iter().all(|planned| planned.name != plan.name) {
                    plans.push(*plan);
                }
                true
            }
        });
        plans
    }

    /// One search per device, encounter and (in `create`) patient, all in one batch.
    async fn look_up(&mut self, server: &mut Server, open: &[Named]) -> (Known, Option<Down>) {
        let now = clock::monotonic_us();
        self.absent.retain(|_, until| *until > now);
        let mut wanted: Vec<Key> = Vec::new();
        for name in open {
            wanted.push((Kind::Device, Arc::clone(&name.device)));
            let encounter = name.encounter.iter().map(|id| (Kind::Encounter, Arc::clone(id)));
            wanted.extend(encounter);
            if self.resolution == Resolution::Create {
                wanted.extend(name.patient.iter().map(|id| (Kind::Patient, Arc::clone(id))));
            }
            wanted.extend(self.times.entered(&name.device, name.instant));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut known = Known::new();
        wanted.retain(|key| {
            let absent = self.absent.contains_key(key);
            if absent {
                known.insert(key.clone(), Found::None);
            }
            !absent
        });
        let entries: Vec<Entry> = wanted
            .iter()
            .map(|(kind, id)| {
                let system = self.system_of(*kind).map(|system| format!("{}|", escape(system)));
                let token = format!("{}{}", system.unwrap_or_default(), escape(id));
                Entry::get(format!("{}?identifier={}", kind.name(), percent_encode(&token)))
            })
            .collect();
        let mut entries = entries;
        let devices = wanted.iter().filter(|(kind, _)| *kind == Kind::Device);
        let uses = self
            .times
            .statement_questions(devices.map(|(_, device)| Arc::clone(device)));
        entries.extend(uses.iter().map(|(_, question)| question.clone()));
        let asked = self.times.now();
        let exchange = server.send(&entries).await;
        let mut answers = exchange.answers.into_iter();
        let found: Vec<Option<Answer>> = answers.by_ref().take(wanted.len()).collect();
        let mut statements = BTreeMap::new();
        for ((device, _), answer) in uses.iter().zip(answers) {
            let taken = self
                .times
                .take_statements(server, device, answer, &mut statements)
                .await;
            if let Err(down) = taken {
                return (known, Some(down));
            }
        }
        for (key, answer) in wanted.into_iter().zip(found) {
            let Some(answer) = answer else { continue };
            if answer.is_passing() {
                continue;
            }
            let found = self.found(&key, answer);
            if matches!(found, Found::None)
                && self.resolution != Resolution::Create
                && self.absent.len() < MOST_ABSENT
            {
                self.absent.insert(key.clone(), now + ABSENT_FOR_US);
            }
            known.insert(key, found);
        }
        if exchange.down.is_some() {
            return (known, exchange.down);
        }
        for (key, found) in &known {
            if let ((Kind::Patient, identifier), Found::One(patient)) = (key, found)
                && let Some(id) = id_of(patient)
            {
                self.times.learn_patient(identifier, id);
            }
        }
        let mut oldest: BTreeMap<Arc<str>, Ticks> = BTreeMap::new();
        for name in open {
            if name.instant < Ticks::MAX {
                let oldest = oldest.entry(Arc::clone(&name.device)).or_insert(name.instant);
                *oldest = name.instant.min(*oldest);
            }
        }
        let down = self
            .times
            .note(server, &oldest, asked, statements, &mut known)
            .await;
        (known, down)
    }

    fn system_of(&self, kind: Kind) -> Option<&str> {
        self.device_system.as_deref().filter(|_| kind == Kind::Device)
    }

    fn found(&self, (kind, id): &Key, answer: Answer) -> Found {
        if !answer.is_success() {
            return Found::Failed(stuck(format!(
                "the search for the {} failed: {}",
                kind.name(),
                answer.text()
            )));
        }
        let (resources, _) = hits(answer.resource.unwrap_or_default());
        let mut exact = resources
            .into_iter()
            .filter(|resource| has_identifier(resource, self.system_of(*kind), id));
        match (exact.next(), exact.next()) {
            (None, _) => Found::None,
            (Some(one), None) => Found::One(one),
            (Some(_), Some(_)) => Found::Many,
        }
    }

    fn decide(&self, name: &Named, known: &Known) -> Decision {
        let waits = |error: ErrorRecord| Decision::Is(Resolved::Waiting(error));
        let whose = (name.instant < Ticks::MAX).then(|| self.times.at(&name.device, name.instant));
        let operator = match &whose {
            Some(Whose::Patient {
                patient,
                encounter,
                source: Source::Operator,
            }) => Some((patient, encounter.as_ref())),
            _ => None,
        };
        let encounter = match self.encounter(name, operator.and_then(|(_, encounter)| encounter), known) {
            Ok(encounter) => encounter,
            Err(error) => return waits(error),
        };
        let device = match known.get(&(Kind::Device, Arc::clone(&name.device))) {
            Some(Found::One(device)) => Some(device),
            Some(Found::Many) => return waits(many(Kind::Device)),
            Some(Found::Failed(error)) => return waits(error.clone()),
            Some(Found::None) | None => None,
        };
        if let Some((patient, _)) = operator {
            let patient = match of_entry(Kind::Patient, patient, known) {
                Ok(patient) => patient,
                Err(error) => return waits(error),
            };
            return match device.and_then(id_of) {
                Some(device) => ids(device, &patient, encounter),
                // Whose it is the book tells; the Device itself is created without a link.
                None if self.resolution == Resolution::Create => Decision::Needs(Box::new(Plan {
                    name: Arc::clone(&name.device),
                    patient: None,
                    device: self.new_device(&name.device),
                    version: None,
                })),
                None => waits(missing(Kind::Device)),
            };
        }
        let link = device.and_then(link_of);
        let linked = link.and_then(patient_id);
        if self.resolution != Resolution::Create {
            let Some(device) = device.and_then(id_of) else {
                return waits(missing(Kind::Device));
            };
            return match by_link(whose) {
                Ok(patient) => ids(device, &patient, encounter),
                Err(wait) => waits(nobody_then(wait)),
            };
        }
        if let (None, Some(device)) = (&name.patient, device.and_then(id_of)) {
            // A message that names nobody follows the link (D24).
            return match by_link(whose) {
                Ok(patient) => ids(device, &patient, encounter),
                // Only this batch linked it, for the first time.
                Err(Wait::Unlinked) => match linked {
                    Some(patient) => ids(device, patient, encounter),
                    None => waits(undefined(Kind::Patient)),
                },
                Err(wait) => waits(nobody_then(wait)),
            };
        }
        if let Some(Whose::Waits(wait)) = whose
            && self.times.is_entered(&name.device, name.instant)
        {
            return waits(nobody_then(wait));
        }
        let named_patient = match name
            .patient
            .as_ref()
            .map(|id| (id, known.get(&(Kind::Patient, Arc::clone(id)))))
        {
            None => None,
            Some((_, Some(Found::Many))) => return waits(many(Kind::Patient)),
            Some((_, Some(Found::Failed(error)))) => return waits(error.clone()),
            Some((_, Some(Found::One(patient)))) => id_of(patient).map(|id| (id.to_owned(), None)),
            Some((id, _)) => Some((resource_id("", id), Some(Arc::clone(id)))),
        };
        match (device, link, linked, named_patient) {
            (Some(device), Some(_), Some(linked), Some((patient, _))) if linked == patient => {
                match id_of(device) {
                    Some(device) => ids(device, linked, encounter),
                    None => waits(missing(Kind::Device)),
                }
            }
            (Some(_), Some(_), _, Some(_)) => waits(ErrorRecord::new(
                "PatientDeviceMismatchException",
                "the Device is linked to another patient than the message names: link it anew on the server, or correct \
                 the message",
            )),
            (_, _, _, None) => waits(undefined(Kind::Patient)),
            (device, None, _, Some((patient, create))) => {
                let mut device = device.cloned().unwrap_or_else(|| self.new_device(&name.device));
                let version = version_of(&device);
                if let Some(device) = device.as_object_mut() {
                    let link = json!({"reference": format!("Patient/{patient}")});
                    device.insert("patient".to_owned(), link);
                }
                Decision::Needs(Box::new(Plan {
                    name: Arc::clone(&name.device),
                    patient: create,
                    device,
                    version,
                }))
            }
            (None, Some(_), _, Some(_)) => waits(missing(Kind::Device)),
        }
    }

    /// The operator's encounter comes before the message's.
    fn encounter(
        &self,
        name: &Named,
        operator: Option<&Who>,
        known: &Known,
    ) -> Result<Option<String>, ErrorRecord> {
        if let Some(who) = operator {
            return of_entry(Kind::Encounter, who, known).map(Some);
        }
        let Some(id) = &name.encounter else {
            return match self.resolution {
                Resolution::LookupWithEncounter => Err(undefined(Kind::Encounter)),
                Resolution::Lookup | Resolution::Create => Ok(None),
            };
        };
        match known.get(&(Kind::Encounter, Arc::clone(id))) {
            Some(Found::One(encounter)) => Ok(id_of(encounter).map(str::to_owned)),
            Some(Found::Many) => Err(many(Kind::Encounter)),
            Some(Found::Failed(error)) => Err(error.clone()),
            Some(Found::None) | None => Err(missing(Kind::Encounter)),
        }
    }

    fn new_device(&self, identifier: &str) -> Value {
        let system = self.device_system.as_deref();
        stub("Device", system, identifier)
    }
}

/// Id of the Patient that the server says had the device.
fn by_link(whose: Option<Whose>) -> Result<String, Wait> {
    match whose {
        Some(Whose::Patient {
            patient: Who::Id(patient),
            ..
        }) => Ok(patient),
        Some(Whose::Patient { .. }) | None => Err(Wait::Unlinked),
        Some(Whose::Waits(wait)) => Err(wait),
    }
}

/// Id of the resource that the operator entered.
fn of_entry(kind: Kind, who: &Who, known: &Known) -> Result<String, ErrorRecord> {
    let identifier = match who {
        Who::Id(id) => return Ok(id.clone()),
        Who::Identifier(identifier) => identifier,
    };
    match known.get(&(kind, Arc::from(identifier.as_str()))) {
        Some(Found::One(resource)) => id_of(resource).map(str::to_owned).ok_or_else(|| entered(kind)),
        Some(Found::Many) => Err(many(kind)),
        Some(Found::Failed(error)) => Err(error.clone()),
        Some(Found::None) | None => Err(entered(kind)),
    }
}

fn path_of(resource: &Value) -> String {
    let kind = resource
        .get("resourceType")
        .and_then(Value::as_str)
        .unwrap_or_default();
    format!("{kind}/{}", id_of(resource).unwrap_or_default())
}

fn id_of(resource: &Value) -> Option<&str> {
    resource
        .get("id")
        .and_then(Value::as_str)
        .filter(|id| !id.is_empty())
}

fn link_of(device: &Value) -> Option<&str> {
    device.get("patient")?.get("reference")?.as_str()
}

/// The id of a relative reference to a Patient; other references count as missing, as in the reference.
fn patient_id(reference: &str) -> Option<&str> {
    let id = reference.strip_prefix("Patient/")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~#".contains(c);
    (!id.is_empty() && id.chars().all(plain)).then_some(id)
}

fn ids(device: &str, patient: &str, encounter: Option<String>) -> Decision {
    Decision::Is(Resolved::Ids(ResourceIds {
        patient: patient.to_owned(),
        device: device.to_owned(),
        encounter,
    }))
}

/// Escapes what separates values in a search (FHIR R4, 3.1.1.4.1.1).
pub fn escape(token: &str) -> String {
    let mut escaped = String::with_capacity(token.len());
    for c in token.chars() {
        if matches!(c, '\\' | ',' | '|' | '$') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
