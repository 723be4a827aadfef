//! What the store costs on a medium whose syncs take their time: rate, wait for acknowledgements, memory, start, drain.
//!
//! The agent is this program again as a process of its own (`run`), the sender a broker that keeps to a window, the
//! destination a FHIR server that answers at once. `--sync-delay-ms` makes each commit take so much longer than this disk
//! does (`BEDSIDE_SYNC_DELAY_MS`): a virtual disk answers in a fraction of what flash takes. One line of JSON per
//! measurement; without options all of them: a table of paces, then a backlog.
//!
//! A backlog (`--backlog BYTES` of store) is gathered while the server is down. Then, each time with a new process: the first
//! acknowledgement after the start; the same after the file was damaged in its middle, at its end, and at its head; and with
//! the undamaged file the drain, beside a slow sender, until nothing is left.
//!
//! Resident memory: `rss` is that of the whole process, `file` the pages of the program itself and of libraries in it,
//! `anonymous` what it asked for. What is promised of the whole process (15 MB steady, 20 MB while it drains 1 GB) holds for the
//! program that ships, which `--agent` measures, with the allocator's settings of the service unit; more is an error then.
//! Times on a shared machine are disturbed: take the best of several runs.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a harness of processes lives in real time, and a broken harness must say so at once"
)]

mod backlog;
mod sender;
mod server;

use anyhow::{Context as _, ensure};
use bedside_tests::batch_server::Served;
use bedside_tests::measure::{ProcessUse, file_system, is_memory};
use bedside_tests::real::{agent::Gateway, free_port, root};
use clap::Parser;
use sender::{Load, Sender, Sent};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Longest wait for an acknowledgement beside the commit interval: milliseconds at a sync delay of at most 5 ms.
const WAIT_MS: f64 = 40.0;
const STEADY_RSS: u64 = 15_000_000;
const DRAINING_RSS: u64 = 20_000_000;

