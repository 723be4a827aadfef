//! What one template match makes of a message, and how such matches fail.

use crate::error::ErrorKind;
use crate::time::Timestamp;

/// One named value of a measurement; the value is text, spelled as in the message (rule D7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// The `valueName` of the device mapping.
    pub name: String,
    /// The text of the value.
    pub value: String,
}

/// The result of one template match (`Measurement` of the IoMT FHIR Connector).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// `typeName` of the device template.
    pub type_name: String,
    /// When the reading was taken.
    pub occurrence_time: Timestamp,
    /// Device identifier, as the message names it.
    pub device_id: String,
    /// Patient identifier, if the message names one.
    pub patient_id: Option<String>,
    /// Encounter identifier, if the message names one.
    pub encounter_id: Option<String>,
    /// Correlation identifier, if the template asks for one.
    pub correlation_id: Option<String>,
    /// Named values in template order.
    pub properties: Vec<Property>,
}

/// Why a message, a template or one match of it gave no measurement (rule D2: the others go on).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalizeError {
    /// The name that the reference uses for this error.
    pub kind: ErrorKind,
    /// Index of the template in its mapping, from 0; `None` when the message failed as a whole.
    pub template: Option<usize>,
    /// Index of the match of that template, from 0; `None` when the type match itself failed.
    pub match_index: Option<usize>,
    /// Member of the mapping (`timestampExpression`) or the `valueName`.
    pub field: Option<String>,
    /// What went wrong, without any value of the message (safe to log).
    pub text: String,
}
