//! Finds readings that are with somebody else than whose they are, and takes them away there: an Observation that keeps
//! some readings is replaced as `corrected`, one that keeps none becomes `entered-in-error`, each under the version that was
//! read.

mod moved;
mod slots;
mod verdict;

pub use moved::Held;
pub(super) use moved::Moved;
pub(super) use slots::fill;
pub(super) use verdict::{is_retracted, lifted};

use super::FhirDestination;
use super::answer::{hits, version_of};
use super::identity::{Looked, escape};
use super::server::{Down, Entry};
use crate::associations::{Change, Ticks};
use crate::forward::http::percent_encode;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::{SERVICE_SYSTEM, resource_id};
use moved::{moves, remainder};
use serde_json::Value;
use std::collections::HashMap;
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
    /// Observations that keep some readings, as they are and as they will be.
    blanked: Vec<(Value, Value)>,
    /// The stretch of which readings will be gone.
    pub gone: Option<(Ticks, Ticks)>,
}

impl Wrong {
    /// Whether it has to be known which readings the journal has.
    pub fn asks_the_journal(&self) -> bool {
        !self.blanked.is_empty()
    }
}

/// What became of the readings that the journal does not have any more.
#[derive(Default)]
pub struct Restored {
    /// Observations that were written.
    pub written: u64,
    /// Somebody was quicker, or the search may not tell yet: it has to be done again.
    pub again: bool,
    /// Readings or Observations that are nobody's now; they stay on the server as `entered-in-error`.
    pub of_nobody: u64,
    /// Those that cannot be moved: the device changed hands within a slot, or the place was deleted by somebody.
    pub impossible: u64,
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
        let Some(found) = self.page_of(search).await? else {
            return Ok(None);
        };
        let device = search.looked.device.clone().unwrap_or_default();
        let whose = |instant: Ticks| self.resolver.whose(&search.name, instant, &search.looked);
        let truth = search.truth(&whose);
        let mut wrong = Wrong {
            writes: Vec::new(),
            blanked: Vec::new(),
            gone: None,
        };
        for observation in found {
            let Verdict::Replace { resource, gone } = verdict(&observation, &device, &truth) else {
                continue;
            };
            let id = observation.get("id").and_then(Value::as_str).unwrap_or_default();
            let path = format!("Observation/{id}");
            let identity = identifier_of(&observation).map(|value| resource_id(SERVICE_SYSTEM, value));
            let version = version_of(&observation);
            if !is_retracted(&resource) {
                wrong.blanked.push((observation, resource.clone()));
            }
            wrong.writes.push((Entry::put(path, resource, version), identity));
            let (least, most) = wrong.gone.unwrap_or(gone);
            wrong.gone = Some((least.min(gone.0), most.max(gone.1)));
        }
        Ok(Some(wrong))
    }

    /// Moves what was taken from somebody, on a page of a search, to whose it is, but for what `held` has; none at the end
    /// of the search.
    ///
    /// # Errors
    /// [`Trouble`]; some may be moved then.
    pub async fn restore_next(
        &mut self,
        search: &mut Search,
        held: &Held,
    ) -> Result<Option<Restored>, Trouble> {
        let Some(found) = self.page_of(search).await? else {
            return Ok(None);
        };
        let device = search.looked.device.clone().unwrap_or_default();
        let whose = |instant: Ticks| self.resolver.whose(&search.name, instant, &search.looked);
        let truth = search.truth(&whose);
        let mut restored = Restored::default();
        let mut moved = Vec::new();
        for observation in found.iter().filter(|one| is_retracted(one)) {
            let moves = moves(observation, &device, &truth, held);
            restored.of_nobody += moves.of_nobody;
            restored.impossible += moves.unclear;
            moved.extend(moves.moved);
        }
        self.keep_encounters(&mut moved).await?;
        let placed = self.saver.place(&mut self.server, moved).await;
        restored.written = placed.written;
        restored.again = placed.again;
        restored.impossible += placed.impossible;
        match (placed.down, placed.refused) {
            (Some(down), _) => Err(Trouble::Down(down)),
            (None, Some(said)) => Err(Trouble::Refused(refusal(&said))),
            (None, None) => Ok(Some(restored)),
        }
    }

    /// An encounter that a message named goes along; one of another patient does not.
    async fn keep_encounters(&mut self, moved: &mut [Moved]) -> Result<(), Trouble> {
        let mut ids: Vec<String> = moved.iter().filter_map(|one| one.encounter.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let entries: Vec<Entry> = ids
            .iter()
            .map(|id| Entry::get(format!("Encounter/{id}")))
            .collect();
        let exchange = self.server.send(&entries).await;
        if let Some(down) = exchange.down {
            return Err(Trouble::Down(down));
        }
        let mut subjects: HashMap<String, String> = HashMap::new();
        for (id, answer) in ids.into_iter().zip(exchange.answers) {
            let resource = answer.and_then(|answer| answer.resource);
            let subject = resource
                .as_ref()
                .and_then(|one| one.get("subject")?.get("reference")?.as_str());
            if let Some(patient) = subject.and_then(|text| text.strip_prefix("Patient/")) {
                subjects.insert(id, patient.to_owned());
            }
        }
        for one in moved {
            let subject = one.encounter.as_ref().and_then(|id| subjects.get(id));
            if subject.is_some_and(|subject| Some(subject.as_str()) == one.patient()) {
                one.keep_encounter();
            }
        }
        Ok(())
    }

    async fn page_of(&mut self, search: &mut Search) -> Result<Option<Vec<Value>>, Trouble> {
        let bundle = match std::mem::replace(&mut search.next, Next::None) {
            Next::None => return Ok(None),
            Next::First(path) => {
                let mut exchange = self.server.send(&[Entry::get(path)]).await;
                match (exchange.answers.pop().flatten(), exchange.down) {
                    (_, Some(down)) => return Err(Trouble::Down(down)),
                    (Some(answer), None) if answer.is_success() => answer.resource,
                    (answer, None) => {
                        let said = answer.map(|answer| answer.text()).unwrap_or_default();
                        return Err(Trouble::Refused(refusal(&said)));
                    }
                }
            }
            Next::Page(url) => self.server.page(&url).await.map_err(Trouble::Down)?,
        };
        let (found, next) = hits(bundle.unwrap_or_default());
        search.next = next.map_or(Next::None, Next::Page);
        Ok(Some(found))
    }

    /// Replaces what was found. Readings that would be gone with it, and that `held` does not have, are left as an
    /// Observation of their own first.
    ///
    /// # Errors
    /// [`Trouble`]; some may be replaced then.
    pub async fn retract(&mut self, wrong: Wrong, held: &Held) -> Result<Retracted, Trouble> {
        let remainders = wrong
            .blanked
            .iter()
            .filter_map(|(before, after)| remainder(before, after, held));
        let placed = self.saver.place(&mut self.server, remainders.collect()).await;
        match (placed.down, placed.refused) {
            (Some(down), _) => return Err(Trouble::Down(down)),
            (None, Some(said)) => return Err(Trouble::Refused(refusal(&said))),
            (None, None) if placed.again => {
                return Ok(Retracted {
                    again: true,
                    ..Retracted::default()
                });
            }
            (None, None) => {}
        }
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
                _ => return Err(Trouble::Refused(refusal(&answer.text()))),
            }
        }
        match exchange.down {
            Some(down) => Err(Trouble::Down(down)),
            None => Ok(retracted),
        }
    }
}

impl Search {
    fn truth<'a>(&'a self, whose: &'a dyn Fn(Ticks) -> Option<(String, Option<String>)>) -> Truth<'a> {
        Truth {
            from: self.from,
            to: self.to,
            whose,
            turns: &self.turns,
        }
    }
}

fn refusal(said: &str) -> String {
    format!(
        "the server does not let Observations be searched by device and date, or be corrected ({said}): allow it there, or \
         correct them by hand"
    )
}
