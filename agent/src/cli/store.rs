//! `bedside-agent store`: look for damage, salvage what was set aside, show how full it is, erase it.

use super::{DEFAULT_CONFIG, service};
use crate::agent::store_folder;
use crate::config::{self, Config, DestinationKind, Encryption, EventPayload, SecretRef};
use crate::control::Question;
use crate::store::salvage::State;
use crate::store::{Store, vault::wipe::wipe};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check the store for damage, salvage a damaged one, show its figures, or erase it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent store check                         exit code 1 when something is damaged
  bedside-agent store stats --json | jq .bytes
  bedside-agent store salvage                       what came of damaged stores that were set aside
  sudo systemctl stop bedside-agent && sudo bedside-agent store wipe --yes-erase-all-readings

The service salvages a damaged store by itself. `check`, `stats` and `salvage` ask the running service, or open its store while it is down. `wipe` wants it down.")]
pub struct StoreCommand {
    #[command(subcommand)]
    action: Action,
    /// The configuration file of the agent.
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE", global = true)]
    config: PathBuf,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Look at everything in the store.
    Check,
    /// Sizes, bounds, and how long the room lasts.
    Stats {
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// What was salvaged of damaged stores that were set aside; while the service is down, go on with it.
    Salvage {
        /// This file instead of all `store.db.damaged-*` beside the store.
        file: Option<PathBuf>,
    },
    /// Erase the store: its key first, then its files. What was not sent is lost.
    Wipe {
        /// Yes: every reading in the store is erased.
        #[arg(long, required = true)]
        yes_erase_all_readings: bool,
    },
}

impl StoreCommand {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let config = config::load(&self.config)?;
        let (text, code) = match &self.action {
            Action::Check => check(&config)?,
            Action::Stats { json } => {
                let stats = stats(&config)?;
                let text = if *json { format!("{stats}\n") } else { show(&stats) };
                (text, ExitCode::SUCCESS)
            }
            Action::Salvage { file } => salvage(&config, file.as_deref())?,
            Action::Wipe { .. } => (erase(&config)?, ExitCode::SUCCESS),
        };
        super::print(&text)?;
        Ok(code)
    }
}

fn running(config: &Config) -> anyhow::Result<Option<Value>> {
    let Some(answer) = service::ask(config, &Question::Status)? else {
        return Ok(None);
    };
    let status: Value = serde_json::from_str(&answer)?;
    Ok(Some(status.get("store").cloned().unwrap_or_default()))
}

fn open(config: &Config) -> anyhow::Result<Store> {
    let folder = store_folder(config);
    let mut store = Store::open_for_command(&folder, &config.store.encryption)
        .with_context(|| format!("store in {}", folder.display()))?;
    store.set_limit(config.store.max_bytes.0)?;
    Ok(store)
}

