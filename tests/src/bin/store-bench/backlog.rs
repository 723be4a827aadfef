//! A store that has gathered for a long time: how soon the agent takes messages again, also when the file is damaged, and
//! what the drain costs.

use super::{Arguments, DRAINING_RSS, Held, Load, Sender, Sent, Served, forget_peak, gateway, per_second};
use anyhow::{Context as _, ensure};
use bedside_tests::measure::ProcessUse;
use bedside_tests::real::{agent::Gateway, free_port};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Messages per second of the sender beside a drain.
const BESIDE: f64 = 20.0;
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// Gathers, starts, drains, damages; gives the agent's memory in the drain.
pub fn measure(arguments: &Arguments, folder: &Path) -> anyhow::Result<Held> {
    let scratch = tempfile::tempdir_in(folder)?;
    let wanted = arguments.backlog.unwrap_or(1 << 30);
    let delay = arguments.sync_delay_ms.unwrap_or(match arguments.agent {
        Some(_) => 0,
        None => 5,
    });
    let mut sender = Sender::start()?;
    let port = free_port();
    let of = |sender: &Sender, delay| {
        gateway(arguments, scratch.path(), sender, port, delay, 500)
            .store("commit_interval", "1 s")
            .store("max_bytes", &format!("{} B", wanted * 4))
    };
    let store = scratch.path().join("gateway/store");
    let messages = gather(arguments, &of(&sender, 0), &mut sender, &store, wanted)?;
    let gateway = of(&sender, delay);

    first_acknowledgement(&gateway, &mut sender, "undamaged", delay)?;
    let held = match arguments.no_drain {
        true => Held::default(),
        false => drain(&gateway, &mut sender, port, delay, messages)?,
    };
    let file = store.join("store.db");
    for place in ["middle", "end", "head"] {
        damage(&file, place)?;
        first_acknowledgement(&gateway, &mut sender, &format!("damaged at its {place}"), delay)?;
    }
    Ok(held)
}

/// Fills the store while the server is down; gives the number of messages in it.
fn gather(
    arguments: &Arguments,
    gateway: &Gateway,
    sender: &mut Sender,
    store: &Path,
    wanted: u64,
) -> anyhow::Result<u64> {
    let mut agent = gateway.start();
    let pid = agent.child.id();
    let (mut messages, mut payload_bytes) = (0, 0);
    let size = || std::fs::metadata(store.join("store.db")).map_or(0, |file| file.len());
    sender.wait_subscribed()?;
    let before = ProcessUse::of(pid)?;
    while size() < wanted {
        let sent = sender.send(&Load {
            window: 500,
            rate: None,
            payload: arguments.backlog_payload,
            messages: 20_000,
            time: LONGEST_DRAIN,
        })?;
        messages += sent.messages;
        payload_bytes += sent.payload_bytes;
    }
    let used = ProcessUse::of(pid)?.since(&before);
    println!(
        "{}",
        json!({
            "measured": "gathering",
            "store_bytes": size(),
            "messages": messages,
            "payload_bytes": payload_bytes,
            "messages_per_cpu_second": per_second(messages, used.cpu_seconds),
            "rss": used.rss_bytes,
            "file": used.rss_bytes.saturating_sub(used.anonymous_bytes),
            "anonymous": used.anonymous_bytes,
            "peak_rss": used.peak_rss_bytes,
        })
    );
    // The plug is pulled.
    agent.kill();
    Ok(messages)
}

