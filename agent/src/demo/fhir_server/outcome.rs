//! How the server says no: an HTTP status and an OperationOutcome.

use serde_json::{Value, json};

/// A request that is not done, with its HTTP status and issue code
/// (<http://hl7.org/fhir/R4/valueset-issue-type.html>).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub text: String,
}

impl Refusal {
    pub fn new(status: u16, code: &'static str, text: impl Into<String>) -> Refusal {
        Refusal {
            status,
            code,
            text: text.into(),
        }
    }

    pub fn invalid(text: impl Into<String>) -> Refusal {
        Refusal::new(400, "invalid", text)
    }

    pub fn required(text: impl Into<String>) -> Refusal {
        Refusal::new(400, "required", text)
    }

    pub fn invariant(text: impl Into<String>) -> Refusal {
        Refusal::new(422, "invariant", text)
    }

    /// What this server does not do at all.
    pub fn not_done(text: impl Into<String>) -> Refusal {
        Refusal::new(501, "not-supported", text)
    }

    /// The OperationOutcome.
    pub fn outcome(&self) -> Value {
        json!({
            "resourceType": "OperationOutcome",
            "issue": [{ "severity": "error", "code": self.code, "diagnostics": self.text }]
        })
    }
}
