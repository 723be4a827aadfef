//! What the whole-system tests share.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness of processes lives in real time, and a broken harness must say so at once"
)]

pub mod amqp;
pub mod batch_server;
pub mod cables;
pub mod chance;
pub mod chaos;
pub mod conformance;
pub mod event_hub_endpoint;
pub mod event_hub_sender;
pub mod fhir_server;
pub mod fleet;
pub mod flood;
pub mod measure;
pub mod real;
pub mod samples;
pub mod slow_line;
