//! Decoding and births of Sparkplug B, with messages that the same structures write.

use super::births::{Births, Observed};
use super::*;
use crate::ingest::payload::decode_parts;
use proto::{
    DataSet, DataSetValue, Metric, Parameter, Payload, PropertySet, PropertySetList, PropertyValue, Row,
    Template,
};

/// 2024-03-05T14:30:00Z.
const TIME: u64 = 1_709_649_000_000;

fn bytes(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

fn metric(name: &str, datatype: u32, set: impl Fn(&mut Metric)) -> Metric {
    let mut metric = Metric {
        name: (!name.is_empty()).then(|| name.to_owned()),
        datatype: (datatype > 0).then_some(datatype),
        ..Metric::default()
    };
    set(&mut metric);
    metric
}

/// A metric of a birth.
fn born(name: &str, alias: u64) -> Metric {
    metric(name, 3, |m| (m.alias, m.int_value) = (Some(alias), Some(72)))
}

/// A metric of data, by its alias.
fn aliased(alias: u64, value: u32) -> Metric {
    metric("", 0, |m| (m.alias, m.int_value) = (Some(alias), Some(value)))
}

fn payload(seq: u64, metrics: &[Metric]) -> Bytes {
    bytes(&Payload {
        timestamp: Some(TIME),
        metrics: metrics.iter().map(bytes).collect(),
        seq: Some(seq),
        ..Payload::default()
    })
}

fn topic(text: &str) -> Topic<'_> {
    Topic::read(text).unwrap()
}

/// Body and refusals of a message.
fn decoded(births: &mut Births, on: &str, payload: &Bytes) -> (Value, Vec<String>) {
    let observed = births.observe(&topic(on), payload);
    let names = observed.names.map(|names| serde_json::to_string(&names).unwrap());
    let mut body = decode_parts(Some("sparkplug-b"), names.as_deref(), on, payload).unwrap();
    let failed = body.take_failed().into_iter();
    let failed = failed
        .map(|error| format!("{}: {}", error.name, error.text))
        .collect();
    (serde_json::from_slice(body.bytes()).unwrap(), failed)
}

/// `name=value` of all metrics, and the refusals.
fn readings(births: &mut Births, on: &str, payload: &Bytes) -> Vec<String> {
    let (body, failed) = decoded(births, on, payload);
    let metrics = body["metrics"].as_array().unwrap().iter();
    let shown = metrics.map(|metric| format!("{}={}", metric["name"].as_str().unwrap(), metric["value"]));
    shown.chain(failed).collect()
}

const DBIRTH: &str = "spBv1.0/ward3/DBIRTH/gw7/oxi7";
const DDATA: &str = "spBv1.0/ward3/DDATA/gw7/oxi7";
const DDEATH: &str = "spBv1.0/ward3/DDEATH/gw7/oxi7";
const NBIRTH: &str = "spBv1.0/ward3/NBIRTH/gw7";
const NDATA: &str = "spBv1.0/ward3/NDATA/gw7";
const NDEATH: &str = "spBv1.0/ward3/NDEATH/gw7";

fn session(number: u64) -> Metric {
    metric("bdSeq", 8, |m| m.long_value = Some(number))
}

#[test]
fn topics_are_read() {
    let read = |text| Topic::read(text).map(|t| (t.kind, t.group, t.node, t.device));
    assert_eq!(read(DDATA), Some((Kind::Data, "ward3", "gw7", Some("oxi7"))));
    assert_eq!(read(NBIRTH), Some((Kind::Birth, "ward3", "gw7", None)));
    assert_eq!(
        read("spBv1.0/g/DCMD/n/d"),
        Some((Kind::Command, "g", "n", Some("d")))
    );
    for other in [
        "spBv1.0/STATE/host",
        "spBv1.0/g/NDATA/n/d",
        "spBv1.0/g/DDATA/n",
        "spBv1.0/g/XDATA/n",
        "spAv1.0/g/NDATA/n",
        "spBv1.0/g/DDATA/n/d/e",
        "spBv1.0/g/é/n",
        "",
    ] {
        assert_eq!(read(other), None, "{other}");
    }
}

