//! The loop of a serial source: open, feed the driver, do what it asks for, and open again when the port is gone.

use super::commits::Commits;
use super::drivers::{Driver, Now, Output, PortSettings, Speaks};
use super::line::{Line, Verdict};
use super::port_name::PortName;
use super::ports::{self, Ports};
use super::{MakeDriver, open};
use crate::clock;
use crate::config::ClockTrust;
use crate::ingest::backoff::Backoff;
use crate::ingest::outlet::Outlet;
use crate::ingest::stamp::Stamper;
use crate::ingest::{SourceContext, SourceStatus, setup_error};
use crate::message::{Message, Payload, PayloadKind};
use crate::sabotage::{self, Sabotage};
use crate::telemetry::errors::{ErrorRecord, ErrorSeverity, ErrorType};
use bytes::Bytes;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of messages that wait for the intake before reading pauses: minutes of the fastest line.
const QUEUE_BYTES: usize = 1 << 20;

/// Bytes taken from the port at once.
const READ_BYTES: usize = 4096;

/// How long a write may take: 4 KiB at 9600 baud need 4 s.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Answers that wait for a commit or for their turn at most; a device that has more to say repeats what was not answered.
const WAITING_ANSWERS: usize = 64;

/// Records that are known of a source at most; drivers remember fewer.
const RECORDS: usize = 20_000;

/// A port that was open this long, or gave a reading, worked; one that fails sooner is opened ever more rarely.
const STABLE: Duration = Duration::from_secs(5);

/// Why a port is not read any more.
enum End {
    Gone(String),
    Stopped,
}

/// What a serial source reads, and how.
pub(super) struct Device {
    /// Where it is.
    pub(super) port: PortName,
    /// What opens it.
    pub(super) ports: Rc<dyn Ports>,
    /// Makes what understands it.
    pub(super) make: MakeDriver,
    /// Identities of the records that were handed over, oldest first.
    pub(super) sent: Rc<RefCell<Vec<u64>>>,
    /// Settings of the port.
    pub(super) settings: PortSettings,
    /// When it is heard.
    pub(super) speaks: Speaks,
    /// Connection device id of its messages.
    pub(super) device_id: Option<Arc<str>>,
}

/// A serial source.
pub(super) struct Source {
    device: Device,
    /// What understands the device. It outlives the port, so that it knows what it has handed over already.
    driver: Box<dyn Driver + Send>,
    commits: Arc<Commits>,
    context: SourceContext,
    stamper: Stamper,
    backoff: Backoff,
    outlet: Outlet,
    paused: bool,
    opened: u64,
}

impl Source {
    pub(super) fn new(device: Device, commits: Arc<Commits>, context: SourceContext) -> Source {
        let driver = new_driver(&device);
        Source {
            driver,
            stamper: Stamper::new(context.boot, context.trust),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            device,
            commits,
            outlet: Outlet::counting_all(context.sender.clone()),
            context,
            paused: false,
            opened: 0,
        }
    }

    fn status(&self) -> &SourceStatus {
        &self.context.status
    }

    /// Runs until the agent stops; then hands over what driver and waiting room hold.
    pub(super) async fn run(mut self) {
        let ending = Arc::clone(&self.context.ending);
        let _busy = ending.busy();
        tokio::select! {
            () = self.work() => return,
            () = ending.wanted() => {}
        }
        self.close();
        while !self.outlet.is_empty() && !self.outlet.is_closed() {
            self.outlet.moved().await;
        }
    }

    /// Opens and reads the port again and again, until the intake is gone. Whatever it is waiting for, it can be dropped: what
    /// was read is with the driver or in the waiting room.
    async fn work(&mut self) {
        while !self.outlet.is_closed() {
            let opened = self.device.ports.open(&self.device.port, self.device.settings);
            match opened {
                Ok((port, path)) => {
                    if self.opened > 0 {
                        self.status().reconnects.count();
                    }
                    self.opened += 1;
                    if self.status().set_connected() {
                        tracing::info!(
                            source = &*self.context.name,
                            "serial port {} is open",
                            path.display()
                        );
                    }
                    // The stream is dropped with this call, before the next attempt.
                    let (began, frames) = (Instant::now(), self.status().frames.get());
                    let end = self.read(port, &path).await;
                    self.close();
                    match end {
                        End::Gone(why) => self.report(open::lost(&path, &why), false),
                        End::Stopped => return,
                    }
                    if began.elapsed() >= STABLE || self.status().frames.get() > frames {
                        self.backoff.reset();
                    }
                    let pause = self.backoff.pause();
                    self.outlet.during(Timer::after(pause)).await;
                }
                Err(record) => self.report(record, false),
            }
            let watched = self.device.port.watched().to_owned();
            let ports = Rc::clone(&self.device.ports);
            self.outlet.during(ports.changed(&watched)).await;
        }
    }

