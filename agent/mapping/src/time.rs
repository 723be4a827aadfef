//! Instants in UTC with a precision of 100 ns, the precision of the reference (`System.DateTime` ticks).

use std::fmt;

/// An instant in UTC, counted in ticks of 100 ns since 1970-01-01T00:00:00Z; years 1 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Ticks of 100 ns in a second.
pub const TICKS_PER_SECOND: i64 = 10_000_000;
const TICKS_PER_DAY: i64 = 86_400 * TICKS_PER_SECOND;

/// Year, month, day, hour, minute, second and tick of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// 1 to 9999.
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
    /// 0 to 9,999,999, in units of 100 ns.
    pub tick: u32,
}

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Timestamp = Timestamp(-621_355_968_000_000_000);
    /// 9999-12-31T23:59:59.9999999Z.
    pub const MAX: Timestamp = Timestamp(2_534_023_007_999_999_999);

    /// The instant `ticks` units of 100 ns after 1970-01-01T00:00:00Z, or `None` outside the years 1 to 9999.
    pub fn from_ticks(ticks: i64) -> Option<Timestamp> {
        (Self::MIN.0..=Self::MAX.0)
            .contains(&ticks)
            .then_some(Timestamp(ticks))
    }

    /// Units of 100 ns since 1970-01-01T00:00:00Z.
    pub fn ticks(self) -> i64 {
        self.0
    }

    /// From a UTC calendar date and time of day; `None` for a day that does not exist or a field out of range.
    pub fn from_civil(c: Civil) -> Option<Timestamp> {
        let days_in_month = match c.month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if c.year % 4 == 0 && (c.year % 100 != 0 || c.year % 400 == 0) => 29,
            2 => 28,
            _ => return None,
        };
        let in_range = (1..=9999).contains(&c.year)
            && (1..=days_in_month).contains(&c.day)
            && c.hour < 24
            && c.minute < 60
            && c.second < 60
            && i64::from(c.tick) < TICKS_PER_SECOND;
        if !in_range {
            return None;
        }
        let seconds = i64::from(c.hour) * 3600 + i64::from(c.minute) * 60 + i64::from(c.second);
        let days = days_from_civil(c.year, c.month, c.day);
        Some(Timestamp(
            days * TICKS_PER_DAY + seconds * TICKS_PER_SECOND + i64::from(c.tick),
        ))
    }

    /// The UTC calendar date and time of day.
    pub fn civil(self) -> Civil {
        let days = self.0.div_euclid(TICKS_PER_DAY);
        let of_day = self.0.rem_euclid(TICKS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        let seconds = of_day / TICKS_PER_SECOND;
        let field = |n: i64| u32::try_from(n).unwrap_or(0);
        Civil {
            year,
            month,
            day,
            hour: field(seconds / 3600),
            minute: field(seconds / 60 % 60),
            second: field(seconds % 60),
            tick: field(of_day % TICKS_PER_SECOND),
        }
    }

    /// `ticks` later (or earlier when negative); `None` outside the years 1 to 9999.
    pub fn plus_ticks(self, ticks: i64) -> Option<Timestamp> {
        self.0.checked_add(ticks).and_then(Timestamp::from_ticks)
    }

    /// The largest multiple of `ticks` since 1970 that is not after this instant (start of its hour, of its day).
    #[must_use]
    pub fn floor_to(self, ticks: i64) -> Timestamp {
        Timestamp((self.0 - self.0.rem_euclid(ticks.max(1))).max(Self::MIN.0))
    }

    /// ISO 8601 with exactly seven fraction digits and `Z`, as the reference writes `effectivePeriod`.
    pub fn to_seven_digits(self) -> String {
        let c = self.civil();
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:07}Z",
            c.year, c.month, c.day, c.hour, c.minute, c.second, c.tick
        )
    }
}

/// ISO 8601 UTC with `Z`; the fraction is left out when zero, and has three digits when that is exact, else seven.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.civil();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            c.year, c.month, c.day, c.hour, c.minute, c.second
        )?;
        if !c.tick.is_multiple_of(10_000) {
            write!(f, ".{:07}Z", c.tick)
        } else if c.tick != 0 {
            write!(f, ".{:03}Z", c.tick / 10_000)
        } else {
            f.write_str("Z")
        }
    }
}

// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let month_from_march = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let field = |n: i64| u32::try_from(n).unwrap_or(1);
    (year, field(month), field(day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_first_and_last_tick_of_the_calendar() {
        assert_eq!(Timestamp::MIN.to_seven_digits(), "0001-01-01T00:00:00.0000000Z");
        assert_eq!(Timestamp::MAX.to_seven_digits(), "9999-12-31T23:59:59.9999999Z");
        assert_eq!(Timestamp::from_ticks(Timestamp::MAX.ticks() + 1), None);
    }

    #[test]
    fn civil_and_ticks_agree_over_leap_days_and_centuries() {
        for days in (-719_162..2_932_896).step_by(97) {
            let t = Timestamp::from_ticks(days * TICKS_PER_DAY + 123).unwrap();
            assert_eq!(Timestamp::from_civil(t.civil()), Some(t));
        }
        let leap = Civil {
            year: 2024,
            month: 2,
            day: 29,
            hour: 0,
            minute: 0,
            second: 0,
            tick: 0,
        };
        assert!(Timestamp::from_civil(leap).is_some());
        assert!(Timestamp::from_civil(Civil { year: 2023, ..leap }).is_none());
    }

    #[test]
    fn text_has_no_needless_fraction() {
        let t = |ticks| Timestamp::from_ticks(ticks).unwrap().to_string();
        assert_eq!(t(0), "1970-01-01T00:00:00Z");
        assert_eq!(t(2_500_000), "1970-01-01T00:00:00.250Z");
        assert_eq!(t(1), "1970-01-01T00:00:00.0000001Z");
    }
}
