//! What an event is: payload, envelope, ids.

use super::*;
use crate::config::Envelope;
use crate::message::PayloadKind;

#[test]
fn a_message_arrives_as_it_came_with_its_envelope_as_user_properties() {
    let mut bench = Bench::new(|_| {}, |_| response(201));
    let mut binary = message(8, &[0xff, 0x00, 0x41], "d1");
    Arc::get_mut(&mut binary.stored).unwrap().message.stamp.trusted = false;
    let text = "{\"heartRate\": \"7\\u00f6 \"}";
    let delivery = bench.deliver(vec![message(7, text.as_bytes(), "d1"), binary]);
    assert_eq!(
        (delivery.fates, delivery.link),
        (vec![Fate::Delivered; 2], Link::Up)
    );
    let seen = bench.seen();
    assert_eq!(
        seen[0].url,
        "https://ward.servicebus.windows.net/devicedata/messages?timeout=60&api-version=2014-01"
    );
    assert!(seen[0].headers.contains(&(
        "content-type",
        "application/vnd.microsoft.servicebus.json".to_owned()
    )));
    assert!(
        seen[0]
            .headers
            .contains(&("brokerproperties", "{\"PartitionKey\":\"bed-12\"}".to_owned()))
    );
    assert!(
        seen[0]
            .headers
            .contains(&("x-ms-retrypolicy", "NoRetry".to_owned()))
    );
    assert!(
        seen[0]
            .authorization
            .as_ref()
            .unwrap()
            .starts_with("SharedAccessSignature sr=https%3A%2F%2Fward.")
    );
    let elements = elements(&seen[0]);
    assert_eq!(elements[0]["Body"], text);
    let expected = serde_json::json!({
        "unit": "/min",
        "bedside-event-id": "bed-12/s1/7",
        "bedside-gateway": "bed-12",
        "iothub-enqueuedtime": "2026-09-21T14:13:20Z",
        "bedside-source": "ward",
        "topic": "wearables/x/telemetry",
        "iothub-connection-device-id": "d1"
    });
    assert_eq!(elements[0]["UserProperties"], expected);
    assert_eq!(elements[1]["Body"], "/wBB");
    assert_eq!(elements[1]["IsBodyBase64"], true);
    assert_eq!(elements[1]["UserProperties"]["bedside-body"], "base64");
    assert!(
        elements[1]["UserProperties"].get("iothub-enqueuedtime").is_none(),
        "no invented time"
    );
}

#[test]
fn an_envelope_has_device_and_creation_time_and_the_body_as_it_came() {
    let mut bench = Bench::new(|config| config.envelope = Envelope::IotHub, |_| response(201));
    let mut own = message(2, b"{\"hr\": 7.50}", "d1");
    let mut offset = message(3, b"78 bpm", "d1");
    let mut untrusted = message(4, &[0xff, 0x00], "d1");
    let time = |text: &str| vec![("iothub-creation-time-utc".to_owned(), text.to_owned())];
    Arc::get_mut(&mut own.stored).unwrap().message.properties = time("2021-04-21T11:30:16Z");
    Arc::get_mut(&mut offset.stored).unwrap().message.properties = time("2021-04-21T11:30:16-07:00");
    Arc::get_mut(&mut untrusted.stored).unwrap().message.stamp.trusted = false;
    bench.deliver(vec![message(1, b"{\"hr\": 7.50}", "d1"), own, offset, untrusted]);
    let system = "\"SystemProperties\":{\"iothub-connection-device-id\":\"d1\",\"iothub-enqueuedtime\":\"2026-09-21T14:13:20Z\"}}";
    let here = "\"iothub-creation-time-utc\":\"2026-09-21T14:13:20Z\"";
    let topic = "\"topic\":\"wearables/x/telemetry\"";
    let expected = [
        format!("{{\"Body\":{{\"hr\": 7.50}},\"Properties\":{{\"unit\":\"/min\",{topic},{here}}},{system}"),
        format!(
            "{{\"Body\":{{\"hr\": 7.50}},\"Properties\":{{\"iothub-creation-time-utc\":\"2021-04-21T11:30:16Z\",{topic}}},{system}"
        ),
        format!("{{\"Body\":\"78 bpm\",\"Properties\":{{{topic},{here}}},{system}"),
        format!(
            "{{\"Body\":\"/wA=\",\"Properties\":{{\"unit\":\"/min\",{topic}}},\"SystemProperties\":{{\"iothub-connection-device-id\":\"d1\"}}}}"
        ),
    ];
    assert_eq!(bodies(&bench.seen()[0]), expected);
}

#[test]
fn the_head_of_a_message_is_not_sent_as_if_it_were_the_message() {
    let mut bench = Bench::new(|_| {}, |_| response(201));
    let mut messages = numbered(2);
    Arc::get_mut(&mut messages[0].stored).unwrap().message.kind =
        PayloadKind::Truncated { length: 9, crc: 1 };
    let delivery = bench.deliver(messages);
    assert_eq!(dead(&delivery.fates), [0]);
    assert_eq!(bodies(&bench.seen()[0]), ["2"]);
}

#[test]
fn the_event_id_in_the_body_leaves_every_other_byte_as_it_came() {
    let mut bench = Bench::new(|config| config.event_id_in_body = true, |_| response(201));
    let messages = ["{\"a\": 1.50 }", "{}", "[1]", "x", "{\"bedsideEventId\":7}"];
    let messages = messages
        .iter()
        .zip(1..)
        .map(|(text, n)| message(n, text.as_bytes(), "d1"))
        .collect();
    bench.deliver(messages);
    assert_eq!(
        bodies(&bench.seen()[0]),
        [
            "{\"a\": 1.50 ,\"bedsideEventId\":\"bed-12/s1/1\"}",
            "{\"bedsideEventId\":\"bed-12/s1/2\"}",
            "[1]",
            "x",
            "{\"bedsideEventId\":7}"
        ]
    );
}
