//! Shared access signatures of Event Hubs, and the connection strings that carry their keys.
//!
//! Invariants:
//! 1. The text that is signed and the text sent as `sr` are the same, byte for byte.
//! 2. The key is used as the text that the portal shows; it is not decoded.
//! 3. A token is renewed well before it expires, and when the wall clock has moved away from it; a ready-made one is read
//!    again each time, so that a new one is in use at once.

use crate::clock;
use crate::config::SecretRef;
use crate::forward::http::percent_encode;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// How long a token is valid, in seconds.
const LIFETIME: i64 = 3600;

/// Seconds before its end from which a token is not used any more.
const MARGIN: i64 = 900;

/// A token that somebody else made is worth a warning when it has fewer seconds left.
pub(super) const EXPIRES_SOON: i64 = 86_400;

/// Seconds until the token in this header expires by the wall clock; none when it does not say.
pub(super) fn seconds_left(header: &str) -> Option<i64> {
    let fields = header.strip_prefix("SharedAccessSignature ")?;
    let expiry = fields.split('&').find_map(|field| field.strip_prefix("se="))?;
    let expiry = expiry.parse::<i64>().ok()?;
    Some(expiry.saturating_sub(clock::wall().ticks().div_euclid(10_000_000)))
}

/// The token for `uri` until `expiry` (Unix seconds), as the value of an `Authorization` header.
pub fn token(uri: &str, key_name: &str, key: &str, expiry: i64) -> String {
    let uri = percent_encode(uri);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes());
    let signature = ring::hmac::sign(&key, format!("{uri}\n{expiry}").as_bytes());
    let signature = percent_encode(&BASE64_STANDARD.encode(signature));
    let key_name = percent_encode(key_name);
    format!("SharedAccessSignature sr={uri}&sig={signature}&se={expiry}&skn={key_name}")
}

/// Where the key comes from.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// A rule of the hub or namespace.
    Key { name: String, key: SecretRef },
    /// A connection string.
    ConnectionString(SecretRef),
    /// A token that somebody else made and keeps fresh.
    Token(SecretRef),
}

/// Tokens for one event hub.
#[derive(Debug)]
pub(super) struct Tokens {
    credential: Credential,
    /// Host of the namespace, in lower case.
    host: String,
    hub: String,
    /// Path that the token is for: the hub, or a publisher of it.
    resource: String,
    /// Somebody else made the token: it does not renew itself.
    pub ready_made: bool,
    cached: Option<Cached>,
}

struct Cached {
    header: String,
    /// Unix seconds at which it was made.
    made: i64,
    /// Monotonic microseconds at which it was made.
    made_us: u64,
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("token")
    }
}

impl Tokens {
    pub fn new(credential: Credential, namespace: &str, hub: &str, resource: &str) -> Tokens {
        Tokens {
            credential,
            host: namespace.to_ascii_lowercase(),
            hub: hub.to_owned(),
            resource: resource.to_owned(),
            ready_made: false,
            cached: None,
        }
    }

    /// The `Authorization` header to use now.
    ///
    /// # Errors
    /// When the key cannot be read or the connection string is not one for this hub; the text holds no secret.
    pub fn header(&mut self) -> Result<String, String> {
        let now = clock::wall().ticks().div_euclid(10_000_000);
        let now_us = clock::monotonic_us();
        if let Some(cached) = &self.cached {
            let by_wall = (cached.made - 60..cached.made + LIFETIME - MARGIN).contains(&now);
            let age_s = i64::try_from(now_us.saturating_sub(cached.made_us) / 1_000_000).unwrap_or(i64::MAX);
            if by_wall && age_s < LIFETIME - MARGIN && !self.ready_made {
                return Ok(cached.header.clone());
            }
        }
        let header = self.make(now)?;
        self.cached = Some(Cached {
            header: header.clone(),
            made: now,
            made_us: now_us,
        });
        Ok(header)
    }

    /// Forgets the token, so that the next one is made with the key as it is now; false when it was made just now and a
    /// new one would be the same.
    pub fn renew(&mut self) -> bool {
        let before = self.cached.take().map(|cached| cached.header);
        let now = self.header().ok();
        now.is_some() && now != before
    }

