//! Cuts events into publications that the hub takes: one partition key each, below the size limit, in order.

use super::event::Event;

/// Bytes of a publication that are not in its events: URL, headers with a token, array.
pub(super) const PUBLICATION_OVERHEAD: usize = 2048;

/// Bytes that the hub may count for an event beside its JSON text.
const EVENT_OVERHEAD: usize = 64;

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
        if size.saturating_add(weight(event)) > limit {
            runs.push(Vec::new());
            size = PUBLICATION_OVERHEAD;
        }
        size += weight(event);
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
        }
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
