//! Properties that hold for every mapping and every order of readings.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::measurement::{Measurement, Property};
use crate::time::Timestamp;
use std::sync::Arc;

fn template(period: &str) -> FhirTemplate {
    let text = format!(
        r#"{{ "templateType": "CollectionFhir", "template": [ {{ "templateType": "CodeValueFhir", "template": {{
        "typeName": "t", "periodInterval": {period}, "codes": [],
        "value": {{ "valueType": "SampledData", "valueName": "a", "defaultPeriod": 60000, "unit": "x" }},
        "components": [
          {{ "codes": [], "value": {{ "valueType": "Quantity", "valueName": "b" }} }},
          {{ "codes": [], "value": {{ "valueType": "String", "valueName": "c" }} }},
          {{ "codes": [], "value": {{ "valueType": "CodeableConcept", "valueName": "d", "codes": [{{ "code": "k" }}] }} }} ] }} }} ] }}"#
    );
    let (mapping, findings) = FhirMapping::load(&text);
    assert_eq!(findings, []);
    mapping.unwrap().template("t").unwrap().clone()
}

fn reading(second: i64, arrival: i64, values: Vec<(&str, String)>) -> Reading {
    Reading {
        measurement: Measurement {
            key: Arc::new(GroupKey {
                type_name: "t".to_owned(),
                device_id: "d".to_owned(),
                correlation_id: Some("session".to_owned()),
                ..GroupKey::default()
            }),
            occurrence_time: Timestamp::from_ticks(second * 10_000_000).unwrap(),
            properties: values
                .into_iter()
                .map(|(name, value)| Property {
                    name: name.into(),
                    value: value.into(),
                })
                .collect(),
        },
        ingestion: arrival,
    }
}

fn ids() -> ResourceIds {
    ResourceIds {
        patient: "p".to_owned(),
        device: "d".to_owned(),
        encounter: None,
    }
}

/// Saves batches one after the other, as an agent does that remembers what it sent.
fn save(template: &FhirTemplate, batches: &[Vec<Reading>]) -> Value {
    let options = BuildOptions::default();
    let mut stored: Option<(Value, SentMemory)> = None;
    for batch in batches.iter().filter(|batch| !batch.is_empty()) {
        let groups = template.observation_groups(batch).unwrap();
        assert_eq!(groups.len(), 1);
        stored = Some(match stored {
            None => {
                let built = template.create(&groups[0], &ids(), "t", &options).unwrap();
                (built.resource, built.memory)
            }
            Some((existing, memory)) => {
                let memory = SentMemory::from_bytes(&memory.to_bytes()).unwrap();
                let merged = template
                    .merge(&groups[0], &existing, &ids(), &options, Some(&memory))
                    .unwrap();
                match merged.merge {
                    Merge::Unchanged => (existing, merged.memory),
                    Merge::Changed(resource) => (resource, merged.memory),
                    Merge::NewObservation { .. } => panic!("another Observation"),
                }
            }
        });
    }
    let mut resource = stored.unwrap().0;
    resource.as_object_mut().unwrap().shift_remove("status");
    // Components stand in the order in which they came to be.
    if let Some(components) = resource.get_mut("component").and_then(Value::as_array_mut) {
        components.sort_by_key(|component| component["code"]["text"].to_string());
    }
    resource
}

