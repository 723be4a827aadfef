//! What a FHIR server does with an interaction: reads, searches that lag behind, writes under a version.

use super::{Held, State, outcome, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// One interaction.
pub(super) struct Ask<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) resource: Option<Value>,
    pub(super) if_match: Option<&'a str>,
    pub(super) if_none_match: bool,
}

/// Status, version and body.
type Told = (u16, Option<u64>, Value);

impl State {
    pub(super) fn batch(&mut self, bundle: &Value, now_us: u64) -> Told {
        let entries = bundle["entry"].as_array().cloned().unwrap_or_default();
        if entries.len() > self.ways.most_entries {
            return (413, None, outcome("too-long"));
        }
        let answers: Vec<Value> = entries.iter().map(|entry| self.entry(entry, now_us)).collect();
        let bundle = json!({"resourceType": "Bundle", "type": "batch-response", "entry": answers});
        (200, None, bundle)
    }

    fn entry(&mut self, entry: &Value, now_us: u64) -> Value {
        let request = &entry["request"];
        let method = text(request, "method");
        let is_write = method == "PUT";
        if let Some(status) = self.weather.of_entry().filter(|_| is_write) {
            self.seen.refused_entries += 1;
            return json!({"response": {"status": status.to_string(), "outcome": outcome("transient")}});
        }
        let ask = Ask {
            method,
            path: text(request, "url"),
            resource: entry.get("resource").cloned(),
            if_match: request["ifMatch"].as_str(),
            if_none_match: request["ifNoneMatch"] == "*",
        };
        let (status, version, told) = self.perform(ask, now_us);
        let mut response = json!({"status": status.to_string()});
        if let Some(version) = version {
            response["etag"] = json!(format!("W/\"{version}\""));
        }
        if status == 201 {
            response["location"] = json!(format!("Observation/{}/_history/1", text(&told, "id")));
        }
        match status {
            200..300 if is_write => json!({"response": response}),
            200..300 => json!({"response": response, "resource": told}),
            _ => {
                response["outcome"] = told;
                json!({"response": response})
            }
        }
    }

    pub(super) fn perform(&mut self, ask: Ask<'_>, now_us: u64) -> Told {
        let (path, query) = match ask.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (ask.path, None),
        };
        match (ask.method, query) {
            ("GET", _) if path == "metadata" => {
                let observation = json!({"type": "Observation", "updateCreate": self.ways.client_ids});
                let rest = json!([{"mode": "server", "resource": [observation]}]);
                let statement = json!({"resourceType": "CapabilityStatement", "rest": rest});
                (200, None, statement)
            }
            ("GET", _) if path.ends_with("/_history") => (501, None, outcome("not-supported")),
            ("GET", Some(query)) => {
                let found = self.search(path, query, now_us);
                let entries: Vec<Value> = found
                    .iter()
                    .map(|path| json!({"resource": self.held[path].resource, "search": {"mode": "match"}}))
                    .collect();
                let bundle = json!({"resourceType": "Bundle", "type": "searchset", "entry": entries});
                (200, None, bundle)
            }
            ("GET", None) => match self.held.get(path) {
                Some(held) => (200, Some(held.version), held.resource.clone()),
                None if self.deleted.contains_key(path) => (410, None, outcome("deleted")),
                None => (404, None, outcome("not-found")),
            },
            ("PUT", _) => self.write(&ask, path, query, now_us),
            _ => (405, None, outcome("not-supported")),
        }
    }

    fn write(&mut self, ask: &Ask<'_>, path: &str, query: Option<&str>, now_us: u64) -> Told {
        let Some(mut resource) = ask.resource.clone() else {
            return (400, None, outcome("required"));
        };
        let mut path = path.to_owned();
        if let Some(query) = query {
            // A conditional update sees no more than a search does.
            match self.search(&path, query, now_us).as_slice() {
                [] => {
                    self.next_id += 1;
                    path = format!("{path}/server-{}", self.next_id);
                }
                [one] => path = one.clone(),
                _ => return (412, None, outcome("multiple-matches")),
            }
            resource["id"] = json!(path.split('/').nth(1));
        }
        let held = self.held.get(&path).map(|held| held.version);
        if ask.if_match.is_some() && held.is_none() && self.deleted.contains_key(&path) {
            return (410, None, outcome("deleted"));
        }
        let asked = ask
            .if_match
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        if asked.is_some_and(|asked| held.map(|version| version.to_string()).as_deref() != Some(asked))
            || ask.if_none_match && self.ways.honours_none_match && held.is_some()
        {
            return (412, None, outcome("conflict"));
        }
        if held.is_none() && query.is_none() && !self.ways.client_ids {
            return (405, None, outcome("not-supported"));
        }
        self.seen.writes += 1;
        self.put(&path, resource, now_us);
        let held = &self.held[&path];
        let status = if held.version == 1 { 201 } else { 200 };
        (status, Some(held.version), held.resource.clone())
    }

    pub(super) fn put(&mut self, path: &str, mut resource: Value, now_us: u64) {
        let lag = match self.ways.index_lag_us {
            0 => 0,
            most => self.weather.chance.below(most),
        };
        let (version, indexed_us) = match self.held.get(path) {
            Some(held) => (held.version + 1, held.indexed_us),
            None => (1, now_us + lag),
        };
        resource["meta"]["versionId"] = json!(version.to_string());
        for value in identifiers(&resource) {
            self.index.entry(value).or_default().insert(path.to_owned());
        }
        let held = Held {
            resource,
            version,
            indexed_us,
        };
        self.held.insert(path.to_owned(), held);
    }

    /// Paths of what a search by identifier shows.
    fn search(&self, kind: &str, query: &str, now_us: u64) -> Vec<String> {
        let Some(tokens) = query.split('&').find_map(|part| part.strip_prefix("identifier=")) else {
            return Vec::new();
        };
        let prefix = format!("{kind}/");
        let mut found = BTreeSet::new();
        for token in decode(tokens).split(',') {
            let value = token.rsplit('|').next().unwrap_or(token).replace('\\', "");
            let paths = self.index.get(&value).into_iter().flatten();
            let shown = paths.filter(|path| {
                path.starts_with(&prefix)
                    && self.held.get(*path).is_some_and(|held| held.indexed_us <= now_us)
            });
            found.extend(shown.cloned());
        }
        found.into_iter().collect()
    }
}

/// Values of the identifiers of a resource.
pub(super) fn identifiers(resource: &Value) -> Vec<String> {
    let identifiers = resource["identifier"].as_array().into_iter().flatten();
    identifiers
        .filter_map(|identifier| identifier["value"].as_str().map(str::to_owned))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |rest: &mut std::str::Bytes<'_>| Some([rest.next()?, rest.next()?]);
        match byte {
            b'%' => {
                let pair = hex(&mut rest).unwrap_or(*b"3F");
                let pair = std::str::from_utf8(&pair).unwrap_or("3F");
                bytes.push(u8::from_str_radix(pair, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}
