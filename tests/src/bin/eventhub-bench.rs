//! Events per second that one gateway sends to an event hub over one set of connections: a backlog of messages in a real
//! store, the agent as the service runs it, TLS, and a line with a round trip to an endpoint that checks every request.
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context, bail, ensure};
use bedside_agent::config::Config;
use bedside_agent::ingest::SourceContext;
use bedside_agent::message::Message;
use bedside_tests::event_hub_endpoint::{EventHubEndpoint, Fault, Settings};
use bedside_tests::real::root;
use bedside_tests::{flood, slow_line};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Arguments {
    events: u64,
    rtt: Duration,
    payload: String,
    partition_key: String,
    limit: usize,
    at_least: f64,
    folder: PathBuf,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        events: 100_000,
        rtt: Duration::from_millis(50),
        payload: "message".to_owned(),
        partition_key: "gateway".to_owned(),
        limit: 1_048_576,
        at_least: 0.0,
        folder: root().join("target"),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next();
        let value = value.with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--events" => parsed.events = value.parse()?,
            "--rtt" => parsed.rtt = Duration::from_millis(value.parse()?),
            "--payload" => parsed.payload = value,
            "--partition-key" => parsed.partition_key = value,
            "--limit" => parsed.limit = value.parse()?,
            "--at-least" => parsed.at_least = value.parse()?,
            "--folder" => parsed.folder = value.into(),
            _ => bail!(
                "usage: eventhub-bench [--events N] [--rtt MS] [--payload message|measurement] \
                 [--partition-key gateway|device] [--limit BYTES of a publication] [--at-least EVENTS per second] [--folder DIR]"
            ),
        }
    }
    Ok(parsed)
}

/// About 300 bytes of a wearable, ten devices in turn.
fn message(number: u64, context: &SourceContext) -> Message {
    let device = number % 10;
    let text = format!(
        r#"{{"deviceId":"band-{device}","patientId":"p-{device}","time":"2026-03-01T{:02}:{:02}:{:02}.{:03}Z","heartRate":{}.50,"model":"wristband","firmware":"3.14.2","battery":87,"signal":-61,"position":"left","session":"4f6d1f9e2c","sequence":{number},"quality":"good","contact":true,"steps":{}}}"#,
        number / 3_600_000 % 24,
        number / 60_000 % 60,
        number / 1000 % 60,
        number % 1000,
        50 + number % 90,
        number * 3,
    );
    Message {
        topic: Some(format!("wearables/band-{device}/telemetry").into()),
        device_id: Some(format!("band-{device}").into()),
        ..context.message(text)
    }
}

fn config(
    folder: &Path,
    endpoint: &EventHubEndpoint,
    line: &str,
    arguments: &Arguments,
) -> anyhow::Result<Config> {
    let destination = endpoint
        .destination("cloud", &arguments.payload)
        .replace(&endpoint.address(), line);
    let text = format!(
        "[gateway]\nid = \"bed-12\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
         [clock]\ntrust = \"always\"\n[[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\n\
         topics = [\"wearables/#\"]\n{destination}partition_key = \"{1}\"\n",
        folder.display(),
        arguments.partition_key,
    );
    Ok(toml::from_str(&text)?)
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    let scratch = tempfile::tempdir_in(&arguments.folder)?;
    let folder = scratch.path();
    let pack = folder.join("mappings.d/heart-rate");
    std::fs::create_dir_all(&pack)?;
    for file in ["devicecontent.json", "fhirmapping.json"] {
        let from = root().join("board-configs/mappings/heart-rate").join(file);
        std::fs::copy(from, pack.join(file))?;
    }
    let endpoint = EventHubEndpoint::start(Settings {
        limit: arguments.limit,
        ..Settings::default()
    });
    let line = slow_line::start(endpoint.address().parse()?, arguments.rtt)?.to_string();
    let events = arguments.events;

    endpoint.set_fault(Some(Fault::Down));
    let config = || config(folder, &endpoint, &line, &arguments);
    flood::run(config()?, events, message, move |agent| agent.unsent() >= events)?;

    endpoint.set_fault(None);
    let begin = Instant::now();
    let (before, connections) = (endpoint.requests(), endpoint.connections());
    flood::run(config()?, 0, message, |agent| agent.unsent() == 0)?;
    ensure!(
        endpoint.refusals().is_empty(),
        "the endpoint refused: {:?}",
        endpoint.refusals().first()
    );
    let (first, last) = endpoint.taken_between().context("nothing was taken")?;
    // The first publication was under way for a round trip when it was taken; its events are counted.
    let seconds = (last - first + arguments.rtt).as_secs_f64();
    let taken = endpoint.taken();
    let distinct: std::collections::HashSet<String> = endpoint
        .events()
        .iter()
        .map(|event| event.id().to_owned())
        .collect();
    let requests = endpoint.requests() - before;
    let per_second = taken as f64 / seconds;
    println!(
        "{}",
        json!({
            "rtt_ms": arguments.rtt.as_millis() as u64,
            "payload": arguments.payload,
            "partition_key": arguments.partition_key,
            "events": distinct.len(),
            "repeated": taken - distinct.len(),
            "events_per_second": per_second.round(),
            "seconds_from_start": (last - begin).as_secs_f64(),
            "requests": requests,
            "requests_per_event": requests as f64 / taken as f64,
            "bytes_per_event": endpoint.taken_bytes() / taken.max(1),
            "connections": endpoint.connections() - connections,
            "most_in_flight_per_key": endpoint.most_in_flight(),
            "debug_build": cfg!(debug_assertions),
        })
    );
    ensure!(
        distinct.len() as u64 == events,
        "{} of {events} events arrived",
        distinct.len()
    );
    ensure!(
        per_second >= arguments.at_least,
        "{per_second:.0} events per second, fewer than {}",
        arguments.at_least
    );
    Ok(())
}
