//! One FHIR server: packs requests into batch Bundles and takes them apart again.
//!
//! Invariants:
//! 1. Every entry that the server has answered keeps its answer, whatever happens to the others.
//! 2. An entry without an answer may have been carried out or not: only what can be repeated safely is sent.
//! 3. A Bundle is never larger than the server has shown to take, and so is the number of those under way ([`pace`]).
//! 4. One entry that makes a server refuse a whole Bundle is found by halving, and the others go through.

mod bundle;
mod flight;
mod pace;
mod trouble;

use super::answer::Answer;
use crate::clock;
use crate::config::ClockTrust;
use crate::forward::Link;
use crate::forward::auth::{AuthError, Authorizer};
use crate::forward::http::{Http, HttpRequest, HttpResponse, Method};
use crate::telemetry::errors::ErrorRecord;
use bundle::{bundle_answers, bundle_of, condition};
use embassy_time::Duration;
use flight::{Flight, Part, Queue, landed};
use pace::Pace;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::sync::Arc;
use trouble::{is_fhir, no_fhir, no_server, unreachable};

/// Bytes of a Bundle, unless a single entry is larger.
const MOST_BYTES: usize = 1024 * 1024;

const FHIR_JSON: &str = "application/fhir+json";

/// One request of a batch.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Method.
    pub method: Method,
    /// Address relative to the base (`Observation/abc`, `Device?identifier=x`).
    pub path: String,
    /// Body of a PUT: text, for as a tree of values it takes five times the memory.
    pub resource: Option<Arc<RawValue>>,
    /// Version that the resource must still have.
    pub if_match: Option<String>,
    /// The resource must not exist.
    pub if_none_match: bool,
}

impl Entry {
    /// A read or a search.
    pub fn get(path: String) -> Entry {
        Entry {
            method: Method::Get,
            path,
            resource: None,
            if_match: None,
            if_none_match: false,
        }
    }

    /// A write.
    pub fn put(path: String, resource: Value, if_match: Option<String>) -> Entry {
        Entry {
            method: Method::Put,
            path,
            // Serializing JSON into memory does not fail.
            resource: to_raw_value(&resource).ok().map(Arc::from),
            if_match,
            if_none_match: false,
        }
    }
}

/// Why the server cannot be used for now.
#[derive(Clone, Debug, PartialEq)]
pub struct Down {
    /// Why, and what to do.
    pub error: ErrorRecord,
    /// What the server asked for.
    pub retry_after: Option<Duration>,
    /// The wrong clock of this gateway is the likely reason.
    pub clock: bool,
}

impl Down {
    /// An error without more.
    pub fn new(name: &str, text: impl Into<String>) -> Down {
        Down {
            error: ErrorRecord::new(name, text),
            retry_after: None,
            clock: false,
        }
    }

    /// What the forward loop has to know.
    pub fn link(self) -> Link {
        if self.clock {
            return Link::WaitingForClock;
        }
        Link::Down {
            error: self.error,
            retry_after: self.retry_after,
        }
    }
}

/// Answers in the order of the entries; `None` where there is none.
#[derive(Debug)]
pub struct Exchange {
    /// One per entry.
    pub answers: Vec<Option<Answer>>,
    /// Why some are missing, or why nothing more should be sent for now.
    pub down: Option<Down>,
}

/// What became of one Bundle.
enum Sent {
    /// With the pause that the server asks for, if it does.
    Answers(Vec<Option<Answer>>, Option<Duration>),
    /// The Bundle as a whole is refused; smaller ones may go.
    Refused(Answer),
    /// The server takes no Bundles.
    NoBundles,
    Down(Down),
}

/// A FHIR server.
pub struct Server {
    base: String,
    http: Http,
    authorizer: Authorizer,
    trust: ClockTrust,
    pace: Pace,
    bundles: bool,
    /// When the token was renewed last: monotonic microseconds.
    renewed_us: u64,
}

