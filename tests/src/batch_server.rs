//! What the FHIR server of a measuring program needs beside its answers: a process of its own, so that its work is not counted
//! as the agent's; connections that stay; batches, taken apart with as little work as an honest answer allows.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// The measuring program again, as its own server; ends with its owner.
pub struct Served {
    child: Child,
    /// The first line that it wrote.
    pub said: String,
}

impl Served {
    /// Starts `serve ARGUMENT` and waits for its first line.
    ///
    /// # Errors
    /// When this program cannot be started again.
    pub fn start(argument: u64) -> anyhow::Result<Served> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", &argument.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        Ok(Served {
            child,
            said: line.trim().to_owned(),
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Answers every request, given by its head and body, with a status and a text, until the process is ended.
///
/// # Errors
/// When no connection can be taken any more.
pub fn answer_all(
    listener: &TcpListener,
    answer: impl Fn(&str, &[u8]) -> anyhow::Result<(u16, String)> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let answer = Arc::new(answer);
    for stream in listener.incoming() {
        let (stream, answer) = (stream?, Arc::clone(&answer));
        stream.set_nodelay(true)?;
        std::thread::spawn(move || connection(stream, &*answer));
    }
    Ok(())
}

fn connection(
    stream: TcpStream,
    answer: &impl Fn(&str, &[u8]) -> anyhow::Result<(u16, String)>,
) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let member = |wanted: &str| {
            head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim())
            })
        };
        let length = member("content-length").map_or(Ok(0), str::parse)?;
        let is_last = member("connection") == Some("close");
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let (status, text) = answer(&head, &body)?;
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/fhir+json\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        reader.get_mut().write_all((head + &text).as_bytes())?;
        if is_last {
            return Ok(());
        }
    }
}

/// A batch as it comes; resources stay text.
#[derive(Deserialize)]
pub struct Batch<'a> {
    /// What is asked for, in order.
    #[serde(borrow)]
    pub entry: Vec<Entry<'a>>,
}

/// One interaction of a batch.
#[derive(Deserialize)]
pub struct Entry<'a> {
    /// What to do.
    #[serde(borrow)]
    pub request: Request<'a>,
    /// With what.
    #[serde(borrow)]
    pub resource: Option<&'a RawValue>,
}

/// `Bundle.entry.request`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// `GET` or `PUT`.
    pub method: &'a str,
    /// Of a resource, or of a search.
    #[serde(borrow)]
    pub url: Cow<'a, str>,
    /// The version that is changed.
    #[serde(borrow)]
    pub if_match: Option<Cow<'a, str>>,
}

/// The answer to a batch, of the answers to its entries.
pub fn batch_response(entries: &[String]) -> String {
    format!(
        r#"{{"resourceType":"Bundle","type":"batch-response","entry":[{}]}}"#,
        entries.join(",")
    )
}

/// The answer to a search for devices: there is one of this identifier, and somebody has it.
pub fn device_of_somebody(identifier: &str) -> String {
    let device = json!({"resourceType": "Device", "id": identifier, "identifier": [{"value": identifier}],
        "patient": {"reference": format!("Patient/of-{identifier}")}});
    found(&[json!({ "resource": device })])
}

/// The answer to a search.
pub fn found(entries: &[Value]) -> String {
    json!({"resource": {"resourceType": "Bundle", "type": "searchset", "entry": entries}, "response": {"status": "200"}})
        .to_string()
}
