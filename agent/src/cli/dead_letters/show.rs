//! Dead letters as text.

use crate::dead_letters::{CauseView, LetterView, Redriven};
use crate::telemetry::errors::ErrorRecord;
use std::fmt::Write as _;

/// Causes, each with what to repair, and their letters if they were asked for.
pub fn causes(causes: &[CauseView], each: bool) -> String {
    if causes.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut out = String::new();
    for cause in causes {
        let _ = writeln!(out, "{:>5}  {}", cause.count, cause.cause);
        place(&mut out, &cause.error, "       ");
        let (first, last) = cause.positions;
        let _ = writeln!(out, "       messages {first} to {last}");
        for letter in cause.letters.iter().filter(|_| each) {
            let to = letter
                .destination
                .as_ref()
                .map(|d| format!(" for {d}"))
                .unwrap_or_default();
            let _ = writeln!(
                out,
                "       #{}  {}  message {} of {}{to}, {} bytes",
                letter.id, letter.failed, letter.position, letter.source, letter.bytes
            );
        }
    }
    out
}

/// Error text, who repairs it, and where in a mapping.
fn place(out: &mut String, error: &ErrorRecord, indent: &str) {
    let _ = writeln!(out, "{indent}{}: {}", error.name, error.text);
    if let Some(older) = &error.older_name {
        let _ = writeln!(out, "{indent}(the IoT connector calls it {older})");
    }
    if let Some(mapping) = &error.mapping {
        let line = mapping
            .line
            .map(|line| format!(", line {line}"))
            .unwrap_or_default();
        let field = mapping
            .field
            .as_ref()
            .map(|f| format!(", {f}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "{indent}in pack {}, template {}{line}{field}",
            mapping.pack, mapping.template
        );
    }
    let _ = writeln!(out, "{indent}to be repaired by: {:?}", error.repair);
}

/// One letter with everything that is known of it.
pub fn letter(letter: &LetterView) -> String {
    let mut out = format!(
        "dead letter {}: stage {}, failed {}\n",
        letter.id, letter.stage, letter.failed
    );
    place(&mut out, &letter.error, "  ");
    let (number, hash) = &letter.revision;
    let hash = hash.as_ref().map(|hash| format!(" ({hash})")).unwrap_or_default();
    let _ = writeln!(out, "  mapping revision {number}{hash}");
    let _ = writeln!(
        out,
        "  message {} of source {}, received {}, {} bytes",
        letter.position, letter.source, letter.received, letter.bytes
    );
    if let Some(destination) = &letter.destination {
        let _ = writeln!(out, "  refused by destination {destination}");
    }
    if let Some(number) = letter.match_number {
        let _ = writeln!(
            out,
            "  match {number} of the message (`bedside-agent map` shows them)"
        );
    }
    match &letter.message {
        None => out.push_str("  topic, device and payload are patient data: --payload shows them\n"),
        Some(message) => {
            for (name, value) in [("topic", &message.topic), ("device", &message.device)] {
                if let Some(value) = value {
                    let _ = writeln!(out, "  {name} {value}");
                }
            }
            for (name, value) in &message.properties {
                let _ = writeln!(out, "  property {name}: {value}");
            }
            let head = if message.truncated {
                "its first bytes"
            } else {
                "payload"
            };
            let (form, body) = match (&message.text, &message.base64) {
                (Some(text), _) => ("", text.as_str()),
                (None, Some(base64)) => (" in base64", base64.as_str()),
                (None, None) => ("", ""),
            };
            let _ = writeln!(out, "  {head}{form}:\n{body}");
        }
    }
    out
}

/// What became of a redrive.
pub fn redriven(done: &Redriven) -> String {
    let mut out = format!(
        "{} dead letters are none any more; {} readings are on their way\n",
        done.redriven, done.readings
    );
    if done.unmatched > 0 {
        let _ = writeln!(
            out,
            "{} messages are matched by no template today: they are kept as unmatched ones",
            done.unmatched
        );
    }
    for kept in &done.kept {
        let _ = writeln!(
            out,
            "#{} stays: {}: {}",
            kept.id, kept.error.name, kept.error.text
        );
    }
    out
}
