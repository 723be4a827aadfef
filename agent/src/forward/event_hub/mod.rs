//! Azure Event Hubs as a destination, over its REST interface: messages or measurements become events there.
//!
//! Invariants:
//! 1. Events of one partition key leave in order, one publication in flight; only `201 Created` confirms one.
//! 2. An event has the same id whenever it is sent again, so that a repeat after a lost answer can be told.
//! 3. A publication that the hub refuses (400, 413) is cut in halves until the event is found that it does not take; the
//!    others are delivered. An event is given up for a 400 only when the hub takes others, or after three attempts.
//! 4. Whatever else the hub or the network answers, nothing is given up: the rest waits in its rows.

mod answer;
mod batch;
mod event;
mod sas;

use super::auth::{AuthError, Authorizer};
use super::http::{Http, HttpRequest, HttpResponse, Method, UreqClient};
use super::{Delivery, Fate, Group, Link, MessageDelivery, Origin, RawMessage};
use crate::config::{AuthConfig, ClockTrust, EventHubConfig, EventPayload, PartitionKey};
use crate::telemetry::errors::ErrorRecord;
use crate::worker::Worker;
use answer::Verdict;
use batch::PublicationSize;
use event::Event;
use std::collections::HashMap;
use std::sync::Arc;

/// Attempts after which an event that the hub refuses alone is given up, even if the hub takes nothing else either.
const ATTEMPTS: u8 = 3;

/// So many events refused one after the other mean that something else is wrong than the events.
const SUSPICIOUS: u8 = 3;

/// The client of an event hub: one thread, because one publication is in flight.
///
/// # Errors
/// When the operating system gives no thread.
pub fn http_of(name: &str, config: &EventHubConfig) -> Result<Http, std::io::Error> {
    let client =
        UreqClient::new(config.tls.clone(), config.proxy.clone()).connecting_to(config.endpoint.clone());
    Ok(Http {
        worker: Worker::threads(name, 1)?,
        client: Arc::new(client),
    })
}

enum Auth {
    Sas(sas::Tokens),
    Other(Box<Authorizer>),
}

/// An event hub.
pub struct EventHubDestination {
    url: String,
    http: Http,
    auth: Auth,
    trust: ClockTrust,
    origin: Origin,
    partition_key: PartitionKey,
    /// The address names the partition key.
    is_publisher: bool,
    event_id_in_body: bool,
    warned_of_expiry: bool,
    /// Largest publication in bytes, as configured.
    limit: usize,
    /// Where events are cut into publications.
    size: PublicationSize,
    refused_in_a_row: u8,
    has_taken: bool,
    /// Attempts of events that were refused alone while the hub took nothing.
    attempts: HashMap<String, u8>,
}

