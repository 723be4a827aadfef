//! Readings of which nobody says whose they are, through simulated hours: they wait, and go on or are given up visibly.

use super::*;
use crate::associations::{Command, Who};
use crate::demo::fhir_server::Fault;
use crate::random;
use crate::telemetry::status::Status;
use serde_json::json;
use std::pin::Pin;

const MINUTE: u64 = 60;
pub(super) const HOUR: u64 = 60 * MINUTE;

/// What is looked at, and done, at some second after the start.
pub(super) type Step = (u64, Doing);
pub(super) type Doing = Box<dyn FnOnce(Rc<Agent>, FhirServer, PathBuf) -> Pin<Box<dyn Future<Output = ()>>>>;

/// One reading of one device at the start, and one an hour later.
async fn two_readings(context: SourceContext) {
    for rate in [61, 62] {
        let text = format!(
            r#"{{"deviceId":"band-1","time":"{}","heartRate":{rate}}}"#,
            clock::wall()
        );
        if context.sender.send(context.message(text)).await.is_err() {
            return;
        }
        Timer::after_secs(HOUR).await;
    }
    std::future::pending::<()>().await;
}

fn patient(server: &FhirServer, id: &str) {
    let resource =
        json!({"resourceType": "Patient", "id": id, "identifier": [{"value": format!("mrn {id}")}]});
    server.put(resource).unwrap();
}

/// The Device, linked to somebody or not.
pub(super) fn device(server: &FhirServer, patient: Option<&str>) {
    let mut resource = json!({"resourceType": "Device", "id": "d", "identifier": [{"value": "band-1"}]});
    if let Some(patient) = patient {
        resource["patient"] = json!({"reference": format!("Patient/{patient}")});
    }
    server.put(resource).unwrap();
}

/// Runs an agent through the steps; gives the status after each.
fn play(more: &str, steps: Vec<Step>) -> (Vec<Status>, FhirServer) {
    let folder = tempfile::tempdir().unwrap();
    let server = FhirServer::in_process();
    server.keep_versions();
    (play_in(folder.path(), &server, 0, more, steps), server)
}

/// As [`play`], in a folder and with a server that may have seen an agent before, so many days after the first one began.
pub(super) fn play_in(
    folder: &Path,
    server: &FhirServer,
    day: i64,
    more: &str,
    steps: Vec<Step>,
) -> Vec<Status> {
    let at = folder.to_owned();
    drop_pack(&at);
    let config = configuration(&at, "", &format!("{EHR}{more}"));
    let surroundings = surroundings(server, two_readings);
    let begin = midnight().plus_ticks(day * 24 * 36_000_000_000).unwrap();
    let (statuses, _) = clock::simulate(begin, async {
        random::seed(3 + day.unsigned_abs());
        if day == 0 {
            patient(server, "anna");
            patient(server, "bert");
        }
        let (stop, stopped) = watch::channel(false);
        let (started, agent) = tokio::sync::oneshot::channel();
        let looking = tokio::task::spawn_local({
            let server = server.clone();
            async move {
                let agent: Rc<Agent> = agent.await.unwrap();
                let begin = Instant::now();
                let mut statuses = Vec::new();
                for (second, doing) in steps {
                    Timer::at(begin + Duration::from_secs(second)).await;
                    doing(Rc::clone(&agent), server.clone(), at.clone()).await;
                    statuses.push(agent.status().await);
                }
                stop.send_replace(true);
                statuses
            }
        });
        run(config, &surroundings, Stopping::default(), stopped, |agent| {
            drop(started.send(agent));
        })
        .await
        .unwrap();
        looking.await.unwrap()
    })
    .unwrap();
    statuses
}

pub(super) fn step<F: Future<Output = ()> + 'static>(
    second: u64,
    doing: impl FnOnce(Rc<Agent>, FhirServer, PathBuf) -> F + 'static,
) -> Step {
    (
        second,
        Box::new(move |agent, server, folder| Box::pin(doing(agent, server, folder))),
    )
}

