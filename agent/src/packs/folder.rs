//! The drop-in folder as it is now: which packs there are, and the texts of their files. A file that is as it was is not
//! read again.

use super::exchange::{self, Place};
use super::{FileRole, Form, Pack, PackFinding, PackText};
use iomt_mapping::{Finding, Severity};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No mapping is larger; a text above is a mistake and would only fill the memory.
const LARGEST_FILE: u64 = 4 << 20;

/// A file of a pack: its text, or why there is none.
pub type FileText = Result<Arc<str>, String>;

/// The files of one pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackFiles {
    /// How they are named.
    pub form: Form,
    /// Device mapping.
    pub device: Option<FileText>,
    /// FHIR mapping.
    pub fhir: Option<FileText>,
    /// Third file.
    pub agent: Option<FileText>,
}

impl PackFiles {
    /// The files of the pack `name` in `dir`, read now; absent ones are left out.
    pub fn read(dir: &Path, name: &str, form: Form) -> PackFiles {
        let text = |role| {
            let path = exchange::path(dir, name, form, role)?;
            match std::fs::metadata(&path) {
                Ok(metadata) => Some(read_text(&path, &metadata)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => Some(Err(unreadable(&error))),
            }
        };
        PackFiles {
            form,
            device: text(FileRole::Device),
            fhir: text(FileRole::Fhir),
            agent: text(FileRole::Agent),
        }
    }

    fn file_mut(&mut self, role: FileRole) -> &mut Option<FileText> {
        match role {
            FileRole::Device => &mut self.device,
            FileRole::Fhir => &mut self.fhir,
            FileRole::Agent => &mut self.agent,
        }
    }

    /// Loads them as the pack `name`. There is none when a file is missing or has an error; warnings come beside it.
    pub fn load(&self, name: &str) -> (Option<Pack>, Vec<PackFinding>) {
        match self.text(name) {
            Ok(text) => Pack::load_form(text, self.form),
            Err(findings) => (None, findings),
        }
    }

    /// The texts.
    ///
    /// # Errors
    /// What is missing or cannot be read.
    pub fn text(&self, name: &str) -> Result<PackText, Vec<PackFinding>> {
        let mut findings = Vec::new();
        let mut text = |role: FileRole, file: &Option<FileText>| match file {
            Some(Ok(text)) => Some(text.to_string()),
            Some(Err(why)) => {
                let finding = Finding::error("Unreadable", format!("The file cannot be read: {why}."));
                findings.push(PackFinding::of_file(self.form.file_name(name, role), finding));
                None
            }
            None => None,
        };
        let (device, fhir, agent) = (
            text(FileRole::Device, &self.device),
            text(FileRole::Fhir, &self.fhir),
            text(FileRole::Agent, &self.agent),
        );
        if self.device.is_none() {
            let advice = match self.form {
                Form::Files => {
                    format!("Copy {name}.device.json too; the names before the first ending must be equal.")
                }
                Form::Folder => "Copy devicecontent.json too.".to_owned(),
            };
            let finding = Finding::error("MissingFile", "The pack has no device mapping.").suggest(advice);
            let file = self.form.file_name(name, FileRole::Device);
            findings.push(PackFinding::of_file(file, finding));
        }
        match device {
            Some(device) if findings.is_empty() => Ok(PackText {
                name: name.to_owned(),
                device,
                fhir,
                agent,
            }),
            _ => Err(findings),
        }
    }
}

/// The folder at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Packs by name.
    pub packs: BTreeMap<String, PackFiles>,
    /// Files and folders that look like mappings and are part of no pack, with what to do.
    pub strays: Vec<PackFinding>,
    /// The folder itself: its device and inode numbers, or why it cannot be read.
    pub folder: Result<(u64, u64), String>,
}

/// What tells that a file has changed without reading it.
type Signature = (u64, u64, u64, i64, i64, i64, i64);

/// Reads the folder again and again.
#[derive(Debug)]
pub struct FolderReader {
    dir: PathBuf,
    known: HashMap<PathBuf, (Signature, FileText)>,
}

