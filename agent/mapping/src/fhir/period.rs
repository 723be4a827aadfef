//! Observation periods and the part of an Observation's identifier that they give (`mapping.md` 3.3, rule D6).

use std::fmt::Write as _;

use super::identity::{IdentityForm, first_hex_digits};
use crate::time::{TICKS_PER_SECOND, Timestamp};

const HOUR: i64 = 3600 * TICKS_PER_SECOND;
const DAY: i64 = 24 * HOUR;

/// `periodInterval` of a FHIR template: which readings become one Observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Period {
    /// 0: readings of one instant.
    #[default]
    Single,
    /// 60: readings of an hour, UTC.
    Hourly,
    /// 1440: readings of a day, UTC.
    Daily,
    /// -1: readings of one correlation id.
    Correlation,
}

impl Period {
    /// First and last instant (inclusive) of the period that `time` falls into. For [`Period::Correlation`], whose
    /// ends come from the data, and for [`Period::Single`] both are `time`.
    ///
    /// ```
    /// use iomt_mapping::fhir::Period;
    /// use iomt_mapping::Timestamp;
    ///
    /// let time = Timestamp::from_ticks(36_000_000_000 + 5).unwrap();
    /// let (start, end) = Period::Hourly.boundary(time);
    /// assert_eq!(start.to_string(), "1970-01-01T01:00:00Z");
    /// assert_eq!(end.to_seven_digits(), "1970-01-01T01:59:59.9999999Z");
    /// ```
    pub fn boundary(self, time: Timestamp) -> (Timestamp, Timestamp) {
        let window = match self {
            Period::Single | Period::Correlation => return (time, time),
            Period::Hourly => HOUR,
            Period::Daily => DAY,
        };
        let start = time.floor_to(window);
        (start, start.plus_ticks(window - 1).unwrap_or(Timestamp::MAX))
    }

    /// Length in ticks of 100 ns; `None` where the data decides.
    pub fn ticks(self) -> Option<i64> {
        match self {
            Period::Single => Some(0),
            Period::Hourly => Some(HOUR),
            Period::Daily => Some(DAY),
            Period::Correlation => None,
        }
    }

    /// The number in a mapping.
    pub fn number(self) -> i32 {
        match self {
            Period::Single => 0,
            Period::Hourly => 60,
            Period::Daily => 1440,
            Period::Correlation => -1,
        }
    }

    /// From the number, a numeric text, or the name that the reference gives it, in any letter case.
    pub fn from_text(text: &str) -> Option<Period> {
        let text = text.trim();
        let named = [
            ("single", Period::Single),
            ("hourly", Period::Hourly),
            ("daily", Period::Daily),
            ("correlationid", Period::Correlation),
        ];
        let by_name = named.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
        match (by_name, text.parse::<i32>()) {
            (Some((_, period)), _) => Some(*period),
            (None, Ok(0)) => Some(Period::Single),
            (None, Ok(60)) => Some(Period::Hourly),
            (None, Ok(1440)) => Some(Period::Daily),
            (None, Ok(-1)) => Some(Period::Correlation),
            _ => None,
        }
    }
}

/// The last part of an Observation's identifier: its period or correlation id, with the suffixes of D19 and D25.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdSegment {
    base: Base,
    suffix: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Base {
    Boundary(Timestamp, Timestamp),
    Correlation(String),
}

impl IdSegment {
    /// Of a period.
    pub fn boundary(start: Timestamp, end: Timestamp) -> IdSegment {
        IdSegment {
            base: Base::Boundary(start, end),
            suffix: String::new(),
        }
    }

    /// Of a correlation id, which is used as it is.
    pub fn correlation(id: impl Into<String>) -> IdSegment {
        IdSegment {
            base: Base::Correlation(id.into()),
            suffix: String::new(),
        }
    }

