//! Numbers of group keys. A row names its key by number, so that it stays small.
//!
//! A key lives as long as a row names it: each block of a waveform has a correlation id, and so a key, of its own. Keys that
//! no row names are forgotten when changes are taken for a commit, once there are many of them; most of them were never
//! written, because their readings were sent before.
//!
//! Invariants:
//! 1. A number that a row names has its key, in memory and in the store.
//! 2. A number stands for one key only, as long as the program runs.
//! 3. After each commit there are at most twice as many keys as rows, and [`SPARE`].

use super::Outbox;
use super::unwritten::Unwritten;
use crate::forward::GroupKey;
use crate::message::Position;
use iomt_mapping::Measurement;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Keys without a row that are kept in any case: a device's next reading has the same one.
const SPARE: usize = 256;

/// Group keys by number, and back.
#[derive(Debug, Default)]
pub(super) struct Series {
    keys: HashMap<u32, Arc<GroupKey>>,
    /// Numbers by hash of their keys.
    numbers: HashMap<u64, Vec<u32>>,
    next: u32,
    /// The one that was asked for last: readings of one kind follow each other.
    last: Option<(u32, Arc<GroupKey>)>,
}

/// What a key is made of.
#[derive(Clone, Copy, Hash, PartialEq)]
struct Parts<'k> {
    pack: &'k str,
    device: &'k str,
    type_name: &'k str,
    patient: Option<&'k str>,
    encounter: Option<&'k str>,
    correlation: Option<&'k str>,
}

impl<'k> Parts<'k> {
    fn of_key(key: &'k GroupKey) -> Parts<'k> {
        Parts {
            pack: &key.pack,
            device: &key.device,
            type_name: &key.type_name,
            patient: key.patient.as_deref(),
            encounter: key.encounter.as_deref(),
            correlation: key.correlation.as_deref(),
        }
    }

    fn of_measurement(pack: &'k str, measurement: &'k Measurement) -> Parts<'k> {
        Parts {
            pack,
            device: &measurement.device_id,
            type_name: &measurement.type_name,
            patient: measurement.patient_id.as_deref(),
            encounter: measurement.encounter_id.as_deref(),
            correlation: measurement.correlation_id.as_deref(),
        }
    }

    fn hash_of(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    fn to_key(self) -> GroupKey {
        GroupKey {
            pack: Arc::from(self.pack),
            device: Arc::from(self.device),
            type_name: Arc::from(self.type_name),
            patient: self.patient.map(Arc::from),
            encounter: self.encounter.map(Arc::from),
            correlation: self.correlation.map(Arc::from),
        }
    }
}

impl Series {
    /// A key as the store had it.
    pub(super) fn restore(&mut self, id: u32, key: Arc<GroupKey>) {
        self.next = self.next.max(id + 1);
        self.insert(id, key);
    }

    pub(super) fn get(&self, id: u32) -> Option<&Arc<GroupKey>> {
        self.keys.get(&id)
    }

    fn insert(&mut self, id: u32, key: Arc<GroupKey>) {
        let hash = Parts::of_key(&key).hash_of();
        self.numbers.entry(hash).or_default().push(id);
        self.keys.insert(id, key);
    }

    /// The number of a key, and whether it is new.
    fn number(&mut self, parts: Parts<'_>) -> (u32, bool) {
        if let Some((id, key)) = &self.last
            && Parts::of_key(key) == parts
        {
            return (*id, false);
        }
        let known = self.numbers.get(&parts.hash_of()).into_iter().flatten();
        let same = |id: &&u32| self.keys.get(id).is_some_and(|key| Parts::of_key(key) == parts);
        if let Some(id) = known.copied().find(|id| same(&id)) {
            self.last = self.keys.get(&id).map(|key| (id, Arc::clone(key)));
            return (id, false);
        }
        let id = self.next;
        self.next += 1;
        let key = Arc::new(parts.to_key());
        self.insert(id, Arc::clone(&key));
        self.last = Some((id, key));
        (id, true)
    }

    /// Forgets the keys that are not `named`; gives their numbers.
    fn forget_others(&mut self, named: &HashSet<u32>) -> HashSet<u32> {
        let others = self.keys.keys().copied().filter(|id| !named.contains(id));
        let gone: HashSet<u32> = others.collect();
        self.keys.retain(|id, _| named.contains(id));
        self.keys.shrink_to(named.len() + SPARE);
        self.numbers.retain(|_, ids| {
            ids.retain(|id| named.contains(id));
            !ids.is_empty()
        });
        self.numbers.shrink_to(named.len() + SPARE);
        self.last = None;
        gone
    }
}

impl Outbox {
    /// The group key with this number.
    pub fn key(&self, series: u32) -> Option<&Arc<GroupKey>> {
        self.series.get(series)
    }

    /// Number of the key of a measurement, given anew if it has none. It holds until changes are taken, and from then on as
    /// long as a row names it.
    pub fn series_of(&mut self, pack: &str, measurement: &Measurement) -> u32 {
        self.number_of(Parts::of_measurement(pack, measurement))
    }

    /// Number of a group key, given anew if it has none: what [`Outbox::key`] gave is taken again after others had their turn.
    pub fn series_of_key(&mut self, key: &GroupKey) -> u32 {
        self.number_of(Parts::of_key(key))
    }

