//! The clocks of design section 7, through the whole agent in simulated time: real store, packs, normalizing and forwarding;
//! only the sockets are doubles.

use super::*;
use crate::demo::fhir_server::FhirServer;
use crate::forward::http::Http;
use crate::ingest::{SourceHandle, SourceLoop};
use crate::message::{Payload, PayloadKind, Stamp};
use crate::packs::Notice;
use crate::random;
use crate::telemetry::errors::ErrorRecord;
use crate::timekeeping::undated::{self, ClockCommand};
use crate::worker::Worker;
use crate::{config::DestinationConfig, telemetry::status::Status};
use iomt_mapping::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::io;

const SECOND: i64 = 10_000_000;
const HOUR: i64 = 3600 * SECOND;

/// 2026-03-01T00:00:00Z.
fn midnight() -> Timestamp {
    Timestamp::from_ticks(17_723_232_000_000_000).unwrap()
}

fn text(ticks: i64) -> String {
    midnight().plus_ticks(ticks).unwrap().to_seven_digits()
}

/// What happens, one after the other.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// So many seconds go by.
    Wait(u64),
    /// A message comes; `NOW` in it is the wall clock, `NOW+5` five seconds later.
    Message(String),
    /// As [`Event::Message`], from the memory of a device.
    Record(String),
    /// The wall clock is moved by so many ticks.
    Jump(i64),
    /// It is trusted, or not.
    Trust(bool),
    /// What the operator says about readings without a date.
    Clock(ClockCommand),
    /// The status is looked at.
    Look,
}

/// A heart rate without a time of its own.
fn undated_reading(value: u32) -> Event {
    Event::Message(format!(
        r#"{{"deviceId":"band","patientId":"anna","pulse":{value}}}"#
    ))
}

/// One with the time of its device, that many seconds ahead.
pub(super) fn dated_reading(value: u32, ahead: i64) -> Event {
    let time = if ahead == 0 {
        "NOW".to_owned()
    } else {
        format!("NOW{ahead:+}")
    };
    Event::Message(format!(
        r#"{{"deviceId":"band","patientId":"anna","heartRate":{value},"time":"{time}"}}"#
    ))
}

struct Scripted {
    server: FhirServer,
    script: RefCell<Option<VecDeque<Event>>>,
    seen: Rc<RefCell<Seen>>,
    agent: Rc<RefCell<Option<Rc<Agent>>>>,
    stop: watch::Sender<bool>,
}

/// What was seen during a run.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Result<serde_json::Value, String>>,
    pub(super) looks: Vec<Status>,
}

impl Surroundings for Scripted {
    fn store_worker(&self) -> io::Result<Worker> {
        Ok(Worker::inline())
    }

    fn pack_reader(&self) -> io::Result<(Worker, Notice)> {
        Ok((Worker::inline(), Notice::Poll))
    }

    fn http(&self, _: &DestinationConfig) -> io::Result<(Http, Http)> {
        let http = Http {
            worker: Worker::inline(),
            client: self.server.client(),
        };
        Ok((http.clone(), http))
    }

    fn start_source(
        &self,
        _: &SourceConfig,
        context: SourceContext,
    ) -> Result<(SourceHandle, SourceLoop), ErrorRecord> {
        let handle = SourceHandle {
            id: context.id,
            name: context.name.clone(),
            acknowledger: None,
            window: 0,
        };
        let script = self.script.take().unwrap_or_default();
        let (seen, agent, stop) = (Rc::clone(&self.seen), Rc::clone(&self.agent), self.stop.clone());
        Ok((handle, Box::pin(play(context, script, seen, agent, stop))))
    }
}

