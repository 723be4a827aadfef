//! Monitors and a ventilator: several measurements on one line, some of them only when asked.

use super::{Heart, Now, Rhythm, Simulator, byte, count};
use crate::ingest::serial::drivers::datex_dri::stuff;
use crate::ingest::serial::framing::checksum::sum8;

/// Berry PM6750: ECG 250 a second, values every second, the cuff every two minutes, the waveform of the oximeter on request.
pub(super) struct Pm6750 {
    heart: Heart,
    samples: Rhythm,
    oximeter_wave: bool,
    cuff: Option<[u8; 3]>,
    received: Vec<u8>,
}

impl Pm6750 {
    pub(super) fn new(heart: Heart) -> Self {
        Pm6750 {
            heart,
            samples: Rhythm::new(250),
            oximeter_wave: false,
            cuff: None,
            received: Vec::new(),
        }
    }

    fn send(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
        let mut inner = vec![byte(u32::try_from(data.len()).unwrap_or(0) + 3), kind];
        inner.extend_from_slice(data);
        inner.push(!sum8(&inner));
        out.extend([0x55, 0xAA]);
        out.extend(inner);
    }

    /// Every second: values, and the state of the cuff.
    fn values(&mut self, second: u64, now: Now, out: &mut Vec<u8>) {
        let v = self.heart.vitals(now);
        Self::send(
            out,
            0x02,
            &[0x18, byte(v.heart_rate), byte(Heart::breaths(v)), 0, 1],
        );
        Self::send(out, 0x04, &[0, byte(v.spo2), byte(v.pulse_rate)]);
        Self::send(
            out,
            0x05,
            &[
                0,
                byte(v.temperature_tenths / 10),
                byte(v.temperature_tenths % 10),
            ],
        );
        // Ten seconds of inflation, then the result until the next one.
        match second % 120 {
            5..15 => {
                self.cuff = None;
                Self::send(
                    out,
                    0x03,
                    &[4, byte(u32::try_from(second % 120).unwrap_or(0) * 6), 0, 0, 0],
                );
            }
            15 => self.cuff = Some([byte(v.systolic), byte(v.mean_arterial), byte(v.diastolic)]),
            _ => {}
        }
        if let Some([systolic, mean, diastolic]) = self.cuff {
            Self::send(out, 0x03, &[0, 0, systolic, mean, diastolic]);
        }
    }
}

impl Simulator for Pm6750 {
    fn bytes(&mut self, bytes: &[u8], _now: Now, out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        while self.received.len() >= 6 {
            let command: Vec<u8> = self.received.drain(..6).collect();
            match command.as_slice() {
                [0x55, 0xAA, 4, 0xFC, ..] => Self::send(out, 0xFC, b"SIMULATED V1.0"),
                [0x55, 0xAA, 4, 0xFE, on, _] => self.oximeter_wave = *on != 0,
                _ => {}
            }
        }
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.samples.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        while let Some(number) = self.samples.due(now) {
            if self.heart.run(now) {
                Self::send(out, 0x30, &[]);
            }
            let ecg = self.heart.ecg();
            let lead = |part: f64| byte(u32::from(count(128.0 + 80.0 * part * ecg, 255)));
            Self::send(
                out,
                0x01,
                &[
                    lead(0.6),
                    lead(1.0),
                    lead(0.4),
                    lead(-0.8),
                    lead(0.1),
                    lead(0.7),
                    lead(0.9),
                ],
            );
            if self.oximeter_wave && number % 5 < 2 {
                let pleth = byte(u32::from(count(100.0 * self.heart.pleth(), 127)));
                Self::send(out, 0xFE, &[pleth, pleth >> 3]);
            }
            if number.is_multiple_of(250) {
                self.values(number / 250, now, out);
            }
        }
    }
}

/// HealthyPi v5: 128 packets a second.
pub(super) struct HealthyPi {
    heart: Heart,
    packets: Rhythm,
}

impl HealthyPi {
    pub(super) fn new(heart: Heart) -> Self {
        HealthyPi {
            heart,
            packets: Rhythm::new(128),
        }
    }
}

impl Simulator for HealthyPi {
    fn bytes(&mut self, _bytes: &[u8], _now: Now, _out: &mut Vec<u8>) {}

    fn deadline(&self) -> Option<u64> {
        Some(self.packets.deadline())
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        while self.packets.due(now).is_some() {
            self.heart.run(now);
            let v = self.heart.vitals(now);
            let pleth = i32::from(count(20_000.0 * self.heart.pleth(), 20_000));
            let mut payload = Vec::with_capacity(22);
            payload.extend(
                (i32::from(count(20_000.0 + 10_000.0 * self.heart.ecg(), 60_000)) - 20_000).to_le_bytes(),
            );
            payload
                .extend((i32::from(count(5000.0 + 2000.0 * self.heart.chest(), 9000)) - 5000).to_le_bytes());
            payload.push(0);
            payload.extend((190_000 + pleth).to_le_bytes());
            payload.extend((180_000 + pleth).to_le_bytes());
            payload.extend(
                u16::try_from(v.temperature_tenths * 10)
                    .unwrap_or(0)
                    .to_le_bytes(),
            );
            payload.extend([byte(v.spo2), byte(v.heart_rate), byte(Heart::breaths(v))]);
            out.extend([0x0A, 0xFA, 22, 0, 0x02]);
            out.extend(payload);
            out.extend([0x00, 0x0B]);
        }
    }
}

/// A Draeger ventilator: answers MEDIBUS commands once the communication is initialised.
pub(super) struct Medibus {
    heart: Heart,
    received: Vec<u8>,
    initialised: bool,
}

