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

/// A device of which this is said is dialled again after so long, in microseconds; then after twice as long, and so on.
const REDIAL_US: u64 = 30_000_000;
/// The longest of these pauses is so many times the first.
const LONGEST_REDIAL: u32 = 5;
/// A line carries so many times its speed for so many seconds only when its speed is not what it is said to be.
const FLOOD_TIMES: u64 = 2;
const FLOOD_SECONDS: u32 = 3;
const SECOND_US: u64 = 1_000_000;
/// A device was heard so lately, in microseconds, that the line cannot be down.
const LATELY_US: u64 = 5_000_000;

/// What is to be shown of the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Frames come.
    Works,
    /// Much more comes than the line can carry.
    Flood {
        /// Bytes a second.
        per_second: u64,
        /// Bits a second of the settings.
        baud: u32,
    },
    /// What was said of the line has been so for long: it is worth to be opened again.
    Stuck,
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
    /// When a frame came last.
    frame: Option<u64>,
    silence_said: bool,
    noise_said: bool,
    /// Since when nothing that means anything came, once that was said.
    said: Option<u64>,
    redial_us: u64,
    rate: Rate,
    since: Option<u64>,
    bytes: u64,
    garbage: u64,
    /// Bytes that were looked at one by one; the others came close behind a frame.
    seen: u64,
    text: u64,
    high: u64,
    even: u64,
    runs: u64,
}

/// How much comes.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    /// Bits a second that the line can carry.
    baud: u32,
    begin: u64,
    bytes: u64,
    per_second: u64,
    /// Seconds in a row with far more.
    seconds: u32,
    said: bool,
}

impl Rate {
    fn heard(&mut self, bytes: u64, now_us: u64) {
        let passed = now_us.saturating_sub(self.begin);
        if passed >= SECOND_US {
            self.per_second = self.bytes * SECOND_US / passed;
            let floods = self.per_second > u64::from(self.baud) / 10 * FLOOD_TIMES;
            self.seconds = if floods { self.seconds.saturating_add(1) } else { 0 };
            (self.begin, self.bytes) = (now_us, 0);
        }
        self.bytes += bytes;
    }

    fn is_flood(&self) -> bool {
        self.seconds >= FLOOD_SECONDS
    }

    /// A verdict when it is new.
    fn judge(&mut self) -> Option<Verdict> {
        let news = self.is_flood() && !self.said;
        self.said = self.is_flood();
        news.then_some(Verdict::Flood {
            per_second: self.per_second,
            baud: self.baud,
        })
    }
}

impl Line {
    /// A line that was opened now, and before `redials` times in a row for nothing; `baud` is what it can carry.
    pub(super) fn new(speaks: Speaks, baud: u32, redials: u32, now_us: u64) -> Line {
        Line {
            speaks,
            heard: now_us,
            frame: None,
            silence_said: false,
            noise_said: false,
            said: None,
            redial_us: REDIAL_US << redials.min(LONGEST_REDIAL),
            rate: Rate {
                baud,
                begin: now_us,
                ..Rate::default()
            },
            since: None,
            bytes: 0,
            garbage: 0,
            seen: 0,
            text: 0,
            high: 0,
            even: 0,
            runs: 0,
        }
    }

    /// When the line is to be judged although nothing comes, in monotonic microseconds.
    pub(super) fn deadline(&self) -> Option<u64> {
        if self.speaks == Speaks::AtTimes {
            return None;
        }
        if self.silence_said {
            return self.redial_at();
        }
        Some(self.heard + SILENT_US)
    }

    fn redial_at(&self) -> Option<u64> {
        Some(self.said? + self.redial_us)
    }

    /// Whether a frame came lately.
    pub(super) fn is_heard(&self, now_us: u64) -> bool {
        self.frame.is_some_and(|frame| now_us < frame + LATELY_US)
    }

