//! `bedside-agent serial sniff`: which driver and speed a device needs, found by listening.

use super::super::simulate::{interrupted, parse_duration};
use super::super::{Format, print};
use super::with_flow;
use crate::clock;
use crate::ingest::serial::drivers::{DriverInfo, Now, PortSettings, Speaks, driver, drivers};
use crate::ingest::serial::sniff::{
    Heard, Score, Sniffer, best, is_silent_until_asked, shorthand, worth_trying,
};
use crate::ingest::serial::{apply_settings, open_port, port_name};
use anyhow::Context as _;
use clap::Args;
use embassy_time::{Duration, Timer};
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::io::AsyncReadExt as _;
use tokio_serial::{ClearBuffer, SerialPort as _, SerialPortType, SerialStream};

/// How long is listened with each setting where one speed is given, and where all are tried.
const ONE_SPEED: Duration = Duration::from_secs(10);
const EACH_SPEED: Duration = Duration::from_secs(3);
/// Between two looks whether enough was heard.
const LOOK: Duration = Duration::from_millis(250);

/// Find out which driver and speed a device needs, by listening
#[derive(Args, Debug)]
#[command(
    long_about = "\
Listens on a serial line and sends nothing. All drivers and framings read along; shown are bytes, frames, their rate, what was
refused and why, and a guess of driver and speed with what to write into agent.toml. A device that speaks only when it is asked
is not heard. The exit code is 0 when something fits.",
    after_help = "\
Examples:
  bedside-agent serial sniff /dev/ttyUSB0                           tries the usual speeds
  bedside-agent serial sniff /dev/ttyUSB0 --speed 9600 --for 30s
  bedside-agent serial sniff /dev/ttyUSB0 --format json"
)]
pub(super) struct Sniff {
    /// Serial port
    #[arg(value_name = "PORT")]
    port: PathBuf,
    /// Bits a second; the usual ones are tried when absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(50..=4_000_000))]
    speed: Option<u32>,
    /// How long with each setting of the port [default: until something fits, at most 10s with --speed, else 3s]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// How the result is shown
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn now() -> Now {
    Now {
        monotonic_us: clock::monotonic_us(),
        wall: Some(clock::wall()),
    }
}

impl Sniff {
    /// Listens, and says what was heard.
    ///
    /// # Errors
    /// When the port cannot be opened or read.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let heard = runtime.block_on(self.listen())?;
        let best = best(&heard);
        print(&match self.format {
            Format::Text => text(&self.port, best),
            Format::Json => {
                let shown = json!({"port": self.port, "best": best, "tried": heard});
                format!("{}\n", serde_json::to_string_pretty(&shown)?)
            }
        })?;
        Ok(if best.is_some_and(|best| best.guess.is_some()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Listens with one setting after the other, until one fits well or the user has heard enough.
    async fn listen(&self) -> anyhow::Result<Vec<Heard>> {
        let tried = worth_trying(self.speed);
        let usual_time = if self.speed.is_some() {
            ONE_SPEED
        } else {
            EACH_SPEED
        };
        let limit = self.duration.unwrap_or(usual_time);
        let until_sure = self.duration.is_none();
        let first = tried.first().copied().unwrap_or_default();
        let mut port = open_port(&self.port, first)
            .map_err(|record| anyhow::anyhow!("{}{}{}", record.text, in_use(&record.text), plugged_in()))?;
        let mut heard = Vec::new();
        let mut stop = std::pin::pin!(interrupted());
        for settings in tried {
            eprintln!("listening with {} ...", shorthand(settings));
            apply_settings(&mut port, settings)
                .with_context(|| format!("the port does not take {}", shorthand(settings)))?;
            let mut sniffer = Sniffer::new(settings, now());
            let stopped = tokio::select! {
                read = read(&mut port, settings, &mut sniffer, limit, until_sure) => {
                    read.with_context(|| format!("cannot read {}", self.port.display()))?;
                    false
                }
                () = &mut stop => true,
            };
            heard.push(sniffer.heard(now()));
            if stopped || heard.last().is_some_and(Heard::is_sure) {
                break;
            }
        }
        Ok(heard)
    }
}

/// Feeds the sniffer until `limit` is over, or, with `until_sure`, something fits well.
async fn read(
    port: &mut SerialStream,
    settings: PortSettings,
    sniffer: &mut Sniffer,
    limit: Duration,
    until_sure: bool,
) -> std::io::Result<()> {
    // What came at the last speed is noise at this one.
    port.clear(ClearBuffer::Input)?;
    let begin = clock::monotonic_us();
    let mut look = begin + LOOK.as_micros();
    let mut buffer = [0; 4096];
    // A device that tells its dialect only by its speed is listened to for a second at least.
    let least = begin + Duration::from_secs(1).as_micros();
    loop {
        let at = clock::monotonic_us();
        // What says something once a second is heard out.
        let heard_out =
            at >= begin + 2 * limit.as_micros() || !until_sure || !sniffer.heard(now()).is_promising();
        if at >= begin + limit.as_micros() && heard_out {
            return Ok(());
        }
        if at >= look {
            look = at + LOOK.as_micros();
            if until_sure && at >= least && sniffer.heard(now()).is_sure() {
                return Ok(());
            }
        }
        tokio::select! {
            length = port.read(&mut buffer) => {
                let length = length?;
                if length == 0 {
                    return Err(std::io::Error::other(format!("it was unplugged at {}", settings.baud)));
                }
                sniffer.bytes(buffer.get(..length).unwrap_or_default(), now());
            }
            () = Timer::after(LOOK) => {}
        }
    }
}

/// Who it is that most likely holds the port.
fn in_use(text: &str) -> &'static str {
    if text.contains("in use") {
        "; is it the agent's own service? systemctl stop bedside-agent, and start it again afterwards"
    } else {
        ""
    }
}

/// The ports that there are, for one who named a wrong one.
fn plugged_in() -> String {
    let mut text = String::new();
    for port in port_name::plugged_in() {
        let _ = write!(text, "\n  {}", port.port_name);
        if let SerialPortType::UsbPort(usb) = &port.port_type {
            let product = usb.product.as_deref().unwrap_or("");
            let _ = write!(text, "  {product}  port = {}", port_name::describe(usb));
        }
    }
    if text.is_empty() {
        text
    } else {
        format!("\nplugged in:{text}")
    }
}

fn text(port: &Path, best: Option<&Heard>) -> String {
    let mut text = String::new();
    let Some(heard) = best.filter(|heard| heard.bytes > 0) else {
        return silence(port);
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let per_second = |count: u64| count as f64 / heard.seconds.max(0.001);
    let _ = writeln!(
        text,
        "{} with {}: {} bytes in {:.1} s ({:.0} a second)",
        port.display(),
        heard.settings,
        heard.bytes,
        heard.seconds,
        per_second(heard.bytes)
    );
    for score in heard.candidates.iter().take(5) {
        let _ = writeln!(
            text,
            "  {:5.1} % of the bytes, {:6} frames ({:.1} a second), {:4} readings, refused: {:20} {}",
            score.share_percent,
            score.frames,
            per_second(score.frames),
            score.readings,
            refused(score),
            score.name
        );
    }
    for frame in &heard.frames {
        let _ = writeln!(text, "  frame {frame}");
    }
    match &heard.guess {
        Some(guess) => {
            let what = if guess.driver {
                format!("driver = \"{}\"", guess.name)
            } else {
                guess.name.clone()
            };
            let settings = if guess.usual_settings {
                None
            } else {
                let parity = match heard.settings.chars().nth_back(1) {
                    Some('E') => ", parity = \"even\"",
                    Some('O') => ", parity = \"odd\"",
                    _ => "",
                };
                Some(format!("settings = {{ baud = {}{parity} }}", heard.speed))
            };
            let _ = write!(text, "guess: {what}");
            if let Some(settings) = &settings {
                let _ = write!(text, ", {settings}");
            }
            text.push_str(&source(port, guess, &what, settings.as_deref()));
        }
        None => {
            let advice = heard.advice.as_deref().unwrap_or("");
            let _ = writeln!(text, "no driver or framing fits: {advice}");
            let _ = writeln!(text, "last bytes: {}", heard.unread.as_deref().unwrap_or(""));
        }
    }
    text
}

/// What to do about a device that was not heard.
fn silence(port: &Path) -> String {
    let mut text = format!(
        "{}: nothing was heard. Is the device on, does its menu let it send, is the cable right (some need a crossed one)?\n\n\
         These say nothing until they are asked, and this command asks nothing:\n",
        port.display()
    );
    let asked: Vec<&DriverInfo> = drivers()
        .iter()
        .filter(|info| is_silent_until_asked(info))
        .collect();
    for info in &asked {
        let _ = writeln!(
            text,
            "  {:16} {:18} {}",
            info.name,
            with_flow(info.settings),
            info.title
        );
    }
    text.push_str(
        "Is yours among them? Its driver asks it; what it answers is in `bedside-agent status` then. Mapping packs: bedside-agent serial drivers\n",
    );
    text.push_str(&for_agent_toml(
        port,
        "driver = \"...\"         # its name in this list",
        None,
    ));
    let later = drivers()
        .iter()
        .filter(|info| info.speaks == Speaks::AtTimes && !asked.iter().any(|other| other.name == info.name));
    let _ = writeln!(
        text,
        "\nOthers speak when they have something to say ({}): take a measurement while this command listens,\n\
         with a longer time: --speed 9600 --for 2min",
        later.map(|info| info.name).collect::<Vec<_>>().join(", ")
    );
    text
}

/// The source that `agent.toml` needs, with what says how its bytes are read.
fn for_agent_toml(port: &Path, what: &str, settings: Option<&str>) -> String {
    let mut text = format!(
        "\nfor agent.toml:\n  [[source]]\n  name = \"bedside\"\n  kind = \"serial\"\n  port = \"{}\"\n  {what}\n",
        port.display()
    );
    if let Some(settings) = settings {
        let _ = writeln!(text, "  {settings}");
    }
    text.push_str("  device_id = \"...\"      # the identifier of the Device on the FHIR server\n");
    text
}

/// What to write into `agent.toml`, and what else is to be done.
fn source(port: &Path, guess: &Score, what: &str, settings: Option<&str>) -> String {
    let mut text = for_agent_toml(port, &what.replace(", ", "\n  "), settings);
    text.insert(0, '\n');
    if !port.starts_with("/dev/serial") && !port.starts_with("/dev/bedside") {
        text.push_str("a name below /dev/serial/by-id stays the same wherever the device is plugged in\n");
    }
    match driver(&guess.name).map(|info| info.pack) {
        Some("") => text
            .push_str("what its channels hold depends on what is plugged in: write a mapping of your own\n"),
        Some(pack) => {
            let _ = writeln!(text, "its mapping: bedside-agent mappings add {pack}");
        }
        None => text.push_str(
            "a device without a driver needs a mapping of your own: board-configs/mappings/README.md\n",
        ),
    }
    text
}

fn refused(score: &Score) -> String {
    let all: Vec<String> = score
        .errors
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_names_every_device_that_must_be_asked_and_what_to_write_for_it() {
        let said = silence(Path::new("/dev/ttyUSB0"));
        for (name, must_be_asked) in [
            ("drager-medibus", true),
            ("datex-dri", true),
            ("contec-cms50-v7", true),
            ("onetouch-ultra2", true),
            ("and-pbt", false),
            ("nonin", false),
        ] {
            let listed = said
                .lines()
                .any(|line| line.trim_start().starts_with(&format!("{name} ")));
            assert_eq!(listed, must_be_asked, "{name} in\n{said}");
        }
        assert!(
            said.contains("19200 8E1 RTS/CTS"),
            "the settings stand beside it:\n{said}"
        );
        assert!(said.contains("and-pbt"), "a cuff is waited for:\n{said}");
        let source: Vec<&str> = said
            .lines()
            .skip_while(|line| line.trim() != "[[source]]")
            .take_while(|line| !line.is_empty())
            .collect();
        let written: toml::Table = source.join("\n").parse().unwrap();
        let source = written["source"][0].as_table().unwrap();
        assert_eq!(source["port"].as_str(), Some("/dev/ttyUSB0"));
        assert!(
            source.contains_key("driver") && source.contains_key("device_id"),
            "{said}"
        );
    }
}
