//! A FHIR server in memory for the tests of this room: versions, If-Match, searches by identifier, batches, and the
//! misbehaviour of real servers and networks on demand.

use crate::forward::http::{Http, HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse, Method};
use crate::message::Payload;
use crate::random;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

/// Base address of the double.
pub const BASE: &str = "http://fhir.test/r4";

/// What the double does instead of answering the next request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers this, without looking at the request.
    Status(u16, Vec<(&'static str, &'static str)>, &'static str),
    /// Carries the request out and loses the answer.
    LoseAnswer,
    /// The connection breaks before the request is read.
    Reset,
    /// TLS says that the certificate is not valid now.
    CertificateTime,
    /// Answers the first bytes only.
    Truncate,
}

/// Something that happens behind the agent's back.
pub type Step = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
pub struct State {
    /// By `Type/id`; `meta.versionId` is kept by the double.
    pub resources: BTreeMap<String, Value>,
    pub deleted: BTreeSet<String>,
    /// Versions by `Type/id`, oldest first; a resource without them answers 501.
    pub versions: BTreeMap<String, Vec<Value>>,
    /// Faults of the next requests; `None` is a good one.
    pub faults: VecDeque<Option<Fault>>,
    /// Of so many parts in 1000 requests and PUT entries something goes wrong by chance.
    pub chaos: u64,
    /// Statuses of the next PUT entries; 0 is a good one.
    pub write_statuses: VecDeque<u16>,
    /// Called before each request, to change the server behind the agent's back.
    pub before: VecDeque<Step>,
    /// What searches do not see yet.
    pub unindexed: BTreeSet<String>,
    /// Every new resource is invisible for searches.
    pub lagging: bool,
    pub no_bundles: bool,
    /// `If-None-Match` is honoured.
    pub honours_none_match: bool,
    /// Only the server chooses ids; it answers this to a PUT with an id that it does not know.
    pub refuses_ids_with: Option<u16>,
    /// Answers of a Bundle say where a resource is now.
    pub tells_ids: bool,
    /// Where the last one was put.
    written: String,
    /// A Bundle with this text in it is refused as a whole.
    pub refuses_bundles_with: Option<&'static str>,
    pub most_entries: Option<usize>,
    /// Method and path of each entry, and of each request that is no batch.
    pub log: Vec<String>,
    /// HTTP requests.
    pub requests: usize,
}

#[derive(Default)]
pub struct Double(Mutex<State>);

impl Double {
    pub fn new(resources: &[Value]) -> (Arc<Double>, Http) {
        let double = Arc::new(Double::default());
        for resource in resources {
            double.state().put(resource.clone());
        }
        let http = Http::inline(Arc::clone(&double) as Arc<dyn HttpClient>);
        (double, http)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn of_type(&self, kind: &str) -> Vec<Value> {
        let state = self.state();
        let prefix = format!("{kind}/");
        let of_type = state
            .resources
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix));
        of_type.map(|(_, resource)| resource.clone()).collect()
    }
}

impl State {
    /// Puts a resource there as it is, with version 1 if it has none.
    pub fn put(&mut self, mut resource: Value) {
        let path = format!(
            "{}/{}",
            resource["resourceType"].as_str().unwrap(),
            resource["id"].as_str().unwrap()
        );
        if resource["meta"]["versionId"].is_null() {
            resource["meta"]["versionId"] = json!("1");
        }
        self.resources.insert(path, resource);
    }

