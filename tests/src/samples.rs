//! Samples of the mapping packs, and the Observations that they give.

use iomt_mapping::fhir::{BuildOptions, FhirMapping, Reading, ResourceIds};
use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::Value;

/// The Observations of a sample (`samples/*.json`), in order of their types.
pub fn observations(device: &DeviceMapping, fhir: &FhirMapping, sample: &Value) -> Vec<Value> {
    let message = &sample["message"];
    let body = message.to_string();
    let topic = sample["topic"]
        .as_str()
        .unwrap_or("wearables/some-device/telemetry");
    let device_id = sample["deviceId"].as_str().unwrap_or("some-device");
    let envelope = Envelope {
        body: body.as_bytes(),
        properties: &[("topic", PropertyValue::Text(topic))],
        system_properties: &[
            ("iothub-connection-device-id", PropertyValue::Text(device_id)),
            // 2026-03-01T07:15:30Z, when the message came.
            (
                "iothub-enqueuedtime",
                PropertyValue::Time(Timestamp::from_ticks(17_723_493_300_000_000).unwrap()),
            ),
        ],
    };
    let normalized = device.normalize(&envelope.parse().unwrap());
    assert_eq!(normalized.errors, [], "{message}");
    let ids = ResourceIds {
        patient: "p".to_owned(),
        device: "d".to_owned(),
        encounter: None,
    };
    // The readings of a type stand together, as in the service: a waveform is one Observation of many readings.
    let mut types: Vec<(String, Vec<Reading>)> = Vec::new();
    for (ingestion, one) in (0..).zip(normalized.matches) {
        let type_name = one.measurement.type_name.clone();
        let reading = Reading {
            measurement: one.measurement,
            ingestion,
        };
        match types.iter_mut().find(|(known, _)| *known == type_name) {
            Some((_, readings)) => readings.push(reading),
            None => types.push((type_name, vec![reading])),
        }
    }
    let mut built = Vec::new();
    for (type_name, readings) in types {
        let template = fhir.template(&type_name).unwrap();
        for group in template.observation_groups(&readings).unwrap() {
            let observation = template
                .create(&group, &ids, &type_name, &BuildOptions::default())
                .unwrap();
            built.push(observation.resource);
        }
    }
    built
}
