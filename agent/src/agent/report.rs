//! The state of the agent for the command line, the status page and the metrics endpoint.

use super::{Agent, DestinationEntry, SourceEntry, kind_of};
use crate::clock;
use crate::config::Encryption;
use crate::control::{Inquiry, Question};
use crate::dead_letters::{DeadLetters, LetterQuestion};
use crate::destinations::Desk;
use crate::forward::Destinations;
use crate::normalize::receive_time;
use crate::telemetry::metrics;
use crate::telemetry::status::{DestinationState, PackState, SourceState, Status, StoreState, Summary};
use crate::timekeeping::{seconds, undated};
use crate::wear::{self, Emmc, WearState};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Ticks of 100 ns in a second.
const SECOND: i64 = 10_000_000;
/// A store that is full within this many seconds is worth an operator's attention: a day.
const SOON: u64 = 86_400;
/// Devices with a wrong clock that are named.
const DEVICES_NAMED: usize = 5;
/// A backlog older than this is worth an operator's attention, in seconds.
const OLD_BACKLOG: u64 = 3600;

/// Answers inquiries until nobody can ask any more.
pub(super) async fn answer(agent: Rc<Agent>, mut questions: mpsc::Receiver<Inquiry>) {
    while let Some(Inquiry { question, answer }) = questions.recv().await {
        let text = match question {
            Question::Status => serde_json::to_string(&agent.status().await).unwrap_or_default(),
            Question::Metrics => metrics::render(&agent.status().await),
            Question::DeadLetters(question) => agent.dead_letters(&question).await,
            Question::Destinations(question) => {
                let destinations = agent.handles();
                agent.desk(&destinations).answer(&question).await
            }
            Question::Associations => agent.associations().to_string(),
            Question::Associate { entry } => match agent.associate(&entry).await {
                Ok(done) => done.to_string(),
                Err(error) => serde_json::json!({ "error": error }).to_string(),
            },
            Question::Clock { entry: command } => match undated::answer(&agent.pipeline, &command).await {
                Ok(done) => done.to_string(),
                Err(error) => serde_json::json!({ "error": error }).to_string(),
            },
        };
        // Who asked may have gone.
        let _ = answer.send(text);
    }
}

impl Agent {
    async fn dead_letters(&self, question: &LetterQuestion) -> String {
        let sources = self
            .sources
            .iter()
            .map(|s| (s.id, Arc::from(s.config.name.as_str())))
            .collect();
        let desk = DeadLetters {
            pipeline: &self.pipeline,
            destinations: &self.handles(),
            sources: &sources,
        };
        desk.answer(question).await
    }

    fn handles(&self) -> Destinations {
        Destinations(self.destinations.iter().map(|d| d.handle.clone()).collect())
    }

    fn desk<'a>(&'a self, destinations: &'a Destinations) -> Desk<'a> {
        Desk {
            pipeline: &self.pipeline,
            destinations,
        }
    }

    /// Readings and messages that no destination has confirmed and that wait for nothing.
    pub fn unsent(&self) -> u64 {
        self.destinations
            .iter()
            .map(|d| self.destination_state(d).buffered)
            .sum()
    }

    /// One line about what was started.
    pub fn describe(&self) -> String {
        format!(
            "gateway {}, {} sources, {} destinations, {} mapping packs, store {}",
            self.config.gateway.id,
            self.sources.len(),
            self.destinations.len(),
            self.pack_set.borrow().packs().len(),
            self.store_folder.display()
        )
    }

    /// The loop that has given no sign of life for longer than `limit_us`, if there is one.
    pub fn stuck(&self, limit_us: u64) -> Option<String> {
        let now = clock::monotonic_us();
        let beats = self.pipeline.beats.borrow();
        let stuck = beats
            .iter()
            .find(|(name, at)| *name != "upkeep" && now.saturating_sub(**at) > limit_us);
        stuck.map(|(name, _)| name.clone())
    }

    /// The accounts.
    pub fn summary(&self) -> Summary {
        let states: Vec<_> = self
            .destinations
            .iter()
            .map(|d| self.destination_state(d))
            .collect();
        self.summary_of(&states)
    }

