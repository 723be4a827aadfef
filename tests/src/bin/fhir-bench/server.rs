//! The server as a process of its own, and how it is asked what it has seen.

use anyhow::Context as _;
use bedside_tests::batch_server::{
    self, Batch, Entry, answer_all, batch_response, device_of_somebody, found,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The server's process.
pub struct Served {
    _process: batch_server::Served,
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
        let process = batch_server::Served::start(rtt)?;
        let base = format!("http://127.0.0.1:{}", process.said);
        Ok(Served {
            _process: process,
            base,
        })
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
    let (server, rtt) = (Server::default(), Duration::from_millis(rtt));
    answer_all(&listener, move |head, body| {
        let asked = head.split(' ').nth(1).and_then(|path| server.question(path));
        match asked {
            Some(answer) => Ok((200, answer.to_string())),
            None => server.fhir(head, body, rtt),
        }
    })
}

impl Server {
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

    fn batch(&self, batch: &Batch<'_>) -> anyhow::Result<String> {
        let mut held = self.held.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        let mut entries = Vec::new();
        for Entry { request, resource } in &batch.entry {
            let url = request.url.as_ref();
            entries.push(match (request.method, url.split_once("?identifier=")) {
                ("GET", Some(("Device", identifier))) => device_of_somebody(identifier),
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
        Ok(batch_response(&entries))
    }
}
