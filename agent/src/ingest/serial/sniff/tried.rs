//! What is tried: settings of the port, framings beside the drivers; and which devices listening alone cannot find.

use super::super::drivers::{DriverInfo, Flow, Now, Output, Parity, PortSettings, Speaks, drivers};

/// The framings that are tried, and what an explained byte counts for with them.
pub(super) const FRAMINGS: [(&str, &str, f64); 13] = [
    (
        "framing = \"lines\", format = \"json\"",
        r#"{"framing":"lines","format":"json"}"#,
        0.9,
    ),
    (
        "framing = \"nmea\", format = \"hex\"",
        r#"{"framing":"nmea","format":"hex"}"#,
        0.9,
    ),
    (
        "framing = \"astm\", format = \"hex\"",
        r#"{"framing":"astm","format":"hex"}"#,
        0.9,
    ),
    (
        "framing = \"mllp\", format = \"csv\"",
        r#"{"framing":"mllp","format":"csv"}"#,
        0.9,
    ),
    (
        "framing = \"modbus-rtu\", format = \"hex\"",
        r#"{"framing":"modbus-rtu","format":"hex"}"#,
        0.85,
    ),
    (
        "framing = \"length-crc16\", format = \"hex\"",
        r#"{"framing":"length-crc16","format":"hex"}"#,
        0.85,
    ),
    (
        "framing = \"slip\", checksum = \"crc16-x25\", format = \"hex\"",
        r#"{"framing":"slip","checksum":"crc16-x25","format":"hex"}"#,
        0.85,
    ),
    (
        "framing = \"stx-etx\", checksum = \"xor8\", format = \"hex\"",
        r#"{"framing":"stx-etx","checksum":"xor8","format":"hex"}"#,
        0.8,
    ),
    (
        "framing = \"lines\", format = \"label\"",
        r#"{"framing":"lines","format":"label"}"#,
        0.7,
    ),
    (
        "framing = \"stx-etx\", format = \"hex\"",
        r#"{"framing":"stx-etx","format":"hex"}"#,
        0.65,
    ),
    (
        "framing = \"lines\", format = \"csv\"",
        r#"{"framing":"lines","format":"csv"}"#,
        0.6,
    ),
    (
        "framing = \"slip\", format = \"hex\"",
        r#"{"framing":"slip","format":"hex"}"#,
        0.5,
    ),
    (
        "framing = \"cobs\", format = \"hex\"",
        r#"{"framing":"cobs","format":"hex"}"#,
        0.4,
    ),
];

/// Speeds that devices have beside those of the drivers.
const OTHER_SPEEDS: [u32; 5] = [38_400, 57_600, 4800, 2400, 1200];

/// Who only listens holds up nobody.
pub(super) fn without_flow(settings: PortSettings) -> PortSettings {
    PortSettings {
        flow: Flow::None,
        ..settings
    }
}

/// What is worth trying, the most common first: the settings of the drivers, then other speeds; with `speed` only those of it.
pub fn worth_trying(speed: Option<u32>) -> Vec<PortSettings> {
    let mut known: Vec<(PortSettings, usize)> = Vec::new();
    for info in drivers() {
        let settings = without_flow(info.settings);
        match known.iter_mut().find(|(known, _)| *known == settings) {
            Some((_, count)) => *count += 1,
            None => known.push((settings, 1)),
        }
    }
    known.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let others: Vec<u32> = speed.map_or(OTHER_SPEEDS.to_vec(), |speed| vec![speed]);
    let mut settings: Vec<PortSettings> = known.into_iter().map(|(settings, _)| settings).collect();
    for other in others.into_iter().map(PortSettings::eight_none_one) {
        if !settings.contains(&other) {
            settings.push(other);
        }
    }
    settings.retain(|settings| speed.is_none_or(|speed| settings.baud == speed));
    settings
}

/// `9600 8N1`.
pub fn shorthand(settings: PortSettings) -> String {
    let parity = match settings.parity {
        Parity::None => 'N',
        Parity::Even => 'E',
        Parity::Odd => 'O',
    };
    format!(
        "{} {}{parity}{}",
        settings.baud, settings.data_bits, settings.stop_bits
    )
}

/// How long a driver waits at most before it asks.
const ASKS_WITHIN_US: u64 = 30_000_000;

/// Whether listening cannot find the devices of a driver: they say nothing before it has asked, which it does on a silent line.
pub fn is_silent_until_asked(info: &DriverInfo) -> bool {
    if info.speaks == Speaks::Always {
        return false;
    }
    let at = |monotonic_us| Now {
        monotonic_us,
        wall: None,
    };
    let (mut driver, mut out) = (info.create(), Output::default());
    driver.start(at(0), &mut out);
    // It need not be at the first time-out.
    for _ in 0..10 {
        match driver.deadline() {
            Some(deadline) if out.send.is_empty() && deadline <= ASKS_WITHIN_US => {
                driver.timeout(at(deadline), &mut out);
            }
            _ => break,
        }
    }
    !out.send.is_empty()
}
