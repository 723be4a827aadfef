//! The event hub of the fleet, without a socket.

use crate::event_hub_endpoint::{Request, Settings, check};
use bedside_agent::clock;
use bedside_agent::forward::http::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use bedside_agent::message::Payload;
use iomt_mapping::Timestamp;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Bytes and events per second of a throughput unit.
const UNIT_BYTES: f64 = 1_000_000.0;
const UNIT_EVENTS: f64 = 1000.0;

/// What arrived.
#[derive(Debug, Default)]
pub struct Received {
    /// Requests in each second of the simulation, whatever became of them.
    pub per_second: Vec<u32>,
    /// Publications that were answered with 503 for the quota.
    pub throttled: u64,
    /// Events taken, repeated ones too.
    pub taken: u64,
    /// Events in publications whose answer was lost on purpose.
    pub answer_lost: u64,
    /// Event id by gateway and number of the message.
    pub ids: HashMap<(String, u64), String>,
    /// What must never be: a refusal, an id with two bodies, a body with two ids, a wrong order.
    pub wrong: Vec<String>,
    last: HashMap<String, u64>,
    tokens: Option<(u64, f64, f64)>,
    publications: u64,
}

/// The hub: seconds of the simulation and quota.
pub struct Hub {
    settings: Settings,
    /// From when to when it is away.
    outage: (u64, u64),
    /// From this second of the outage on it says when it opens.
    announced: u64,
    throughput_units: f64,
    started_us: u64,
    received: Mutex<Received>,
}

impl Hub {
    /// A hub that is away in `outage` (seconds from now) and announces its return from second `announced` on.
    pub fn new(settings: Settings, outage: (u64, u64), announced: u64, throughput_units: f64) -> Arc<Hub> {
        Arc::new(Hub {
            settings,
            outage,
            announced,
            throughput_units,
            started_us: clock::monotonic_us(),
            received: Mutex::default(),
        })
    }

    /// Looks at what arrived.
    pub fn look<T>(&self, look: impl FnOnce(&Received) -> T) -> T {
        look(&self.received.lock().expect("one thread"))
    }

    /// Microseconds since the start.
    fn now_us(&self) -> u64 {
        clock::monotonic_us() - self.started_us
    }

    fn request(&self, request: &HttpRequest) -> Request {
        let target = request
            .url
            .strip_prefix(&format!("https://{}", self.settings.namespace))
            .unwrap_or_default();
        let mut headers: Vec<(String, String)> = request
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        headers.push(("host".to_owned(), self.settings.namespace.clone()));
        headers.extend(
            request
                .authorization
                .iter()
                .map(|value| ("authorization".to_owned(), value.clone())),
        );
        let head: usize = headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum();
        Request {
            method: request.method.name().to_owned(),
            target: target.to_owned(),
            headers,
            body: request.body.bytes().to_vec(),
            size: head + target.len() + request.body.len(),
        }
    }
}

impl HttpClient for Hub {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let now_us = self.now_us();
        let second = now_us / 1_000_000;
        let mut received = self.received.lock().expect("one thread");
        let at = usize::try_from(second).expect("a simulation of hours");
        if received.per_second.len() <= at {
            received.per_second.resize(at + 1, 0);
        }
        received.per_second[at] += 1;
        if (self.outage.0..self.outage.1).contains(&second) {
            if second < self.announced {
                return Err(HttpError::new(HttpErrorKind::Connect, "the region is away"));
            }
            let opens = i64::try_from(self.outage.1 * 1_000_000 - now_us).expect("hours") * 10;
            let date = |ticks: i64| ("retry-after".to_owned(), http_date(ticks));
            let wall = clock::wall().ticks();
            return Ok(answer(
                503,
                vec![date(wall + opens), ("date".to_owned(), http_date(wall))],
            ));
        }
        let request = self.request(&request);
        let unix = u64::try_from(clock::wall().ticks() / 10_000_000).expect("after 1970");
        let (key, events) = match check(&request, &self.settings, unix) {
            Ok(publication) => publication,
            Err((status, text)) => {
                received.wrong.push(format!("refused with {status}: {text}"));
                return Ok(answer(status, Vec::new()));
            }
        };
        if request.size > self.settings.limit {
            received
                .wrong
                .push(format!("{} bytes are too many", request.size));
            return Ok(answer(413, Vec::new()));
        }
        if !received.admit(now_us, self.throughput_units, request.size, events.len()) {
            received.throttled += 1;
            return Ok(answer(503, Vec::new()));
        }
        received.publications += 1;
        let count = events.len() as u64;
        for (body, properties) in events {
            let id = properties.get("bedside-event-id").and_then(Value::as_str);
            received.take(key.as_deref().unwrap_or_default(), id.unwrap_or_default(), &body);
        }
        if received.publications.is_multiple_of(500) {
            received.answer_lost += count;
            return Err(HttpError::new(HttpErrorKind::Reset, "the answer was lost"));
        }
        Ok(answer(201, Vec::new()))
    }
}

impl Received {
    /// Two buckets that refill continuously and hold a second's quota; a publication may leave them in debt.
    fn admit(&mut self, now_us: u64, units: f64, bytes: usize, events: usize) -> bool {
        let (most_bytes, most_events) = (units * UNIT_BYTES, units * UNIT_EVENTS);
        let (then, had_bytes, had_events) = self.tokens.unwrap_or((now_us, most_bytes, most_events));
        let seconds = (now_us - then) as f64 / 1e6;
        let mut left_bytes = (had_bytes + seconds * most_bytes).min(most_bytes);
        let mut left_events = (had_events + seconds * most_events).min(most_events);
        let admitted = left_bytes > 0.0 && left_events > 0.0;
        if admitted {
            left_bytes -= bytes as f64;
            left_events -= events as f64;
        }
        self.tokens = Some((now_us, left_bytes, left_events));
        admitted
    }

    fn take(&mut self, gateway: &str, id: &str, body: &[u8]) {
        self.taken += 1;
        let number = serde_json::from_slice::<Value>(body)
            .ok()
            .filter(|value| value["gateway"] == gateway)
            .and_then(|value| value["n"].as_u64());
        let Some(number) = number else {
            self.wrong.push(format!("{id} is no message of {gateway}"));
            return;
        };
        let place = (gateway.to_owned(), number);
        match self.ids.get(&place) {
            Some(known) if known == id => {}
            Some(known) => self
                .wrong
                .push(format!("message {number} has the ids {known} and {id}")),
            None => {
                let last = self.last.insert(gateway.to_owned(), number);
                if last.is_some_and(|last| last >= number) {
                    self.wrong
                        .push(format!("{gateway}: {number} came after {last:?}"));
                }
                self.ids.insert(place, id.to_owned());
            }
        }
    }
}

fn answer(status: u16, headers: Vec<(String, String)>) -> HttpResponse {
    HttpResponse {
        status,
        headers,
        body: Payload::default(),
    }
}

/// The next whole second as HTTP writes it.
fn http_date(ticks: i64) -> String {
    let time = Timestamp::from_ticks(ticks + 9_999_999).expect("a time of the simulation");
    let civil = time.civil();
    let days = ticks.div_euclid(864_000_000_000);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]
        [usize::try_from(days.rem_euclid(7)).expect("a weekday")];
    let month = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ][usize::try_from(civil.month).expect("a month") - 1];
    format!(
        "{weekday}, {:02} {month} {} {:02}:{:02}:{:02} GMT",
        civil.day, civil.year, civil.hour, civil.minute, civil.second
    )
}
