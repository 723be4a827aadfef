//! `bedside-agent destination`: what each destination still has to get; give up what a removed one has not got.

use super::{DEFAULT_CONFIG, Format, service};
use crate::config;
use crate::control::Question;
use crate::destinations::{Desk, DestinationQuestion, DestinationView, Dropped};
use clap::{Args, Subcommand};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show what each destination still has to get, and give up what a removed one has not got.
///
/// A destination that is taken out of agent.toml keeps what it has not got: it may come back. Until then the store keeps those
/// messages, and `status` names it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent destination list          every destination that the store knows
  bedside-agent destination drop old-ehr  give up what it has not got; the ledger says so

Only one that is not in agent.toml any more can be dropped. While the service is down the commands open its store themselves.")]
pub struct Destination {
    #[command(subcommand)]
    action: Action,
    /// The configuration file of the agent.
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE", global = true)]
    config: PathBuf,
    /// How to show it.
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// List every destination that the store knows.
    List,
    /// Give up what a removed destination has not got, with lines in the loss ledger.
    Drop {
        /// Its name, as it was in agent.toml.
        name: String,
    },
}

impl Destination {
    /// Asks the service, or opens its store when it is down.
    ///
    /// # Errors
    /// When neither can be reached, or the destination cannot be dropped.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let question = match &self.action {
            Action::List => DestinationQuestion::List,
            Action::Drop { name } => DestinationQuestion::Drop { name: name.clone() },
        };
        let config = config::load(&self.config)?;
        let asked = Question::Destinations(question.clone());
        let answer = service::ask_or_open(&config, &asked, async |rest| {
            let desk = Desk {
                pipeline: &rest.pipeline,
                destinations: &rest.destinations,
            };
            desk.answer(&question).await
        })?;
        let text = match (self.format, &question) {
            (Format::Json, _) => format!("{answer}\n"),
            (Format::Text, DestinationQuestion::List) => table(&serde_json::from_str::<Vec<_>>(&answer)?),
            (Format::Text, DestinationQuestion::Drop { name }) => {
                let Dropped { dropped } = serde_json::from_str(&answer)?;
                format!("{name}: {dropped} readings given up; the ledger says so\n")
            }
        };
        super::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(views: &[DestinationView]) -> String {
    let width = views
        .iter()
        .map(|view| view.name.len())
        .max()
        .unwrap_or(0)
        .max(11);
    let mut text = format!(
        "{:width$}  {:>10}  {:>10}  {:>10}  {:>10}\n",
        "DESTINATION", "DELIVERED", "UNSENT", "WAITING", "LOST"
    );
    for view in views {
        let note = if view.configured {
            ""
        } else {
            "  not in the configuration"
        };
        // Writing into a text cannot fail.
        let _ = writeln!(
            text,
            "{:width$}  {:>10}  {:>10}  {:>10}  {:>10}{note}",
            view.name, view.delivered, view.unsent, view.waiting, view.lost
        );
    }
    text
}
