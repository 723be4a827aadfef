//! Numbers of personal health devices (IEEE 11073-20601 FLOAT and SFLOAT) as decimal text: the exponent is precision, so
//! `2.0` and `2.00` stay apart, as the HL7 Personal Health Device guide asks. Beside them what the guide says about the
//! clocks of devices ([`time`]) and about identifiers ([`identifier`]).

pub mod identifier;
pub mod time;

/// A device's number that is none, with the FHIR data-absent-reason code that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotANumber {
    /// NaN.
    NotANumber,
    /// +INFINITY.
    PositiveInfinity,
    /// -INFINITY.
    NegativeInfinity,
    /// "Not at this resolution", and the reserved value.
    Error,
}

impl NotANumber {
    /// Code of the system data-absent-reason.
    pub fn data_absent_reason(self) -> &'static str {
        match self {
            NotANumber::NotANumber => "not-a-number",
            NotANumber::PositiveInfinity => "positive-infinity",
            NotANumber::NegativeInfinity => "negative-infinity",
            NotANumber::Error => "error",
        }
    }
}

/// The decimal of a 32-bit FLOAT: 8 bits exponent, 24 bits mantissa, both signed.
///
/// ```
/// use iomt_mapping::phd::{NotANumber, float32};
///
/// assert_eq!(float32(0xFE00_00C8), Ok("2.00".to_owned()));
/// assert_eq!(float32(0x007F_FFFF), Err(NotANumber::NotANumber));
/// ```
pub fn float32(bits: u32) -> Result<String, NotANumber> {
    decode(bits >> 24, 8, bits & 0x00FF_FFFF, 24)
}

/// The decimal of a 16-bit SFLOAT: 4 bits exponent, 12 bits mantissa, both signed.
///
/// ```
/// assert_eq!(iomt_mapping::phd::sfloat16(0xF014), Ok("2.0".to_owned()));
/// ```
pub fn sfloat16(bits: u16) -> Result<String, NotANumber> {
    let bits = u32::from(bits);
    decode(bits >> 12, 4, bits & 0x0FFF, 12)
}

fn decode(
    exponent: u32,
    exponent_bits: u32,
    mantissa: u32,
    mantissa_bits: u32,
) -> Result<String, NotANumber> {
    let middle = 1_u32 << (mantissa_bits - 1);
    // The special values stand around the sign change of the mantissa, with exponent 0.
    if exponent == 0 {
        let special = match mantissa {
            m if m == middle - 1 => Some(NotANumber::NotANumber),
            m if m == middle - 2 => Some(NotANumber::PositiveInfinity),
            m if m == middle || m == middle + 1 => Some(NotANumber::Error),
            m if m == middle + 2 => Some(NotANumber::NegativeInfinity),
            _ => None,
        };
        if let Some(special) = special {
            return Err(special);
        }
    }
    let signed = |value: u32, bits: u32| {
        let value = i64::from(value);
        if value >= 1 << (bits - 1) {
            value - (1 << bits)
        } else {
            value
        }
    };
    Ok(spell(
        signed(mantissa, mantissa_bits),
        signed(exponent, exponent_bits),
    ))
}

/// `mantissa · 10^exponent` with as many digits after the point as the exponent says.
fn spell(mantissa: i64, exponent: i64) -> String {
    let sign = if mantissa < 0 { "-" } else { "" };
    let digits = mantissa.unsigned_abs().to_string();
    let places = usize::try_from(exponent.unsigned_abs()).unwrap_or(0);
    if exponent >= 0 {
        let zeros = if mantissa == 0 { 0 } else { places };
        return format!("{sign}{digits}{}", "0".repeat(zeros));
    }
    let padded = format!("{digits:0>width$}", width = places + 1);
    let (whole, fraction) = padded.split_at(padded.len() - places);
    format!("{sign}{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_the_device_measured() {
        for (bits, text) in [
            (0x0000_0002, "2"),
            (0xFF00_0014, "2.0"),
            (0x0100_0002, "20"),
            (0xFDFF_FFFF, "-0.001"),
            (0xFF00_0000, "0.0"),
            (0x0500_0000, "0"),
            (0x00FF_FB2E, "-1234"),
        ] {
            assert_eq!(float32(bits).as_deref(), Ok(text), "{bits:08X}");
        }
        for (bits, text) in [
            (0x0B2E, "-1234"),
            (0xE0C8, "2.00"),
            (0xF16D, "36.5"),
            (0x2002, "200"),
        ] {
            assert_eq!(sfloat16(bits).as_deref(), Ok(text), "{bits:04X}");
        }
    }

    #[test]
    fn special_values_say_why_there_is_no_number() {
        for (bits, reason) in [
            (0x07FF, "not-a-number"),
            (0x07FE, "positive-infinity"),
            (0x0800, "error"),
            (0x0801, "error"),
            (0x0802, "negative-infinity"),
        ] {
            assert_eq!(
                sfloat16(bits).map_err(NotANumber::data_absent_reason),
                Err(reason)
            );
        }
        assert_eq!(float32(0x0080_0002), Err(NotANumber::NegativeInfinity));
        // With another exponent the same mantissa is a number.
        assert_eq!(sfloat16(0x17FF).as_deref(), Ok("20470"));
    }
}
