//! Sizes and durations as an operator writes them.

use serde::Deserialize;

/// A size such as `"512 MiB"`, `"2 GB"` or `"4096 B"`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct ByteSize(
    /// Bytes.
    pub u64,
);

/// A duration such as `"250 ms"`, `"1 s"`, `"5 min"`, `"24 h"` or `"7 d"`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct TextDuration(
    /// Microseconds.
    pub u64,
);

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = number_and_unit(&text).and_then(|(n, unit)| {
            let factor = match unit {
                "B" => 1,
                "kB" | "KB" => 1000,
                "KiB" => 1 << 10,
                "MB" => 1_000_000,
                "MiB" => 1 << 20,
                "GB" => 1_000_000_000,
                "GiB" => 1 << 30,
                _ => return None,
            };
            n.checked_mul(factor)
        });
        parsed
            .map(ByteSize)
            .ok_or_else(|| format!("\"{text}\" is no size: write a number and a unit, such as \"512 MiB\""))
    }
}

impl TryFrom<String> for TextDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parsed = number_and_unit(&text).and_then(|(n, unit)| {
            let factor = match unit {
                "ms" => 1_000,
                "s" => 1_000_000,
                "min" => 60_000_000,
                "h" => 3_600_000_000,
                "d" => 86_400_000_000,
                _ => return None,
            };
            n.checked_mul(factor)
        });
        parsed.map(TextDuration).ok_or_else(|| {
            format!("\"{text}\" is no duration: write a number and a unit, such as \"1 s\" or \"5 min\"")
        })
    }
}