fn check(config: &Config) -> anyhow::Result<(String, ExitCode)> {
    if let Some(store) = running(config)? {
        let damaged = store.get("damaged").and_then(Value::as_u64).unwrap_or(0);
        let check = store.get("check").and_then(Value::as_str).unwrap_or_default();
        let text = format!(
            "the service checks its store at each start: {check}; {damaged} messages damaged since\n"
        );
        return Ok((text, code(damaged == 0)));
    }
    let mut store = open(config)?;
    let mut found = Vec::new();
    loop {
        let state = store.check_slice()?;
        found.extend(state.broken);
        let ranges = state.damaged.iter();
        found.extend(
            ranges.map(|(first, last)| format!("messages {first} to {last} of the journal are damaged")),
        );
        if state.done {
            let mut text = format!("{} batches, {} bytes looked at\n", state.batches, state.bytes);
            for line in &found {
                let _ = writeln!(text, "  {line}");
            }
            text.push_str(if found.is_empty() {
                "no damage found\n"
            } else {
                "the service steps over damaged messages and says them in its ledger; where a table is broken it sets the file \
                 aside and goes on with a new one. Look at `dmesg`: the storage may be worn out\n"
            });
            return Ok((text, code(found.is_empty())));
        }
    }
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn stats(config: &Config) -> anyhow::Result<Value> {
    if let Some(store) = running(config)? {
        return Ok(store);
    }
    let mut store = open(config)?;
    let outline = store.outline()?;
    Ok(json!({
        "folder": store_folder(config).display().to_string(),
        "bytes": store.size(),
        "max_bytes": store.limits().max_bytes,
        "used_bytes": store.used_bytes()?,
        "free_bytes": store.free_bytes()?,
        "segments": outline.len(),
        "first_message": outline.first().map(|s| s.first),
        "last_message": outline.last().map(|s| s.end.saturating_sub(1)),
        "encrypted": store.is_encrypted(),
        "set_aside_bytes": store.set_aside_bytes(),
        "salvages": store.salvages()?,
    }))
}

fn show(stats: &Value) -> String {
    let mut text = String::new();
    for (name, value) in stats
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
    {
        if name == "salvages" {
            for state in salvaged(value) {
                let _ = writeln!(text, "{:<28} {}", "salvage", state.text());
            }
            continue;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(text, "{name:<28} {value}");
    }
    text
}

fn salvaged(states: &Value) -> Vec<State> {
    serde_json::from_value(states.clone()).unwrap_or_default()
}

fn salvage(config: &Config, file: Option<&Path>) -> anyhow::Result<(String, ExitCode)> {
    let states = match running(config)? {
        Some(store) if file.is_none() => salvaged(store.get("salvages").unwrap_or(&Value::Null)),
        Some(_) => anyhow::bail!(
            "the service is running: it salvages every file beside its store at its start; put the file there as \
             store.db.damaged-NAME and restart it, or stop it first"
        ),
        None => {
            let mut store = open(config)?;
            let encryption = &config.store.encryption;
            let salvages = match file {
                Some(file) => store.begin_salvage(file, encryption)?.into_iter().collect(),
                None => store.begin_salvages(&store_folder(config), encryption)?,
            };
            let takes_messages = |kind: &DestinationKind| match kind {
                DestinationKind::EventHub(hub) => hub.payload == EventPayload::Message,
                DestinationKind::Fhir(_) => false,
            };
            let destinations = config.destinations.iter();
            let destinations = destinations
                .map(|d| (d.name.as_str(), takes_messages(&d.kind)))
                .collect();
            for mut salvage in salvages {
                salvage.follow(&destinations);
                while store.salvage_step(&mut salvage, encryption)? {}
                salvage.write_report()?;
            }
            store.salvages()?
        }
    };
    let mut text = String::new();
    for state in &states {
        let _ = writeln!(text, "{}", state.text());
        if state.lost > 0 {
            text.push_str("  what is lost is in the ledger and in the report beside the file\n");
        }
    }
    if states.is_empty() {
        text.push_str("no store was set aside\n");
    }
    let good = states
        .iter()
        .all(|state| state.waits.is_none() && state.lost == 0);
    Ok((text, code(good)))
}

fn erase(config: &Config) -> anyhow::Result<String> {
    let folder = store_folder(config);
    let wiped =
        wipe(&folder, &config.store.encryption).with_context(|| format!("store in {}", folder.display()))?;
    let mut text = String::new();
    match (&wiped.key, &config.store.encryption) {
        (Some(key), _) => {
            let _ = writeln!(text, "destroyed the key {}", key.display());
        }
        (None, Encryption::At(SecretRef::Credential(name))) => {
            let _ = writeln!(
                text,
                "the key is the credential {name}, which is not the agent's to destroy: replace it, so that what the flash \
                 still holds cannot be read"
            );
        }
        _ => text.push_str(
            "there was no key file: what an unencrypted store leaves on the flash can be read until it is overwritten\n",
        ),
    }
    for file in &wiped.files {
        let _ = writeln!(text, "erased {}", file.display());
    }
    Ok(text)
}
