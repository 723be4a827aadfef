//! A strict Event Hubs REST endpoint over TLS: it takes what Azure documents and refuses everything else, and says why.
//! Nothing of the agent is used here: HTTP, signature and sizes are checked by other code.
//!
//! What it checks (learn.microsoft.com, rest/api/eventhub): method, path, `api-version=2014-01`, `timeout`, `Host`, the
//! content type of a batch without parameters or of a single event, `Content-Length`, the shared access signature with its expiry and resource,
//! the JSON array and the members of its elements, and the size of the whole publication. An accepted publication is
//! answered with 201 and an empty body.

mod check;

pub use check::{Publication, Refusal, Request, check};

use serde_json::{Map, Value};
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the endpoint stands for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Host name of the namespace, in certificate and `Host`.
    pub namespace: String,
    /// Name of the event hub.
    pub hub: String,
    /// Shared access rule with the right to send, and its key.
    pub rule: (String, String),
    /// Largest publication in bytes, with its head: 262144 for the Basic tier, 1048576 otherwise.
    pub limit: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            namespace: "ward-tests.servicebus.windows.net".to_owned(),
            hub: "devicedata".to_owned(),
            rule: ("gateway".to_owned(), "c2VjcmV0LWtleS1mb3ItdGVzdHM=".to_owned()),
            limit: 1_048_576,
        }
    }
}

/// How the endpoint fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Answers with this status and `Retry-After` in seconds.
    Answer(u16, Option<u32>),
    /// Takes the publication and ends the connection before the answer.
    ResetAfterCommit,
    /// Answers late.
    Delay(Duration),
    /// Ends every connection at once.
    Down,
    /// Refuses publications that hold this text, with 400.
    RefuseText(String),
}

/// An event that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenEvent {
    /// Its body, decoded where it was base64.
    pub body: Vec<u8>,
    /// User properties.
    pub properties: Map<String, Value>,
    /// Partition key of its publication.
    pub partition_key: Option<String>,
    /// Number of its publication, from 0.
    pub publication: usize,
}

impl TakenEvent {
    /// The stable id that the agent gives every event.
    pub fn id(&self) -> &str {
        self.properties
            .get("bedside-event-id")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

#[derive(Default)]
struct State {
    events: Vec<TakenEvent>,
    publications: usize,
    requests: usize,
    refusals: Vec<String>,
    standing: Option<Fault>,
    next: VecDeque<Fault>,
    connections: usize,
    in_flight: HashMap<String, usize>,
    taken_between: Option<(Instant, Instant)>,
    taken_bytes: usize,
    most_in_flight: usize,
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
    stop: AtomicBool,
}

/// A running endpoint; it ends when it is dropped.
pub struct EventHubEndpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

impl EventHubEndpoint {
    /// Starts an endpoint on a free port of the loopback interface, with a certificate of its own.
    pub fn start(settings: Settings) -> EventHubEndpoint {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(vec![settings.namespace.clone()])
            .and_then(|parameters| parameters.self_signed(&key))
            .expect("a certificate");
        let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a PKCS#8 key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .expect("certificate and key fit");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("the certificate is written");
        std::fs::write(folder.path().join("key"), &settings.rule.1).expect("the key is written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = EventHubEndpoint {
            address: listener.local_addr().expect("an address"),
            shared: Arc::new(Shared {
                settings,
                state: Mutex::default(),
                stop: AtomicBool::new(false),
            }),
            folder,
        };
        let shared = Arc::clone(&endpoint.shared);
        let tls = Arc::new(tls);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, tls) = (Arc::clone(&shared), Arc::clone(&tls));
                std::thread::spawn(move || serve(socket, tls, &shared));
            }
        });
        endpoint
    }

    /// `127.0.0.1:PORT`, for the member `endpoint` of the destination.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// PEM file of the authority to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// File that holds the key of the rule.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// The settings it was started with.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// A `[[destination]]` of `agent.toml` that sends here.
    pub fn destination(&self, name: &str, payload: &str) -> String {
        let Settings {
            namespace, hub, rule, ..
        } = &self.shared.settings;
        format!(
            "[[destination]]\nname = \"{name}\"\nkind = \"event-hub\"\nnamespace = \"{namespace}\"\nhub = \"{hub}\"\n\
             payload = \"{payload}\"\nendpoint = \"{}\"\nmax_batch_bytes = {}\ntls = {{ ca_file = \"{}\" }}\n\
             auth = {{ kind = \"sas\", key_name = \"{}\", key = \"file:{}\" }}\n",
            self.address(),
            self.shared.settings.limit,
            self.ca_file().display(),
            rule.0,
            self.key_file().display()
        )
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no thread panics with the state")
    }

    /// Everything that was taken, in order.
    pub fn events(&self) -> Vec<TakenEvent> {
        self.state().events.clone()
    }

    /// How many were taken.
    pub fn taken(&self) -> usize {
        self.state().events.len()
    }

    /// When the first and the last publication were taken.
    pub fn taken_between(&self) -> Option<(Instant, Instant)> {
        self.state().taken_between
    }

    /// Bytes of the publications that were taken, with their heads.
    pub fn taken_bytes(&self) -> usize {
        self.state().taken_bytes
    }

    /// Requests that were read whole.
    pub fn requests(&self) -> usize {
        self.state().requests
    }

    /// Publications that were taken.
    pub fn publications(&self) -> usize {
        self.state().publications
    }

    /// Why requests were refused, in order, without those that a fault refused.
    pub fn refusals(&self) -> Vec<String> {
        self.state().refusals.clone()
    }

    /// Connections that were made.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Most publications of one partition key that were open at one time.
    pub fn most_in_flight(&self) -> usize {
        self.state().most_in_flight
    }

    /// From now on every request fails in this way, or none.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().standing = fault;
    }

    /// The next requests fail, one in each of these ways.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().next.extend(faults);
    }
}

