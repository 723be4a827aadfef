//! What speaks on a line, found by listening alone: every driver and every generic framing reads the same bytes, nothing of
//! what they would send leaves, and the one that finds a place for the most bytes is the guess.
//!
//! A framing without a check finds frames in almost anything, so that its share of the bytes counts for less.

use super::drivers::{Direction, Driver, Flow, Now, Output, Parity, PortSettings, Speaks, drivers};
use super::framing::frames::{Description, Reason};
use super::framing::{self, FramingConfig};
use super::line::{Line, Verdict};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes at the end of what was heard that are kept to be shown.
const KEPT_BYTES: usize = 8192;
/// Frames that are shown.
const SHOWN_FRAMES: usize = 3;
/// Bytes of a frame that had begun before the listening did, or had not ended; they speak against no driver.
const CUT_BYTES: u64 = 256;
/// Per cent of the bytes that a driver must explain to be a guess, and a framing, which finds frames more easily.
const LEAST_SHARE: f64 = 60.0;
const LEAST_SHARE_OF_FRAMING: f64 = 85.0;
/// Frames that a guess must have, and those after which it needs no more listening.
const LEAST_FRAMES: u64 = 2;
const ENOUGH_FRAMES: u64 = 4;
/// What the usual settings of a driver count for, as per cent of the bytes: they tell two dialects of one protocol apart.
const USUAL: f64 = 5.0;
/// Frames a second of the dialects that have one shape, and what the right number counts for: more than the settings, which are
/// only a name where there is no real line (USB, Bluetooth, pseudo-terminals).
const RATES: [(&str, f64); 2] = [("contec-cms50", 60.0), ("berry-bci", 100.0)];
const PACE: f64 = 10.0;
/// Bytes of a frame that proves itself.
const LONG_FRAME: u64 = 48;

/// The framings that are tried, and what an explained byte counts for with them.
const FRAMINGS: [(&str, &str, f64); 13] = [
    (
        "framing = \"lines\", format = \"json\"",
        r#"{"framing":"lines","format":"json"}"#,
        0.9,
    ),
    (
        "framing = \"nmea\", format = \"hex\"",
        r#"{"framing":"nmea","format":"hex"}"#,
        0.9,
    ),
    (
        "framing = \"astm\", format = \"hex\"",
        r#"{"framing":"astm","format":"hex"}"#,
        0.9,
    ),
    (
        "framing = \"mllp\", format = \"csv\"",
        r#"{"framing":"mllp","format":"csv"}"#,
        0.9,
    ),
    (
        "framing = \"modbus-rtu\", format = \"hex\"",
        r#"{"framing":"modbus-rtu","format":"hex"}"#,
        0.85,
    ),
    (
        "framing = \"length-crc16\", format = \"hex\"",
        r#"{"framing":"length-crc16","format":"hex"}"#,
        0.85,
    ),
    (
        "framing = \"slip\", checksum = \"crc16-x25\", format = \"hex\"",
        r#"{"framing":"slip","checksum":"crc16-x25","format":"hex"}"#,
        0.85,
    ),
    (
        "framing = \"stx-etx\", checksum = \"xor8\", format = \"hex\"",
        r#"{"framing":"stx-etx","checksum":"xor8","format":"hex"}"#,
        0.8,
    ),
    (
        "framing = \"lines\", format = \"label\"",
        r#"{"framing":"lines","format":"label"}"#,
        0.7,
    ),
    (
        "framing = \"stx-etx\", format = \"hex\"",
        r#"{"framing":"stx-etx","format":"hex"}"#,
        0.65,
    ),
    (
        "framing = \"lines\", format = \"csv\"",
        r#"{"framing":"lines","format":"csv"}"#,
        0.6,
    ),
    (
        "framing = \"slip\", format = \"hex\"",
        r#"{"framing":"slip","format":"hex"}"#,
        0.5,
    ),
    (
        "framing = \"cobs\", format = \"hex\"",
        r#"{"framing":"cobs","format":"hex"}"#,
        0.4,
    ),
];

/// Speeds that devices have beside those of the drivers.
const OTHER_SPEEDS: [u32; 5] = [38_400, 57_600, 4800, 2400, 1200];

/// Who only listens holds up nobody.
fn without_flow(settings: PortSettings) -> PortSettings {
    PortSettings {
        flow: Flow::None,
        ..settings
    }
}

