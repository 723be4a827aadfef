//! What all drivers promise: they understand the simulated device of their name, send nothing but what is listed here, and lose at
//! most the frame that noise has touched.

use std::collections::BTreeSet;

use iomt_mapping::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::Value;

use super::*;
use crate::ingest::serial::framing::checksum::to_hex;
use crate::ingest::serial::framing::cutter::Cutter;
use crate::ingest::serial::framing::frames::{Framer, Protocol};
use crate::ingest::serial::framing::{self, FramingConfig};
use crate::simulate::serial::{names, simulator};

/// 2026-03-01T07:00:00Z.
const BEGIN_TICKS: i64 = 17_723_484_000_000_000;

fn at(monotonic_us: u64) -> Now {
    let wall = Timestamp::from_ticks(BEGIN_TICKS + i64::try_from(monotonic_us).unwrap() * 10);
    Now { monotonic_us, wall }
}

/// What a run of driver and simulated device gave.
#[derive(Default)]
struct Run {
    bodies: Vec<(u64, Value)>,
    sent: Vec<Vec<u8>>,
    from_device: Vec<u8>,
    garbage: u64,
    errors: Vec<FrameError>,
}

impl Run {
    fn values(&self, name: &str) -> Vec<f64> {
        self.bodies
            .iter()
            .filter_map(|(_, body)| body.get(name)?.as_f64())
            .collect()
    }

    fn take(&mut self, out: &mut Output, now: u64) {
        let bodies = out
            .messages
            .drain(..)
            .map(|m| (now, serde_json::from_slice(&m.body).unwrap()));
        self.bodies.extend(bodies);
        self.garbage += std::mem::take(&mut out.garbage);
        self.errors.append(&mut out.errors);
    }
}

/// Lets both talk for some time; `line` may damage what the device says, and sees when.
fn run(name: &str, seconds: u64, mut line: impl FnMut(u64, Vec<u8>) -> Vec<u8>) -> Run {
    let mut driver = driver(name).unwrap().create();
    let mut device = simulator(name, 7).unwrap();
    let (mut run, mut out, mut now) = (Run::default(), Output::default(), 0);
    driver.start(at(0), &mut out);
    loop {
        let mut said = Vec::new();
        for bytes in out.send.drain(..) {
            device.bytes(&bytes, at(now), &mut said);
            run.sent.push(bytes);
        }
        if device.deadline().is_some_and(|deadline| deadline <= now) {
            device.step(at(now), &mut said);
        }
        if !said.is_empty() {
            run.from_device.extend_from_slice(&said);
            let said = line(now, said);
            driver.bytes(&said, at(now), &mut out);
        }
        if driver.deadline().is_some_and(|deadline| deadline <= now) {
            driver.timeout(at(now), &mut out);
        }
        run.take(&mut out, now);
        if out.send.is_empty() {
            let next = [driver.deadline(), device.deadline()].into_iter().flatten().min();
            now = next.unwrap_or(u64::MAX).max(now + 1000);
        }
        if now > seconds * 1_000_000 {
            return run;
        }
    }
}

#[test]
fn every_first_class_driver_understands_its_simulated_device() {
    for name in names() {
        let run = run(name, 90, |_, bytes| bytes);
        assert_eq!(
            (run.garbage, run.errors.len()),
            (0, 0),
            "{name}: {:?}",
            run.errors
        );
        let first = run
            .bodies
            .iter()
            .find(|(_, body)| body["kind"] == "vitals" || body["kind"] == "record");
        let (first, _) = first.unwrap_or_else(|| panic!("{name} gave no reading"));
        assert!(*first <= 3_000_000, "{name}: first reading after {first} us");
        assert!(
            run.bodies.iter().all(|(_, body)| body["driver"] == name),
            "{name}"
        );
    }
}

