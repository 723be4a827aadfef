//! `bedside-agent association`: what the operator says about who has which device.

use super::Format;
use super::service::socket as find_socket;
use crate::agent::{associate_in_store, associations_in_store, store_folder};
use crate::associations::{Command as Entry, Who, time};
use crate::clock;
use crate::config::{self, Config};
use crate::control::{Question, ask_socket};
use crate::store::Store;
use anyhow::{Context, bail};
use iomt_mapping::Timestamp;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Say who has which device, and show what is known of it.
///
/// An entry counts before everything that the server says. An open one holds until the server shows another link that is
/// newer; readings wait then until one of the two is confirmed by another entry. Readings that were sent to somebody else
/// for the time of an entry are corrected on the FHIR servers, up to 7 days back. The commands work with the running agent;
/// while the service is down they write into its store.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  bedside-agent association set band-7 'MRN 4711'
  bedside-agent association set band-7 Patient/anna --from 2026-09-22T10:00:00Z --to 2026-09-22T14:30:00Z
  bedside-agent association end band-7
  bedside-agent association retract band-7
  bedside-agent association list --format json

A patient is written as Patient/ID or as an identifier of the patient. Exit codes: 0 done, 1 not done, 2 wrong arguments.")]
pub struct Association {
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
    /// The control socket, when it is elsewhere.
    #[arg(long, global = true, value_name = "SOCKET")]
    socket: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// A device is or was with a patient.
    Set {
        /// Device identifier, as messages name it.
        device: String,
        /// Patient/ID, or an identifier of the patient.
        patient: String,
        /// Encounter/ID, or an identifier of the encounter.
        #[arg(long, value_name = "ENCOUNTER")]
        encounter: Option<String>,
        /// First moment (2026-09-22T10:00:00+02:00; UTC without an offset); now, if not given.
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        from: Option<Timestamp>,
        /// The moment at which it ended.
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        to: Option<Timestamp>,
    },
    /// A device was taken from its patient: its readings wait until it is with somebody.
    End {
        /// Device identifier.
        device: String,
        /// When; now, if not given.
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        at: Option<Timestamp>,
    },
    /// Take back the newest entry of a device: it was a mistake.
    Retract {
        /// Device identifier.
        device: String,
    },
    /// After a damaged store: everything that it lost is entered again, and devices without an entry follow the servers and
    /// messages again.
    Complete,
    /// Show all entries, and whose each device is now.
    List {
        /// How the result is shown.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

impl Association {
    /// Does what is asked.
    ///
    /// # Errors
    /// When neither the agent nor its store can be reached.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let config = config::load(&self.config)?;
        let ticks = |time: &Option<Timestamp>| time.map(|time| time.ticks());
        let entry = match &self.command {
            Command::Set {
                device,
                patient,
                encounter,
                from,
                to,
            } => Entry::Set {
                device: device.clone(),
                patient: Who::parse("Patient", patient),
                encounter: encounter.as_deref().map(|text| Who::parse("Encounter", text)),
                from: ticks(from),
                to: ticks(to),
            },
            Command::End { device, at } => Entry::End {
                device: device.clone(),
                at: ticks(at),
            },
            Command::Retract { device } => Entry::Retract {
                device: device.clone(),
            },
            Command::Complete => Entry::Complete,
            Command::List { format } => {
                let found = self.list(&config)?;
                let shown = match format {
                    Format::Json => format!("{found}\n"),
                    Format::Text => text(&found),
                };
                super::print(&shown)?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        let done = self.enter(&config, entry)?;
        let corrections = done.get("corrections").and_then(Value::as_u64).unwrap_or(0);
        let said = match corrections {
            0 => "entered\n".to_owned(),
            _ => "entered; what was sent for that time is checked on the FHIR servers and corrected\n"
                .to_owned(),
        };
        super::print(&said)?;
        Ok(ExitCode::SUCCESS)
    }

    fn list(&self, config: &Config) -> anyhow::Result<Value> {
        match self.ask(config, &Question::Associations)? {
            Some(answer) => Ok(answer),
            None => Ok(associations_in_store(&open_store(config)?)?),
        }
    }

    fn enter(&self, config: &Config, entry: Entry) -> anyhow::Result<Value> {
        if let Some(answer) = self.ask(config, &Question::Associate { entry: entry.clone() })? {
            return Ok(answer);
        }
        let now = clock::is_trusted(config.clock.trust).then(|| clock::wall().ticks());
        match associate_in_store(config, &mut open_store(config)?, &entry, now)? {
            Ok(done) => Ok(done),
            Err(wrong) => bail!("{wrong}"),
        }
    }

    /// The answer of the running agent; `None` when none runs.
    fn ask(&self, config: &Config, question: &Question) -> anyhow::Result<Option<Value>> {
        let socket = self.socket.clone().unwrap_or_else(|| find_socket(config));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = match runtime.block_on(ask_socket(&socket, question)) {
            Ok(answer) => answer,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("the agent at {} cannot be asked", socket.display()));
            }
        };
        let answer: Value = serde_json::from_str(&answer).context("the agent's answer cannot be read")?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("{error}"),
            None => Ok(Some(answer)),
        }
    }
}

