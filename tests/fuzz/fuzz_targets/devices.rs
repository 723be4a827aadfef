//! Serial drivers and framings under arbitrary bytes. The first byte chooses driver or framing, the second the size of the
//! pieces in which the rest arrives, and what happens between them: time that passes, a cable that is pulled, a clock that is
//! not set. `cargo fuzz run devices` in `tests/fuzz`.
//!
//! Nothing may panic or hang; what a driver holds, says and sends is bounded by what it was given; every body is JSON; and
//! only byte strings of the driver's list are sent.

#![no_main]

use bedside_agent::ingest::serial::drivers::{Direction, Driver, DriverInfo, Now, Output, drivers};
use bedside_agent::ingest::serial::framing::{self, FramingConfig};
use iomt_mapping::Timestamp;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Generic framings: every kind, with formats and checks.
static FRAMINGS: LazyLock<Vec<FramingConfig>> = LazyLock::new(|| {
    let texts = [
        r#"{"framing": "lines", "format": "json"}"#,
        r#"{"framing": "lines", "format": "csv", "header": true}"#,
        r#"{"framing": "lines", "format": "csv", "columns": ["a", "b", ""], "text": ["a"]}"#,
        r#"{"framing": "lines", "format": "label"}"#,
        r#"{"framing": "lines", "format": "hex"}"#,
        r#"{"framing": "stx-etx", "checksum": "xor8-hex", "format": "csv"}"#,
        r#"{"framing": "stx-etx", "checksum": "none", "format": "hex"}"#,
        r#"{"framing": "slip", "checksum": "crc16-x25", "format": "hex"}"#,
        r#"{"framing": "slip", "format": "json"}"#,
        r#"{"framing": "cobs", "checksum": "crc16-ccitt", "format": "hex"}"#,
        r#"{"framing": "cobs", "format": "label"}"#,
        r#"{"framing": "length-crc16", "format": "hex"}"#,
        r#"{"framing": "length-crc16", "length_bytes": 2, "format": "json"}"#,
        r#"{"framing": "modbus-rtu", "format": "hex"}"#,
        r#"{"framing": "astm", "format": "csv", "delimiter": "|"}"#,
        r#"{"framing": "mllp", "format": "csv"}"#,
        r#"{"framing": "nmea", "format": "csv"}"#,
    ];
    let with_limit = |text: &&str| {
        let mut config: FramingConfig = serde_json::from_str(text).expect("a configuration");
        config.max_bytes = LONGEST_FRAME;
        config
    };
    texts.iter().map(with_limit).collect()
});

const LONGEST_FRAME: usize = 300;
/// More than any driver needs for half a frame.
const HELD_BYTES: usize = 2500;
/// Messages in one answer to a piece: a byte is a sample of six waveforms at most, or the end of a frame.
const MESSAGES_PER_BYTE: usize = 6;

fuzz_target!(|data: &[u8]| {
    let [choice, pieces, rest @ ..] = data else { return };
    let (known, choice) = (drivers(), usize::from(*choice));
    match known.get(choice % (known.len() + FRAMINGS.len())) {
        Some(info) => {
            let driver = info.create();
            play(driver, Some(info), *pieces, rest);
            for direction in [Direction::DeviceToHost, Direction::HostToDevice] {
                let described = (info.describe)(direction, rest);
                assert!(described.skipped <= rest.len() as u64, "more bytes skipped than there are");
            }
        }
        None => {
            let Some(config) = FRAMINGS.get(choice % (known.len() + FRAMINGS.len()) - known.len()) else {
                return;
            };
            play(framing::from_config(config), None, *pieces, rest);
            let described = framing::describe(config, rest);
            assert!(described.skipped <= rest.len() as u64, "more bytes skipped than there are");
        }
    }
});

/// 2026-03-01T07:00:00Z.
const BEGIN_TICKS: i64 = 17_723_484_000_000_000;

