//! What the operator enters about devices and patients: taken by the running agent, or by a command while it is down.

use super::Agent;
use crate::associations::{Answer, Book, Command, Planned, Source, Ticks, Who};
use crate::clock;
use crate::config::Config;
use crate::corrections::{Correction, Corrections, Windows};
use crate::store::{Store, StoreError};
use iomt_mapping::Timestamp;
use serde_json::{Value, json};

impl Agent {
    /// Takes an entry of the operator: when it returns, the entry and what it corrects are safe, and readings that waited
    /// for it are tried.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub async fn associate(&self, command: &Command) -> Result<Value, String> {
        let pipeline = &self.pipeline;
        let destinations: Vec<u32> = self
            .destinations
            .iter()
            .filter(|entry| entry.kind == "fhir")
            .map(|entry| entry.handle.id)
            .collect();
        let now = pipeline.trusted_now();
        let planned = pipeline.associations.borrow().plan(command, now, &destinations)?;
        let numbered = pipeline
            .corrections
            .borrow_mut()
            .number(planned.corrections.clone(), now);
        let corrections = numbered.clone();
        let stored = pipeline
            .store
            .call(move |store| store.enter_association(planned, &corrections))
            .await;
        let planned = stored.map_err(|error| format!("{error}; nothing was entered"))?;
        pipeline.associations.borrow_mut().take(&planned);
        let answer = outcome(&planned, &numbered);
        for correction in numbered {
            pipeline.corrections.borrow_mut().take(correction);
        }
        pipeline.note_associations();
        pipeline.normalized.notify_waiters();
        Ok(answer)
    }

    /// The entries of the operator, and whose each known device is now, by destination.
    pub fn associations(&self) -> Value {
        let book = self.pipeline.associations.borrow();
        let now = clock::wall().ticks();
        let mut devices = Vec::new();
        for entry in &self.destinations {
            let mut of_destination: Vec<Value> = book
                .all_records()
                .filter(|(destination, ..)| *destination == entry.handle.id)
                .map(|(destination, device, _)| {
                    let mut line = whose(&book.at(destination, device, now));
                    if let Some(line) = line.as_object_mut() {
                        line.insert("device".to_owned(), json!(&**device));
                        line.insert("destination".to_owned(), json!(&*entry.handle.name));
                    }
                    line
                })
                .collect();
            of_destination.sort_by_key(|line| line["device"].as_str().map(str::to_owned));
            devices.append(&mut of_destination);
        }
        json!({ "entries": entries(&book), "devices": devices, "doubt": doubt(&book) })
    }
}

/// Takes an entry while no agent runs.
///
/// # Errors
/// What is wrong with it, or with the store.
pub fn associate_in_store(
    config: &Config,
    store: &mut Store,
    command: &Command,
    now: Option<Ticks>,
) -> Result<Result<Value, String>, StoreError> {
    let book = store.association_book()?;
    let mut configured = Vec::new();
    for destination in &config.destinations {
        configured.push(store.destination(&destination.name)?);
    }
    let windows = Windows::of(&config.destinations, &configured);
    let destinations = store.destination_numbers()?;
    let planned = match book.plan(command, now, &destinations) {
        Ok(planned) => planned,
        Err(wrong) => return Ok(Err(wrong)),
    };
    let numbered =
        Corrections::restore(store.corrections()?, windows).number(planned.corrections.clone(), now);
    let planned = store.enter_association(planned, &numbered)?;
    Ok(Ok(outcome(&planned, &numbered)))
}

/// The entries of a store while no agent runs.
///
/// # Errors
/// SQLite's.
pub fn associations_in_store(store: &Store) -> Result<Value, StoreError> {
    let book = store.association_book()?;
    Ok(json!({ "entries": entries(&book), "doubt": doubt(&book) }))
}

/// What is to be done where entries were lost with a damaged store. Lost sightings need nothing: what waits for them says so.
pub(super) fn doubt(book: &Book) -> Option<&'static str> {
    book.doubt().entries.then_some(
        "associations were lost with a damaged store: readings of devices without an entry wait, so that none goes to the wrong \
         patient. See what is there with `bedside-agent association list`, enter what is missing with `association set` and \
         `association end`, then say so with `association complete`",
    )
}

fn outcome(planned: &Planned, corrections: &[Correction]) -> Value {
    let number = planned.entry.as_ref().or(planned.retracted.as_ref());
    json!({ "entry": number.map(|entry| entry.number), "corrections": corrections.len() })
}

fn entries(book: &Book) -> Vec<Value> {
    let text = |who: &Option<Who>, kind: &str| who.as_ref().map(|who| who.text(kind));
    let entries = book.all_entries().map(|entry| {
        json!({
            "number": entry.number,
            "device": &*entry.device,
            "patient": text(&entry.patient, "Patient"),
            "encounter": text(&entry.encounter, "Encounter"),
            "from": entry.from.and_then(time),
            "to": entry.to.and_then(time),
            "entered": time(entry.entered),
        })
    });
    entries.collect()
}

fn time(ticks: Ticks) -> Option<String> {
    Timestamp::from_ticks(ticks).map(|time| time.to_string())
}

fn whose(answer: &Answer) -> Value {
    match answer {
        Answer::Patient { patient, source, .. } => {
            let source = match source {
                Source::Operator => "operator",
                Source::DeviceUseStatement => "DeviceUseStatement",
                Source::Device => "Device.patient",
            };
            json!({ "patient": patient.text("Patient"), "source": source })
        }
        Answer::Waits(wait) => json!({ "patient": null, "waits": format!("{wait:?}").to_lowercase() }),
    }
}
