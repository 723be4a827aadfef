//! What eight serial ports at full line rate cost the agent: CPU and memory above an agent whose eight ports are silent.
//!
//! Each port carries what a simulated device of its driver says, again and again without a pause, at the speed of the driver.
//! The agent is this program again (`run`), with drivers, journal and mapping packs, and without a destination. The last line is
//! JSON; `--at-most PERCENT` makes the exit code 1 when the CPU is above it.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a harness of processes lives in real time, and a broken harness must say so at once"
)]

use anyhow::{Context as _, bail};
use bedside_agent::ingest::serial::drivers::{Now, Output, driver};
use bedside_agent::simulate::serial::simulator;
use bedside_tests::cables::pack_of;
use bedside_tests::measure::ProcessUse;
use bedside_tests::real::agent::Gateway;
use clap::Parser as _;
use embassy_time::{Duration, Instant, Timer};
use iomt_mapping::Timestamp;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio_serial::{SerialPort as _, SerialStream};

/// Eight devices that always speak.
const DEVICES: [&str; 8] = [
    "nonin",
    "contec-cms50",
    "contec-cms50-v7",
    "berry-bci",
    "masimo-ascii",
    "berry-pm6750",
    "healthypi-openview",
    "zephyr",
];
/// Bytes reach the gateway in pieces of this time: an adapter's latency timer.
const PIECE: Duration = Duration::from_millis(16);

/// What the device of a driver says in twenty seconds.
fn speech(name: &str) -> Vec<u8> {
    let at = |monotonic_us: u64| Now {
        monotonic_us,
        wall: Timestamp::from_ticks(17_723_484_000_000_000 + i64::try_from(monotonic_us).unwrap_or(0) * 10),
    };
    let (mut device, mut host) = (
        simulator(name, 1).expect("a simulator"),
        driver(name).expect("a driver").create(),
    );
    let (mut out, mut said) = (Output::default(), Vec::new());
    host.start(at(0), &mut out);
    for now in (0..20_000_000).step_by(4000) {
        let before = said.len();
        for bytes in out.send.drain(..) {
            device.bytes(&bytes, at(now), &mut said);
        }
        if device.deadline().is_some_and(|deadline| deadline <= now) {
            device.step(at(now), &mut said);
        }
        host.bytes(said.get(before..).unwrap_or_default(), at(now), &mut out);
        if host.deadline().is_some_and(|deadline| deadline <= now) {
            host.timeout(at(now), &mut out);
        }
    }
    said
}

