//! Devices on serial lines: a driver or a generic framing per port.
//!
//! Invariants:
//! 1. A port that is missing, refused, pulled out or plugged in again never ends the source: it is opened again for ever.
//! 2. The old stream is gone before the port is opened again, so that the kernel can give the device its number back.
//! 3. An answer that lets a device forget a reading leaves after the commit of that reading.
//! 4. A record that a device keeps and shows again is handed over once, over restarts of source and program too: the driver
//!    outlives its port, and the store remembers records with the commit of their messages.
//! 5. At a stop, what a driver holds (a waveform's unfull block) is handed over before the last commit.
//! 6. No port holds up another, nor the rest of the agent: at one look only so much is taken from it, and what it does not take
//!    waits while reading goes on.
//! 7. Bytes on the line are read also while the store is slow: a line without flow control cannot wait, and the kernel
//!    keeps only 4 KiB. What waits for the intake is bounded; beyond that reading pauses, which is counted.

mod commits;
pub mod drivers;
pub mod framing;
mod line;
mod open;
mod pace;
pub mod port_name;
mod ports;
mod reader;
pub mod sniff;
mod source;
#[cfg(test)]
mod stuck_tests;
#[cfg(test)]
mod tests;
mod unsent;

use self::drivers::{Driver, PortSettings, Speaks};
pub(crate) use self::open::{apply as apply_settings, open_stream as open_port};
pub use self::ports::{Line, Ports, RealPorts, SimulatedLine, Waiting};
use crate::config::SerialConfig;
use crate::ingest::{Acknowledger, SourceContext, SourceHandle, SourceLoop, setup_error, supervise};
use crate::telemetry::errors::{ErrorRecord, ErrorType};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Makes what reads the bytes.
type MakeDriver = Rc<dyn Fn() -> Box<dyn Driver + Send>>;

/// Prepares the source; it runs while the returned loop is polled (single-threaded, needs tokio's I/O).
///
/// # Errors
/// When the configuration can never work. A port that cannot be opened is tried for ever and shown by the source's status.
pub fn start(
    config: &SerialConfig,
    context: SourceContext,
) -> Result<(SourceHandle, SourceLoop), ErrorRecord> {
    start_on(config, context, Rc::new(RealPorts))
}

/// The same on other ports, for simulation.
///
/// # Errors
/// As [`start`].
pub fn start_on(
    config: &SerialConfig,
    context: SourceContext,
    ports: Rc<dyn Ports>,
) -> Result<(SourceHandle, SourceLoop), ErrorRecord> {
    let (make, settings, speaks): (MakeDriver, PortSettings, Speaks) = match &config.driver {
        Some(name) => {
            let info = drivers::driver(name).ok_or_else(|| {
                let known: Vec<_> = drivers::drivers().iter().map(|driver| driver.name).collect();
                invalid(format!(
                    "there is no driver \"{name}\"; there are {}",
                    known.join(", ")
                ))
            })?;
            (Rc::new(|| info.create()), info.settings, info.speaks)
        }
        None => {
            let framing = config.generic_framing().map_err(invalid)?.unwrap_or_default();
            (
                Rc::new(move || framing::from_config(&framing)),
                PortSettings::default(),
                Speaks::AtTimes,
            )
        }
    };
    let commits = Arc::new(commits::Commits::default());
    let acknowledges = make().acknowledges();
    let handle = SourceHandle {
        id: context.id,
        name: Arc::clone(&context.name),
        acknowledger: acknowledges.then(|| Arc::clone(&commits) as Arc<dyn Acknowledger>),
        window: 0,
    };
    let settings = config.settings.unwrap_or(settings);
    let device_id: Option<Arc<str>> = config.device_id.as_deref().map(Arc::from);
    let port = config.port.clone();
    let sent = Rc::new(RefCell::new(context.records.clone()));
    let source = supervise::run(context, move |context| {
        let device = source::Device {
            port: port.clone(),
            ports: Rc::clone(&ports),
            make: Rc::clone(&make),
            sent: Rc::clone(&sent),
            settings,
            speaks,
            device_id: device_id.clone(),
        };
        source::Source::new(device, Arc::clone(&commits), context.clone()).run()
    });
    Ok((handle, Box::pin(source)))
}

fn invalid(text: String) -> ErrorRecord {
    ErrorRecord {
        retry: false,
        ..setup_error("SerialPortException", ErrorType::GeneralError, text)
    }
}
