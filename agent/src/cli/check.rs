//! `bedside-agent check`: everything that is wrong in a configuration and in mapping packs, as a compiler shows it.

use super::packs::{Located, folder_of_packs, locate};
use super::{DEFAULT_CONFIG, Format, print};
use crate::config::{self, Config, DestinationKind, EventPayload};
use crate::packs::{FileRole, Form, PackFinding, PackText};
use clap::Args;
use iomt_mapping::check::{EarlierPack, PackFile, check_pack};
use iomt_mapping::finding::nearest;
use iomt_mapping::{Finding, Severity};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Check a configuration and mapping packs, without starting anything
#[derive(Args, Debug)]
#[command(
    long_about = "\
Checks a configuration and mapping packs without starting anything and without network: every error with its file, line and
column, the line itself, and what to do. Secrets are not needed. With --config the packs in its mappings folder are checked
too, and whether they fit sources and destinations.",
    after_help = "\
Examples:
  bedside-agent check                                    the configuration of the service and its packs
  bedside-agent check --config agent.toml                a configuration before it is copied to a gateway
  bedside-agent check mappings.d                         all packs of a folder
  bedside-agent check heart.device.json                  one pack; the name up to the endings is enough: heart
  bedside-agent check --format json mappings.d           for a pipeline; exit code 1 when there are errors"
)]
pub struct Check {
    /// Configuration to check, with the packs of its mappings folder [default without a pack: the service's]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Mapping packs, or folders of packs
    #[arg(value_name = "PACK_OR_FOLDER")]
    packs: Vec<PathBuf>,
    /// How the result is shown
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
}

/// What was checked and found.
#[derive(Debug, Default)]
struct Report {
    files: Vec<String>,
    packs: usize,
    found: Vec<Found>,
}

/// All findings about packs as `check` shows them, and how many of them are errors.
pub(super) fn check_packs(located: &Located) -> (String, usize) {
    let mut report = Report::default();
    report.packs(located, None);
    let shown = report.found.iter().map(|found| format!("{}\n", found.shown));
    (shown.collect(), report.count(Severity::Error))
}

#[derive(Debug)]
struct Found {
    file: String,
    finding: Finding,
    shown: String,
}

impl Check {
    /// Checks and shows; exit code 1 when there are errors.
    ///
    /// # Errors
    /// When a file that was named cannot be read.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let report = self.report()?;
        let errors = report.count(Severity::Error);
        let warnings = report.count(Severity::Warning);
        let good = errors == 0 && !(self.strict && warnings > 0);
        print(&match self.format {
            Format::Text => report.text(errors, warnings),
            Format::Json => format!("{}\n", report.json(good, errors, warnings)),
        })?;
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn report(&self) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let default = self.packs.is_empty().then(|| PathBuf::from(DEFAULT_CONFIG));
        if let Some(path) = self.config.as_ref().or(default.as_ref()) {
            report.configuration(path)?;
        }
        for path in &self.packs {
            report.packs(&locate(path)?, None);
        }
        Ok(report)
    }
}

impl Report {
    fn configuration(&mut self, path: &Path) -> anyhow::Result<()> {
        let checked = config::check(path)?;
        self.files.push(checked.file.clone());
        for finding in &checked.findings {
            self.found.push(Found {
                file: checked.file.clone(),
                shown: checked.render_one(finding),
                finding: finding.clone(),
            });
        }
        let Some(config) = checked.config else {
            return Ok(());
        };
        match folder_of_packs(&config.mappings.dir) {
            Ok(located) => self.packs(&located, Some((&checked.file, &config))),
            Err(error) => {
                let finding = Finding::warning("MissingFolder", format!("{error:#}."));
                self.note(&checked.file, finding);
            }
        }
        Ok(())
    }

    /// A finding about a file as a whole.
    fn note(&mut self, file: &str, finding: Finding) {
        let found = PackFinding::of_file(file, finding);
        self.found.push(Found {
            file: file.to_owned(),
            shown: found.render(),
            finding: found.finding,
        });
    }

