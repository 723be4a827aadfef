//! Bytes that reach the medium for each byte of payload, over the whole way from message to confirmed delivery.
//!
//! The whole agent runs in simulated time with its real store; senders and FHIR server are doubles in this process. The
//! store lies on an ext4 file system of its own on a loop device, whose sectors are counted; without root or loop devices
//! `/proc/self/io` counts (no journal, no metadata of the file system). Counted is everything: the new database, the
//! write-ahead log while it still grows, and the closing at the end.
//!
//! ext4 commits its journal every 5 seconds, which simulated time would hide: the file system is synced every 5 simulated
//! seconds instead (`--file-system-commit`).
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context as _, bail, ensure};
use bedside_agent::agent::{self, Agent, StartedSource, Stopping, Surroundings};
use bedside_agent::config::{Config, DestinationConfig, SourceConfig};
use bedside_agent::demo::fhir_server::FhirServer;
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::{Acknowledger, SourceContext, SourceHandle};
use bedside_agent::message::{AckToken, Message, Payload, PayloadKind, Stamp};
use bedside_agent::packs::Notice;
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_agent::telemetry::status::Summary;
use bedside_agent::worker::Worker;
use bedside_agent::{clock, random};
use bedside_tests::measure::ProcessUse;
use bedside_tests::real::root;
use clap::Parser;
use embassy_time::{Instant, Timer};
use iomt_mapping::Timestamp;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Bytes of a payload.
const PAYLOAD: usize = 300;
const DEVICES: u64 = 10;
/// Simulated seconds that the last deliveries may take: a group of an hour waits for its flush.
const LONGEST_DELIVERY: u64 = 7200;

/// Device bytes per payload byte; without options the table of all cases.
#[derive(Parser, Clone)]
struct Arguments {
    /// Messages per second, of 300 bytes, from ten devices.
    #[arg(long)]
    rate: Option<u64>,
    /// Messages that the sender lets be unacknowledged.
    #[arg(long, default_value_t = 20)]
    window: u16,
    /// Milliseconds that a message may wait for its commit.
    #[arg(long, default_value_t = 1000)]
    commit_interval: u64,
    /// Minutes that an Observation spans: 0 or 60.
    #[arg(long, default_value_t = 0)]
    period: u32,
    /// Simulated seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Simulated seconds between commits of the file system's own journal (the mount option `commit`); 0 for none, which
    /// leaves the store's own bytes.
    #[arg(long, default_value_t = 5)]
    file_system_commit: u64,
    /// Fails when more device bytes were written per payload byte.
    #[arg(long)]
    at_most: Option<f64>,
}

#[derive(Clone, Copy)]
struct Case {
    rate: u64,
    window: u16,
    commit_interval_ms: u64,
    period: u32,
    seconds: u64,
    file_system_commit: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        [0, 60].contains(&arguments.period),
        "--period is 0 or 60 (minutes)"
    );
    let case = |rate, window, commit_interval_ms, period| Case {
        rate,
        window,
        commit_interval_ms,
        period,
        seconds: arguments.seconds.unwrap_or((36_000 / rate).clamp(30, 3600)),
        file_system_commit: arguments.file_system_commit,
    };
    let cases = match arguments.rate {
        Some(0) => bail!("--rate is at least 1"),
        Some(rate) => vec![case(
            rate,
            arguments.window,
            arguments.commit_interval,
            arguments.period,
        )],
        None => [0, 60]
            .into_iter()
            .flat_map(|period| {
                [
                    (1, 20, 1000),
                    (20, 20, 1000),
                    (20, 100, 5000),
                    (200, 20, 1000),
                    (200, 100, 1000),
                    (2000, 20, 1000),
                    (2000, 100, 1000),
                ]
                .map(|(rate, window, interval)| case(rate, window, interval, period))
            })
            .collect(),
    };
    let mut missed = false;
    for case in cases {
        let written = measure(case)?;
        missed |= arguments.at_most.is_some_and(|most| written > most);
    }
    ensure!(!missed, "more device bytes than --at-most allows");
    Ok(())
}

/// The device bytes per payload byte of a case, printed with what belongs to it.
fn measure(case: Case) -> anyhow::Result<f64> {
    let began = std::time::Instant::now();
    let working = tempfile::tempdir_in(root().join("target"))?;
    let medium = Medium::new(working.path())?;
    let packs = working.path().join("mappings.d");
    write_pack(&packs, case.period)?;
    let config = config(&packs, &medium.folder, case)?;
    let start = Timestamp::from_ticks(17_723_232_000_000_000).context("2026-03-01")?;
    let before = medium.written()?;
    let sync = (medium.device.is_some() && case.file_system_commit > 0).then(|| medium.folder.clone());
    let (done, _) = clock::simulate(start, async move {
        random::seed(7);
        live(config, case, sync).await
    })?;
    let (summary, observations, counted) = done?;
    medium.sync()?;
    let written = medium.written()? - before;
    let messages = case.rate * case.seconds;
    let payload = messages * PAYLOAD as u64;
    let ratio = written as f64 / payload as f64;
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    println!(
        "{}",
        json!({
            "rate": case.rate,
            "window": case.window,
            "commit_interval_ms": case.commit_interval_ms,
            "device_bytes_per_payload_byte": round(ratio),
            "period": case.period,
            "messages": messages,
            "file_system": if medium.device.is_some() { "ext4 on a loop device" } else { "/proc/self/io" },
            "seconds": case.seconds,
            "file_system_commit": case.file_system_commit,
            "device_bytes": written,
            "counted_by_the_store": counted,
            "payload_bytes": payload,
            "delivered": summary.delivered,
            "observations": observations,
            "real_seconds": round(began.elapsed().as_secs_f64()),
        })
    );
    ensure!(
        summary.messages == messages && summary.delivered + summary.superseded == messages,
        "not everything was delivered: {summary:?}"
    );
    Ok(ratio)
}

