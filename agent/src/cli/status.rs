//! `bedside-agent status`: the running agent at a glance, over its control socket.

use crate::config;
use crate::control::{Question, ask_socket};
use anyhow::{Context, bail};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show the state of the running agent: sources, destinations, buffer, problems.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  bedside-agent status\n  bedside-agent status --json | jq .summary\n\n\
    Exit code 0: all is well or degraded; 1: trouble, or no agent answers."
)]
pub struct Status {
    /// The configuration file of the agent.
    #[arg(long, default_value = super::DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
    /// The control socket, when it is elsewhere.
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Asks and prints.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => super::service::socket(&config::load(&self.config)?),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(ask_socket(&socket, &Question::Status)).with_context(|| {
            format!(
                "no agent answers on {}: is it running (systemctl status bedside-agent), and may you ask it (sudo)?",
                socket.display()
            )
        })?;
        let status: Value = serde_json::from_str(&answer).context("the agent's answer cannot be read")?;
        if let Some(error) = status.get("error").and_then(Value::as_str) {
            bail!("{error}");
        }
        let shown = if self.json {
            format!("{answer}\n")
        } else {
            text(&status)
        };
        super::print(&shown)?;
        let trouble = status.get("health").and_then(Value::as_str) == Some("trouble");
        Ok(if trouble {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn text(status: &Value) -> String {
    let field = |value: &Value, name: &str| match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let list = |name: &str| {
        status
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} is {} (version {}, up {} s, clock {})",
        field(status, "gateway"),
        field(status, "health"),
        field(status, "version"),
        field(status, "uptime_seconds"),
        if field(status, "clock_trusted") == "true" {
            "synchronised"
        } else {
            "not synchronised"
        }
    );
    for problem in list("problems") {
        let _ = writeln!(out, "  ! {}", problem.as_str().unwrap_or_default());
    }
    let summary = status.get("summary").cloned().unwrap_or_default();
    let _ = writeln!(
        out,
        "messages {} (unmatched {}, unparsable {}); matches {} = delivered {} + superseded {} + buffered {} + waiting {} + \
         dead {} + lost {}; Observations {}",
        field(&summary, "messages"),
        field(&summary, "unmatched"),
        field(&summary, "unparsable"),
        field(&summary, "matches"),
        field(&summary, "delivered"),
        field(&summary, "superseded"),
        field(&summary, "buffered"),
        field(&summary, "waiting"),
        field(&summary, "dead"),
        field(&summary, "lost"),
        field(&summary, "observations"),
    );
    for source in list("sources") {
        let connected = if field(&source, "connected") == "true" {
            "connected"
        } else {
            "NOT connected"
        };
        let _ = writeln!(
            out,
            "source {} ({}): {connected}, {} received",
            field(&source, "name"),
            field(&source, "kind"),
            field(&source, "received")
        );
        let away: Vec<&str> = source
            .get("away")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !away.is_empty() {
            let _ = writeln!(out, "  away by their own word: {}", away.join(", "));
        }
    }
    for destination in list("destinations") {
        let _ = writeln!(
            out,
            "destination {} ({}): {}, {} delivered, {} buffered, {} waiting, {} dead",
            field(&destination, "name"),
            field(&destination, "kind"),
            field(&destination, "link"),
            field(&destination, "delivered"),
            field(&destination, "buffered"),
            field(&destination, "waiting"),
            field(&destination, "dead")
        );
    }
    let store = status.get("store").cloned().unwrap_or_default();
    let hours = |name: &str| {
        store
            .get(name)
            .and_then(Value::as_u64)
            .map(|seconds| seconds / 3600)
    };
    let _ = write!(
        out,
        "store: {} bytes of {}, {} needed",
        field(&store, "bytes"),
        field(&store, "max_bytes"),
        field(&store, "needed_bytes")
    );
    if let Some(hours) = hours("full_in_seconds") {
        let _ = write!(out, ", full in {hours} h at the present rate");
    } else if let Some(hours) = hours("outage_lasts_seconds") {
        let _ = write!(out, ", lasts {hours} h with nothing delivered");
    }
    if let Some(hours) = hours("history_seconds").filter(|hours| *hours > 0) {
        let _ = write!(out, ", {hours} h of history");
    }
    out.push('\n');
    for pack in list("packs") {
        let _ = writeln!(
            out,
            "pack {} ({})",
            field(&pack, "name"),
            field(&pack, "revision")
        );
    }
    for letters in list("dead_letters") {
        let error = letters.get("error").cloned().unwrap_or_default();
        let _ = writeln!(
            out,
            "dead letters: {} × {}: {}",
            field(&letters, "count"),
            field(&error, "name"),
            field(&error, "text")
        );
    }
    out
}
