//! The acceptance vectors of identity and saving, through the whole destination against the double.

use super::double::{Double, Fault};
use super::tests::{destination, named_group, none, pack, quantity, simulate, template};
use super::*;
use iomt_mapping::{Measurement, Property, Timestamp};
use serde_json::{Value, json};

/// The vectors of a file; none where they do not lie beside the project.
fn vectors(file: &str) -> Vec<Value> {
    let places = ["/../../shared/vectors/mapping/", "/../tests/vectors/mapping/"];
    let text = places.iter().find_map(|place| {
        std::fs::read_to_string(format!("{}{place}{file}", env!("CARGO_MANIFEST_DIR"))).ok()
    });
    match text {
        Some(text) => serde_json::from_str(&text).unwrap(),
        None => {
            eprintln!("{file} does not lie beside the project: nothing was checked");
            Vec::new()
        }
    }
}

/// Runs all and tells all that differ.
fn all(file: &str, run: impl Fn(&Value) -> Result<(), String>) {
    let vectors = vectors(file);
    eprintln!("{file}: {} vectors", vectors.len());
    let failed: Vec<String> = vectors
        .iter()
        .filter_map(|vector| Some(format!("{}: {}", vector["name"], run(vector).err()?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// `MultipleResourceFoundException<Device>` is the name with the type, which is the first word of our text.
fn is_error(fate: &Fate, expected: &Value) -> Result<(), String> {
    let (Fate::Waiting(error) | Fate::Dead(error)) = fate else {
        return Err(format!("{fate:?}"));
    };
    let name = expected["error"].as_str().unwrap();
    let (name, in_name) = match name.split_once('<') {
        Some((name, kind)) => (name, Some(kind.trim_end_matches('>'))),
        None => (name, None),
    };
    let kind = expected["resourceType"].as_str().or(in_name);
    let of_kind = kind.is_none_or(|kind| error.text.starts_with(&format!("{kind}:")));
    if error.name == name && of_kind {
        return Ok(());
    }
    Err(format!("{error:?}"))
}

#[test]
fn identity_vectors_pass() {
    let pack =
        pack(&json!({"templateType": "CollectionFhir", "template": [template("hr", 0, quantity("hr"))]}));
    all("requests-identity.json", |vector| {
        let server: Vec<Value> = vector["server"].as_array().unwrap().clone();
        let (double, http) = Double::new(&server);
        // The name of the mode in any letter case is the matter of whoever imports settings of the reference.
        let mode = vector["config"]["resourceIdentityServiceType"]
            .as_str()
            .unwrap()
            .to_lowercase();
        let mode = mode.replace("lookupwithencounter", "lookup-with-encounter");
        let mut more = format!("resolution = \"{mode}\"\n");
        if let Some(system) = vector["config"]["defaultDeviceIdentifierSystem"].as_str() {
            more.push_str(&format!("device_identifier_system = \"{system}\"\n"));
        }
        let names = ["deviceId", "patientId", "encounterId"].map(|name| vector["group"][name].as_str());
        let group = named_group(&pack, names, "hr", 1, &[(0, "hr", "60")]);
        let delivery = simulate(destination(&http, &more).deliver(vec![group], &none()));
        let expected = &vector["expected"];
        if expected.get("error").is_some() {
            return is_error(&delivery.fates[0][0], expected);
        }
        let held = double.of_type("Observation");
        let observation = held.first().ok_or(format!("{:?}", delivery.fates))?;
        for (kind, member) in [
            ("Device", "device"),
            ("Patient", "subject"),
            ("Encounter", "encounter"),
        ] {
            let expected = expected["ids"][kind]
                .as_str()
                .map(|id| json!(format!("{kind}/{id}")));
            if observation[member]["reference"] != expected.clone().unwrap_or_default() {
                return Err(format!(
                    "{member}: {} instead of {expected:?}",
                    observation[member]
                ));
            }
        }
        // What was created or linked is there as the reference would have written it.
        for request in vector["referenceRequests"].as_array().into_iter().flatten() {
            if request["method"] == "PUT" {
                let mut created = double.state().resources[request["url"].as_str().unwrap()].clone();
                let mut reference = request["body"].clone();
                for resource in [&mut created, &mut reference] {
                    resource.as_object_mut().unwrap().remove("meta");
                }
                if created != reference {
                    return Err(format!("{created} instead of {reference}"));
                }
            }
        }
        Ok(())
    });
}

#[test]
fn save_vectors_pass() {
    all("requests-save.json", |vector| {
        let mut server: Vec<Value> = vector["server"].as_array().unwrap().clone();
        let ids = &vector["resourceIds"];
        server.push(
            json!({"resourceType": "Device", "id": ids["device"], "identifier": [{"value": "d"}],
            "patient": {"reference": format!("Patient/{}", ids["patient"].as_str().unwrap())}}),
        );
        let (double, http) = Double::new(&server);
        let before = double.of_type("Observation");
        let measurements = vector["measurements"].as_array().unwrap();
        let mut group = named_group(
            &pack(&vector["fhirMapping"]),
            [measurements[0]["deviceId"].as_str(), None, None],
            measurements[0]["type"].as_str().unwrap(),
            1,
            &vec![(0, "", ""); measurements.len()],
        );
        for (reading, measurement) in group.readings.iter_mut().zip(measurements) {
            reading.measurement = Arc::new(measured(measurement));
        }
        if let Some(answers) = vector["writeAnswers"].as_array() {
            // Look-up and read come before the write.
            let mut faults = vec![None, None];
            faults.extend(answers.iter().map(|status| {
                Some(Fault::Status(
                    u16::try_from(status.as_u64().unwrap()).unwrap(),
                    Vec::new(),
                    "",
                ))
            }));
            double.state().faults = faults.into();
        }
        let delivery = simulate(destination(&http, "").deliver(vec![group], &none()));
        let expected = &vector["expected"];
        let fate = &delivery.fates[0][0];
        if expected.get("error").is_some() {
            return is_error(fate, expected);
        }
        let after = double.of_type("Observation");
        let operation = expected["operation"].as_str().unwrap();
        let happened = match (fate, delivery.written) {
            (Fate::Retry, 0) => "Retry",
            (Fate::Delivered, 0) if after == before => "NoOperation",
            (Fate::Delivered, 1) if after.len() == before.len() => "Updated",
            (Fate::Delivered, 1) => "Created",
            other => return Err(format!("{other:?}")),
        };
        if happened != operation {
            return Err(format!("{happened} instead of {operation}"));
        }
        let Some(id) = expected["resourceId"].as_str() else {
            return Ok(());
        };
        let written = &double.state().resources[&format!("Observation/{id}")];
        for (got, wanted) in [
            (&written["status"], &expected["status"]),
            (&written["valueQuantity"]["value"], &expected["value"]),
        ] {
            if got != wanted {
                return Err(format!("{got} instead of {wanted}"));
            }
        }
        Ok(())
    });
}

fn measured(measurement: &Value) -> Measurement {
    let properties = measurement["properties"]
        .as_array()
        .unwrap()
        .iter()
        .map(|property| Property {
            name: property["name"].as_str().unwrap().into(),
            value: property["value"].as_str().unwrap().into(),
        });
    let time: jiff::Timestamp = measurement["occurrenceTimeUtc"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    Measurement {
        key: Arc::new(iomt_mapping::GroupKey {
            type_name: measurement["type"].as_str().unwrap().to_owned(),
            device_id: measurement["deviceId"].as_str().unwrap().to_owned(),
            ..Default::default()
        }),
        occurrence_time: Timestamp::from_ticks(i64::try_from(time.as_nanosecond() / 100).unwrap()).unwrap(),
        properties: properties.collect(),
    }
}
