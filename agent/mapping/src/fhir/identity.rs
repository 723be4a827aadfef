//! The deterministic identity of an Observation: the same reading gives the same resource, whoever sends it
//! (`mapping.md` 4.2, rule D6).

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::period::IdSegment;

/// The system of the identifiers and service codings that the MedTech service and the IoMT FHIR Connector write.
pub const SERVICE_SYSTEM: &str = "https://azure.microsoft.com/en-us/services/iomt-fhir-connector/";

/// How precise the time within an identifier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum IdentityForm {
    /// 100 ns (rule D6).
    #[default]
    Agent,
    /// Whole seconds, for sites that continue data of the MedTech service.
    Medtech,
}

/// What identifies an Observation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// [`SERVICE_SYSTEM`].
    pub system: &'static str,
    /// `<patient>.<device>.<type>.<segment>` with the ids of the FHIR resources.
    pub value: String,
    /// The resource id: lower-case hexadecimal SHA-256 of `<system>_<value>`, 64 characters.
    pub id: String,
}

/// The identity of the Observation of a patient, device, measurement type and period or correlation id.
///
/// ```
/// use iomt_mapping::fhir::{IdSegment, IdentityForm, identity};
///
/// let made = identity("p1", "d1", "heartrate", &IdSegment::correlation("session-1"), IdentityForm::Agent);
/// assert_eq!(made.value, "p1.d1.heartrate.session-1");
/// assert_eq!(made.id.len(), 64);
/// ```
pub fn identity(
    patient_id: &str,
    device_id: &str,
    type_name: &str,
    segment: &IdSegment,
    form: IdentityForm,
) -> Identity {
    let value = format!("{patient_id}.{device_id}.{type_name}.{}", segment.text(form));
    let id = resource_id(SERVICE_SYSTEM, &value);
    Identity {
        system: SERVICE_SYSTEM,
        value,
        id,
    }
}

/// The resource id that belongs to an identifier; a missing system counts as empty.
///
/// ```
/// use iomt_mapping::fhir::resource_id;
///
/// assert_eq!(resource_id("", "patient1"), "cd3ee1fc63936b0083c968fe962a726d383ab6ee83af53d4f50507ccd646b68a");
/// ```
pub fn resource_id(system: &str, value: &str) -> String {
    hex(&Sha256::new()
        .chain_update(system)
        .chain_update("_")
        .chain_update(value)
        .finalize())
}

/// The first `count` lower-case hexadecimal digits of the SHA-256 of a text.
pub(crate) fn first_hex_digits(text: &str, count: usize) -> String {
    let mut digits = hex(&Sha256::digest(text));
    digits.truncate(count);
    digits
}

/// The first 8 bytes of the SHA-256 of a text.
pub(crate) fn short_hash(text: &str) -> [u8; 8] {
    let mut short = [0; 8];
    for (to, from) in short.iter_mut().zip(Sha256::digest(text)) {
        *to = from;
    }
    short
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