/// Distinct seconds of an hour with values; all readings carry all names, so that every batch is a whole Observation.
fn distinct_readings() -> impl Strategy<Value = Vec<(i64, i32)>> {
    proptest::collection::btree_map(0_i64..3600, -500_i32..500, 1..40)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

proptest! {
    #[test]
    fn batches_in_any_order_and_split_give_the_same_observation(
        readings in distinct_readings(),
        cuts in proptest::collection::vec(any::<bool>(), 40),
        hourly in any::<bool>(),
    ) {
        // Without a window the start moves with the first reading, and with it the slots: only the hour is order-free.
        let template = template(if hourly { "60" } else { "1440" });
        let all: Vec<Reading> = readings
            .iter()
            .enumerate()
            .map(|(arrival, (second, value))| {
                let text = |scale: &str| format!("{value}{scale}");
                let values = vec![("a", text("")), ("b", text(".50")), ("c", text("x")), ("d", text(""))];
                reading(*second, arrival as i64, values)
            })
            .collect();
        let mut batches = vec![Vec::new()];
        for (one, cut) in all.iter().zip(&cuts) {
            if *cut {
                batches.push(Vec::new());
            }
            batches.last_mut().unwrap().push(one.clone());
        }
        prop_assert_eq!(save(&template, &batches), save(&template, &[all]));
    }

    #[test]
    fn every_reading_is_accounted_for_once(
        readings in proptest::collection::vec((0_i64..7200, 0_usize..5, "[0-9,.]{0,3}"), 1..40),
        period in proptest::sample::select(vec!["0", "60", "1440", "-1"]),
    ) {
        let template = template(period);
        let all: Vec<Reading> = readings
            .iter()
            .enumerate()
            .map(|(arrival, (second, name, text))| {
                let values = match ["a", "b", "c", "other"].get(*name) {
                    Some(name) => vec![(*name, text.clone())],
                    None => Vec::new(),
                };
                reading(*second, arrival as i64, values)
            })
            .collect();
        let groups = template.observation_groups(&all).unwrap();
        let accounted: Vec<usize> = groups.iter().flat_map(|g| g.readings.iter().map(|r| r.reading)).collect();
        let expected: BTreeSet<usize> = (0..all.len()).collect();
        prop_assert_eq!(accounted.len(), all.len());
        prop_assert_eq!(accounted.into_iter().collect::<BTreeSet<_>>(), expected);
        for group in &groups {
            let took_part = group.readings.iter().any(|r| r.outcome == ReadingOutcome::TookPart);
            let built = template.create(group, &ids(), "t", &BuildOptions::default());
            prop_assert_eq!(took_part, built.is_ok());
            // What is stored already changes nothing when it comes again.
            if let Ok(built) = built {
                let again = template
                    .merge(group, &built.resource, &ids(), &BuildOptions::default(), Some(&built.memory))
                    .unwrap();
                prop_assert_eq!(again.merge, Merge::Unchanged);
                prop_assert_eq!(again.memory, built.memory);
            }
        }
    }

    #[test]
    fn mapping_texts_of_any_kind_are_read_without_panic(text in ".{0,80}") {
        let _ = FhirMapping::load(&text);
        let body = r#"{"templateType":"CollectionFhir","template":[{"templateType":"CodeValueFhir","template":"#;
        let _ = FhirMapping::load(&format!("{body}{text}}}]}}"));
    }
}

#[test]
fn an_older_quantity_of_the_period_never_replaces_a_newer_one() {
    let template = template("60");
    let value = |second, text: &str| reading(second, 0, vec![("b", text.to_owned())]);
    let made = save(
        &template,
        &[vec![value(100, "7")], vec![value(50, "5")], vec![value(200, "9")]],
    );
    assert_eq!(made["component"][0]["valueQuantity"]["value"], 9);
    let made = save(&template, &[vec![value(100, "7")], vec![value(50, "5")]]);
    assert_eq!(made["component"][0]["valueQuantity"]["value"], 7);
}

#[test]
fn readings_that_lose_against_stored_ones_are_told() {
    let template = template("60");
    let options = BuildOptions::default();
    let value = |second, text: &str| reading(second, 0, vec![("a", text.to_owned())]);
    let first = template.observation_groups(&[value(50, "1")]).unwrap();
    let built = template.create(&first[0], &ids(), "t", &options).unwrap();
    let late = template
        .observation_groups(&[value(40, "2"), value(70, "3")])
        .unwrap();
    let merged = template
        .merge(&late[0], &built.resource, &ids(), &options, Some(&built.memory))
        .unwrap();
    assert_eq!(merged.superseded, [0]);
}

#[test]
fn one_bad_value_does_not_take_the_good_one_beside_it() {
    let template = template("0");
    let both = reading(1, 0, vec![("b", "1,5".to_owned()), ("c", "ok".to_owned())]);
    let groups = template.observation_groups(&[both]).unwrap();
    assert_eq!(groups[0].reading_errors.len(), 1);
    let built = template
        .create(&groups[0], &ids(), "t", &BuildOptions::default())
        .unwrap();
    assert_eq!(built.resource["component"].as_array().unwrap().len(), 1);
    assert_eq!(built.resource["component"][0]["valueString"], "ok");
}

#[test]
fn errors_of_a_mapping_come_all_at_once_with_their_places() {
    let text = r#"{ "templateType": "CollectionFhir", "template": [
  { "templateType": "CodeValueFhir", "template": { "typName": "a", "codes": null, "periodInterval": 30,
      "value": { "valueType": "Quantiti", "valueName": "v" } } },
  7,
  { "templateType": "CodeValueFhir", "template": { "typeName": "b", "codes": [{ "cod": 1 }],
      "components": [{ "codes": [] }, { "codes": [], "value": { "valueType": "SampledData", "defaultPeriod": 0 } }] } },
  { "templateType": "CodeValueFhir", "template": { "typeName": "c", "codes": [],
      "value": { "valueType": "CodeableConcept" } } } ] }"#;
    let (mapping, findings) = FhirMapping::load_partial(text);
    assert!(mapping.unwrap().templates().is_empty());
    assert!(FhirMapping::load(text).0.is_none());
    let found: Vec<(&str, Option<usize>, &str, usize)> = findings
        .iter()
        .map(|f| {
            let field = f.field.as_deref().unwrap_or_default();
            (f.kind, f.template, field, f.place.unwrap().line)
        })
        .collect();
    assert_eq!(
        found,
        [
            ("UnknownMember", Some(0), "typName", 2),
            ("MissingMember", Some(0), "typeName", 2),
            ("UnknownPeriodInterval", Some(0), "periodInterval", 2),
            ("NullMember", Some(0), "codes", 2),
            ("UnknownValueType", Some(0), "valueType", 3),
            ("TemplateNotObject", Some(1), "template", 4),
            ("UnknownMember", Some(2), "cod", 5),
            ("MissingMember", Some(2), "value", 6),
            ("InvalidDefaultPeriod", Some(2), "defaultPeriod", 6),
            ("MissingMember", Some(3), "codes", 8),
        ]
    );
}

