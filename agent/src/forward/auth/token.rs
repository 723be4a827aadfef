//! Where tokens come from: OAuth 2 client credentials, SMART Backend Services, the managed identity of Azure.

use super::AuthError;
use super::jwt::{ClientCertificate, SigningKey};
use crate::clock;
use crate::config::{AuthConfig, SecretRef};
use crate::forward::http::{
    Http, HttpError, HttpErrorKind, HttpRequest, HttpResponse, Method, origin, percent_encode,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A token and how long it may be used.
pub(super) struct Token {
    pub text: String,
    /// Microseconds from now; ends some minutes before the token does.
    pub use_for_us: u64,
}

/// One of the ways to a token.
pub(super) enum TokenSource {
    ClientCredentials {
        token_url: String,
        client_id: String,
        proof: Proof,
        scope: Option<String>,
    },
    Smart {
        base: String,
        client_id: String,
        key: SecretRef,
        key_id: Option<String>,
        scope: Option<String>,
        token_url: Option<String>,
    },
    Managed {
        resource: String,
        client_id: Option<String>,
        place: ManagedPlace,
    },
}

/// How a client proves itself.
pub(super) enum Proof {
    Secret(SecretRef),
    Certificate {
        certificate: PathBuf,
        /// In the file of the certificate when there is none.
        key: Option<SecretRef>,
    },
}

/// Where the managed identity is served.
pub(super) enum ManagedPlace {
    /// The metadata service of an Azure virtual machine.
    Imds { endpoint: String },
    /// The Azure Arc agent on this machine, which proves by a file that we may ask.
    Arc { endpoint: String, folder: PathBuf },
}

impl ManagedPlace {
    /// The Arc agent where it is installed, the metadata service otherwise.
    fn found() -> ManagedPlace {
        const ARC_FOLDER: &str = "/var/opt/azcmagent/tokens";
        let named = std::env::var("IDENTITY_ENDPOINT").ok();
        if named.is_some() || Path::new(ARC_FOLDER).is_dir() {
            return ManagedPlace::Arc {
                endpoint: named
                    .unwrap_or_else(|| "http://localhost:40342/metadata/identity/oauth2/token".to_owned()),
                folder: PathBuf::from(ARC_FOLDER),
            };
        }
        ManagedPlace::Imds {
            endpoint: "http://169.254.169.254/metadata/identity/oauth2/token".to_owned(),
        }
    }
}

impl TokenSource {
    /// The source that a configuration of one of these kinds names; others give one that is never asked.
    pub fn new(config: &AuthConfig, base: &str) -> TokenSource {
        match config {
            AuthConfig::ClientCredentials {
                token_url,
                client_id,
                secret,
                certificate,
                key,
                scope,
            } => TokenSource::ClientCredentials {
                token_url: token_url.clone(),
                client_id: client_id.clone(),
                proof: match (secret, certificate) {
                    (Some(secret), _) => Proof::Secret(secret.clone()),
                    (None, certificate) => Proof::Certificate {
                        certificate: certificate.clone().unwrap_or_default(),
                        key: key.clone(),
                    },
                },
                scope: scope.clone(),
            },
            AuthConfig::SmartBackend {
                client_id,
                key,
                key_id,
                scope,
                token_url,
            } => TokenSource::Smart {
                base: base.trim_end_matches('/').to_owned(),
                client_id: client_id.clone(),
                key: key.clone(),
                key_id: key_id.clone(),
                scope: scope.clone(),
                token_url: token_url.clone(),
            },
            AuthConfig::ManagedIdentity { resource, client_id } => TokenSource::Managed {
                resource: resource.clone(),
                client_id: client_id.clone(),
                place: ManagedPlace::found(),
            },
            _ => TokenSource::Managed {
                resource: base.to_owned(),
                client_id: None,
                place: ManagedPlace::found(),
            },
        }
    }

    /// Fetches a token.
    pub async fn fetch(&self, http: &Http) -> Result<Token, AuthError> {
        match self {
            TokenSource::ClientCredentials {
                token_url,
                client_id,
                proof,
                scope,
            } => {
                let mut form = vec![("grant_type", "client_credentials"), ("client_id", client_id)];
                let (secret, assertion);
                match proof {
                    Proof::Secret(place) => {
                        secret = place.read()?;
                        form.push(("client_secret", secret.reveal()));
                    }
                    Proof::Certificate { certificate, key } => {
                        let now = clock::wall().ticks().div_euclid(10_000_000);
                        assertion = client_certificate(certificate, key.as_ref())?
                            .assertion(client_id, token_url, now)
                            .map_err(AuthError::Setup)?;
                        form.push(("client_assertion_type", JWT_BEARER));
                        form.push(("client_assertion", &assertion));
                    }
                }
                form.extend(scope.as_deref().map(|scope| ("scope", scope)));
                let answer = http.send(form_request(token_url, &form)).await;
                token_of(&answer.map_err(AuthError::Unreachable)?)
            }
            TokenSource::Smart {
                base,
                client_id,
                key,
                key_id,
                scope,
                token_url,
            } => {
                let key = SigningKey::from_pem(key.read()?.reveal()).map_err(AuthError::Setup)?;
                let token_url = match token_url {
                    Some(url) => url.clone(),
                    None => discover(http, base, key.algorithm()).await?,
                };
                let now = clock::wall().ticks().div_euclid(10_000_000);
                let assertion = key
                    .assertion(client_id, &token_url, key_id.as_deref(), now)
                    .map_err(AuthError::Setup)?;
                let form = [
                    ("grant_type", "client_credentials"),
                    (
                        "scope",
                        scope
                            .as_deref()
                            .unwrap_or("system/Observation.crus system/Device.crus system/Patient.crus system/Encounter.rs"),
                    ),
                    ("client_assertion_type", JWT_BEARER),
                    ("client_assertion", &assertion),
                ];
                let answer = http.send(form_request(&token_url, &form)).await;
                token_of(&answer.map_err(AuthError::Unreachable)?)
            }
            TokenSource::Managed {
                resource,
                client_id,
                place,
            } => managed(http, resource, client_id.as_deref(), place).await,
        }
    }
}

/// Reads certificate and key, each time anew: changed ones are in use with the next token.
fn client_certificate(certificate: &Path, key: Option<&SecretRef>) -> Result<ClientCertificate, AuthError> {
    let pem = SecretRef::File(certificate.to_owned()).read()?;
    let key = key.map(SecretRef::read).transpose()?;
    let key = key.as_ref().unwrap_or(&pem);
    ClientCertificate::from_pem(pem.reveal(), key.reveal()).map_err(AuthError::Setup)
}

/// The token endpoint that the server names in `.well-known/smart-configuration`.
async fn discover(http: &Http, base: &str, algorithm: &str) -> Result<String, AuthError> {
    let request = HttpRequest::get(format!("{base}/.well-known/smart-configuration"))
        .header("accept", "application/json");
    let answer = http.send(request).await.map_err(AuthError::Unreachable)?;
    if is_passing(answer.status) {
        return Err(passing(&answer, "the server"));
    }
    let missing = || {
        AuthError::Setup(format!(
            "{base}/.well-known/smart-configuration names no token endpoint: write token_url into auth"
        ))
    };
    let document: Value = serde_json::from_slice(answer.body.bytes()).map_err(|_| missing())?;
    let signs = document
        .get("token_endpoint_auth_signing_alg_values_supported")
        .and_then(Value::as_array);
    if let Some(signs) = signs
        && !signs.iter().any(|name| name.as_str() == Some(algorithm))
    {
        return Err(AuthError::Setup(format!(
            "the server does not take {algorithm}: use a key of the other kind (RSA for RS384, P-384 for ES384)"
        )));
    }
    let endpoint = document
        .get("token_endpoint")
        .and_then(Value::as_str)
        .ok_or_else(missing)?;
    // A server reached over TLS must not send our assertion out in the clear.
    let secure = |url: &str| origin(url).is_some_and(|origin| origin.starts_with("https:"));
    if origin(endpoint).is_none() || (secure(base) && !secure(endpoint)) {
        return Err(missing());
    }
    Ok(endpoint.to_owned())
}

async fn managed(
    http: &Http,
    resource: &str,
    client_id: Option<&str>,
    place: &ManagedPlace,
) -> Result<Token, AuthError> {
    let resource = percent_encode(resource);
    let (endpoint, version) = match place {
        ManagedPlace::Imds { endpoint } => (endpoint, "2018-02-01"),
        ManagedPlace::Arc { endpoint, .. } => (endpoint, "2020-06-01"),
    };
    let mut url = format!("{endpoint}?api-version={version}&resource={resource}");
    if let (Some(id), ManagedPlace::Imds { .. }) = (client_id, place) {
        url.push_str(&format!("&client_id={}", percent_encode(id)));
    }
    let ask = || HttpRequest::get(url.clone()).header("metadata", "true");
    let absent = |why: &str| {
        AuthError::NoManagedIdentity(format!(
            "no managed identity here ({why}): switch the identity on, or use another kind of auth"
        ))
    };
    let mut answer = http.send(ask()).await.map_err(|error| match error.kind {
        HttpErrorKind::Connect => absent("nobody answers"),
        _ => AuthError::Unreachable(error),
    })?;
    if let (401, ManagedPlace::Arc { folder, .. }) = (answer.status, place) {
        let proof = answer
            .header("www-authenticate")
            .and_then(|challenge| challenge.split_once("realm="))
            .map(|(_, path)| path.trim().trim_matches('"').to_owned())
            .ok_or_else(|| absent("the Arc agent asks for no file"))?;
        let key = arc_key(Path::new(&proof), folder).map_err(AuthError::Setup)?;
        let mut request = ask();
        request.authorization = Some(format!("Basic {key}"));
        answer = http.send(request).await.map_err(AuthError::Unreachable)?;
    }
    match answer.status {
        // 404 and 410 mean that the service starts or is being updated.
        404 | 410 => Err(passing(&answer, "the managed identity")),
        400 => Err(absent("the identity is not assigned")),
        _ => token_of(&answer),
    }
}

/// The content of the file that the Arc agent names, if it is one of its own: we read no other file for anybody.
fn arc_key(path: &Path, folder: &Path) -> Result<String, String> {
    let expected =
        path.parent() == Some(folder) && path.extension().is_some_and(|extension| extension == "key");
    if !expected {
        return Err("the Arc agent named a file outside its folder: it is not read".to_owned());
    }
    let small = std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() <= 4096);
    if !small {
        return Err("the key file of the Arc agent is missing or too large".to_owned());
    }
    std::fs::read_to_string(path)
        .map(|key| key.trim_end().to_owned())
        .map_err(|error| {
            format!("the key file of the Arc agent cannot be read ({error}): add this user to group himds")
        })
}