    fn make(&mut self, now: i64) -> Result<String, String> {
        let uri = format!("https://{}/{}", self.host, self.resource);
        let expiry = now.saturating_add(LIFETIME);
        match &self.credential {
            Credential::Token(token) => {
                let token = token.read().map_err(|error| error.to_string())?;
                self.ready_made = true;
                ready_made(token.reveal())
            }
            Credential::Key { name, key } => {
                let key = key.read().map_err(|error| error.to_string())?;
                Ok(token(&uri, name, key.reveal(), expiry))
            }
            Credential::ConnectionString(secret) => {
                let text = secret.read().map_err(|error| error.to_string())?;
                let parsed = ConnectionString::parse(text.reveal())?;
                if parsed.host != self.host {
                    return Err(format!(
                        "the connection string is for {}, the configuration names {}: use the string of this namespace",
                        parsed.host, self.host
                    ));
                }
                if parsed.hub.as_ref().is_some_and(|hub| *hub != self.hub) {
                    return Err(format!(
                        "the connection string is for another event hub than {}",
                        self.hub
                    ));
                }
                self.ready_made = matches!(parsed.rule, Rule::Signature(_));
                match parsed.rule {
                    Rule::Key { name, key } => Ok(token(&uri, &name, &key, expiry)),
                    Rule::Signature(header) => ready_made(&header),
                }
            }
        }
    }
}

/// A token that somebody else made, checked as far as it can be.
fn ready_made(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fields = text.strip_prefix("SharedAccessSignature ").unwrap_or_default();
    let has = |name: &str| fields.split('&').any(|field| field.starts_with(name));
    match ["sr=", "sig=", "se=", "skn="].iter().all(|name| has(name)) {
        true => Ok(text.to_owned()),
        false => Err(
            "the ready-made token is none: it begins with \"SharedAccessSignature sr=\" and has sig, se and skn".to_owned(),
        ),
    }
}

enum Rule {
    Key {
        name: String,
        key: String,
    },
    /// A token that somebody else made.
    Signature(String),
}

struct ConnectionString {
    host: String,
    hub: Option<String>,
    rule: Rule,
}

