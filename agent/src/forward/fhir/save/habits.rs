//! What a server has shown of its ways: whether it honours `If-None-Match`, and whether clients may choose ids.
//!
//! Nothing is believed of a server that it has not shown, because many ignore what they do not know: `If-None-Match` is
//! tried first beside `If-Match` on an update, where it does no harm. A server that honours it answers 412 although the
//! version is right; one that ignores it carries out an update that was due anyway.

use crate::clock;
use crate::forward::fhir::answer::Answer;
use crate::forward::fhir::server::{Down, Entry, Server};
use crate::forward::http::percent_encode;
use crate::sabotage::{self, Sabotage};
use iomt_mapping::fhir::Identity;
use serde_json::Value;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::identity::escape;

/// How often the creations that searches tell by now are forgotten: microseconds.
const FORGOTTEN_EVERY_US: u64 = 5_000_000;

fn hash(identity: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum NoneMatch {
    #[default]
    Unknown,
    /// This Observation was refused at this version; if it still has it, `If-None-Match` was the reason.
    Asked {
        identity: String,
        version: String,
    },
    Honoured,
    Ignored,
}

/// What is known of a server.
#[derive(Debug)]
pub struct Habits {
    /// How long a search may lag behind a write: microseconds.
    index_lag_us: u64,
    /// When the first Observation was looked for: monotonic microseconds. What was written shortly before is not known.
    began_us: Option<u64>,
    none_match: NoneMatch,
    /// The server chooses ids: writes are conditional on the identifier.
    own_ids: bool,
    /// Whether the server was asked for `updateCreate`.
    asked: bool,
    /// Observations that were created, or may have been although no answer came, by hash, and until when a search may not
    /// tell. A hash that two share lets one of them wait for nothing.
    unindexed: HashMap<u64, u64>,
    /// When those that searches tell by now were forgotten last: monotonic microseconds.
    forgotten_us: u64,
}

impl Habits {
    /// Nothing is known yet.
    pub fn new(index_lag_us: u64) -> Habits {
        Habits {
            index_lag_us,
            began_us: None,
            none_match: NoneMatch::default(),
            own_ids: false,
            asked: false,
            unindexed: HashMap::new(),
            forgotten_us: 0,
        }
    }

    /// The first write of an Observation that nothing is known of.
    pub fn creation(&self, identity: &Identity, mut resource: Value) -> Entry {
        if self.own_ids {
            if let Some(resource) = resource.as_object_mut() {
                resource.shift_remove("id");
            }
            let token = format!("{}|{}", escape(identity.system), escape(&identity.value));
            let path = format!("Observation?identifier={}", percent_encode(&token));
            return Entry::put(path, resource, None);
        }
        let mut entry = Entry::put(format!("Observation/{}", identity.id), resource, None);
        entry.if_none_match = self.none_match == NoneMatch::Honoured;
        entry
    }

    /// Lets one update of a batch find out about `If-None-Match`.
    pub fn probe(&self, entries: &mut [Entry]) {
        if self.none_match == NoneMatch::Unknown
            && let Some(entry) = entries.iter_mut().find(|entry| entry.if_match.is_some())
        {
            entry.if_none_match = true;
        }
    }

    /// Learns from the answer to a probe; whether the write has to be tried again without it.
    pub fn learn(&mut self, identity: &Identity, entry: &Entry, answer: &Answer) -> bool {
        let Some(version) = entry.if_match.as_ref().filter(|_| entry.if_none_match) else {
            return false;
        };
        self.none_match = match answer.status {
            412 => NoneMatch::Asked {
                identity: identity.id.clone(),
                version: version.clone(),
            },
            409 => NoneMatch::Unknown,
            _ if answer.is_passing() => NoneMatch::Unknown,
            _ => NoneMatch::Ignored,
        };
        // Conflicts are read again anyway.
        !answer.is_success() && !answer.is_passing() && !matches!(answer.status, 409 | 412)
    }

    /// Notes the version that was read of an Observation.
    pub fn seen(&mut self, identity: &str, version: Option<&str>) {
        if let NoneMatch::Asked {
            identity: asked,
            version: then,
        } = &self.none_match
            && asked == identity
        {
            self.none_match = match version {
                Some(version) if version == then => NoneMatch::Honoured,
                _ => NoneMatch::Unknown,
            };
        }
    }

    /// Whether a refused creation was refused because clients may not choose ids; asks the server once.
    ///
    /// # Errors
    /// When the server cannot be asked now: the answer says nothing yet.
    pub async fn refuses_our_ids(
        &mut self,
        server: &mut Server,
        entry: &Entry,
        answer: &Answer,
    ) -> Result<bool, Down> {
        let our_id = entry.if_match.is_none() && !entry.path.contains('?');
        if !our_id || !matches!(answer.status, 400 | 404 | 405 | 422) {
            return Ok(false);
        }
        if answer.status == 405 {
            self.own_ids = true;
        } else if !self.own_ids && !self.asked {
            match server.takes_client_ids().await {
                Ok(takes) => {
                    self.asked = true;
                    self.own_ids = takes == Some(false);
                }
                Err(down) => return Err(down),
            }
        }
        Ok(self.own_ids)
    }

    /// This write was carried out, or may have been: where the server chooses ids, only a search tells of a creation once it is
    /// forgotten here, and the search lags behind.
    pub fn sent(&mut self, identity: &Identity, entry: &Entry) {
        if self.own_ids && entry.if_match.is_none() {
            let now = clock::monotonic_us();
            if now >= self.forgotten_us + FORGOTTEN_EVERY_US {
                self.unindexed.retain(|_, until| *until > now);
                self.forgotten_us = now;
            }
            self.unindexed.insert(hash(&identity.id), now + self.index_lag_us);
        }
    }

    /// Whether a search that finds nothing may only lag behind. That holds for everything for a while after the start:
    /// the process before this one may have written it and ended before it was confirmed.
    pub fn may_exist(&mut self, identity: &str) -> bool {
        if sabotage::is_on(Sabotage::ResendBlindly) {
            return false;
        }
        let now = clock::monotonic_us();
        let began = *self.began_us.get_or_insert(now);
        if self.own_ids && now < began + self.index_lag_us {
            return true;
        }
        self.unindexed
            .get(&hash(identity))
            .is_some_and(|until| *until > now)
    }
}
