//! What a power cut must find: files and the names of files, synced.
//!
//! A name is on the medium when its folder was synced, a content when its file was. A file that takes another's place is
//! synced before it is renamed, and its folder after it; else a power cut may leave the name with half of the content, or
//! the content without the name.

use crate::sabotage::{self, Sabotage};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::File;
use std::io;
use std::path::Path;

/// Syncs the names in a folder: what was created, renamed or removed in it.
///
/// # Errors
/// The file system's.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if sabotage::is_on(Sabotage::SkipDirectorySync) {
        return Ok(());
    }
    File::open(folder)?.sync_all()
}

/// Syncs the content of a file that is going to be renamed, or relied upon.
///
/// # Errors
/// The file system's.
pub fn sync_file(file: &File) -> io::Result<()> {
    if sabotage::is_on(Sabotage::RenameBeforeSync) {
        return Ok(());
    }
    file.sync_all()
}

/// Lets two names change places in one step. Their folder is to be synced after it.
///
/// # Errors
/// The file system's; `EINVAL` and `ENOSYS` of one that cannot do it.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    sabotage::exchanging(one, other)?;
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}
