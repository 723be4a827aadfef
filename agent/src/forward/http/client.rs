//! HTTPS over real sockets (invariants of the parent).

use super::failure::{explain, explain_io, host};
use super::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse, Method, origin};
use crate::config::{SecretRef, TlsConfig};
use crate::forward::endpoint::FixedEndpoint;
use crate::message::Payload;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use ureq::http;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts};

/// Time limits of a request. A batch may keep a server busy for a while, so the limits are those of a patient client.
const CONNECT_TIME: Duration = Duration::from_secs(15);
const SEND_TIME: Duration = Duration::from_secs(60);
const ANSWER_TIME: Duration = Duration::from_secs(60);
const WHOLE_TIME: Duration = Duration::from_secs(150);

/// Largest response after decompression, in bytes.
const MAX_RESPONSE: u64 = 16 * 1024 * 1024;

/// Redirects that are followed on one host.
const MAX_REDIRECTS: usize = 3;

/// HTTPS over real sockets. Certificate and key files are read again when they change.
pub struct UreqClient {
    tls: TlsConfig,
    proxy: Option<String>,
    /// Name, and the `host:port` that is connected to for it.
    endpoint: Option<(String, String)>,
    agent: Mutex<Option<(Vec<Option<SystemTime>>, ureq::Agent)>>,
}

impl UreqClient {
    /// A client that trusts and shows the certificates of `tls` and uses `proxy` if it is given.
    pub fn new(tls: TlsConfig, proxy: Option<String>) -> UreqClient {
        UreqClient {
            tls,
            proxy,
            endpoint: None,
            agent: Mutex::new(None),
        }
    }

    /// The same client, connecting to `endpoint` (`host:port`) for addresses at `host`; the name in the certificate stays.
    #[must_use]
    pub fn connecting_to(mut self, host: &str, endpoint: Option<String>) -> UreqClient {
        self.endpoint = endpoint.map(|endpoint| (host.to_owned(), endpoint));
        self
    }

    fn watched_files(&self) -> impl Iterator<Item = &PathBuf> {
        let key = match &self.tls.key {
            Some(SecretRef::File(path)) => Some(path),
            _ => None,
        };
        [self.tls.ca_file.as_ref(), self.tls.cert_file.as_ref(), key]
            .into_iter()
            .flatten()
    }

    fn agent(&self) -> Result<ureq::Agent, HttpError> {
        let changed: Vec<Option<SystemTime>> = self
            .watched_files()
            .map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
            .collect();
        let stopped = |_| HttpError::new(HttpErrorKind::Stopped, "a request has panicked");
        let mut cached = self.agent.lock().map_err(stopped)?;
        match cached.as_ref() {
            Some((then, agent)) if *then == changed => Ok(agent.clone()),
            _ => {
                let agent = self.build()?;
                *cached = Some((changed, agent.clone()));
                Ok(agent)
            }
        }
    }