#[test]
fn every_type_becomes_its_json() {
    let array = |datatype, list: &[u8]| {
        let list = Bytes::copy_from_slice(list);
        metric("v", datatype, move |m| m.bytes_value = Some(list.clone()))
    };
    let int = |datatype, value: u32| metric("v", datatype, |m| m.int_value = Some(value));
    let long = |datatype, value: u64| metric("v", datatype, |m| m.long_value = Some(value));
    for (metric, expected) in [
        (int(1, 0xFF), json!(-1)),
        (int(1, 0xFFFF_FF80), json!(-128)),
        (int(1, 127), json!(127)),
        (int(2, 0xFFFE), json!(-2)),
        (int(2, 0xFFFF_FFFE), json!(-2)),
        (int(3, 73), json!(73)),
        (int(3, 0xFFFF_FFFB), json!(-5)),
        (long(3, 0xFFFF_FFFF_FFFF_FFFB), json!(-5)),
        (long(4, u64::MAX), json!(-1)),
        (int(5, 255), json!(255)),
        (int(6, 65535), json!(65535)),
        (int(7, u32::MAX), json!(u32::MAX)),
        (long(7, 4_000_000_000), json!(4_000_000_000_u32)),
        (long(8, u64::MAX), json!(u64::MAX)),
        (
            metric("v", 9, |m| m.float_value = Some(36.8)),
            serde_json::from_str("36.8").unwrap(),
        ),
        (metric("v", 9, |m| m.float_value = Some(f32::NAN)), Value::Null),
        (metric("v", 10, |m| m.double_value = Some(36.6)), json!(36.6)),
        (
            metric("v", 10, |m| m.double_value = Some(f64::INFINITY)),
            Value::Null,
        ),
        (metric("v", 11, |m| m.boolean_value = Some(false)), json!(false)),
        (
            metric("v", 12, |m| m.string_value = Some("bed-7".to_owned())),
            json!("bed-7"),
        ),
        (
            metric("v", 14, |m| m.string_value = Some(String::new())),
            json!(""),
        ),
        (
            metric("v", 15, |m| m.string_value = Some("u".to_owned())),
            json!("u"),
        ),
        (long(13, TIME + 1), json!("2024-03-05T14:30:00.001Z")),
        (array(17, &[1, 2, 255]), json!("AQL/")),
        (array(18, &[]), json!("")),
        (array(22, &[0xFF, 1]), json!([-1, 1])),
        (array(23, &[0xFE, 0xFF]), json!([-2])),
        (array(24, &[1, 0, 0, 0x80]), json!([-2_147_483_647])),
        (array(25, &[0xFF; 8]), json!([-1])),
        (array(26, &[255]), json!([255])),
        (array(27, &[0xFF, 0xFF]), json!([65535])),
        (array(28, &[0, 0, 0, 0x80]), json!([2_147_483_648_u32])),
        (array(29, &[0xFF; 8]), json!([u64::MAX])),
        (array(30, &36.8_f32.to_le_bytes()), json!([36.8])),
        (array(31, &36.6_f64.to_le_bytes()), json!([36.6])),
        (
            array(32, &[10, 0, 0, 0, 0b1010_0000, 0b0100_0000]),
            json!([true, false, true, false, false, false, false, false, false, true]),
        ),
        (array(33, b"a\0bc\0"), json!(["a", "bc"])),
        (array(34, &TIME.to_le_bytes()), json!(["2024-03-05T14:30:00Z"])),
        // Nobody declared it: an integer is signed.
        (int(0, 0xFFFF_FFFB), json!(-5)),
        (metric("v", 0, |m| m.float_value = Some(97.5)), json!(97.5)),
        // Three ways to have no value.
        (
            metric("v", 3, |m| (m.is_null, m.int_value) = (Some(true), Some(0))),
            Value::Null,
        ),
        (metric("v", 3, |_| ()), Value::Null),
        (metric("v", 19, |m| m.is_null = Some(true)), Value::Null),
    ] {
        let (body, failed) = decoded(
            &mut Births::default(),
            DDATA,
            &payload(1, std::slice::from_ref(&metric)),
        );
        assert_eq!(failed, Vec::<String>::new(), "{metric:?}");
        assert_eq!(
            body["metrics"][0]["value"].to_string(),
            expected.to_string(),
            "{metric:?}"
        );
    }
}

