//! HTTP for destinations: blocking requests on threads of their own, behind a seam.
//!
//! Invariants:
//! 1. Nothing waits for ever: every phase of a request has a time limit, and a response a size limit.
//! 2. A request with credentials goes to the address that the configuration names and nowhere else: such a request
//!    follows no redirect, any other only on the same host.
//! 3. A proxy is used only where the configuration names one; the environment is not asked.
//! 4. A response is always read to its end, so that the connection can be used again.
//! 5. The text of an error says what to do and holds no payload and no credential.

use super::endpoint::FixedEndpoint;
use crate::config::{SecretRef, TlsConfig};
use crate::message::Payload;
use crate::worker::Worker;
use bytes::Bytes;
use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use ureq::http::{self, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts};

/// Time limits of a request. A batch may keep a server busy for a while, so the limits are those of a patient client.
const CONNECT_TIME: Duration = Duration::from_secs(15);
const SEND_TIME: Duration = Duration::from_secs(60);
const ANSWER_TIME: Duration = Duration::from_secs(60);
const PAUSE_TIME: Duration = Duration::from_secs(30);
const WHOLE_TIME: Duration = Duration::from_secs(150);

/// Largest response after decompression, in bytes.
const MAX_RESPONSE: u64 = 16 * 1024 * 1024;

/// Redirects that are followed on one host.
const MAX_REDIRECTS: usize = 3;

/// Method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
}

impl Method {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        }
    }
}

/// A request. `Debug` shows neither credential nor payload.
#[derive(Clone)]
pub struct HttpRequest {
    /// Method.
    pub method: Method,
    /// Absolute address.
    pub url: String,
    /// Headers apart from `Authorization`.
    pub headers: Vec<(&'static str, String)>,
    /// Value of the `Authorization` header.
    pub authorization: Option<String>,
    /// Body; empty for GET.
    pub body: Payload,
}

impl HttpRequest {
    /// A GET without headers.
    pub fn get(url: impl Into<String>) -> HttpRequest {
        HttpRequest {
            method: Method::Get,
            url: url.into(),
            headers: Vec::new(),
            authorization: None,
            body: Payload::default(),
        }
    }

    /// A request with a body.
    pub fn with_body(method: Method, url: impl Into<String>, body: impl Into<Bytes>) -> HttpRequest {
        HttpRequest {
            method,
            body: Payload(body.into()),
            ..HttpRequest::get(url)
        }
    }

    /// The same request with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> HttpRequest {
        self.headers.push((name, value.into()));
        self
    }
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query may hold identifiers: only the path is shown.
        let path = self.url.split('?').next().unwrap_or_default();
        write!(f, "{} {path} {:?}", self.method.name(), self.body)
    }
}

/// A response, whatever its status.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Headers; names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, decompressed.
    pub body: Payload,
}

impl HttpResponse {
    /// The first header called `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(have, _)| have == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// How long the server wants to be left alone, at most an hour: `x-ms-retry-after-ms`, or `Retry-After` as seconds or
    /// as a date. A date is compared with the server's own, so that our clock does not matter.
    pub fn retry_after(&self) -> Option<embassy_time::Duration> {
        const LONGEST_MS: u64 = 3_600_000;
        let from_milliseconds = self
            .header("x-ms-retry-after-ms")
            .and_then(|text| text.trim().parse::<u64>().ok());
        let milliseconds = from_milliseconds.or_else(|| {
            let text = self.header("retry-after")?.trim();
            if let Ok(seconds) = text.parse::<u64>() {
                return Some(seconds.saturating_mul(1000));
            }
            let until = http_date(text)?;
            let now = self
                .header("date")
                .and_then(http_date)
                .unwrap_or_else(|| crate::clock::wall().ticks().div_euclid(10_000_000));
            u64::try_from(until.saturating_sub(now)).ok()?.checked_mul(1000)
        })?;
        Some(embassy_time::Duration::from_millis(milliseconds.min(LONGEST_MS)))
    }
}

/// Unix seconds of a date as HTTP writes it.
fn http_date(text: &str) -> Option<i64> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    parser.parse_timestamp(text).ok().map(|time| time.as_second())
}

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpErrorKind {
    /// No connection: name, route, refusal.
    Connect,
    /// A time limit. Whether the server has worked on the request is unknown.
    Timeout,
    /// TLS failed.
    Tls {
        /// The certificate is not valid at the time of our clock, which may be wrong.
        clock: bool,
    },
    /// The connection ended in the middle. Whether the server has worked on the request is unknown.
    Reset,
    /// The response is larger than the limit.
    TooLarge,
    /// A redirect that is not followed.
    Redirect,
    /// The proxy refused.
    Proxy,
    /// What came is not HTTP.
    Protocol,
    /// The request or the client cannot be built: address, header, certificate file.
    Setup,
    /// The program is stopping.
    Stopped,
}

