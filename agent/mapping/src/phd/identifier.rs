//! Identifiers of the HL7 Personal Health Device guide (`GeneratingtheTimeStampPartIdentifier`, `PhdBaseObservation`).
//!
//! The time within an identifier is what the device reported, never the corrected one: a gateway with another clock would
//! make a duplicate of a reading that the device sends twice. The guide has two forms of it; its text (seconds since 2000)
//! is followed here, and [`TIME_FORM`] names the choice in what is written.

use crate::time::{TICKS_PER_SECOND, Timestamp};

/// System of the identifiers of readings.
pub const OBSERVATION_SYSTEM: &str = "http://hl7.org/fhir/uv/phd/StructureDefinition/PhdBaseObservation";

/// System of EUI-64 identifiers of devices (`SYSID`).
pub const EUI64_SYSTEM: &str = "urn:oid:1.2.840.10004.1.1.1.0.0.1.0.0.1.2680";

/// System of Bluetooth addresses (`BTMAC`).
pub const BLUETOOTH_SYSTEM: &str = "http://hl7.org/fhir/sid/eui-48/bluetooth";

/// Which form of the guide the time of an identifier has.
pub const TIME_FORM: &str = "device time in seconds since 2000-01-01 (form 1)";

/// 2000-01-01T00:00:00Z in ticks of 100 ns.
const EPOCH_2000: i64 = 946_684_800 * TICKS_PER_SECOND;

/// What a reading is identified by.
#[derive(Clone, Copy, Debug)]
pub struct ObservationIdentifier<'a> {
    /// Identifier of the device.
    pub device: &'a str,
    /// Identifier of the patient.
    pub patient: &'a str,
    /// Its system.
    pub patient_system: &'a str,
    /// IEEE 11073-10101 code of what was measured.
    pub type_code: &'a str,
    /// [`time_part`] or [`tick_part`].
    pub time: &'a str,
    /// How long the measurement took, in seconds.
    pub duration: Option<&'a str>,
    /// Codes of what tells it from others of its type and time.
    pub supplemental: &'a [&'a str],
}

impl ObservationIdentifier<'_> {
    /// `device-patient-system-type-time[-duration][-supplemental...]`.
    pub fn value(&self) -> String {
        let mut value = [
            self.device,
            self.patient,
            self.patient_system,
            self.type_code,
            self.time,
        ]
        .join("-");
        for part in self.duration.into_iter().chain(self.supplemental.iter().copied()) {
            value.push('-');
            value.push_str(part);
        }
        value
    }
}

/// Time part of a wall clock: seconds since 2000-01-01 on the clock of the device, with as many decimals as it resolves
/// (at most 7), and its offset to UTC in quarters of an hour where it tells one.
///
/// ```
/// use iomt_mapping::Timestamp;
/// use iomt_mapping::phd::identifier::time_part;
///
/// let shown = Timestamp::from_ticks(946_684_802 * 10_000_000).unwrap();
/// assert_eq!(time_part(shown, 3, None), "2.000");
/// assert_eq!(time_part(shown, 0, Some(-4)), "2-4");
/// ```
pub fn time_part(shown: Timestamp, decimals: u32, quarter_hours: Option<i64>) -> String {
    let ticks = shown.ticks() - EPOCH_2000;
    let seconds = decimal(ticks, 7, decimals);
    match quarter_hours {
        Some(quarters) => format!("{seconds}{quarters:+}"),
        None => seconds,
    }
}

/// Time part of a counter: its units as seconds, `decimals` of which are behind the point (3 for milliseconds).
///
/// ```
/// assert_eq!(iomt_mapping::phd::identifier::tick_part(12_345_678, 3), "12345.678");
/// ```
pub fn tick_part(count: u64, decimals: u32) -> String {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    decimal(count, decimals, decimals)
}

/// `units / 10^places` with `decimals` digits behind the point; further ones are cut off.
fn decimal(units: i64, places: u32, decimals: u32) -> String {
    let decimals = decimals.min(places);
    let cut = units.unsigned_abs() / 10_u64.pow(places - decimals);
    let (whole, fraction) = (cut / 10_u64.pow(decimals), cut % 10_u64.pow(decimals));
    let sign = if units < 0 && cut > 0 { "-" } else { "" };
    match decimals {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction:0>width$}", width = decimals as usize),
    }
}

/// System and value under which the guide knows a device whose identifier is an EUI-64 or a Bluetooth address, however it
/// is punctuated; none for names that a site made.
///
/// ```
/// use iomt_mapping::phd::identifier::{EUI64_SYSTEM, device_identifier};
///
/// let known = device_identifier("74e8fffeff051c00").unwrap();
/// assert_eq!(known, (EUI64_SYSTEM, "74-E8-FF-FE-FF-05-1C-00".to_owned()));
/// assert_eq!(device_identifier("oximeter-7"), None);
/// ```
pub fn device_identifier(id: &str) -> Option<(&'static str, String)> {
    let punctuation = |c: char| matches!(c, '-' | ':' | '.' | '_');
    if id.chars().any(|c| !c.is_ascii_hexdigit() && !punctuation(c)) {
        return None;
    }
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    let system = match digits.len() {
        16 => EUI64_SYSTEM,
        // Twelve digits alone may be anything; an address is punctuated.
        12 if digits.len() < id.len() => BLUETOOTH_SYSTEM,
        _ => return None,
    };
    let mut value = String::with_capacity(24);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && place.is_multiple_of(2) {
            value.push('-');
        }
        value.push(digit.to_ascii_uppercase());
    }
    Some((system, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_2000_and_finer_than_the_device_resolves() {
        let at = |ticks| Timestamp::from_ticks(EPOCH_2000 + ticks).unwrap();
        for (ticks, decimals, expected) in [
            (0, 0, "0"),
            (15_000_000, 0, "1"),
            (15_000_000, 3, "1.500"),
            (-15_000_000, 1, "-1.5"),
            (-1, 3, "0.000"),
            (1, 9, "0.0000001"),
        ] {
            assert_eq!(time_part(at(ticks), decimals, None), expected);
        }
    }

    #[test]
    fn only_what_can_be_nothing_else_is_taken_for_an_address() {
        let of = |id| device_identifier(id).map(|(_, value)| value);
        assert_eq!(of("00:1a:7d:da:71:13").as_deref(), Some("00-1A-7D-DA-71-13"));
        assert_eq!(
            of("74-E8-FF-FE-FF-05-1C-00").as_deref(),
            Some("74-E8-FF-FE-FF-05-1C-00")
        );
        for name in ["001a7dda7113", "", "band-1", "de:ad", "74e8fffeff051c0g"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
