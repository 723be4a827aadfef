//! Faults on purpose, so that a proof can show that it would find them: what a proof of the store does not notice with one
//! of these turned on, it would not notice in an honest program either.
//!
//! They exist with the cargo feature `sabotage` only. The tests turn it on; the program of a gateway is built without it
//! (`cross/build` looks), and then [`is_on`] is `false` at compile time and the faults are not in the program.

/// A promise that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sabotage {
    /// A commit is not synced to the medium (`synchronous=NORMAL`).
    SynchronousNormal,
    /// A message is acknowledged before the commit that holds it.
    AckBeforeCommit,
    /// The cursor is committed on its own, before the rows that it stands for.
    CursorBeforeRows,
    /// What is read back after a sync that failed is taken for what is on the medium.
    TrustFailedSync,
    /// Pauses before another try are the same on every gateway.
    NoJitter,
    /// Which records of devices were committed is not remembered.
    ForgetRecords,
    /// What was read from a serial line when it was unplugged is not looked at.
    LoseLastRead,
    /// A changed Observation is written over whatever the server holds by now.
    NoIfMatch,
    /// A write without an answer is repeated at once, although the server's search may not show the first one yet.
    ResendBlindly,
    /// A message that holds [`ABORT_MARKER`] ends the process when it is normalized.
    AbortOnMarker,
    /// The names in a folder are not synced after files were created or renamed in it.
    SkipDirectorySync,
    /// A file is renamed to its place before its content is synced.
    RenameBeforeSync,
    /// The schema is changed statement by statement, and not in one transaction.
    MigrateInSteps,
    /// The log is taken into the database without a sync between, and begun anew.
    CheckpointWithoutSync,
    /// How far a salvage is is noted before the messages that it brings, in a commit of its own.
    SalvageMarkFirst,
    /// A set of mapping packs is stored after the messages that name it, in a commit of its own.
    RevisionAfterMessages,
    /// What a batch is sealed with follows from its position.
    NonceFromPosition,
    /// Whose a device is is looked up once and believed for two hours, as the MedTech service does.
    CacheTwoHours,
}

/// What a message holds that ends the process with [`Sabotage::AbortOnMarker`].
pub const ABORT_MARKER: &[u8] = b"abort-the-process";

/// All of them with their names, as `--sabotage` and `BEDSIDE_SABOTAGE` take them.
pub const ALL: &[(&str, Sabotage)] = &[
    ("synchronous-normal", Sabotage::SynchronousNormal),
    ("ack-before-commit", Sabotage::AckBeforeCommit),
    ("cursor-before-rows", Sabotage::CursorBeforeRows),
    ("trust-failed-sync", Sabotage::TrustFailedSync),
    ("no-jitter", Sabotage::NoJitter),
    ("forget-records", Sabotage::ForgetRecords),
    ("lose-last-read", Sabotage::LoseLastRead),
    ("no-if-match", Sabotage::NoIfMatch),
    ("resend-blindly", Sabotage::ResendBlindly),
    ("abort-on-marker", Sabotage::AbortOnMarker),
    ("skip-directory-sync", Sabotage::SkipDirectorySync),
    ("rename-before-sync", Sabotage::RenameBeforeSync),
    ("migrate-in-steps", Sabotage::MigrateInSteps),
    ("checkpoint-without-sync", Sabotage::CheckpointWithoutSync),
    ("salvage-mark-first", Sabotage::SalvageMarkFirst),
    ("revision-after-messages", Sabotage::RevisionAfterMessages),
    ("nonce-from-position", Sabotage::NonceFromPosition),
    ("cache-two-hours", Sabotage::CacheTwoHours),
];

/// Whether this fault is turned on.
#[cfg(not(feature = "sabotage"))]
pub const fn is_on(_fault: Sabotage) -> bool {
    false
}

/// Takes the time that the medium needs for a sync: none but its own.
#[cfg(not(feature = "sabotage"))]
pub const fn wait_for_the_medium() {}

/// Notes with which random bytes what was sealed: nobody asks.
#[cfg(not(feature = "sabotage"))]
pub const fn sealed_with(_random: &[u8], _place: &[u8], _plain: &[u8]) {}

