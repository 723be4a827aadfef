//! JSON bodies of readings, and blocks of waveforms.

use iomt_mapping::Timestamp;
use serde_json::{Map, Value};
use std::io::Write as _;

use super::{DriverMessage, Now, Output};

/// A body in the making.
pub struct Body {
    members: Map<String, Value>,
    values: usize,
}

impl Body {
    /// A body of a driver; `kind` is `vitals`, `record`, `status` or `waveform`.
    pub fn new(driver: &str, kind: &str) -> Self {
        let mut members = Map::new();
        members.insert("driver".into(), driver.into());
        members.insert("kind".into(), kind.into());
        Body { members, values: 0 }
    }

    /// Adds a measured value; what the device does not have is left out.
    #[must_use]
    pub fn value<V: Into<Value>>(mut self, name: &str, value: Option<V>) -> Self {
        if let Some(value) = value.map(Into::into).filter(|value| !value.is_null()) {
            self.values += 1;
            self.members.insert(name.into(), value);
        }
        self
    }

    /// Adds a member; null is left out.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.put(name, value);
        self
    }

    /// Adds a member; null is left out.
    pub fn put(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        if !value.is_null() {
            self.members.insert(name.into(), value);
        }
    }

    /// Adds the words of the device's state, if there are any.
    #[must_use]
    pub fn status(self, words: &[(bool, &'static str)]) -> Self {
        let words: Vec<&str> = words
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| *word)
            .collect();
        if words.is_empty() {
            self
        } else {
            self.with("status", words)
        }
    }

    /// Whether it has a measured value.
    pub fn has_values(&self) -> bool {
        self.values > 0
    }

    /// The message.
    pub fn message(self) -> DriverMessage {
        DriverMessage {
            body: Value::Object(self.members).to_string().into_bytes(),
            waveform: false,
            record: None,
        }
    }

    /// The message of a record that the device keeps.
    pub fn record(self, identity: u64) -> DriverMessage {
        DriverMessage {
            record: Some(identity),
            ..self.message()
        }
    }
}

/// Lets one event a second pass.
#[derive(Debug, Default)]
pub struct EverySecond {
    next: Option<u64>,
}

impl EverySecond {
    /// Whether one is due: one a second on average, early ones by up to 0.3 s because devices send with jitter.
    pub fn due(&mut self, now: Now) -> bool {
        let earliest = now.monotonic_us + 700_000;
        let due = self.next.is_none_or(|next| now.monotonic_us >= next);
        if due {
            self.next = Some(self.next.map_or(earliest, |next| {
                earliest.max((next + 1_000_000).min(earliest + 300_000))
            }));
        }
        due
    }
}

/// Passes on vital signs that repeat at the rate of a waveform: looks at one a second, and passes it on when it has values, or when the
/// state of the device has changed.
#[derive(Debug, Default)]
pub struct Vitals {
    second: EverySecond,
    last_status: Option<String>,
}

impl Vitals {
    /// Whether nothing would be emitted now, so that no body need be made.
    pub fn rests(&self, now: Now) -> bool {
        self.second.next.is_some_and(|next| now.monotonic_us < next)
    }

    /// Emits `body` if it is due or its state is new.
    pub fn offer(&mut self, mut body: Body, now: Now, out: &mut Output) {
        if !self.second.due(now) {
            return;
        }
        let status = body.members.get("status").map(ToString::to_string);
        if !body.has_values() {
            if status.is_none() || self.last_status == status {
                return;
            }
            body.put("kind", "status");
        }
        self.last_status = status;
        out.messages.push(body.message());
    }
}

/// Samples in a waveform block at most.
pub const BLOCK_SAMPLES: usize = 250;
/// Ticks by which the device's sample clock may run away from the wall clock before a block is dated anew.
const DRIFT_TICKS: i64 = 2_500_000;

/// Gathers samples of one waveform into blocks of [`BLOCK_SAMPLES`]. Sample times run on at the nominal rate from the first sample, so
/// that the jitter of the line does not show; a block begins anew after a gap or when the clocks have drifted apart.
#[derive(Debug)]
pub struct Waveform {
    driver: &'static str,
    name: &'static str,
    samples_per_kilosecond: i64,
    begin: Option<Timestamp>,
    next: Option<Timestamp>,
    values: Vec<f64>,
}

impl Waveform {
    /// A waveform with `samples_per_kilosecond` samples in 1000 s.
    pub fn new(driver: &'static str, name: &'static str, samples_per_kilosecond: i64) -> Self {
        Waveform {
            driver,
            name,
            samples_per_kilosecond,
            begin: None,
            next: None,
            values: Vec::new(),
        }
    }

    fn offset(&self, index: usize) -> i64 {
        // Rounded up: a time before its slot of the SampledData would fall into the slot before it.
        let ticks = i64::try_from(index).unwrap_or(0) * 10_000_000_000;
        ticks.div_euclid(self.samples_per_kilosecond)
            + i64::from(ticks.rem_euclid(self.samples_per_kilosecond) != 0)
    }

    /// A sample that was received at `now`; dropped while the time is not known.
    pub fn sample(&mut self, value: impl Into<f64>, now: Now, out: &mut Output) {
        let Some(wall) = now.wall else {
            self.gap(out);
            return;
        };
        if self.values.is_empty() {
            let continued = self
                .next
                .filter(|next| (next.ticks() - wall.ticks()).abs() <= DRIFT_TICKS);
            self.begin = Some(continued.unwrap_or(wall));
        }
        self.values.push(value.into());
        if self.values.len() >= BLOCK_SAMPLES {
            self.flush(out);
        }
    }

    /// The next sample does not follow the last one.
    pub fn gap(&mut self, out: &mut Output) {
        self.flush(out);
        self.next = None;
    }

