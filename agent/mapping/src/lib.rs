//! Device and FHIR destination mappings of the MedTech service and of the IoMT FHIR Connector, as a pure library:
//! no clock, no file, no network, no randomness. The same mapping and message give the same result.

pub mod check;
pub mod document;
pub mod error;
pub mod fhir;
pub mod finding;
pub mod measurement;
pub mod pack_options;
pub mod time;

pub use document::Document;
pub use error::ErrorKind;
pub use finding::{Finding, Place, Severity, has_errors};
pub use measurement::{Measurement, NormalizeError, Property};
pub use time::Timestamp;
