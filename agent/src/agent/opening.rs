//! Before the loops: the store is opened, however long its disk makes that wait.
//!
//! A disk that is full, read-only, not there or not ours is no reason to end: a service manager would give up on the service
//! after some tries, and nobody could ask it what is wrong. The agent runs, says so, takes nothing, and goes on as soon as
//! the disk works. It ends only for what waiting cannot change: another process that has the store open.

use super::{Surroundings, store_folder};
use crate::associations::Book;
use crate::clock;
use crate::config::Config;
use crate::corrections::Correction;
use crate::message::SourceId;
use crate::store::{Recovered, Store, StoreError, Trouble};
use crate::telemetry::status::{Status, StoreState};
use crate::worker::Worker;
use anyhow::Context as _;
use embassy_time::{Duration, Instant, Timer};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration as SystemDuration;
use tokio::sync::watch;

/// First and longest pause before the store is tried again.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// Tries after which a file that cannot be read is set aside: it is a bad place of the medium then, and not a hiccup.
const UNREADABLE_TRIES: u32 = 4;

/// The agent while it waits for the disk of its store.
pub struct Waiting {
    /// Its configuration.
    pub config: Config,
    /// The folder of the store.
    pub folder: PathBuf,
    trouble: RefCell<(Option<Trouble>, String)>,
    started: Instant,
    beat_us: Cell<u64>,
}

impl Waiting {
    fn new(config: &Config, folder: &Path) -> Waiting {
        Waiting {
            config: config.clone(),
            folder: folder.to_owned(),
            trouble: RefCell::default(),
            started: Instant::now(),
            beat_us: Cell::new(clock::monotonic_us()),
        }
    }

    /// What it waits for, in one line.
    pub fn text(&self) -> String {
        format!(
            "{}: nothing is taken until the store can be opened",
            self.trouble.borrow().1
        )
    }

    /// Whether the store's thread has given no answer for longer than `limit`.
    pub fn is_stuck(&self, limit: SystemDuration) -> bool {
        u128::from(clock::monotonic_us().saturating_sub(self.beat_us.get())) > limit.as_micros()
    }

    /// The status as it is shown.
    pub fn status(&self) -> Status {
        let (kind, text) = self.trouble.borrow().clone();
        Status {
            gateway: self.config.gateway.id.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            time: clock::wall().to_string(),
            clock_trusted: clock::is_trusted(self.config.clock.trust),
            health: "trouble",
            problems: vec![self.text()],
            store: StoreState {
                folder: self.folder.display().to_string(),
                trouble: Some(text),
                trouble_kind: kind,
                ..StoreState::default()
            },
            ..Status::default()
        }
    }

    /// Says what is the matter when that has changed.
    fn note(&self, kind: Trouble, text: String) {
        self.beat_us.set(clock::monotonic_us());
        let before = self.trouble.replace((Some(kind), text));
        if before.0 != Some(kind) {
            tracing::error!("{}", self.text());
        }
    }
}

/// An open store with the numbers of what the configuration names.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) recovered: Recovered,
    pub(super) sources: Vec<SourceId>,
    pub(super) destinations: Vec<u32>,
    pub(super) last_good: Option<Vec<u8>>,
    pub(super) book: Book,
    pub(super) corrections: Vec<Correction>,
}

/// Opens the store; none when `stop` turned true before its disk worked.
///
/// # Errors
/// What trying again cannot change.
pub(super) async fn open(
    config: &Config,
    worker: &Worker,
    surroundings: &dyn Surroundings,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<Option<Opened>> {
    let folder = store_folder(config);
    let mut waiting: Option<Rc<Waiting>> = None;
    let (mut opened, mut unreadable, mut pause) = (None, 0, PAUSE);
    loop {
        let (config_too, folder_too) = (config.clone(), folder.clone());
        let tried = worker
            .call(move || attempt(&config_too, &folder_too, opened))
            .await;
        let error = match tried.map_err(|_| StoreError::Stopped)? {
            Ok(found) => {
                if let Some(waiting) = waiting {
                    let seconds = waiting.started.elapsed().as_secs();
                    tracing::info!("the store can be opened, after {seconds} s");
                }
                return Ok(Some(found));
            }
            Err((error, kept)) => {
                opened = kept;
                error
            }
        };
        let Some(trouble) = Trouble::of(&error, &folder) else {
            return Err(error).with_context(|| format!("store in {}", folder.display()));
        };
        unreadable += u32::from(error.is_unreadable());
        if unreadable >= UNREADABLE_TRIES {
            unreadable = 0;
            let (folder, reason) = (folder.clone(), error.to_string());
            let noted = worker.call(move || Store::condemn_in(&folder, &reason)).await;
            if let Ok(Err(error)) = noted {
                tracing::error!("{error}; the store cannot be read and not be set aside");
            }
        }
        let text = format!("{} ({error})", trouble.advice(&folder));
        match &waiting {
            Some(waiting) => waiting.note(trouble, text),
            None => {
                let new = Rc::new(Waiting::new(config, &folder));
                new.note(trouble, text);
                surroundings.store_waits(&new);
                waiting = Some(new);
            }
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
            () = Timer::after(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

type OpenStore = Box<(Store, Recovered)>;

/// Why it could not be opened, and what is open for the next try.
type Failed = (StoreError, Option<OpenStore>);

/// Opens the store unless it is open already, and enters what the configuration names. A store that was opened is kept for
/// the next try, so that tries do not count as starts, unless its files have to be closed.
fn attempt(config: &Config, folder: &Path, opened: Option<OpenStore>) -> Result<Opened, Failed> {
    let (mut store, recovered) = match opened {
        Some(opened) => *opened,
        None => Store::open_with(folder, &config.store.encryption).map_err(|error| (error, None))?,
    };
    match enter(config, &mut store) {
        Ok(entered) => Ok(Opened {
            store,
            recovered,
            sources: entered.sources,
            destinations: entered.destinations,
            last_good: entered.last_good,
            book: entered.book,
            corrections: entered.corrections,
        }),
        Err(error) => {
            let close = Trouble::of(&error, folder).is_none_or(Trouble::needs_reopening);
            Err((error, (!close).then(|| Box::new((store, recovered)))))
        }
    }
}

/// What is read and entered once the file is open.
struct Entered {
    sources: Vec<SourceId>,
    destinations: Vec<u32>,
    last_good: Option<Vec<u8>>,
    book: Book,
    corrections: Vec<Correction>,
}

fn enter(config: &Config, store: &mut Store) -> Result<Entered, StoreError> {
    let sources = config
        .sources
        .iter()
        .map(|source| store.source(&source.name))
        .collect::<Result<_, _>>()?;
    let destinations = config
        .destinations
        .iter()
        .map(|destination| store.destination(&destination.name))
        .collect::<Result<_, _>>()?;
    store.set_limit(store.limit_beside_former(config.store.max_bytes.0))?;
    Ok(Entered {
        sources,
        destinations,
        last_good: store.last_good_packs()?,
        book: store.association_book()?,
        corrections: store.corrections()?,
    })
}
