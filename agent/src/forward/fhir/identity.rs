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
mod decide;
mod look;
mod statements;
mod times;
mod trouble;

pub(in crate::forward) use trouble::nobody_then;

use super::answer::{Answer, has_identifier, hits, stuck, version_of};
use super::server::{Down, Entry, Server};
use crate::associations::{Book, Ticks};
use crate::clock;
use crate::config::{ClockTrust, Resolution};
use crate::forward::http::percent_encode;
use crate::telemetry::errors::ErrorRecord;
use create::write;
use decide::{Decision, Plan};
use iomt_mapping::fhir::ResourceIds;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use times::Times;

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
