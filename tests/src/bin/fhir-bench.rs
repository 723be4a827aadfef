//! Observations per second to a FHIR server that answers at once, at a given round trip, on one link.
//!
//! The server is this program again as a process of its own, so that the CPU that is counted is the agent's alone.
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context as _, bail};
use bedside_agent::config::{ClockTrust, FhirConfig, TlsConfig};
use bedside_agent::forward::fhir::FhirDestination;
use bedside_agent::forward::http::Http;
use bedside_agent::forward::{Fate, Group, GroupKey, GroupReading};
use bedside_agent::message::Stamp;
use bedside_agent::packs::{Pack, PackText};
use iomt_mapping::{Measurement, Property, Timestamp};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: fhir-bench [--rtt MILLISECONDS] [--count OBSERVATIONS] [--period 0|60] [--memory-gone]\n\n\
    --period 60      hourly SampledData with ten readings each instead of single instants\n\
    --memory-gone    the Observations exist already and the agent has forgotten them: each is read and merged";
const DEVICES: usize = 10;
/// Readings that the forward loop hands over at a time.
const AT_A_TIME: usize = 1000;
const NOON: i64 = 17_900_352_000_000_000;

struct Arguments {
    rtt: u64,
    count: usize,
    period: i32,
    memory_gone: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        rtt: 50,
        count: 100_000,
        period: 0,
        memory_gone: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rtt" => parsed.rtt = words.next().context(USAGE)?.parse()?,
            "--count" => parsed.count = words.next().context(USAGE)?.parse()?,
            "--period" => parsed.period = words.next().context(USAGE)?.parse()?,
            "--memory-gone" => parsed.memory_gone = true,
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
    let server = Served::start(arguments.rtt)?;
    let pack = pack(arguments.period)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    if arguments.memory_gone {
        // The first half of the readings of each Observation is there.
        runtime.block_on(deliver(&server.base, &pack, &arguments, 0))?;
    }
    let before = server.stats()?;
    let (began, used) = (Instant::now(), cpu_us()?);
    let part = usize::from(arguments.memory_gone);
    let observations = runtime.block_on(deliver(&server.base, &pack, &arguments, part))?;
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu_us()? - used);
    let after = server.stats()?;
    let grown = |name: &str| (number(&after, name) - number(&before, name)) as f64 / observations as f64;
    let held = number(&after, "observations");
    if held != observations {
        bail!("the server holds {held} Observations instead of {observations}");
    }
    let figures = json!({
        "rtt_ms": arguments.rtt,
        "observations": observations,
        "observations_per_second": (observations as f64 / seconds).round(),
        "requests_per_observation": rounded(grown("requests"), 4),
        "bytes_per_observation": grown("bytes").round(),
        "cpu_us_per_observation": rounded(used as f64 / observations as f64, 1),
    });
    println!("{figures}");
    Ok(())
}

fn rounded(number: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (number * factor).round() / factor
}

fn number(stats: &Value, name: &str) -> u64 {
    stats[name].as_u64().unwrap_or(0)
}

/// User and system time of this process in microseconds.
fn cpu_us() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after_name) = stat.rsplit_once(')').context("stat")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // A tick is a hundredth of a second on every Linux that this runs on.
    Ok(ticks * 10_000)
}

fn pack(period: i32) -> anyhow::Result<Arc<Pack>> {
    let value = if period == 0 {
        json!({"valueType": "Quantity", "valueName": "hr", "unit": "/min", "system": "http://unitsofmeasure.org",
            "code": "/min"})
    } else {
        json!({"valueType": "SampledData", "valueName": "hr", "unit": "/min", "defaultPeriod": 60_000})
    };
    let fhir = json!({"templateType": "CollectionFhir", "template": [{"templateType": "CodeValueFhir", "template": {
        "typeName": "heartrate", "periodInterval": period, "value": value,
        "category": [{"codes": [{"code": "vital-signs",
            "system": "http://terminology.hl7.org/CodeSystem/observation-category"}]}],
        "codes": [{"code": "8867-4", "system": "http://loinc.org", "display": "Heart rate"}]}}]});
    let text = PackText {
        name: "bench".to_owned(),
        device: r#"{"templateType": "CollectionContent", "template": []}"#.to_owned(),
        fhir: Some(fhir.to_string()),
        agent: None,
    };
    Ok(Arc::new(Pack::load(text).0.context("the pack")?))
}

