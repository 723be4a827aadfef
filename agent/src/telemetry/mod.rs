//! What an operator sees: errors, status, metrics, health.

pub mod errors;
pub mod metrics;
pub mod status;