/// What is worth trying, the most common first: the settings of the drivers, then other speeds; with `speed` only those of it.
pub fn worth_trying(speed: Option<u32>) -> Vec<PortSettings> {
    let mut known: Vec<(PortSettings, usize)> = Vec::new();
    for info in drivers() {
        let settings = without_flow(info.settings);
        match known.iter_mut().find(|(known, _)| *known == settings) {
            Some((_, count)) => *count += 1,
            None => known.push((settings, 1)),
        }
    }
    known.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let others: Vec<u32> = speed.map_or(OTHER_SPEEDS.to_vec(), |speed| vec![speed]);
    let mut settings: Vec<PortSettings> = known.into_iter().map(|(settings, _)| settings).collect();
    for other in others.into_iter().map(PortSettings::eight_none_one) {
        if !settings.contains(&other) {
            settings.push(other);
        }
    }
    settings.retain(|settings| speed.is_none_or(|speed| settings.baud == speed));
    settings
}

/// `9600 8N1`.
pub fn shorthand(settings: PortSettings) -> String {
    let parity = match settings.parity {
        Parity::None => 'N',
        Parity::Even => 'E',
        Parity::Odd => 'O',
    };
    format!(
        "{} {}{parity}{}",
        settings.baud, settings.data_bits, settings.stop_bits
    )
}

/// Decodes bytes to be shown.
type Describe = Box<dyn Fn(&[u8]) -> Description + Send>;

/// One that reads along.
struct Candidate {
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

