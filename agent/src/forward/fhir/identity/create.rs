//! Creates Patient and Device in `create`, and links a Device that has no link.

use super::trouble::gone;
use super::{Found, Key, Kind, Known, Plan, Write, path_of};
use crate::forward::fhir::answer::stuck;
use crate::forward::fhir::server::{Down, Entry, Server};
use iomt_mapping::fhir::resource_id;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A resource with its deterministic id and its identifier, nothing else.
pub(super) fn stub(resource_type: &str, system: Option<&str>, identifier: &str) -> Value {
    let mut of = Map::new();
    if let Some(system) = system {
        of.insert("system".to_owned(), system.into());
    }
    of.insert("value".to_owned(), identifier.into());
    json!({
        "resourceType": resource_type,
        "id": resource_id(system.unwrap_or_default(), identifier),
        "identifier": [of],
    })
}

/// Creates patients, then creates or links devices, and notes in `known` what the server holds now. Gives back the
/// devices that somebody else changed meanwhile.
pub(super) async fn write(
    server: &mut Server,
    plans: Vec<Plan>,
    known: &mut Known,
) -> Result<Vec<Arc<str>>, Down> {
    let mut patients: BTreeMap<Key, Write> = BTreeMap::new();
    for id in plans.iter().filter_map(|plan| plan.patient.as_ref()) {
        let patient = Write {
            resource: stub("Patient", None, id),
            version: None,
        };
        patients.insert((Kind::Patient, Arc::clone(id)), patient);
    }
    let patients = absent_by_id(server, patients, known).await?;
    put(server, patients, known).await?;
    let mut devices: BTreeMap<Key, Write> = BTreeMap::new();
    for plan in plans {
        let patient = plan.patient.map(|id| (Kind::Patient, id));
        let ready = patient.is_none_or(|key| matches!(known.get(&key), Some(Found::One(_))));
        if !ready {
            let text = "Patient: it cannot be created; see the server's log";
            known.insert((Kind::Device, plan.name), Found::Failed(stuck(text.to_owned())));
            continue;
        }
        let device = Write {
            resource: plan.device,
            version: plan.version,
        };
        devices.insert((Kind::Device, plan.name), device);
    }
    let devices = absent_by_id(server, devices, known).await?;
    put(server, devices, known).await
}

/// A search may lag behind writes: what it did not find is read by its id before it is created. Gives back what still
/// has to be written.
async fn absent_by_id(
    server: &mut Server,
    mut writes: BTreeMap<Key, Write>,
    known: &mut Known,
) -> Result<BTreeMap<Key, Write>, Down> {
    let keys: Vec<Key> = writes
        .iter()
        .filter(|(_, write)| write.version.is_none())
        .map(|(key, _)| key.clone())
        .collect();
    let reads: Vec<Entry> = keys
        .iter()
        .filter_map(|key| writes.get(key))
        .map(|write| Entry::get(path_of(&write.resource)))
        .collect();
    let exchange = server.send(&reads).await;
    if let Some(down) = exchange.down {
        return Err(down);
    }
    for (key, answer) in keys.into_iter().zip(exchange.answers) {
        let found = match answer {
            Some(answer) if answer.is_success() => answer.resource.map(Found::One),
            Some(answer) if answer.status == 410 => Some(Found::Failed(gone(key.0))),
            _ => None,
        };
        if let Some(found) = found {
            writes.remove(&key);
            known.insert(key, found);
        }
    }
    Ok(writes)
}

async fn put(
    server: &mut Server,
    writes: BTreeMap<Key, Write>,
    known: &mut Known,
) -> Result<Vec<Arc<str>>, Down> {
    let entries: Vec<Entry> = writes
        .values()
        .map(|write| {
            Entry::put(
                path_of(&write.resource),
                write.resource.clone(),
                write.version.clone(),
            )
        })
        .collect();
    let exchange = server.send(&entries).await;
    let mut changed = Vec::new();
    for ((key, write), answer) in writes.into_iter().zip(exchange.answers) {
        let Some(answer) = answer else { continue };
        if answer.is_success() {
            known.insert(key, Found::One(write.resource));
        } else if matches!(answer.status, 409 | 412) {
            changed.push(key.1);
        } else if !answer.is_passing() {
            let text = format!(
                "{}: it cannot be created or linked: {}",
                key.0.name(),
                answer.text()
            );
            known.insert(key, Found::Failed(stuck(text)));
        }
    }
    match exchange.down {
        Some(down) => Err(down),
        None => Ok(changed),
    }
}
