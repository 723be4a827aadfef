//! Normalized measurements, one by one and as compressed arrays.

use super::*;
use crate::forward::{GroupKey, GroupReading};
use crate::packs::{Pack, PackText};
use iomt_mapping::{Measurement, Property};

fn heart_rates(device: &str, readings: &[(u64, u32)]) -> Group {
    Group {
        key: Arc::new(GroupKey {
            pack: "heart".into(),
            device: device.into(),
            type_name: "heartrate".into(),
            patient: None,
            encounter: None,
            correlation: None,
        }),
        pack: Arc::new(
            Pack::load(PackText {
                name: "heart".to_owned(),
                device: r#"{ "templateType": "CollectionContent", "template": [] }"#.to_owned(),
                fhir: None,
                agent: None,
            })
            .0
            .unwrap(),
        ),
        readings: readings
            .iter()
            .map(|(position, match_number)| GroupReading {
                clock: None,
                position: *position,
                match_number: *match_number,
                received: stamp(),
                measurement: Arc::new(Measurement {
                    key: Arc::new(iomt_mapping::GroupKey {
                        type_name: "heartrate".to_owned(),
                        device_id: device.to_owned(),
                        ..Default::default()
                    }),
                    occurrence_time: stamp().wall,
                    properties: vec![Property {
                        name: "hr".into(),
                        value: "78".into(),
                    }],
                }),
            })
            .collect(),
    }
}

#[test]
fn measurements_leave_in_the_order_in_which_they_came_as_the_reference_writes_them() {
    let mut bench = Bench::new(
        |config| config.payload = EventPayload::Measurement,
        |_| response(201),
    );
    let groups = vec![
        heart_rates("a", &[(1, 0), (4, 1)]),
        heart_rates("b", &[(2, 0), (4, 0)]),
    ];
    let delivery = bench.deliver_groups(groups);
    assert_eq!(delivery.fates, vec![vec![Fate::Delivered; 2]; 2]);
    assert_eq!(delivery.written, 4);
    let elements = elements(&bench.seen()[0]);
    let ids: Vec<&str> = elements
        .iter()
        .map(|e| e["UserProperties"]["bedside-event-id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        ["bed-12/s1/1/0", "bed-12/s1/2/0", "bed-12/s1/4/0", "bed-12/s1/4/1"]
    );
    assert_eq!(
        elements[0]["Body"],
        "{\"Type\":\"heartrate\",\"OccurrenceTimeUtc\":\"2026-09-21T14:13:20Z\",\
         \"IngestionTimeUtc\":\"2026-09-21T14:13:20Z\",\"DeviceId\":\"a\",\"PatientId\":null,\"EncounterId\":null,\
         \"CorrelationId\":null,\"Properties\":[{\"Name\":\"hr\",\"Value\":\"78\"}]}"
    );
}

fn unzipped(bytes: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(bytes), &mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn grouped_measurements_are_one_compressed_array_for_each_partition_key() {
    for (key, expected) in [
        (PartitionKey::Gateway, vec![("bed-12/s1/1.0-4.1", 4)]),
        (
            PartitionKey::Device,
            vec![("bed-12/s1/1.0-4.1", 2), ("bed-12/s1/2.0-4.0", 2)],
        ),
    ] {
        let mut bench = Bench::new(
            |config| {
                config.payload = EventPayload::Measurement;
                config.measurements = Measurements::Grouped;
                config.partition_key = key;
                config.event_id_in_body = true;
            },
            |_| response(201),
        );
        let groups = vec![
            heart_rates("a", &[(1, 0), (4, 1)]),
            heart_rates("b", &[(2, 0), (4, 0)]),
        ];
        let delivery = bench.deliver_groups(groups);
        assert_eq!(delivery.fates, vec![vec![Fate::Delivered; 2]; 2]);
        let seen = bench.seen();
        let property = |request: &HttpRequest, name: &str| {
            let found = request.properties.iter().find(|(one, _)| one == name);
            found.map(|(_, value)| value.clone()).unwrap()
        };
        let made: Vec<(String, usize)> = seen
            .iter()
            .map(|request| {
                assert!(
                    request
                        .headers
                        .contains(&("content-type", "application/gzip".to_owned()))
                );
                assert_eq!(property(request, "IsMeasurementGroup"), "true");
                (
                    property(request, "bedside-event-id"),
                    unzipped(request.body.bytes()).len(),
                )
            })
            .collect();
        let expected: Vec<(String, usize)> = expected
            .iter()
            .map(|(id, count)| (format!("\"{id}\""), *count))
            .collect();
        assert_eq!(made, expected);
        let first = &unzipped(seen[0].body.bytes())[0];
        assert_eq!(
            (&first["DeviceId"], &first["bedsideEventId"]),
            (&"a".into(), &"bed-12/s1/1/0".into())
        );
    }
}

#[test]
fn an_array_that_the_hub_does_not_take_leaves_one_by_one_and_only_the_culprit_is_given_up() {
    let mut bench = Bench::new(
        |config| {
            config.payload = EventPayload::Measurement;
            config.measurements = Measurements::Grouped;
        },
        |request| {
            let is_array = request
                .headers
                .contains(&("content-type", "application/gzip".to_owned()));
            let has_culprit = !is_array
                && bodies(request)
                    .iter()
                    .any(|body| body.contains("\"DeviceId\":\"b\""));
            response(if is_array || has_culprit { 400 } else { 201 })
        },
    );
    let groups = || vec![heart_rates("a", &[(1, 0), (3, 0)]), heart_rates("b", &[(2, 0)])];
    let mut delivery = None;
    for _ in 0..3 {
        delivery = Some(bench.deliver_groups(groups()));
    }
    let fates = delivery.unwrap().fates;
    assert_eq!(fates[0], vec![Fate::Delivered; 2]);
    assert!(matches!(fates[1][0], Fate::Dead(_)));
}
