//! Whose an Observation is when no FHIR server is asked: Device and Patient get the ids that `resolution = "create"` gives
//! them (hash of system and identifier), and the references carry the identifiers too, so that a consumer that knows the
//! resources by other ids finds them.

use crate::associations::Ticks;
use crate::forward::fhir::{Down, Identities, Named, Resolved};
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::fhir::{ResourceIds, resource_id};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// Identities out of the messages.
pub(super) struct FromMessage {
    /// System of device identifiers.
    device_system: Option<String>,
    /// Identifiers of the last batch, by reference.
    identifiers: HashMap<String, Value>,
}

impl FromMessage {
    pub fn new(device_system: Option<String>) -> FromMessage {
        FromMessage {
            device_system: device_system.filter(|system| !system.trim().is_empty()),
            identifiers: HashMap::new(),
        }
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
    fn instant(&self, _: &str, _: Option<&Arc<str>>, _: Ticks) -> Ticks {
        Ticks::MAX
    }

    async fn resolve(&mut self, named: &[Named]) -> (HashMap<Named, Resolved>, Option<Down>) {
        self.identifiers.clear();
        let mut resolved = HashMap::new();
        for name in named {
            let whose = match &name.patient {
                None => Resolved::Waiting(nobody()),
                Some(patient) => Resolved::Ids(ResourceIds {
                    patient: self.refer("Patient", None, patient),
                    device: self.refer("Device", self.device_system.clone().as_deref(), &name.device),
                    encounter: name
                        .encounter
                        .as_ref()
                        .map(|id| self.refer("Encounter", None, id)),
                }),
            };
            resolved.insert(name.clone(), whose);
        }
        (resolved, None)
    }
}

fn nobody() -> ErrorRecord {
    let text = "Patient: the message names none and no FHIR server is asked; set patientIdExpression, or name a FHIR \
                destination in identity_of";
    let mut error = ErrorRecord::new("ResourceIdentityNotDefinedException", text);
    error.retry = true;
    error
}
