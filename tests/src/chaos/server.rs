//! The core: resources with versions, searches that lag behind, and the weather.

use super::weather::{Fate, RetryAfter, Weather};
use bedside_agent::clock;
use bedside_agent::forward::http::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use bedside_agent::message::Payload;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

/// What kind of server it is.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    /// Clients may choose ids; else the server does, and answers 405 to others.
    pub client_ids: bool,
    /// `If-None-Match` is honoured.
    pub honours_none_match: bool,
    /// Longest time until a search shows a write: microseconds.
    pub index_lag_us: u64,
    /// Others add a note to an Observation once in about so many requests.
    pub meddles_in: u64,
    /// Others delete an Observation once in about so many requests; 0 never.
    pub deletes_in: u64,
    /// Entries of a batch, at most.
    pub most_entries: usize,
}

/// A resource.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its content; `meta.versionId` is kept by the server.
    pub resource: Value,
    version: u64,
    indexed_us: u64,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests.
    pub requests: u64,
    /// Requests that went wrong in one way or other, by how.
    pub faults: BTreeMap<&'static str, u64>,
    /// Entries of batches that were refused.
    pub refused_entries: u64,
    /// Writes carried out.
    pub writes: u64,
}

struct State {
    ways: Ways,
    weather: Weather,
    held: BTreeMap<String, Held>,
    /// Paths by identifier value.
    index: HashMap<String, BTreeSet<String>>,
    /// Deleted paths, with the identifier values of the resource.
    deleted: BTreeMap<String, Vec<String>>,
    /// Notes that others added: path and text.
    notes: Vec<(String, String)>,
    seen: Seen,
    next_id: u64,
}

/// The server. Clones are handles to the same one.
#[derive(Clone)]
pub struct ChaosServer(Arc<Mutex<State>>);

/// What leaves the server.
pub enum Reply {
    /// An answer, and whether it comes a little at a time.
    Answer(Answer, bool),
    /// The connection ends.
    Broken,
    /// The first half of an answer.
    Half(Answer),
}

/// An HTTP answer.
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers apart from the length.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// One interaction.
struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    resource: Option<Value>,
    if_match: Option<&'a str>,
    if_none_match: bool,
}

/// Status, version and body.
type Told = (u16, Option<u64>, Value);

fn outcome(code: &str) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code}]})
}

impl ChaosServer {
    /// A server that knows these resources.
    pub fn new(ways: Ways, weather: Weather, resources: &[Value]) -> ChaosServer {
        let mut state = State {
            ways,
            weather,
            held: BTreeMap::new(),
            index: HashMap::new(),
            deleted: BTreeMap::new(),
            notes: Vec::new(),
            seen: Seen::default(),
            next_id: 0,
        };
        for resource in resources {
            let path = format!("{}/{}", text(resource, "resourceType"), text(resource, "id"));
            state.put(&path, resource.clone(), 0);
        }
        ChaosServer(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no request panics")
    }

    /// From now on nothing goes wrong, and nobody else writes.
    pub fn calm(&self) {
        let mut state = self.state();
        state.weather.calm();
        state.ways.meddles_in = 0;
        state.ways.deletes_in = 0;
    }

    /// All Observations.
    pub fn observations(&self) -> Vec<Value> {
        let state = self.state();
        let all = state.held.range("Observation/".to_owned()..);
        all.take_while(|(path, _)| path.starts_with("Observation/"))
            .map(|(_, held)| held.resource.clone())
            .collect()
    }

    /// Identifier values of what others deleted.
    pub fn deleted(&self) -> BTreeSet<String> {
        self.state().deleted.values().flatten().cloned().collect()
    }

    /// Notes that others added and that are gone, apart from those of deleted Observations.
    pub fn lost_notes(&self) -> usize {
        let state = self.state();
        let lost = state.notes.iter().filter(|(path, note)| {
            state.held.get(path).is_some_and(|held| {
                let mut notes = held.resource["note"].as_array().into_iter().flatten();
                !notes.any(|kept| kept["text"] == note.as_str())
            })
        });
        lost.count()
    }

    /// Notes that others added.
    pub fn notes(&self) -> usize {
        self.state().notes.len()
    }

    /// What happened.
    pub fn seen(&self) -> Seen {
        self.state().seen.clone()
    }

    /// One request at a moment ([`now_us`]). `headers` have names in lower case.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
        now_us: u64,
    ) -> Reply {
        self.state().request(method, path, headers, body, now_us)
    }
}

