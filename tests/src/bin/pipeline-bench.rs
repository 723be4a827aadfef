//! Messages per second and per CPU second of the agent: 10 devices, 10 templates with one match, 300-byte messages,
//! window 500; mapped, synced, acknowledged, the destination refusing connections.
//!
//! The agent is this program again as a process of its own, so that its CPU, memory and bytes written are counted apart
//! from the sender's. `--mosquitto` sends through a real broker instead of the paced sender.
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context, bail};
use bedside_agent::demo::broker::{Broker, Options, Publish};
use bedside_tests::measure::{ProcessUse, file_system, is_memory};
use bedside_tests::real::{Process, agent::Gateway, free_port, mosquitto::Mosquitto};
use clap::Parser;
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const DEVICES: usize = 10;
const TEMPLATES: usize = 10;
const WINDOW: u16 = 500;

struct Arguments {
    messages: u64,
    mosquitto: bool,
    folder: PathBuf,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        messages: 100_000,
        mosquitto: false,
        folder: std::env::current_dir()?.join("target"),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--messages" => parsed.messages = words.next().context("--messages N")?.parse()?,
            "--mosquitto" => parsed.mosquitto = true,
            "--folder" => parsed.folder = words.next().context("--folder DIR")?.into(),
            _ => bail!(
                "usage: pipeline-bench [--messages N] [--mosquitto] [--folder DIR on a real file system]"
            ),
        }
    }
    Ok(parsed)
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("run") {
        // The process that is measured.
        return bedside_agent::cli::Cli::parse().run().map(drop);
    }
    let arguments = arguments()?;
    std::fs::create_dir_all(&arguments.folder)?;
    let file_system = file_system(&arguments.folder)?;
    if is_memory(&file_system) {
        bail!(
            "{} is {file_system}: figures of flash need a real file system (--folder DIR)",
            arguments.folder.display()
        );
    }
    let folder = tempfile::tempdir_in(&arguments.folder)?;
    let refusing = free_port();
    let (port, mosquitto) = if arguments.mosquitto {
        let lines = format!("max_inflight_messages {WINDOW}\nmax_queued_messages 0\nmax_queued_bytes 0\n");
        let broker = Mosquitto::start(folder.path(), &lines);
        (broker.port, Some(broker))
    } else {
        (free_port(), None)
    };
    let gateway = Gateway::new(folder.path())
        .mqtt(port, &format!("window = {WINDOW}\n"))
        .fhir(
            &format!("http://127.0.0.1:{refusing}/fhir"),
            "resolution = \"create\"",
        );
    write_pack(&gateway)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let broker = match &mosquitto {
        Some(_) => None,
        None => Some(runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
            Broker::start(
                listener,
                Options {
                    window: WINDOW,
                    queue_limit: usize::MAX,
                    ..Options::default()
                },
            )
        })?),
    };
    let own = std::env::current_exe()?;
    let mut command = std::process::Command::new(own);
    command
        .arg("run")
        .arg("--config")
        .arg(gateway.write_configuration());
    let agent = Process::start("the agent", &mut command, &gateway.log_file());
    let measured = Measured {
        pid: agent.child.id(),
        payload: 0,
    };
    let measured = match broker {
        Some(broker) => runtime.block_on(paced(&broker, measured, arguments.messages))?,
        None => through_mosquitto(&gateway, port, measured, arguments.messages)?,
    };
    let line = json!({
        "messages": arguments.messages,
        "messages_per_second": rate(arguments.messages, measured.seconds),
        "messages_per_cpu_second": rate(arguments.messages, measured.used.cpu_seconds),
        "rss_mib": (measured.used.peak_rss_bytes as f64 / 1_048_576.0 * 10.0).round() / 10.0,
        "written_per_payload": (measured.used.written_bytes as f64 / measured.payload as f64 * 100.0).round() / 100.0,
        "file_system": file_system,
    });
    println!("{line}");
    Ok(())
}

struct Measured {
    pid: u32,
    payload: u64,
}

struct Figures {
    seconds: f64,
    used: ProcessUse,
    payload: u64,
}

fn rate(messages: u64, seconds: f64) -> u64 {
    (messages as f64 / seconds.max(1e-6)) as u64
}

/// 300 bytes, as a wearable would send them.
fn message(n: u64) -> (String, String) {
    let device = n % DEVICES as u64;
    let second = n / DEVICES as u64;
    let text = format!(
        r#"{{"deviceId":"band-{device}","patientId":"patient-{device}","time":"2026-03-01T{:02}:{:02}:{:02}.{:03}Z","heartRate":{},"battery":{},"firmware":"2.4.1","signal":{{"rssi":-{},"quality":"good"}},"note":"#,
        10 + second / 3600 % 12,
        second / 60 % 60,
        second % 60,
        n % 1000,
        50 + (n * 7) % 90,
        100 - n % 100,
        40 + n % 50
    );
    let padding = 300_usize.saturating_sub(text.len() + 3);
    (
        format!("wearables/band-{device}/telemetry"),
        format!("{text}\"{}\"}}", "x".repeat(padding)),
    )
}

