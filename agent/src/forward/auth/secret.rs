//! Secrets as text, for the schemes of this room.

use crate::config::SecretRef;

/// The text of a secret, read anew each time, so that a changed secret is in use at once.
///
/// # Errors
/// When it cannot be read; the text says where it was looked for.
pub fn read(secret: &SecretRef) -> Result<String, String> {
    let text = match secret {
        SecretRef::File(path) => {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        }
        SecretRef::Env(name) => std::env::var(name).map_err(|error| format!("{name}: {error}")),
        SecretRef::Credential(name) => std::env::var("CREDENTIALS_DIRECTORY")
            .map_err(|error| format!("CREDENTIALS_DIRECTORY: {error}"))
            .and_then(|folder| {
                std::fs::read_to_string(format!("{folder}/{name}"))
                    .map_err(|error| format!("{name}: {error}"))
            }),
    }?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
