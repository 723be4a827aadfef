//! Plays a schedule: the whole agent on simulated time, with a FHIR server in the process.

use crate::schedule::{
    DAY, DEVICES, Event, HOUR, PATIENTS, Reading, Resolution, Restart, Schedule, device, start, text,
};
use anyhow::bail;
use bedside_agent::agent::{self, Agent, Simulated, Stopping, associate_in_store};
use bedside_agent::associations::Command;
use bedside_agent::config::Config;
use bedside_agent::demo::fhir_server::{Fault, FhirServer};
use bedside_agent::forward::http::Http;
use bedside_agent::ingest::{Acknowledger, SourceContext, SourceHandle, SourceLoop};
use bedside_agent::message::{AckToken, Message};
use bedside_agent::store::Store;
use bedside_agent::telemetry::status::Summary;
use bedside_agent::{clock, random};
use embassy_time::Timer;
use iomt_mapping::Timestamp;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;
use tokio::task::LocalSet;

/// What is there when everything has settled.
pub struct Outcome {
    pub observations: Vec<Value>,
    pub summary: Summary,
    /// Lines of the ledger about what a correction could not move.
    pub by_hand: usize,
}

/// What the wearables have: a reading stays with its sender until it is acknowledged.
#[derive(Default)]
struct Wearables {
    unsent: VecDeque<Reading>,
    /// Sent to the agent that lives now, in order, without an acknowledgement yet.
    sent: VecDeque<Reading>,
    /// How many acknowledgements came for them.
    acknowledged: Arc<AtomicUsize>,
}

impl Wearables {
    /// The agent is gone: what it has not acknowledged is sent again to the next one.
    fn reconnect(&mut self) {
        let acknowledged = self.acknowledged.swap(0, Ordering::Relaxed);
        self.sent.drain(..acknowledged.min(self.sent.len()));
        while let Some(reading) = self.sent.pop_back() {
            self.unsent.push_front(reading);
        }
    }
}

struct Acknowledged(Arc<AtomicUsize>);

impl Acknowledger for Acknowledged {
    fn committed(&self, tokens: &[AckToken]) {
        self.0.fetch_add(tokens.len(), Ordering::Relaxed);
    }
}

type Unsent = Rc<RefCell<Wearables>>;

/// The server, and the wearables, which name visits where `visits` knows them.
fn surroundings(server: FhirServer, unsent: Unsent, visits: Option<Rc<Schedule>>) -> Simulated {
    let source = move |_: &_, context: SourceContext| {
        let acknowledged = Arc::clone(&unsent.borrow().acknowledged);
        let handle = SourceHandle {
            acknowledger: Some(Arc::new(Acknowledged(acknowledged))),
            ..context.handle()
        };
        let wearables = wearables(context, Rc::clone(&unsent), visits.clone());
        Ok((handle, Box::pin(wearables) as SourceLoop))
    };
    Simulated::new(source).with_http(move |_| Http::inline(server.client()))
}

/// Sends every reading at its time, or as soon as somebody listens.
async fn wearables(context: SourceContext, unsent: Unsent, visits: Option<Rc<Schedule>>) {
    loop {
        let next = unsent.borrow().unsent.front().map(|reading| reading.sent);
        let Some(sent) = next else {
            return std::future::pending::<()>().await;
        };
        wait_until(sent).await;
        let Some(reading) = unsent.borrow_mut().unsent.pop_front() else {
            continue;
        };
        let mut body =
            json!({"device": device(reading.device), "time": text(reading.taken), "rate": reading.value});
        // Who sends names the visit; one of a reading of nobody is as good as any.
        if let Some(schedule) = &visits {
            let visit = schedule.patient_of(&reading).unwrap_or(0);
            body["visit"] = json!(format!("visit {visit}"));
        }
        unsent.borrow_mut().sent.push_back(reading);
        let message = Message {
            ack: Some(AckToken {
                epoch: 1,
                packet_id: 0,
                session: 0,
            }),
            ..context.message(body.to_string())
        };
        if context.sender.send(message).await.is_err() {
            return;
        }
    }
}

async fn wait_until(at: i64) {
    let left = at - clock::wall().ticks();
    if left > 0 {
        Timer::after_micros(u64::try_from(left / 10).unwrap()).await;
    }
}

/// The Device as the server has it when it is linked to somebody, or to nobody.
fn device_resource(number: usize, patient: Option<u64>) -> Value {
    let mut resource = json!({"resourceType": "Device", "id": format!("device-{number}"),
        "identifier": [{"value": device(number)}]});
    if let Some(patient) = patient {
        resource["patient"] = json!({"reference": format!("Patient/patient-{patient}")});
    }
    resource
}