impl ConnectionString {
    /// `Endpoint=sb://HOST/;SharedAccessKeyName=...;SharedAccessKey=...[;EntityPath=HUB]`, or with
    /// `SharedAccessSignature=` instead of name and key.
    fn parse(text: &str) -> Result<ConnectionString, String> {
        let find = |wanted: &str| {
            text.split(';').find_map(|part| {
                let (name, value) = part.split_once('=')?;
                name.trim()
                    .eq_ignore_ascii_case(wanted)
                    .then(|| value.trim().to_owned())
            })
        };
        let missing = |name: &str| {
            format!(
                "the connection string has no {name}: copy it whole from \"Shared access policies\" in the portal"
            )
        };
        let endpoint = find("Endpoint").ok_or_else(|| missing("Endpoint"))?;
        let host = endpoint
            .split_once("://")
            .map_or(endpoint.as_str(), |(_, rest)| rest);
        let host = host.trim_end_matches('/').to_ascii_lowercase();
        let rule = match find("SharedAccessSignature") {
            Some(signature) => Rule::Signature(signature),
            None => Rule::Key {
                name: find("SharedAccessKeyName").ok_or_else(|| missing("SharedAccessKeyName"))?,
                key: find("SharedAccessKey").ok_or_else(|| missing("SharedAccessKey"))?,
            },
        };
        Ok(ConnectionString {
            host,
            hub: find("EntityPath"),
            rule,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iomt_mapping::Timestamp;

    /// Known answers: an independent public unit test, and the documented algorithm computed elsewhere.
    #[test]
    fn tokens_are_those_of_the_documented_algorithm() {
        #[rustfmt::skip]
        let cases = [
            ("endpoint/hub", "keyName", "keyVal", 1,
             "SharedAccessSignature sr=endpoint%2Fhub&sig=EGsjmHg%2FOKM5bYk5pU7ZpN5ExQRuT3VCwXuCftrmUZw%3D&se=1&skn=keyName"),
            ("https://contoso.servicebus.windows.net/devicedata", "devicedatasender", "c2VjcmV0LWtleS1mb3ItdGVzdHM=", 1_700_000_000,
             "SharedAccessSignature sr=https%3A%2F%2Fcontoso.servicebus.windows.net%2Fdevicedata&sig=fEsV8oZvL5rkyDGo9lLmLAQKAcVC8PMI9GOJOCnnEo4%3D&se=1700000000&skn=devicedatasender"),
            ("https://contoso.servicebus.windows.net/", "RootManageSharedAccessKey", "SAS_KEY_VALUE", 1_893_456_000,
             "SharedAccessSignature sr=https%3A%2F%2Fcontoso.servicebus.windows.net%2F&sig=65u%2FTRsc%2BpzeRq1%2FjfYF2DmPkkjqMRH6RU1cjssFQuw%3D&se=1893456000&skn=RootManageSharedAccessKey"),
        ];
        for (uri, key_name, key, expiry, expected) in cases {
            assert_eq!(token(uri, key_name, key, expiry), expected);
        }
    }

    fn secret(text: &str) -> (tempfile::NamedTempFile, SecretRef) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_owned();
        (file, SecretRef::File(path))
    }

    fn seconds_left(header: &str, now: i64) -> i64 {
        let expiry = header.split("&se=").nth(1).unwrap().split('&').next().unwrap();
        expiry.parse::<i64>().unwrap() - now
    }

    #[test]
    fn a_token_is_renewed_before_it_expires_and_when_the_clock_was_corrected() {
        let (_file, key) = secret("key");
        let start = Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
        clock::simulate(start, async {
            let now = || clock::wall().ticks() / 10_000_000;
            let mut tokens = Tokens::new(
                Credential::Key {
                    name: "gateway".to_owned(),
                    key,
                },
                "Ward.servicebus.windows.net",
                "devicedata",
                "devicedata",
            );
            let first = tokens.header().unwrap();
            assert!(first.contains("sr=https%3A%2F%2Fward.servicebus.windows.net%2Fdevicedata&"));
            for _ in 0..24 * 60 {
                embassy_time::Timer::after_secs(60).await;
                assert!(seconds_left(&tokens.header().unwrap(), now()) > 600);
            }
            let before = tokens.header().unwrap();
            clock::simulate_wall_jump(-3 * 3600 * 10_000_000);
            let after = tokens.header().unwrap();
            assert_ne!(before, after);
            assert!((3500..=3600).contains(&seconds_left(&after, now())));
        })
        .unwrap();
    }

    #[test]
    fn a_changed_key_is_in_use_after_a_refusal() {
        let (file, key) = secret("old");
        let mut tokens = Tokens::new(
            Credential::Key {
                name: "n".to_owned(),
                key,
            },
            "ward.servicebus.windows.net",
            "hub",
            "hub",
        );
        let start = Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
        clock::simulate(start, async {
            let old = tokens.header().unwrap();
            assert!(
                !tokens.renew(),
                "the same key at the same time gives the same token"
            );
            std::fs::write(file.path(), "new").unwrap();
            assert!(tokens.renew());
            assert_ne!(tokens.header().unwrap(), old);
        })
        .unwrap();
    }

    #[test]
    fn connection_strings_are_taken_whole_and_wrong_ones_explained() {
        let base = "Endpoint=sb://ward.servicebus.windows.net/;SharedAccessKeyName=send;SharedAccessKey=abc=;EntityPath=hub";
        for (text, expected) in [
            (base.to_owned(), Ok(())),
            (base.replace(";EntityPath=hub", ""), Ok(())),
            (
                base.replace("SharedAccessKey=abc=", "X=1"),
                Err("has no SharedAccessKey"),
            ),
            (
                base.replace("sb://ward", "sb://other"),
                Err("is for other.servicebus.windows.net"),
            ),
            (base.replace("=hub", "=two"), Err("another event hub")),
            ("abc".to_owned(), Err("has no Endpoint")),
        ] {
            let (_file, string) = secret(&text);
            let credential = Credential::ConnectionString(string);
            let header = Tokens::new(credential, "ward.servicebus.windows.net", "hub", "hub").header();
            match (header, expected) {
                (Ok(header), Ok(())) => assert!(header.ends_with("&skn=send"), "{header}"),
                (Err(error), Err(part)) => {
                    assert!(error.contains(part) && !error.contains("abc="), "{error}")
                }
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
        let (_file, ready) = secret(
            "Endpoint=sb://ward.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature sr=x&sig=y&se=1&skn=z",
        );
        let header = Tokens::new(
            Credential::ConnectionString(ready),
            "ward.servicebus.windows.net",
            "hub",
            "hub",
        )
        .header();
        assert_eq!(header.unwrap(), "SharedAccessSignature sr=x&sig=y&se=1&skn=z");
    }
}
