//! Erasing a store: the key first, so that what the flash still holds of the rest means nothing, then the files.

use super::key::OWN_KEY;
use crate::config::{Encryption, SecretRef};
use crate::store::{Store, StoreError};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

/// What was erased.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wiped {
    /// The key file; none when the store had none, or its key is a credential, which is not ours to destroy.
    pub key: Option<PathBuf>,
    /// The other files.
    pub files: Vec<PathBuf>,
}

/// Erases the store in `folder`: key file, database, write-ahead log, and files that were set aside.
///
/// # Errors
/// [`StoreError::Locked`] while the service runs; a file that cannot be removed.
pub fn wipe(folder: &Path, encryption: &Encryption) -> Result<Wiped, StoreError> {
    let file = folder.join("store.db");
    // Held until the files are gone, so that no service starts in between. A damaged file has no owner either.
    let lock = match Store::lock(&file) {
        Err(StoreError::Locked(path)) => return Err(StoreError::Locked(path)),
        lock => lock.ok(),
    };
    let mut wiped = Wiped::default();
    let named = match encryption {
        Encryption::At(SecretRef::File(path)) => path.clone(),
        _ => folder.join(OWN_KEY),
    };
    for key in [named, folder.join(OWN_KEY)] {
        if key.exists() {
            destroy(&key)?;
            wiped.key = Some(key);
        }
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("store.db") || name.starts_with("store.key") {
            std::fs::remove_file(&path)?;
            wiped.files.push(path);
        }
    }
    std::fs::File::open(folder)?.sync_all()?;
    drop(lock);
    wiped.files.sort();
    Ok(wiped)
}

/// Overwrites and removes a key file. Flash may keep the old cells until its controller erases them, which nobody can force:
/// a key that never lay on this medium (a credential) leaves nothing.
fn destroy(key: &Path) -> std::io::Result<()> {
    let length = std::fs::metadata(key)?.len();
    let mut file = std::fs::OpenOptions::new().write(true).open(key)?;
    file.rewind()?;
    file.write_all(&vec![b'0'; usize::try_from(length).unwrap_or(64)])?;
    file.sync_all()?;
    drop(file);
    std::fs::remove_file(key)?;
    std::fs::File::open(key.parent().unwrap_or(Path::new(".")))?.sync_all()
}
