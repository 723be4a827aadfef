//! Monitors, boards and ventilators of the first class.

use serde_json::{Value, json};

use super::*;
use crate::ingest::serial::framing::checksum::{crc8_maxim, sum8};

fn pm6750(kind: u8, data: &[u8]) -> Vec<u8> {
    let inner = [&[u8::try_from(data.len() + 3).unwrap(), kind], data].concat();
    [&[0x55, 0xAA], inner.as_slice(), &[!sum8(&inner)]].concat()
}

#[test]
fn pm6750_values_bits_and_waves() {
    for (status, gain, filter) in [
        (0x00, "x0.25", "operation"),
        (0x14, "x0.5", "monitor"),
        (0x28, "x1", "diagnostic"),
        (0x0C, "x2", "operation"),
    ] {
        has(
            &read("berry-pm6750", &pm6750(2, &[status, 250, 60, 0x7F, 16])),
            &json!({"gain": gain, "filter": filter, "heart_rate_bpm": 250,
            "resp_rate_bpm": 60, "st_mv": 1.27, "arrhythmia_code": 16, "weak_signal": false, "lead_off": false}),
        );
    }
    has(
        &read("berry-pm6750", &pm6750(2, &[1, 0, 0, 0x80, 0])),
        &json!({"weak_signal": true, "heart_rate_bpm": null, "resp_rate_bpm": null, "st_mv": -1.28}),
    );
    has(
        &read("berry-pm6750", &pm6750(3, &[0x10, 127, 255, 0, 1])),
        &json!({"status_raw": 16, "cuff_mmhg": 254, "sys_mmhg": 255, "mean_mmhg": null, "dia_mmhg": 1}),
    );
    has(
        &read("berry-pm6750", &pm6750(4, &[1, 100, 254])),
        &json!({"status_raw": 1, "spo2_pct": 100, "pulse_bpm": 254}),
    );
    has(
        &read("berry-pm6750", &pm6750(4, &[0, 0, 0])),
        &json!({"spo2_pct": null, "pulse_bpm": null}),
    );
    has(
        &read("berry-pm6750", &pm6750(5, &[0, 36, 8])),
        &json!({"temp_c": 36.8}),
    );
    has(
        &read("berry-pm6750", &pm6750(5, &[0, 0, 5])),
        &json!({"temp_c": 0.5}),
    );
    has(
        &read("berry-pm6750", &pm6750(1, &[0, 128, 255, 1, 2, 3, 4])),
        &json!({"type": "ecg_wave", "leads": [0, 128, 255, 1, 2, 3, 4]}),
    );
    has(
        &read("berry-pm6750", &pm6750(0x31, &[])),
        &json!({"type": "spo2_peak"}),
    );
    has(
        &read("berry-pm6750", &pm6750(0xFE, &[0x55])),
        &json!({"type": "spo2_wave", "samples": [0x55]}),
    );
    has(
        &read("berry-pm6750", &pm6750(0xFF, &[0xAA])),
        &json!({"type": "resp_wave", "samples": [0xAA]}),
    );
    // A marker inside the data does not end the frame.
    has(
        &read("berry-pm6750", &pm6750(1, &[0x55, 0xAA, 8, 0x55, 0xAA, 4, 0])),
        &json!({"leads": [0x55, 0xAA, 8, 0x55, 0xAA, 4, 0]}),
    );
    refused("berry-pm6750", &pm6750(4, &[0, 98, 70])[..7], Reason::Incomplete);
    for (bytes, name) in [
        ("55 aa 04 fe 01 fc", "spo2_wave_on"),
        ("55 aa 04 fe 00 fd", "spo2_wave_off"),
        ("55 aa 04 02 01 f8", "nibp_start"),
        ("55 aa 04 02 00 f9", "nibp_stop"),
    ] {
        assert_eq!(command("berry-pm6750", &unhex(bytes))["command"], name);
    }
}

fn zephyr(id: u8, payload: &[u8]) -> Vec<u8> {
    [
        &[2, id, u8::try_from(payload.len()).unwrap()],
        payload,
        &[crc8_maxim(payload), 3],
    ]
    .concat()
}