fn form_request(url: &str, form: &[(&str, &str)]) -> HttpRequest {
    let body: Vec<String> = form
        .iter()
        .map(|(name, value)| format!("{name}={}", percent_encode(value)))
        .collect();
    HttpRequest::with_body(Method::Post, url, body.join("&").into_bytes())
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/json")
}

fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

fn passing(answer: &HttpResponse, who: &str) -> AuthError {
    AuthError::Unreachable(HttpError::new(
        HttpErrorKind::Protocol,
        format!("{who} answered {} to the request for a token", answer.status),
    ))
}

fn token_of(answer: &HttpResponse) -> Result<Token, AuthError> {
    if is_passing(answer.status) {
        return Err(passing(answer, "the token endpoint"));
    }
    let document: Value = serde_json::from_slice(answer.body.bytes()).unwrap_or(Value::Null);
    let Some(text) = document.get("access_token").and_then(Value::as_str) else {
        // The error code (RFC 6749, 5.2) is a fixed word; the description may repeat what we sent.
        let code: String = document
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or("no reason")
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == ' ')
            .take(60)
            .collect();
        return Err(AuthError::Refused(format!(
            "the token endpoint answered {} ({code}): check client id, key or secret, scope, and the clock",
            answer.status
        )));
    };
    let seconds = |name: &str| {
        let value = document.get(name)?;
        value
            .as_i64()
            .or_else(|| value.as_f64().map(|seconds| seconds as i64))
            .or_else(|| value.as_str()?.parse().ok())
    };
    let now = clock::wall().ticks().div_euclid(10_000_000);
    let lifetime = seconds("expires_in")
        .or_else(|| seconds("expires_on").map(|at| at - now))
        .unwrap_or(300)
        .clamp(0, 86_400);
    // Renewed before it expires: five minutes, or a quarter of a short life.
    let use_for = lifetime - (lifetime / 4).min(300);
    Ok(Token {
        text: text.to_owned(),
        use_for_us: u64::try_from(use_for).unwrap_or(0) * 1_000_000,
    })
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
