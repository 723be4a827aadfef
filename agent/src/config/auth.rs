//! `auth` and `tls`: how the agent proves who it is, and whom it believes.

use super::secret::SecretRef;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `auth = { kind = ..., ... }`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AuthConfig {
    /// No authentication.
    #[default]
    None,
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: SecretRef,
    },
    /// A bearer token that something else keeps fresh.
    Bearer {
        /// The token.
        token: SecretRef,
    },
    /// Shared access signature of Event Hubs.
    Sas {
        /// Name of the shared access rule.
        #[serde(default)]
        key_name: Option<String>,
        /// Its key as shown in the portal.
        #[serde(default)]
        key: Option<SecretRef>,
        /// In place of both: a token that something else makes and keeps fresh (`SharedAccessSignature sr=...`).
        #[serde(default)]
        token: Option<SecretRef>,
    },
    /// A connection string of Event Hubs.
    ConnectionString {
        /// `Endpoint=sb://...;SharedAccessKeyName=...;SharedAccessKey=...`.
        value: SecretRef,
    },
    /// OAuth 2 client credentials.
    ClientCredentials {
        /// Token endpoint.
        token_url: String,
        /// Client id.
        client_id: String,
        /// Client secret.
        #[serde(default)]
        secret: Option<SecretRef>,
        /// In place of a secret: PEM file of the certificate that is registered for the client (RFC 7523; Entra ID).
        #[serde(default)]
        certificate: Option<PathBuf>,
        /// Private key of the certificate (PEM, RSA); the certificate's own file when it is left out.
        #[serde(default)]
        key: Option<SecretRef>,
        /// Scope, such as `https://fhir.example/.default`.
        #[serde(default)]
        scope: Option<String>,
    },
    /// SMART Backend Services (private key JWT).
    SmartBackend {
        /// Client id.
        client_id: String,
        /// Private key (PEM, PKCS#8, P-384 or RSA).
        key: SecretRef,
        /// Key id.
        #[serde(default)]
        key_id: Option<String>,
        /// Scope.
        #[serde(default)]
        scope: Option<String>,
        /// Token endpoint, when the server has no `.well-known/smart-configuration`.
        #[serde(default)]
        token_url: Option<String>,
    },
    /// Managed identity of Azure (virtual machine or Arc agent).
    ManagedIdentity {
        /// Resource, such as `https://eventhubs.azure.net/`.
        resource: String,
        /// Client id of a user-assigned identity.
        #[serde(default)]
        client_id: Option<String>,
    },
}

/// TLS towards a broker or a server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file of the certificate authorities to trust instead of the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// The client's private key (PEM).
    pub key: Option<SecretRef>,
}

impl TlsConfig {
    /// Makes relative paths start at `folder`.
    pub(super) fn start_at(&mut self, folder: &Path) {
        for path in [&mut self.ca_file, &mut self.cert_file].into_iter().flatten() {
            *path = folder.join(&*path);
        }
        self.key.iter_mut().for_each(|key| key.start_at(folder));
    }
}

impl AuthConfig {
    /// The `kind` as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            AuthConfig::None => "none",
            AuthConfig::Basic { .. } => "basic",
            AuthConfig::Bearer { .. } => "bearer",
            AuthConfig::Sas { .. } => "sas",
            AuthConfig::ConnectionString { .. } => "connection-string",
            AuthConfig::ClientCredentials { .. } => "client-credentials",
            AuthConfig::SmartBackend { .. } => "smart-backend",
            AuthConfig::ManagedIdentity { .. } => "managed-identity",
        }
    }

    /// Where its secrets are.
    pub fn secrets(&self) -> Vec<&SecretRef> {
        match self {
            AuthConfig::Sas { key, token, .. } => key.iter().chain(token).collect(),
            AuthConfig::ClientCredentials { secret, key, .. } => secret.iter().chain(key).collect(),
            AuthConfig::None | AuthConfig::ManagedIdentity { .. } => Vec::new(),
            AuthConfig::Basic { password: secret, .. }
            | AuthConfig::Bearer { token: secret }
            | AuthConfig::ConnectionString { value: secret }
            | AuthConfig::SmartBackend { key: secret, .. } => vec![secret],
        }
    }

    /// Makes relative paths start at `folder`.
    pub(super) fn start_at(&mut self, folder: &Path) {
        if let AuthConfig::ClientCredentials {
            certificate: Some(path),
            ..
        } = self
        {
            *path = folder.join(&*path);
        }
        self.secrets_mut()
            .into_iter()
            .for_each(|secret| secret.start_at(folder));
    }

    fn secrets_mut(&mut self) -> Vec<&mut SecretRef> {
        match self {
            AuthConfig::Sas { key, token, .. } => key.iter_mut().chain(token).collect(),
            AuthConfig::ClientCredentials { secret, key, .. } => secret.iter_mut().chain(key).collect(),
            AuthConfig::None | AuthConfig::ManagedIdentity { .. } => Vec::new(),
            AuthConfig::Basic { password: secret, .. }
            | AuthConfig::Bearer { token: secret }
            | AuthConfig::ConnectionString { value: secret }
            | AuthConfig::SmartBackend { key: secret, .. } => vec![secret],
        }
    }
}