/// Readings that wait, and dead letters. What is sent again by a correction counts anew as delivered.
pub(super) fn counts(status: &Status) -> (u64, u64) {
    (status.summary.waiting, status.summary.dead)
}

/// Subjects and values of what the server holds.
pub(super) fn held(server: &FhirServer) -> Vec<String> {
    let of = |one: &serde_json::Value| {
        let patient = one["subject"]["reference"].as_str().unwrap().to_owned();
        format!(
            "{patient} {} {}",
            one["valueQuantity"]["value"],
            one["status"].as_str().unwrap()
        )
    };
    let mut held: Vec<String> = server.observations().iter().map(of).collect();
    held.sort();
    held
}

#[test]
fn a_reading_of_nobody_waits_for_max_wait_and_is_a_dead_letter_then() {
    let default: crate::config::FhirConfig = toml::from_str("").unwrap();
    let week = 7 * 86_400_000_000;
    assert_eq!((default.max_wait.0, default.correction_window.0), (week, week));
    let look = |_: Rc<Agent>, _: FhirServer, _: PathBuf| async {};
    let (statuses, server) = play(
        "max_wait = \"8 h\"\n",
        vec![step(2 * HOUR, look), step(7 * HOUR, look), step(12 * HOUR, look)],
    );
    assert_eq!(
        statuses.iter().map(counts).collect::<Vec<_>>(),
        [(2, 0), (2, 0), (0, 2)]
    );
    let waits = &statuses[1].destinations[0].waits;
    assert_eq!(
        (waits[0].0.name.as_str(), waits[0].1),
        ("FhirResourceNotFoundException", 2)
    );
    assert!(
        statuses[1]
            .problems
            .iter()
            .any(|problem| problem.contains("2 readings wait"))
    );
    let letter = &statuses[2].dead_letters[0];
    assert_eq!(letter.error.name, "FhirResourceNotFoundException");
    assert!(letter.error.text.contains("max_wait"), "{}", letter.error.text);
    assert_eq!(held(&server), [""; 0]);
}

#[test]
fn a_dropped_file_is_taken_once_as_a_whole_and_is_an_entry_like_any_other() {
    const HEAD: &str = "device,patient,from\n";
    let drop_file = |text: String| {
        move |_: Rc<Agent>, _: FhirServer, folder: PathBuf| async move {
            let folder = folder.join("associations.d");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("beds.csv"), &text).unwrap();
        }
    };
    let (statuses, server) = play(
        "",
        vec![
            step(
                MINUTE,
                |_, server: FhirServer, _| async move { device(&server, None) },
            ),
            step(
                2 * HOUR,
                drop_file(format!(
                    "{HEAD}band-1,mrn anna,2026-02-28T00:00:00Z\nband-2,mrn anna,soon\n"
                )),
            ),
            // Nothing of a file with an error is taken.
            step(
                2 * HOUR + 10 * MINUTE,
                drop_file(format!("{HEAD}band-1,mrn anna,2026-02-28T00:00:00Z\n")),
            ),
            step(2 * HOUR + 20 * MINUTE, |agent: Rc<Agent>, _, _| async move {
                let device = "band-1".to_owned();
                agent.associate(&Command::Retract { device }).await.unwrap();
            }),
            // The line is still there, and more: what was taken back is not entered again.
            step(
                3 * HOUR,
                drop_file(format!(
                    "{HEAD}band-1,mrn anna,2026-02-28T00:00:00Z\nband-9,mrn anna,2026-02-28T00:00:00Z\n"
                )),
            ),
            step(4 * HOUR, |agent: Rc<Agent>, _, _| async move {
                let entries = agent.associations()["entries"].clone();
                let devices: Vec<&str> = entries
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|e| e["device"].as_str().unwrap())
                    .collect();
                assert_eq!(devices, ["band-9"]);
            }),
        ],
    );
    let wrong = |status: &Status| {
        status
            .problems
            .iter()
            .any(|one| one.contains("beds.csv:3: from: write"))
    };
    let before: Vec<bool> = statuses.iter().map(wrong).collect();
    assert_eq!(before, [false, false, true, false, false, false]);
    assert_eq!(counts(&statuses[2]), (2, 0));
    assert_eq!(counts(&statuses[3]), (0, 0));
    assert_eq!(
        held(&server),
        [
            "Patient/anna 61 entered-in-error",
            "Patient/anna 62 entered-in-error"
        ]
    );
}