fn pack(folder: &Path) {
    let of_type = |name: &str| {
        json!({"templateType": "JsonPathContent", "template": {"typeName": name, "typeMatchExpression": "$..[?(@rate)]",
            "deviceIdExpression": "$.device", "timestampExpression": "$.time", "encounterIdExpression": "$.visit",
            "values": [{"required": "true", "valueExpression": "$.rate", "valueName": "rate"}]}})
    };
    let becomes = |name: &str, period: i32, value: Value| {
        json!({"templateType": "CodeValueFhir", "template": {"typeName": name, "periodInterval": period,
            "codes": [{"code": name, "system": "http://loinc.org"}], "value": value}})
    };
    let device =
        json!({"templateType": "CollectionContent", "template": [of_type("single"), of_type("hourly")]});
    let quantity = json!({"valueType": "Quantity", "valueName": "rate", "unit": "/min"});
    let sampled =
        json!({"valueType": "SampledData", "valueName": "rate", "defaultPeriod": 60_000, "unit": "/min"});
    let fhir = json!({"templateType": "CollectionFhir",
        "template": [becomes("single", 0, quantity), becomes("hourly", 60, sampled)]});
    let pack = folder.join("mappings.d/ward");
    std::fs::create_dir_all(&pack).unwrap();
    std::fs::write(pack.join("devicecontent.json"), device.to_string()).unwrap();
    std::fs::write(pack.join("fhirmapping.json"), fhir.to_string()).unwrap();
}

fn configuration(folder: &Path, schedule: &Schedule) -> Config {
    let text = format!(
        "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[associations]\ndir = \"{0}/associations.d\"\n[store]\ndir = \"{0}/store\"\n\
         progress_interval = \"60 s\"\n{3}\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n\
         [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://fhir.example/fhir\"\n\
         device_use_statements = {1}\nresolution = \"{2}\"\n",
        folder.display(),
        schedule.statements,
        schedule.resolution.name(),
        if schedule.short_history {
            "history = \"1 min\"\n"
        } else {
            ""
        }
    );
    toml::from_str(&text).unwrap()
}

