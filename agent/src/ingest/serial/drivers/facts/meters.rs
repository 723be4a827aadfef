//! Glucose meters, cuffs and scales.

use serde_json::{Value, json};

use super::*;
use crate::ingest::serial::framing::astm;
use crate::ingest::serial::framing::checksum::{crc16_ccitt_false, sum8, sum16, to_hex};

#[test]
fn onetouch_ranges_control_and_lines() {
    let line = |text: &str| format!("{text} {:04X}\r\n", sum16(text.as_bytes())).into_bytes();
    let result = |value: &str, rest: &str| {
        read(
            "onetouch-ultra2",
            &line(&format!(
                "P \"MON\",\"12/31/99\",\"00:00:00   \",\"{value}\"{rest},"
            )),
        )
    };
    for (value, number, range) in [
        ("  600 ", json!(600), "in"),
        ("  601 ", Value::Null, "high"),
        (" HIGH ", Value::Null, "high"),
        ("  020 ", json!(20), "in"),
        ("  019 ", Value::Null, "low"),
        ("  LOW ", Value::Null, "low"),
    ] {
        has(
            &result(value, ",\"A\",\"00\""),
            &json!({"glucose_mg_dl": number, "range": range, "control": false, "meal": "after", "device_time": "2099-12-31T00:00:00"}),
        );
    }
    has(
        &result("C HIGH ", ",\"N\",\"00\""),
        &json!({"glucose_mg_dl": null, "range": "high", "control": true}),
    );
    has(
        &result("C 121 ", ""),
        &json!({"glucose_mg_dl": 121, "control": true, "meal": null, "comment_code": null}),
    );
    has(
        &read("onetouch-ultra2", &line("P 007,\"ABC1234D5\",\"MG/DL \"")),
        &json!({"type": "header", "count": 7, "serial": "ABC1234D5", "unit": "MG/DL"}),
    );
    has(
        &read("onetouch-ultra2", &line("F \"SAT\",\"02/29/24\",\"23:59:59   \"")),
        &json!({"type": "date_time", "device_time": "2024-02-29T23:59:59"}),
    );
    has(
        &read("onetouch-ultra2", &line("@ \"ABC1234D5\"")),
        &json!({"type": "serial_number", "serial": "ABC1234D5"}),
    );
    refused(
        "onetouch-ultra2",
        &line("P \"MON\",\"02/30/24\",\"00:00:00   \",\"  098 \","),
        Reason::Invalid,
    );
    refused(
        "onetouch-ultra2",
        b"P 007,\"ABC1234D5\",\"MG/DL \" 05",
        Reason::Incomplete,
    );
    for (bytes, name) in [(b"\x11\rDMP".as_slice(), "dump"), (b"\x11\rDM@", "serial_number")] {
        assert_eq!(command("onetouch-ultra2", bytes)["command"], name);
    }
}

#[test]
fn and_pbt_models_batteries_and_payloads() {
    let message = |device: u16, battery: u8, payload: &[u8]| {
        let mut header = vec![0; 60];
        (header[0], header[2], header[57], header[59]) =
            (2, u8::try_from(payload.len()).unwrap(), battery, 0xFF);
        header[6..8].copy_from_slice(&device.to_le_bytes());
        for at in [9, 16] {
            header[at..at + 7].copy_from_slice(&[0xE8, 7, 2, 29, 23, 59, 59]);
        }
        [header.as_slice(), payload].concat()
    };
    has(
        &read("and-pbt", &message(767, 76, b"80FF01FFFF")),
        &json!({"sys_mmhg": 256, "dia_mmhg": 1, "pulse_bpm": 255, "mean_mmhg": 255, "battery_v": 4.58, "firmware": 31, "hardware": 7, "measured_at": "2024-02-29T23:59:59"}),
    );
    assert_eq!(
        bodies("and-pbt", &[message(767, 76, b"801D4C4152")])[0]["status"],
        json!(["battery_low"])
    );
    assert!(
        bodies("and-pbt", &[message(767, 77, b"801D4C4152")])[0]
            .get("status")
            .is_none(),
        "4.61 V"
    );
    has(
        &read("and-pbt", &message(321, 0, b"ST,+078.05kg\r\n")),
        &json!({"weight": 78.05, "weight_unit": "kg", "battery_v": 1.9, "model": "UC-321PBT"}),
    );
    let unstable = &bodies("and-pbt", &[message(321, 0, b"US,+078.05kg\r\n")])[0];
    assert!(
        unstable.get("body_weight").is_none() && unstable["status"] == json!(["unstable"]),
        "{unstable}"
    );
    let composition =
        b"ID,1\r\nST,+0078.0kg\r\nRT,0500\r\nFT,+21.5\r\nHT,+175.0cm\r\nBT,1700\r\nMT,+55.1\r\nWT,+54.2\r\n";
    has(
        &read("and-pbt", &message(407, 160, composition)),
        &json!({"model": "UC-411PBT-C", "weight": 78.0, "fat_pct": 21.5, "impedance_ohm": 500.0, "user": "1"}),
    );
    assert_eq!(
        bodies("and-pbt", &[message(321, 0, b"ST,+0172.1lb\r\n")])[0]["body_weight"],
        78.06
    );
    refused("and-pbt", &message(767, 0, b"80XX4C4152"), Reason::Invalid);
    for (bytes, name) in [(b"PWA1".as_slice(), "accept"), (b"PWA0", "reject")] {
        assert_eq!(command("and-pbt", bytes)["command"], name);
    }
}

