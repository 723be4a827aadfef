//! Sends events over REST or AMQP: one publication in flight per partition key, several keys at a time.

use super::amqp;
use super::answer::{self, Verdict};
use super::batch::{self, PublicationSize};
use super::event::{self, Event};
use super::sas;
use crate::config::{ClockTrust, PartitionKey};
use crate::forward::auth::Authorizer;
use crate::forward::http::{Http, HttpRequest, HttpResponse, Method};
use crate::forward::{Fate, Link};
use crate::telemetry::errors::ErrorRecord;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::Mutex;

/// Attempts after which an event that the hub refuses alone is given up, even if the hub takes nothing else either.
const ATTEMPTS: u8 = 3;

/// So many events refused one after the other mean that something else is wrong than the events.
const SUSPICIOUS: u8 = 3;

/// Partition keys that are sent at the same time.
pub(super) const KEYS_AT_ONCE: usize = 4;

/// How requests prove who we are.
pub(super) enum Auth {
    Sas(sas::Tokens),
    Other(Box<Authorizer>),
}

/// What is learned while sending.
struct State {
    /// Where events are cut into publications.
    size: PublicationSize,
    refused_in_a_row: u8,
    has_taken: bool,
    /// Attempts of events that were refused alone while the hub took nothing.
    attempts: HashMap<String, u8>,
}

/// Sends events to one hub.
pub(super) struct Sender {
    url: String,
    http: Http,
    /// In place of the REST interface.
    wire: Option<Box<dyn amqp::Wire>>,
    auth: Mutex<Auth>,
    trust: ClockTrust,
    gateway: Arc<str>,
    partition_key: PartitionKey,
    /// The address names the partition key.
    is_publisher: bool,
    warned_of_expiry: Cell<bool>,
    /// Largest publication in bytes, as configured.
    limit: usize,
    /// Events leave one by one.
    is_single: bool,
    state: RefCell<State>,
}

/// Where events go, and how they are cut.
pub(super) struct Target {
    /// Address of the hub or publisher.
    pub url: String,
    /// Key of events without a device, and of all when the gateway is the key.
    pub gateway: Arc<str>,
    /// What becomes the partition key.
    pub partition_key: PartitionKey,
    /// The address names the partition key.
    pub is_publisher: bool,
    /// Largest publication in bytes.
    pub limit: usize,
    /// Events leave one by one.
    pub is_single: bool,
}

impl Sender {
    pub fn new(
        target: Target,
        http: Http,
        wire: Option<Box<dyn amqp::Wire>>,
        auth: Auth,
        trust: ClockTrust,
    ) -> Sender {
        Sender {
            url: target.url,
            http,
            wire,
            auth: Mutex::new(auth),
            trust,
            gateway: target.gateway,
            partition_key: target.partition_key,
            is_publisher: target.is_publisher,
            warned_of_expiry: Cell::new(false),
            limit: target.limit,
            is_single: target.is_single,
            state: RefCell::new(State {
                size: PublicationSize::new(target.limit),
                refused_in_a_row: 0,
                has_taken: false,
                attempts: HashMap::new(),
            }),
        }
    }

    #[cfg(test)]
    pub fn wire_mut(&mut self) -> &mut Option<Box<dyn amqp::Wire>> {
        &mut self.wire
    }

    /// Largest publication in bytes, as configured.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether every device has a partition key of its own.
    pub fn is_by_device(&self) -> bool {
        self.partition_key == PartitionKey::Device
    }

    /// Sends events, in order for each partition key; one fate each.
    pub async fn send(&self, events: Vec<Result<Event, ErrorRecord>>) -> (Vec<Fate>, Link) {
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
            is_single: false,
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
        // The first trouble of the link stops all keys.
        let down: RefCell<Option<Link>> = RefCell::default();
        let keys = self.by_partition_key(&events, waiting);
        let keys = keys
            .into_iter()
            .map(|(key, indexes)| self.send_key(key, &events, indexes, &down));
        for (index, fate) in several(keys).await.into_iter().flatten() {
            if let Some(place) = fates.get_mut(index) {
                *place = fate;
            }
        }
        (fates, down.into_inner().unwrap_or(Link::Up))
    }