/// Speaks at the speed of the line while `speaks` is on.
async fn speak(mut device: SerialStream, name: &str, speaks: &AtomicBool, written: &AtomicU64) {
    let bytes_per_second = u64::from(driver(name).expect("a driver").settings.baud) / 10;
    let speech = speech(name);
    let (mut place, mut begin, mut sent) = (0, Instant::now(), 0);
    let mut answer = [0; 256];
    loop {
        Timer::after(PIECE).await;
        let _ = device.try_read(&mut answer);
        if !speaks.load(Ordering::Relaxed) {
            (begin, sent) = (Instant::now(), 0);
            continue;
        }
        let due = begin.elapsed().as_micros() * bytes_per_second / 1_000_000;
        // What a busy machine did not send in time is not sent later: a line has no memory.
        let piece = (due - sent).min(2000);
        sent = due;
        let bytes: Vec<u8> = speech
            .iter()
            .cycle()
            .skip(place)
            .take(piece as usize)
            .copied()
            .collect();
        // What a full terminal does not take is lost, as on a line.
        let length = device.try_write(&bytes).unwrap_or(0);
        place = (place + bytes.len()) % speech.len();
        written.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Eight ports, each with a device behind it, on a thread of their own until the program ends.
fn devices(folder: &Path, speaks: &Arc<AtomicBool>, written: &Arc<AtomicU64>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let within = runtime.enter();
    let mut lines = Vec::new();
    for name in DEVICES {
        let (device, gateway) = SerialStream::pair()?;
        std::os::unix::fs::symlink(
            gateway.name().context("a terminal has a name")?,
            folder.join(name),
        )?;
        lines.push((device, name));
    }
    drop(within);
    let (speaks, written) = (Arc::clone(speaks), Arc::clone(written));
    std::thread::spawn(move || {
        runtime.block_on(tokio::task::LocalSet::new().run_until(async move {
            for (device, name) in lines {
                let (speaks, written) = (Arc::clone(&speaks), Arc::clone(&written));
                tokio::task::spawn_local(async move { speak(device, name, &speaks, &written).await });
            }
            std::future::pending::<()>().await;
        }));
    });
    Ok(())
}

fn seconds_since(begin: Instant) -> f64 {
    begin.elapsed().as_micros() as f64 / 1e6
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    let kilobytes = line
        .split_whitespace()
        .next()
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn main() -> anyhow::Result<ExitCode> {
    if matches!(std::env::args().nth(1).as_deref(), Some("run" | "status")) {
        return bedside_agent::cli::Cli::parse().run();
    }
    let (mut seconds, mut at_most) = (20, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => seconds = value()?.parse()?,
            "--at-most" => at_most = Some(value()?.parse::<f64>()?),
            _ => bail!("usage: serial-bench [--seconds S] [--at-most PERCENT]"),
        }
    }
    let folder = tempfile::tempdir()?;
    let ports = folder.path().join("ports");
    std::fs::create_dir_all(&ports)?;
    let (speaks, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    devices(&ports, &speaks, &written)?;
    let mut gateway = Gateway::new(folder.path())
        .program(std::env::current_exe()?)
        .store("commit_interval", "1 s");
    for name in DEVICES {
        gateway.drop_pack(pack_of(name));
        gateway = gateway.with(&format!(
            "[[source]]\nname = \"{name}\"\nkind = \"serial\"\nport = \"{}/{name}\"\ndriver = \"{name}\"\n\
             device_id = \"dev-{name}\"\npacks = [\"{}\"]",
            ports.display(),
            pack_of(name)
        ));
    }
    let mut agent = gateway.start();
    gateway.wait_connected(std::time::Duration::from_secs(60));
    let pid = agent.child.id();
    let measure = |seconds: u64| -> anyhow::Result<f64> {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let (before, begin) = (ProcessUse::of(pid)?, Instant::now());
        std::thread::sleep(std::time::Duration::from_secs(seconds));
        Ok(ProcessUse::of(pid)?.since(&before).cpu_seconds / seconds_since(begin) * 100.0)
    };
    let idle = measure(seconds)?;
    let memory = resident(pid);
    speaks.store(true, Ordering::Relaxed);
    let (bytes, begin) = (written.load(Ordering::Relaxed), Instant::now());
    let busy = measure(seconds)?;
    let bytes = (written.load(Ordering::Relaxed) - bytes) as f64 / seconds_since(begin);
    let above = resident(pid).saturating_sub(memory);
    let status = gateway.status().unwrap_or_default();
    speaks.store(false, Ordering::Relaxed);
    let accounts = gateway.stop(&mut agent);
    let cpu = busy - idle;
    let line = json!({
        "ports": DEVICES.len(),
        "bytes_per_second": bytes.round(),
        "cpu_percent_above_idle": (cpu * 100.0).round() / 100.0,
        "cpu_percent_idle": (idle * 100.0).round() / 100.0,
        "memory_above_idle": above,
        "memory_idle": memory,
        "messages": accounts["messages"],
        "garbage": status["sources"].as_array().map(|sources| sources.iter().filter_map(|source| source["garbage"].as_u64()).sum::<u64>()),
        "seconds": seconds,
        "optimised": !cfg!(debug_assertions),
    });
    println!("{line}");
    Ok(if at_most.is_some_and(|limit| cpu > limit) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
