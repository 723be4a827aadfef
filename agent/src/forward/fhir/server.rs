//! One FHIR server: packs requests into batch Bundles and takes them apart again.
//!
//! Invariants:
//! 1. Every entry that the server has answered keeps its answer, whatever happens to the others.
//! 2. An entry without an answer may have been carried out or not: only what can be repeated safely is sent.
//! 3. A Bundle is never larger than the server has shown to take: the size halves on trouble and grows slowly.
//! 4. One entry that makes a server refuse a whole Bundle is found by halving, and the others go through.

mod bundle;
mod trouble;

use super::answer::Answer;
use crate::clock;
use crate::config::ClockTrust;
use crate::forward::Link;
use crate::forward::auth::{AuthError, Authorizer};
use crate::forward::http::{Http, HttpRequest, HttpResponse, Method};
use crate::telemetry::errors::ErrorRecord;
use bundle::{body_of, bundle_answers, etag};
use embassy_time::Duration;
use serde_json::Value;
use std::collections::VecDeque;
use std::ops::Range;
use trouble::{is_fhir, no_fhir, no_server, unreachable};

/// Entries of the first Bundle; later ones adapt.
const FIRST_ENTRIES: usize = 50;
/// Azure takes at most 500 entries.
const MOST_ENTRIES: usize = 500;
/// Bytes of a Bundle, unless a single entry is larger.
const MOST_BYTES: usize = 1024 * 1024;
/// A Bundle that takes longer than this is large enough.
const SLOW_US: u64 = 4_000_000;

const FHIR_JSON: &str = "application/fhir+json";

/// One request of a batch.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Method.
    pub method: Method,
    /// Address relative to the base (`Observation/abc`, `Device?identifier=x`).
    pub path: String,
    /// Body of a PUT.
    pub resource: Option<Value>,
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
            resource: Some(resource),
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
    Answers(Vec<Option<Answer>>),
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
    /// Entries per Bundle now.
    entries: usize,
    bundles: bool,
}

impl Server {
    /// The server at `base`.
    pub fn new(base: &str, http: Http, authorizer: Authorizer, trust: ClockTrust) -> Server {
        Server {
            base: base.trim_end_matches('/').to_owned(),
            http,
            authorizer,
            trust,
            entries: FIRST_ENTRIES,
            bundles: true,
        }
    }

