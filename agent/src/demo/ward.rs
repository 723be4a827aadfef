//! The demo itself: a small ward with its gateway and its server.

use super::broker::{self, Broker};
use super::fhir_server::FhirServer;
use super::setting::{self, Places};
use crate::agent::{self, Agent, RealSurroundings, Stopping};
use crate::config;
use crate::simulate::wearable::{Wearable, WearableKind};
use crate::simulate::wearable_mqtt::{Plan, publish};
use crate::simulate::wearable_serial::{self, LineContent};
use crate::telemetry::status::Summary;
use anyhow::Context as _;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use serde_json::Value;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_local;
use tokio_serial::{SerialPort as _, SerialStream};

/// Time for broker and port to be connected at the start, and for the last messages to arrive at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time for what is buffered to be sent at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Between two looks at the figures.
const REFRESH: Duration = Duration::from_millis(500);

/// What is shown.
#[derive(Clone, Debug)]
pub struct Options {
    /// Wearables that publish to the broker; one more is on the serial line.
    pub devices: usize,
    /// Messages a second of each wearable.
    pub rate: f64,
    /// How long; until `stop` when absent.
    pub duration: Option<Duration>,
    /// Another number, other patients.
    pub seed: u64,
    /// Address of the status page.
    pub listen: String,
}

/// Something to show.
#[derive(Debug)]
pub enum Moment {
    /// Everything is connected; the wearables begin.
    Started {
        /// Address of the broker.
        broker: String,
        /// The serial port that the agent reads.
        serial_port: String,
        /// Base address of the FHIR server.
        fhir: String,
        /// Address of the status page.
        page: String,
        /// Folder of configuration, mapping packs and store.
        folder: PathBuf,
    },
    /// The figures have moved on.
    Figures {
        /// The agent's account.
        summary: Summary,
        /// The Observation that was written last.
        last: Option<Value>,
    },
}

/// How it ended.
#[derive(Debug)]
pub struct Report {
    /// The agent's final account.
    pub summary: Summary,
    /// Messages that the wearables sent.
    pub sent: u64,
    /// Observations that the server holds.
    pub observations: usize,
    /// The Observation that was written last.
    pub last: Option<Value>,
    /// Folder of configuration, mapping packs and store.
    pub folder: PathBuf,
}

/// Runs the demo until its time is over or `stop` is ready. Must run inside a `tokio::task::LocalSet`.
///
/// # Errors
/// When a part cannot be started, or the agent fails.
pub async fn run(
    options: &Options,
    stop: impl Future<Output = ()>,
    mut show: impl FnMut(&Moment),
) -> anyhow::Result<Report> {
    let folder = setting::make_folder()?;
    setting::write_packs(&folder)?;
    let bind = || TcpListener::bind("127.0.0.1:0");
    let broker = Broker::start(bind().await?, broker::Options::default())?;
    let fhir = FhirServer::serve(bind().await?)?;
    let (mut device, port) = serial_line()?;
    let places = Places {
        broker: &broker.url(),
        serial_port: &port,
        fhir: fhir.url(),
        listen: &options.listen,
    };
    let config = config::load(&setting::write_configuration(&folder, &places)?)?;

    let (stop_agent, agent_stop) = watch::channel(false);
    let (started, start) = oneshot::channel();
    let ready = move |agent: Rc<Agent>| drop(started.send(agent));
    let stopping = Stopping { drain: DRAIN };
    let mut running = spawn_local(agent::run(config, &RealSurroundings, stopping, agent_stop, ready));
    let agent = tokio::select! {
        agent = start => agent.context("the agent did not start")?,
        ended = &mut running => anyhow::bail!(early_end(ended)),
    };
    let pages = agent::serve(&agent).await?;
    connected(&agent).await?;
    show(&Moment::Started {
        broker: broker.url(),
        serial_port: port,
        fhir: fhir.url().to_owned(),
        page: pages
            .first()
            .map(|address| format!("http://{address}/"))
            .unwrap_or_default(),
        folder: folder.clone(),
    });

    let sent = Cell::new(0_u64);
    let (halt, halted) = watch::channel(false);
    let showing = async {
        let mut stop = std::pin::pin!(stop);
        let end = options.duration.map(|duration| Instant::now() + duration);
        while end.is_none_or(|end| Instant::now() < end) {
            let next = Instant::now() + REFRESH;
            tokio::select! {
                () = Timer::at(end.map_or(next, |end| end.min(next))) => {}
                () = &mut stop => break,
            }
            show(&Moment::Figures {
                summary: agent.summary(),
                last: fhir.last_observation(),
            });
        }
        halt.send_replace(true);
    };
    let wearing = wear(options, &broker, &mut device, &halted, &sent);
    let worn = tokio::select! {
        ((), worn) = async { tokio::join!(showing, wearing) } => worn,
        ended = &mut running => anyhow::bail!(early_end(ended)),
    };
    worn?;

    // The last messages are on their way through broker and serial line.
    let arrived = async {
        while agent.summary().messages < sent.get() {
            Timer::after_millis(20).await;
        }
    };
    if with_timeout(PATIENCE, arrived).await.is_err() {
        tracing::warn!("not all that the wearables sent has arrived");
    }
    stop_agent.send_replace(true);
    let summary = running.await.context("the agent ended by a panic")??;
    broker.stop();
    fhir.stop();
    Ok(Report {
        summary,
        sent: sent.get(),
        observations: fhir.counts().observations,
        last: fhir.last_observation(),
        folder,
    })
}

