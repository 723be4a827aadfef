//! The destination against the double: what is delivered, what waits, what is dead, and what the server holds then.

use super::double::{BASE, Double, Fault};
use super::*;
use crate::clock;
use crate::forward::{GroupKey, GroupReading};
use crate::message::Stamp;
use crate::packs::{Pack, PackText};
use embassy_time::Duration;
use iomt_mapping::{Measurement, Property, Timestamp};
use serde_json::{Value, json};

mod answers;
mod periods;
mod whose;

const NOON: i64 = 17_900_352_000_000_000;

pub(in crate::forward) fn pack(fhir: &Value) -> Arc<Pack> {
    let text = PackText {
        name: "wearable".to_owned(),
        device: r#"{"templateType": "CollectionContent", "template": []}"#.to_owned(),
        fhir: Some(fhir.to_string()),
        agent: None,
    };
    let (pack, findings) = Pack::load(text);
    Arc::new(pack.unwrap_or_else(|| panic!("{findings:?}")))
}

pub(in crate::forward) fn template(type_name: &str, period: i32, value: Value) -> Value {
    json!({"templateType": "CodeValueFhir", "template": {
        "typeName": type_name, "periodInterval": period,
        "codes": [{"code": type_name, "system": "http://loinc.org"}], "value": value}})
}

pub(in crate::forward) fn quantity(name: &str) -> Value {
    json!({"valueType": "Quantity", "valueName": name, "unit": "/min"})
}

/// Types: `hr` (one instant), `hourly` (SampledData), `bp` (two values in one instant).
pub(in crate::forward) fn standard() -> Arc<Pack> {
    let mut bp = template("bp", 0, Value::Null);
    bp["template"].as_object_mut().unwrap().remove("value");
    bp["template"]["components"] = json!([
        {"codes": [{"code": "8480-6"}], "value": quantity("sys")},
        {"codes": [{"code": "8462-4"}], "value": quantity("dia")}]);
    let sampled =
        json!({"valueType": "SampledData", "valueName": "hr", "defaultPeriod": 600_000, "unit": "/min"});
    pack(&json!({"templateType": "CollectionFhir", "template": [
        template("hr", 0, quantity("hr")), template("hourly", 60, sampled.clone()), template("daily", 1440, sampled), bp]}))
}

pub(in crate::forward) fn device(identifier: &str, patient: &str) -> Value {
    json!({"resourceType": "Device", "id": format!("device-{identifier}"),
        "identifier": [{"value": identifier}], "patient": {"reference": format!("Patient/{patient}")}})
}

/// (minute after noon, value name, text), by position.
pub(in crate::forward) type Values<'a> = &'a [(i64, &'a str, &'a str)];

pub(in crate::forward) fn group(
    pack: &Arc<Pack>,
    device: &str,
    type_name: &str,
    first: u64,
    values: Values,
) -> Group {
    named_group(pack, [Some(device), None, None], type_name, first, values)
}

/// `[device, patient, encounter]` as the message names them.
pub(in crate::forward) fn named_group(
    pack: &Arc<Pack>,
    [device, patient, encounter]: [Option<&str>; 3],
    type_name: &str,
    first: u64,
    values: Values,
) -> Group {
    let text = |id: Option<&str>| id.map(str::to_owned);
    let readings = values
        .iter()
        .enumerate()
        .map(|(number, (minute, name, value))| GroupReading {
            clock: None,
            position: first + number as u64,
            match_number: 0,
            received: Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::from_ticks(NOON + 10_000_000).unwrap(),
                trusted: true,
            },
            measurement: Arc::new(Measurement {
                key: Arc::new(iomt_mapping::GroupKey {
                    type_name: type_name.to_owned(),
                    device_id: device.unwrap().to_owned(),
                    patient_id: text(patient),
                    encounter_id: text(encounter),
                    correlation_id: None,
                }),
                occurrence_time: Timestamp::from_ticks(NOON + minute * 600_000_000).unwrap(),
                properties: vec![Property {
                    name: (*name).into(),
                    value: (*value).into(),
                }],
            }),
        });
    Group {
        key: Arc::new(GroupKey {
            pack: "wearable".into(),
            device: device.unwrap().into(),
            type_name: type_name.into(),
            patient: patient.map(Arc::from),
            encounter: encounter.map(Arc::from),
            correlation: None,
        }),
        pack: Arc::clone(pack),
        readings: readings.collect(),
    }
}

pub(in crate::forward) fn destination(http: &Http, more: &str) -> FhirDestination {
    let config: FhirConfig = toml::from_str(&format!("url = \"{BASE}\"\n{more}")).unwrap();
    FhirDestination::new(&config, ClockTrust::Ntp, http.clone(), http.clone()).unwrap()
}