    fn summary_of(&self, destinations: &[DestinationState]) -> Summary {
        let outbox = self.pipeline.outbox.borrow();
        let progress = outbox.progress();
        let base = Summary {
            messages: progress.messages,
            unmatched: progress.unmatched,
            unparsable: progress.unparsable,
            matches: progress.matches,
            ..Summary::default()
        };
        Summary::of(base, destinations)
    }

    /// Addresses, counts, links, packs and problems.
    pub async fn status(&self) -> Status {
        let mut destinations = Vec::new();
        for entry in &self.destinations {
            let mut state = self.destination_state(entry);
            state.oldest_unsent_seconds = self.age_of_unsent(entry).await;
            destinations.push(state);
        }
        let sources: Vec<_> = self.sources.iter().map(|s| self.source_state(s)).collect();
        let stored = self
            .pipeline
            .store
            .call(|store| {
                let aside = store.set_aside_bytes();
                Ok((store.size(), store.statistics(), store.ledger()?, aside))
            })
            .await;
        let (bytes, statistics, ledger, set_aside_bytes) = stored.unwrap_or_default();
        let dead_letters = self.pipeline.outbox.borrow().letters_by_cause();
        let store = StoreState {
            id: self.store_id.to_string(),
            folder: self.store_folder.display().to_string(),
            bytes,
            trouble: self.pipeline.disk.trouble().map(|trouble| trouble.text),
            trouble_kind: self.pipeline.disk.trouble().and_then(|trouble| trouble.kind),
            check: self.pipeline.check.borrow().clone(),
            damaged: self.pipeline.outbox.borrow().damaged(),
            encrypted: self.config.store.encryption != Encryption::Off,
            salvages: self.pipeline.former.states.borrow().clone(),
            doubt: super::association::doubt(&self.pipeline.associations.borrow()),
            set_aside_bytes,
            outlook: self.pipeline.bounds.forecast.borrow().outlook(),
            wear: WearState {
                process_written_bytes: wear::process_written_bytes(),
                emmc: wear::emmc_of(&self.store_folder),
                ..self.pipeline.wear.borrow().state()
            },
            statistics,
        };
        let clock_trusted = clock::is_trusted(self.pipeline.trust);
        let mut status = Status {
            gateway: self.config.gateway.id.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            time: clock::wall().to_string(),
            clock_trusted,
            device_clocks: self.pipeline.device_clocks.borrow().shown(),
            clock_synchronized_seconds: clock::synchronized_seconds(),
            clock_jumps: self.pipeline.clock.borrow().jumps,
            clock_moved_seconds: self
                .pipeline
                .clock
                .borrow()
                .recent_jump(clock::monotonic_us())
                .map(seconds),
            health: "ok",
            problems: Vec::new(),
            summary: self.summary_of(&destinations),
            sources,
            destinations,
            packs: self.pack_states(),
            store,
            dead_letters,
            ledger: ledger
                .into_iter()
                .map(|(count, reason)| format!("{count}: {reason}"))
                .collect(),
        };
        judge(&mut status, clock::wall().ticks());
        // A disk that cannot be read says so elsewhere.
        let left_over = self.desk(&self.handles()).left_over().await.unwrap_or_default();
        for left in left_over {
            status.problems.push(format!(
                "destination {0} is not in the configuration any more and {1} readings are kept for it: configure it again, or give \
                 them up with `bedside-agent destination drop {0}`",
                left.name, left.unsent
            ));
            if status.health == "ok" {
                status.health = "degraded";
            }
        }
        for problem in self.association_problems.borrow().iter() {
            status.problems.push(format!("associations: {problem}"));
            if status.health == "ok" {
                status.health = "degraded";
            }
        }
        status
    }

