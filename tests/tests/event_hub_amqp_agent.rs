//! MQTT to an event hub over AMQP with the program itself: an outage of the hub, and a kill of the agent.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::amqp::endpoint::AmqpEndpoint;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{heart_rates, payload, publish_readings};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn an_outage_of_the_hub_and_a_kill_of_the_agent_lose_nothing_over_websockets() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let mut endpoint = AmqpEndpoint::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .with(&endpoint.destination("amqp-websocket"));
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let mut all = Vec::new();
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let wait = |endpoint: &AmqpEndpoint, taken: &mut BTreeMap<String, String>, all: &[_]| {
        let expected: BTreeSet<String> = all.iter().map(payload).collect();
        let until = Instant::now() + LIMIT;
        loop {
            for event in endpoint.events() {
                let body = String::from_utf8(event.body).unwrap();
                let before = taken.insert(event.id.clone(), body.clone());
                assert!(
                    before.is_none_or(|before| before == body),
                    "one id, two bodies: {}",
                    event.id
                );
            }
            if taken.values().cloned().collect::<BTreeSet<_>>() == expected {
                return;
            }
            assert!(
                Instant::now() < until,
                "{} of {} events; refused: {:?}; the agent said:\n{}",
                taken.len(),
                expected.len(),
                endpoint.refusals(),
                gateway.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let mut publish = |start| {
        let readings = heart_rates(2, 20, start);
        publish_readings(broker.port, &readings);
        all.extend(readings);
        all.clone()
    };
    let sent = publish(0);
    wait(&endpoint, &mut taken, &sent);
    // What the endpoint had is in `taken`; it comes back empty.
    endpoint.stop();
    publish(100);
    std::thread::sleep(Duration::from_millis(1500));
    agent.kill();
    endpoint.run();
    agent = gateway.start();
    let sent = publish(200);
    wait(&endpoint, &mut taken, &sent);
    assert_eq!(endpoint.refusals(), Vec::<String>::new());
    gateway.stop(&mut agent);
}
