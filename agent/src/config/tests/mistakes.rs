//! What is wrong or doubtful in a configuration: found at its place, shown with what to do, and never with a secret.

use super::super::check_text;
use super::{EXAMPLE, with};
use iomt_mapping::Severity;

#[test]
fn one_mistake_is_found_at_its_place_with_what_to_do() {
    let table = [
        (
            "[gateway]\nid",
            "[gatway]\nid",
            vec!["MissingMember 1:1", "UnknownMember 2:2"],
            "Did you mean \"gateway\"?",
        ),
        (
            "id = \"bed-12\"",
            "",
            vec!["MissingMember 2:1"],
            "needs the member \"id\"",
        ),
        ("id = \"bed-12\"", "id = 12", vec!["WrongType 3:6"], "12"),
        (
            "id = \"bed-12\"",
            "id = \"bed 12\"",
            vec!["InvalidName 3:6"],
            "Use 1 to 64 letters",
        ),
        (
            "[[source]]",
            "[source]",
            vec!["InvalidToml 17:3"],
            "[[source]] and [[destination]] have two brackets",
        ),
        (
            "topics = [",
            "topic = [",
            vec!["MissingMember 8:1", "UnknownMember 12:1"],
            "Did you mean \"topics\"?",
        ),
        (
            "kind = \"mqtt\"",
            "kind = \"mqqt\"",
            vec!["UnknownValue 10:8"],
            "Did you mean \"mqtt\"?",
        ),
        (
            "kind = \"mqtt\"",
            "",
            vec!["MissingMember 8:1"],
            "needs the member \"kind\"",
        ),
        (
            "topics = [\"wearables/+/telemetry\"]",
            "topics = []",
            vec!["MissingTopic 12:10"],
            "at least one topic",
        ),
        (
            "wearables/+/telemetry",
            "wearables/#/telemetry",
            vec!["InvalidTopic 12:11"],
            "last level",
        ),
        (
            "wearables/+/telemetry",
            "wearables",
            vec!["DeviceIdNotInTopic 12:11"],
            "no level 2",
        ),
        (
            "mqtts://broker",
            "https://broker",
            vec!["InvalidAddress 11:7"],
            "Write mqtt://HOST or mqtts://HOST",
        ),
        (
            "broker.ward.example:8883",
            "broker.ward.example:88833",
            vec!["InvalidAddress 11:7"],
            "1 to 65535",
        ),
        (
            "username = \"gateway-12\"",
            "user = \"gateway-12\"",
            vec!["UnknownMember 14:1"],
            "username",
        ),
        (
            "username = \"gateway-12\"",
            "device_id = \"x\"\nusername = \"g\"",
            vec!["ConflictingMembers 13:18"],
            "exclude",
        ),
        (
            "{ topic_level = 2 }",
            "{ topic_levl = 2 }",
            vec!["UnknownMember 13:20"],
            "Did you mean \"topic_level\"?",
        ),
        (
            "{ topic_level = 2 }",
            "{ topic_level = \"2\" }",
            vec!["WrongType 13:34"],
            "expected a whole number",
        ),
        (
            "driver = \"nonin\" ",
            "driver = \"nonin\"\nframing = \"lines\"",
            vec!["ConflictingMembers 22:11"],
            "exclude",
        ),
        (
            "driver = \"nonin\" ",
            "driver = \"nonnin\" ",
            vec!["UnknownValue 21:10"],
            "Did you mean \"nonin\"?",
        ),
        (
            "driver = \"nonin\" ",
            "",
            vec!["MissingMember 17:1"],
            "needs a driver or a framing",
        ),
        (
            "driver = \"nonin\" ",
            "formt = \"json\"\nframing = \"lines\"",
            vec!["UnknownMember 21:1"],
            "\"format\"",
        ),
        (
            "driver = \"nonin\" ",
            "framing = \"lines\"\nsettings = { parity = \"off\" }",
            vec!["UnknownValue 22:23"],
            "none, even, odd",
        ),
        (
            "driver = \"nonin\" ",
            "framing = \"lines\"\nsettings = { baud = 1 }",
            vec!["WrongValue 22:21"],
            "9600 or 115200",
        ),
        (
            "name = \"oximeter\"",
            "name = \"ward\"",
            vec!["DuplicateName 18:8"],
            "in line 9 has the name",
        ),
        (
            "url = \"https://fhir",
            "adress = \"https://fhir",
            vec!["UnknownMember 27:1"],
            "no member \"adress\"",
        ),
        (
            "https://fhir.hospital.example/r4",
            "fhir.hospital.example/r4",
            vec!["InvalidFhirServiceException 27:7"],
            "The `fhirServiceResourceId` provided is invalid",
        ),
        (
            "\"lookup\"",
            "\"lokup\"",
            vec!["UnknownValue 28:14"],
            "Did you mean \"lookup\"?",
        ),
        (
            "client_id = \"bedside\"",
            "clientid = \"bedside\"",
            vec!["UnknownMember 29:34"],
            "\"client_id\"",
        ),
        (
            "client_id = \"bedside\",",
            "",
            vec!["MissingMember 29:8"],
            "client_id",
        ),
        (
            "\"smart-backend\", client_id = \"bedside\"",
            "\"sas\", key_name = \"x\"",
            vec!["WrongAuthentication 29:8"],
            "no authentication of kind \"sas\"",
        ),
        (
            "ward.servicebus.windows.net",
            "ward",
            vec!["InvalidEventHubException 34:13"],
            "`fullyQualifiedEventHubNamespace` is null, empty, or formatted incorrectly",
        ),
        (
            "namespace = \"ward.servicebus.windows.net\"",
            "",
            vec!["InvalidEventHubException 31:1"],
            "`fullyQualifiedEventHubNamespace` is null, empty, or formatted incorrectly",
        ),
        (
            "hub = \"devicedata\"",
            "hub = \"ns/devicedata\"",
            vec!["InvalidEventHubException 35:7"],
            "name of an event hub",
        ),
        (
            "payload = \"message\" ",
            "envelope = \"iot-hub\"\npayload = \"measurement\" ",
            vec!["WrongValue 36:12"],
            "Only raw messages have an envelope",
        ),
        (
            "payload = \"message\" ",
            "event_id_in_body = true\npayload = \"observation\" ",
            vec!["WrongValue 36:20"],
            "FHIR knows no member",
        ),
        (
            "key_name = \"gateway\", ",
            "token = \"file:t\", ",
            vec!["WrongAuthentication 37:8"],
            "no key beside it",
        ),
        (
            "key_name = \"gateway\", ",
            "",
            vec!["WrongAuthentication 37:8"],
            "belongs to a shared access rule",
        ),
        (
            "payload = \"message\" ",
            "payload = \"observation\"\nidentity_of = \"cloud\" ",
            vec!["UnknownName 37:15"],
            "no destination of kind \"fhir\"",
        ),
        (
            "auth = { kind = \"sas\"",
            "ath = { kind = \"sas\"",
            vec!["UnknownMember 37:1"],
            "auth",
        ),
        (
            "\"512 MiB\"",
            "\"512 megs\"",
            vec!["WrongValue 40:13"],
            "is no size",
        ),
        (
            "\"512 MiB\"",
            "\"1 MiB\"",
            vec!["WrongValue 40:13"],
            "at least \"8 MiB\"",
        ),
        ("127.0.0.1:8080", "localhost", vec!["WrongValue 44:10"], "IP:PORT"),
        (
            "listen",
            "lisen",
            vec!["UnknownMember 44:1"],
            "Did you mean \"listen\"?",
        ),
    ];
    for (from, to, places, words) in table {
        let (found, shown) = with(from, to);
        assert_eq!(found, places, "{from} -> {to}\n{shown}");
        assert!(shown.contains(words), "{words}\n{shown}");
    }
}