    fn packs(&mut self, located: &Located, config: Option<(&str, &Config)>) {
        let needs_fhir = config.is_none_or(|(_, config)| needs_fhir_mappings(config));
        let mut earlier: Vec<PackText> = Vec::new();
        for (name, files) in &located.packs {
            self.packs += 1;
            let (pack, findings) = files.load(name);
            let mut found = findings;
            if let Ok(text) = files.text(name) {
                found.extend(linted(&text, files.form, &earlier, &found));
                earlier.push(text);
            }
            found.sort_by_key(|one| (one.file.clone(), one.finding.place.map(|place| place.start)));
            self.found
                .extend(found.into_iter().map(|one| in_folder(&located.dir, one)));
            if pack.is_some_and(|pack| pack.fhir.is_none()) && needs_fhir {
                let file = files.form.file_name(name, FileRole::Fhir);
                let finding = Finding::warning("MissingFile", "The pack has no FHIR mapping.").suggest(
                    "A FHIR destination needs one; Event Hubs with raw messages or measurements does not.",
                );
                self.found
                    .push(in_folder(&located.dir, PackFinding::of_file(file, finding)));
            }
        }
        for stray in &located.strays {
            self.found.push(in_folder(&located.dir, stray.clone()));
        }
        if located.packs.is_empty() {
            let file = located.dir.display().to_string();
            let finding = Finding::warning("NoPack", "There is no mapping pack in this folder.").suggest(
                "Without one messages are kept and wait; `bedside-agent mappings add NAME` copies a ready one into it.",
            );
            self.note(&file, finding);
        }
        if let Some((file, config)) = config {
            self.unknown_packs(file, config, located);
        }
    }

    fn unknown_packs(&mut self, file: &str, config: &Config, located: &Located) {
        let known = || located.packs.iter().map(|(name, _)| name.as_str());
        for source in &config.sources {
            for name in source
                .packs
                .iter()
                .flatten()
                .filter(|name| !known().any(|pack| pack == *name))
            {
                let message = format!(
                    "Source {} names the mapping pack \"{name}\", which is not there.",
                    source.name
                );
                let advice = match nearest(name, known()) {
                    Some(near) => format!("Did you mean \"{near}\"?"),
                    None => format!("Copy its files to {}.", located.dir.display()),
                };
                self.note(file, Finding::warning("UnknownPack", message).suggest(advice));
            }
        }
    }

    fn count(&self, severity: Severity) -> usize {
        self.found
            .iter()
            .filter(|found| found.finding.severity == severity)
            .count()
    }

    fn text(&self, errors: usize, warnings: usize) -> String {
        let mut text = String::new();
        for found in &self.found {
            text.push_str(&found.shown);
            text.push('\n');
        }
        let plural =
            |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let mut checked = self.files.clone();
        if self.packs > 0 || checked.is_empty() {
            checked.push(plural(self.packs, "mapping pack"));
        }
        text.push_str(&format!(
            "checked {}: {}, {}\n",
            checked.join(" and "),
            plural(errors, "error"),
            plural(warnings, "warning")
        ));
        text
    }

    fn json(&self, good: bool, errors: usize, warnings: usize) -> Value {
        let findings: Vec<Value> = self.found.iter().map(Found::json).collect();
        json!({
            "ok": good,
            "configurations": self.files,
            "packs": self.packs,
            "errors": errors,
            "warnings": warnings,
            "findings": findings,
        })
    }
}

impl Found {
    fn json(&self) -> Value {
        let finding = &self.finding;
        json!({
            "file": self.file,
            "line": finding.place.map(|place| place.line),
            "column": finding.place.map(|place| place.column),
            "severity": match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Information => "information",
            },
            "kind": finding.kind,
            "template": finding.template,
            "field": finding.field,
            "message": finding.message,
            "suggestion": finding.suggestion,
        })
    }
}

/// What is doubtful in a pack as a whole; what loading has found already is left out.
fn linted(text: &PackText, form: Form, earlier: &[PackText], known: &[PackFinding]) -> Vec<PackFinding> {
    let earlier: Vec<EarlierPack<'_>> = earlier
        .iter()
        .map(|pack| EarlierPack {
            name: &pack.name,
            device_text: &pack.device,
        })
        .collect();
    let lints = check_pack(
        Some(&text.device),
        text.fhir.as_deref(),
        text.agent.as_deref(),
        &earlier,
    );
    let new = lints.into_iter().filter_map(|lint| {
        let (role, content) = match lint.file {
            PackFile::Device => (FileRole::Device, Some(&text.device)),
            PackFile::Fhir => (FileRole::Fhir, text.fhir.as_ref()),
            PackFile::Agent => (FileRole::Agent, text.agent.as_ref()),
        };
        let found = PackFinding {
            file: form.file_name(&text.name, role),
            text: Arc::from(content.map_or("", String::as_str)),
            finding: lint.finding,
        };
        (!known.contains(&found)).then_some(found)
    });
    new.collect()
}

fn in_folder(dir: &Path, mut found: PackFinding) -> Found {
    found.file = dir.join(&found.file).display().to_string();
    Found {
        shown: found.render(),
        file: found.file,
        finding: found.finding,
    }
}

fn needs_fhir_mappings(config: &Config) -> bool {
    config
        .destinations
        .iter()
        .any(|destination| match &destination.kind {
            DestinationKind::Fhir(_) => true,
            DestinationKind::EventHub(hub) => hub.payload == EventPayload::Observation,
        })
}

#[cfg(test)]
mod tests;
