//! Error records. Stages produce them, the store keeps them with dead letters and waiting readings, and the log, the
//! status page and the command line show them. Names, types, severities and operations are those of the MedTech service
//! and the IoMT FHIR Connector (their troubleshooting pages apply); the text never holds patient data.

use serde::{Deserialize, Serialize};

/// Stage that found the error (`Operation` of the MedTech service).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// Connecting, configuration.
    Setup,
    /// Message to measurements.
    Normalization,
    /// Measurements to groups.
    Grouping,
    /// Groups to Observations, identity, and writing them.
    FHIRConversion,
    /// Sending to Event Hubs (`MeasurementToEventHub`).
    MeasurementToEventHub,
    /// None of them.
    Unknown,
}

/// How much an error stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorSeverity {
    /// Nothing is processed until it is repaired.
    Critical,
    /// This message or group fails, the others go on.
    Warning,
    /// Nothing fails.
    Informational,
}

/// Kind of error (`ErrorType` of the MedTech service).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorType {
    /// Token, password, certificate.
    AuthenticationError,
    /// The device mapping.
    DeviceTemplateError,
    /// The message.
    DeviceMessageError,
    /// Event Hubs.
    EventHubError,
    /// The FHIR mapping.
    FHIRTemplateError,
    /// Building the Observation.
    FHIRConversionError,
    /// A resource on the server.
    FHIRResourceError,
    /// The FHIR server.
    FHIRServiceError,
    /// Anything else.
    GeneralError,
}

/// Who has to repair it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Repair {
    /// The device or its sender.
    Device,
    /// The mapping pack.
    Mapping,
    /// Configuration, network or staff of the site.
    Site,
    /// The server at the other end.
    Server,
    /// This program.
    Agent,
}

/// One error with everything that an operator needs; safe to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// Name as in the MedTech service (`IncompatibleDataException`).
    pub name: String,
    /// The IoT connector's older name where it differs (`DeviceNotFoundException`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub older_name: Option<String>,
    /// Stage in which it happened, in the words of the MedTech service.
    pub operation: Operation,
    /// How bad it is, in its words.
    pub severity: ErrorSeverity,
    /// Kind of error, in its words.
    pub error_type: ErrorType,
    /// Who repairs it.
    pub repair: Repair,
    /// Whether trying again can help.
    pub retry: bool,
    /// What went wrong and what to do; no patient data.
    pub text: String,
    /// Pack, template and line of the mapping, where one is concerned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mapping: Option<MappingPlace>,
}

/// A place in a mapping pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingPlace {
    /// Name of the pack.
    pub pack: String,
    /// Index of the template, from 0.
    pub template: usize,
    /// Member or value name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// Line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<usize>,
}

/// Everything that is fixed for an error name: one row per name of `spec` section 6 of the service's pages.
struct Known(
    &'static str,
    Option<&'static str>,
    Operation,
    ErrorSeverity,
    ErrorType,
    Repair,
    bool,
);

