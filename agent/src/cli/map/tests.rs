use super::*;
use crate::packs::PackText;

const DEVICE: &str = r#"{ "templateType": "CollectionContent", "template": [
  { "templateType": "CalculatedContent", "template": {
    "typeName": "hr", "typeMatchExpression": "$..[?(@heartRate)]", "deviceIdExpression": "$.matchedToken.id",
    "timestampExpression": "$.matchedToken.at",
    "values": [{ "required": "true", "valueName": "hr", "valueExpression": "$.matchedToken.heartRate" }] } },
  { "templateType": "IotJsonPathContent", "template": {
    "typeName": "battery", "typeMatchExpression": "$..[?(@battery)]",
    "values": [{ "valueName": "level", "valueExpression": "$.battery" }] } }] }"#;

const FHIR: &str = r#"{ "templateType": "CollectionFhir", "template": [
  { "templateType": "CodeValueFhir", "template": { "typeName": "hr",
    "codes": [{ "code": "8867-4", "system": "http://loinc.org", "display": "Heart rate" }],
    "value": { "valueType": "Quantity", "valueName": "hr", "unit": "/min" } } }] }"#;

fn map() -> Map {
    Map {
        pack: PathBuf::new(),
        message: PathBuf::new(),
        topic: None,
        device_id: Some("gateway-7".to_owned()),
        properties: Vec::new(),
        payload_format: None,
        received: Some(time("2026-11-21T07:00:00Z").unwrap()),
        format: Format::Text,
    }
}

fn explained(message: &str) -> explain::Explained {
    let text = PackText {
        name: "ward".to_owned(),
        device: DEVICE.to_owned(),
        fhir: Some(FHIR.to_owned()),
        agent: None,
    };
    let set = PackSet::new(vec![Arc::new(Pack::load(text).0.unwrap())]);
    map()
        .parsed(message.as_bytes(), |parsed| explain::explain(&set, parsed))
        .unwrap()
}