impl State {
    fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
        now_us: u64,
    ) -> Reply {
        self.seen.requests += 1;
        self.others(now_us);
        let fate = self.weather.of_request(now_us);
        let name = match fate {
            Fate::Answered => "",
            Fate::Slow => "slow",
            Fate::Reset => "reset",
            Fate::LostAnswer => "lost answer",
            Fate::Truncated => "truncated",
            Fate::Refused(429, _) => "429",
            Fate::Refused(401, _) => "401",
            Fate::Refused(..) => "5xx",
            Fate::Html(_) => "html",
        };
        if !name.is_empty() {
            *self.seen.faults.entry(name).or_default() += 1;
        }
        match fate {
            Fate::Reset => return Reply::Broken,
            Fate::Refused(status, retry_after) => return refused(status, retry_after),
            Fate::Html(status) => {
                let headers = vec![("content-type", "text/html".to_owned())];
                let body = b"<html><body>Please sign in.</body></html>".to_vec();
                return Reply::Answer(
                    Answer {
                        status,
                        headers,
                        body,
                    },
                    false,
                );
            }
            _ => {}
        }
        let header = |name: &str| {
            let found = headers.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.as_str())
        };
        let document: Option<Value> = serde_json::from_slice(body).ok();
        let (status, version, told) = match (method, path.trim_start_matches('/'), document) {
            ("POST", "", Some(bundle)) => self.batch(&bundle, now_us),
            (_, path, resource) => {
                let ask = Ask {
                    method,
                    path,
                    resource,
                    if_match: header("if-match"),
                    if_none_match: header("if-none-match").is_some(),
                };
                self.perform(ask, now_us)
            }
        };
        let mut headers = vec![("content-type", "application/fhir+json".to_owned())];
        headers.extend(version.map(|version| ("etag", format!("W/\"{version}\""))));
        if status == 201 {
            let id = text(&told, "id");
            headers.push(("location", format!("Observation/{id}/_history/1")));
        }
        let answer = Answer {
            status,
            headers,
            body: told.to_string().into_bytes(),
        };
        match fate {
            Fate::LostAnswer => Reply::Broken,
            Fate::Truncated => Reply::Half(answer),
            Fate::Slow => Reply::Answer(answer, true),
            _ => Reply::Answer(answer, false),
        }
    }

    /// Others change and delete Observations.
    fn others(&mut self, now_us: u64) {
        let Ways {
            meddles_in,
            deletes_in,
            ..
        } = self.ways;
        let chance = &mut self.weather.chance;
        let (meddles, deletes) = (
            meddles_in > 0 && chance.one_in(meddles_in),
            deletes_in > 0 && chance.one_in(deletes_in),
        );
        if !meddles && !deletes {
            return;
        }
        // The newest are those that may still change.
        let mut paths: Vec<(&u64, &String)> = self
            .held
            .iter()
            .filter(|(path, _)| path.starts_with("Observation/"))
            .map(|(path, held)| (&held.indexed_us, path))
            .collect();
        paths.sort_unstable_by(|one, two| two.cmp(one));
        paths.truncate(12);
        let Some((_, path)) = paths.get(chance.below(paths.len() as u64) as usize) else {
            return;
        };
        let path = (*path).clone();
        if deletes {
            if let Some(held) = self.held.remove(&path) {
                self.deleted.insert(path, identifiers(&held.resource));
            }
            return;
        }
        let note = format!("note {}", self.notes.len());
        let mut resource = self.held[&path].resource.clone();
        match resource["note"].as_array_mut() {
            Some(notes) => notes.push(json!({"text": note})),
            None => resource["note"] = json!([{"text": note}]),
        }
        self.put(&path, resource, now_us);
        self.notes.push((path, note));
    }

    fn batch(&mut self, bundle: &Value, now_us: u64) -> Told {
        let entries = bundle["entry"].as_array().cloned().unwrap_or_default();
        if entries.len() > self.ways.most_entries {
            return (413, None, outcome("too-long"));
        }
        let answers: Vec<Value> = entries.iter().map(|entry| self.entry(entry, now_us)).collect();
        let bundle = json!({"resourceType": "Bundle", "type": "batch-response", "entry": answers});
        (200, None, bundle)
    }

    fn entry(&mut self, entry: &Value, now_us: u64) -> Value {
        let request = &entry["request"];
        let method = text(request, "method");
        let is_write = method == "PUT";
        if let Some(status) = self.weather.of_entry().filter(|_| is_write) {
            self.seen.refused_entries += 1;
            return json!({"response": {"status": status.to_string(), "outcome": outcome("transient")}});
        }
        let ask = Ask {
            method,
            path: text(request, "url"),
            resource: entry.get("resource").cloned(),
            if_match: request["ifMatch"].as_str(),
            if_none_match: request["ifNoneMatch"] == "*",
        };
        let (status, version, told) = self.perform(ask, now_us);
        let mut response = json!({"status": status.to_string()});
        if let Some(version) = version {
            response["etag"] = json!(format!("W/\"{version}\""));
        }
        if status == 201 {
            response["location"] = json!(format!("Observation/{}/_history/1", text(&told, "id")));
        }
        match status {
            200..300 if is_write => json!({"response": response}),
            200..300 => json!({"response": response, "resource": told}),
            _ => {
                response["outcome"] = told;
                json!({"response": response})
            }
        }
    }

    fn perform(&mut self, ask: Ask<'_>, now_us: u64) -> Told {
        let (path, query) = match ask.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (ask.path, None),
        };
        match (ask.method, query) {
            ("GET", _) if path == "metadata" => {
                let observation = json!({"type": "Observation", "updateCreate": self.ways.client_ids});
                let rest = json!([{"mode": "server", "resource": [observation]}]);
                let statement = json!({"resourceType": "CapabilityStatement", "rest": rest});
                (200, None, statement)
            }
            ("GET", _) if path.ends_with("/_history") => (501, None, outcome("not-supported")),
            ("GET", Some(query)) => {
                let found = self.search(path, query, now_us);
                let entries: Vec<Value> = found
                    .iter()
                    .map(|path| json!({"resource": self.held[path].resource, "search": {"mode": "match"}}))
                    .collect();
                let bundle = json!({"resourceType": "Bundle", "type": "searchset", "entry": entries});
                (200, None, bundle)
            }
            ("GET", None) => match self.held.get(path) {
                Some(held) => (200, Some(held.version), held.resource.clone()),
                None if self.deleted.contains_key(path) => (410, None, outcome("deleted")),
                None => (404, None, outcome("not-found")),
            },
            ("PUT", _) => self.write(&ask, path, query, now_us),
            _ => (405, None, outcome("not-supported")),
        }
    }

    fn write(&mut self, ask: &Ask<'_>, path: &str, query: Option<&str>, now_us: u64) -> Told {
        let Some(mut resource) = ask.resource.clone() else {
            return (400, None, outcome("required"));
        };
        let mut path = path.to_owned();
        if let Some(query) = query {
            // A conditional update sees no more than a search does.
            match self.search(&path, query, now_us).as_slice() {
                [] => {
                    self.next_id += 1;
                    path = format!("{path}/server-{}", self.next_id);
                }
                [one] => path = one.clone(),
                _ => return (412, None, outcome("multiple-matches")),
            }
            resource["id"] = json!(path.split('/').nth(1));
        }
        let held = self.held.get(&path).map(|held| held.version);
        if ask.if_match.is_some() && held.is_none() && self.deleted.contains_key(&path) {
            return (410, None, outcome("deleted"));
        }
        let asked = ask
            .if_match
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        if asked.is_some_and(|asked| held.map(|version| version.to_string()).as_deref() != Some(asked))
            || ask.if_none_match && self.ways.honours_none_match && held.is_some()
        {
            return (412, None, outcome("conflict"));
        }
        if held.is_none() && query.is_none() && !self.ways.client_ids {
            return (405, None, outcome("not-supported"));
        }
        self.seen.writes += 1;
        self.put(&path, resource, now_us);
        let held = &self.held[&path];
        let status = if held.version == 1 { 201 } else { 200 };
        (status, Some(held.version), held.resource.clone())
    }

    fn put(&mut self, path: &str, mut resource: Value, now_us: u64) {
        let lag = match self.ways.index_lag_us {
            0 => 0,
            most => self.weather.chance.below(most),
        };
        let (version, indexed_us) = match self.held.get(path) {
            Some(held) => (held.version + 1, held.indexed_us),
            None => (1, now_us + lag),
        };
        resource["meta"]["versionId"] = json!(version.to_string());
        for value in identifiers(&resource) {
            self.index.entry(value).or_default().insert(path.to_owned());
        }
        let held = Held {
            resource,
            version,
            indexed_us,
        };
        self.held.insert(path.to_owned(), held);
    }

    /// Paths of what a search by identifier shows.
    fn search(&self, kind: &str, query: &str, now_us: u64) -> Vec<String> {
        let Some(tokens) = query.split('&').find_map(|part| part.strip_prefix("identifier=")) else {
            return Vec::new();
        };
        let prefix = format!("{kind}/");
        let mut found = BTreeSet::new();
        for token in decode(tokens).split(',') {
            let value = token.rsplit('|').next().unwrap_or(token).replace('\\', "");
            let paths = self.index.get(&value).into_iter().flatten();
            let shown = paths.filter(|path| {
                path.starts_with(&prefix)
                    && self.held.get(*path).is_some_and(|held| held.indexed_us <= now_us)
            });
            found.extend(shown.cloned());
        }
        found.into_iter().collect()
    }
}