impl FolderReader {
    /// A reader of `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> FolderReader {
        FolderReader {
            dir: dir.to_owned(),
            known: HashMap::new(),
        }
    }

    /// The folder now. With `all` every file is read; else those whose size, times or inode have changed.
    pub fn read(&mut self, all: bool) -> Snapshot {
        let mut snapshot = Snapshot {
            packs: BTreeMap::new(),
            strays: Vec::new(),
            folder: Ok((0, 0)),
        };
        let previous = std::mem::take(&mut self.known);
        let mut pass = Pass {
            previous: if all { HashMap::new() } else { previous },
            known: HashMap::new(),
            snapshot: &mut snapshot,
        };
        if let Err(error) = pass.folder(&self.dir) {
            snapshot.folder = Err(match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "it does not exist; create it, or correct [mappings] dir".to_owned()
                }
                std::io::ErrorKind::PermissionDenied => {
                    "permission denied; make it readable for the user of the service".to_owned()
                }
                _ => error.to_string(),
            });
            return snapshot;
        }
        self.known = pass.known;
        snapshot
    }
}

/// One look at the folder.
struct Pass<'s> {
    previous: HashMap<PathBuf, (Signature, FileText)>,
    known: HashMap<PathBuf, (Signature, FileText)>,
    snapshot: &'s mut Snapshot,
}

impl Pass<'_> {
    fn folder(&mut self, dir: &Path) -> std::io::Result<()> {
        let metadata = std::fs::metadata(dir)?;
        self.snapshot.folder = Ok((metadata.dev(), metadata.ino()));
        let (mut folders, mut waiting) = (Vec::new(), Vec::new());
        for path in sorted_entries(dir)? {
            let Some(name) = visible_name(&path) else {
                waiting.extend(self.waiting(dir, &path));
                continue;
            };
            if path.is_dir() {
                folders.push(path);
            } else if let Some((pack, role)) = flat_name(&name) {
                self.file(pack, role, Form::Files, &path);
            } else if name.ends_with(".json") {
                self.stray(
                    &name,
                    "It is part of no mapping pack.",
                    "Name it NAME.device.json, NAME.fhir.json or NAME.agent.json, or put it into a folder NAME/ as \
                     devicecontent.json, fhirmapping.json or agent.json.",
                );
            }
        }
        // Folders come after files: where a name has both forms, the files are the pack.
        for path in folders {
            self.pack_folder(&path);
        }
        for (pack, role, text) in waiting {
            if let Some(files) = self.snapshot.packs.get_mut(&pack) {
                *files.file_mut(role) = text;
            }
        }
        Ok(())
    }

    /// What waits to take its place, read before the places are: a file that moves in between is the same at both.
    fn waiting(&mut self, dir: &Path, folder: &Path) -> Vec<(String, FileRole, Option<FileText>)> {
        let name = folder.file_name().and_then(OsStr::to_str);
        let Some(pack) = name.and_then(exchange::pack_of) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for role in [FileRole::Device, FileRole::Fhir, FileRole::Agent] {
            match exchange::place(dir, pack, role) {
                Place::Waiting(path) => found.push((pack.to_owned(), role, Some(self.text(&path)))),
                Place::Removed => found.push((pack.to_owned(), role, None)),
                Place::Own => {}
            }
        }
        found
    }

    fn pack_folder(&mut self, path: &Path) {
        let Some(pack) = visible_name(path) else { return };
        let entries = match sorted_entries(path) {
            Ok(entries) => entries,
            Err(error) => return self.stray(&pack, &format!("The folder cannot be read: {error}."), ""),
        };
        let roles: Vec<(FileRole, PathBuf)> = entries
            .iter()
            .filter_map(|entry| match entry.file_name().and_then(OsStr::to_str)? {
                "devicecontent.json" => Some((FileRole::Device, entry.clone())),
                "fhirmapping.json" => Some((FileRole::Fhir, entry.clone())),
                "agent.json" => Some((FileRole::Agent, entry.clone())),
                _ => None,
            })
            .collect();
        let is_json = |entry: &PathBuf| visible_name(entry).is_some_and(|name| name.ends_with(".json"));
        if roles.is_empty() {
            if entries.iter().any(is_json) {
                self.stray(
                    &pack,
                    "The folder holds no mapping by its name.",
                    "Name the files devicecontent.json, fhirmapping.json and agent.json.",
                );
            }
            return;
        }
        if self.snapshot.packs.contains_key(&pack) {
            return self.stray(
                &pack,
                "There are files of the same pack beside the folder; the folder is not used.",
                "Remove the folder or the files.",
            );
        }
        for (role, path) in roles {
            self.file(&pack, role, Form::Folder, &path);
        }
    }

    fn stray(&mut self, name: &str, message: &str, advice: &str) {
        let finding = Finding::new(Severity::Warning, "NotAPack", message);
        let finding = if advice.is_empty() {
            finding
        } else {
            finding.suggest(advice)
        };
        self.snapshot.strays.push(PackFinding::of_file(name, finding));
    }

    fn file(&mut self, pack: &str, role: FileRole, form: Form, path: &Path) {
        let text = self.text(path);
        let files = self.snapshot.packs.entry(pack.to_owned()).or_default();
        files.form = form;
        *files.file_mut(role) = Some(text);
    }

    fn text(&mut self, path: &Path) -> FileText {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return Err(unreadable(&error)),
        };
        let signature = signature(&metadata);
        let text = match self.previous.remove(path) {
            Some((known, text)) if known == signature => text,
            _ => read_text(path, &metadata),
        };
        self.known.insert(path.to_owned(), (signature, text.clone()));
        text
    }
}

