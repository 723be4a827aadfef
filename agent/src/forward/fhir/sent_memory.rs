//! Bytes of a [`crate::forward::SentPeriod`]: length and text of the server's version, then the mapping engine's memory.

use crate::associations::Ticks;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::SentMemory;

/// The bytes to be stored.
pub fn encode(version: Option<&str>, memory: &SentMemory) -> Vec<u8> {
    let version = version.unwrap_or_default().as_bytes();
    let (length, version) = match u8::try_from(version.len()) {
        Ok(length) => (length, version),
        Err(_) => (0, [].as_slice()),
    };
    let mut bytes = vec![length];
    bytes.extend_from_slice(version);
    bytes.extend_from_slice(&memory.to_bytes());
    bytes
}

/// The memory within [`encode`]d bytes; `None` for anything else. The version is for people and tools: the memory itself
/// counts only while the server still holds what was sent.
pub fn decode(bytes: &[u8]) -> Option<SentMemory> {
    let (length, rest) = bytes.split_first()?;
    SentMemory::from_bytes(rest.get(usize::from(*length)..)?)
}

/// When the memory of a period that ends then may be forgotten, with so many ticks of a correction window: UTC ticks of
/// 100 ns. Until then it can be merged with certainty about the times of its readings.
pub fn expires(end: Timestamp, window: Ticks) -> i64 {
    end.ticks().saturating_add(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_foreign_ones_are_refused() {
        let memory = SentMemory::default();
        for version in [None, Some("3"), Some(&*"v".repeat(300))] {
            assert_eq!(
                decode(&encode(version, &memory)),
                Some(SentMemory::default()),
                "{version:?}"
            );
        }
        for foreign in [&[][..], &[9], &[200, 1, 2], b"\x01"] {
            assert_eq!(decode(foreign), None);
        }
    }
}
