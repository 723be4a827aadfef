//! What keeps a reading from its Device, Patient or Encounter; the first word of each text is the resource type.

use super::Kind;
use crate::associations::Wait;
use crate::telemetry::errors::ErrorRecord;

/// Nothing has the identifier, or the Device has no usable link.
pub(super) fn missing(kind: Kind) -> ErrorRecord {
    let (older, text) = match kind {
        Kind::Device => (
            "DeviceNotFoundException",
            "Device: none has the identifier that the message names; register it on the server, or check \
             device_identifier_system and the deviceIdExpression",
        ),
        Kind::Patient => (
            "PatientNotFoundException",
            "Patient: the Device has no link of the form Patient/<id>; link it on the server",
        ),
        Kind::Encounter => (
            "EncounterNotFoundException",
            "Encounter: none has the identifier that the message names; register it on the server, or check the \
             encounterIdExpression",
        ),
    };
    let mut error = ErrorRecord::new("FhirResourceNotFoundException", text);
    error.older_name = Some(older.to_owned());
    error
}

/// Several have the identifier.
pub(super) fn many(kind: Kind) -> ErrorRecord {
    ErrorRecord::new(
        "MultipleResourceFoundException",
        format!(
            "{}: several on the server have the same identifier; make identifiers unique",
            kind.name()
        ),
    )
}

/// The message does not name what this resolution needs.
pub(super) fn undefined(kind: Kind) -> ErrorRecord {
    let text = match kind {
        Kind::Encounter => {
            "Encounter: the message names none, and this destination asks for one (lookup-with-encounter); send it and set \
             encounterIdExpression"
        }
        Kind::Device | Kind::Patient => {
            "Patient: the message names none and the Device has no link; send it and set patientIdExpression, or link the \
             Device on the server"
        }
    };
    let mut error = ErrorRecord::new("ResourceIdentityNotDefinedException", text);
    // A link on the server, or an association, repairs it without the device.
    error.retry = true;
    error
}

/// It was there and was deleted.
pub(super) fn gone(kind: Kind) -> ErrorRecord {
    let mut error = missing(kind);
    error.text = format!(
        "{}: it was deleted on the server on purpose and is not created again; restore it there",
        kind.name()
    );
    error
}

/// The operator entered somebody whom the server does not have.
pub(super) fn entered(kind: Kind) -> ErrorRecord {
    let mut error = missing(kind);
    error.text = format!(
        "{}: the operator entered an identifier for the device that nobody on the server has; correct it with `bedside-agent \
         association set`",
        kind.name()
    );
    error
}

/// Whose the device was when the reading was taken cannot be said.
pub(in crate::forward) fn nobody_then(wait: Wait) -> ErrorRecord {
    let mut error = missing(Kind::Patient);
    let text = match wait {
        Wait::Unlinked => return error,
        Wait::Gap => {
            "Patient: the Device was linked to nobody when the reading was taken, and a later link does not reach back; say \
             whose it was with `bedside-agent association set`"
        }
        Wait::Doubt => {
            "Patient: associations were lost with a damaged store, and one of them may say whose the Device was; enter them \
             again with `bedside-agent association set`, then `bedside-agent association complete`"
        }
        Wait::Uncertain => {
            "Patient: the link of the Device changed at an unknown moment around the reading, and the server does not tell \
             its versions; say whose it was with `bedside-agent association set`, or switch on versions of Device on the \
             server"
        }
        Wait::Conflict => {
            error = ErrorRecord::new("PatientDeviceMismatchException", String::new());
            "Patient: the server shows another link than the operator entered, and a newer one; confirm one of the two with \
             `bedside-agent association set`"
        }
        Wait::Contradiction => {
            error = ErrorRecord::new("PatientDeviceMismatchException", String::new());
            "Patient: several DeviceUseStatements of the server name different patients for the time of the reading; \
             correct them there"
        }
    };
    error.text = text.to_owned();
    error
}
