//! What the intake half of a format remembers over restarts: small texts by key, written before the messages that follow them.

use crate::message::SourceId;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Something to write down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The source.
    pub source: SourceId,
    /// What of it.
    pub key: String,
    /// What to know of it after a restart; no value of a patient.
    pub text: String,
}

/// What a source knew when the agent stopped, and where it puts what it learns.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Keys and texts of this source.
    pub recalled: Vec<(String, String)>,
    /// Topic and payload of the journal's last message of each edge node.
    pub last: Vec<(Arc<str>, Bytes)>,
    /// Shared by all sources.
    pub learnt: Learnt,
}

/// What sources have learnt and the intake has not yet written.
#[derive(Clone, Debug, Default)]
pub struct Learnt(Arc<Mutex<Vec<Remembered>>>);

impl Learnt {
    /// Something new. To be called before the message is handed on: the intake writes it before that message.
    pub fn put(&self, remembered: Remembered) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the newest counts.
        waiting.retain(|known| known.source != remembered.source || known.key != remembered.key);
        waiting.push(remembered);
    }

    /// What waits to be written.
    pub fn take(&self) -> Vec<Remembered> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// It could not be written. What came since is newer.
    pub fn put_back(&self, not_written: Vec<Remembered>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = std::mem::take(&mut *waiting);
        *waiting = not_written;
        waiting.retain(|old| {
            !newer
                .iter()
                .any(|new| new.source == old.source && new.key == old.key)
        });
        waiting.extend(newer);
    }
}
