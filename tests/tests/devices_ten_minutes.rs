//! Eight simulated devices on eight lines at line rate for ten minutes, through drivers, store and mapping packs to the FHIR
//! server; cables are pulled, and the process is killed and started again in between. Only lines and sockets are doubles, and
//! time is virtual.
//!
//! Two comparisons, value by value: the journal with the patient whom the devices show, and the FHIR server with the journal.
//! The bytes of a pulled cable and what was not committed at the kill never became messages; nothing else may be missing.

use bedside_agent::agent::{Simulated, Stopping, run};
use bedside_agent::config::{Config, SourceConfig, SourceKind};
use bedside_agent::demo::fhir_server::FhirServer;
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::SourceContext;
use bedside_agent::ingest::serial::drivers::PortSettings;
use bedside_agent::ingest::serial::port_name::PortName;
use bedside_agent::ingest::serial::{self, Line, Ports, SimulatedLine, Waiting};
use bedside_agent::simulate::physiology::Physiology;
use bedside_agent::telemetry::errors::ErrorRecord;
use bedside_agent::telemetry::status::Summary;
use bedside_agent::{clock, random};
use bedside_tests::cables::{Cable, Heard, compare, expected, held, instant, journal, pack_of, packs};
use embassy_time::{Duration, Instant, Timer};
use iomt_mapping::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::task::spawn_local;

/// The devices, each named like its driver, and the seconds between two of its readings: none for meters with a memory.
const DEVICES: [(&str, Option<u64>); 8] = [
    ("nonin", Some(1)),
    ("contec-cms50-v7", Some(1)),
    ("masimo-ascii", Some(1)),
    ("drager-medibus", Some(1)),
    ("datex-dri", Some(10)),
    ("berry-bci", Some(1)),
    ("onetouch-ultra2", None),
    ("and-pbt", None),
];
/// All devices are on this patient.
const PATIENT: u64 = 7;
/// 2026-03-01T07:00:00Z.
const BEGIN_TICKS: i64 = 17_723_484_000_000_000;
const END: u64 = 600;
const KILLED: u64 = 240;
/// Cables that are pulled: device, from second, to second.
const PULLED: [(&str, u64, u64); 5] = [
    ("onetouch-ultra2", 30, 200),
    ("nonin", 60, 75),
    ("masimo-ascii", 100, 103),
    ("drager-medibus", 150, 170),
    // It measures at second 302 and must wait until somebody listens.
    ("and-pbt", 295, 330),
];
/// A streaming device shows a value so soon after it was plugged in.
const FIRST_VALUE: f64 = 3.0;

/// Microseconds since the beginning.
fn passed(wall: Timestamp) -> u64 {
    u64::try_from((wall.ticks() - BEGIN_TICKS) / 10).unwrap()
}

fn cable(name: &'static str) -> Rc<Cable<DuplexStream>> {
    let cable = Cable::new(name, PATIENT, Timestamp::from_ticks(BEGIN_TICKS).unwrap());
    cable.plugged.set(true);
    Rc::new(cable)
}

#[derive(Clone)]
struct Cables(Rc<Vec<Rc<Cable<DuplexStream>>>>);

impl Ports for Cables {
    fn open(&self, port: &PortName, _: PortSettings) -> Result<(Box<dyn Line>, PathBuf), ErrorRecord> {
        let path = port.watched().to_owned();
        let cable = self.0.iter().find(|cable| path.ends_with(cable.name)).unwrap();
        if !cable.plugged.get() {
            return Err(ErrorRecord::new("SerialPortException", "not plugged in"));
        }
        // A kernel keeps 4 KiB.
        let (gateway, device) = tokio::io::duplex(4096);
        cable.connect(Some(device));
        Ok((Box::new(SimulatedLine::from(gateway)), path))
    }

    fn changed<'a>(&'a self, _: &'a Path) -> Waiting<'a> {
        // As long as without a word of the kernel.
        Box::pin(Timer::after_secs(1))
    }
}

fn surroundings(server: FhirServer, cables: Cables) -> Simulated {
    let source = move |config: &SourceConfig, context: SourceContext| match &config.kind {
        SourceKind::Serial(serial) => serial::start_on(serial, context, Rc::new(cables.clone())),
        SourceKind::Mqtt(_) => unreachable!("all sources are serial"),
    };
    Simulated::new(source).with_http(move |_| Http::inline(server.client()))
}

