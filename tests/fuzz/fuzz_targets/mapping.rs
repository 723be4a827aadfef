//! The mapping engine under arbitrary bytes; the first byte chooses what the rest is. `cargo fuzz run mapping` in `tests/fuzz`.
//!
//! Nothing may panic, hang or grow without bound; and the index, the trace and the copy of a message must agree with plain
//! evaluation.

#![no_main]

use std::sync::{Arc, LazyLock};

use iomt_mapping::expression::{Expression, Language};
use iomt_mapping::fhir::{BuildOptions, FhirMapping, Merge, Reading, ResourceIds};
use iomt_mapping::message::{Tree, parse};
use iomt_mapping::pack_options::PackOptions;
use iomt_mapping::{DeviceMapping, Envelope, GroupKey, Measurement, ParsedMessage, Property, Timestamp};
use libfuzzer_sys::fuzz_target;

const MESSAGE: &[u8] =
    br#"{"Body":[{"type":"hr","heartRate":78,"ts":"2019-02-01T22:46:01.875Z","list":[1,2.50,"x",null]},
    {"a":{"b":{"c":[{"d":true}]}},"text":"36,6"}],"Properties":{"room":"7"},"SystemProperties":{"id":"d"}}"#;

/// A template of every kind, with matches that computed values, filters and functions take part in.
static MAPPING: LazyLock<DeviceMapping> = LazyLock::new(|| {
    let text = r#"{ "templateType": "CollectionContent", "template": [
        { "templateType": "CalculatedContent", "template": { "typeName": "a", "typeMatchExpression": "$..[?(@a || @b == 'x')]",
          "deviceIdExpression": "$..a", "timestampExpression": "$.matchedToken.b", "values": [
            { "valueName": "v", "valueExpression": "$.matchedToken..*" }, { "valueName": "w", "valueExpression":
              { "value": "to_string(matchedToken.[a, b[], c[?d > `1`]])", "language": "JmesPath" } } ] } },
        { "templateType": "CalculatedContent", "template": { "typeName": "b", "defaultExpressionLanguage": "JmesPath",
          "typeMatchExpression": "Body[*].{a: a, b: @}", "deviceIdExpression": "not_null(matchedToken.a, 'd')",
          "timestampExpression": "not_null(matchedToken.b.b, '2024-01-01')", "values": [
            { "valueName": "v", "valueExpression": "multiply(to_number(matchedToken.a), `0.5`)" } ] } },
        { "templateType": "JsonPathContent", "template": { "typeName": "c", "typeMatchExpression": "$..a[?(@.b =~ /x+/i)]",
          "deviceIdExpression": "$.a", "timestampExpression": "$.b" } },
        { "templateType": "IotJsonPathContent", "template": { "typeName": "d", "typeMatchExpression": "$..*" } },
        { "templateType": "IotCentralJsonPathContent", "template": { "typeName": "e", "typeMatchExpression": "$..[?(@a)]" } } ] }"#;
    match DeviceMapping::load(text) {
        (Some(mapping), _) => mapping,
        (None, findings) => panic!("{findings:?}"),
    }
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    match choice % 5 {
        0 => mapping_text(rest),
        1 => message_text(rest),
        2 => expression_text(rest),
        3 => fhir_mapping_text(rest),
        _ => sampled_data_merge(rest),
    }
});

/// FHIR mapping and third file from the same bytes: whatever loads has findings that can be shown.
fn fhir_mapping_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let findings = FhirMapping::load(text).1.into_iter().chain(PackOptions::load(text).1);
    for finding in findings {
        let _ = finding.render("fuzz.fhir.json", text);
    }
}

static HOURLY: LazyLock<FhirMapping> = LazyLock::new(|| {
    let text = r#"{ "templateType": "CollectionFhir", "template": [ { "templateType": "CodeValueFhir", "template": {
        "typeName": "hr", "periodInterval": 60, "codes": [ { "code": "8867-4", "system": "http://loinc.org" } ],
        "value": { "valueType": "SampledData", "valueName": "v", "defaultPeriod": 60000, "unit": "/min" } } } ] }"#;
    match FhirMapping::load(text) {
        (Some(mapping), _) => mapping,
        (None, findings) => panic!("{findings:?}"),
    }
});

/// A stored Observation whose `data` is arbitrary text, merged with readings at arbitrary seconds: what comes out is data
/// of the period's length, or an error; merging the same readings again changes nothing.
fn sampled_data_merge(data: &[u8]) {
    let (seconds, stored) = data.split_at(data.len().min(8));
    let Ok(stored) = std::str::from_utf8(stored) else {
        return;
    };
    let Some(template) = HOURLY.template("hr") else { return };
    let reading = |(order, second): (usize, &u8)| Reading {
        measurement: Measurement {
            key: Arc::new(GroupKey {
                type_name: "hr".to_owned(),
                device_id: "d".to_owned(),
                ..GroupKey::default()
            }),
            occurrence_time: Timestamp::from_ticks(i64::from(*second) * 140_000_000).unwrap_or(Timestamp::MIN),
            properties: vec![Property { name: "v".into(), value: second.to_string().into() }],
        },
        ingestion: order as i64,
    };
    let readings: Vec<Reading> = seconds.iter().enumerate().map(reading).collect();
    let Ok(groups) = template.observation_groups(&readings) else { return };
    let ids = ResourceIds { patient: "p".to_owned(), device: "d".to_owned(), encounter: None };
    let options = BuildOptions::default();
    for group in &groups {
        let Ok(built) = template.create(group, &ids, "hr", &options) else { continue };
        let mut existing = built.resource;
        if let Some(data) = existing.pointer_mut("/valueSampledData/data") {
            *data = stored.into();
        }
        let Ok(merged) = template.merge(group, &existing, &ids, &options, None) else { continue };
        if let Merge::Changed(resource) = merged.merge {
            let data = resource.pointer("/valueSampledData/data").and_then(|data| data.as_str()).unwrap_or_default();
            assert!(data.split(' ').count() >= 60, "{data}");
            let again = template.merge(group, &resource, &ids, &options, Some(&merged.memory));
            assert!(matches!(again, Ok(again) if again.merge == Merge::Unchanged));
        }
    }
}

fn mapping_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (mapping, findings) = DeviceMapping::load_partial(text);
    for finding in &findings {
        let _ = finding.render("fuzz.device.json", text);
    }
    if let (Some(mapping), Ok(message)) = (mapping, ParsedMessage::from_envelope(MESSAGE)) {
        assert_eq!(mapping.normalize(&message), mapping.normalize_each(&message));
        let _ = mapping.trace(&message);
    }
}

fn message_text(data: &[u8]) {
    let Ok(message) = (Envelope {
        body: data,
        properties: &[],
        system_properties: &[],
    })
    .parse() else {
        return;
    };
    assert_eq!(MAPPING.normalize(&message), MAPPING.normalize_each(&message));
    let value = message.root().to_value();
    assert_eq!(Tree::from(&value).root().to_value(), value);
}

fn expression_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(tree) = parse(MESSAGE) else { return };
    for language in [Language::JsonPath, Language::JmesPath] {
        match Expression::parse(text, language) {
            Err(error) => assert!(error.offset <= text.len(), "{error}"),
            Ok(Expression::JsonPath(path)) => {
                let _ = (
                    path.select_all(tree.root()),
                    path.select_one(tree.root()),
                    path.to_rfc9535(),
                );
            }
            Ok(Expression::JmesPath(path)) => {
                let _ = (path.select_all(tree.root()), path.select_one(tree.root()));
            }
        }
    }
}