    /// Sends the events of one partition key, one publication after the other; fates of those that have one now.
    async fn send_key(
        &self,
        key: Arc<str>,
        events: &[Event],
        indexes: Vec<usize>,
        down: &RefCell<Option<Link>>,
    ) -> Vec<(usize, Fate)> {
        let mut fates: Vec<(usize, Fate)> = Vec::new();
        let mut set =
            |run: &[usize], fate: &Fate| fates.extend(run.iter().map(|index| (*index, fate.clone())));
        let cut = |indexes: &[usize]| -> Vec<Vec<usize>> {
            let mut runs = match self.is_single {
                true => indexes.iter().map(|index| vec![*index]).collect(),
                false => batch::cut(events, indexes, self.state.borrow().size.cut_at()),
            };
            runs.reverse();
            runs
        };
        let stop = |link: Link| {
            down.borrow_mut().get_or_insert(link);
        };
        let mut runs = cut(&indexes);
        while let Some(run) = runs.pop() {
            if down.borrow().is_some() {
                break;
            }
            let body = batch::body(events, &run);
            let size = body.len();
            let single = match run.as_slice() {
                [index] => events.get(*index).filter(|event| event.is_single),
                _ => None,
            };
            match self.publish(&key, body, single).await {
                Verdict::Taken => {
                    let mut state = self.state.borrow_mut();
                    (state.has_taken, state.refused_in_a_row) = (true, 0);
                    state.size.taken(size);
                    state.attempts.clear();
                    set(&run, &Fate::Delivered);
                }
                Verdict::Broken(link) => {
                    self.state.borrow_mut().size.broken(size);
                    stop(link);
                }
                Verdict::Down(link) => stop(link),
                Verdict::TooLarge if run.len() > 1 => {
                    self.state.borrow_mut().size.refused(size);
                    let left: Vec<usize> = run.into_iter().chain(runs.into_iter().rev().flatten()).collect();
                    runs = cut(&left);
                }
                Verdict::Refused(_) if run.len() > 1 => {
                    let (first, second) = run.split_at(run.len() / 2);
                    runs.push(second.to_vec());
                    runs.push(first.to_vec());
                }
                Verdict::TooLarge => {
                    if let Some(event) = run.first().and_then(|index| events.get(*index)) {
                        set(&run, &Fate::Dead(answer::too_large(event, None)));
                    }
                }
                Verdict::Refused(error) => {
                    let id = run
                        .first()
                        .and_then(|index| events.get(*index))
                        .map(|event| event.id.clone());
                    if self.state.borrow_mut().gives_up(&id.unwrap_or_default()) {
                        set(&run, &Fate::Dead(error));
                    } else {
                        stop(Link::Down {
                            error,
                            retry_after: None,
                        });
                    }
                }
            }
        }
        fates
    }

    /// Indexes of events by partition key, in order of their first event.
    fn by_partition_key(&self, events: &[Event], indexes: Vec<usize>) -> Vec<(Arc<str>, Vec<usize>)> {
        if self.partition_key == PartitionKey::Gateway {
            return vec![(Arc::clone(&self.gateway), indexes)];
        }
        let mut keys: Vec<(Arc<str>, Vec<usize>)> = Vec::new();
        let mut places: HashMap<Arc<str>, usize> = HashMap::new();
        for index in indexes {
            let device = events.get(index).and_then(|event| event.device.clone());
            // A message without a device has the order of its gateway.
            let key = device.unwrap_or_else(|| Arc::clone(&self.gateway));
            let place = *places.entry(Arc::clone(&key)).or_insert(keys.len());
            match keys.get_mut(place) {
                Some((_, of_key)) => of_key.push(index),
                None => keys.push((key, vec![index])),
            }
        }
        keys
    }

    /// Sends one publication; after a 401 once more with a new token.
    async fn publish(&self, key: &str, body: Vec<u8>, single: Option<&Event>) -> Verdict {
        if let Some(wire) = &self.wire {
            return self.publish_over(wire.as_ref(), key, body).await;
        }
        let single = single.and_then(|event| event::as_single(&event.element));
        let (body, properties, content_type) = match single {
            Some((body, properties)) => (body, properties, "application/gzip"),
            None => (body, Vec::new(), "application/vnd.microsoft.servicebus.json"),
        };
        let mut request = HttpRequest::with_body(Method::Post, &self.url, body)
            .header("content-type", content_type)
            // The hub must not repeat a publication behind our back: repeats are ours, with the same ids.
            .header("x-ms-retrypolicy", "NoRetry");
        request.properties = properties;
        if !self.is_publisher {
            let key = serde_json::json!({ "PartitionKey": key }).to_string();
            request = request.header("brokerproperties", key);
        }
        let (mut response, used) = match self.request(request.clone()).await {
            Ok(answered) => answered,
            Err(verdict) => return verdict,
        };
        if response.status == 401 && self.renew(used.as_deref()).await {
            response = match self.request(request).await {
                Ok((response, _)) => response,
                Err(verdict) => return verdict,
            };
        }
        answer::of_response(&response, self.trust)
    }