fn sorted_entries(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut entries = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// The file name, unless it is hidden: editors and copy tools write hidden files first.
fn visible_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    (!name.starts_with('.')).then(|| name.to_owned())
}

/// Name of the pack that a file belongs to by its name, and what it is in it.
pub fn flat_name(name: &str) -> Option<(&str, FileRole)> {
    let roles = [
        (".device.json", FileRole::Device),
        (".fhir.json", FileRole::Fhir),
        (".agent.json", FileRole::Agent),
    ];
    roles.into_iter().find_map(|(ending, role)| {
        let pack = name.strip_suffix(ending)?;
        (!pack.is_empty()).then_some((pack, role))
    })
}

fn signature(metadata: &Metadata) -> Signature {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

fn read_text(path: &Path, metadata: &Metadata) -> FileText {
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    if metadata.len() > LARGEST_FILE {
        return Err("it is larger than 4 MiB".to_owned());
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(&error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Arc::from(text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error
                .as_bytes()
                .iter()
                .take(good)
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            Err(format!("line {line} is no UTF-8 text; save the file as UTF-8"))
        }
    }
}

fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "permission denied; make it readable for the user of the service".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(files: &PackFiles) -> Vec<Option<&str>> {
        [&files.device, &files.fhir, &files.agent]
            .into_iter()
            .map(|file| file.as_ref().map(|text| &**text.as_ref().unwrap()))
            .collect()
    }

    #[test]
    fn both_forms_of_file_names_are_packs_and_the_rest_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("heart.device.json", "d");
        write("heart.fhir.json", "f");
        write("heart.agent.json", "a");
        write("ward.2.device.json", "d2");
        write("oximeter/devicecontent.json", "D");
        write("oximeter/fhirmapping.json", "F");
        write("oximeter/README.md", "words");
        write("heart/devicecontent.json", "twice");
        write(".heart.device.json.swp", "half");
        write(".hidden.device.json", "half");
        write("README.md", "words");
        write("mapping.json", "stray");
        write("azure/device.json", "stray");
        let snapshot = FolderReader::new(dir.path()).read(false);
        assert_eq!(
            snapshot.packs.keys().collect::<Vec<_>>(),
            ["heart", "oximeter", "ward.2"]
        );
        assert_eq!(texts(&snapshot.packs["heart"]), [Some("d"), Some("f"), Some("a")]);
        assert_eq!(texts(&snapshot.packs["oximeter"]), [Some("D"), Some("F"), None]);
        assert_eq!(texts(&snapshot.packs["ward.2"]), [Some("d2"), None, None]);
        let strays: Vec<&str> = snapshot.strays.iter().map(|stray| stray.file.as_str()).collect();
        assert_eq!(strays, ["mapping.json", "azure", "heart"]);
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_unreadable_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.device.json");
        let mut reader = FolderReader::new(dir.path());
        for text in ["one", "two", "three"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(reader.read(true).packs["a"].device, Some(Ok(Arc::from(text))));
            assert_eq!(reader.read(false).packs["a"].device, Some(Ok(Arc::from(text))));
        }
        std::fs::write(&path, b"{\n\"a\": \"\xff\"}").unwrap();
        let told = reader.read(false).packs["a"].device.clone().unwrap().unwrap_err();
        assert!(told.contains("line 2 is no UTF-8"), "{told}");
        std::fs::remove_file(&path).unwrap();
        assert!(reader.read(false).packs.is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_and_found_when_it_comes() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("mappings.d");
        let mut reader = FolderReader::new(&dir);
        assert!(reader.read(false).folder.unwrap_err().contains("create it"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("a.device.json"), "x").unwrap();
        let snapshot = reader.read(false);
        assert!(snapshot.folder.is_ok());
        assert_eq!(snapshot.packs.len(), 1);
    }
}