fn open_store(config: &Config) -> anyhow::Result<Store> {
    let folder = store_folder(config);
    Store::open_for_command(&folder, &config.store.encryption).with_context(|| {
        format!(
            "no agent answers, and its store in {} cannot be opened (sudo?)",
            folder.display()
        )
    })
}

fn text(found: &Value) -> String {
    let field = |line: &Value, name: &str| match line.get(name).and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => "-".to_owned(),
    };
    let list = |name: &str| {
        found
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let mut out = String::new();
    for line in list("entries") {
        let who = match line.get("patient").and_then(Value::as_str) {
            Some(patient) => patient.to_owned(),
            None => "nobody".to_owned(),
        };
        let _ = write!(
            out,
            "entry: {} with {who} from {} to {}",
            field(&line, "device"),
            field(&line, "from"),
            field(&line, "to"),
        );
        let encounter = field(&line, "encounter");
        let _ = writeln!(
            out,
            "{} (entered {})",
            if encounter == "-" {
                String::new()
            } else {
                format!(", {encounter}")
            },
            field(&line, "entered")
        );
    }
    for line in list("devices") {
        let who = match line.get("patient").and_then(Value::as_str) {
            Some(patient) => format!("{patient}, by {}", field(&line, "source")),
            None => format!("nobody ({})", field(&line, "waits")),
        };
        let _ = writeln!(
            out,
            "now on {}: {} with {who}",
            field(&line, "destination"),
            field(&line, "device")
        );
    }
    if let Some(doubt) = found.get("doubt").and_then(Value::as_str) {
        let _ = writeln!(out, "{doubt}");
    }
    if out.is_empty() {
        out.push_str("no entries, and no device was looked up yet\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        association: Association,
    }

    #[test]
    fn with_the_service_down_the_entries_go_into_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let configuration = "[gateway]\nid = \"bed-1\"\n[clock]\ntrust = \"always\"\n[store]\ndir = \"store\"\n\
             [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://localhost/fhir\"\n";
        std::fs::write(&path, configuration).unwrap();
        let store = folder.path().join("store");
        drop(Store::open(&store).unwrap());
        let run = |arguments: &[&str]| {
            let config = path.to_str().unwrap();
            let line = Line::try_parse_from([&["x", "--config", config], arguments].concat()).unwrap();
            line.association.run()
        };
        run(&[
            "set",
            "band-1",
            "Patient/anna",
            "--from",
            "2026-09-22T10:00:00+02:00",
        ])
        .unwrap();
        run(&[
            "set",
            "band-2",
            "MRN 5",
            "--encounter",
            "visit 3",
            "--from",
            "2026-09-22T10:00:00",
        ])
        .unwrap();
        run(&["end", "band-1", "--at", "2026-09-22T12:00:00Z"]).unwrap();
        run(&["retract", "band-2"]).unwrap();
        assert!(run(&["retract", "band-2"]).is_err());
        assert!(run(&["set", " ", "p"]).is_err());
        run(&["list"]).unwrap();
        let found =
            associations_in_store(&Store::open_for_command(&store, &config::Encryption::Off).unwrap())
                .unwrap();
        let lines = text(&found);
        let lines: Vec<&str> = lines
            .lines()
            .filter_map(|line| line.split(" (entered").next())
            .collect();
        assert_eq!(
            lines,
            [
                "entry: band-1 with Patient/anna from 2026-09-22T08:00:00Z to -",
                "entry: band-1 with nobody from 2026-09-22T12:00:00Z to -"
            ]
        );
    }
}