#[test]
fn a_finding_is_shown_as_a_compiler_shows_it() {
    let (_, shown) = with("topics = [", "topcs = [");
    assert!(
        shown.contains(
            "error[UnknownMember]: [[source]] of kind \"mqtt\" has no member \"topcs\".\n  --> agent.toml:12:1\n   |\n12 | \
             topcs = [\"wearables/+/telemetry\"]\n   | ^^^^^\n  = help: Did you mean \"topics\"?\n"
        ),
        "{shown}"
    );
}

#[test]
fn all_mistakes_are_found_at_once() {
    let text = EXAMPLE
        .replace("mqtts://broker", "htp://broker")
        .replace("device_id_from", "device_idfrom")
        .replace("port = ", "prt = ")
        .replace("ward.servicebus.windows.net", "")
        .replace("\"512 MiB\"", "12")
        .replace("listen", "port");
    let checked = check_text("agent.toml", &text);
    let kinds: Vec<&str> = checked.findings.iter().map(|f| f.kind).collect();
    assert_eq!(
        kinds,
        [
            "UnknownMember",
            "MissingMember",
            "UnknownMember",
            "InvalidEventHubException",
            "WrongType",
            "UnknownMember"
        ],
        "{}",
        checked.render()
    );
    let error = checked.into_config().unwrap_err().to_string();
    assert!(error.ends_with("6 errors in agent.toml"), "{error}");
}

