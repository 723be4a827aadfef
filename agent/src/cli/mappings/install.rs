//! Writing a pack into the drop-in folder while a service reads it.
//!
//! 1. A pack is never seen in part: it is written under a hidden name, which the service does not look at, and renamed.
//! 2. What was written is on the disk before it is renamed.
//! 3. After a power cut the pack is the old or the new one, whole, and the new one once the command has ended. Files that
//!    take their places one after the other wait in a folder that readers look into first ([`exchange`]): from the one rename
//!    that gives it its name the new pack is in force, and what a cut left in it is put in place by the next installation
//!    (proof `power-cuts --class mapping`).
//! 4. Other files in the folder of a pack that is replaced (samples, notes) stay.

use crate::durable;
use crate::packs::{FileRole, Form, PackText, exchange};
use rustix::io::Errno;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The user of the service reads them, whatever the umask of the one who installs.
const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// Advice beside an error of writing.
pub fn cannot_write(dir: &Path) -> String {
    format!(
        "the pack cannot be written to {}; when permission is denied, run the command with sudo",
        dir.display()
    )
}

/// Installs a pack that is not there yet, as a folder, in one step.
///
/// # Errors
/// When it cannot be written, or a folder of this name has other files in it.
pub fn create(dir: &Path, pack: &PackText) -> io::Result<()> {
    let new = HiddenFolder::write(dir, pack)?;
    fs::rename(&new.path, dir.join(&pack.name))?;
    durable::sync_folder(dir)
}

/// Puts a pack in the place of the installed one, in the form that this has. A folder is exchanged in one step; files, and a
/// folder where the file system cannot exchange, are renamed one after the other, so close together that the service sees
/// them as one change.
///
/// # Errors
/// When it cannot be written. The installed pack is then the old or the new one, whole.
pub fn replace(dir: &Path, pack: &PackText, form: Form) -> io::Result<()> {
    put_in_place(dir, &pack.name, form)?;
    let new = HiddenFolder::write(dir, pack)?;
    let present = dir.join(&pack.name);
    if form == Form::Folder && !present.is_symlink() {
        match durable::exchange(&new.path, &present) {
            Ok(()) => {
                // The hidden name is the old folder's now.
                for entry in fs::read_dir(&new.path)? {
                    let name = entry?.file_name();
                    if roles(pack).all(|(role, _)| name != exchange::in_folder(role)) {
                        fs::rename(new.path.join(&name), present.join(&name))?;
                    }
                }
                return durable::sync_folder(dir);
            }
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NOSYS)) => {}
            Err(error) => return Err(error),
        }
    }
    for (role, _) in roles(pack).filter(|(_, text)| text.is_none()) {
        fs::write(new.path.join(exchange::removed(role)), "")?;
    }
    durable::sync_folder(&new.path)?;
    fs::rename(&new.path, dir.join(exchange::folder_name(&pack.name)))?;
    durable::sync_folder(dir)?;
    put_in_place(dir, &pack.name, form)
}

/// Puts the files that wait for it in their places, if there are any.
fn put_in_place(dir: &Path, name: &str, form: Form) -> io::Result<()> {
    let waiting = dir.join(exchange::folder_name(name));
    if !waiting.is_dir() {
        return Ok(());
    }
    for role in [FileRole::Agent, FileRole::Fhir, FileRole::Device] {
        let place = dir.join(form.file_name(name, role));
        let file = waiting.join(exchange::in_folder(role));
        if file.exists() {
            fs::rename(file, place)?;
        } else if waiting.join(exchange::removed(role)).exists() {
            absent(fs::remove_file(place))?;
        }
    }
    if form == Form::Folder {
        durable::sync_folder(&dir.join(name))?;
    }
    durable::sync_folder(dir)?;
    fs::remove_dir_all(&waiting)?;
    durable::sync_folder(dir)
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The device mapping last: without it there is no pack.
fn roles(pack: &PackText) -> impl Iterator<Item = (FileRole, Option<&str>)> {
    [
        (FileRole::Agent, pack.agent.as_deref()),
        (FileRole::Fhir, pack.fhir.as_deref()),
        (FileRole::Device, Some(pack.device.as_str())),
    ]
    .into_iter()
}

/// A folder under a hidden name; what is left under this name is removed at the end.
struct HiddenFolder {
    path: PathBuf,
}

impl HiddenFolder {
    fn write(dir: &Path, pack: &PackText) -> io::Result<HiddenFolder> {
        let new = HiddenFolder {
            path: new_folder(dir, &pack.name)?,
        };
        fs::set_permissions(&new.path, Permissions::from_mode(FOLDER_MODE))?;
        for (role, text) in roles(pack) {
            let Some(text) = text else { continue };
            let path = new.path.join(exchange::in_folder(role));
            let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
            file.write_all(text.as_bytes())?;
            durable::sync_file(&file)?;
        }
        durable::sync_folder(&new.path)?;
        Ok(new)
    }
}

/// Makes a folder under a hidden name that nothing has: a power cut may have left one, with files of the operator in it.
fn new_folder(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let process = std::process::id();
    for number in 0.. {
        let path = dir.join(format!(".{name}.{process}-{number}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

impl Drop for HiddenFolder {
    fn drop(&mut self) {
        // Gone after a rename. What cannot be removed is hidden and disturbs nobody.
        let _ = fs::remove_dir_all(&self.path);
    }
}
