//! Mapping packs: the pairs of MedTech files that an operator drops on the device, and the optional third file.
//!
//! A pack is a namespace: the types of its device mapping are resolved in its own FHIR mapping only. [`folder`] reads the
//! drop-in folder, [`exchange`] lets several files change as one, [`state`] decides what becomes of a change, [`watch`] joins both with the clock.

pub mod exchange;
pub mod folder;
mod set;
pub mod state;
pub mod watch;

pub use set::PackSet;
pub use state::{PackEvent, PackProblem, PackState, ProblemKind};
pub use watch::{Notice, PackFolder};

use iomt_mapping::fhir::FhirMapping;
use iomt_mapping::pack_options::PackOptions;
use iomt_mapping::{DeviceMapping, Finding, has_errors};
use ring::digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

/// The texts of a pack, as dropped on the device; kept with the store so that the last good ones survive a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackText {
    /// Name of the pack (`NAME` of `NAME.device.json`).
    pub name: String,
    /// Device mapping.
    pub device: String,
    /// FHIR destination mapping; may be absent where no destination needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fhir: Option<String>,
    /// The third file (`NAME.agent.json`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

impl PackText {
    /// SHA-256 of name and texts, 64 hexadecimal digits: equal for equal packs, on every gateway.
    pub fn revision(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        let parts = [
            Some(&self.name),
            Some(&self.device),
            self.fhir.as_ref(),
            self.agent.as_ref(),
        ];
        for part in parts {
            // Lengths first, so that no text can pass for two others; an absent file differs from an empty one.
            let length = part.map_or(u64::MAX, |text| text.len() as u64);
            context.update(&length.to_le_bytes());
            context.update(part.map_or(&[], |text| text.as_bytes()));
        }
        hexadecimal(context.finish().as_ref())
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Which of the files of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileRole {
    /// The device mapping.
    Device,
    /// The FHIR destination mapping.
    Fhir,
    /// What the two have no place for.
    Agent,
}

/// How the files of a pack are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `NAME.device.json`, `NAME.fhir.json`, `NAME.agent.json`.
    #[default]
    Files,
    /// `NAME/devicecontent.json`, `NAME/fhirmapping.json`, `NAME/agent.json`.
    Folder,
}

impl Form {
    /// Name of a file of the pack `name`, within the drop-in folder.
    pub fn file_name(self, name: &str, role: FileRole) -> String {
        match (self, role) {
            (Form::Files, FileRole::Device) => format!("{name}.device.json"),
            (Form::Files, FileRole::Fhir) => format!("{name}.fhir.json"),
            (Form::Files, FileRole::Agent) => format!("{name}.agent.json"),
            (Form::Folder, FileRole::Device) => format!("{name}/devicecontent.json"),
            (Form::Folder, FileRole::Fhir) => format!("{name}/fhirmapping.json"),
            (Form::Folder, FileRole::Agent) => format!("{name}/agent.json"),
        }
    }
}

/// Something about a file of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFinding {
    /// Name of the file within the drop-in folder.
    pub file: String,
    /// Its text, to show the line; empty when it could not be read.
    pub text: Arc<str>,
    /// What was found.
    pub finding: Finding,
}

impl PackFinding {
    /// A finding about a file as a whole.
    pub fn of_file(file: impl Into<String>, finding: Finding) -> PackFinding {
        PackFinding {
            file: file.into(),
            text: Arc::from(""),
            finding,
        }
    }

    /// As a compiler shows it: message, file with line and column, the line with a mark below it, suggestion.
    pub fn render(&self) -> String {
        self.finding.render(&self.file, &self.text)
    }

    /// On one line, for the log.
    pub fn one_line(&self) -> String {
        crate::config::one_line(&self.file, &self.finding)
    }
}

/// Whether any finding refuses the pack.
pub fn refused(findings: &[PackFinding]) -> bool {
    findings
        .iter()
        .any(|found| has_errors(std::slice::from_ref(&found.finding)))
}

/// A pack that loads.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its texts.
    pub text: Arc<PackText>,
    /// Device mapping.
    pub device: Arc<DeviceMapping>,
    /// FHIR mapping, with the options of the third file put in; absent where no destination needs it.
    pub fhir: Option<Arc<FhirMapping>>,
    /// The third file; empty when there is none.
    pub options: Arc<PackOptions>,
}

impl Pack {
    /// Loads a pack. There is none when a file has an error; warnings come beside it.
    pub fn load(text: PackText) -> (Option<Pack>, Vec<PackFinding>) {
        Pack::load_form(text, Form::Files)
    }

    /// As [`Pack::load`]; the findings name the files as this form does.
    pub fn load_form(text: PackText, form: Form) -> (Option<Pack>, Vec<PackFinding>) {
        let mut findings = Vec::new();
        let mut note = |role: FileRole, content: &str, found: Vec<Finding>| {
            let shared: Arc<str> = if found.is_empty() {
                Arc::from("")
            } else {
                Arc::from(content)
            };
            findings.extend(found.into_iter().map(|finding| PackFinding {
                file: form.file_name(&text.name, role),
                text: Arc::clone(&shared),
                finding,
            }));
        };
        let (device, found) = DeviceMapping::load(&text.device);
        note(FileRole::Device, &text.device, found);
        let mut complete = true;
        let mut options = PackOptions::default();
        if let Some(content) = &text.agent {
            let (loaded, found) = PackOptions::load(content);
            complete &= loaded.is_some();
            options = loaded.unwrap_or_default();
            note(FileRole::Agent, content, found);
        }
        let mut fhir = None;
        if let Some(content) = &text.fhir {
            let (loaded, found) = FhirMapping::load(content);
            complete &= loaded.is_some();
            fhir = loaded.map(|mapping| Arc::new(mapping.with_options(&options)));
            note(FileRole::Fhir, content, found);
        }
        let pack = device
            .filter(|_| complete && !refused(&findings))
            .map(|device| Pack {
                text: Arc::new(text),
                device: Arc::new(device),
                fhir,
                options: Arc::new(options),
            });
        (pack, findings)
    }

    /// Names of the types that its device mapping makes.
    pub fn device_types(&self) -> BTreeSet<String> {
        let templates = self.device.templates().iter();
        templates
            .map(|template| template.type_name().to_owned())
            .collect()
    }

    /// Types of its device mapping for which its FHIR mapping has no template. Without a FHIR mapping all of them.
    pub fn types_without_template(&self) -> BTreeSet<String> {
        let has = |name: &str| {
            self.fhir
                .as_ref()
                .is_some_and(|fhir| fhir.template(name).is_some())
        };
        self.device_types()
            .into_iter()
            .filter(|name| !has(name))
            .collect()
    }
}

#[cfg(test)]
mod tests;
