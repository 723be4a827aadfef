//! Opening a port, what to do when that fails, and waiting for the device to be plugged in.

use super::drivers::{Flow, Parity, PortSettings};
use super::port_name::PortName;
use crate::ingest::setup_error;
use crate::telemetry::errors::{ErrorRecord, ErrorType};
use embassy_time::{Duration, Timer};
use notify::Watcher;
use std::io::ErrorKind as IoKind;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_serial::{ErrorKind, SerialPort, SerialPortBuilder, SerialStream};

/// Names by which a device is the same wherever it is plugged in.
const BY_ID: &str = "/dev/serial/by-id";

/// A port is looked for this often, also when nothing is heard of its folder.
const POLL: Duration = Duration::from_secs(1);

/// After a change in the folder: udev sets links and permissions a moment after the device is there.
const SETTLE: Duration = Duration::from_millis(50);

/// Names that an error text lists at most.
const NAMES_SHOWN: usize = 8;

/// Opens `path`; a link is resolved anew each time.
pub(super) fn open(path: &Path, settings: PortSettings) -> Result<mio_serial::SerialStream, ErrorRecord> {
    let opened = mio_serial::SerialStream::open(&builder(path, settings));
    opened.map_err(|error| record(path, error.kind(), &error.description))
}

/// The same as a stream of tokio.
pub(crate) fn open_stream(path: &Path, settings: PortSettings) -> Result<SerialStream, ErrorRecord> {
    let opened = SerialStream::open(&builder(path, settings));
    opened.map_err(|error| record(path, error.kind(), &error.description))
}

fn builder(path: &Path, settings: PortSettings) -> SerialPortBuilder {
    tokio_serial::new(path.to_string_lossy(), settings.baud)
        .data_bits(data_bits(settings))
        .parity(parity(settings))
        .stop_bits(stop_bits(settings))
        .flow_control(flow_control(settings))
}

/// Changes the settings of an open port.
pub(crate) fn apply(port: &mut dyn SerialPort, settings: PortSettings) -> Result<(), tokio_serial::Error> {
    port.set_baud_rate(settings.baud)?;
    port.set_data_bits(data_bits(settings))?;
    port.set_parity(parity(settings))?;
    port.set_stop_bits(stop_bits(settings))?;
    port.set_flow_control(flow_control(settings))
}

fn data_bits(settings: PortSettings) -> tokio_serial::DataBits {
    match settings.data_bits {
        5 => tokio_serial::DataBits::Five,
        6 => tokio_serial::DataBits::Six,
        7 => tokio_serial::DataBits::Seven,
        _ => tokio_serial::DataBits::Eight,
    }
}

fn parity(settings: PortSettings) -> tokio_serial::Parity {
    match settings.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    }
}

fn stop_bits(settings: PortSettings) -> tokio_serial::StopBits {
    match settings.stop_bits {
        2 => tokio_serial::StopBits::Two,
        _ => tokio_serial::StopBits::One,
    }
}

fn flow_control(settings: PortSettings) -> tokio_serial::FlowControl {
    match settings.flow {
        Flow::None => tokio_serial::FlowControl::None,
        Flow::RtsCts => tokio_serial::FlowControl::Hardware,
        Flow::XonXoff => tokio_serial::FlowControl::Software,
    }
}

/// What a failed opening means, and what to do.
fn record(path: &Path, kind: ErrorKind, description: &str) -> ErrorRecord {
    let path = path.display();
    let text = match kind {
        ErrorKind::Io(IoKind::NotFound) => format!(
            "serial port {path} does not exist: plug the device in or correct `port`; {}",
            names_below(Path::new(BY_ID))
        ),
        ErrorKind::Io(IoKind::PermissionDenied) => format!(
            "no permission to open the serial port {path}: make the user of the service a member of the group dialout \
             (`usermod -aG dialout bedside`) and restart the service, and let udev give the port to that group \
             (rule 70-bedside-agent.rules of the package)"
        ),
        ErrorKind::NoDevice => format!(
            "serial port {path} is in use by another program: stop it (ModemManager and brltty take ports unasked)"
        ),
        ErrorKind::Unknown if description.contains("typewriter") => {
            format!(
                "{path} is no serial port: correct `port`; {}",
                names_below(Path::new(BY_ID))
            )
        }
        ErrorKind::InvalidInput => format!(
            "serial port {path} does not take its settings ({description}): correct `settings` of the source"
        ),
        _ => format!("serial port {path} cannot be opened: {description}"),
    };
    setup_error("SerialPortException", ErrorType::GeneralError, text)
}

/// The record of a USB device that is not plugged in.
pub(super) fn not_there(port: &PortName, why: &str) -> ErrorRecord {
    setup_error(
        "SerialPortException",
        ErrorType::GeneralError,
        format!("no serial port belongs to {port}: {why}"),
    )
}

/// The record of an open port that failed.
pub(super) fn lost(path: &Path, why: &str) -> ErrorRecord {
    setup_error(
        "SerialPortException",
        ErrorType::GeneralError,
        format!(
            "serial port {} is gone ({why}): plug the device in again; it is looked for all the time",
            path.display()
        ),
    )
}

/// "below FOLDER there is: ...".
fn names_below(folder: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        return format!("below {} there is nothing now", folder.display());
    }
    let more = if names.len() > NAMES_SHOWN { ", ..." } else { "" };
    names.truncate(NAMES_SHOWN);
    format!("below {} there is: {}{more}", folder.display(), names.join(", "))
}

/// Waits until something happened in the folder of `path`, at most a second.
pub(super) async fn wait_for_change(path: &Path) {
    let changed = Arc::new(Notify::new());
    let heard = Arc::clone(&changed);
    let watcher = notify::recommended_watcher(move |_| heard.notify_one());
    // Without a watcher (no inotify left) the poll alone does it.
    let watcher = watcher.ok().and_then(|mut watcher| {
        // The folder itself may be missing while nothing is plugged in.
        let folder = path.ancestors().skip(1).find(|folder| folder.is_dir())?;
        watcher.watch(folder, notify::RecursiveMode::NonRecursive).ok()?;
        Some(watcher)
    });
    tokio::select! {
        () = Timer::after(POLL) => {}
        () = changed.notified() => Timer::after(SETTLE).await,
    }
    drop(watcher);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_says_what_to_do() {
        let path = Path::new("/dev/ttyUSB7");
        for (kind, description, expected) in [
            (ErrorKind::Io(IoKind::NotFound), "", "/dev/serial/by-id"),
            (ErrorKind::Io(IoKind::PermissionDenied), "", "group dialout"),
            (
                ErrorKind::NoDevice,
                "Unable to acquire exclusive lock",
                "in use by another program",
            ),
            (ErrorKind::Unknown, "Not a typewriter", "is no serial port"),
            (ErrorKind::Unknown, "Input/output error", "Input/output error"),
        ] {
            let record = record(path, kind, description);
            assert!(
                record.text.contains(expected) && record.text.contains("/dev/ttyUSB7"),
                "{}",
                record.text
            );
            assert!(record.retry);
        }
    }

    #[test]
    fn the_names_of_a_folder_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(names_below(folder.path()).ends_with("nothing now"));
        for number in 0..9 {
            std::fs::write(folder.path().join(format!("usb-{number}")), "").unwrap();
        }
        let names = names_below(folder.path());
        assert!(
            names.ends_with("usb-0, usb-1, usb-2, usb-3, usb-4, usb-5, usb-6, usb-7, ..."),
            "{names}"
        );
    }
}
