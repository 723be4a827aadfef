//! Frames between noise, for every driver and framing: the frames are those of `vectors/serial`, and what is lost is at most
//! what was touched.
//!
//! A frame counts as kept when it is found with the same content, in its place among the others. Where frames have an end
//! and no beginning (lines), the end belongs to the next one too: without it both are one.

use bedside_agent::ingest::serial::framing::checksum::{crc4, crc16_modbus};
use bedside_tests::conformance::serial::{Stream, streams};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

/// Every protocol with its frames.
fn all() -> &'static [Stream] {
    static ALL: OnceLock<Vec<Stream>> = OnceLock::new();
    ALL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/serial");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
        files.sort_by_key(std::fs::DirEntry::file_name);
        let mut all: Vec<Stream> = files
            .iter()
            .flat_map(|file| {
                let text = std::fs::read_to_string(file.path()).unwrap();
                streams(&serde_json::from_str(&text).unwrap())
            })
            .collect();
        all.extend(written_here().iter().flat_map(streams));
        all.retain(|stream| protocol(stream) != "bitalino");
        all.push(Stream::in_order("bitalino", bitalino()));
        for stream in &mut all {
            // Without a check, a payload that holds the marks of a frame can be taken for one: nobody could tell.
            if matches!(protocol(stream), "healthypi-openview" | "openbci-cyton") {
                stream.frames.retain(|frame| !has_marks_inside(frame));
            }
        }
        all
    })
}

/// The driver; of the framings all alike.
fn protocol(stream: &Stream) -> &str {
    stream.name.split(' ').next().unwrap_or_default()
}

fn has_marks_inside(frame: &[u8]) -> bool {
    let inside = &frame[1..frame.len() - 1];
    let inside = &inside[..inside.len() - 1];
    inside.iter().any(|byte| matches!(byte, 0xA0 | 0xC0)) || inside.windows(2).any(|two| two == [0x00, 0x0B])
}

/// Whether frames have an end and no beginning.
fn has_ends_only(stream: &Stream) -> bool {
    let lines = ["csv", "label", "json", "cobs", "slip"];
    matches!(protocol(stream), "onetouch-ultra2" | "ble-gatt")
        || stream.name.contains("ascii")
        || protocol(stream) == "framings" && lines.iter().any(|kind| stream.name.contains(kind))
}

/// Frames that a driver must have seen in a row, before it knows its device from noise.
fn learnt_after(stream: &Stream) -> usize {
    match protocol(stream) {
        "bitalino" => 3,
        _ if stream.name.contains("nonin-f8") => 2,
        _ => 0,
    }
}

fn file(protocol: &str, vectors: &[(&str, Vec<u8>, Value)]) -> Value {
    let vectors: Vec<Value> = vectors
        .iter()
        .map(|(id, bytes, expect)| json!({"id": id, "hex": hex(bytes), "expect": expect}))
        .collect();
    json!({"protocol": protocol, "vectors": vectors})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the vectors have no whole frames of: they hold the values without the bridge's line, or several frames in one.
fn written_here() -> [Value; 2] {
    let none = || json!({});
    let framing = |name: &str| json!({"framing": name});
    let counted = |payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        let frame = [&length, payload].concat();
        [frame.as_slice(), &crc16_modbus(&frame).to_le_bytes()].concat()
    };
    let hl7 = |id: u8| {
        format!("\x0bMSH|^~\\&|M|B|A|H|2026||ORU^R01|{id}|P|2.6\rOBX|1|NM|8867-4||7{id}\r\x1c\r").into_bytes()
    };
    [
        file(
            "ble-gatt",
            &[
                ("line", b"C0:FF:EE:00:00:01 2A37 0648\r\n".to_vec(), none()),
                ("line", b"2A5F 00D8F34800\r\n".to_vec(), none()),
                ("line", b"2A35 007800500060F2\r\n".to_vec(), none()),
            ],
        ),
        file(
            "framings",
            &[
                ("len16", counted(b"{\"hr\":72}"), framing("len16_crc16_modbus")),
                (
                    "len16",
                    counted(&[0, 1, 2, 3, 0xFF]),
                    framing("len16_crc16_modbus"),
                ),
                ("mllp", hl7(1), framing("mllp")),
                ("mllp", hl7(2), framing("mllp")),
                ("json", b"{\"hr\":72}\n".to_vec(), framing("json")),
                ("json", b"{\"hr\":73,\"spo2\":98}\r\n".to_vec(), framing("json")),
            ],
        ),
    ]
}

/// Frames of all six channels, numbered as the board numbers them.
fn bitalino() -> Vec<Vec<u8>> {
    let frame = |number: u8| {
        let mut frame = vec![
            number.wrapping_mul(7),
            0x31,
            number,
            0x55,
            0xC2,
            number ^ 0x5A,
            0x18,
            number << 4,
        ];
        frame[7] |= crc4(&frame);
        frame
    };
    (0..16).map(frame).collect()
}