#[test]
fn a_value_that_does_not_fit_its_type_is_refused_and_the_others_go_on() {
    let list = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    for (wrong, why) in [
        (metric("v", 1, |m| m.int_value = Some(300)), "out of the range"),
        (
            metric("v", 2, |m| m.int_value = Some(0x1_FFFF)),
            "out of the range",
        ),
        (metric("v", 5, |m| m.int_value = Some(256)), "out of the range"),
        (
            metric("v", 7, |m| m.long_value = Some(1 << 32)),
            "out of the range",
        ),
        (
            metric("v", 3, |m| m.string_value = Some("72".to_owned())),
            "not in the field",
        ),
        (metric("v", 12, |m| m.int_value = Some(72)), "not in the field"),
        (metric("v", 11, |m| m.int_value = Some(1)), "not in the field"),
        (
            metric("v", 9, |m| m.boolean_value = Some(true)),
            "not in the field",
        ),
        (
            metric("v", 3, |m| m.dataset_value = list(&[])),
            "not in the field",
        ),
        (metric("v", 99, |m| m.int_value = Some(1)), "none of Sparkplug B"),
        (
            metric("v", 13, |m| m.long_value = Some(u64::MAX)),
            "beyond the year 9999",
        ),
        (
            metric("v", 3, |m| (m.int_value, m.timestamp) = (Some(1), Some(u64::MAX))),
            "beyond the year 9999",
        ),
        (metric("v", 23, |m| m.bytes_value = list(&[1])), "does not end"),
        (
            metric("v", 32, |m| m.bytes_value = list(&[9, 0, 0, 0, 1])),
            "as many bits",
        ),
        (metric("v", 33, |m| m.bytes_value = list(b"a")), "does not end"),
        (metric("v", 33, |m| m.bytes_value = list(b"\xFF\0")), "no UTF-8"),
        (
            metric("", 3, |m| m.int_value = Some(72)),
            "neither name nor alias",
        ),
    ] {
        let message = payload(1, &[wrong, metric("hr", 3, |m| m.int_value = Some(72))]);
        let (body, failed) = decoded(&mut Births::default(), DDATA, &message);
        assert_eq!(body["metrics"].as_array().unwrap().len(), 1);
        assert_eq!(body["metrics"][0]["name"], "hr");
        assert_eq!(failed.len(), 1);
        assert!(
            failed[0].starts_with("InvalidDataFormatException: metric 1 of") && failed[0].contains(why),
            "{failed:?}"
        );
    }
}