impl Server {
    /// The server at `base`.
    pub fn new(base: &str, http: Http, authorizer: Authorizer, trust: ClockTrust) -> Server {
        Server {
            base: base.trim_end_matches('/').to_owned(),
            http,
            authorizer,
            trust,
            pace: Pace::default(),
            bundles: true,
            renewed_us: 0,
        }
    }

    /// Observations that the server likes to be given at a time.
    pub fn appetite(&self) -> usize {
        self.pace.appetite()
    }

    /// Sends the entries, as many at a time as the server takes; several requests may be under way, so no two entries may
    /// touch the same resource.
    pub async fn send(&mut self, entries: &[Entry]) -> Exchange {
        let mut answers: Vec<Option<Answer>> = vec![None; entries.len()];
        let mut queue = Queue::of(entries.len());
        let share = self.pace.share(entries.len());
        let mut flights: Vec<Flight> = Vec::new();
        let mut down: Option<Down> = None;
        loop {
            while down.is_none() && flights.len() < self.pace.under_way() {
                let Some((part, request)) = self.next_request(entries, &mut queue, share) else {
                    break;
                };
                match self.authorize(request).await {
                    Ok(request) => flights.push(Flight::begin(part, &self.http, request)),
                    Err(cause) => down = Some(cause),
                }
            }
            let Some((part, took_us, response)) = landed(&mut flights).await else {
                return Exchange { answers, down };
            };
            let sent = match response {
                Ok(response) if response.status == 401 && !part.renewed => {
                    // Others that were under way with the old token see the new one when they come back.
                    if part.began_us < self.renewed_us || self.authorizer.renew().await {
                        self.renewed_us = clock::monotonic_us();
                        queue.again(Part {
                            renewed: true,
                            ..part
                        });
                        continue;
                    }
                    Sent::Down(self.refusal(&response))
                }
                Ok(response) if part.alone => self.alone(&response),
                Ok(response) => self.bundle(&response, part.range.len()).await,
                Err(error) => Sent::Down(unreachable(&error, clock::is_trusted(self.trust))),
            };
            let cause = self.take(part, took_us, sent, &mut queue, &mut answers);
            // The first cause counts; what is under way still lands, and its answers are kept.
            down = down.or(cause);
        }
    }

    /// Takes what became of a part into answers and queue; gives why nothing more should be sent for now.
    fn take(
        &mut self,
        part: Part,
        took_us: u64,
        sent: Sent,
        queue: &mut Queue,
        answers: &mut [Option<Answer>],
    ) -> Option<Down> {
        let count = part.range.len();
        let first = part.range.start;
        match sent {
            Sent::Answers(got, retry_after) => {
                let busy = got.iter().flatten().any(Answer::is_passing);
                let taken = got.iter().flatten().any(Answer::is_success);
                for (slot, answer) in answers.iter_mut().skip(first).zip(got) {
                    *slot = answer;
                }
                if busy {
                    // After the first 429 of a batch the rest of it is 429 too: wait before anything else.
                    self.pace.trouble(count);
                    let text = "the server asks to slow down (429 or 503 for parts of a batch)";
                    let mut down = Down::new("FhirServiceException", text);
                    down.retry_after = retry_after;
                    return Some(down);
                }
                if part.refused_in_bundle {
                    // What goes alone and not in a Bundle of one: this server has no use for Bundles.
                    self.bundles &= !taken;
                }
                self.pace.answered(count, took_us);
            }
            Sent::Refused(answer) if count > 1 => {
                if answer.status == 413 {
                    self.pace.too_large(count);
                }
                queue.halve(part);
            }
            Sent::Refused(answer) if part.alone || answer.status == 413 => {
                if let Some(slot) = answers.get_mut(first) {
                    *slot = Some(answer);
                }
            }
            Sent::Refused(_) => queue.again(Part {
                alone: true,
                refused_in_bundle: true,
                ..part
            }),
            Sent::NoBundles => {
                self.bundles = false;
                queue.again(part);
            }
            Sent::Down(down) => {
                self.pace.trouble(count);
                return Some(down);
            }
        }
        None
    }

