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

mod server;

use anyhow::{Context as _, bail, ensure};
use bedside_agent::config::Config;
use bedside_agent::ingest::SourceContext;
use bedside_agent::message::Message;
use bedside_tests::flood;
use bedside_tests::measure::ProcessUse;
use bedside_tests::real::root;
use iomt_mapping::Timestamp;
use serde_json::json;
use server::Served;
use std::path::{Path, PathBuf};

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
        return server::serve(std::env::args().nth(2).context("serve RTT")?.parse()?);
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
    let base = &server.base;
    if kind == Kind::Forgotten {
        let before = config(&scratch.path().join("before"), kind, base)?;
        flood::run(before, count, messages(kind, 0), move |agent| {
            agent.summary().delivered >= readings / 2
        })?;
    }
    server.refuse(true)?;
    let folder = scratch.path().join("now");
    let (half, readings) = match kind {
        Kind::Forgotten => (1, readings / 2),
        _ => (0, readings),
    };
    flood::run(
        config(&folder, kind, base)?,
        count,
        messages(kind, half),
        move |agent| agent.unsent() >= readings,
    )?;

    server.refuse(false)?;
    // The largest resident set counts from here on.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = ProcessUse::of(std::process::id())?;
    flood::run(config(&folder, kind, base)?, 0, messages(kind, half), |agent| {
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

/// Each message is the readings of one Observation; `half`: which ones of a forgotten Observation.
fn messages(kind: Kind, half: u64) -> impl Fn(u64, &SourceContext) -> Message + Copy + 'static {
    move |number, context| context.message(text(kind, number, half))
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