/// Why there is no response, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpError {
    /// Kind.
    pub kind: HttpErrorKind,
    /// What went wrong and what to do.
    pub text: String,
}

impl HttpError {
    /// An error.
    pub fn new(kind: HttpErrorKind, text: impl Into<String>) -> HttpError {
        HttpError {
            kind,
            text: text.into(),
        }
    }
}

/// Executes a request on the caller's thread. The real one is [`UreqClient`]; a simulation brings its own.
pub trait HttpClient: Send + Sync {
    /// Sends the request and waits for the whole response, whatever its status.
    ///
    /// # Errors
    /// When there is no response.
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError>;
}

/// A client with the threads that its requests run on.
#[derive(Clone)]
pub struct Http {
    /// Where requests run: threads of their own, or inline in simulation.
    pub worker: Worker,
    /// What sends them.
    pub client: Arc<dyn HttpClient>,
}

impl Http {
    /// A client over real sockets with `threads` threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn real(
        name: &str,
        threads: usize,
        tls: &TlsConfig,
        proxy: Option<&str>,
    ) -> Result<Http, std::io::Error> {
        Ok(Http {
            worker: Worker::threads(name, threads)?,
            client: Arc::new(UreqClient::new(tls.clone(), proxy.map(str::to_owned))),
        })
    }

    /// Sends the request on a thread of the worker.
    ///
    /// # Errors
    /// When there is no response.
    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let client = Arc::clone(&self.client);
        self.worker
            .call(move || client.execute(request))
            .await
            .unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Stopped, "the program is stopping")))
    }
}

/// Scheme, host and port of an address, in lower case; `None` when it is no absolute http or https address.
pub fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let standard = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let host = uri.host()?.to_ascii_lowercase();
    Some(format!(
        "{scheme}://{host}:{}",
        uri.port_u16().unwrap_or(standard)
    ))
}

/// `text` as a part of a query or form: everything but unreserved characters (RFC 3986, 2.3) is escaped.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// HTTPS over real sockets. Certificate and key files are read again when they change.
pub struct UreqClient {
    tls: TlsConfig,
    proxy: Option<String>,
    endpoint: Option<String>,
    agent: Mutex<Option<(Vec<Option<SystemTime>>, ureq::Agent)>>,
}

impl UreqClient {
    /// A client that trusts and shows the certificates of `tls` and uses `proxy` if it is given.
    pub fn new(tls: TlsConfig, proxy: Option<String>) -> UreqClient {
        UreqClient {
            tls,
            proxy,
            endpoint: None,
            agent: Mutex::new(None),
        }
    }

    /// The same client, connecting to `host:port` whatever the address says; the name in the certificate stays.
    #[must_use]
    pub fn connecting_to(mut self, endpoint: Option<String>) -> UreqClient {
        self.endpoint = endpoint;
        self
    }

    fn watched_files(&self) -> impl Iterator<Item = &PathBuf> {
        let key = match &self.tls.key {
            Some(SecretRef::File(path)) => Some(path),
            _ => None,
        };
        [self.tls.ca_file.as_ref(), self.tls.cert_file.as_ref(), key]
            .into_iter()
            .flatten()
    }

    fn agent(&self) -> Result<ureq::Agent, HttpError> {
        let changed: Vec<Option<SystemTime>> = self
            .watched_files()
            .map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
            .collect();
        let stopped = |_| HttpError::new(HttpErrorKind::Stopped, "a request has panicked");
        let mut cached = self.agent.lock().map_err(stopped)?;
        match cached.as_ref() {
            Some((then, agent)) if *then == changed => Ok(agent.clone()),
            _ => {
                let agent = self.build()?;
                *cached = Some((changed, agent.clone()));
                Ok(agent)
            }
        }
    }

