//! The payload formats of MQTT sources under arbitrary bytes; the first byte chooses the format. `cargo fuzz run payloads` in
//! `tests/fuzz`.
//!
//! The rest is a series of messages, each a byte for its topic, one for its length, and the payload. Nothing may panic, hang or
//! grow without bound; what is decoded is JSON; and a message decodes to the same again.

#![no_main]

use bedside_agent::config::MqttConfig;
use bedside_agent::ingest::payload::annotate::Annotator;
use bedside_agent::ingest::payload::{Memory, decode};
use bedside_agent::message::{Message, SourceId, Stamp};
use bytes::Bytes;
use iomt_mapping::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const FORMATS: [&str; 5] = ["sparkplug-b", "kura", "home-assistant", "serial-lines", "json"];

/// Topics on which each format does something of its own.
const TOPICS: [&str; 16] = [
    "spBv1.0/g/NBIRTH/n",
    "spBv1.0/g/DBIRTH/n/d",
    "spBv1.0/g/NDATA/n",
    "spBv1.0/g/DDATA/n/d",
    "spBv1.0/g/NDEATH/n",
    "spBv1.0/g/DDEATH/n/d",
    "spBv1.0/g/DCMD/n/d",
    "spBv1.0/STATE/h",
    "acme/gw7/vitals/oxi7",
    "$EDC/acme/gw7/MQTT/BIRTH",
    "homeassistant/sensor/a/config",
    "homeassistant/device/b/config",
    "bed7/state",
    "tele/bed7/LWT",
    "z/availability",
    "",
];

/// No body is larger: 255 bytes of empty metrics with a name from their birth.
const LARGEST: usize = 1 << 20;

fn message(topic: &str, payload: &[u8]) -> Message {
    Message {
        topic: Some(topic.into()),
        ..Message::new(
            SourceId(1),
            Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::MIN,
                trusted: false,
            },
            Bytes::copy_from_slice(payload),
        )
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, mut rest)) = data.split_first() else {
        return;
    };
    let format = FORMATS[usize::from(*choice) % FORMATS.len()];
    let formats = ["json", "label", "csv", "hex"];
    let mut config = json!({ "url": "mqtt://b", "topics": ["#"], "format": format });
    if format == "serial-lines" {
        config["line"] =
            json!({ "format": formats[usize::from(*choice) / FORMATS.len() % 4], "delimiter": " " });
    }
    let config: MqttConfig = serde_json::from_value(config).unwrap();
    let memory = Memory::default();
    let mut annotator = Annotator::new(&config, SourceId(1), &memory);
    while let [topic, length, after @ ..] = rest {
        let (payload, next) = after.split_at(usize::from(*length).min(after.len()));
        rest = next;
        let mut message = message(TOPICS[usize::from(*topic) % TOPICS.len()], payload);
        annotator.annotate(&mut message);
        let Ok(body) = decode(&message) else { continue };
        assert!(
            body.bytes().len() <= LARGEST,
            "a body of {} bytes",
            body.bytes().len()
        );
        if body.bytes() != payload {
            serde_json::from_slice::<Value>(body.bytes()).expect("what is decoded is JSON");
        }
        let again = decode(&message).expect("it could be decoded");
        assert_eq!(again.bytes(), body.bytes());
        // What is written down can be taken up again.
        let recalled = memory
            .learnt
            .take()
            .into_iter()
            .map(|one| (one.key, one.text))
            .collect();
        Annotator::new(
            &config,
            SourceId(1),
            &Memory {
                recalled,
                ..Memory::default()
            },
        );
    }
});
