//! The name of a port: its device file, or the USB device that it belongs to, wherever that is plugged in.

use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use tokio_serial::{SerialPortInfo, SerialPortType, UsbPortInfo};

/// `port` of a serial source: a path, or `{ usb = "0403:6001", serial = "A10K" }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(
    untagged,
    expecting = "`port` is a path such as \"/dev/serial/by-id/NAME\", or { usb = \"0403:6001\", serial = \"NUMBER\" }"
)]
pub enum PortName {
    /// A device file, best below `/dev/serial/by-id/`.
    Path(PathBuf),
    /// A USB device.
    Usb(UsbName),
}

/// A USB device by what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsbName {
    /// Vendor and product, as `lsusb` shows them: `0403:6001`.
    pub usb: UsbId,
    /// Serial number; needed where several such devices are plugged in.
    #[serde(default)]
    pub serial: Option<String>,
}

/// Vendor and product number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct UsbId {
    /// Number of the vendor.
    pub vendor: u16,
    /// Number that the vendor gave the product.
    pub product: u16,
}

impl TryFrom<String> for UsbId {
    type Error = String;

    fn try_from(text: String) -> Result<UsbId, String> {
        let number = |digits: &str| {
            let hexadecimal = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            hexadecimal.then(|| u16::from_str_radix(digits, 16).ok())?
        };
        text.split_once(':')
            .and_then(|(vendor, product)| {
                Some(UsbId {
                    vendor: number(vendor)?,
                    product: number(product)?,
                })
            })
            .ok_or_else(|| {
                format!("\"{text}\" is no USB id: write vendor and product as `lsusb` shows them, 0403:6001")
            })
    }
}

impl fmt::Display for UsbId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.product)
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortName::Path(path) => path.display().fmt(f),
            PortName::Usb(UsbName { usb, serial: None }) => write!(f, "USB {usb}"),
            PortName::Usb(UsbName {
                usb,
                serial: Some(serial),
            }) => write!(f, "USB {usb}, number {serial}"),
        }
    }
}

impl From<PathBuf> for PortName {
    fn from(path: PathBuf) -> PortName {
        PortName::Path(path)
    }
}

impl PortName {
    /// The device file now.
    ///
    /// # Errors
    /// What is plugged in instead, and what to write.
    pub fn locate(&self) -> Result<PathBuf, String> {
        match self {
            PortName::Path(path) => Ok(path.clone()),
            PortName::Usb(name) => find(name, &plugged_in()),
        }
    }

    /// The folder in which the device file comes and goes.
    pub fn watched(&self) -> &Path {
        match self {
            PortName::Path(path) => path,
            PortName::Usb(_) => Path::new("/dev/ttyUSB0"),
        }
    }
}

/// All serial ports of this machine that have a device behind them, in order of their names.
pub fn plugged_in() -> Vec<SerialPortInfo> {
    // Without this folder (a container, say) the library panics.
    if !Path::new("/sys/class/tty").is_dir() {
        return Vec::new();
    }
    let mut ports = tokio_serial::available_ports().unwrap_or_default();
    ports.sort_by(|a, b| a.port_name.cmp(&b.port_name));
    ports
}

fn find(name: &UsbName, ports: &[SerialPortInfo]) -> Result<PathBuf, String> {
    let usb = ports.iter().filter_map(|port| match &port.port_type {
        SerialPortType::UsbPort(usb) => Some((port.port_name.as_str(), usb)),
        _ => None,
    });
    let (same, others): (Vec<_>, Vec<_>) =
        usb.partition(|(_, usb)| (usb.vid, usb.pid) == (name.usb.vendor, name.usb.product));
    let fits = |usb: &UsbPortInfo| name.serial.is_none() || usb.serial_number == name.serial;
    let fitting: Vec<_> = same.iter().filter(|(_, usb)| fits(usb)).collect();
    match (fitting.as_slice(), same.is_empty()) {
        ([(path, _)], _) => Ok(PathBuf::from(path)),
        ([], true) => Err(format!("plug it in, or correct `port`; {}", list(&others))),
        ([], false) => Err(format!("another one of this kind is plugged in: {}", list(&same))),
        _ => Err(format!(
            "several fit: add `serial`, or use a path below /dev/serial/by-id; {}",
            list(&same)
        )),
    }
}