pub(in crate::forward) fn simulate<T>(future: impl Future<Output = T>) -> T {
    clock::simulate(Timestamp::from_ticks(NOON).unwrap(), future)
        .unwrap()
        .0
}

pub(in crate::forward) fn none() -> HashMap<String, Vec<u8>> {
    HashMap::new()
}

/// Fates as words; with the error's name for `Dead` and `Waiting`.
fn words(fates: &[Vec<Fate>]) -> Vec<String> {
    fates
        .iter()
        .flatten()
        .map(|fate| match fate {
            Fate::Delivered => "delivered".to_owned(),
            Fate::Superseded => "superseded".to_owned(),
            Fate::Dead(error) => format!("dead {}", error.name),
            Fate::Waiting(error) => format!("waiting {}", error.name),
            Fate::Retry => "retry".to_owned(),
        })
        .collect()
}

fn value_of(observation: &Value) -> String {
    observation["valueQuantity"]["value"].to_string()
}

#[test]
fn readings_become_observations_of_their_patient_each_once() {
    let (double, http) = Double::new(&[device("a", "anna"), device("b", "bert")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    let groups = vec![
        group(&pack, "a", "hr", 1, &[(0, "hr", "61.50"), (1, "hr", "62")]),
        group(&pack, "b", "hr", 3, &[(0, "hr", "90")]),
    ];
    simulate(async {
        let delivery = fhir.deliver(groups.clone(), &none()).await;
        assert_eq!(words(&delivery.fates), ["delivered"; 3]);
        assert_eq!((delivery.link, delivery.written), (Link::Up, 3));
        let held = double.of_type("Observation");
        let mut shown: Vec<String> = held
            .iter()
            .map(|o| format!("{} {}", o["subject"]["reference"].as_str().unwrap(), value_of(o)))
            .collect();
        shown.sort();
        assert_eq!(
            shown,
            ["Patient/anna 61.50", "Patient/anna 62", "Patient/bert 90"]
        );
        assert_eq!(held[0]["issued"], "2026-09-22T00:00:01Z");
        assert_eq!(
            double.state().requests,
            3,
            "look-up, read and write in a batch each"
        );

        // Sent again, as after a crash before the confirmation was stored.
        let mut restarted = destination(&http, "");
        let delivery = restarted.deliver(groups, &none()).await;
        assert_eq!(
            (words(&delivery.fates), delivery.written),
            (vec!["delivered".to_owned(); 3], 0)
        );
        assert!(
            double
                .of_type("Observation")
                .iter()
                .all(|o| o["meta"]["versionId"] == "1")
        );
    });
}

#[test]
fn a_failing_entry_never_stops_the_others() {
    let (double, http) = Double::new(&[device("a", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().write_statuses = [0, 422, 0].into();
    let groups = vec![
        group(
            &pack,
            "a",
            "hr",
            1,
            &[
                (0, "hr", "61"),
                (1, "hr", "62"),
                (2, "hr", "63"),
                (3, "hr", "36,6"),
            ],
        ),
        group(&pack, "nobody", "hr", 5, &[(0, "hr", "1")]),
        group(&pack, "a", "unknown type", 6, &[(0, "hr", "1")]),
    ];
    let delivery = simulate(fhir.deliver(groups, &none()));
    let mut fates = words(&delivery.fates);
    fates[..3].sort();
    assert_eq!(
        fates[..3],
        ["dead FhirServiceException", "delivered", "delivered"]
    );
    assert_eq!(
        fates[3..],
        [
            "dead InvalidQuantityFhirValueException",
            "waiting FhirResourceNotFoundException",
            "dead TemplateNotFoundException"
        ]
    );
    assert_eq!(
        (delivery.link, double.of_type("Observation").len()),
        (Link::Up, 2)
    );
}

#[test]
fn no_error_text_holds_an_identifier_or_a_value() {
    let (double, http) = Double::new(&[device("secret-device", "anna")]);
    let pack = standard();
    let mut fhir = destination(&http, "");
    double.state().write_statuses = vec![422, 400].into();
    let groups = vec![
        group(
            &pack,
            "secret-device",
            "hr",
            1,
            &[(0, "hr", "60.125"), (1, "hr", "60.125"), (2, "hr", "60,125")],
        ),
        named_group(
            &pack,
            [Some("secret-other"), Some("secret-patient"), None],
            "hr",
            4,
            &[(0, "hr", "1")],
        ),
    ];
    let delivery = simulate(fhir.deliver(groups, &none()));
    for fate in delivery.fates.iter().flatten() {
        let (Fate::Dead(error) | Fate::Waiting(error)) = fate else {
            panic!("{fate:?}");
        };
        assert!(
            !error.text.contains("secret") && !error.text.contains("125"),
            "{}",
            error.text
        );
    }
}
