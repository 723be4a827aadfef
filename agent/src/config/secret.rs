//! Secrets: where they are, and how they are read without ever being shown.

use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a secret is: `credential:NAME`, `file:PATH` or `env:NAME`. Never the secret itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum SecretRef {
    /// A systemd credential: `$CREDENTIALS_DIRECTORY/NAME` or `$CREDENTIALS_DIRECTORY/credentials_NAME`.
    Credential(String),
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl TryFrom<String> for SecretRef {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once(':') {
            Some(("credential", name)) if is_file_name(name) => Ok(SecretRef::Credential(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(PathBuf::from(path))),
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Env(name.to_owned())),
            _ => Err(
                "a secret is never written into agent.toml: use \"credential:NAME\", \"file:PATH\" or \
                      \"env:NAME\""
                    .to_owned(),
            ),
        }
    }
}

/// Whether `name` names a file in the credentials folder and nothing outside it.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\'])
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Credential(name) => write!(f, "credential:{name}"),
            SecretRef::File(path) => write!(f, "file:{}", path.display()),
            SecretRef::Env(name) => write!(f, "env:{name}"),
        }
    }
}

/// A secret. It cannot be printed: there is no `Display`, and `Debug` shows nothing of it, not even its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself; for the call that needs it, never for a message.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A secret cannot be had. The text says where it was looked for and what to do, and holds nothing of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret \"{place}\" cannot be read: {why}")]
pub struct SecretError {
    /// As it is written in `agent.toml`.
    pub place: String,
    /// Why, and what to do.
    pub why: String,
}

impl SecretRef {
    /// Reads the secret, each time anew: a changed secret is in use from the next call on. Line ends behind it are removed.
    ///
    /// # Errors
    /// When there is none, or it is empty or no text.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let text = match self {
            SecretRef::Credential(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
                self.read_credential(name, folder.as_ref().map(Path::new))
            }
            SecretRef::File(path) => self.read_file(path),
            SecretRef::Env(name) => std::env::var(name).map_err(|error| match error {
                std::env::VarError::NotPresent => {
                    self.error("the variable is not set; set it in the environment of the service")
                }
                std::env::VarError::NotUnicode(_) => self.error("it is no UTF-8 text"),
            }),
        }?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(self.error("it is empty"));
        }
        Ok(Secret(text.to_owned()))
    }

    /// A credential of its own (`LoadCredential=NAME:...`), or one of a folder (`LoadCredential=credentials:...`).
    fn read_credential(&self, name: &str, folder: Option<&Path>) -> Result<String, SecretError> {
        let folder = folder.ok_or_else(|| {
            self.error(
                "the agent was not started by systemd with credentials (CREDENTIALS_DIRECTORY is not set); outside the \
                 service use \"file:PATH\" or \"env:NAME\"",
            )
        })?;
        let candidates = [folder.join(name), folder.join(format!("credentials_{name}"))];
        match candidates.iter().find(|path| path.exists()) {
            Some(path) => self.read_file(path),
            None => Err(self.error(&format!(
                "the unit passes no credential of this name; put it into a file {name} in the folder that \
                 LoadCredential=credentials: names, or add LoadCredential={name}:PATH, and restart the service"
            ))),
        }
    }

    fn read_file(&self, path: &Path) -> Result<String, SecretError> {
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                self.error("there is no such file; create it, readable for the agent only")
            }
            std::io::ErrorKind::PermissionDenied => {
                self.error("permission denied; make the file readable for the user of the service")
            }
            _ => self.error(&error.to_string()),
        })?;
        String::from_utf8(bytes).map_err(|_| self.error("it is no UTF-8 text"))
    }

    fn error(&self, why: &str) -> SecretError {
        SecretError {
            place: self.to_string(),
            why: why.to_owned(),
        }
    }

    /// Makes a relative path start at `folder`.
    pub(super) fn start_at(&mut self, folder: &Path) {
        if let SecretRef::File(path) = self {
            *path = folder.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_again_each_time_without_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let place = SecretRef::File(path.clone());
        for text in ["first", "second\n", "third\r\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(place.read().unwrap().reveal(), text.trim_end());
        }
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(place.read().unwrap_err().why, "it is empty");
    }

    #[test]
    fn a_credential_is_found_alone_and_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("one"), "a").unwrap();
        std::fs::write(folder.path().join("credentials_two"), "b").unwrap();
        let read = |name: &str, folder| {
            let place = SecretRef::Credential(name.to_owned());
            place.read_credential(name, folder)
        };
        assert_eq!(read("one", Some(folder.path())).unwrap(), "a");
        assert_eq!(read("two", Some(folder.path())).unwrap(), "b");
        assert!(
            read("three", Some(folder.path()))
                .unwrap_err()
                .why
                .contains("LoadCredential=three:PATH")
        );
        assert!(
            read("one", None)
                .unwrap_err()
                .why
                .contains("CREDENTIALS_DIRECTORY")
        );
    }

    #[test]
    fn a_secret_shows_nothing() {
        assert_eq!(format!("{:?}", Secret("hunter2".to_owned())), "Secret");
    }

    #[test]
    fn what_is_no_reference_is_refused_without_being_repeated() {
        for inline in [
            "hunter2",
            "credential:",
            "file:",
            "credential:../hunter2",
            "Credential:hunter2",
            "",
        ] {
            let error = SecretRef::try_from(inline.to_owned()).unwrap_err();
            assert!(!error.contains("hunter2"), "{inline}");
        }
    }
}
