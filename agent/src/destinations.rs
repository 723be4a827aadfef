//! Destinations for the operator: what each still has to get, also those that are not in the configuration any more.
//!
//! One that was removed keeps its readings, since it may come back: with a typing error in `agent.toml`, or after a test with
//! another one. Until then they pin the journal, so the status names it, and `destination drop` gives them up.
//!
//! The same code answers the running agent's control socket and the command line while the service is down.

use crate::forward::Destinations;
use crate::intake;
use crate::pipeline::Pipeline;
use crate::store::StoreError;
use serde::{Deserialize, Serialize};

/// Why the readings of a dropped destination are in the ledger.
const DROPPED: &str = "destination dropped by the operator";

/// What can be asked about destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum DestinationQuestion {
    /// All that the store knows.
    List,
    /// Give up what a removed one has not got.
    Drop {
        /// Its name.
        name: String,
    },
}

/// A destination as the store knows it: counts of matches, or of messages where it takes raw messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationView {
    /// Its name.
    pub name: String,
    /// It is in the configuration.
    pub configured: bool,
    /// Confirmed.
    pub delivered: u64,
    /// Not sent yet; `waiting` ones included.
    pub unsent: u64,
    /// Those of them that wait for a device, an association or the clock.
    pub waiting: u64,
    /// Given up on purpose.
    pub lost: u64,
}

/// Answer to `drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Matches or messages given up.
    pub dropped: u64,
}

/// Why a destination was not dropped.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// The store has never heard of it.
    #[error("the store knows no destination {name}; it knows: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The service sends to it.
    #[error(
        "destination {0} is in the configuration: take it out of agent.toml and restart the service first, so that nothing new is \
         put aside for it"
    )]
    Configured(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an operator can do, over what the loops share.
pub struct Desk<'a> {
    /// Shared state of the loops.
    pub pipeline: &'a Pipeline,
    /// The destinations of the configuration.
    pub destinations: &'a Destinations,
}