impl Drop for EventHubEndpoint {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread; whether it succeeds does not matter at the end.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(socket: TcpStream, tls: Arc<rustls::ServerConfig>, shared: &Shared) {
    {
        let mut state = shared.state.lock().expect("no thread panics with the state");
        state.connections += 1;
        if state.standing == Some(Fault::Down) {
            return;
        }
    }
    let Ok(connection) = rustls::ServerConnection::new(tls) else {
        return;
    };
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, socket));
    loop {
        let request = match read_request(&mut stream, shared.settings.limit) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err((status, text)) => {
                shared
                    .state
                    .lock()
                    .expect("no thread panics with the state")
                    .refusals
                    .push(text.clone());
                // What is left of the request is not known: the connection ends.
                let _ = stream.get_mut().write_all(&response(status, &text, None));
                stream.get_mut().conn.send_close_notify();
                let _ = stream.get_mut().flush();
                return;
            }
        };
        let Some(answer) = answer(&request, shared) else {
            return;
        };
        if stream.get_mut().write_all(&answer).is_err() || stream.get_mut().flush().is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut impl BufRead, limit: usize) -> Result<Option<Request>, Refusal> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match stream.read_line(&mut head) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) if head.len() > 16_384 => return Err((431, "the head is too large".to_owned())),
            Ok(_) => {}
        }
    }
    let mut lines = head.trim_end().split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = words.as_slice() else {
        return Err((400, "the request line is not HTTP/1.1".to_owned()));
    };
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request {
        method: (*method).to_owned(),
        target: (*target).to_owned(),
        headers,
        body: Vec::new(),
        size: head.len(),
    };
    let length = request
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok());
    let Some(length) = length else {
        return Err((411, "there is no Content-Length".to_owned()));
    };
    request.size += length;
    if request.size > limit {
        // A front end reads a little too much to its end, and ends the connection on much too much.
        if request.size < 4 * limit {
            let mut body = vec![0; length];
            let _ = stream.read_exact(&mut body);
        }
        return Err((
            413,
            format!(
                "the publication has {} bytes, the tier takes {limit}",
                request.size
            ),
        ));
    }
    request.body = vec![0; length];
    match stream.read_exact(&mut request.body) {
        Ok(()) => Ok(Some(request)),
        Err(_) => Ok(None),
    }
}

/// The answer to a request; `None` ends the connection.
fn answer(request: &Request, shared: &Shared) -> Option<Vec<u8>> {
    let lock = || shared.state.lock().expect("no thread panics with the state");
    let fault = {
        let mut state = lock();
        state.requests += 1;
        state.next.pop_front().or_else(|| state.standing.clone())
    };
    let checked = check(request, &shared.settings, unix_now());
    let key = checked
        .as_ref()
        .ok()
        .and_then(|(key, _)| key.clone())
        .unwrap_or_default();
    {
        let mut state = lock();
        let open = state.in_flight.entry(key.clone()).or_default();
        *open += 1;
        let open = *open;
        state.most_in_flight = state.most_in_flight.max(open);
    }
    let answered = match (&fault, checked) {
        (Some(Fault::Down), _) => None,
        (_, Err((status, text))) => {
            lock().refusals.push(text.clone());
            Some(response(status, &text, None))
        }
        (Some(Fault::Answer(status, after)), Ok(_)) => Some(response(*status, "told to refuse", *after)),
        (Some(Fault::RefuseText(text)), Ok(_)) if contains(&request.body, text) => {
            Some(response(400, "told to refuse an event", None))
        }
        (fault, Ok((key, events))) => {
            let mut state = lock();
            let publication = state.publications;
            state.publications += 1;
            let now = Instant::now();
            let first = state.taken_between.map_or(now, |(first, _)| first);
            state.taken_between = Some((first, now));
            state.taken_bytes += request.size;
            state
                .events
                .extend(events.into_iter().map(|(body, properties)| TakenEvent {
                    body,
                    properties,
                    partition_key: key.clone(),
                    publication,
                }));
            drop(state);
            match fault {
                Some(Fault::ResetAfterCommit) => None,
                Some(Fault::Delay(time)) => {
                    std::thread::sleep(*time);
                    Some(created())
                }
                _ => Some(created()),
            }
        }
    };
    if let Some(open) = lock().in_flight.get_mut(&key) {
        *open -= 1;
    }
    answered
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

fn created() -> Vec<u8> {
    b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nServer: Microsoft-HTTPAPI/2.0\r\n\r\n".to_vec()
}

fn response(status: u16, text: &str, retry_after: Option<u32>) -> Vec<u8> {
    let body = format!("<Error><Code>{status}</Code><Detail>{text}. TrackingId:0</Detail></Error>");
    let after = retry_after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Refused\r\nContent-Type: application/xml; charset=utf-8\r\n{after}Content-Length: {length}\r\n\r\n\
         {body}"
    )
    .into_bytes()
}
