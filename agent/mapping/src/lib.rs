//! Device and FHIR destination mappings of the MedTech service and of the IoMT FHIR Connector, as a pure library:
//! no clock, no file, no network, no randomness. The same mapping and message give the same result.

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod check;
pub mod device;
pub mod document;
pub mod error;
pub mod expression;
pub mod fhir;
pub mod finding;
mod index;
pub mod jmespath;
pub mod jsonpath;
pub mod mapping_set;
pub mod measurement;
pub mod message;
pub mod number;
pub mod pack_options;
pub mod phd;
#[cfg(feature = "schema")]
pub mod schema;
pub mod time;
pub mod timestamp;

pub use device::{DeviceMapping, DeviceTemplate, Normalized, TemplateMatch, Trace};
pub use document::Document;
pub use error::ErrorKind;
pub use finding::{Finding, Place, Severity, has_errors};
pub use mapping_set::{MappingSet, SetMatch, SetNormalized};
pub use measurement::{GroupKey, Measurement, NormalizeError, Property};
pub use message::{Envelope, ParsedMessage, PropertyValue};
pub use smol_str::SmolStr;
pub use time::Timestamp;