#[test]
fn a_newer_link_of_the_server_makes_later_readings_wait_until_one_of_the_two_is_confirmed() {
    let set = |patient: &'static str, from: Option<i64>| {
        move |agent: Rc<Agent>, _: FhirServer, _: PathBuf| async move {
            let command = Command::Set {
                device: "band-1".to_owned(),
                patient: Who::parse("Patient", patient),
                encounter: None,
                from,
                to: None,
            };
            agent.associate(&command).await.unwrap();
        }
    };
    let (statuses, server) = play(
        "",
        vec![
            step(
                MINUTE,
                |_, server: FhirServer, _| async move { device(&server, None) },
            ),
            step(2 * MINUTE, set("mrn anna", Some(midnight().ticks()))),
            // The server says something else later: the reading of the second hour is whose?
            step(30 * MINUTE, |_, server: FhirServer, _| async move {
                device(&server, Some("bert"))
            }),
            step(
                2 * HOUR,
                set("Patient/bert", Some(midnight().ticks() + 30 * 600_000_000)),
            ),
            step(3 * HOUR, |_, _, _| async {}),
        ],
    );
    assert_eq!(counts(&statuses[2]), (0, 0));
    assert_eq!(counts(&statuses[3]).0, 1, "{:?}", statuses[3].problems);
    assert_eq!(counts(&statuses[4]), (0, 0));
    assert_eq!(held(&server), ["Patient/anna 61 final", "Patient/bert 62 final"]);
}

#[test]
fn a_correction_finds_what_was_written_though_its_answer_was_lost_through_an_outage_and_back_again() {
    let half_past = midnight().ticks() + 30 * 600_000_000;
    let fault = |fault: Option<Fault>| {
        move |_: Rc<Agent>, server: FhirServer, _: PathBuf| async move { server.set_fault(fault) }
    };
    let (statuses, server) = play(
        "",
        vec![
            step(0, |_, server: FhirServer, _| async move {
                device(&server, Some("anna"))
            }),
            step(30 * MINUTE, fault(Some(Fault::LoseAnswerOfWrite))),
            // The second reading was carried out, nothing is recorded as sent, and then nothing goes any more.
            step(HOUR, |_, server: FhirServer, _| async move {
                while server.observations().len() < 2 {
                    Timer::after_millis(10).await;
                }
                server.set_fault(Some(Fault::Refuse(503, None)));
            }),
            step(2 * HOUR, move |agent: Rc<Agent>, _, _| async move {
                let command = Command::Set {
                    device: "band-1".to_owned(),
                    patient: Who::parse("Patient", "mrn bert"),
                    encounter: None,
                    from: Some(half_past),
                    to: None,
                };
                agent.associate(&command).await.unwrap();
            }),
            step(3 * HOUR, fault(None)),
            step(5 * HOUR, |_, _, _| async {}),
        ],
    );
    assert_eq!(
        (statuses[2].summary.delivered, statuses[2].summary.buffered),
        (1, 1)
    );
    assert_eq!(statuses[3].destinations[0].corrections, 1);
    assert_eq!(statuses[5].destinations[0].corrections, 0);
    assert_eq!(
        held(&server),
        [
            "Patient/anna 61 final",
            "Patient/anna 62 entered-in-error",
            "Patient/bert 62 final"
        ]
    );
}
