//! LOINC codes of vital signs and bedside devices, the check digit of any LOINC code, and what a code is about.
//!
//! This material contains content from LOINC (<http://loinc.org>). LOINC is copyright Regenstrief Institute, Inc. and the
//! Logical Observation Identifiers Names and Codes (LOINC) Committee and is available at no cost under the license at
//! <http://loinc.org/license>. LOINC is a registered United States trademark of Regenstrief Institute, Inc.
//!
//! Which codes: those of the FHIR R4 vital signs and US Core 9 profiles and of the C-CDA vital sign value set; of the
//! intensive care module of the German Medical Informatics Initiative (2025.0.4); of the HL7 guides SANER (ventilators),
//! Personal Health Devices and Continuous Glucose Monitoring; and those that wearables and point-of-care meters use.

use super::loinc_table::TABLE;

/// The system of LOINC codes.
pub const LOINC_SYSTEM: &str = "http://loinc.org";

/// A code of the shipped table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoincCode {
    /// The code with its check digit.
    pub code: &'static str,
    /// Its name.
    pub display: &'static str,
}

/// All codes of the shipped table.
pub fn loinc_codes() -> impl Iterator<Item = LoincCode> {
    TABLE.iter().map(|(code, display)| LoincCode { code, display })
}

/// The code of the shipped table, if it has it.
///
/// ```
/// use iomt_mapping::check::loinc;
///
/// assert_eq!(loinc("8867-4").unwrap().display, "Heart rate");
/// assert_eq!(loinc("0000-0"), None);
/// ```
pub fn loinc(code: &str) -> Option<LoincCode> {
    loinc_codes().find(|known| known.code == code)
}

/// Whether a code is digits, a hyphen and the right check digit (Mod 10).
///
/// ```
/// use iomt_mapping::check::has_loinc_check_digit;
///
/// assert!(has_loinc_check_digit("8867-4"));
/// assert!(!has_loinc_check_digit("8867-3"));
/// ```
pub fn has_loinc_check_digit(code: &str) -> bool {
    let Some((digits, check)) = code.split_once('-') else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(digits) || !is_number(check) || check.len() != 1 || digits.len() > 7 {
        return false;
    }
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(at, digit)| {
            let digit = u32::from(digit - b'0');
            match (at % 2 == 0, digit) {
                (true, 5..) => digit * 2 - 9,
                (true, _) => digit * 2,
                (false, _) => digit,
            }
        })
        .sum();
    check.bytes().next().map(|b| u32::from(b - b'0')) == Some((10 - sum % 10) % 10)
}

/// What a name or code is about, as far as a confusion of codes can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Diastolic,
    Systolic,
    HeartRate,
    RespiratoryRate,
    OxygenSaturation,
    Temperature,
    Weight,
    Height,
    Glucose,
    Steps,
}

impl Topic {
    /// The code that a vital signs profile or guide asks for.
    pub(crate) fn usual_code(self) -> &'static str {
        match self {
            Topic::Diastolic => "8462-4",
            Topic::Systolic => "8480-6",
            Topic::HeartRate => "8867-4",
            Topic::RespiratoryRate => "9279-1",
            Topic::OxygenSaturation => "59408-5",
            Topic::Temperature => "8310-5",
            Topic::Weight => "29463-7",
            Topic::Height => "8302-2",
            Topic::Glucose => "2339-0",
            Topic::Steps => "55423-8",
        }
    }

    /// The topic of a display, value name or type name; `None` when it names none or several.
    pub(crate) fn of(name: &str) -> Option<Topic> {
        // heartRate, heart_rate and HEART-RATE are "heart rate".
        let mut words = String::new();
        let mut after_lower = false;
        for c in name.chars() {
            if c.is_uppercase() && after_lower {
                words.push(' ');
            }
            after_lower = c.is_lowercase();
            words.extend(if c.is_alphanumeric() {
                c.to_lowercase().next()
            } else {
                Some(' ')
            });
        }
        let padded = format!(" {} ", words.split_whitespace().collect::<Vec<_>>().join(" "));
        let has = |candidates: &[&str]| candidates.iter().any(|word| padded.contains(word));
        let table: [(Topic, &[&str]); 10] = [
            (Topic::Diastolic, &["diastolic"]),
            (Topic::Systolic, &["systolic"]),
            (
                Topic::HeartRate,
                &[
                    " heart rate",
                    " heartrate",
                    " pulse rate",
                    " pulserate",
                    " hr ",
                    " pulse ",
                ],
            ),
            (
                Topic::RespiratoryRate,
                &[
                    " respiratory rate",
                    " respiratoryrate",
                    " respiration rate",
                    " resp rate",
                    " breath rate",
                ],
            ),
            (
                Topic::OxygenSaturation,
                &[
                    " spo2 ",
                    " sp o2 ",
                    " sao2 ",
                    " oxygen saturation",
                    " oxygensaturation",
                ],
            ),
            (Topic::Temperature, &[" temperature", " temp "]),
            (Topic::Weight, &[" weight ", " bodyweight "]),
            (Topic::Height, &[" height ", " bodyheight "]),
            (Topic::Glucose, &[" glucose"]),
            (Topic::Steps, &[" steps ", " step count", " stepcount"]),
        ];
        let not_meant = has(&[
            "variability",
            " panel",
            " index",
            "ventilator",
            "percentile",
            " and ",
        ]);
        let mut found = table.iter().filter(|(_, words)| has(words));
        match (found.next(), found.next()) {
            (Some((topic, _)), None) if !not_meant => Some(*topic),
            // "Oxygen saturation ... by Pulse oximetry" is about the saturation.
            (Some((Topic::HeartRate, _)), Some((Topic::OxygenSaturation, _))) if !not_meant => {
                Some(Topic::OxygenSaturation)
            }
            _ => None,
        }
    }
}