impl Desk<'_> {
    /// The answer to a question, as JSON.
    pub async fn answer(&self, question: &DestinationQuestion) -> String {
        let answer = match question {
            DestinationQuestion::List => self.list().await.map(json).map_err(DropError::from),
            DestinationQuestion::Drop { name } => {
                self.drop(name).await.map(|dropped| json(Dropped { dropped }))
            }
        };
        answer.unwrap_or_else(|error| json(serde_json::json!({ "error": error.to_string() })))
    }

    /// All destinations that the store knows, in the order of their first use.
    ///
    /// # Errors
    /// [`StoreError`] of the read.
    pub async fn list(&self) -> Result<Vec<DestinationView>, StoreError> {
        let known = self.pipeline.store.call(|store| store.destinations()).await?;
        Ok(known.into_iter().map(|(id, name)| self.view(id, name)).collect())
    }

    /// Those that are not configured and still pin something.
    ///
    /// # Errors
    /// [`StoreError`] of the read.
    pub async fn left_over(&self) -> Result<Vec<DestinationView>, StoreError> {
        let mut all = self.list().await?;
        all.retain(|view| !view.configured && view.unsent > 0);
        Ok(all)
    }

    /// Gives up what a removed destination has not got, with lines in the ledger; returns how many matches or messages that
    /// were. When it returns, that survives a power cut.
    ///
    /// # Errors
    /// [`DropError`]; nothing was given up then, unless it is the store's: the next commit writes it.
    pub async fn drop(&self, name: &str) -> Result<u64, DropError> {
        let known = self.pipeline.store.call(|store| store.destinations()).await?;
        let Some((id, _)) = known.iter().find(|(_, known)| known == name) else {
            return Err(DropError::Unknown {
                name: name.to_owned(),
                known: known
                    .iter()
                    .map(|(_, name)| name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        };
        if self.is_configured(*id) {
            return Err(DropError::Configured(name.to_owned()));
        }
        let through = self.pipeline.head.get().saturating_sub(1);
        let dropped = self
            .pipeline
            .outbox
            .borrow_mut()
            .drop_destination(*id, through, DROPPED);
        intake::commit_progress(self.pipeline).await?;
        Ok(dropped)
    }

    fn is_configured(&self, id: u32) -> bool {
        self.destinations.0.iter().any(|d| d.id == id)
    }

    fn view(&self, id: u32, name: String) -> DestinationView {
        let outbox = self.pipeline.outbox.borrow();
        let counters = outbox.progress().destinations.get(&id);
        let (due, waiting) = outbox.backlog(id);
        let configured = self.destinations.0.iter().find(|d| d.id == id);
        let follows = configured.map_or_else(|| outbox.followed(id), |d| d.takes_messages);
        let behind = match counters {
            Some(counters) if follows => self.pipeline.head.get().saturating_sub(counters.cursor + 1),
            _ => 0,
        };
        DestinationView {
            name,
            configured: configured.is_some(),
            delivered: counters.map_or(0, |d| d.delivered),
            unsent: due + waiting + behind,
            waiting,
            lost: counters.map_or(0, |d| d.lost),
        }
    }
}

fn json(answer: impl Serialize) -> String {
    serde_json::to_string(&answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{AtRest, at_rest};
    use crate::config::{self, Config};
    use crate::store::Store;
    use std::path::Path;
    use std::sync::Arc;

    const RAW: &str = "[[destination]]\nname = \"raw\"\nkind = \"event-hub\"\nnamespace = \"ward.servicebus.windows.net\"\nhub = \"data\"\n\
        payload = \"message\"\nauth = { kind = \"sas\", key_name = \"g\", key = \"file:hub\" }\n";

    /// A configuration with a FHIR server called `ehr`, and what is in `more`.
    fn configuration(folder: &Path, name: &str, more: &str) -> Config {
        let path = folder.join("agent.toml");
        std::fs::write(folder.join("hub"), "a2V5").unwrap();
        let text = format!(
            "[gateway]\nid = \"g1\"\n[store]\ndir = \"{0}/store\"\n[mappings]\ndir = \"{0}\"\n[[destination]]\nname = \"{name}\"\nkind = \
             \"fhir\"\nurl = \"http://127.0.0.1:1/fhir\"\n{more}",
            folder.display()
        );
        std::fs::write(&path, text).unwrap();
        drop(Store::open(&folder.join("store")).unwrap());
        config::load(&path).unwrap()
    }

    fn desk(rest: &AtRest) -> Desk<'_> {
        Desk {
            pipeline: &rest.pipeline,
            destinations: &rest.destinations,
        }
    }

    fn measurement(device: &str) -> iomt_mapping::Measurement {
        iomt_mapping::Measurement {
            key: Arc::new(iomt_mapping::GroupKey {
                device_id: device.to_owned(),
                type_name: "pulse".to_owned(),
                ..Default::default()
            }),
            occurrence_time: iomt_mapping::Timestamp::from_ticks(0).unwrap(),
            properties: Vec::new(),
        }
    }

    /// Three readings for the FHIR server called `name`, from two devices.
    async fn put_aside(folder: &Path, name: &str) {
        let rest = at_rest(&configuration(folder, name, RAW)).unwrap();
        let id = rest.destinations.0.first().unwrap().id;
        {
            let mut outbox = rest.pipeline.outbox.borrow_mut();
            for (position, device) in [(1, "a"), (2, "a"), (3, "b")] {
                let series = outbox.series_of("ward", &measurement(device));
                outbox.add(id, series, None, position, 0, 0);
            }
        }
        intake::commit_progress(&rest.pipeline).await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_destination_that_was_removed_keeps_its_readings_until_it_is_dropped_and_the_ledger_says_so() {
        let folder = tempfile::tempdir().unwrap();
        put_aside(folder.path(), "ehr").await;
        let renamed = configuration(folder.path(), "ehr-2", "");
        {
            let rest = at_rest(&renamed).unwrap();
            let left = desk(&rest).left_over().await.unwrap();
            assert_eq!(
                left.iter()
                    .map(|d| (d.name.as_str(), d.unsent))
                    .collect::<Vec<_>>(),
                [("ehr", 3)]
            );
            assert_eq!(desk(&rest).drop("ehr").await.unwrap(), 3);
        }
        let rest = at_rest(&renamed).unwrap();
        assert_eq!(desk(&rest).left_over().await.unwrap(), []);
        let views = desk(&rest).list().await.unwrap();
        let ehr = views.iter().find(|d| d.name == "ehr").unwrap();
        assert_eq!((ehr.unsent, ehr.lost), (0, 3), "matches = delivered + lost");
        let ledger = rest.pipeline.store.call(|store| store.ledger()).await.unwrap();
        let ledger: Vec<_> = ledger
            .iter()
            .map(|(count, reason)| (*count, reason.as_str()))
            .collect();
        assert_eq!(
            ledger,
            [(1, DROPPED), (2, DROPPED)],
            "a line per device and type, the newest first"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn neither_a_configured_destination_nor_an_unknown_one_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        put_aside(folder.path(), "ehr").await;
        let rest = at_rest(&configuration(folder.path(), "ehr", "")).unwrap();
        let error = desk(&rest).drop("ehr").await.unwrap_err().to_string();
        assert!(error.contains("take it out of agent.toml"), "{error}");
        let error = desk(&rest).drop("her").await.unwrap_err().to_string();
        assert!(error.contains("it knows: ehr, raw"), "{error}");
        assert_eq!(
            desk(&rest).list().await.unwrap().first().map(|d| d.unsent),
            Some(3)
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_dropped_destination_for_raw_messages_pins_the_journal_no_more_and_takes_up_from_there_when_it_comes_back()
     {
        let folder = tempfile::tempdir().unwrap();
        let with = configuration(folder.path(), "ehr", RAW);
        let id = {
            let rest = at_rest(&with).unwrap();
            let raw = rest.destinations.0.last().unwrap().id;
            rest.pipeline.outbox.borrow_mut().destination_mut(raw).cursor = 4;
            rest.pipeline.head.set(11);
            intake::commit_progress(&rest.pipeline).await.unwrap();
            raw
        };
        {
            let rest = at_rest(&configuration(folder.path(), "ehr", "")).unwrap();
            rest.pipeline.head.set(11);
            let ehr = rest.destinations.0.first().unwrap().id;
            assert_eq!(rest.pipeline.outbox.borrow().followers(&[ehr], &[]), [id]);
            assert_eq!(desk(&rest).drop("raw").await.unwrap(), 6, "positions 5 to 10");
            assert_eq!(rest.pipeline.outbox.borrow().followers(&[ehr], &[]), [0; 0]);
            assert_eq!(desk(&rest).drop("raw").await.unwrap(), 0, "once");
        }
        let rest = at_rest(&with).unwrap();
        let outbox = rest.pipeline.outbox.borrow();
        assert_eq!(
            outbox
                .progress()
                .destinations
                .get(&id)
                .map(|d| (d.cursor, d.dropped)),
            Some((10, false))
        );
    }
}
