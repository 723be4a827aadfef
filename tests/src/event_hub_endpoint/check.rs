//! What is checked of a request: nothing here is shared with the agent.

use super::Settings;
use base64::Engine as _;
use hmac::Mac as _;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// A request as it was read.
pub struct Request {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Bytes of head and body.
    pub size: usize,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(header, _)| header == name);
        let value = found.next().map(|(_, value)| value.as_str());
        // A header twice is a header that nobody can rely on.
        if found.next().is_some() { None } else { value }
    }
}

/// Why a request is refused: status and text.
pub type Refusal = (u16, String);

/// Partition key and events.
pub type Publication = (Option<String>, Vec<Event>);

/// Body and user properties.
pub type Event = (Vec<u8>, Map<String, Value>);

/// Judges a request at `now` (Unix seconds).
///
/// # Errors
/// Status and reason of the refusal.
pub fn check(request: &Request, settings: &Settings, now: u64) -> Result<Publication, Refusal> {
    let refuse = |status: u16, text: &str| Err((status, text.to_owned()));
    if request.method != "POST" {
        return refuse(405, "the method is not POST");
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let below = path.strip_prefix(&format!("/{}/", settings.hub));
    let publisher = match below {
        Some("messages") => None,
        Some(below) => below
            .strip_prefix("publishers/")
            .and_then(|below| below.strip_suffix("/messages"))
            .filter(|name| !name.is_empty() && !name.contains('/')),
        None => None,
    };
    if below != Some("messages") && publisher.is_none() {
        return refuse(404, "the path is not that of the hub");
    }
    let mut version = None;
    for parameter in query.split('&') {
        match parameter.split_once('=') {
            Some(("api-version", value)) => version = Some(value),
            Some(("timeout", value)) if value.parse::<u32>().is_ok() => {}
            _ => return refuse(400, "a parameter that is not known"),
        }
    }
    if version != Some("2014-01") {
        return refuse(400, "api-version is not 2014-01");
    }
    if request.header("host") != Some(settings.namespace.as_str()) {
        return refuse(400, "Host is not the namespace");
    }
    let is_single = match request.header("content-type") {
        Some("application/vnd.microsoft.servicebus.json") => false,
        Some("application/atom+xml;type=entry;charset=utf-8" | "application/gzip") => true,
        _ => {
            return refuse(
                400,
                "Content-Type is neither that of a batch, without parameters, nor of an event",
            );
        }
    };
    if request.header("transfer-encoding").is_some() || request.header("content-encoding").is_some() {
        return refuse(400, "the body is encoded");
    }
    check_token(
        request.header("authorization").unwrap_or_default(),
        settings,
        publisher,
        now,
    )
    .map_err(|text| (401, text))?;
    let key = match request.header("brokerproperties") {
        // The publisher is the partition key; another one contradicts it.
        None => publisher.map(str::to_owned),
        Some(_) if publisher.is_some() => return refuse(400, "a publisher sends no partition key"),
        Some(text) => match serde_json::from_str::<Value>(text).ok().and_then(|value| {
            value
                .get("PartitionKey")
                .and_then(Value::as_str)
                .map(str::to_owned)
        }) {
            Some(key) if !key.is_empty() && key.len() <= 128 => Some(key),
            _ => {
                return refuse(
                    400,
                    "BrokerProperties has no partition key of at most 128 characters",
                );
            }
        },
    };
    let events = match is_single {
        true => vec![single(request)],
        false => events(&request.body).map_err(|text| (400, text.to_owned()))?,
    };
    Ok((key, events))
}

/// A single event: the body as it is; headers that are not HTTP's own are its properties.
fn single(request: &Request) -> Event {
    const OWN: [&str; 9] = [
        "host",
        "content-type",
        "content-length",
        "authorization",
        "brokerproperties",
        "x-ms-retrypolicy",
        "user-agent",
        "accept",
        "accept-encoding",
    ];
    let properties = request
        .headers
        .iter()
        .filter(|(name, _)| !OWN.contains(&name.as_str()));
    let properties = properties.map(|(name, value)| {
        let typed = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value.as_str()));
        (name.clone(), typed)
    });
    (request.body.clone(), properties.collect())
}

