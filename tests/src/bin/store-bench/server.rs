//! A FHIR server, as a process of its own, that answers every batch at once and keeps nothing but counts.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::json;
use std::borrow::Cow;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// The server's process; ends with its owner.
pub struct Server(Child);

impl Server {
    /// Listens on `port`.
    pub fn start(port: u16) -> anyhow::Result<Server> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        Ok(Server(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The server, until the process is ended.
pub fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("listening");
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || connection(stream));
    }
    Ok(())
}

fn connection(stream: TcpStream) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let answer = answer(&serde_json::from_slice(&body)?);
        write!(
            reader.get_mut(),
            "HTTP/1.1 200 OK\r\ncontent-type: application/fhir+json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
}

/// Every device is known and belongs to somebody, no Observation is there yet, and each one is taken.
fn answer(bundle: &Bundle<'_>) -> String {
    let mut entries = String::new();
    for (number, Entry { request }) in bundle.entry.iter().enumerate() {
        if number > 0 {
            entries.push(',');
        }
        match (request.method, request.url.split_once("?identifier=")) {
            ("GET", Some(("Device", identifier))) => {
                let device = json!({"resourceType": "Device", "id": identifier, "identifier": [{"value": identifier}],
                    "patient": {"reference": format!("Patient/of-{identifier}")}});
                let found = json!({"resource": {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": device}]},
                    "response": {"status": "200"}});
                entries.push_str(&found.to_string());
            }
            ("GET", Some(_)) => entries.push_str(
                r#"{"resource":{"resourceType":"Bundle","type":"searchset","entry":[]},"response":{"status":"200"}}"#,
            ),
            ("PUT", _) => entries.push_str(r#"{"response":{"status":"201","etag":"W/\"1\""}}"#),
            _ => entries.push_str(r#"{"response":{"status":"404"}}"#),
        }
    }
    format!(r#"{{"resourceType":"Bundle","type":"batch-response","entry":[{entries}]}}"#)
}

#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(borrow)]
    entry: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    request: Request<'a>,
}

#[derive(Deserialize)]
struct Request<'a> {
    method: &'a str,
    #[serde(borrow)]
    url: Cow<'a, str>,
}
