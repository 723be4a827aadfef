//! A FHIR R4 server in memory: a small, honest subset for the demo and for tests. What it does not do it answers with an
//! OperationOutcome, 404 for other resource types and 501 for other interactions and search parameters.
//!
//! It keeps Device, Patient, Encounter, Observation and DeviceUseStatement; read, create, update (also conditional), search, versions with
//! `If-Match` and `If-None-Match`, batch and transaction; versions of Devices on request. No delete, patch, profiles or terminology. A reference
//! must point at a resource of this server.
//!
//! A [`FhirServer`] can be told to fail as servers do, and shows what it holds.

mod bundle;
mod in_process;
mod interact;
mod outcome;
mod search;
mod store;
mod validate;

pub use store::Kind;

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use interact::{Answer, Body, Context, Request};
use outcome::Refusal;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Path of the base address.
const BASE_PATH: &str = "/fhir";

/// Largest request body in bytes.
const BODY_LIMIT: usize = 32 << 20;

/// How a server fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every request is answered with this status, and `Retry-After` in seconds.
    Refuse(u16, Option<u32>),
    /// Every request is carried out, and the connection ends before the answer.
    LoseAnswer,
    /// The same for requests that write; what is only read is answered.
    LoseAnswerOfWrite,
}

impl Fault {
    /// Whether the answer to a request is lost that was carried out.
    fn loses(self, request: &[u8]) -> bool {
        let writes = || request.windows(5).any(|word| word == b"\"PUT\"");
        self == Fault::LoseAnswer || (self == Fault::LoseAnswerOfWrite && writes())
    }
}

/// What the server holds and what it was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices.
    pub devices: usize,
    /// Patients.
    pub patients: usize,
    /// Encounters.
    pub encounters: usize,
    /// Observations.
    pub observations: usize,
    /// HTTP requests, refused ones too.
    pub requests: u64,
    /// HTTP requests answered with 4xx or 5xx.
    pub refused: u64,
}

#[derive(Default)]
struct Inner {
    store: Store,
    fault: Option<Fault>,
    requests: u64,
    refused: u64,
}

struct Shared {
    base: String,
    inner: Mutex<Inner>,
    stop: Notify,
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A change of the store is complete or undone before anything that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server. Clones are handles to the same one; it runs until [`FhirServer::stop`].
#[derive(Clone)]
pub struct FhirServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FhirServer {
    /// A server that is reached within the process only ([`FhirServer::client`]), at `http://fhir.example/fhir`.
    pub fn in_process() -> FhirServer {
        FhirServer {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            shared: Arc::new(Shared {
                base: format!("http://fhir.example{BASE_PATH}"),
                inner: Mutex::default(),
                stop: Notify::new(),
            }),
        }
    }

    /// Serves `listener` in a task of the current runtime.
    ///
    /// # Errors
    /// When the address of the listener cannot be read.
    pub fn serve(listener: TcpListener) -> std::io::Result<FhirServer> {
        let address = listener.local_addr()?;
        let server = FhirServer {
            address,
            shared: Arc::new(Shared {
                base: format!("http://{address}{BASE_PATH}"),
                inner: Mutex::default(),
                stop: Notify::new(),
            }),
        };
        let router = axum::Router::new()
            .fallback(handle)
            .layer(DefaultBodyLimit::max(BODY_LIMIT))
            .with_state(Arc::clone(&server.shared));
        let shared = Arc::clone(&server.shared);
        tokio::spawn(async move {
            let stopped = async move { shared.stop.notified().await };
            if let Err(error) = axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
            {
                tracing::warn!(%error, "the demo FHIR server has stopped");
            }
        });
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Base address: `http://127.0.0.1:PORT/fhir`.
    pub fn url(&self) -> &str {
        &self.shared.base
    }

    /// Stops listening; open connections end with their request.
    pub fn stop(&self) {
        self.shared.stop.notify_one();
    }

    /// From now on every request fails in this way, or none.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.inner().fault = fault;
    }

    /// From now on versions of Devices are kept and told (`_history`).
    pub fn keep_versions(&self) {
        self.shared.inner().store.keep_versions();
    }

    /// From now on a new resource is invisible for searches for so many seconds.
    pub fn set_search_lag(&self, seconds: u32) {
        let ticks = i64::from(seconds) * 10_000_000;
        self.shared.inner().store.set_search_lag(ticks);
    }

    /// Writes a resource as a client's PUT would; its id must be in it.
    ///
    /// # Errors
    /// The OperationOutcome of the refusal.
    pub fn put(&self, resource: Value) -> Result<(), Value> {
        let name = resource
            .get("resourceType")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let request = Request {
            method: "PUT".to_owned(),
            path: format!("{name}/{}", interact::id_of(&resource)),
            body: Some(resource),
            ..Request::default()
        };
        let mut inner = self.shared.inner();
        perform(&mut inner.store, &self.shared.base, request, true)
            .map(drop)
            .map_err(|refusal| refusal.outcome())
    }