#[test]
fn a_secret_in_the_file_is_refused_and_never_shown() {
    for (from, to) in [
        ("\"credential:mqtt-password\"", "\"hunter2hunter2\""),
        ("\"credential:event-hub-key\"", "\"hunter2hunter2\""),
        ("\"credential:fhir-key\"", "hunter2hunter2"),
        ("\"credential:mqtt-password\"", "\"hunter2hunter2"),
        ("\"credential:mqtt-password\"", "[\"hunter2hunter2\"]"),
        ("mqtts://broker", "mqtts://me:hunter2hunter2@broker"),
    ] {
        let checked = check_text("agent.toml", &EXAMPLE.replace(from, to));
        assert!(checked.config.is_none());
        let shown = format!("{}{}", checked.render(), checked.one_line_each().concat());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let (found, _) = with("\"credential:event-hub-key\"", "\"hunter2\"");
    assert_eq!(found, ["InlineSecret 37:52"]);
}

#[test]
fn doubtful_settings_are_warnings() {
    let (found, shown) = with("mqtts://broker.ward.example:8883", "mqtt://broker.ward.example");
    assert_eq!(found, ["PlainText 11:7"], "{shown}");
    let checked = check_text("agent.toml", &EXAMPLE.replace("127.0.0.1", "0.0.0.0"));
    assert_eq!(checked.findings[0].severity, Severity::Warning);
    assert!(checked.config.is_some());
}

#[test]
fn the_format_of_payloads_is_checked_with_its_topics_and_members() {
    let topics = "topics = [\"wearables/+/telemetry\"]";
    for (source, kind, words) in [
        (
            "topics = [\"spBv1.0/ward3/#\"]\nformat = \"sparkplug-b\"\nrequest_rebirth = true",
            "",
            "",
        ),
        ("topics = [\"acme/+/vitals/#\"]\nformat = \"kura\"", "", ""),
        (
            "topics = [\"homeassistant/#\", \"bed7/#\"]\nformat = \"home-assistant\"",
            "",
            "",
        ),
        (
            "topics = [\"home/+/SERIALtoMQTT\"]\nformat = \"serial-lines\"\nline = { format = \"label\", delimiter = \" \" }",
            "",
            "",
        ),
        (
            "topics = [\"a/b\"]\nformat = \"sparkplugb\"",
            "UnknownValue",
            "sparkplug-b",
        ),
        (
            "topics = [\"a/b\"]\nformat = \"sparkplug-b\"",
            "NoTopicOfFormat",
            "spBv1.0/ward3/#",
        ),
        (
            "topics = [\"spBv1.0/w/DDATA/#\"]\nformat = \"sparkplug-b\"",
            "NoTopicOfFormat",
            "births",
        ),
        (
            "topics = [\"bed7/#\"]\nformat = \"home-assistant\"",
            "NoTopicOfFormat",
            "homeassistant/#",
        ),
        (
            "topics = [\"a/b\"]\nline = { format = \"label\" }",
            "ConflictingMembers",
            "serial-lines",
        ),
        (
            "topics = [\"a/b\"]\nrequest_rebirth = true",
            "ConflictingMembers",
            "sparkplug-b",
        ),
        (
            "topics = [\"a/b\"]\nformat = \"serial-lines\"\nline = { framing = \"slip\" }",
            "WrongValue",
            "no member of `line`",
        ),
        (
            "topics = [\"a/b\"]\nformat = \"serial-lines\"\nline = { format = \"csv\" }",
            "MissingMember",
            "columns",
        ),
    ] {
        let text = EXAMPLE.replace("device_id_from = { topic_level = 2 }", "");
        let checked = check_text("agent.toml", &text.replace(topics, source));
        let kinds: Vec<&str> = checked.findings.iter().map(|finding| finding.kind).collect();
        let expected = if kind.is_empty() { vec![] } else { vec![kind] };
        assert_eq!(kinds, expected, "{source}\n{}", checked.render());
        assert!(checked.render().contains(words), "{words}\n{}", checked.render());
    }
}

#[test]
fn any_text_is_read_without_a_panic_and_refused_with_a_place() {
    for end in 0..EXAMPLE.len() {
        if let Some(head) = EXAMPLE.get(..end) {
            for finding in check_text("agent.toml", head).findings {
                assert!(finding.place.is_some(), "{finding:?}");
            }
        }
    }
    for line in 0..EXAMPLE.lines().count() {
        let without: Vec<&str> = EXAMPLE
            .lines()
            .enumerate()
            .filter(|(n, _)| *n != line)
            .map(|(_, l)| l)
            .collect();
        check_text("agent.toml", &without.join("\n"));
    }
}
