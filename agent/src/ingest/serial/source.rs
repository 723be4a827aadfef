//! The loop of a serial source: open, feed the driver, do what it asks for, and open again when the port is gone.

use super::MakeDriver;
use super::drivers::{Now, Output, PortSettings};
use super::open;
use crate::clock;
use crate::config::ClockTrust;
use crate::ingest::backoff::Backoff;
use crate::ingest::outlet::Outlet;
use crate::ingest::stamp::Stamper;
use crate::ingest::{SourceContext, SourceStatus, setup_error};
use crate::message::{Message, Payload, PayloadKind};
use crate::telemetry::errors::{ErrorRecord, ErrorSeverity, ErrorType};
use bytes::Bytes;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_serial::SerialStream;

/// Bytes of messages that wait for the intake before reading pauses: minutes of the fastest line.
const QUEUE_BYTES: usize = 1 << 20;

/// Bytes taken from the port at once.
const READ_BYTES: usize = 4096;

/// How long a write may take: 4 KiB at 9600 baud need 4 s.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Garbage without a single frame before the settings of the port are suspected, in bytes.
const SUSPECT_BYTES: u64 = 512;

/// A port that was open this long worked; one that fails sooner is opened ever more rarely.
const STABLE: Duration = Duration::from_secs(5);

/// Why a port is not read any more.
enum End {
    Gone(String),
    Stopped,
}

/// A serial source.
pub(super) struct Source {
    path: PathBuf,
    make: MakeDriver,
    settings: PortSettings,
    device_id: Option<Arc<str>>,
    context: SourceContext,
    stamper: Stamper,
    backoff: Backoff,
    outlet: Outlet,
    paused: bool,
    opened: u64,
}

impl Source {
    pub(super) fn new(
        path: PathBuf,
        make: MakeDriver,
        settings: PortSettings,
        device_id: Option<Arc<str>>,
        context: SourceContext,
    ) -> Source {
        Source {
            stamper: Stamper::new(context.boot, context.trust),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            path,
            make,
            settings,
            device_id,
            outlet: Outlet::new(context.sender.clone()),
            context,
            paused: false,
            opened: 0,
        }
    }

    fn status(&self) -> &SourceStatus {
        &self.context.status
    }

    /// Runs until the intake is gone.
    pub(super) async fn run(mut self) {
        while !self.outlet.is_closed() {
            match open::open(&self.path, self.settings) {
                Ok(port) => {
                    if self.opened > 0 {
                        self.status().reconnects.count();
                    }
                    self.opened += 1;
                    if self.status().set_connected() {
                        tracing::info!(
                            source = &*self.context.name,
                            "serial port {} is open",
                            self.path.display()
                        );
                    }
                    // The stream is dropped with this call, before the next attempt.
                    let began = Instant::now();
                    match self.read(port).await {
                        End::Gone(why) => self.report(open::lost(&self.path, &why), false),
                        End::Stopped => return,
                    }
                    if began.elapsed() >= STABLE {
                        self.backoff.reset();
                    }
                    let pause = self.backoff.pause();
                    self.outlet.during(Timer::after(pause)).await;
                }
                Err(record) => self.report(record, false),
            }
            let path = self.path.clone();
            self.outlet.during(open::wait_for_change(&path)).await;
        }
    }

    /// Reads an open port until its end.
    async fn read(&mut self, mut port: SerialStream) -> End {
        let mut driver = (self.make)();
        let mut out = Output::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut line = Line::default();
        driver.start(now(self.context.trust), &mut out);
        loop {
            if let Err(why) = self.carry_out(&mut port, &mut out, &mut line).await {
                return End::Gone(why);
            }
            if self.outlet.is_closed() {
                return End::Stopped;
            }
            let deadline = driver.deadline();
            let Source {
                context,
                outlet,
                paused,
                ..
            } = &mut *self;
            *paused = outlet.bytes() >= QUEUE_BYTES;
            tokio::select! {
                read = port.read(&mut buffer), if !*paused => match read {
                    // A hang-up reads as end of file, again and again.
                    Ok(0) => return End::Gone("it was unplugged".to_owned()),
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        driver.bytes(bytes, now(context.trust), &mut out);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return End::Gone(error.to_string()),
                },
                () = outlet.moved() => {}
                () = until(deadline) => driver.timeout(now(context.trust), &mut out),
            }
        }
    }

