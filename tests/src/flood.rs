//! The agent as the service runs it, but for a source that hands over messages as fast as they are taken: how measuring
//! programs fill a store and drain it.

use anyhow::bail;
use bedside_agent::agent::{self, Agent, StartedSource, Stopping, Surroundings};
use bedside_agent::config::{Config, SourceConfig};
use bedside_agent::ingest::SourceContext;
use bedside_agent::message::Message;
use bedside_agent::telemetry::errors::ErrorRecord;
use std::rc::Rc;
use tokio::sync::watch;

/// Milliseconds between two looks at the agent.
const LOOK: u64 = 50;
/// Milliseconds without any change after which it is stuck.
const STUCK: u64 = 120_000;

/// Everything real but the source.
struct Flood<M> {
    count: u64,
    message: M,
}

impl<M: Fn(u64, &SourceContext) -> Message + Copy + 'static> Surroundings for Flood<M> {
    fn start_source(&self, _: &SourceConfig, context: SourceContext) -> Result<StartedSource, ErrorRecord> {
        let Flood { count, message } = *self;
        Ok((
            context.handle(),
            Box::pin(async move {
                for number in 0..count {
                    if context.sender.send(message(number, &context)).await.is_err() {
                        return;
                    }
                }
                context.sender.closed().await;
            }),
        ))
    }
}

/// Runs the agent with the messages numbered from 0 to `count` until `enough` says so.
///
/// # Errors
/// When the agent ends by itself, or nothing moves any more.
pub fn run(
    config: Config,
    count: u64,
    message: impl Fn(u64, &SourceContext) -> Message + Copy + 'static,
    mut enough: impl FnMut(&Agent) -> bool + 'static,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let (stop, stopped) = watch::channel(false);
        let (started, agent) = tokio::sync::oneshot::channel();
        let watching = tokio::task::spawn_local(async move {
            let agent: Rc<Agent> = agent.await?;
            let (mut idle, mut last) = (0, (0, 0));
            while idle < STUCK {
                if enough(&agent) {
                    stop.send_replace(true);
                    return Ok(());
                }
                let now = (agent.unsent(), agent.summary().delivered);
                idle = if now == last { idle + LOOK } else { 0 };
                last = now;
                embassy_time::Timer::after_millis(LOOK).await;
            }
            stop.send_replace(true);
            bail!("nothing moves any more: {:?}", agent.summary())
        });
        let surroundings = Flood { count, message };
        agent::run(config, &surroundings, Stopping::default(), stopped, |agent| {
            drop(started.send(agent));
        })
        .await?;
        watching.await?
    }))
}
