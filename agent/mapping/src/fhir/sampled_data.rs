//! `SampledData.data` of FHIR: readings dropped into slots of equal length (`mapping.md` 4.3, rules D5 and D19).
//!
//! Slot i covers [start + i·period, start + (i+1)·period); slots go on while their start is not after the end of the
//! Observation. A slot holds its latest reading, `E` when it has none. Readings may come in any order.

use crate::time::{TICKS_PER_SECOND, Timestamp};

/// Slots of one Observation at most (an hour at 2 ms); what needs more is refused, so that memory stays bounded.
pub const MAXIMUM_SLOTS: usize = 2_000_000;

const TICKS_PER_MILLISECOND: i128 = TICKS_PER_SECOND as i128 / 1000;
const NO_READING: &str = "E";

/// Length of a slot, exactly: a decimal number of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplePeriod {
    /// Ticks of 100 ns are `numerator / denominator`.
    numerator: i128,
    denominator: i128,
}

impl SamplePeriod {
    /// From milliseconds as decimal text; `None` when that is no decimal, below 100 ns, or beyond 10,000 years.
    ///
    /// ```
    /// use iomt_mapping::fhir::SamplePeriod;
    ///
    /// assert!(SamplePeriod::from_milliseconds("0.5").is_some());
    /// assert!(SamplePeriod::from_milliseconds("0").is_none());
    /// ```
    pub fn from_milliseconds(text: &str) -> Option<SamplePeriod> {
        let spelled = super::decimal(text)?;
        let (number, exponent) = match spelled.find(['e', 'E']) {
            Some(at) => (spelled.get(..at)?, spelled.get(at + 1..)?.parse::<i32>().ok()?),
            None => (spelled.as_str(), 0),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let fraction = fraction.trim_end_matches('0');
        let mut numerator: i128 = format!("{whole}{fraction}").parse().ok()?;
        let mut denominator: i128 = 1;
        numerator = numerator.checked_mul(TICKS_PER_MILLISECOND)?;
        let power = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let factor = 10_i128.checked_pow(power.unsigned_abs())?;
        if power < 0 {
            denominator = factor;
        } else {
            numerator = numerator.checked_mul(factor)?;
        }
        let limit = i128::from(Timestamp::MAX.ticks()) - i128::from(Timestamp::MIN.ticks());
        let sensible = numerator >= denominator
            && numerator / denominator <= limit
            && denominator <= 1_000_000_000_000_000_000;
        sensible.then_some(SamplePeriod {
            numerator,
            denominator,
        })
    }

    /// Whether a whole number of slots fills `ticks` of 100 ns.
    pub fn divides(self, ticks: i64) -> bool {
        (i128::from(ticks) * self.denominator) % self.numerator == 0
    }

    /// How many slots start within `start..=end`; 0 when `end` is before `start`.
    pub fn slots(self, start: Timestamp, end: Timestamp) -> usize {
        self.slot_of(start, end).map_or(0, |last| last.saturating_add(1))
    }

    /// The slot that `time` falls into; `None` before `start`.
    pub fn slot_of(self, start: Timestamp, time: Timestamp) -> Option<usize> {
        let distance = i128::from(time.ticks()) - i128::from(start.ticks());
        if distance < 0 {
            return None;
        }
        usize::try_from(distance * self.denominator / self.numerator).ok()
    }

    /// The first instant of a slot; `None` after the year 9999.
    pub fn slot_start(self, start: Timestamp, slot: usize) -> Option<Timestamp> {
        let exact = i128::try_from(slot).ok()?.checked_mul(self.numerator)?;
        let ticks = (exact + self.denominator - 1) / self.denominator;
        start.plus_ticks(i64::try_from(ticks).ok()?)
    }
}

/// One reading for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was taken; of a stored one whose time nobody remembers, the start of its slot.
    pub time: Timestamp,
    /// The token in `data`.
    pub token: String,
    /// Index of the reading it comes from; `None` when it was stored before.
    pub reading: Option<usize>,
}

/// What became of samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slotted {
    /// The text of `SampledData.data`.
    pub data: String,
    /// The samples in it, by time.
    pub placed: Vec<Sample>,
    /// Samples that a later one of the same slot replaced.
    pub superseded: Vec<Sample>,
    /// Samples that fall into no slot.
    pub outside: Vec<Sample>,
}

/// More slots than [`MAXIMUM_SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySlots;

