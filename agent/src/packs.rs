//! A loaded mapping pack: the pair of MedTech files and the optional third file.

use std::sync::Arc;

/// The texts of a pack, as dropped on the device; kept with the store so that the last good ones survive a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackText {
    /// Name of the pack (`NAME` of `NAME.device.json`).
    pub name: String,
    /// Device mapping.
    pub device: String,
    /// FHIR destination mapping; may be absent where no destination needs it.
    pub fhir: Option<String>,
    /// The third file (`NAME.agent.json`).
    pub agent: Option<String>,
}

/// A pack that loads.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its texts.
    pub text: Arc<PackText>,
}
