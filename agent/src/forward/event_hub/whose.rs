//! Whose an Observation is when no FHIR server is asked: what the operator has entered for the time of the reading comes
//! first, then the message. Device and Patient get the ids that `resolution = "create"` gives
//! them (hash of system and identifier), and the references carry the identifiers too, so that a consumer that knows the
//! resources by other ids finds them.

use crate::associations::{Answer, Book, Ticks, Wait, Who, at};
use crate::forward::fhir::{Down, Identities, Named, Resolved, nobody_then};
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::fhir::{ResourceIds, resource_id};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Identities from the operator and out of the messages.
pub(super) struct FromMessage {
    /// System of device identifiers.
    device_system: Option<String>,
    /// Identifiers of the last batch, by reference.
    identifiers: HashMap<String, Value>,
    /// What the operator has entered.
    pub book: Rc<RefCell<Book>>,
}

impl FromMessage {
    pub fn new(device_system: Option<String>) -> FromMessage {
        FromMessage {
            device_system: device_system.filter(|system| !system.trim().is_empty()),
            identifiers: HashMap::new(),
            book: Rc::default(),
        }
    }

    fn whose(&mut self, name: &Named) -> Resolved {
        let entered = at(
            self.book.borrow().entries(&name.device),
            None,
            &|_| None,
            name.instant,
        );
        let (patient, encounter) = match entered {
            Answer::Patient {
                patient, encounter, ..
            } => (patient, encounter),
            Answer::Waits(Wait::Unlinked) => match &name.patient {
                Some(patient) => (Who::Identifier(patient.to_string()), None),
                None => return Resolved::Waiting(nobody()),
            },
            Answer::Waits(wait) => return Resolved::Waiting(nobody_then(wait)),
        };
        let encounter =
            encounter.or_else(|| name.encounter.as_ref().map(|id| Who::Identifier(id.to_string())));
        let mut id = |kind: &str, who: &Who| match who {
            Who::Id(id) => id.clone(),
            Who::Identifier(identifier) => self.refer(kind, None, identifier),
        };
        let (patient, encounter) = (
            id("Patient", &patient),
            encounter.map(|who| id("Encounter", &who)),
        );
        let system = self.device_system.clone();
        Resolved::Ids(ResourceIds {
            patient,
            device: self.refer("Device", system.as_deref(), &name.device),
            encounter,
        })
    }

    fn refer(&mut self, kind: &str, system: Option<&str>, identifier: &str) -> String {
        let id = resource_id(system.unwrap_or_default(), identifier);
        let named = match system {
            Some(system) => json!({"system": system, "value": identifier}),
            None => json!({"value": identifier}),
        };
        self.identifiers.insert(format!("{kind}/{id}"), named);
        id
    }

    /// The Observation with the identifiers of what it refers to. Nobody creates an Encounter for a message, so the
    /// reference to one has its identifier only.
    pub fn with_identifiers(&self, resource: &Value) -> Value {
        let mut shown = resource.clone();
        for member in ["subject", "encounter", "device"] {
            let Some(reference) = shown.get_mut(member).and_then(Value::as_object_mut) else {
                continue;
            };
            let named = reference
                .get("reference")
                .and_then(Value::as_str)
                .and_then(|text| self.identifiers.get(text));
            if let Some(named) = named {
                reference.insert("identifier".to_owned(), named.clone());
                if member == "encounter" {
                    reference.shift_remove("reference");
                }
            }
        }
        shown
    }
}

impl Identities for FromMessage {
    fn instant(&self, device: &str, _: Option<&Arc<str>>, taken: Ticks) -> Ticks {
        match self.book.borrow().entries(device) {
            [] => Ticks::MAX,
            _ => taken,
        }
    }

    async fn resolve(&mut self, named: &[Named]) -> (HashMap<Named, Resolved>, Option<Down>) {
        self.identifiers.clear();
        let mut resolved = HashMap::new();
        for name in named {
            let whose = self.whose(name);
            resolved.insert(name.clone(), whose);
        }
        (resolved, None)
    }
}

fn nobody() -> ErrorRecord {
    let text = "Patient: the message names none and no FHIR server is asked; set patientIdExpression, say whose it is \
                with `bedside-agent association set`, or name a FHIR destination in identity_of";
    let mut error = ErrorRecord::new("ResourceIdentityNotDefinedException", text);
    error.retry = true;
    error
}
