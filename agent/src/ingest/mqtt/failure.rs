//! What a failed connection means for the operator: one text each, with what to do.

use super::link::Failure;
use crate::config::MqttProtocol;
use crate::ingest::setup_error;
use crate::telemetry::errors::{ErrorRecord, ErrorType, Repair};
use rustls::{AlertDescription, CertificateError};

/// What the texts name.
pub(super) struct Broker {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) username: Option<String>,
    pub(super) client_id: String,
    pub(super) protocol: MqttProtocol,
    pub(super) max_packet: usize,
}

impl Broker {
    /// The record of a failure.
    pub(super) fn record(&self, failure: &Failure) -> ErrorRecord {
        use ErrorType::{AuthenticationError, GeneralError};
        let (name, error_type, what) = match failure {
            Failure::BadLogin => (
                "UnauthorizedAccessBrokerException",
                AuthenticationError,
                match &self.username {
                    Some(user) => format!(
                        "refused user name or password (user \"{user}\"): check `username` and `password` of the source and \
                         the password file of the broker"
                    ),
                    None => "wants a user name and password: set `username` and `password` of the source"
                        .to_owned(),
                },
            ),
            Failure::NotAuthorized => (
                "UnauthorizedAccessBrokerException",
                AuthenticationError,
                match &self.username {
                    Some(user) => format!(
                        "does not let the user \"{user}\" in: check `username` and `password` of the source, and what the \
                         broker allows this user and the client id \"{}\"",
                        self.client_id
                    ),
                    None => format!(
                        "does not let the client \"{}\" in without a user name: set `username` and `password` of the source, \
                         or allow it at the broker",
                        self.client_id
                    ),
                },
            ),
            Failure::UnsupportedProtocol => (
                "InvalidBrokerException",
                GeneralError,
                match self.protocol {
                    MqttProtocol::V5 => {
                        "does not speak MQTT 5: set protocol = \"3.1.1\" for the source".to_owned()
                    }
                    MqttProtocol::V311 => {
                        "does not speak MQTT 3.1.1: set protocol = \"5\" for the source".to_owned()
                    }
                },
            ),
            Failure::Refused(why) => (
                "InvalidBrokerException",
                GeneralError,
                format!("refused the connection ({why})"),
            ),
            Failure::Tls(error) => ("TlsException", AuthenticationError, self.tls(error)),
            Failure::Unreachable(error) => (
                "BrokerUnreachableException",
                GeneralError,
                format!(
                    "cannot be reached ({error}): check `url` of the source, the network and whether the broker runs"
                ),
            ),
            Failure::Timeout => (
                "BrokerUnreachableException",
                GeneralError,
                "does not answer: check `url` of the source, the network and the firewall".to_owned(),
            ),
            Failure::TakenOver => (
                "InvalidBrokerException",
                GeneralError,
                format!(
                    "gave the session to another client with the client id \"{}\": give each gateway its own [gateway] id, \
                     or the source a `client_id`",
                    self.client_id
                ),
            ),
            Failure::TooLarge(size) => (
                "MessageTooLargeException",
                GeneralError,
                format!(
                    "sent a packet of {size} bytes, more than this connection takes ({} bytes)",
                    self.max_packet
                ),
            ),
            Failure::Undecodable(why) => (
                "BrokerProtocolException",
                GeneralError,
                format!("sent a packet that cannot be read ({why})"),
            ),
            Failure::Lost(why) => (
                "BrokerUnreachableException",
                GeneralError,
                format!("was lost ({why})"),
            ),
        };
        let subject = if matches!(failure, Failure::Lost(_)) {
            "connection to the broker"
        } else {
            "the broker"
        };
        let mut record = setup_error(
            name,
            error_type,
            format!("{subject} {}:{} {what}", self.host, self.port),
        );
        if matches!(failure, Failure::TooLarge(_) | Failure::Undecodable(_)) {
            record.repair = Repair::Server;
        }
        record
    }

    fn tls(&self, error: &rustls::Error) -> String {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "has a certificate of an authority that is not trusted: set `tls.ca_file` of the source to that \
                 authority's certificate"
                    .to_owned()
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => format!(
                "has a certificate for another name than \"{}\": use the name of the certificate in `url`",
                self.host
            ),
            error if is_about_time(error) => {
                format!("has a certificate that is not valid at this time ({error}): check the clock, renew the certificate")
            }
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
                "wants a client certificate: set `tls.cert_file` and `tls.key` of the source".to_owned()
            }
            rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied,
            ) => format!("does not accept the client certificate ({error}): check `tls.cert_file` of the source"),
            rustls::Error::InvalidMessage(_) => {
                "does not speak TLS there: use mqtt:// or the TLS port (often 8883) in `url`".to_owned()
            }
            error => format!("and this gateway cannot agree on TLS ({error})"),
        }
    }
}

/// Whether the clock decides about this error.
pub(super) fn is_about_time(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
        )
    )
}
