//! Joins folder, state and clock: looks when the kernel says that something has changed, when a change can be judged, and
//! every second anyway (a folder on a network or an overlay may change without a word). A change is in use within 2 s.

use super::folder::FolderReader;
use super::state::{PackEvent, PackProblem, PackState, held_text};
use super::{PackSet, PackText};
use crate::clock;
use crate::worker::Worker;
use embassy_time::{Duration, with_timeout};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Pause between two looks when nothing was heard. With [`super::state::QUIET_US`] it keeps the promise of 2 s.
const POLL: Duration = Duration::from_secs(1);

/// Shortest pause between two looks, so that a long copy is not read at each of its writes.
const SHORTEST: Duration = Duration::from_millis(50);

/// How changes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The kernel tells, and the folder is polled.
    Kernel,
    /// The folder is polled only: what the kernel tells comes from outside the simulated time.
    Poll,
}

/// The drop-in folder with the packs in use.
pub struct PackFolder {
    dir: PathBuf,
    looker: Looker,
    packs: watch::Sender<Arc<PackSet>>,
    problems: watch::Sender<Arc<Vec<PackProblem>>>,
}

/// What a look needs; it goes to the worker and comes back.
struct Looker {
    reader: FolderReader,
    state: PackState,
    folder: Option<(u64, u64)>,
}

impl Looker {
    fn look(&mut self, all: bool) -> Vec<PackEvent> {
        // A change that waits to be judged may have been followed by one in the same tick of the file system's clock.
        let snapshot = self.reader.read(all || self.state.next_due().is_some());
        self.folder = snapshot.folder.as_ref().ok().copied();
        self.state.observe(&snapshot, clock::monotonic_us())
    }
}

impl PackFolder {
    /// Loads the packs in `dir` at once. A pack whose files are broken falls back to the one in `last_good`, which the
    /// store has kept.
    pub fn open(dir: &Path, last_good: Vec<PackText>) -> PackFolder {
        let mut reader = FolderReader::new(dir);
        let mut state = PackState::new(last_good);
        let snapshot = reader.read(true);
        let events = state.observe_at_start(&snapshot, clock::monotonic_us());
        log(dir, &events);
        if let Err(why) = &snapshot.folder {
            tracing::error!("mapping packs: {}: {why}", dir.display());
        }
        for stray in &snapshot.strays {
            tracing::warn!("mapping packs: {}", stray.one_line());
        }
        PackFolder {
            dir: dir.to_owned(),
            packs: watch::Sender::new(Arc::new(state.set())),
            problems: watch::Sender::new(Arc::new(state.problems())),
            looker: Looker {
                reader,
                state,
                folder: snapshot.folder.ok(),
            },
        }
    }

    /// The packs in use, now and at each change.
    pub fn packs(&self) -> watch::Receiver<Arc<PackSet>> {
        self.packs.subscribe()
    }

    /// What is wrong in the folder, now and at each change.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<PackProblem>>> {
        self.problems.subscribe()
    }

    /// Watches the folder until nobody wants its packs any more. Files are read on `worker`.
    pub async fn watch(self, worker: Worker, notice: Notice) {
        let PackFolder {
            dir,
            mut looker,
            packs,
            problems,
        } = self;
        let changed = Arc::new(Notify::new());
        let mut kernel = None;
        while !(packs.is_closed() && problems.is_closed()) {
            if notice == Notice::Kernel {
                follow(&mut kernel, &dir, looker.folder, &changed);
            }
            let now = clock::monotonic_us();
            let due = looker
                .state
                .next_due()
                .map(|due| Duration::from_micros(due.saturating_sub(now)));
            let pause = due.unwrap_or(POLL).min(POLL).max(SHORTEST);
            let heard = with_timeout(pause, changed.notified()).await.is_ok();
            if heard {
                embassy_time::Timer::after(SHORTEST).await;
            }
            let done = worker.call(move || {
                let events = looker.look(heard);
                (looker, events)
            });
            let Ok((back, events)) = done.await else {
                // The worker stops with the program; a panic while loading cannot be told from it, and would repeat.
                tracing::error!("mapping packs: the folder is not watched any more");
                return;
            };
            looker = back;
            log(&dir, &events);
            let in_use_changed =
                |event: &PackEvent| matches!(event, PackEvent::Loaded { .. } | PackEvent::Removed { .. });
            if events.iter().any(in_use_changed) {
                packs.send_replace(Arc::new(looker.state.set()));
            }
            let found = looker.state.problems();
            problems.send_if_modified(|known| {
                let differs = **known != found;
                if differs {
                    *known = Arc::new(found);
                }
                differs
            });
        }
    }
}

/// Listens to the kernel; anew when the folder is another one than before (removed and made again, a link that was moved).
fn follow(
    kernel: &mut Option<((u64, u64), RecommendedWatcher)>,
    dir: &Path,
    folder: Option<(u64, u64)>,
    changed: &Arc<Notify>,
) {
    let Some(folder) = folder else {
        *kernel = None;
        return;
    };
    if kernel.as_ref().is_some_and(|(known, _)| *known == folder) {
        return;
    }
    let notify = Arc::clone(changed);
    let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading of the files is no change.
        if event.map_or(true, |event| !event.kind.is_access()) {
            notify.notify_one();
        }
    })
    .and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watching {
        Ok(watcher) => *kernel = Some((folder, watcher)),
        Err(error) => {
            tracing::debug!("mapping packs: changes are found by looking every second: {error}");
            *kernel = None;
        }
    }
}

fn log(dir: &Path, events: &[PackEvent]) {
    for event in events {
        match event {
            PackEvent::Loaded { pack, warnings } => {
                tracing::info!("mapping pack {} is in use", pack.text.name);
                for warning in warnings {
                    tracing::warn!("mapping pack {}: {}", pack.text.name, warning.one_line());
                }
            }
            PackEvent::Removed { name } => tracing::info!("mapping pack {name} was removed"),
            PackEvent::Rejected { name, kept, findings } => {
                let rest = if *kept {
                    "the last good version stays in use"
                } else {
                    "it is not in use"
                };
                tracing::error!("mapping pack {name} is wrong, {rest} ({})", dir.display());
                for finding in findings {
                    tracing::error!("mapping pack {name}: {}", finding.one_line());
                }
            }
            PackEvent::Held { name, types, .. } => tracing::warn!("mapping pack {}", held_text(name, types)),
        }
    }
}
