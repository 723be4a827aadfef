//! The interactions of FHIR REST on one resource, as a request of its own or as the entry of a Bundle.

use super::outcome::Refusal;
use super::store::{Kind, Store, Stored, Undo};
use super::{search, validate};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request, from HTTP or from a Bundle entry.
#[derive(Default)]
pub(super) struct Request {
    pub method: String,
    /// Path below the base, without slashes at the ends.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub if_none_exist: Option<String>,
    pub body: Option<Value>,
}

/// What was done.
pub(super) struct Answer {
    pub status: u16,
    pub body: Body,
}

pub(super) enum Body {
    /// A resource with its version.
    Stored(Arc<Stored>),
    /// Anything else.
    Plain(Value),
    /// Nothing (304).
    None,
}

/// What a request needs to know of its surroundings.
pub(super) struct Context<'a> {
    pub store: &'a mut Store,
    /// Base address, for links.
    pub base: &'a str,
    /// How to take back what was written.
    pub undo: Vec<Undo>,
    /// Within a transaction references are checked when all is written.
    pub defer_references: bool,
    /// Ids given out in advance to the entries of a transaction.
    pub next_id: Option<String>,
}

/// The query of an address as pairs.
pub(super) fn query(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let address = format!("/?{text}");
    address
        .parse()
        .ok()
        .and_then(|uri| axum::extract::Query::try_from_uri(&uri).ok())
        .map(|axum::extract::Query(pairs)| pairs)
        .ok_or_else(|| Refusal::invalid("the query cannot be read"))
}

impl Context<'_> {
    /// Carries a request out.
    pub fn perform(&mut self, request: Request) -> Result<Answer, Refusal> {
        let path = request.path.clone();
        let mut path = path.split('/');
        let (first, id, more) = (path.next().unwrap_or_default(), path.next(), path.next());
        if (request.method.as_str(), first, id) == ("GET", "metadata", None) {
            return Ok(Answer {
                status: 200,
                body: Body::Plain(capabilities(self.base)),
            });
        }
        let Some(kind) = Kind::from_name(first) else {
            return Err(Refusal::new(
                404,
                "not-supported",
                format!("no resource type {first} on this server"),
            ));
        };
        match (request.method.as_str(), id, more) {
            ("GET", None, _) => self.search(kind, &request.query),
            ("GET", Some(id), None) => self.read(kind, id, request.if_none_match.as_deref()),
            ("GET", Some(id), Some("_history")) => self.history(kind, id),
            ("POST", None, _) => self.create(kind, request),
            ("PUT", Some(id), None) => self.update(kind, id, request),
            ("PUT", None, _) => self.conditional_update(kind, request),
            (method, ..) => Err(Refusal::not_done(format!("{method} {}", kind.name()))),
        }
    }

    fn read(&self, kind: Kind, id: &str, if_none_match: Option<&str>) -> Result<Answer, Refusal> {
        let stored = self
            .store
            .get(kind, id)
            .ok_or_else(|| Refusal::new(404, "not-found", format!("no such {}", kind.name())))?;
        if if_none_match.is_some_and(|tag| version(tag) == Some(stored.version)) {
            return Ok(Answer {
                status: 304,
                body: Body::None,
            });
        }
        Ok(Answer {
            status: 200,
            body: Body::Stored(Arc::clone(stored)),
        })
    }

    /// All versions, the newest first, on one page.
    fn history(&self, kind: Kind, id: &str) -> Result<Answer, Refusal> {
        let Some(versions) = self.store.versions(kind, id) else {
            return Err(Refusal::not_done(format!("history of {}", kind.name())));
        };
        let entries: Vec<Value> = versions
            .iter()
            .rev()
            .map(|stored| json!({ "resource": stored.resource }))
            .collect();
        Ok(Answer {
            status: 200,
            body: Body::Plain(json!({ "resourceType": "Bundle", "type": "history", "entry": entries })),
        })
    }

    fn search(&self, kind: Kind, query: &[(String, String)]) -> Result<Answer, Refusal> {
        let found = search::search(self.store, kind, query)?;
        let mut bundle = json!({ "resourceType": "Bundle", "type": "searchset", "total": found.total });
        if let Some(next) = found.next.filter(|_| !found.count_only) {
            let mut parameters = String::new();
            for (name, value) in query.iter().filter(|(name, _)| name != "_offset") {
                parameters.push_str(&format!("{name}={}&", percent_encoded(value)));
            }
            let url = format!("{}/{}?{parameters}_offset={next}", self.base, kind.name());
            set(&mut bundle, "link", json!([{ "relation": "next", "url": url }]));
        }
        if !found.count_only && !found.page.is_empty() {
            let entries = found.page.iter().map(|stored| {
                json!({
                    "fullUrl": format!("{}/{}/{}", self.base, kind.name(), id_of(&stored.resource)),
                    "resource": stored.resource,
                    "search": { "mode": "match" }
                })
            });
            set(&mut bundle, "entry", entries.collect());
        }
        Ok(Answer {
            status: 200,
            body: Body::Plain(bundle),
        })
    }

    /// Ids of the resources that the query of a conditional interaction finds.
    fn matches(&self, kind: Kind, query: &[(String, String)]) -> Result<Vec<Arc<Stored>>, Refusal> {
        if query.is_empty() {
            return Err(Refusal::new(412, "required", "a condition without criteria"));
        }
        Ok(search::search(self.store, kind, query)?.page)
    }

    fn create(&mut self, kind: Kind, request: Request) -> Result<Answer, Refusal> {
        if let Some(condition) = &request.if_none_exist {
            match self.matches(kind, &query(condition)?)?.as_slice() {
                [] => {}
                [stored] => {
                    return Ok(Answer {
                        status: 200,
                        body: Body::Stored(Arc::clone(stored)),
                    });
                }
                _ => {
                    return Err(Refusal::new(
                        412,
                        "multiple-matches",
                        "If-None-Exist finds more than one",
                    ));
                }
            }
        }
        let id = self.next_id.take().unwrap_or_else(crate::random::id);
        self.write(kind, &id, request.body)
    }

    fn update(&mut self, kind: Kind, id: &str, request: Request) -> Result<Answer, Refusal> {
        if !validate::is_id(id) {
            return Err(Refusal::invalid("the address holds no FHIR id"));
        }
        let given = request
            .body
            .as_ref()
            .and_then(|body| body.get("id"))
            .and_then(Value::as_str);
        if given != Some(id) {
            return Err(Refusal::invalid(
                "id of the resource and id of the address differ",
            ));
        }
        let current = self.store.get(kind, id).map(|stored| stored.version);
        check_version(current, &request)?;
        self.write(kind, id, request.body)
    }

    fn conditional_update(&mut self, kind: Kind, request: Request) -> Result<Answer, Refusal> {
        let found = self.matches(kind, &request.query)?;
        let given = request
            .body
            .as_ref()
            .and_then(|body| body.get("id"))
            .and_then(Value::as_str);
        let id = match found.as_slice() {
            [] => match given {
                Some(id) if self.store.get(kind, id).is_some() => {
                    return Err(Refusal::new(
                        409,
                        "conflict",
                        "the id belongs to a resource that the condition does not find",
                    ));
                }
                Some(id) => id.to_owned(),
                None => self.next_id.take().unwrap_or_else(crate::random::id),
            },
            [stored] => {
                let id = id_of(&stored.resource);
                if given.is_some_and(|given| given != id) {
                    return Err(Refusal::invalid("the condition finds a resource with another id"));
                }
                check_version(Some(stored.version), &request)?;
                id.to_owned()
            }
            _ => {
                return Err(Refusal::new(
                    412,
                    "multiple-matches",
                    "the condition finds more than one",
                ));
            }
        };
        self.write(kind, &id, request.body)
    }

    fn write(&mut self, kind: Kind, id: &str, body: Option<Value>) -> Result<Answer, Refusal> {
        let resource = body.ok_or_else(|| Refusal::required("no resource in the request"))?;
        validate::shape(kind, &resource)?;
        if !self.defer_references {
            validate::references(self.store, kind, &resource)?;
        }
        let (stored, undo) = self.store.put(kind, id, resource);
        self.undo.push(undo);
        let status = if stored.version == 1 { 201 } else { 200 };
        Ok(Answer {
            status,
            body: Body::Stored(stored),
        })
    }
}

