//! What the operator says about the clocks of devices.

use iomt_mapping::phd::time::ClockKind;
use serde::{Deserialize, Serialize};

/// What is said about the clocks of some devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Device identifier; `*` stands for anything.
    pub device: String,
    /// Ticks of 100 ns to add to what the clock shows.
    pub correction: i64,
    /// What it counts.
    pub kind: ClockKind,
    /// It is kept right.
    pub synchronized: bool,
    /// What else it is off is measured.
    pub measured: Option<Measured>,
}

/// How an offset is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Messages that have to agree.
    pub samples: usize,
    /// The largest offset that is believed: ticks.
    pub limit: i64,
}

/// The rules of a configuration; the first that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The rule of a device.
    pub fn of(&self, device: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| fits(&rule.device, device))
    }
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        match left.find(part) {
            Some(at) => left = left.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_devices() {
        for (pattern, name, expected) in [
            ("band-7", "band-7", true),
            ("band-7", "band-70", false),
            ("band-*", "band-70", true),
            ("*", "", true),
            ("*-7", "band-7", true),
            ("b*d-*7", "band-17", true),
            ("b*x*7", "band-17", false),
            ("band-*-7", "band-7", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
