//! Dead letters for the operator: what could not be processed, and why; send it again, or give it up.
//!
//! The same code answers the running agent's control socket and the command line while the service is down. Patient data
//! (payload, topic, device) is in an answer only when it was asked for.

mod redrive;
#[cfg(test)]
mod tests;

pub use redrive::{Kept, Redriven};

use crate::forward::Destinations;
use crate::intake;
use crate::message::{PayloadKind, SourceId};
use crate::normalize::receive_time;
use crate::pipeline::Pipeline;
use crate::store::{Selection, StoreError, StoredLetter};
use crate::telemetry::errors::ErrorRecord;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iomt_mapping::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// Letters that are read at a time: their messages are in memory together.
const AT_A_TIME: usize = 32;

/// What can be asked about dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum LetterQuestion {
    /// Causes; with `each` the letters of those that are meant.
    List {
        /// Which letters.
        which: Selection,
        /// List every letter.
        each: bool,
    },
    /// One letter.
    Show {
        /// Its number.
        id: u64,
        /// With payload, topic and device: patient data.
        payload: bool,
    },
    /// Normalize again with today's mapping, and send.
    Redrive {
        /// Which letters.
        which: Selection,
    },
    /// Give up.
    Drop {
        /// Which letters.
        which: Selection,
    },
}

/// Dead letters of one cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CauseView {
    /// Stage, error name and template: what an operator repairs at one place.
    pub cause: String,
    /// How many are kept.
    pub count: u64,
    /// One error of them.
    pub error: ErrorRecord,
    /// Positions of the oldest and the newest message.
    pub positions: (u64, u64),
    /// The letters, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub letters: Vec<LetterView>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LetterView {
    /// Its number.
    pub id: u64,
    /// Position of its message.
    pub position: u64,
    /// When the message came, as well as it is known.
    pub received: String,
    /// When it failed.
    pub failed: String,
    /// Name of the source that it came from.
    pub source: String,
    /// Destination that refused it.
    pub destination: Option<String>,
    /// Which match of the message.
    pub match_number: Option<u32>,
    /// Stage that failed: `normalize` or `forward`.
    pub stage: String,
    /// Error with template and line.
    pub error: ErrorRecord,
    /// Number of the set of mapping packs, and its hash as far as it is shown elsewhere.
    pub revision: (u32, Option<String>),
    /// Bytes of the payload.
    pub bytes: u64,
    /// Patient data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageView>,
}

/// A message with everything in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageView {
    /// MQTT topic.
    pub topic: Option<String>,
    /// Connection device id.
    pub device: Option<String>,
    /// MQTT 5 user properties.
    pub properties: Vec<(String, String)>,
    /// The payload, when it is text.
    pub text: Option<String>,
    /// The payload in base64, when it is not.
    pub base64: Option<String>,
    /// Only the head of the payload was kept.
    pub truncated: bool,
}

/// What an operator can do, over what the loops share.
pub struct DeadLetters<'a> {
    /// Shared state of the loops.
    pub pipeline: &'a Pipeline,
    /// The destinations of the configuration.
    pub destinations: &'a Destinations,
    /// Names of the sources.
    pub sources: &'a HashMap<SourceId, Arc<str>>,
}