#[test]
fn readings_are_those_of_the_patient() {
    let patient = crate::simulate::physiology::Physiology::new(7);
    for (name, spo2, pulse) in [
        ("nonin", "spo2", "pulse_rate_oximeter"),
        ("contec-cms50", "spo2", "pulse_rate_oximeter"),
        ("contec-cms50-v7", "spo2", "pulse_rate_oximeter"),
        ("berry-bci", "spo2", "pulse_rate_oximeter"),
        ("masimo-ascii", "spo2", "pulse_rate_oximeter"),
        ("healthypi-openview", "spo2", "heart_rate_ecg"),
        ("drager-medibus", "spo2", "pulse_rate_oximeter"),
        ("datex-dri", "spo2", "pulse_rate_oximeter"),
    ] {
        let run = run(name, 60, |_, bytes| bytes);
        let vitals: Vec<_> = run
            .bodies
            .iter()
            .filter(|(_, body)| body["kind"] == "vitals")
            .collect();
        assert!(
            (5..=61).contains(&vitals.len()),
            "{name}: {} vitals in a minute",
            vitals.len()
        );
        for (now, body) in vitals {
            // Nonin spreads a packet over a third of a second.
            let times = (0..=400)
                .step_by(10)
                .map(|ms| patient.at((now / 1000).saturating_sub(ms)));
            let (saturations, rates): (BTreeSet<u64>, BTreeSet<u64>) = times
                .flat_map(|v| [(v.spo2, v.pulse_rate), (v.spo2, v.heart_rate)])
                .map(|(spo2, rate)| (u64::from(spo2), u64::from(rate)))
                .unzip();
            let value = |name: &str| body[name].as_f64().unwrap().round() as u64;
            assert!(saturations.contains(&value(spo2)), "{name} at {now}: {body}");
            assert!(
                rates.contains(&value(pulse)),
                "{name} at {now}: {body}, not {rates:?}"
            );
        }
    }
}

#[test]
fn stored_records_are_dated_in_utc_and_leave_once() {
    let run = run("onetouch-ultra2", 7300, |_, bytes| bytes);
    assert_eq!(
        run.sent.iter().filter(|bytes| bytes.ends_with(b"DMP")).count(),
        3,
        "dumped again every hour"
    );
    assert_eq!(run.values("glucose_capillary_plasma").len(), 12);
    assert_eq!(
        run.bodies[0].1["time"], "2026-03-01T05:25:00Z",
        "95 minutes ago; its clock is an hour ahead"
    );
    assert_eq!(run.bodies[0].1["device_time"], "2026-03-01T06:25:00");
}

#[test]
fn a_blood_pressure_is_accepted_once_and_waits_while_it_cannot_be_dated() {
    let run = run("and-pbt", 700, |_, bytes| bytes);
    assert_eq!(run.values("nibp_systolic").len(), 3);
    assert_eq!(run.sent, vec![b"PWA1".to_vec(); 3]);
    assert_eq!(run.bodies[0].1["time"], "2026-03-01T07:00:02Z");

    let info = driver("and-pbt").unwrap();
    let (mut driver, mut device) = (info.create(), simulator("and-pbt", 7).unwrap());
    let (mut said, mut out) = (Vec::new(), Output::default());
    device.step(at(2_000_000), &mut said);
    // Measured a day before it was sent.
    said[12] -= 1;
    driver.bytes(
        &said,
        Now {
            wall: None,
            ..at(2_000_000)
        },
        &mut out,
    );
    assert_eq!((out.messages.len(), out.send.remove(0)), (0, b"PWA0".to_vec()));
    driver.bytes(&said, at(9_000_000), &mut out);
    assert_eq!((out.messages.len(), out.send.remove(0)), (1, b"PWA1".to_vec()));
}

#[test]
fn a_cuff_result_counts_only_after_an_inflation_that_was_seen() {
    let run = run("berry-pm6750", 115, |now, bytes| {
        if now < 10_000_000 { Vec::new() } else { bytes }
    });
    assert_eq!(
        run.values("nibp_systolic").len(),
        1,
        "inflating at 10 s, result at 15 s, then repeated"
    );
    let late = super::tests::run("berry-pm6750", 115, |now, bytes| {
        if now < 16_000_000 { Vec::new() } else { bytes }
    });
    assert_eq!(
        late.values("nibp_systolic").len(),
        0,
        "when the repeated result was taken is not known"
    );
}

#[test]
fn dialogues_survive_a_cable_that_was_out() {
    for name in names() {
        let run = run(name, 120, |now, bytes| {
            let out = (40_000_000..70_000_000).contains(&now);
            if out { Vec::new() } else { bytes }
        });
        let streaming = !matches!(name, "onetouch-ultra2" | "and-pbt");
        let after = run.bodies.iter().filter(|(now, _)| *now > 75_000_000).count();
        assert!(
            !streaming || after > 3,
            "{name}: {after} bodies after the cable was back"
        );
    }
}

