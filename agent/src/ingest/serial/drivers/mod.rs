//! Device drivers: pure state machines. Bytes and time go in; readings, bytes to send and the next deadline come out. The
//! service gives them a port and a clock, tests and simulators give them vectors and virtual time.
//!
//! Every reading is one JSON body. Common members, in all drivers:
//!
//! | member | content |
//! |---|---|
//! | `driver` | name of the driver |
//! | `kind` | `vitals` (at most one a second), `record` (a stored or finished measurement), `waveform`, `status` |
//! | `time` | UTC, only when the reading has a time of its own and the gateway could relate the device clock to UTC |
//! | `device_time` | what the device's clock said, without a zone |
//! | measurement names | a number, in the unit of the table below; absent when the device says that it has no value |
//! | `status` | list of words of the device (`sensor_off`, `searching`, ...), absent when there is none |
//!
//! Names and units: `spo2` %, `pulse_rate_oximeter` /min, `heart_rate_ecg` /min, `perfusion_index` %, `nibp_systolic`,
//! `nibp_diastolic`, `nibp_mean` mm[Hg], `nibp_pulse` /min, `respiratory_rate` /min, `respiratory_rate_co2` /min,
//! `etco2_pressure` mm[Hg], `etco2_concentration` %, `body_temperature` Cel, `skin_temperature` Cel, `body_weight` kg,
//! `body_fat` %, `glucose_capillary_whole_blood` and `glucose_capillary_plasma` mg/dL, `airway_pressure_peak`,
//! `airway_pressure_mean`, `peep` cm[H2O], `resp_rate_total` /min, `tidal_volume` mL, `minute_volume` L/min,
//! `fio2_measured` %, `dynamic_compliance` mL/cm[H2O].
//!
//! A waveform body has `waveform` (its name), `rate_hz`, `block` (unique per device) and, under the name of the waveform, a list of
//! `{"at": UTC, "value": number}`; it is made only while the gateway knows the time.

pub mod and_pbt;
pub mod berry_pm6750;
pub mod bitalino;
pub mod ble_gatt;
pub mod body;
pub mod capnostream;
pub mod clock;
pub mod contec_cms50;
pub mod contour_astm;
pub mod datex_dri;
pub mod drager_medibus;
#[cfg(test)]
mod facts;
pub mod healthypi;
pub mod intellivue_rs232;
pub mod lifescan_binary;
pub mod masimo_ascii;
pub mod nellcor_ascii;
pub mod nonin;
pub mod onetouch_ultra2;
pub mod openbci_cyton;
pub mod phasein;
pub mod port;
mod seen;
pub mod taidoc;
#[cfg(test)]
mod tests;
pub mod zephyr;

pub use crate::ingest::serial::framing::frames::{Description, FrameError, Reason};
use iomt_mapping::Timestamp;
use serde::Deserialize;

/// Bytes and time in; messages, bytes to send and the next deadline out. No I/O, no clock, bounded buffers.
pub trait Driver {
    /// The port was opened.
    fn start(&mut self, now: Now, out: &mut Output);
    /// Bytes came.
    fn bytes(&mut self, bytes: &[u8], now: Now, out: &mut Output);
    /// When [`Driver::timeout`] is to be called, in monotonic microseconds.
    fn deadline(&self) -> Option<u64>;
    /// The deadline has passed; calling it too early does nothing.
    fn timeout(&mut self, now: Now, out: &mut Output);
    /// The port is gone. What was received is brought to its end; what is to be sent has no way any more. The driver may be
    /// started again when the device is back, and knows what it has handed over already.
    fn closed(&mut self, _now: Now, _out: &mut Output) {}
    /// Records that were handed over before the program was started, oldest first.
    fn remember(&mut self, _records: &[u64]) {}
    /// Bytes that it keeps for a frame whose end has not come.
    fn held(&self) -> usize {
        0
    }
    /// Whether its devices forget a reading, or go on to the next one, when they are told that it has come.
    fn acknowledges(&self) -> bool {
        false
    }
}

/// The time at which something happened.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Microseconds of a monotonic clock.
    pub monotonic_us: u64,
    /// UTC, or none while the wall clock is not trusted.
    pub wall: Option<Timestamp>,
}

/// What a driver wants done.
#[derive(Debug, Default)]
pub struct Output {
    /// Readings, oldest first.
    pub messages: Vec<DriverMessage>,
    /// Bytes to send, one write each; after the messages of the same output have been handed over.
    pub send: Vec<Vec<u8>>,
    /// Nothing waits for an answer to the bytes in `send`: they keep a stream going.
    pub no_answer: bool,
    /// The bytes in `send` let the device forget a reading: they wait until every message so far is committed. Only of
    /// drivers that [acknowledge](Driver::acknowledges).
    pub after_commit: bool,
    /// Change the port to this before sending.
    pub settings: Option<PortSettings>,
    /// Frames that were found, and the bytes that they were made of.
    pub frames: u64,
    /// Bytes of those frames.
    pub frame_bytes: u64,
    /// Bytes that belong to no frame.
    pub garbage: u64,
    /// Frames refused.
    pub errors: Vec<FrameError>,
}

