//! Everything in one process: simulated wearables, a broker, a serial line, the agent and a FHIR server, so that a newcomer
//! sees readings become Observations without installing anything. Behind the feature `demo`.
//!
//! The agent is the same as in the service, started by the same wiring with a configuration file that is left behind with
//! the store. Broker and FHIR server are small, in memory, and serve the whole-system tests too, because they can be told to
//! misbehave.

pub mod broker;
pub mod fhir_server;
mod setting;
pub mod view;
mod ward;

pub use ward::{Moment, Options, Report, run};
