//! HTTP for destinations: blocking requests on threads of their own, behind a seam.
//!
//! Invariants:
//! 1. Nothing waits for ever: every phase of a request has a time limit, and a response a size limit.
//! 2. A request with credentials goes to the address that the configuration names and nowhere else: such a request
//!    follows no redirect, any other only on the same host.
//! 3. A proxy is used only where the configuration names one; the environment is not asked.
//! 4. A response is always read to its end, so that the connection can be used again.
//! 5. The text of an error says what to do and holds no payload and no credential.

mod client;
mod failure;

use crate::config::TlsConfig;
use crate::message::Payload;
use crate::worker::Worker;
use bytes::Bytes;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use ureq::http::Uri;

pub use client::UreqClient;
#[cfg(feature = "amqp")]
pub(crate) use failure::explain_io;

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
    /// Further headers whose names come from somewhere else.
    pub properties: Vec<(String, String)>,
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
            properties: Vec::new(),
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

    /// What the server takes for now (`Date`): Unix seconds.
    pub fn server_time(&self) -> Option<i64> {
        self.header("date").and_then(http_date)
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
                .server_time()
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

/// A request that is under way: its response.
pub type Requested = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>>>>;

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

    /// A client whose requests run on the caller's thread, for simulation.
    pub fn inline(client: Arc<dyn HttpClient>) -> Http {
        Http {
            worker: Worker::inline(),
            client,
        }
    }

    /// Sends the request on a thread of the worker.
    ///
    /// # Errors
    /// When there is no response.
    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.start(request).await
    }

    /// Sends the request now; what it gives is waited for later, so that several are under way.
    pub fn start(&self, request: HttpRequest) -> Requested {
        let client = Arc::clone(&self.client);
        let underway = self.worker.start(move || client.execute(request));
        Box::pin(async move {
            underway
                .await
                .unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Stopped, "the program is stopping")))
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn response(headers: &[(&str, &str)]) -> HttpResponse {
        HttpResponse {
            status: 429,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            body: Payload::default(),
        }
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        let date = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        for (headers, milliseconds) in [
            (vec![("retry-after", "7")], Some(7000)),
            (
                vec![("x-ms-retry-after-ms", "250"), ("retry-after", "7")],
                Some(250),
            ),
            (
                vec![("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT"), date],
                Some(30_000),
            ),
            (vec![("retry-after", "Wed, 21 Oct 2015 07:27:30 GMT"), date], None),
            (vec![("retry-after", "999999999999")], Some(3_600_000)),
            (vec![("retry-after", "soon")], None),
            (vec![], None),
        ] {
            let read = response(&headers).retry_after().map(|d| d.as_millis());
            assert_eq!(read, milliseconds, "{headers:?}");
        }
    }

    #[test]
    fn a_debug_text_shows_no_credential_no_identifier_and_no_payload() {
        let mut request =
            HttpRequest::with_body(Method::Put, "http://a/Device?identifier=patient-7", "body-text");
        request.authorization = Some("Bearer secret".to_owned());
        let shown = format!("{request:?}");
        for hidden in ["secret", "patient-7", "body-text"] {
            assert!(!shown.contains(hidden), "{shown}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (url, expected) in [
            ("https://FHIR.example/r4?x=1", Some("https://fhir.example:443")),
            ("HTTP://a:8080", Some("http://a:8080")),
            ("ftp://a/", None),
            ("/r4", None),
            ("", None),
        ] {
            assert_eq!(origin(url).as_deref(), expected, "{url}");
        }
    }
}