    fn build(&self) -> Result<ureq::Agent, HttpError> {
        let setup = |text: String| HttpError::new(HttpErrorKind::Setup, text);
        let proxy = match &self.proxy {
            Some(address) => Some(ureq::Proxy::new(address).map_err(|_| {
                setup("the address of the proxy is wrong: write it as \"http://proxy:3128\"".to_owned())
            })?),
            None => None,
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(self.tls_config()?)
            .user_agent(concat!("bedside-agent/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(WHOLE_TIME))
            .timeout_resolve(Some(CONNECT_TIME))
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_send_request(Some(SEND_TIME))
            .timeout_send_body(Some(SEND_TIME))
            .timeout_recv_response(Some(ANSWER_TIME))
            .timeout_per_read(Some(PAUSE_TIME.max(ANSWER_TIME)))
            .input_buffer_size(16 * 1024)
            .output_buffer_size(32 * 1024)
            .max_idle_connections_per_host(4)
            .build();
        match &self.endpoint {
            None => Ok(config.new_agent()),
            Some(endpoint) => {
                let resolver = FixedEndpoint::new(endpoint)
                    .ok_or_else(|| setup(format!("\"{endpoint}\" is no endpoint: write host:port")))?;
                let connector = ureq::unversioned::transport::DefaultConnector::default();
                Ok(ureq::Agent::with_parts(config, connector, resolver))
            }
        }
    }

    fn tls_config(&self) -> Result<ureq::tls::TlsConfig, HttpError> {
        let setup = |text: String| HttpError::new(HttpErrorKind::Setup, text);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = match &self.tls.ca_file {
            Some(path) => {
                let certificates = certificates(&read_file(path)?);
                if certificates.is_empty() {
                    return Err(setup(format!(
                        "{} holds no certificate: it must be a PEM file",
                        path.display()
                    )));
                }
                RootCerts::new_with_certs(&certificates)
            }
            None => RootCerts::WebPki,
        };
        let client = match (&self.tls.cert_file, &self.tls.key) {
            (Some(path), Some(key)) => {
                let chain = certificates(&read_file(path)?);
                if chain.is_empty() {
                    return Err(setup(format!(
                        "{} holds no certificate: it must be a PEM file",
                        path.display()
                    )));
                }
                let key = key.read().map_err(|error| setup(error.to_string()))?;
                let key = PrivateKey::from_pem(key.reveal().as_bytes()).map_err(|_| {
                    setup("the key of the client certificate is no PEM private key".to_owned())
                })?;
                Some(ClientCert::new_with_certs(&chain, key))
            }
            (None, None) => None,
            _ => {
                return Err(setup(
                    "a client certificate needs both cert_file and key in tls".to_owned(),
                ));
            }
        };
        Ok(ureq::tls::TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(roots)
            .client_cert(client)
            .build())
    }

    fn once(&self, agent: &ureq::Agent, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut builder = http::Request::builder()
            .method(request.method.name())
            .uri(&request.url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(value) = &request.authorization {
            builder = builder.header("authorization", value);
        }
        let failed = |error: ureq::Error| explain(&error, &request.url);
        let unusable = |_| HttpError::new(HttpErrorKind::Setup, "the address or a header cannot be sent");
        let mut response = match request.method {
            Method::Get => agent.run(builder.body(()).map_err(unusable)?),
            Method::Post | Method::Put => agent.run(builder.body(request.body.bytes()).map_err(unusable)?),
        }
        .map_err(failed)?;
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let mut body = Vec::new();
        response
            .body_mut()
            .as_reader()
            .take(MAX_RESPONSE + 1)
            .read_to_end(&mut body)
            .map_err(|error| explain_io(&error, &request.url))?;
        if body.len() as u64 > MAX_RESPONSE {
            return Err(HttpError::new(
                HttpErrorKind::TooLarge,
                format!("the answer of {} is larger than 16 MiB", host(&request.url)),
            ));
        }
        Ok(HttpResponse {
            status: response.status().as_u16(),
            headers,
            body: Payload(body.into()),
        })
    }
}

impl HttpClient for UreqClient {
    fn execute(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let agent = self.agent()?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&agent, &request)?;
            match redirect(&request, &response)? {
                Some(target) => request.url = target,
                None => return Ok(response),
            }
        }
        Err(HttpError::new(
            HttpErrorKind::Redirect,
            format!("{} redirects in a circle", host(&request.url)),
        ))
    }
}

/// Where the response sends us, if we go there (invariant 2).
fn redirect(request: &HttpRequest, response: &HttpResponse) -> Result<Option<String>, HttpError> {
    if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.header("location") else {
        return Ok(None);
    };
    let here = origin(&request.url);
    let target = if location.starts_with('/') && !location.starts_with("//") {
        format!("{}{location}", here.clone().unwrap_or_default())
    } else {
        location.to_owned()
    };
    // After 301 to 303 many clients repeat a POST as a GET: a write must not turn into a read.
    let keeps_method = request.method == Method::Get || matches!(response.status, 307 | 308);
    if origin(&target) == here && request.authorization.is_none() && keeps_method {
        return Ok(Some(target));
    }
    Err(HttpError::new(
        HttpErrorKind::Redirect,
        format!(
            "{} redirects to {}, which is not followed: if that is the right address, write it into the configuration",
            host(&request.url),
            origin(&target).unwrap_or_else(|| "an address that is none".to_owned())
        ),
    ))
}

fn read_file(path: &PathBuf) -> Result<Vec<u8>, HttpError> {
    std::fs::read(path).map_err(|error| {
        HttpError::new(
            HttpErrorKind::Setup,
            format!("{} cannot be read: {error}", path.display()),
        )
    })
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    ureq::tls::parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

fn host(url: &str) -> String {
    origin(url).unwrap_or_else(|| "the server".to_owned())
}

fn explain(error: &ureq::Error, url: &str) -> HttpError {
    use HttpErrorKind as K;
    let host = host(url);
    match error {
        ureq::Error::HostNotFound => HttpError::new(
            K::Connect,
            format!("the name of {host} cannot be resolved: check the address and the DNS of this gateway"),
        ),
        ureq::Error::ConnectionFailed => {
            HttpError::new(K::Connect, format!("no connection to {host}: check the network"))
        }
        ureq::Error::Timeout(phase) => HttpError::new(
            match phase {
                ureq::Timeout::Resolve | ureq::Timeout::Connect => K::Connect,
                _ => K::Timeout,
            },
            format!("{host} did not answer in time ({phase})"),
        ),
        ureq::Error::Rustls(error) => explain_tls(error, &host),
        ureq::Error::Tls(text) => {
            HttpError::new(K::Tls { clock: false }, format!("TLS with {host} failed: {text}"))
        }
        ureq::Error::Pem(_) => HttpError::new(K::Setup, "a certificate or key file is no PEM"),
        ureq::Error::Io(error) => explain_io(error, url),
        ureq::Error::BodyExceedsLimit(_) | ureq::Error::LargeResponseHeader(..) => {
            HttpError::new(K::TooLarge, format!("the answer of {host} is too large"))
        }
        ureq::Error::ConnectProxyFailed(answer) => HttpError::new(
            K::Proxy,
            format!("the proxy refused to connect to {host}: {}", first_line(answer)),
        ),
        ureq::Error::InvalidProxyUrl => HttpError::new(K::Setup, "the address of the proxy is wrong"),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            HttpError::new(K::Setup, format!("the address {host} or a header cannot be used"))
        }
        ureq::Error::Decompress(..) => HttpError::new(
            K::Protocol,
            format!("the answer of {host} cannot be decompressed"),
        ),
        other => HttpError::new(
            K::Protocol,
            format!(
                "{host} does not speak HTTP as it should: {}",
                first_line(&other.to_string())
            ),
        ),
    }
}

fn explain_io(error: &std::io::Error, url: &str) -> HttpError {
    use HttpErrorKind as K;
    let inner = error.get_ref();
    if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return explain_tls(error, &host(url));
    }
    if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        return explain(error, url);
    }
    if let Some(error) = inner
        .and_then(|inner| inner.source())
        .and_then(|source| source.downcast_ref::<rustls::Error>())
    {
        return explain_tls(error, &host(url));
    }
    let host = host(url);
    match error.kind() {
        ErrorKind::ConnectionRefused => HttpError::new(
            K::Connect,
            format!("{host} refuses connections: check the port and whether the server runs"),
        ),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => {
            HttpError::new(
                K::Connect,
                format!("no route to {host}: check the network of this gateway"),
            )
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            HttpError::new(K::Timeout, format!("{host} did not answer in time"))
        }
        _ => HttpError::new(
            K::Reset,
            format!("the connection to {host} broke ({})", error.kind()),
        ),
    }
}

fn explain_tls(error: &rustls::Error, host: &str) -> HttpError {
    use rustls::CertificateError as C;
    let (clock, text) = match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            C::Expired | C::ExpiredContext { .. } => (
                true,
                format!("the certificate of {host} has expired, or the clock of this gateway is wrong"),
            ),
            C::NotValidYet | C::NotValidYetContext { .. } => (
                true,
                format!("the certificate of {host} is not valid yet, or the clock of this gateway is wrong"),
            ),
            C::UnknownIssuer => (
                false,
                format!(
                    "the certificate of {host} is signed by an authority that is not trusted: name it in tls.ca_file"
                ),
            ),
            C::NotValidForName | C::NotValidForNameContext { .. } => (
                false,
                format!("the certificate of {host} is for another name: check the address"),
            ),
            other => (false, format!("the certificate of {host} is refused: {other}")),
        },
        rustls::Error::AlertReceived(alert) => (
            false,
            format!(
                "{host} ended TLS with {alert:?}: it may want a client certificate (tls.cert_file, tls.key)"
            ),
        ),
        other => (false, format!("TLS with {host} failed: {other}")),
    };
    HttpError::new(HttpErrorKind::Tls { clock }, text)
}

fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(120)
        .collect()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