    fn score(&self, heard: u64, after: u64, seconds: f64) -> Score {
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
    points: f64,
}

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
        let known = drivers().iter().map(|info| Candidate {
            usual: without_flow(info.settings) == without_flow(settings),
            at_times: info.speaks == Speaks::AtTimes,
            rate: RATES
                .iter()
                .find(|(name, _)| *name == info.name)
                .map(|(_, rate)| *rate),
            ..candidate(
                info.name.to_owned(),
                1.0,
                info.create(),
                Box::new(|bytes| (info.describe)(Direction::DeviceToHost, bytes)),
            )
        });
        let generic = FRAMINGS.iter().filter_map(|(name, members, weight)| {
            let config: FramingConfig = serde_json::from_str(members).ok()?;
            let reader = framing::from_config(&config);
            let describe = Box::new(move |bytes: &[u8]| framing::describe(&config, bytes));
            Some(Candidate {
                is_driver: false,
                ..candidate((*name).to_owned(), *weight, reader, describe)
            })
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
            let mut out = Output::default();
            // A half frame ends with the silence before these bytes.
            if candidate
                .driver
                .deadline()
                .is_some_and(|deadline| deadline <= now.monotonic_us)
            {
                candidate.driver.timeout(now, &mut out);
                candidate.count(std::mem::take(&mut out));
            }
            candidate.driver.bytes(bytes, now, &mut out);
            candidate.count(out);
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
            let read = candidate.frame_bytes + candidate.garbage;
            let score = candidate.score(self.bytes, self.bytes.saturating_sub(read), self.spoken(now));
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
            .map_or_else(Vec::new, |candidate| (candidate.describe)(&self.tail).frames);
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

fn candidate(name: String, weight: f64, driver: Box<dyn Driver + Send>, describe: Describe) -> Candidate {
    Candidate {
        name,
        is_driver: true,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::serial::drivers::driver;
    use crate::simulate::serial::{names, simulator};

    fn at(monotonic_us: u64) -> Now {
        Now {
            monotonic_us,
            wall: None,
        }
    }

    /// What the simulated device says to its own driver, which asks where it must be asked.
    fn recorded(name: &str, seconds: u64) -> Vec<(u64, Vec<u8>)> {
        let mut host = driver(name).unwrap().create();
        let mut device = simulator(name, 11).unwrap();
        let (mut out, mut now, mut heard) = (Output::default(), 0, Vec::new());
        host.start(at(0), &mut out);
        while now <= seconds * 1_000_000 {
            let mut said = Vec::new();
            for bytes in out.send.drain(..) {
                device.bytes(&bytes, at(now), &mut said);
            }
            if device.deadline().is_some_and(|deadline| deadline <= now) {
                device.step(at(now), &mut said);
            }
            if !said.is_empty() {
                host.bytes(&said, at(now), &mut out);
                heard.push((now, said));
            }
            if host.deadline().is_some_and(|deadline| deadline <= now) {
                host.timeout(at(now), &mut out);
            }
            now += 1000;
        }
        heard
    }

    fn sniff(settings: PortSettings, heard: &[(u64, Vec<u8>)]) -> Heard {
        let mut sniffer = Sniffer::new(settings, at(0));
        for (now, bytes) in heard {
            sniffer.bytes(bytes, at(*now));
        }
        sniffer.heard(at(heard.last().map_or(0, |(now, _)| *now) + 100_000))
    }

    #[test]
    fn each_streaming_device_is_recognised_also_from_the_middle_of_a_frame() {
        let mut seen = 0;
        for name in names() {
            let info = driver(name).unwrap();
            if info.speaks == Speaks::AtTimes {
                continue;
            }
            seen += 1;
            // A Datex monitor sends one record in ten seconds.
            let mut said = recorded(name, if name == "datex-dri" { 65 } else { 8 });
            let first = &mut said.first_mut().unwrap().1;
            first.drain(..first.len() / 2);
            let heard = sniff(info.settings, &said);
            let guess = heard.guess.as_ref().map(|guess| guess.name.as_str());
            assert_eq!(guess, Some(name), "{:#?}", heard.candidates);
            assert!(heard.is_sure(), "{name}: {:#?}", heard.guess);
            assert!(!heard.frames.is_empty(), "{name} shows its frames");
        }
        assert_eq!(seen, 10);
    }

    #[test]
    fn of_several_settings_the_one_with_frames_is_taken() {
        let said = recorded("contec-cms50", 5);
        let noise: Vec<_> = said
            .iter()
            .map(|(now, bytes)| (*now, bytes.iter().map(|b| b.rotate_left(3) ^ 0x5A).collect()))
            .collect();
        let settings = worth_trying(None);
        let right = driver("contec-cms50").unwrap().settings;
        let heard: Vec<_> = settings
            .iter()
            .map(|one| sniff(*one, if *one == right { &said } else { &noise }))
            .collect();
        let best = best(&heard).unwrap();
        assert_eq!((best.settings.as_str(), best.speed), ("19200 8O1", 19_200));
        assert_eq!(best.guess.as_ref().unwrap().name, "contec-cms50");
    }

    #[test]
    fn two_dialects_of_one_shape_are_told_apart_by_their_pace_where_the_speed_is_only_a_name() {
        for (name, settings) in [
            ("contec-cms50", 115_200),
            ("berry-bci", 9600),
            ("berry-bci", 115_200),
        ] {
            let heard = sniff(PortSettings::eight_none_one(settings), &recorded(name, 4));
            assert_eq!(
                heard.guess.as_ref().unwrap().name,
                name,
                "{:#?}",
                heard.candidates
            );
        }
    }

    #[test]
    fn a_cuff_that_has_said_all_it_had_to_say_is_recognised() {
        let said = recorded("and-pbt", 5);
        let heard = sniff(driver("and-pbt").unwrap().settings, &said);
        let guess = heard.guess.unwrap();
        assert_eq!((guess.name.as_str(), guess.frames), ("and-pbt", 1));
    }

    #[test]
    fn devices_without_a_driver_give_the_framing_that_reads_them() {
        let lines = |line: &str| -> Vec<(u64, Vec<u8>)> {
            (0..8)
                .map(|n| (n * 1_000_000, line.as_bytes().to_vec()))
                .collect()
        };
        for (line, expected) in [
            (
                "{\"hr\":72,\"spo2\":98}\r\n",
                "framing = \"lines\", format = \"json\"",
            ),
            (
                "$BDVIT,SPO2,98,HR,072,RESP,16,TEMP,36.6*1F\r\n",
                "framing = \"nmea\", format = \"hex\"",
            ),
            ("hr=72, spo2=98\n", "framing = \"lines\", format = \"label\""),
            ("72;98;36.6\n", "framing = \"lines\", format = \"csv\""),
        ] {
            let heard = sniff(PortSettings::default(), &lines(line));
            let guess = heard.guess.as_ref().map(|guess| guess.name.as_str());
            assert_eq!(guess, Some(expected), "{line}: {:#?}", heard.candidates);
        }
    }

    #[test]
    fn noise_and_silence_give_no_guess() {
        let silence = sniff(PortSettings::default(), &[]);
        assert!(silence.guess.is_none() && silence.advice.is_none());
        let mut state = 1_u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let noise: Vec<_> = (0..50)
            .map(|n| (n * 100_000, (0..40).map(|_| noise()).collect()))
            .collect();
        let heard = sniff(PortSettings::default(), &noise);
        assert!(heard.guess.is_none(), "{:?}", heard.guess);
        assert!(heard.advice.unwrap().contains("baud rate") && heard.unread.unwrap().len() == 64);
    }

    #[test]
    fn a_speed_that_is_given_is_tried_with_all_parities_that_devices_have_with_it() {
        let shown = |speed| worth_trying(speed).into_iter().map(shorthand).collect::<Vec<_>>();
        assert_eq!(shown(Some(250_000)), ["250000 8N1"]);
        assert!(shown(Some(19_200)).contains(&"19200 8O1".to_owned()));
        assert!(shown(Some(19_200)).iter().all(|one| one.starts_with("19200 ")));
        let all = shown(None);
        assert!(all.len() >= 9, "{all:?}");
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "none is tried twice: {all:?}");
    }
}
