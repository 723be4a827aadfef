//! `[[clock.device]]`: clocks of devices that are apart from the gateway's.

use super::units::TextDuration;
use crate::timekeeping::device::{Measured, Rule};
use iomt_mapping::phd::time::ClockKind;
use serde::Deserialize;

/// What is known of the clock of a device.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DeviceClock {
    /// Device identifier as messages name it; `*` stands for anything.
    pub device: String,
    /// How far it is ahead of the right time.
    #[serde(default)]
    pub ahead: Option<TextDuration>,
    /// How far it is behind.
    #[serde(default)]
    pub behind: Option<TextDuration>,
    /// It shows the time of a place that is so far from UTC (`"+01:00"`).
    #[serde(default)]
    pub zone: Option<Zone>,
    /// It is kept right by a time server or the like.
    #[serde(default)]
    pub synchronized: bool,
    /// Its messages show how far it is off.
    #[serde(default)]
    pub measured: bool,
    /// It counts since it was switched on.
    #[serde(default)]
    pub ticks: bool,
    /// Messages that have to agree before a measured offset is believed.
    #[serde(default = "default_samples")]
    pub samples: usize,
    /// The largest offset that is believed.
    #[serde(default = "default_limit")]
    pub limit: TextDuration,
}

fn default_samples() -> usize {
    5
}

fn default_limit() -> TextDuration {
    TextDuration(24 * 3_600_000_000)
}

/// Distance to UTC, `+hh:mm` or `-hh:mm`, in ticks of 100 ns.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Zone(
    /// Ticks that local time is ahead of UTC.
    pub i64,
);

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = || format!("\"{text}\" is no distance to UTC: write \"+01:00\" or \"-05:30\"");
        let (sign, rest) = match text.split_at_checked(1) {
            Some(("+", rest)) => (1, rest),
            Some(("-", rest)) => (-1, rest),
            _ => return Err(wrong()),
        };
        let (hours, minutes) = rest.split_once(':').ok_or_else(wrong)?;
        let digits = |text: &str| match text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<i64>().ok(),
            false => None,
        };
        match (digits(hours), digits(minutes)) {
            (Some(hours @ 0..=14), Some(minutes @ 0..=59)) => {
                Ok(Zone(sign * (hours * 60 + minutes) * 600_000_000))
            }
            _ => Err(wrong()),
        }
    }
}

impl DeviceClock {
    /// What is wrong with it (member, what, what to do).
    pub(super) fn wrong(&self) -> Option<(&'static str, &'static str, &'static str)> {
        if self.device.trim().is_empty() {
            return Some((
                "device",
                "A blank device identifies nothing.",
                "Write its identifier as messages name it; \"*\" stands for anything.",
            ));
        }
        if self.ahead.is_some() && self.behind.is_some() {
            return Some((
                "behind",
                "A clock cannot be ahead and behind.",
                "Write one of the two.",
            ));
        }
        let constant = self.ahead.is_some() || self.behind.is_some();
        if self.measured && (constant || self.synchronized) {
            return Some((
                "measured",
                "An offset is measured or known, not both.",
                "Leave out measured, or else ahead, behind and synchronized.",
            ));
        }
        if self.ticks && !self.measured {
            return Some((
                "ticks",
                "What a counter means must be measured: it starts anew whenever the device does.",
                "Write measured = true too.",
            ));
        }
        if self.ticks && self.zone.is_some() {
            return Some(("zone", "A counter has no time zone.", "Leave it out."));
        }
        if !(1..=50).contains(&self.samples) {
            return Some((
                "samples",
                "The number of messages is out of range.",
                "It is 1 to 50; the default is 5.",
            ));
        }
        let known = constant || self.measured || self.zone.is_some() || self.synchronized;
        (!known).then_some((
            "device",
            "Nothing is said about the clock of the device.",
            "Write ahead, behind, zone, synchronized = true or measured = true.",
        ))
    }

    /// As normalizing uses it.
    pub fn rule(&self) -> Rule {
        let ticks = |duration: Option<TextDuration>| duration.map_or(0, |one| (one.0 as i64) * 10);
        let zone = self.zone.map_or(0, |zone| zone.0);
        Rule {
            device: self.device.clone(),
            correction: ticks(self.behind) - ticks(self.ahead) - zone,
            kind: match (self.ticks, self.zone) {
                (true, _) => ClockKind::Tick,
                (false, Some(_)) => ClockKind::Local,
                (false, None) => ClockKind::Utc,
            },
            synchronized: self.synchronized,
            measured: self.measured.then(|| Measured {
                samples: self.samples,
                // A counter has nothing to do with the time of day.
                limit: if self.ticks {
                    i64::MAX
                } else {
                    ticks(Some(self.limit))
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_written_with_sign_hours_and_minutes() {
        let minutes = |text: &str| {
            Zone::try_from(text.to_owned())
                .ok()
                .map(|zone| zone.0 / 600_000_000)
        };
        for (text, expected) in [
            ("+01:00", Some(60)),
            ("-05:30", Some(-330)),
            ("+00:00", Some(0)),
            ("01:00", None),
            ("+1:00", None),
            ("+15:00", None),
            ("Europe/Berlin", None),
            ("", None),
        ] {
            assert_eq!(minutes(text), expected, "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (text, member) in [
            ("device = \"a\"", Some("device")),
            ("device = \" \"\nmeasured = true", Some("device")),
            (
                "device = \"a\"\nahead = \"1 s\"\nbehind = \"1 s\"",
                Some("behind"),
            ),
            (
                "device = \"a\"\nahead = \"1 s\"\nmeasured = true",
                Some("measured"),
            ),
            ("device = \"a\"\nticks = true", Some("ticks")),
            (
                "device = \"a\"\nticks = true\nmeasured = true\nzone = \"+01:00\"",
                Some("zone"),
            ),
            ("device = \"a\"\nmeasured = true\nsamples = 0", Some("samples")),
            ("device = \"a\"\nmeasured = true\nzone = \"+01:00\"", None),
            ("device = \"a\"\nbehind = \"90 s\"", None),
        ] {
            let one: DeviceClock = toml::from_str(text).unwrap();
            assert_eq!(one.wrong().map(|(member, ..)| member), member, "{text}");
        }
        let of = |text: &str| toml::from_str::<DeviceClock>(text).unwrap().rule().correction;
        assert_eq!(of("device = \"a\"\nbehind = \"90 s\""), 900_000_000);
        assert_eq!(
            of("device = \"a\"\nahead = \"30 s\"\nzone = \"+01:00\""),
            -36_300_000_000
        );
    }
}
