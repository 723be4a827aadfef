//! Who the agent is towards a server: the `Authorization` header of its requests. Shared by all destinations.
//!
//! Invariants:
//! 1. A credential leaves only towards the origin (scheme, host, port) that the configuration names.
//! 2. A token is fetched once and used until shortly before it expires; after a 401 it is fetched anew once.
//! 3. No error text holds a credential.

mod jwt;
mod token;

use crate::clock;
use crate::config::{AuthConfig, SecretError, SecretRef};
use crate::forward::http::{Http, HttpError, HttpErrorKind, HttpRequest, origin};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use token::TokenSource;

/// Why a request could not be given its credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// The token endpoint did not answer, or answered that it cannot now; later it may.
    Unreachable(HttpError),
    /// The token endpoint refuses us; somebody has to repair it.
    Refused(String),
    /// A secret, key or setting is missing or wrong.
    Setup(String),
    /// There is no managed identity here.
    NoManagedIdentity(String),
}

impl AuthError {
    /// What went wrong and what to do.
    pub fn text(&self) -> &str {
        match self {
            AuthError::Unreachable(error) => &error.text,
            AuthError::Refused(text) | AuthError::Setup(text) | AuthError::NoManagedIdentity(text) => text,
        }
    }

    /// Whether a wrong clock of this gateway can be the reason.
    pub fn may_be_the_clock(&self) -> bool {
        matches!(
            self,
            AuthError::Refused(_)
                | AuthError::Unreachable(HttpError {
                    kind: HttpErrorKind::Tls { clock: true },
                    ..
                })
        )
    }
}

impl From<SecretError> for AuthError {
    fn from(error: SecretError) -> AuthError {
        AuthError::Setup(error.to_string())
    }
}

enum Scheme {
    None,
    Basic { username: String, password: SecretRef },
    Bearer(SecretRef),
    Token(TokenSource),
}

/// Gives requests their credential.
pub struct Authorizer {
    scheme: Scheme,
    /// The only origin that sees the credential.
    home: String,
    /// For token endpoints of the site and of the cloud.
    http: Http,
    /// The header in use, and until when (monotonic microseconds).
    cached: Option<(String, u64)>,
}

impl Authorizer {
    /// An authorizer for requests to `base`; `http` reaches token endpoints, `direct` does so without a proxy.
    ///
    /// # Errors
    /// A scheme that does not fit the destination, or an address that is none.
    pub fn new(config: &AuthConfig, base: &str, http: Http, direct: Http) -> Result<Authorizer, AuthError> {
        let home = origin(base).ok_or_else(|| {
            AuthError::Setup("the address of the server must start with https:// or http://".to_owned())
        })?;
        let mut token_http = http;
        let scheme = match config {
            AuthConfig::None => Scheme::None,
            AuthConfig::Basic { username, password } => Scheme::Basic {
                username: username.clone(),
                password: password.clone(),
            },
            AuthConfig::Bearer { token } => Scheme::Bearer(token.clone()),
            AuthConfig::ManagedIdentity { .. } => {
                token_http = direct;
                Scheme::Token(TokenSource::new(config, base))
            }
            AuthConfig::ClientCredentials { .. } | AuthConfig::SmartBackend { .. } => {
                Scheme::Token(TokenSource::new(config, base))
            }
            AuthConfig::Sas { .. } | AuthConfig::ConnectionString { .. } => {
                return Err(AuthError::Setup(
                    "auth of kind sas and connection-string is for event hubs only".to_owned(),
                ));
            }
        };
        Ok(Authorizer {
            scheme,
            home,
            http: token_http,
            cached: None,
        })
    }

    /// The request with its credential; unchanged when it goes to another origin (invariant 1).
    ///
    /// # Errors
    /// When there is no credential to be had.
    pub async fn authorize(&mut self, mut request: HttpRequest) -> Result<HttpRequest, AuthError> {
        if origin(&request.url).as_deref() == Some(self.home.as_str()) {
            request.authorization = self.header().await?;
        }
        Ok(request)
    }

    /// To be called once after a 401: whether the request is worth a second try with another credential.
    pub async fn renew(&mut self) -> bool {
        let Some((header, _)) = self.cached.take() else {
            return false;
        };
        match self.header().await {
            Ok(Some(fresh)) => fresh != header,
            _ => false,
        }
    }

    /// Whether a wrong clock of this gateway can make the server refuse the credential.
    pub fn depends_on_clock(&self) -> bool {
        matches!(self.scheme, Scheme::Token(_))
    }

    async fn header(&mut self) -> Result<Option<String>, AuthError> {
        let now = clock::monotonic_us();
        let (header, until) = match &mut self.scheme {
            Scheme::None => return Ok(None),
            Scheme::Basic { username, password } => {
                let password = password.read()?;
                let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.reveal()));
                (format!("Basic {pair}"), 0)
            }
            Scheme::Bearer(token) => (format!("Bearer {}", token.read()?.reveal().trim()), 0),
            Scheme::Token(source) => match &self.cached {
                Some((header, until)) if now < *until => return Ok(Some(header.clone())),
                _ => {
                    let token = source.fetch(&self.http).await?;
                    let until = clock::monotonic_us() + token.use_for_us;
                    (format!("Bearer {}", token.text), until)
                }
            },
        };
        self.cached = Some((header.clone(), until));
        Ok(Some(header))
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
