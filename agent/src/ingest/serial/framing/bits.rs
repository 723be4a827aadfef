//! Reading numbers out of frames. What lies outside the frame reads as 0: the framing has checked the length before.

/// The byte at `at`.
pub fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// Unsigned 16 bit, most significant byte first.
pub fn u16_be(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([byte(bytes, at), byte(bytes, at + 1)])
}

/// Unsigned 16 bit, least significant byte first.
pub fn u16_le(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([byte(bytes, at), byte(bytes, at + 1)])
}

/// Signed 16 bit, least significant byte first.
pub fn i16_le(bytes: &[u8], at: usize) -> i16 {
    i16::from_le_bytes([byte(bytes, at), byte(bytes, at + 1)])
}

/// Signed 16 bit, most significant byte first.
pub fn i16_be(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([byte(bytes, at), byte(bytes, at + 1)])
}

/// Unsigned 32 bit, least significant byte first.
pub fn u32_le(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([
        byte(bytes, at),
        byte(bytes, at + 1),
        byte(bytes, at + 2),
        byte(bytes, at + 3),
    ])
}

/// Signed 32 bit, least significant byte first.
pub fn i32_le(bytes: &[u8], at: usize) -> i32 {
    i32::from_le_bytes([
        byte(bytes, at),
        byte(bytes, at + 1),
        byte(bytes, at + 2),
        byte(bytes, at + 3),
    ])
}

/// Unsigned 32 bit, most significant byte first.
pub fn u32_be(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([
        byte(bytes, at),
        byte(bytes, at + 1),
        byte(bytes, at + 2),
        byte(bytes, at + 3),
    ])
}

/// The bytes from `at` on, `length` of them or as many as there are.
pub fn part(bytes: &[u8], at: usize, length: usize) -> &[u8] {
    let end = at.saturating_add(length).min(bytes.len());
    bytes.get(at..end).unwrap_or(&[])
}

/// Whether a bit is set.
pub fn bit(byte: u8, number: u8) -> bool {
    byte >> number & 1 == 1
}

/// A decimal number written in binary coded decimal, two digits.
pub fn bcd(byte: u8) -> Option<u8> {
    let (tens, ones) = (byte >> 4, byte & 15);
    (tens < 10 && ones < 10).then_some(tens * 10 + ones)
}

/// Bytes of text; those outside ASCII become `?`.
pub fn ascii(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| if b.is_ascii() { char::from(*b) } else { '?' })
        .collect()
}
