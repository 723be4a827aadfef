//! What one template match makes of a message, and how such matches fail.

use crate::error::ErrorKind;
use crate::time::Timestamp;
use smol_str::SmolStr;
use std::ops::Deref;
use std::sync::Arc;

/// One named value of a measurement; the value is text, spelled as in the message (rule D7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// The `valueName` of the device mapping.
    pub name: SmolStr,
    /// The text of the value.
    pub value: SmolStr,
}

/// What makes measurements one group: the tuple of rule D14, as the message names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// Device identifier.
    pub device_id: String,
    /// `typeName` of the device template, letter case counts.
    pub type_name: String,
    /// Patient identifier, if the message names one.
    pub patient_id: Option<String>,
    /// Encounter identifier, if the message names one.
    pub encounter_id: Option<String>,
    /// Correlation identifier, if the template asks for one.
    pub correlation_id: Option<String>,
}

impl GroupKey {
    /// The key of the group that a measurement belongs to.
    pub fn of(measurement: &Measurement) -> GroupKey {
        GroupKey::clone(&measurement.key)
    }
}

/// The result of one template match (`Measurement` of the IoMT FHIR Connector).
///
/// It reads as its key too: `measurement.device_id`. The samples of a waveform share their key, so that a block of hundreds is
/// small in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Whose it is, and of what type.
    pub key: Arc<GroupKey>,
    /// When the reading was taken.
    pub occurrence_time: Timestamp,
    /// Named values in template order.
    pub properties: Vec<Property>,
}

impl Deref for Measurement {
    type Target = GroupKey;

    fn deref(&self) -> &GroupKey {
        &self.key
    }
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