#[test]
fn zephyr_missing_codes_negative_values_and_refusals() {
    let mut summary = vec![0; 71];
    summary[..10].copy_from_slice(&[255, 0xE8, 7, 2, 29, 0xFF, 0x5B, 0x26, 5, 2]);
    for (at, value) in [
        (10, 0xFFFF_u16),
        (12, 0xFFFF),
        (14, 0xFF9C),
        (16, 0xFF4C),
        (18, 0xFFFF),
        (20, 0xFFFF),
        (25, 0xFFFF),
    ] {
        summary[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    (summary[29], summary[34]) = (255, 255);
    has(
        &read("zephyr", &zephyr(0x2B, &summary)),
        &json!({"msg": "summary", "seq": 255, "device_time": "2024-02-29T23:59:59.999", "heart_rate_bpm": null, "resp_rate_bpm": null, "skin_temp_c": -10.0,
                "posture_deg": -180, "activity_vmu": null, "peak_accel_g": null, "breathing_wave_amplitude_raw": null,
                "breathing_confidence": null, "heart_rate_confidence_pct": null}),
    );
    let mut general = vec![0; 53];
    general[9..15].copy_from_slice(&[0xF0, 0, 0x41, 1, 0x6E, 1]);
    has(
        &read("zephyr", &zephyr(0x20, &general)),
        &json!({"msg": "general", "heart_rate_bpm": 240, "resp_rate_bpm": 32.1, "skin_temp_c": 36.6}),
    );
    general[9..15].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0x80]);
    assert_eq!(
        bodies("zephyr", &[zephyr(0x20, &general)]),
        Vec::<Value>::new(),
        "a rate of zero is no rate"
    );
    // Intervals: 800 ms until the sign changes, then 790, then 810.
    let intervals = |values: [i16; 18]| {
        let samples: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        zephyr(
            0x24,
            &[[1, 0xE8, 7, 3, 5, 0, 0, 0, 0].as_slice(), &samples].concat(),
        )
    };
    let packet = intervals([
        800, 800, 800, -790, -790, -790, -790, 810, 810, 810, 810, -800, -800, -800, -800, -800, -800, -800,
    ]);
    assert_eq!(
        bodies("zephyr", &[packet])[0]["rr_intervals_ms"],
        json!([790, 810, 800])
    );
    assert_eq!(read("zephyr", &unhex("02 16 00 00 15"))["msg"], "nak");
    assert_eq!(read("zephyr", &unhex("02 23 00 00 03"))["msg"], "life_sign");
    refused("zephyr", &unhex("02 16 01 01 5e 04"), Reason::StopMarker);
    refused("zephyr", &unhex("02 16 01 01 5f 03"), Reason::Crc);
    refused("zephyr", &unhex("02 16 01 01 5e"), Reason::Incomplete);
    for (bytes, name) in [
        ("02 14 01 01 5e 03", "general_on"),
        ("02 16 01 00 00 03", "ecg_off"),
        ("02 23 00 00 03", "life_sign"),
    ] {
        assert_eq!(command("zephyr", &unhex(bytes))["command"], name);
    }
    let mut hxm = vec![0; 55];
    (hxm[8], hxm[9], hxm[10], hxm[51]) = (255, 0, 255, 255);
    hxm[47..51].copy_from_slice(&[0xFF, 0x0F, 0x80, 1]);
    has(
        &read("zephyr", &zephyr(0x26, &hxm)),
        &json!({"battery_pct": null, "heart_rate_bpm": null, "beat_number": 255, "distance_m": 255.9375, "speed_m_s": 1.5, "strides": 255}),
    );
}

#[test]
fn healthypi_states_missing_values_and_unknown_lengths() {
    let envelope = |payload: &[u8]| [&[0x0A, 0xFA, payload.len() as u8, 0, 2], payload, &[0, 0x0B]].concat();
    for (status, lead, probe) in [
        (0, false, false),
        (1, true, false),
        (2, false, true),
        (3, true, true),
    ] {
        let mut payload = [0; 20];
        payload[19] = status;
        has(
            &read("healthypi-openview", &envelope(&payload)),
            &json!({"variant": "v4", "ecg_lead_off": lead, "spo2_probe_off": probe,
            "temp_c": null, "spo2_pct": null, "heart_rate_bpm": null, "resp_rate_bpm": null}),
        );
    }
    let mut off = [0; 20];
    (off[14], off[15], off[16], off[19]) = (16, 98, 72, 3);
    let body = &bodies("healthypi-openview", &[envelope(&off)])[0];
    assert!(
        body.get("spo2").is_none() && body.get("heart_rate_ecg").is_none(),
        "{body}"
    );
    has(
        &read("healthypi-openview", &envelope(&[1, 2, 3])),
        &json!({"variant": "opaque", "payload_hex": "010203"}),
    );
    refused(
        "healthypi-openview",
        &envelope(&[0; 22])[..28],
        Reason::Incomplete,
    );
}

fn medibus(start: u8, text: &str) -> Vec<u8> {
    let head = [&[start], text.as_bytes()].concat();
    [head.as_slice(), format!("{:02X}\r", sum8(&head)).as_bytes()].concat()
}

