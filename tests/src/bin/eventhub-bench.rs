//! Events per second that one gateway sends to an event hub over one set of connections: a backlog of messages in a real
//! store, the agent as the service runs it, TLS, and a line with a round trip to an endpoint that checks every request.
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context, bail, ensure};
use bedside_agent::agent::{self, RealSurroundings, StartedSource, Stopping, Surroundings};
use bedside_agent::clock;
use bedside_agent::config::{Config, DestinationConfig, SourceConfig};
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::{SourceContext, SourceHandle};
use bedside_agent::message::{Message, Payload, PayloadKind, Stamp};
use bedside_agent::packs::Notice;
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_agent::worker::Worker;
use bedside_tests::event_hub_endpoint::{EventHubEndpoint, Fault, Settings};
use bedside_tests::real::root;
use bedside_tests::slow_line;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::watch;

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

/// The surroundings of the service, but for a source that hands over messages as fast as they are taken.
struct Flood {
    messages: u64,
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
        let messages = self.messages;
        Ok((
            handle,
            Box::pin(async move {
                for number in 0..messages {
                    if context.sender.send(message(number, &context)).await.is_err() {
                        return;
                    }
                }
                context.sender.closed().await;
            }),
        ))
    }
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
        source: context.id,
        stamp: Stamp {
            boot: context.boot,
            monotonic_us: clock::monotonic_us(),
            wall: clock::wall(),
            trusted: true,
        },
        payload: Payload(text.into()),
        kind: PayloadKind::Whole,
        topic: Some(format!("wearables/band-{device}/telemetry").into()),
        properties: Vec::new(),
        device_id: Some(format!("band-{device}").into()),
        possible_repeat: false,
        record: None,
        ack: None,
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

/// Runs the agent until `enough` says so.
fn run(config: Config, messages: u64, mut enough: impl FnMut(u64) -> bool + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let (stop, stopped) = watch::channel(false);
        let (started, agent) = tokio::sync::oneshot::channel();
        let watching = tokio::task::spawn_local(async move {
            let agent: std::rc::Rc<agent::Agent> = agent.await?;
            let mut idle = 0;
            let mut unsent = u64::MAX;
            while idle < 600_000 {
                if enough(agent.unsent()) {
                    stop.send_replace(true);
                    return Ok(());
                }
                let now = agent.unsent();
                idle = if now == unsent { idle + 10 } else { 0 };
                unsent = now;
                embassy_time::Timer::after_millis(10).await;
            }
            stop.send_replace(true);
            bail!("nothing moves any more: {unsent} left")
        });
        let surroundings = Flood { messages };
        agent::run(config, &surroundings, Stopping::default(), stopped, |agent| {
            drop(started.send(agent));
        })
        .await?;
        watching.await?
    }))
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
    run(
        config(folder, &endpoint, &line, &arguments)?,
        events,
        move |unsent| unsent >= events,
    )?;

    endpoint.set_fault(None);
    let begin = Instant::now();
    let (before, connections) = (endpoint.requests(), endpoint.connections());
    run(config(folder, &endpoint, &line, &arguments)?, 0, |unsent| {
        unsent == 0
    })?;
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
