//! Devices on serial lines: a driver or a generic framing per port.
//!
//! Invariants:
//! 1. A port that is missing, refused, pulled out or plugged in again never ends the source: it is opened again for ever.
//! 2. The old stream is gone before the port is opened again, so that the kernel can give the device its number back.
//! 3. Bytes on the line are read also while the store is slow: a line without flow control cannot wait, and the kernel
//!    keeps only 4 KiB. What waits for the intake is bounded; beyond that reading pauses, which is counted.

pub mod drivers;
pub mod framing;
mod open;
mod source;
#[cfg(test)]
mod tests;

use self::drivers::{Driver, PortSettings};
use crate::config::SerialConfig;
use crate::ingest::{SourceContext, SourceHandle, SourceLoop, setup_error, supervise};
use crate::telemetry::errors::{ErrorRecord, ErrorType};
use std::rc::Rc;
use std::sync::Arc;

/// Makes what reads the bytes, for a port that was just opened.
type MakeDriver = Rc<dyn Fn() -> Box<dyn Driver + Send>>;

/// Prepares the source; it runs while the returned loop is polled (single-threaded, needs tokio's I/O).
///
/// # Errors
/// When the configuration can never work. A port that cannot be opened is tried for ever and shown by the source's status.
pub fn start(
    config: &SerialConfig,
    context: SourceContext,
) -> Result<(SourceHandle, SourceLoop), ErrorRecord> {
    let (make, settings): (MakeDriver, PortSettings) = match &config.driver {
        Some(name) => {
            let info = drivers::driver(name).ok_or_else(|| {
                let known: Vec<_> = drivers::drivers().iter().map(|driver| driver.name).collect();
                invalid(format!(
                    "there is no driver \"{name}\"; there are {}",
                    known.join(", ")
                ))
            })?;
            (Rc::new(|| info.create()), info.settings)
        }
        None => {
            let framing = config.generic_framing().map_err(invalid)?.unwrap_or_default();
            (
                Rc::new(move || framing::from_config(&framing)),
                PortSettings::default(),
            )
        }
    };
    let handle = SourceHandle {
        id: context.id,
        name: Arc::clone(&context.name),
        acknowledger: None,
        window: 0,
    };
    let settings = config.settings.unwrap_or(settings);
    let device_id: Option<Arc<str>> = config.device_id.as_deref().map(Arc::from);
    let port = config.port.clone();
    let source = supervise::run(context, move |context| {
        source::Source::new(
            port.clone(),
            Rc::clone(&make),
            settings,
            device_id.clone(),
            context.clone(),
        )
        .run()
    });
    Ok((handle, Box::pin(source)))
}

fn invalid(text: String) -> ErrorRecord {
    ErrorRecord {
        retry: false,
        ..setup_error("SerialPortException", ErrorType::GeneralError, text)
    }
}