/// Plays it to its end and a while longer.
pub fn play(schedule: &Rc<Schedule>, folder: &Path, seed: u64) -> anyhow::Result<Outcome> {
    pack(folder);
    let config = configuration(folder, schedule);
    let server = FhirServer::in_process();
    server.keep_versions();
    server.set_search_lag(schedule.search_lag);
    let begin = Timestamp::from_ticks(start()).unwrap();
    let schedule = Rc::clone(schedule);
    let (outcome, _) = clock::simulate(begin, async move {
        random::seed(seed);
        for patient in 0..PATIENTS {
            let resource = json!({"resourceType": "Patient", "id": format!("patient-{patient}"),
                "identifier": [{"value": format!("mrn {patient}")}]});
            server.put(resource).map_err(|error| anyhow::anyhow!("{error}"))?;
            let visit = json!({"resourceType": "Encounter", "id": format!("visit-{patient}"), "status": "in-progress",
                "class": {"code": "IMP"}, "identifier": [{"value": format!("visit {patient}")}],
                "subject": {"reference": format!("Patient/patient-{patient}")}});
            server.put(visit).map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        for number in 0..DEVICES {
            let first = schedule.truth[number].first().and_then(|stay| stay.patient);
            server
                .put(device_resource(number, first))
                .map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        let running: Rc<RefCell<Option<Rc<Agent>>>> = Rc::default();
        let events = tokio::task::spawn_local(happen(
            schedule.events.clone(),
            server.clone(),
            Rc::clone(&running),
            folder.join("store"),
            config.clone(),
            seed.is_multiple_of(2),
        ));
        let wearables = Rc::new(RefCell::new(Wearables {
            unsent: schedule.readings.iter().cloned().collect(),
            ..Wearables::default()
        }));
        let visits = schedule.resolution == Resolution::LookupWithEncounter;
        let ward = surroundings(
            server.clone(),
            Rc::clone(&wearables),
            visits.then(|| Rc::clone(&schedule)),
        );
        let end = start() + DAY + 8 * HOUR;
        let last = Restart {
            ends: end,
            begins: end,
            killed: false,
        };
        let mut summary = Summary::default();
        for life in schedule.restarts.iter().copied().chain([last]) {
            let (stop, stopped) = watch::channel(false);
            let slot = Rc::clone(&running);
            // Its tasks are its own: they all end with it.
            let tasks = LocalSet::new();
            let mut living = Box::pin(tasks.run_until(agent::run(
                config.clone(),
                &ward,
                Stopping::default(),
                stopped,
                move |agent| {
                    *slot.borrow_mut() = Some(agent);
                },
            )));
            tokio::select! {
                biased;
                ended = &mut living => bail!("it ended by itself: {:?}", ended?),
                () = wait_until(life.ends) => {}
            }
            if life.killed {
                running.borrow_mut().take();
            } else {
                stop.send_replace(true);
                summary = living.as_mut().await?;
                running.borrow_mut().take();
            }
            drop(living);
            drop(tasks);
            wearables.borrow_mut().reconnect();
            wait_until(life.begins).await;
        }
        events.await??;
        let store = Store::open_for_command(&folder.join("store"), &bedside_agent::config::Encryption::Off)?;
        let ledger = store.ledger()?;
        anyhow::Ok(Outcome {
            by_hand: ledger.iter().filter(|(_, why)| why.contains("by hand")).count(),
            observations: server.observations(),
            summary,
        })
    })?;
    outcome
}

/// Everything beside the readings.
async fn happen(
    events: Vec<(i64, Event)>,
    server: FhirServer,
    running: Rc<RefCell<Option<Rc<Agent>>>>,
    store: std::path::PathBuf,
    config: Config,
    by_file: bool,
) -> anyhow::Result<()> {
    let is_retraction = |event: &Event| matches!(event, Event::Enter(Command::Retract { .. }));
    // What is taken back is the newest entry: the way of both has to be the same.
    let by_file = by_file && !events.iter().any(|(_, event)| is_retraction(event));
    for (at, event) in events {
        wait_until(at).await;
        let put = |resource: Value| server.put(resource).map_err(|error| anyhow::anyhow!("{error}"));
        match event {
            Event::Link(number, patient) => put(device_resource(number, patient))?,
            Event::Statement(number, patient, from, to) => put(json!({
                "resourceType": "DeviceUseStatement", "id": format!("use-{number}"), "status": "completed",
                "subject": {"reference": format!("Patient/patient-{patient}")},
                "device": {"reference": format!("Device/device-{number}")},
                "timingPeriod": {"start": text(from), "end": text(to)}}))?,
            Event::Away => server.set_fault(Some(Fault::Refuse(503, None))),
            Event::LosesAnswers => server.set_fault(Some(Fault::LoseAnswerOfWrite)),
            Event::Back => server.set_fault(None),
            Event::Enter(command) if by_file => drop_line(&command, &store)?,
            Event::Enter(command) => enter(&config, &command, &running, &store).await?,
        }
    }
    Ok(())
}

/// As a further line of a file that is dropped, whether the agent runs or not.
fn drop_line(command: &Command, store: &Path) -> anyhow::Result<()> {
    let folder = store.with_file_name("associations.d");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("ward.csv");
    let mut lines = std::fs::read_to_string(&path).unwrap_or_else(|_| "device,patient,from,to\n".to_owned());
    let moment = |at: &Option<i64>| at.map(text).unwrap_or_default();
    match command {
        Command::Set {
            device,
            patient,
            from,
            to,
            ..
        } => {
            let patient = patient.text("Patient");
            lines.push_str(&format!("{device},{patient},{},{}\n", moment(from), moment(to)));
        }
        Command::End { device, at } => lines.push_str(&format!("{device},,{},\n", moment(at))),
        Command::Retract { .. } | Command::Complete => bail!("a file takes nothing back"),
    }
    Ok(std::fs::write(path, lines)?)
}

/// Over the running agent; into its store while it is down.
async fn enter(
    config: &Config,
    command: &Command,
    running: &Rc<RefCell<Option<Rc<Agent>>>>,
    store: &Path,
) -> anyhow::Result<()> {
    let wrong = |error: String| anyhow::anyhow!("{command:?}: {error}");
    for _ in 0..100 {
        let agent = running.borrow().clone();
        if let Some(agent) = agent {
            agent.associate(command).await.map_err(wrong)?;
            return Ok(());
        }
        if let Ok(mut store) = Store::open_for_command(store, &bedside_agent::config::Encryption::Off) {
            let now = Some(clock::wall().ticks());
            associate_in_store(config, &mut store, command, now)?.map_err(wrong)?;
            return Ok(());
        }
        Timer::after_millis(500).await;
    }
    anyhow::bail!("neither the agent nor its store takes {command:?}")
}
