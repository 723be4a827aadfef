//! The gateways of the fleet and the course of the simulation.

use super::Hub;
use crate::event_hub_endpoint::Settings;
use anyhow::Context;
use bedside_agent::agent::{self, Agent, Simulated, Stopping};
use bedside_agent::clock;
use bedside_agent::config::Config;
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::SourceContext;
use bedside_agent::message::Message;
use embassy_time::Timer;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::spawn_local;

/// Seconds between two messages of a gateway.
const INTERVAL: u64 = 30;

/// What is simulated; all times in seconds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many gateways.
    pub gateways: u64,
    /// Steady state before the outage.
    pub before: u64,
    /// Length of the outage.
    pub outage: u64,
    /// Part of it, at its end, in which the hub says when it opens.
    pub announced: u64,
    /// Messages go on for so long after it.
    pub after: u64,
    /// Quota of the hub.
    pub throughput_units: f64,
    /// Folder of the stores that are in memory.
    pub memory: PathBuf,
    /// Folder of the first ten stores, on a real disk.
    pub disk: PathBuf,
}

/// The hub, and the messages of gateway `number`, counted in `sent`.
fn surroundings(hub: Arc<Hub>, number: u64, plan: &Plan, sent: Rc<Cell<u64>>) -> Simulated {
    let messages = (plan.before + plan.outage + plan.after) / INTERVAL;
    // The phases fill the interval evenly; neighbours in number are not neighbours in time.
    let phase = (number * 7919 % plan.gateways) * INTERVAL * 1_000_000 / plan.gateways;
    let sending = move |context: SourceContext| {
        let sent = Rc::clone(&sent);
        async move {
            Timer::after_micros(phase).await;
            for number in 0..messages {
                if context.sender.send(message(number, &context)).await.is_err() {
                    return;
                }
                sent.set(sent.get() + 1);
                Timer::after_secs(INTERVAL).await;
            }
            context.sender.closed().await;
        }
    };
    Simulated::sending(sending).with_http(move |_| Http::inline(Arc::clone(&hub) as _))
}

fn message(number: u64, context: &SourceContext) -> Message {
    let text = format!(
        r#"{{"gateway":"{}","n":{number},"time":"{}","heartRate":{},"spo2":{},"battery":87,"model":"wristband","firmware":"3.14.2"}}"#,
        context.gateway_id,
        clock::wall(),
        50 + number % 90,
        90 + number % 10,
    );
    Message {
        topic: Some("wearables/band/telemetry".into()),
        device_id: Some("band".into()),
        ..context.message(text)
    }
}

fn config(
    number: u64,
    folder: &Path,
    packs: &Path,
    settings: &Settings,
    key: &Path,
) -> anyhow::Result<Config> {
    let text = format!(
        "[gateway]\nid = \"gateway-{number:04}\"\n[mappings]\ndir = \"{}\"\n[store]\ndir = \"{}\"\n\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n\
         [[destination]]\nname = \"cloud\"\nkind = \"event-hub\"\nnamespace = \"{}\"\nhub = \"{}\"\npayload = \"message\"\n\
         max_batch_bytes = {}\nauth = {{ kind = \"sas\", key_name = \"{}\", key = \"file:{}\" }}\n",
        packs.display(),
        folder.display(),
        settings.namespace,
        settings.hub,
        settings.limit,
        settings.rule.0,
        key.display(),
    );
    Ok(toml::from_str(&text)?)
}

/// Lives through the plan, inside a simulation: gives the hub, how many messages the gateways took, and how many seconds after
/// the outage the last backlog had arrived.
///
/// # Errors
/// When a store cannot be opened or an agent ends by itself.
pub async fn run(plan: Plan) -> anyhow::Result<(Arc<Hub>, u64, Option<u64>)> {
    let settings = Settings::default();
    let outage = (plan.before, plan.before + plan.outage);
    let hub = Hub::new(
        settings.clone(),
        outage,
        outage.1 - plan.announced,
        plan.throughput_units,
    );
    let packs = plan.memory.join("mappings.d");
    std::fs::create_dir_all(&packs)?;
    let key = plan.memory.join("key");
    std::fs::write(&key, &settings.rule.1)?;
    let sent = Rc::new(Cell::new(0));
    let agents: Rc<RefCell<Vec<Rc<Agent>>>> = Rc::default();
    let (stop, stopped) = watch::channel(false);
    let mut running = Vec::new();
    for number in 0..plan.gateways {
        let place = if number < 10 { &plan.disk } else { &plan.memory };
        let folder = place.join(format!("gateway-{number}"));
        let config = config(number, &folder, &packs, &settings, &key)?;
        let double = surroundings(Arc::clone(&hub), number, &plan, Rc::clone(&sent));
        let (stopped, agents) = (stopped.clone(), Rc::clone(&agents));
        running.push(spawn_local(async move {
            agent::run(config, &double, Stopping::default(), stopped, |agent| {
                agents.borrow_mut().push(agent);
            })
            .await
        }));
    }
    Timer::after_secs(outage.1).await;
    let whole = plan.before + plan.outage + plan.after;
    let mut caught_up = None;
    for second in 1..=plan.after + 1800 {
        Timer::after_secs(1).await;
        // A message that has just come is no backlog.
        let behind = agents.borrow().iter().any(|agent| agent.unsent() > 3);
        caught_up = match (behind, caught_up) {
            (true, _) => None,
            (false, None) => Some(second),
            (false, known) => known,
        };
        let all = agents.borrow().iter().all(|agent| agent.unsent() == 0);
        if outage.1 + second > whole + INTERVAL && all {
            break;
        }
    }
    stop.send_replace(true);
    agents.borrow_mut().clear();
    for one in running {
        one.await?.context("a gateway failed")?;
    }
    Ok((hub, sent.get(), caught_up))
}