/// All byte strings that drivers send, with what they mean. Nothing in it actuates, erases or sets a device: no start of a cuff, no clock,
/// no memory, no alarm limit. What has an index or a code in it is listed with one of them.
const SENT: [(&str, &str, &str); 38] = [
    ("contec-cms50-v7", "7d81a1808080808080", "start live data"),
    ("contec-cms50-v7", "7d81af808080808080", "keep live data alive"),
    ("berry-pm6750", "55aa04fc00ff", "ask for the firmware version"),
    ("berry-pm6750", "55aa04fe01fc", "send the oximeter's waveform"),
    ("zephyr", "02bd020100c403", "send a summary every second"),
    ("zephyr", "021601015e03", "send the ECG"),
    ("zephyr", "021501015e03", "send the breathing waveform"),
    ("zephyr", "021901015e03", "send R-R intervals"),
    ("zephyr", "0223000003", "sign of life"),
    ("drager-medibus", "1b5136430d", "initialise the communication"),
    (
        "drager-medibus",
        "1b5236440d",
        "ask for the device identification",
    ),
    ("drager-medibus", "1b2433460d", "ask for measured data, page 1"),
    (
        "drager-medibus",
        "0152303030302742454453494445204147454e542730312e30303a30332e303046410d",
        "identify the gateway when asked",
    ),
    (
        "drager-medibus",
        "013033310d",
        "echo of what the device asks (any code, no data)",
    ),
    (
        "datex-dri",
        "7e310000000000000000000000000000000000000000ff000000000000000000000000000000000000010a000e0000000000497e",
        "send displayed values every 10 s",
    ),
    ("onetouch-ultra2", "110d444d46", "ask for the meter's clock"),
    ("onetouch-ultra2", "110d444d50", "ask for the memory"),
    ("and-pbt", "50574131", "the message was accepted"),
    ("and-pbt", "50574130", "send the message again"),
    ("contour-astm", "06", "acknowledge"),
    ("contour-astm", "15", "send again, or wake up"),
    ("contour-astm", "05", "enquiry"),
    ("contour-astm", "04", "end"),
    ("lifescan-binary", "02060803c262", "end an open link"),
    ("lifescan-binary", "020a00051ff5010338aa", "how many records"),
    (
        "lifescan-binary",
        "020a03051f0000034b5f",
        "read record 0 (any index)",
    ),
    ("lifescan-binary", "02060703fc72", "acknowledge"),
    ("lifescan-binary", "02060403af27", "acknowledge (other sequence)"),
    ("taidoc", "512400000000a318", "ask for the model"),
    ("taidoc", "512b00000000a31f", "ask for the number of records"),
    (
        "taidoc",
        "512500000000a319",
        "ask for the time of record 0 (any index)",
    ),
    (
        "taidoc",
        "512600000000a31a",
        "ask for the value of record 0 (any index)",
    ),
    ("capnostream", "85010100", "open the communication"),
    ("capnostream", "85010405", "send real-time data"),
    ("capnostream", "85010607", "the link is active"),
    ("bitalino", "83", "send 100 samples a second"),
    ("bitalino", "fd", "send all six channels"),
    ("openbci-cyton", "62", "send data"),
];

#[test]
fn nothing_is_sent_but_what_is_listed() {
    let listed: Vec<_> = drivers()
        .iter()
        .flat_map(|info| {
            (info.commands)()
                .into_iter()
                .map(|(what, bytes)| (info.name, to_hex(&bytes), what))
        })
        .collect();
    let table: Vec<_> = SENT
        .iter()
        .map(|(name, hex, what)| (*name, (*hex).to_owned(), *what))
        .collect();
    assert_eq!(listed, table);
    for name in names() {
        let commands: BTreeSet<Vec<u8>> = (driver(name).unwrap().commands)()
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        let cut = |now: u64, bytes: Vec<u8>| {
            if now % 50_000_000 > 30_000_000 {
                Vec::new()
            } else {
                bytes
            }
        };
        for sent in run(name, 120, cut).sent {
            assert!(commands.contains(&sent), "{name} sent {}", to_hex(&sent));
        }
    }
}

#[test]
fn a_stream_cut_into_single_bytes_loses_nothing() {
    for name in names() {
        let whole = run(name, 20, |_, bytes| bytes);
        let (mut driver, mut out) = (driver(name).unwrap().create(), Output::default());
        driver.start(at(0), &mut out);
        let mut single = Run::default();
        for b in &whole.from_device {
            driver.bytes(&[*b], at(0), &mut out);
        }
        single.take(&mut out, 0);
        assert_eq!((single.garbage, single.errors.len()), (0, 0), "{name}");
    }
}

