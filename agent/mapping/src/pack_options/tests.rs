use serde_json::{Value, json};

use super::*;
use crate::fhir::{BuildOptions, FhirMapping, Merge, ObservationGroup, Reading, ResourceIds};
use crate::measurement::{GroupKey, Measurement, Property};
use std::sync::Arc;

const FHIR: &str = r#"{ "templateType": "CollectionFhir", "template": [
  { "templateType": "CodeValueFhir", "template": { "typeName": "heartrate",
      "codes": [{ "code": "8867-4", "system": "http://loinc.org" }],
      "value": { "valueType": "Quantity", "valueName": "hr", "unit": "beats/min", "system": "http://unitsofmeasure.org", "code": "/min" } } },
  { "templateType": "CodeValueFhir", "template": { "typeName": "spo2", "periodInterval": 60, "codes": [],
      "components": [{ "codes": [], "value": { "valueType": "SampledData", "valueName": "sat", "defaultPeriod": 1200000, "unit": "%" } }] } } ] }"#;

const AGENT: &str = r#"{
  // a comment, as in every mapping file
  "clockCorrection": -2.5,
  "types": {
    "HeartRate": {
      "priority": "alarm", "profile": "http://hl7.org/fhir/StructureDefinition/heartrate", "effective": "dateTime",
      "mdcCode": 147842, "bodySite": { "text": "finger" }, "method": { "codes": [{ "code": "m", "system": "urn:m" }] },
      "performer": ["Organization/ward-3"], "note": ["Read at the bedside."], "clockCorrection": 60,
      "values": { "hr": {
        "referenceRange": [{ "low": 60, "high": 100.0, "text": "adults" }],
        "interpretation": [{ "below": 40, "code": "LL" }, { "above": 130, "code": "HH", "display": "Critical high" }],
        "dataAbsentReason": { "---": "error", "127": "not-performed" } } } },
    "spo2": { "values": { "sat": { "system": "http://unitsofmeasure.org", "code": "%", "mdcCode": "150456",
        "dataAbsentReason": { "127": "error" } } } } } }"#;

fn mapping() -> FhirMapping {
    let (options, findings) = PackOptions::load(AGENT);
    assert_eq!(findings, []);
    FhirMapping::load(FHIR).0.unwrap().with_options(&options.unwrap())
}

fn reading(type_name: &str, name: &str, minute: i64, value: &str) -> Reading {
    Reading {
        measurement: Measurement {
            key: Arc::new(GroupKey {
                type_name: type_name.to_owned(),
                device_id: "d".to_owned(),
                ..GroupKey::default()
            }),
            occurrence_time: Timestamp::from_ticks(minute * 60 * TICKS_PER_SECOND).unwrap(),
            properties: vec![Property {
                name: name.into(),
                value: value.into(),
            }],
        },
        ingestion: minute,
    }
}

fn ids() -> ResourceIds {
    ResourceIds {
        patient: "p".to_owned(),
        device: "d".to_owned(),
        encounter: None,
    }
}

fn create(readings: &[Reading]) -> (ObservationGroup, Value) {
    let mapping = mapping();
    let type_name = &readings[0].measurement.type_name;
    let template = mapping.template(type_name).unwrap();
    let group = template.observation_groups(readings).unwrap().remove(0);
    let built = template
        .create(&group, &ids(), type_name, &BuildOptions::default())
        .unwrap();
    (group, built.resource)
}

#[test]
fn every_option_is_in_the_observation() {
    let (_, made) = create(&[reading("heartrate", "hr", 1, "131")]);
    assert_eq!(
        made["meta"]["profile"],
        json!(["http://hl7.org/fhir/StructureDefinition/heartrate"])
    );
    assert_eq!(made["effectiveDateTime"], "1970-01-01T00:01:00Z");
    assert_eq!(made.get("effectivePeriod"), None);
    assert_eq!(
        made["code"]["coding"][1],
        json!({ "system": "urn:iso:std:iso:11073:10101", "code": "147842" })
    );
    assert_eq!(made["bodySite"], json!({ "text": "finger" }));
    assert_eq!(
        made["method"],
        json!({ "coding": [{ "system": "urn:m", "code": "m" }] })
    );
    assert_eq!(made["performer"], json!([{ "reference": "Organization/ward-3" }]));
    assert_eq!(made["note"], json!([{ "text": "Read at the bedside." }]));
    let unit = |value: &str| {
        format!(
            r#"{{"value":{value},"unit":"beats/min","system":"http://unitsofmeasure.org","code":"/min"}}"#
        )
    };
    assert_eq!(made["referenceRange"][0]["high"].to_string(), unit("100.0"));
    assert_eq!(made["interpretation"][0]["coding"][0]["code"], "HH");
    assert_eq!(made["interpretation"][0]["coding"][0]["display"], "Critical high");
}

