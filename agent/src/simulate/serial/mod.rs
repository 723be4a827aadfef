//! Simulated devices that speak the protocols of the drivers: pure state machines, as the drivers are. Bytes of the host and time
//! go in, bytes of the device come out. All devices on one seed show the same patient.
//!
//! The clock of a simulated meter is an hour ahead of UTC, as one that was set to local time.

mod chest_strap;
pub mod line;
mod meters;
mod monitors;
mod oximeters;

use super::physiology::{Physiology, Vitals};
pub use crate::ingest::serial::drivers::Now;

/// A device at the other end of the line.
pub trait Simulator {
    /// The host sent bytes.
    fn bytes(&mut self, bytes: &[u8], now: Now, out: &mut Vec<u8>);
    /// When [`Simulator::step`] is to be called, in monotonic microseconds.
    fn deadline(&self) -> Option<u64>;
    /// The deadline has passed; calling it too early does nothing.
    fn step(&mut self, now: Now, out: &mut Vec<u8>);
}

/// Makes a simulator of a patient.
type Make = fn(Heart) -> Box<dyn Simulator + Send>;

const SIMULATORS: [(&str, Make); 12] = [
    ("nonin", |heart| Box::new(oximeters::Nonin::new(heart))),
    ("contec-cms50", |heart| {
        Box::new(oximeters::Five::new(heart, 60, 0x00))
    }),
    ("contec-cms50-v7", |heart| {
        Box::new(oximeters::Package::new(heart))
    }),
    ("berry-bci", |heart| {
        Box::new(oximeters::Five::new(heart, 100, 0x00))
    }),
    ("masimo-ascii", |heart| Box::new(oximeters::Masimo::new(heart))),
    ("berry-pm6750", |heart| Box::new(monitors::Pm6750::new(heart))),
    ("zephyr", |heart| Box::new(chest_strap::Zephyr::new(heart))),
    ("healthypi-openview", |heart| {
        Box::new(monitors::HealthyPi::new(heart))
    }),
    ("drager-medibus", |heart| Box::new(monitors::Medibus::new(heart))),
    ("datex-dri", |heart| Box::new(monitors::Dri::new(heart))),
    ("onetouch-ultra2", |heart| Box::new(meters::OneTouch::new(heart))),
    ("and-pbt", |heart| Box::new(meters::AndPbt::new(heart))),
];

/// Names of the drivers that have a simulator.
pub fn names() -> impl Iterator<Item = &'static str> {
    SIMULATORS.iter().map(|(name, _)| *name)
}

/// The device for a driver, on the patient that `seed` stands for; none when there is no simulator of that name.
pub fn simulator(driver: &str, seed: u64) -> Option<Box<dyn Simulator + Send>> {
    let (_, make) = SIMULATORS.iter().find(|(name, _)| *name == driver)?;
    Some(make(Heart::new(seed)))
}

/// A patient whose beats run on from sample to sample.
#[derive(Clone, Copy, Debug)]
struct Heart {
    patient: Physiology,
    seed: u64,
    /// Part of the beat that has passed, from 0 to below 1.
    phase: f64,
    /// Part of the breath that has passed.
    breath: f64,
    beats: u64,
    last: Option<u64>,
}

impl Heart {
    fn new(seed: u64) -> Self {
        Heart {
            patient: Physiology::new(seed),
            seed,
            phase: 0.0,
            breath: 0.0,
            beats: 0,
            last: None,
        }
    }

    fn vitals(&self, now: Now) -> Vitals {
        self.patient.at(now.monotonic_us / 1000)
    }

    /// Breaths a minute: one to four and a half beats of the heart.
    fn breaths(vitals: Vitals) -> u32 {
        vitals.heart_rate * 2 / 9
    }

    /// Lets the heart beat until `now`; whether a beat began.
    fn run(&mut self, now: Now) -> bool {
        let elapsed = now
            .monotonic_us
            .saturating_sub(self.last.unwrap_or(now.monotonic_us));
        self.last = Some(now.monotonic_us);
        let minutes = f64::from(u32::try_from(elapsed.min(2_000_000)).unwrap_or(0)) / 60e6;
        let vitals = self.vitals(now);
        self.breath = (self.breath + minutes * f64::from(Self::breaths(vitals))).fract();
        let phase = self.phase + minutes * f64::from(vitals.heart_rate);
        self.phase = phase.fract();
        if phase >= 1.0 {
            self.beats += 1;
        }
        phase >= 1.0
    }

    /// The plethysmogram, 0 to 1: the wave of the beat and the smaller one of the closing valve.
    fn pleth(&self) -> f64 {
        0.9 * bell(self.phase, 0.25, 0.11) + 0.35 * bell(self.phase, 0.6, 0.12)
    }

    /// The electrocardiogram in millivolts: P, Q, R, S and T.
    fn ecg(&self) -> f64 {
        0.12 * bell(self.phase, 0.18, 0.025) - 0.15 * bell(self.phase, 0.272, 0.008)
            + 1.1 * bell(self.phase, 0.29, 0.01)
            - 0.22 * bell(self.phase, 0.312, 0.009)
            + 0.28 * bell(self.phase, 0.55, 0.045)
    }

    /// The movement of the chest, -1 to 1.
    fn chest(&self) -> f64 {
        (std::f64::consts::TAU * self.breath).sin()
    }
}

fn bell(x: f64, middle: f64, width: f64) -> f64 {
    (-((x - middle) / width).powi(2) / 2.0).exp()
}

/// The nearest whole number from 0 to `most`.
fn count(value: f64, most: u16) -> u16 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range of u16 before"
    )]
    let number = value.round().clamp(0.0, f64::from(most)) as u16;
    number
}

fn byte(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// A steady rhythm: events at whole multiples of a fraction of a second, without drift.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    per_second: u64,
    begin: Option<u64>,
    done: u64,
}

impl Rhythm {
    fn new(per_second: u64) -> Self {
        Rhythm {
            per_second,
            begin: None,
            done: 0,
        }
    }

    fn deadline(&self) -> u64 {
        self.begin
            .map_or(0, |begin| begin + self.done * 1_000_000 / self.per_second)
    }

    /// The number of the event that is due, counted from 0.
    fn due(&mut self, now: Now) -> Option<u64> {
        let begin = *self.begin.get_or_insert(now.monotonic_us);
        if now.monotonic_us < begin + self.done * 1_000_000 / self.per_second {
            return None;
        }
        self.done += 1;
        Some(self.done - 1)
    }

    /// Begins anew at the next event.
    fn restart(&mut self) {
        *self = Rhythm::new(self.per_second);
    }
}
