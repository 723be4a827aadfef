//! What speaks on a line, found by listening alone: every driver and every generic framing reads the same bytes, nothing of
//! what they would send leaves, and the one that finds a place for the most bytes is the guess.
//!
//! A framing without a check finds frames in almost anything, so that its share of the bytes counts for less.

mod candidate;
mod tried;

use super::drivers::{Now, Output, PortSettings, Speaks, drivers};
use super::framing::{self, FramingConfig};
use super::line::{Line, Verdict};
use candidate::Candidate;
use serde::Serialize;
use serde_json::Value;
use tried::FRAMINGS;

pub use candidate::Score;
pub use tried::{is_silent_until_asked, shorthand, worth_trying};

/// Bytes at the end of what was heard that are kept to be shown.
const KEPT_BYTES: usize = 8192;
/// Frames that are shown.
const SHOWN_FRAMES: usize = 3;
/// Frames after which a guess needs no more listening.
const ENOUGH_FRAMES: u64 = 4;

/// What was heard with one setting of the port.
#[derive(Clone, Debug, Serialize)]
pub struct Heard {
    /// `9600 8N1`.
    pub settings: String,
    /// Bits a second.
    pub speed: u32,
    /// How long was listened.
    pub seconds: f64,
    /// Bytes that came.
    pub bytes: u64,
    /// The driver or framing that fits best.
    pub guess: Option<Score>,
    /// All that found a frame, the best first.
    pub candidates: Vec<Score>,
    /// The last frames as the guess reads them.
    pub frames: Vec<Value>,
    /// What to do, where bytes came and nothing fits.
    pub advice: Option<String>,
    /// The last bytes in hexadecimal digits, where nothing fits.
    pub unread: Option<String>,
}

impl Heard {
    /// What two settings are compared by: the fit of the guess, then that anything came at all.
    fn rank(&self) -> (f64, u64) {
        (
            self.guess.as_ref().map_or(0.0, |guess| guess.points),
            self.bytes.min(1),
        )
    }

    /// Whether a little more listening may make it sure: a device that says something once a second.
    pub fn is_promising(&self) -> bool {
        self.guess.as_ref().is_some_and(|guess| {
            guess.driver && guess.readings > 0 && guess.usual_settings && guess.share_percent >= 90.0
        })
    }

    /// Whether more listening would tell nothing new.
    pub fn is_sure(&self) -> bool {
        let enough = |guess: &Score| guess.frames >= ENOUGH_FRAMES;
        self.is_promising() && self.guess.as_ref().is_some_and(enough)
    }
}

/// The settings that fit best; the earlier of equals.
pub fn best(heard: &[Heard]) -> Option<&Heard> {
    heard
        .iter()
        .reduce(|best, one| if one.rank() > best.rank() { one } else { best })
}

/// Reads along with one setting of the port. No I/O, no clock.
pub struct Sniffer {
    settings: PortSettings,
    candidates: Vec<Candidate>,
    line: Line,
    bytes: u64,
    tail: Vec<u8>,
    began_us: u64,
    first_us: Option<u64>,
}

impl Sniffer {
    /// Listening begins at `now`.
    pub fn new(settings: PortSettings, now: Now) -> Sniffer {
        let known = drivers().iter().map(|info| Candidate::of_driver(info, settings));
        let generic = FRAMINGS.iter().filter_map(|(name, members, weight)| {
            let config: FramingConfig = serde_json::from_str(members).ok()?;
            Some(Candidate::of_framing(name, config, *weight))
        });
        Sniffer {
            settings,
            candidates: known.chain(generic).collect(),
            line: Line::new(Speaks::AtTimes, settings.baud, 0, now.monotonic_us),
            bytes: 0,
            tail: Vec::new(),
            began_us: now.monotonic_us,
            first_us: None,
        }
    }

    /// Bytes came.
    pub fn bytes(&mut self, bytes: &[u8], now: Now) {
        self.bytes += bytes.len() as u64;
        self.first_us.get_or_insert(now.monotonic_us);
        self.line.heard(bytes, now.monotonic_us);
        self.tail.extend_from_slice(bytes);
        let old = self.tail.len().saturating_sub(KEPT_BYTES);
        self.tail.drain(..old);
        for candidate in &mut self.candidates {
            candidate.bytes(bytes, now);
        }
    }

    /// Seconds since the first byte.
    fn spoken(&self, now: Now) -> f64 {
        let began = self.first_us.unwrap_or(now.monotonic_us);
        #[expect(clippy::cast_precision_loss, reason = "hours, not ages")]
        let seconds = now.monotonic_us.saturating_sub(began) as f64 / 1e6;
        seconds
    }

    /// What was heard so far; the frame that is on its way counts for nothing.
    pub fn heard(&mut self, now: Now) -> Heard {
        let mut scores: Vec<(Score, usize)> = Vec::new();
        for (index, candidate) in self.candidates.iter().enumerate() {
            let after = self.bytes.saturating_sub(candidate.read());
            let score = candidate.score(self.bytes, after, self.spoken(now));
            if score.frames > 0 {
                scores.push((score, index));
            }
        }
        scores.sort_by(|(a, _), (b, _)| {
            (b.points, b.share_percent, b.readings)
                .partial_cmp(&(a.points, a.share_percent, a.readings))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let guess = scores.first().filter(|(score, _)| score.points > 0.0);
        let mut frames = guess
            .and_then(|(_, index)| self.candidates.get(*index))
            .map_or_else(Vec::new, |candidate| candidate.frames_in(&self.tail));
        frames.drain(..frames.len().saturating_sub(SHOWN_FRAMES));
        let guess = guess.map(|(score, _)| score.clone());
        let nothing_fits = guess.is_none() && self.bytes > 0;
        Heard {
            settings: shorthand(self.settings),
            speed: self.settings.baud,
            #[expect(clippy::cast_precision_loss, reason = "hours, not ages")]
            seconds: now.monotonic_us.saturating_sub(self.began_us) as f64 / 1e6,
            bytes: self.bytes,
            guess,
            candidates: scores.into_iter().map(|(score, _)| score).collect(),
            frames,
            advice: nothing_fits.then(|| self.advice(now)),
            unread: nothing_fits.then(|| {
                let from = self.tail.len().saturating_sub(32);
                framing::checksum::to_hex(self.tail.get(from..).unwrap_or_default())
            }),
        }
    }

    fn advice(&mut self, now: Now) -> String {
        let lost = Output {
            garbage: self.bytes,
            ..Output::default()
        };
        match self.line.judge(&lost, now.monotonic_us) {
            Some(Verdict::Noise(suspicion)) => suspicion.advice(),
            _ => "too few bytes to tell: listen longer".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
