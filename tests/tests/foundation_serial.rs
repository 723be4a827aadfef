//! A serial line to FHIR with a pseudo-terminal, the real program and a real FHIR server, compared value by value.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::wait_for;
use bedside_tests::real::publisher::{Sent, heart_rates, payload};
use bedside_tests::real::serial_line::SerialLine;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn send(line: &SerialLine, readings: &[Sent]) {
    for reading in readings {
        line.send(format!("{}\n", payload(reading)).as_bytes());
    }
}

#[test]
fn serial_to_fhir_through_garbage_and_a_pulled_cable() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = SerialLine::start(folder.path());
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .with(&format!(
            "[[source]]\nname = \"monitor\"\nkind = \"serial\"\nport = \"{}\"\nframing = \"lines\"\nformat = \"json\"\n\
             device_id = \"monitor-3\"",
            line.port().display()
        ))
        .fhir(&server.base, "resolution = \"create\"");
    gateway.drop_pack("heart-rate");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let first = heart_rates(1, 10, 0);
    send(&line, &first[..5]);
    // Noise of a loose contact costs the line that it touches and nothing else.
    line.send(b"\xff\xfe\x00garbage{{{\r\n");
    send(&line, &first[5..]);
    wait_for(&server, &first, LIMIT, || gateway.log());
    line.pull();
    std::thread::sleep(Duration::from_secs(1));
    line.plug();
    gateway.wait_connected(LIMIT);
    let second = heart_rates(1, 10, 100);
    send(&line, &second);
    let all: Vec<_> = first.into_iter().chain(second).collect();
    wait_for(&server, &all, LIMIT, || gateway.log());
    let accounts = gateway.stop(&mut agent);
    assert_eq!(accounts["delivered"], 20, "{accounts}");
}

#[test]
fn a_missing_port_is_said_with_a_remedy_and_the_agent_stays_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .with(
            "[[source]]\nname = \"monitor\"\nkind = \"serial\"\nport = \"/dev/serial/by-id/usb-none\"\nframing = \"lines\"\n\
             format = \"json\"",
        )
        .fhir(&server.base, "resolution = \"create\"");
    let mut agent = gateway.start();
    bedside_tests::real::wait_for("the agent says so", LIMIT, || {
        gateway.status().is_some_and(|status| {
            let problems = status["problems"].to_string();
            problems.contains("usb-none") && status["health"] == "degraded"
        })
    });
    gateway.stop(&mut agent);
}
