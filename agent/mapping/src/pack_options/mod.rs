//! The pack's third file (`NAME.agent.json`): what a MedTech mapping has no place for, by `typeName`, so that the two
//! MedTech files stay as Azure takes them.
//!
//! ```json
//! { "clockCorrection": -2.5,
//!   "types": { "heartrate": {
//!     "priority": "spot",
//!     "profile": ["http://hl7.org/fhir/StructureDefinition/heartrate"],
//!     "effective": "dateTime",
//!     "mdcCode": "147842",
//!     "bodySite": { "text": "left index finger" },
//!     "method": { "codes": [{ "code": "19", "system": "http://example.org/methods" }] },
//!     "performer": ["Organization/ward-3"],
//!     "note": "Read from the bedside monitor.",
//!     "values": { "hr": {
//!       "system": "http://unitsofmeasure.org", "code": "/min",
//!       "referenceRange": [{ "low": 60, "high": 100, "text": "adults at rest" }],
//!       "interpretation": [{ "below": 40, "code": "LL" }, { "above": 130, "code": "HH" }],
//!       "dataAbsentReason": { "---": "error", "127": "not-performed" } } } } } }
//! ```
//!
//! Type names compare without regard to letter case, value names exactly, as in a FHIR mapping.

mod load;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use crate::fhir::{Concept, compare_decimals};
use crate::finding::Place;
use crate::mapping_set::same_type;
use crate::time::{TICKS_PER_SECOND, Timestamp};

/// A loaded third file.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// Ticks of 100 ns to add to the time of every reading of the pack; a type's own correction replaces it.
    pub clock_correction: Option<i64>,
    /// Options by type name in lower case, in the order of the file.
    types: Vec<(String, TypeOptions)>,
}

impl PackOptions {
    /// The options of a measurement type, without regard to letter case.
    pub fn of_type(&self, type_name: &str) -> Option<&TypeOptions> {
        self.types
            .iter()
            .find(|(name, _)| same_type(name, type_name))
            .map(|(_, options)| options)
    }

    /// All types that the file has options for: the name in lower case and what it says.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TypeOptions)> {
        self.types.iter().map(|(name, options)| (name.as_str(), options))
    }

    /// The time of a reading once the constant error of its device's clock is taken out. The journal keeps the reading
    /// as it came; this is applied when it is normalized, before it is grouped.
    pub fn corrected(&self, type_name: &str, time: Timestamp) -> Timestamp {
        time.plus_ticks(self.correction(type_name)).unwrap_or(time)
    }

    /// What [`PackOptions::corrected`] adds to the times of a type, in ticks.
    pub fn correction(&self, type_name: &str) -> i64 {
        let of_type = self
            .of_type(type_name)
            .and_then(|options| options.clock_correction);
        of_type.or(self.clock_correction).unwrap_or(0)
    }

    /// Lane of a measurement type; [`Priority::Periodic`] where nothing is said.
    pub fn priority(&self, type_name: &str) -> Priority {
        self.of_type(type_name)
            .and_then(|options| options.priority)
            .unwrap_or_default()
    }
}

/// Priority class of a measurement type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// First to leave, last to be given up.
    Alarm,
    /// Single readings of care staff.
    Spot,
    /// Regular readings.
    #[default]
    Periodic,
    /// Dense series; first to be given up when space runs out.
    Waveform,
}

impl Priority {
    /// All lanes, most urgent first.
    pub const ALL: [Priority; 4] = [
        Priority::Alarm,
        Priority::Spot,
        Priority::Periodic,
        Priority::Waveform,
    ];

    /// The name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Alarm => "alarm",
            Priority::Spot => "spot",
            Priority::Periodic => "periodic",
            Priority::Waveform => "waveform",
        }
    }
}