    /// Sends the entries, as many at a time as the server takes.
    pub async fn send(&mut self, entries: &[Entry]) -> Exchange {
        let mut answers: Vec<Option<Answer>> = vec![None; entries.len()];
        let bodies: Vec<Vec<u8>> = entries.iter().map(body_of).collect();
        let mut queue: VecDeque<Range<usize>> = VecDeque::new();
        if !entries.is_empty() {
            queue.push_back(0..entries.len());
        }
        while let Some(whole) = queue.pop_front() {
            let part = self.part(&bodies, &whole);
            if part.end < whole.end {
                queue.push_front(part.end..whole.end);
            }
            let (Some(of_part), Some(bodies)) = (entries.get(part.clone()), bodies.get(part.clone())) else {
                break;
            };
            let began = clock::monotonic_us();
            let sent = match of_part {
                [one] if !self.bundles => self.send_alone(one).await,
                _ => self.send_bundle(of_part, bodies).await,
            };
            match sent {
                Sent::Answers(got) => {
                    let busy = got.iter().flatten().any(Answer::is_passing);
                    for (slot, answer) in answers.iter_mut().skip(part.start).zip(got) {
                        *slot = answer;
                    }
                    if busy {
                        // After the first 429 of a batch the rest of it is 429 too: wait before anything else.
                        self.shrink(part.len());
                        let down = Down::new(
                            "FhirServiceException",
                            "the server asks to slow down (429 or 503 for parts of a batch)",
                        );
                        return Exchange {
                            answers,
                            down: Some(down),
                        };
                    }
                    if part.len() >= self.entries && clock::monotonic_us() - began < SLOW_US {
                        self.entries = (self.entries + self.entries / 2 + 1).min(MOST_ENTRIES);
                    }
                }
                Sent::Refused(_) if part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    queue.push_front(middle..part.end);
                    queue.push_front(part.start..middle);
                }
                Sent::Refused(answer) => match of_part {
                    [one] if answer.status != 413 => match self.send_alone(one).await {
                        Sent::Answers(mut got) => {
                            // What goes alone and not in a Bundle of one: this server has no use for Bundles.
                            let taken = got
                                .first()
                                .is_some_and(|a| a.as_ref().is_some_and(Answer::is_success));
                            self.bundles &= !taken;
                            if let (Some(slot), Some(answer)) = (answers.get_mut(part.start), got.pop()) {
                                *slot = answer;
                            }
                        }
                        Sent::Down(down) => {
                            return Exchange {
                                answers,
                                down: Some(down),
                            };
                        }
                        Sent::Refused(_) | Sent::NoBundles => {}
                    },
                    _ => {
                        if let Some(slot) = answers.get_mut(part.start) {
                            *slot = Some(answer);
                        }
                    }
                },
                Sent::NoBundles => {
                    self.bundles = false;
                    queue.push_front(part);
                }
                Sent::Down(down) => {
                    self.shrink(part.len());
                    return Exchange {
                        answers,
                        down: Some(down),
                    };
                }
            }
        }
        Exchange { answers, down: None }
    }

    fn shrink(&mut self, tried: usize) {
        self.entries = (tried / 2).clamp(1, self.entries);
    }

    /// The first entries of `whole` that fit into one Bundle.
    fn part(&self, bodies: &[Vec<u8>], whole: &Range<usize>) -> Range<usize> {
        let most = if self.bundles { self.entries } else { 1 };
        let mut bytes = 0;
        let fits = bodies
            .iter()
            .skip(whole.start)
            .take(whole.len().min(most))
            .take_while(|body| {
                bytes += body.len();
                bytes <= MOST_BYTES
            })
            .count();
        whole.start..whole.start + fits.max(1)
    }

    async fn send_bundle(&mut self, entries: &[Entry], bodies: &[Vec<u8>]) -> Sent {
        let mut body = br#"{"resourceType":"Bundle","type":"batch","entry":["#.to_vec();
        body.extend_from_slice(&bodies.join(&b','));
        body.extend_from_slice(b"]}");
        let mut request = HttpRequest::with_body(Method::Post, &self.base, body)
            .header("content-type", FHIR_JSON)
            .header("accept", FHIR_JSON);
        if entries.iter().all(|entry| entry.method == Method::Put) {
            request = request.header("prefer", "return=minimal");
        }
        if self.base.contains(".azurehealthcareapis.com") {
            request = request.header("x-bundle-processing-logic", "parallel");
        }
        let response = match self.ask(request).await {
            Ok(response) => response,
            Err(down) => return Sent::Down(down),
        };
        match response.status {
            200..300 => match bundle_answers(&response, entries.len()) {
                Some(answers) => Sent::Answers(answers),
                None => Sent::Down(no_fhir(&response)),
            },
            400 | 409 | 412 | 413 | 422 if is_fhir(&response) || response.status == 413 => {
                Sent::Refused(Answer::of_response(&response))
            }
            404 | 405 | 501 => match self.is_fhir_server().await {
                Ok(true) => Sent::NoBundles,
                Ok(false) => Sent::Down(no_server(&self.base, response.status)),
                Err(down) => Sent::Down(down),
            },
            _ => Sent::Down(self.refusal(&response)),
        }
    }

    async fn send_alone(&mut self, entry: &Entry) -> Sent {
        let url = format!("{}/{}", self.base, entry.path);
        let mut request = match &entry.resource {
            Some(resource) => HttpRequest::with_body(entry.method, url, resource.to_string().into_bytes())
                .header("content-type", FHIR_JSON)
                .header("prefer", "return=minimal"),
            None => HttpRequest::get(url),
        }
        .header("accept", FHIR_JSON);
        if let Some(version) = &entry.if_match {
            request = request.header("if-match", etag(version));
        }
        if entry.if_none_match {
            request = request.header("if-none-match", "*");
        }
        let response = match self.ask(request).await {
            Ok(response) => response,
            Err(down) => return Sent::Down(down),
        };
        let answer = Answer::of_response(&response);
        let understood = answer.resource.is_some() || answer.outcome.is_some() || response.body.is_empty();
        match response.status {
            401 | 403 => Sent::Down(self.refusal(&response)),
            _ if answer.is_passing() || response.status >= 500 && !understood => {
                Sent::Down(self.refusal(&response))
            }
            _ if !understood => Sent::Down(no_fhir(&response)),
            _ => Sent::Answers(vec![Some(answer)]),
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
    pub async fn takes_client_ids(&mut self) -> Option<bool> {
        let url = format!("{}/metadata", self.base);
        let response = self
            .ask(HttpRequest::get(url).header("accept", FHIR_JSON))
            .await
            .ok()?;
        let statement: Value = serde_json::from_slice(response.body.bytes()).ok()?;
        let rest = statement.get("rest")?.as_array()?;
        let resources = rest
            .iter()
            .filter_map(|rest| rest.get("resource")?.as_array())
            .flatten();
        let mut observations =
            resources.filter(|r| r.get("type").and_then(Value::as_str) == Some("Observation"));
        observations.find_map(|resource| resource.get("updateCreate")?.as_bool())
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
