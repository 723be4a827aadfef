//! Cuts events into publications that the hub takes: one partition key each, below the size limit, in order.

use super::event::Event;

/// Bytes of a publication that are not in its events: URL, headers with a token, array.
const PUBLICATION_OVERHEAD: usize = 2048;

/// Bytes that the hub may count for an event beside its JSON text.
const EVENT_OVERHEAD: usize = 64;

/// Publications are not made smaller than this for a connection that breaks.
const SMALLEST: usize = 16 * 1024;

/// Publications that are taken before a larger one is tried again.
const TAKEN_BEFORE_LARGER: u32 = 64;

/// How large publications are made: up to the configured limit, less when the hub says that it takes less (413), and less
/// for a while when connections break with large ones, as they do where something on the way has a limit of its own.
#[derive(Debug)]
pub(super) struct PublicationSize {
    /// As configured, or less when the hub has said so.
    limit: usize,
    cut_at: usize,
    largest_taken: usize,
    taken: u32,
}

impl PublicationSize {
    pub fn new(limit: usize) -> PublicationSize {
        PublicationSize {
            limit,
            cut_at: limit,
            largest_taken: 0,
            taken: 0,
        }
    }

    /// Where to cut now.
    pub fn cut_at(&self) -> usize {
        self.cut_at
    }

    /// A publication with a body of `size` bytes was taken.
    pub fn taken(&mut self, size: usize) {
        self.largest_taken = self.largest_taken.max(size);
        self.taken += 1;
        if self.taken >= TAKEN_BEFORE_LARGER {
            self.taken = 0;
            self.cut_at = self.cut_at.saturating_mul(2).min(self.limit);
        }
    }

    /// One of `size` bytes was refused for its size: that size is not tried again, so that cutting anew gives smaller ones.
    pub fn refused(&mut self, size: usize) {
        let taken = if self.largest_taken < size {
            self.largest_taken
        } else {
            0
        };
        self.limit = taken.max(size / 2) + PUBLICATION_OVERHEAD;
        self.cut_at = self.cut_at.min(self.limit);
    }

    /// The connection broke with one of `size` bytes.
    pub fn broken(&mut self, size: usize) {
        self.taken = 0;
        self.cut_at = (size / 2).max(SMALLEST).min(self.cut_at);
    }
}

/// Bytes of an event towards the limit.
pub(super) fn weight(event: &Event) -> usize {
    event.element.len() + EVENT_OVERHEAD
}

/// Whether an event could be sent alone.
pub(super) fn fits_alone(event: &Event, limit: usize) -> bool {
    PUBLICATION_OVERHEAD + weight(event) <= limit
}

/// Cuts indexes of `events`, which all have one partition key, so that each run stays within the limit.
pub(super) fn cut(events: &[Event], indexes: &[usize], limit: usize) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut size = usize::MAX;
    for index in indexes {
        let Some(event) = events.get(*index) else {
            continue;
        };
        if event.is_single || size.saturating_add(weight(event)) > limit {
            runs.push(Vec::new());
            size = PUBLICATION_OVERHEAD;
        }
        size = if event.is_single {
            usize::MAX
        } else {
            size + weight(event)
        };
        if let Some(run) = runs.last_mut() {
            run.push(*index);
        }
    }
    runs
}

/// The JSON array of a run.
pub(super) fn body(events: &[Event], run: &[usize]) -> Vec<u8> {
    let elements: Vec<&[u8]> = run
        .iter()
        .filter_map(|index| events.get(*index))
        .map(|event| event.element.as_slice())
        .collect();
    let mut body = vec![b'['];
    body.extend(elements.join(&b','));
    body.push(b']');
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(length: usize) -> Event {
        Event {
            id: length.to_string(),
            device: None,
            element: vec![b'1'; length],
            is_single: false,
        }
    }

    #[test]
    fn a_broken_connection_makes_publications_smaller_for_a_while_and_a_refusal_for_good() {
        let mut size = PublicationSize::new(1_000_000);
        size.broken(900_000);
        size.broken(450_000);
        assert_eq!(size.cut_at(), 225_000);
        (0..3 * TAKEN_BEFORE_LARGER).for_each(|_| size.taken(200_000));
        assert_eq!(size.cut_at(), 1_000_000);
        size.refused(900_000);
        assert_eq!(size.cut_at(), 450_000 + PUBLICATION_OVERHEAD);
        (0..100).for_each(|_| size.broken(9));
        assert_eq!(size.cut_at(), SMALLEST);
        (0..20 * TAKEN_BEFORE_LARGER).for_each(|_| size.taken(9));
        assert_eq!(size.cut_at(), 450_000 + PUBLICATION_OVERHEAD);
    }

    proptest! {
        #[test]
        fn runs_keep_the_order_and_the_limit(lengths in prop::collection::vec(1_usize..5000, 1..200), limit in 8000_usize..60_000) {
            let events: Vec<Event> = lengths.into_iter().map(event).collect();
            let indexes: Vec<usize> = (0..events.len()).collect();
            let runs = cut(&events, &indexes, limit);
            prop_assert_eq!(runs.concat(), indexes);
            for (number, run) in runs.iter().enumerate() {
                prop_assert!(body(&events, run).len() + PUBLICATION_OVERHEAD <= limit + run.len());
                // As few as can be: the next event would not have fitted.
                if let Some(next) = runs.get(number + 1) {
                    let size: usize = run.iter().chain(&next[..1]).map(|index| weight(&events[*index])).sum();
                    prop_assert!(size + PUBLICATION_OVERHEAD > limit);
                }
            }
        }
    }
}
