//! What a FHIR server answers, and what it means. Texts hold codes and expressions of an `OperationOutcome` only: its
//! diagnostics may repeat values and names of patients.

use crate::forward::http::HttpResponse;
use crate::telemetry::errors::{ErrorRecord, ErrorSeverity, Repair};
use serde_json::Value;

/// Answer to one entry of a batch, or to a request of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Version of the resource after it.
    pub version: Option<String>,
    /// Id of the resource, from `Location`.
    pub id: Option<String>,
    /// The resource or search result.
    pub resource: Option<Value>,
    /// The `OperationOutcome` of an error.
    pub outcome: Option<Value>,
}

impl Answer {
    /// Of a `Bundle.entry` of a batch response; `None` when it has no status.
    pub fn of_entry(entry: Value) -> Option<Answer> {
        let Value::Object(mut entry) = entry else {
            return None;
        };
        let response = entry.remove("response")?;
        let status = response.get("status")?.as_str()?.trim().get(..3)?.parse().ok()?;
        let resource = entry.remove("resource").filter(|resource| !resource.is_null());
        let etag = response.get("etag").and_then(Value::as_str);
        let location = response.get("location").and_then(Value::as_str);
        let outcome = response.get("outcome").cloned();
        Some(Answer {
            id: location.and_then(id_in),
            ..Answer::new(status, etag, resource, outcome)
        })
    }

    /// Of a response to a request of its own; the body may be empty.
    pub fn of_response(response: &HttpResponse) -> Answer {
        let body = serde_json::from_slice(response.body.bytes()).ok();
        Answer {
            id: response.header("location").and_then(id_in),
            ..Answer::new(response.status, response.header("etag"), body, None)
        }
    }

    fn new(status: u16, etag: Option<&str>, resource: Option<Value>, outcome: Option<Value>) -> Answer {
        let is_outcome = |value: &Value| resource_type(value) == Some("OperationOutcome");
        let (resource, outcome) = match resource {
            Some(resource) if is_outcome(&resource) => (None, outcome.or(Some(resource))),
            other => (other, outcome),
        };
        let version = etag
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned())
            .or_else(|| resource.as_ref().and_then(version_of))
            .filter(|version| !version.is_empty());
        Answer {
            status,
            version,
            id: None,
            resource,
            outcome,
        }
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the server only asks to come back later.
    pub fn is_passing(&self) -> bool {
        matches!(self.status, 408 | 425 | 429 | 502 | 503 | 504)
    }

    /// Whether an issue of the outcome has this code.
    pub fn says(&self, code: &str) -> bool {
        let issues = self
            .outcome
            .as_ref()
            .and_then(|outcome| outcome.get("issue")?.as_array());
        let mut issues = issues.into_iter().flatten();
        issues.any(|issue| issue.get("code").and_then(Value::as_str) == Some(code))
    }

    /// Status and the safe part of the outcome.
    pub fn text(&self) -> String {
        match self.outcome.as_ref().map(outcome_text) {
            Some(text) if !text.is_empty() => format!("{} ({text})", self.status),
            _ => self.status.to_string(),
        }
    }
}

/// The id in `[base]/Observation/ID/_history/VERSION`, which may be relative and without a version.
fn id_in(location: &str) -> Option<String> {
    let path = location.split(['?', '#']).next().unwrap_or_default();
    let resource = path.split("/_history").next().unwrap_or_default();
    let (_, id) = resource.trim_end_matches('/').rsplit_once("Observation/")?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    ((1..=64).contains(&id.len()) && id.chars().all(allowed)).then(|| id.to_owned())
}

fn resource_type(resource: &Value) -> Option<&str> {
    resource.get("resourceType").and_then(Value::as_str)
}

/// `meta.versionId`.
pub fn version_of(resource: &Value) -> Option<String> {
    Some(resource.get("meta")?.get("versionId")?.as_str()?.to_owned())
}

/// Resources that a search found, without what was included or said about them, and the address of the next page.
pub fn hits(bundle: Value) -> (Vec<Value>, Option<String>) {
    let next = bundle
        .get("link")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|link| link.get("relation").and_then(Value::as_str) == Some("next"))
        .and_then(|link| link.get("url")?.as_str().map(str::to_owned));
    let entries = match bundle {
        Value::Object(mut bundle) => bundle.remove("entry"),
        _ => None,
    };
    let Some(Value::Array(entries)) = entries else {
        return (Vec::new(), next);
    };
    let found = entries
        .into_iter()
        .filter(|entry| {
            let mode = entry.get("search").and_then(|search| search.get("mode"));
            mode.is_none_or(|mode| mode == "match")
        })
        .filter_map(|entry| match entry {
            Value::Object(mut entry) => entry.remove("resource"),
            _ => None,
        });
    (found.collect(), next)
}

/// Whether the resource carries this identifier; without `system` any system counts.
pub fn has_identifier(resource: &Value, system: Option<&str>, value: &str) -> bool {
    let identifiers = resource.get("identifier").and_then(Value::as_array);
    identifiers.into_iter().flatten().any(|identifier| {
        let is = |member: &str, text: &str| identifier.get(member).and_then(Value::as_str) == Some(text);
        is("value", value) && system.is_none_or(|system| is("system", system))
    })
}

