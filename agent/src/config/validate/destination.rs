//! What the types cannot say about FHIR servers and event hubs.

use super::super::azure;
use super::super::tree::Step::{Item, Member};
use super::super::{
    AuthConfig, DestinationConfig, DestinationKind, Envelope, EventHubConfig, EventPayload, FhirConfig,
    Measurements, PartitionKey, Transport,
};
use super::{Check, fhir_base, is_host_and_port, is_local};

impl Check<'_> {
    pub(super) fn destination(
        &mut self,
        number: usize,
        destination: &DestinationConfig,
        all: &[(usize, DestinationConfig)],
    ) {
        match &destination.kind {
            DestinationKind::Fhir(fhir) => self.fhir(number, fhir),
            DestinationKind::EventHub(hub) => self.event_hub(number, hub, all),
        }
    }

    fn fhir(&mut self, number: usize, fhir: &FhirConfig) {
        let at = |name| [Member("destination"), Item(number), Member(name)];
        let address = match fhir_base(fhir) {
            Ok(address) => address,
            Err((member, advice)) => {
                self.error(
                    "InvalidFhirServiceException",
                    &at(member),
                    azure::INVALID_FHIR_SERVICE,
                    &advice,
                );
                String::new()
            }
        };
        if matches!(
            fhir.auth,
            AuthConfig::Sas { .. } | AuthConfig::ConnectionString { .. }
        ) {
            self.error(
                "WrongAuthentication",
                &at("auth"),
                &format!(
                    "A FHIR server knows no authentication of kind \"{}\".",
                    fhir.auth.kind()
                ),
                "It is one of none, basic, bearer, client-credentials, smart-backend, managed-identity.",
            );
        }
        let plain = address.starts_with("http://");
        if plain && fhir.auth != AuthConfig::None && !is_local(&address) {
            self.warning(
                "PlainText",
                &at("url"),
                "Readings and what authenticates the gateway cross the network in plain text.",
                "Use https://.",
            );
        }
        if address.ends_with("/metadata") {
            self.warning(
                "InvalidAddress",
                &at("url"),
                "This looks like the address of the capability statement.",
                "Write the base address, without /metadata.",
            );
        }
        if !address.is_empty() {
            self.tls("destination", number, &fhir.tls, !plain, "https://");
        }
        self.web_addresses(number, &fhir.auth, fhir.proxy.as_deref());
    }

    fn event_hub(&mut self, number: usize, hub: &EventHubConfig, all: &[(usize, DestinationConfig)]) {
        let at = |name| [Member("destination"), Item(number), Member(name)];
        if let Err(advice) = azure::check_namespace(&hub.namespace) {
            self.error(
                "InvalidEventHubException",
                &at("namespace"),
                azure::INVALID_NAMESPACE,
                &advice,
            );
        }
        let in_hub_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let edge = |c: char| c.is_ascii_alphanumeric();
        let name = hub.hub.as_str();
        if !(1..=256).contains(&name.len())
            || !name.chars().all(in_hub_name)
            || !name.starts_with(edge)
            || !name.ends_with(edge)
        {
            self.error(
                "InvalidEventHubException",
                &at("hub"),
                "It is no name of an event hub.",
                "Letters, digits, \"-\", \"_\" and \".\"; a letter or digit first and last; without the namespace.",
            );
        }
        // A name and a password are for other AMQP brokers.
        let is_amqp = hub.transport != Transport::Https;
        if matches!(hub.auth, AuthConfig::None | AuthConfig::SmartBackend { .. })
            || (matches!(hub.auth, AuthConfig::Basic { .. }) && !is_amqp)
        {
            self.error(
                "WrongAuthentication",
                &at("auth"),
                &format!("Event Hubs takes nothing with authentication of kind \"{}\".", hub.auth.kind()),
                "It is one of sas, connection-string, client-credentials, managed-identity, bearer; for example auth = { \
                 kind = \"sas\", key_name = \"gateway\", key = \"credential:event-hub-key\" }.",
            );
        }
        #[cfg(not(feature = "amqp"))]
        if is_amqp {
            self.error(
                "WrongValue",
                &at("transport"),
                "This program was built without AMQP.",
                crate::config::NO_AMQP,
            );
        }
        if let Some(publisher) = &hub.publisher {
            if !(1..=128).contains(&publisher.len()) || !publisher.chars().all(in_hub_name) {
                self.error(
                    "InvalidEventHubException",
                    &at("publisher"),
                    "It is no name of a publisher.",
                    "At most 128 letters, digits, \"-\", \"_\" and \".\", for example the gateway id.",
                );
            }
            if hub.partition_key == PartitionKey::Device {
                self.error(
                    "WrongValue",
                    &at("partition_key"),
                    "A publisher is the partition key of everything that it sends.",
                    "Leave partition_key or publisher out.",
                );
            }
        }
        if !(1024..=20 * 1024 * 1024).contains(&hub.max_batch_bytes) {
            self.error(
                "WrongValue",
                &at("max_batch_bytes"),
                "The limit is out of range.",
                "Write 262144 for the Basic tier, 1048576 otherwise.",
            );
        }
        let is_fhir = |name: &str| {
            all.iter()
                .any(|(_, one)| one.name == name && matches!(one.kind, DestinationKind::Fhir(_)))
        };
        match &hub.identity_of {
            Some(name) if !is_fhir(name) => self.error(
                "UnknownName",
                &at("identity_of"),
                &format!("There is no destination of kind \"fhir\" with the name \"{name}\"."),
                "Name the FHIR destination whose Devices and Patients the Observations refer to.",
            ),
            _ => {}
        }
        self.members_of_payload(number, hub);
        if let Some(endpoint) = &hub.endpoint
            && !is_host_and_port(endpoint)
        {
            self.error(
                "InvalidAddress",
                &at("endpoint"),
                "It is no HOST:PORT.",
                "For example \"10.0.0.5:443\".",
            );
        }
        self.tls("destination", number, &hub.tls, true, "https://");
        self.web_addresses(number, &hub.auth, hub.proxy.as_deref());
    }

    /// Members that only one payload has a use for.
    fn members_of_payload(&mut self, number: usize, hub: &EventHubConfig) {
        let at = |name| [Member("destination"), Item(number), Member(name)];
        let of_observations = [
            ("identity_of", hub.identity_of.is_some()),
            ("device_identifier_system", hub.device_identifier_system.is_some()),
        ];
        for (name, _) in of_observations.iter().filter(|(_, is_there)| *is_there) {
            if hub.payload != EventPayload::Observation {
                self.error(
                    "WrongValue",
                    &at(name),
                    "Only Observations have an identity to be resolved.",
                    "Write payload = \"observation\", or leave it out.",
                );
            }
        }
        if hub.identity_of.is_some() && hub.device_identifier_system.is_some() {
            self.error(
                "WrongValue",
                &at("device_identifier_system"),
                "The FHIR destination that identity_of names has its own.",
                "Leave it out here.",
            );
        }
        if hub.payload == EventPayload::Observation && hub.event_id_in_body {
            self.error(
                "WrongValue",
                &at("event_id_in_body"),
                "FHIR knows no member for an event id: the Observation would not be valid.",
                "Leave it out; the id is in the user property bedside-event-id.",
            );
        }
        if hub.payload != EventPayload::Measurement && hub.measurements != Measurements::Single {
            self.error(
                "WrongValue",
                &at("measurements"),
                "Only measurements are grouped.",
                "Write payload = \"measurement\", or leave it out.",
            );
        }
        if hub.payload != EventPayload::Message && hub.envelope != Envelope::None {
            self.error(
                "WrongValue",
                &at("envelope"),
                "Only raw messages have an envelope.",
                "Write payload = \"message\", or leave it out.",
            );
        }
        if let AuthConfig::Sas { key_name, key, token } = &hub.auth {
            let wrong = match (key_name.is_some(), key.is_some(), token.is_some()) {
                (true, true, false) | (false, false, true) => None,
                (_, _, true) => Some("A ready-made token has no key beside it."),
                (_, false, false) => Some("A signature needs a key, or a token that somebody else has made."),
                (false, true, false) => Some("A key belongs to a shared access rule."),
            };
            if let Some(wrong) = wrong {
                self.error(
                    "WrongAuthentication",
                    &at("auth"),
                    wrong,
                    "Write key_name and key, or token alone, for example auth = { kind = \"sas\", key_name = \"gateway\", \
                     key = \"credential:event-hub-key\" }.",
                );
            }
        }
    }

    fn web_addresses(&mut self, number: usize, auth: &AuthConfig, proxy: Option<&str>) {
        let token_url = match auth {
            AuthConfig::ClientCredentials { token_url, .. } => Some(token_url),
            AuthConfig::SmartBackend { token_url, .. } => token_url.as_ref(),
            _ => None,
        };
        if let Some(url) = token_url
            && (url.starts_with('/') || azure::fhir_address(url).is_err())
        {
            self.error(
                "InvalidAddress",
                &[
                    Member("destination"),
                    Item(number),
                    Member("auth"),
                    Member("token_url"),
                ],
                "It is no address of a token endpoint.",
                "For example \"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token\".",
            );
        }
        if let AuthConfig::ClientCredentials {
            secret,
            certificate,
            key,
            ..
        } = auth
        {
            let wrong = match (secret.is_some(), certificate.is_some(), key.is_some()) {
                (true, false, false) | (false, true, _) => None,
                (false, false, _) => Some("The client needs a secret or a certificate."),
                (true, _, _) => Some("A client proves itself by a secret or by a certificate, not by both."),
            };
            if let Some(wrong) = wrong {
                self.error(
                    "WrongAuthentication",
                    &[Member("destination"), Item(number), Member("auth")],
                    wrong,
                    "Write secret = \"credential:NAME\", or certificate = \"client.pem\" and key = \"credential:NAME\".",
                );
            }
        }
        if let Some(proxy) = proxy
            && (proxy.starts_with('/') || azure::fhir_address(proxy).is_err())
        {
            self.error(
                "InvalidAddress",
                &[Member("destination"), Item(number), Member("proxy")],
                "It is no address of an HTTP proxy.",
                "For example \"http://proxy.hospital.example:3128\".",
            );
        }
    }
}
