//! Runs acceptance vectors against the mapping engine.

pub mod fhir;
pub mod same;
