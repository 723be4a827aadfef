//! FHIR destination mappings: measurements become Observations (`mapping.md` 3.3 and 4).
//!
//! A [`FhirMapping`] is loaded from its text and finds the [`FhirTemplate`] of a measurement type. The template splits
//! the readings of a group into [`ObservationGroup`]s, and each becomes a new Observation ([`FhirTemplate::create`]) or
//! is merged into the stored one ([`FhirTemplate::merge`]). Everything is a function of its arguments; what has to be
//! known of earlier readings comes as a [`SentMemory`].
//!
//! ```
//! use iomt_mapping::fhir::*;
//! use iomt_mapping::{Measurement, Property, Timestamp};
//!
//! let (mapping, _) = FhirMapping::load(r#"{ "templateType": "CollectionFhir", "template": [
//!   { "templateType": "CodeValueFhir", "template": {
//!       "typeName": "heartrate", "periodInterval": 60, "codes": [{ "code": "8867-4", "system": "http://loinc.org" }],
//!       "value": { "valueType": "SampledData", "valueName": "hr", "defaultPeriod": 600000, "unit": "/min" } } }] }"#);
//! let mapping = mapping.unwrap();
//! let reading = |minutes: i64, text: &str| Reading {
//!     measurement: Measurement {
//!         key: GroupKey { type_name: "heartrate".to_owned(), device_id: "bed-1".to_owned(), ..GroupKey::default() }.into(),
//!         occurrence_time: Timestamp::from_ticks(minutes * 600_000_000).unwrap(),
//!         properties: vec![Property { name: "hr".into(), value: text.into() }],
//!     },
//!     ingestion: minutes,
//! };
//! let template = mapping.template("heartrate").unwrap();
//! let groups = template.observation_groups(&[reading(0, "60"), reading(25, "62.5")]).unwrap();
//! let ids = ResourceIds { patient: "p".to_owned(), device: "d".to_owned(), encounter: None };
//! let built = template.create(&groups[0], &ids, "heartrate", &BuildOptions::default()).unwrap();
//! assert_eq!(built.resource["valueSampledData"]["data"], "60 E 62.5 E E E");
//!
//! let late = template.observation_groups(&[reading(21, "50")]).unwrap();
//! let merged = template
//!     .merge(&late[0], &built.resource, &ids, &BuildOptions::default(), Some(&built.memory))
//!     .unwrap();
//! assert_eq!(merged.merge, Merge::Unchanged);
//! ```

mod build;
mod datetime;
mod decimal;
mod group;
mod identity;
mod json;
mod judge;
mod load;
mod memory;
mod merge;
mod period;
mod sampled_data;
mod template;
#[cfg(test)]
mod tests;
mod trace;

pub use crate::measurement::GroupKey;
pub use build::{BuildOptions, BuiltObservation, ChangedPeriod, ResourceIds};
pub use datetime::parse_datetime;
pub use decimal::{compare_decimals, decimal};
pub use group::{
    BuildError, ObservationGroup, Point, Reading, ReadingAccount, ReadingError, ReadingOutcome, Series,
};
pub use identity::{Identity, IdentityForm, SERVICE_SYSTEM, identity, resource_id};
pub use memory::SentMemory;
pub use merge::{Merge, Merged};
pub use period::{IdSegment, Period};
pub use sampled_data::{
    MAXIMUM_SLOTS, Sample, SamplePeriod, Slotted, TooManySlots, fill_slots, stored_samples,
};
pub use template::{Coding, Component, Concept, FhirMapping, FhirTemplate, Unit, ValueKind, ValueTemplate};
pub use trace::{GroupTrace, UnusedValue, ValueTrace};