#[test]
fn data_sets_templates_and_properties_become_objects() {
    let cell = |value: f32| {
        bytes(&DataSetValue {
            float_value: Some(value),
            ..DataSetValue::default()
        })
    };
    let text = |text: &str| {
        bytes(&DataSetValue {
            string_value: Some(text.to_owned()),
            ..DataSetValue::default()
        })
    };
    let set = DataSet {
        number_of_columns: Some(2),
        columns: vec!["spo2".to_owned(), "site".to_owned()],
        types: vec![9, 12],
        rows: vec![
            bytes(&Row {
                elements: vec![cell(97.5), text("ear")],
            }),
            bytes(&Row {
                elements: vec![cell(96.0), text("toe")],
            }),
        ],
    };
    let template = Template {
        version: Some("2".to_owned()),
        metrics: vec![bytes(&metric("hr", 3, |m| m.int_value = Some(72)))],
        parameters: vec![bytes(&Parameter {
            name: Some("bed".to_owned()),
            datatype: Some(5),
            int_value: Some(7),
            ..Parameter::default()
        })],
        template_ref: Some("Oximeter".to_owned()),
        is_definition: None,
    };
    let definition = Template {
        is_definition: Some(true),
        ..template.clone()
    };
    let unit = PropertyValue {
        datatype: Some(12),
        string_value: Some("bpm".to_owned()),
        ..PropertyValue::default()
    };
    let inner = PropertySet {
        keys: vec!["engUnit".to_owned()],
        values: vec![bytes(&unit)],
    };
    let sets = PropertySetList {
        sets: vec![bytes(&inner)],
    };
    let nested = PropertyValue {
        datatype: Some(20),
        set_value: Some(bytes(&inner)),
        ..PropertyValue::default()
    };
    let listed = PropertyValue {
        datatype: Some(21),
        sets_value: Some(bytes(&sets)),
        ..PropertyValue::default()
    };
    let null = PropertyValue {
        is_null: Some(true),
        ..PropertyValue::default()
    };
    let properties = PropertySet {
        keys: ["engUnit", "more", "list", "none"].map(str::to_owned).to_vec(),
        values: [&unit, &nested, &listed, &null].map(bytes).to_vec(),
    };
    let message = payload(
        1,
        &[
            metric("table", 16, |m| m.dataset_value = Some(bytes(&set))),
            metric("device", 19, |m| m.template_value = Some(bytes(&template))),
            metric("hr", 3, |m| {
                (m.int_value, m.properties) = (Some(72), Some(bytes(&properties)))
            }),
            metric("of", 19, |m| m.template_value = Some(bytes(&definition))),
        ],
    );
    let (body, failed) = decoded(&mut Births::default(), DDATA, &message);
    assert_eq!(failed, Vec::<String>::new());
    assert_eq!(
        body["metrics"][0]["value"],
        json!({ "columns": ["spo2", "site"], "types": ["Float", "String"],
                "rows": [{ "spo2": 97.5, "site": "ear" }, { "spo2": 96.0, "site": "toe" }] })
    );
    let device = &body["metrics"][1]["value"];
    assert_eq!(
        (
            &device["templateRef"],
            &device["version"],
            &device["parameters"]["bed"]
        ),
        (&json!("Oximeter"), &json!("2"), &json!(7))
    );
    assert_eq!(
        (&device["metrics"][0]["name"], &device["metrics"][0]["value"]),
        (&json!("hr"), &json!(72))
    );
    assert_eq!(
        body["metrics"][2]["properties"],
        json!({ "engUnit": "bpm", "more": { "engUnit": "bpm" }, "list": [{ "engUnit": "bpm" }], "none": null })
    );
    // The default values of a definition are no readings.
    assert_eq!(body["metrics"][3]["value"]["metrics"], Value::Null);

    let ragged = DataSet {
        rows: vec![bytes(&Row {
            elements: vec![cell(1.0)],
        })],
        ..set.clone()
    };
    let untyped = DataSet {
        types: vec![9],
        ..set
    };
    for wrong in [ragged, untyped] {
        let message = payload(
            1,
            &[metric("table", 16, |m| m.dataset_value = Some(bytes(&wrong)))],
        );
        assert!(decoded(&mut Births::default(), DDATA, &message).1[0].contains("as many"));
    }
}

#[test]
fn time_flags_and_sender_are_in_the_body() {
    let message = payload(
        7,
        &[
            metric("t", 10, |m| {
                (m.double_value, m.timestamp, m.is_historical) = (Some(36.8), Some(TIME - 60_000), Some(true))
            }),
            metric("w", 3, |m| (m.int_value, m.is_transient) = (Some(1), Some(true))),
        ],
    );
    let (body, _) = decoded(&mut Births::default(), NDATA, &message);
    assert_eq!(
        body,
        json!({ "kind": "sparkplug-b", "messageType": "NDATA", "group": "ward3", "edgeNode": "gw7", "device": "gw7",
            "time": "2024-03-05T14:30:00Z", "seq": 7, "metrics": [
            { "name": "t", "type": "Double", "value": 36.8, "time": "2024-03-05T14:29:00Z", "historical": true },
            { "name": "w", "type": "Int32", "value": 1, "time": "2024-03-05T14:30:00Z", "transient": true } ] })
    );
}

#[test]
fn a_command_holds_no_reading() {
    let message = payload(0, &[metric("hr", 3, |m| m.int_value = Some(72))]);
    let (body, _) = decoded(&mut Births::default(), "spBv1.0/ward3/DCMD/gw7/oxi7", &message);
    assert_eq!(body["metrics"], Value::Null);
    assert_eq!(body["commands"][0]["name"], "hr");
}

