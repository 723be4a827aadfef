//! Contec CMS50 family, and Berry BM1000 and BM2000, whose "BCI" frame has the shape of the older Contec one.
//!
//! Three drivers: `contec-cms50` (v4.6: five bytes, 60 a second, 19200 8O1, older units 4800 8N1, listens only), `contec-cms50-v7` (packages of nine bytes at
//! 115200 8N1; asks for live data and keeps it alive), `berry-bci` (five bytes, 100 a second, listens only).
//!
//! Bodies:
//! * `vitals`: `spo2`, `pulse_rate_oximeter`; `perfusion_index_raw` of v7, whose scale is not published;
//! * `waveform` `pleth_waveform` (60 or 100 Hz, 7 bit, without unit).
//!
//! `status`: `searching`, `searching_too_long`, `probe_error`, `no_signal`, `probe_unplugged`, `no_finger`.

use serde::Serialize;
use serde_json::json;

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, Parity, PortSettings, Speaks};
use crate::ingest::serial::framing::bits::{bit, byte, part};
use crate::ingest::serial::framing::checksum::to_hex;
use crate::ingest::serial::framing::frames::{self, Protocol, Reason, Step};

const V46: &str = "contec-cms50";
const V7: &str = "contec-cms50-v7";
const BERRY: &str = "berry-bci";

/// The older Contec frame.
pub const DRIVER_V46: DriverInfo = DriverInfo {
    name: V46,
    title: "Contec CMS50D+, CMS50E, CMS50F with the five-byte frame",
    settings: PortSettings {
        parity: Parity::Odd,
        ..PortSettings::eight_none_one(19_200)
    },
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: V46,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Five { berry: false }, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Five { berry: false }, Reading::new(V46, 60_000))),
};

/// The newer Contec package.
pub const DRIVER_V7: DriverInfo = DriverInfo {
    name: V7,
    title: "Contec CMS50D+ (newer), CMS50F, CMS50I, CMS60 with nine-byte packages",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::WhenAsked,
    pack: V46,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Package, bytes),
        Direction::HostToDevice => Description::of(command_name(bytes)),
    },
    commands: || {
        vec![
            ("start live data", command(START_LIVE)),
            ("keep live data alive", command(KEEP_ALIVE)),
        ]
    },
    create: || Box::new(Port::new(Package, Live::default())),
};

/// The Berry dialect.
pub const DRIVER_BERRY: DriverInfo = DriverInfo {
    name: BERRY,
    title: "Berry BM1000, BM2000 pulse oximeters (BCI protocol)",
    settings: PortSettings::eight_none_one(115_200),
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: BERRY,
    describe: |direction, bytes| match direction {
        Direction::DeviceToHost => frames::describe(Five { berry: true }, bytes),
        Direction::HostToDevice => Description::of(None),
    },
    commands: Vec::new,
    create: || Box::new(Port::new(Five { berry: true }, Reading::new(BERRY, 100_000))),
};

/// One frame of a dialect.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "dialect")]
pub enum Frame {
    /// Five bytes, Contec.
    #[serde(rename = "cms50-v4.6")]
    V46 {
        /// 0 to 8.
        signal_strength: u8,
        /// The device gives up searching.
        searching_too_long: bool,
        /// The saturation falls.
        spo2_dropping: bool,
        /// A beat.
        pulse_beep: bool,
        /// 0 to 127.
        pleth: u8,
        /// 0 to 15.
        bar_graph: u8,
        /// Probe error or no finger.
        probe_error: bool,
        /// Looks for a pulse.
        searching: bool,
        /// Per minute.
        pulse_bpm: Option<u8>,
        /// Percent.
        spo2_pct: Option<u8>,
    },
    /// Five bytes, Berry.
    #[serde(rename = "berry-bci")]
    Berry {
        /// 0 to 15.
        signal_strength: u8,
        /// No signal.
        no_signal: bool,
        /// No probe.
        probe_unplugged: bool,
        /// A beat.
        pulse_beep: bool,
        /// 1 to 127.
        pleth: Option<u8>,
        /// 1 to 15.
        bar_graph: Option<u8>,
        /// No finger.
        no_finger: bool,
        /// Looks for a pulse.
        searching: bool,
        /// Per minute.
        pulse_bpm: Option<u8>,
        /// Percent.
        spo2_pct: Option<u8>,
    },
    /// Nine bytes, live data.
    #[serde(rename = "cms50-v7")]
    V7 {
        /// 1: live data.
        package_type: u8,
        /// What the package says.
        #[serde(flatten)]
        live: V7Live,
    },
    /// Another package of v7.
    #[serde(rename = "cms50-v7")]
    V7Other {
        /// Its type.
        package_type: u8,
        /// Its seven bytes.
        data_hex: String,
    },
}