/// Values of the identifiers of a resource.
fn identifiers(resource: &Value) -> Vec<String> {
    let identifiers = resource["identifier"].as_array().into_iter().flatten();
    identifiers
        .filter_map(|identifier| identifier["value"].as_str().map(str::to_owned))
        .collect()
}

fn refused(status: u16, retry_after: Option<RetryAfter>) -> Reply {
    // Sun, 01 Mar 2026 at so many seconds after eight.
    let date = |seconds: u64| {
        format!(
            "Sun, 01 Mar 2026 {:02}:{:02}:{:02} GMT",
            8 + seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )
    };
    let mut headers = vec![("content-type", "application/fhir+json".to_owned())];
    match retry_after {
        Some(RetryAfter::Seconds(seconds)) => headers.push(("retry-after", seconds.to_string())),
        Some(RetryAfter::Date(seconds)) => {
            headers.push(("date", date(0)));
            headers.push(("retry-after", date(seconds)));
        }
        None => {}
    }
    let body = outcome("transient").to_string().into_bytes();
    Reply::Answer(
        Answer {
            status,
            headers,
            body,
        },
        false,
    )
}

/// A member that is text; empty when it is missing.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |rest: &mut std::str::Bytes<'_>| Some([rest.next()?, rest.next()?]);
        match byte {
            b'%' => {
                let pair = hex(&mut rest).unwrap_or(*b"3F");
                let pair = std::str::from_utf8(&pair).unwrap_or("3F");
                bytes.push(u8::from_str_radix(pair, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Now, in microseconds: the wall clock goes on through the restarts of a simulated agent.
pub fn now_us() -> u64 {
    u64::try_from(clock::wall().ticks() / 10).unwrap_or(0)
}

/// The door for simulated time: the address is ignored, only what follows `base` counts.
pub struct InProcess {
    /// The server.
    pub server: ChaosServer,
    /// Its base address.
    pub base: String,
}

impl HttpClient for InProcess {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let path = request.url.strip_prefix(&self.base).unwrap_or_default();
        let headers: Vec<(String, String)> = request
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let reply = self.server.request(
            request.method.name(),
            path,
            &headers,
            request.body.bytes(),
            now_us(),
        );
        let (answer, length) = match reply {
            Reply::Broken => return Err(HttpError::new(HttpErrorKind::Reset, "the connection broke")),
            Reply::Answer(answer, _) => {
                let length = answer.body.len();
                (answer, length)
            }
            Reply::Half(answer) => {
                let length = answer.body.len() / 2;
                (answer, length)
            }
        };
        Ok(HttpResponse {
            status: answer.status,
            headers: answer
                .headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            body: Payload(answer.body[..length].to_vec().into()),
        })
    }
}