impl Output {
    /// Forgets everything, and keeps the memory for the next time.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.send.clear();
        self.errors.clear();
        *self = Output {
            messages: std::mem::take(&mut self.messages),
            send: std::mem::take(&mut self.send),
            errors: std::mem::take(&mut self.errors),
            ..Output::default()
        };
    }
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverMessage {
    /// JSON, in the schema of the driver.
    pub body: Vec<u8>,
    /// Belongs to the lane `waveform`.
    pub waveform: bool,
    /// Identity of a record that the device keeps; none for what it says once.
    pub record: Option<u64>,
}

/// Parity bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    /// None.
    #[default]
    None,
    /// Even.
    Even,
    /// Odd.
    Odd,
}

/// Flow control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// None.
    #[default]
    None,
    /// RTS and CTS lines.
    RtsCts,
    /// XON and XOFF bytes.
    XonXoff,
}

/// Settings of a serial port. In the configuration: `{ baud = 9600, data_bits = 8, parity = "none", stop_bits = 1, flow = "none" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortSettings {
    /// Bits per second.
    pub baud: u32,
    /// 5 to 8.
    pub data_bits: u8,
    /// Parity.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
    /// Flow control.
    pub flow: Flow,
}

impl Default for PortSettings {
    fn default() -> Self {
        PortSettings::eight_none_one(9600)
    }
}

impl PortSettings {
    /// 8 data bits, no parity, 1 stop bit, no flow control.
    pub const fn eight_none_one(baud: u32) -> Self {
        PortSettings {
            baud,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            flow: Flow::None,
        }
    }
}

/// How well a driver's protocol is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Two independent sources agree, or one and a recording.
    TwoSources,
    /// One good source.
    OneSource,
    /// Only the framing is known; payloads are passed on as hexadecimal text.
    FramingOnly,
}

impl Evidence {
    /// The words in the list of drivers.
    pub fn name(self) -> &'static str {
        match self {
            Evidence::TwoSources => "two sources",
            Evidence::OneSource => "one source",
            Evidence::FramingOnly => "framing only",
        }
    }
}

/// When a device is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// All the time, by itself.
    Always,
    /// All the time, once it was asked.
    WhenAsked,
    /// When there is something to say: a meter that was plugged in, a measurement that was taken.
    AtTimes,
}

impl Speaks {
    /// The words in the list of drivers.
    pub fn name(self) -> &'static str {
        match self {
            Speaks::Always => "by itself",
            Speaks::WhenAsked => "when asked",
            Speaks::AtTimes => "when it has something",
        }
    }
}

/// Who sends the bytes that are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device.
    DeviceToHost,
    /// The gateway.
    HostToDevice,
}

/// One driver of the list.
pub struct DriverInfo {
    /// Its name in the configuration.
    pub name: &'static str,
    /// The devices it reads.
    pub title: &'static str,
    /// The port settings of most of these devices.
    pub settings: PortSettings,
    /// How well the protocol is known.
    pub evidence: Evidence,
    /// When such a device is heard.
    pub speaks: Speaks,
    /// The mapping pack that reads its bodies; empty where what a channel measures depends on what is plugged in.
    pub pack: &'static str,
    /// Decodes bytes without the dialogue.
    pub describe: fn(Direction, &[u8]) -> Description,
    /// Every byte string it can send, with what it means; a pattern for those with a counter or time in them.
    pub commands: fn() -> Vec<(&'static str, Vec<u8>)>,
    create: fn() -> Box<dyn Driver + Send>,
}

impl DriverInfo {
    /// A driver for a port that was just opened.
    pub fn create(&self) -> Box<dyn Driver + Send> {
        (self.create)()
    }
}

/// All drivers.
pub fn drivers() -> &'static [DriverInfo] {
    DRIVERS
}

/// The driver of this name.
pub fn driver(name: &str) -> Option<&'static DriverInfo> {
    DRIVERS.iter().find(|driver| driver.name == name)
}

static DRIVERS: &[DriverInfo] = &[
    nonin::DRIVER,
    contec_cms50::DRIVER_V46,
    contec_cms50::DRIVER_V7,
    contec_cms50::DRIVER_BERRY,
    masimo_ascii::DRIVER,
    berry_pm6750::DRIVER,
    zephyr::DRIVER,
    healthypi::DRIVER,
    drager_medibus::DRIVER,
    datex_dri::DRIVER,
    onetouch_ultra2::DRIVER,
    and_pbt::DRIVER,
    contour_astm::DRIVER,
    lifescan_binary::DRIVER,
    taidoc::DRIVER,
    nellcor_ascii::DRIVER,
    capnostream::DRIVER,
    phasein::DRIVER,
    intellivue_rs232::DRIVER,
    bitalino::DRIVER,
    openbci_cyton::DRIVER,
    ble_gatt::DRIVER,
];
