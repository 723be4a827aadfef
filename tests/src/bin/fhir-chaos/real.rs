//! Real time and real sockets: the service's own surroundings, but for the wearables.

use super::{Ended, config, quiet, servers};
use bedside_agent::agent::{self, Agent, StartedSource, Stopping, Surroundings};
use bedside_agent::config::SourceConfig;
use bedside_agent::ingest::SourceContext;
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_tests::chaos::server::ChaosServer;
use bedside_tests::chaos::{readings, socket};
use embassy_time::Timer;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// The surroundings of the service, but for the source.
struct Real {
    milliseconds: u64,
    turns: Arc<AtomicU64>,
}

impl Surroundings for Real {
    fn start_source(&self, _: &SourceConfig, context: SourceContext) -> Result<StartedSource, ErrorRecord> {
        let (turns, milliseconds) = (Arc::clone(&self.turns), self.milliseconds);
        Ok((
            context.handle(),
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
                        if context.sender.send(context.message(text)).await.is_err() {
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

/// Runs so many seconds, and until everything is where it belongs.
pub fn run(folder: &Path, seconds: u64, seed: u64) -> anyhow::Result<Ended> {
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
