//! Observations per second to a FHIR server that answers at once, at a given round trip, on one link: a backlog of messages
//! in a real store, drained by the agent as the service runs it.
//!
//! The server is this program again as a process of its own, so that the CPU that is counted is the agent's alone.
//!
//! Seen in a release build, on two cores that something else used too (`fhir-bench --rtt R --period P --count N`):
//!
//! | round trip | 100,000 single instants | 30,000 to 50,000 hourly Observations of ten readings |
//! |---|---|---|
//! | 0 ms | 32,892/s, 26 us of CPU each | 10,713/s, 91 us |
//! | 50 ms | 4,155/s, 32 us | 2,163/s, 130 us; 2,416/s where the memory of the periods is gone (`--memory-gone`) |
//! | 200 ms | 1,539/s, 33 us | 636/s, 130 us |
//!
//! Requests for each Observation: 0.0091, 0.0218, and 0.0119 without memory.
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context as _, bail, ensure};
use bedside_agent::agent::{self, RealSurroundings, StartedSource, Stopping, Surroundings};
use bedside_agent::clock;
use bedside_agent::config::{Config, DestinationConfig, SourceConfig};
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::{SourceContext, SourceHandle};
use bedside_agent::message::{Message, Payload, PayloadKind, Stamp};
use bedside_agent::packs::Notice;
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_agent::worker::Worker;
use bedside_tests::measure::ProcessUse;
use bedside_tests::real::root;
use iomt_mapping::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const USAGE: &str = "usage: fhir-bench [--rtt MILLISECONDS] [--period 0|60] [--memory-gone] [--count OBSERVATIONS]\n\
    \x20                 [--at-least OBSERVATIONS per second] [--requests-at-most PER OBSERVATION] [--folder DIR]\n\n\
    Without --rtt and --period all of them: 0, 50 and 200 ms, single instants, hourly SampledData, and hourly\n\
    SampledData that exists already and that the agent has forgotten (--memory-gone). One line of JSON each.";
const DEVICES: u64 = 10;
/// Readings of an hourly Observation; with --memory-gone the server has half of them.
const HOURLY: u64 = 10;
/// 2024-01-01: all periods are over, so that none waits for more readings.
const NOON: i64 = 17_040_672_000_000_000;

struct Arguments {
    rtts: Vec<u64>,
    kinds: Vec<Kind>,
    count: u64,
    at_least: f64,
    requests_at_most: f64,
    folder: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Hourly,
    /// Hourly, and the server has half of each Observation.
    Forgotten,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        rtts: vec![0, 50, 200],
        kinds: vec![Kind::Single, Kind::Hourly, Kind::Forgotten],
        count: 100_000,
        at_least: 0.0,
        requests_at_most: f64::MAX,
        folder: root().join("target"),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().context(USAGE);
        match word.as_str() {
            "--rtt" => parsed.rtts = vec![value()?.parse()?],
            "--period" if value()? == "0" => parsed.kinds = vec![Kind::Single],
            "--period" => parsed.kinds = vec![Kind::Hourly],
            "--memory-gone" => parsed.kinds = vec![Kind::Forgotten],
            "--count" => parsed.count = value()?.parse()?,
            "--at-least" => parsed.at_least = value()?.parse()?,
            "--requests-at-most" => parsed.requests_at_most = value()?.parse()?,
            "--folder" => parsed.folder = value()?.into(),
            _ => bail!(USAGE),
        }
    }
    Ok(parsed)
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return serve(std::env::args().nth(2).context("serve RTT")?.parse()?);
    }
    let arguments = arguments()?;
    for kind in &arguments.kinds {
        for rtt in &arguments.rtts {
            measure(&arguments, *kind, *rtt)?;
        }
    }
    Ok(())
}

