//! What the answers to reads and writes mean for an Observation.

use super::{Known, Outcome, Saved};
use crate::forward::fhir::answer::{Answer, deleted, has_identifier, refused, stuck, version_of};
use crate::forward::fhir::identity::escape;
use crate::forward::fhir::recent::Stored;
use crate::forward::fhir::retract::is_retracted;
use crate::forward::fhir::server::{Down, Entry};
use crate::forward::http::percent_encode;
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::fhir::{BuildError, Identity, SentMemory};
use serde_json::Value;

/// A building error as a record.
pub(super) fn record_of(error: &BuildError) -> ErrorRecord {
    ErrorRecord::new(error.kind.name(), error.text.clone())
}

/// One search for all of these.
pub(super) fn search(identities: &[&Identity]) -> Entry {
    let tokens: Vec<String> = identities
        .iter()
        .map(|identity| format!("{}|{}", escape(identity.system), escape(&identity.value)))
        .collect();
    Entry::get(format!(
        "Observation?identifier={}&_count=100",
        percent_encode(&tokens.join(","))
    ))
}

/// What the two ways to ask have found of an Observation.
pub(super) fn judge(
    identity: &Identity,
    answer: Answer,
    by_identifier: &[Value],
    memory: Option<SentMemory>,
    saved: &mut Saved,
) -> Known {
    let mut version = None;
    let mut held: Vec<Value> = Vec::new();
    match answer.status {
        200..300 => {
            version = answer.version;
            held.extend(answer.resource);
        }
        404 => {}
        410 => return Known::Cannot(Outcome::Dead(deleted("deleted"))),
        _ => return Known::Cannot(failure(&answer, saved)),
    }
    for resource in by_identifier {
        let known = held.iter().any(|other| other.get("id") == resource.get("id"));
        if !known && has_identifier(resource, Some(identity.system), &identity.value) {
            held.push(resource.clone());
        }
    }
    if held.len() > 1 {
        return Known::Cannot(Outcome::Waiting(ErrorRecord::new(
            "MultipleResourceFoundException",
            "Observation: several on the server have the same identifier; remove all but one",
        )));
    }
    let Some(resource) = held.pop() else {
        return Known::Absent;
    };
    match resource.get("status").and_then(Value::as_str) {
        // What a correction of ours took away may be given back by the next one.
        Some("entered-in-error") if !is_retracted(&resource) => {
            return Known::Cannot(Outcome::Dead(deleted("marked as entered in error")));
        }
        Some("cancelled") => return Known::Cannot(Outcome::Dead(deleted("cancelled"))),
        _ => {}
    }
    Known::Stored(Stored {
        version: version.or_else(|| version_of(&resource)),
        resource,
        memory,
    })
}

/// What an answer that is no success means for its Observation.
pub(super) fn failure(answer: &Answer, saved: &mut Saved) -> Outcome {
    match answer.status {
        _ if answer.is_passing() => Outcome::Retry,
        401 | 403 => {
            saved.down.get_or_insert_with(|| {
                Down::new(
                    "UnauthorizedAccessFhirServiceException",
                    format!(
                        "the server does not allow us to read or write Observations ({}): grant it",
                        answer.text()
                    ),
                )
            });
            Outcome::Retry
        }
        410 => Outcome::Dead(deleted("deleted")),
        400 | 404 | 422 if answer.says("not-found") || answer.status == 404 => Outcome::Waiting(stuck(format!(
            "the server does not find what the Observation refers to (Patient, Device, Encounter): {}",
            answer.text()
        ))),
        400 | 413 | 422 => Outcome::Dead(refused(answer)),
        409 | 412 => Outcome::Waiting(stuck(
            "the Observation changes on the server again and again while it is written".to_owned(),
        )),
        405 => Outcome::Waiting(stuck(
            "the server does not let clients choose the id of an Observation (update as create): allow it there".to_owned(),
        )),
        _ => Outcome::Waiting(stuck(format!("the server cannot write this Observation: {}", answer.text()))),
    }
}