/// What a frame says. Whether a record is complete, and whether it is a repetition, depends on the frames before.
fn content(frame: &Value) -> Value {
    let mut frame = frame.clone();
    if let Some(members) = frame.as_object_mut() {
        for name in ["record", "payload_hex", "payload_text"] {
            if members.contains_key("frame_number") {
                members.remove(name);
            }
        }
    }
    frame
}

/// How many of `clean` are found in `dirty`, in order.
fn kept(clean: &[Value], dirty: &[Value]) -> usize {
    let mut best = vec![0; dirty.len() + 1];
    for frame in clean {
        let mut diagonal = 0;
        for (at, found) in dirty.iter().enumerate() {
            let above = best[at + 1];
            best[at + 1] = if frame == found {
                diagonal + 1
            } else {
                best[at + 1].max(best[at])
            };
            diagonal = above;
        }
    }
    best[dirty.len()]
}

/// A stream of frames, and where each begins.
struct Line {
    bytes: Vec<u8>,
    begins: Vec<usize>,
    frames: Vec<Value>,
    /// Where damage may begin and where it ends at the latest: before and behind are frames to learn from.
    open: std::ops::Range<usize>,
}

impl Line {
    /// A place that may be damaged: of a byte, or of the end with `behind` 1.
    fn place(&self, place: Index, behind: usize) -> usize {
        self.open.start + place.index(self.open.len() + behind)
    }

    /// How many frames have one of the bytes from `begin` to before `end`.
    fn touched(&self, stream: &Stream, begin: usize, end: usize) -> usize {
        let reaches = if has_ends_only(stream) { end + 1 } else { end };
        let ends = self.begins.iter().skip(1).copied().chain([self.bytes.len()]);
        let frames = self.begins.iter().zip(ends);
        frames
            .filter(|(from, to)| **from < reaches && *to > begin)
            .count()
    }
}

fn line(stream: &Stream, order: &[Index]) -> Line {
    let mut line = Line {
        bytes: Vec::new(),
        begins: Vec::new(),
        frames: Vec::new(),
        open: 0..0,
    };
    let learnt = learnt_after(stream);
    // Drawn once more from the front, so that there is something between what is learnt from.
    let order = order.iter().cycle().take(order.len() + 2 * learnt + 1);
    for (number, index) in order.enumerate() {
        let number = if stream.in_order {
            number
        } else {
            index.index(stream.frames.len())
        };
        line.begins.push(line.bytes.len());
        line.bytes.extend_from_slice(&stream.frames[number]);
    }
    let described = stream.describe(&line.bytes);
    line.frames = described.frames.iter().map(content).collect();
    let last = line.begins.len() - learnt - usize::from(learnt > 0);
    let end = line.begins.get(last).copied().unwrap_or(line.bytes.len());
    line.open = line.begins[learnt]..end;
    line
}

/// Cases in which the damage has made up a frame that no check could tell from a real one, and which took the place of one
/// that was not touched: by chance one in 256 with a sum of eight bits, more where a protocol has no check at all.
#[derive(Default)]
struct MadeUp(Cell<u32>);

fn check(
    stream: &Stream,
    line: &Line,
    dirty: &[u8],
    may_lose: usize,
    made_up: &MadeUp,
) -> Result<(), TestCaseError> {
    let found: Vec<Value> = stream.describe(dirty).frames.iter().map(content).collect();
    let kept = kept(&line.frames, &found);
    let lost = line.frames.len() - kept;
    // A Nonin frame that belongs to no packet is passed over, also when only chance has made its sum right.
    let made = found.len() - kept + usize::from(protocol(stream) == "nonin");
    if lost > may_lose && lost - may_lose <= made {
        made_up.0.set(made_up.0.get() + 1);
        return Ok(());
    }
    prop_assert!(
        lost <= may_lose,
        "{}: {lost} of {} frames lost, {may_lose} touched\nclean {}\ndirty {}",
        stream.name,
        line.frames.len(),
        hex(&line.bytes),
        hex(dirty)
    );
    Ok(())
}

/// Part of the cases, in percent, in which a frame may be made up.
fn may_be_made_up(stream: &Stream) -> u32 {
    match protocol(stream) {
        "contec-cms50" | "healthypi-openview" | "openbci-cyton" | "bitalino" | "nonin" => 8,
        _ => 2,
    }
}

fn order() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 3..10)
}

