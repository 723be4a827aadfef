//! A fleet of gateways in simulated time: every gateway is the agent with its real store and sender, and all of them send to
//! one event hub with a quota, which goes away for a while.
//!
//! The hub checks every request as the endpoint over TLS does ([`crate::event_hub_endpoint::check`]). It takes 1000 events and
//! 1 MB per second and throughput unit, and answers 503 above that. While it is away it answers nothing at first; at the end
//! its front door says to everybody at which moment it opens (`Retry-After` with a date): what calls a herd together.

mod gateway;
mod hub;

pub use gateway::{Plan, run};
pub use hub::{Hub, Received};
