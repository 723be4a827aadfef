//! TLS towards a broker. Built anew for each connection, so that changed certificates are in use from the next one on.

use crate::config::TlsConfig;
use crate::ingest::setup_error;
use crate::telemetry::errors::{ErrorRecord, ErrorType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

/// A client configuration: the built-in authorities or those of `ca_file`, with the client certificate if there is one.
///
/// # Errors
/// Which file is missing or wrong.
pub(crate) fn client_config(config: &TlsConfig) -> Result<ClientConfig, ErrorRecord> {
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        None => roots.roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            for certificate in certificates("ca_file", path)? {
                roots
                    .add(certificate)
                    .map_err(|error| wrong("ca_file", path, &error))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setup_error("TlsException", ErrorType::GeneralError, error.to_string()))?
        .with_root_certificates(roots);
    let (Some(path), Some(key)) = (&config.cert_file, &config.key) else {
        if config.cert_file.is_some() || config.key.is_some() {
            let text = "a client certificate needs both `cert_file` and `key` in `tls`";
            return Err(setup_error(
                "TlsException",
                ErrorType::AuthenticationError,
                text.to_owned(),
            ));
        }
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("cert_file", path)?;
    let secret = super::read_secret(key)?;
    let key = PrivateKeyDer::from_pem_slice(secret.reveal().as_bytes()).map_err(|_| {
        let text = "`tls.key` holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1)";
        setup_error("TlsException", ErrorType::AuthenticationError, text.to_owned())
    })?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| wrong("cert_file", path, &error))
}

fn certificates(member: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ErrorRecord> {
    let read = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(member, path, &error))?;
    if read.is_empty() {
        return Err(wrong(member, path, &"it holds no certificate in PEM form"));
    }
    Ok(read)
}

fn wrong(member: &str, path: &Path, error: &dyn std::fmt::Display) -> ErrorRecord {
    setup_error(
        "TlsException",
        ErrorType::AuthenticationError,
        format!("`tls.{member}` = {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        for (config, expected) in [
            (
                TlsConfig {
                    ca_file: Some(folder.path().join("missing.pem")),
                    ..TlsConfig::default()
                },
                "missing.pem",
            ),
            (
                TlsConfig {
                    ca_file: Some(empty.clone()),
                    ..TlsConfig::default()
                },
                "it holds no certificate",
            ),
            (
                TlsConfig {
                    cert_file: Some(empty),
                    ..TlsConfig::default()
                },
                "needs both",
            ),
        ] {
            let error = client_config(&config).unwrap_err();
            assert!(error.text.contains(expected), "{}", error.text);
        }
        assert!(client_config(&TlsConfig::default()).is_ok());
    }
}