    fn build(&self) -> Result<ureq::Agent, HttpError> {
        let setup = |text: String| HttpError::new(HttpErrorKind::Setup, text);
        let proxy = match &self.proxy {
            Some(address) => Some(ureq::Proxy::new(address).map_err(|_| {
                setup("the address of the proxy is wrong: write it as \"http://proxy:3128\"".to_owned())
            })?),
            None => None,
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(self.tls_config()?)
            .user_agent(concat!("bedside-agent/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(WHOLE_TIME))
            .timeout_resolve(Some(CONNECT_TIME))
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_send_request(Some(SEND_TIME))
            .timeout_send_body(Some(SEND_TIME))
            .timeout_recv_response(Some(ANSWER_TIME))
            .timeout_per_read(Some(ANSWER_TIME))
            .input_buffer_size(16 * 1024)
            .output_buffer_size(32 * 1024)
            .max_idle_connections_per_host(4)
            .build();
        match &self.endpoint {
            None => Ok(config.new_agent()),
            Some((host, endpoint)) => {
                let resolver = FixedEndpoint::new(host, endpoint)
                    .ok_or_else(|| setup(format!("\"{endpoint}\" is no endpoint: write host:port")))?;
                let connector = ureq::unversioned::transport::DefaultConnector::default();
                Ok(ureq::Agent::with_parts(config, connector, resolver))
            }
        }
    }

    fn tls_config(&self) -> Result<ureq::tls::TlsConfig, HttpError> {
        let setup = |text: String| HttpError::new(HttpErrorKind::Setup, text);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = match &self.tls.ca_file {
            Some(path) => {
                let certificates = certificates(&read_file(path)?);
                if certificates.is_empty() {
                    return Err(setup(format!(
                        "{} holds no certificate: it must be a PEM file",
                        path.display()
                    )));
                }
                RootCerts::new_with_certs(&certificates)
            }
            None => RootCerts::WebPki,
        };
        let client = match (&self.tls.cert_file, &self.tls.key) {
            (Some(path), Some(key)) => {
                let chain = certificates(&read_file(path)?);
                if chain.is_empty() {
                    return Err(setup(format!(
                        "{} holds no certificate: it must be a PEM file",
                        path.display()
                    )));
                }
                let key = key.read().map_err(|error| setup(error.to_string()))?;
                let key = PrivateKey::from_pem(key.reveal().as_bytes()).map_err(|_| {
                    setup("the key of the client certificate is no PEM private key".to_owned())
                })?;
                Some(ClientCert::new_with_certs(&chain, key))
            }
            (None, None) => None,
            _ => {
                return Err(setup(
                    "a client certificate needs both cert_file and key in tls".to_owned(),
                ));
            }
        };
        Ok(ureq::tls::TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(roots)
            .client_cert(client)
            .build())
    }

    fn once(&self, agent: &ureq::Agent, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut builder = http::Request::builder()
            .method(request.method.name())
            .uri(&request.url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        for (name, value) in &request.properties {
            builder = builder.header(name, value);
        }
        if let Some(value) = &request.authorization {
            builder = builder.header("authorization", value);
        }
        let failed = |error: ureq::Error| explain(&error, &request.url);
        let unusable = |_| HttpError::new(HttpErrorKind::Setup, "the address or a header cannot be sent");
        let mut response = match request.method {
            Method::Get => agent.run(builder.body(()).map_err(unusable)?),
            Method::Post | Method::Put => agent.run(builder.body(request.body.bytes()).map_err(unusable)?),
        }
        .map_err(failed)?;
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let mut body = Vec::new();
        response
            .body_mut()
            .as_reader()
            .take(MAX_RESPONSE + 1)
            .read_to_end(&mut body)
            .map_err(|error| explain_io(&error, &request.url))?;
        if body.len() as u64 > MAX_RESPONSE {
            return Err(HttpError::new(
                HttpErrorKind::TooLarge,
                format!("the answer of {} is larger than 16 MiB", host(&request.url)),
            ));
        }
        Ok(HttpResponse {
            status: response.status().as_u16(),
            headers,
            body: Payload(body.into()),
        })
    }
}

impl HttpClient for UreqClient {
    fn execute(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let agent = self.agent()?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&agent, &request)?;
            match redirect(&request, &response)? {
                Some(target) => request.url = target,
                None => return Ok(response),
            }
        }
        Err(HttpError::new(
            HttpErrorKind::Redirect,
            format!("{} redirects in a circle", host(&request.url)),
        ))
    }
}

/// Where the response sends us, if we go there (invariant 2).
fn redirect(request: &HttpRequest, response: &HttpResponse) -> Result<Option<String>, HttpError> {
    if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.header("location") else {
        return Ok(None);
    };
    let here = origin(&request.url);
    let target = if location.starts_with('/') && !location.starts_with("//") {
        format!("{}{location}", here.clone().unwrap_or_default())
    } else {
        location.to_owned()
    };
    // After 301 to 303 many clients repeat a POST as a GET: a write must not turn into a read.
    let keeps_method = request.method == Method::Get || matches!(response.status, 307 | 308);
    if origin(&target) == here && request.authorization.is_none() && keeps_method {
        return Ok(Some(target));
    }
    Err(HttpError::new(
        HttpErrorKind::Redirect,
        format!(
            "{} redirects to {}, which is not followed: if that is the right address, write it into the configuration",
            host(&request.url),
            origin(&target).unwrap_or_else(|| "an address that is none".to_owned())
        ),
    ))
}

fn read_file(path: &PathBuf) -> Result<Vec<u8>, HttpError> {
    std::fs::read(path).map_err(|error| {
        HttpError::new(
            HttpErrorKind::Setup,
            format!("{} cannot be read: {error}", path.display()),
        )
    })
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    ureq::tls::parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
