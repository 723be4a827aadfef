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

use anyhow::{Context as _, bail};
use bedside_agent::agent::{self, Agent, RealSurroundings, StartedSource, Stopping, Surroundings};
use bedside_agent::config::{Config, DestinationConfig, SourceConfig};
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::{SourceContext, SourceHandle};
use bedside_agent::message::{Message, Payload, PayloadKind, Stamp};
use bedside_agent::packs::Notice;
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_agent::telemetry::status::DestinationState;
use bedside_agent::worker::Worker;
use bedside_agent::{clock, random, sabotage};
use bedside_tests::chaos::judge::{Finding, judge};
use bedside_tests::chaos::readings;
use bedside_tests::chaos::server::{ChaosServer, InProcess, Ways};
use bedside_tests::chaos::socket;
use bedside_tests::chaos::weather::{Chance, Weather};
use embassy_time::{Duration, Timer, with_timeout};
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::watch;

const NAMES: [&str; 2] = ["ehr", "registry"];
/// Turns that a wearable sends again when it meets the agent after a break: it does not know what arrived.
const SENT_AGAIN: u64 = 2;

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
        Some(seconds) => over_sockets(scratch.path(), seconds, arguments.seed)?,
        None => simulated(scratch.path(), arguments.days, arguments.seed)?,
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
    let mut chance = Chance::new(seed);
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

// --- Simulated time ------------------------------------------------------------------------------------------

/// The surroundings of a life in simulated time.
struct Simulated {
    servers: [ChaosServer; 2],
    turn: Arc<AtomicU64>,
    turns: u64,
}

const BASES: [&str; 2] = ["http://ehr.example/r4", "http://registry.example/r4"];

impl Surroundings for Simulated {
    fn store_worker(&self) -> io::Result<Worker> {
        Ok(Worker::inline())
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::inline(), Notice::Poll))
    }

    fn http(&self, destination: &DestinationConfig) -> io::Result<(Http, Http)> {
        let number = usize::from(destination.name == NAMES[1]);
        let http = Http {
            worker: Worker::delayed(|| Duration::from_millis(3 + random::below(150))),
            client: Arc::new(InProcess {
                server: self.servers[number].clone(),
                base: BASES[number].to_owned(),
            }),
        };
        Ok((http.clone(), http))
    }

    fn start_source(&self, _: &SourceConfig, context: SourceContext) -> Result<StartedSource, ErrorRecord> {
        let (turn, turns) = (Arc::clone(&self.turn), self.turns);
        Ok((handle(&context), Box::pin(by_the_clock(context, turn, turns))))
    }
}

/// Sends each turn at its time, and the last ones again after a break.
async fn by_the_clock(context: SourceContext, turn: Arc<AtomicU64>, turns: u64) {
    let mut now = turn.load(Ordering::Relaxed).saturating_sub(SENT_AGAIN);
    while now < turns {
        let left = readings::time(now).ticks() - clock::wall().ticks();
        Timer::after_micros(u64::try_from(left / 10).unwrap_or(0)).await;
        for (part, texts) in readings::messages(now).into_iter().enumerate() {
            if texts.is_empty() {
                continue;
            }
            Timer::after_secs(20 * part as u64).await;
            for text in texts {
                if context.sender.send(message(text, &context)).await.is_err() {
                    return;
                }
            }
        }
        now += 1;
        turn.fetch_max(now, Ordering::Relaxed);
    }
    std::future::pending::<()>().await;
}

/// How a life of the agent ends.
#[derive(Clone, Copy)]
enum End {
    Crash(Duration),
    Stop(Duration),
    /// When everything is where it belongs.
    Quiet,
}

fn simulated(folder: &Path, days: u64, seed: u64) -> anyhow::Result<Ended> {
    let mut chance = Chance::new(seed);
    let servers = servers(seed, 3_600_000_000, 30_000_000, 100);
    let turns = days * 24 * readings::IN_AN_HOUR;
    let turn = Arc::new(AtomicU64::new(0));
    let mut now = readings::time(0);
    let mut lives = 0;
    loop {
        lives += 1;
        let span = Duration::from_secs(6 * 3600 + chance.below(66 * 3600));
        let end = match chance.below(3) {
            _ if now >= readings::time(turns) => End::Quiet,
            0 => End::Stop(span),
            _ => End::Crash(span),
        };
        if matches!(end, End::Quiet) {
            servers.iter().for_each(ChaosServer::calm);
        }
        let surroundings = Simulated {
            servers: servers.clone(),
            turn: Arc::clone(&turn),
            turns,
        };
        let config = config(folder, BASES, "")?;
        let chances = seed * 1_000_003 + lives;
        let (states, passed_us) = clock::simulate(now, life(config, surroundings, end, chances))?;
        if let Some(states) = states? {
            return Ok(Ended {
                servers,
                states,
                turns,
                lives,
            });
        }
        // The gateway is off for a while.
        let off_us = chance.below(7_200) * 1_000_000;
        now = now
            .plus_ticks(i64::try_from(passed_us + off_us)? * 10)
            .context("in range")?;
    }
}