async fn play(
    context: SourceContext,
    script: VecDeque<Event>,
    seen: Rc<RefCell<Seen>>,
    agent: Rc<RefCell<Option<Rc<Agent>>>>,
    stop: watch::Sender<bool>,
) {
    for event in script {
        let agent = agent.borrow().clone().expect("the agent runs");
        match event {
            Event::Wait(seconds) => Timer::after_secs(seconds).await,
            Event::Message(text) => send(&context, &text, None).await,
            Event::Record(text) => send(&context, &text, Some(1)).await,
            Event::Jump(ticks) => clock::simulate_wall_jump(ticks),
            Event::Trust(trusted) => clock::simulate_trust(trusted),
            Event::Clock(command) => {
                let answer = undated::answer(&agent.pipeline, &command).await;
                seen.borrow_mut().answers.push(answer);
            }
            Event::Look => {
                let status = agent.status().await;
                seen.borrow_mut().looks.push(status);
            }
        }
    }
    stop.send_replace(true);
    std::future::pending::<()>().await;
}

async fn send(context: &SourceContext, text: &str, record: Option<u64>) {
    let mut text = text.to_owned();
    while let Some((before, rest)) = text.split_once("NOW") {
        let end = rest.find('"').unwrap_or(rest.len());
        let (ahead, rest) = rest.split_at(end);
        let ahead: i64 = ahead.parse().unwrap_or(0);
        let time = clock::wall().plus_ticks(ahead * SECOND).unwrap();
        text = format!("{before}{}{rest}", time.to_seven_digits());
    }
    let message = Message {
        source: context.id,
        stamp: Stamp {
            boot: context.boot,
            monotonic_us: clock::monotonic_us(),
            wall: clock::wall(),
            trusted: clock::is_trusted(context.trust),
        },
        payload: Payload(text.into()),
        kind: PayloadKind::Whole,
        topic: None,
        properties: Vec::new(),
        device_id: None,
        possible_repeat: false,
        record,
        ack: None,
    };
    context.sender.send(message).await.expect("the intake runs");
}

/// A gateway with its store, over several starts.
pub(super) struct Gateway {
    folder: tempfile::TempDir,
    pub(super) server: FhirServer,
    /// More lines of `agent.toml`.
    pub(super) more: String,
    pub(super) summary: Summary,
}