/// Bytes that mean something to one protocol or another.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let markers = prop::sample::select(vec![
        0x00, 0x01, 0x02, 0x03, 0x0A, 0x0B, 0x0D, 0x1B, 0x1C, 0x24, 0x51, 0x55, 0x7D, 0x7E, 0x80, 0x85, 0xA0,
        0xAA, 0xC0, 0xFA,
    ]);
    prop::collection::vec(prop_oneof![any::<u8>(), markers], 1..48)
}

fn config() -> Config {
    Config {
        cases: if std::env::var_os("BEDSIDE_LONG").is_some() {
            2000
        } else {
            128
        },
        rng_seed: RngSeed::Fixed(8),
        failure_persistence: None,
        ..Config::default()
    }
}

#[test]
fn every_driver_and_every_framing_is_among_the_streams() {
    let names: BTreeSet<&str> = all()
        .iter()
        .filter_map(|stream| stream.name.split(' ').next())
        .collect();
    for driver in bedside_agent::ingest::serial::drivers::drivers() {
        let file = match driver.name {
            "contec-cms50-v7" | "berry-bci" => "contec-cms50",
            name => name,
        };
        assert!(names.contains(file), "{}: no stream among {names:?}", driver.name);
    }
    let framings: BTreeSet<String> = all()
        .iter()
        .filter(|stream| stream.name.starts_with("framings"))
        .map(|stream| stream.name.clone())
        .collect();
    for kind in [
        "csv", "label", "stxetx", "slip", "cobs", "len8", "len16", "modbus", "astm", "mllp", "nmea",
    ] {
        assert!(
            framings.iter().any(|name| name.contains(kind)),
            "{kind}: not among {framings:?}"
        );
    }
}

/// Tries `case` on every stream, and tells of all streams that fail.
fn on_every_stream<S: Strategy>(
    strategy: S,
    case: impl Fn(&Stream, S::Value, &MadeUp) -> Result<(), TestCaseError>,
) {
    let mut failed = Vec::new();
    for stream in all() {
        let (mut runner, made_up) = (TestRunner::new(config()), MadeUp::default());
        if let Err(error) = runner.run(&strategy, |value| case(stream, value, &made_up)) {
            failed.push(error.to_string().lines().take(4).collect::<Vec<_>>().join("\n"));
        }
        let (made_up, cases) = (made_up.0.get(), config().cases);
        if made_up * 100 > cases * may_be_made_up(stream) {
            failed.push(format!(
                "{}: frames made up in {made_up} of {cases} cases",
                stream.name
            ));
        }
    }
    assert!(
        failed.is_empty(),
        "{} streams\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn garbage_loses_at_most_the_frame_that_it_touches() {
    on_every_stream(
        (order(), noise(), any::<Index>()),
        |stream, (order, noise, place), made_up| {
            let line = line(stream, &order);
            let at = line.place(place, 1);
            let dirty = [&line.bytes[..at], &noise, &line.bytes[at..]].concat();
            check(stream, &line, &dirty, 1, made_up)
        },
    );
}

#[test]
fn a_cut_loses_at_most_the_frames_that_it_touches() {
    on_every_stream(
        (order(), 1..48_usize, any::<Index>()),
        |stream, (order, length, place), made_up| {
            let line = line(stream, &order);
            let begin = line.place(place, 0);
            let end = (begin + length).min(line.open.end);
            let dirty = [&line.bytes[..begin], &line.bytes[end..]].concat();
            check(stream, &line, &dirty, line.touched(stream, begin, end), made_up)
        },
    );
}

#[test]
fn a_damaged_byte_loses_at_most_the_frame_that_it_is_in() {
    on_every_stream(
        (order(), 1..=255_u8, any::<Index>()),
        |stream, (order, flip, place), made_up| {
            let line = line(stream, &order);
            let mut dirty = line.bytes.clone();
            let at = line.place(place, 0);
            dirty[at] ^= flip;
            check(stream, &line, &dirty, line.touched(stream, at, at + 1), made_up)
        },
    );
}

/// The first or the last bytes of a frame, as a device says them that was interrupted again and again.
#[test]
fn repeated_markers_between_frames_lose_at_most_one_frame() {
    let drawn = (
        order(),
        any::<Index>(),
        1..6_usize,
        1..12_usize,
        any::<Index>(),
        any::<bool>(),
    );
    on_every_stream(
        drawn,
        |stream, (order, which, length, times, place, end), made_up| {
            let line = line(stream, &order);
            let frame = &stream.frames[which.index(stream.frames.len())];
            let length = length.min(frame.len());
            let marker = if end {
                &frame[frame.len() - length..]
            } else {
                &frame[..length]
            };
            let at = (*place.get(line.begins.as_slice())).clamp(line.open.start, line.open.end);
            let dirty = [&line.bytes[..at], &marker.repeat(times), &line.bytes[at..]].concat();
            check(stream, &line, &dirty, 1, made_up)
        },
    );
}