/// The agent from the first message to the last confirmation: its accounts, the Observations on the server, and the device
/// bytes that the store counted itself.
async fn live(config: Config, case: Case, sync: Option<PathBuf>) -> anyhow::Result<(Summary, usize, u64)> {
    let server = FhirServer::in_process();
    let sent = Rc::new(Cell::new(0));
    let double = Double {
        server: server.clone(),
        case,
        sent: Rc::clone(&sent),
    };
    let (stop, stopped) = watch::channel(false);
    let running: Rc<RefCell<Option<Rc<Agent>>>> = Rc::default();
    let observed = Rc::clone(&running);
    let counted = Rc::new(Cell::new(0));
    let last_count = Rc::clone(&counted);
    if let Some(folder) = sync {
        tokio::task::spawn_local(async move {
            loop {
                Timer::after_secs(case.file_system_commit).await;
                // One that fails shows as too few bytes; the one at the end must succeed.
                sync_file_system(&folder).ok();
            }
        });
    }
    tokio::task::spawn_local(async move {
        while sent.get() < case.rate * case.seconds {
            Timer::after_secs(1).await;
        }
        for _ in 0..LONGEST_DELIVERY {
            Timer::after_secs(1).await;
            let unsent = observed.borrow().as_ref().map_or(1, |agent| agent.unsent());
            if unsent == 0 {
                break;
            }
        }
        let agent = observed.borrow_mut().take();
        if let Some(agent) = agent {
            last_count.set(agent.status().await.store.statistics.device_bytes);
        }
        stop.send_replace(true);
    });
    let summary = agent::run(config, &double, Stopping::default(), stopped, |agent| {
        *running.borrow_mut() = Some(agent);
    })
    .await?;
    Ok((summary, server.observations().len(), counted.get()))
}

struct Double {
    server: FhirServer,
    case: Case,
    sent: Rc<Cell<u64>>,
}

/// Gives the sender its window back.
struct Window(Arc<Semaphore>);

impl Acknowledger for Window {
    fn committed(&self, tokens: &[AckToken]) {
        self.0.add_permits(tokens.len());
    }
}

impl Surroundings for Double {
    fn store_worker(&self) -> io::Result<Worker> {
        Ok(Worker::inline())
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::inline(), Notice::Poll))
    }

    fn http(&self, _: &DestinationConfig) -> io::Result<(Http, Http)> {
        let http = Http {
            worker: Worker::inline(),
            client: self.server.client(),
        };
        Ok((http.clone(), http))
    }

    fn start_source(&self, _: &SourceConfig, context: SourceContext) -> Result<StartedSource, ErrorRecord> {
        let window = Arc::new(Semaphore::new(usize::from(self.case.window)));
        let handle = SourceHandle {
            id: context.id,
            name: context.name.clone(),
            acknowledger: Some(Arc::new(Window(Arc::clone(&window)))),
            window: self.case.window,
        };
        let (case, sent) = (self.case, Rc::clone(&self.sent));
        Ok((handle, Box::pin(send(context, case, window, sent))))
    }
}

/// Each message at its time, or as soon as the window lets it through.
async fn send(context: SourceContext, case: Case, window: Arc<Semaphore>, sent: Rc<Cell<u64>>) {
    let begin = Instant::now().as_micros();
    for number in 0..case.rate * case.seconds {
        Timer::at(Instant::from_micros(begin + number * 1_000_000 / case.rate)).await;
        let Ok(permit) = window.acquire().await else {
            return;
        };
        permit.forget();
        if context.sender.send(message(number, &context)).await.is_err() {
            return;
        }
        sent.set(sent.get() + 1);
    }
    context.sender.closed().await;
}

