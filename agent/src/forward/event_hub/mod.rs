//! Azure Event Hubs as a destination, over its REST interface or AMQP: messages, measurements or Observations become events
//! there.
//!
//! Invariants:
//! 1. Events of one partition key leave in order, one publication in flight (several keys at a time); only `201 Created`, or
//!    the disposition `accepted`, confirms one.
//! 2. An event has the same id whenever it is sent again, so that a repeat after a lost answer can be told.
//! 3. A publication that the hub refuses (400, 413) is cut in halves until the event is found that it does not take; the
//!    others are delivered. An event is given up for a 400 only when the hub takes others, or after three attempts.
//! 4. Whatever else the hub or the network answers, nothing is given up: the rest waits in its rows.

#[cfg_attr(
    not(feature = "amqp"),
    allow(
        dead_code,
        reason = "without the feature nobody makes a wire, and nothing else is left out"
    )
)]
mod amqp;
mod answer;
mod batch;
mod event;
mod observation;
mod sas;
mod sender;
mod whose;

use super::auth::{AuthError, Authorizer};
use super::fhir::{FhirDestination, SentPeriods};
use super::http::{Http, UreqClient};
use super::{Delivery, Fate, Group, GroupReading, Link, MessageDelivery, Origin, RawMessage};
use crate::associations::Book;
use crate::config::{AuthConfig, ClockTrust, EventHubConfig, EventPayload, Measurements, PartitionKey};
use crate::telemetry::errors::ErrorRecord;
use crate::worker::Worker;
use event::Bodies;
use observation::{Observations, Whose};
use sender::{Auth, KEYS_AT_ONCE, Sender, Target};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use whose::FromMessage;

pub(crate) use observation::is_stored_observation;
pub use sas::token as sas_token;

/// Most measurements in one compressed event: as many as the FHIR transformation of iomt-fhir takes at a time.
const MOST_GROUPED: usize = 300;

/// The client of an event hub: a thread for each publication that can be in flight.
///
/// # Errors
/// When the operating system gives no thread.
pub fn http_of(name: &str, config: &EventHubConfig) -> Result<Http, std::io::Error> {
    let client = UreqClient::new(config.tls.clone(), config.proxy.clone())
        .connecting_to(&config.namespace, config.endpoint.clone());
    let threads = match config.partition_key {
        PartitionKey::Gateway => 1,
        PartitionKey::Device => KEYS_AT_ONCE,
    };
    Ok(Http {
        worker: Worker::threads(name, threads)?,
        client: Arc::new(client),
    })
}

/// An event hub.
pub struct EventHubDestination {
    sender: Sender,
    origin: Origin,
    bodies: Bodies,
    measurements: Measurements,
    /// With `payload = "observation"`.
    observations: Option<Observations>,
}

