//! Reads `dateTime` and `instant` of FHIR R4 as stored Observations have them.

use crate::time::{Civil, TICKS_PER_SECOND, Timestamp};

/// The instant of a FHIR `dateTime`: with time and offset exactly, of a date alone its first instant in UTC (year and
/// month likewise); fractions beyond 100 ns are cut. `None` for anything else.
pub fn parse_datetime(text: &str) -> Option<Timestamp> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4)?;
    let month = parts.next().map_or(Some(1), |m| number(m, 2))?;
    let day = parts.next().map_or(Some(1), |d| number(d, 2))?;
    if parts.next().is_some() {
        return None;
    }
    let midnight = Timestamp::from_civil(Civil {
        year: i64::from(year),
        month,
        day,
        hour: 0,
        minute: 0,
        second: 0,
        tick: 0,
    })?;
    match time {
        Some(time) => midnight.plus_ticks(time_of_day(time)?),
        None => Some(midnight),
    }
}

/// Ticks from midnight UTC; an offset may take it out of the day.
fn time_of_day(text: &str) -> Option<i64> {
    let zone_at = text.find(['Z', '+', '-'])?;
    let (clock, zone) = text.split_at(zone_at);
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = whole.split(':');
    let hour = number(parts.next()?, 2).filter(|h| *h < 24)?;
    let minute = number(parts.next()?, 2).filter(|m| *m < 60)?;
    // A leap second is the last instant of its minute.
    let second = number(parts.next()?, 2).filter(|s| *s <= 60)?.min(59);
    if parts.next().is_some() || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let tick: i64 = format!("{fraction:0<7}").get(..7)?.parse().ok()?;
    let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    Some(seconds * TICKS_PER_SECOND + tick - offset(zone)? * TICKS_PER_SECOND)
}

/// Seconds east of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let seconds = i64::from(number(hours, 2)?) * 3600 + i64::from(number(minutes, 2)?) * 60;
    Some(if zone.starts_with('-') { -seconds } else { seconds })
}

fn number(text: &str, digits: usize) -> Option<u32> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_with_offset_dates_and_refusals() {
        for (text, expected) in [
            ("2019-02-01T22:00:00.0000000Z", "2019-02-01T22:00:00Z"),
            ("2019-02-01T23:30:00.25+01:30", "2019-02-01T22:00:00.250Z"),
            ("2019-02-01T22:00:00-05:00", "2019-02-02T03:00:00Z"),
            ("2019-02-01T22:00:00.123456789Z", "2019-02-01T22:00:00.1234567Z"),
            ("2019-02-01", "2019-02-01T00:00:00Z"),
            ("2019-02", "2019-02-01T00:00:00Z"),
            ("2019", "2019-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse_datetime(text).unwrap().to_string(), expected, "{text}");
        }
        for text in [
            "",
            "2019-2-1",
            "2019-02-30",
            "2019-02-01T22:00:00",
            "2019-02-01T24:00:00Z",
            "2019-02-01T22:00Z",
            "yesterday",
        ] {
            assert_eq!(parse_datetime(text), None, "{text}");
        }
    }
}