    /// Age in seconds of the oldest message that a destination has not got all of; none when it has everything.
    async fn age_of_unsent(&self, entry: &DestinationEntry) -> Option<u64> {
        let first = {
            let outbox = self.pipeline.outbox.borrow();
            let counters = outbox.progress().destinations.get(&entry.handle.id);
            let next = counters.map_or(0, |d| d.cursor) + 1;
            let follows = entry.handle.takes_messages && next < self.pipeline.head.get();
            let rows = outbox.first_unsent(entry.handle.id);
            rows.into_iter().chain(follows.then_some(next)).min()?
        };
        // A disk that cannot be read says so elsewhere.
        let batch = self.pipeline.read(first).await.unwrap_or_default();
        let stamp = batch.first()?.stored.message.stamp;
        let (received, _) = receive_time(&stamp, &self.pipeline.dating.borrow());
        Some(u64::try_from((clock::wall().ticks() - received.ticks()) / SECOND).unwrap_or(0))
    }

    fn source_state(&self, entry: &SourceEntry) -> SourceState {
        let status = &entry.status;
        SourceState {
            name: entry.config.name.clone(),
            kind: kind_of(&entry.config),
            connected: status.is_connected(),
            received: status.received.get(),
            reconnects: status.reconnects.get(),
            refused: status.garbage.get() + status.oversize.get(),
            error: status.error(),
            without_packs: self.pipeline.packs.borrow().current(entry.id).0 == 0,
            away: status.away(),
        }
    }

    fn destination_state(&self, entry: &DestinationEntry) -> DestinationState {
        let outbox = self.pipeline.outbox.borrow();
        let id = entry.handle.id;
        let counters = outbox
            .progress()
            .destinations
            .get(&id)
            .cloned()
            .unwrap_or_default();
        let link = entry.link.borrow();
        let (mut buffered, waiting) = outbox.backlog(id);
        let behind = self.pipeline.head.get().saturating_sub(counters.cursor + 1);
        if entry.handle.takes_messages {
            buffered += behind;
        }
        let now_us = clock::monotonic_us();
        DestinationState {
            name: entry.handle.name.to_string(),
            kind: entry.kind,
            counts: if entry.handle.takes_messages {
                "messages"
            } else {
                "matches"
            },
            link: match link.up {
                Some(true) => "up",
                Some(false) => "down",
                None => "idle",
            },
            error: link.error.clone(),
            circuit: link.circuit(now_us).name(),
            next_try_seconds: link.next_try_us.map(|at| at.saturating_sub(now_us) / 1_000_000),
            matches: if entry.handle.takes_messages {
                counters.matches + behind
            } else {
                counters.matches
            },
            delivered: counters.delivered,
            superseded: counters.superseded,
            buffered,
            waiting,
            dead: counters.dead,
            lost: counters.lost,
            written: counters.written,
            oldest_unsent_seconds: None,
            waits: outbox.waiting(id),
            corrections: self.pipeline.corrections.borrow().count(id),
        }
    }

    fn pack_states(&self) -> Vec<PackState> {
        let problems = self.pack_problems.borrow();
        let packs = self.pack_set.borrow();
        let mut states: Vec<PackState> = packs
            .packs()
            .iter()
            .map(|pack| {
                let mut types: Vec<String> = pack
                    .device
                    .templates()
                    .iter()
                    .map(|t| t.type_name().to_owned())
                    .collect();
                types.dedup();
                PackState {
                    name: pack.text.name.clone(),
                    revision: pack.text.revision().chars().take(12).collect(),
                    types,
                    problem: None,
                }
            })
            .collect();
        for problem in problems.iter() {
            let text = problem.lines.join("; ");
            match states.iter_mut().find(|state| state.name == problem.name) {
                Some(state) => state.problem = Some(text),
                None => states.push(PackState {
                    name: problem.name.clone(),
                    problem: Some(text),
                    ..PackState::default()
                }),
            }
        }
        states
    }
}

