//! AMQP 1.0 as a second way to the hub, over TLS (port 5671) or WebSockets (443): the same publications, with the same event
//! ids, properties and partition keys as over HTTPS, and the same verdicts and error names.
//!
//! Invariants:
//! 1. Only the disposition `accepted` confirms a publication. One publication is under way at a time.
//! 2. What was transferred and not answered may have been taken: it is sent again with the same event ids. What was not
//!    transferred yet (a link that the hub ended while it was idle) is sent over a new connection at once.
//! 3. A token is put before the link is attached and again whenever it was renewed, which is well before it expires.
//! 4. Nothing is transferred without credit, and nothing waits for ever.
//!
//! Azure takes a publication of several events as one message of a format of its own (0x80013700: each data section is an
//! encoded message); brokers that authenticate by name and password (`auth.kind = "basic"`) get one message for each event.

#[cfg(feature = "amqp")]
mod connection;
#[cfg(feature = "amqp")]
mod link;
#[cfg(feature = "amqp")]
mod message;
#[cfg(feature = "amqp")]
mod thread;

use super::answer::{self, Said, Verdict};
use crate::config::{ClockTrust, EventHubConfig, Transport};
use crate::forward::http::HttpError;
use crate::telemetry::errors::ErrorRecord;
use std::future::Future;
use std::pin::Pin;

/// What is sent at once: the events of one partition key.
#[derive(Clone, Debug)]
pub(super) struct Publication {
    /// The array of events, as the REST interface takes it.
    pub body: Vec<u8>,
    /// Partition key; none where the address names it.
    pub partition_key: Option<String>,
    /// Who we are.
    pub credential: Credential,
}

/// Who we are towards the hub.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A token for `$cbs`.
    Token {
        /// `servicebus.windows.net:sastoken` or `jwt`.
        kind: &'static str,
        text: String,
        /// Unix seconds, where the token says it.
        expires: Option<i64>,
    },
    /// Name and password (SASL PLAIN).
    Password { username: String, password: String },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credential::Token { kind, .. } => kind,
            Credential::Password { .. } => "password",
        })
    }
}

impl Credential {
    /// The credential that a request over HTTPS would carry in its header `Authorization`.
    pub fn of_header(header: &str) -> Option<Credential> {
        use base64::Engine as _;
        if header.starts_with("SharedAccessSignature ") {
            let fields = header.split(['&', ' ']);
            let expires = fields.filter_map(|field| field.strip_prefix("se=")).next();
            return Some(Credential::Token {
                kind: "servicebus.windows.net:sastoken",
                text: header.to_owned(),
                expires: expires.and_then(|seconds| seconds.parse().ok()),
            });
        }
        if let Some(token) = header.strip_prefix("Bearer ") {
            return Some(Credential::Token {
                kind: "jwt",
                text: token.to_owned(),
                expires: end_of_jwt(token),
            });
        }
        let pair = base64::prelude::BASE64_STANDARD
            .decode(header.strip_prefix("Basic ")?)
            .ok()?;
        let (username, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
        Some(Credential::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// `exp` of a token that is a JWT.
fn end_of_jwt(token: &str) -> Option<i64> {
    use base64::Engine as _;
    let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1)?)
        .ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("exp")?.as_i64()
}

/// An error as AMQP spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// `amqp:not-found`, `com.microsoft:server-busy`.
    pub name: String,
    /// What the hub says; tracking id and time of the hub are in it.
    pub description: String,
}

/// What became of a publication.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// Disposition `accepted`.
    Accepted,
    /// Disposition `rejected`.
    Rejected(Option<Condition>),
    /// Disposition `released`, or `modified` with "not here".
    Released { not_here: bool },
    /// It is larger than the link takes; nothing was transferred.
    TooLarge,
    /// The hub ended link, session or connection.
    Ended {
        condition: Option<Condition>,
        /// The publication was on its way: perhaps it was taken.
        sent: bool,
    },
    /// `$cbs` refuses the token (a status as in HTTP), or the broker the password (401).
    TokenRefused { status: u16, description: String },
    /// No credit within the time limit.
    NoCredit,
    /// No disposition within the time limit.
    NoDisposition,
    /// There is no connection: name, network, TLS, proxy, WebSocket.
    NoConnection(HttpError),
}