#[test]
fn aliases_are_those_of_the_last_birth_of_the_same_device() {
    let mut births = Births::default();
    let data = |seq, value| payload(seq, &[aliased(1, value)]);
    let no_birth = readings(&mut births, DDATA, &data(9, 70));
    assert!(
        no_birth[0].starts_with("AliasNotDefinedException: metric 1 of") && no_birth[0].contains("no birth"),
        "{no_birth:?}"
    );
    assert_eq!(
        readings(&mut births, NBIRTH, &payload(0, &[session(1), born("load", 1)])),
        ["bdSeq=1", "load=72"]
    );
    assert_eq!(
        readings(
            &mut births,
            DBIRTH,
            &payload(1, &[born("hr", 1), born("spo2", 2)])
        ),
        ["hr=72", "spo2=72"]
    );
    assert_eq!(readings(&mut births, DDATA, &data(2, 73)), ["hr=73"]);
    assert_eq!(readings(&mut births, NDATA, &data(3, 5)), ["load=5"]);
    let other = readings(&mut births, "spBv1.0/ward3/DDATA/gw7/therm1", &data(4, 36));
    assert!(other[0].contains("no birth"), "{other:?}");
    // Born again, with other numbers.
    readings(
        &mut births,
        DBIRTH,
        &payload(5, &[born("spo2", 1), born("hr", 2)]),
    );
    assert_eq!(readings(&mut births, DDATA, &data(6, 97)), ["spo2=97"]);
    // The node is born again: its devices have to be, too.
    readings(&mut births, NBIRTH, &payload(0, &[session(2), born("load", 1)]));
    assert!(readings(&mut births, DDATA, &data(1, 97))[0].contains("no birth"));
    // Another node with the same device is another device.
    assert!(readings(&mut births, "spBv1.0/ward3/DDATA/gw8/oxi7", &data(1, 97))[0].contains("no birth"));
}

#[test]
fn a_missing_message_may_have_been_a_birth() {
    let mut births = Births::default();
    readings(&mut births, DBIRTH, &payload(254, &[born("hr", 1)]));
    let data = |seq| {
        payload(
            seq,
            &[aliased(1, 73), metric("name", 3, |m| m.int_value = Some(1))],
        )
    };
    for seq in [255, 0, 0, 1] {
        assert_eq!(
            readings(&mut births, DDATA, &data(seq)),
            ["hr=73", "name=1"],
            "{seq}"
        );
    }
    let lost = readings(&mut births, DDATA, &data(3));
    assert_eq!(lost[0], "name=1");
    assert!(lost[1].contains("a sequence number is missing"), "{lost:?}");
    assert!(readings(&mut births, DDATA, &data(4))[1].contains("a sequence number is missing"));
    readings(&mut births, DBIRTH, &payload(5, &[born("hr", 1)]));
    assert_eq!(readings(&mut births, DDATA, &data(6)), ["hr=73", "name=1"]);
    // A message that cannot be read may have been one as well.
    births.observe(&topic(DBIRTH), &Bytes::from_static(&[0xFF]));
    assert!(readings(&mut births, DDATA, &data(7))[1].contains("a sequence number is missing"));
    // Nothing is missing where nobody counts.
    let mut births = Births::default();
    let uncounted = |metrics: &[Metric]| {
        bytes(&Payload {
            metrics: metrics.iter().map(bytes).collect(),
            ..Payload::default()
        })
    };
    readings(&mut births, DBIRTH, &uncounted(&[born("hr", 1)]));
    assert_eq!(
        readings(&mut births, DDATA, &uncounted(&[aliased(1, 73)])),
        ["hr=73"]
    );
}

