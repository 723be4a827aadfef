//! One driver or framing that reads along, and how well it fits what was heard.

use super::super::drivers::{Direction, Driver, DriverInfo, Now, Output, PortSettings, Speaks};
use super::super::framing::frames::{Description, Reason};
use super::super::framing::{self, FramingConfig};
use super::tried::without_flow;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes of a frame that had begun before the listening did, or had not ended; they speak against no driver.
const CUT_BYTES: u64 = 256;
/// Per cent of the bytes that a driver must explain to be a guess, and a framing, which finds frames more easily.
const LEAST_SHARE: f64 = 60.0;
const LEAST_SHARE_OF_FRAMING: f64 = 85.0;
/// Frames that a guess must have.
const LEAST_FRAMES: u64 = 2;
/// What the usual settings of a driver count for, as per cent of the bytes: they tell two dialects of one protocol apart.
const USUAL: f64 = 5.0;
/// Frames a second of the dialects that have one shape, and what the right number counts for: more than the settings, which are
/// only a name where there is no real line (USB, Bluetooth, pseudo-terminals).
const RATES: [(&str, f64); 2] = [("contec-cms50", 60.0), ("berry-bci", 100.0)];
const PACE: f64 = 10.0;
/// Bytes of a frame that proves itself.
const LONG_FRAME: u64 = 48;

/// Decodes bytes to be shown.
type Describe = Box<dyn Fn(&[u8]) -> Description + Send>;

/// One that reads along.
pub(super) struct Candidate {
    name: String,
    is_driver: bool,
    usual: bool,
    /// Its devices say something at times only.
    at_times: bool,
    /// Frames a second of its devices, where this tells them from others.
    rate: Option<f64>,
    weight: f64,
    driver: Box<dyn Driver + Send>,
    describe: Describe,
    frames: u64,
    frame_bytes: u64,
    garbage: u64,
    /// Garbage before the first frame.
    before: u64,
    readings: u64,
    errors: BTreeMap<&'static str, u64>,
}

impl Candidate {
    /// The driver of this entry, on a port with these settings.
    pub(super) fn of_driver(info: &'static DriverInfo, settings: PortSettings) -> Candidate {
        Candidate {
            is_driver: true,
            usual: without_flow(info.settings) == without_flow(settings),
            at_times: info.speaks == Speaks::AtTimes,
            rate: RATES
                .iter()
                .find(|(name, _)| *name == info.name)
                .map(|(_, rate)| *rate),
            ..Candidate::new(
                info.name,
                1.0,
                info.create(),
                Box::new(|bytes| (info.describe)(Direction::DeviceToHost, bytes)),
            )
        }
    }

    /// The framing that the members of a source describe in `config`; an explained byte counts for `weight` with it.
    pub(super) fn of_framing(name: &str, config: FramingConfig, weight: f64) -> Candidate {
        let reader = framing::from_config(&config);
        let describe = Box::new(move |bytes: &[u8]| framing::describe(&config, bytes));
        Candidate::new(name, weight, reader, describe)
    }

    fn new(name: &str, weight: f64, driver: Box<dyn Driver + Send>, describe: Describe) -> Candidate {
        Candidate {
            name: name.to_owned(),
            is_driver: false,
            usual: false,
            at_times: false,
            rate: None,
            weight,
            driver,
            describe,
            frames: 0,
            frame_bytes: 0,
            garbage: 0,
            before: 0,
            readings: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Reads along; what it would send is dropped.
    pub(super) fn bytes(&mut self, bytes: &[u8], now: Now) {
        let mut out = Output::default();
        // A half frame ends with the silence before these bytes.
        let deadline = self.driver.deadline();
        if deadline.is_some_and(|deadline| deadline <= now.monotonic_us) {
            self.driver.timeout(now, &mut out);
            self.count(std::mem::take(&mut out));
        }
        self.driver.bytes(bytes, now, &mut out);
        self.count(out);
    }

    /// Bytes that it has found a place for, or none; the others are of a frame that is on its way.
    pub(super) fn read(&self) -> u64 {
        self.frame_bytes + self.garbage
    }

    /// The frames in `bytes`, to be shown.
    pub(super) fn frames_in(&self, bytes: &[u8]) -> Vec<Value> {
        (self.describe)(bytes).frames
    }

    fn count(&mut self, out: Output) {
        if self.frames == 0 {
            self.before += out.garbage;
        }
        self.garbage += out.garbage;
        self.frames += out.frames;
        self.frame_bytes += out.frame_bytes;
        self.readings += out.messages.len() as u64;
        // Nothing was asked, so that a missing answer is no fault of the line.
        for error in out.errors.iter().filter(|error| error.reason != Reason::NoAnswer) {
            *self.errors.entry(error.reason.name()).or_default() += 1;
        }
    }

    /// How well it fits `heard` bytes, of which `after` came after its last frame, in `seconds`.
    pub(super) fn score(&self, heard: u64, after: u64, seconds: f64) -> Score {
        let cut = (self.before.min(CUT_BYTES) + after.min(CUT_BYTES)).min(heard / 2);
        let share = percent(self.frame_bytes, heard.saturating_sub(cut).max(self.frame_bytes));
        let least = if self.is_driver {
            LEAST_SHARE
        } else {
            LEAST_SHARE_OF_FRAMING
        };
        // A single long frame of a device that has said all it had to say.
        let one = self.at_times && self.readings > 0 && self.frame_bytes >= LONG_FRAME * self.frames;
        let least_frames = if one { 1 } else { LEAST_FRAMES };
        let likely = self.frames >= least_frames && share >= least && self.frame_bytes * 4 >= heard;
        let bonus = if self.usual { USUAL } else { 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 frames")]
        let pace = self.frames as f64 / seconds.max(0.001);
        let at_its_rate = self.rate.is_some_and(|rate| (pace / rate - 1.0).abs() < 0.15);
        let bonus = bonus + if at_its_rate { PACE } else { 0.0 };
        // Frames that say nothing are as likely of another device.
        let weight = if self.readings > 0 {
            self.weight
        } else {
            self.weight / 2.0
        };
        Score {
            name: self.name.clone(),
            driver: self.is_driver,
            usual_settings: self.usual,
            frames: self.frames,
            readings: self.readings,
            share_percent: (share * 10.0).round() / 10.0,
            errors: self.errors.clone(),
            points: if likely { share * weight + bonus } else { 0.0 },
        }
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let (part, whole) = (part as f64, whole.max(1) as f64);
    part * 100.0 / whole
}

/// How well one driver or framing fits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Name of the driver, or the members of the source that describe the framing.
    pub name: String,
    /// Whether it is a driver.
    pub driver: bool,
    /// Whether its devices usually have these port settings.
    pub usual_settings: bool,
    /// Frames found.
    pub frames: u64,
    /// Readings that these frames gave.
    pub readings: u64,
    /// Per cent of the bytes that belong to its frames, without the cut ones at the begin and the end.
    pub share_percent: f64,
    /// Frames refused, by reason.
    pub errors: BTreeMap<&'static str, u64>,
    /// What it is ordered by; 0 when it is no guess.
    #[serde(skip)]
    pub(super) points: f64,
}