    /// Status, ETag version and body of one request.
    fn one(
        &mut self,
        method: &str,
        path: &str,
        body: Option<Value>,
        if_match: Option<&str>,
        if_none_match: bool,
    ) -> (u16, Option<String>, Value) {
        self.log.push(format!("{method} {path}"));
        let outcome = |code: &str| json!({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code}]});
        if let Some((path, _)) = path.split_once("/_history?") {
            let Some(versions) = self.versions.get(path) else {
                return (501, None, outcome("not-supported"));
            };
            let entries: Vec<Value> = versions.iter().rev().map(|v| json!({"resource": v})).collect();
            let bundle = json!({"resourceType": "Bundle", "type": "history", "entry": entries});
            return (200, None, bundle);
        }
        let query = path.split_once('?').filter(|_| method == "GET");
        if let Some((kind, query)) = query {
            return (200, None, self.search(kind, query));
        }
        if path == "metadata" {
            let observation = json!({"type": "Observation", "updateCreate": self.refuses_ids_with.is_none()});
            return (
                200,
                None,
                json!({"resourceType": "CapabilityStatement", "rest": [{"resource": [observation]}]}),
            );
        }
        let version = |resource: &Value| resource["meta"]["versionId"].as_str().unwrap().to_owned();
        if method == "GET" {
            return match self.resources.get(path) {
                Some(resource) => (200, Some(version(resource)), resource.clone()),
                None if self.deleted.contains(path) => (410, None, outcome("deleted")),
                None => (404, None, outcome("not-found")),
            };
        }
        let status = self.write_statuses.pop_front().or_else(|| {
            const PASSING: [u16; 6] = [409, 412, 429, 500, 503, 504];
            let unlucky = random::below(1000) < self.chaos;
            unlucky.then(|| PASSING[usize::try_from(random::below(6)).unwrap()])
        });
        if let Some(status) = status.filter(|status| *status != 0) {
            return (status, None, outcome("processing"));
        }
        let mut body = body.expect("a PUT has a body");
        let path = match path.split_once('?') {
            Some((kind, query)) => {
                assert!(body.get("id").is_none(), "the server chooses the id");
                let found = self.search(kind, query);
                let id = match found["entry"].as_array().unwrap().as_slice() {
                    [] => format!("server-{}", self.resources.len()),
                    [one] => one["resource"]["id"].as_str().unwrap().to_owned(),
                    _ => return (412, None, outcome("multiple-matches")),
                };
                body["id"] = json!(id);
                format!("{kind}/{id}")
            }
            None => path.to_owned(),
        };
        let path = path.as_str();
        let of_body = format!(
            "{}/{}",
            body["resourceType"].as_str().unwrap(),
            body["id"].as_str().unwrap()
        );
        assert_eq!(path, of_body);
        let held = self.resources.get(path).map(version);
        let asked = if_match.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        if asked.is_some() && asked != held {
            return (412, None, outcome("conflict"));
        }
        if if_none_match && self.honours_none_match && held.is_some() {
            return (412, None, outcome("conflict"));
        }
        if let (Some(status), None, true) = (self.refuses_ids_with, &held, path.starts_with("Observation/"))
            && !path.starts_with("Observation/server-")
        {
            return (status, None, outcome("not-supported"));
        }
        let next = held
            .as_ref()
            .map_or(1, |version| version.parse::<u64>().unwrap() + 1)
            .to_string();
        body["meta"]["versionId"] = json!(next);
        self.resources.insert(path.to_owned(), body);
        self.written = path.to_owned();
        if self.lagging {
            self.unindexed.insert(path.to_owned());
        }
        (if held.is_some() { 200 } else { 201 }, Some(next), Value::Null)
    }

    fn search(&self, kind: &str, query: &str) -> Value {
        let query = decode(query);
        let wanted = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("identifier="))
            .expect("searches are by identifier");
        let tokens: Vec<(Option<String>, String)> = split(wanted, ',')
            .iter()
            .map(|token| match split(token, '|').as_slice() {
                [value] => (None, unescape(value)),
                [system, value] => (Some(unescape(system)), unescape(value)),
                _ => panic!("{token}"),
            })
            .collect();
        let hit = |resource: &&Value| {
            let identifiers = resource["identifier"].as_array().cloned().unwrap_or_default();
            identifiers.iter().any(|identifier| {
                tokens.iter().any(|(system, value)| {
                    // As the Azure service did: it compares the beginning only.
                    identifier["value"]
                        .as_str()
                        .is_some_and(|have| have.starts_with(value.as_str()))
                        && (system.is_none() || system.as_deref() == identifier["system"].as_str())
                })
            })
        };
        let prefix = format!("{kind}/");
        let entries: Vec<Value> = self
            .resources
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix) && !self.unindexed.contains(*path))
            .map(|(_, resource)| resource)
            .filter(hit)
            .map(|resource| json!({"resource": resource, "search": {"mode": "match"}}))
            .collect();
        json!({"resourceType": "Bundle", "type": "searchset", "entry": entries})
    }

    fn batch(&mut self, bundle: &Value) -> (u16, Value) {
        let outcome =
            json!({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "invalid"}]});
        let entries = bundle["entry"].as_array().unwrap();
        if self.no_bundles {
            return (404, outcome);
        }
        if self
            .refuses_bundles_with
            .is_some_and(|text| bundle.to_string().contains(text))
        {
            return (400, outcome);
        }
        if self.most_entries.is_some_and(|most| entries.len() > most) {
            return (413, outcome);
        }
        let answers: Vec<Value> = entries
            .iter()
            .map(|entry| {
                let request = &entry["request"];
                let (status, version, body) = self.one(
                    request["method"].as_str().unwrap(),
                    request["url"].as_str().unwrap(),
                    entry.get("resource").cloned(),
                    request["ifMatch"].as_str(),
                    request["ifNoneMatch"] == "*",
                );
                let mut response = json!({"status": status.to_string()});
                if let Some(version) = version {
                    response["etag"] = json!(format!("W/\"{version}\""));
                }
                if self.tells_ids && request["method"] == "PUT" && status < 300 {
                    response["location"] = json!(format!("{}/_history/1", self.written));
                }
                if status >= 300 {
                    response["outcome"] = body;
                    return json!({"response": response});
                }
                json!({"response": response, "resource": body})
            })
            .collect();
        (
            200,
            json!({"resourceType": "Bundle", "type": "batch-response", "entry": answers}),
        )
    }
}

