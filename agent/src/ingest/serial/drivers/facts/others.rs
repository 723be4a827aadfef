//! Nellcor, Capnostream, Phasein, IntelliVue, BITalino and Cyton.

use serde_json::{Value, json};

use super::*;
use crate::ingest::serial::framing::checksum::{crc16_x25, sum8, to_hex};

#[test]
fn nellcor_words_pivot_and_refusals() {
    for word in [
        "AO", "AS", "LB", "LM", "LP", "MO", "PH", "PL", "PS", "SH", "SL", "SD", "SO",
    ] {
        let line = format!("01-JAN-70 00:00:00   ---*   001    --- {word}\r\n");
        has(
            &read("nellcor-ascii", line.as_bytes()),
            &json!({"device_time": "1970-01-01T00:00:00", "spo2_pct": null, "spo2_alarm": true, "pulse_bpm": 1, "pulse_alarm": false, "status": [word]}),
        );
    }
    has(
        &read("nellcor-ascii", b"31-DEC-69 23:59:59   100   072   255\r\n"),
        &json!({"device_time": "2069-12-31T23:59:59", "pulse_amplitude": 255}),
    );
    for bad in [
        "05-MAR-24 14:30:02   084   072   50 ZZ\r\n",
        "05-MAR-24 14:30:02   0x4   072   50\r\n",
        "05-MAR-24 14:30:02   084\r\n",
    ] {
        refused("nellcor-ascii", bad.as_bytes(), Reason::Invalid);
    }
    assert_eq!(command("nellcor-ascii", b"1\r\n")["command"], "instrument_info");
}

#[test]
fn capnostream_units_states_and_escapes() {
    let numerics = |unit: u8, co2: u8, alarms: [u8; 2], extra: &[u8]| {
        let head = [
            1, 0x65, 0xEC, 0x87, 0x80, co2, 0, 14, 97, 72, 0, 0, 0, 0, alarms[0], alarms[1], 20, 60, 15, 30,
            5, 8, 100, 85, 140, 50, unit, 4,
        ];
        capnostream::frame(&[head.as_slice(), extra].concat())
    };
    for (unit, etco2, name) in [
        (1, json!(38), json!("mm[Hg]")),
        (2, json!(3.8), json!("kPa")),
        (3, json!(3.8), json!("%")),
        (9, json!(3.8), Value::Null),
    ] {
        for extra in [&[][..], &[7, 7, 7]] {
            has(
                &read("capnostream", &numerics(unit, 38, [0, 0], extra)),
                &json!({"etco2": etco2, "co2_unit": name, "ext_status": 4}),
            );
        }
    }
    let body = |unit| bodies("capnostream", &[numerics(unit, 50, [1, 0x60], &[])]).remove(0);
    has(
        &body(1),
        &json!({"etco2_pressure": 50.0, "status": ["no_breath", "sensor_disconnected", "off_patient", "pump_off"]}),
    );
    has(&body(2), &json!({"etco2_pressure": 37.5}));
    has(&body(3), &json!({"etco2_concentration": 5.0}));
    assert!(
        body(9).get("etco2_pressure").is_none() && body(9).get("etco2_concentration").is_none(),
        "{}",
        body(9)
    );
    for (status, co2, end) in [
        (0, json!(38.5), false),
        (1, Value::Null, false),
        (2, Value::Null, false),
        (8, json!(38.5), true),
    ] {
        has(
            &read("capnostream", &capnostream::frame(&[0, 7, 38, 128, status])),
            &json!({"number": 7, "co2": co2, "end_of_breath": end}),
        );
    }
    // A waveform leaves only in a known unit, and without what no breath made.
    let waves = |unit: u8, status: u8| {
        let wave = |number: u8| capnostream::frame(&[0, number, 38, 0, status]);
        let said = [numerics(unit, 38, [0, 0], &[]), wave(1), wave(2)].concat();
        bodies("capnostream", &[said])
            .iter()
            .filter(|body| body["kind"] == "waveform")
            .count()
    };
    assert_eq!(
        [waves(1, 0), waves(1, 8), waves(1, 4), waves(1, 0x40), waves(2, 0)],
        [1, 1, 0, 0, 0]
    );
    refused("capnostream", &unhex("85 05 00 80 03"), Reason::BadEscape);
    refused(
        "capnostream",
        &capnostream::frame(&[0, 7, 38, 128, 0])[..6],
        Reason::Incomplete,
    );
    for (code, name) in [
        (4, "start_realtime"),
        (6, "link_active"),
        (9, "revision"),
        (10, "periodic_message"),
    ] {
        assert_eq!(
            command("capnostream", &capnostream::frame(&[code])),
            json!({"command": name, "code": code})
        );
    }
}