/// Delivers all readings, of hourly ones the first or second half; gives the number of Observations.
async fn deliver(base: &str, pack: &Arc<Pack>, arguments: &Arguments, half: usize) -> anyhow::Result<u64> {
    let config: FhirConfig = serde_json::from_value(json!({"url": base}))?;
    let http = Http::real("fhir", 2, &TlsConfig::default(), None)?;
    let mut fhir = FhirDestination::new(&config, ClockTrust::Always, http.clone(), http)
        .map_err(|error| anyhow::anyhow!(error.text))?;
    let readings_each = if arguments.period == 0 { 1 } else { 10 };
    let mut position = 0;
    let mut done = 0;
    while done < arguments.count {
        let now = (arguments.count - done).min(AT_A_TIME / readings_each);
        let mut readings: Vec<Vec<GroupReading>> = vec![Vec::new(); DEVICES];
        for observation in done..done + now {
            for reading in 0..readings_each {
                position += 1;
                let of_device = (observation / DEVICES) as i64;
                let ticks = if arguments.period == 0 {
                    of_device * 10_000_000 + half as i64
                } else {
                    of_device * 36_000_000_000 + (half * 10 + reading) as i64 * 600_000_000
                };
                readings[observation % DEVICES].push(one(position, observation % DEVICES, NOON + ticks));
            }
        }
        let groups = readings
            .into_iter()
            .enumerate()
            .filter(|(_, readings)| !readings.is_empty());
        let groups = groups.map(|(device, readings)| Group {
            key: Arc::new(GroupKey {
                pack: "bench".into(),
                device: format!("device-{device}").into(),
                type_name: "heartrate".into(),
                patient: None,
                encounter: None,
                correlation: None,
            }),
            pack: Arc::clone(pack),
            readings,
        });
        let delivery = fhir
            .deliver(groups.collect(), &HashMap::<String, Vec<u8>>::new())
            .await;
        if let Some(fate) = delivery
            .fates
            .iter()
            .flatten()
            .find(|fate| **fate != Fate::Delivered)
        {
            bail!("{fate:?}, {:?}", delivery.link);
        }
        done += now;
    }
    Ok(arguments.count as u64)
}

fn one(position: u64, device: usize, ticks: i64) -> GroupReading {
    let time = Timestamp::from_ticks(ticks).unwrap_or(Timestamp::MIN);
    GroupReading {
        position,
        match_number: 0,
        received: Stamp {
            boot: 1,
            monotonic_us: 0,
            wall: time,
            trusted: true,
        },
        measurement: Arc::new(Measurement {
            type_name: "heartrate".to_owned(),
            occurrence_time: time,
            device_id: format!("device-{device}"),
            patient_id: None,
            encounter_id: None,
            correlation_id: None,
            properties: vec![Property {
                name: "hr".to_owned(),
                value: (50 + position % 90).to_string(),
            }],
        }),
    }
}

/// The server's process.
struct Served {
    child: Child,
    base: String,
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

    fn stats(&self) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(self.base.trim_start_matches("http://"))?;
        stream.write_all(b"GET /stats HTTP/1.1\r\nconnection: close\r\n\r\n")?;
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
    held: Mutex<HashMap<String, (u64, Value)>>,
    requests: AtomicU64,
    bytes: AtomicU64,
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
            let answer = if head.starts_with("GET /stats") {
                let held = self.held.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.len();
                json!({"requests": self.requests.load(Ordering::Relaxed), "bytes": self.bytes.load(Ordering::Relaxed),
                    "observations": held})
                .to_string()
            } else {
                self.requests.fetch_add(1, Ordering::Relaxed);
                self.bytes
                    .fetch_add((head.len() + body.len()) as u64, Ordering::Relaxed);
                // The round trip of the link; what the answer costs comes on top.
                std::thread::sleep(rtt);
                self.batch(&serde_json::from_slice(&body)?)?
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/fhir+json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            let last = answer.starts_with(r#"{"requests""#);
            reader.get_mut().write_all((head + &answer).as_bytes())?;
            if last {
                return Ok(());
            }
        }
    }

    fn batch(&self, bundle: &Value) -> anyhow::Result<String> {
        let mut held = self.held.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        let mut entries = Vec::new();
        for entry in bundle["entry"].as_array().context("a batch")? {
            let request = &entry["request"];
            let url = request["url"].as_str().context("a url")?;
            entries.push(match (request["method"].as_str(), url.split_once("?identifier=")) {
                (Some("GET"), Some(("Device", identifier))) => {
                    let device = json!({"resourceType": "Device", "id": identifier, "identifier": [{"value": identifier}],
                        "patient": {"reference": format!("Patient/of-{identifier}")}});
                    found(&[json!({"resource": device})])
                }
                (Some("GET"), Some(_)) => found(&[]),
                (Some("GET"), None) => match held.get(url) {
                    Some((version, resource)) => {
                        json!({"resource": resource, "response": {"status": "200", "etag": format!("W/\"{version}\"")}})
                    }
                    None => json!({"response": {"status": "404"}}),
                },
                (Some("PUT"), _) => {
                    let version = held.get(url).map_or(1, |(version, _)| version + 1);
                    let expected = request["ifMatch"].as_str();
                    if expected.is_some_and(|etag| etag != format!("W/\"{}\"", version - 1)) {
                        json!({"response": {"status": "412"}})
                    } else {
                        held.insert(url.to_owned(), (version, entry["resource"].clone()));
                        let status = if version == 1 { "201" } else { "200" };
                        json!({"response": {"status": status, "etag": format!("W/\"{version}\"")}})
                    }
                }
                _ => json!({"response": {"status": "405"}}),
            });
        }
        let mut answer = Map::new();
        answer.insert("resourceType".to_owned(), "Bundle".into());
        answer.insert("type".to_owned(), "batch-response".into());
        answer.insert("entry".to_owned(), entries.into());
        Ok(Value::Object(answer).to_string())
    }
}

fn found(entries: &[Value]) -> Value {
    json!({"resource": {"resourceType": "Bundle", "type": "searchset", "entry": entries}, "response": {"status": "200"}})
}