use ErrorSeverity::{Critical, Warning};
use ErrorType as T;
use Operation as O;
use Repair as R;

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known("InvalidDataFormatException", Some("NotSupportedException"), O::Normalization, Warning, T::DeviceMessageError, R::Device, false),
    Known("IncompatibleDataException", None, O::Normalization, Warning, T::DeviceMessageError, R::Device, false),
    Known("AliasNotDefinedException", None, O::Normalization, Warning, T::DeviceMessageError, R::Device, false),
    Known("NormalizationDataMappingException", None, O::Normalization, Critical, T::DeviceTemplateError, R::Mapping, false),
    Known("TemplateExpressionException", None, O::Normalization, Critical, T::DeviceTemplateError, R::Mapping, false),
    Known("InvalidTemplateException", None, O::Normalization, Critical, T::DeviceTemplateError, R::Mapping, false),
    Known("CorrelationIdNotDefinedException", None, O::Grouping, Critical, T::DeviceMessageError, R::Device, false),
    Known("TemplateNotFoundException", None, O::FHIRConversion, Warning, T::FHIRTemplateError, R::Mapping, false),
    Known("FhirDataMappingException", None, O::FHIRConversion, Critical, T::FHIRConversionError, R::Mapping, false),
    Known("InvalidQuantityFhirValueException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Device, false),
    Known("NotSupportedException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Mapping, false),
    Known("PatientDeviceMismatchException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Site, true),
    Known("DeviceNotFoundException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Site, true),
    Known("PatientNotFoundException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Site, true),
    Known("EncounterNotFoundException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Site, true),
    Known("FhirResourceNotFoundException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Site, true),
    Known("MultipleResourceFoundException", None, O::FHIRConversion, Warning, T::FHIRResourceError, R::Site, true),
    Known("ResourceIdentityNotDefinedException", Some("PatientIdentityNotDefinedException"), O::FHIRConversion, Warning, T::FHIRResourceError, R::Device, false),
    Known("ManagedIdentityCredentialNotFound", None, O::Setup, Critical, T::AuthenticationError, R::Site, true),
    Known("UnauthorizedAccessFhirServiceException", None, O::FHIRConversion, Critical, T::FHIRServiceError, R::Site, true),
    Known("InvalidFhirServiceException", None, O::FHIRConversion, Critical, T::FHIRServiceError, R::Site, true),
    Known("FhirServiceException", None, O::FHIRConversion, Critical, T::FHIRServiceError, R::Server, true),
    Known("InvalidEventHubException", None, O::Setup, Critical, T::EventHubError, R::Site, true),
    Known("UnauthorizedAccessEventHubException", None, O::Setup, Critical, T::EventHubError, R::Site, true),
    Known("EventHubProducerClientException", None, O::MeasurementToEventHub, Critical, T::EventHubError, R::Server, true),
    Known("EventTooLargeException", None, O::MeasurementToEventHub, Warning, T::EventHubError, R::Device, false),
    Known("ClockNotSynchronized", None, O::Normalization, Warning, T::GeneralError, R::Site, true),
    Known("ClockNeverSet", None, O::Normalization, Warning, T::GeneralError, R::Site, true),
    Known("WaitingForClock", None, O::Setup, Warning, T::GeneralError, R::Site, true),
    Known("DeviceClockNotMeasured", None, O::Normalization, Warning, T::DeviceMessageError, R::Device, true),
    Known("DeviceClockUncertain", None, O::Normalization, Warning, T::DeviceMessageError, R::Device, true),
    Known("DeviceClockWasSet", None, O::Normalization, Warning, T::DeviceMessageError, R::Device, false),
    Known("MessageTooLargeException", None, O::Normalization, Warning, T::DeviceMessageError, R::Device, false),
    Known("MessageKilledTheProcess", None, O::Normalization, Warning, T::GeneralError, R::Agent, false),
    Known("UnhandledException", None, O::Unknown, Warning, T::GeneralError, R::Agent, false),
];

impl ErrorRecord {
    /// Whether two readings wait for the same: the same name and the same beginning of the text, which says what for.
    pub fn is_same_cause(&self, other: &ErrorRecord) -> bool {
        const BEGINNING: usize = 40;
        self.name == other.name
            && self
                .text
                .chars()
                .take(BEGINNING)
                .eq(other.text.chars().take(BEGINNING))
    }

    /// A record of the error called `name` with its fixed attributes; `text` says what went wrong and what to do.
    ///
    /// A name that the tables do not know (arithmetic errors of JMESPath functions, for instance) is recorded as
    /// `NormalizationDataMappingException` is, under its own name.
    pub fn new(name: &str, text: impl Into<String>) -> ErrorRecord {
        let general = Known(
            "",
            None,
            Operation::Normalization,
            Warning,
            ErrorType::DeviceTemplateError,
            Repair::Mapping,
            false,
        );
        let Known(_, older, operation, severity, error_type, repair, retry) =
            KNOWN.iter().find(|k| k.0 == name).unwrap_or(&general);
        ErrorRecord {
            name: name.to_owned(),
            older_name: older.map(str::to_owned),
            operation: *operation,
            severity: *severity,
            error_type: *error_type,
            repair: *repair,
            retry: *retry,
            text: text.into(),
            mapping: None,
        }
    }

    /// The same record, pointing at a place in a mapping.
    #[must_use]
    pub fn at(mut self, mapping: MappingPlace) -> ErrorRecord {
        self.mapping = Some(mapping);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_log_type_of_the_service_has_a_row() {
        for name in [
            "CorrelationIdNotDefinedException",
            "FhirDataMappingException",
            "FhirResourceNotFoundException",
            "IncompatibleDataException",
            "InvalidDataFormatException",
            "InvalidEventHubException",
            "InvalidFhirServiceException",
            "InvalidQuantityFhirValueException",
            "InvalidTemplateException",
            "ManagedIdentityCredentialNotFound",
            "MultipleResourceFoundException",
            "NormalizationDataMappingException",
            "PatientDeviceMismatchException",
            "ResourceIdentityNotDefinedException",
            "TemplateExpressionException",
            "TemplateNotFoundException",
            "UnauthorizedAccessEventHubException",
            "UnauthorizedAccessFhirServiceException",
        ] {
            assert!(KNOWN.iter().any(|k| k.0 == name), "{name}");
        }
    }
}
