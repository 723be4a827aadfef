use super::*;
use std::io::Write;

fn metric(name: &str, datatype: i32, set: impl Fn(&mut Metric)) -> Bytes {
    let mut metric = Metric {
        name: Some(name.to_owned()),
        datatype: Some(datatype),
        ..Metric::default()
    };
    set(&mut metric);
    metric.encode_to_vec().into()
}

fn message(metrics: Vec<Bytes>) -> Bytes {
    let payload = Payload {
        timestamp: Some(1_709_649_000_000),
        metrics,
        ..Payload::default()
    };
    payload.encode_to_vec().into()
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap().into()
}

fn body(topic: &str, payload: &Bytes) -> (Value, Vec<String>) {
    let decoded = decode(topic, payload).unwrap();
    let failed = decoded.failed.into_iter().map(|error| error.text).collect();
    (serde_json::from_slice(&decoded.body).unwrap(), failed)
}

#[test]
fn every_type_of_metric_is_read_and_a_missing_value_is_null() {
    let payload = message(vec![
        metric("d", 0, |m| m.double_value = Some(36.8)),
        metric("f", 1, |m| m.float_value = Some(36.8)),
        metric("l", 2, |m| m.long_value = Some(-9_007_199_254_740_993)),
        metric("i", 3, |m| m.int_value = Some(-5)),
        metric("b", 4, |m| m.bool_value = Some(false)),
        metric("s", 5, |m| m.string_value = Some("bed-7".to_owned())),
        metric("y", 6, |m| m.bytes_value = Some(Bytes::from_static(&[1, 2, 255]))),
        metric("nothing", 3, |_| ()),
        metric("nan", 0, |m| m.double_value = Some(f64::NAN)),
    ]);
    let (body, failed) = body("acme/gw7/vitals/ward/oxi7", &payload);
    assert_eq!(failed, Vec::<String>::new());
    assert_eq!(body["time"], "2024-03-05T14:30:00Z");
    assert_eq!(
        (
            &body["account"],
            &body["device"],
            &body["application"],
            &body["topic"]
        ),
        (
            &"acme".into(),
            &"gw7".into(),
            &"vitals".into(),
            &"ward/oxi7".into()
        )
    );
    let values: Vec<String> = body["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|metric| format!("{}={}", metric["name"].as_str().unwrap(), metric["value"]))
        .collect();
    let expected = [
        "d=36.8",
        "f=36.8",
        "l=-9007199254740993",
        "i=-5",
        "b=false",
        "s=\"bed-7\"",
        "y=\"AQL/\"",
        "nothing=null",
        "nan=null",
    ];
    assert_eq!(values, expected);
}

#[test]
fn a_compressed_payload_is_the_same_payload() {
    let plain = message(vec![metric("hr", 3, |m| m.int_value = Some(72))]);
    let json = Bytes::from_static(br#"{"sentOn":1709649000000,"metrics":{"hr":72}}"#);
    for payload in [plain, json] {
        assert_eq!(body("a/b/c", &gzip(&payload)), body("a/b/c", &payload));
    }
}

#[test]
fn both_kinds_of_json_are_read() {
    let simple = br#" {"sentOn":1709649000000,"metrics":{"hr":72,"spo2":null}}"#;
    let list =
        br#"{"sentOn":"2024-03-05T15:30:00+01:00","metrics":[{"name":"hr","valueType":"integer","value":72},
        {"name":"spo2","value":null}]}"#;
    for payload in [&simple[..], &list[..]] {
        let (body, _) = body("a/b/c", &Bytes::copy_from_slice(payload));
        assert_eq!(body["time"], "2024-03-05T14:30:00Z");
        assert_eq!(
            (&body["metrics"][0]["name"], &body["metrics"][0]["value"]),
            (&"hr".into(), &72.into())
        );
        assert_eq!(body["metrics"][1]["value"], Value::Null);
    }
}

#[test]
fn one_wrong_metric_is_refused_and_the_others_go_on() {
    let payload = message(vec![
        metric("hr", 3, |m| m.int_value = Some(72)),
        metric("spo2", 0, |m| m.int_value = Some(97)),
        metric("what", 9, |m| m.int_value = Some(1)),
        metric("", 3, |m| m.int_value = Some(1)),
    ]);
    let (body, failed) = body("a/b/c", &payload);
    assert_eq!(body["metrics"].as_array().unwrap().len(), 1);
    for (text, why) in failed.iter().zip([
        "metric 2 of the Kura message: the value is not in",
        "none of Kura",
        "no name",
    ]) {
        assert!(text.contains(why), "{text}");
    }
    assert_eq!(failed.len(), 3);
}

#[test]
fn control_messages_hold_no_readings() {
    let payload = message(vec![metric("hr", 3, |m| m.int_value = Some(72))]);
    let (body, _) = body("$EDC/acme/gw7/MQTT/BIRTH", &payload);
    assert_eq!((&body["device"], &body["metrics"]), (&"gw7".into(), &Value::Null));
    assert_eq!(body["control"][0]["name"], "hr");
}

#[test]
fn what_is_no_kura_message_is_refused_with_the_reason() {
    let many = message(vec![Bytes::new(); MOST_METRICS + 1]);
    let bomb = gzip(&vec![0; 20 * 1024 * 1024]);
    assert!(bomb.len() < 64 * 1024);
    let mut cut = gzip(&message(Vec::new())).to_vec();
    cut.truncate(12);
    for (payload, why) in [
        (Bytes::from_static(b"hello"), "no Kura message"),
        (Bytes::from_static(&[0x08]), "no Kura message"),
        (Bytes::from_static(b"{\"sentOn\":"), "begins as JSON"),
        (Bytes::from_static(b"{\"hr\":72}"), "neither"),
        (Bytes::from_static(b"{\"sentOn\":true}"), "no time"),
        (Bytes::from_static(b"{\"sentOn\":-1}"), "between 1970"),
        (Bytes::from_static(b"{\"metrics\":7}"), "neither an object"),
        (many, "more than 10000"),
        (bomb, "larger than"),
        (cut.into(), "cannot be unpacked"),
    ] {
        let Unreadable(text) = decode("a/b/c", &payload).unwrap_err();
        assert!(text.contains(why), "{text}");
    }
}
