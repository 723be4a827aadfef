//! Everything that the demo needs and that is elsewhere on a ward: a broker and a FHIR server, both in memory and behind
//! the feature `demo`. The whole-system tests use the same two, because they can be told to misbehave.

pub mod broker;
pub mod fhir_server;
