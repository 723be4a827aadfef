//! Reading timestamps: the texts that the reference accepts (`DateTime.Parse` of .NET with the invariant culture, `mapping.md` 1.7)
//! under rule D10: no zone means UTC, a time without a date (and a date without a year) is refused, a date of two
//! readings is read month first and said so.

use crate::time::{Civil, TICKS_PER_SECOND, Timestamp};

/// An instant that a text names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTime {
    /// The instant.
    pub time: Timestamp,
    /// The day and the month could be read the other way round (`02/01/2019`).
    pub two_readings: bool,
}

/// The instant that `text` names, `None` when it names none.
///
/// ```
/// use iomt_mapping::timestamp::read_timestamp;
///
/// let read = read_timestamp("2019-02-01T22:46:01.875+05:30").unwrap();
/// assert_eq!(read.time.to_string(), "2019-02-01T17:16:01.875Z");
/// assert!(read_timestamp("02/01/2019 22:46").unwrap().two_readings);
/// assert_eq!(read_timestamp("22:46:01"), None);
/// ```
pub fn read_timestamp(text: &str) -> Option<ReadTime> {
    let text = text.trim();
    if let Some(time) = iso_utc(text.as_bytes()) {
        return Some(ReadTime {
            time,
            two_readings: false,
        });
    }
    if let Some(time) = milliseconds_date(text) {
        return Some(ReadTime {
            time,
            two_readings: false,
        });
    }
    Scanner::default().read(text)
}