/// What the file says about one measurement type.
#[derive(Clone, Debug, Default)]
pub struct TypeOptions {
    /// Where the type stands in the file.
    pub place: Option<Place>,
    /// `priority`
    pub priority: Option<Priority>,
    /// `profile`, for `Observation.meta.profile`.
    pub profile: Vec<String>,
    /// `effective: "dateTime"`: an instant is written as `effectiveDateTime`; windows stay a Period.
    pub effective_date_time: bool,
    /// `mdcCode`: IEEE 11073-10101 code beside the template's codes.
    pub mdc_code: Option<String>,
    /// `bodySite`
    pub body_site: Option<Concept>,
    /// `method`
    pub method: Option<Concept>,
    /// `performer`: FHIR references.
    pub performer: Vec<String>,
    /// `note`
    pub note: Vec<String>,
    /// `clockCorrection` in ticks of 100 ns.
    pub clock_correction: Option<i64>,
    /// `values`, by value name.
    pub values: Vec<(String, ValueOptions)>,
}

impl TypeOptions {
    /// The options of a value, by its exact name.
    pub fn value(&self, name: &str) -> Option<&ValueOptions> {
        self.values
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, options)| options)
    }
}

/// What the file says about one value.
#[derive(Clone, Debug, Default)]
pub struct ValueOptions {
    /// Where the value stands in the file.
    pub place: Option<Place>,
    /// `system` of the unit on the origin of SampledData.
    pub system: Option<String>,
    /// `code` of the unit on the origin of SampledData.
    pub code: Option<String>,
    /// `mdcCode` of the component.
    pub mdc_code: Option<String>,
    /// `referenceRange`
    pub reference_range: Vec<ReferenceRange>,
    /// `interpretation`: the first rule that holds gives the code.
    pub interpretation: Vec<Interpretation>,
    /// `dataAbsentReason`: texts that a device sends when it has no value, and the FHIR code that says why.
    pub data_absent_reason: Vec<(String, String)>,
}

impl ValueOptions {
    /// The data-absent-reason code, when `text` says that there is no value.
    pub fn absent_reason(&self, text: &str) -> Option<&str> {
        let same = |missing: &str| {
            missing == text.trim() || compare_decimals(missing, text) == Some(Ordering::Equal)
        };
        self.data_absent_reason
            .iter()
            .find(|(missing, _)| same(missing))
            .map(|(_, reason)| reason.as_str())
    }

    /// The interpretation of a decimal, if a rule holds.
    pub fn interpret(&self, number: &str) -> Option<&Interpretation> {
        self.interpretation.iter().find(|rule| rule.holds(number))
    }
}

/// `referenceRange` entry; limits are decimals as spelled in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceRange {
    /// `low`
    pub low: Option<String>,
    /// `high`
    pub high: Option<String>,
    /// `text`
    pub text: Option<String>,
}

/// `interpretation` rule; limits are decimals as spelled in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interpretation {
    /// Holds for values below this.
    pub below: Option<String>,
    /// Holds for values above this.
    pub above: Option<String>,
    /// The code, of the system v3-ObservationInterpretation unless `system` says otherwise.
    pub code: String,
    /// System of the code.
    pub system: Option<String>,
    /// Its display.
    pub display: Option<String>,
}

impl Interpretation {
    fn holds(&self, number: &str) -> bool {
        let is = |limit: &Option<String>, wanted| {
            limit
                .as_deref()
                .is_none_or(|limit| compare_decimals(number, limit) == Some(wanted))
        };
        is(&self.below, Ordering::Less) && is(&self.above, Ordering::Greater)
    }
}

/// Ticks of 100 ns of a number of seconds, as decimal text; `None` beyond 10 years.
fn ticks_of_seconds(text: &str) -> Option<i64> {
    let seconds: f64 = text.parse().ok()?;
    let ticks = seconds * TICKS_PER_SECOND as f64;
    (ticks.abs() <= 315_360_000.0 * TICKS_PER_SECOND as f64).then_some(ticks.round() as i64)
}
