//! A thousand gateways, one event hub, an hour of outage: nothing may be lost, and the return must be no herd. With
//! `--sabotage` it succeeds when the herd was noticed.
#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a measuring program reads the real clock"
)]

use anyhow::{Context, bail, ensure};
use bedside_agent::{clock, random, sabotage};
use bedside_tests::fleet::{Plan, run};
use bedside_tests::measure::{ProcessUse, file_system, is_memory};
use bedside_tests::real::root;
use iomt_mapping::Timestamp;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The promise: requests per second after the outage, against those before.
const MOST: f64 = 3.0;
/// A window is as long as this many requests take in the steady state, and a second at least.
const REQUESTS_IN_WINDOW: f64 = 20.0;

fn main() -> anyhow::Result<()> {
    let begin = Instant::now();
    let (mut gateways, mut units, mut seed, mut must_miss) = (1000_u64, None, 7_u64, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--gateways" => gateways = value.parse()?,
            "--throughput-units" => units = Some(value.parse()?),
            "--seed" => seed = value.parse()?,
            "--sabotage" => {
                sabotage::turn_on(&value)?;
                must_miss = true;
            }
            _ => {
                bail!("usage: fleet [--gateways N] [--throughput-units N] [--seed N] [--sabotage no-jitter]")
            }
        }
    }
    ensure!(
        gateways >= 50,
        "with fewer than 50 gateways chance alone exceeds the limit"
    );
    let shared_memory = Path::new("/dev/shm");
    let parent = if shared_memory.is_dir() {
        shared_memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let memory = tempfile::tempdir_in(parent)?;
    let disk = tempfile::tempdir_in(root().join("target"))?;
    let plan = Plan {
        gateways,
        before: 600,
        outage: 3600,
        announced: 600,
        after: 1200,
        throughput_units: units.unwrap_or(gateways as f64 / 1000.0),
        memory: memory.path().to_owned(),
        disk: disk.path().to_owned(),
    };
    let start = Timestamp::from_ticks(17_723_232_000_000_000).context("2026-03-01")?;
    let simulated = plan.clone();
    let (done, _) = clock::simulate(start, async move {
        random::seed(seed);
        run(simulated).await
    })?;
    let (hub, sent, caught_up) = done?;

    let (from, to) = (plan.before / 2, plan.before);
    let opens = plan.before + plan.outage;
    let (sustained, probes, window, peak) = hub.look(|received| {
        let requests = |from: u64, to: u64| -> u64 {
            (from..to)
                .map(|at| u64::from(received.per_second.get(at as usize).copied().unwrap_or(0)))
                .sum()
        };
        let sustained = requests(from, to) as f64 / (to - from) as f64;
        let window = ((REQUESTS_IN_WINDOW / sustained).ceil() as u64).max(1);
        let peak = (opens..opens + plan.after)
            .map(|at| requests(at, at + window))
            .max()
            .unwrap_or(0);
        let probes = requests(plan.before + 60, opens) as f64 / (plan.outage - 60) as f64;
        (sustained, probes, window, peak as f64 / window as f64)
    });
    let ratio = peak / sustained;
    let place = |path: &PathBuf| file_system(path).unwrap_or_default();
    let (received, taken, throttled, answer_lost, wrong) = hub.look(|r| {
        (
            r.ids.len() as u64,
            r.taken,
            r.throttled,
            r.answer_lost,
            r.wrong.clone(),
        )
    });
    println!(
        "{}",
        json!({
            "gateways": gateways,
            "sent": sent,
            "received": received,
            "lost": sent - received.min(sent),
            "repeated": taken - received,
            "in_lost_answers": answer_lost,
            "throttled": throttled,
            "throughput_units": plan.throughput_units,
            "sustained_requests_per_second": sustained,
            "outage_requests_per_second": probes,
            "peak_requests_per_second": peak,
            "window_seconds": window,
            "peak_request_rate_ratio": (ratio * 100.0).round() / 100.0,
            "caught_up_after_seconds": caught_up,
            "stores_in_memory": is_memory(&place(&plan.memory)),
            "peak_rss_bytes": ProcessUse::of(std::process::id())?.peak_rss_bytes,
            "real_seconds": begin.elapsed().as_secs(),
        })
    );
    ensure!(wrong.is_empty(), "{} wrong, the first: {}", wrong.len(), wrong[0]);
    ensure!(
        sent > 0 && received == sent,
        "{received} of {sent} messages arrived"
    );
    ensure!(
        taken - received <= answer_lost,
        "{} events are repeated, {answer_lost} had lost their answer",
        taken - received
    );
    match (ratio <= MOST, must_miss) {
        (true, true) => bail!("the sabotage was not noticed: the ratio is {ratio:.2}"),
        (false, false) => bail!("the ratio is {ratio:.2}, more than {MOST}"),
        _ => Ok(()),
    }
}
