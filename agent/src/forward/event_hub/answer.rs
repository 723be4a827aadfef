//! What the hub answers, and what it means for the events.

use super::event::Event;
use crate::clock;
use crate::config::ClockTrust;
use crate::forward::Link;
use crate::forward::auth::AuthError;
use crate::forward::http::{HttpError, HttpErrorKind, HttpResponse};
use crate::telemetry::errors::ErrorRecord;
use embassy_time::Duration;

/// A busy hub that does not say how long is left alone for this long at least.
const BUSY: Duration = Duration::from_secs(4);

/// What became of a publication.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// `201 Created`.
    Taken,
    /// An event in it is refused (400).
    Refused(ErrorRecord),
    /// It is too large (413).
    TooLarge,
    /// The connection broke with it; perhaps it was taken, perhaps it is larger than something on the way takes.
    Broken(Link),
    /// Nothing can be sent now.
    Down(Link),
}

fn down(name: &str, text: String, retry_after: Option<Duration>) -> Verdict {
    Verdict::Down(Link::Down {
        error: ErrorRecord::new(name, text),
        retry_after,
    })
}

/// A refusal that a wrong clock of ours can explain waits for the clock, without alarm.
fn or_the_clock(trust: ClockTrust, verdict: Verdict) -> Verdict {
    match clock::is_trusted(trust) {
        true => verdict,
        false => Verdict::Down(Link::WaitingForClock),
    }
}

/// The record of an event above the limit: the configured one, or the hub's own.
pub(super) fn too_large(event: &Event, limit: Option<usize>) -> ErrorRecord {
    let takes = limit.map_or("less".to_owned(), |limit| {
        format!("{limit} with all overhead (max_batch_bytes)")
    });
    let text = format!(
        "the event has {} bytes and the event hub takes {takes}: let the device send less at a time, or use a larger tier",
        event.element.len()
    );
    ErrorRecord::new("EventTooLargeException", text)
}

/// No key or token of ours to send with.
pub(super) fn no_credential(text: &str) -> Verdict {
    down("UnauthorizedAccessEventHubException", text.to_owned(), None)
}

/// A token that somebody else made is over, or our clock is ahead.
pub(super) fn expired(trust: ClockTrust) -> Verdict {
    let text = "the shared access signature has expired by the clock of this gateway: put a new one in its place, or a key, \
                which renews itself";
    or_the_clock(trust, no_credential(text))
}

/// No token from somebody else.
pub(super) fn of_auth(error: &AuthError, trust: ClockTrust) -> Verdict {
    let name = match error {
        AuthError::NoManagedIdentity(_) => "ManagedIdentityCredentialNotFound",
        AuthError::Unreachable(_) => "EventHubProducerClientException",
        AuthError::Refused(_) | AuthError::Setup(_) => "UnauthorizedAccessEventHubException",
    };
    let verdict = down(name, error.text().to_owned(), None);
    match error.may_be_the_clock() {
        true => or_the_clock(trust, verdict),
        false => verdict,
    }
}

/// No answer. What was sent may have been taken: it is sent again with the same ids.
pub(super) fn of_http(error: &HttpError, trust: ClockTrust) -> Verdict {
    let name = match error.kind {
        HttpErrorKind::Setup | HttpErrorKind::Tls { .. } => "InvalidEventHubException",
        _ => "EventHubProducerClientException",
    };
    let verdict = down(name, error.text.clone(), None);
    match (error.kind, verdict) {
        (HttpErrorKind::Tls { clock: true }, verdict) => or_the_clock(trust, verdict),
        (HttpErrorKind::Reset | HttpErrorKind::Timeout, Verdict::Down(link)) => Verdict::Broken(link),
        (_, verdict) => verdict,
    }
}

/// An answer, whatever its status.
pub(super) fn of_response(response: &HttpResponse, trust: ClockTrust) -> Verdict {
    let said = Said {
        code: &response.status.to_string(),
        detail: &detail(response),
        retry_after: response.retry_after(),
        server_time: response.server_time(),
    };
    of_status(response.status, &said, trust)
}

/// What the hub said beside the status.
pub(super) struct Said<'a> {
    /// The status as the hub spells it.
    pub code: &'a str,
    /// Its words, or empty: codes and words about the request, never a body.
    pub detail: &'a str,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
    /// What it takes for now: Unix seconds.
    pub server_time: Option<i64>,
}

/// What a status means, over HTTPS or what AMQP has in its place.
pub(super) fn of_status(status: u16, answer: &Said<'_>, trust: ClockTrust) -> Verdict {
    let detail: String = answer
        .detail
        .chars()
        .filter(|c| !c.is_control())
        .take(160)
        .collect();
    let colon = if detail.is_empty() { "" } else { ": " };
    let said = format!("{}{colon}{detail}", answer.code);
    let retry_after = answer.retry_after;
    match status {
        201 => Verdict::Taken,
        400 => Verdict::Refused(ErrorRecord::new(
            "EventHubProducerClientException",
            format!("the event hub refuses the event ({said})"),
        )),
        413 => Verdict::TooLarge,
        401 => {
            let text = match minutes_off(answer.server_time) {
                Some(minutes) => format!(
                    "the event hub refuses the token ({said}): the clock of this gateway is {minutes} minutes off that of \
                     the hub, and tokens are dated by it: set the clock"
                ),
                None => format!(
                    "the event hub refuses the token ({said}): check key name and key, and that the rule has the right Send"
                ),
            };
            or_the_clock(trust, down("UnauthorizedAccessEventHubException", text, None))
        }
        403 => {
            let text = format!(
                "the event hub refuses ({said}): check the right to send, the quota and the network rules"
            );
            down("UnauthorizedAccessEventHubException", text, retry_after)
        }
        404 | 410 => {
            let text = format!("there is no such event hub ({said}): check namespace and hub");
            down("InvalidEventHubException", text, retry_after)
        }
        429 | 503 => {
            let text = format!("the event hub is busy ({said}): more throughput units may be needed");
            down(
                "EventHubProducerClientException",
                text,
                Some(retry_after.unwrap_or(BUSY)),
            )
        }
        _ => {
            let text =
                format!("the event hub answered {said} and did not take the events; they are sent again");
            down("EventHubProducerClientException", text, retry_after)
        }
    }
}

/// Minutes between our clock and the hub's, when they are enough to spoil a token.
fn minutes_off(server_time: Option<i64>) -> Option<u64> {
    let ours = clock::wall().ticks().div_euclid(10_000_000);
    let minutes = server_time?.abs_diff(ours) / 60;
    (minutes >= 5).then_some(minutes)
}

/// `<Detail>` of the error that Azure writes, in front of its tracking id: codes and words about the request, never a body.
fn detail(response: &HttpResponse) -> String {
    let text = String::from_utf8_lossy(response.body.bytes());
    text.split_once("<Detail>")
        .and_then(|(_, rest)| rest.split_once("</Detail>"))
        .map(|(detail, _)| detail.to_owned())
        .unwrap_or_default()
}
