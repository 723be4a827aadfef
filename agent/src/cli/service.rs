//! How a command reaches the running service, and how it knows that there is none.

use crate::agent::{AtRest, at_rest, store_folder};
use crate::config::Config;
use crate::control::{Question, ask_socket, socket_path};
use anyhow::{Context, bail};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::PathBuf;

/// The service's socket is below /run; one started by hand has it in its store.
pub fn socket(config: &Config) -> PathBuf {
    let service = PathBuf::from("/run/bedside-agent/control.sock");
    let own = socket_path(&store_folder(config));
    if own.exists() || !service.exists() {
        own
    } else {
        service
    }
}

/// Asks the running service; none when no service runs, so that the command may open the store itself.
///
/// # Errors
/// When it does not answer, or answers with an error.
pub fn ask(config: &Config, question: &Question) -> anyhow::Result<Option<String>> {
    let path = socket(config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = match runtime.block_on(ask_socket(&path, question)) {
        Ok(answer) => answer,
        // A socket that is left over refuses.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "the agent on {} does not answer: may you ask it (sudo)?",
                    path.display()
                )
            });
        }
    };
    without_error(answer).map(Some)
}

/// The answer of the running service; while it is down, what `desk` says over its store.
///
/// # Errors
/// When neither can be reached, or the answer is an error.
pub fn ask_or_open(
    config: &Config,
    question: &Question,
    desk: impl AsyncFnOnce(&AtRest) -> String,
) -> anyhow::Result<String> {
    if let Some(answer) = ask(config, question)? {
        return Ok(answer);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let rest = at_rest(config)?;
    without_error(runtime.block_on(desk(&rest)))
}

fn without_error(answer: String) -> anyhow::Result<String> {
    let value: Value = serde_json::from_str(&answer).context("the agent's answer cannot be read")?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}
