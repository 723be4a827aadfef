//! Simulated time: the agent over many lives, requests that take their time.

use super::{Ended, NAMES, config, quiet, servers};
use anyhow::Context as _;
use bedside_agent::agent::{self, Agent, Simulated, Stopping};
use bedside_agent::config::{Config, DestinationConfig};
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::SourceContext;
use bedside_agent::telemetry::status::DestinationState;
use bedside_agent::worker::Worker;
use bedside_agent::{clock, random};
use bedside_tests::chance::Chance;
use bedside_tests::chaos::in_process::InProcess;
use bedside_tests::chaos::readings;
use bedside_tests::chaos::server::ChaosServer;
use embassy_time::{Duration, Timer, with_timeout};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Turns that a wearable sends again when it meets the agent after a break: it does not know what arrived.
const SENT_AGAIN: u64 = 2;
const BASES: [&str; 2] = ["http://ehr.example/r4", "http://registry.example/r4"];

/// How far the wearables are.
#[derive(Clone)]
struct Turns {
    now: Arc<AtomicU64>,
    all: u64,
}

/// The surroundings of a life: both servers, each request on its way for some time, and the wearables.
fn surroundings(servers: [ChaosServer; 2], turns: Turns) -> Simulated {
    Simulated::sending(move |context| by_the_clock(context, turns.clone())).with_http(
        move |destination: &DestinationConfig| {
            let number = usize::from(destination.name == NAMES[1]);
            Http {
                worker: Worker::delayed(|| Duration::from_millis(3 + random::below(150))),
                client: Arc::new(InProcess {
                    server: servers[number].clone(),
                    base: BASES[number].to_owned(),
                }),
            }
        },
    )
}

/// Sends each turn at its time, and the last ones again after a break.
async fn by_the_clock(context: SourceContext, turns: Turns) {
    let mut now = turns.now.load(Ordering::Relaxed).saturating_sub(SENT_AGAIN);
    while now < turns.all {
        let left = readings::time(now).ticks() - clock::wall().ticks();
        Timer::after_micros(u64::try_from(left / 10).unwrap_or(0)).await;
        for (part, texts) in readings::messages(now).into_iter().enumerate() {
            if texts.is_empty() {
                continue;
            }
            Timer::after_secs(20 * part as u64).await;
            for text in texts {
                if context.sender.send(context.message(text)).await.is_err() {
                    return;
                }
            }
        }
        now += 1;
        turns.now.fetch_max(now, Ordering::Relaxed);
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

/// Runs so many days, and until everything is where it belongs.
pub fn run(folder: &Path, days: u64, seed: u64) -> anyhow::Result<Ended> {
    let mut chance = Chance(seed);
    let servers = servers(seed, 3_600_000_000, 30_000_000, 100);
    let turns = Turns {
        now: Arc::default(),
        all: days * 24 * readings::IN_AN_HOUR,
    };
    let mut now = readings::time(0);
    let mut lives = 0;
    loop {
        lives += 1;
        let span = Duration::from_secs(6 * 3600 + chance.below(66 * 3600));
        let end = match chance.below(3) {
            _ if now >= readings::time(turns.all) => End::Quiet,
            0 => End::Stop(span),
            _ => End::Crash(span),
        };
        if matches!(end, End::Quiet) {
            servers.iter().for_each(ChaosServer::calm);
        }
        let config = config(folder, BASES, "")?;
        let chances = seed * 1_000_003 + lives;
        let (states, passed_us) = clock::simulate(now, life(config, &servers, &turns, end, chances))?;
        if let Some(states) = states? {
            return Ok(Ended {
                servers,
                states,
                turns: turns.all,
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
    servers: &[ChaosServer; 2],
    turns: &Turns,
    end: End,
    seed: u64,
) -> anyhow::Result<Option<Vec<DestinationState>>> {
    random::seed(seed);
    let (stop, stopped) = watch::channel(false);
    let (started, agent) = tokio::sync::oneshot::channel();
    let surroundings = surroundings(servers.clone(), turns.clone());
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
            let turns = turns.clone();
            let watching = tokio::task::spawn_local(async move {
                let agent: Rc<Agent> = agent.await?;
                let all_sent = move || turns.now.load(Ordering::Relaxed) >= turns.all;
                let states = quiet(&agent, all_sent, 2 * 86_400).await;
                stop.send_replace(true);
                Ok::<_, anyhow::Error>(states)
            });
            running.await?;
            Ok(Some(watching.await??))
        }
    }
}
