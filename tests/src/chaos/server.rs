//! The core: resources with versions, the weather, and others who write too.

mod interactions;

use super::weather::{Fate, RetryAfter, Weather};
use interactions::{Ask, identifiers};
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

    /// One request at a moment ([`super::in_process::now_us`]). `headers` have names in lower case.
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