impl Medibus {
    pub(super) fn new(heart: Heart) -> Self {
        Medibus {
            heart,
            received: Vec::new(),
            initialised: false,
        }
    }

    fn measured(&self, now: Now) -> String {
        let v = self.heart.vitals(now);
        let rate = Heart::breaths(v);
        let volume = 420 + v.heart_rate;
        format!(
            "7D{:>4}78{:>4}73{:>4}88{volume:>4}B9{:>4.1}D6{rate:>4}F0  40EB{:>4}E1{:>4}E6{:>4}",
            18 + rate / 4,
            "5.0",
            "9.8",
            f64::from(volume * rate) / 1000.0,
            v.spo2,
            v.pulse_rate,
            35 + rate / 4
        )
    }
}

impl Simulator for Medibus {
    fn bytes(&mut self, bytes: &[u8], now: Now, out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        while let Some(end) = self.received.iter().position(|b| *b == b'\r') {
            let command: Vec<u8> = self.received.drain(..=end).collect();
            let &[0x1B, code, ..] = command.as_slice() else {
                continue;
            };
            let data = match code {
                0x51 => {
                    self.initialised = true;
                    String::new()
                }
                _ if !self.initialised => continue,
                0x52 => "8088'SIMULATED'01.00:03.00".to_owned(),
                0x24 => self.measured(now),
                _ => String::new(),
            };
            let mut answer = vec![0x01, code];
            answer.extend_from_slice(data.as_bytes());
            let check = sum8(&answer);
            answer.extend_from_slice(format!("{check:02X}\r").as_bytes());
            out.extend(answer);
        }
    }

    fn deadline(&self) -> Option<u64> {
        None
    }

    fn step(&mut self, _now: Now, _out: &mut Vec<u8>) {}
}

/// A Datex S/5 monitor: displayed values at the interval that was asked for, a new cuff result every five minutes.
pub(super) struct Dri {
    heart: Heart,
    interval_us: Option<u64>,
    next: u64,
    record: u8,
    received: Vec<u8>,
}

/// The value of a channel that is not measured.
const INVALID: i16 = -32_767;

impl Dri {
    pub(super) fn new(heart: Heart) -> Self {
        Dri {
            heart,
            interval_us: None,
            next: 0,
            record: 0,
            received: Vec::new(),
        }
    }

    fn send(&mut self, now: Now, out: &mut Vec<u8>) {
        let v = self.heart.vitals(now);
        // The cuff holds its last result.
        let cuff = self.heart.patient.at(now.monotonic_us / 300_000_000 * 300_000);
        let hundredths = |value: u32| i16::try_from(value * 100).unwrap_or(INVALID);
        let whole = |value: u32| i16::try_from(value).unwrap_or(INVALID);
        let mut block = vec![0_u8; 270];
        let mut put = |at: usize, value: i16| {
            for (b, new) in block.iter_mut().skip(at).zip(value.to_le_bytes()) {
                *b = new;
            }
        };
        for at in (0..270).step_by(2) {
            put(at, INVALID);
        }
        for group in [0, 16, 30, 44, 58, 72, 86, 94, 102, 110, 118, 132] {
            [group, group + 2, group + 4]
                .into_iter()
                .for_each(|at| put(at, 0));
        }
        put(6, whole(v.heart_rate));
        put(78, hundredths(cuff.systolic));
        put(80, hundredths(cuff.diastolic));
        put(82, hundredths(cuff.mean_arterial));
        put(92, whole(v.temperature_tenths * 10));
        put(124, hundredths(v.spo2));
        put(126, whole(v.pulse_rate));
        put(138, whole(480 + Heart::breaths(v)));
        put(140, 10);
        put(142, whole(Heart::breaths(v)));
        put(144, 7600);
        self.record = self.record.wrapping_add(1);
        let seconds = now
            .wall
            .map_or(0, |wall| u32::try_from(wall.ticks() / 10_000_000).unwrap_or(0));
        let mut record = vec![0_u8; 40];
        let mut head = |at: usize, bytes: &[u8]| {
            for (b, new) in record.iter_mut().skip(at).zip(bytes) {
                *b = *new;
            }
        };
        head(0, &318_u16.to_le_bytes());
        head(2, &[self.record, 9]);
        head(6, &seconds.to_le_bytes());
        head(18, &[1, 0, 0, 0xFF]);
        record.extend(seconds.to_le_bytes());
        record.extend(block);
        record.extend([0; 4]);
        out.extend(stuff(&record));
    }
}

impl Simulator for Dri {
    fn bytes(&mut self, bytes: &[u8], now: Now, _out: &mut Vec<u8>) {
        self.received.extend_from_slice(bytes);
        let requests = (crate::ingest::serial::drivers::datex_dri::DRIVER.describe)(
            crate::ingest::serial::drivers::Direction::HostToDevice,
            &self.received,
        );
        for request in requests.frames {
            self.received.clear();
            let seconds = request.get("interval_s").and_then(serde_json::Value::as_u64);
            self.interval_us = seconds
                .filter(|seconds| *seconds > 0)
                .map(|seconds| seconds * 1_000_000);
            self.next = now.monotonic_us + 500_000;
        }
        if self.received.len() > 1000 {
            self.received.clear();
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.interval_us.map(|_| self.next)
    }

    fn step(&mut self, now: Now, out: &mut Vec<u8>) {
        if let Some(interval) = self.interval_us.filter(|_| now.monotonic_us >= self.next) {
            self.next += interval;
            self.send(now, out);
        }
    }
}