fn at(monotonic_us: u64, clock_is_set: bool) -> Now {
    let ticks = BEGIN_TICKS + i64::try_from(monotonic_us).unwrap_or(0) * 10;
    let wall = Timestamp::from_ticks(ticks).filter(|_| clock_is_set);
    Now { monotonic_us, wall }
}

fn play(mut driver: Box<dyn Driver + Send>, info: Option<&DriverInfo>, pieces: u8, bytes: &[u8]) {
    let size = usize::from(pieces & 0x3F) + 1;
    let (clock_is_set, pulled) = (pieces & 0x40 == 0, pieces & 0x80 != 0);
    let (mut now, mut out) = (1_000_000, Output::default());
    driver.start(at(now, clock_is_set), &mut out);
    judge(&mut out, info, 1);
    for (number, piece) in bytes.chunks(size).enumerate() {
        driver.bytes(piece, at(now, clock_is_set), &mut out);
        judge(&mut out, info, piece.len());
        assert!(driver.held() <= HELD_BYTES, "{} bytes held", driver.held());
        // A line at 9600 baud, and now and then a pause.
        now += 1042 * piece.len() as u64;
        if piece.first().is_some_and(|first| first % 7 == 0) {
            now = driver.deadline().unwrap_or(now).clamp(now, now + 4_000_000_000);
            driver.timeout(at(now, clock_is_set), &mut out);
            judge(&mut out, info, HELD_BYTES);
        }
        if pulled && number % 8 == 7 {
            driver.closed(at(now, clock_is_set), &mut out);
            judge(&mut out, None, HELD_BYTES);
            driver.start(at(now, clock_is_set), &mut out);
        }
    }
    driver.closed(at(now, clock_is_set), &mut out);
    assert!(out.send.is_empty(), "nothing is sent to a port that is gone");
    assert_eq!(driver.held(), 0, "nothing is held of a port that is gone");
    judge(&mut out, None, HELD_BYTES);
}

/// What came out is well-formed and not more than `given` bytes can give.
fn judge(out: &mut Output, info: Option<&DriverInfo>, given: usize) {
    let out = std::mem::take(out);
    assert!(
        out.messages.len() <= (HELD_BYTES + given) * MESSAGES_PER_BYTE,
        "{} messages from {given} bytes",
        out.messages.len()
    );
    for message in &out.messages {
        let body: Result<serde_json::Value, _> = serde_json::from_slice(&message.body);
        assert!(body.is_ok(), "a body is no JSON");
    }
    let Some(info) = info else { return };
    for bytes in &out.send {
        let name = info.name;
        assert!(is_listed(info, bytes), "{name} sends {bytes:02x?}, which is not in its list");
    }
}

/// Whether a byte string is in the driver's list, or is one of those with an index, a code or a sequence bit in it.
fn is_listed(info: &DriverInfo, bytes: &[u8]) -> bool {
    let alike = |listed: &[u8]| match info.name {
        // The number of the record, and the check behind it.
        "taidoc" => listed.len() == bytes.len() && listed.get(..2) == bytes.get(..2) && listed.get(4..7) == bytes.get(4..7),
        // Both sequence bits, the number of the record, and the check behind them.
        "lifescan-binary" => {
            let is_read = |bytes: &[u8]| bytes.get(3..5) == Some(&[0x05, 0x1F]);
            listed.len() == bytes.len()
                && listed.get(..2) == bytes.get(..2)
                && listed.get(2).map(|link| link & !3) == bytes.get(2).map(|link| link & !3)
                && (listed.get(3..listed.len() - 3) == bytes.get(3..bytes.len() - 3) || is_read(listed) && is_read(bytes))
        }
        // The echo of a question has its code.
        "drager-medibus" => {
            listed.len() == bytes.len() && listed.len() == 5 && listed.first() == Some(&0x01) && bytes.first() == Some(&0x01)
        }
        _ => false,
    };
    (info.commands)().iter().any(|(_, listed)| listed == bytes || alike(listed))
}
