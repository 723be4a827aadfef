//! The log: standard error, for a terminal or for the journal. Level by `BEDSIDE_LOG` (`error`, `warn`, `info`, `debug`).

use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;

/// Starts the log of this process; later calls do nothing.
pub fn start() {
    start_at(LevelFilter::INFO);
}

/// Starts the log, at `default` where `BEDSIDE_LOG` says nothing.
pub fn start_at(default: LevelFilter) {
    let level = std::env::var("BEDSIDE_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default);
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(terminal);
    // The journal has its own clock, and the libraries must not have theirs.
    let _ = builder.without_time().try_init();
}
