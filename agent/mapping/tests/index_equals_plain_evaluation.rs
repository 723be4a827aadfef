//! The index over type matches changes nothing but the cost.
#![allow(clippy::panic)] // a test

use std::sync::Arc;

use iomt_mapping::expression::{Expression, Language};
use iomt_mapping::message::Tree;
use iomt_mapping::{DeviceMapping, MappingSet, ParsedMessage};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Type matches of all sorts, also ones that fail on some messages.
fn type_matches() -> impl Strategy<Value = (String, &'static str)> {
    let name = || "[a-d]";
    let jsonpath = prop_oneof![
        (name(), name()).prop_map(|(a, b)| format!("$..[?(@{a} && @{b})]")),
        (name(), name(), name()).prop_map(|(a, b, c)| format!("$..[?(@{a} && @{b} || @.{c} == 'x')]")),
        (name(), name()).prop_map(|(a, b)| format!("$.Body.{a}[?(@.{b} != 1)]")),
        name().prop_map(|a| format!("$..{a}[*]")),
        (name(), "[x-z]").prop_map(|(a, text)| format!("$..[?('{text}' == @.{a})]")),
        (name(), name()).prop_map(|(a, b)| format!("$.Body['{a}','{b}']")),
        Just("$".to_owned()),
        Just("$.Body[*]".to_owned()),
    ];
    let atom = prop_oneof![
        name().prop_map(String::from),
        (name(), name()).prop_map(|(a, b)| format!("{a}.{b}")),
        (name(), "[x-z]").prop_map(|(a, text)| format!("{a} == '{text}'")),
        (name(), "[x-z]").prop_map(|(a, text)| format!("'{text}' != {a}")),
        name().prop_map(|a| format!("{a} > `1`")),
        name().prop_map(|a| format!("!{a}")),
        name().prop_map(|a| format!("length({a}) > `1`")),
        name().prop_map(|a| format!("contains(keys(@), '{a}')")),
        name().prop_map(|a| format!("add({a}, `1`) == `2`")),
        name().prop_map(|a| format!("{a}[?{a}]")),
        name().prop_map(|a| format!("({a})")),
        (name(), name()).prop_map(|(a, b)| format!("{{{a}: {b}}}.{a}")),
        (name(), name()).prop_map(|(a, b)| format!("not_null({a}, {b})")),
        name().prop_map(|a| format!("{a}.length(@)")),
        name().prop_map(|a| format!("`{{\"{a}\": 1}}`.{a}")),
    ];
    let condition = (
        atom,
        prop_oneof![Just("&&"), Just("||"), Just("|")],
        prop_oneof![
            name().prop_map(String::from),
            name().prop_map(|a| format!("{a} == 'x'")),
            name().prop_map(|a| format!("starts_with({a}, 'x')")),
        ],
    )
        .prop_map(|(left, operator, right)| format!("{left} {operator} {right}"));
    let jmespath = prop_oneof![
        condition.clone().prop_map(|c| format!("to_array(Body)[?{c}]")),
        condition.clone().prop_map(|c| format!("Body[?{c}]")),
        (condition.clone(), name()).prop_map(|(c, a)| format!("Body[?{c}].{a}")),
        (condition.clone(), name()).prop_map(|(c, a)| format!("to_array(Body) | [?{c}].{a}[]")),
        (name(), name()).prop_map(|(a, b)| format!("Body.{a}[].{b}")),
        (name(), name()).prop_map(|(a, b)| format!("Body.{a}.* | [*].{b}")),
        condition.clone().prop_map(|c| format!("[Body][?{c}]")),
        condition.clone().prop_map(|c| format!("Body.[{c}] | [0]")),
        condition.prop_map(|c| format!("Body.{c}")),
    ];
    prop_oneof![
        1 => jsonpath.prop_map(|text| (text, "JsonPath")),
        2 => jmespath.prop_map(|text| (text, "JmesPath")),
    ]
    .prop_filter("an expression", |(text, language)| {
        Language::of_name(language).is_some_and(|language| Expression::parse(text, language).is_ok())
    })
}

fn bodies() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        "[x-z]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::vec(("[a-e]", inner), 0..4).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn mapping(type_matches: &[(String, &str)]) -> DeviceMapping {
    let templates: Vec<Value> = type_matches
        .iter()
        .enumerate()
        .map(|(n, (expression, language))| {
            json!({ "templateType": "CalculatedContent", "template": {
                "typeName": format!("t{}", n % 3),
                "typeMatchExpression": { "value": expression, "language": language },
                "deviceIdExpression": { "value": "'d'", "language": "JmesPath" },
                "timestampExpression": { "value": "'2024-01-01'", "language": "JmesPath" },
                "values": [ { "valueName": "v", "valueExpression": "$.matchedToken" } ],
            } })
        })
        .collect();
    let text = json!({ "templateType": "CollectionContent", "template": templates }).to_string();
    let (mapping, findings) = DeviceMapping::load(&text);
    mapping.unwrap_or_else(|| panic!("{findings:?}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_mapping_gives_the_same(
        type_matches in prop::collection::vec(type_matches(), 4..10),
        bodies in prop::collection::vec(bodies(), 6),
    ) {
        let mapping = mapping(&type_matches);
        for body in &bodies {
            let message = ParsedMessage::from(body);
            prop_assert_eq!(mapping.normalize(&message), mapping.normalize_each(&message), "{}", body);
        }
    }

    #[test]
    fn a_set_of_packs_gives_the_same(
        packs in prop::collection::vec(prop::collection::vec(type_matches(), 0..5), 2..5),
        bodies in prop::collection::vec(bodies(), 6),
    ) {
        let packs = packs.iter().enumerate();
        let set = MappingSet::new(packs.map(|(n, pack)| (format!("p{n}"), Arc::new(mapping(pack)))).collect());
        for body in &bodies {
            let envelope = json!({ "Body": body });
            let message = ParsedMessage::from_tree(Tree::from(&envelope)).unwrap();
            prop_assert_eq!(set.normalize(&message), set.normalize_each(&message), "{}", body);
        }
    }
}

#[test]
fn the_first_pack_of_a_type_wins_and_others_are_counted() {
    let of = |expression: &str| Arc::new(mapping(&[(expression.to_owned(), "JsonPath")]));
    let set = MappingSet::new(vec![
        ("b".to_owned(), of("$.Body[*]")),
        ("a".to_owned(), of("$.Body[0]")),
    ]);
    let body = json!([1, 2, 3]);
    let normalized = set.normalize(&ParsedMessage::from(&body));
    assert_eq!(set.packs()[0].0, "a");
    assert_eq!(
        normalized
            .matches
            .iter()
            .map(|matched| matched.pack)
            .collect::<Vec<_>>(),
        [0]
    );
    assert_eq!(normalized.shadowed, 3);
}