impl Gateway {
    pub(super) fn new(more: &str) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let pack = folder.path().join("mappings.d");
        std::fs::create_dir_all(&pack).unwrap();
        let template = |value: &str, time: &str| {
            format!(
                r#"{{"templateType":"CalculatedContent","template":{{"typeName":"{value}","typeMatchExpression":"$..[?(@{value})]",
                "deviceIdExpression":"$.matchedToken.deviceId","patientIdExpression":"$.matchedToken.patientId",
                "timestampExpression":{time},
                "values":[{{"required":true,"valueName":"hr","valueExpression":"$.matchedToken.{value}"}}]}}}}"#
            )
        };
        // One with its own time, one with that of the gateway.
        let device = format!(
            r#"{{"templateType":"CollectionContent","template":[{},{}]}}"#,
            template("heartRate", r#""$.matchedToken.time""#),
            template("pulse", r#""$.SystemProperties.iothub-enqueuedtime""#),
        );
        let observation = |name: &str| {
            format!(
                r#"{{"templateType":"CodeValueFhir","template":{{"typeName":"{name}","periodInterval":0,
                "codes":[{{"code":"8867-4","system":"http://loinc.org","display":"Heart rate"}}],
                "value":{{"valueType":"Quantity","valueName":"hr","unit":"/min","system":"http://unitsofmeasure.org","code":"/min"}}}}}}"#
            )
        };
        let fhir = format!(
            r#"{{"templateType":"CollectionFhir","template":[{},{}]}}"#,
            observation("heartRate"),
            observation("pulse")
        );
        std::fs::write(pack.join("band.device.json"), device).unwrap();
        std::fs::write(pack.join("band.fhir.json"), fhir).unwrap();
        Gateway {
            folder,
            server: FhirServer::in_process(),
            more: more.to_owned(),
            summary: Summary::default(),
        }
    }

    /// Runs from a start until the script is over, at this distance (ticks) of midnight by the wall clock.
    pub(super) fn run(&mut self, wall: i64, script: Vec<Event>) -> Seen {
        let configuration = format!(
            "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
             [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n\
             [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://fhir.example/fhir\"\nresolution = \"create\"\n{1}",
            self.folder.path().display(),
            self.more
        );
        let config: Config = toml::from_str(&configuration).unwrap();
        let start = midnight().plus_ticks(wall).unwrap();
        let server = self.server.clone();
        let seen: Rc<RefCell<Seen>> = Rc::default();
        let seen_too = Rc::clone(&seen);
        let (summary, _) = clock::simulate(start, async move {
            random::seed(7);
            let (stop, stopped) = watch::channel(false);
            let agent: Rc<RefCell<Option<Rc<Agent>>>> = Rc::default();
            let running = Rc::clone(&agent);
            let surroundings = Scripted {
                server,
                script: RefCell::new(Some(script.into())),
                seen: seen_too,
                agent,
                stop,
            };
            run(config, &surroundings, Stopping::default(), stopped, |agent| {
                let problems = agent.pack_problems.borrow();
                assert!(problems.is_empty(), "{problems:?}");
                drop(problems);
                *running.borrow_mut() = Some(agent);
            })
            .await
            .unwrap()
        })
        .unwrap();
        self.summary = summary;
        Rc::into_inner(seen).unwrap().into_inner()
    }

    /// What the server holds: value -> seconds after midnight of its effective time.
    pub(super) fn held(&self) -> BTreeMap<String, String> {
        let mut held = BTreeMap::new();
        for observation in self.server.observations() {
            // Records of clocks have no period.
            let Some(time) = observation["effectivePeriod"]["start"].as_str() else {
                continue;
            };
            let value = &observation["valueQuantity"];
            let before = held.insert(value["value"].to_string(), time.to_owned());
            assert_eq!(before, None, "two Observations of one reading");
        }
        held
    }
}

fn held(pairs: &[(u32, i64)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(value, ticks)| (value.to_string(), text(*ticks)))
        .collect()
}

/// The wall clock of a gateway without a battery: 56 years behind.
const UNSET: i64 = -56 * 365 * 24 * HOUR;

#[test]
fn readings_before_the_clock_is_set_are_held_and_dated_by_the_time_that_passed() {
    use Event::{Jump, Look, Message, Trust, Wait};
    let mut gateway = Gateway::new("");
    let seen = gateway.run(
        UNSET,
        vec![
            Trust(false),
            undated_reading(61),
            // A time of its own goes on at once.
            Message(format!(
                r#"{{"deviceId":"band","patientId":"anna","heartRate":62,"time":"{}"}}"#,
                text(5 * SECOND)
            )),
            Wait(100),
            undated_reading(64),
            Wait(20),
            Look,
            Jump(-UNSET),
            Trust(true),
            Wait(30),
            undated_reading(65),
            Wait(30),
            Look,
        ],
    );
    let (before, after) = (&seen.looks[0], &seen.looks[1]);
    assert_eq!((before.summary.delivered, before.summary.waiting), (1, 2));
    assert!(before.destinations[0].waits[0].0.name == "ClockNotSynchronized");
    assert_eq!(after.problems, [""; 0]);
    assert_eq!(
        gateway.held(),
        held(&[(61, 0), (62, 5 * SECOND), (64, 100 * SECOND), (65, 150 * SECOND)])
    );
}

#[test]
fn what_was_dated_once_keeps_its_time_after_a_restart_of_the_process() {
    use Event::{Jump, Trust, Wait};
    let mut gateway = Gateway::new("");
    gateway.run(
        UNSET,
        vec![
            Trust(false),
            undated_reading(61),
            Wait(50),
            Jump(-UNSET),
            Trust(true),
            Wait(60),
        ],
    );
    assert_eq!(gateway.held(), held(&[(61, 0)]));
    let dating = |gateway: &Gateway| {
        let store = gateway.folder.path().join("store");
        crate::store::Store::open(&store).unwrap().1.dating
    };
    let first = dating(&gateway);
    assert!(first[0].reference.is_some());
    // The same boot, and a clock that is corrected a little: the reference stays.
    gateway.run(200 * SECOND, vec![Wait(5), Jump(3 * SECOND), Wait(60)]);
    assert_eq!(dating(&gateway), first);
    assert_eq!(gateway.held(), held(&[(61, 0)]));
}

#[test]
fn after_a_start_without_a_reference_readings_wait_until_the_operator_dates_them_or_gives_them_up() {
    use Event::{Clock, Look, Trust, Wait};
    let mut gateway = Gateway::new("");
    gateway.run(0, vec![undated_reading(60), Wait(30)]);
    // Two starts whose clock was never set.
    for values in [[61, 62], [71, 72]] {
        clock::simulate_reboot();
        let [first, second] = values.map(undated_reading);
        gateway.run(
            UNSET,
            vec![Trust(false), Wait(10), first, Wait(45), second, Wait(30)],
        );
    }
    clock::simulate_reboot();
    let date = |start, ticks: i64| {
        Clock(ClockCommand::Date {
            start,
            first: midnight().plus_ticks(ticks).unwrap().ticks(),
        })
    };
    let seen = gateway.run(
        24 * HOUR,
        vec![
            Wait(60),
            undated_reading(80),
            Wait(60),
            Look,
            Clock(ClockCommand::List),
            date(2, -SECOND),
            date(2, 24 * HOUR + 30 * SECOND),
            date(9, HOUR),
            date(2, HOUR),
            Clock(ClockCommand::GiveUp { start: 3 }),
            Wait(700),
            Clock(ClockCommand::List),
            Look,
        ],
    );
    let before = &seen.looks[0];
    assert_eq!((before.summary.delivered, before.summary.waiting), (2, 4));
    assert_eq!(before.destinations[0].waits[0].0.name, "ClockNeverSet");
    let list = &seen.answers[0].as_ref().unwrap()["starts"];
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert_eq!((&list[0]["start"], &list[0]["messages"]), (&2.into(), &2.into()));
    assert_eq!(list[0]["not_before"], midnight().to_string());
    assert_eq!(
        list[1]["not_after"],
        midnight()
            .plus_ticks(24 * HOUR + 60 * SECOND)
            .unwrap()
            .to_string()
    );
    assert!(
        seen.answers[1]
            .as_ref()
            .unwrap_err()
            .contains("the message before them")
    );
    assert!(seen.answers[2].as_ref().unwrap_err().contains("would have come"));
    assert!(
        seen.answers[3]
            .as_ref()
            .unwrap_err()
            .contains("no reading of start 9")
    );
    assert_eq!(seen.answers[4].as_ref().unwrap()["messages"], 2);
    assert_eq!(seen.answers[5].as_ref().unwrap()["messages"], 2);
    assert_eq!(seen.answers[6].as_ref().unwrap()["starts"], serde_json::json!([]));
    let after = &seen.looks[1];
    let s = after.summary;
    assert_eq!((s.delivered, s.waiting, s.lost, s.dead), (4, 0, 2, 0), "{s:?}");
    assert!(
        after.ledger[0].contains("given up by the operator"),
        "{:?}",
        after.ledger
    );
    assert_eq!(
        gateway.held(),
        held(&[
            (60, 0),
            (61, HOUR),
            (62, HOUR + 45 * SECOND),
            (80, 24 * HOUR + 60 * SECOND)
        ])
    );
}

#[test]
fn jumps_of_a_trusted_clock_are_shown_and_change_no_reading_that_came() {
    use Event::{Jump, Look, Wait};
    for jump in [HOUR, -HOUR, 40 * 24 * HOUR, -40 * 24 * HOUR] {
        let mut gateway = Gateway::new("");
        let seen = gateway.run(
            0,
            vec![
                Wait(10),
                undated_reading(61),
                Jump(jump),
                Wait(10),
                undated_reading(62),
                Wait(60),
                Look,
                Wait(3700),
                Look,
            ],
        );
        assert_eq!(
            gateway.held(),
            held(&[(61, 10 * SECOND), (62, 20 * SECOND + jump)]),
            "{jump}"
        );
        assert_eq!((seen.looks[0].clock_jumps, seen.looks[1].clock_jumps), (1, 1));
        assert!(
            seen.looks[0].problems[0].contains("was moved"),
            "{:?}",
            seen.looks[0].problems
        );
        assert_eq!(seen.looks[1].problems, [""; 0]);
    }
}

#[test]
fn a_clock_that_is_not_trusted_any_more_is_replaced_by_the_time_that_passed() {
    use Event::{Jump, Trust, Wait};
    let mut gateway = Gateway::new("");
    gateway.run(
        0,
        vec![
            Wait(10),
            undated_reading(61),
            Trust(false),
            Jump(UNSET),
            Wait(10),
            undated_reading(62),
            Wait(60),
        ],
    );
    assert_eq!(gateway.held(), held(&[(61, 10 * SECOND), (62, 20 * SECOND)]));
}

/// Times with a device clock that is so many seconds ahead, as the server has them.
fn corrected(gateway: &Gateway, pairs: &[(u32, i64)]) {
    let pairs: Vec<(u32, i64)> = pairs
        .iter()
        .map(|(value, second)| (*value, second * SECOND))
        .collect();
    assert_eq!(gateway.held(), held(&pairs));
}

#[test]
fn a_constant_correction_is_part_of_the_revision_that_a_message_names() {
    use Event::Wait;
    let rule = "[[clock.device]]\ndevice = \"ba*\"\nahead = \"5 min\"\n";
    let mut gateway = Gateway::new(rule);
    gateway.run(0, vec![Wait(10), dated_reading(61, 300), Wait(60)]);
    corrected(&gateway, &[(61, 10)]);
    // Sent again with another configuration (the confirmation was lost): the same Observation.
    gateway.more = "[[clock.device]]\ndevice = \"band\"\nahead = \"10 min\"\n".to_owned();
    let store = gateway.folder.path().join("store/store.db");
    let connection = rusqlite::Connection::open(&store).unwrap();
    connection.execute("DELETE FROM progress", []).unwrap();
    drop(connection);
    gateway.run(200 * SECOND, vec![Wait(10), dated_reading(62, 600), Wait(60)]);
    corrected(&gateway, &[(61, 10), (62, 210)]);
}

#[test]
fn a_measured_correction_dates_what_waited_for_it_and_survives_restarts() {
    use Event::{Look, Message, Wait};
    let rule = "[[clock.device]]\ndevice = \"band\"\nmeasured = true\nsamples = 3\n";
    let mut gateway = Gateway::new(rule);
    let live = |value, ahead| [dated_reading(value, ahead), Wait(30)];
    let seen = gateway.run(
        0,
        [
            live(61, 3600).as_slice(),
            &[Look],
            &live(62, 3600),
            &live(63, 3600),
            &live(64, 3600),
            // A reading of its memory, half an hour old.
            &[Event::Record(
                r#"{"deviceId":"band","patientId":"anna","heartRate":65,"time":"NOW+1800"}"#.to_owned(),
            )],
            &[Wait(60), Look],
        ]
        .concat(),
    );
    assert_eq!(
        seen.looks[0].destinations[0].waits[0].0.name,
        "DeviceClockNotMeasured"
    );
    let clock = &seen.looks[1].device_clocks[0];
    assert_eq!(
        (clock.device.as_str(), clock.corrected_seconds),
        ("band", Some(-3600.0))
    );
    assert_eq!(seen.looks[1].problems, [""; 0]);
    corrected(
        &gateway,
        &[(61, 0), (62, 30), (63, 60), (64, 90), (65, 120 - 1800)],
    );
    // Everything is normalized and sent again after a restart, and the clock is set right meanwhile.
    let store = gateway.folder.path().join("store/store.db");
    let connection = rusqlite::Connection::open(&store).unwrap();
    connection.execute("DELETE FROM progress", []).unwrap();
    drop(connection);
    let late =
        Message(r#"{"deviceId":"band","patientId":"anna","heartRate":70,"time":"NOW-7199"}"#.to_owned());
    let seen = gateway.run(
        1000 * SECOND,
        [
            live(71, 1).as_slice(),
            &[Look],
            &live(72, 1),
            &live(73, 1),
            &live(74, 1),
            // It was offline: what it kept comes late, and waits until it is clear that it is late.
            &[late, Wait(10), Look],
            &live(75, 1),
            &live(76, 1),
            &[Wait(60), Look],
        ]
        .concat(),
    );
    let waits = |look: &Status| {
        look.destinations[0]
            .waits
            .iter()
            .map(|(e, _)| e.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(waits(&seen.looks[0]), ["DeviceClockUncertain"]);
    assert!(
        seen.looks[0]
            .problems
            .iter()
            .any(|p| p.contains("contradict each other"))
    );
    assert_eq!(waits(&seen.looks[1]), ["DeviceClockUncertain"]);
    // Taken before the clock was set: nobody can date it.
    assert_eq!(
        waits(&seen.looks[2]),
        [""; 0],
        "{:?} {:?}",
        seen.looks[2].device_clocks,
        seen.looks[2].destinations
    );
    assert_eq!(gateway.summary.dead, 1, "{:?}", seen.looks[2].dead_letters);
    corrected(
        &gateway,
        &[
            (61, 0),
            (62, 30),
            (63, 60),
            (64, 90),
            (65, 120 - 1800),
            (71, 1000),
            (72, 1030),
            (73, 1060),
            (74, 1090),
            (75, 1130),
            (76, 1160),
        ],
    );
}

#[test]
fn a_device_far_off_is_a_problem_in_the_status_although_nothing_is_configured() {
    use Event::{Look, Wait};
    let mut gateway = Gateway::new("");
    let mut script: Vec<Event> = (0..6)
        .flat_map(|n| [dated_reading(61 + n, -900), Wait(60)])
        .collect();
    script.push(Look);
    let seen = gateway.run(0, script);
    let problem = &seen.looks[0].problems[0];
    assert!(
        problem.contains("device band") && problem.contains("900 s behind"),
        "{problem}"
    );
    // They go as the device dated them.
    assert_eq!(gateway.held()["61"], text(-900 * SECOND));
    let page = crate::telemetry::metrics::render(&seen.looks[0]);
    assert!(page.contains("bedside_device_clock_behind_seconds{device=\"band\"} 900\n"));
}

/// A coincident timestamp that an Observation refers to, and the Observation.
fn with_record<'o>(
    all: &'o [serde_json::Value],
    value: &str,
) -> (&'o serde_json::Value, &'o serde_json::Value) {
    let wanted: serde_json::Value = serde_json::from_str(value).unwrap();
    let reading = all
        .iter()
        .find(|one| one["valueQuantity"]["value"] == wanted)
        .unwrap();
    let url = |end: &str| {
        let extensions = reading["extension"].as_array().unwrap();
        let found = extensions
            .iter()
            .find(|one| one["url"].as_str().unwrap().ends_with(end))
            .unwrap();
        found["valueReference"]["reference"].as_str().unwrap().to_owned()
    };
    let record = url("CoincidentTimeStampReference");
    let record = all
        .iter()
        .find(|one| format!("Observation/{}", one["id"].as_str().unwrap()) == record)
        .unwrap();
    assert_eq!(record["device"]["reference"], url("observation-gatewayDevice"));
    (reading, record)
}

#[test]
fn a_corrected_reading_refers_to_what_the_clock_of_its_device_showed() {
    use Event::Wait;
    let option = "coincident_timestamp = true\n";
    let mut gateway = Gateway::new(&format!(
        "{option}[[clock.device]]\ndevice = \"band\"\nahead = \"5 min\"\n"
    ));
    gateway.run(
        3600 * SECOND,
        vec![dated_reading(61, 300), Wait(10), dated_reading(62, 300), Wait(60)],
    );
    let all = gateway.server.observations();
    assert_eq!(all.len(), 3, "one record for the day");
    let (reading, record) = with_record(&all, "61");
    assert_eq!(reading["effectivePeriod"]["start"], text(3600 * SECOND));
    // By what the device wrote: an hour and five minutes after midnight.
    let identifier = &reading["identifier"][1];
    let seconds = (midnight().ticks() / SECOND) - 946_684_800 + 3900;
    assert_eq!(
        identifier["system"],
        "http://hl7.org/fhir/uv/phd/StructureDefinition/PhdBaseObservation"
    );
    assert!(
        identifier["value"]
            .as_str()
            .unwrap()
            .ends_with(&format!("-heartRate-{seconds}")),
        "{identifier}"
    );
    assert_eq!(record["code"]["coding"][0]["code"], "67975");
    assert_eq!(record["effectiveDateTime"], "2026-03-01T00:00:00Z");
    assert_eq!(record["valueDateTime"], "2026-03-01T00:05:00Z");
    assert_eq!(record["subject"], reading["device"]);
    // A restart sends everything again: nothing new, nothing written over.
    let store = gateway.folder.path().join("store/store.db");
    let connection = rusqlite::Connection::open(&store).unwrap();
    connection.execute("DELETE FROM progress", []).unwrap();
    drop(connection);
    gateway.run(7200 * SECOND, vec![Wait(60)]);
    let versions = |all: &[serde_json::Value]| {
        let each = all
            .iter()
            .map(|one| (one["id"].to_string(), one["meta"]["versionId"].to_string()));
        each.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(versions(&gateway.server.observations()), versions(&all));
}

#[test]
fn a_counter_is_recorded_in_microseconds_at_the_time_at_which_it_was_measured() {
    use Event::{Message, Wait};
    let rule = "coincident_timestamp = true\n[[clock.device]]\ndevice = \"band\"\nmeasured = true\nticks = true\nsamples = 2\n";
    let mut gateway = Gateway::new(rule);
    // Switched on 100 s before midnight; a reading each minute.
    let ticks = |value: u32, second: i64| {
        let shown = Timestamp::from_ticks((second + 100) * SECOND)
            .unwrap()
            .to_seven_digits();
        Message(format!(
            r#"{{"deviceId":"band","patientId":"anna","heartRate":{value},"time":"{shown}"}}"#
        ))
    };
    gateway.run(0, vec![ticks(61, 0), Wait(60), ticks(62, 60), Wait(60)]);
    corrected(&gateway, &[(61, 0), (62, 60)]);
    let all = gateway.server.observations();
    assert_eq!(all.len(), 3, "one record for what was measured once");
    let (reading, record) = with_record(&all, "61");
    assert!(
        reading["identifier"][1]["value"]
            .as_str()
            .unwrap()
            .ends_with("-heartRate-100.000")
    );
    assert_eq!(record["code"]["coding"][0]["code"], "67983");
    assert_eq!(record["effectiveDateTime"], "2026-03-01T00:01:00Z");
    assert_eq!(record["valueQuantity"]["value"].to_string(), "160000000");
    assert_eq!(record["valueQuantity"]["unit"], "us");
}

#[test]
fn what_no_message_ever_explains_is_a_dead_letter_after_max_wait() {
    use Event::{Look, Wait};
    let rule = "max_wait = \"2 h\"\n[[clock.device]]\ndevice = \"band\"\nmeasured = true\n";
    let mut gateway = Gateway::new(rule);
    let seen = gateway.run(
        0,
        vec![dated_reading(61, 300), Wait(3600), Look, Wait(4800), Look],
    );
    assert_eq!(seen.looks[0].summary.waiting, 1);
    let s = seen.looks[1].summary;
    assert_eq!((s.waiting, s.dead), (0, 1), "{s:?}");
    assert_eq!(seen.looks[1].dead_letters[0].error.name, "DeviceClockNotMeasured");
}
