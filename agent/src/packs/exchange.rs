//! A pack whose files are about to take their places, one after the other.
//!
//! No file system renames two files in one step. So the new ones wait together in a hidden folder `.NAME.exchange`, and
//! whoever reads the pack looks there first: from the moment at which that folder has its name, the pack is the new one,
//! however many of its files are in their places already. Only `mappings add` makes such a folder, and only for packs that
//! are files, or where the file system cannot exchange folders.

use super::{FileRole, Form};
use std::path::{Path, PathBuf};

/// Name of the folder in which the files of the pack `name` wait.
pub fn folder_name(name: &str) -> String {
    format!(".{name}.exchange")
}

/// The pack whose files wait in a folder of this name.
pub fn pack_of(folder: &str) -> Option<&str> {
    folder.strip_prefix('.')?.strip_suffix(".exchange")
}

/// Name of a file in it.
pub fn in_folder(role: FileRole) -> &'static str {
    match role {
        FileRole::Device => "devicecontent.json",
        FileRole::Fhir => "fhirmapping.json",
        FileRole::Agent => "agent.json",
    }
}

/// Name of the mark in it for a file that the new pack does not have.
pub fn removed(role: FileRole) -> String {
    format!("{}.removed", in_folder(role))
}

/// Where a file of a pack is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Still in the folder in which it waits.
    Waiting(PathBuf),
    /// The new pack has none.
    Removed,
    /// Where its name says, if it is there.
    Own,
}

/// Where the file of the pack `name` is that `role` says.
pub fn place(dir: &Path, name: &str, role: FileRole) -> Place {
    let folder = dir.join(folder_name(name));
    let file = folder.join(in_folder(role));
    if file.exists() {
        Place::Waiting(file)
    } else if folder.join(removed(role)).exists() {
        Place::Removed
    } else {
        Place::Own
    }
}

/// The file of the pack `name` that `role` says, wherever it is now; none when the pack has none.
pub fn path(dir: &Path, name: &str, form: Form, role: FileRole) -> Option<PathBuf> {
    match place(dir, name, role) {
        Place::Waiting(path) => Some(path),
        Place::Removed => None,
        Place::Own => Some(dir.join(form.file_name(name, role))),
    }
}
