//! How much a server is given at a time: entries of a Bundle, and Bundles under way.
//!
//! Invariants:
//! 1. Both grow step by step while the round trip holds, and halve when the server asks to slow down, fails or is silent.
//! 2. After trouble one Bundle goes alone: a server that comes back is tried by one request and not by a crowd.

/// Entries of the first Bundle; later ones adapt.
const FIRST_ENTRIES: usize = 50;
/// Azure takes at most 500 entries.
const MOST_ENTRIES: usize = 500;
/// Bundles under way at a time; [`crate::forward::fhir::REQUESTS`] threads carry them.
const MOST_UNDER_WAY: usize = crate::forward::fhir::REQUESTS;
/// A Bundle that takes longer than this is large enough: microseconds.
const SLOW_US: u64 = 4_000_000;
/// What is answered within this is quick, whatever quicker answers there were: microseconds.
const QUICK_US: u64 = 20_000;
/// Bundles are not made smaller than this only to have several under way.
const SHARE: usize = 100;
/// Observations that a batch of the destination should have, at least and at most: a small one to a server in trouble,
/// and no more in memory than a gateway can spare.
const FEWEST: usize = 125;
const MOST: usize = 500;

/// The pace of one server.
#[derive(Debug)]
pub struct Pace {
    entries: usize,
    under_way: usize,
    /// Bundles that were answered in time since the last step up.
    in_time: usize,
    /// Microseconds that quick answers took, by the size of the request (powers of two): round trip and work are not told
    /// apart, so only requests of one size are compared. Slower ones become usual with time.
    usual: [u64; 10],
    /// The last exchange was trouble.
    trial: bool,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            entries: FIRST_ENTRIES,
            under_way: 1,
            in_time: 0,
            usual: [u64::MAX; 10],
            trial: false,
        }
    }
}

impl Pace {
    /// Bundles that may be under way now (invariant 2).
    pub fn under_way(&self) -> usize {
        if self.trial { 1 } else { self.under_way }
    }

    /// Entries of a Bundle.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// An equal share of `count` entries for each Bundle that may be under way.
    pub fn share(&self, count: usize) -> usize {
        count.div_ceil(self.under_way()).max(SHARE)
    }

    /// Observations that are worth a batch.
    pub fn appetite(&self) -> usize {
        (self.entries * self.under_way()).clamp(FEWEST, MOST)
    }

    /// A request with so many entries was answered after `took_us`.
    pub fn answered(&mut self, entries: usize, took_us: u64) {
        self.trial = false;
        let size = entries.max(1).ilog2().min(9) as usize;
        let Some(usual) = self.usual.get_mut(size) else {
            return;
        };
        let holds = took_us < QUICK_US || took_us / 2 <= *usual;
        *usual = took_us.min(usual.saturating_add(*usual / 64 + 1));
        // A few entries say nothing about what many cost.
        if entries < self.entries.min(SHARE) {
            return;
        }
        if !holds || took_us >= SLOW_US {
            self.in_time = 0;
            self.under_way = (self.under_way - 1).max(1);
            return;
        }
        if entries >= self.entries {
            self.entries = (self.entries + self.entries / 2 + 1).min(MOST_ENTRIES);
        }
        self.in_time += 1;
        if self.in_time >= self.under_way {
            self.in_time = 0;
            self.under_way = (self.under_way + 1).min(MOST_UNDER_WAY);
        }
    }

    /// A request with so many entries failed, or the server asks to slow down.
    pub fn trouble(&mut self, entries: usize) {
        self.entries = (entries / 2).clamp(1, self.entries);
        self.under_way = (self.under_way / 2).max(1);
        self.in_time = 0;
        self.trial = true;
    }

    /// A Bundle with so many entries is too large.
    pub fn too_large(&mut self, entries: usize) {
        self.entries = (entries / 2).clamp(1, self.entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers `count` Bundles of the size that the pace asks for.
    fn answer(pace: &mut Pace, count: usize, took_us: impl Fn(usize) -> u64) {
        for _ in 0..count {
            let entries = pace.entries();
            pace.answered(entries, took_us(entries));
        }
    }

    #[test]
    fn both_grow_while_the_round_trip_holds() {
        let mut pace = Pace::default();
        assert_eq!(
            (pace.entries(), pace.under_way(), pace.appetite()),
            (50, 1, FEWEST)
        );
        answer(&mut pace, 20, |_| 50_000);
        assert_eq!(
            (pace.entries(), pace.under_way(), pace.appetite()),
            (MOST_ENTRIES, MOST_UNDER_WAY, MOST)
        );
        // An equal share each, but no crumbs.
        assert_eq!(
            [pace.share(MOST), pace.share(400), pace.share(10)],
            [125, 100, 100]
        );
        // A small request takes as long as a large one over a long line: that is no sign of trouble.
        pace.answered(100, 50_000);
        assert_eq!(pace.under_way(), MOST_UNDER_WAY);
    }

    #[test]
    fn a_server_that_gets_slower_gets_fewer_at_a_time_until_that_is_usual() {
        let mut pace = Pace::default();
        answer(&mut pace, 20, |entries| 100 * entries as u64);
        assert_eq!(pace.under_way(), MOST_UNDER_WAY);
        answer(&mut pace, 3, |entries| 300 * entries as u64);
        assert_eq!(pace.under_way(), 1);
        answer(&mut pace, 200, |entries| 300 * entries as u64);
        assert_eq!(pace.under_way(), MOST_UNDER_WAY);
    }

    #[test]
    fn trouble_halves_the_size_and_the_next_goes_alone() {
        let mut pace = Pace::default();
        answer(&mut pace, 20, |_| 50_000);
        let size = pace.entries();
        // All that were under way fail.
        for _ in 0..pace.under_way {
            pace.trouble(size);
        }
        assert_eq!((pace.entries(), pace.under_way()), (size / 2, 1));
        pace.answered(1, 50_000);
        assert!(!pace.trial);
        for _ in 0..20 {
            pace.trouble(pace.entries());
        }
        assert_eq!(
            (pace.entries(), pace.under_way(), pace.appetite()),
            (1, 1, FEWEST)
        );
    }
}