/// Drops samples into the slots of `start..=end`. At the same instant the later one in `samples` wins; stored samples
/// (`reading: None`) are never outside, the data grows to hold them.
///
/// ```
/// use iomt_mapping::Timestamp;
/// use iomt_mapping::fhir::{Sample, SamplePeriod, fill_slots};
///
/// let at = |seconds: i64| Timestamp::from_ticks(seconds * 10_000_000).unwrap();
/// let sample = |seconds, token: &str| Sample { time: at(seconds), token: token.to_owned(), reading: Some(0) };
/// let period = SamplePeriod::from_milliseconds("1000").unwrap();
/// let filled = fill_slots(vec![sample(2, "3"), sample(0, "1")], at(0), at(3), period).unwrap();
/// assert_eq!(filled.data, "1 E 3 E");
/// ```
pub fn fill_slots(
    mut samples: Vec<Sample>,
    start: Timestamp,
    end: Timestamp,
    period: SamplePeriod,
) -> Result<Slotted, TooManySlots> {
    samples.sort_by_key(|sample| sample.time);
    let in_range = period.slots(start, end);
    let last_stored = samples
        .iter()
        .filter(|sample| sample.reading.is_none())
        .filter_map(|sample| period.slot_of(start, sample.time))
        .max();
    let count = in_range.max(last_stored.map_or(0, |slot| slot.saturating_add(1)));
    if count > MAXIMUM_SLOTS {
        return Err(TooManySlots);
    }
    let mut placed: Vec<(usize, Sample)> = Vec::with_capacity(samples.len());
    let mut superseded = Vec::new();
    let mut outside = Vec::new();
    for sample in samples {
        let slot = period.slot_of(start, sample.time).filter(|slot| *slot < count);
        match (slot, placed.last_mut()) {
            (None, _) => outside.push(sample),
            (Some(slot), Some((last, earlier))) if *last == slot => {
                superseded.push(std::mem::replace(earlier, sample));
            }
            (Some(slot), _) => placed.push((slot, sample)),
        }
    }
    let mut data = String::with_capacity(count * 2);
    let mut next = 0;
    let mut write = |token: &str, slot: usize| {
        if slot != 0 {
            data.push(' ');
        }
        data.push_str(token);
    };
    for (slot, sample) in &placed {
        for empty in next..*slot {
            write(NO_READING, empty);
        }
        write(&sample.token, *slot);
        next = slot + 1;
    }
    for empty in next..count {
        write(NO_READING, empty);
    }
    Ok(Slotted {
        data,
        placed: placed.into_iter().map(|(_, sample)| sample).collect(),
        superseded,
        outside,
    })
}

/// The stored readings of a `data` text, each at the start of its slot; `E` is no reading, anything else is one.
pub fn stored_samples(
    data: &str,
    start: Timestamp,
    period: SamplePeriod,
) -> Result<Vec<Sample>, TooManySlots> {
    let mut samples = Vec::new();
    if data.is_empty() {
        return Ok(samples);
    }
    for (slot, token) in data.split(' ').enumerate() {
        if slot >= MAXIMUM_SLOTS {
            return Err(TooManySlots);
        }
        if token != NO_READING {
            let time = period.slot_start(start, slot).ok_or(TooManySlots)?;
            samples.push(Sample {
                time,
                token: token.to_owned(),
                reading: None,
            });
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_ticks(milliseconds * 10_000).unwrap()
    }

    fn sample(milliseconds: i64, token: &str, reading: Option<usize>) -> Sample {
        Sample {
            time: at(milliseconds),
            token: token.to_owned(),
            reading,
        }
    }

    #[test]
    fn periods_are_exact_decimals_of_milliseconds() {
        let third = SamplePeriod::from_milliseconds("33.3333333333").unwrap();
        assert_eq!(third.slots(at(0), at(999)), 30);
        for slot in [1, 7, 1_000_000] {
            let start = third.slot_start(at(0), slot).unwrap();
            assert_eq!(third.slot_of(at(0), start), Some(slot));
            assert_eq!(
                third.slot_of(at(0), start.plus_ticks(-1).unwrap()),
                Some(slot - 1)
            );
        }
        assert!(
            SamplePeriod::from_milliseconds("1E3")
                .unwrap()
                .divides(36_000_000_000)
        );
        for refused in ["0", "-5", "abc", "", "0.00001", "1e40", "1e-99999999999"] {
            assert_eq!(SamplePeriod::from_milliseconds(refused), None, "{refused}");
        }
    }

    #[test]
    fn an_early_reading_hides_no_later_one_and_is_counted_outside() {
        let period = SamplePeriod::from_milliseconds("1000").unwrap();
        let samples = vec![
            sample(-1, "9", Some(0)),
            sample(500, "1", Some(1)),
            sample(2000, "3", Some(2)),
        ];
        let filled = fill_slots(samples, at(0), at(3000), period).unwrap();
        assert_eq!(filled.data, "1 E 3 E");
        assert_eq!(filled.outside, [sample(-1, "9", Some(0))]);
    }

    #[test]
    fn stored_samples_yield_to_later_and_equal_times_only() {
        let period = SamplePeriod::from_milliseconds("1000").unwrap();
        let samples = vec![
            sample(900, "old", None),
            sample(500, "late", Some(0)),
            sample(1000, "old", None),
            sample(1000, "new", Some(1)),
        ];
        let filled = fill_slots(samples, at(0), at(1999), period).unwrap();
        assert_eq!(filled.data, "old new");
        assert_eq!(filled.superseded.len(), 2);
    }

    #[test]
    fn stored_data_beyond_the_window_is_kept() {
        let period = SamplePeriod::from_milliseconds("1000").unwrap();
        let stored = stored_samples("1 E E 4", at(0), period).unwrap();
        let filled = fill_slots(stored, at(0), at(1000), period).unwrap();
        assert_eq!(filled.data, "1 E E 4");
    }

    #[test]
    fn memory_is_bounded() {
        let period = SamplePeriod::from_milliseconds("0.1").unwrap();
        let day = 86_400_000;
        assert_eq!(fill_slots(Vec::new(), at(0), at(day), period), Err(TooManySlots));
        let data = "E ".repeat(MAXIMUM_SLOTS) + "1";
        assert_eq!(stored_samples(&data, at(0), period), Err(TooManySlots));
    }
}
