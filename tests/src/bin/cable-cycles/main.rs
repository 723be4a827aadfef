//! Pulls the cables of eight simulated devices again and again, and the plug of the agent in between, and judges in the end what
//! journal and FHIR server hold.
//!
//! ```text
//! eight simulated devices, one counter -> pseudo-terminals -> agent (kill -9, start again) -> FHIR server
//! ```
//!
//! What the bytes of a pulled cable would have said nobody can know, so this counts what was wholly delivered:
//! * the memory of a glucose meter and the measurements of a blood-pressure monitor, which are shown again until they are
//!   taken: each is one message;
//! * the lines of a counter that the agent has read, to the last byte, before its cable was pulled: each is one message. Those
//!   that it read less than [`COMMITTED_AFTER`] before a kill may be missing: such a device cannot be told to send again.
//!
//! Everything that the journal holds must be on the server with its value, and nothing else. The agent is this program again
//! (`run`). The last line is JSON; the exit code is 1 when anything was lost or doubled. `--sabotage NAME` breaks the agent.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a harness of processes lives in real time, and a broken harness must say so at once"
)]

mod counter;

use anyhow::{Context as _, bail};
use bedside_agent::clock;
use bedside_agent::simulate::physiology::Physiology;
use bedside_tests::cables::{COUNTER, Cable, Heard, compare, expected, held, journal, pack_of};
use bedside_tests::chance::Chance;
use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::Process;
use bedside_tests::real::agent::Gateway;
use clap::Parser as _;
use counter::Counter;
use embassy_time::{Duration, Instant, Timer};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use tokio_serial::{SerialPort as _, SerialStream};

/// The devices, each named like its driver; all on one patient.
const DEVICES: [&str; 8] = [
    "nonin",
    "contec-cms50-v7",
    "masimo-ascii",
    "drager-medibus",
    "datex-dri",
    "zephyr",
    "onetouch-ultra2",
    "and-pbt",
];
const PATIENT: u64 = 7;
/// A message is committed so long after it was read, on a busy machine too.
const COMMITTED_AFTER: Duration = Duration::from_millis(1500);

struct Arguments {
    cycles: u32,
    kills: u32,
    seconds: u64,
    seed: u64,
    sabotage: Option<String>,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments {
        cycles: 100,
        kills: 4,
        seconds: 60,
        seed: 1,
        sabotage: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--cycles" => parsed.cycles = value()?.parse()?,
            "--kills" => parsed.kills = value()?.parse()?,
            "--seconds" => parsed.seconds = value()?.parse()?,
            "--seed" => parsed.seed = value()?.parse()?,
            "--sabotage" => parsed.sabotage = Some(value()?),
            _ => bail!(
                "usage: cable-cycles [--cycles N] [--kills N] [--seconds S] [--seed S] [--sabotage NAME]"
            ),
        }
    }
    Ok(parsed)
}

/// A pseudo-terminal whose other end has this name in the folder.
fn terminal(folder: &Path, name: &str) -> (SerialStream, SerialStream) {
    let (device, gateway) = SerialStream::pair().expect("a pseudo-terminal");
    let link = folder.join(name);
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(gateway.name().expect("a name"), link).expect("a link");
    (device, gateway)
}

fn plug_in(cable: &Cable<SerialStream>, folder: &Path) {
    let (device, gateway) = terminal(folder, cable.name);
    drop(gateway);
    cable.plugged.set(true);
    cable.connect(Some(device));
}

fn gateway(folder: &Path, server: &FhirServer, sabotage: Option<&str>) -> anyhow::Result<Gateway> {
    let mut gateway = Gateway::new(folder)
        .program(std::env::current_exe()?)
        .fhir(&server.base, "resolution = \"lookup\"");
    if let Some(name) = sabotage {
        gateway = gateway.env("BEDSIDE_SABOTAGE", name);
    }
    for name in DEVICES.into_iter().chain([COUNTER]) {
        server.put_device(&format!("dev-{name}"), "p-1");
        gateway.drop_pack(pack_of(name));
        let kind = if name == COUNTER {
            "framing = \"lines\"\nformat = \"json\"".to_owned()
        } else {
            format!("driver = \"{name}\"")
        };
        gateway = gateway.with(&format!(
            "[[source]]\nname = \"{name}\"\nkind = \"serial\"\nport = \"{}/ports/{name}\"\n{kind}\ndevice_id = \"dev-{name}\"\n\
             packs = [\"{}\"]",
            folder.display(),
            pack_of(name)
        ));
    }
    Ok(gateway)
}

