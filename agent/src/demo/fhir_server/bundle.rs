//! Batch and transaction Bundles. The entries of a batch succeed or fail each on its own; those of a transaction all or
//! none, and may refer to each other by `urn:uuid:` (FHIR R4, 3.1.0.11).

use super::interact::{Answer, Body, Context, Request, id_of, query, set};
use super::outcome::Refusal;
use super::store::{Kind, Store};
use super::{search, validate};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Processes a Bundle; the answer is a Bundle with an entry for each entry, in order.
pub(super) fn process(
    store: &mut Store,
    base: &str,
    bundle: &Value,
    minimal: bool,
) -> Result<Value, Refusal> {
    if bundle.get("resourceType").and_then(Value::as_str) != Some("Bundle") {
        return Err(Refusal::invalid("only a Bundle can be posted to the base"));
    }
    let entries = match bundle.get("entry") {
        None => &[],
        Some(Value::Array(entries)) => entries.as_slice(),
        Some(_) => return Err(Refusal::invalid("Bundle.entry is not a list")),
    };
    match bundle.get("type").and_then(Value::as_str) {
        Some("batch") => Ok(batch(store, base, entries, minimal)),
        Some("transaction") => transaction(store, base, entries, minimal),
        _ => Err(Refusal::invalid("Bundle.type is neither batch nor transaction")),
    }
}

fn context<'a>(store: &'a mut Store, base: &'a str, defer_references: bool) -> Context<'a> {
    Context {
        store,
        base,
        undo: Vec::new(),
        defer_references,
        next_id: None,
    }
}

fn batch(store: &mut Store, base: &str, entries: &[Value], minimal: bool) -> Value {
    let mut context = context(store, base, false);
    let answers = entries
        .iter()
        .map(|entry| {
            let done = request_of(entry, entry.get("resource").cloned())
                .and_then(|request| context.perform(request));
            match done {
                Ok(answer) => response(answer, minimal),
                Err(refusal) => json!({
                    "response": { "status": status(refusal.status), "outcome": refusal.outcome() }
                }),
            }
        })
        .collect::<Value>();
    json!({ "resourceType": "Bundle", "type": "batch-response", "entry": answers })
}

fn transaction(store: &mut Store, base: &str, entries: &[Value], minimal: bool) -> Result<Value, Refusal> {
    let ids = temporary_ids(store, entries)?;
    let mut context = context(store, base, true);
    let mut answers = vec![Value::Null; entries.len()];
    let mut written = Vec::new();
    let mut perform_all = || -> Result<(), Refusal> {
        // The standard's order: POST, PUT, then GET.
        for wanted in ["POST", "PUT", "GET"] {
            for (entry, answer) in entries.iter().zip(&mut answers) {
                let mut body = entry.get("resource").cloned();
                if let Some(body) = &mut body {
                    resolve(body, &ids);
                }
                let request = request_of(entry, body)?;
                if !["POST", "PUT", "GET"].contains(&request.method.as_str()) {
                    return Err(Refusal::not_done(format!("{} in a transaction", request.method)));
                }
                if request.method != wanted {
                    continue;
                }
                let full_url = entry.get("fullUrl").and_then(Value::as_str).unwrap_or_default();
                context.next_id = ids.get(full_url).and_then(|(_, id)| id.clone());
                let done = context.perform(request)?;
                if let Body::Stored(stored) = &done.body {
                    written.push(std::sync::Arc::clone(stored));
                }
                *answer = response(done, minimal);
            }
        }
        written.iter().try_for_each(|stored| {
            let name = stored
                .resource
                .get("resourceType")
                .and_then(Value::as_str)
                .unwrap_or_default();
            Kind::from_name(name).map_or(Ok(()), |kind| {
                validate::references(context.store, kind, &stored.resource)
            })
        })
    };
    if let Err(refusal) = perform_all() {
        while let Some(undo) = context.undo.pop() {
            context.store.undo(undo);
        }
        return Err(refusal);
    }
    Ok(json!({ "resourceType": "Bundle", "type": "transaction-response", "entry": answers }))
}