fn list(ports: &[(&str, &UsbPortInfo)]) -> String {
    if ports.is_empty() {
        return "no USB serial port is there now".to_owned();
    }
    let shown: Vec<String> = ports
        .iter()
        .take(8)
        .map(|(path, usb)| format!("{path} is {}", describe(usb)))
        .collect();
    shown.join("; ")
}

/// `{ usb = "0403:6001", serial = "A10K" }`, as `port` takes it.
pub fn describe(usb: &UsbPortInfo) -> String {
    let id = UsbId {
        vendor: usb.vid,
        product: usb.pid,
    };
    match &usb.serial_number {
        Some(serial) => format!("{{ usb = \"{id}\", serial = \"{serial}\" }}"),
        None => format!("{{ usb = \"{id}\" }}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, vid: u16, pid: u16, serial: Option<&str>) -> SerialPortInfo {
        SerialPortInfo {
            port_name: name.to_owned(),
            port_type: SerialPortType::UsbPort(UsbPortInfo {
                vid,
                pid,
                serial_number: serial.map(str::to_owned),
                manufacturer: None,
                product: None,
            }),
        }
    }

    fn named(toml: &str) -> PortName {
        #[derive(Deserialize)]
        struct Source {
            port: PortName,
        }
        toml::from_str::<Source>(&format!("port = {toml}")).unwrap().port
    }

    #[test]
    fn a_device_is_found_by_what_it_is_wherever_it_is_plugged_in() {
        let ports = [
            port("/dev/ttyUSB0", 0x0403, 0x6001, Some("A1")),
            port("/dev/ttyUSB3", 0x0403, 0x6001, Some("B2")),
            port("/dev/ttyACM0", 0x1cbe, 0x0002, None),
            SerialPortInfo {
                port_name: "/dev/ttyS0".to_owned(),
                port_type: SerialPortType::Unknown,
            },
        ];
        for (name, expected) in [
            (r#"{ usb = "0403:6001", serial = "B2" }"#, Ok("/dev/ttyUSB3")),
            (r#"{ usb = "1CBE:0002" }"#, Ok("/dev/ttyACM0")),
            (r#"{ usb = "0403:6001" }"#, Err("add `serial`")),
            (
                r#"{ usb = "0403:6001", serial = "C3" }"#,
                Err("another one of this kind"),
            ),
            (r#"{ usb = "067b:2303" }"#, Err("plug it in")),
        ] {
            let PortName::Usb(name) = named(name) else {
                panic!("{name}")
            };
            match (find(&name, &ports), expected) {
                (Ok(path), Ok(expected)) => assert_eq!(path, Path::new(expected)),
                (Err(text), Err(expected)) => assert!(text.contains(expected), "{text}"),
                (found, _) => panic!("{name:?}: {found:?}"),
            }
        }
        assert_eq!(
            named("'/dev/ttyUSB0'").locate().unwrap(),
            Path::new("/dev/ttyUSB0")
        );
    }

    #[test]
    fn a_wrong_name_says_what_is_right() {
        for wrong in [
            r#"{ usb = "403:6001" }"#,
            r#"{ usb = "0403:6001", product = "x" }"#,
            "7",
        ] {
            let error = toml::from_str::<toml::Table>(&format!("port = {wrong}")).unwrap();
            let error = PortName::deserialize(error["port"].clone())
                .unwrap_err()
                .to_string();
            assert!(error.contains("usb = \"0403:6001\""), "{error}");
        }
    }
}
