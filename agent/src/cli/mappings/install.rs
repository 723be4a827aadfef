//! Writing a pack into the drop-in folder while a service reads it.
//!
//! 1. A pack is never seen in part: it is written under a hidden name, which the service does not look at, and renamed.
//! 2. What was written is on the disk before it is renamed.
//! 3. Other files in the folder of a pack that is replaced (samples, notes) stay.

use crate::packs::{FileRole, Form, PackText};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, Permissions};
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
    sync(dir)
}

/// Puts a pack in the place of the installed one, in the form that this has. A folder is exchanged in one step; files, and a
/// folder where the file system cannot exchange, are renamed one after the other, so close together that the service sees
/// them as one change.
///
/// # Errors
/// When it cannot be written. The installed pack is then as it was, unless the error came between two renames.
pub fn replace(dir: &Path, pack: &PackText, form: Form) -> io::Result<()> {
    let new = HiddenFolder::write(dir, pack)?;
    let present = dir.join(&pack.name);
    if form == Form::Folder && !present.is_symlink() {
        match renameat_with(CWD, &new.path, CWD, &present, RenameFlags::EXCHANGE) {
            Ok(()) => {
                // The hidden name is the old folder's now.
                for entry in fs::read_dir(&new.path)? {
                    let name = entry?.file_name();
                    if roles(pack).all(|(role, _)| name != in_folder(role)) {
                        fs::rename(new.path.join(&name), present.join(&name))?;
                    }
                }
                return sync(dir);
            }
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (role, text) in roles(pack) {
        let path = dir.join(form.file_name(&pack.name, role));
        match text {
            Some(_) => fs::rename(new.path.join(in_folder(role)), path)?,
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
    }
    sync(dir)
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

fn in_folder(role: FileRole) -> &'static str {
    match role {
        FileRole::Device => "devicecontent.json",
        FileRole::Fhir => "fhirmapping.json",
        FileRole::Agent => "agent.json",
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A folder under a hidden name; what is left under this name is removed at the end.
struct HiddenFolder {
    path: PathBuf,
}

impl HiddenFolder {
    fn write(dir: &Path, pack: &PackText) -> io::Result<HiddenFolder> {
        let path = dir.join(format!(".{}.{}", pack.name, std::process::id()));
        fs::create_dir(&path)?;
        let new = HiddenFolder { path };
        fs::set_permissions(&new.path, Permissions::from_mode(FOLDER_MODE))?;
        for (role, text) in roles(pack) {
            let Some(text) = text else { continue };
            let path = new.path.join(in_folder(role));
            let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        sync(&new.path)?;
        Ok(new)
    }
}

impl Drop for HiddenFolder {
    fn drop(&mut self) {
        // Gone after a rename. What cannot be removed is hidden and disturbs nobody.
        let _ = fs::remove_dir_all(&self.path);
    }
}