impl EventHubDestination {
    /// A destination; `http` reaches the hub, `direct` the managed identity of Azure, which no proxy serves. `identity` is
    /// the FHIR destination that `identity_of` names: its server is asked whose Observations are, and never written to,
    /// but for what its `resolution = "create"` creates.
    ///
    /// # Errors
    /// When authentication or payload cannot be what the configuration says.
    pub fn new(
        config: &EventHubConfig,
        origin: Origin,
        trust: ClockTrust,
        http: Http,
        direct: Http,
        identity: Option<FhirDestination>,
    ) -> Result<EventHubDestination, ErrorRecord> {
        let base = format!("https://{}", config.namespace.to_ascii_lowercase());
        // The signature is for what is sent to and for nothing else.
        let resource = match &config.publisher {
            Some(publisher) => format!("{}/publishers/{publisher}", config.hub),
            None => config.hub.clone(),
        };
        let wire = amqp::wire_of(config, &resource, &origin.gateway)?;
        let tokens = |credential| {
            Auth::Sas(sas::Tokens::new(
                credential,
                &config.namespace,
                &config.hub,
                &resource,
            ))
        };
        let auth = match &config.auth {
            AuthConfig::Sas {
                key_name,
                key: Some(key),
                ..
            } => tokens(sas::Credential::Key {
                name: key_name.clone().unwrap_or_default(),
                key: key.clone(),
            }),
            AuthConfig::Sas {
                token: Some(token), ..
            } => tokens(sas::Credential::Token(token.clone())),
            AuthConfig::ConnectionString { value } => {
                tokens(sas::Credential::ConnectionString(value.clone()))
            }
            other => {
                let other = &with_scope(other);
                let authorizer = Authorizer::new(other, &base, http.clone(), direct).map_err(|error| {
                    let name = match error {
                        AuthError::NoManagedIdentity(_) => "ManagedIdentityCredentialNotFound",
                        _ => "InvalidEventHubException",
                    };
                    ErrorRecord::new(name, error.text())
                })?;
                Auth::Other(Box::new(authorizer))
            }
        };
        let target = Target {
            url: format!("{base}/{resource}/messages?timeout=60&api-version=2014-01"),
            gateway: Arc::clone(&origin.gateway),
            partition_key: config.partition_key,
            is_publisher: config.publisher.is_some(),
            limit: config.max_batch_bytes,
            is_single: matches!(config.auth, AuthConfig::Basic { .. }),
        };
        let observations = (config.payload == EventPayload::Observation).then(|| {
            Observations::new(match identity {
                Some(fhir) => Whose::Server(Box::new(fhir)),
                None => Whose::Message(FromMessage::new(config.device_identifier_system.clone())),
            })
        });
        Ok(EventHubDestination {
            sender: Sender::new(target, http, wire, auth, trust),
            origin,
            bodies: Bodies {
                envelope: config.envelope,
                with_id: config.event_id_in_body,
            },
            measurements: config.measurements,
            observations,
        })
    }

    /// Uses what the operator has entered into this book, where no FHIR server is asked.
    pub fn share_associations(&mut self, book: Rc<RefCell<Book>>) {
        if let Some(Observations {
            whose: Whose::Message(message),
            ..
        }) = &mut self.observations
        {
            message.book = book;
        }
    }

    /// Sends raw messages, in order.
    pub async fn deliver_messages(&self, messages: Vec<RawMessage>) -> MessageDelivery {
        let events = messages
            .iter()
            .map(|raw| event::of_message(&self.origin, raw, self.bodies))
            .collect();
        let (fates, link) = self.sender.send(events).await;
        MessageDelivery { fates, link }
    }

    /// Sends the readings of the groups as measurements, in the order in which they came, or as Observations; `sent` is
    /// what was sent of those before.
    pub async fn deliver(&mut self, groups: Vec<Group>, sent: &impl SentPeriods) -> Delivery {
        if let Some(observations) = &mut self.observations {
            let mut delivery = nothing_yet(&groups);
            let plan = observations
                .plan(&self.origin, &groups, sent, &mut delivery)
                .await;
            if let Some((events, steps)) = plan.map(observation::Plan::split) {
                let (fates, link) = self.sender.send(events).await;
                delivery.link = link;
                observations.take(steps, &fates, &mut delivery);
            }
            return delivery;
        }
        let mut places: Vec<(usize, usize)> = groups
            .iter()
            .enumerate()
            .flat_map(|(group, of)| (0..of.readings.len()).map(move |reading| (group, reading)))
            .collect();
        let reading = |(group, reading): (usize, usize)| {
            let group = groups.get(group)?;
            Some((group, group.readings.get(reading)?))
        };
        places.sort_by_key(|place| {
            reading(*place).map(|(_, reading)| (reading.position, reading.match_number))
        });
        let ordered: Vec<(&Group, &GroupReading)> =
            places.iter().filter_map(|place| reading(*place)).collect();
        let (sent, link) = match self.measurements {
            Measurements::Single => self.send_each(&ordered).await,
            Measurements::Grouped => self.send_grouped(&ordered).await,
        };
        let mut delivery = nothing_yet(&groups);
        delivery.link = link;
        for ((group, reading), fate) in places.into_iter().zip(sent) {
            delivery.written += u64::from(fate == Fate::Delivered);
            if let Some(place) = delivery
                .fates
                .get_mut(group)
                .and_then(|fates| fates.get_mut(reading))
            {
                *place = fate;
            }
        }
        delivery
    }