#[test]
fn a_payload_that_is_no_json_is_decoded_first() {
    let mut map = map();
    map.payload_format = Some("kura".to_owned());
    map.topic = Some("acme/gw7/vitals".to_owned());
    // Metric hr, INT32, 72.
    let body = map
        .decoded(b"\xc2\xb8\x02\x08\x0a\x02hr\x10\x03\x30\x48".to_vec())
        .unwrap();
    let body = String::from_utf8(body).unwrap();
    assert!(
        body.contains(r#""metrics":[{"name":"hr","type":"INT32","value":72}]"#),
        "{body}"
    );
    let error = map.decoded(b"hello".to_vec()).unwrap_err().to_string();
    assert!(
        error.contains("InvalidDataFormatException") && error.contains("no Kura message"),
        "{error}"
    );
}

#[test]
fn a_message_is_shown_from_type_match_to_observation() {
    let explained = explained(r#"{"id": "band-1", "at": "2026-11-21T06:59:58Z", "heartRate": 78}"#);
    assert_eq!((explained.measurements, explained.failed), (1, 0));
    let text = show::text(&explained);
    for step in [
        "pack ward\n  template 0 hr (line 2): 1 match\n    typeMatchExpression  $..[?(@heartRate)]\n",
        "$.matchedToken.at  ->  2026-11-21T06:59:58Z\n",
        "$.matchedToken.heartRate  ->  78\n",
        "=> a measurement\n",
        "template 1 battery (line 6): no match\n",
        "the message has no member \"battery\"\n",
        "Observation of hr by FHIR template 0",
        "\"value\": 78",
        "1 measurement, 0 failed\n",
    ] {
        assert!(text.contains(step), "{step}\n{text}");
    }
    let shown = serde_json::to_value(&explained).unwrap();
    let pack = &shown["packs"][0];
    assert_eq!(pack["measurements"][0]["DeviceId"], "band-1");
    assert_eq!(
        pack["observations"][0]["resource"]["valueQuantity"]["value"].to_string(),
        "78"
    );
    assert_eq!(pack["trace"]["templates"][0]["matches"][0]["measured"], true);
}

#[test]
fn what_fails_is_shown_with_its_name_and_its_step() {
    let missing_time = explained(r#"{"id": "band-1", "heartRate": 78}"#);
    assert_eq!((missing_time.measurements, missing_time.failed), (0, 1));
    let text = show::text(&missing_time);
    assert!(text.contains("    x timestampExpression"), "{text}");
    assert!(text.contains("IncompatibleDataException in template 0"), "{text}");
    // A type without a FHIR template is measured and then fails.
    let no_template = explained(r#"{"battery": 17}"#);
    assert_eq!((no_template.measurements, no_template.failed), (1, 1));
    assert!(show::text(&no_template).contains("TemplateNotFoundException: "));
    let nothing = explained(r#"{"heartrate": 60}"#);
    let text = show::text(&nothing);
    assert!(
        text.contains("no member \"heartRate\"; it has \"heartrate\""),
        "{text}"
    );
    assert!(text.contains("No template matched"), "{text}");
}

#[test]
fn the_steps_from_group_to_observation_are_shown_also_when_there_is_none() {
    let explained_by = |fhir: &str, message: &str| {
        let text = PackText {
            name: "ward".to_owned(),
            device: DEVICE.to_owned(),
            fhir: Some(fhir.to_owned()),
            agent: None,
        };
        let set = PackSet::new(vec![Arc::new(Pack::load(text).0.unwrap())]);
        map()
            .parsed(message.as_bytes(), |parsed| explain::explain(&set, parsed))
            .unwrap()
    };
    let message = r#"{"id": "band-1", "at": "2026-11-21T06:59:58Z", "heartRate": 78}"#;
    let good = explained_by(FHIR, message);
    let text = show::text(&good);
    assert!(
        text.contains("  FHIR template 0 hr (line 2): 1 of 1 readings, periodInterval 0\n"),
        "{text}"
    );
    assert!(text.contains("      value  hr (Quantity)  ->  78"), "{text}");
    let shown = serde_json::to_value(&good).unwrap();
    let observation = &shown["packs"][0]["observations"][0];
    assert_eq!(observation["trace"]["values"][0]["taken"], "78");
    assert_eq!(observation["trace"]["resource"], serde_json::Value::Null);
    // The value has another name in the FHIR mapping.
    let other = explained_by(
        &FHIR.replace("\"valueName\": \"hr\"", "\"valueName\": \"HR\""),
        message,
    );
    let text = show::text(&other);
    assert!(
        text.contains("    x value  HR (Quantity)  ->  nothing  (no reading has this value)\n"),
        "{text}"
    );
    assert!(
        text.contains("the template has no valueName \"hr\"; it has \"HR\"\n"),
        "{text}"
    );
}

#[test]
fn envelope_sample_and_payload_are_the_same_message() {
    let payload = r#"{"id": "band-1", "at": "2026-11-21T06:59:58Z", "heartRate": 78}"#;
    let placed = format!(r#"{{"topic": "t/a", "deviceId": "a", "message": {payload}, "observations": []}}"#);
    for message in [
        placed,
        payload.to_owned(),
        format!(r#"{{"Body": {payload}, "Properties": {{}}, "SystemProperties": {{}}}}"#),
        format!(r#"{{"message": {payload}, "observations": [{{}}]}}"#),
    ] {
        assert_eq!(explained(&message).measurements, 1, "{message}");
    }
    assert!(map().parsed(b"{\"heartRate\": ", |_| ()).is_err());
}

#[test]
fn topic_properties_and_times_of_the_source_are_seen_by_templates() {
    let mut map = map();
    map.topic = Some("wearables/w7".to_owned());
    map.properties = vec![name_and_value("room=12=a").unwrap()];
    let envelope = map.parsed(b"{}", |parsed| parsed.root().to_value()).unwrap();
    assert_eq!(
        envelope["Properties"],
        serde_json::json!({ "topic": "wearables/w7", "room": "12=a" })
    );
    assert_eq!(
        envelope["SystemProperties"]["iothub-connection-device-id"],
        "gateway-7"
    );
    let received = envelope["SystemProperties"]["iothub-enqueuedtime"]
        .as_str()
        .unwrap();
    assert!(received.starts_with("2026-11-21T07:00:00"), "{received}");
    assert!(name_and_value("room").is_err());
    assert!(time("yesterday").is_err());
}
