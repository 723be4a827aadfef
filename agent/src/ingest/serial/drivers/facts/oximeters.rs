//! Nonin, Contec, Berry and Masimo oximeters.

use serde_json::{Value, json};

use super::*;
use crate::ingest::serial::framing::checksum::sum8;

/// A packet of 25 frames with these slots by number; `frame` makes one of its status and its slot, a checksum follows.
fn packet(status: u8, slots: &[(usize, u8)], frame: impl Fn(u8, u8) -> [u8; 4]) -> Vec<u8> {
    (1..=25_usize)
        .flat_map(|number| {
            let slot = slots
                .iter()
                .find(|(slot, _)| *slot == number)
                .map_or(0, |(_, value)| *value);
            let frame = frame(0x80 | status | u8::from(number == 1), slot);
            [frame.as_slice(), &[sum8(&frame)]].concat()
        })
        .collect()
}

fn nonin(status: u8, slots: &[(usize, u8)]) -> Vec<u8> {
    packet(status, slots, |status, slot| [1, status, 7, slot])
}

fn nonin_7(status: u8, slots: &[(usize, u8)]) -> Vec<u8> {
    packet(status, slots, |status, slot| [status, 0xFF, 0xFE, slot])
}

/// Of these members only `name` is true.
#[track_caller]
fn only(found: &Value, name: &str, of: &[&str]) {
    let set: Vec<&&str> = of.iter().filter(|name| found[**name] == true).collect();
    assert_eq!(set, [&name], "{found}");
}

#[test]
fn nonin_rates_have_nine_bits_and_states_one_each() {
    for (msb, lsb, rate) in [
        (2, 0x41, json!(321)),
        (0, 18, json!(18)),
        (3, 0x7E, json!(510)),
        (3, 0x7F, Value::Null),
        (0xFD, 0x80, json!(128)),
    ] {
        for packet in [nonin(0, &[(1, msb), (2, lsb)]), nonin_7(0, &[(1, msb), (2, lsb)])] {
            has(&read("nonin", &packet), &json!({ "hr_bpm": rate }));
        }
    }
    for (spo2, expected) in [
        (127, Value::Null),
        (126, json!(126)),
        (0, json!(0)),
        (100, json!(100)),
    ] {
        let all: Vec<(usize, u8)> = [3, 9, 10, 11, 16, 17].map(|slot| (slot, spo2)).to_vec();
        let names = [
            "spo2_pct",
            "spo2_d_pct",
            "spo2_fast_pct",
            "spo2_bb_pct",
            "e_spo2_pct",
            "e_spo2_d_pct",
        ];
        let found = read("nonin", &nonin(0, &all));
        assert!(names.iter().all(|name| found[name] == expected), "{found}");
    }
    let slots = [
        (4, 48),
        (6, 0x7F),
        (7, 0x7F),
        (8, 0x21),
        (14, 1),
        (15, 2),
        (20, 3),
        (21, 4),
        (22, 3),
        (23, 0x7F),
    ];
    has(
        &read("nonin", &nonin(0, &slots)),
        &json!({"srev": 48, "timer": 16383, "smartpoint": true, "low_battery": true, "e_hr_bpm": 130,
                "hr_d_bpm": 388, "e_hr_d_bpm": null}),
    );
    for (bit, name) in [
        (0x40, "sensor_disconnect"),
        (0x20, "artifact"),
        (0x10, "out_of_track"),
        (0x08, "sensor_alarm"),
    ] {
        let found = &read("nonin", &nonin(bit, &[]))["status_any"];
        let set: Vec<_> = found
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, on)| **on == true)
            .map(|(n, _)| n)
            .collect();
        assert_eq!(set, [name]);
    }
    for (bits, word) in [(2, "green"), (4, "red"), (6, "yellow")] {
        assert_eq!(
            read("nonin", &nonin_7(bits, &[]))["perfusion_seen"],
            json!([word])
        );
    }
    assert_eq!(
        read("nonin", &nonin_7(0, &[]))["pleth_first5"],
        json!([65534, 65534, 65534, 65534, 65534])
    );
}

