//! `bedside-agent clock`: readings that nobody can date without the operator.

use super::Format;
use crate::associations::time;
use crate::config::{self, Config};
use crate::control::Question;
use crate::timekeeping::undated::{self, ClockCommand};
use iomt_mapping::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Date readings that came before the gateway's clock was set, or give them up.
///
/// A reading without a time of its own is dated by the clock of the gateway. While that clock is not set the reading waits, and
/// is dated afterwards. When the gateway is started anew before its clock was set, nobody knows when the reading came: the
/// operator says it, or gives the reading up. It is never sent with an invented date.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  bedside-agent clock list
  bedside-agent clock date 3 2026-09-22T10:00:00+02:00
  bedside-agent clock give-up 3

The commands work with the running agent; while the service is down they write into its store. Exit codes: 0 done, 1 not done,
2 wrong arguments.")]
pub struct Clock {
    #[command(subcommand)]
    command: Command,
    /// The configuration file of the agent.
    #[arg(
        long,
        global = true,
        default_value = super::DEFAULT_CONFIG,
        value_name = "FILE"
    )]
    config: PathBuf,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Show the starts of the gateway with readings that wait for a date.
    List {
        /// How the result is shown.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Say when the first of them came; the others follow by the time that passed between them.
    Date {
        /// Number of the start, as `clock list` shows it.
        start: u32,
        /// When its first waiting message came (2026-09-22T10:00:00+02:00; UTC without an offset).
        #[arg(value_name = "TIME", value_parser = time::parse)]
        first: Timestamp,
    },
    /// Nobody knows when they came: they are lost, and the ledger says so.
    GiveUp {
        /// Number of the start.
        start: u32,
    },
}

impl Clock {
    /// Does what is asked.
    ///
    /// # Errors
    /// When neither the agent nor its store can be reached, or what is said cannot be.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let config = config::load(&self.config)?;
        let command = match &self.command {
            Command::List { .. } => ClockCommand::List,
            Command::Date { start, first } => ClockCommand::Date {
                start: *start,
                first: first.ticks(),
            },
            Command::GiveUp { start } => ClockCommand::GiveUp { start: *start },
        };
        let answer = ask(&config, &command)?;
        let count = answer.get("messages").and_then(Value::as_u64).unwrap_or(0);
        let shown = match &self.command {
            Command::List { format: Format::Json } => format!("{answer}\n"),
            Command::List { format: Format::Text } => text(&answer),
            Command::Date { .. } => format!("{count} messages are dated\n"),
            Command::GiveUp { .. } => {
                format!("the readings of {count} messages are given up\n")
            }
        };
        super::print(&shown)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(config: &Config, command: &ClockCommand) -> anyhow::Result<Value> {
    let question = Question::Clock {
        entry: command.clone(),
    };
    let answer = super::service::ask_or_open(config, &question, async |rest| {
        match undated::answer(&rest.pipeline, command).await {
            Ok(answer) => answer.to_string(),
            Err(wrong) => json!({ "error": wrong.to_string() }).to_string(),
        }
    })?;
    Ok(serde_json::from_str(&answer)?)
}

fn text(answer: &Value) -> String {
    let mut out = String::new();
    let starts = answer.get("starts").and_then(Value::as_array);
    for start in starts.into_iter().flatten() {
        let field = |name: &str| match start.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "?".to_owned(),
            Some(other) => other.to_string(),
        };
        let running = match start.get("running").and_then(Value::as_bool) {
            Some(true) => " (now; dated when the clock is set)",
            _ => "",
        };
        let seconds = start.get("seconds_after_start").and_then(Value::as_array);
        let mut seconds = seconds.into_iter().flatten().filter_map(Value::as_u64);
        let (first, last) = (
            seconds.next().unwrap_or_default(),
            seconds.next().unwrap_or_default(),
        );
        let _ = writeln!(
            out,
            "start {}{running}: {} messages, {first} s to {last} s after it; not before {}, not after {}",
            field("start"),
            field("messages"),
            field("not_before"),
            field("not_after"),
        );
    }
    if out.is_empty() {
        out.push_str("no reading waits for a date\n");
    }
    out
}
