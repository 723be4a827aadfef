//! The command line: one file per sub-command. Arguments are parsed here; a sub-command does its work in `run` and says
//! with its exit code whether all is well: 0 yes, 1 no, 2 wrong arguments.

pub mod association;
pub mod check;
pub mod clock;
pub mod dead_letters;
#[cfg(feature = "demo")]
pub mod demo;
pub mod destination;
mod log;
pub mod map;
pub mod mappings;
mod packs;
pub mod run;
pub mod serial;
mod service;
pub mod simulate;
pub mod status;
pub mod store;

use clap::{Parser, Subcommand, ValueEnum};
use std::io::Write;
use std::process::ExitCode;

/// Where the service finds its configuration.
pub const DEFAULT_CONFIG: &str = "/etc/bedside-agent/agent.toml";

/// Reads bedside wearables, keeps every reading, writes FHIR Observations.
#[derive(Parser, Debug)]
#[command(
    name = "bedside-agent",
    version,
    arg_required_else_help = true,
    long_about = "\
Reads bedside wearables over MQTT and serial lines, normalizes and groups their readings with the mapping files of Azure's
MedTech service or the IoMT FHIR Connector, keeps them through power cuts and network outages, and writes them as FHIR
Observations to any FHIR R4 server or sends them to Azure Event Hubs.

  wearable -> MQTT broker or serial line -> bedside-agent -> FHIR server or Event Hubs
                                            |  device mapping: what was measured, when, on whom
                                            |  FHIR mapping: which Observation it becomes
                                            `- store: nothing is acknowledged before it is safe

The agent is not a medical device and raises no alarms.",
    after_long_help = "\
First steps:
  bedside-agent demo                               see it at work, nothing to install
  bedside-agent check --config agent.toml          what is wrong in the configuration and its mappings, with line and column
  bedside-agent map --pack heart-rate reading.json what a message becomes, step by step

`bedside-agent COMMAND --help` shows examples of each command. Exit codes: 0 all is well, 1 something is wrong, 2 wrong
arguments."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Run),
    Status(status::Status),
    Association(association::Association),
    Check(check::Check),
    Clock(clock::Clock),
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    Map(map::Map),
    Mappings(mappings::Mappings),
    DeadLetters(dead_letters::DeadLetters),
    Destination(destination::Destination),
    Store(store::StoreCommand),
    Simulate(simulate::Simulate),
    Serial(serial::Serial),
}

/// How a command shows its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

impl Cli {
    /// Does what the arguments say; the exit code tells whether all is well.
    ///
    /// # Errors
    /// When the command could not do its work.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.command {
            Command::Run(run) => run.run().map(|()| ExitCode::SUCCESS),
            Command::Status(status) => status.run(),
            Command::Association(association) => association.run(),
            Command::Check(check) => check.run(),
            Command::Clock(clock) => clock.run(),
            Command::Map(map) => map.run(),
            Command::Mappings(mappings) => mappings.run(),
            Command::DeadLetters(letters) => letters.run(),
            Command::Destination(destination) => destination.run(),
            Command::Store(store) => store.run(),
            #[cfg(feature = "demo")]
            Command::Demo(demo) => demo.run().map(|()| ExitCode::SUCCESS),
            Command::Simulate(simulate) => simulate.run().map(|()| ExitCode::SUCCESS),
            Command::Serial(serial) => serial.run(),
        }
    }
}

/// Writes the result of a command. A reader that has heard enough (`| head`) is no error.
fn print(text: &str) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_examples() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let name = command.get_name();
            assert!(help.contains(&format!("bedside-agent {name} ")), "{help}");
        }
    }
}
