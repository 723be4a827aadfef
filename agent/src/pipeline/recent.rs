//! The messages committed last, and what they became, so that the steady state reads nothing back.
//!
//! Both have a limit in bytes of their own. What a message becomes may be a hundred times its size (a block of a waveform is
//! hundreds of measurements), so results leave sooner than messages: the normalizing loop makes them and the forward loops
//! follow within a moment. Both leave after a few seconds, too, which is what keeps the agent small at the paces of a bedside:
//! whoever comes later, such as at the end of a period, reads the journal.

use crate::message::{Position, StoredMessage};
use crate::normalize::{Match, Normalized};
use crate::telemetry::errors::ErrorRecord;
use crate::timekeeping::device::AtReading;
use iomt_mapping::{GroupKey, Measurement, SmolStr};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of messages that stay in memory.
const MESSAGE_BYTES: usize = 768 << 10;
/// Bytes of results that stay in memory.
const RESULT_BYTES: usize = 512 << 10;
/// For so long they stay, in microseconds, though there is room: as long as a forward loop needs that waits for nothing.
const KEPT_US: u64 = 2_000_000;
/// A result that is larger is not kept: it would push out all others.
const LARGE_RESULT: usize = RESULT_BYTES / 4;
/// What an allocation costs beside its bytes.
const ALLOCATION: usize = 2 * size_of::<usize>();

/// A committed message.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub stored: Arc<StoredMessage>,
}

impl Entry {
    /// An entry of a message.
    pub fn new(stored: StoredMessage) -> Rc<Entry> {
        Rc::new(Entry {
            stored: Arc::new(stored),
        })
    }

    /// Bytes that the entry holds in memory, roughly.
    fn weight(&self) -> usize {
        self.stored.message.weight() + size_of::<StoredMessage>()
    }
}

/// Bytes that a measurement holds in memory, roughly: of a key that others have too, its share.
pub fn weight_of_measurement(measurement: &Measurement) -> usize {
    let text = |text: &str| text.len() + ALLOCATION;
    let optional = |id: &Option<String>| id.as_deref().map_or(0, text);
    let long = |text: &SmolStr| {
        if text.is_heap_allocated() {
            text.len() + ALLOCATION
        } else {
            0
        }
    };
    let properties = measurement
        .properties
        .iter()
        .map(|property| size_of_val(property) + long(&property.name) + long(&property.value));
    let key = size_of::<GroupKey>()
        + ALLOCATION
        + text(&measurement.type_name)
        + text(&measurement.device_id)
        + optional(&measurement.patient_id)
        + optional(&measurement.encounter_id)
        + optional(&measurement.correlation_id);
    size_of::<Measurement>()
        + 2 * ALLOCATION
        + key / Arc::strong_count(&measurement.key).max(1)
        + properties.sum::<usize>()
}

/// Bytes that a result holds in memory, roughly.
fn weight_of(result: &Normalized) -> usize {
    let of_error = |error: &ErrorRecord| size_of::<ErrorRecord>() + error.text.len() + 4 * ALLOCATION;
    let clock = size_of::<AtReading>() + ALLOCATION;
    let of_match = |found: &Match| {
        size_of::<Match>()
            + weight_of_measurement(&found.measurement)
            + found.clock.as_ref().map_or(0, |_| clock)
    };
    size_of::<Normalized>()
        + 3 * ALLOCATION
        + result.matches.iter().map(of_match).sum::<usize>()
        + result
            .failed
            .iter()
            .chain(&result.unparsable)
            .map(of_error)
            .sum::<usize>()
}

/// Messages of a commit.
#[derive(Debug)]
struct Batch {
    /// Monotonic microseconds of the commit.
    committed_us: u64,
    weight: usize,
    entries: Vec<Rc<Entry>>,
}

/// The messages committed last.
#[derive(Debug, Default)]
pub struct Recent {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// What they became, with its weight.
    results: BTreeMap<Position, (usize, Rc<Normalized>)>,
    result_bytes: usize,
}

impl Recent {
    /// Takes in what was committed at `now_us` of the monotonic clock; what is old leaves, and the oldest leave for it.
    pub(super) fn push(&mut self, entries: Vec<Rc<Entry>>, now_us: u64) {
        let weight = entries.iter().map(|entry| entry.weight()).sum();
        self.bytes += weight;
        self.batches.push_back(Batch {
            committed_us: now_us,
            weight,
            entries,
        });
        while self.batches.len() > 1
            && let Some(oldest) = self.batches.front()
            && (self.bytes > MESSAGE_BYTES || oldest.committed_us + KEPT_US < now_us)
        {
            self.bytes -= oldest.weight;
            self.batches.pop_front();
        }
        let first = self.first();
        while let Some(oldest) = self.results.first_entry()
            && first.is_none_or(|first| *oldest.key() < first)
        {
            self.result_bytes -= oldest.remove().0;
        }
    }

    fn first(&self) -> Option<Position> {
        let oldest = self.batches.front()?.entries.first()?;
        Some(oldest.stored.position)
    }

    /// The rest of the batch that holds `from`, if it is in memory.
    pub(super) fn from(&self, from: Position) -> Option<Vec<Rc<Entry>>> {
        let is_before = |batch: &Batch| {
            let last = batch.entries.last();
            last.is_none_or(|entry| entry.stored.position < from)
        };
        let found = self.batches.partition_point(is_before);
        let entries = &self.batches.get(found)?.entries;
        let first = entries.first()?.stored.position;
        if first > from {
            return None;
        }
        let skipped = usize::try_from(from - first).ok()?;
        Some(entries.get(skipped..)?.to_vec())
    }

