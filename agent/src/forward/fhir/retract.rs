//! Finds readings that are with somebody else than whose they are, and takes them away there: an Observation that keeps
//! some readings is replaced as `corrected`, one that keeps none becomes `entered-in-error`, each under the version that was
//! read.

mod verdict;

pub(super) use verdict::{is_retracted, lifted};

use super::FhirDestination;
use super::answer::{Answer, hits, version_of};
use super::identity::{Looked, escape};
use super::server::{Down, Entry};
use crate::associations::{Change, Ticks};
use crate::forward::http::percent_encode;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::{SERVICE_SYSTEM, resource_id};
use serde_json::Value;
use std::sync::Arc;
use verdict::{Truth, Verdict, identifier_of, verdict};

/// Observations on a page of the search.
const PAGE: usize = 200;
/// Ticks of 100 ns in a second: servers compare times by the second.
const SECOND: Ticks = 10_000_000;

/// A search for what is wrong, page by page.
pub struct Search {
    name: Arc<str>,
    looked: Looked,
    turns: Vec<Ticks>,
    from: Ticks,
    to: Ticks,
    next: Next,
}

enum Next {
    First(String),
    Page(String),
    None,
}

/// Observations that have to be replaced.
pub struct Wrong {
    writes: Vec<(Entry, Option<String>)>,
    starts: Vec<Ticks>,
    /// The stretch of which readings will be gone.
    pub gone: Option<(Ticks, Ticks)>,
}

impl Wrong {
    /// How many of them hold readings that were taken before.
    pub fn older_than(&self, instant: Ticks) -> u64 {
        self.starts.iter().filter(|start| **start < instant).count() as u64
    }
}

/// Why it cannot go on now.
pub enum Trouble {
    /// The server cannot be reached.
    Down(Down),
    /// It refuses this; what to do.
    Refused(String),
}

/// What became of a page.
#[derive(Default)]
pub struct Retracted {
    /// Observations that were replaced.
    pub replaced: u64,
    /// Somebody was quicker with some: they have to be read again.
    pub again: bool,
}

impl FhirDestination {
    /// Looks at the device and begins a search; none when the server has nothing of it.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn search_wrong(&mut self, change: &Change) -> Result<Option<Search>, Trouble> {
        let from = change.from.unwrap_or(Ticks::MIN);
        let to = change.to.unwrap_or(Ticks::MAX);
        let looked = self
            .resolver
            .look(&mut self.server, &change.device, from, to)
            .await;
        let looked = looked
            .map_err(Trouble::Down)?
            .ok_or_else(|| Trouble::Refused("the Device or a Patient cannot be looked up now".to_owned()))?;
        let Some(device) = &looked.device else {
            return Ok(None);
        };
        let mut path = format!(
            "Observation?device={}&_count={PAGE}",
            percent_encode(&format!("Device/{}", escape(device)))
        );
        for (prefix, limit) in [
            ("ge", from.saturating_sub(SECOND)),
            ("lt", to.saturating_add(SECOND)),
        ] {
            if let Some(limit) = Timestamp::from_ticks(limit) {
                path.push_str(&format!("&date={prefix}{}", percent_encode(&limit.to_string())));
            }
        }
        Ok(Some(Search {
            name: Arc::clone(&change.device),
            turns: self.resolver.turns(&change.device),
            looked,
            from,
            to,
            next: Next::First(path),
        }))
    }

    /// The next page of a search; none at its end.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn next_wrong(&mut self, search: &mut Search) -> Result<Option<Wrong>, Trouble> {
        let bundle = match std::mem::replace(&mut search.next, Next::None) {
            Next::None => return Ok(None),
            Next::First(path) => {
                let mut exchange = self.server.send(&[Entry::get(path)]).await;
                match (exchange.answers.pop().flatten(), exchange.down) {
                    (_, Some(down)) => return Err(Trouble::Down(down)),
                    (Some(answer), None) if answer.is_success() => answer.resource,
                    (answer, None) => return Err(Trouble::Refused(refusal(answer.as_ref()))),
                }
            }
            Next::Page(url) => self.server.page(&url).await.map_err(Trouble::Down)?,
        };
        let (found, next) = hits(bundle.unwrap_or_default());
        search.next = next.map_or(Next::None, Next::Page);
        let device = search.looked.device.clone().unwrap_or_default();
        let whose = |instant: Ticks| self.resolver.whose(&search.name, instant, &search.looked);
        let truth = Truth {
            from: search.from,
            to: search.to,
            whose: &whose,
            turns: &search.turns,
        };
        let mut wrong = Wrong {
            writes: Vec::new(),
            starts: Vec::new(),
            gone: None,
        };
        for observation in &found {
            let Verdict::Replace { resource, gone } = verdict(observation, &device, &truth) else {
                continue;
            };
            let id = observation.get("id").and_then(Value::as_str).unwrap_or_default();
            let path = format!("Observation/{id}");
            let identity = identifier_of(observation).map(|value| resource_id(SERVICE_SYSTEM, value));
            wrong
                .writes
                .push((Entry::put(path, resource, version_of(observation)), identity));
            wrong.starts.push(gone.0);
            let (least, most) = wrong.gone.unwrap_or(gone);
            wrong.gone = Some((least.min(gone.0), most.max(gone.1)));
        }
        Ok(Some(wrong))
    }

    /// Replaces what was found.
    ///
    /// # Errors
    /// [`Trouble`]; some may be replaced then.
    pub async fn retract(&mut self, wrong: Wrong) -> Result<Retracted, Trouble> {
        let (entries, identities): (Vec<Entry>, Vec<_>) = wrong.writes.into_iter().unzip();
        for identity in identities.into_iter().flatten() {
            self.saver.forget(&identity);
        }
        let exchange = self.server.send(&entries).await;
        let mut retracted = Retracted::default();
        for answer in exchange.answers.iter().flatten() {
            match answer.status {
                200..300 => retracted.replaced += 1,
                404 | 409 | 410 | 412 => retracted.again = true,
                _ if answer.is_passing() => retracted.again = true,
                _ => return Err(Trouble::Refused(refusal(Some(answer)))),
            }
        }
        match exchange.down {
            Some(down) => Err(Trouble::Down(down)),
            None => Ok(retracted),
        }
    }
}

fn refusal(answer: Option<&Answer>) -> String {
    let said = answer.map(Answer::text).unwrap_or_default();
    format!(
        "the server does not let Observations be searched by device and date, or be corrected ({said}): allow it there, or \
         correct them by hand"
    )
}
