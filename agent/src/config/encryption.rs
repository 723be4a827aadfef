//! `[store] encryption`: whether the store is encrypted, and where its key is.

use super::secret::SecretRef;
use serde::Deserialize;
use std::path::Path;

/// `encryption = false | true | "credential:NAME" | "file:PATH"`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "Written")]
pub enum Encryption {
    /// Not encrypted.
    #[default]
    Off,
    /// With a key file beside the store, made at the first start.
    Own,
    /// With the key there; a file that does not exist is made at the first start.
    At(SecretRef),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "true, false, \"credential:NAME\" or \"file:PATH\"")]
enum Written {
    Switch(bool),
    Place(String),
}

impl TryFrom<Written> for Encryption {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Switch(false) => Ok(Encryption::Off),
            Written::Switch(true) => Ok(Encryption::Own),
            Written::Place(text) => match SecretRef::try_from(text) {
                Ok(SecretRef::Env(_)) | Err(_) => {
                    Err("the key of the store: use true, \"credential:NAME\" or \"file:PATH\"".to_owned())
                }
                Ok(place) => Ok(Encryption::At(place)),
            },
        }
    }
}

impl Encryption {
    /// Makes a relative path start at `folder`.
    pub(super) fn start_at(&mut self, folder: &Path) {
        if let Encryption::At(place) = self {
            place.start_at(folder);
        }
    }
}