    /// The next request: the first entries of the queue that fit into one Bundle, or one entry where they go alone.
    fn next_request(
        &self,
        entries: &[Entry],
        queue: &mut Queue,
        share: usize,
    ) -> Option<(Part, HttpRequest)> {
        let most = if self.bundles {
            self.pace.entries().min(share)
        } else {
            1
        };
        let mut part = queue.next(most)?;
        part.alone |= !self.bundles;
        let of_part = entries.get(part.range.clone())?;
        if let (true, [one]) = (part.alone, of_part) {
            return Some((part, self.request_alone(one)));
        }
        let (body, count) = bundle_of(of_part, MOST_BYTES);
        queue.give_back(&mut part, count);
        let of_part = of_part.get(..count)?;
        let mut request = HttpRequest::with_body(Method::Post, &self.base, body)
            .header("content-type", FHIR_JSON)
            .header("accept", FHIR_JSON);
        if of_part.iter().all(|entry| entry.method == Method::Put) {
            request = request.header("prefer", "return=minimal");
        }
        if self.base.contains(".azurehealthcareapis.com") {
            request = request.header("x-bundle-processing-logic", "parallel");
        }
        Some((part, request))
    }

    fn request_alone(&self, entry: &Entry) -> HttpRequest {
        let url = format!("{}/{}", self.base, entry.path);
        let mut request = match &entry.resource {
            Some(resource) => HttpRequest::with_body(entry.method, url, resource.get().as_bytes().to_vec())
                .header("content-type", FHIR_JSON)
                .header("prefer", "return=minimal"),
            None => HttpRequest::get(url),
        }
        .header("accept", FHIR_JSON);
        if let Some(version) = condition(entry) {
            request = request.header("if-match", version);
        }
        if entry.if_none_match {
            request = request.header("if-none-match", "*");
        }
        request
    }

    /// What the response to a Bundle means.
    async fn bundle(&mut self, response: &HttpResponse, count: usize) -> Sent {
        match response.status {
            200..300 => match bundle_answers(response, count) {
                Some(answers) => Sent::Answers(answers, response.retry_after()),
                None => Sent::Down(no_fhir(response)),
            },
            400 | 409 | 412 | 413 | 422 if is_fhir(response) || response.status == 413 => {
                Sent::Refused(Answer::of_response(response))
            }
            404 | 405 | 501 => match self.is_fhir_server().await {
                Ok(true) => Sent::NoBundles,
                Ok(false) => Sent::Down(no_server(&self.base, response.status)),
                Err(down) => Sent::Down(down),
            },
            _ => Sent::Down(self.refusal(response)),
        }
    }

    /// What the response to a request of its own means.
    fn alone(&self, response: &HttpResponse) -> Sent {
        let answer = Answer::of_response(response);
        let understood = answer.resource.is_some() || answer.outcome.is_some() || response.body.is_empty();
        match response.status {
            401 | 403 => Sent::Down(self.refusal(response)),
            _ if answer.is_passing() || response.status >= 500 && !understood => {
                Sent::Down(self.refusal(response))
            }
            _ if !understood => Sent::Down(no_fhir(response)),
            _ => Sent::Answers(vec![Some(answer)], None),
        }
    }

    /// Follows the next page of a search; an address on another server is not followed.
    pub async fn page(&mut self, url: &str) -> Result<Option<Value>, Down> {
        let path = url
            .strip_prefix(&self.base)
            .map(|rest| rest.trim_start_matches('/'));
        let target = match path {
            Some(path) => format!("{}/{path}", self.base),
            None if url.starts_with('?') => format!("{}{url}", self.base),
            None => return Ok(None),
        };
        let response = self
            .ask(HttpRequest::get(target).header("accept", FHIR_JSON))
            .await?;
        if response.is_success() {
            return Ok(Answer::of_response(&response).resource);
        }
        Err(self.refusal(&response))
    }

