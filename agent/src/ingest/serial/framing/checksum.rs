//! Checksums of device protocols.

/// Sum of all bytes modulo 256.
pub fn sum8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Sum of all bytes modulo 65536.
pub fn sum16(bytes: &[u8]) -> u16 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum.wrapping_add(u16::from(*byte)))
}

/// Exclusive or of all bytes.
pub fn xor8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum ^ byte)
}

/// CRC-16 of the Modbus serial line guide: polynomial A001 reflected, initial value FFFF; sent low byte first.
pub fn crc16_modbus(bytes: &[u8]) -> u16 {
    reflected16(bytes, 0xA001, 0xFFFF)
}

/// CRC-16/X.25: polynomial 8408 reflected, initial value FFFF, inverted; sent low byte first.
pub fn crc16_x25(bytes: &[u8]) -> u16 {
    !reflected16(bytes, 0x8408, 0xFFFF)
}

fn reflected16(bytes: &[u8], polynomial: u16, initial: u16) -> u16 {
    bytes.iter().fold(initial, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ polynomial
            } else {
                crc >> 1
            }
        })
    })
}

/// CRC-16/CCITT-FALSE: polynomial 1021, initial value FFFF.
pub fn crc16_ccitt_false(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 != 0 {
                crc << 1 ^ 0x1021
            } else {
                crc << 1
            }
        })
    })
}

/// CRC-8 of the Zephyr BioHarness: polynomial 8C reflected, initial value 0 (CRC-8/MAXIM).
pub fn crc8_maxim(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ byte,
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x8C } else { crc >> 1 },
        )
    })
}

/// CRC-4, polynomial x^4 + x + 1, initial value 0, most significant bit first.
pub fn crc4(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |crc, byte| {
        (0..8).rev().fold(crc, |crc, bit| {
            let shifted = crc << 1 | (byte >> bit & 1);
            if shifted & 0x10 != 0 {
                (shifted ^ 0x13) & 0x0F
            } else {
                shifted & 0x0F
            }
        })
    })
}

/// The value of two hexadecimal digits, of either letter case.
pub fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Bytes as lower-case hexadecimal text.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogues_hold() {
        let check = b"123456789";
        assert_eq!(crc16_modbus(check), 0x4B37);
        assert_eq!(crc16_x25(check), 0x906E);
        assert_eq!(crc16_ccitt_false(check), 0x29B1);
        assert_eq!(crc8_maxim(check), 0xA1);
        assert_eq!(sum8(&[0x01, 0x81, 0x01, 0x00]), 0x83);
        assert_eq!(xor8(b"PHR,072,098"), 0x4E);
    }
}
