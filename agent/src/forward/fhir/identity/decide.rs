//! What the look-ups of a batch mean for a name: its ids, what it waits for, or what has to be written first. Pure.

use super::create::stub;
use super::trouble::{entered, many, missing, nobody_then, undefined};
use super::{Found, Kind, Known, Named, Resolved, Resolver, id_of, link_of, patient_id};
use crate::associations::{Answer as Whose, Source, Ticks, Wait, Who};
use crate::config::Resolution;
use crate::forward::fhir::answer::version_of;
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::fhir::{ResourceIds, resource_id};
use serde_json::{Value, json};
use std::sync::Arc;

/// What has to be written before a name is resolved.
pub(super) struct Plan {
    pub(super) name: Arc<str>,
    /// Identifier of a patient who has to be created first.
    pub(super) patient: Option<Arc<str>>,
    /// The Device with its link.
    pub(super) device: Value,
    /// Its version on the server; none for a new one.
    pub(super) version: Option<String>,
}

/// What follows from what the server holds.
pub(super) enum Decision {
    Is(Resolved),
    Needs(Box<Plan>),
}

impl Resolver {
    /// Whose a reading with this name is, by what was found.
    pub(super) fn decide(&self, name: &Named, known: &Known) -> Decision {
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
pub(super) fn of_entry(kind: Kind, who: &Who, known: &Known) -> Result<String, ErrorRecord> {
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

fn ids(device: &str, patient: &str, encounter: Option<String>) -> Decision {
    Decision::Is(Resolved::Ids(ResourceIds {
        patient: patient.to_owned(),
        device: device.to_owned(),
        encounter,
    }))
}