    /// As [`Sender::publish`], over AMQP.
    async fn publish_over(&self, wire: &dyn amqp::Wire, key: &str, body: Vec<u8>) -> Verdict {
        let mut renewed = false;
        loop {
            // What the header of a request would be, is what `$cbs` gets.
            let used = match self.authorized(HttpRequest::get(&*self.url)).await {
                Ok(request) => request.authorization.unwrap_or_default(),
                Err(verdict) => return verdict,
            };
            let Some(credential) = amqp::Credential::of_header(&used) else {
                return answer::no_credential("there is no credential that AMQP could carry: see auth");
            };
            let publication = amqp::Publication {
                body: body.clone(),
                partition_key: (!self.is_publisher).then(|| key.to_owned()),
                credential,
            };
            let answer = wire.publish(publication).await;
            let refused = matches!(answer, amqp::Answer::TokenRefused { status: 401, .. });
            if refused && !renewed && self.renew(Some(&used)).await {
                renewed = true;
                continue;
            }
            return amqp::verdict(&answer, self.trust);
        }
    }

    /// Sends a request; the answer, and the authorization that it had.
    async fn request(&self, request: HttpRequest) -> Result<(HttpResponse, Option<String>), Verdict> {
        let request = self.authorized(request).await?;
        let used = request.authorization.clone();
        let sent = self.http.send(request).await;
        sent.map(|response| (response, used))
            .map_err(|error| answer::of_http(&error, self.trust))
    }

    /// The request with its credential.
    async fn authorized(&self, mut request: HttpRequest) -> Result<HttpRequest, Verdict> {
        match &mut *self.auth.lock().await {
            Auth::Sas(tokens) => {
                let header = tokens.header().map_err(|text| answer::no_credential(&text))?;
                match sas::seconds_left(&header) {
                    Some(..=0) => return Err(answer::expired(self.trust)),
                    Some(left @ ..=sas::EXPIRES_SOON)
                        if tokens.ready_made && !self.warned_of_expiry.get() =>
                    {
                        self.warned_of_expiry.set(true);
                        tracing::warn!(
                            "the shared access signature for {} expires in {} hours: put a new one in its place",
                            self.gateway,
                            left / 3600
                        );
                    }
                    _ => {}
                }
                request.authorization = Some(header);
                Ok(request)
            }
            Auth::Other(authorizer) => authorizer
                .authorize(request)
                .await
                .map_err(|error| answer::of_auth(&error, self.trust)),
        }
    }

    /// After a 401 with `used`: whether there is another authorization now. Of several keys only the first renews it.
    async fn renew(&self, used: Option<&str>) -> bool {
        match &mut *self.auth.lock().await {
            Auth::Sas(tokens) => match tokens.header() {
                Ok(now) if Some(now.as_str()) != used => true,
                _ => tokens.renew(),
            },
            Auth::Other(authorizer) => {
                let now = authorizer.authorize(HttpRequest::get(&*self.url)).await.ok();
                match now.and_then(|request| request.authorization) {
                    Some(now) if Some(now.as_str()) != used => true,
                    _ => authorizer.renew().await,
                }
            }
        }
    }
}

impl State {
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
}

/// Runs futures to their end, at most [`KEYS_AT_ONCE`] at a time, started in order.
async fn several<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: VecDeque<F> = futures.collect();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut done = Vec::new();
    std::future::poll_fn(move |context| {
        loop {
            while running.len() < KEYS_AT_ONCE
                && let Some(next) = waiting.pop_front()
            {
                running.push(Box::pin(next));
            }
            let before = running.len();
            running.retain_mut(|one| match one.as_mut().poll(context) {
                Poll::Ready(result) => {
                    done.push(result);
                    false
                }
                Poll::Pending => true,
            });
            if running.is_empty() && waiting.is_empty() {
                return Poll::Ready(std::mem::take(&mut done));
            }
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await
}
