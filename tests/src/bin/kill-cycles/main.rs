//! Pulls the plug of the whole process again and again, and judges in the end what the FHIR server holds.
//!
//! ```text
//! publisher -> mosquitto -> tap -> agent (kill -9, start again) -> tap -> FHIR server
//! ```
//!
//! The broker keeps what was not acknowledged in the agent's session and hands it over again, so the agent answers for
//! exactly what it acknowledged: the tap reads the PUBACKs that left it, whatever became of it a moment later. Each
//! acknowledged reading must be one Observation with its value; everything else must be there too in the end, because the
//! broker has it still. The moments are drawn from the seed: a while after the start, at the n-th message, at the n-th
//! acknowledgement, at the n-th request or answer of the FHIR server, or anywhere.
//!
//! The agent is this program again (`run`), so that one build is enough. The last line is JSON; the exit code is 1 when
//! anything was lost or doubled, and then the run ends at that finding. `--sabotage NAME` breaks the agent on purpose.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a harness of processes lives in real time, and a broken harness must say so at once"
)]

mod judge;

use anyhow::{Context, bail};
use bedside_tests::chance::Chance;
use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::chain::{Chain, Publisher, Seen};
use bedside_tests::real::tap::{Way, tap};
use bedside_tests::real::{Process, agent::Gateway, mosquitto::Mosquitto};
use clap::Parser;
use judge::{Finding, judge};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a cycle waits for the event at which it pulls the plug.
const EVENT_LIMIT: Duration = Duration::from_millis(1500);
/// Cycles between two looks at the server.
const JUDGED_EVERY: u32 = 25;
/// The same when the agent is broken on purpose: its damage is to be found soon.
const JUDGED_EVERY_BROKEN: u32 = 4;

/// A commit takes as long as on flash, so that the plug is pulled in its midst as often as there.
const SYNC_DELAY_MS: &str = "15";

struct Arguments {
    cycles: u32,
    seed: u64,
    sabotage: Option<String>,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        cycles: 100,
        seed: 1,
        sabotage: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--cycles" => parsed.cycles = value()?.parse()?,
            "--seed" => parsed.seed = value()?.parse()?,
            "--sabotage" => parsed.sabotage = Some(value()?),
            _ => bail!("usage: kill-cycles [--cycles N] [--seed S] [--sabotage NAME]"),
        }
    }
    Ok(parsed)
}

/// A pause below so many milliseconds.
fn millis(chance: &mut Chance, high: u64) -> Duration {
    Duration::from_micros(chance.below(high * 1000))
}

fn main() -> anyhow::Result<ExitCode> {
    if matches!(std::env::args().nth(1).as_deref(), Some("run" | "status")) {
        // The process whose plug is pulled, and the question how it is.
        return bedside_agent::cli::Cli::parse().run();
    }
    let arguments = arguments()?;
    let mut chance = Chance(arguments.seed);
    let folder = tempfile::tempdir()?;
    let chain = Arc::new(Chain::default());
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let to_broker = {
        let chain = Arc::clone(&chain);
        tap(
            &format!("127.0.0.1:{}", broker.port),
            Arc::new(move |connection, way, bytes| chain.mqtt(connection, way, bytes)),
        )
    };
    let to_server = {
        let chain = Arc::clone(&chain);
        let address = server.base.trim_start_matches("http://");
        tap(
            address,
            Arc::new(move |_, way, _| {
                chain.count(match way {
                    Way::ToServer => Seen::Request,
                    Way::ToClient => Seen::Answer,
                });
            }),
        )
    };
    let mut gateway = Gateway::new(folder.path())
        .program(std::env::current_exe()?)
        .env("BEDSIDE_SYNC_DELAY_MS", SYNC_DELAY_MS)
        .store("progress_interval", "300 ms")
        .mqtt(to_broker, "")
        .fhir(
            &format!("http://127.0.0.1:{to_server}"),
            "resolution = \"create\"",
        );
    if let Some(name) = &arguments.sabotage {
        gateway = gateway.env("BEDSIDE_SABOTAGE", name);
    }
    gateway.drop_pack("heart-rate");
    // The session must exist before anything is published: a broker keeps nothing for somebody it does not know.
    let mut agent = gateway.start();
    gateway.wait_connected(Duration::from_secs(30));
    let mut publisher = Publisher::start(broker.port);

    let begin = Instant::now();
    let mut finding = Finding::default();
    let mut cuts = 0;
    let every = if arguments.sabotage.is_some() {
        JUDGED_EVERY_BROKEN
    } else {
        JUDGED_EVERY
    };
    while cuts < arguments.cycles && finding.is_clean() {
        // A slow server leaves rows behind; one that answers at once leaves none.
        let delay = if chance.between(0, 2) == 0 {
            0
        } else {
            chance.between(10, 200)
        };
        server.fault(&json!({ "delay": delay }));
        wait_for_the_moment(&chain, &mut chance);
        agent.kill();
        cuts += 1;
        chain.begin();
        agent = gateway.start();
        if cuts % every == 0 || cuts == arguments.cycles {
            server.fault(&json!({ "delay": 0 }));
            finding = judge(&chain, &mut publisher, &server, &gateway)?;
        }
    }
    if finding.is_clean() {
        end_in_order(&gateway, &mut agent)?;
    }
    if !finding.is_clean() {
        // What the agent itself says of it.
        if let Some(status) = gateway.status() {
            let [dead, ledger] = ["dead_letters", "ledger"].map(|name| &status[name]);
            eprintln!(
                "accounts: {}\ndead letters: {dead}\nledger: {ledger}",
                status["summary"]
            );
        }
        eprintln!("{finding}");
    }
    let line = json!({
        "cuts": cuts,
        "acknowledged": chain.acknowledged().len(),
        "lost": finding.lost.len(),
        "duplicated": finding.duplicated.len(),
        "finding": !finding.is_clean(),
        "seed": arguments.seed,
        "sabotage": arguments.sabotage,
        "seconds": begin.elapsed().as_secs(),
    });
    println!("{line}");
    Ok(if finding.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Waits until the plug is to be pulled.
fn wait_for_the_moment(chain: &Chain, chance: &mut Chance) {
    let (event, pause) = match chance.between(0, 6) {
        0 => (None, millis(chance, 200)),
        1 => (
            Some((Seen::HandedOver, chance.between(1, 60))),
            millis(chance, 20),
        ),
        2 => (
            Some((Seen::Acknowledged, chance.between(1, 40))),
            millis(chance, 2),
        ),
        3 => (Some((Seen::Request, chance.between(1, 6))), millis(chance, 10)),
        4 => (Some((Seen::Answer, chance.between(1, 6))), millis(chance, 5)),
        _ => (Some((Seen::HandedOver, 1)), millis(chance, 700)),
    };
    if let Some((seen, number)) = event {
        chain.wait_for(seen, number, EVENT_LIMIT);
    }
    std::thread::sleep(pause);
}

/// Stops the agent in order: its accounts must balance, and nothing was given up.
fn end_in_order(gateway: &Gateway, agent: &mut Process) -> anyhow::Result<()> {
    let accounts = gateway.stop(agent);
    for name in ["dead", "lost", "unmatched", "unparsable"] {
        if accounts[name] != 0 {
            bail!("{name} is not 0 in {accounts}");
        }
    }
    eprintln!("accounts at the end: {accounts}");
    Ok(())
}
