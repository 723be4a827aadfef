//! `bedside-agent demo`: everything in one process, nothing installed.

use super::simulate::{interrupted, parse_duration};
use crate::demo::{Moment, Options, run, view};
use embassy_time::{Duration, Instant};
use std::io::{IsTerminal, Write};

/// Between two lines of figures where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Show how readings become FHIR Observations, in one process and with nothing installed.
///
/// Simulated wearables publish to a broker and write to a serial line, the agent reads both and writes Observations to a FHIR
/// server in memory. Ctrl-C stops it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent demo
  bedside-agent demo --for 15s --json          the last line is the account of all messages

Configuration, mapping packs and store stay in a temporary folder whose path is shown: they are a start for your own.")]
pub struct Demo {
    /// How long (\"15s\", \"5 min\"); until Ctrl-C when absent
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// End with one line of JSON, and nothing else on the standard output
    #[arg(long)]
    json: bool,
    /// Wearables on MQTT; one more is on the serial line
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    devices: u16,
    /// Messages a second of each wearable
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    rate: f64,
    /// Another number, other patients
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Address of the status page
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: String,
}

impl Demo {
    /// Runs until the time is over or the program is interrupted.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub fn run(&self) -> anyhow::Result<()> {
        super::log::start_at(tracing::level_filters::LevelFilter::WARN);
        let options = Options {
            devices: usize::from(self.devices),
            rate: self.rate,
            duration: self.duration,
            seed: self.seed,
            listen: self.listen.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut screen = Screen::new(self.json);
        let report = tokio::task::LocalSet::new().block_on(
            &runtime,
            run(&options, interrupted(), |moment| screen.show(moment)),
        )?;
        if self.json {
            println!("{}", serde_json::to_string(&report.summary)?);
        } else {
            println!("\n{}", view::conclusion(&report));
        }
        Ok(())
    }
}

/// Where the demo is shown: figures in place on a terminal, else a line now and then.
struct Screen {
    /// With `--json` the standard output belongs to the account.
    to_error: bool,
    terminal: bool,
    /// Lines that the next figures replace.
    shown: usize,
    next: Instant,
}

impl Screen {
    fn new(to_error: bool) -> Screen {
        let terminal = if to_error {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        Screen {
            to_error,
            terminal,
            shown: 0,
            next: Instant::now(),
        }
    }

    fn show(&mut self, moment: &Moment) {
        let text = match moment {
            Moment::Started { .. } => {
                self.next = Instant::now() + PLAIN_INTERVAL;
                format!("{}\n", view::introduction(moment).unwrap_or_default())
            }
            Moment::Figures { summary, last } => {
                let figures = view::figures(summary);
                let last = last.as_ref().map(view::observation).unwrap_or_default();
                if self.terminal {
                    // Up to the first of the lines shown before, and everything below it away. Long lines are cut and not
                    // wrapped (mode 7), so that their number is known.
                    let up = match self.shown {
                        0 => String::new(),
                        lines => format!("\x1b[{lines}A\x1b[J"),
                    };
                    self.shown = 3;
                    format!("{up}\x1b[?7l{figures}\nlast: {last}\nCtrl-C stops.\n\x1b[?7h")
                } else if Instant::now() >= self.next {
                    self.next = Instant::now() + PLAIN_INTERVAL;
                    format!("{figures}; last: {last}\n")
                } else {
                    return;
                }
            }
        };
        // A reader that has gone away does not stop the demo.
        let _ = match self.to_error {
            true => std::io::stderr().lock().write_all(text.as_bytes()),
            false => std::io::stdout().lock().write_all(text.as_bytes()),
        };
    }
}