    fn number_of(&mut self, parts: Parts<'_>) -> u32 {
        let (id, is_new) = self.series.number(parts);
        if is_new {
            self.pending.series.push(id);
        }
        id
    }

    /// A raw message that a destination gets once more though its cursor has passed it. It is counted already.
    pub fn add_message_again(&mut self, destination: u32, position: Position, wall: i64, due_us: u64) {
        let series = self.series_of_key(&GroupKey::of_messages());
        let place = vec![(position, 0)];
        self.insert_refs(destination, series, None, place, None, None, wall, due_us, 0);
    }

    /// Forgets keys that no row names, once they are many; those that the store may have leave it with the next commit.
    pub(super) fn forget_series(&mut self) {
        if self.series.keys.len() <= self.rows.len() * 2 + SPARE {
            return;
        }
        let named = self.rows.values().map(|pending| pending.row.series).collect();
        let mut gone = self.series.forget_others(&named);
        self.pending.series.retain(|id| !gone.remove(id));
        self.pending.series_gone.extend(gone);
    }

    /// Keys that the store needs for the rows that it gets now; the others wait until a row names them.
    pub(super) fn take_series(&mut self, taken: &mut Unwritten) -> Vec<(u32, Arc<GroupKey>)> {
        let rows = taken.rows.iter().filter_map(|id| self.rows.get(id));
        let named: HashSet<u32> = rows.map(|pending| pending.row.series).collect();
        let (now, later) = taken.series.iter().copied().partition(|id| named.contains(id));
        (taken.series, self.pending.series) = (now, later);
        let keys = taken.series.iter();
        keys.filter_map(|id| Some((*id, Arc::clone(self.key(*id)?))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Fate;
    use crate::message::StoredMessage;
    use crate::store::outbox::Settled;
    use crate::store::outbox::tests::stored;
    use iomt_mapping::Timestamp;
    use std::collections::BTreeMap;

    fn block(number: u64) -> Measurement {
        Measurement {
            key: Arc::new(iomt_mapping::GroupKey {
                type_name: "pleth_waveform".to_owned(),
                device_id: "xpod".to_owned(),
                correlation_id: Some(format!("block-{number}")),
                ..Default::default()
            }),
            occurrence_time: Timestamp::from_ticks(0).unwrap(),
            properties: Vec::new(),
        }
    }

    fn deliver(outbox: &mut Outbox, number: u64, message: &Arc<StoredMessage>) {
        let row = outbox.rows().find(|p| p.row.first == number).unwrap().row.id;
        let settled = Settled {
            row,
            position: number,
            match_number: 0,
            fate: Fate::Delivered,
            message: Some(Arc::clone(message)),
        };
        outbox.settle(1, &HashMap::from([(row, number)]), vec![settled], 0);
    }

    /// Invariants 1 and 3, with a commit in three that fails.
    #[test]
    fn a_row_has_its_key_and_keys_of_what_was_sent_are_forgotten() {
        let (mut outbox, message) = (Outbox::default(), stored(1));
        let (mut keys, mut rows) = (BTreeMap::new(), BTreeMap::new());
        let mut written = 0;
        for number in 1..=5000 {
            let series = outbox.series_of("nonin", &block(number));
            outbox.add(1, series, None, number, 0, 0);
            // One in ten waits for a while.
            if number % 10 != 0 {
                deliver(&mut outbox, number, &message);
            } else if number > 500 {
                deliver(&mut outbox, number - 500, &message);
            }
            if number % 64 != 0 {
                continue;
            }
            let changes = outbox.take_changes();
            if number % 192 == 0 {
                outbox.not_written();
                continue;
            }
            outbox.written();
            written += changes.series.len();
            keys.extend(changes.series);
            changes.series_gone.iter().for_each(|id| drop(keys.remove(id)));
            rows.extend(changes.rows.into_iter().map(|row| (row.id, row)));
            changes.rows_gone.iter().for_each(|id| drop(rows.remove(id)));
            for row in rows.values() {
                let wanted = format!("block-{}", row.first);
                assert_eq!(keys[&row.series].correlation.as_deref(), Some(&*wanted));
                assert_eq!(outbox.key(row.series), Some(&keys[&row.series]));
            }
            assert!(outbox.series.keys.len() <= outbox.rows.len() * 2 + SPARE);
            assert!(keys.len() <= outbox.rows.len() * 2 + SPARE, "{}", keys.len());
        }
        assert!(
            written < 600,
            "what was sent before the commit is not written: {written}"
        );
    }

    #[test]
    fn a_key_has_one_number_while_a_row_names_it() {
        let mut outbox = Outbox::default();
        let number = outbox.series_of("nonin", &block(0));
        outbox.add(1, number, None, 1, 0, 0);
        let key = Arc::clone(outbox.key(number).unwrap());
        for other in 1..2000 {
            let other = outbox.series_of("nonin", &block(other));
            assert_ne!(other, number);
        }
        outbox.take_changes();
        outbox.written();
        assert_eq!(outbox.series.keys.len(), 1);
        assert_eq!(outbox.series_of("nonin", &block(0)), number);
        assert_eq!(outbox.series_of_key(&key), number);
        assert_ne!(
            outbox.series_of("berry-bci", &block(0)),
            number,
            "a pack is a namespace"
        );
    }
}