    /// Reads an open port until its end.
    async fn read(&mut self, mut port: Box<dyn ports::Line>, path: &Path) -> End {
        let mut out = Output::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut line = Line::new(self.device.speaks, clock::monotonic_us());
        let mut answers = VecDeque::new();
        let mut kept = Vec::new();
        self.driver.start(now(self.context.trust), &mut out);
        loop {
            self.hand_over(&mut out);
            if let Some(verdict) = line.judge(&out, clock::monotonic_us()) {
                self.show(&verdict, path);
            }
            if let Err(why) = self.answer(&mut port, &mut out, &mut answers).await {
                return End::Gone(why);
            }
            if self.outlet.is_closed() {
                return End::Stopped;
            }
            let deadlines = [self.driver.deadline(), line.deadline()];
            let deadline = deadlines.into_iter().flatten().min();
            let Source {
                context,
                outlet,
                paused,
                driver,
                commits,
                ..
            } = &mut *self;
            *paused = outlet.bytes() >= QUEUE_BYTES;
            out = Output::default();
            tokio::select! {
                read = port.read(&mut buffer), if !*paused => match read {
                    // A hang-up reads as end of file, again and again.
                    Ok(0) => return End::Gone("it was unplugged".to_owned()),
                    Ok(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        line.heard(bytes, clock::monotonic_us());
                        if sabotage::is_on(Sabotage::LoseLastRead) {
                            let before = std::mem::replace(&mut kept, bytes.to_vec());
                            driver.bytes(&before, now(context.trust), &mut out);
                            continue;
                        }
                        driver.bytes(bytes, now(context.trust), &mut out);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return End::Gone(error.to_string()),
                },
                () = outlet.moved() => {}
                () = commits.changed(), if !answers.is_empty() => {}
                () = until(deadline) => driver.timeout(now(context.trust), &mut out),
            }
        }
    }

    /// Brings to its end what the port has left.
    fn close(&mut self) {
        let mut out = Output::default();
        self.driver.closed(now(self.context.trust), &mut out);
        self.hand_over(&mut out);
    }

    /// Counts, and hands readings over; first of all, so that a write that fails costs none.
    fn hand_over(&mut self, out: &mut Output) {
        self.status().garbage.add(out.garbage);
        self.status()
            .refused
            .add(u64::try_from(out.errors.len()).unwrap_or(0));
        self.status()
            .frames
            .add(u64::try_from(out.messages.len()).unwrap_or(0));
        for reading in out.messages.drain(..) {
            let message = Message {
                source: self.context.id,
                stamp: self.stamper.stamp(),
                payload: Payload(Bytes::from(reading.body)),
                kind: PayloadKind::Whole,
                topic: None,
                properties: Vec::new(),
                device_id: self.device.device_id.clone(),
                possible_repeat: false,
                record: reading.record,
                ack: self.driver.acknowledges().then(|| self.commits.next()),
            };
            self.device.remember(reading.record);
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
    }

    /// Sends what the driver has to say, in order, each when the messages that it acknowledges are committed.
    async fn answer(
        &mut self,
        port: &mut Box<dyn ports::Line>,
        out: &mut Output,
        answers: &mut VecDeque<(u64, Vec<u8>)>,
    ) -> Result<(), String> {
        if let Some(settings) = out.settings.take() {
            port.apply(settings)?;
        }
        let after = if out.after_commit {
            self.commits.handed_over()
        } else {
            0
        };
        answers.extend(out.send.drain(..).map(|bytes| (after, bytes)));
        answers.truncate(WAITING_ANSWERS);
        while let Some((_, bytes)) = answers.pop_front_if(|(after, _)| self.commits.covers(*after)) {
            match with_timeout(WRITE_PATIENCE, port.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("the device takes no bytes: check cable and flow control".to_owned()),
            }
        }
        Ok(())
    }

    /// Tells when bytes come and no frame is ever found, when nothing comes at all, and when frames come again.
    fn show(&self, verdict: &Verdict, path: &Path) {
        let path = path.display();
        let text = match verdict {
            Verdict::Works if self.status().error().is_some() => {
                self.status().set_connected();
                tracing::info!(source = &*self.context.name, "readings come from {path}");
                return;
            }
            Verdict::Works => return,
            Verdict::Noise(suspicion) => format!(
                "bytes come from {path} but no readings: {}, driver or framing of the source",
                suspicion.advice()
            ),
            Verdict::Silent => format!(
                "{path} is open and nothing is heard from the device: check that it is switched on, that its menu lets it send, \
                 and the cable (some need a crossed one)"
            ),
        };
        let mut record = setup_error("SerialPortException", ErrorType::GeneralError, text);
        record.severity = ErrorSeverity::Warning;
        self.report(record, true);
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

/// A driver that knows what was handed over before.
fn new_driver(device: &Device) -> Box<dyn Driver + Send> {
    let mut driver = (device.make)();
    driver.remember(&device.sent.borrow());
    driver
}

impl Device {
    /// Notes a record that is handed over.
    fn remember(&self, record: Option<u64>) {
        let mut sent = self.sent.borrow_mut();
        sent.extend(record);
        if sent.len() > RECORDS {
            sent.drain(..RECORDS / 2);
        }
    }
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
