//! Chance: jitter of back-offs and ids. Seeded in simulation, from the operating system otherwise.

use std::cell::Cell;

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread draws the same numbers for the same seed.
pub fn seed(seed: u64) {
    SEEDED.set(Some(seed));
}

/// A random number.
pub fn number() -> u64 {
    match SEEDED.get() {
        // SplitMix64 (Steele, Lea, Flood 2014).
        Some(state) => {
            let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            SEEDED.set(Some(state));
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
        None => {
            let mut bytes = [0; 8];
            let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
            // Jitter without chance is still a valid pause; the operating system's source does not fail once booted.
            filled.map_or_else(|_| crate::clock::monotonic_us(), |()| u64::from_le_bytes(bytes))
        }
    }
}

/// A number from 0 to below `limit` (0 when `limit` is 0).
pub fn below(limit: u64) -> u64 {
    if limit == 0 { 0 } else { number() % limit }
}

/// 32 hexadecimal digits, for store and client ids.
pub fn id() -> String {
    format!("{:016x}{:016x}", number(), number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        seed(7);
        let first: Vec<u64> = (0..5).map(|_| below(1000)).collect();
        seed(7);
        assert_eq!(first, (0..5).map(|_| below(1000)).collect::<Vec<_>>());
        assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