async fn life(
    config: Config,
    surroundings: Simulated,
    end: End,
    seed: u64,
) -> anyhow::Result<Option<Vec<DestinationState>>> {
    random::seed(seed);
    let (stop, stopped) = watch::channel(false);
    let (started, agent) = tokio::sync::oneshot::channel();
    let running = agent::run(config, &surroundings, Stopping::default(), stopped, |agent| {
        drop(started.send(agent));
    });
    match end {
        // What runs is dropped in its midst, and nothing is written any more.
        End::Crash(after) => match with_timeout(after, running).await {
            Ok(ended) => ended.map(|_| None),
            Err(_) => Ok(None),
        },
        End::Stop(after) => {
            tokio::task::spawn_local(async move {
                Timer::after(after).await;
                stop.send_replace(true);
            });
            running.await.map(|_| None)
        }
        End::Quiet => {
            let turns = surroundings.turns;
            let turn = Arc::clone(&surroundings.turn);
            let watching = tokio::task::spawn_local(async move {
                let agent: Rc<Agent> = agent.await?;
                let all_sent = move || turn.load(Ordering::Relaxed) >= turns;
                let states = quiet(&agent, all_sent, 2 * 86_400).await;
                stop.send_replace(true);
                Ok::<_, anyhow::Error>(states)
            });
            running.await?;
            Ok(Some(watching.await??))
        }
    }
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

// --- Real time -----------------------------------------------------------------------------------------------

/// The surroundings of the service, but for the source.
struct Real {
    milliseconds: u64,
    turns: Arc<AtomicU64>,
}

impl Surroundings for Real {
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
        let (turns, milliseconds) = (Arc::clone(&self.turns), self.milliseconds);
        Ok((
            handle(&context),
            Box::pin(async move {
                let mut now = 0;
                // Diastolic pressure comes half a second after the systolic one.
                let later = 10;
                while now * 50 < milliseconds + later * 50 {
                    let sending = now * 50 < milliseconds;
                    let [mut texts, systolic, _] = if sending {
                        readings::messages(now)
                    } else {
                        Default::default()
                    };
                    texts.extend(systolic);
                    if now >= later {
                        let [_, _, diastolic] = readings::messages(now - later);
                        texts.extend(diastolic);
                    }
                    for text in texts {
                        if context.sender.send(message(text, &context)).await.is_err() {
                            return;
                        }
                    }
                    now += 1;
                    Timer::after_millis(50).await;
                }
                turns.store(now - later, Ordering::Relaxed);
                context.sender.closed().await;
            }),
        ))
    }
}

fn over_sockets(folder: &Path, seconds: u64, seed: u64) -> anyhow::Result<Ended> {
    let servers = servers(seed, 700_000, 4_000_000, 20);
    let urls: Vec<String> = servers
        .iter()
        .map(|server| Ok(format!("http://{}", socket::serve(server.clone())?)))
        .collect::<io::Result<_>>()?;
    let config = config(folder, [&urls[0], &urls[1]], "flush_interval = 1\nindex_lag = 5")?;
    let turns = Arc::new(AtomicU64::new(0));
    let surroundings = Real {
        milliseconds: seconds * 1000,
        turns: Arc::clone(&turns),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let of_watching = servers.clone();
    let states = runtime.block_on(local.run_until(async move {
        let (stop, stopped) = watch::channel(false);
        let (started, agent) = tokio::sync::oneshot::channel();
        let watching = tokio::task::spawn_local(async move {
            let agent: Rc<Agent> = agent.await?;
            Timer::after_secs(seconds).await;
            of_watching.iter().for_each(ChaosServer::calm);
            let states = quiet(&agent, move || turns.load(Ordering::Relaxed) > 0, 300).await;
            stop.send_replace(true);
            Ok::<_, anyhow::Error>(states)
        });
        agent::run(config, &surroundings, Stopping::default(), stopped, |agent| {
            drop(started.send(agent));
        })
        .await?;
        let states = watching.await??;
        Ok::<_, anyhow::Error>((states, surroundings.turns.load(Ordering::Relaxed)))
    }))?;
    let (states, turns) = states;
    Ok(Ended {
        servers,
        states,
        turns,
        lives: 1,
    })
}

fn handle(context: &SourceContext) -> SourceHandle {
    SourceHandle {
        id: context.id,
        name: context.name.clone(),
        acknowledger: None,
        window: 0,
    }
}

fn message(text: String, context: &SourceContext) -> Message {
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
        topic: None,
        properties: Vec::new(),
        device_id: None,
        possible_repeat: false,
        record: None,
        ack: None,
    }
}
