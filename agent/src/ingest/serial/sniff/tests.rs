//! Every simulated device, and what has no driver, heard by the sniffer.

use super::*;
use crate::ingest::serial::drivers::driver;
use crate::simulate::serial::{names, simulator};

fn at(monotonic_us: u64) -> Now {
    Now {
        monotonic_us,
        wall: None,
    }
}

/// What the simulated device says to its own driver, which asks where it must be asked.
fn recorded(name: &str, seconds: u64) -> Vec<(u64, Vec<u8>)> {
    let mut host = driver(name).unwrap().create();
    let mut device = simulator(name, 11).unwrap();
    let (mut out, mut now, mut heard) = (Output::default(), 0, Vec::new());
    host.start(at(0), &mut out);
    while now <= seconds * 1_000_000 {
        let mut said = Vec::new();
        for bytes in out.send.drain(..) {
            device.bytes(&bytes, at(now), &mut said);
        }
        if device.deadline().is_some_and(|deadline| deadline <= now) {
            device.step(at(now), &mut said);
        }
        if !said.is_empty() {
            host.bytes(&said, at(now), &mut out);
            heard.push((now, said));
        }
        if host.deadline().is_some_and(|deadline| deadline <= now) {
            host.timeout(at(now), &mut out);
        }
        now += 1000;
    }
    heard
}

fn sniff(settings: PortSettings, heard: &[(u64, Vec<u8>)]) -> Heard {
    let mut sniffer = Sniffer::new(settings, at(0));
    for (now, bytes) in heard {
        sniffer.bytes(bytes, at(*now));
    }
    sniffer.heard(at(heard.last().map_or(0, |(now, _)| *now) + 100_000))
}

#[test]
fn each_streaming_device_is_recognised_also_from_the_middle_of_a_frame() {
    let mut seen = 0;
    for name in names() {
        let info = driver(name).unwrap();
        if info.speaks == Speaks::AtTimes {
            continue;
        }
        seen += 1;
        // A Datex monitor sends one record in ten seconds.
        let mut said = recorded(name, if name == "datex-dri" { 65 } else { 8 });
        let first = &mut said.first_mut().unwrap().1;
        first.drain(..first.len() / 2);
        let heard = sniff(info.settings, &said);
        let guess = heard.guess.as_ref().map(|guess| guess.name.as_str());
        assert_eq!(guess, Some(name), "{:#?}", heard.candidates);
        assert!(heard.is_sure(), "{name}: {:#?}", heard.guess);
        assert!(!heard.frames.is_empty(), "{name} shows its frames");
    }
    assert_eq!(seen, 10);
}

#[test]
fn of_several_settings_the_one_with_frames_is_taken() {
    let said = recorded("contec-cms50", 5);
    let noise: Vec<_> = said
        .iter()
        .map(|(now, bytes)| (*now, bytes.iter().map(|b| b.rotate_left(3) ^ 0x5A).collect()))
        .collect();
    let settings = worth_trying(None);
    let right = driver("contec-cms50").unwrap().settings;
    let heard: Vec<_> = settings
        .iter()
        .map(|one| sniff(*one, if *one == right { &said } else { &noise }))
        .collect();
    let best = best(&heard).unwrap();
    assert_eq!((best.settings.as_str(), best.speed), ("19200 8O1", 19_200));
    assert_eq!(best.guess.as_ref().unwrap().name, "contec-cms50");
}

#[test]
fn two_dialects_of_one_shape_are_told_apart_by_their_pace_where_the_speed_is_only_a_name() {
    for (name, settings) in [
        ("contec-cms50", 115_200),
        ("berry-bci", 9600),
        ("berry-bci", 115_200),
    ] {
        let heard = sniff(PortSettings::eight_none_one(settings), &recorded(name, 4));
        assert_eq!(
            heard.guess.as_ref().unwrap().name,
            name,
            "{:#?}",
            heard.candidates
        );
    }
}

#[test]
fn a_cuff_that_has_said_all_it_had_to_say_is_recognised() {
    let said = recorded("and-pbt", 5);
    let heard = sniff(driver("and-pbt").unwrap().settings, &said);
    let guess = heard.guess.unwrap();
    assert_eq!((guess.name.as_str(), guess.frames), ("and-pbt", 1));
}

#[test]
fn devices_without_a_driver_give_the_framing_that_reads_them() {
    let lines = |line: &str| -> Vec<(u64, Vec<u8>)> {
        (0..8)
            .map(|n| (n * 1_000_000, line.as_bytes().to_vec()))
            .collect()
    };
    for (line, expected) in [
        (
            "{\"hr\":72,\"spo2\":98}\r\n",
            "framing = \"lines\", format = \"json\"",
        ),
        (
            "$BDVIT,SPO2,98,HR,072,RESP,16,TEMP,36.6*1F\r\n",
            "framing = \"nmea\", format = \"hex\"",
        ),
        ("hr=72, spo2=98\n", "framing = \"lines\", format = \"label\""),
        ("72;98;36.6\n", "framing = \"lines\", format = \"csv\""),
    ] {
        let heard = sniff(PortSettings::default(), &lines(line));
        let guess = heard.guess.as_ref().map(|guess| guess.name.as_str());
        assert_eq!(guess, Some(expected), "{line}: {:#?}", heard.candidates);
    }
}

#[test]
fn noise_and_silence_give_no_guess() {
    let silence = sniff(PortSettings::default(), &[]);
    assert!(silence.guess.is_none() && silence.advice.is_none());
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let noise: Vec<_> = (0..50)
        .map(|n| (n * 100_000, (0..40).map(|_| noise()).collect()))
        .collect();
    let heard = sniff(PortSettings::default(), &noise);
    assert!(heard.guess.is_none(), "{:?}", heard.guess);
    assert!(heard.advice.unwrap().contains("baud rate") && heard.unread.unwrap().len() == 64);
}

#[test]
fn a_speed_that_is_given_is_tried_with_all_parities_that_devices_have_with_it() {
    let shown = |speed| worth_trying(speed).into_iter().map(shorthand).collect::<Vec<_>>();
    assert_eq!(shown(Some(250_000)), ["250000 8N1"]);
    assert!(shown(Some(19_200)).contains(&"19200 8O1".to_owned()));
    assert!(shown(Some(19_200)).iter().all(|one| one.starts_with("19200 ")));
    let all = shown(None);
    assert!(all.len() >= 9, "{all:?}");
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len(), "none is tried twice: {all:?}");
}

#[test]
fn a_device_that_says_nothing_until_it_is_asked_is_told_from_one_that_waits_for_a_measurement() {
    let asked: Vec<&str> = drivers()
        .iter()
        .filter(|info| is_silent_until_asked(info))
        .map(|info| info.name)
        .collect();
    assert_eq!(
        asked,
        [
            "contec-cms50-v7",
            "zephyr",
            "drager-medibus",
            "datex-dri",
            "onetouch-ultra2",
            "lifescan-binary",
            "taidoc",
            "capnostream",
            "bitalino",
            "openbci-cyton",
        ]
    );
    // That it is so is seen at the devices: not a byte of them comes unasked.
    for name in names().filter(|name| asked.contains(name)) {
        let (mut device, mut said) = (simulator(name, 11).unwrap(), Vec::new());
        while let Some(deadline) = device.deadline().filter(|deadline| *deadline <= 60_000_000) {
            device.step(at(deadline), &mut said);
        }
        assert!(said.is_empty(), "{name} speaks by itself");
    }
}
