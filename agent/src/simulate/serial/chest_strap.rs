//! A chest strap: packets that were switched on, while the host gives signs of life.

use super::{Heart, Now, Rhythm, Simulator, byte, count};
use crate::ingest::serial::framing::checksum::crc8_maxim;

/// Zephyr BioHarness: packets that were switched on, while the host lives.
pub(super) struct Zephyr {
    heart: Heart,
    samples: Rhythm,
    on: [bool; 4],
    host_alive_until: u64,
    sequence: [u8; 4],
    ecg: Vec<u16>,
    breathing: Vec<u16>,
    interval_sign: i16,
    last_beat: u64,
    last_interval: i16,
    intervals: Vec<i16>,
    received: Vec<u8>,
}

const SUMMARY: usize = 0;
const ECG: usize = 1;
const BREATHING: usize = 2;
const INTERVALS: usize = 3;

impl Zephyr {
    pub(super) fn new(heart: Heart) -> Self {
        Zephyr {
            heart,
            samples: Rhythm::new(250),
            on: [false; 4],
            host_alive_until: 0,
            sequence: [0; 4],
            ecg: Vec::new(),
            breathing: Vec::new(),
            interval_sign: 1,
            last_beat: 0,
            last_interval: 800,
            intervals: Vec::new(),
            received: Vec::new(),
        }
    }

    fn send(out: &mut Vec<u8>, id: u8, payload: &[u8], end: u8) {
        out.extend([0x02, id, byte(u32::try_from(payload.len()).unwrap_or(0))]);
        out.extend_from_slice(payload);
        out.extend([crc8_maxim(payload), end]);
    }

    /// Sequence number, date and milliseconds of the day.
    fn head(&mut self, which: usize, now: Now) -> Vec<u8> {
        let sequence = self.sequence.get_mut(which).map_or(0, |number| {
            *number = number.wrapping_add(1);
            *number
        });
        let clock = super::meters::device_clock(now);
        let mut bytes = vec![sequence];
        bytes.extend(u16::try_from(clock.year).unwrap_or(0).to_le_bytes());
        bytes.extend([byte(clock.month), byte(clock.day)]);
        let ms = (clock.hour * 3600 + clock.minute * 60 + clock.second) * 1000 + clock.tick / 10_000;
        bytes.extend(ms.to_le_bytes());
        bytes
    }

    fn packed(samples: &[u16]) -> Vec<u8> {
        let mut bytes = vec![0; (samples.len() * 10).div_ceil(8)];
        for (index, sample) in samples.iter().enumerate() {
            let (at, shift) = (index * 10 / 8, index * 10 % 8);
            let [low, high] = (sample << shift).to_le_bytes();
            if let Some(b) = bytes.get_mut(at) {
                *b |= low;
            }
            if let Some(b) = bytes.get_mut(at + 1) {
                *b |= high;
            }
        }
        bytes
    }

    fn summary(&mut self, now: Now, out: &mut Vec<u8>) {
        let v = self.heart.vitals(now);
        let mut payload = self.head(SUMMARY, now);
        payload.push(2);
        for value in [
            v.heart_rate,
            Heart::breaths(v) * 10,
            v.temperature_tenths - 30,
            12,
            11,
            20,
            3900,
        ] {
            payload.extend(u16::try_from(value).unwrap_or(0).to_le_bytes());
        }
        payload.push(90);
        payload.extend(70_u16.to_le_bytes());
        payload.extend([0xFF, 0xFF, 95, 0x68, 0x1F, 0xC8, 0, 100]);
        payload.resize(71, 0);
        Self::send(out, 0x2B, &payload, 0x03);
    }
}

impl Simulator for Zephyr {
    fn bytes(&mut self, bytes: &[u8], now: Now, out: &mut Vec<u8>) {
        self.host_alive_until = now.monotonic_us + 10_000_000;
        self.received.extend_from_slice(bytes);
        while let [0x02, id, length, ..] = *self.received {
            let whole = usize::from(length) + 5;
            if self.received.len() < whole {
                return;
            }
            let command: Vec<u8> = self.received.drain(..whole).collect();
            let first = command.get(3).copied().unwrap_or(0) != 0;
            let which = match id {
                0xBD => SUMMARY,
                0x16 => ECG,
                0x15 => BREATHING,
                0x19 => INTERVALS,
                _ => continue,
            };
            if let Some(on) = self.on.get_mut(which) {
                *on = first;
            }
            Self::send(out, id, &[], 0x06);
        }
        self.received.clear();
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.samples.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        while let Some(number) = self.samples.due(now) {
            if self.heart.run(now) {
                let interval = (now.monotonic_us - self.last_beat).min(2_000_000) / 1000;
                self.last_interval = i16::try_from(interval).unwrap_or(2000);
                self.last_beat = now.monotonic_us;
                self.interval_sign = -self.interval_sign;
            }
            let connected = now.monotonic_us < self.host_alive_until;
            let [summary, ecg, breathing, intervals] = self.on.map(|on| on && connected);
            self.ecg.push(count(512.0 + 200.0 * self.heart.ecg(), 1023));
            if number % 14 == 0 {
                self.breathing
                    .push(count(512.0 + 100.0 * self.heart.chest(), 1023));
                self.intervals.push(self.interval_sign * self.last_interval);
            }
            if self.ecg.len() == 63 {
                let samples = std::mem::take(&mut self.ecg);
                if ecg {
                    let payload = [self.head(ECG, now), Self::packed(&samples)].concat();
                    Self::send(out, 0x22, &payload, 0x03);
                }
            }
            if self.breathing.len() == 18 {
                let samples = std::mem::take(&mut self.breathing);
                let values = std::mem::take(&mut self.intervals);
                if breathing {
                    let payload = [self.head(BREATHING, now), Self::packed(&samples)].concat();
                    Self::send(out, 0x21, &payload, 0x03);
                }
                if intervals {
                    let mut payload = self.head(INTERVALS, now);
                    payload.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                    Self::send(out, 0x24, &payload, 0x03);
                }
            }
            if summary && number % 250 == 249 {
                self.summary(now, out);
            }
        }
    }
}