/// What `urn:uuid:` addresses stand for, and the id to create them with where they do not exist yet.
type Ids = HashMap<String, (String, Option<String>)>;

/// Gives every entry with a temporary `fullUrl` the id that it will have.
fn temporary_ids(store: &Store, entries: &[Value]) -> Result<Ids, Refusal> {
    let mut ids = HashMap::new();
    for entry in entries {
        let full_url = entry.get("fullUrl").and_then(Value::as_str).unwrap_or_default();
        if !full_url.starts_with("urn:") {
            continue;
        }
        let request = request_of(entry, None)?;
        let (name, id) = request.path.split_once('/').unwrap_or((&request.path, ""));
        let Some(kind) = Kind::from_name(name) else {
            continue;
        };
        let condition = match (request.method.as_str(), &request.if_none_exist) {
            ("POST", Some(condition)) => query(condition)?,
            ("PUT", _) => request.query,
            _ => Vec::new(),
        };
        let found = match condition.is_empty() {
            true => Vec::new(),
            false => search::search(store, kind, &condition)?.page,
        };
        let given = entry
            .pointer("/resource/id")
            .and_then(Value::as_str)
            .filter(|_| request.method == "PUT");
        let (id, new) = match found.first() {
            Some(stored) => (id_of(&stored.resource).to_owned(), None),
            None if !id.is_empty() => (id.to_owned(), None),
            None => {
                let id = given.map_or_else(crate::random::id, str::to_owned);
                (id.clone(), Some(id))
            }
        };
        ids.insert(full_url.to_owned(), (format!("{name}/{id}"), new));
    }
    Ok(ids)
}

/// Replaces temporary addresses in the references of a resource.
fn resolve(value: &mut Value, ids: &Ids) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == "reference" => {
                        if let Some((address, _)) = ids.get(text) {
                            text.clone_from(address);
                        }
                    }
                    _ => resolve(member, ids),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| resolve(item, ids)),
        _ => {}
    }
}

fn request_of(entry: &Value, body: Option<Value>) -> Result<Request, Refusal> {
    let text = |name: &str| {
        let value = entry.get("request").and_then(|request| request.get(name));
        value.and_then(Value::as_str).map(str::to_owned)
    };
    let (Some(method), Some(url)) = (text("method"), text("url")) else {
        return Err(Refusal::required("an entry has no request with method and url"));
    };
    let (path, parameters) = url.split_once('?').unwrap_or((&url, ""));
    Ok(Request {
        method,
        path: path.trim_matches('/').to_owned(),
        query: query(parameters)?,
        if_match: text("ifMatch"),
        if_none_match: text("ifNoneMatch"),
        if_none_exist: text("ifNoneExist"),
        body,
    })
}

fn response(answer: Answer, minimal: bool) -> Value {
    let mut response = json!({ "status": status(answer.status) });
    let mut entry = json!({});
    match answer.body {
        Body::Stored(stored) => {
            let name = stored
                .resource
                .get("resourceType")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let location = format!("{name}/{}/_history/{}", id_of(&stored.resource), stored.version);
            set(&mut response, "location", json!(location));
            set(&mut response, "etag", json!(format!("W/\"{}\"", stored.version)));
            if let Some(at) = stored.resource.pointer("/meta/lastUpdated") {
                set(&mut response, "lastModified", at.clone());
            }
            if !minimal {
                set(&mut entry, "resource", stored.resource.clone());
            }
        }
        Body::Plain(value) => set(&mut entry, "resource", value),
        Body::None => {}
    }
    set(&mut entry, "response", response);
    entry
}

/// `201 Created`, as the standard writes it.
fn status(code: u16) -> String {
    axum::http::StatusCode::from_u16(code).map_or_else(|_| code.to_string(), |status| status.to_string())
}
