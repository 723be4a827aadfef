//! Moments as people write them.

use iomt_mapping::Timestamp;

/// A moment with date and time; without an offset it is UTC.
///
/// # Errors
/// How to write it.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    let zoned: Result<jiff::Timestamp, _> = text.parse();
    let time = zoned.or_else(|_| format!("{text}Z").parse());
    time.ok()
        .and_then(|time| Timestamp::from_ticks(i64::try_from(time.as_nanosecond() / 100).ok()?))
        .ok_or_else(|| {
            "write date and time, for example 2026-09-22T10:00:00+02:00 (UTC without an offset)".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_a_date_and_is_utc_without_an_offset() {
        for (text, expected) in [
            ("2026-09-22T10:00:00Z", Some("2026-09-22T10:00:00Z")),
            ("2026-09-22T10:00:00+02:00", Some("2026-09-22T08:00:00Z")),
            ("2026-09-22T10:00:00", Some("2026-09-22T10:00:00Z")),
            ("2026-09-22 10:00", Some("2026-09-22T10:00:00Z")),
            ("2026-09-22", None),
            ("10:00", None),
            ("", None),
        ] {
            let parsed = parse(text).ok().map(|time| time.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }
}