fn events(body: &[u8]) -> Result<Vec<Event>, &'static str> {
    let Ok(Value::Array(elements)) = serde_json::from_slice(body) else {
        return Err("the body is not a JSON array");
    };
    if elements.is_empty() {
        return Err("the batch is empty");
    }
    elements
        .into_iter()
        .map(|element| {
            let Value::Object(mut members) = element else {
                return Err("an element is not an object");
            };
            let Some(Value::String(body)) = members.remove("Body") else {
                return Err("Body of an element is not a string");
            };
            let body = match members.remove("IsBodyBase64") {
                None | Some(Value::Bool(false)) => body.into_bytes(),
                Some(Value::Bool(true)) => base64::prelude::BASE64_STANDARD
                    .decode(body)
                    .map_err(|_| "Body is not base64 although IsBodyBase64 says so")?,
                Some(_) => return Err("IsBodyBase64 is not a boolean"),
            };
            let properties = match members.remove("UserProperties") {
                None => Map::new(),
                Some(Value::Object(properties)) => properties,
                Some(_) => return Err("UserProperties is not an object"),
            };
            if properties
                .values()
                .any(|value| value.is_object() || value.is_array() || value.is_null())
            {
                return Err("a user property is neither text, number nor boolean");
            }
            match members.is_empty() {
                true => Ok((body, properties)),
                false => Err("an element has a member that is not known"),
            }
        })
        .collect()
}

