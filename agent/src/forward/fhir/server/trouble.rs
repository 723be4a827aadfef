//! Why a server as a whole cannot be used, in words that say what to do.

use super::Down;
use crate::forward::http::{HttpError, HttpErrorKind, HttpResponse};
use serde_json::Value;

/// Whether the body is a FHIR resource.
pub fn is_fhir(response: &HttpResponse) -> bool {
    let document: Option<Value> = serde_json::from_slice(response.body.bytes()).ok();
    document.is_some_and(|document| document.get("resourceType").is_some())
}

/// What came is no FHIR.
pub fn no_fhir(response: &HttpResponse) -> Down {
    let kind = response.header("content-type").unwrap_or("no content type");
    let kind: String = kind
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "/+-.".contains(*c))
        .collect();
    let mut down = Down::new(
        "InvalidFhirServiceException",
        format!(
            "the answer ({}, {kind}) is not FHIR or not complete: a proxy or login page may be in between, or the address is \
             not that of a FHIR server",
            response.status
        ),
    );
    down.retry_after = response.retry_after();
    down
}

/// Nothing is served at the address.
pub fn no_server(base: &str, status: u16) -> Down {
    Down::new(
        "InvalidFhirServiceException",
        format!("there is no FHIR server at {base} ({status}): check url of this destination"),
    )
}

/// There is no response.
pub fn unreachable(error: &HttpError, trusted: bool) -> Down {
    let name = match error.kind {
        HttpErrorKind::Setup | HttpErrorKind::Redirect => "InvalidFhirServiceException",
        _ => "FhirServiceException",
    };
    let mut down = Down::new(name, error.text.clone());
    down.clock = error.kind == HttpErrorKind::Tls { clock: true } && !trusted;
    down
}