/// Rate, wait for acknowledgements, memory, start and drain of the agent with its store.
#[derive(Parser, Clone)]
struct Arguments {
    /// Milliseconds by which each sync takes longer than on this disk; without it 0, 1, 5 and 20.
    #[arg(long, conflicts_with = "agent")]
    sync_delay_ms: Option<u64>,
    /// Messages that the sender lets be unacknowledged; without it 20 and 100.
    #[arg(long)]
    window: Option<usize>,
    /// Messages per second; 0 keeps the window full. Without it full, 1, 20, 200 and 2,000.
    #[arg(long)]
    rate: Option<u64>,
    /// Seconds of a pace.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds of the same pace before.
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Milliseconds that a message may wait for its commit.
    #[arg(long, default_value_t = 1000)]
    commit_interval: u64,
    /// Only a backlog of so many bytes of store.
    #[arg(long)]
    backlog: Option<u64>,
    /// Bytes of a message of the backlog.
    #[arg(long, default_value_t = 1000)]
    backlog_payload: usize,
    /// Without a drain after the starts with a backlog.
    #[arg(long)]
    no_drain: bool,
    /// Measures this program instead, such as the one that is built for gateways, and fails where it holds more memory than
    /// is promised; it knows no sync delay.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// A folder on a real file system.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Fails when the agent holds more memory of its own, steady or after a drain: bytes.
    #[arg(long, default_value_t = u64::MAX)]
    anonymous_at_most: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some("run" | "status") => return bedside_agent::cli::Cli::parse().run(),
        Some("serve") => {
            let port = std::env::args().nth(2).context("serve PORT")?;
            return server::serve(port.parse()?).map(|()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let arguments = Arguments::parse();
    let folder = arguments.folder.clone().unwrap_or_else(|| root().join("target"));
    std::fs::create_dir_all(&folder)?;
    let kind = file_system(&folder)?;
    ensure!(
        !is_memory(&kind),
        "{} is {kind}: use --folder on a real file system",
        folder.display()
    );
    let mut held = Held::default();
    if arguments.backlog.is_none() {
        let delays = match &arguments.agent {
            Some(_) => vec![0],
            None => vec![0, 1, 5, 20],
        };
        for delay in arguments.sync_delay_ms.map_or(delays, |one| vec![one]) {
            for window in arguments.window.map_or(vec![20, 100], |one| vec![one]) {
                for rate in arguments.rate.map_or(vec![0, 1, 20, 200, 2000], |one| vec![one]) {
                    held.add(pace(&arguments, &folder, delay, window, rate)?);
                }
            }
        }
    }
    if arguments.backlog.is_some() || arguments.rate.is_none() {
        held.add(backlog::measure(&arguments, &folder)?);
    }
    let most = arguments.anonymous_at_most;
    ensure!(
        held.anonymous <= most,
        "the agent holds {} bytes of memory of its own, more than {most}",
        held.anonymous
    );
    ensure!(
        arguments.agent.is_none() || !held.above_promise,
        "more was resident than is promised"
    );
    Ok(ExitCode::SUCCESS)
}

/// Configuration of the agent that is measured.
fn gateway(
    arguments: &Arguments,
    folder: &Path,
    sender: &Sender,
    server: u16,
    delay: u64,
    window: usize,
) -> Gateway {
    let own = || std::env::current_exe().expect("the path of this program");
    let gateway = Gateway::new(folder)
        .program(arguments.agent.clone().unwrap_or_else(own))
        .env("BEDSIDE_SYNC_DELAY_MS", &delay.to_string());
    let gateway = allocator_settings()
        .iter()
        .fold(gateway, |gateway, (name, value)| gateway.env(name, value))
        .mqtt(sender.port, &format!("window = {window}\n"))
        .fhir(&format!("http://127.0.0.1:{server}/fhir"), "");
    gateway.drop_pack("heart-rate");
    gateway
}

/// Settings of the C library's allocator that the service unit has.
fn allocator_settings() -> Vec<(String, String)> {
    let unit =
        std::fs::read_to_string(root().join("systemd/bedside-agent.service")).expect("the service unit");
    let settings = unit
        .lines()
        .filter_map(|line| line.strip_prefix("Environment=MALLOC_"));
    settings
        .filter_map(|setting| setting.split_once('='))
        .map(|(name, value)| (format!("MALLOC_{name}"), value.to_owned()))
        .collect()
}

/// A sender at one pace.
fn pace(arguments: &Arguments, folder: &Path, delay: u64, window: usize, rate: u64) -> anyhow::Result<Held> {
    let scratch = tempfile::tempdir_in(folder)?;
    let port = free_port();
    let _server = Served::start(port.into())?;
    let mut sender = Sender::start()?;
    // The sender's window is learnt, as with a broker that holds less than is configured.
    let gateway = gateway(arguments, scratch.path(), &sender, port, delay, 100)
        .store("commit_interval", &format!("{} ms", arguments.commit_interval));
    let mut agent = gateway.start();
    let pid = agent.child.id();
    let load = |seconds| Load {
        window,
        rate: (rate > 0).then_some(rate as f64),
        payload: 300,
        messages: u64::MAX,
        time: Duration::from_secs(seconds),
    };
    sender.send(&load(arguments.warm_up))?;
    forget_peak(pid)?;
    let before = ProcessUse::of(pid)?;
    let sent = sender.send(&load(arguments.seconds))?;
    let used = ProcessUse::of(pid)?.since(&before);
    agent.kill();
    let (median, slowest) = (sent.wait(0.5), sent.wait(0.99));
    println!(
        "{}",
        json!({
            "measured": "pace",
            "sync_delay_ms": delay,
            "window": window,
            "rate": if rate == 0 { "full window".to_owned() } else { rate.to_string() },
            "messages_per_second": per_second(sent.messages, sent.seconds),
            "messages_per_cpu_second": per_second(sent.messages, used.cpu_seconds),
            "p50_ms": median,
            "p99_ms": slowest,
            "rss": used.rss_bytes,
            "file": used.rss_bytes.saturating_sub(used.anonymous_bytes),
            "anonymous": used.anonymous_bytes,
            "peak_rss": used.peak_rss_bytes,
            "debug_build": cfg!(debug_assertions),
        })
    );
    let interval = if rate == 0 { 0 } else { arguments.commit_interval };
    if delay <= 5 && slowest > interval as f64 + WAIT_MS {
        eprintln!(
            "{slowest} ms for an acknowledgement: the promise is {WAIT_MS} and the commit interval, if it is waited for"
        );
    }
    Ok(Held::of(&used, STEADY_RSS))
}

/// Memory of the agent.
#[derive(Default)]
struct Held {
    /// The most that it held of its own: bytes.
    anonymous: u64,
    /// Whether more was resident than is promised of a program that is built for gateways.
    above_promise: bool,
}

impl Held {
    /// What a measurement shows; says when it is more than the promise.
    fn of(used: &ProcessUse, promise: u64) -> Held {
        let above_promise = used.peak_rss_bytes > promise;
        if above_promise {
            eprintln!(
                "{} bytes resident: the promise for a gateway's program is {promise}",
                used.peak_rss_bytes
            );
        }
        Held {
            anonymous: used.anonymous_bytes,
            above_promise,
        }
    }

    fn add(&mut self, other: Held) {
        self.anonymous = self.anonymous.max(other.anonymous);
        self.above_promise |= other.above_promise;
    }
}

/// From now on the largest resident set is counted anew.
fn forget_peak(pid: u32) -> anyhow::Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds.max(0.01)) as u64
}