    /// What it holds and what it was asked.
    pub fn counts(&self) -> Counts {
        let inner = self.shared.inner();
        let of = |kind| inner.store.all(kind).count();
        Counts {
            devices: of(Kind::Device),
            patients: of(Kind::Patient),
            encounters: of(Kind::Encounter),
            observations: of(Kind::Observation),
            requests: inner.requests,
            refused: inner.refused,
        }
    }

    /// All resources of a type, by id.
    pub fn resources(&self, kind: Kind) -> Vec<Value> {
        self.shared
            .inner()
            .store
            .all(kind)
            .map(|stored| stored.resource.clone())
            .collect()
    }

    /// All Observations, by id.
    pub fn observations(&self) -> Vec<Value> {
        self.resources(Kind::Observation)
    }

    /// The Observation that was written last.
    pub fn last_observation(&self) -> Option<Value> {
        let inner = self.shared.inner();
        inner
            .store
            .last_observation()
            .map(|stored| stored.resource.clone())
    }
}

/// Carries out a request of its own or a Bundle.
fn perform(store: &mut Store, base: &str, mut request: Request, minimal: bool) -> Result<Answer, Refusal> {
    if request.path.is_empty() && request.method == "POST" {
        let bundle = request.body.take().unwrap_or_default();
        let answer = bundle::process(store, base, &bundle, minimal)?;
        return Ok(Answer {
            status: 200,
            body: Body::Plain(answer),
        });
    }
    Context {
        store,
        base,
        undo: Vec::new(),
        defer_references: false,
        next_id: None,
    }
    .perform(request)
}

/// Every HTTP request.
async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<HttpBody> {
    answer(&shared, &method, &uri, &headers, &body)
}

/// The response to a request, over HTTP or within the process.
fn answer(
    shared: &Shared,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response<HttpBody> {
    let mut guard = shared.inner();
    let inner = &mut *guard;
    inner.requests += 1;
    // `Prefer: return=minimal` is for what the client writes, not for what it reads.
    let minimal = *method != Method::GET
        && text(headers, "prefer").is_some_and(|prefer| prefer.contains("return=minimal"));
    let refusal_wanted = match inner.fault {
        Some(Fault::Refuse(status, after)) => Some((status, after)),
        _ => None,
    };
    let result = match refusal_wanted {
        Some((status, _)) => Err(Refusal::new(status, "transient", "told to refuse")),
        None => request_of(method, uri, headers, body)
            .and_then(|request| perform(&mut inner.store, &shared.base, request, minimal)),
    };
    inner.refused += u64::from(result.is_err());
    if inner.fault.is_some_and(|fault| fault.loses(body)) {
        return Response::new(HttpBody::new(LostAnswer));
    }
    let mut response = match result {
        Ok(answer) => respond(answer, minimal, &shared.base),
        Err(refusal) => json_response(refusal.status, &refusal.outcome()),
    };
    if let Some((_, Some(seconds))) = refusal_wanted {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

fn request_of(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Result<Request, Refusal> {
    let path = uri
        .path()
        .strip_prefix(BASE_PATH)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let Some(path) = path else {
        return Err(Refusal::new(
            404,
            "not-found",
            format!("the base of this server is {BASE_PATH}"),
        ));
    };
    let body = match body.is_empty() {
        true => None,
        false => {
            let kind = text(headers, "content-type").unwrap_or_default();
            if !kind.starts_with("application/fhir+json") && !kind.starts_with("application/json") {
                return Err(Refusal::new(
                    415,
                    "not-supported",
                    "the body is not application/fhir+json",
                ));
            }
            Some(
                serde_json::from_slice(body)
                    .map_err(|_| Refusal::new(400, "structure", "the body is not JSON"))?,
            )
        }
    };
    Ok(Request {
        method: method.as_str().to_owned(),
        path: path.trim_matches('/').to_owned(),
        query: interact::query(uri.query().unwrap_or_default())?,
        if_match: text(headers, "if-match"),
        if_none_match: text(headers, "if-none-match"),
        if_none_exist: text(headers, "if-none-exist"),
        body,
    })
}

fn respond(answer: Answer, minimal: bool, base: &str) -> Response<HttpBody> {
    let stored = match answer.body {
        Body::Plain(value) => return json_response(answer.status, &value),
        Body::None => return json_response(answer.status, &Value::Null),
        Body::Stored(stored) => stored,
    };
    let body = if minimal { &Value::Null } else { &stored.resource };
    let mut response = json_response(answer.status, body);
    let name = stored
        .resource
        .get("resourceType")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let id = interact::id_of(&stored.resource);
    let location = format!("{base}/{name}/{id}/_history/{}", stored.version);
    for (name, value) in [
        (header::ETAG, format!("W/\"{}\"", stored.version)),
        (header::LOCATION, location),
    ] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn json_response(status: u16, body: &Value) -> Response<HttpBody> {
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut response = Response::new(HttpBody::from(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/fhir+json"),
    );
    response
}

/// A body that breaks the connection.
struct LostAnswer;

impl axum::body::HttpBody for LostAnswer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())))
    }
}

#[cfg(test)]
mod tests;
