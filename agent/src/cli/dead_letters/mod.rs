//! `bedside-agent dead-letters`: what could not be processed and why; send it again, or give it up.

mod show;

use super::{DEFAULT_CONFIG, service};
use crate::config;
use crate::control::Question;
use crate::dead_letters::{CauseView, DeadLetters as Desk, Dropped, LetterQuestion, LetterView, Redriven};
use crate::store::Selection;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Show, send again or give up what could not be processed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent dead-letters list                             causes, and how often each
  bedside-agent dead-letters list --each --cause PatientNot   the letters of a cause
  bedside-agent dead-letters show 17                          one of them, without patient data
  bedside-agent dead-letters show 17 --payload                with topic, device and payload
  bedside-agent dead-letters redrive --cause ward#2           after the mapping was repaired
  bedside-agent dead-letters drop 17 18                       give up; the ledger says so

A letter that is sent again is normalized with today's mapping packs and keeps its ids: sent twice, it is one Observation.
While the service is down the commands open its store themselves.")]
pub struct DeadLetters {
    #[command(subcommand)]
    action: Action,
    /// The configuration file of the agent.
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE", global = true)]
    config: PathBuf,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// List causes: error, template and line, how many.
    List {
        #[command(flatten)]
        which: Which,
        /// List every letter, not only the causes.
        #[arg(long)]
        each: bool,
    },
    /// Show one letter.
    Show {
        /// Its number.
        id: u64,
        /// Show topic, device and payload too: patient data.
        #[arg(long)]
        payload: bool,
    },
    /// Normalize again with today's mapping, and send.
    Redrive(Which),
    /// Give up, with a line in the loss ledger.
    Drop(Which),
}

/// Which letters.
#[derive(Args, Debug, Default)]
struct Which {
    /// Numbers of letters.
    #[arg(value_name = "ID")]
    ids: Vec<u64>,
    /// Those whose cause (STAGE|ERROR|PACK#TEMPLATE) contains this text.
    #[arg(long, value_name = "TEXT")]
    cause: Option<String>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

impl Which {
    fn selection(&self) -> Selection {
        Selection {
            ids: self.ids.clone(),
            cause: self.cause.clone(),
            all: self.all,
        }
    }

    fn some(&self) -> anyhow::Result<Selection> {
        let selection = self.selection();
        if selection == Selection::default() {
            bail!(
                "say which letters: their numbers, --cause TEXT, or --all (`bedside-agent dead-letters list` shows them)"
            );
        }
        Ok(selection)
    }
}

impl DeadLetters {
    /// Asks and prints.
    ///
    /// # Errors
    /// When neither the service nor its store can be reached.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let question = match &self.action {
            Action::List { which, each } => LetterQuestion::List {
                which: which.selection(),
                each: *each,
            },
            Action::Show { id, payload } => LetterQuestion::Show {
                id: *id,
                payload: *payload,
            },
            Action::Redrive(which) => LetterQuestion::Redrive { which: which.some()? },
            Action::Drop(which) => LetterQuestion::Drop { which: which.some()? },
        };
        let config = config::load(&self.config)?;
        let asked = Question::DeadLetters(question.clone());
        let answer = service::ask_or_open(&config, &asked, async |rest| {
            let desk = Desk {
                pipeline: &rest.pipeline,
                destinations: &rest.destinations,
                sources: &rest.sources,
            };
            desk.answer(&question).await
        })?;
        let (text, code) = render(&question, &answer).context("the agent's answer cannot be read")?;
        super::print(&if self.json { format!("{answer}\n") } else { text })?;
        Ok(code)
    }
}

/// The answer for people, and the exit code: 1 when a letter that was asked for is not there, or stays one.
fn render(question: &LetterQuestion, answer: &str) -> serde_json::Result<(String, ExitCode)> {
    Ok(match question {
        LetterQuestion::List { each, .. } => {
            let causes: Vec<CauseView> = serde_json::from_str(answer)?;
            (show::causes(&causes, *each), ExitCode::SUCCESS)
        }
        LetterQuestion::Show { id, .. } => match serde_json::from_str::<Option<LetterView>>(answer)? {
            Some(letter) => (show::letter(&letter), ExitCode::SUCCESS),
            None => (format!("there is no dead letter {id}\n"), ExitCode::FAILURE),
        },
        LetterQuestion::Redrive { .. } => {
            let done: Redriven = serde_json::from_str(answer)?;
            let code = if done.kept.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
            (show::redriven(&done), code)
        }
        LetterQuestion::Drop { .. } => {
            let Dropped { dropped } = serde_json::from_str(answer)?;
            (
                format!("{dropped} dead letters given up; the ledger says so\n"),
                ExitCode::SUCCESS,
            )
        }
    })
}
