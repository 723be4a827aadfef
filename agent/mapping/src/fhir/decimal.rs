//! FHIR decimals as text (rule D4): any number of digits, the scale kept, compared exactly and never as a binary float.

use std::cmp::Ordering;

/// The decimal that `text` is, spelled as JSON and FHIR want it; `None` when it is none.
///
/// Sign, digits, optional dot with at least one digit on each side, optional exponent; spaces around it are ignored.
/// The scale is kept, a plus sign and needless leading zeros are dropped, because JSON has neither.
///
/// ```
/// use iomt_mapping::fhir::decimal;
///
/// assert_eq!(decimal(" 98.60 ").as_deref(), Some("98.60"));
/// assert_eq!(decimal("+007").as_deref(), Some("7"));
/// assert_eq!(decimal("36,6"), None);
/// ```
pub fn decimal(text: &str) -> Option<String> {
    let parts = Parts::of(text)?;
    let mut spelled = String::with_capacity(text.len());
    if parts.negative {
        spelled.push('-');
    }
    let whole = parts.whole.trim_start_matches('0');
    spelled.push_str(if whole.is_empty() { "0" } else { whole });
    if let Some(fraction) = parts.fraction {
        spelled.push('.');
        spelled.push_str(fraction);
    }
    spelled.push_str(parts.exponent);
    Some(spelled)
}

/// Compares two decimals by value, however they are spelled (`65`, `65.0` and `6.5E1` are equal); `None` when one of
/// the texts is no decimal.
pub fn compare_decimals(left: &str, right: &str) -> Option<Ordering> {
    Some(Magnitude::of(left)?.compare(&Magnitude::of(right)?))
}

struct Parts<'t> {
    negative: bool,
    whole: &'t str,
    fraction: Option<&'t str>,
    /// With its letter, empty when there is none.
    exponent: &'t str,
}

impl<'t> Parts<'t> {
    fn of(text: &'t str) -> Option<Parts<'t>> {
        let text = text.trim_matches(|c: char| c == ' ' || ('\t'..='\r').contains(&c));
        let negative = text.starts_with('-');
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (number, exponent) = match unsigned.find(['e', 'E']) {
            Some(at) => unsigned.split_at(at),
            None => (unsigned, ""),
        };
        if let Some(power) = exponent.get(1..) {
            let power = power.strip_prefix(['-', '+']).unwrap_or(power);
            if !is_digits(power) {
                return None;
            }
        }
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (number, None),
        };
        (is_digits(whole) && fraction.is_none_or(is_digits)).then_some(Parts {
            negative,
            whole,
            fraction,
            exponent,
        })
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Sign, digits without zeros at either end, and the power of ten of the first digit.
struct Magnitude {
    negative: bool,
    digits: Vec<u8>,
    leading_power: i64,
}

impl Magnitude {
    fn of(text: &str) -> Option<Magnitude> {
        let parts = Parts::of(text)?;
        let fraction = parts.fraction.unwrap_or_default();
        let power = parts.exponent.get(1..).unwrap_or("0");
        // An exponent beyond 18 digits is as good as infinite for a comparison.
        let negative_power = power.starts_with('-');
        let power_digits = power.trim_start_matches(['-', '+']).trim_start_matches('0');
        let power = match power_digits.len() {
            0 => 0,
            1..=17 => power_digits.parse::<i64>().ok()?,
            _ => 1_000_000_000_000_000_000,
        };
        let power = if negative_power { -power } else { power };
        let all: Vec<u8> = parts.whole.bytes().chain(fraction.bytes()).collect();
        let zeros = all.iter().take_while(|d| **d == b'0').count();
        let mut digits = all.get(zeros..).unwrap_or_default().to_vec();
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        let before_dot = i64::try_from(parts.whole.len()).ok()? - i64::try_from(zeros).ok()?;
        let zero = digits.is_empty();
        Some(Magnitude {
            negative: parts.negative && !zero,
            digits,
            leading_power: if zero { i64::MIN } else { before_dot + power },
        })
    }

    fn compare(&self, other: &Magnitude) -> Ordering {
        let by_size = |a: &Magnitude, b: &Magnitude| {
            a.leading_power
                .cmp(&b.leading_power)
                .then_with(|| a.digits.cmp(&b.digits))
        };
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => by_size(self, other),
            (true, true) => by_size(other, self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_their_scale_and_lose_only_what_json_cannot_write() {
        let table = [
            ("65", Some("65")),
            ("98.60", Some("98.60")),
            ("-0.5", Some("-0.5")),
            ("  72 ", Some("72")),
            ("+5", Some("5")),
            ("007.10", Some("7.10")),
            ("00", Some("0")),
            ("1E+17", Some("1E+17")),
            ("3.66e1", Some("3.66e1")),
            (
                "123456789012345678901234567890.12",
                Some("123456789012345678901234567890.12"),
            ),
            ("1,234", None),
            ("36,6", None),
            ("1 234", None),
            (".5", None),
            ("5.", None),
            ("NaN", None),
            ("Infinity", None),
            ("0x10", None),
            ("97%", None),
            ("(5)", None),
            ("", None),
            ("-", None),
            ("1e", None),
            ("٣٦", None),
        ];
        for (text, expected) in table {
            assert_eq!(decimal(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn decimals_compare_by_value() {
        let table = [
            ("65", "65.0", Ordering::Equal),
            ("6.5E1", "65", Ordering::Equal),
            ("0", "-0.00", Ordering::Equal),
            ("0.1", "0.09999999999999999999999999", Ordering::Greater),
            ("-2", "-3", Ordering::Greater),
            ("-2", "1", Ordering::Less),
            ("9007199254740993", "9007199254740992", Ordering::Greater),
            ("1e999999999999999999999", "1e5", Ordering::Greater),
            ("0", "1e-9", Ordering::Less),
            ("12", "120", Ordering::Less),
        ];
        for (left, right, expected) in table {
            assert_eq!(compare_decimals(left, right), Some(expected), "{left} {right}");
            assert_eq!(compare_decimals(right, left), Some(expected.reverse()));
        }
        assert_eq!(compare_decimals("a", "1"), None);
    }
}
