//! What was handed over already: a meter shows its whole memory at every look, and a record leaves once.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

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

    /// Remembers `record`; whether it is new.
    pub fn is_new(&mut self, record: &impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        record.hash(&mut hasher);
        let hash = hasher.finish();
        if !self.known.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
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
        assert!((0..3).all(|number| seen.is_new(&number)));
        assert!((0..3).all(|number| !seen.is_new(&number)));
        assert!(seen.is_new(&3));
        assert!((1..=3).all(|number| !seen.is_new(&number)) && seen.is_new(&0));
    }
}