fn main() -> anyhow::Result<ExitCode> {
    if matches!(std::env::args().nth(1).as_deref(), Some("run" | "status")) {
        return bedside_agent::cli::Cli::parse().run();
    }
    let arguments = arguments()?;
    let folder = tempfile::tempdir()?;
    let ports = folder.path().join("ports");
    std::fs::create_dir_all(&ports)?;
    let server = FhirServer::start(&[]);
    let gateway = gateway(folder.path(), &server, arguments.sabotage.as_deref())?;
    let begin = clock::wall();
    let cables: Vec<Rc<Cable<SerialStream>>> = DEVICES
        .iter()
        .map(|name| Rc::new(Cable::new(name, PATIENT, begin)))
        .collect();
    let counter = Rc::new(Counter::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let (agent, seconds) = runtime.block_on(local.run_until(async {
        for cable in &cables {
            plug_in(cable, &ports);
            let cable = Rc::clone(cable);
            tokio::task::spawn_local(async move { cable.play().await });
        }
        counter.plug_in(&ports);
        tokio::task::spawn_local(Rc::clone(&counter).count());
        torment(&arguments, &gateway, &cables, &counter, &ports).await
    }))?;
    judge(&arguments, &gateway, agent, &server, &counter, seconds)
}

/// Pulls and plugs, kills and starts; gives the running agent and the seconds that it took.
async fn torment(
    arguments: &Arguments,
    gateway: &Gateway,
    cables: &[Rc<Cable<SerialStream>>],
    counter: &Counter,
    ports: &Path,
) -> anyhow::Result<(Process, u64)> {
    let mut chance = Chance(arguments.seed);
    let mut agent = gateway.start();
    let begin = Instant::now();
    Timer::after_secs(3).await;
    let pause = arguments.seconds.saturating_sub(6) * 1000 / u64::from(arguments.cycles.max(1));
    for cycle in 0..arguments.cycles {
        Timer::after_millis(chance.between(pause / 4, pause / 2 + 2)).await;
        let killed = arguments.kills > 0 && cycle % (arguments.cycles / arguments.kills).max(1) == 12;
        if killed {
            agent.kill();
            counter.killed();
            agent = gateway.start();
        }
        // The counter as often as all others together, and both meters oftener than what streams.
        match chance.between(0, 12) {
            which @ 0..6 => {
                let cable = &cables[which as usize];
                cable.pull();
                Timer::after_millis(chance.between(20, 120)).await;
                plug_in(cable, ports);
            }
            which @ 6..9 => {
                let cable = &cables[6 + which as usize % 2];
                cable.pull();
                Timer::after_millis(chance.between(20, 120)).await;
                plug_in(cable, ports);
            }
            _ => {
                counter.pull();
                Timer::after_millis(chance.between(20, 120)).await;
                counter.plug_in(ports);
            }
        }
        Timer::after_millis(chance.between(pause / 4, pause / 2 + 2)).await;
    }
    // What was shown and not taken yet is shown again.
    let rest = arguments
        .seconds
        .saturating_sub(begin.elapsed().as_secs())
        .max(15);
    Timer::after_secs(rest).await;
    counter.pull();
    Timer::after(COMMITTED_AFTER).await;
    Ok((agent, begin.elapsed().as_secs()))
}

fn judge(
    arguments: &Arguments,
    gateway: &Gateway,
    mut agent: Process,
    server: &FhirServer,
    counter: &Counter,
    seconds: u64,
) -> anyhow::Result<ExitCode> {
    let accounts = gateway.stop(&mut agent);
    let journal = journal(&gateway.folder.join("store"));
    let mut times_of: BTreeMap<(&str, String), u32> = BTreeMap::new();
    for heard in &journal {
        let key = match heard.name.as_str() {
            COUNTER => heard.body["heartRate"].to_string(),
            _ if heard.body["kind"] == "record" => heard.body["device_time"].to_string(),
            _ => continue,
        };
        *times_of.entry((&heard.name, key)).or_default() += 1;
    }
    let doubled = times_of.values().filter(|times| **times > 1).count();
    let is_there = |line: &u64| times_of.contains_key(&(COUNTER, line.to_string()));
    let (certain, possible) = counter.delivered();
    let lost_lines = certain.iter().filter(|line| !is_there(line)).count();
    let records = |name: &str| times_of.keys().filter(|(device, _)| *device == name).count();
    // The memory of the meter, and a measurement two seconds after the monitor was switched on.
    let lost_records =
        12_usize.saturating_sub(records("onetouch-ultra2")) + 1_usize.saturating_sub(records("and-pbt"));
    let lost = lost_lines + lost_records;
    let finding = lost + doubled > 0;
    if finding {
        let some: Vec<_> = times_of.iter().filter(|(_, times)| **times > 1).take(5).collect();
        eprintln!("lost {lost_lines} lines and {lost_records} records; doubled {some:?}");
    } else {
        of_the_patient(&journal)?;
        let (expected, matches) = expected(&journal);
        anyhow::ensure!(
            accounts["messages"] == journal.len(),
            "{} messages in the journal: {accounts}",
            journal.len()
        );
        anyhow::ensure!(
            accounts["matches"] == matches,
            "{matches} matches in the journal: {accounts}"
        );
        // The rest goes out in the next life: nobody pulls anything any more.
        deliver(gateway)?;
        let observations: Vec<_> = server
            .held("Observation")
            .into_iter()
            .map(|held| held.resource)
            .collect();
        compare(&expected, &held(&observations));
    }
    let line = json!({
        "devices": DEVICES.len() + 1,
        "cycles": arguments.cycles,
        "kills": arguments.kills,
        "messages": journal.len(),
        "lines_delivered": certain.len(),
        "lines_possible": possible,
        "records": records("onetouch-ultra2") + records("and-pbt"),
        "lost": lost,
        "doubled": doubled,
        "finding": finding,
        "seed": arguments.seed,
        "sabotage": arguments.sabotage,
        "seconds": seconds,
    });
    println!("{line}");
    Ok(if finding {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Starts the agent without its cables, until it has nothing left to send.
fn deliver(gateway: &Gateway) -> anyhow::Result<()> {
    let mut agent = gateway.start();
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let summary = gateway.status().map(|status| status["summary"].clone());
        let left = |name: &str| summary.as_ref().and_then(|summary| summary[name].as_u64());
        if left("buffered") == Some(0) && left("waiting") == Some(0) {
            break;
        }
        anyhow::ensure!(Instant::now() < until, "it is not delivered: {summary:?}");
    }
    let accounts = gateway.stop(&mut agent);
    for name in ["dead", "lost", "unparsable"] {
        anyhow::ensure!(accounts[name] == 0, "{name} is not 0 in {accounts}");
    }
    Ok(())
}

/// Every streamed value is one that the patient had when it was read, or shortly before.
fn of_the_patient(journal: &[Heard]) -> anyhow::Result<()> {
    let first = journal
        .iter()
        .map(|heard| heard.wall)
        .min()
        .context("nothing was heard")?;
    let patient = Physiology::new(PATIENT);
    for name in &DEVICES[..6] {
        let vitals = journal
            .iter()
            .filter(|heard| heard.name == *name && heard.body["kind"] == "vitals");
        let count = vitals.clone().count();
        anyhow::ensure!(count > 0, "{name} was never heard");
        for heard in vitals {
            let Some(value) = heard.body["spo2"].as_f64() else {
                continue;
            };
            // The clock of the devices began before the first message came.
            let now = u64::try_from((heard.wall.ticks() - first.ticks()) / 10_000).unwrap_or(0);
            let from = now.saturating_sub(5000);
            let may_be = (from..now + 10_000)
                .step_by(50)
                .any(|at| f64::from(patient.at(at).spo2) == value.round());
            anyhow::ensure!(
                may_be,
                "{name} {now} ms after the first message: the patient never had {value} %"
            );
        }
    }
    Ok(())
}