#[test]
fn nonin_format_8_has_a_bit_for_each_state() {
    let names = [
        "sensor_disconnect",
        "out_of_track",
        "low_perfusion",
        "marginal_perfusion",
        "artifact",
        "smartpoint",
        "sensor_alarm",
        "low_battery",
    ];
    for (first, last, name) in [
        (0xC0, 0, names[0]),
        (0xA0, 0, names[1]),
        (0x90, 0, names[2]),
        (0x88, 0, names[3]),
        (0x84, 0, names[4]),
        (0x80, 0x20, names[5]),
        (0x80, 0x08, names[6]),
        (0x80, 0x01, names[7]),
    ] {
        let found = read("nonin", &[first, 60, 97, last]);
        let set: Vec<_> = names.iter().filter(|name| found[**name] == true).collect();
        assert_eq!(set, [&name], "{found}");
    }
    has(
        &read("nonin", &[0x82, 0x41, 100, 0]),
        &json!({"hr_d_bpm": 321, "spo2_d_pct": 100}),
    );
    // The battery of a WristOx has two states.
    let frames: Vec<Vec<u8>> = [[0x80, 60, 97, 2], [0x80, 60, 97, 2]]
        .map(|frame| frame.to_vec())
        .to_vec();
    assert_eq!(bodies("nonin", &frames)[0]["status"], json!(["battery_critical"]));
}

#[test]
fn nonin_refuses_says_where_and_answers_nothing_to_no_measurement() {
    for index in [0, 12, 24] {
        for mut packet in [nonin(0, &[]), nonin_7(0, &[])] {
            packet[index * 5 + 4] ^= 1;
            let described = describe("nonin", Direction::DeviceToHost, &packet);
            assert_eq!(described.frames.len(), 0);
            assert_eq!(
                (described.errors[0].reason, described.errors[0].frame_index),
                (Reason::Checksum, Some(index))
            );
        }
    }
    for length in [1, 4, 5, 60, 124] {
        refused("nonin", &nonin(0, &[])[..length], Reason::Incomplete);
    }
    // BCD time, 72 per minute, 98 %: with the bit "no measurement" the numbers are those of nothing.
    let record = |status: u8, rate: [u8; 2], spo2: u8| {
        let data = [
            0x20, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58, 0, status, 0, rate[0], rate[1], 0, spo2,
        ];
        [&[0, 2, 0, 13, 0, 14], data.as_slice(), &[sum8(&data), 3]].concat()
    };
    has(
        &read("nonin", &record(0, [1, 0x41], 98)),
        &json!({"format": 13, "device_time": "2099-12-31T23:59:58", "hr_bpm": 321, "spo2_pct": 98, "no_measurement": false}),
    );
    assert_eq!(bodies("nonin", &[record(0, [0, 72], 98)]).len(), 1);
    assert_eq!(bodies("nonin", &[record(1, [0, 72], 98)]), Vec::<Value>::new());
    let mut stop = record(0, [0, 72], 98);
    stop[21] = 4;
    refused("nonin", &stop, Reason::StopMarker);
    let mut check = record(0, [0, 72], 98);
    check[20] ^= 0x80;
    refused("nonin", &check, Reason::Checksum);
    refused("nonin", &record(0, [0, 72], 98)[..21], Reason::Incomplete);
}

#[test]
fn nonin_lines_and_commands() {
    for (line, expected) in [
        (
            "SPO2=100 HR=250 F\r\n",
            json!({"spo2_pct": 100, "hr_bpm": 250, "fast": true, "event_mark": false}),
        ),
        (
            "SPO2=--- HR=---\r\n",
            json!({"spo2_pct": null, "hr_bpm": null, "fast": false, "event_mark": false}),
        ),
        (
            "SPO2=--- HR=---*\r\n",
            json!({"spo2_pct": null, "hr_bpm": null, "event_mark": true}),
        ),
        (
            "09:05:00 SPO2=097 HR=--- F*\r\n",
            json!({"device_time": "09:05:00", "spo2_pct": 97, "hr_bpm": null, "fast": true, "event_mark": true}),
        ),
    ] {
        has(&read("nonin", line.as_bytes()), &expected);
    }
    for format in [2, 7, 8, 13] {
        let set = command("nonin", &[2, 0x70, 2, 2, format, 3]);
        assert_eq!(set, json!({"command": "set_format", "format": format}));
    }
    assert_eq!(
        command("nonin", &[2, 0x72, 0, 3]),
        json!({"command": "read_time"})
    );
    let clock = unhex("02 F2 06 18 03 05 0E 1E 0F 03");
    has(
        &read("nonin", &clock),
        &json!({"reply": "time", "device_time": "2024-03-05T14:30:15"}),
    );
    assert!(
        describe("nonin", Direction::DeviceToHost, &[6]).errors.is_empty(),
        "an acknowledgement is no error"
    );
}