/// Health and what needs attention, from the rest of the status.
fn judge(status: &mut Status, now: i64) {
    let mut problems = Vec::new();
    let mut health = "ok";
    if let Some(trouble) = &status.store.trouble {
        health = "trouble";
        problems.push(format!(
            "{trouble}: nothing is acknowledged until the store can be written"
        ));
    }
    if status.store.damaged > 0 {
        problems.push(format!(
            "store: {} messages are damaged on the disk; the storage may be worn out (look at `dmesg`), plan to replace it",
            status.store.damaged
        ));
    }
    if let Some(seconds) = status
        .store
        .outlook
        .full_in_seconds
        .filter(|seconds| *seconds < SOON)
    {
        problems.push(format!(
            "the store is full in about {} h at the present rate, then the oldest waveforms and periodic readings are given \
             up: look why the destinations do not take them, or raise [store] max_bytes",
            seconds.div_ceil(3600)
        ));
    }
    for salvaged in status
        .store
        .salvages
        .iter()
        .filter(|salvaged| salvaged.concerns(now))
    {
        problems.push(format!("store: a damaged one was set aside: {}", salvaged.text()));
    }
    if let Some(doubt) = &status.store.doubt {
        problems.push(format!("store: {doubt}"));
    }
    if status.store.wear.exceeded {
        problems.push(format!(
            "store: the flash budget cannot be held ({} MB a day are written, {} MB are allowed); widen `commit_interval_max` and the \
             sender's window, or write to a larger medium",
            status.store.wear.bytes_per_day.unwrap_or_default() / 1_000_000,
            status.store.wear.budget_per_day.unwrap_or_default() / 1_000_000,
        ));
    }
    if let Some(emmc) = status.store.wear.emmc.filter(Emmc::is_worn) {
        problems.push(format!(
            "store: the flash says that it is worn out (life used: {} tenths of type A, {} of type B; reserve: {} of 3), plan to \
             replace it",
            emmc.life_a, emmc.life_b, emmc.pre_eol
        ));
    }
    for source in &status.sources {
        if let Some(error) = source.error.as_ref().filter(|_| !source.connected) {
            problems.push(format!("source {}: {}", source.name, error.text));
        }
        if source.without_packs {
            problems.push(format!(
                "source {}: no mapping pack; its messages are kept and wait for one",
                source.name
            ));
        }
    }
    for destination in &status.destinations {
        if let Some(error) = &destination.error {
            problems.push(format!(
                "destination {}: {}: {}",
                destination.name, error.name, error.text
            ));
        }
        if let Some(age) = destination.oldest_unsent_seconds.filter(|age| *age > OLD_BACKLOG) {
            problems.push(format!(
                "destination {}: the oldest unsent reading is {} min old",
                destination.name,
                age / 60
            ));
        }
        if destination.corrections > 0 {
            problems.push(format!(
                "destination {}: {} corrections of whose readings are, not done yet",
                destination.name, destination.corrections
            ));
        }
        for (error, count) in &destination.waits {
            problems.push(format!(
                "destination {}: {count} readings wait: {}",
                destination.name, error.text
            ));
        }
    }
    for pack in &status.packs {
        if let Some(problem) = &pack.problem {
            problems.push(format!("mapping pack {}: {problem}", pack.name));
        }
    }
    let wrong = status
        .device_clocks
        .iter()
        .filter_map(|clock| Some((&clock.device, clock.problem.as_ref()?)));
    for (device, problem) in wrong.clone().take(DEVICES_NAMED) {
        problems.push(format!("device {device}: {problem}"));
    }
    if let Some(more) = wrong.count().checked_sub(DEVICES_NAMED).filter(|more| *more > 0) {
        problems.push(format!(
            "the clocks of {more} more devices are off, see `status --json`"
        ));
    }
    if let Some(moved) = &status.clock_moved_seconds {
        problems.push(format!(
            "the wall clock was moved by {moved} s within the last hour although it was trusted: readings without a time of their \
             own before and after do not fit together"
        ));
    }
    if !status.clock_trusted {
        problems.push(
            "the clock is not synchronised: readings without a time of their own are held (see `timedatectl`, or [clock] \
             trust)"
                .to_owned(),
        );
    }
    if health == "ok" && !problems.is_empty() {
        health = "degraded";
    }
    status.health = health;
    status.problems = problems;
}