/// A way to the hub; a test brings its own.
pub(super) trait Wire {
    /// Sends one publication and waits for what becomes of it.
    fn publish(&self, publication: Publication) -> Pin<Box<dyn Future<Output = Answer> + '_>>;
}

/// The wire that the configuration names; none for HTTPS.
///
/// # Errors
/// When this build has no AMQP.
pub(super) fn wire_of(
    config: &EventHubConfig,
    resource: &str,
    gateway: &str,
) -> Result<Option<Box<dyn Wire>>, ErrorRecord> {
    match config.transport {
        Transport::Https => Ok(None),
        #[cfg(feature = "amqp")]
        Transport::Amqp | Transport::AmqpWebsocket => {
            Ok(Some(Box::new(thread::AmqpThread::new(config, resource, gateway))))
        }
        #[cfg(not(feature = "amqp"))]
        Transport::Amqp | Transport::AmqpWebsocket => {
            let (_, _) = (resource, gateway);
            Err(ErrorRecord::new(
                "InvalidEventHubException",
                crate::config::NO_AMQP,
            ))
        }
    }
}

/// What an answer means for the events: the same as the status that the REST interface has for it.
pub(super) fn verdict(answer: &Answer, trust: ClockTrust) -> Verdict {
    match answer {
        Answer::Accepted => Verdict::Taken,
        Answer::TooLarge => Verdict::TooLarge,
        Answer::NoConnection(error) => answer::of_http(error, trust),
        Answer::NoDisposition => Verdict::Broken(down(
            "the event hub did not say in time whether it has the events; they are sent again",
        )),
        Answer::Ended {
            condition: None,
            sent,
        } => {
            let link = down("the event hub ended the connection; the events are sent again");
            match sent {
                true => Verdict::Broken(link),
                false => Verdict::Down(link),
            }
        }
        Answer::NoCredit => said(503, "no credit", "", trust),
        Answer::Released { not_here: false } => said(503, "released", "", trust),
        Answer::Released { not_here: true } => said(400, "modified, undeliverable here", "", trust),
        Answer::Rejected(None) => said(400, "rejected", "", trust),
        Answer::TokenRefused { status, description } => {
            said(*status, &format!("$cbs {status}"), description, trust)
        }
        Answer::Rejected(Some(condition)) => of_condition(condition, true, trust),
        Answer::Ended {
            condition: Some(condition),
            ..
        } => of_condition(condition, false, trust),
    }
}

fn down(text: &str) -> crate::forward::Link {
    crate::forward::Link::Down {
        error: ErrorRecord::new("EventHubProducerClientException", text),
        retry_after: None,
    }
}

fn said(status: u16, code: &str, description: &str, trust: ClockTrust) -> Verdict {
    answer::of_status(
        status,
        &Said {
            code,
            detail: description,
            retry_after: None,
            server_time: time_of_hub(description),
        },
        trust,
    )
}

/// The conditions that Event Hubs documents, as the status that its REST interface gives for the same thing. What is about
/// one message (`rejected`) may be its fault; what ended a link never is, but for its size.
fn of_condition(condition: &Condition, about_message: bool, trust: ClockTrust) -> Verdict {
    let status = match condition.name.as_str() {
        "amqp:link:message-size-exceeded" => 413,
        "amqp:unauthorized-access" | "com.microsoft:auth-failed" => 401,
        "amqp:not-found" | "com.microsoft:entity-disabled" => 404,
        "amqp:resource-limit-exceeded" | "com.microsoft:publisher-revoked" => 403,
        "com.microsoft:server-busy" | "amqp:server-busy" => 503,
        "com.microsoft:timeout" | "com.microsoft:operation-cancelled" | "amqp:internal-error" => 500,
        name if name.starts_with("amqp:link:") || name.starts_with("amqp:connection:") => 500,
        _ if about_message => 400,
        _ => 500,
    };
    said(status, &condition.name, &condition.description, trust)
}

/// What the hub takes for now, in Unix seconds: Azure ends its descriptions with `Timestamp:2026-11-21T10:00:00`.
fn time_of_hub(description: &str) -> Option<i64> {
    let (_, rest) = description.split_once("Timestamp:")?;
    let time: String = rest
        .trim_start()
        .chars()
        .take_while(|c| c.is_ascii_digit() || matches!(c, '-' | ':' | 'T' | '.'))
        .collect();
    let time: jiff::civil::DateTime = time.parse().ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(time.timestamp().as_second())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