    /// What the message at `position` became with its own packs, if that is in memory.
    pub(super) fn result(&self, position: Position) -> Option<Rc<Normalized>> {
        self.results.get(&position).map(|(_, result)| Rc::clone(result))
    }

    /// Keeps what a message became, if the message itself is in memory; the oldest leave for it.
    pub(super) fn keep(&mut self, position: Position, result: &Rc<Normalized>) {
        let weight = weight_of(result);
        if weight > LARGE_RESULT || self.first().is_none_or(|first| position < first) {
            return;
        }
        self.result_bytes += weight;
        if let Some((before, _)) = self.results.insert(position, (weight, Rc::clone(result))) {
            self.result_bytes -= before;
        }
        while self.result_bytes > RESULT_BYTES
            && let Some((_, (weight, _))) = self.results.pop_first()
        {
            self.result_bytes -= weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Payload, PayloadKind, RevisionId, SourceId, Stamp};
    use crate::packs::{Pack, PackText};
    use bytes::Bytes;
    use iomt_mapping::{Property, Timestamp};

    fn entry(position: Position, bytes: usize) -> Rc<Entry> {
        Entry::new(StoredMessage {
            position,
            revision: RevisionId(1),
            message: Message {
                source: SourceId(1),
                stamp: Stamp {
                    boot: 1,
                    monotonic_us: 0,
                    wall: Timestamp::from_ticks(0).unwrap(),
                    trusted: true,
                },
                payload: Payload(Bytes::from(vec![0; bytes])),
                kind: PayloadKind::Whole,
                topic: None,
                properties: Vec::new(),
                device_id: None,
                possible_repeat: false,
                record: None,
                ack: None,
            },
        })
    }

    fn any_pack() -> Arc<Pack> {
        let (pack, findings) = Pack::load(PackText {
            name: "any".to_owned(),
            device: r#"{"templateType": "CollectionContent", "template": []}"#.to_owned(),
            fhir: None,
            agent: None,
        });
        Arc::new(pack.unwrap_or_else(|| panic!("{findings:?}")))
    }

    fn result(pack: &Arc<Pack>, measurements: u32) -> Rc<Normalized> {
        let key = Arc::new(GroupKey {
            type_name: "wave".to_owned(),
            device_id: "monitor-1".to_owned(),
            ..GroupKey::default()
        });
        let one = |number| Match {
            number,
            pack: Arc::clone(pack),
            measurement: Arc::new(Measurement {
                key: Arc::clone(&key),
                occurrence_time: Timestamp::from_ticks(0).unwrap(),
                properties: vec![Property {
                    name: "wave".into(),
                    value: "12.5".into(),
                }],
            }),
            hold: None,
            clock: None,
        };
        Rc::new(Normalized {
            matches: (0..measurements).map(one).collect(),
            ..Normalized::default()
        })
    }

    /// The bound is one of bytes, whether a message becomes one measurement or hundreds; no message leaves for results.
    #[test]
    fn what_messages_became_leaves_before_the_messages_do() {
        let pack = any_pack();
        for (measurements, most) in [(1, 2000), (250, 30)] {
            let mut recent = Recent::default();
            for position in 1..=200 {
                recent.push(vec![entry(position, 1000)], 0);
                recent.keep(position, &result(&pack, measurements));
                assert!(recent.result_bytes <= RESULT_BYTES);
            }
            let kept = (1..=200).filter(|at| recent.result(*at).is_some()).count();
            assert!(kept >= 3 && kept <= most.min(200), "{measurements}: {kept}");
            assert!(recent.result(200).is_some() && recent.from(1).is_some());
            let counted: usize = recent.results.values().map(|(weight, _)| weight).sum();
            assert_eq!(counted, recent.result_bytes);
        }
    }

    #[test]
    fn what_is_older_than_a_few_seconds_leaves_though_there_is_room() {
        let pack = any_pack();
        let mut recent = Recent::default();
        for second in 1..=60 {
            recent.push(vec![entry(second, 300)], second * 1_000_000);
            recent.keep(second, &result(&pack, 1));
        }
        let kept: Vec<Position> = (1..=60).filter(|at| recent.from(*at).is_some()).collect();
        assert_eq!(kept, [58, 59, 60]);
        let results: Vec<Position> = recent.results.keys().copied().collect();
        assert_eq!(results, kept);
        // The last one stays until another one comes.
        recent.push(vec![entry(61, 300)], 600 * 1_000_000);
        assert_eq!(recent.first(), Some(61));
    }

    #[test]
    fn results_of_messages_that_have_left_leave_with_them() {
        let pack = any_pack();
        let mut recent = Recent::default();
        for position in 1..=100 {
            recent.push(vec![entry(position, 100_000)], 0);
            recent.keep(position, &result(&pack, 1));
        }
        assert!(recent.bytes <= MESSAGE_BYTES);
        let here: Vec<Position> = (1..=100).filter(|at| recent.from(*at).is_some()).collect();
        let results: Vec<Position> = recent.results.keys().copied().collect();
        assert_eq!(here, results);
        // What is read back from the journal is nobody's but the reader's.
        recent.keep(1, &result(&pack, 1));
        assert!(recent.result(1).is_none());
        // One that is too large pushes nothing out.
        recent.keep(100, &result(&pack, 5000));
        assert_eq!(recent.results.len(), results.len());
    }
}
