//! The whole agent through a simulated day: the real store, packs, normalizing, grouping, transform and retry; only the
//! sockets are doubles. Time is virtual, so the day takes seconds and is the same run for the same seed.

use super::*;
use crate::demo::fhir_server::{Fault, FhirServer};
use crate::forward::http::Http;
use crate::ingest::{SourceHandle, SourceLoop};
use crate::message::{Payload, PayloadKind, Stamp};
use crate::packs::Notice;
use crate::telemetry::errors::ErrorRecord;
use crate::worker::Worker;
use crate::{config::DestinationConfig, random};
use iomt_mapping::Timestamp;
use std::collections::BTreeMap;
use std::io;

const DEVICES: u64 = 5;
const MINUTES: u64 = 24 * 60;

/// Surroundings on simulated time: a FHIR server in the process, and a source that is called once.
pub(super) struct Simulated {
    pub(super) server: FhirServer,
    pub(super) source: fn(SourceContext) -> SourceLoop,
}

impl Surroundings for Simulated {
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
        Ok((handle, (self.source)(context)))
    }
}

/// A reading of each device every minute.
async fn wearables(context: SourceContext) {
    for minute in 0..MINUTES {
        for device in 0..DEVICES {
            let text = format!(
                r#"{{"deviceId":"band-{device}","patientId":"p-{device}","time":"{}","heartRate":{}.50}}"#,
                clock::wall(),
                value(device, minute)
            );
            let message = message(&context, text);
            if context.sender.send(message).await.is_err() {
                return;
            }
        }
        Timer::after_secs(60).await;
    }
    std::future::pending::<()>().await;
}

/// A message that comes now.
pub(super) fn message(context: &SourceContext, text: String) -> Message {
    Message {
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
        record: None,
        ack: None,
    }
}

fn value(device: u64, minute: u64) -> u64 {
    50 + (minute * 7 + device * 13) % 90
}

pub(super) fn start() -> Timestamp {
    // 2026-03-01T00:00:00Z
    Timestamp::from_ticks(17_723_232_000_000_000).unwrap()
}

/// The pack of a heart rate, ready to be used.
pub(super) fn drop_pack(folder: &Path) {
    let pack = folder.join("mappings.d/heart-rate");
    std::fs::create_dir_all(&pack).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings/heart-rate");
    for file in ["devicecontent.json", "fhirmapping.json"] {
        std::fs::copy(from.join(file), pack.join(file)).unwrap();
    }
}

/// Runs a day on `folder`; the server is away from hour 6 to 9, and loses its answers in hour 12.
fn day(folder: &Path, server: &FhirServer) -> Summary {
    let configuration = format!(
        "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n\
         [[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://fhir.example/fhir\"\nresolution = \"create\"\n",
        folder.display()
    );
    drop_pack(folder);
    let config: Config = toml::from_str(&configuration).unwrap();
    let (summary, _) = clock::simulate(start(), async move {
        random::seed(7);
        let (stop, stopped) = watch::channel(false);
        let faults = server.clone();
        tokio::task::spawn_local(async move {
            for (hours, fault) in [
                (6, Some(Fault::Refuse(503, None))),
                (3, None),
                (3, Some(Fault::LoseAnswer)),
                (1, None),
                (11, None),
            ] {
                Timer::after_secs(hours * 3600).await;
                faults.set_fault(fault);
            }
            Timer::after_secs(600).await;
            stop.send_replace(true);
        });
        let surroundings = Simulated {
            server: server.clone(),
            source: |context| Box::pin(wearables(context)),
        };
        run(config, &surroundings, Stopping::default(), stopped, |_| {})
            .await
            .unwrap()
    })
    .unwrap();
    summary
}

#[test]
fn a_simulated_day_with_outages_loses_nothing_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = FhirServer::in_process();
    let summary = day(folder.path(), &server);
    let total = DEVICES * MINUTES;
    assert_eq!(
        (summary.messages, summary.matches, summary.delivered),
        (total, total, total),
        "{summary:?}"
    );
    let mut held: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for observation in server.observations() {
        let patient = observation["subject"]["reference"].as_str().unwrap().to_owned();
        let time = observation["effectivePeriod"]["start"]
            .as_str()
            .or_else(|| observation["effectiveDateTime"].as_str())
            .unwrap()
            .to_owned();
        held.entry((patient, time))
            .or_default()
            .push(observation["valueQuantity"]["value"].to_string());
    }
    assert_eq!(held.len() as u64, total);
    assert!(held.values().all(|values| values.len() == 1));
    for minute in [0, 1, 400, 779, MINUTES - 1] {
        let time = start()
            .plus_ticks(minute as i64 * 600_000_000)
            .unwrap()
            .to_seven_digits();
        let mut values: Vec<&String> = held
            .iter()
            .filter(|((_, at), _)| *at == time)
            .map(|(_, values)| &values[0])
            .collect();
        values.sort();
        let mut expected: Vec<String> = (0..DEVICES).map(|d| format!("{}.50", value(d, minute))).collect();
        expected.sort();
        assert_eq!(values, expected.iter().collect::<Vec<_>>(), "minute {minute}");
    }
}
