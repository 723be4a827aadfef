//! The right patient at the right time: `right-patient --schedules N --seed S [--sabotage NAME]`.
//!
//! By chance devices move between patients, the server is away or loses its answers, readings come late, the agent is
//! restarted or killed at any moment, and the operator says afterwards what nobody knew, sometimes wrongly, and takes it
//! back. Identities are resolved in all three ways, and some gateways keep no history: there a correction moves what it
//! takes away on the server. The whole agent runs
//! through it on simulated time, with its real store; then the FHIR server must hold every reading once, with whom it was
//! taken, and nothing of anybody else; readings of nobody wait.
//!
//! The last line is JSON; the exit code is 1 at the first finding, with the seed that repeats it.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a proof must stop at once when it is itself broken, and measures its own time"
)]

mod judge;
mod schedule;
mod ward;

use anyhow::{Context, bail, ensure};
use bedside_agent::sabotage;
use schedule::Schedule;
use std::rc::Rc;

fn arguments() -> anyhow::Result<(u64, u64, Option<String>)> {
    let (mut schedules, mut seed, mut fault) = (40, 1, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--schedules" => schedules = value.parse()?,
            "--seed" => seed = value.parse()?,
            "--sabotage" => fault = Some(value),
            _ => bail!("usage: right-patient [--schedules N] [--seed S] [--sabotage NAME]"),
        }
    }
    Ok((schedules, seed, fault))
}

fn main() -> anyhow::Result<()> {
    let (schedules, seed, fault) = arguments()?;
    if let Some(name) = &fault {
        sabotage::turn_on(name)?;
    }
    let begin = std::time::Instant::now();
    let (mut readings, mut retracted, mut corrected, mut kills, mut by_hand) = (0, 0, 0, 0, 0);
    for number in seed..seed + schedules {
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory)?,
            false => tempfile::tempdir()?,
        };
        let schedule = Rc::new(Schedule::new(number));
        let outcome =
            ward::play(&schedule, folder.path(), number).with_context(|| format!("schedule {number}"))?;
        let found = judge::judge(&schedule, &outcome);
        kills += schedule.restarts.iter().filter(|restart| restart.killed).count();
        by_hand += found.by_hand;
        readings += found.readings;
        retracted += found.retracted;
        corrected += found.corrected;
        let (wrong, missing, twice) = (found.wrong.len(), found.missing.len(), found.twice.len());
        if wrong + missing + twice > 0 {
            for line in found
                .wrong
                .iter()
                .chain(&found.missing)
                .chain(&found.twice)
                .take(20)
            {
                eprintln!("schedule {number}: {line}");
            }
            if std::env::var_os("BEDSIDE_SHOW").is_some() {
                for stays in &schedule.truth {
                    eprintln!("truth {stays:?}");
                }
                for (at, event) in &schedule.events {
                    eprintln!("{} {event:?}", schedule::text(*at));
                }
                for restart in &schedule.restarts {
                    eprintln!("{} {restart:?}", schedule::text(restart.ends));
                }
                eprintln!(
                    "{:?}, short history: {}",
                    schedule.resolution, schedule.short_history
                );
            }
            let line = serde_json::json!({"schedules": number - seed, "readings": readings, "finding": true, "seed": number,
                "wrong_patients": wrong, "missing": missing, "duplicated": twice, "sabotage": fault});
            println!("{line}");
            std::process::exit(1);
        }
    }
    ensure!(
        readings > 0 && (schedules < 10 || retracted > 0),
        "nothing was corrected: the proof proves nothing"
    );
    eprintln!("{schedules} schedules in {} ms", begin.elapsed().as_millis());
    let line = serde_json::json!({"schedules": schedules, "readings": readings, "wrong_patients": 0, "missing": 0,
        "duplicated": 0, "retracted": retracted, "corrected": corrected, "kills": kills,
        "by_hand": by_hand});
    println!("{line}");
    Ok(())
}