    async fn send_each(&self, readings: &[(&Group, &GroupReading)]) -> (Vec<Fate>, Link) {
        let with_id = self.bodies.with_id;
        let event = |(group, reading): &(&Group, &GroupReading)| {
            Ok(event::of_measurement(&self.origin, group, reading, with_id))
        };
        self.sender.send(readings.iter().map(event).collect()).await
    }

    /// Sends compressed arrays. The readings of one that the hub does not take leave one by one, so that the culprit is found.
    async fn send_grouped(&self, readings: &[(&Group, &GroupReading)]) -> (Vec<Fate>, Link) {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut open: HashMap<Option<Arc<str>>, usize> = HashMap::new();
        for (index, (group, reading)) in readings.iter().enumerate() {
            let key = self.sender.is_by_device().then(|| Arc::clone(&group.key.device));
            let bytes = event::weight_of(&reading.measurement);
            let fits = |chunk: &Chunk| {
                chunk.indexes.len() < MOST_GROUPED && chunk.bytes + bytes <= self.sender.limit() / 2
            };
            let known = open.get(&key).copied();
            match known
                .and_then(|at| chunks.get_mut(at))
                .filter(|chunk| fits(chunk))
            {
                Some(chunk) => {
                    chunk.indexes.push(index);
                    chunk.bytes += bytes;
                }
                None => {
                    open.insert(key, chunks.len());
                    chunks.push(Chunk {
                        indexes: vec![index],
                        bytes,
                    });
                }
            }
        }
        let of = |chunk: &Chunk| -> Vec<(&Group, &GroupReading)> {
            chunk
                .indexes
                .iter()
                .filter_map(|index| readings.get(*index).copied())
                .collect()
        };
        let events = chunks
            .iter()
            .map(|chunk| event::of_measurements(&self.origin, &of(chunk), self.bodies.with_id));
        let (sent, mut link) = self.sender.send(events.collect()).await;
        let mut fates = vec![Fate::Retry; readings.len()];
        for (chunk, fate) in chunks.iter().zip(sent) {
            let fates_of_chunk = match fate {
                Fate::Dead(_) if link == Link::Up => {
                    let (fates, then) = self.send_each(&of(chunk)).await;
                    link = then;
                    fates
                }
                Fate::Dead(_) => continue,
                fate => vec![fate; chunk.indexes.len()],
            };
            for (index, fate) in chunk.indexes.iter().zip(fates_of_chunk) {
                if let Some(place) = fates.get_mut(*index) {
                    *place = fate;
                }
            }
        }
        (fates, link)
    }
}

/// Readings of one partition key that leave together.
struct Chunk {
    indexes: Vec<usize>,
    /// Before they are compressed, roughly.
    bytes: usize,
}

/// The scope of Event Hubs, which is the same in all clouds, where none is configured.
fn with_scope(auth: &AuthConfig) -> AuthConfig {
    let mut auth = auth.clone();
    if let AuthConfig::ClientCredentials { scope, .. } = &mut auth {
        scope.get_or_insert_with(|| "https://eventhubs.azure.net/.default".to_owned());
    }
    auth
}

/// A delivery in which nothing became of any reading.
fn nothing_yet(groups: &[Group]) -> Delivery {
    Delivery {
        fates: groups
            .iter()
            .map(|group| vec![Fate::Retry; group.readings.len()])
            .collect(),
        sent_periods: Vec::new(),
        link: Link::Up,
        written: 0,
    }
}

#[cfg(test)]
mod tests;
