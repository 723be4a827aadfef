//! What a line sounds like: frames, noise, or nothing; and what is probably wrong when it is not frames.

use super::drivers::{Output, Speaks};

/// Garbage without a single frame before the settings of the port are suspected, in bytes.
const SUSPECT_BYTES: u64 = 512;
/// Bytes for so long without a frame, in microseconds: slow devices do not fill [`SUSPECT_BYTES`] soon.
const SUSPECT_US: u64 = 10_000_000;
/// Fewer bytes say nothing: a cable that was touched.
const LEAST_BYTES: u64 = 16;
/// A device that always speaks is silent when nothing was heard for so long, in microseconds.
const SILENT_US: u64 = 30_000_000;

/// What is to be shown of the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Frames come.
    Works,
    /// Bytes come and no frames.
    Noise(Suspicion),
    /// Nothing comes from a device that always speaks.
    Silent,
}

/// What the bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// Seven data bits and a parity bit that is taken for the eighth.
    SevenBits(&'static str),
    /// Bits of another length.
    Speed,
    /// Nothing special.
    Unknown,
}

impl Suspicion {
    /// What to do, after "bytes come and no readings".
    pub(super) fn advice(self) -> String {
        match self {
            Suspicion::SevenBits(parity) => format!(
                "the eighth bit is a parity bit: set settings = {{ data_bits = 7, parity = \"{parity}\" }} besides the baud \
                 rate, or check baud rate, parity"
            ),
            Suspicion::Speed => {
                "the bits have another length: most likely the speed is wrong; check baud rate, parity"
                    .to_owned()
            }
            Suspicion::Unknown => "check baud rate, parity".to_owned(),
        }
    }
}

/// What is known of the line since the last frame.
#[derive(Debug)]
pub(super) struct Line {
    speaks: Speaks,
    heard: u64,
    silence_said: bool,
    noise_said: bool,
    since: Option<u64>,
    bytes: u64,
    garbage: u64,
    text: u64,
    high: u64,
    even: u64,
    runs: u64,
}

impl Line {
    /// A line that was opened now.
    pub(super) fn new(speaks: Speaks, now_us: u64) -> Line {
        Line {
            speaks,
            heard: now_us,
            silence_said: false,
            noise_said: false,
            since: None,
            bytes: 0,
            garbage: 0,
            text: 0,
            high: 0,
            even: 0,
            runs: 0,
        }
    }

    /// When the line is to be judged although nothing comes, in monotonic microseconds.
    pub(super) fn deadline(&self) -> Option<u64> {
        (self.speaks != Speaks::AtTimes && !self.silence_said).then_some(self.heard + SILENT_US)
    }

    /// Bytes came.
    pub(super) fn heard(&mut self, bytes: &[u8], now_us: u64) {
        self.heard = now_us;
        self.silence_said = false;
        self.since.get_or_insert(now_us);
        self.bytes += bytes.len() as u64;
        if self.noise_said {
            return;
        }
        for byte in bytes {
            let low = byte & 0x7F;
            self.text += u64::from((0x20..0x7F).contains(&low) || matches!(low, b'\r' | b'\n' | b'\t'));
            self.high += u64::from(*byte >= 0x80);
            self.even += u64::from(byte.count_ones() % 2 == 0);
            // A start bit and stop bits of another length give bytes of one run of zeros, then ones.
            let run = byte.leading_ones() + byte.trailing_zeros();
            self.runs += u64::from(run >= 8);
        }
    }

    /// What is new after `out`; none when nothing is.
    pub(super) fn judge(&mut self, out: &Output, now_us: u64) -> Option<Verdict> {
        if out.frames > 0 || !out.messages.is_empty() {
            *self = Line {
                heard: self.heard,
                ..Line::new(self.speaks, now_us)
            };
            return Some(Verdict::Works);
        }
        self.garbage += out.garbage;
        if self.deadline().is_some_and(|deadline| now_us >= deadline) {
            self.silence_said = true;
            return Some(Verdict::Silent);
        }
        let long = self.since.is_some_and(|since| now_us >= since + SUSPECT_US);
        let noise = self.garbage >= SUSPECT_BYTES
            || long
                && self.bytes >= LEAST_BYTES
                && (self.garbage * 2 >= self.bytes || self.bytes >= 4 * SUSPECT_BYTES);
        (noise && !self.noise_said).then(|| {
            self.noise_said = true;
            Verdict::Noise(self.suspicion())
        })
    }

