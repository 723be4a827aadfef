//! Mapping packs by what is given on the command line: a folder of packs, a pack, one of its files, or its name.

use crate::packs::folder::{FolderReader, PackFiles, flat_name};
use crate::packs::{Form, PackFinding};
use std::path::{Path, PathBuf};

/// Packs that were found, and where.
#[derive(Debug)]
pub struct Located {
    /// The folder that the names of their files start at.
    pub dir: PathBuf,
    /// Name and files, in name order.
    pub packs: Vec<(String, PackFiles)>,
    /// What looks like a mapping and is none.
    pub strays: Vec<PackFinding>,
}

/// Finds the packs at `path`.
///
/// # Errors
/// When there is none; the text says what can be given.
pub fn locate(path: &Path) -> anyhow::Result<Located> {
    if path.is_dir() {
        return if is_pack_folder(path) {
            pack_folder(path)
        } else {
            folder_of_packs(path)
        };
    }
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let dir = path.parent().unwrap_or(Path::new(""));
    if matches!(name, "devicecontent.json" | "fhirmapping.json" | "agent.json") && path.is_file() {
        return pack_folder(dir);
    }
    let pack = flat_name(name).map_or(name, |(pack, _)| pack);
    let files = PackFiles::read(dir, pack, Form::Files);
    anyhow::ensure!(
        files != PackFiles::default(),
        "there is no mapping pack {}: give a folder of packs, the folder of one pack (with devicecontent.json), a file such \
         as NAME.device.json, or the path of its files up to NAME",
        path.display()
    );
    Ok(Located {
        dir: dir.to_owned(),
        packs: vec![(pack.to_owned(), files)],
        strays: Vec::new(),
    })
}

/// All packs in a drop-in folder.
///
/// # Errors
/// When it cannot be read.
pub fn folder_of_packs(dir: &Path) -> anyhow::Result<Located> {
    let snapshot = FolderReader::new(dir).read(true);
    if let Err(why) = snapshot.folder {
        anyhow::bail!(
            "the folder of mapping packs {} cannot be read: {why}",
            dir.display()
        );
    }
    Ok(Located {
        dir: dir.to_owned(),
        packs: snapshot.packs.into_iter().collect(),
        strays: snapshot.strays,
    })
}

fn is_pack_folder(path: &Path) -> bool {
    ["devicecontent.json", "fhirmapping.json"]
        .iter()
        .any(|name| path.join(name).is_file())
}

fn pack_folder(path: &Path) -> anyhow::Result<Located> {
    // The folder's name is the pack's, also when the path is "." or ends in "..".
    let whole = path.canonicalize()?;
    let name = whole
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    let dir = if path.file_name().is_some() {
        path.parent()
    } else {
        whole.parent()
    };
    let dir = dir.unwrap_or(Path::new("")).to_owned();
    let files = PackFiles::read(&dir, &name, Form::Folder);
    Ok(Located {
        dir,
        packs: vec![(name, files)],
        strays: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_found_by_folder_file_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("oximeter")).unwrap();
        for name in [
            "heart.device.json",
            "heart.fhir.json",
            "oximeter/devicecontent.json",
            "oximeter/fhirmapping.json",
        ] {
            std::fs::write(at(name), "{}").unwrap();
        }
        let found = |name: &str| {
            let located = locate(&at(name)).unwrap();
            located
                .packs
                .into_iter()
                .map(|(name, files)| format!("{name} {}", files.fhir.is_some()))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(""), ["heart true", "oximeter true"]);
        for name in ["heart", "heart.device.json", "heart.fhir.json"] {
            assert_eq!(found(name), ["heart true"], "{name}");
        }
        for name in ["oximeter", "oximeter/", "oximeter/fhirmapping.json"] {
            assert_eq!(found(name), ["oximeter true"], "{name}");
        }
        assert!(
            locate(&at("nothing"))
                .unwrap_err()
                .to_string()
                .contains("there is no mapping pack")
        );
    }
}
