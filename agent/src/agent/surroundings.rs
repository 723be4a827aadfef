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

/// What the wiring asks for. Threads, sockets and serial ports are those of the operating system, except where somebody
/// gives another.
pub trait Surroundings {
    /// Where the store's work runs.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn store_worker(&self) -> io::Result<Worker> {
        Worker::threads("store", 1)
    }

    /// Where a damaged store is read.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn salvage_reader(&self) -> io::Result<Worker> {
        Worker::threads("salvage", 1)
    }

    /// Where the files of mapping packs are read, and how changes are noticed.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::threads("packs", 1)?, Notice::Kernel))
    }

    /// The HTTP client of a destination, and one that never goes through its proxy (for the machine's own identity).
    ///
    /// # Errors
    /// When the operating system gives no thread.
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
    ) -> Result<StartedSource, ErrorRecord> {
        match &config.kind {
            SourceKind::Mqtt(mqtt) => ingest::mqtt::start(mqtt, context),
            SourceKind::Serial(serial) => ingest::serial::start(serial, context),
        }
    }
}

/// Threads, sockets and serial ports of the operating system.
pub struct RealSurroundings;

impl Surroundings for RealSurroundings {}

type StartSource = dyn Fn(&SourceConfig, SourceContext) -> Result<StartedSource, ErrorRecord>;
type HttpOf = dyn Fn(&DestinationConfig) -> Http;

/// Surroundings of a simulation: blocking work is done on the caller's thread, sources and HTTP clients are doubles.
pub struct Simulated {
    source: Box<StartSource>,
    http: Option<Box<HttpOf>>,
}

impl Simulated {
    /// Sources are started by this function; there is no HTTP.
    pub fn new(
        source: impl Fn(&SourceConfig, SourceContext) -> Result<StartedSource, ErrorRecord> + 'static,
    ) -> Simulated {
        Simulated {
            source: Box::new(source),
            http: None,
        }
    }

    /// Every source is such a loop, whose sender does not wait for acknowledgements; there is no HTTP.
    pub fn sending<L: Future<Output = ()> + 'static>(
        messages: impl Fn(SourceContext) -> L + 'static,
    ) -> Simulated {
        Simulated::new(move |_, context| Ok((context.handle(), Box::pin(messages(context)))))
    }

    /// The same with these clients of destinations.
    #[must_use]
    pub fn with_http(self, http: impl Fn(&DestinationConfig) -> Http + 'static) -> Simulated {
        Simulated {
            http: Some(Box::new(http)),
            ..self
        }
    }
}

impl Surroundings for Simulated {
    fn store_worker(&self) -> io::Result<Worker> {
        Ok(Worker::inline())
    }

    fn salvage_reader(&self) -> io::Result<Worker> {
        Ok(Worker::inline())
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::inline(), Notice::Poll))
    }

    fn http(&self, destination: &DestinationConfig) -> io::Result<(Http, Http)> {
        let http = self
            .http
            .as_ref()
            .ok_or_else(|| io::Error::other("this simulation has no HTTP: give it with_http"))?;
        let http = http(destination);
        Ok((http.clone(), http))
    }

    fn start_source(
        &self,
        config: &SourceConfig,
        context: SourceContext,
    ) -> Result<StartedSource, ErrorRecord> {
        (self.source)(config, context)
    }
}
