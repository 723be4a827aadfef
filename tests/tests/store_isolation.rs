//! A message that ends the process is isolated: the real program, ended by one of its messages at every start.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::wait_for;
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{heart_rates, publish, publish_readings};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_message_that_ends_the_process_becomes_a_dead_letter_and_the_others_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "")
        .fhir(&server.base, "resolution = \"create\"")
        .env("BEDSIDE_SABOTAGE", "abort-on-marker");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let before = heart_rates(2, 5, 0);
    publish_readings(broker.port, &before);
    let killer = (
        "wearables/hr-1/telemetry".to_owned(),
        r#"{"abort-the-process":1}"#.to_owned(),
    );
    publish(broker.port, &[killer]);
    let after = heart_rates(2, 5, 100);
    publish_readings(broker.port, &after);
    let all: Vec<_> = before.into_iter().chain(after).collect();
    // As the service manager does: started again until it stays.
    let mut starts = 1_u64;
    let stays = |agent: &mut bedside_tests::real::Process| {
        std::thread::sleep(Duration::from_secs(2));
        agent.is_running()
    };
    while !stays(&mut agent) {
        starts += 1;
        assert!(starts <= 7, "{}", gateway.log());
        agent = gateway.start();
    }
    wait_for(&server, &all, LIMIT, || gateway.log());
    let accounts = gateway.stop(&mut agent);
    let dead = accounts["unparsable"].as_u64().unwrap_or_default();
    // A copy for each start that ended before the acknowledgement left.
    assert!((1..starts).contains(&dead), "{accounts}");
    assert_eq!(accounts["lost"], 0, "{accounts}");
    assert!(starts > 1, "the message ended nothing");
}