/// Fills a store while the server refuses everything, then drains it with a new agent.
fn measure(arguments: &Arguments, kind: Kind, rtt: u64) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir_in(&arguments.folder)?;
    let server = Served::start(rtt)?;
    let count = arguments.count;
    let readings = if kind == Kind::Single {
        count
    } else {
        count * HOURLY
    };
    let mut half = 0;
    if kind == Kind::Forgotten {
        let folder = scratch.path().join("before");
        let flood = Flood { kind, count, half };
        run(config(&folder, kind, &server.base)?, flood, move |agent| {
            agent.summary().delivered >= readings / 2
        })?;
        half = 1;
    }
    server.refuse(true)?;
    let folder = scratch.path().join("now");
    let readings = if kind == Kind::Forgotten {
        readings / 2
    } else {
        readings
    };
    let flood = Flood { kind, count, half };
    run(config(&folder, kind, &server.base)?, flood, move |agent| {
        agent.unsent() >= readings
    })?;

    server.refuse(false)?;
    // The largest resident set counts from here on.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = ProcessUse::of(std::process::id())?;
    let nothing = Flood { kind, count: 0, half };
    run(config(&folder, kind, &server.base)?, nothing, |agent| {
        agent.unsent() == 0
    })?;
    let used = ProcessUse::of(std::process::id())?.since(&before);
    let seen = server.seen()?;
    let per_second = count as f64 / seen.seconds;
    let requests = seen.requests as f64 / count as f64;
    println!(
        "{}",
        json!({
            "rtt_ms": rtt,
            "period": if kind == Kind::Single { 0 } else { 60 },
            "memory_gone": kind == Kind::Forgotten,
            "observations": count,
            "observations_per_second": per_second.round(),
            "requests_per_observation": rounded(requests, 4),
            "bytes_per_observation": (seen.bytes as f64 / count as f64).round(),
            "cpu_us_per_observation": rounded(used.cpu_seconds * 1e6 / count as f64, 1),
            "peak_rss_mib": used.peak_rss_bytes / (1 << 20),
            "debug_build": cfg!(debug_assertions),
        })
    );
    ensure!(
        seen.observations == count,
        "the server holds {} Observations instead of {count}",
        seen.observations
    );
    ensure!(
        per_second >= arguments.at_least,
        "{per_second:.0} Observations per second, fewer than {}",
        arguments.at_least
    );
    ensure!(
        requests <= arguments.requests_at_most,
        "{requests:.4} requests per Observation, more than {}",
        arguments.requests_at_most
    );
    Ok(())
}

fn rounded(number: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (number * factor).round() / factor
}

/// The surroundings of the service, but for a source that hands over messages as fast as they are taken.
struct Flood {
    kind: Kind,
    count: u64,
    /// Which half of the readings of a forgotten Observation.
    half: u64,
}

impl Surroundings for Flood {
    fn store_worker(&self) -> io::Result<Worker> {
        RealSurroundings.store_worker()
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        RealSurroundings.pack_reader()
    }

    fn http(&self, destination: &DestinationConfig) -> io::Result<(Http, Http)> {
        RealSurroundings.http(destination)
    }

    fn start_source(&self, _: &SourceConfig, context: SourceContext) -> Result<StartedSource, ErrorRecord> {
        let handle = SourceHandle {
            id: context.id,
            name: context.name.clone(),
            acknowledger: None,
            window: 0,
        };
        let Flood { kind, count, half } = *self;
        Ok((
            handle,
            Box::pin(async move {
                for number in 0..count {
                    let text = text(kind, number, half);
                    if context.sender.send(message(text, &context)).await.is_err() {
                        return;
                    }
                }
                context.sender.closed().await;
            }),
        ))
    }
}

/// The readings of one Observation as one message.
fn text(kind: Kind, number: u64, half: u64) -> String {
    let (device, turn) = (number % DEVICES, (number / DEVICES) as i64);
    let one = |ticks: i64, value: u64| {
        let time = Timestamp::from_ticks(NOON + ticks).unwrap_or(Timestamp::MIN);
        json!({"device": format!("device-{device}"), "time": time.to_string(), "hr": 50 + value % 90})
    };
    match kind {
        Kind::Single => one(turn * 10_000_000, number).to_string(),
        Kind::Hourly | Kind::Forgotten => {
            let readings = if kind == Kind::Hourly { HOURLY } else { HOURLY / 2 };
            let of_hour = (0..readings).map(|reading| {
                let minute = half * readings + reading;
                one(
                    turn * 36_000_000_000 + minute as i64 * 600_000_000,
                    number + minute,
                )
            });
            json!({"readings": of_hour.collect::<Vec<_>>()}).to_string()
        }
    }
}

