//! `bedside-agent run`: the service.

use crate::agent::{self, Door, Stopping, Surroundings, Waiting};
use crate::clock;
use crate::config;
use anyhow::Context;
use embassy_time::Timer;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};

/// A loop that has given no sign of life for this long is stuck: microseconds.
const STUCK_US: u64 = 60_000_000;

/// Run the agent as a service until it is told to stop.
///
/// It reads the sources of the configuration, keeps every message in its store, and forwards readings to the destinations.
/// SIGTERM or Ctrl-C stops it in order; its last line is the account of all messages as JSON.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  bedside-agent run --config /etc/bedside-agent/agent.toml\n\n\
    Check a configuration first:\n  bedside-agent check --config /etc/bedside-agent/agent.toml"
)]
pub struct Run {
    /// The configuration file.
    #[arg(long, default_value = super::DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
}

impl Run {
    /// Runs until stopped.
    ///
    /// # Errors
    /// When the configuration is wrong, the store cannot be opened, or a loop fails.
    pub fn run(&self) -> anyhow::Result<()> {
        super::log::start();
        #[cfg(feature = "sabotage")]
        crate::sabotage::from_environment()?;
        service(config::load(&self.config)?)
    }
}

fn service(config: config::Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let summary = local.block_on(&runtime, async move {
        // Without it all goes on at some more cost.
        let _timers = clock::own_timers()
            .inspect_err(|error| tracing::warn!("the timers get a thread of their own: {error}"));
        let (stop, stopped) = watch::channel(false);
        tokio::task::spawn_local(stop_at_signal(stop)?);
        let (started, start) = tokio::sync::oneshot::channel();
        let door = Rc::new(Mutex::new(Door::default()));
        let service = Service {
            door: Rc::clone(&door),
        };
        tokio::task::spawn_local(async move {
            if let Ok(agent) = start.await {
                after_start(&door, agent).await;
            }
        });
        agent::run(config, &service, Stopping::default(), stopped, move |agent| {
            // The receiver lives as long as this runtime.
            drop(started.send(agent));
        })
        .await
    })?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

/// The real surroundings, and the way in for questions while the store's disk does not work.
struct Service {
    door: Rc<Mutex<Door>>,
}

impl Surroundings for Service {
    fn store_waits(&self, waiting: &Rc<Waiting>) {
        let (door, waiting) = (Rc::clone(&self.door), Rc::clone(waiting));
        tokio::task::spawn_local(async move {
            door.lock().await.answer_waiting(&waiting).await;
            // It is ready in the sense of the service manager: there is nothing that a restart could change.
            tell(&[
                sd_notify::NotifyState::Ready,
                sd_notify::NotifyState::Status(&waiting.text()),
            ]);
            // Until the agent runs: whoever holds the other reference.
            watch_dog(|| {
                let over = Rc::strong_count(&waiting) == 1;
                let stuck = waiting.is_stuck(std::time::Duration::from_micros(STUCK_US));
                (!over).then(|| stuck.then(|| "store".to_owned()))
            })
            .await;
        });
    }
}

async fn after_start(door: &Mutex<Door>, agent: Rc<agent::Agent>) {
    match door.lock().await.answer_for(&agent).await {
        Ok(addresses) => {
            for address in addresses {
                tracing::info!("status page on http://{address}/");
            }
        }
        // Readings matter more than the page.
        Err(error) => tracing::error!("{error:#}"),
    }
    tracing::info!("started: {}", agent.describe());
    notify_service_manager(&agent).await;
}

/// Tells systemd that the agent is ready, and at half of its watchdog interval that every loop is alive.
async fn notify_service_manager(agent: &agent::Agent) {
    tell(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(&agent.describe()),
    ]);
    watch_dog(|| Some(agent.stuck(STUCK_US))).await;
}

fn tell(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("service manager: {error}");
    }
}

/// Shows the service manager a sign of life, unless `stuck` names a loop that gives none; until it gives nothing at all.
async fn watch_dog(stuck: impl Fn() -> Option<Option<String>>) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let half = u64::try_from(interval.as_micros() / 2).unwrap_or(5_000_000);
    while let Some(stuck) = stuck() {
        match stuck {
            None => tell(&[sd_notify::NotifyState::Watchdog]),
            Some(name) => {
                tracing::error!("the {name} loop gives no sign of life; the service manager will restart")
            }
        }
        Timer::after_micros(half).await;
    }
}

/// A future that turns `stop` true at the first SIGTERM or SIGINT.
///
/// # Errors
/// When the operating system gives no signal handler.
pub fn stop_at_signal(stop: watch::Sender<bool>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signal handler")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        // A second signal ends the process at once: the store survives that.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    })
}
