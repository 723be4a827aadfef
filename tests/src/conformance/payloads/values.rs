//! The values of the Observations that a ready pack makes of a body.

use super::{RECEIVED_TICKS, Source};
use crate::conformance::built;
use iomt_mapping::fhir::{BuildOptions, FhirMapping, Reading, ResourceIds};
use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::Value;
use std::path::Path;

/// A value of an Observation or of a component.
pub(super) struct Found {
    pub(super) device: String,
    pub(super) codes: Vec<String>,
    pub(super) value: f64,
    pub(super) unit: String,
    pub(super) time: String,
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings")
}

/// All values of the Observations that the pack makes of the sample.
pub(super) fn found(sample: &Value, source: &Source, body: &Value) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    let pack = source.pack;
    let text = |file: &str| {
        let path = folder().join(pack).join(file);
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let device = DeviceMapping::load(&text("devicecontent.json")?).0;
    let fhir = FhirMapping::load(&text("fhirmapping.json")?).0;
    let (device, fhir) = device
        .zip(fhir)
        .ok_or_else(|| format!("pack {pack} does not load"))?;
    values(sample, source, body, &device, &fhir, &mut found)
        .map_err(|error| format!("pack {pack}: {error}"))?;
    Ok(found)
}

fn values(
    sample: &Value,
    source: &Source,
    body: &Value,
    device: &DeviceMapping,
    fhir: &FhirMapping,
    found: &mut Vec<Found>,
) -> Result<(), String> {
    let received = Timestamp::from_ticks(RECEIVED_TICKS).ok_or("no time of reception")?;
    let body = body.to_string();
    let topic = sample["topic"].as_str().ok_or("no `topic`")?;
    let envelope = Envelope {
        body: body.as_bytes(),
        properties: &[("topic", PropertyValue::Text(topic))],
        system_properties: &[
            (
                "iothub-connection-device-id",
                PropertyValue::Text(&source.device_id),
            ),
            ("iothub-enqueuedtime", PropertyValue::Time(received)),
        ],
    };
    let parsed = envelope.parse().map_err(|error| error.text.clone())?;
    let normalized = device.normalize(&parsed);
    if let Some(error) = normalized.errors.first() {
        return Err(format!("{error:?}"));
    }
    let ids = ResourceIds {
        patient: "p".to_owned(),
        device: "d".to_owned(),
        encounter: None,
    };
    for (ingestion, one) in (0..).zip(normalized.matches) {
        let (device, type_name) = (
            one.measurement.device_id.clone(),
            one.measurement.type_name.clone(),
        );
        let template = fhir
            .template(&type_name)
            .ok_or_else(|| format!("no template for {type_name}"))?;
        let reading = Reading {
            measurement: one.measurement,
            ingestion,
        };
        let groups = template
            .observation_groups(&[reading])
            .map_err(|error| format!("{error:?}"))?;
        for group in groups {
            let built = template.create(&group, &ids, &type_name, &BuildOptions::default());
            let observation = built.map_err(|error| format!("{error:?}"))?.resource;
            built::note(&observation);
            let start = observation["effectivePeriod"]["start"].as_str();
            let time = start
                .or(observation["effectiveDateTime"].as_str())
                .unwrap_or_default();
            let components = observation["component"].as_array().into_iter().flatten();
            for holder in std::iter::once(&observation).chain(components) {
                found.extend(quantity(holder, &device, time));
            }
        }
    }
    Ok(())
}

fn quantity(holder: &Value, device: &str, time: &str) -> Option<Found> {
    let quantity = holder.get("valueQuantity")?;
    let codings = holder["code"]["coding"].as_array()?.iter();
    Some(Found {
        device: device.to_owned(),
        codes: codings
            .filter_map(|coding| Some(coding["code"].as_str()?.to_owned()))
            .collect(),
        value: quantity["value"].as_f64()?,
        unit: quantity["code"].as_str()?.to_owned(),
        time: time.to_owned(),
    })
}
