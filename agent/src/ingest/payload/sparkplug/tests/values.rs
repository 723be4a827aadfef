//! What values of every type become.

use super::*;

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
