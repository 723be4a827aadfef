//! A day with outages: every reading arrives, once.

use super::*;
use crate::demo::fhir_server::Fault;
use crate::random;
use std::collections::BTreeMap;

const DEVICES: u64 = 5;
const MINUTES: u64 = 24 * 60;

/// A reading of each device every minute.
async fn wearables(context: SourceContext) {
    for minute in 0..MINUTES {
        for device in 0..DEVICES {
            let text = format!(
                r#"{{"deviceId":"band-{device}","patientId":"p-{device}","time":"{}","heartRate":{}.50}}"#,
                clock::wall(),
                value(device, minute)
            );
            if context.sender.send(context.message(text)).await.is_err() {
                return;
            }
        }
        Timer::after_secs(60).await;
    }
    std::future::pending::<()>().await;
}

fn value(device: u64, minute: u64) -> u64 {
    50 + (minute * 7 + device * 13) % 90
}

/// Runs a day on `folder`; the server is away from hour 6 to 9, and loses its answers in hour 12.
fn day(folder: &Path, server: &FhirServer) -> Summary {
    drop_pack(folder);
    let config = configuration(folder, "", &format!("{EHR}{CREATE}"));
    let (summary, _) = clock::simulate(midnight(), async move {
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
        let surroundings = surroundings(server, wearables);
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
        let time = midnight()
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
