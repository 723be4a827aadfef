//! Watches the folder of associations that are dropped as files, and enters what is new in them like any other entry of the
//! operator.
//!
//! Invariants:
//! 1. A file is judged when it has been quiet, and taken as a whole or not at all.
//! 2. What a line says is entered once: a line that stays in the file is not entered again, also after a restart, so that
//!    an entry that was taken back stays taken back. A line that leaves the file ends nothing.
//! 3. What cannot be entered now (the clock is not right) is tried again.

use super::Agent;
use crate::associations::dropped::{Line, read};
use embassy_time::{Duration, Timer};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long a changed file has to be quiet.
const QUIET: Duration = Duration::from_millis(600);
/// A larger file is a mistake: bytes.
const MOST_BYTES: u64 = 1 << 20;
/// Row of the store's notes with the marks of the lines that were entered.
const MARKS: &str = "dropped_associations";

/// What tells that a file was changed.
type Sighting = Vec<(String, Option<SystemTime>, u64)>;

/// Looks at the folder until the agent stops.
pub(super) async fn watch(agent: Rc<Agent>) {
    let folder = agent.config.associations.dir.clone();
    let (mut seen, mut judged): (Sighting, Option<Sighting>) = (Vec::new(), None);
    loop {
        let now = look(&folder);
        let quiet = now == seen;
        seen = now;
        if judged.as_ref() != Some(&seen) {
            if !quiet {
                Timer::after(QUIET).await;
                continue;
            }
            let mut problems = Vec::new();
            let whole = take(&agent, &folder, &seen, &mut problems).await;
            if problems != *agent.association_problems.borrow() {
                problems
                    .iter()
                    .for_each(|problem| tracing::warn!("associations: {problem}"));
                *agent.association_problems.borrow_mut() = problems;
            }
            judged = whole.then(|| seen.clone());
        }
        Timer::after(LOOK).await;
    }
}

/// The files of the folder, in order of their names. A folder that is not there is empty.
fn look(folder: &Path) -> Sighting {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Sighting = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let about = std::fs::metadata(entry.path()).ok()?;
            let hidden = name.starts_with('.') || name.ends_with('~');
            (about.is_file() && !hidden).then(|| (name, about.modified().ok(), about.len()))
        })
        .collect();
    files.sort();
    files
}

/// Enters what is new; says whether all of it could be judged.
async fn take(agent: &Agent, folder: &Path, files: &Sighting, problems: &mut Vec<String>) -> bool {
    let store = &agent.pipeline.store;
    let Ok(known) = store.call(|store| store.note(MARKS)).await else {
        return false;
    };
    let known: BTreeSet<u64> = known
        .as_deref()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|mark| u64::from_str_radix(mark, 16).ok())
        .collect();
    let mut marks = BTreeSet::new();
    let mut whole = true;
    for (name, _, bytes) in files {
        let lines = match content(&folder.join(name), *bytes) {
            Ok(content) => read(name, &content),
            Err(why) => {
                problems.push(format!("{name}: {why}"));
                whole = false;
                continue;
            }
        };
        match lines {
            None => {}
            Some(Ok(lines)) => whole &= enter(agent, name, &lines, &known, &mut marks, problems).await,
            Some(Err(mistakes)) => {
                // Its lines stay known: correcting one enters that one.
                marks.extend(&known);
                let more = mistakes.len().saturating_sub(5);
                let shown = mistakes.iter().take(5);
                problems.extend(shown.map(|wrong| format!("{name}:{}: {}", wrong.line, wrong.text)));
                if more > 0 {
                    problems.push(format!(
                        "{name}: {more} more lines are wrong; nothing of it is taken"
                    ));
                }
            }
        }
    }
    if marks != known {
        let text: Vec<String> = marks.iter().map(|mark| format!("{mark:016x}")).collect();
        let text = text.join(" ");
        whole &= store
            .call(move |store| store.keep_note(MARKS, &text))
            .await
            .is_ok();
    }
    whole
}

/// Enters the lines of a file that are not known yet.
async fn enter(
    agent: &Agent,
    name: &str,
    lines: &[Line],
    known: &BTreeSet<u64>,
    marks: &mut BTreeSet<u64>,
    problems: &mut Vec<String>,
) -> bool {
    let mut whole = true;
    let mut entered = 0;
    for line in lines {
        let mark = line.mark(&agent.store_id);
        if known.contains(&mark) || marks.contains(&mark) {
            marks.insert(mark);
            continue;
        }
        match agent.associate(&line.command).await {
            Ok(_) => {
                entered += 1;
                marks.insert(mark);
            }
            Err(why) => {
                whole = false;
                problems.push(format!("{name}:{}: {why}", line.number));
            }
        }
    }
    if entered > 0 {
        tracing::info!("associations: {entered} of {name} were entered");
    }
    whole
}

fn content(path: &Path, bytes: u64) -> Result<Vec<u8>, String> {
    if bytes > MOST_BYTES {
        return Err("it is larger than 1 MiB and is not read".to_owned());
    }
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("it cannot be read: {error}"))?;
    file.take(MOST_BYTES)
        .read_to_end(&mut content)
        .map_err(|error| format!("it cannot be read: {error}"))?;
    Ok(content)
}