/// What each simulated device says in its first seconds, as far as it fits into 3000 bytes.
fn device_streams() -> &'static [(&'static str, Vec<u8>, usize)] {
    static STREAMS: std::sync::OnceLock<Vec<(&str, Vec<u8>, usize)>> = std::sync::OnceLock::new();
    STREAMS.get_or_init(|| {
        let stream = |name| {
            let mut bytes = run(name, 12, |_, bytes| bytes).from_device;
            bytes.truncate(3000);
            let frames = frames_in(name, &bytes);
            assert!(frames > 0, "{name}");
            (name, bytes, frames)
        };
        names().map(stream).collect()
    })
}

fn frames_in(name: &str, bytes: &[u8]) -> usize {
    (driver(name).unwrap().describe)(Direction::DeviceToHost, bytes)
        .frames
        .len()
}

/// Bytes that mean something to one protocol or another.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let markers = prop::sample::select(vec![
        0x01, 0x02, 0x03, 0x0A, 0xFA, 0x55, 0xAA, 0x7E, 0x7D, 0x0D, 0x80, 0x1B, 0x00,
    ]);
    prop::collection::vec(prop_oneof![any::<u8>(), markers], 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(8), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_loses_at_most_the_frame_that_it_touches(noise in noise(), place in any::<prop::sample::Index>()) {
        for (name, clean, before) in device_streams() {
            let at = place.index(clean.len() + 1);
            let dirty = [&clean[..at], &noise, &clean[at..]].concat();
            let after = frames_in(name, &dirty);
            prop_assert!(after + 1 >= *before, "{name}: {before} frames, {after} with noise {} at {at}", to_hex(&noise));
        }
    }

    #[test]
    fn a_cut_loses_at_most_the_frames_that_it_touches(length in 1..40_usize, place in any::<prop::sample::Index>()) {
        for (name, clean, _) in device_streams() {
            let begin = place.index(clean.len());
            let end = (begin + length).min(clean.len());
            let dirty = [&clean[..begin], &clean[end..]].concat();
            // Frames before, frames after, and those whose bytes were all there.
            let kept = frames_in(name, &clean[..begin]);
            let after = frames_in(name, &dirty);
            let untouched = kept + frames_in(name, &clean[end..]).saturating_sub(1);
            prop_assert!(after >= untouched, "{name}: {after} frames, {untouched} untouched, cut {begin}..{end}");
        }
    }

    #[test]
    fn any_bytes_leave_buffers_bounded_and_drivers_alive(bytes in prop::collection::vec(any::<u8>(), 0..4000), step in 1..500_usize) {
        for info in drivers() {
            let mut driver = info.create();
            let mut out = Output::default();
            driver.start(at(0), &mut out);
            for (index, piece) in bytes.chunks(step).enumerate() {
                let now = at(index as u64 * 300_000);
                driver.bytes(piece, now, &mut out);
                driver.timeout(now, &mut out);
                out = Output::default();
            }
        }
        for kind in ["lines", "stx-etx", "slip", "cobs", "length-crc16", "modbus-rtu", "astm", "mllp", "nmea"] {
            let config: FramingConfig = serde_json::from_value(serde_json::json!({"framing": kind, "max_bytes": 200})).unwrap();
            let mut framer = Framer::new(Cutter::new(&config));
            for piece in bytes.chunks(step) {
                framer.push(piece, at(0), &mut Output::default());
                prop_assert!(framer.held() <= 1100, "{kind} holds {}", framer.held());
            }
            let mut driver = framing::from_config(&config);
            driver.bytes(&bytes, at(0), &mut Output::default());
        }
        bounded(nonin::Framing::default(), &bytes, step)?;
        bounded(berry_pm6750::Framing, &bytes, step)?;
        bounded(zephyr::Framing, &bytes, step)?;
        bounded(healthypi::Framing, &bytes, step)?;
        bounded(datex_dri::Framing, &bytes, step)?;
        bounded(and_pbt::Framing, &bytes, step)?;
        bounded(capnostream::Framing, &bytes, step)?;
        bounded(intellivue_rs232::Framing, &bytes, step)?;
        bounded(masimo_ascii::Line, &bytes, step)?;
    }
}

fn bounded<P: Protocol>(protocol: P, bytes: &[u8], step: usize) -> Result<(), TestCaseError> {
    let mut framer = Framer::new(protocol);
    for piece in bytes.chunks(step) {
        framer.push(piece, at(0), &mut Output::default());
        prop_assert!(framer.held() <= P::LONGEST);
    }
    Ok(())
}