#[test]
fn deaths_end_names_but_not_those_of_a_later_session() {
    let mut births = Births::default();
    readings(&mut births, NBIRTH, &payload(0, &[session(5)]));
    readings(&mut births, DBIRTH, &payload(1, &[born("hr", 1)]));
    let data = |seq| payload(seq, &[aliased(1, 73)]);
    let death = |number| {
        bytes(&Payload {
            metrics: vec![bytes(&session(number))],
            ..Payload::default()
        })
    };
    // The will of the session before comes late.
    assert_eq!(births.observe(&topic(NDEATH), &death(4)), Observed::default());
    assert_eq!(readings(&mut births, DDATA, &data(2)), ["hr=73"]);
    births.observe(&topic(DDEATH), &payload(3, &[]));
    assert!(readings(&mut births, DDATA, &data(4))[0].contains("has died"));
    readings(&mut births, DBIRTH, &payload(5, &[born("hr", 1)]));
    assert_eq!(readings(&mut births, DDATA, &data(6)), ["hr=73"]);
    let (body, _) = decoded(&mut births, NDEATH, &death(5));
    assert_eq!(body["available"], false);
    assert!(readings(&mut births, DDATA, &data(7))[0].contains("has died"));
}

#[test]
fn an_alias_that_may_mean_something_else_is_refused() {
    let mut births = Births::default();
    readings(
        &mut births,
        DBIRTH,
        &payload(
            0,
            &[born("hr", 1), born("rr", 1), born("spo2", 2), born("spo2", 2)],
        ),
    );
    let twice = readings(&mut births, DDATA, &payload(1, &[aliased(1, 14)]));
    assert!(twice[0].contains("gives it to two metrics"), "{twice:?}");
    assert_eq!(
        readings(&mut births, DDATA, &payload(2, &[aliased(2, 97)])),
        ["spo2=97"]
    );
    let float = metric("", 9, |m| (m.alias, m.float_value) = (Some(2), Some(36.8)));
    let other = readings(&mut births, DDATA, &payload(3, &[float]));
    assert!(
        other[0].starts_with("AliasNotDefinedException") && other[0].contains("not that of the birth"),
        "{other:?}"
    );
    let nameless = readings(&mut births, DBIRTH, &payload(4, &[aliased(3, 1)]));
    assert!(nameless[0].contains("a birth must name"), "{nameless:?}");
}

#[test]
fn names_outlive_a_restart_only_without_a_gap() {
    let mut births = Births::default();
    let birth = births.observe(&topic(DBIRTH), &payload(5, &[born("hr", 1)]));
    let (key, text) = birth.remember.unwrap();
    assert!(!text.contains("72"), "values are not written down: {text}");
    assert_eq!(
        births
            .observe(&topic(DDATA), &payload(6, &[aliased(1, 73)]))
            .remember,
        None
    );
    let restarted = |last: Option<u64>| {
        let mut births = Births::default();
        births.recall(&key, &text);
        if let Some(last) = last {
            births.recall_last(&topic(DDATA), &payload(last, &[]));
        }
        births
    };
    let next = payload(7, &[aliased(1, 74)]);
    assert_eq!(readings(&mut restarted(Some(6)), DDATA, &next), ["hr=74"]);
    for last in [Some(5), Some(200), None] {
        let mut births = restarted(last);
        let observed = births.observe(&topic(DDATA), &next);
        assert!(observed.incomplete && observed.remember.is_some(), "{last:?}");
        assert!(
            readings(&mut births, DDATA, &next)[0].contains("were missed while the agent"),
            "{last:?}"
        );
    }
    // What was forgotten stays forgotten, and says why.
    let forgotten = restarted(None).observe(&topic(DDATA), &next).remember.unwrap();
    let mut births = Births::default();
    births.recall(&forgotten.0, &forgotten.1);
    births.recall_last(&topic(DDATA), &next);
    assert!(readings(&mut births, DDATA, &payload(8, &[aliased(1, 74)]))[0].contains("were missed"));
}

#[test]
fn the_message_means_the_same_whenever_it_is_read() {
    let mut births = Births::default();
    births.observe(&topic(DBIRTH), &payload(0, &[born("hr", 1)]));
    let data = payload(1, &[aliased(1, 73)]);
    let names = births.observe(&topic(DDATA), &data).names.unwrap();
    let names = serde_json::to_string(&names).unwrap();
    births.observe(&topic(DBIRTH), &payload(2, &[born("spo2", 1)]));
    let body = decode_parts(Some("sparkplug-b"), Some(&names), DDATA, &data).unwrap();
    assert!(
        std::str::from_utf8(body.bytes())
            .unwrap()
            .contains("\"name\":\"hr\"")
    );
}