/// Checks `SharedAccessSignature sr=..&sig=..&se=..&skn=..`.
fn check_token(header: &str, settings: &Settings, publisher: Option<&str>, now: u64) -> Result<(), String> {
    let fields = header
        .strip_prefix("SharedAccessSignature ")
        .ok_or("the authorization is no shared access signature")?;
    let mut found: HashMap<&str, &str> = HashMap::new();
    for field in fields.split('&') {
        let (name, value) = field.split_once('=').ok_or("a field of the token has no value")?;
        if found.insert(name, value).is_some() {
            return Err("a field of the token is there twice".to_owned());
        }
    }
    let mut field = |name: &str| found.remove(name).ok_or(format!("the token has no {name}"));
    let (resource, signature, expiry, rule) = (field("sr")?, field("sig")?, field("se")?, field("skn")?);
    if !found.is_empty() {
        return Err("the token has a field that is not known".to_owned());
    }
    let decoded = decode(resource)
        .ok_or("sr is not percent-encoded")?
        .to_ascii_lowercase();
    let mut here = format!("https://{}/{}", settings.namespace, settings.hub);
    if let Some(publisher) = publisher {
        here = format!("{here}/publishers/{publisher}").to_ascii_lowercase();
    }
    let within = here
        .strip_prefix(decoded.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !within || !decoded.starts_with("https://") {
        return Err("InvalidSignature: the token is for another resource".to_owned());
    }
    if decode(rule).as_deref() != Some(settings.rule.0.as_str()) {
        return Err("InvalidSignature: no such rule".to_owned());
    }
    let mut hmac =
        hmac::Hmac::<sha2::Sha256>::new_from_slice(settings.rule.1.as_bytes()).expect("any length");
    hmac.update(format!("{resource}\n{expiry}").as_bytes());
    let given = decode(signature)
        .and_then(|text| base64::prelude::BASE64_STANDARD.decode(text).ok())
        .ok_or("sig is not base64")?;
    hmac.verify_slice(&given)
        .map_err(|_| "InvalidSignature: the token has an invalid signature")?;
    match expiry.parse::<u64>() {
        Ok(expiry) if expiry > now => Ok(()),
        Ok(_) => Err("ExpiredToken: the token has expired".to_owned()),
        Err(_) => Err("se is not a number".to_owned()),
    }
}

/// Percent-decoding that takes only what had to be encoded: unreserved characters and `%XX`.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => bytes.push(byte),
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answer of `vectors/eventhubs/sas-token-vectors.json`; good until 1,700,000,000.
    const TOKEN: &str = "SharedAccessSignature sr=https%3A%2F%2Fcontoso.servicebus.windows.net%2Fdevicedata&sig=fEsV8oZvL5rkyDGo9lLmLAQKAcVC8PMI9GOJOCnnEo4%3D&se=1700000000&skn=devicedatasender";

    fn settings() -> Settings {
        Settings {
            namespace: "contoso.servicebus.windows.net".to_owned(),
            hub: "devicedata".to_owned(),
            rule: (
                "devicedatasender".to_owned(),
                "c2VjcmV0LWtleS1mb3ItdGVzdHM=".to_owned(),
            ),
            ..Settings::default()
        }
    }

    fn good() -> Request {
        let headers = [
            ("host", "contoso.servicebus.windows.net"),
            ("content-type", "application/vnd.microsoft.servicebus.json"),
            ("authorization", TOKEN),
            ("brokerproperties", "{\"PartitionKey\":\"bed-12\"}"),
        ];
        Request {
            method: "POST".to_owned(),
            target: "/devicedata/messages?timeout=60&api-version=2014-01".to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            body: br#"[{"Body":"Message1","UserProperties":{"Alert":"Strong Wind"}},{"Body":"Message2"}]"#
                .to_vec(),
            size: 500,
        }
    }

    fn with(name: &str, value: &str) -> Request {
        let mut request = good();
        request.headers.retain(|(known, _)| known != name);
        request.headers.push((name.to_owned(), value.to_owned()));
        request
    }

    #[test]
    fn what_azure_documents_is_taken() {
        let (key, events) = check(&good(), &settings(), 1_699_999_999).unwrap();
        assert_eq!((key.as_deref(), events.len()), (Some("bed-12"), 2));
        let mut single = with("content-type", "application/atom+xml;type=entry;charset=utf-8");
        single
            .headers
            .push(("alert".to_owned(), "\"Strong Wind\"".to_owned()));
        single.body = vec![0xff, 0x00];
        let (_, events) = check(&single, &settings(), 1_699_999_999).unwrap();
        assert_eq!(events[0].0, [0xff, 0x00]);
        assert_eq!(events[0].1["alert"], "Strong Wind");
    }

    #[test]
    fn whatever_azure_refuses_is_refused() {
        let target = |target: &str| Request {
            target: target.to_owned(),
            ..good()
        };
        let body = |body: &str| Request {
            body: body.as_bytes().to_vec(),
            ..good()
        };
        let method = Request {
            method: "PUT".to_owned(),
            ..good()
        };
        let long = format!("{{\"PartitionKey\":\"{}\"}}", "x".repeat(129));
        let cases = [
            (method, 405),
            (target("/other/messages?timeout=60&api-version=2014-01"), 404),
            (target("/devicedata?timeout=60&api-version=2014-01"), 404),
            (target("/devicedata/messages?timeout=60"), 400),
            (target("/devicedata/messages?timeout=60&api-version=2017-04"), 400),
            (target("/devicedata/messages?api-version=2014-01&x=1"), 400),
            (with("host", "other.servicebus.windows.net"), 400),
            (with("content-type", "application/json"), 400),
            (
                with(
                    "content-type",
                    "application/vnd.microsoft.servicebus.json; charset=utf-8",
                ),
                400,
            ),
            (with("content-encoding", "gzip"), 400),
            (with("authorization", "Bearer x"), 401),
            (with("authorization", &TOKEN.replace("sig=f", "sig=g")), 401),
            (with("authorization", &TOKEN.replace("se=17", "se=18")), 401),
            (
                with("authorization", &TOKEN.replace("skn=device", "skn=other")),
                401,
            ),
            (
                with("authorization", &TOKEN.replace("devicedata&", "other&")),
                401,
            ),
            (with("authorization", &format!("{TOKEN}&x=1")), 401),
            (with("brokerproperties", &long), 400),
            (with("brokerproperties", "{}"), 400),
            (body("{}"), 400),
            (body("[]"), 400),
            (body("[1]"), 400),
            (body(r#"[{"Body":{"json":1}}]"#), 400),
            (body(r#"[{"Body":"x","Properties":{}}]"#), 400),
            (body(r#"[{"Body":"x","UserProperties":{"a":[1]}}]"#), 400),
            (body(r#"[{"Body":"%","IsBodyBase64":true}]"#), 400),
        ];
        for (number, (request, status)) in cases.iter().enumerate() {
            let refused = check(request, &settings(), 1_699_999_999).map_err(|(status, _)| status);
            assert_eq!(refused.err(), Some(*status), "case {number}");
        }
        let late = check(&good(), &settings(), 1_700_000_000).unwrap_err();
        assert!(late.0 == 401 && late.1.contains("ExpiredToken"), "{late:?}");
    }
}