impl DeadLetters<'_> {
    /// The answer to a question, as JSON.
    pub async fn answer(&self, question: &LetterQuestion) -> String {
        let answer = match question {
            LetterQuestion::List { which, each } => self.list(which, *each).await.map(json),
            LetterQuestion::Show { id, payload } => self.show(*id, *payload).await.map(json),
            LetterQuestion::Redrive { which } => self.redrive(which).await.map(json),
            LetterQuestion::Drop { which } => self.drop(which).await.map(|dropped| json(Dropped { dropped })),
        };
        answer.unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string())
    }

    /// Causes, with those letters that are meant.
    ///
    /// # Errors
    /// [`StoreError`] of the reads.
    pub async fn list(&self, which: &Selection, each: bool) -> Result<Vec<CauseView>, StoreError> {
        let all = which == &Selection::default();
        let everything = Selection {
            all: true,
            ..Selection::default()
        };
        let selected = {
            let which = if all { &everything } else { which };
            self.pipeline.outbox.borrow().select_letters(which, false)
        };
        let mut letters: HashMap<u64, LetterView> = HashMap::new();
        if each {
            let ids: Vec<u64> = selected.iter().map(|(_, note)| note.id).collect();
            for ids in ids.chunks(AT_A_TIME) {
                for letter in self.read(ids).await? {
                    letters.insert(letter.id, self.view(&letter, false).await?);
                }
            }
        }
        let by_cause = self.pipeline.outbox.borrow().letters_by_cause();
        let views = by_cause.into_iter().map(|summary| {
            let own = selected.iter().filter(|(cause, _)| *cause == summary.cause);
            CauseView {
                letters: own.filter_map(|(_, note)| letters.remove(&note.id)).collect(),
                cause: summary.cause,
                count: summary.count,
                error: summary.error,
                positions: (summary.first, summary.last),
            }
        });
        let meant = |view: &CauseView| all || selected.iter().any(|(cause, _)| *cause == view.cause);
        Ok(views.filter(meant).collect())
    }

    /// One letter; none when there is none with this number.
    ///
    /// # Errors
    /// [`StoreError`] of the read.
    pub async fn show(&self, id: u64, payload: bool) -> Result<Option<LetterView>, StoreError> {
        match self.read(&[id]).await?.pop() {
            Some(letter) => self.view(&letter, payload).await.map(Some),
            None => Ok(None),
        }
    }

    /// Gives letters up, with ledger lines; returns how many. When it returns, that survives a power cut.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn drop(&self, which: &Selection) -> Result<u64, StoreError> {
        let dropped = {
            let mut outbox = self.pipeline.outbox.borrow_mut();
            let selected = outbox.select_letters(which, false);
            let each = selected.iter().filter(|(cause, note)| {
                outbox.lose_letter(note.id, &format!("dropped by the operator: {cause}"))
            });
            each.count() as u64
        };
        self.commit().await?;
        Ok(dropped)
    }

    /// Letters with these numbers; what the store does not have yet is written first.
    async fn read(&self, ids: &[u64]) -> Result<Vec<StoredLetter>, StoreError> {
        let ids = ids.to_vec();
        if self.pipeline.outbox.borrow().has_unwritten_letters() {
            self.commit().await?;
        }
        self.pipeline.store.call(move |store| store.letters(&ids)).await
    }

    /// Commits what the outbox knows; an error when the disk does not take it.
    async fn commit(&self) -> Result<(), StoreError> {
        intake::commit_progress(self.pipeline).await?;
        let trouble = self.pipeline.disk.trouble().map(|trouble| trouble.text);
        match trouble.filter(|_| self.pipeline.outbox.borrow().has_changes()) {
            Some(trouble) => Err(StoreError::Io(std::io::Error::other(trouble))),
            None => Ok(()),
        }
    }

    async fn view(&self, letter: &StoredLetter, payload: bool) -> Result<LetterView, StoreError> {
        let stored = &letter.message;
        let message = &stored.message;
        let (received, _) = receive_time(&message.stamp, &self.pipeline.dating.borrow());
        let destination = letter.destination.map(|id| {
            let known = self.destinations.0.iter().find(|d| d.id == id);
            known.map_or_else(|| format!("number {id} (not configured)"), |d| d.name.to_string())
        });
        let hash = match letter.revision.0 {
            0 => None,
            _ => {
                let set = self.pipeline.pack_set(letter.revision).await?;
                Some(set.revision().chars().take(12).collect())
            }
        };
        let source = self.sources.get(&message.source);
        Ok(LetterView {
            id: letter.id,
            position: stored.position,
            received: received.to_string(),
            failed: Timestamp::from_ticks(letter.wall).map_or_else(String::new, |time| time.to_string()),
            source: source.map_or_else(
                || format!("number {} (not configured)", message.source.0),
                |name| name.to_string(),
            ),
            destination,
            match_number: letter.match_number.map(crate::normalize::match_of),
            stage: letter.stage.clone(),
            error: letter.error.clone(),
            revision: (letter.revision.0, hash),
            bytes: message.payload.len() as u64,
            message: payload.then(|| {
                let bytes = message.payload.bytes();
                let text = std::str::from_utf8(bytes).ok().map(str::to_owned);
                MessageView {
                    topic: message.topic.as_deref().map(str::to_owned),
                    device: message.device_id.as_deref().map(str::to_owned),
                    properties: message.properties.clone(),
                    base64: text.is_none().then(|| BASE64_STANDARD.encode(bytes)),
                    text,
                    truncated: matches!(message.kind, PayloadKind::Truncated { .. }),
                }
            }),
        })
    }
}

/// Answer to `drop`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Dropped {
    /// Letters given up.
    pub dropped: u64,
}

fn json(answer: impl Serialize) -> String {
    serde_json::to_string(&answer).unwrap_or_default()
}