    fn suspicion(&self) -> Suspicion {
        let most = |count: u64, percent: u64| count * 100 >= self.bytes * percent;
        if most(self.text, 95) && most(self.high, 20) && most(self.even, 97) {
            Suspicion::SevenBits("even")
        } else if most(self.text, 95) && most(self.high, 20) && !most(self.even, 3) {
            Suspicion::SevenBits("odd")
        } else if most(self.runs, 60) {
            Suspicion::Speed
        } else {
            Suspicion::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn garbage(bytes: u64) -> Output {
        Output {
            garbage: bytes,
            ..Output::default()
        }
    }

    fn with_parity(text: &[u8], odd: bool) -> Vec<u8> {
        text.iter()
            .map(|b| b | if (b.count_ones() % 2 == 1) != odd { 0x80 } else { 0 })
            .collect()
    }

    #[test]
    fn what_is_wrong_is_guessed_from_the_bytes() {
        let text = b"ST,+00078.05 kg\r\nST,+00078.10 kg\r\n".repeat(20);
        // 115200 read as 9600 is little but runs of ones and zeros.
        let fast = [0x00, 0x80, 0xF8, 0xFF, 0xC0, 0xFE, 0x00, 0xF0, 0x42].repeat(70);
        let noise: Vec<u8> = (0..600_u32).map(|n| (n * n * 7 % 251) as u8).collect();
        for (bytes, expected) in [
            (with_parity(&text, false), Suspicion::SevenBits("even")),
            (with_parity(&text, true), Suspicion::SevenBits("odd")),
            (fast, Suspicion::Speed),
            (text, Suspicion::Unknown),
            (noise, Suspicion::Unknown),
        ] {
            let mut line = Line::new(Speaks::Always, 0);
            line.heard(&bytes, SECOND);
            let verdict = line.judge(&garbage(bytes.len() as u64), SECOND);
            assert_eq!(verdict, Some(Verdict::Noise(expected)));
            assert_eq!(line.judge(&garbage(900), SECOND), None, "said once");
        }
    }

    #[test]
    fn a_slow_device_at_the_wrong_speed_is_found_out_after_ten_seconds() {
        let mut line = Line::new(Speaks::AtTimes, 0);
        for second in 1..=10 {
            line.heard(&[0x37, 0x99, 0xB1, 0x20], second * SECOND);
            assert_eq!(line.judge(&garbage(4), second * SECOND), None);
        }
        line.heard(&[0x37], 11 * SECOND);
        let verdict = line.judge(&garbage(1), 11 * SECOND);
        assert_eq!(verdict, Some(Verdict::Noise(Suspicion::Unknown)));
    }

    #[test]
    fn silence_of_a_device_that_always_speaks_is_said_once_and_ends_with_a_frame() {
        let mut line = Line::new(Speaks::WhenAsked, 0);
        assert_eq!(line.deadline(), Some(30 * SECOND));
        assert_eq!(line.judge(&Output::default(), 30 * SECOND), Some(Verdict::Silent));
        assert_eq!(line.judge(&Output::default(), 31 * SECOND), None);
        line.heard(&[1], 40 * SECOND);
        let frame = Output {
            frames: 1,
            ..Output::default()
        };
        assert_eq!(line.judge(&frame, 40 * SECOND), Some(Verdict::Works));
        assert_eq!(line.deadline(), Some(70 * SECOND));
        assert_eq!(
            Line::new(Speaks::AtTimes, 0).deadline(),
            None,
            "a meter may be silent for days"
        );
    }
}