/// A pseudo-terminal: the device's end, and the name of the port for the agent.
fn serial_line() -> anyhow::Result<(SerialStream, String)> {
    let (device, terminal) = SerialStream::pair().context("no pseudo-terminal for the serial line")?;
    let name = terminal.name().context("the pseudo-terminal has no name")?;
    // The agent opens it by its name, and alone.
    drop(terminal);
    Ok((device, name))
}

/// Waits until broker and port are connected.
async fn connected(agent: &Agent) -> anyhow::Result<()> {
    let all = async {
        while !agent.sources.iter().all(|source| source.status.is_connected()) {
            Timer::after_millis(10).await;
        }
    };
    with_timeout(PATIENCE, all).await.map_err(|_| {
        anyhow::anyhow!("the agent did not connect to the broker and the serial line of the demo")
    })
}

/// Lets the wearables send until `halted`.
async fn wear(
    options: &Options,
    broker: &Broker,
    device: &mut SerialStream,
    halted: &watch::Receiver<bool>,
    sent: &Cell<u64>,
) -> anyhow::Result<()> {
    let halt = || {
        let mut halted = halted.clone();
        async move { drop(halted.wait_for(|halted| *halted).await) }
    };
    let count = || sent.set(sent.get() + 1);
    let kinds = [WearableKind::Band, WearableKind::Cuff];
    let publishing = (0_u64..).flat_map(|patient| kinds.map(|kind| (kind, patient)));
    let publishing: Vec<Wearable> = publishing
        .take(options.devices)
        .map(|(kind, patient)| Wearable::new(kind, patient, options.seed))
        .collect();
    let plan = Plan {
        url: broker.url(),
        topic: "wearables/{device}/telemetry".to_owned(),
        client_id: "wearables".to_owned(),
        credentials: None,
        rate: options.rate,
        window: 50,
        duration: None,
    };
    let oximeter = Wearable::new(WearableKind::Oximeter, 0, options.seed);
    let (published, written) = tokio::join!(
        publish(&plan, publishing, halt(), |_, _| count()),
        wearable_serial::write(
            device,
            oximeter,
            LineContent::Csv,
            options.rate,
            None,
            halt(),
            |_| count()
        ),
    );
    published?;
    written.context("the serial line of the demo broke")?;
    Ok(())
}

fn early_end(ended: Result<anyhow::Result<Summary>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Err(error)) => error.context("the agent stopped"),
        Ok(Ok(_)) => anyhow::anyhow!("the agent stopped by itself"),
        Err(error) => anyhow::anyhow!("the agent stopped: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_of_all_wearables_become_observations_and_the_account_is_complete() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let options = Options {
            devices: 4,
            rate: 5.0,
            duration: Some(Duration::from_secs(3)),
            seed: 7,
            listen: "127.0.0.1:0".to_owned(),
        };
        let mut figures = 0;
        let mut started = false;
        let report = tokio::task::LocalSet::new().block_on(&runtime, async {
            run(&options, std::future::pending(), |moment| match moment {
                Moment::Started { folder, .. } => started = folder.join("agent.toml").exists(),
                Moment::Figures { .. } => figures += 1,
            })
            .await
            .unwrap()
        });
        assert!(started && figures >= 4, "{figures}");
        let s = report.summary;
        assert!(report.sent >= 60, "{report:?}");
        assert_eq!(
            (s.messages, s.unmatched, s.unparsable),
            (report.sent, 0, 0),
            "{report:?}"
        );
        assert_eq!(
            s.matches,
            s.delivered + s.superseded + s.buffered + s.waiting + s.dead + s.lost
        );
        assert_eq!(
            (s.buffered, s.waiting, s.dead, s.lost),
            (0, 0, 0, 0),
            "{report:?}"
        );
        assert_eq!(
            s.delivered,
            u64::try_from(report.observations).unwrap(),
            "each reading is one Observation"
        );
        assert!(report.folder.join("store").is_dir());
        std::fs::remove_dir_all(&report.folder).unwrap();
    }
}
