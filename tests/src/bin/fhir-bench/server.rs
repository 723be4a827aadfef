//! The server as a process of its own, and how it is asked what it has seen.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The server's process.
pub struct Served {
    child: Child,
    /// Its base address.
    pub base: String,
}

/// What the server has seen since it was told to forget.
pub struct Seen {
    pub requests: u64,
    pub bytes: u64,
    pub observations: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
}

impl Served {
    /// Starts it, with a round trip of so many milliseconds.
    pub fn start(rtt: u64) -> anyhow::Result<Served> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", &rtt.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let base = format!("http://127.0.0.1:{}", line.trim());
        Ok(Served { child, base })
    }

    /// Refuses everything for now, or not; what was seen is forgotten.
    pub fn refuse(&self, yes: bool) -> anyhow::Result<()> {
        self.ask(if yes { "/refuse" } else { "/serve" }).map(drop)
    }

    pub fn seen(&self) -> anyhow::Result<Seen> {
        let seen = self.ask("/seen")?;
        let number = |name: &str| seen[name].as_u64().unwrap_or(0);
        Ok(Seen {
            requests: number("requests"),
            bytes: number("bytes"),
            observations: number("observations"),
            seconds: number("microseconds") as f64 / 1e6,
        })
    }

    fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(self.base.trim_start_matches("http://"))?;
        write!(stream, "GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").context("an answer")?;
        Ok(serde_json::from_str(body)?)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the server holds: path -> version and resource. Kept as small as an honest answer allows.
#[derive(Default)]
struct Server {
    held: Mutex<HashMap<String, (u64, String)>>,
    log: Mutex<Log>,
    refuses: AtomicBool,
}

#[derive(Default)]
struct Log {
    requests: u64,
    bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Is the server, until it is killed.
pub fn serve(rtt: u64) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let server = Arc::new(Server::default());
    for stream in listener.incoming() {
        let server = Arc::clone(&server);
        let stream = stream?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || server.connection(stream, Duration::from_millis(rtt)));
    }
    Ok(())
}

impl Server {
    fn connection(&self, stream: TcpStream, rtt: Duration) -> anyhow::Result<()> {
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
            let ours = head.split(' ').nth(1).and_then(|path| self.question(path));
            let (status, answer) = match &ours {
                Some(answer) => (200, answer.to_string()),
                None => self.fhir(&head, &body, rtt)?,
            };
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/fhir+json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            reader.get_mut().write_all((head + &answer).as_bytes())?;
            if ours.is_some() {
                return Ok(());
            }
        }
    }

    /// Questions of the measuring program.
    fn question(&self, path: &str) -> Option<Value> {
        let mut log = self.log.lock().ok()?;
        match path {
            "/refuse" | "/serve" => {
                self.refuses.store(path == "/refuse", Ordering::Relaxed);
                *log = Log::default();
                Some(Value::Null)
            }
            "/seen" => {
                let took = log.first.zip(log.last).map(|(first, last)| last - first);
                let held = self.held.lock().ok()?.len();
                Some(
                    json!({"requests": log.requests, "bytes": log.bytes, "observations": held,
                    "microseconds": took.unwrap_or_default().as_micros() as u64}),
                )
            }
            _ => None,
        }
    }

    fn fhir(&self, head: &str, body: &[u8], rtt: Duration) -> anyhow::Result<(u16, String)> {
        let poisoned = |_| anyhow::anyhow!("poisoned");
        if self.refuses.load(Ordering::Relaxed) {
            return Ok((503, "{}".to_owned()));
        }
        {
            let mut log = self.log.lock().map_err(poisoned)?;
            log.requests += 1;
            log.bytes += (head.len() + body.len()) as u64;
            log.first.get_or_insert_with(Instant::now);
        }
        // The round trip of the link; what the answer costs comes on top.
        std::thread::sleep(rtt);
        let answer = self.batch(&serde_json::from_slice(body)?)?;
        self.log.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.last = Some(Instant::now());
        Ok((200, answer))
    }

    fn batch(&self, bundle: &Bundle<'_>) -> anyhow::Result<String> {
        let mut held = self.held.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        let mut entries = Vec::new();
        for Entry { request, resource } in &bundle.entry {
            let url = request.url.as_ref();
            entries.push(match (request.method, url.split_once("?identifier=")) {
                ("GET", Some(("Device", identifier))) => {
                    let device = json!({"resourceType": "Device", "id": identifier, "identifier": [{"value": identifier}],
                        "patient": {"reference": format!("Patient/of-{identifier}")}});
                    found(&[json!({"resource": device})])
                }
                ("GET", Some(_)) => found(&[]),
                ("GET", None) => match held.get(url) {
                    Some((version, resource)) => format!(
                        r#"{{"resource":{resource},"response":{{"status":"200","etag":"W/\"{version}\""}}}}"#
                    ),
                    None => r#"{"response":{"status":"404"}}"#.to_owned(),
                },
                ("PUT", _) => {
                    let version = held.get(url).map_or(1, |(version, _)| version + 1);
                    let expected = request.if_match.as_deref();
                    if expected.is_some_and(|etag| etag != format!("W/\"{}\"", version - 1)) {
                        r#"{"response":{"status":"412"}}"#.to_owned()
                    } else {
                        let resource = resource.context("a resource")?.get().to_owned();
                        held.insert(url.to_owned(), (version, resource));
                        let status = if version == 1 { "201" } else { "200" };
                        format!(r#"{{"response":{{"status":"{status}","etag":"W/\"{version}\""}}}}"#)
                    }
                }
                _ => r#"{"response":{"status":"405"}}"#.to_owned(),
            });
        }
        let entries = entries.join(",");
        Ok(format!(
            r#"{{"resourceType":"Bundle","type":"batch-response","entry":[{entries}]}}"#
        ))
    }
}

/// A batch as it comes; resources stay text.
#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(borrow)]
    entry: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    request: Request<'a>,
    #[serde(borrow)]
    resource: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    method: &'a str,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    if_match: Option<Cow<'a, str>>,
}

fn found(entries: &[Value]) -> String {
    json!({"resource": {"resourceType": "Bundle", "type": "searchset", "entry": entries}, "response": {"status": "200"}})
        .to_string()
}