impl HttpClient for Double {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut state = self.state();
        state.requests += 1;
        if let Some(before) = state.before.pop_front() {
            before(&mut state);
        }
        let fault = state.faults.pop_front().flatten().or_else(|| {
            (random::below(1000) < state.chaos).then(|| match random::below(7) {
                0 => Fault::Status(503, vec![("retry-after", "3")], ""),
                1 => Fault::Status(429, Vec::new(), "{}"),
                2 => Fault::Status(500, Vec::new(), "<html>"),
                3 => Fault::Status(200, vec![("content-type", "text/html")], "<html>"),
                4 => Fault::Truncate,
                5 => Fault::Reset,
                _ => Fault::LoseAnswer,
            })
        });
        match &fault {
            Some(Fault::Reset) => return Err(HttpError::new(HttpErrorKind::Reset, "the connection broke")),
            Some(Fault::CertificateTime) => {
                return Err(HttpError::new(
                    HttpErrorKind::Tls { clock: true },
                    "the certificate is not valid yet",
                ));
            }
            Some(Fault::Status(status, headers, body)) => {
                return Ok(HttpResponse {
                    status: *status,
                    headers: headers
                        .iter()
                        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                        .collect(),
                    body: Payload((*body).to_owned().into()),
                });
            }
            _ => {}
        }
        let path = request
            .url
            .strip_prefix(BASE)
            .expect("nothing goes elsewhere")
            .trim_start_matches('/');
        let body: Option<Value> = serde_json::from_slice(request.body.bytes()).ok();
        let (status, version, body) = if request.method == Method::Post && path.is_empty() {
            let (status, body) = state.batch(&body.unwrap());
            (status, None, body)
        } else {
            let if_match = request.headers.iter().find(|(name, _)| *name == "if-match");
            let path = path.trim_end_matches("?_summary=true");
            state.one(
                request.method.name(),
                path,
                body,
                if_match.map(|(_, value)| value.as_str()),
                request.headers.iter().any(|(name, _)| *name == "if-none-match"),
            )
        };
        let mut bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        match fault {
            Some(Fault::LoseAnswer) => {
                return Err(HttpError::new(HttpErrorKind::Reset, "the connection broke"));
            }
            Some(Fault::Truncate) => bytes.truncate(bytes.len() / 2),
            _ => {}
        }
        let mut headers = vec![("content-type".to_owned(), "application/fhir+json".to_owned())];
        headers.extend(version.map(|version| ("etag".to_owned(), format!("W/\"{version}\""))));
        Ok(HttpResponse {
            status,
            headers,
            body: Payload(bytes.into()),
        })
    }
}

/// Splits at separators that are not escaped; escapes stay.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == separator && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        parts.last_mut().unwrap().push(c);
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap() } else { c });
    }
    plain
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}
