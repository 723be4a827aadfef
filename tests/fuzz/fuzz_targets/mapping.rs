//! The mapping engine under arbitrary bytes; the first byte chooses what the rest is. `cargo fuzz run mapping` in `tests/fuzz`.
//!
//! Nothing may panic, hang or grow without bound; and the index, the trace and the copy of a message must agree with plain
//! evaluation.

#![no_main]

use std::sync::LazyLock;

use iomt_mapping::expression::{Expression, Language};
use iomt_mapping::message::{Tree, parse};
use iomt_mapping::{DeviceMapping, Envelope, ParsedMessage};
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
    match choice % 3 {
        0 => mapping_text(rest),
        1 => message_text(rest),
        _ => expression_text(rest),
    }
});

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
