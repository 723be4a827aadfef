//! What the whole-system tests share.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in real time, beside real servers"
)]

pub mod conformance;
pub mod event_hub_endpoint;
pub mod fhir_server;