    /// Whether the CapabilityStatement lets clients choose the id of an Observation; `None` when it does not say.
    ///
    /// # Errors
    /// When there is no statement to be had now.
    pub async fn takes_client_ids(&mut self) -> Result<Option<bool>, Down> {
        let url = format!("{}/metadata", self.base);
        let response = self
            .ask(HttpRequest::get(url).header("accept", FHIR_JSON))
            .await?;
        if !response.is_success() {
            return Err(self.refusal(&response));
        }
        let statement: Value =
            serde_json::from_slice(response.body.bytes()).map_err(|_| no_fhir(&response))?;
        Ok(update_create(&statement))
    }

    async fn is_fhir_server(&mut self) -> Result<bool, Down> {
        let url = format!("{}/metadata?_summary=true", self.base);
        let response = self
            .ask(HttpRequest::get(url).header("accept", FHIR_JSON))
            .await?;
        Ok(response.is_success() && is_fhir(&response))
    }

    /// A response of any status, with one renewal of the token after a 401.
    async fn ask(&mut self, request: HttpRequest) -> Result<HttpResponse, Down> {
        let authorized = self.authorize(request.clone()).await?;
        let response = self.once(authorized).await?;
        if response.status != 401 || !self.authorizer.renew().await {
            return Ok(response);
        }
        let authorized = self.authorize(request).await?;
        self.once(authorized).await
    }

    async fn authorize(&mut self, request: HttpRequest) -> Result<HttpRequest, Down> {
        let trusted = clock::is_trusted(self.trust);
        self.authorizer.authorize(request).await.map_err(|error| {
            let name = match &error {
                AuthError::Unreachable(_) => "FhirServiceException",
                AuthError::NoManagedIdentity(_) => "ManagedIdentityCredentialNotFound",
                AuthError::Refused(_) | AuthError::Setup(_) => "UnauthorizedAccessFhirServiceException",
            };
            let mut down = Down::new(name, error.text());
            down.clock = error.may_be_the_clock() && !trusted;
            down
        })
    }

    async fn once(&mut self, request: HttpRequest) -> Result<HttpResponse, Down> {
        let trusted = clock::is_trusted(self.trust);
        self.http
            .send(request)
            .await
            .map_err(|error| unreachable(&error, trusted))
    }

    /// What a response says that is about us and not about a resource.
    fn refusal(&self, response: &HttpResponse) -> Down {
        let status = response.status;
        let answer = Answer::of_response(response).text();
        let mut down = match status {
            401 => Down::new(
                "UnauthorizedAccessFhirServiceException",
                format!("the server does not accept who we are ({answer}): check auth of this destination"),
            ),
            403 => Down::new(
                "UnauthorizedAccessFhirServiceException",
                format!(
                    "the server does not allow us to read or write ({answer}): grant reading and writing of Observation, \
                     Device, Patient and Encounter (on Azure the role FHIR Data Contributor)"
                ),
            ),
            404 | 405 | 410 => no_server(&self.base, status),
            _ if status == 429 || status >= 500 || is_fhir(response) => Down::new(
                "FhirServiceException",
                format!("the server cannot take anything now ({answer}); it is tried again"),
            ),
            _ => no_fhir(response),
        };
        down.retry_after = response.retry_after();
        down.clock = status == 401 && self.authorizer.depends_on_clock() && !clock::is_trusted(self.trust);
        down
    }
}

/// `updateCreate` of Observation in a CapabilityStatement.
fn update_create(statement: &Value) -> Option<bool> {
    let rest = statement.get("rest")?.as_array()?;
    let resources = rest
        .iter()
        .filter_map(|rest| rest.get("resource")?.as_array())
        .flatten();
    let mut observations =
        resources.filter(|resource| resource.get("type").and_then(Value::as_str) == Some("Observation"));
    observations.find_map(|resource| resource.get("updateCreate")?.as_bool())
}
