//! A FHIR server that does on demand what a real one will not: index lag, answers lost after the commit, storms of 409, 412,
//! 429 and 5xx, HTML from a proxy, truncated and slow bodies, connections that break, deletions and changes by others.
//!
//! One core ([`server`]) with two doors: an HTTP client within the process for simulated time
//! ([`in_process`]), and a socket ([`socket`]).
//! What it does next is drawn from a seed ([`weather`]); what it must hold in the end follows from the readings that were
//! made ([`readings`]), and [`judge`] compares the two value by value.

pub mod in_process;
pub mod judge;
pub mod readings;
pub mod server;
pub mod socket;
pub mod weather;
