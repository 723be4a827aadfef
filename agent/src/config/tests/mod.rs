//! The configuration as an operator writes it.

mod mistakes;

use super::*;

/// The example of the design, whole.
const EXAMPLE: &str = r#"
[gateway]
id = "bed-12"

[mappings]
dir = "/etc/bedside-agent/mappings.d"

[[source]]
name = "ward"
kind = "mqtt"
url = "mqtts://broker.ward.example:8883"
topics = ["wearables/+/telemetry"]
device_id_from = { topic_level = 2 }  # counted from 1; becomes the envelope's connection device id
username = "gateway-12"
password = "credential:mqtt-password"

[[source]]
name = "oximeter"
kind = "serial"
port = "/dev/serial/by-id/usb-Nonin_Xpod-if00"
driver = "nonin"                      # or: framing = "lines", format = "json"
device_id = "xpod-4711"

[[destination]]
name = "ehr"
kind = "fhir"
url = "https://fhir.hospital.example/r4"
resolution = "lookup"
auth = { kind = "smart-backend", client_id = "bedside", key = "credential:fhir-key" }

[[destination]]                       # one, or several
name = "cloud"
kind = "event-hub"
namespace = "ward.servicebus.windows.net"
hub = "devicedata"
payload = "message"                   # message | measurement | observation
auth = { kind = "sas", key_name = "gateway", key = "credential:event-hub-key" }

[store]
max_bytes = "512 MiB"
commit_interval = "1 s"

[web]
listen = "127.0.0.1:8080"
"#;

fn example() -> Config {
    check_text("agent.toml", EXAMPLE).into_config().unwrap()
}

/// Findings of the example with one text replaced, as `kind line:column`.
fn with(from: &str, to: &str) -> (Vec<String>, String) {
    assert!(EXAMPLE.contains(from), "{from}");
    let checked = check_text("agent.toml", &EXAMPLE.replacen(from, to, 1));
    let short = |f: &iomt_mapping::Finding| {
        let place = f.place.unwrap();
        format!("{} {}:{}", f.kind, place.line, place.column)
    };
    (checked.findings.iter().map(short).collect(), checked.render())
}

#[test]
fn the_example_of_the_design_is_read_whole() {
    let config = example();
    assert_eq!(config.gateway.id, "bed-12");
    assert_eq!(config.sources.len(), 2);
    let SourceKind::Mqtt(mqtt) = &config.sources[0].kind else {
        panic!()
    };
    let broker = mqtt.broker().unwrap();
    assert_eq!(
        (broker.host.as_str(), broker.port, broker.tls),
        ("broker.ward.example", 8883, true)
    );
    assert_eq!(mqtt.device_id_from, Some(DeviceIdFrom { topic_level: 2 }));
    assert_eq!(
        mqtt.password,
        Some(SecretRef::Credential("mqtt-password".to_owned()))
    );
    let SourceKind::Serial(serial) = &config.sources[1].kind else {
        panic!()
    };
    assert_eq!(serial.driver.as_deref(), Some("nonin"));
    let DestinationKind::EventHub(hub) = &config.destinations[1].kind else {
        panic!()
    };
    assert_eq!(hub.payload, EventPayload::Message);
    assert_eq!(hub.auth.kind(), "sas");
    assert_eq!(config.store.max_bytes, ByteSize(512 << 20));
    assert_eq!(config.store.commit_interval, TextDuration(1_000_000));
}

#[test]
fn both_ways_to_read_a_configuration_agree() {
    assert_eq!(toml::from_str::<Config>(EXAMPLE).unwrap(), example());
}

#[test]
fn a_fhir_address_may_be_written_in_three_ways() {
    let expected = "https://ward-ehr.fhir.azurehealthcareapis.com";
    for form in [
        "url = \"/subscriptions/1/resourceGroups/g/providers/Microsoft.HealthcareApis/workspaces/ward/fhirservices/ehr\"",
        "workspace = \"ward\"\nservice = \"ehr\"",
        "url = \"https://ward-ehr.fhir.azurehealthcareapis.com/\"",
    ] {
        let text = EXAMPLE.replace("url = \"https://fhir.hospital.example/r4\"", form);
        let config = check_text("agent.toml", &text).into_config().unwrap();
        let DestinationKind::Fhir(fhir) = &config.destinations[0].kind else {
            panic!()
        };
        assert_eq!(fhir.url, expected);
    }
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let text = EXAMPLE
        .replace("/etc/bedside-agent/mappings.d", "mappings.d")
        .replace("credential:fhir-key", "file:keys/fhir.pem");
    std::fs::write(&path, text).unwrap();
    let config = load(&path).unwrap();
    assert_eq!(config.mappings.dir, folder.path().join("mappings.d"));
    let DestinationKind::Fhir(fhir) = &config.destinations[0].kind else {
        panic!()
    };
    assert_eq!(
        fhir.auth.secrets(),
        [&SecretRef::File(folder.path().join("keys/fhir.pem"))]
    );
    let error = load(&folder.path().join("none.toml")).unwrap_err().to_string();
    assert!(
        error.contains("none.toml: the configuration cannot be read: "),
        "{error}"
    );
}

#[test]
fn a_password_is_for_brokers_over_amqp_and_a_build_without_amqp_says_so() {
    let sas = r#"auth = { kind = "sas", key_name = "gateway", key = "credential:event-hub-key" }"#;
    let basic = r#"auth = { kind = "basic", username = "gateway", password = "credential:p" }"#;
    let (found, _) = with(sas, basic);
    assert!(
        found.len() == 1 && found[0].starts_with("WrongAuthentication"),
        "{found:?}"
    );
    for transport in ["amqp", "amqp-websocket"] {
        let (found, text) = with(sas, &format!("transport = \"{transport}\"\n{basic}"));
        if cfg!(feature = "amqp") {
            assert_eq!(found, Vec::<String>::new(), "{text}");
        } else {
            assert!(
                found.len() == 1 && found[0].starts_with("WrongValue"),
                "{found:?}"
            );
            assert!(
                text.contains("leave `transport` out") && text.contains("--features amqp"),
                "{text}"
            );
        }
    }
    let (found, text) = with(sas, &format!("transport = \"amqps\"\n{sas}"));
    assert_eq!(found.len(), 1, "{text}");
}
