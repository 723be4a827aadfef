//! Batches that are saved one after the other, and what the server holds at the end.

use iomt_mapping::fhir::{BuildOptions, SentMemory};
use serde_json::Value;

use super::observe::{Written, is_same_observation, write};
use super::{Outcome, by_group, checked, list, mapping_text, readings, resource_ids};
use crate::conformance::same::{Extent, difference};

struct Stored {
    resource: Value,
    memory: SentMemory,
}

/// Saves the batches one after the other, as an agent does that remembers what it sent.
pub(super) fn save_batches(vector: &Value, options: &BuildOptions) -> Result<Vec<Value>, String> {
    let existing = vector.get("existing").filter(|existing| !existing.is_null());
    let mut server: Vec<Stored> = existing
        .map(|resource| Stored {
            resource: resource.clone(),
            memory: SentMemory::default(),
        })
        .into_iter()
        .collect();
    let batches = match vector.get("batches").and_then(Value::as_array) {
        Some(batches) => batches.clone(),
        None => vec![vector.get("measurements").cloned().unwrap_or_default()],
    };
    for (number, batch) in batches.iter().enumerate() {
        let of_batch = |many: &str, one: &str| {
            vector
                .get(many)
                .and_then(|all| all.get(number))
                .or(vector.get(one))
                .cloned()
        };
        let text = match vector.get("fhirMappings").and_then(|all| all.get(number)) {
            Some(mapping) => mapping.to_string(),
            None => mapping_text(vector),
        };
        let mapping = checked(&text)?;
        let ids = resource_ids(of_batch("batchResourceIds", "resourceIds").as_ref());
        for (key, members) in by_group(&readings(Some(batch))?) {
            // What fails becomes a dead letter; the others go on (rule D17).
            let Some(template) = mapping.template(&key.type_name) else {
                continue;
            };
            let Ok(split) = template.observation_groups(&members) else {
                continue;
            };
            for mut group in split {
                let stored = |system: &str, value: &str, id: &str| {
                    server
                        .iter()
                        .find(|s| is_same_observation(&s.resource, system, value, id))
                        .map(|s| (s.resource.clone(), Some(s.memory.clone())))
                };
                match write(template, &mut group, &ids, &key.type_name, options, &stored) {
                    Ok(Written::Create(resource, memory)) => server.push(Stored { resource, memory }),
                    Ok(Written::Update(resource, memory)) => {
                        let id = resource.get("id").cloned();
                        if let Some(stored) = server.iter_mut().find(|s| s.resource.get("id") == id.as_ref())
                        {
                            // What is remembered goes through its stored form, as in the agent.
                            let memory = SentMemory::from_bytes(&memory.to_bytes());
                            *stored = Stored {
                                resource,
                                memory: memory.ok_or("the memory does not come back")?,
                            };
                        }
                    }
                    Ok(Written::None) | Err(_) => {}
                }
            }
        }
    }
    Ok(server.into_iter().map(|stored| stored.resource).collect())
}

/// What the server holds at the end, in any order, nothing else.
pub(super) fn final_observations(expected: &Value, stored: &[Value]) -> Outcome {
    let wanted = list(expected, "finalObservations");
    let mut left: Vec<&Value> = stored.iter().collect();
    for one in &wanted {
        let subset = one.get("match").and_then(Value::as_str) == Some("subset");
        let extent = if subset { Extent::Subset } else { Extent::Exact };
        let observation = one.get("observation").unwrap_or(one);
        let found = left
            .iter()
            .position(|candidate| difference(observation, candidate, extent).is_none());
        match found {
            Some(at) => {
                left.remove(at);
            }
            None => return Err(format!("{observation} is not stored; stored are {left:?}")),
        }
    }
    match left.first() {
        Some(more) => Err(format!("not expected: {more}")),
        None => Ok(()),
    }
}
