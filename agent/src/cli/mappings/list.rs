//! Ready and installed packs side by side.

use crate::cli::packs::Located;
use crate::packs::folder::PackFiles;
use crate::packs::{Pack, PackFinding, refused};
use iomt_mapping::fhir::Coding;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A line of the list is folded here.
const WIDTH: usize = 110;

/// All packs.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Folder of the ready packs.
    pub ready: Option<PathBuf>,
    /// The drop-in folder.
    pub installed: Option<PathBuf>,
    /// In name order.
    pub packs: Vec<ListedPack>,
}

/// A pack that is ready, installed, or both.
#[derive(Debug, Serialize)]
pub struct ListedPack {
    /// Its name.
    pub name: String,
    /// What it is.
    pub state: State,
    /// What it measures; of the installed one when there is one.
    pub types: Vec<MeasuredType>,
    /// Why it does not load.
    pub errors: Vec<String>,
}

/// What a pack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Ready, not installed.
    Ready,
    /// Installed as the ready pack is, or there are no ready packs to compare with.
    Installed,
    /// Installed, and different from the ready pack of its name.
    Changed,
    /// Installed, and no ready pack has its name.
    Own,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Installed => "installed",
            State::Changed => "changed",
            State::Own => "own",
        }
    }
}

/// A type of a device mapping and the codes of its Observations.
#[derive(Debug, Serialize)]
pub struct MeasuredType {
    /// `typeName`.
    #[serde(rename = "type")]
    pub name: String,
    /// Of the Observation, then of its components.
    pub codes: Vec<ListedCode>,
}

/// A code.
#[derive(Debug, Serialize)]
pub struct ListedCode {
    /// Its system.
    pub system: Option<String>,
    /// The code.
    pub code: String,
    /// Its name.
    pub display: Option<String>,
}

/// Puts the packs of both folders together.
pub fn listed(ready: Option<&Located>, installed: Option<&Located>) -> Listed {
    let mut both: BTreeMap<&str, (Option<&PackFiles>, Option<&PackFiles>)> = BTreeMap::new();
    for (name, files) in ready.iter().flat_map(|located| &located.packs) {
        both.entry(name).or_default().0 = Some(files);
    }
    for (name, files) in installed.iter().flat_map(|located| &located.packs) {
        both.entry(name).or_default().1 = Some(files);
    }
    let nothing_ready = ready.is_none();
    let packs = both.into_iter().filter_map(|(name, (ready, installed))| {
        let state = match (ready, installed) {
            (Some(ready), Some(installed)) if same(name, ready, installed) => State::Installed,
            (Some(_), Some(_)) => State::Changed,
            (Some(_), None) => State::Ready,
            (None, _) if nothing_ready => State::Installed,
            (None, _) => State::Own,
        };
        Some(listed_pack(name, state, installed.or(ready)?))
    });
    Listed {
        ready: ready.map(|located| located.dir.clone()),
        installed: installed.map(|located| located.dir.clone()),
        packs: packs.collect(),
    }
}

fn same(name: &str, one: &PackFiles, other: &PackFiles) -> bool {
    matches!((one.text(name), other.text(name)), (Ok(one), Ok(other)) if one == other)
}

fn listed_pack(name: &str, state: State, files: &PackFiles) -> ListedPack {
    let (pack, findings) = files.load(name);
    let errors = findings.iter().filter(|one| refused(std::slice::from_ref(*one)));
    ListedPack {
        name: name.to_owned(),
        state,
        types: pack.as_ref().map(types).unwrap_or_default(),
        errors: errors.map(PackFinding::one_line).collect(),
    }
}

fn types(pack: &Pack) -> Vec<MeasuredType> {
    let measured = |name: String| {
        let template = pack.fhir.as_ref().and_then(|fhir| fhir.template(&name));
        let codes = template.into_iter().flat_map(|template| {
            let of_components = template.components.iter().flat_map(|component| &component.codes);
            template.codes.iter().chain(of_components)
        });
        let codes = codes.filter_map(listed_code).collect();
        MeasuredType { name, codes }
    };
    pack.device_types().into_iter().map(measured).collect()
}

fn listed_code(coding: &Coding) -> Option<ListedCode> {
    Some(ListedCode {
        system: coding.system.clone(),
        code: coding.code.clone()?,
        display: coding.display.clone(),
    })
}

/// For people: name, state, and types with their codes.
pub fn text(listed: &Listed) -> String {
    let name_width = listed.packs.iter().map(|pack| pack.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for pack in &listed.packs {
        let begin = format!("{:name_width$}  {:9}  ", pack.name, pack.state.word());
        let indent = " ".repeat(begin.len());
        let types = pack.types.iter().map(|one| {
            let codes = one.codes.iter().map(|code| format!(" {}", code.code));
            format!("{}{}", one.name, codes.collect::<String>())
        });
        let parts: Vec<String> = if pack.errors.is_empty() {
            types.collect()
        } else {
            pack.errors
                .iter()
                .map(|error| format!("does not load: {error}"))
                .collect()
        };
        let mut line = begin;
        for (index, part) in parts.iter().enumerate() {
            let separator = if index + 1 < parts.len() { "; " } else { "" };
            if line.len() + part.len() > WIDTH && line.trim_end().len() > indent.len() {
                text.push_str(line.trim_end());
                text.push('\n');
                line.clone_from(&indent);
            }
            line.push_str(part);
            line.push_str(separator);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let count = |state: State| listed.packs.iter().filter(|pack| pack.state == state).count();
    if count(State::Ready) > 0 && listed.installed.is_some() {
        text.push_str("`bedside-agent mappings add NAME` installs a ready pack\n");
    }
    if count(State::Changed) > 0 {
        text.push_str("changed: differs from the ready pack; `mappings add NAME --force` puts the ready one in its place\n");
    }
    text
}
