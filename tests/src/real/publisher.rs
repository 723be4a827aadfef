//! A wearable's side of MQTT: publishes at QoS 1 and returns when the broker has acknowledged everything.

use rumqttc::{Client, Event, Incoming, MqttOptions, NetworkOptions, QoS};
use std::time::Duration;

/// One reading that the destination must hold in the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    /// Device identifier.
    pub device: String,
    /// Time, ISO 8601.
    pub time: String,
    /// Value as it is spelled.
    pub value: String,
}

/// Heart rates of `devices` devices, `count` of each, a second apart from `start_second` on; every value differs from its
/// neighbours, so that a reading in the wrong place is seen.
pub fn heart_rates(devices: usize, count: usize, start_second: usize) -> Vec<Sent> {
    (0..count)
        .flat_map(|n| (0..devices).map(move |d| (n, d)))
        .map(|(n, d)| {
            let second = start_second + n;
            Sent {
                device: format!("band-{d}"),
                time: format!(
                    "2026-03-01T{:02}:{:02}:{:02}.{:03}Z",
                    10 + second / 3600,
                    second / 60 % 60,
                    second % 60,
                    d
                ),
                value: format!("{}.{}", 50 + (n * 7 + d * 13) % 90, (n + d) % 10),
            }
        })
        .collect()
}

/// The payload of a reading, as `board-configs/mappings/heart-rate` understands it.
pub fn payload(sent: &Sent) -> String {
    format!(
        r#"{{"deviceId":"{0}","patientId":"patient-{0}","time":"{1}","heartRate":{2}}}"#,
        sent.device, sent.time, sent.value
    )
}

/// Publishes payloads on `topic/<n>` and waits for every acknowledgement of the broker.
pub fn publish<P: Clone + Into<Vec<u8>> + Send + 'static>(port: u16, messages: &[(String, P)]) {
    let mut options = MqttOptions::new(format!("publisher-{port}-{}", messages.len()), "127.0.0.1", port);
    options.set_inflight(200);
    options.set_max_packet_size(1 << 20, 1 << 20);
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut connection) = Client::new(options, 64);
    // Small packets wait for each other's acknowledgements otherwise, and the publisher would be what is measured.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    connection.eventloop.set_network_options(network);
    let total = messages.len();
    let to_send = messages.to_vec();
    let sender = std::thread::spawn(move || {
        for (topic, payload) in to_send {
            client
                .publish(topic, QoS::AtLeastOnce, false, payload)
                .expect("the connection lives");
        }
        client
    });
    let mut acknowledged = 0;
    for event in connection.iter() {
        if let Event::Incoming(Incoming::PubAck(_)) = event.expect("the broker is there") {
            acknowledged += 1;
        }
        if acknowledged == total {
            break;
        }
    }
    drop(sender.join().expect("all were handed over").disconnect());
}

/// Publishes readings as heart rate messages.
pub fn publish_readings(port: u16, readings: &[Sent]) {
    let messages: Vec<(String, String)> = readings
        .iter()
        .map(|sent| (format!("wearables/{}/telemetry", sent.device), payload(sent)))
        .collect();
    publish(port, &messages);
}
