//! Meters that keep their measurements: a glucose meter that is read out, a blood-pressure monitor that reports by itself.

use iomt_mapping::Timestamp;
use iomt_mapping::time::Civil;

use super::{Heart, Now, Simulator, byte};
use crate::ingest::serial::framing::checksum::sum16;

const HOUR_TICKS: i64 = 3600 * 10_000_000;
/// Where the simulated clock begins when the host does not know the time: 2026-01-01T00:00:00Z.
const EPOCH_TICKS: i64 = 1_767_225_600 * 10_000_000;

/// What the clock of a device shows: an hour ahead of UTC.
pub(super) fn device_clock(now: Now) -> Civil {
    clock_at(now, 0)
}

/// What it showed some minutes ago.
fn clock_at(now: Now, minutes_ago: i64) -> Civil {
    let running = i64::try_from(now.monotonic_us).unwrap_or(0).saturating_mul(10);
    let utc = now
        .wall
        .map_or(EPOCH_TICKS.saturating_add(running), Timestamp::ticks);
    let ticks = utc + HOUR_TICKS - minutes_ago * 60 * 10_000_000;
    let fallback = Civil {
        year: 2026,
        month: 1,
        day: 1,
        hour: 0,
        minute: 0,
        second: 0,
        tick: 0,
    };
    Timestamp::from_ticks(ticks).map_or(fallback, Timestamp::civil)
}

/// OneTouch Ultra2: answers `DMF`, `DMP` and `DM@`.
pub(super) struct OneTouch {
    heart: Heart,
    received: Vec<u8>,
    /// The moment of the first question: the records are older than it, and stay where they are.
    first: Option<Now>,
}

/// Records in the memory.
const RECORDS: i64 = 12;

impl OneTouch {
    pub(super) fn new(heart: Heart) -> Self {
        OneTouch {
            heart,
            received: Vec::new(),
            first: None,
        }
    }

    fn line(out: &mut Vec<u8>, content: &str) {
        let check = sum16(content.as_bytes());
        out.extend_from_slice(format!("{content} {check:04X}\r\n").as_bytes());
    }

    fn date_and_time(clock: Civil) -> String {
        // 1 January 1970 was a Thursday.
        let days = Timestamp::from_civil(clock).map_or(0, Timestamp::ticks) / (24 * HOUR_TICKS);
        let weekday = match days.rem_euclid(7) {
            0 => "THU",
            1 => "FRI",
            2 => "SAT",
            3 => "SUN",
            4 => "MON",
            5 => "TUE",
            _ => "WED",
        };
        format!(
            "\"{weekday}\",\"{:02}/{:02}/{:02}\",\"{:02}:{:02}:{:02}   \"",
            clock.month,
            clock.day,
            clock.year % 100,
            clock.hour,
            clock.minute,
            clock.second
        )
    }

    fn dump(&self, now: Now, out: &mut Vec<u8>) {
        Self::line(
            out,
            &format!(
                "P {RECORDS:03},\"SIM{:06}\",\"MG/DL \"",
                self.heart.seed % 1_000_000
            ),
        );
        for index in 0..RECORDS {
            let clock = clock_at(self.first.unwrap_or(now), 95 + 240 * index);
            let moment = u64::try_from(index).unwrap_or(0) * 14_400_000;
            let vitals = self.heart.patient.at(moment);
            let (glucose, meal) = match index % 3 {
                0 => (70 + vitals.heart_rate / 2, "B"),
                1 => (100 + vitals.heart_rate / 2, "A"),
                _ => (85 + vitals.heart_rate / 2, "N"),
            };
            let content = format!(
                "P {},\"  {glucose:03} \",\"{meal}\",\"00\", 00",
                Self::date_and_time(clock)
            );
            Self::line(out, &content);
        }
    }
}

impl Simulator for OneTouch {
    fn bytes(&mut self, bytes: &[u8], now: Now, out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        let first = *self.first.get_or_insert(now);
        while let Some(at) = self
            .received
            .windows(3)
            .position(|three| three.starts_with(b"DM"))
        {
            match self.received.get(at + 2) {
                Some(b'F') => Self::line(out, &format!("F {}", Self::date_and_time(device_clock(now)))),
                Some(b'P') => self.dump(first, out),
                Some(b'@') => Self::line(out, &format!("@ \"SIM{:06}\"", self.heart.seed % 1_000_000)),
                _ => {}
            }
            self.received.drain(..at + 3);
        }
        let keep = self.received.len().saturating_sub(2);
        self.received.drain(..keep);
    }

    fn deadline(&self) -> Option<u64> {
        None
    }

    fn step(&mut self, _now: Now, _out: &mut Vec<u8>) {}
}

/// A&D UA-767PBT: a measurement two seconds after it was switched on, then every five minutes; sent until it is accepted.
pub(super) struct AndPbt {
    heart: Heart,
    next_measurement: u64,
    /// The measurement that was not accepted yet: its clock and payload.
    pending: Option<(Civil, String)>,
    send_at: u64,
    received: Vec<u8>,
}

const MEASURE_EVERY_US: u64 = 300_000_000;
const SEND_AGAIN_US: u64 = 10_000_000;

impl AndPbt {
    pub(super) fn new(heart: Heart) -> Self {
        AndPbt {
            heart,
            next_measurement: 2_000_000,
            pending: None,
            send_at: 0,
            received: Vec::new(),
        }
    }

    fn message(&self, measured: Civil, payload: &str, now: Now) -> Vec<u8> {
        let time = |clock: Civil| {
            let [low, high] = u16::try_from(clock.year).unwrap_or(0).to_le_bytes();
            [
                low,
                high,
                byte(clock.month),
                byte(clock.day),
                byte(clock.hour),
                byte(clock.minute),
                byte(clock.second),
            ]
        };
        let mut bytes = vec![2, 0];
        bytes.extend(u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(767_u16.to_le_bytes());
        bytes.push(0);
        bytes.extend(time(measured));
        bytes.extend(time(device_clock(now)));
        bytes.extend([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]);
        bytes.extend([0; 6]);
        bytes.extend_from_slice(format!("{:010}", self.heart.seed % 10_000_000_000).as_bytes());
        bytes.extend([0; 2 + 10]);
        bytes.extend([120, 0, 0x11]);
        bytes.extend_from_slice(payload.as_bytes());
        bytes
    }
}

impl Simulator for AndPbt {
    fn bytes(&mut self, bytes: &[u8], now: Now, _out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        while self.received.len() >= 4 {
            let answer: Vec<u8> = self.received.drain(..4).collect();
            match answer.as_slice() {
                b"PWA1" => self.pending = None,
                _ => self.send_at = now.monotonic_us + SEND_AGAIN_US,
            }
        }
    }

    fn deadline(&self) -> Option<u64> {
        Some(if self.pending.is_some() {
            self.send_at
        } else {
            self.next_measurement
        })
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        if self.pending.is_none() && now.monotonic_us >= self.next_measurement {
            self.next_measurement = now.monotonic_us + MEASURE_EVERY_US;
            let v = self.heart.vitals(now);
            let payload = format!(
                "80{:02X}{:02X}{:02X}{:02X}",
                v.systolic - v.diastolic,
                v.diastolic,
                v.pulse_rate,
                v.mean_arterial
            );
            self.pending = Some((device_clock(now), payload));
            self.send_at = now.monotonic_us;
        }
        if let Some((measured, payload)) = self.pending.as_ref().filter(|_| now.monotonic_us >= self.send_at)
        {
            out.extend(self.message(*measured, payload, now));
            self.send_at = now.monotonic_us + SEND_AGAIN_US;
        }
    }
}