#[test]
fn medibus_pages_alarms_settings_and_answers() {
    let items = |text: &str| read("drager-medibus", &medibus(1, text));
    for (code, name, unit) in [
        ("05", "breathing_pressure", "mbar"),
        ("06", "compliance", "mL/mbar"),
        ("6B", "ambient_pressure", "mbar"),
        ("74", "plateau_pressure", "mbar"),
        ("82", "tidal_volume", "mL"),
        ("B8", "minute_volume", "L/min"),
        ("DB", "end_tidal_co2", "%"),
        ("E3", "end_tidal_co2", "kPa"),
        ("E6", "end_tidal_co2", "mm[Hg]"),
        ("E1", "pulse_rate", "/min"),
        ("EF", "expired_o2", "%"),
        ("C1", "airway_temperature", "Cel"),
    ] {
        assert_eq!(
            items(&format!("${code}-1.5"))["measured_cp1"],
            json!([{"code": code, "name": name, "value": -1.5, "unit": unit}])
        );
    }
    assert_eq!(items("$7D----78    ")["measured_cp1"][0]["value"], Value::Null);
    assert_eq!(
        items("+7D  24")["measured_cp2"],
        json!([{"code": "7D", "name": "", "value": 24.0, "unit": ""}]),
        "names of page 1 do not hold on page 2"
    );
    assert_eq!(items(")01  1.5")["settings"][0]["value"], 1.5);
    assert_eq!(
        items("'8A1PAW HIGH    ")["alarms"],
        json!([{"priority": "8", "code": "A1", "phrase": "PAW HIGH"}])
    );
    assert_eq!(items("(14:30:15 7-OKT-14")["device_time"], "2014-10-07T14:30:15");
    // XON and XOFF inside, real-time bytes around.
    let mut text = medibus(1, "$EB  97");
    text.splice(4..4, [0x11, 0x13]);
    assert_eq!(read("drager-medibus", &text)["measured_cp1"][0]["value"], 97.0);
    refused("drager-medibus", &medibus(1, "$EB  97")[..8], Reason::Incomplete);
    // What names one thing twice gives it once, by the more exact of both; D7 where there is no D6.
    let body = &bodies("drager-medibus", &[medibus(1, "$B9 7.2B8   7D7  14")])[0];
    has(body, &json!({"minute_volume": 7.2, "resp_rate_total": 14.0}));
    let body = &bodies("drager-medibus", &[medibus(1, "$D6  15D7  14E3 5.0")])[0];
    has(body, &json!({"resp_rate_total": 15.0, "etco2_pressure": 37.5}));
    // The device is answered: with an echo, and with who asks.
    let mut driver = driver("drager-medibus").unwrap().create();
    let mut out = Output::default();
    let now = Now {
        monotonic_us: 0,
        wall: None,
    };
    for (question, answer) in [
        ("0", "0".to_owned()),
        ("Q", "Q".to_owned()),
        ("R", "R0000'BEDSIDE AGENT'01.00:03.00".to_owned()),
    ] {
        driver.bytes(&medibus(0x1B, question), now, &mut out);
        assert_eq!(out.send.pop().unwrap(), medibus(1, &answer));
    }
}

#[test]
fn datex_borders_stuffing_and_refusals() {
    let record = |changes: &[(usize, i16)]| {
        let mut record = vec![0; 40 + 278];
        record[..2].copy_from_slice(&318_u16.to_le_bytes());
        (record[3], record[14], record[18], record[21]) = (9, 0, 1, 0xFF);
        for at in (44..44 + 270).step_by(2) {
            record[at..at + 2].copy_from_slice(&(-32_767_i16).to_le_bytes());
        }
        for (at, value) in changes {
            record[44 + at..46 + at].copy_from_slice(&value.to_le_bytes());
        }
        record
    };
    let frame = |changes: &[(usize, i16)]| datex_dri::stuff(&record(changes));
    for code in -32_767..=-32_002_i16 {
        assert_eq!(
            read("datex-dri", &frame(&[(6, code)]))["heart_rate_bpm"],
            Value::Null,
            "{code}"
        );
    }
    has(
        &read(
            "datex-dri",
            &frame(&[
                (6, -32_001),
                (22, -150),
                (92, 3680),
                (124, 10_000),
                (126, 0x7D7E),
                (138, 500),
                (142, 12),
                (144, 7600),
            ]),
        ),
        &json!({"heart_rate_bpm": -32_001.0, "p1_sys_mmhg": -1.5, "temp1_c": 36.8, "spo2_pct": 100.0, "pulse_bpm": f64::from(0x7D7E),
                "etco2_pct": 5.0, "ambient_mmhg": 760.0, "etco2_mmhg": 38.0, "resp_rate_bpm": 12.0}),
    );
    // Without the pressure of the air there is no partial pressure.
    has(
        &read("datex-dri", &frame(&[(138, 500)])),
        &json!({"etco2_pct": 5.0, "etco2_mmhg": null}),
    );
    let good = frame(&[]);
    let mut bad_escape = good.clone();
    bad_escape.splice(10..10, [0x7D, 0x01]);
    refused("datex-dri", &bad_escape, Reason::BadEscape);
    let mut short = record(&[]);
    short[0] = 1;
    refused("datex-dri", &datex_dri::stuff(&short), Reason::Length);
    refused("datex-dri", &good[..good.len() - 1], Reason::Incomplete);
    // Shared flags: the end of one record begins the next.
    let two = [&good[..good.len() - 1], good.as_slice()].concat();
    assert_eq!(
        describe("datex-dri", Direction::DeviceToHost, &two).frames.len(),
        2
    );
}
