//! Entries of a batch Bundle, and the answers in its response.

use super::Entry;
use crate::forward::fhir::answer::Answer;
use crate::forward::http::HttpResponse;
use crate::sabotage::{self, Sabotage};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BundleEntry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a RawValue>,
    request: BundleRequest<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BundleRequest<'a> {
    method: &'static str,
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_match: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_none_match: Option<&'static str>,
}

/// A batch of the first entries that fit into `most_bytes`, but of one at least; how many these are.
pub fn bundle_of(entries: &[Entry], most_bytes: usize) -> (Vec<u8>, usize) {
    // Method, names and conditions around each entry.
    const AROUND: usize = 96;
    let size = |entry: &Entry| {
        let resource = entry.resource.as_ref().map_or(0, |resource| resource.get().len());
        resource + entry.path.len() + AROUND
    };
    // Without its size it would grow in steps, each held beside the one before.
    let expected = entries.iter().map(size).sum::<usize>() + AROUND;
    let mut body = Vec::with_capacity(expected.min(most_bytes));
    body.extend_from_slice(br#"{"resourceType":"Bundle","type":"batch","entry":["#);
    let mut count = 0;
    for entry in entries {
        let of_entry = body_of(entry);
        if count > 0 {
            if body.len() + of_entry.len() > most_bytes {
                break;
            }
            body.push(b',');
        }
        body.extend_from_slice(&of_entry);
        count += 1;
    }
    body.extend_from_slice(b"]}");
    (body, count)
}

/// An entry as it stands in a Bundle.
fn body_of(entry: &Entry) -> Vec<u8> {
    let entry = BundleEntry {
        resource: entry.resource.as_deref(),
        request: BundleRequest {
            method: entry.method.name(),
            url: &entry.path,
            if_match: condition(entry),
            if_none_match: entry.if_none_match.then_some("*"),
        },
    };
    // Serializing JSON into memory does not fail.
    serde_json::to_vec(&entry).unwrap_or_default()
}

/// The value of `If-Match` for this entry.
pub fn condition(entry: &Entry) -> Option<String> {
    let version = entry.if_match.as_deref();
    version
        .filter(|_| !sabotage::is_on(Sabotage::NoIfMatch))
        .map(etag)
}

/// A version as `If-Match` wants it.
fn etag(version: &str) -> String {
    format!("W/\"{version}\"")
}

/// One answer per entry, if the response is the batch response that it has to be.
pub fn bundle_answers(response: &HttpResponse, count: usize) -> Option<Vec<Option<Answer>>> {
    let bundle: Value = serde_json::from_slice(response.body.bytes()).ok()?;
    let Value::Object(mut bundle) = bundle else {
        return None;
    };
    if bundle.get("resourceType").and_then(Value::as_str) != Some("Bundle") {
        return None;
    }
    let entries = match bundle.remove("entry") {
        Some(Value::Array(entries)) => entries,
        _ => return None,
    };
    let unreadable = || Answer {
        status: 500,
        ..Answer::default()
    };
    let readable = |entry| Some(Answer::of_entry(entry).unwrap_or_else(unreadable));
    (entries.len() == count).then(|| entries.into_iter().map(readable).collect())
}
