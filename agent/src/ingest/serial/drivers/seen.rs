//! What was handed over already: a meter shows its whole memory at every look, and a record leaves once.
//!
//! The identity of a record travels with its message and is kept by the store in the same commit
//! ([`Message::record`](crate::message::Message::record)), so that the memory survives a restart: what was committed is known,
//! and what was not is taken again from the device.

use ring::digest::{SHA256, digest};
use std::collections::{HashSet, VecDeque};

/// The records seen last, by 64 bits of hash each: two of some thousand are the same once in 10^12.
#[derive(Debug)]
pub struct Seen {
    known: HashSet<u64>,
    order: VecDeque<u64>,
    limit: usize,
}

impl Seen {
    /// Remembers the last `limit` records: more than the memory of one meter, so that none is taken for new while it is there.
    pub fn new(limit: usize) -> Seen {
        Seen {
            known: HashSet::new(),
            order: VecDeque::new(),
            limit,
        }
    }

    /// Remembers `record`; its identity when it is new. The same in every version of the program.
    pub fn take_new(&mut self, record: &str) -> Option<u64> {
        let hash = digest(&SHA256, record.as_bytes());
        let first = hash.as_ref().first_chunk::<8>()?;
        let identity = u64::from_le_bytes(*first);
        self.insert(identity).then_some(identity)
    }

    /// Remembers records of an earlier life, oldest first.
    pub fn remember(&mut self, identities: &[u64]) {
        for identity in identities {
            self.insert(*identity);
        }
    }

    fn insert(&mut self, identity: u64) -> bool {
        if !self.known.insert(identity) {
            return false;
        }
        self.order.push_back(identity);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_new_once_and_only_the_oldest_are_forgotten() {
        let mut seen = Seen::new(3);
        let mut is_new = |number: usize| seen.take_new(&number.to_string()).is_some();
        assert!((0..3).all(&mut is_new));
        assert!(!(0..3).any(&mut is_new));
        assert!(is_new(3));
        assert!(!(1..=3).any(&mut is_new) && is_new(0));
    }

    #[test]
    fn identities_are_those_of_earlier_versions() {
        let (mut before, mut after) = (Seen::new(8), Seen::new(8));
        let identity = before.take_new("2026-03-01T07:00:00 98 mg/dL").unwrap();
        assert_eq!(identity, 0x5674_17a7_389c_aa9a, "{identity:#x}");
        after.remember(&[identity]);
        assert_eq!(after.take_new("2026-03-01T07:00:00 98 mg/dL"), None);
        assert!(after.take_new("2026-03-01T07:05:00 98 mg/dL").is_some());
    }
}