#[test]
fn contec_and_berry_bits() {
    for (frame, name) in [
        ("c0 32 05 48 62", "pulse_beep"),
        ("a0 32 05 48 62", "spo2_dropping"),
        ("90 32 05 48 62", "searching_too_long"),
        ("80 32 25 48 62", "searching"),
        ("80 32 15 48 62", "probe_error"),
    ] {
        let found = read("contec-cms50", &unhex(frame));
        only(
            &found,
            name,
            &[
                "pulse_beep",
                "spo2_dropping",
                "searching_too_long",
                "searching",
                "probe_error",
            ],
        );
    }
    for (frame, pulse, spo2) in [
        ("80 7f 40 00 64", json!(128), json!(100)),
        ("80 00 40 7e 01", json!(254), json!(1)),
        ("80 00 40 7f 7e", Value::Null, json!(126)),
        ("80 00 00 00 7f", Value::Null, Value::Null),
        ("80 00 00 01 00", json!(1), Value::Null),
    ] {
        for name in ["contec-cms50", "berry-bci"] {
            has(
                &read(name, &unhex(frame)),
                &json!({"pulse_bpm": pulse, "spo2_pct": spo2}),
            );
        }
    }
    for (frame, name) in [
        ("90 32 05 48 62", "no_signal"),
        ("a0 32 05 48 62", "probe_unplugged"),
        ("c0 32 05 48 62", "pulse_beep"),
        ("80 32 15 48 62", "no_finger"),
        ("80 32 25 48 62", "searching"),
    ] {
        let found = read("berry-bci", &unhex(frame));
        only(
            &found,
            name,
            &[
                "no_signal",
                "probe_unplugged",
                "pulse_beep",
                "no_finger",
                "searching",
            ],
        );
        let body = &bodies("berry-bci", &[unhex(frame)])[0];
        assert_eq!(body.get("spo2").is_some(), name == "pulse_beep", "{body}");
    }
    refused("contec-cms50", &unhex("80 32 85 48 62"), Reason::Sync);
    refused("contec-cms50", &unhex("80 32 05 48"), Reason::Incomplete);
    let after_noise = describe(
        "contec-cms50",
        Direction::DeviceToHost,
        &unhex("48 62 87 32 05 48 62"),
    );
    assert_eq!((after_noise.skipped, after_noise.frames.len()), (2, 1));
}

#[test]
fn contec_v7_bits_are_carried_by_the_second_byte() {
    let package = |kind: u8, data: [u8; 7]| {
        let high = (0..7).fold(0x80, |high, i| high | (data[i] >> 7) << i);
        [&[kind, high], data.map(|b| b | 0x80).as_slice()].concat()
    };
    let live = |first, second, third, pulse, spo2, pi: u16| {
        package(1, [first, second, third, pulse, spo2, pi as u8, (pi >> 8) as u8])
    };
    for (frame, name) in [
        (live(0x10, 0, 0, 70, 98, 0xFFFF), "searching_too_long"),
        (live(0x20, 0, 0, 70, 98, 0xFFFF), "low_spo2"),
        (live(0x40, 0, 0, 70, 98, 0xFFFF), "pulse_beep"),
        (live(0x80, 0, 0, 70, 98, 0xFFFF), "probe_error"),
        (live(0, 0x80, 0, 70, 98, 0xFFFF), "searching"),
        (live(0, 0, 0x10, 70, 98, 0xFFFF), "pi_valid"),
    ] {
        let found = read("contec-cms50-v7", &frame);
        only(
            &found,
            name,
            &[
                "searching_too_long",
                "low_spo2",
                "pulse_beep",
                "probe_error",
                "searching",
                "pi_valid",
            ],
        );
    }
    has(
        &read("contec-cms50-v7", &live(8, 0x7F, 0x1F, 200, 100, 0x80FF)),
        &json!({"signal_strength": 8, "pleth": 127, "bar_graph": 15, "pulse_bpm": 200, "spo2_pct": 100, "pi_raw": 0x80FF}),
    );
    has(
        &read("contec-cms50-v7", &live(0, 0, 0, 255, 127, 0)),
        &json!({"pulse_bpm": null, "spo2_pct": null, "pi_raw": 0}),
    );
    has(
        &read("contec-cms50-v7", &package(0x0F, [98, 200, 97, 71, 96, 72, 255])),
        &json!({"package_type": 15, "data_hex": "62c861476048ff"}),
    );
    refused(
        "contec-cms50-v7",
        &unhex("01 e0 87 32 85 c8 e2 ff ff"),
        Reason::Sync,
    );
    refused(
        "contec-cms50-v7",
        &live(0, 0, 0, 70, 98, 0)[..8],
        Reason::Incomplete,
    );
    for (code, name) in [
        (0xA3, "session_count"),
        (0xA4, "session_duration"),
        (0xA5, "session_time"),
        (0xAF, "keep_alive"),
        (0xA8, "model"),
    ] {
        let bytes = [&[0x7D, 0x81, code], [0x80; 6].as_slice()].concat();
        assert_eq!(
            command("contec-cms50", &bytes),
            json!({"command": name, "code": format!("{code:02x}")})
        );
    }
}

