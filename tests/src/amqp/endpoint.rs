//! The event hub of `tests/amqp-endpoint/endpoint.py`: AMQP 1.0 and claims-based security by another implementation.

use super::{HUB, NAMESPACE, PYTHON, Taken, certificate, script};
use crate::real::{Process, free_port, wait_for};
use serde_json::Value;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const RULE: (&str, &str) = ("gateway", "c2VjcmV0LWtleS1mb3ItdGVzdHM=");

/// A running endpoint; it ends when it is dropped.
pub struct AmqpEndpoint {
    folder: tempfile::TempDir,
    options: Vec<String>,
    port: u16,
    websocket: u16,
    control: u16,
    process: Option<Process>,
}

impl AmqpEndpoint {
    /// Starts an endpoint on free ports, with a certificate of its own and more options of the script.
    pub fn start(options: &[&str]) -> AmqpEndpoint {
        let folder = tempfile::tempdir().expect("a temporary folder");
        certificate(folder.path());
        std::fs::write(folder.path().join("key"), RULE.1).expect("the key of the rule is written");
        let mut endpoint = AmqpEndpoint {
            folder,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            port: free_port(),
            websocket: free_port(),
            control: free_port(),
            process: None,
        };
        endpoint.run();
        endpoint
    }

    /// Starts the process (again), with nothing of what it had.
    pub fn run(&mut self) {
        let file = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(PYTHON);
        command
            .arg(script("endpoint.py"))
            .args(["--port", &self.port.to_string()])
            .args(["--control", &self.control.to_string()])
            .args(["--websocket", &self.websocket.to_string()])
            .args(["--plain-port", &free_port().to_string()])
            .args(["--namespace", NAMESPACE, "--hub", HUB])
            .args(["--rule", &format!("{}={}", RULE.0, RULE.1)])
            .arg("--certificate")
            .arg(file("ca.pem"))
            .arg("--key")
            .arg(file("key.pem"))
            .args(&self.options)
            // Every frame with all its fields.
            .env("PN_TRACE_FRM", "1");
        self.process = Some(Process::start("endpoint.py", &mut command, &self.log_file()));
        for port in [self.port, self.control, self.websocket] {
            wait_for("the endpoint listens", Duration::from_secs(30), || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
    }

    /// Ends the process at once.
    pub fn stop(&mut self) {
        self.process = None;
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it said, with every frame.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// PEM file of the authority to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// File that holds the key of the rule.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// `host:port` for `transport`.
    pub fn address(&self, transport: &str) -> String {
        let port = if transport == "amqp" {
            self.port
        } else {
            self.websocket
        };
        format!("127.0.0.1:{port}")
    }

    /// Address of its token endpoint (OAuth 2 client credentials with the secret `client-secret`).
    pub fn token_url(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.control)
    }

    /// A `[[destination]]` of `agent.toml` that sends here.
    pub fn destination(&self, transport: &str) -> String {
        format!(
            "[[destination]]\nname = \"cloud\"\nkind = \"event-hub\"\ntransport = \"{transport}\"\n\
             namespace = \"{NAMESPACE}\"\nhub = \"{HUB}\"\nendpoint = \"{}\"\nmax_batch_bytes = 1048576\n\
             tls = {{ ca_file = \"{}\" }}\n\
             auth = {{ kind = \"sas\", key_name = \"{}\", key = \"file:{}\" }}\n",
            self.address(transport),
            self.ca_file().display(),
            RULE.0,
            self.key_file().display()
        )
    }

    /// Tells it how to behave: members of `Behaviour` in the script.
    pub fn behave(&self, how: &Value) {
        ureq::post(format!("http://127.0.0.1:{}/behave", self.control))
            .send(how.to_string())
            .expect("the endpoint is there");
    }

    /// All that it knows.
    pub fn state(&self) -> Value {
        let text = ureq::get(format!("http://127.0.0.1:{}/state", self.control))
            .call()
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .expect("the endpoint is there");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Everything that was taken, in order.
    pub fn events(&self) -> Vec<Taken> {
        let state = self.state();
        let events = state["events"].as_array().expect("events");
        events.iter().map(Taken::of).collect()
    }

    /// Why it refused, in order, but for what it was told to refuse.
    pub fn refusals(&self) -> Vec<String> {
        let state = self.state();
        let refusals = state["refusals"].as_array().expect("refusals").iter();
        refusals
            .map(|text| text.as_str().unwrap_or_default().to_owned())
            .collect()
    }
}
