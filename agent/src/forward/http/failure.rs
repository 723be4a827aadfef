//! Why a request failed, in words that say what to do.

use super::{HttpError, HttpErrorKind, origin};
use std::io::ErrorKind;

pub(super) fn host(url: &str) -> String {
    origin(url).unwrap_or_else(|| "the server".to_owned())
}

pub(super) fn explain(error: &ureq::Error, url: &str) -> HttpError {
    use HttpErrorKind as K;
    let host = host(url);
    match error {
        ureq::Error::HostNotFound => HttpError::new(
            K::Connect,
            format!("the name of {host} cannot be resolved: check the address and the DNS of this gateway"),
        ),
        ureq::Error::ConnectionFailed => {
            HttpError::new(K::Connect, format!("no connection to {host}: check the network"))
        }
        ureq::Error::Timeout(phase) => HttpError::new(
            match phase {
                ureq::Timeout::Resolve | ureq::Timeout::Connect => K::Connect,
                _ => K::Timeout,
            },
            format!("{host} did not answer in time ({phase})"),
        ),
        ureq::Error::Rustls(error) => explain_tls(error, &host),
        ureq::Error::Tls(text) => {
            HttpError::new(K::Tls { clock: false }, format!("TLS with {host} failed: {text}"))
        }
        ureq::Error::Pem(_) => HttpError::new(K::Setup, "a certificate or key file is no PEM"),
        ureq::Error::Io(error) => explain_io(error, url),
        ureq::Error::BodyExceedsLimit(_) | ureq::Error::LargeResponseHeader(..) => {
            HttpError::new(K::TooLarge, format!("the answer of {host} is too large"))
        }
        ureq::Error::ConnectProxyFailed(answer) => HttpError::new(
            K::Proxy,
            format!("the proxy refused to connect to {host}: {}", first_line(answer)),
        ),
        ureq::Error::InvalidProxyUrl => HttpError::new(K::Setup, "the address of the proxy is wrong"),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            HttpError::new(K::Setup, format!("the address {host} or a header cannot be used"))
        }
        ureq::Error::Decompress(..) => HttpError::new(
            K::Protocol,
            format!("the answer of {host} cannot be decompressed"),
        ),
        other => HttpError::new(
            K::Protocol,
            format!(
                "{host} does not speak HTTP as it should: {}",
                first_line(&other.to_string())
            ),
        ),
    }
}

pub(crate) fn explain_io(error: &std::io::Error, url: &str) -> HttpError {
    use HttpErrorKind as K;
    let inner = error.get_ref();
    if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return explain_tls(error, &host(url));
    }
    if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        return explain(error, url);
    }
    if let Some(error) = inner
        .and_then(|inner| inner.source())
        .and_then(|source| source.downcast_ref::<rustls::Error>())
    {
        return explain_tls(error, &host(url));
    }
    let host = host(url);
    match error.kind() {
        ErrorKind::ConnectionRefused => HttpError::new(
            K::Connect,
            format!("{host} refuses connections: check the port and whether the server runs"),
        ),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => {
            HttpError::new(
                K::Connect,
                format!("no route to {host}: check the network of this gateway"),
            )
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            HttpError::new(K::Timeout, format!("{host} did not answer in time"))
        }
        _ => HttpError::new(
            K::Reset,
            format!("the connection to {host} broke ({})", error.kind()),
        ),
    }
}

fn explain_tls(error: &rustls::Error, host: &str) -> HttpError {
    use rustls::CertificateError as C;
    let (clock, text) = match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            C::Expired | C::ExpiredContext { .. } => (
                true,
                format!("the certificate of {host} has expired, or the clock of this gateway is wrong"),
            ),
            C::NotValidYet | C::NotValidYetContext { .. } => (
                true,
                format!("the certificate of {host} is not valid yet, or the clock of this gateway is wrong"),
            ),
            C::UnknownIssuer => (
                false,
                format!(
                    "the certificate of {host} is signed by an authority that is not trusted: name it in tls.ca_file"
                ),
            ),
            C::NotValidForName | C::NotValidForNameContext { .. } => (
                false,
                format!("the certificate of {host} is for another name: check the address"),
            ),
            other => (false, format!("the certificate of {host} is refused: {other}")),
        },
        rustls::Error::AlertReceived(alert) => (
            false,
            format!(
                "{host} ended TLS with {alert:?}: it may want a client certificate (tls.cert_file, tls.key)"
            ),
        ),
        other => (false, format!("TLS with {host} failed: {other}")),
    };
    HttpError::new(HttpErrorKind::Tls { clock }, text)
}

fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(120)
        .collect()
}