#[test]
fn masimo_exceptions_alarms_and_numbers() {
    let line = |rest: &str| format!("02/29/24 23:59:59 SN=0000070986 {rest}\r\n").into_bytes();
    for (bit, name) in [
        (0x001, "no_sensor"),
        (0x002, "defective_sensor"),
        (0x004, "low_perfusion"),
        (0x008, "pulse_search"),
        (0x010, "interference"),
        (0x020, "sensor_off"),
        (0x040, "ambient_light"),
        (0x080, "unrecognized_sensor"),
        (0x400, "low_signal_iq"),
        (0x800, "masimo_set"),
    ] {
        let found = read(
            "masimo-ascii",
            &line(&format!("SPO2=098% BPM=072 PI=01.20 EXC={bit:07X}")),
        );
        has(
            &found,
            &json!({"exc_raw": bit, "exceptions": [name], "device_time": "2024-02-29T23:59:59"}),
        );
    }
    for (bit, name) in [
        (0x20, "muted"),
        (0x10, "alarm"),
        (8, "pulse_low"),
        (4, "pulse_high"),
        (2, "spo2_low"),
        (1, "spo2_high"),
    ] {
        let found = read(
            "masimo-ascii",
            &line(&format!("SPO2=098% BPM=072 ALARM={bit:06X}")),
        );
        has(&found, &json!({"alarm_raw": bit, "alarms": [name]}));
    }
    // Another model: other columns, negative and fractional numbers.
    has(
        &read(
            "masimo-ascii",
            &line(
                "BPM=060 PVI=007 SPO2=100% SPHB=12.5 SPMET=01.2% SPCO=03% SPOC=18 PIDELTA=-05 DESAT=01 NEW=xx",
            ),
        ),
        &json!({"spo2_pct": 100, "pulse_bpm": 60, "pvi_pct": 7, "sphb_g_dl": 12.5, "spmet_pct": 1.2, "spco_pct": 3, "spoc_ml_dl": 18,
                "pi_delta": -5, "desat": 1, "serial": "0000070986"}),
    );
    for exception in ["0000020", "0000001"] {
        let body = &bodies(
            "masimo-ascii",
            &[line(&format!("SPO2=000% BPM=000 PI=00.00 EXC={exception}"))],
        )[0];
        assert!(body.get("spo2").is_none() && body["kind"] == "status", "{body}");
    }
    for bad in ["SPO2=09x% BPM=072", "SPO2=098% BPM=07203/17/16 19:19:36"] {
        refused("masimo-ascii", &line(bad), Reason::Invalid);
    }
    refused(
        "masimo-ascii",
        b"13/17/16 19:19:36 SPO2=098%\r\n",
        Reason::Invalid,
    );
    refused(
        "masimo-ascii",
        b"03/17/16 19:19:36 SPO2=098% BPM=0",
        Reason::Incomplete,
    );
}

#[test]
fn contec_v7_is_told_to_stay_awake_also_while_it_is_silent() {
    let mut driver = driver("contec-cms50-v7").unwrap().create();
    let mut out = Output::default();
    let at = |monotonic_us| Now {
        monotonic_us,
        wall: None,
    };
    driver.start(at(0), &mut out);
    let mut now = 0;
    while now < 9_000_000 {
        now = driver.deadline().unwrap();
        driver.timeout(at(now), &mut out);
    }
    let sent = |code: u8| out.send.iter().filter(|bytes| bytes[2] == code).count();
    assert_eq!((sent(0xA1), sent(0xAF)), (6, 2));
}