/// Live data of a v7 package.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct V7Live {
    signal_strength: u8,
    searching_too_long: bool,
    low_spo2: bool,
    pulse_beep: bool,
    probe_error: bool,
    pleth: u8,
    searching: bool,
    bar_graph: u8,
    pi_valid: bool,
    pulse_bpm: Option<u8>,
    spo2_pct: Option<u8>,
    pi_raw: Option<u16>,
}

fn pulse(value: u8, usable: bool) -> Option<u8> {
    (usable && value != 0 && value != 255).then_some(value)
}

fn saturation(value: u8, usable: bool) -> Option<u8> {
    (usable && value != 0 && value != 127).then_some(value)
}

/// Five bytes, of which only the first has bit 7 set.
#[derive(Debug)]
pub struct Five {
    berry: bool,
}

impl Protocol for Five {
    type Frame = Frame;
    const LONGEST: usize = 5;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        if byte(bytes, 0) < 0x80 {
            return Step::Skip(1);
        }
        if let Some(at) = part(bytes, 1, 4).iter().position(|b| *b >= 0x80) {
            return Step::Refused(at + 1, Reason::Sync.into());
        }
        let &[first, pleth, third, rate, spo2, ..] = bytes else {
            return Step::More;
        };
        let raw_rate = (third & 0x40) << 1 | rate;
        let frame = if self.berry {
            let (no_finger, searching) = (bit(third, 4), bit(third, 5));
            Frame::Berry {
                signal_strength: first & 15,
                no_signal: bit(first, 4),
                probe_unplugged: bit(first, 5),
                pulse_beep: bit(first, 6),
                pleth: (pleth != 0).then_some(pleth),
                bar_graph: (third & 15 != 0).then_some(third & 15),
                no_finger,
                searching,
                pulse_bpm: pulse(raw_rate, !no_finger && !searching),
                spo2_pct: saturation(spo2, !no_finger && !searching),
            }
        } else {
            let (probe_error, searching) = (bit(third, 4), bit(third, 5));
            Frame::V46 {
                signal_strength: first & 15,
                searching_too_long: bit(first, 4),
                spo2_dropping: bit(first, 5),
                pulse_beep: bit(first, 6),
                pleth,
                bar_graph: third & 15,
                probe_error,
                searching,
                pulse_bpm: pulse(raw_rate, !probe_error && !searching),
                spo2_pct: saturation(spo2, !probe_error && !searching),
            }
        };
        Step::Frame(5, frame)
    }
}

/// A package: type below 80, high bits, seven bytes with bit 7 set.
#[derive(Debug, Default)]
pub struct Package;

impl Protocol for Package {
    type Frame = Frame;
    const LONGEST: usize = 9;

    fn next(&mut self, bytes: &[u8]) -> Step<Frame> {
        let package_type = byte(bytes, 0);
        if package_type >= 0x80 {
            return Step::Skip(1);
        }
        if let Some(at) = part(bytes, 1, 8).iter().position(|b| *b < 0x80) {
            return Step::Refused(at + 1, Reason::Sync.into());
        }
        if bytes.len() < 9 {
            return Step::More;
        }
        let high = byte(bytes, 1);
        let data: [u8; 7] = std::array::from_fn(|i| byte(bytes, i + 2) & 0x7F | (high >> i & 1) << 7);
        let at = |index: usize| byte(&data, index);
        if package_type != 1 {
            return Step::Frame(
                9,
                Frame::V7Other {
                    package_type,
                    data_hex: to_hex(&data),
                },
            );
        }
        let (probe_error, searching) = (bit(at(0), 7), bit(at(1), 7));
        let pi = u16::from(at(5)) | u16::from(at(6)) << 8;
        let live = V7Live {
            signal_strength: at(0) & 15,
            searching_too_long: bit(at(0), 4),
            low_spo2: bit(at(0), 5),
            pulse_beep: bit(at(0), 6),
            probe_error,
            pleth: at(1) & 0x7F,
            searching,
            bar_graph: at(2) & 15,
            pi_valid: bit(at(2), 4),
            pulse_bpm: pulse(at(3), !probe_error && !searching),
            spo2_pct: saturation(at(4), !probe_error && !searching),
            pi_raw: (pi != 0xFFFF).then_some(pi),
        };
        Step::Frame(9, Frame::V7 { package_type, live })
    }
}