#[test]
fn a_value_without_a_rule_has_no_interpretation() {
    for (value, code) in [
        ("39.9", Some("LL")),
        ("40", None),
        ("130", None),
        ("1.31E2", Some("HH")),
    ] {
        let (_, made) = create(&[reading("heartrate", "hr", 1, value)]);
        let found = made
            .get("interpretation")
            .map(|i| i[0]["coding"][0]["code"].clone());
        assert_eq!(found, code.map(Value::from), "{value}");
    }
}

#[test]
fn a_named_missing_code_gives_the_reason_instead_of_a_value() {
    for (value, reason) in [
        ("---", "error"),
        ("127", "not-performed"),
        (" 127.0 ", "not-performed"),
    ] {
        let (_, made) = create(&[reading("heartrate", "hr", 1, value)]);
        assert_eq!(made.get("valueQuantity"), None);
        assert_eq!(made["dataAbsentReason"]["coding"][0]["code"], reason);
    }
}

#[test]
fn a_value_that_comes_later_takes_the_place_of_the_reason() {
    let mapping = mapping();
    let template = mapping.template("heartrate").unwrap();
    let (_, stored) = create(&[reading("heartrate", "hr", 1, "---")]);
    let merge = |value: &str, stored: &Value| {
        let groups = template
            .observation_groups(&[reading("heartrate", "hr", 1, value)])
            .unwrap();
        template
            .merge(&groups[0], stored, &ids(), &BuildOptions::default(), None)
            .unwrap()
            .merge
    };
    assert_eq!(merge("---", &stored), Merge::Unchanged);
    let Merge::Changed(with_value) = merge("72", &stored) else {
        panic!("not changed")
    };
    assert_eq!(with_value["valueQuantity"]["value"], 72);
    assert_eq!(with_value.get("dataAbsentReason"), None);
    assert_eq!(with_value["effectiveDateTime"], stored["effectiveDateTime"]);
    // And not the other way round.
    assert_eq!(merge("---", &with_value), Merge::Unchanged);
}

#[test]
fn missing_codes_leave_gaps_in_sampled_data_whose_origin_has_its_code() {
    let (group, made) = create(&[
        reading("spo2", "sat", 1, "97"),
        reading("spo2", "sat", 21, "127"),
        reading("spo2", "sat", 41, "98"),
    ]);
    assert_eq!(group.reading_errors, []);
    let component = &made["component"][0];
    assert_eq!(component["valueSampledData"]["data"], "97 E 98");
    assert_eq!(
        component["valueSampledData"]["origin"],
        json!({ "value": 0, "unit": "%", "system": "http://unitsofmeasure.org", "code": "%" })
    );
    assert_eq!(component["code"]["coding"][0]["code"], "150456");
}

#[test]
fn lanes_and_clock_corrections_are_found_by_type() {
    let options = PackOptions::load(AGENT).0.unwrap();
    assert_eq!(options.priority("HEARTRATE"), Priority::Alarm);
    assert_eq!(options.priority("anything"), Priority::Periodic);
    let time = Timestamp::from_ticks(0).unwrap();
    assert_eq!(
        options.corrected("heartrate", time).ticks(),
        60 * TICKS_PER_SECOND
    );
    assert_eq!(options.corrected("spo2", time).ticks(), -25_000_000);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = r#"{ "typs": {}, "types": { "a": { "priority": "urgent", "effective": "datetim", "mdcCode": "x1",
        "clockCorrection": "soon", "values": { "v": { "interpretation": [{ "below": 4 }], "dataAbsentReason": { "x": 1 },
        "referenceRange": [{ "low": "few" }] } } }, "A": {} } }"#;
    let (options, findings) = PackOptions::load(text);
    assert!(options.is_none());
    let mut found: Vec<(&str, &str)> = findings
        .iter()
        .map(|f| (f.kind, f.field.as_deref().unwrap_or_default()))
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("DuplicateTypeName", "types"),
            ("MissingMember", "code"),
            ("UnknownMember", "typs"),
            ("WrongType", "clockCorrection"),
            ("WrongType", "dataAbsentReason"),
            ("WrongType", "effective"),
            ("WrongType", "low"),
            ("WrongType", "mdcCode"),
            ("WrongType", "priority"),
        ]
    );
    assert!(findings.iter().all(|f| f.place.is_some()));
}