    /// With `-` and the first 8 hexadecimal digits of the SHA-256 of `text`; `None` when that suffix is there already.
    #[must_use]
    pub fn with_suffix_of(&self, text: &str) -> Option<IdSegment> {
        let suffix = format!("-{}", first_hex_digits(text, 8));
        (!self.suffix.contains(&suffix)).then(|| IdSegment {
            base: self.base.clone(),
            suffix: format!("{}{suffix}", self.suffix),
        })
    }

    /// What [`IdSegment::with_suffix_of`] appended, empty when nothing; [`IdSegment::with_suffix`] takes it back.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// With a suffix that [`IdSegment::suffix`] gave.
    #[must_use]
    pub fn with_suffix(mut self, suffix: &str) -> IdSegment {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// The text within the identifier.
    ///
    /// ```
    /// use iomt_mapping::fhir::{IdSegment, IdentityForm};
    /// use iomt_mapping::Timestamp;
    ///
    /// let time = Timestamp::from_ticks(2_500_000).unwrap();
    /// let segment = IdSegment::boundary(time, time);
    /// assert_eq!(segment.text(IdentityForm::Agent), "19700101000000.25Z.19700101000000.25Z");
    /// assert_eq!(segment.text(IdentityForm::Medtech), "19700101000000Z.19700101000000Z");
    /// ```
    pub fn text(&self, form: IdentityForm) -> String {
        let mut text = String::new();
        match &self.base {
            Base::Boundary(start, end) => {
                // Hours and days end 100 ns before the next; the reference writes whole seconds there, and so do we:
                // only an instant of its own (start and end equal) needs its fraction to be told from others.
                let fraction = form == IdentityForm::Agent && start == end;
                write_time(&mut text, *start, fraction);
                text.push('.');
                write_time(&mut text, *end, fraction);
            }
            Base::Correlation(id) => text.push_str(id),
        }
        text.push_str(&self.suffix);
        text
    }
}

fn write_time(text: &mut String, time: Timestamp, with_fraction: bool) {
    let c = time.civil();
    let _ = write!(
        text,
        "{:04}{:02}{:02}{:02}{:02}{:02}",
        c.year, c.month, c.day, c.hour, c.minute, c.second
    );
    if with_fraction && c.tick != 0 {
        let fraction = format!("{:07}", c.tick);
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_from_numbers_texts_and_names() {
        for (text, expected) in [
            ("0", Some(Period::Single)),
            ("60", Some(Period::Hourly)),
            ("1440", Some(Period::Daily)),
            ("-1", Some(Period::Correlation)),
            ("hourly", Some(Period::Hourly)),
            ("CorrelationId", Some(Period::Correlation)),
            ("30", None),
            ("", None),
        ] {
            assert_eq!(Period::from_text(text), expected, "{text}");
        }
    }

    #[test]
    fn the_last_period_of_the_calendar_ends_with_it() {
        assert_eq!(Period::Daily.boundary(Timestamp::MAX).1, Timestamp::MAX);
        assert_eq!(Period::Hourly.boundary(Timestamp::MIN).0, Timestamp::MIN);
    }

    #[test]
    fn segments_keep_100_ns_of_an_instant_and_whole_seconds_of_a_window() {
        let at = |ticks| Timestamp::from_ticks(ticks).unwrap();
        let instant = IdSegment::boundary(at(1), at(1));
        assert_eq!(
            instant.text(IdentityForm::Agent),
            "19700101000000.0000001Z.19700101000000.0000001Z"
        );
        let (start, end) = Period::Hourly.boundary(at(1));
        let hour = IdSegment::boundary(start, end);
        assert_eq!(hour.text(IdentityForm::Agent), "19700101000000Z.19700101005959Z");
    }

    #[test]
    fn a_suffix_is_appended_once() {
        let base = IdSegment::correlation("s");
        let suffixed = base.with_suffix_of("count/min").unwrap();
        assert_eq!(suffixed.text(IdentityForm::Agent).len(), "s-01234567".len());
        assert_eq!(suffixed.with_suffix_of("count/min"), None);
        assert_eq!(base.with_suffix(suffixed.suffix()), suffixed);
    }
}
