//! `bedside-agent serial`: what is on a serial line.

mod sniff;

use super::{Format, print};
use crate::ingest::serial::drivers::{DriverInfo, Flow, PortSettings, Speaks, drivers};
use crate::ingest::serial::framing::checksum::to_hex;
use crate::ingest::serial::sniff::{is_silent_until_asked, shorthand};
use crate::simulate::serial::names;
use clap::{Args, Subcommand};
use serde_json::json;
use sniff::Sniff;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Look at serial lines
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent serial drivers                                      which devices have a driver
  bedside-agent serial sniff /dev/ttyUSB0
  bedside-agent serial sniff /dev/ttyUSB0 --speed 9600 --for 30s")]
pub struct Serial {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Drivers(Drivers),
    Sniff(Sniff),
}

impl Serial {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// When the port cannot be opened or read.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.command {
            Command::Drivers(drivers) => drivers.run(),
            Command::Sniff(sniff) => sniff.run(),
        }
    }
}

/// List the drivers, how well each protocol is known, and the mapping pack that reads it
#[derive(Args, Debug)]
#[command(long_about = "\
Lists the drivers: devices, usual settings of the port, mapping pack, what is sent, and how well the protocol is known. `two sources` agree,
or one and a recording of a device; `one source` is the word of one; `framing only` finds the frames and passes them on as hexadecimal text.")]
struct Drivers {
    /// How the result is shown
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Drivers {
    fn run(&self) -> anyhow::Result<ExitCode> {
        print(&match self.format {
            Format::Text => list(),
            Format::Json => {
                let shown: Vec<_> = drivers()
                    .iter()
                    .map(|info| {
                        let sends: Vec<_> = (info.commands)()
                            .into_iter()
                            .map(|(what, bytes)| json!({"what": what, "bytes": to_hex(&bytes)}))
                            .collect();
                        json!({
                            "name": info.name,
                            "devices": info.title,
                            "settings": with_flow(info.settings),
                            "evidence": info.evidence.name(),
                            "speaks": info.speaks.name(),
                            "asked_first": is_silent_until_asked(info),
                            "pack": Some(info.pack).filter(|pack| !pack.is_empty()),
                            "simulated": names().any(|name| name == info.name),
                            "sends": sends,
                        })
                    })
                    .collect();
                format!("{}\n", serde_json::to_string_pretty(&shown)?)
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// `19200 8E1 RTS/CTS`.
fn with_flow(settings: PortSettings) -> String {
    let flow = match settings.flow {
        Flow::None => "",
        Flow::RtsCts => " RTS/CTS",
        Flow::XonXoff => " XON/XOFF",
    };
    format!("{}{flow}", shorthand(settings))
}

/// When a device is heard. What a meter has to say it says to a driver that asks again and again.
fn speaks(info: &DriverInfo) -> &'static str {
    match info.speaks {
        Speaks::AtTimes if is_silent_until_asked(info) => "when asked, at times",
        other => other.name(),
    }
}

fn list() -> String {
    let mut text = format!(
        "{:20} {:12} {:18} {:21} {:20} DEVICES\n",
        "DRIVER", "EVIDENCE", "SETTINGS", "SPEAKS", "MAPPING PACK"
    );
    for info in drivers() {
        let _ = writeln!(
            text,
            "{:20} {:12} {:18} {:21} {:20} {}",
            info.name,
            info.evidence.name(),
            with_flow(info.settings),
            speaks(info),
            if info.pack.is_empty() { "-" } else { info.pack },
            info.title
        );
    }
    text.push_str(
        "\nA ready pack is installed by: bedside-agent mappings add PACK. Where a device's menu has other settings: `settings` of the source.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_shows_every_driver_with_its_evidence() {
        let list = list();
        for (name, evidence) in [
            ("nonin", "two sources"),
            ("onetouch-ultra2", "when asked, at times"),
            ("and-pbt", "when it has something"),
            ("capnostream", "one source"),
            ("intellivue-rs232", "framing only"),
        ] {
            let line = list.lines().find(|line| line.starts_with(&format!("{name} ")));
            assert!(
                line.is_some_and(|line| line.contains(evidence)),
                "{name} in\n{list}"
            );
        }
        assert_eq!(list.lines().count(), drivers().len() + 3);
    }
}