    /// Bytes came.
    pub(super) fn heard(&mut self, bytes: &[u8], now_us: u64) {
        self.heard = now_us;
        self.silence_said = false;
        self.since.get_or_insert(now_us);
        self.bytes += bytes.len() as u64;
        self.rate.heard(bytes.len() as u64, now_us);
        if self.noise_said || self.frame.is_some_and(|frame| now_us < frame + SECOND_US) {
            return;
        }
        self.seen += bytes.len() as u64;
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
        if let Some(flood) = self.rate.judge() {
            return Some(flood);
        }
        if out.frames > 0 || !out.messages.is_empty() {
            *self = Line {
                heard: self.heard,
                frame: Some(now_us),
                rate: self.rate,
                ..Line::new(self.speaks, self.rate.baud, 0, now_us)
            };
            return (!self.rate.said).then_some(Verdict::Works);
        }
        self.garbage += out.garbage;
        if self.redial_at().is_some_and(|at| now_us >= at) {
            return Some(Verdict::Stuck);
        }
        let silent = self.speaks != Speaks::AtTimes && now_us >= self.heard + SILENT_US;
        if silent && !self.silence_said {
            self.silence_said = true;
            self.said.get_or_insert(now_us);
            return Some(Verdict::Silent);
        }
        let long = self.since.is_some_and(|since| now_us >= since + SUSPECT_US);
        let noise = self.garbage >= SUSPECT_BYTES
            || long
                && self.bytes >= LEAST_BYTES
                && (self.garbage * 2 >= self.bytes || self.bytes >= 4 * SUSPECT_BYTES);
        (noise && !self.noise_said).then(|| {
            self.noise_said = true;
            self.said.get_or_insert(now_us);
            Verdict::Noise(self.suspicion())
        })
    }

    fn suspicion(&self) -> Suspicion {
        let most = |count: u64, percent: u64| self.seen > 0 && count * 100 >= self.seen * percent;
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
            let mut line = Line::new(Speaks::Always, 9600, 0, 0);
            line.heard(&bytes, SECOND);
            let verdict = line.judge(&garbage(bytes.len() as u64), SECOND);
            assert_eq!(verdict, Some(Verdict::Noise(expected)));
            assert_eq!(line.judge(&garbage(900), SECOND), None, "said once");
        }
    }

    #[test]
    fn a_slow_device_at_the_wrong_speed_is_found_out_after_ten_seconds() {
        let mut line = Line::new(Speaks::AtTimes, 9600, 0, 0);
        for second in 1..=10 {
            line.heard(&[0x37, 0x99, 0xB1, 0x20], second * SECOND);
            assert_eq!(line.judge(&garbage(4), second * SECOND), None);
        }
        line.heard(&[0x37], 11 * SECOND);
        let verdict = line.judge(&garbage(1), 11 * SECOND);
        assert_eq!(verdict, Some(Verdict::Noise(Suspicion::Unknown)));
    }

    #[test]
    fn more_than_a_line_can_carry_is_said_until_it_ends() {
        let mut line = Line::new(Speaks::Always, 9600, 0, 0);
        let frame = |number| Output {
            frames: number,
            ..Output::default()
        };
        let mut said = Vec::new();
        for tenth in 1..=200 {
            // From the second to the tenth second twice and a half what 9600 baud carry, every one of them a frame.
            let bytes = if (20..100).contains(&tenth) { 240 } else { 96 };
            line.heard(&vec![0x80; bytes], tenth * SECOND / 10);
            if let Some(verdict) = line.judge(&frame(bytes as u64 / 5), tenth * SECOND / 10)
                && said.last() != Some(&verdict)
            {
                said.push(verdict);
            }
        }
        let flood = Verdict::Flood {
            per_second: 2400,
            baud: 9600,
        };
        assert_eq!(said, [Verdict::Works, flood, Verdict::Works]);
    }

    #[test]
    fn a_stuck_device_is_dialled_again_ever_more_rarely() {
        for (redials, after) in [(0, 30), (1, 60), (9, 960)] {
            let mut line = Line::new(Speaks::Always, 9600, redials, 0);
            assert_eq!(line.judge(&Output::default(), 30 * SECOND), Some(Verdict::Silent));
            assert_eq!(line.deadline(), Some((30 + after) * SECOND));
            assert_eq!(
                line.judge(&Output::default(), (30 + after) * SECOND),
                Some(Verdict::Stuck)
            );
        }
        // The same with bytes that mean nothing, also of a device that may be silent for days.
        let mut line = Line::new(Speaks::AtTimes, 9600, 0, 0);
        line.heard(&[0; 600], SECOND);
        assert!(matches!(
            line.judge(&garbage(600), SECOND),
            Some(Verdict::Noise(_))
        ));
        line.heard(&[0; 10], 30 * SECOND);
        assert_eq!(line.judge(&garbage(10), 30 * SECOND), None);
        line.heard(&[0; 10], 31 * SECOND);
        assert_eq!(line.judge(&garbage(10), 31 * SECOND), Some(Verdict::Stuck));
    }

    #[test]
    fn silence_of_a_device_that_always_speaks_is_said_once_and_ends_with_a_frame() {
        let mut line = Line::new(Speaks::WhenAsked, 9600, 0, 0);
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
            Line::new(Speaks::AtTimes, 9600, 0, 0).deadline(),
            None,
            "a meter may be silent for days"
        );
    }
}