/// Issues of an `OperationOutcome` as `severity code detail at expression`, without diagnostics and free text.
fn outcome_text(outcome: &Value) -> String {
    let issues = outcome.get("issue").and_then(Value::as_array);
    let texts: Vec<String> = issues.into_iter().flatten().take(4).map(issue_text).collect();
    texts.join("; ")
}

fn issue_text(issue: &Value) -> String {
    let code = |value: Option<&Value>| value.and_then(Value::as_str).map(safe).unwrap_or_default();
    let mut text = format!("{} {}", code(issue.get("severity")), code(issue.get("code")));
    let detail = issue
        .get("details")
        .and_then(|details| details.get("coding")?.get(0)?.get("code"));
    if let Some(detail) = detail {
        text.push_str(&format!(" {}", code(Some(detail))));
    }
    let place = issue
        .get("expression")
        .or_else(|| issue.get("location"))
        .and_then(|places| places.get(0));
    if let Some(place) = place {
        text.push_str(&format!(" at {}", code(Some(place))));
    }
    text.trim().to_owned()
}

/// A code or FHIRPath; anything that is written differently is cut off there.
fn safe(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "-_.()[]:/".contains(*c))
        .take(100)
        .collect()
}

/// The resource itself is refused: nobody can deliver it as it is.
pub fn refused(answer: &Answer) -> ErrorRecord {
    let mut error = ErrorRecord::new(
        "FhirServiceException",
        format!(
            "the server refuses the Observation: {}; compare the FHIR mapping with the profiles of the server",
            answer.text()
        ),
    );
    error.retry = false;
    error.severity = ErrorSeverity::Warning;
    error.repair = Repair::Mapping;
    error
}

/// Deleted, cancelled or marked as an error on the server: on purpose, so it is not written again.
pub fn deleted(how: &str) -> ErrorRecord {
    let mut error = ErrorRecord::new(
        "FhirServiceException",
        format!("the Observation was {how} on the server on purpose: it is not written again"),
    );
    error.retry = false;
    error.severity = ErrorSeverity::Warning;
    error.repair = Repair::Site;
    error
}

/// Only this resource cannot be written now; others can.
pub fn stuck(text: String) -> ErrorRecord {
    let mut error = ErrorRecord::new("FhirServiceException", text);
    error.severity = ErrorSeverity::Warning;
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_of_an_outcome_holds_codes_and_places_but_no_diagnostics() {
        let answer = Answer::of_entry(json!({
            "response": {"status": "422 Unprocessable", "outcome": {"resourceType": "OperationOutcome", "issue": [
                {"severity": "error", "code": "value", "diagnostics": "Mr Smith has 78", "details": {
                    "text": "Mr Smith", "coding": [{"code": "MSG_PARAM_INVALID"}]},
                 "expression": ["Observation.value.ofType(Quantity)"]},
                {"severity": "warning", "code": "x patient 7"}]}}
        }))
        .unwrap();
        assert_eq!(
            answer.text(),
            "422 (error value MSG_PARAM_INVALID at Observation.value.ofType(Quantity); warning x)"
        );
    }

    #[test]
    fn the_version_comes_from_the_etag_or_the_resource() {
        let of = |entry| Answer::of_entry(entry).unwrap().version;
        assert_eq!(
            of(json!({"response": {"status": "200", "etag": "W/\"3\""}})).as_deref(),
            Some("3")
        );
        let resource = json!({"resourceType": "Observation", "meta": {"versionId": "5"}});
        assert_eq!(
            of(json!({"resource": resource, "response": {"status": "201"}})).as_deref(),
            Some("5")
        );
        assert_eq!(of(json!({"response": {"status": "200"}})), None);
        assert_eq!(Answer::of_entry(json!({"response": {"status": "ok"}})), None);
    }

    #[test]
    fn the_id_that_the_server_chose_is_in_the_location() {
        for (location, id) in [
            (
                "https://fhir.example/r4/Observation/a-1.b/_history/3",
                Some("a-1.b"),
            ),
            ("Observation/7", Some("7")),
            ("Observation/7/", Some("7")),
            ("https://fhir.example/r4/Observation/", None),
            ("Observation/not an id", None),
            ("", None),
        ] {
            assert_eq!(id_in(location).as_deref(), id, "{location}");
        }
    }

    #[test]
    fn a_search_gives_its_matches_only() {
        let (found, next) = hits(json!({
            "resourceType": "Bundle",
            "link": [{"relation": "self", "url": "a"}, {"relation": "next", "url": "b"}],
            "entry": [
                {"resource": {"id": "1"}, "search": {"mode": "match"}},
                {"resource": {"id": "2"}},
                {"resource": {"id": "3"}, "search": {"mode": "include"}},
                {"resource": {"id": "4"}, "search": {"mode": "outcome"}}]
        }));
        let ids: Vec<_> = found.iter().map(|r| r["id"].as_str().unwrap()).collect();
        assert_eq!((ids, next.as_deref()), (vec!["1", "2"], Some("b")));
    }
}
