//! The clock of a device, related to UTC.
//!
//! Clocks of meters have no zone and are often wrong. When a device says what its clock shows now, the difference to UTC dates its
//! stored records. The difference is rounded to quarters of an hour: time zones and daylight saving are multiples of it, and a
//! record that is read out twice gets the same time both times, so that it stays one Observation.

use iomt_mapping::Timestamp;
use iomt_mapping::time::Civil;

const QUARTER_HOUR_TICKS: i64 = 900 * 10_000_000;

/// Reads `2024-03-05T14:30:15` or without seconds; none for a date or time that does not exist.
pub fn parse(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once('T')?;
    let numbers = |text: &str, separator| -> Option<Vec<u32>> {
        text.split(separator).map(|part| part.parse().ok()).collect()
    };
    let (&[year, month, day], time) = (
        numbers(date, '-')?.as_slice().first_chunk::<3>()?,
        numbers(time, ':')?,
    );
    let field = |index: usize| time.get(index).copied();
    Timestamp::from_civil(Civil {
        year: i64::from(year),
        month,
        day,
        hour: field(0)?,
        minute: field(1)?,
        second: field(2).unwrap_or(0),
        tick: 0,
    })
}

/// UTC minus device clock, in quarters of an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset(i64);

impl Offset {
    /// The device's clock showed `device` at `utc`.
    pub fn between(device: &str, utc: Timestamp) -> Option<Offset> {
        let difference = utc.ticks() - parse(device)?.ticks();
        Some(Offset(
            (difference + QUARTER_HOUR_TICKS / 2).div_euclid(QUARTER_HOUR_TICKS),
        ))
    }

    /// UTC of what the device's clock showed.
    pub fn utc(self, device: &str) -> Option<String> {
        parse(device)?
            .plus_ticks(self.0 * QUARTER_HOUR_TICKS)
            .map(|time| time.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_and_drift_are_separated() {
        // Central European summer time, and a clock that is four minutes fast.
        let utc = parse("2024-07-05T12:26:15").unwrap();
        let offset = Offset::between("2024-07-05T14:30:15", utc).unwrap();
        assert_eq!(offset.utc("2024-07-01T08:00:00").unwrap(), "2024-07-01T06:00:00Z");
        assert_eq!(
            offset,
            Offset::between("2024-07-05T14:33:00", parse("2024-07-05T12:29:40").unwrap()).unwrap()
        );
        assert_eq!(parse("2023-02-29T10:00:00"), None);
    }
}
