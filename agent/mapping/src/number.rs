//! Numbers and their text: decimals as FHIR knows them (rule D4), and how computed numbers print (rule D7).

use std::cmp::Ordering;

/// The decimal in `text`, without the spaces around it: sign, digits, optional dot with at least one digit on each
/// side, optional exponent (rule D4). `None` for anything else, such as a decimal comma or `NaN`.
///
/// ```
/// use iomt_mapping::number::decimal;
///
/// assert_eq!(decimal(" 98.60 "), Some("98.60"));
/// assert_eq!(decimal("36,6"), None);
/// ```
pub fn decimal(text: &str) -> Option<&str> {
    let text = text.trim();
    let digits = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let signed = |text: &str| text.strip_prefix(['+', '-']).unwrap_or(text).len();
    let unsigned = text.get(text.len() - signed(text)..)?;
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let whole = match mantissa.split_once('.') {
        Some((whole, fraction)) => digits(fraction.as_bytes()).then_some(whole)?,
        None => mantissa,
    };
    let exponent_is_digits =
        exponent.is_none_or(|e| e.get(e.len() - signed(e)..).is_some_and(|e| digits(e.as_bytes())));
    (digits(whole.as_bytes()) && exponent_is_digits).then_some(text)
}

/// The text of a computed number (rule D7): rounded to 15 significant digits while that stays finite, the shortest such
/// form, without an exponent from 1e-7 up to 1e21.
///
/// ```
/// use iomt_mapping::number::computed_text;
///
/// assert_eq!(computed_text(78.0 * 0.0254), "1.9812");
/// assert_eq!(computed_text(2.5e20), "250000000000000000000");
/// assert_eq!(computed_text(1e-8), "1E-08");
/// ```
pub fn computed_text(value: f64) -> String {
    let rounded = format!("{value:.14e}")
        .parse()
        .ok()
        .filter(|rounded: &f64| rounded.is_finite())
        .unwrap_or(value);
    if rounded == 0.0 {
        return "0".to_owned();
    }
    if (1e-7..1e21).contains(&rounded.abs()) {
        return rounded.to_string();
    }
    let shortest = format!("{rounded:e}");
    match shortest.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}E{sign}{digits:0>2}")
        }
        None => shortest,
    }
}

/// Compares as the reference does: values within a few units of the last place are equal. `None` for not-a-number.
pub(crate) fn compare_floats(a: f64, b: f64) -> Option<Ordering> {
    let tolerance = (a.abs() + b.abs() + 10.0) * f64::EPSILON;
    let difference = a - b;
    if a == b || (-tolerance < difference && difference < tolerance) {
        return Some(Ordering::Equal);
    }
    a.partial_cmp(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_those_of_fhir() {
        for text in [
            "0",
            "-0.0",
            "+5",
            "98.60",
            "1e3",
            "1.5E-10",
            "00012.50",
            " 7\t",
            "123456789012345678901234567890",
        ] {
            assert_eq!(decimal(text), Some(text.trim()), "{text}");
        }
        for text in [
            "", " ", "-", ".5", "5.", "1.e3", "1e", "1e+", "1,000", "36,6", "NaN", "Infinity", "0x10", "1 2",
            "--1", "1.2.3", "٣",
        ] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }

    #[test]
    fn computed_numbers_print_with_at_most_15_digits() {
        let table = [
            (0.1 + 0.2, "0.3"),
            (-0.0, "0"),
            (1e-7, "0.0000001"),
            (9.9e-8, "9.9E-08"),
            (1e21, "1E+21"),
            (999_999_999_999_999_900_000.0, "1E+21"),
            (999_999_999_999_999_000_000.0, "999999999999999000000"),
            (1e20, "100000000000000000000"),
            (f64::MAX, "1.7976931348623157E+308"),
            (-f64::MAX, "-1.7976931348623157E+308"),
            (5e-324, "5E-324"),
            (10f64.powf(2.5), "316.227766016838"),
            (1.0 / 3.0, "0.333333333333333"),
        ];
        for (value, text) in table {
            assert_eq!(computed_text(value), text);
        }
    }
}