fn message(number: u64, context: &SourceContext) -> Message {
    // Values that move as measured ones do: no two messages alike, none of them noise throughout.
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let device = number % DEVICES;
    let mut text = format!(
        r#"{{"deviceId":"monitor-{device:02}","patientId":"patient-{device:04}","time":"{}","sequence":{number},"heartRate":{}.{},"spo2":{}.{},"respiration":{},"perfusion":{}.{:02},"temperature":36.{:02},"battery":{},"signal":-{},"firmware":"3.14.2","model":"ward monitor","note":""#,
        clock::wall(),
        60 + mixed % 40,
        mixed / 40 % 10,
        92 + mixed / 400 % 8,
        mixed / 3200 % 10,
        12 + mixed / 32_000 % 8,
        1 + mixed / 256_000 % 4,
        mixed / 1_024_000 % 100,
        mixed / 102_400_000 % 100,
        99 - number / 5000 % 60,
        50 + mixed / 7 % 30,
    );
    while text.len() < PAYLOAD - 2 {
        text.push('-');
    }
    text.push_str("\"}");
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
        topic: Some(format!("ward/monitor-{device:02}/vitals").into()),
        properties: Vec::new(),
        device_id: None,
        possible_repeat: false,
        record: None,
        ack: Some(AckToken {
            epoch: 1,
            packet_id: u16::try_from(number % 65_535 + 1).unwrap_or(1),
            session: 1,
        }),
    }
}

fn config(packs: &Path, store: &Path, case: Case) -> anyhow::Result<Config> {
    let text = format!(
        "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{}\"\n\
         [store]\ndir = \"{}\"\ncommit_interval = \"{} ms\"\n\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"ward/#\"]\n\
         [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://fhir.example/fhir\"\nresolution = \"create\"\n",
        packs.display(),
        store.display(),
        case.commit_interval_ms,
    );
    Ok(toml::from_str(&text)?)
}

/// The shipped pack for heart rates; for a period its Observations become series.
fn write_pack(packs: &Path, period: u32) -> anyhow::Result<()> {
    let (from, to) = (
        root().join("board-configs/mappings/heart-rate"),
        packs.join("heart-rate"),
    );
    std::fs::create_dir_all(&to)?;
    let (content, fhir) = ("devicecontent.json", "fhirmapping.json");
    std::fs::copy(from.join(content), to.join(content))?;
    let mut mapping: Value = serde_json::from_slice(&std::fs::read(from.join(fhir))?)?;
    if period > 0 {
        let template = mapping
            .pointer_mut("/template/0/template")
            .and_then(Value::as_object_mut)
            .context("the pack has another form")?;
        template.insert("periodInterval".to_owned(), period.into());
        template.insert(
            "value".to_owned(),
            json!({ "valueType": "SampledData", "valueName": "heartRate", "defaultPeriod": 500, "unit": "/min" }),
        );
    }
    std::fs::write(to.join(fhir), serde_json::to_vec(&mapping)?)?;
    Ok(())
}

/// Where the store lies, and how its bytes are counted.
struct Medium {
    folder: PathBuf,
    /// Name of the loop device; none when only the process can be asked.
    device: Option<String>,
}

impl Medium {
    fn new(working: &Path) -> anyhow::Result<Medium> {
        let folder = working.join("store");
        std::fs::create_dir(&folder)?;
        let mut medium = Medium { folder, device: None };
        match medium.mount(&working.join("image")) {
            Ok(device) => {
                medium.device = Some(device);
                // What making the file system left over belongs to nobody.
                medium.sync()?;
            }
            Err(error) => eprintln!("no loop device, /proc/self/io counts instead: {error:#}"),
        }
        Ok(medium)
    }

    fn mount(&self, image: &Path) -> anyhow::Result<String> {
        std::fs::File::create(image)?.set_len(512 << 20)?;
        // Nothing is left to be initialised later, beside the measurement.
        let lazy = "lazy_itable_init=0,lazy_journal_init=0";
        succeed(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-E", lazy])
                .arg(image),
        )?;
        succeed(
            Command::new("mount")
                .args(["-o", "loop,noatime"])
                .args([image, &self.folder]),
        )?;
        let folder = self.folder.canonicalize()?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let device = mounts.lines().find_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            let point = rest.split(' ').next()?;
            (Path::new(point) == folder).then(|| device.trim_start_matches("/dev/").to_owned())
        });
        device.context("the mount is not in /proc/self/mounts")
    }

    fn sync(&self) -> anyhow::Result<()> {
        sync_file_system(&self.folder)
    }

    /// Bytes written until now.
    fn written(&self) -> anyhow::Result<u64> {
        let Some(device) = &self.device else {
            return Ok(ProcessUse::of(std::process::id())?.written_bytes);
        };
        let text = std::fs::read_to_string(format!("/sys/block/{device}/stat"))?;
        let sectors = text.split_whitespace().nth(6).context("no count of sectors")?;
        Ok(sectors.parse::<u64>()? * 512)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        if self.device.is_some()
            && let Err(error) = succeed(Command::new("umount").arg(&self.folder))
        {
            eprintln!("{error:#}");
        }
    }
}

fn sync_file_system(folder: &Path) -> anyhow::Result<()> {
    succeed(Command::new("sync").arg("-f").arg(folder))
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_owned();
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name:?}"))?;
    ensure!(
        done.status.success(),
        "{name:?}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}