#[test]
fn a_trace_tells_every_step_to_the_observation() {
    let template = template("60");
    let all = [
        reading(10, 0, vec![("a", "1".to_owned()), ("b", "1,5".to_owned())]),
        reading(20, 1, vec![("a", "2".to_owned()), ("b", "7.0".to_owned())]),
        reading(90, 2, vec![("a", "3".to_owned()), ("C", "x".to_owned())]),
    ];
    let groups = template.observation_groups(&all).unwrap();
    let trace = template.trace(&groups[0], &ids(), "t", &BuildOptions::default());
    let values: Vec<(&str, usize, Option<&str>, usize, usize)> = trace
        .values
        .iter()
        .map(|v| {
            (
                v.name.as_str(),
                v.readings,
                v.taken.as_deref(),
                v.left_out,
                v.refused,
            )
        })
        .collect();
    assert_eq!(
        values,
        [
            ("a", 3, Some("2 of 60 slots"), 1, 0),
            ("b", 2, Some("7.0"), 0, 1),
            ("c", 0, None, 0, 0),
            ("d", 0, None, 0, 0),
        ]
    );
    assert_eq!(trace.unused[0].similar.as_deref(), Some("c"));
    assert_eq!(trace.readings, (2, 0, 1));
    assert_eq!(trace.resource.unwrap()["id"], trace.id.as_str());
}
