//! Pulse oximeters: they stream, most of them without being asked.

use super::{Heart, Now, Rhythm, Simulator, byte, count};
use crate::ingest::serial::framing::checksum::sum8;

/// Nonin, format 2: 75 frames a second.
pub(super) struct Nonin {
    heart: Heart,
    frames: Rhythm,
    since_beat: u8,
    timer: u16,
}

impl Nonin {
    pub(super) fn new(heart: Heart) -> Self {
        Nonin {
            heart,
            frames: Rhythm::new(75),
            since_beat: 255,
            timer: 0,
        }
    }
}

impl Simulator for Nonin {
    fn bytes(&mut self, _bytes: &[u8], _now: Now, _out: &mut Vec<u8>) {}

    fn deadline(&self) -> Option<u64> {
        Some(self.frames.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        while let Some(number) = self.frames.due(now) {
            // 160 ms of every beat are marked as good perfusion.
            self.since_beat = if self.heart.run(now) {
                0
            } else {
                self.since_beat.saturating_add(1)
            };
            let slot = number % 25 + 1;
            if slot == 1 {
                self.timer = (self.timer + 1) & 0x3FFF;
            }
            let vitals = self.heart.vitals(now);
            let (rate, spo2) = (vitals.pulse_rate, byte(vitals.spo2));
            let [high, low] = [byte(rate >> 7), byte(rate & 0x7F)];
            let value = match slot {
                1 | 14 | 20 | 22 => high,
                2 | 15 | 21 | 23 => low,
                3 | 9 | 10 | 11 | 16 | 17 => spo2,
                4 => 48,
                6 => byte(u32::from(self.timer >> 7)),
                7 => byte(u32::from(self.timer & 0x7F)),
                _ => 0,
            };
            let status = 0x80 | u8::from(slot == 1) | if self.since_beat < 12 { 0x02 } else { 0 };
            let pleth = byte(u32::from(count(20.0 + 200.0 * self.heart.pleth(), 254)));
            let frame = [0x01, status, pleth, value];
            out.extend(frame);
            out.push(sum8(&frame));
        }
    }
}

/// The five-byte frame of Contec (60 a second) and Berry (100 a second).
pub(super) struct Five {
    heart: Heart,
    frames: Rhythm,
    flags: u8,
}

impl Five {
    pub(super) fn new(heart: Heart, per_second: u64, flags: u8) -> Self {
        Five {
            heart,
            frames: Rhythm::new(per_second),
            flags,
        }
    }
}

impl Simulator for Five {
    fn bytes(&mut self, _bytes: &[u8], _now: Now, _out: &mut Vec<u8>) {}

    fn deadline(&self) -> Option<u64> {
        Some(self.frames.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        while self.frames.due(now).is_some() {
            let beat = self.heart.run(now);
            let vitals = self.heart.vitals(now);
            let pleth = byte(u32::from(count(5.0 + 100.0 * self.heart.pleth(), 127)));
            let rate = byte(vitals.pulse_rate);
            out.extend([
                0x80 | self.flags | if beat { 0x40 } else { 0 } | 7,
                pleth,
                (rate & 0x80) >> 1 | pleth >> 3,
                rate & 0x7F,
                byte(vitals.spo2),
            ]);
        }
    }
}

/// Contec v7: streams while it is kept alive.
pub(super) struct Package {
    heart: Heart,
    packages: Rhythm,
    alive_until: Option<u64>,
    received: Vec<u8>,
}

impl Package {
    pub(super) fn new(heart: Heart) -> Self {
        Package {
            heart,
            packages: Rhythm::new(60),
            alive_until: None,
            received: Vec::new(),
        }
    }
}

impl Simulator for Package {
    fn bytes(&mut self, bytes: &[u8], now: Now, _out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        while self.received.len() >= 9 {
            let command: Vec<u8> = self.received.drain(..9).collect();
            match command.as_slice() {
                [0x7D, 0x81, 0xA1, ..] => {
                    self.packages.restart();
                    self.alive_until = Some(now.monotonic_us + 5_000_000);
                }
                [0x7D, 0x81, 0xAF, ..] if self.alive_until.is_some() => {
                    self.alive_until = Some(now.monotonic_us + 5_000_000);
                }
                [0x7D, 0x81, 0xA2, ..] => self.alive_until = None,
                _ => {}
            }
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.alive_until.map(|_| self.packages.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        if self.alive_until.is_some_and(|end| now.monotonic_us > end) {
            self.alive_until = None;
        }
        while self.alive_until.is_some() && self.packages.due(now).is_some() {
            let beat = self.heart.run(now);
            let vitals = self.heart.vitals(now);
            let pleth = byte(u32::from(count(5.0 + 100.0 * self.heart.pleth(), 127)));
            let data = [
                7 | if beat { 0x40 } else { 0 },
                pleth,
                pleth >> 3,
                byte(vitals.pulse_rate),
                byte(vitals.spo2),
                0xFF,
                0xFF,
            ];
            let high = (0u8..)
                .zip(data)
                .fold(0x80, |high, (n, value)| high | value >> 7 << n);
            out.extend([0x01, high]);
            out.extend(data.map(|value| value | 0x80));
        }
    }
}

/// Masimo ASCII 1: a line a second.
pub(super) struct Masimo {
    heart: Heart,
    lines: Rhythm,
}

impl Masimo {
    pub(super) fn new(heart: Heart) -> Self {
        Masimo {
            heart,
            lines: Rhythm::new(1),
        }
    }
}

impl Simulator for Masimo {
    fn bytes(&mut self, _bytes: &[u8], _now: Now, _out: &mut Vec<u8>) {}

    fn deadline(&self) -> Option<u64> {
        Some(self.lines.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        while self.lines.due(now).is_some() {
            let vitals = self.heart.vitals(now);
            let clock = super::meters::device_clock(now);
            let perfusion = 180 + vitals.heart_rate % 60;
            let line = format!(
                "{:02}/{:02}/{:02} {:02}:{:02}:{:02} SN={:010} SPO2={:03}% BPM={:03} PI={:02}.{:02}% SPCO=--.-% SPMET=--.-% \
                 DESAT=-- PIDELTA=+-- PVI=--- ALARM=0000 EXC=000800\r\n",
                clock.month,
                clock.day,
                clock.year % 100,
                clock.hour,
                clock.minute,
                clock.second,
                self.heart.seed % 10_000_000_000,
                vitals.spo2,
                vitals.pulse_rate,
                perfusion / 100,
                perfusion % 100
            );
            out.extend_from_slice(line.as_bytes());
        }
    }
}