#[test]
fn phasein_states_and_blocks() {
    let frame = |id: u8, status: u8, slow: [u8; 6]| {
        let inner = [&[id, status, 1, 0xF4, 0, 0, 0, 0, 0, 0, 8, 0x2F], slow.as_slice()].concat();
        [
            &[0xAA, 0x55],
            inner.as_slice(),
            &[0_u8.wrapping_sub(sum8(&inner))],
        ]
        .concat()
    };
    for (bit, word) in [
        "breath",
        "apnea",
        "o2_low",
        "o2_replace",
        "check_adapter",
        "unspecified_accuracy",
        "sensor_error",
        "o2_calibration",
    ]
    .iter()
    .enumerate()
    {
        has(
            &read("phasein", &frame(9, 1 << bit, [0; 6])),
            &json!({"status": [word], "co2_pct": 5.0, "frame_id": 9}),
        );
    }
    has(
        &read("phasein", &frame(1, 0, [52, 0, 0, 0, 16, 0])),
        &json!({"expired": {"co2_pct": 5.2, "n2o_pct": 0, "aa1_pct": 0.0, "aa2_pct": 0.0, "o2_pct": 16}}),
    );
    has(
        &read("phasein", &frame(3, 0, [254, 255, 255, 1, 255, 255])),
        &json!({"general": {"resp_rate_bpm": 254, "seconds_since_breath": null, "primary_agent": null, "secondary_agent": 1, "pressure_kpa": null}}),
    );
    refused("phasein", &frame(9, 0, [0; 6])[..20], Reason::Incomplete);
}

#[test]
fn intellivue_length_and_escapes() {
    let frame = |length: u16, data: &[u8]| {
        let [high, low] = length.to_be_bytes();
        let mut content = [&[0x11, 1, high, low], data].concat();
        content.extend(crc16_x25(&content).to_le_bytes());
        let stuffed = content.iter().flat_map(|b| {
            if matches!(b, 0xC0 | 0xC1 | 0x7D) {
                vec![0x7D, b ^ 0x20]
            } else {
                vec![*b]
            }
        });
        [vec![0xC0], stuffed.collect(), vec![0xC1]].concat()
    };
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(
        read("intellivue-rs232", &frame(256, &all))["data_hex"],
        to_hex(&all)
    );
    refused("intellivue-rs232", &frame(255, &all), Reason::Length);
    refused("intellivue-rs232", &frame(256, &all)[..100], Reason::Incomplete);
    refused("intellivue-rs232", &unhex("c0 11 01 7d c1"), Reason::BadEscape);
}

#[test]
fn boards() {
    for (bytes, hz) in [(0x03, 1), (0x43, 10)] {
        assert_eq!(
            command("bitalino", &[bytes]),
            json!({"command": "set_rate", "hz": hz})
        );
    }
    assert_eq!(
        command("bitalino", &[0xFD]),
        json!({"command": "start", "channels": [1, 2, 3, 4, 5, 6]})
    );
    assert_eq!(command("bitalino", &[0x00])["command"], "stop");
    for stop in 0xC0..=0xC6_u8 {
        let mut frame = vec![0; 33];
        (frame[0], frame[32], frame[26], frame[27]) = (0xA0, stop, 0xE0, 0);
        let found = read("openbci-cyton", &frame);
        assert_eq!(found["accel_g"].is_null(), stop != 0xC0, "{found}");
        assert_eq!(found["aux"][0], -8192);
    }
    for stop in [0xBF, 0xC7] {
        let mut frame = vec![0; 33];
        (frame[0], frame[32]) = (0xA0, stop);
        refused("openbci-cyton", &frame, Reason::StopMarker);
    }
    for (bytes, name) in [(b"s", "stop_stream"), (b"v", "reset")] {
        assert_eq!(command("openbci-cyton", bytes)["command"], name);
    }
}
