//! The whole agent against FHIR servers that do everything at the wrong moment, judged by what these hold in the end.
//!
//! Two destinations: one lets clients choose ids and is written to by others as well, one chooses ids itself and shows a
//! new resource to searches only after up to 30 seconds. Outages, storms, lost answers, restarts and crashes of the agent
//! are drawn from the seed.
//!
//! In simulated time (`--days 30`) the agent is the same code with its real store; only its sockets are doubles, requests
//! take simulated time, and several are under way at once. With `--socket SECONDS` it runs in real time over real sockets.
//!
//! Each value that was measured must be in exactly one Observation of its patient, changes of others must be kept, what they
//! deleted must stay away, and per destination `matches = delivered + superseded + buffered + waiting + dead + lost`. The
//! last line is JSON; the exit code is 1 when that does not hold. `--sabotage NAME` breaks the agent on purpose.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a harness lives in real time, and a broken harness must say so at once"
)]

mod real;
mod simulated;

use anyhow::{Context as _, bail};
use bedside_agent::agent::Agent;
use bedside_agent::config::Config;
use bedside_agent::sabotage;
use bedside_agent::telemetry::status::DestinationState;
use bedside_tests::chance::Chance;
use bedside_tests::chaos::judge::{Finding, judge};
use bedside_tests::chaos::readings;
use bedside_tests::chaos::server::{ChaosServer, Ways};
use bedside_tests::chaos::weather::Weather;
use embassy_time::Timer;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

const NAMES: [&str; 2] = ["ehr", "registry"];

struct Arguments {
    days: u64,
    socket: Option<u64>,
    seed: u64,
    sabotage: Option<String>,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        days: 30,
        socket: None,
        seed: 1,
        sabotage: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--days" => parsed.days = value.parse()?,
            "--socket" => parsed.socket = Some(value.parse()?),
            "--seed" => parsed.seed = value.parse()?,
            "--sabotage" => parsed.sabotage = Some(value),
            _ => bail!("usage: fhir-chaos [--days N | --socket SECONDS] [--seed N] [--sabotage NAME]"),
        }
    }
    Ok(parsed)
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = arguments()?;
    if let Some(name) = &arguments.sabotage {
        sabotage::turn_on(name)?;
    }
    let begin = Instant::now();
    let scratch = tempfile::tempdir()?;
    readings::write_pack(&scratch.path().join("mappings.d/chaos"))?;
    let ended = match arguments.socket {
        Some(seconds) => real::run(scratch.path(), seconds, arguments.seed)?,
        None => simulated::run(scratch.path(), arguments.days, arguments.seed)?,
    };
    let findings = ended.servers.each_ref().map(|server| judge(server, ended.turns));
    let mut clean = true;
    let mut told = Vec::new();
    for (number, finding) in findings.iter().enumerate() {
        let (server, state) = (&ended.servers[number], &ended.states[number]);
        let conserved = state.matches
            == state.delivered + state.superseded + state.buffered + state.waiting + state.dead + state.lost;
        // Readings that came for an Observation after others had deleted it.
        let dead_enough = state.dead <= server.deleted().len() as u64 * 4 * readings::IN_AN_HOUR;
        let quiet = state.buffered + state.waiting == 0;
        let good = finding.is_clean() && conserved && dead_enough && quiet && state.lost == 0;
        clean &= good;
        if !good {
            show(&state.name, finding, state);
        }
        told.push(tell(server, finding, state, conserved));
    }
    let line = json!({
        "form": if arguments.socket.is_some() { "socket" } else { "simulated" },
        "days": arguments.days,
        "lives": ended.lives,
        "readings": (0..ended.turns).map(readings::matches).sum::<u64>(),
        "destinations": told,
        "finding": !clean,
        "seed": arguments.seed,
        "sabotage": arguments.sabotage,
        "seconds": begin.elapsed().as_secs(),
    });
    println!("{line}");
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(name: &str, finding: &Finding, state: &DestinationState) {
    let first = |list: &[String]| list.iter().take(5).cloned().collect::<Vec<_>>().join("\n    ");
    eprintln!(
        "{name}: lost {}\n    {}\n  twice {}\n    {}\n  wrong {}\n    {}\n  {state:?}",
        finding.lost.len(),
        first(&finding.lost),
        finding.duplicates.len(),
        first(&finding.duplicates),
        finding.wrong.len(),
        first(&finding.wrong),
    );
}

fn tell(server: &ChaosServer, finding: &Finding, state: &DestinationState, conserved: bool) -> Value {
    let seen = server.seen();
    json!({
        "name": state.name,
        "matches": state.matches,
        "delivered": state.delivered,
        "superseded": state.superseded,
        "dead": state.dead,
        "left": state.buffered + state.waiting,
        "given_up": state.lost,
        "conserved": conserved,
        "observations": server.observations().len(),
        "requests": seen.requests,
        "writes": seen.writes,
        "faults": seen.faults,
        "refused_entries": seen.refused_entries,
        "notes_of_others": server.notes(),
        "deleted_by_others": server.deleted().len(),
        "lost": finding.lost.len(),
        "duplicates": finding.duplicates.len(),
        "wrong": finding.wrong.len(),
        "lost_notes": finding.lost_notes,
        "resurrected": finding.resurrected,
    })
}

/// What is judged.
struct Ended {
    servers: [ChaosServer; 2],
    states: Vec<DestinationState>,
    turns: u64,
    lives: u64,
}

/// `busy`: others write once in about so many requests.
fn servers(seed: u64, scale_us: u64, index_lag_us: u64, busy: u64) -> [ChaosServer; 2] {
    let mut chance = Chance(seed);
    let ehr = Ways {
        client_ids: true,
        honours_none_match: chance.one_in(2),
        index_lag_us: 0,
        meddles_in: busy,
        deletes_in: busy * 7,
        most_entries: 60,
    };
    let registry = Ways {
        client_ids: false,
        honours_none_match: chance.one_in(2),
        index_lag_us,
        meddles_in: busy,
        deletes_in: 0,
        most_entries: 500,
    };
    [ehr, registry].map(|ways| {
        let weather = Weather::new(chance.below(u64::MAX), scale_us);
        ChaosServer::new(ways, weather, &readings::resources())
    })
}

fn config(folder: &Path, urls: [&str; 2], times: &str) -> anyhow::Result<Config> {
    let mut text = format!(
        "[gateway]\nid = \"bed-12\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
         [clock]\ntrust = \"always\"\n[[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\n\
         topics = [\"wearables/#\"]\n",
        folder.display(),
    );
    for (name, url) in NAMES.iter().zip(urls) {
        text.push_str(&format!(
            "[[destination]]\nname = \"{name}\"\nkind = \"fhir\"\nurl = \"{url}\"\n{times}\n"
        ));
    }
    Ok(toml::from_str(&text)?)
}

/// Waits until nothing is left to be sent, or for so many seconds; gives the state of the destinations.
async fn quiet(agent: &Agent, all_sent: impl Fn() -> bool, most_seconds: u64) -> Vec<DestinationState> {
    let mut waited = 0;
    while waited < most_seconds {
        // What waits for hours need not be looked at every moment: each look reads the journal.
        let pause = if waited < 600 { 2 } else { 60 };
        waited += pause;
        Timer::after_secs(pause).await;
        if all_sent() && agent.unsent() == 0 {
            let states = agent.status().await.destinations;
            if states.iter().all(|state| state.buffered + state.waiting == 0) {
                return states;
            }
        }
    }
    agent.status().await.destinations
}
