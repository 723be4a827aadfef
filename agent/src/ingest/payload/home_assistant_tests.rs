use super::*;

const OXIMETER: &str = r#"{"name":"SpO2","uniq_id":"oxi7_spo2","stat_t":"bed7/oxi/state","unit_of_meas":"%",
    "val_tpl":"{{ value_json.spo2 }}","dev":{"ids":["oxi7"],"name":"Oximeter 7"}}"#;

fn decoded(entities: &mut Entities, topic: &str, payload: &str) -> Result<Value, String> {
    let (names, _) = entities.observe(topic, payload.as_bytes());
    decode(
        topic,
        &Bytes::copy_from_slice(payload.as_bytes()),
        names.as_deref(),
    )
    .map(|decoded| serde_json::from_slice(&decoded.body).unwrap())
    .map_err(|Unreadable(why)| why)
}

fn readings(entities: &mut Entities, topic: &str, payload: &str) -> Vec<String> {
    let body = decoded(entities, topic, payload).unwrap();
    let shown = |one: &Value| {
        format!(
            "{} {} {} {}",
            one["device"], one["measure"], one["value"], one["unit"]
        )
    };
    body["readings"].as_array().unwrap().iter().map(shown).collect()
}

#[test]
fn only_what_was_announced_is_a_reading() {
    let mut entities = Entities::default();
    let state = r#"{"spo2":97,"hr":71}"#;
    assert_eq!(
        readings(&mut entities, "bed7/oxi/state", state),
        Vec::<String>::new()
    );
    let said = decoded(&mut entities, "homeassistant/sensor/oxi7_spo2/config", OXIMETER).unwrap();
    assert_eq!(said["entities"][0]["stateTopic"], "bed7/oxi/state");
    assert_eq!(
        readings(&mut entities, "bed7/oxi/state", state),
        [r#""oxi7" "spo2" 97 "%""#]
    );
    assert_eq!(
        readings(&mut entities, "bed8/oxi/state", state),
        Vec::<String>::new()
    );
    // Without the member there is nothing, with null there is no value.
    assert_eq!(
        readings(&mut entities, "bed7/oxi/state", r#"{"hr":71}"#),
        Vec::<String>::new()
    );
    assert_eq!(
        readings(&mut entities, "bed7/oxi/state", r#"{"spo2":null}"#),
        [r#""oxi7" "spo2" null "%""#]
    );
    // An empty payload takes it back.
    let said = decoded(&mut entities, "homeassistant/sensor/oxi7_spo2/config", "").unwrap();
    assert_eq!(said["removed"], true);
    assert_eq!(
        readings(&mut entities, "bed7/oxi/state", state),
        Vec::<String>::new()
    );
}

#[test]
fn long_and_short_names_and_the_base_topic_say_the_same() {
    let short = r#"{"~":"bed7/oxi","uniq_id":"e","stat_t":"~/state","val_tpl":"{{ value_json.spo2 }}","unit_of_meas":"%",
        "dev":{"ids":"oxi7"},"avty_t":"~/up","pl_avail":"yes","pl_not_avail":"no"}"#;
    let long = r#"{"unique_id":"e","state_topic":"bed7/oxi/state","value_template":"{{ value_json['spo2'] | float(0) }}",
        "unit_of_measurement":"%","device":{"identifiers":["oxi7","other"]},"availability":[{"topic":"bed7/oxi/up",
        "payload_available":"yes","payload_not_available":"no"}]}"#;
    let topic = "homeassistant/sensor/ward/oxi/config";
    let of = |text: &str| announced(topic, text.as_bytes()).unwrap();
    assert_eq!(of(short), of(long));
    let mut entities = Entities::default();
    entities.observe(topic, short.as_bytes());
    assert_eq!(
        entities.availability("bed7/oxi/up", b"no"),
        Some(("oxi7".to_owned(), false))
    );
    assert_eq!(
        entities.availability("bed7/oxi/up", b"yes"),
        Some(("oxi7".to_owned(), true))
    );
    assert_eq!(entities.availability("bed7/oxi/up", b"what"), None);
}

#[test]
fn the_discovery_of_a_whole_device_announces_its_sensors() {
    let device = r#"{"dev":{"ids":["m7"]},"stat_t":"bed7/m","cmps":{
        "a":{"p":"sensor","uniq_id":"m7_hr","val_tpl":"{{ value_json.v.hr }}","unit_of_meas":"bpm"},
        "b":{"p":"sensor","uniq_id":"m7_t","stat_t":"bed7/t","unit_of_meas":"°C"},
        "c":{"p":"button","cmd_t":"bed7/x"}}}"#;
    let mut entities = Entities::default();
    let said = decoded(&mut entities, "homeassistant/device/m7/config", device).unwrap();
    assert_eq!(said["entities"].as_array().unwrap().len(), 2);
    assert_eq!(
        readings(&mut entities, "bed7/m", r#"{"v":{"hr":"71"}}"#),
        [r#""m7" "hr" 71 "bpm""#]
    );
    assert_eq!(
        readings(&mut entities, "bed7/t", "36.80"),
        [r#""m7" "m7_t" 36.80 "°C""#]
    );
    assert_eq!(
        readings(&mut entities, "bed7/t", "unavailable"),
        [r#""m7" "m7_t" null "°C""#]
    );
}

#[test]
fn templates_are_paths_or_not_read() {
    let some = |path: &[&str]| Some(path.iter().map(|&step| step.to_owned()).collect::<Vec<_>>());
    for (template, expected) in [
        ("{{ value_json.spo2 }}", some(&["spo2"])),
        ("{{value_json.a.b}}", some(&["a", "b"])),
        ("{{ value_json['a b'][\"c\"][0] }}", some(&["a b", "c", "0"])),
        ("{{ value_json.t | float | round(1) }}", some(&["t"])),
        ("{{ value }}", some(&[])),
        ("{{- value | int -}}", some(&[])),
        ("{{ value_json.t / 10 }}", None),
        ("{{ value_json.t * 1.8 + 32 }}", None),
        ("{{ value_json.t | multiply(2) }}", None),
        ("{% if value_json.t %}1{% endif %}", None),
        ("{{ value_json.a }}{{ value_json.b }}", None),
        ("{{ states('x') }}", None),
        ("97", None),
    ] {
        assert_eq!(path(template), expected, "{template}");
    }
    let mut entities = Entities::default();
    let computed = OXIMETER.replace("value_json.spo2", "value_json.spo2 / 10");
    let said = decoded(&mut entities, "homeassistant/sensor/x/config", &computed).unwrap();
    assert_eq!(said["entities"][0]["unsupported"], true);
    assert_eq!(
        readings(&mut entities, "bed7/oxi/state", r#"{"spo2":970}"#),
        Vec::<String>::new()
    );
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut entities = Entities::default();
    decoded(&mut entities, "homeassistant/sensor/oxi7_spo2/config", OXIMETER).unwrap();
    for (topic, payload, why) in [
        ("homeassistant/sensor/x/config", "{", "JSON object"),
        ("homeassistant/sensor/x/config", "{}", "no `state_topic`"),
        ("homeassistant/device/x/config", "{}", "no `components`"),
        ("bed7/oxi/state", "97", "no JSON"),
    ] {
        let said = decoded(&mut entities, topic, payload);
        match why {
            // A number is JSON without the member.
            "no JSON" => assert_eq!(said.unwrap()["readings"], json!([])),
            _ => assert!(said.unwrap_err().contains(why)),
        }
    }
    assert!(
        decoded(&mut entities, "bed7/oxi/state", "{97")
            .unwrap_err()
            .contains("no JSON")
    );
}

#[test]
fn what_was_announced_outlives_a_restart() {
    let mut entities = Entities::default();
    let topic = "homeassistant/sensor/oxi7_spo2/config";
    let (_, remember) = entities.observe(topic, OXIMETER.as_bytes());
    let (key, text) = remember.unwrap();
    // The same again (retained messages come with every subscription) is not written again.
    assert_eq!(entities.observe(topic, OXIMETER.as_bytes()), (None, None));
    let mut after = Entities::default();
    after.recall(&key, &text);
    assert_eq!(
        readings(&mut after, "bed7/oxi/state", r#"{"spo2":97}"#),
        [r#""oxi7" "spo2" 97 "%""#]
    );
}

#[test]
fn a_flood_of_announcements_is_bounded() {
    let mut entities = Entities::default();
    for number in 0..MOST_ENTITIES + 10 {
        entities.observe(
            &format!("homeassistant/sensor/x{number}/config"),
            OXIMETER.as_bytes(),
        );
    }
    assert_eq!(entities.all().count(), MOST_ENTITIES);
}