/// What the driver sends, after each of the pieces that the meter says.
fn dialogue(name: &str, said: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<Value>) {
    let mut driver = driver(name).unwrap().create();
    let (mut out, mut now) = (Output::default(), 0);
    let at = |monotonic_us: u64| Now {
        monotonic_us,
        wall: Timestamp::from_ticks(17_723_484_000_000_000),
    };
    driver.start(at(0), &mut out);
    let mut sent = Vec::new();
    for bytes in said {
        while out.send.is_empty() && sent.is_empty() {
            now = driver.deadline().unwrap();
            driver.timeout(at(now), &mut out);
        }
        sent.append(&mut out.send);
        driver.bytes(bytes, at(now), &mut out);
    }
    sent.append(&mut out.send);
    let bodies = out
        .messages
        .iter()
        .map(|message| serde_json::from_slice(&message.body).unwrap());
    (sent, bodies.collect())
}

#[test]
fn contour_is_woken_as_the_session_is_described() {
    let header = astm::frame(
        1,
        "H|\\^&||pw|Bayer7150^1.05\\0.00^7150-1|||||||P|1|202603010700\r",
        false,
    );
    let average = astm::frame(2, "R|1|^^^Glucose|120|mg/dL^P|||||||202603010700\r", false);
    let high = astm::frame(3, "R|2|^^^Glucose|600|mg/dL^B||>|A||||202603010600\r", false);
    let control = astm::frame(4, "R|3|^^^Glucose|99|mg/dL^B|||D|E|||202603010500\r", false);
    let good = astm::frame(5, "R|4|^^^Glucose|7.9|mmol/L^C|||B||||202603010400\r", false);
    let mut damaged = good.clone();
    damaged[9] ^= 1;
    let end = astm::frame(6, "L|1||N\r", true);
    let (sent, bodies) = dialogue(
        "contour-astm",
        &[
            &[0x05],
            &[0x04],
            &[0x06],
            &[0x05],
            &header,
            &average,
            &high,
            &control,
            &damaged,
            &good,
            &good,
            &end,
            &[0x04],
        ],
    );
    let expected = [
        0x15, 0x15, 0x05, 0x04, 0x06, 0x06, 0x06, 0x06, 0x06, 0x15, 0x06, 0x06, 0x06,
    ];
    assert_eq!(sent.concat(), expected);
    assert_eq!(bodies.len(), 3, "{bodies:?}");
    has(
        &bodies[0],
        &json!({"kind": "record", "range": "above", "meal": "after", "meter_serial": "7150-1", "time": "2026-03-01T06:00:00Z"}),
    );
    assert!(bodies[0].get("glucose_capillary_whole_blood").is_none());
    has(&bodies[1], &json!({"kind": "control", "control_glucose": 99.0}));
    has(
        &bodies[2],
        &json!({"kind": "record", "glucose_capillary_whole_blood_mmol_l": 7.9, "meal": "before"}),
    );
}

