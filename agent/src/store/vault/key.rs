//! The master key: where it is, how it is made, and how a store knows that it is the right one.

use crate::config::{Encryption, SecretRef};
use crate::durable;
use crate::packs::hexadecimal;
use crate::store::StoreError;
use ring::rand::{SecureRandom, SystemRandom};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the key file that the first start makes beside the store.
pub const OWN_KEY: &str = "store.key";
const BYTES: usize = 32;

/// The key that everything else comes from. It cannot be printed.
pub struct MasterKey([u8; BYTES]);

impl MasterKey {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn of(byte: u8) -> MasterKey {
        MasterKey([byte; BYTES])
    }

    /// The key that the configuration names, for the store in `folder`. A store that holds nothing sealed yet may have a
    /// new one made: the file and its folder are synced when this returns.
    ///
    /// # Errors
    /// [`StoreError::Key`] with what to do.
    pub fn find(encryption: &Encryption, folder: &Path, may_make: bool) -> Result<MasterKey, StoreError> {
        let place = match encryption {
            Encryption::At(place) => place.clone(),
            _ => SecretRef::File(folder.join(OWN_KEY)),
        };
        if let SecretRef::File(path) = &place
            && may_make
            && !path.exists()
        {
            make(path).map_err(|error| {
                StoreError::Key(format!("the key file {} cannot be made: {error}", path.display()))
            })?;
            tracing::info!(
                "made the key of the store: {}; keep a copy in a safe place",
                path.display()
            );
        }
        let secret = place.read().map_err(|error| {
            StoreError::Key(format!(
                "the store is encrypted and its key is not there: {error}. Put the key back; without it the readings in \
                 the store are lost, and `bedside-agent store wipe` begins a new one"
            ))
        })?;
        parse(secret.reveal()).map(MasterKey).ok_or_else(|| {
            StoreError::Key(format!(
                "the key in \"{place}\" is none: 64 hexadecimal digits are expected (openssl rand -hex 32)"
            ))
        })
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

fn parse(text: &str) -> Option<[u8; BYTES]> {
    let digits = text.trim();
    if digits.len() != BYTES * 2 || !digits.is_ascii() {
        return None;
    }
    let mut key = [0; BYTES];
    for (number, place) in key.iter_mut().enumerate() {
        *place = u8::from_str_radix(digits.get(number * 2..number * 2 + 2)?, 16).ok()?;
    }
    Some(key)
}

/// Makes a key file: it is there whole or not at all.
fn make(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut key = [0; BYTES];
    SystemRandom::new()
        .fill(&mut key)
        .map_err(|_| std::io::Error::other("the operating system gives no random bytes"))?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What a start that was cut off has left.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(format!("{}\n", hexadecimal(&key)).as_bytes())?;
    durable::sync_file(&file)?;
    std::fs::rename(&beside, path)?;
    durable::sync_folder(path.parent().unwrap_or(Path::new(".")))
}