/// `yyyy-MM-ddTHH:mm:ss[.f..]Z`, the form that nearly every message has.
fn iso_utc(bytes: &[u8]) -> Option<Timestamp> {
    let (head, tail) = bytes.split_at_checked(19)?;
    let two = |at: usize| {
        let [tens, ones] = *head.get(at..at + 2)? else {
            return None;
        };
        (tens.is_ascii_digit() && ones.is_ascii_digit())
            .then(|| u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
    };
    let [b'-', b'-', b'T', b':', b':'] = [
        head.get(4)?,
        head.get(7)?,
        head.get(10)?,
        head.get(13)?,
        head.get(16)?,
    ] else {
        return None;
    };
    let fraction = tail.strip_suffix(b"Z")?;
    let mut tick = 0;
    if let Some((b'.', digits)) = fraction.split_first() {
        if digits.is_empty() || digits.len() > 7 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let padded = digits
            .iter()
            .map(|digit| u32::from(digit - b'0'))
            .chain(std::iter::repeat(0))
            .take(7);
        tick = padded.fold(0, |tick, digit| tick * 10 + digit);
    } else if !fraction.is_empty() {
        return None;
    }
    let year = i64::from(two(0)?) * 100 + i64::from(two(2)?);
    let civil = Civil {
        year,
        month: two(5)?,
        day: two(8)?,
        hour: two(11)?,
        minute: two(14)?,
        second: two(17)?,
        tick,
    };
    Timestamp::from_civil(civil)
}

/// `/Date(1549061161875)/` with an offset that does not count.
fn milliseconds_date(text: &str) -> Option<Timestamp> {
    let inner = text.strip_prefix("/Date(")?.strip_suffix(")/")?;
    let sign = usize::from(inner.starts_with(['+', '-']));
    let end = inner
        .get(sign..)?
        .find(['+', '-'])
        .map_or(inner.len(), |at| at + sign);
    let (count, offset) = inner.split_at_checked(end)?;
    let offset_is_valid = offset.is_empty()
        || matches!(offset.len(), 3 | 5) && offset.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    let ticks = count.parse::<i64>().ok()?.checked_mul(TICKS_PER_SECOND / 1000)?;
    Timestamp::from_ticks(ticks).filter(|_| offset_is_valid)
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = [
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "monday",
    "tuesday",
    "wednesday",
];

/// A number of a date and how many digits it has.
#[derive(Clone, Copy)]
struct Part {
    value: i64,
    digits: usize,
}

#[derive(Clone, Copy)]
struct TimeOfDay {
    hour: u32,
    minute: u32,
    second: u32,
    /// Of the second; may be a whole second after rounding.
    tick: i64,
}

/// What was found in a text so far.
#[derive(Default)]
struct Scanner {
    parts: Vec<Part>,
    /// Month by name, and how many parts stood before it.
    month: Option<(u32, usize)>,
    weekday: Option<i64>,
    time: Option<TimeOfDay>,
    afternoon: Option<bool>,
    /// Minutes east of UTC.
    offset: Option<i64>,
}

impl Scanner {
    fn read(mut self, text: &str) -> Option<ReadTime> {
        let mut rest = text;
        // What may stand between two parts of a date: one separator and spaces.
        while !rest.is_empty() {
            rest = self.item(rest)?;
        }
        self.resolve()
    }

    /// Takes one item from the front.
    fn item<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let first = text.chars().next()?;
        match first {
            ' ' | '\t' | ',' => text.get(1..),
            '0'..='9' => self.number(text),
            '+' | '-' if self.time.is_some() => self.offset(text),
            // Between numbers of a date.
            '-' | '/' if self.time.is_none() && (!self.parts.is_empty() || self.month.is_some()) => {
                let after = text.get(1..)?.trim_start();
                after
                    .starts_with(|next: char| next.is_ascii_alphanumeric())
                    .then_some(after)
            }
            _ if first.is_ascii_alphabetic() => self.word(text),
            _ => None,
        }
    }

    fn number<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let (part, rest) = digits(text)?;
        if rest.starts_with(':') {
            return self.clock(part, rest);
        }
        let spaced = rest.trim_start();
        let marker = spaced
            .get(..2)
            .or(spaced.get(..1))
            .unwrap_or_default()
            .to_ascii_lowercase();
        if self.time.is_none() && matches!(marker.as_str(), "am" | "pm") && part.digits <= 2 {
            // 10 PM
            self.time = Some(TimeOfDay {
                hour: u32::try_from(part.value).ok()?,
                minute: 0,
                second: 0,
                tick: 0,
            });
            return Some(rest);
        }
        if self.time.is_some() && self.parts.is_empty() {
            return None;
        }
        self.parts.push(part);
        (self.parts.len() <= 3 && !rest.starts_with('.')).then_some(rest)
    }

    /// `22:46[:01[.875]]` from its first colon.
    fn clock<'t>(&mut self, hour: Part, rest: &'t str) -> Option<&'t str> {
        if self.time.is_some() || hour.digits > 2 {
            return None;
        }
        let (minute, mut rest) = digits(rest.get(1..)?)?;
        let mut second = Part { value: 0, digits: 1 };
        let mut tick = 0;
        if let Some(seconds) = rest.strip_prefix(':') {
            (second, rest) = digits(seconds)?;
            if let Some(fraction) = rest.strip_prefix('.') {
                let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
                tick = fraction_ticks(fraction.get(..length)?)?;
                rest = fraction.get(length..)?;
            }
        }
        let field = |part: Part| u32::try_from(part.value).ok().filter(|_| part.digits <= 2);
        self.time = Some(TimeOfDay {
            hour: field(hour)?,
            minute: field(minute)?,
            second: field(second)?,
            tick,
        });
        Some(rest)
    }

    fn offset<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let (part, mut rest) = digits(text.get(1..)?)?;
        let (hours, minutes) = match part.digits {
            1 | 2 => match rest.strip_prefix(':') {
                Some(after) => {
                    let (minutes, after) = digits(after)?;
                    rest = after;
                    (part.value, (minutes.digits == 2).then_some(minutes.value)?)
                }
                None => (part.value, 0),
            },
            3 | 4 => (part.value / 100, part.value % 100),
            _ => return None,
        };
        let offset = hours * 60 + minutes;
        let is_valid = self.offset.is_none() && minutes < 60 && offset <= 14 * 60;
        self.offset = is_valid.then_some(if text.starts_with('-') { -offset } else { offset });
        self.offset.map(|_| rest)
    }

    fn word<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let length = text.bytes().take_while(u8::is_ascii_alphabetic).count();
        let word = text.get(..length)?.to_ascii_lowercase();
        let rest = text.get(length..)?;
        match word.as_str() {
            // Between date and time.
            "t" if !self.parts.is_empty() && self.time.is_none() && starts_clock(rest) => Some(rest),
            "z" | "gmt" if self.offset.is_none() => {
                self.offset = Some(0);
                Some(rest)
            }
            "am" | "a" if self.time.is_some() && self.afternoon.is_none() => {
                self.afternoon = Some(false);
                Some(rest)
            }
            "pm" | "p" if self.time.is_some() && self.afternoon.is_none() => {
                self.afternoon = Some(true);
                Some(rest)
            }
            _ => {
                let rest = rest.strip_prefix('.').unwrap_or(rest);
                let named = |names: &[&str]| {
                    names
                        .iter()
                        .position(|name| *name == word || word.len() == 3 && name.starts_with(&word))
                };
                if let Some(month) = named(&MONTHS).filter(|_| self.month.is_none()) {
                    self.month = Some((u32::try_from(month + 1).ok()?, self.parts.len()));
                } else {
                    let weekday = named(&WEEKDAYS).filter(|_| self.weekday.is_none())?;
                    self.weekday = Some(i64::try_from(weekday).ok()?);
                }
                Some(rest)
            }
        }
    }

    fn resolve(self) -> Option<ReadTime> {
        let (year, month, day, two_readings) = self.date()?;
        let time = self.time.unwrap_or(TimeOfDay {
            hour: 0,
            minute: 0,
            second: 0,
            tick: 0,
        });
        let hour = match self.afternoon {
            Some(_) if time.hour == 0 || time.hour > 12 => return None,
            Some(true) => time.hour % 12 + 12,
            Some(false) => time.hour % 12,
            None => time.hour,
        };
        // 24:00:00 is the next day's midnight.
        let midnight = hour == 24 && time.minute == 0 && time.second == 0 && time.tick == 0;
        let hour = if midnight { 0 } else { hour };
        let civil = Civil {
            year,
            month,
            day,
            hour,
            minute: time.minute,
            second: time.second,
            tick: 0,
        };
        let local = Timestamp::from_civil(civil)?;
        if let Some(weekday) = self.weekday
            && local.ticks().div_euclid(86_400 * TICKS_PER_SECOND).rem_euclid(7) != weekday
        {
            return None;
        }
        let extra = if midnight {
            86_400 * TICKS_PER_SECOND
        } else {
            time.tick
        };
        let offset = self.offset.unwrap_or(0) * 60 * TICKS_PER_SECOND;
        local
            .plus_ticks(extra - offset)
            .map(|time| ReadTime { time, two_readings })
    }

    /// Year, month, day, and whether the numbers have a second reading.
    fn date(&self) -> Option<(i64, u32, u32, bool)> {
        let small = |part: &Part| u32::try_from(part.value).ok().filter(|_| part.digits <= 2);
        if let Some((month, before)) = self.month {
            return match self.parts.as_slice() {
                [year] if year.digits > 2 => Some((full_year(year)?, month, 1, false)),
                [year, day] if year.digits > 2 => Some((full_year(year)?, month, small(day)?, false)),
                [day, year] if before <= 1 => Some((full_year(year)?, month, small(day)?, false)),
                _ => None,
            };
        }
        match self.parts.as_slice() {
            [year, month, day] if year.digits > 2 => {
                Some((full_year(year)?, small(month)?, small(day)?, false))
            }
            [month, day, year] => {
                let (month, day) = (small(month)?, small(day)?);
                Some((full_year(year)?, month, day, day <= 12 && day != month))
            }
            [year, month] if year.digits > 2 => Some((full_year(year)?, small(month)?, 1, false)),
            [month, year] if year.digits > 2 => Some((full_year(year)?, small(month)?, 1, false)),
            _ => None,
        }
    }
}

