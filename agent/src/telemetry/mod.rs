//! What an operator sees: errors, counters, health.

pub mod errors;