    fn flush(&mut self, out: &mut Output) {
        let Some(begin) = self.begin.take() else { return };
        self.next = begin.plus_ticks(self.offset(self.values.len()));
        #[expect(clippy::cast_precision_loss, reason = "rates are small")]
        let rate = self.samples_per_kilosecond as f64 / 1000.0;
        // Written directly, because it is by far most of what a driver says; names need no escapes.
        let (driver, name) = (self.driver, self.name);
        let mut body = Vec::with_capacity(192 + self.values.len() * SAMPLE_BYTES);
        // Writing to memory never fails.
        let _ = write!(
            body,
            r#"{{"driver":"{driver}","kind":"waveform","waveform":"{name}","rate_hz":{rate:?},"block":"{name}-{begin}","{name}":["#
        );
        let mut times = Times::default();
        for (index, value) in self.values.iter().enumerate() {
            let Some(at) = begin.plus_ticks(self.offset(index)) else {
                break;
            };
            body.extend_from_slice(if index == 0 { br#"{"at":""# } else { br#",{"at":""# });
            times.write(at, &mut body);
            body.extend_from_slice(br#"","value":"#);
            number(*value, &mut body);
            body.push(b'}');
        }
        self.values.clear();
        body.extend_from_slice(b"]}");
        // It stays in memory for a while.
        body.shrink_to_fit();
        out.messages.push(DriverMessage {
            body,
            waveform: true,
            record: None,
        });
    }
}

/// About the bytes of one sample of a waveform in a body.
const SAMPLE_BYTES: usize = 52;

/// Writes times that follow each other: of those in one second only the fraction differs.
#[derive(Default)]
struct Times {
    second: Option<i64>,
    /// `2026-03-01T07:15:30`.
    text: Vec<u8>,
}

impl Times {
    /// The text of `at`, as [`Timestamp`] shows it.
    fn write(&mut self, at: Timestamp, body: &mut Vec<u8>) {
        const TICKS: i64 = 10_000_000;
        let second = at.ticks().div_euclid(TICKS);
        if self.second != Some(second) {
            let Some(whole) = Timestamp::from_ticks(second * TICKS) else {
                let _ = write!(body, "{at}");
                return;
            };
            self.text.clear();
            let _ = write!(self.text, "{whole}");
            self.text.pop();
            self.second = Some(second);
        }
        body.extend_from_slice(&self.text);
        let fraction = at.ticks().rem_euclid(TICKS);
        let digits = match fraction {
            0 => 0,
            _ if fraction % 10_000 == 0 => 3,
            _ => 7,
        };
        if digits > 0 {
            let mut text = *b".0000000";
            let mut rest = fraction;
            for digit in text.iter_mut().skip(1).rev() {
                *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
                rest /= 10;
            }
            body.extend_from_slice(text.get(..=digits).unwrap_or_default());
        }
        body.push(b'Z');
    }
}

/// Writes a number as `f64` shows it; samples are mostly whole.
fn number(value: f64, body: &mut Vec<u8>) {
    #[expect(clippy::cast_possible_truncation, reason = "compared with what it was")]
    let whole = value as i32;
    if f64::from(whole).to_bits() != value.to_bits() {
        // Writing to memory never fails.
        let _ = write!(body, "{value}");
        return;
    }
    if whole < 0 {
        body.push(b'-');
    }
    let (mut text, mut rest, mut first) = ([b'0'; 10], whole.unsigned_abs(), 10);
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        first -= 1;
        if rest == 0 {
            break;
        }
    }
    body.extend_from_slice(text.get(first..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// 2026-03-01T07:00:00Z.
    const BEGIN_TICKS: i64 = 17_723_484_000_000_000;

    #[test]
    fn times_and_numbers_are_written_as_everywhere_else() {
        let mut times = Times::default();
        for ticks in [
            0,
            1,
            40_000,
            133_334,
            9_999_999,
            10_000_000,
            10_040_000,
            5,
            -1,
            600_000_000,
        ] {
            let at = Timestamp::from_ticks(BEGIN_TICKS + ticks).unwrap();
            let mut text = Vec::new();
            times.write(at, &mut text);
            assert_eq!(text, at.to_string().into_bytes());
        }
        for value in [
            0.0,
            -0.0,
            5.0,
            -5.0,
            10.0,
            -2_147_483_648.0,
            0.25,
            1e-7,
            2_147_483_647.0,
            2_147_483_648.0,
            1e15,
            12_345.678_9,
        ] {
            let mut text = Vec::new();
            number(value, &mut text);
            assert_eq!(text, value.to_string().into_bytes());
        }
    }

    #[test]
    fn a_block_is_json_with_a_time_for_each_sample() {
        let (mut waveform, mut out) = (
            Waveform::new("nonin", "pleth_waveform", 75_000),
            Output::default(),
        );
        let now = Now {
            monotonic_us: 0,
            wall: Timestamp::from_ticks(BEGIN_TICKS),
        };
        for value in [1.0, -2.5, 3.0] {
            waveform.sample(value, now, &mut out);
        }
        waveform.gap(&mut out);
        let body: serde_json::Value = serde_json::from_slice(&out.messages[0].body).unwrap();
        let expected = json!({
            "driver": "nonin", "kind": "waveform", "waveform": "pleth_waveform", "rate_hz": 75.0,
            "block": "pleth_waveform-2026-03-01T07:00:00Z",
            "pleth_waveform": [
                {"at": "2026-03-01T07:00:00Z", "value": 1},
                {"at": "2026-03-01T07:00:00.0133334Z", "value": -2.5},
                {"at": "2026-03-01T07:00:00.0266667Z", "value": 3},
            ],
        });
        assert_eq!(body, expected);
    }
}