/// Two digits are a year from 1950 to 2049.
fn full_year(part: &Part) -> Option<i64> {
    match part.digits {
        1 | 2 => Some(if part.value < 50 {
            2000 + part.value
        } else {
            1900 + part.value
        }),
        3 | 4 => Some(part.value),
        _ => None,
    }
}

fn starts_clock(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=2).contains(&digits) && text.as_bytes().get(digits) == Some(&b':')
}

fn digits(text: &str) -> Option<(Part, &str)> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(length)?;
    let value = number.parse().ok().filter(|_| length <= 9)?;
    Some((
        Part {
            value,
            digits: length,
        },
        rest,
    ))
}

/// The digits after the point in units of 100 ns, rounded.
fn fraction_ticks(digits: &str) -> Option<i64> {
    if digits.is_empty() {
        return None;
    }
    let digit = |at: usize| {
        digits
            .as_bytes()
            .get(at)
            .map_or(0, |digit| i64::from(digit - b'0'))
    };
    let ticks = (0..7).fold(0, |ticks, at| ticks * 10 + digit(at));
    Some(ticks + i64::from(digit(7) >= 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_reference_are_read() {
        let table = [
            ("2019-02-01T22:46:01.8750000Z", "2019-02-01T22:46:01.875Z"),
            ("2019-02-01t22:46:01z", "2019-02-01T22:46:01Z"),
            ("2019-02-01T22:46:01.123456789Z", "2019-02-01T22:46:01.1234568Z"),
            ("2019-02-01T22:46:01.99999999", "2019-02-01T22:46:02Z"),
            ("2019-02-01T22:46:01+05:30", "2019-02-01T17:16:01Z"),
            ("2019-02-01T22:46:01-0500", "2019-02-02T03:46:01Z"),
            ("2019-02-01T22:46:01+02", "2019-02-01T20:46:01Z"),
            ("2019-02-01 22:46:01 +02:00", "2019-02-01T20:46:01Z"),
            (" 2019-02-01 22:46Z ", "2019-02-01T22:46:00Z"),
            ("2019-02-01", "2019-02-01T00:00:00Z"),
            ("2019-2-1", "2019-02-01T00:00:00Z"),
            ("2019/02/01 5:06", "2019-02-01T05:06:00Z"),
            ("2019-02", "2019-02-01T00:00:00Z"),
            ("02/2019", "2019-02-01T00:00:00Z"),
            ("2/1/2019 10:46 PM", "2019-02-01T22:46:00Z"),
            ("2/1/2019 12:46 AM", "2019-02-01T00:46:00Z"),
            ("2/1/2019 10PM", "2019-02-01T22:00:00Z"),
            ("02-25-2019", "2019-02-25T00:00:00Z"),
            ("1 Feb 2019 22:46:01", "2019-02-01T22:46:01Z"),
            ("1-Feb-2019", "2019-02-01T00:00:00Z"),
            ("February 1, 2019", "2019-02-01T00:00:00Z"),
            ("Feb 2019", "2019-02-01T00:00:00Z"),
            ("Fri, 01 Feb 2019 22:46:01 GMT", "2019-02-01T22:46:01Z"),
            ("Friday, 1 February 2019", "2019-02-01T00:00:00Z"),
            ("2019-02-01T24:00:00Z", "2019-02-02T00:00:00Z"),
            ("/Date(1549061161875)/", "2019-02-01T22:46:01.875Z"),
            ("/Date(1549061161875+0200)/", "2019-02-01T22:46:01.875Z"),
            ("/Date(-1)/", "1969-12-31T23:59:59.999Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.9999999Z"),
        ];
        for (text, expected) in table {
            assert_eq!(
                read_timestamp(text).map(|read| read.time.to_string()).as_deref(),
                Some(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "  ",
            "abc",
            "20190201",
            "20190201T224601Z",
            "2019",
            "201902",
            "22:46:01",
            "10:46 PM",
            "13/02/2019",
            "2019-13-01",
            "2019-02-30",
            "2023-02-29T00:00:00Z",
            "2019-02-01T24:46:01Z",
            "2016-12-31T23:59:60Z",
            "2019-02-01T22:46:01.Z",
            "2019-02-01T22",
            "Thu, 01 Feb 2019 22:46:01 GMT",
            "Fri Feb 01 2019 22:46:01 GMT+0000",
            "2019-02-01T22:46:01+15:00",
            "2019-02-01T22:46:01Z x",
            "2019-02-01T22:46:61",
            "1549061161875",
            "02/01",
            "1 Feb",
            "2019-02-01T22:46:01ZZ",
            "/Date(x)/",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "2019-02-01T",
            "2019-02-01-",
            "T22:46:01",
            "2019--02-01",
            "é",
            "2/1/2019 13:46 PM x",
            "1.2.2019",
        ] {
            assert_eq!(read_timestamp(text), None, "{text}");
        }
    }

    #[test]
    fn dates_of_two_readings_are_read_month_first_and_said_so() {
        let read = |text: &str| read_timestamp(text).unwrap();
        assert!(read("02/01/2019 22:46:01").two_readings);
        assert_eq!(
            read("02/01/2019 22:46:01").time.to_string(),
            "2019-02-01T22:46:01Z"
        );
        assert!(!read("02/25/2019").two_readings);
        assert!(!read("03/03/2019").two_readings);
        assert!(!read("2019-02-01").two_readings);
    }
}