/// Shows a proof that two names are about to change places: nobody looks.
#[cfg(not(feature = "sabotage"))]
pub const fn exchanging(_one: &std::path::Path, _other: &std::path::Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "sabotage")]
pub use turned_on::{
    Sealing, exchanging, from_environment, is_on, sealed_with, take_sealings, turn_on, wait_for_the_medium,
    watch_exchanges,
};

#[cfg(feature = "sabotage")]
mod turned_on {
    use super::{ALL, Sabotage};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock};
    use std::time::Duration;

    /// Takes the time that the medium needs for a sync, `BEDSIDE_SYNC_DELAY_MS` milliseconds longer than it does: a virtual
    /// disk answers in a fraction of what flash takes. Called before the commit, so that nothing is durable any earlier.
    pub fn wait_for_the_medium() {
        static DELAY: OnceLock<Duration> = OnceLock::new();
        let delay = DELAY.get_or_init(|| {
            let milliseconds = std::env::var("BEDSIDE_SYNC_DELAY_MS").ok();
            Duration::from_millis(milliseconds.and_then(|text| text.parse().ok()).unwrap_or(0))
        });
        if !delay.is_zero() {
            crate::clock::block(*delay);
        }
    }

    /// Sees two names that are about to change places, and may refuse.
    type Watch = fn(&Path, &Path) -> std::io::Result<()>;

    static WATCH: OnceLock<Watch> = OnceLock::new();

    /// From now on `watch` sees every exchange of two names: that call does not go through the C library, where a disk that
    /// forgets sees the others.
    pub fn watch_exchanges(watch: Watch) {
        // Set once, by the proof.
        let _ = WATCH.set(watch);
    }

    /// Shows a proof that two names are about to change places.
    ///
    /// # Errors
    /// What the proof lets the call fail with.
    pub fn exchanging(one: &Path, other: &Path) -> std::io::Result<()> {
        WATCH.get().map_or(Ok(()), |watch| watch(one, other))
    }

    /// Something that was sealed, whether or not it reached the medium.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Sealing {
        /// What key and nonce come from, beside the store's own keys.
        pub random: Vec<u8>,
        /// Checksum of place and plain bytes: equal for equal ones.
        pub content: u32,
    }

    static SEALINGS: Mutex<Vec<Sealing>> = Mutex::new(Vec::new());

    /// Notes with which random bytes what was sealed, for a proof that they are never used twice.
    pub fn sealed_with(random: &[u8], place: &[u8], plain: &[u8]) {
        let mut content = crc32fast::Hasher::new();
        content.update(place);
        content.update(plain);
        if let Ok(mut sealings) = SEALINGS.lock() {
            // Only a proof takes them; a program that runs for long must not gather them.
            if sealings.len() < 1 << 16 {
                sealings.push(Sealing {
                    random: random.to_vec(),
                    content: content.finalize(),
                });
            }
        }
    }

    /// What was sealed since the last call.
    pub fn take_sealings() -> Vec<Sealing> {
        SEALINGS
            .lock()
            .map(|mut sealings| std::mem::take(&mut *sealings))
            .unwrap_or_default()
    }

    /// A bit for each fault.
    static ON: AtomicU64 = AtomicU64::new(0);

    /// There is no fault of this name.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    #[error("there is no sabotage called {0:?}")]
    pub struct Unknown(String);

    /// Whether this fault is turned on.
    pub fn is_on(fault: Sabotage) -> bool {
        ON.load(Ordering::Relaxed) & (1 << fault as u8) != 0
    }

    /// Turns the fault called `name` on, for the rest of the process.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn turn_on(name: &str) -> Result<(), Unknown> {
        let found = ALL.iter().find(|(known, _)| *known == name);
        let (_, fault) = found.ok_or_else(|| Unknown(name.to_owned()))?;
        ON.fetch_or(1 << *fault as u8, Ordering::Relaxed);
        tracing::error!("sabotage on purpose: {name}");
        Ok(())
    }

    /// Turns on what `BEDSIDE_SABOTAGE` names, separated by commas.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn from_environment() -> Result<(), Unknown> {
        let names = std::env::var("BEDSIDE_SABOTAGE").unwrap_or_default();
        names
            .split(',')
            .filter(|name| !name.is_empty())
            .try_for_each(turn_on)
    }
}