#[test]
fn an_answer_that_comes_twice_is_one_record() {
    let reply = |link: u8, payload: &[u8]| lifescan_binary::frame(link, payload);
    let record =
        |seconds: u32, value: u32| [&[5, 6], seconds.to_le_bytes().as_slice(), &value.to_le_bytes()].concat();
    let first = reply(1, &record(1_710_000_000, 98));
    let (sent, bodies) = dialogue(
        "lifescan-binary",
        &[
            &reply(0x0C, &[]),
            &reply(2, &[5, 15, 2, 0]),
            &first,
            &first,
            &reply(2, &record(1_710_000_600, 601)),
        ],
    );
    assert_eq!(bodies.len(), 2, "{bodies:?}");
    has(
        &bodies[0],
        &json!({"glucose_capillary_plasma": 98, "device_time": "2024-03-09T16:00:00"}),
    );
    assert!(bodies[1]["range"] == "high" && bodies[1].get("glucose_capillary_plasma").is_none());
    let asked: Vec<_> = sent
        .iter()
        .filter(|bytes| bytes.len() == 10)
        .map(|bytes| bytes[5])
        .collect();
    assert_eq!(asked, [0xF5, 0, 1], "the count, then each record once");
    // Verio.
    let verio = [&[3, 6], 763_000_000_u32.to_le_bytes().as_slice(), &[98, 0, 1, 2]].concat();
    has(
        &read("lifescan-binary", &reply(2, &verio)),
        &json!({"device_time": "2024-03-06T00:26:40", "glucose_mg_dl": 98, "control": true, "meal_raw": 2}),
    );
    assert_eq!(
        command("lifescan-binary", &reply(0, &[3, 0x21, 7, 0]))["index"],
        7
    );
    assert_eq!(
        command("lifescan-binary", &reply(6, &[]))["command"],
        "acknowledge"
    );
    let mut stop = reply(2, &[5, 15, 2, 0]);
    stop[7] = 4;
    refused("lifescan-binary", &stop, Reason::StopMarker);
    assert_eq!(
        crc16_ccitt_false(&unhex("02 06 06 03")).to_le_bytes(),
        [0xCD, 0x41]
    );
}

#[test]
fn taidoc_tells_what_it_measured_or_nothing() {
    let reply = |command: u8, data: [u8; 4]| {
        let bytes = [0x51, command, data[0], data[1], data[2], data[3], 0xA5];
        [bytes.as_slice(), &[sum8(&bytes)]].concat()
    };
    has(
        &read("taidoc", &reply(0x26, [0x62, 0, 0x19, 0x40])),
        &json!({"glucose_mg_dl": 98}),
    );
    has(
        &read("taidoc", &reply(0x26, [0x70, 1, 0, 0])),
        &json!({"temp_c": 36.8}),
    );
    has(
        &read("taidoc", &reply(0x26, [0x5A, 0x0E, 0, 0])),
        &json!({"temp_c": 36.74}),
    );
    has(
        &read("taidoc", &reply(0x25, [0x9F, 0x31, 59, 23])),
        &json!({"device_time": "2024-12-31T23:59"}),
    );
    let mut stop = reply(0x26, [0; 4]);
    stop[6] = 0xA4;
    stop[7] = sum8(&stop[..7]);
    refused("taidoc", &stop, Reason::StopMarker);
    refused("taidoc", &reply(0x26, [0; 4])[..7], Reason::Incomplete);
    let value = |model: [u8; 2], data: [u8; 4]| {
        let time = reply(0x25, [0x65, 0x30, 30, 14]);
        let (_, mut bodies) = dialogue(
            "taidoc",
            &[
                &reply(0x24, [model[0], model[1], 0, 0]),
                &reply(0x2B, [1, 0, 0, 0]),
                &time,
                &reply(0x26, data),
            ],
        );
        bodies.remove(0)
    };
    has(
        &value([0x77, 0x42], [90, 0, 0, 0]),
        &json!({"glucose_capillary_whole_blood": 90, "time": "2024-03-05T14:30"}),
    );
    has(
        &value([0x55, 0x82], [97, 0, 0, 71]),
        &json!({"spo2": 97, "pulse_rate_oximeter": 71}),
    );
    has(
        &value([0x00, 0x30], [128, 0, 40, 66]),
        &json!({"nibp_systolic": 128, "nibp_diastolic": 40, "nibp_pulse": 66}),
    );
    // Both in one: 25 is the temperature of the room, 79 a diastolic pressure, 33 may be either.
    has(
        &value([0x61, 0x32], [98, 0, 25, 64]),
        &json!({"glucose_capillary_whole_blood": 98}),
    );
    has(
        &value([0x61, 0x32], [128, 0, 79, 66]),
        &json!({"nibp_systolic": 128}),
    );
    for (model, data) in [([0x61, 0x32], [98, 0, 33, 64]), ([0x51, 0x25], [90, 0, 0, 0])] {
        let body = value(model, data);
        has(
            &body,
            &json!({"status": ["kind_unknown"], "value_hex": to_hex(&data)}),
        );
        assert!(
            body.get("glucose_capillary_whole_blood").is_none() && body.get("nibp_systolic").is_none(),
            "{body}"
        );
    }
}