async fn paced(broker: &Broker, measured: Measured, messages: u64) -> anyhow::Result<Figures> {
    let until = Instant::now() + Duration::from_secs(30);
    while !broker.has_subscriber("wearables/band-0/telemetry") {
        if Instant::now() > until {
            bail!("the agent did not subscribe");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = broker.connected().pop().context("a client")?;
    let before = ProcessUse::of(measured.pid)?;
    let begin = Instant::now();
    let mut payload = measured.payload;
    let mut sent = 0;
    loop {
        let (in_flight, queued) = broker.depth(&client).unwrap_or_default();
        if sent == messages && in_flight + queued == 0 {
            break;
        }
        if begin.elapsed() > Duration::from_secs(300) {
            bail!("{sent} of {messages} sent, {in_flight} in flight, {queued} queued after 300 s");
        }
        for _ in queued..2 * usize::from(WINDOW) {
            if sent == messages {
                break;
            }
            let (topic, text) = message(sent);
            payload += text.len() as u64;
            broker.publish(Publish {
                qos: 1,
                topic,
                payload: text.into(),
                ..Publish::default()
            });
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    finish(measured.pid, before, begin, payload)
}

fn through_mosquitto(
    gateway: &Gateway,
    port: u16,
    measured: Measured,
    messages: u64,
) -> anyhow::Result<Figures> {
    let connected = || gateway.log().contains("started:");
    bedside_tests::real::wait_for("the agent starts", Duration::from_secs(30), connected);
    std::thread::sleep(Duration::from_secs(1));
    let all: Vec<(String, String)> = (0..messages).map(message).collect();
    let payload = all.iter().map(|(_, text)| text.len() as u64).sum();
    let before = ProcessUse::of(measured.pid)?;
    let begin = Instant::now();
    bedside_tests::real::publisher::publish(port, &all);
    // The publisher is done when the broker has everything; the agent when it stops using its processor.
    let mut last = ProcessUse::of(measured.pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = ProcessUse::of(measured.pid)?;
        if now.cpu_seconds - last.cpu_seconds < 0.02 {
            break;
        }
        last = now;
    }
    finish(measured.pid, before, begin, payload)
}

/// The acknowledgement of the last message is there; normalizing ends a moment later.
fn finish(pid: u32, before: ProcessUse, begin: Instant, payload: u64) -> anyhow::Result<Figures> {
    let seconds = begin.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(1));
    let used = ProcessUse::of(pid)?.since(&before);
    Ok(Figures {
        seconds,
        used,
        payload,
    })
}

/// Ten types of which a message matches one.
fn write_pack(gateway: &Gateway) -> anyhow::Result<()> {
    let names = [
        "heartRate",
        "steps",
        "systolic",
        "respiration",
        "temperature",
        "glucose",
        "weight",
        "spo2",
        "distance",
        "calories",
    ];
    let mut device = String::new();
    let mut fhir = String::new();
    for (n, name) in names.iter().enumerate().take(TEMPLATES) {
        let comma = if n == 0 { "" } else { "," };
        write!(
            device,
            r#"{comma}{{"templateType":"CalculatedContent","template":{{"typeName":"{name}","typeMatchExpression":"$..[?(@{name})]","deviceIdExpression":"$.matchedToken.deviceId","patientIdExpression":"$.matchedToken.patientId","timestampExpression":"$.matchedToken.time","values":[{{"required":"true","valueExpression":"$.matchedToken.{name}","valueName":"{name}"}}]}}}}"#
        )?;
        write!(
            fhir,
            r#"{comma}{{"templateType":"CodeValueFhir","template":{{"typeName":"{name}","codes":[{{"code":"8867-4","system":"http://loinc.org"}}],"value":{{"valueType":"Quantity","valueName":"{name}","unit":"/min"}}}}}}"#
        )?;
    }
    let folder = gateway.folder.join("mappings.d");
    std::fs::write(
        folder.join("bench.device.json"),
        format!(r#"{{"templateType":"CollectionContent","template":[{device}]}}"#),
    )?;
    std::fs::write(
        folder.join("bench.fhir.json"),
        format!(r#"{{"templateType":"CollectionFhir","template":[{fhir}]}}"#),
    )?;
    Ok(())
}