fn message(text: String, context: &SourceContext) -> Message {
    Message {
        source: context.id,
        stamp: Stamp {
            boot: context.boot,
            monotonic_us: clock::monotonic_us(),
            wall: clock::wall(),
            trusted: true,
        },
        payload: Payload(text.into()),
        kind: PayloadKind::Whole,
        topic: None,
        properties: Vec::new(),
        device_id: None,
        possible_repeat: false,
        record: None,
        ack: None,
    }
}

fn config(folder: &Path, kind: Kind, base: &str) -> anyhow::Result<Config> {
    let pack = folder.join("mappings.d/bench");
    std::fs::create_dir_all(&pack)?;
    let device = json!({"templateType": "CollectionContent", "template": [{"templateType": "CalculatedContent", "template": {
        "typeName": "heartrate", "typeMatchExpression": "$..[?(@hr)]", "deviceIdExpression": "$.matchedToken.device",
        "timestampExpression": "$.matchedToken.time",
        "values": [{"required": true, "valueExpression": "$.matchedToken.hr", "valueName": "hr"}]}}]});
    let value = if kind == Kind::Single {
        json!({"valueType": "Quantity", "valueName": "hr", "unit": "/min", "system": "http://unitsofmeasure.org",
            "code": "/min"})
    } else {
        json!({"valueType": "SampledData", "valueName": "hr", "unit": "/min", "defaultPeriod": 60_000})
    };
    let period = if kind == Kind::Single { 0 } else { 60 };
    let fhir = json!({"templateType": "CollectionFhir", "template": [{"templateType": "CodeValueFhir", "template": {
        "typeName": "heartrate", "periodInterval": period, "value": value,
        "category": [{"codes": [{"code": "vital-signs",
            "system": "http://terminology.hl7.org/CodeSystem/observation-category"}]}],
        "codes": [{"code": "8867-4", "system": "http://loinc.org", "display": "Heart rate"}]}}]});
    std::fs::write(pack.join("devicecontent.json"), device.to_string())?;
    std::fs::write(pack.join("fhirmapping.json"), fhir.to_string())?;
    let text = format!(
        "[gateway]\nid = \"bed-12\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
         max_bytes = \"2 GiB\"\n[clock]\ntrust = \"always\"\n[[source]]\nname = \"ward\"\nkind = \"mqtt\"\n\
         url = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n\
         [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"{base}\"\n",
        folder.display()
    );
    Ok(toml::from_str(&text)?)
}

/// Runs the agent until `enough` says so.
fn run(config: Config, flood: Flood, enough: impl Fn(&agent::Agent) -> bool + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let (stop, stopped) = watch::channel(false);
        let (started, agent) = tokio::sync::oneshot::channel();
        let watching = tokio::task::spawn_local(async move {
            let agent: std::rc::Rc<agent::Agent> = agent.await?;
            let (mut idle, mut last) = (0, String::new());
            while idle < 60_000 {
                if enough(&agent) {
                    stop.send_replace(true);
                    return Ok(());
                }
                let now = format!("{:?}", agent.summary());
                idle = if now == last { idle + 100 } else { 0 };
                last = now;
                embassy_time::Timer::after_millis(100).await;
            }
            stop.send_replace(true);
            bail!("nothing moves any more: {last}")
        });
        agent::run(config, &flood, Stopping::default(), stopped, |agent| {
            drop(started.send(agent));
        })
        .await?;
        watching.await?
    }))
}

/// The server's process.
struct Served {
    child: Child,
    base: String,
}

/// What the server has seen since it was told to forget.
struct Seen {
    requests: u64,
    bytes: u64,
    observations: u64,
    /// From the first request to the last answer.
    seconds: f64,
}

impl Served {
    fn start(rtt: u64) -> anyhow::Result<Served> {
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
    fn refuse(&self, yes: bool) -> anyhow::Result<()> {
        self.ask(if yes { "/refuse" } else { "/serve" }).map(drop)
    }

    fn seen(&self) -> anyhow::Result<Seen> {
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

fn serve(rtt: u64) -> anyhow::Result<()> {
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
