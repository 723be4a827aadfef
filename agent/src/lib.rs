//! The bedside agent: reads wearables over MQTT and serial lines, normalizes and groups their readings, keeps them in a
//! SQLite store-and-forward buffer, and writes them to a FHIR R4 server or Azure Event Hubs.
//!
//! The modules stand in the order in which a reading passes them; see `ARCHITECTURE.md`.

pub mod agent;
pub mod associations;
pub mod bounds;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod corrections;
pub mod dead_letters;
#[cfg(feature = "demo")]
pub mod demo;
pub mod destinations;
pub mod durable;
pub mod former;
pub mod forward;
pub mod group;
pub mod ingest;
pub mod intake;
pub mod message;
pub mod normalize;
pub mod packs;
pub mod pipeline;
pub mod process;
pub mod random;
pub mod sabotage;
pub mod simulate;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod timekeeping;
pub mod wear;
pub mod web;
pub mod worker;