impl EventHubDestination {
    /// A destination; `http` reaches the hub, `direct` the managed identity of Azure, which no proxy serves.
    ///
    /// # Errors
    /// When authentication or payload cannot be what the configuration says.
    pub fn new(
        config: &EventHubConfig,
        origin: Origin,
        trust: ClockTrust,
        http: Http,
        direct: Http,
    ) -> Result<EventHubDestination, ErrorRecord> {
        if config.payload == EventPayload::Observation {
            let text =
                "payload = \"observation\" is not sent by this version: use \"message\" or \"measurement\"";
            return Err(ErrorRecord::new("InvalidEventHubException", text));
        }
        let base = format!("https://{}", config.namespace.to_ascii_lowercase());
        // The signature is for what is sent to and for nothing else.
        let resource = match &config.publisher {
            Some(publisher) => format!("{}/publishers/{publisher}", config.hub),
            None => config.hub.clone(),
        };
        let tokens = |credential| {
            Auth::Sas(sas::Tokens::new(
                credential,
                &config.namespace,
                &config.hub,
                &resource,
            ))
        };
        let auth = match &config.auth {
            AuthConfig::Sas { key_name, key } => tokens(sas::Credential::Key {
                name: key_name.clone(),
                key: key.clone(),
            }),
            AuthConfig::ConnectionString { value } => {
                tokens(sas::Credential::ConnectionString(value.clone()))
            }
            other => {
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
        Ok(EventHubDestination {
            url: format!("{base}/{resource}/messages?timeout=60&api-version=2014-01"),
            is_publisher: config.publisher.is_some(),
            event_id_in_body: config.event_id_in_body,
            warned_of_expiry: false,
            http,
            auth,
            trust,
            origin,
            partition_key: config.partition_key,
            limit: config.max_batch_bytes,
            size: PublicationSize::new(config.max_batch_bytes),
            refused_in_a_row: 0,
            has_taken: false,
            attempts: HashMap::new(),
        })
    }

    /// Sends raw messages, in order.
    pub async fn deliver_messages(&mut self, messages: Vec<RawMessage>) -> MessageDelivery {
        let events = messages
            .iter()
            .map(|raw| event::of_message(&self.origin, raw, self.event_id_in_body))
            .collect();
        let (fates, link) = self.send(events).await;
        MessageDelivery { fates, link }
    }

    /// Sends the readings of the groups as measurements, in the order in which they came.
    pub async fn deliver(&mut self, groups: Vec<Group>) -> Delivery {
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
        let events = places
            .iter()
            .filter_map(|place| reading(*place))
            .map(|(group, reading)| {
                Ok(event::of_measurement(
                    &self.origin,
                    group,
                    reading,
                    self.event_id_in_body,
                ))
            })
            .collect();
        let (sent, link) = self.send(events).await;
        let mut delivery = Delivery {
            fates: groups
                .iter()
                .map(|group| vec![Fate::Retry; group.readings.len()])
                .collect(),
            sent_periods: Vec::new(),
            link,
            written: 0,
        };
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

    /// Sends events; one fate each.
    async fn send(&mut self, events: Vec<Result<Event, ErrorRecord>>) -> (Vec<Fate>, Link) {
        let mut fates: Vec<Fate> = events
            .iter()
            .map(|event| match event {
                Err(error) => Fate::Dead(error.clone()),
                Ok(event) if !batch::fits_alone(event, self.limit) => {
                    Fate::Dead(answer::too_large(event, Some(self.limit)))
                }
                Ok(_) => Fate::Retry,
            })
            .collect();
        let empty = Event {
            id: String::new(),
            device: None,
            element: Vec::new(),
        };
        let events: Vec<Event> = events
            .into_iter()
            .map(|event| event.unwrap_or_else(|_| empty.clone()))
            .collect();
        let waiting: Vec<usize> = fates
            .iter()
            .enumerate()
            .filter(|(_, fate)| **fate == Fate::Retry)
            .map(|(index, _)| index)
            .collect();
        for (key, indexes) in self.by_partition_key(&events, waiting) {
            let mut runs = batch::cut(&events, &indexes, self.size.cut_at());
            runs.reverse();
            while let Some(run) = runs.pop() {
                let body = batch::body(&events, &run);
                let size = body.len();
                match self.publish(&key, body).await {
                    Verdict::Taken => {
                        (self.has_taken, self.refused_in_a_row) = (true, 0);
                        self.size.taken(size);
                        self.attempts.clear();
                        set(&mut fates, &run, &Fate::Delivered);
                    }
                    Verdict::Broken(link) => {
                        self.size.broken(size);
                        return (fates, link);
                    }
                    Verdict::Down(link) => return (fates, link),
                    Verdict::TooLarge if run.len() > 1 => {
                        self.size.refused(size);
                        let left: Vec<usize> =
                            run.into_iter().chain(runs.into_iter().rev().flatten()).collect();
                        runs = batch::cut(&events, &left, self.size.cut_at());
                        runs.reverse();
                    }
                    Verdict::Refused(_) if run.len() > 1 => {
                        let (first, second) = run.split_at(run.len() / 2);
                        runs.push(second.to_vec());
                        runs.push(first.to_vec());
                    }
                    Verdict::TooLarge => {
                        if let Some(event) = run.first().and_then(|index| events.get(*index)) {
                            set(&mut fates, &run, &Fate::Dead(answer::too_large(event, None)));
                        }
                    }
                    Verdict::Refused(error) => {
                        let id = run
                            .first()
                            .and_then(|index| events.get(*index))
                            .map(|event| event.id.clone());
                        if !self.gives_up(&id.unwrap_or_default()) {
                            return (
                                fates,
                                Link::Down {
                                    error,
                                    retry_after: None,
                                },
                            );
                        }
                        set(&mut fates, &run, &Fate::Dead(error));
                    }
                }
            }
        }
        (fates, Link::Up)
    }

    /// Whether an event that was refused alone is given up (invariant 3).
    fn gives_up(&mut self, id: &str) -> bool {
        let attempts = self.attempts.entry(id.to_owned()).or_default();
        *attempts = attempts.saturating_add(1);
        let hub_is_well = self.has_taken && self.refused_in_a_row < SUSPICIOUS;
        let gives_up = hub_is_well || *attempts >= ATTEMPTS;
        if gives_up {
            self.attempts.remove(id);
            self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
        }
        gives_up
    }

    /// Indexes of events by partition key, in order of their first event.
    fn by_partition_key(&self, events: &[Event], indexes: Vec<usize>) -> Vec<(Arc<str>, Vec<usize>)> {
        if self.partition_key == PartitionKey::Gateway {
            return vec![(Arc::clone(&self.origin.gateway), indexes)];
        }
        let mut keys: Vec<(Arc<str>, Vec<usize>)> = Vec::new();
        let mut places: HashMap<Arc<str>, usize> = HashMap::new();
        for index in indexes {
            let device = events.get(index).and_then(|event| event.device.clone());
            // A message without a device has the order of its gateway.
            let key = device.unwrap_or_else(|| Arc::clone(&self.origin.gateway));
            let place = *places.entry(Arc::clone(&key)).or_insert(keys.len());
            match keys.get_mut(place) {
                Some((_, of_key)) => of_key.push(index),
                None => keys.push((key, vec![index])),
            }
        }
        keys
    }

    /// Sends one publication; after a 401 once more with a new token.
    async fn publish(&mut self, key: &str, body: Vec<u8>) -> Verdict {
        let mut request = HttpRequest::with_body(Method::Post, &self.url, body)
            .header("content-type", "application/vnd.microsoft.servicebus.json")
            // The hub must not repeat a publication behind our back: repeats are ours, with the same ids.
            .header("x-ms-retrypolicy", "NoRetry");
        if !self.is_publisher {
            let key = serde_json::json!({ "PartitionKey": key }).to_string();
            request = request.header("brokerproperties", key);
        }
        let mut response = match self.request(request.clone()).await {
            Ok(response) => response,
            Err(verdict) => return verdict,
        };
        if response.status == 401 && self.renew().await {
            response = match self.request(request).await {
                Ok(response) => response,
                Err(verdict) => return verdict,
            };
        }
        answer::of_response(&response, self.trust)
    }

    async fn request(&mut self, mut request: HttpRequest) -> Result<HttpResponse, Verdict> {
        let request = match &mut self.auth {
            Auth::Sas(tokens) => {
                let header = tokens.header().map_err(|text| answer::no_credential(&text))?;
                match sas::seconds_left(&header) {
                    Some(..=0) => return Err(answer::expired(self.trust)),
                    Some(left @ ..=sas::EXPIRES_SOON) if tokens.ready_made && !self.warned_of_expiry => {
                        self.warned_of_expiry = true;
                        tracing::warn!(
                            "the shared access signature for {} expires in {} hours: put a new one in its place",
                            self.origin.gateway,
                            left / 3600
                        );
                    }
                    _ => {}
                }
                request.authorization = Some(header);
                request
            }
            Auth::Other(authorizer) => authorizer
                .authorize(request)
                .await
                .map_err(|error| answer::of_auth(&error, self.trust))?,
        };
        self.http
            .send(request)
            .await
            .map_err(|error| answer::of_http(&error, self.trust))
    }

    async fn renew(&mut self) -> bool {
        match &mut self.auth {
            Auth::Sas(tokens) => tokens.renew(),
            Auth::Other(authorizer) => authorizer.renew().await,
        }
    }
}

fn set(fates: &mut [Fate], run: &[usize], fate: &Fate) {
    for index in run {
        if let Some(place) = fates.get_mut(*index) {
            *place = fate.clone();
        }
    }
}

#[cfg(test)]
mod tests;