/// From the start of a process to its first acknowledgement; then its plug is pulled.
fn first_acknowledgement(
    gateway: &Gateway,
    sender: &mut Sender,
    state: &str,
    delay: u64,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut agent = gateway.start();
    sender.send(&Load {
        window: 1,
        rate: None,
        payload: 300,
        messages: 1,
        time: Duration::from_secs(60),
    })?;
    let milliseconds = begin.elapsed().as_secs_f64() * 1000.0;
    let used = ProcessUse::of(agent.child.id())?;
    println!(
        "{}",
        json!({
            "measured": "start",
            "store": state,
            "sync_delay_ms": delay,
            "first_acknowledgement_ms": milliseconds.round(),
            "peak_rss": used.peak_rss_bytes,
            "anonymous": used.anonymous_bytes,
        })
    );
    agent.kill();
    let promise = if state == "undamaged" { 1000.0 } else { 3000.0 };
    if milliseconds > promise {
        eprintln!("{milliseconds:.0} ms to the first acknowledgement: the promise is {promise}");
    }
    Ok(())
}

/// The server comes back, and a slow sender goes on meanwhile.
fn drain(
    gateway: &Gateway,
    sender: &mut Sender,
    port: u16,
    delay: u64,
    messages: u64,
) -> anyhow::Result<Held> {
    let mut agent = gateway.start();
    let pid = agent.child.id();
    sender.wait_subscribed()?;
    std::thread::sleep(Duration::from_secs(2));
    forget_peak(pid)?;
    let _server = Served::start(port.into())?;
    let (before, begin) = (ProcessUse::of(pid)?, Instant::now());
    let drained = AtomicBool::new(false);
    let (seconds, sent) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut all: Option<Sent> = None;
            while !drained.load(Ordering::Relaxed) {
                let sent = sender.send(&Load {
                    window: 100,
                    rate: Some(BESIDE),
                    payload: 300,
                    messages: 100,
                    time: LONGEST_DRAIN,
                })?;
                match &mut all {
                    None => all = Some(sent),
                    Some(all) => all.waits.extend(sent.waits),
                }
            }
            let mut all = all.context("messages beside the drain")?;
            all.waits.sort_by(f32::total_cmp);
            anyhow::Ok(all)
        });
        let waited = wait_drained(gateway, messages, begin);
        drained.store(true, Ordering::Relaxed);
        let sent = beside.join().expect("the sender does not panic");
        anyhow::Ok((waited?, sent?))
    })?;
    let used = ProcessUse::of(pid)?.since(&before);
    println!(
        "{}",
        json!({
            "measured": "drain",
            "sync_delay_ms": delay,
            "messages": messages,
            "messages_per_second": per_second(messages, seconds),
            "messages_per_cpu_second": per_second(messages, used.cpu_seconds),
            "p50_ms": sent.wait(0.5),
            "p99_ms": sent.wait(0.99),
            "rss": used.rss_bytes,
            "file": used.rss_bytes.saturating_sub(used.anonymous_bytes),
            "anonymous": used.anonymous_bytes,
            "peak_rss": used.peak_rss_bytes,
        })
    );
    agent.kill();
    Ok(Held::of(&used, DRAINING_RSS))
}

/// Seconds until all that had gathered is delivered.
fn wait_drained(gateway: &Gateway, messages: u64, begin: Instant) -> anyhow::Result<f64> {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let status = gateway.status().context("the agent answers")?;
        let number = |name: &str| status["summary"][name].as_u64().context("accounts in the status");
        let (normalized, buffered) = (number("messages")?, number("buffered")?);
        // What the slow sender has just brought may be on its way.
        if normalized >= messages && buffered < 200 {
            return Ok(begin.elapsed().as_secs_f64());
        }
        ensure!(begin.elapsed() < LONGEST_DRAIN, "{buffered} left: {status}");
    }
}

/// Damages pages of the file.
fn damage(file: &Path, place: &str) -> anyhow::Result<()> {
    let open = File::options().write(true).open(file)?;
    let length = open.metadata()?.len();
    let at = match place {
        "head" => 0,
        "middle" => length / 2,
        _ => length.saturating_sub(64 << 10),
    };
    open.write_all_at(&vec![0x5a; 64 << 10], at / 1024 * 1024)?;
    open.sync_all()?;
    Ok(())
}