fn configuration(folder: &Path) -> Config {
    let mut text = format!(
        "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
         [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://fhir.example/fhir\"\nresolution = \"lookup\"\n",
        folder.display()
    );
    for (name, _) in DEVICES {
        let pack = pack_of(name);
        let to = folder.join("mappings.d").join(pack);
        std::fs::create_dir_all(&to).unwrap();
        for file in ["devicecontent.json", "fhirmapping.json", "agent.json"] {
            let from = packs().join(pack).join(file);
            if from.exists() {
                std::fs::copy(from, to.join(file)).unwrap();
            }
        }
        text += &format!(
            "[[source]]\nname = \"{name}\"\nkind = \"serial\"\nport = \"/dev/bed/{name}\"\ndriver = \"{name}\"\n\
             device_id = \"dev-{name}\"\npacks = [\"{pack}\"]\n"
        );
    }
    toml::from_str(&text).unwrap()
}

fn server() -> FhirServer {
    let server = FhirServer::in_process();
    server
        .put(json!({"resourceType": "Patient", "id": "p-1"}))
        .unwrap();
    for (name, _) in DEVICES {
        let id = format!("dev-{name}");
        let device = json!({"resourceType": "Device", "id": id, "identifier": [{"value": id}],
            "patient": {"reference": "Patient/p-1"}});
        server.put(device).unwrap();
    }
    server
}

/// Runs the process from second `from` to second `to`; then it stops in order, or is killed.
fn life(
    folder: &Path,
    server: &FhirServer,
    cables: &Cables,
    from: u64,
    to: u64,
    killed: bool,
) -> Option<Summary> {
    let config = configuration(folder);
    let surroundings = surroundings(server.clone(), cables.clone());
    let begin = Timestamp::from_ticks(BEGIN_TICKS + i64::try_from(from).unwrap() * 10_000_000).unwrap();
    let cables = cables.clone();
    clock::simulate(begin, async move {
        random::seed(from);
        for cable in cables.0.iter() {
            cable.connect(None);
            let cable = Rc::clone(cable);
            spawn_local(async move { cable.play().await });
        }
        let (stop, stopped) = watch::channel(false);
        let stopping = Stopping {
            drain: Duration::from_secs(600),
        };
        let agent = spawn_local(async move { run(config, &surroundings, stopping, stopped, |_| {}).await });
        let mut moments: Vec<(u64, &str, bool)> = PULLED
            .iter()
            .flat_map(|(name, out, back)| [(*out, *name, false), (*back, *name, true)])
            .filter(|(at, ..)| (from..to).contains(at))
            .collect();
        moments.sort_unstable();
        let start = Instant::now();
        for (at, name, plugged) in moments {
            Timer::at(start + Duration::from_secs(at - from)).await;
            let cable = cables.0.iter().find(|cable| cable.name == name).unwrap();
            if plugged {
                cable.plugged.set(true);
            } else {
                cable.pull();
            }
        }
        Timer::at(start + Duration::from_secs(to - from)).await;
        if killed {
            return None;
        }
        stop.send_replace(true);
        Some(agent.await.unwrap().unwrap())
    })
    .unwrap()
    .0
}

/// Seconds in which a device could be heard: from, to, and how much is not there at the end.
fn audible(name: &str) -> Vec<(f64, f64, f64)> {
    let mut spans = Vec::new();
    let mut from = 0;
    let mut breaks: Vec<(u64, u64, f64)> = PULLED
        .iter()
        .filter(|(pulled, ..)| *pulled == name)
        .map(|(_, out, back)| (*out, *back, 0.1))
        .collect();
    // What was not committed.
    breaks.push((KILLED, KILLED, 1.1));
    breaks.push((END, END, 0.1));
    breaks.sort_by_key(|(out, ..)| *out);
    for (out, back, missing) in breaks {
        spans.push((from as f64, out as f64, missing));
        from = back;
    }
    spans
}

#[test]
fn eight_devices_for_ten_minutes_lose_nothing_through_pulled_cables_and_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let server = server();
    let cables = Cables(Rc::new(DEVICES.iter().map(|(name, _)| cable(name)).collect()));
    assert!(life(folder.path(), &server, &cables, 0, KILLED, true).is_none());
    let summary = life(folder.path(), &server, &cables, KILLED, END, false).unwrap();

    let journal = journal(&folder.path().join("store"));
    let (expected, matches) = expected(&journal);
    assert_eq!(summary.messages, journal.len() as u64, "{summary:?}");
    assert_eq!(
        (summary.matches, summary.delivered),
        (matches, matches),
        "{summary:?}"
    );
    assert!(expected.len() > 2000, "{}", expected.len());
    compare(&expected, &held(&server.observations()));
    every_value_is_of_the_patient(&journal);
    streaming_devices_have_no_gaps(&journal);
    records_of_meters_are_there_once(&journal);
    waveforms_reach_the_stop(&journal);
}

