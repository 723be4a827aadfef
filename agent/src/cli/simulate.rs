//! `bedside-agent simulate`: wearables that are not there, on a broker or a serial line.

use crate::config::TextDuration;
use crate::ingest::serial::drivers::{self, PortSettings};
use crate::ingest::serial::open_port;
use crate::simulate::serial::line;
use crate::simulate::wearable::{Wearable, WearableKind};
use crate::simulate::wearable_mqtt::{Plan, publish};
use crate::simulate::wearable_serial::{self, LineContent};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use embassy_time::Duration;
use std::path::PathBuf;
use tokio_serial::SerialStream;

/// Simulate wearables on MQTT or on a serial line
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent simulate --mqtt mqtt://localhost:1883 --devices 6 --rate 2 --for 30s
  bedside-agent simulate --port /dev/pts/4 --kind oximeter --format csv
  bedside-agent simulate drager-medibus --port /dev/pts/4

Messages are those that the mapping packs heart-rate, pulse-oximeter and blood-pressure take. All devices on one patient
(a band, an oximeter and a cuff) see the same heart.")]
pub struct Simulate {
    /// Broker to publish to: mqtt://HOST:PORT
    #[arg(
        long,
        value_name = "URL",
        required_unless_present_any = ["port", "device", "driver"],
        conflicts_with = "port"
    )]
    mqtt: Option<String>,
    /// Serial port to write to
    #[arg(long, value_name = "PORT")]
    port: Option<PathBuf>,
    /// Topic; {device} stands for the device id
    #[arg(long, default_value = "wearables/{device}/telemetry")]
    topic: String,
    /// How many wearables publish
    #[arg(long, default_value_t = 3, value_name = "N")]
    devices: usize,
    /// Messages a second of each wearable
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    rate: f64,
    /// How long ("15s", "5 min"); until Ctrl-C when absent
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// The device of this driver on the serial line, with its protocol: nonin, zephyr, drager-medibus, ...
    #[arg(value_name = "DRIVER", requires = "port", conflicts_with_all = ["kind", "format", "driver"])]
    device: Option<String>,
    /// The same as DRIVER, by its name
    #[arg(long, value_name = "NAME", requires = "port", conflicts_with_all = ["kind", "format"])]
    driver: Option<String>,
    /// The wearable on the serial line
    #[arg(long, value_enum, default_value_t = Kind::Oximeter)]
    kind: Kind,
    /// What a line on the serial line holds
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Another number, other patients
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Publishes that may be unacknowledged at a time
    #[arg(long, default_value_t = 100, value_name = "N")]
    window: u16,
    /// User name at the broker
    #[arg(long, requires = "password_file")]
    username: Option<String>,
    /// File that holds the password at the broker
    #[arg(long, requires = "username", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Print every message
    #[arg(long)]
    print: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Band,
    Oximeter,
    Cuff,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Csv,
}

/// A duration as in `agent.toml`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    TextDuration::try_from(text.to_owned()).map(|duration| Duration::from_micros(duration.0))
}

/// The end of the line at which the device is.
fn open(port: &std::path::Path, settings: PortSettings) -> anyhow::Result<SerialStream> {
    open_port(port, settings).map_err(|record| {
        anyhow::anyhow!(
            "{}\nwithout an adapter two ends of a line come from: socat -d -d pty,rawer pty,rawer",
            record.text
        )
    })
}

/// Ready at Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        // Without a handler the signal ends the process by itself.
        Err(_) => std::future::pending().await,
    }
}

impl Simulate {
    /// Runs until the time is over or the program is interrupted.
    ///
    /// # Errors
    /// When nothing can be sent, or the broker has not acknowledged everything.
    pub fn run(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match &self.port {
                Some(port) => match self.device.as_ref().or(self.driver.as_ref()) {
                    Some(driver) => self.device_on_serial_line(port, driver).await,
                    None => self.on_serial_line(port).await,
                },
                None => self.on_mqtt().await,
            }
        })
    }

    async fn on_mqtt(&self) -> anyhow::Result<()> {
        let password = match &self.password_file {
            Some(file) => {
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
            }
            None => String::new(),
        };
        let plan = Plan {
            url: self.mqtt.clone().unwrap_or_default(),
            topic: self.topic.clone(),
            client_id: format!("bedside-simulate-{:x}", crate::random::number()),
            credentials: self
                .username
                .clone()
                .map(|name| (name, password.trim_end().to_owned())),
            rate: self.rate,
            window: self.window,
            duration: self.duration,
        };
        let wearables = Wearable::ward(self.devices, self.seed);
        let published = publish(&plan, wearables, interrupted(), |_, text| self.show(text)).await?;
        println!(
            "published {} messages, {} acknowledged",
            published.sent, published.acknowledged
        );
        anyhow::ensure!(
            published.sent == published.acknowledged,
            "the broker has not acknowledged everything: is {} the right address?",
            plan.url
        );
        Ok(())
    }

    async fn device_on_serial_line(&self, port: &std::path::Path, driver: &str) -> anyhow::Result<()> {
        let Some(mut device) = crate::simulate::serial::simulator(driver, self.seed) else {
            let known: Vec<_> = crate::simulate::serial::names().collect();
            anyhow::bail!(
                "no device is simulated for \"{driver}\"; there are {}",
                known.join(", ")
            );
        };
        let mut line = open(
            port,
            drivers::driver(driver).map_or_else(PortSettings::default, |info| info.settings),
        )?;
        eprintln!("{driver} on {}; Ctrl-C ends it", port.display());
        let written = line::talk(&mut line, device.as_mut(), self.duration, interrupted())
            .await
            .with_context(|| format!("the line {} failed", port.display()))?;
        println!("wrote {written} bytes");
        Ok(())
    }

    async fn on_serial_line(&self, port: &std::path::Path) -> anyhow::Result<()> {
        let mut line = open(port, PortSettings::eight_none_one(115_200))?;
        let kind = match self.kind {
            Kind::Band => WearableKind::Band,
            Kind::Oximeter => WearableKind::Oximeter,
            Kind::Cuff => WearableKind::Cuff,
        };
        let content = match self.format {
            Format::Json => LineContent::Json,
            Format::Csv => LineContent::Csv,
        };
        let wearable = Wearable::new(kind, 0, self.seed);
        let stop = interrupted();
        let written = wearable_serial::write(
            &mut line,
            wearable,
            content,
            self.rate,
            self.duration,
            stop,
            |line| {
                self.show(line);
            },
        )
        .await
        .with_context(|| format!("cannot write to {}", port.display()))?;
        println!("wrote {written} lines");
        Ok(())
    }

    /// Simulated readings belong to nobody: they may be shown.
    fn show(&self, text: &str) {
        if self.print {
            println!("{text}");
        }
    }
}
