//! Where ports come from: those of the operating system, or doubles of a simulation.

use super::drivers::PortSettings;
use super::open;
use super::port_name::PortName;
use crate::telemetry::errors::ErrorRecord;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_serial::SerialStream;

/// An open line to a device.
pub trait Line: AsyncRead + AsyncWrite + Unpin {
    /// Changes its settings.
    ///
    /// # Errors
    /// Why the line does not take them.
    fn apply(&mut self, settings: PortSettings) -> Result<(), String>;
}

impl Line for SerialStream {
    fn apply(&mut self, settings: PortSettings) -> Result<(), String> {
        open::apply(self, settings).map_err(|error| error.description)
    }
}

/// The line of a simulation.
impl Line for tokio::io::DuplexStream {
    fn apply(&mut self, _settings: PortSettings) -> Result<(), String> {
        Ok(())
    }
}

/// Something to wait for.
pub type Waiting<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Opens ports.
pub trait Ports {
    /// Opens `port`; gives the line, and where it was found.
    ///
    /// # Errors
    /// Why it cannot be opened now, and what to do.
    fn open(&self, port: &PortName, settings: PortSettings) -> Result<(Box<dyn Line>, PathBuf), ErrorRecord>;

    /// Ends when it is worth to try again: something was plugged in, or some time has passed.
    fn changed<'a>(&'a self, watched: &'a Path) -> Waiting<'a>;
}

/// The ports of the operating system.
#[derive(Debug)]
pub struct RealPorts;

impl Ports for RealPorts {
    fn open(&self, port: &PortName, settings: PortSettings) -> Result<(Box<dyn Line>, PathBuf), ErrorRecord> {
        let path = port.locate().map_err(|why| open::not_there(port, &why))?;
        Ok((Box::new(open::open(&path, settings)?), path))
    }

    fn changed<'a>(&'a self, watched: &'a Path) -> Waiting<'a> {
        Box::pin(open::wait_for_change(watched))
    }
}
