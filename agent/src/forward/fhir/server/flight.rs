//! Requests under way, and the entries that still have to go.

use crate::clock;
use crate::forward::http::{Http, HttpError, HttpRequest, HttpResponse, Requested};
use std::collections::VecDeque;
use std::ops::Range;
use std::task::Poll;

/// Entries that go in one request.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which of the entries.
    pub range: Range<usize>,
    /// One entry without a Bundle around it.
    pub alone: bool,
    /// It goes alone because a Bundle with nothing else was refused.
    pub refused_in_bundle: bool,
    /// It was sent before with an older token.
    pub renewed: bool,
    /// When it was sent: monotonic microseconds.
    pub began_us: u64,
}

/// Entries that still have to be sent, in order.
#[derive(Debug)]
pub struct Queue(VecDeque<Part>);

impl Queue {
    /// All of `count` entries.
    pub fn of(count: usize) -> Queue {
        let whole = Part {
            range: 0..count,
            alone: false,
            refused_in_bundle: false,
            renewed: false,
            began_us: 0,
        };
        Queue(
            std::iter::once(whole)
                .filter(|part| !part.range.is_empty())
                .collect(),
        )
    }

    /// At most `most` entries from the front.
    pub fn next(&mut self, most: usize) -> Option<Part> {
        let mut part = self.0.pop_front()?;
        self.give_back(&mut part, most.max(1));
        Some(part)
    }

    /// Leaves `count` entries in `part`; the others come next.
    pub fn give_back(&mut self, part: &mut Part, count: usize) {
        let middle = part.range.start + count;
        if middle < part.range.end {
            let rest = Part {
                range: middle..part.range.end,
                ..part.clone()
            };
            part.range.end = middle;
            self.0.push_front(rest);
        }
    }

    /// The part goes again, next.
    pub fn again(&mut self, part: Part) {
        self.0.push_front(part);
    }

    /// The part goes again in two halves, next.
    pub fn halve(&mut self, mut part: Part) {
        let half = part.range.len() / 2;
        self.give_back(&mut part, half);
        self.0.push_front(part);
    }
}

/// A request under way.
pub struct Flight {
    part: Part,
    response: Requested,
}

impl Flight {
    /// Sends the request.
    pub fn begin(part: Part, http: &Http, request: HttpRequest) -> Flight {
        Flight {
            part: Part {
                began_us: clock::monotonic_us(),
                ..part
            },
            response: http.start(request),
        }
    }
}

/// Waits for the first response: its part, microseconds under way, and what came; `None` when nothing is under way.
pub async fn landed(flights: &mut Vec<Flight>) -> Option<(Part, u64, Result<HttpResponse, HttpError>)> {
    if flights.is_empty() {
        return None;
    }
    let (number, response) = std::future::poll_fn(|context| {
        for (number, flight) in flights.iter_mut().enumerate() {
            if let Poll::Ready(response) = flight.response.as_mut().poll(context) {
                return Poll::Ready((number, response));
            }
        }
        Poll::Pending
    })
    .await;
    let flight = flights.remove(number);
    let took_us = clock::monotonic_us() - flight.part.began_us;
    Some((flight.part, took_us, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_rests_keep_the_order_and_lose_no_entry() {
        let mut queue = Queue::of(10);
        let first = queue.next(4).unwrap();
        queue.halve(first);
        let mut seen = Vec::new();
        while let Some(mut part) = queue.next(3) {
            queue.give_back(&mut part, 2);
            assert!(part.range.len() <= 2);
            seen.extend(part.range);
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert!(Queue::of(0).next(1).is_none());
    }
}
