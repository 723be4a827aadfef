//! What is outside of the agent: threads, sockets, serial ports. A simulation gives doubles.

use super::Waiting;
use crate::config::{DestinationConfig, DestinationKind, SourceConfig, SourceKind, TlsConfig};
use crate::forward::event_hub;
use crate::forward::fhir;
use crate::forward::http::Http;
use crate::ingest::{self, SourceContext, SourceHandle, SourceLoop};
use crate::packs::Notice;
use crate::telemetry::errors::ErrorRecord;
use crate::worker::Worker;
use std::io;
use std::rc::Rc;

/// A source that was started: what the intake knows of it, and its loop.
pub type StartedSource = (SourceHandle, SourceLoop);

/// A double of sources, for simulation.
pub type SourceDouble = Box<dyn Fn(&SourceConfig, SourceContext) -> Result<StartedSource, ErrorRecord>>;

/// What the wiring asks for.
pub trait Surroundings {
    /// Where the store's work runs.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn store_worker(&self) -> io::Result<Worker>;

    /// Where a damaged store is read.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn salvage_reader(&self) -> io::Result<Worker> {
        self.store_worker()
    }

    /// Where the files of mapping packs are read, and how changes are noticed.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn pack_reader(&self) -> io::Result<(Worker, Notice)>;

    /// The HTTP client of a destination, and one that never goes through its proxy (for the machine's own identity).
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn http(&self, destination: &DestinationConfig) -> io::Result<(Http, Http)>;

    /// The disk of the store does not work; the agent goes on by itself when it does. Called once.
    fn store_waits(&self, _waiting: &Rc<Waiting>) {}

    /// Starts a source.
    ///
    /// # Errors
    /// When its configuration cannot work.
    fn start_source(
        &self,
        config: &SourceConfig,
        context: SourceContext,
    ) -> Result<StartedSource, ErrorRecord>;
}

/// Threads, sockets and serial ports of the operating system.
pub struct RealSurroundings;

impl Surroundings for RealSurroundings {
    fn store_worker(&self) -> io::Result<Worker> {
        Worker::threads("store", 1)
    }

    fn salvage_reader(&self) -> io::Result<Worker> {
        Worker::threads("salvage", 1)
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::threads("packs", 1)?, Notice::Kernel))
    }

    fn http(&self, destination: &DestinationConfig) -> io::Result<(Http, Http)> {
        let http = match &destination.kind {
            DestinationKind::Fhir(server) => {
                Http::real("http", fhir::REQUESTS, &server.tls, server.proxy.as_deref())?
            }
            DestinationKind::EventHub(hub) => event_hub::http_of("http", hub)?,
        };
        let direct = Http::real("identity", 1, &TlsConfig::default(), None)?;
        Ok((http, direct))
    }

    fn start_source(
        &self,
        config: &SourceConfig,
        context: SourceContext,
    ) -> Result<StartedSource, ErrorRecord> {
        match &config.kind {
            SourceKind::Mqtt(mqtt) => ingest::mqtt::start(mqtt, context),
            SourceKind::Serial(serial) => ingest::serial::start(serial, context),
        }
    }
}
