//! The FHIR server of `tests/fhir-server` as a child process: started on a free port, misbehaving on demand, ended with
//! its handle.

use bedside_agent::config::TlsConfig;
use bedside_agent::forward::http::{HttpClient as _, HttpRequest, Method, UreqClient};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running server.
pub struct FhirServer {
    child: Child,
    /// Its base address.
    pub base: String,
    client: UreqClient,
}

/// A resource that the server holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// How often it was written.
    pub versions: u64,
    /// The resource.
    pub resource: Value,
}

impl FhirServer {
    /// Starts a server with these arguments (`--if-none-match`).
    ///
    /// # Panics
    /// When it cannot be started; the text says what is missing.
    pub fn start(arguments: &[&str]) -> FhirServer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fhir-server");
        assert!(
            folder.join("node_modules").is_dir(),
            "the FHIR server is not installed: run tests/run fhir once, or npm ci in tests/fhir-server"
        );
        let mut child = Command::new("node")
            .arg("server.mjs")
            .arg("0")
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output is piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it tells its port");
        let told: Value = serde_json::from_str(&line).expect("its first line is JSON");
        FhirServer {
            child,
            base: format!("http://127.0.0.1:{}", told["port"]),
            client: UreqClient::new(TlsConfig::default(), None),
        }
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let url = format!("{}/{path}", self.base);
        let request = match body {
            Some(body) => HttpRequest::with_body(method, url, body.to_string().into_bytes())
                .header("content-type", "application/fhir+json"),
            None => HttpRequest::get(url),
        };
        let response = self.client.execute(request).expect("the server answers");
        assert!(response.is_success(), "{method:?} {path}: {}", response.status);
        serde_json::from_slice(response.body.bytes()).expect("the server answers in JSON")
    }

    /// Puts a resource there.
    pub fn put(&self, resource: &Value) {
        let path = format!(
            "{}/{}",
            resource["resourceType"].as_str().expect("a type"),
            resource["id"].as_str().expect("an id")
        );
        self.ask(Method::Put, &path, Some(resource));
    }

    /// Makes the server misbehave, as `server.mjs` tells: `{"fail": 2, "status": 503}`, `{"drop": 1}`, `{"reset": 1}`,
    /// `{"delay": 50}`.
    pub fn fault(&self, fault: &Value) {
        self.ask(Method::Post, "$fault", Some(fault));
    }

    /// Everything of this type that it holds.
    pub fn held(&self, resource_type: &str) -> Vec<Held> {
        let all = self.ask(Method::Get, "$dump", None);
        let all = all.as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|held| held["resource"]["resourceType"] == resource_type)
            .map(|held| Held {
                versions: held["versions"].as_u64().unwrap_or(0),
                resource: held["resource"].clone(),
            })
            .collect()
    }

    /// `requests`, `entries`, `writes` and `refused` since the start.
    pub fn stats(&self) -> Value {
        self.ask(Method::Get, "$stats", None)
    }

    /// A Device with this identifier, linked to `Patient/<patient>`, and the Patient.
    pub fn put_device(&self, identifier: &str, patient: &str) {
        self.put(&json!({"resourceType": "Patient", "id": patient, "identifier": [{"value": patient}]}));
        self.put(
            &json!({"resourceType": "Device", "id": format!("device-{identifier}"),
            "identifier": [{"value": identifier}], "patient": {"reference": format!("Patient/{patient}")}}),
        );
    }
}

impl Drop for FhirServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