/// The vital signs of a frame.
fn body(driver: &str, frame: &Frame) -> Body {
    let body = Body::new(driver, "vitals");
    match frame {
        Frame::V46 {
            spo2_pct,
            pulse_bpm,
            searching,
            searching_too_long,
            probe_error,
            ..
        } => body
            .value("spo2", *spo2_pct)
            .value("pulse_rate_oximeter", *pulse_bpm)
            .status(&[
                (*probe_error, "probe_error"),
                (*searching, "searching"),
                (*searching_too_long, "searching_too_long"),
            ]),
        Frame::Berry {
            spo2_pct,
            pulse_bpm,
            no_signal,
            probe_unplugged,
            no_finger,
            searching,
            ..
        } => body
            // Without probe or signal the numbers are those of a moment ago.
            .value("spo2", spo2_pct.filter(|_| !no_signal && !probe_unplugged))
            .value(
                "pulse_rate_oximeter",
                pulse_bpm.filter(|_| !no_signal && !probe_unplugged),
            )
            .status(&[
                (*no_signal, "no_signal"),
                (*probe_unplugged, "probe_unplugged"),
                (*no_finger, "no_finger"),
                (*searching, "searching"),
            ]),
        Frame::V7 { live, .. } => body
            .value("spo2", live.spo2_pct)
            .value("pulse_rate_oximeter", live.pulse_bpm)
            .with("perfusion_index_raw", live.pi_raw.filter(|_| live.pi_valid))
            .status(&[
                (live.probe_error, "probe_error"),
                (live.searching, "searching"),
                (live.searching_too_long, "searching_too_long"),
            ]),
        Frame::V7Other { .. } => body,
    }
}

/// Turns frames into readings.
#[derive(Debug)]
struct Reading {
    driver: &'static str,
    vitals: Vitals,
    pleth: Waveform,
}

impl Reading {
    fn new(driver: &'static str, samples_per_kilosecond: i64) -> Self {
        let pleth = Waveform::new(driver, "pleth_waveform", samples_per_kilosecond);
        Reading {
            driver,
            vitals: Vitals::default(),
            pleth,
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let sample = match &frame {
            Frame::V46 {
                pleth, probe_error, ..
            } => (!probe_error).then_some(*pleth),
            Frame::Berry { pleth, .. } => *pleth,
            Frame::V7 { live, .. } => (!live.probe_error).then_some(live.pleth),
            Frame::V7Other { .. } => return,
        };
        match sample {
            Some(sample) => self.pleth.sample(sample, now, out),
            None => self.pleth.gap(out),
        }
        if !self.vitals.rests(now) {
            self.vitals.offer(body(self.driver, &frame), now, out);
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        self.pleth.gap(out);
    }
}

const START_LIVE: u8 = 0xA1;
const KEEP_ALIVE: u8 = 0xAF;
/// The device stops after 5 s without a sign of life.
const KEEP_ALIVE_US: u64 = 4_000_000;
/// No live data for so long: ask for it again.
const SILENT_US: u64 = 2_000_000;

fn command(code: u8) -> Vec<u8> {
    vec![0x7D, 0x81, code, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]
}

fn command_name(bytes: &[u8]) -> Option<serde_json::Value> {
    match bytes {
        [0xF5, 0xF5] => return Some(json!({"command": "download"})),
        [0xF6, 0xF6, 0xF6] => return Some(json!({"command": "stop_download"})),
        _ => {}
    }
    let [0x7D, 0x81, code, rest @ ..] = bytes else {
        return None;
    };
    if rest.len() != 6 {
        return None;
    }
    let name = match code {
        0xA0 => "open_3",
        0xA1 => "start_live",
        0xA2 => "stop_live",
        0xA3 => "session_count",
        0xA4 => "session_duration",
        0xA5 => "session_time",
        0xA6 => "download",
        0xA7 => "open_1",
        0xA8 => "model",
        0xA9 => "vendor",
        0xAA => "identifier",
        0xAB => "user",
        0xAF => "keep_alive",
        0xB0 => "info",
        _ => return None,
    };
    Some(json!({"command": name, "code": format!("{code:02x}")}))
}

/// Asks for live data and keeps it coming.
#[derive(Debug)]
struct Live {
    reading: Reading,
    keep_alive: u64,
    ask_again: u64,
}

impl Default for Live {
    fn default() -> Self {
        Live {
            reading: Reading::new(V7, 60_000),
            keep_alive: 0,
            ask_again: 0,
        }
    }
}

impl Live {
    fn ask(&mut self, now: Now, out: &mut Output) {
        out.send.push(command(START_LIVE));
        self.ask_again = now.monotonic_us + SILENT_US;
    }
}

impl Listener<Frame> for Live {
    fn start(&mut self, now: Now, out: &mut Output) {
        self.keep_alive = now.monotonic_us + KEEP_ALIVE_US;
        self.ask(now, out);
    }

    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        if matches!(frame, Frame::V7 { .. }) {
            self.ask_again = now.monotonic_us + SILENT_US;
        }
        self.reading.frame(frame, now, out);
    }

    fn gap(&mut self, now: Now, out: &mut Output) {
        self.reading.gap(now, out);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.keep_alive.min(self.ask_again))
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        if now.monotonic_us >= self.ask_again {
            self.reading.pleth.gap(out);
            self.ask(now, out);
        }
        if now.monotonic_us >= self.keep_alive {
            out.send.push(command(KEEP_ALIVE));
            out.no_answer = true;
            self.keep_alive = now.monotonic_us + KEEP_ALIVE_US;
        }
    }
}
