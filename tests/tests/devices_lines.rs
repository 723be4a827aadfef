//! Lines that misbehave, with pseudo-terminals and the real program: a device that never pauses, and one that takes no
//! bytes. The other sources must not notice.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::measure::ProcessUse;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::fhir::{place_of, readings};
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::{Sent, heart_rates, payload, publish_readings};
use bedside_tests::real::serial_line::SerialLine;
use bedside_tests::real::wait_for;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn line(folder: &Path, name: &str) -> SerialLine {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    SerialLine::start(&folder)
}

fn serial(name: &str, line: &SerialLine, members: &str) -> String {
    format!(
        "[[source]]\nname = \"{name}\"\nkind = \"serial\"\nport = \"{}\"\ndevice_id = \"{name}-1\"\n{members}",
        line.port().display()
    )
}

fn source(gateway: &Gateway, name: &str) -> Value {
    let status = gateway.status().unwrap_or_default();
    let sources = status["sources"].as_array().cloned().unwrap_or_default();
    let found = sources.into_iter().find(|source| source["name"] == name);
    found.unwrap_or_default()
}

fn trouble(gateway: &Gateway, name: &str) -> String {
    let text = &source(gateway, name)["error"]["text"];
    text.as_str().unwrap_or_default().to_owned()
}

/// Waits until the server holds all of these, each once, whatever else it holds.
fn arrived(server: &FhirServer, sent: &[Sent]) {
    wait_for("the readings of the others", LIMIT, || {
        let held = readings(server);
        sent.iter().all(|one| {
            let values = held.get(&place_of(&one.device, &one.time));
            values.is_some_and(|values| values == &[one.value.parse::<f64>().unwrap()])
        })
    });
}

#[test]
fn a_device_that_never_pauses_is_held_to_its_speed_and_starves_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (mut flooded, calm) = (line(folder.path(), "flooded"), line(folder.path(), "calm"));
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    let gateway = Gateway::new(folder.path())
        .mqtt(broker.port, "packs = [\"heart-rate\"]")
        .with(&serial(
            "clip",
            &flooded,
            "driver = \"contec-cms50\"\npacks = [\"contec-cms50\"]",
        ))
        .with(&serial(
            "calm",
            &calm,
            "framing = \"lines\"\nformat = \"json\"\npacks = [\"heart-rate\"]",
        ))
        .fhir(&server.base, "resolution = \"create\"");
    gateway.drop_pack("heart-rate");
    gateway.drop_pack("contec-cms50");
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let memory = ProcessUse::of(agent.child.id()).unwrap().peak_rss_bytes;

    // It writes whenever the line takes something: of 1920 bytes a second it would say a hundred times as much.
    const FRAME: [u8; 5] = [0x87, 0x32, 0x05, 0x48, 0x62];
    let written = Arc::new(AtomicU64::new(0));
    let (counter, device) = (Arc::clone(&written), flooded.device());
    let begin = Instant::now();
    let flood = std::thread::spawn(move || {
        let mut device = std::fs::File::options().write(true).open(device).unwrap();
        let frames = FRAME.repeat(100);
        while let Ok(length) = device.write(&frames) {
            counter.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    let on_the_line = heart_rates(1, 40, 0);
    for reading in &on_the_line {
        calm.send(format!("{}\n", payload(reading)).as_bytes());
        std::thread::sleep(Duration::from_millis(100));
    }
    let over_mqtt: Vec<Sent> = heart_rates(2, 40, 100);
    publish_readings(broker.port, &over_mqtt);
    arrived(&server, &on_the_line);
    arrived(&server, &over_mqtt);
    wait_for("the flood is said", LIMIT, || {
        trouble(&gateway, "clip").contains("more than 19200 baud can carry")
    });
    // Four times the line's speed, and what programs and kernel keep on the way.
    let most = begin.elapsed().as_secs_f64() * 4.0 * 1920.0 + 100_000.0;
    let taken = written.load(Ordering::Relaxed) as f64;
    assert!(taken <= most, "{taken} bytes were taken, not {most}");
    assert!(taken >= most / 8.0, "{taken} bytes were taken: no flood");
    let more = ProcessUse::of(agent.child.id()).unwrap().peak_rss_bytes - memory;
    assert!(more < 48 << 20, "{more} bytes more");
    assert_eq!(source(&gateway, "calm")["error"], Value::Null);
    assert_eq!(source(&gateway, "ward")["error"], Value::Null);

    // With its usual pace everything is well again.
    flooded.pull();
    flood.join().unwrap();
    flooded.plug();
    wait_for("the line is calm", LIMIT, || {
        for _ in 0..10 {
            flooded.send(&FRAME.repeat(3));
            std::thread::sleep(Duration::from_millis(50));
        }
        source(&gateway, "clip")["error"] == Value::Null
    });
    let accounts = gateway.stop(&mut agent);
    assert_eq!(accounts["lost"], 0, "{accounts}");
}

#[test]
fn a_device_that_takes_no_bytes_is_read_all_the_same() {
    const XOFF: u8 = 0x13;
    const XON: u8 = 0x11;
    let folder = tempfile::tempdir().unwrap();
    let line = line(folder.path(), "lab");
    let gateway = Gateway::new(folder.path()).with(&serial(
        "lab",
        &line,
        "framing = \"mllp\"\nformat = \"hex\"\nsettings = { flow = \"xon-xoff\" }",
    ));
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let mut device = std::fs::File::options()
        .read(true)
        .write(true)
        .open(line.device())
        .unwrap();
    let mut say = |number: u32| {
        let message = format!("\x0bMSH|^~\\&|LAB|W|||20260301||ORU^R01|{number}|P|2.3\r\x1c\r");
        device.write_all(message.as_bytes()).unwrap();
    };
    let received = || source(&gateway, "lab")["received"].as_u64().unwrap_or(0);
    // Its buffer is full, and it never says that it has room again.
    line.send(&[XOFF]);
    let begin = Instant::now();
    for number in 1..=20 {
        say(number);
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_for("all messages are read", Duration::from_secs(4), || {
        received() == 20
    });
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "reading waited for writing"
    );
    wait_for("it is said", LIMIT, || {
        say(21);
        trouble(&gateway, "lab").contains("takes no bytes")
    });
    assert_eq!(source(&gateway, "lab")["connected"], true);
    assert_eq!(source(&gateway, "lab")["reconnects"], 0);
    // Room again: what comes now is answered.
    line.send(&[XON]);
    say(99);
    let (answer, answered) = std::sync::mpsc::channel();
    let mut listener = std::fs::File::open(line.device()).unwrap();
    std::thread::spawn(move || {
        let (mut heard, mut piece) = (Vec::new(), [0; 256]);
        while let Ok(length) = listener.read(&mut piece) {
            heard.extend_from_slice(&piece[..length]);
            if String::from_utf8_lossy(&heard).contains("MSA|AA|99") {
                let _ = answer.send(());
                return;
            }
        }
    });
    answered.recv_timeout(LIMIT).expect("the answer");
    gateway.stop(&mut agent);
}