#[test]
fn what_is_no_message_is_refused_with_the_reason() {
    let many = payload(0, &vec![Metric::default(); 20_001]);
    let mut deep = Template::default();
    for _ in 0..12 {
        let inner = metric("t", 19, |m| m.template_value = Some(bytes(&deep)));
        deep = Template {
            metrics: vec![bytes(&inner)],
            ..Template::default()
        };
    }
    let deep = payload(0, &[metric("t", 19, |m| m.template_value = Some(bytes(&deep)))]);
    let late = bytes(&Payload {
        timestamp: Some(u64::MAX),
        ..Payload::default()
    });
    for (payload, why) in [
        (Bytes::from_static(b"{\"hr\":72}"), "no Sparkplug B message"),
        (Bytes::from_static(&[0x12, 0x05, 0x01]), "no Sparkplug B message"),
        (Bytes::from_static(&[0x12, 0x01, 0xFF]), "no Sparkplug B message"),
        (many, "more than 20000 values"),
        (deep, "deep within templates"),
        (late, "beyond the year 9999"),
    ] {
        let error = decode_parts(Some("sparkplug-b"), None, DDATA, &payload).unwrap_err();
        assert_eq!(error.name, "InvalidDataFormatException");
        assert!(
            error.text.contains(why) && error.text.contains("\"sparkplug-b\""),
            "{}",
            error.text
        );
    }
    // The state of a host is JSON on another topic.
    let state = Bytes::from_static(b"{\"online\":true,\"timestamp\":1}");
    let body = decode_parts(Some("sparkplug-b"), None, "spBv1.0/STATE/host", &state).unwrap();
    assert_eq!(body.bytes(), &state[..]);
}

#[test]
fn a_flood_of_nodes_and_names_is_bounded() {
    let mut births = Births::default();
    for node in 0..1100 {
        births.observe(
            &topic(&format!("spBv1.0/g/DBIRTH/n{node}/d")),
            &payload(0, &[born("hr", 1)]),
        );
    }
    let beyond = readings(
        &mut births,
        "spBv1.0/g/DDATA/n1099/d",
        &payload(1, &[aliased(1, 73)]),
    );
    assert!(
        beyond[0].contains("more metrics than are remembered"),
        "{beyond:?}"
    );
    assert_eq!(
        readings(
            &mut births,
            "spBv1.0/g/DDATA/n3/d",
            &payload(1, &[aliased(1, 73)])
        ),
        ["hr=73"]
    );
    let mut births = Births::default();
    let large: Vec<Metric> = (0..30_000).map(|alias| born("m", alias)).collect();
    births.observe(&topic(DBIRTH), &payload(0, &large));
    births.observe(&topic("spBv1.0/ward3/DBIRTH/gw7/two"), &payload(1, &large));
    let beyond = readings(
        &mut births,
        "spBv1.0/ward3/DDATA/gw7/two",
        &payload(2, &[aliased(1, 73)]),
    );
    assert!(
        beyond[0].contains("more metrics than are remembered"),
        "{beyond:?}"
    );
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    let message = payload(
        1,
        &[
            born("hr", 1),
            metric("l", 33, |m| m.bytes_value = Some(Bytes::from_static(b"a\0"))),
            metric("s", 16, |m| {
                m.dataset_value = Some(bytes(&DataSet {
                    columns: vec!["a".to_owned()],
                    types: vec![3],
                    ..DataSet::default()
                }))
            }),
        ],
    );
    let mut births = Births::default();
    for end in 0..=message.len() {
        for flip in 0..=255_u8 {
            let mut broken = message[..end].to_vec();
            if let Some(last) = broken.last_mut() {
                *last ^= flip;
            }
            let broken = Bytes::from(broken);
            births.observe(&topic(DBIRTH), &broken);
            drop(decode_parts(Some("sparkplug-b"), None, DBIRTH, &broken));
            drop(decode_parts(Some("kura"), None, "a/b/c", &broken));
        }
    }
}