    /// Does what the driver asked for and empties `out`; readings first, so that a failed write costs none.
    async fn carry_out(
        &mut self,
        port: &mut SerialStream,
        out: &mut Output,
        line: &mut Line,
    ) -> Result<(), String> {
        self.status().garbage.add(out.garbage);
        self.status()
            .refused
            .add(u64::try_from(out.errors.len()).unwrap_or(0));
        self.status()
            .frames
            .add(u64::try_from(out.messages.len()).unwrap_or(0));
        self.judge(line, out);
        out.garbage = 0;
        out.errors.clear();
        for reading in out.messages.drain(..) {
            let message = Message {
                source: self.context.id,
                stamp: self.stamper.stamp(),
                payload: Payload(Bytes::from(reading.body)),
                kind: PayloadKind::Whole,
                topic: None,
                properties: Vec::new(),
                device_id: self.device_id.clone(),
                possible_repeat: false,
                ack: None,
            };
            self.context.status.received.count();
            self.outlet.put(message);
        }
        if self.outlet.bytes() >= QUEUE_BYTES && !self.paused {
            self.status().closed_for_backpressure.count();
            let text =
                "the store is slower than the serial line: reading pauses, and the device may lose readings";
            let mut record = setup_error("BackpressureException", ErrorType::GeneralError, text.to_owned());
            record.severity = ErrorSeverity::Warning;
            self.report(record, true);
        }
        if let Some(settings) = out.settings.take() {
            open::apply(port, settings).map_err(|error| error.description)?;
        }
        for bytes in out.send.drain(..) {
            match with_timeout(WRITE_PATIENCE, port.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("the device takes no bytes: check cable and flow control".to_owned()),
            }
        }
        Ok(())
    }

    /// Tells when bytes come and no frame is ever found, and when frames come again.
    fn judge(&self, line: &mut Line, out: &Output) {
        if !out.messages.is_empty() {
            line.garbage = 0;
            if self.status().error().is_some() {
                self.status().set_connected();
                tracing::info!(
                    source = &*self.context.name,
                    "readings come from {}",
                    self.path.display()
                );
            }
            return;
        }
        let before = line.garbage;
        line.garbage += out.garbage;
        if before < SUSPECT_BYTES && line.garbage >= SUSPECT_BYTES {
            let reason = out
                .errors
                .last()
                .map_or("nothing that begins like a frame", |error| error.reason.name());
            let text = format!(
                "bytes come from {} but no readings ({reason}): check baud rate, parity, driver or framing of the source",
                self.path.display()
            );
            let mut record = setup_error("SerialPortException", ErrorType::GeneralError, text);
            record.severity = ErrorSeverity::Warning;
            self.report(record, true);
        }
    }

    /// Shows the error; a line in the log only when it is news.
    fn report(&self, record: ErrorRecord, connected: bool) {
        if self.status().set_error(record.clone(), connected) {
            tracing::warn!(
                source = &*self.context.name,
                error = record.name,
                "{}",
                record.text
            );
        }
    }
}

/// What is known of the line since the last reading.
#[derive(Default)]
struct Line {
    garbage: u64,
}

fn now(trust: ClockTrust) -> Now {
    Now {
        monotonic_us: clock::monotonic_us(),
        wall: clock::is_trusted(trust).then(clock::wall),
    }
}

async fn until(deadline_us: Option<u64>) {
    match deadline_us {
        Some(at) => Timer::at(Instant::from_micros(at)).await,
        None => std::future::pending().await,
    }
}
