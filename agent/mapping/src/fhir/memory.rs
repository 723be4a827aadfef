//! What is remembered of an Observation that was sent: when the readings in it were taken, which FHIR itself does not
//! tell of a slot or of a value within an hour (rule D5: an older reading never replaces a newer one, also after merging).
//!
//! A record counts only while the server still holds what was sent with it: it carries a hash of that text.

use crate::time::Timestamp;

use super::identity::short_hash;
use super::sampled_data::MAXIMUM_SLOTS;

const FORMAT: u8 = 1;

/// Reading times of an Observation that was sent, per value name.
///
/// ```
/// use iomt_mapping::fhir::SentMemory;
///
/// let memory = SentMemory::default();
/// assert_eq!(SentMemory::from_bytes(&memory.to_bytes()), Some(memory));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentMemory {
    records: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    name: String,
    /// Of the value's text or of the `data` that was sent.
    hash: [u8; 8],
    /// Ascending; one for a Quantity or String.
    times: Vec<Timestamp>,
}

impl SentMemory {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// When the readings of the value `name` were taken, ascending; `None` when nothing is known about `stored`.
    pub(crate) fn times_of(&self, name: &str, stored: &str) -> Option<&[Timestamp]> {
        self.records
            .iter()
            .find(|record| record.name == name && record.hash == short_hash(stored))
            .map(|record| record.times.as_slice())
    }

    /// Remembers that `sent` was written for the value `name`, from readings of these times (ascending).
    pub(crate) fn remember(&mut self, name: &str, sent: &str, times: Vec<Timestamp>) {
        self.records.retain(|record| record.name != name);
        self.records.push(Record {
            name: name.to_owned(),
            hash: short_hash(sent),
            times,
        });
    }

    /// Compact form: regular readings take a few bytes, irregular ones about three each.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        write_number(&mut bytes, self.records.len() as u64);
        for record in &self.records {
            write_number(&mut bytes, record.name.len() as u64);
            bytes.extend_from_slice(record.name.as_bytes());
            bytes.extend_from_slice(&record.hash);
            write_times(&mut bytes, &record.times);
        }
        bytes
    }

    /// Reads [`SentMemory::to_bytes`]; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<SentMemory> {
        let (format, mut rest) = bytes.split_first()?;
        if *format != FORMAT {
            return None;
        }
        let count = read_number(&mut rest)?;
        let mut records = Vec::new();
        for _ in 0..count {
            let length = usize::try_from(read_number(&mut rest)?).ok()?;
            let name = std::str::from_utf8(take(&mut rest, length)?).ok()?.to_owned();
            let hash = take(&mut rest, 8)?.try_into().ok()?;
            let times = read_times(&mut rest)?;
            records.push(Record { name, hash, times });
        }
        rest.is_empty().then_some(SentMemory { records })
    }
}

/// The count, the first time, the unit (greatest common divisor of all distances), then runs of (length, distance).
fn write_times(bytes: &mut Vec<u8>, times: &[Timestamp]) {
    write_number(bytes, times.len() as u64);
    let Some(first) = times.first() else { return };
    bytes.extend_from_slice(&first.ticks().to_le_bytes());
    let distances: Vec<u64> = times
        .windows(2)
        .map(|pair| match pair {
            [earlier, later] => later.ticks().abs_diff(earlier.ticks()),
            _ => 0,
        })
        .collect();
    let unit = distances.iter().copied().fold(0, greatest_common_divisor).max(1);
    write_number(bytes, unit);
    for run in distances.chunk_by(|a, b| a == b) {
        write_number(bytes, run.len() as u64);
        write_number(bytes, run.first().map_or(0, |distance| distance / unit));
    }
}

fn read_times(bytes: &mut &[u8]) -> Option<Vec<Timestamp>> {
    let count = usize::try_from(read_number(bytes)?).ok()?;
    if count == 0 {
        return Some(Vec::new());
    }
    if count > MAXIMUM_SLOTS {
        return None;
    }
    let mut time = Timestamp::from_ticks(i64::from_le_bytes(take(bytes, 8)?.try_into().ok()?))?;
    let unit = read_number(bytes)?;
    let mut times = vec![time];
    while times.len() < count {
        let length = usize::try_from(read_number(bytes)?).ok()?;
        let distance = i64::try_from(read_number(bytes)?.checked_mul(unit)?).ok()?;
        if length == 0 || length > count - times.len() {
            return None;
        }
        for _ in 0..length {
            time = time.plus_ticks(distance)?;
            times.push(time);
        }
    }
    Some(times)
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(ticks: &[i64]) -> Vec<Timestamp> {
        ticks.iter().map(|t| Timestamp::from_ticks(*t).unwrap()).collect()
    }

    #[test]
    fn an_hour_of_regular_readings_takes_a_few_bytes() {
        let regular: Vec<i64> = (0..720)
            .map(|n| 17_000_000_000_000_000 + n * 50_000_000)
            .collect();
        let mut memory = SentMemory::default();
        memory.remember("hr", "60 61", times(&regular));
        let bytes = memory.to_bytes();
        assert!(bytes.len() < 40, "{}", bytes.len());
        assert_eq!(SentMemory::from_bytes(&bytes), Some(memory));
    }

    #[test]
    fn what_the_server_changed_is_not_known_any_more() {
        let mut memory = SentMemory::default();
        memory.remember("hr", "60 61", times(&[1, 2]));
        assert_eq!(memory.times_of("hr", "60 61"), Some(times(&[1, 2]).as_slice()));
        assert_eq!(memory.times_of("hr", "60 99"), None);
        assert_eq!(memory.times_of("spo2", "60 61"), None);
    }

    proptest! {
        #[test]
        fn bytes_come_back(mut ticks in proptest::collection::vec(-1_000_000_000_i64..1_000_000_000, 0..50)) {
            ticks.sort_unstable();
            let mut memory = SentMemory::default();
            memory.remember("a", "x", times(&ticks));
            memory.remember("b", "", Vec::new());
            prop_assert_eq!(SentMemory::from_bytes(&memory.to_bytes()), Some(memory));
        }

        #[test]
        fn foreign_bytes_are_refused_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            let _ = SentMemory::from_bytes(&bytes);
        }
    }
}