/// `If-Match` and `If-None-Match: *` of an update.
fn check_version(current: Option<u64>, request: &Request) -> Result<(), Refusal> {
    if let Some(tag) = &request.if_match
        && (current.is_none() || version(tag) != current)
    {
        return Err(Refusal::new(
            412,
            "conflict",
            "If-Match names another version than the one here",
        ));
    }
    if request.if_none_match.as_deref() == Some("*") && current.is_some() {
        return Err(Refusal::new(
            412,
            "conflict",
            "If-None-Match: * and the resource exists",
        ));
    }
    Ok(())
}

/// The version in `W/"3"`.
fn version(tag: &str) -> Option<u64> {
    tag.trim().trim_start_matches("W/").trim_matches('"').parse().ok()
}

pub(super) fn id_of(resource: &Value) -> &str {
    resource.get("id").and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}

/// RFC 3986: everything but unreserved characters as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// What this server does, for `GET /metadata`.
fn capabilities(base: &str) -> Value {
    let codes = |names: &[&str]| {
        names
            .iter()
            .map(|code| json!({ "code": code }))
            .collect::<Value>()
    };
    let search = |kind: Kind| {
        let mut parameters = vec![("identifier", "token"), ("_id", "token")];
        match kind {
            Kind::Patient => {}
            Kind::Device | Kind::Encounter => parameters.push(("patient", "reference")),
            Kind::DeviceUseStatement => {
                parameters.extend([("patient", "reference"), ("device", "reference")]);
            }
            Kind::Observation => parameters.extend([
                ("patient", "reference"),
                ("subject", "reference"),
                ("device", "reference"),
                ("encounter", "reference"),
                ("code", "token"),
                ("status", "token"),
                ("date", "date"),
            ]),
        }
        parameters
            .iter()
            .map(|(name, of)| json!({ "name": name, "type": of }))
            .collect::<Value>()
    };
    let resources: Value = Kind::ALL
        .iter()
        .map(|kind| {
            json!({
                "type": kind.name(),
                "interaction": codes(&["read", "create", "update", "search-type"]),
                "versioning": "versioned-update",
                "readHistory": false,
                "updateCreate": true,
                "conditionalCreate": true,
                "conditionalRead": "not-match",
                "conditionalUpdate": true,
                "conditionalDelete": "not-supported",
                "searchParam": search(*kind)
            })
        })
        .collect();
    json!({
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-01",
        "kind": "instance",
        "software": { "name": "bedside-agent demo server", "version": env!("CARGO_PKG_VERSION") },
        "implementation": { "description": "A small subset of FHIR R4 in memory", "url": base },
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "rest": [{
            "mode": "server",
            "resource": resources,
            "interaction": codes(&["batch", "transaction"])
        }]
    })
}