/// When a message was received, in seconds since the beginning.
fn at(heard: &Heard) -> f64 {
    passed(heard.wall) as f64 / 1e6
}

fn every_value_is_of_the_patient(journal: &[Heard]) {
    let patient = Physiology::new(PATIENT);
    for heard in journal.iter().filter(|heard| heard.body["kind"] == "vitals") {
        // A frame takes up to a third of a second to gather, and its time on the line.
        let now = (at(heard) * 1000.0) as u64;
        let times = (0..=1200)
            .step_by(10)
            .map(|ago| patient.at(now.saturating_sub(ago)));
        let (mut rates, mut saturations) = (BTreeSet::new(), BTreeSet::new());
        for vitals in times {
            rates.extend([vitals.heart_rate, vitals.pulse_rate]);
            saturations.insert(vitals.spo2);
        }
        for (name, may_be) in [
            ("pulse_rate_oximeter", &rates),
            ("heart_rate_ecg", &rates),
            ("spo2", &saturations),
        ] {
            let Some(value) = heard.body[name].as_f64() else {
                continue;
            };
            assert!(
                may_be.contains(&(value.round() as u32)),
                "{}: {}",
                heard.name,
                heard.body
            );
        }
    }
}

fn streaming_devices_have_no_gaps(journal: &[Heard]) {
    for (name, every) in DEVICES
        .iter()
        .filter_map(|(name, every)| Some((*name, (*every)?)))
    {
        let times: Vec<f64> = journal
            .iter()
            .filter(|heard| heard.name == name && heard.body["kind"] == "vitals")
            .map(at)
            .collect();
        let longest = every as f64 + 1.1;
        for (from, to, missing) in audible(name) {
            let mut last = None;
            for at in times.iter().filter(|at| (from..to).contains(*at)) {
                match last {
                    None => assert!(
                        at - from <= FIRST_VALUE,
                        "{name}: first value {} s after {from}",
                        at - from
                    ),
                    Some(before) => assert!(at - before <= longest, "{name}: nothing from {before} to {at}"),
                }
                last = Some(*at);
            }
            let last = last.unwrap_or_else(|| panic!("{name}: nothing from {from} to {to}"));
            assert!(
                to - last <= longest + missing,
                "{name}: nothing from {last} to {to}"
            );
        }
    }
}

fn records_of_meters_are_there_once(journal: &[Heard]) {
    let patient = Physiology::new(PATIENT);
    let of = |name: &str| -> Vec<&Heard> {
        let records = journal
            .iter()
            .filter(|heard| heard.name == name && heard.body["kind"] == "record");
        records.collect()
    };
    let glucose = of("onetouch-ultra2");
    let times: BTreeSet<&str> = glucose
        .iter()
        .map(|heard| heard.body["time"].as_str().unwrap())
        .collect();
    assert_eq!(
        (glucose.len(), times.len()),
        (12, 12),
        "the memory was looked at again after cable and kill"
    );
    for (index, heard) in (0..).zip(glucose) {
        let base = [70, 100, 85][index as usize % 3];
        let value = base + patient.at(index * 14_400_000).heart_rate / 2;
        assert_eq!(heard.body["glucose_capillary_plasma"], value, "{}", heard.body);
    }
    let pressures = of("and-pbt");
    assert_eq!(pressures.len(), 2, "at 2 s, and at 302 s while the cable was out");
    for (heard, second) in pressures.iter().zip([2, 302]) {
        let vitals = patient.at(second * 1000);
        assert_eq!(heard.body["nibp_systolic"], vitals.systolic, "{}", heard.body);
        assert_eq!(heard.body["nibp_diastolic"], vitals.diastolic, "{}", heard.body);
        assert_eq!(heard.body["nibp_mean"], vitals.mean_arterial, "{}", heard.body);
    }
    assert!(at(pressures[1]) > 330.0);
}

fn waveforms_reach_the_stop(journal: &[Heard]) {
    for (device, wave) in [("nonin", "pleth_waveform"), ("berry-bci", "pleth_waveform")] {
        let last = journal
            .iter()
            .rev()
            .find(|heard| heard.name == device && heard.body["waveform"] == wave)
            .unwrap();
        let sample = last.body[wave].as_array().unwrap().last().unwrap()["at"]
            .as_str()
            .unwrap();
        let at = passed(instant(sample)) as f64 / 1e6;
        assert!(
            END as f64 - at < 1.0,
            "{device}: the last sample is of second {at}"
        );
    }
}
