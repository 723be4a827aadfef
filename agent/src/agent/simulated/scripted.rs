//! A gateway whose life is a script of messages, jumps of its clock and looks at its status.

use super::*;
use crate::random;
use crate::telemetry::status::Status;
use crate::timekeeping::undated::{self, ClockCommand};
use std::collections::{BTreeMap, VecDeque};

/// In ticks of 100 ns.
pub(super) const SECOND: i64 = 10_000_000;
/// In ticks of 100 ns.
pub(super) const HOUR: i64 = 3600 * SECOND;

/// The time so many ticks after midnight, as the server has it.
pub(super) fn text(ticks: i64) -> String {
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
pub(super) fn undated_reading(value: u32) -> Event {
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

/// What was seen during a run.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Result<serde_json::Value, String>>,
    pub(super) looks: Vec<Status>,
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
    let mut message = context.message(text);
    message.record = record;
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
        let destination = format!("{EHR}{CREATE}{}", self.more);
        let config = configuration(self.folder.path(), "", &destination);
        let start = midnight().plus_ticks(wall).unwrap();
        let server = self.server.clone();
        let seen: Rc<RefCell<Seen>> = Rc::default();
        let seen_too = Rc::clone(&seen);
        let (summary, _) = clock::simulate(start, async move {
            random::seed(7);
            let (stop, stopped) = watch::channel(false);
            let agent: Rc<RefCell<Option<Rc<Agent>>>> = Rc::default();
            let running = Rc::clone(&agent);
            let script = RefCell::new(VecDeque::from(script));
            let surroundings = surroundings(&server, move |context| {
                play(
                    context,
                    script.take(),
                    Rc::clone(&seen_too),
                    Rc::clone(&agent),
                    stop.clone(),
                )
            });
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

    /// Where its store is while it does not run.
    pub(super) fn store_folder(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// No confirmation was kept: the next run normalizes and sends everything again.
    pub(super) fn forget_progress(&self) {
        let connection = rusqlite::Connection::open(self.store_folder().join("store.db")).unwrap();
        connection.execute("DELETE FROM progress", []).unwrap();
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

/// What [`Gateway::held`] gives for these values and ticks after midnight.
pub(super) fn held(pairs: &[(u32, i64)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(value, ticks)| (value.to_string(), text(*ticks)))
        .collect()
}
