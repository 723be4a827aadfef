//! The loop of a serial source: open, feed the driver, do what it asks for, and open again when the port is gone.

use super::commits::Commits;
use super::drivers::{Driver, Now, Output, PortSettings, Speaks};
use super::line::{Line, Verdict};
use super::port_name::PortName;
use super::ports::{self, Ports};
use super::reader::{Reader, TIMES, speed};
use super::unsent::{Sent, Unsent};
use super::{MakeDriver, open};
use crate::ingest::backoff::Backoff;
use crate::ingest::outlet::Outlet;
use crate::ingest::stamp::Stamper;
use crate::ingest::{SourceContext, SourceStatus, setup_error};
use crate::message::{Message, Payload, PayloadKind};
use crate::sabotage::{self, Sabotage};
use crate::telemetry::errors::{ErrorRecord, ErrorSeverity, ErrorType};
use bytes::Bytes;
use embassy_time::{Duration, Instant, Timer};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of messages that wait for the intake before reading pauses: minutes of the fastest line.
const QUEUE_BYTES: usize = 1 << 20;

/// While reading pauses, a line that takes nothing is tried this often: microseconds.
const TRY_US: u64 = 50_000;

/// Records that are known of a source at most; drivers remember fewer.
const RECORDS: usize = 20_000;

/// A port that was open this long, or gave a reading, worked; one that fails sooner is opened ever more rarely.
const STABLE: Duration = Duration::from_secs(5);

/// Why a port is not read any more.
enum End {
    Gone(String),
    /// It is open and says nothing that means anything: worth to be opened again.
    Stuck,
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
    /// How often in a row the port was opened again because nothing that means anything came.
    redials: u32,
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
            redials: 0,
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
                    // What is said of a stuck device holds until it is heard.
                    if self.redials == 0 && self.status().set_connected() {
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
                        End::Gone(why) => {
                            self.redials = 0;
                            self.report(open::lost(&path, &why), false);
                        }
                        End::Stuck => {
                            self.redials += 1;
                            tracing::debug!(
                                source = &*self.context.name,
                                "{} is opened again",
                                path.display()
                            );
                            continue;
                        }
                        End::Stopped => return,
                    }
                    if began.elapsed() >= STABLE || self.status().frames.get() > frames {
                        self.backoff.reset();
                    }
                    let pause = self.backoff.pause();
                    self.outlet.during(Timer::after(pause)).await;
                }
                Err(record) => {
                    self.redials = 0;
                    self.report(record, false);
                }
            }
            let watched = self.device.port.watched().to_owned();
            let ports = Rc::clone(&self.device.ports);
            self.outlet.during(ports.changed(&watched)).await;
        }
    }

    /// Reads an open port until its end.
    async fn read(&mut self, mut port: Box<dyn ports::Line>, path: &Path) -> End {
        let port = &mut *port;
        let mut out = Output::default();
        let mut unsent = Unsent::default();
        let mut kept = Vec::new();
        let mut now = self.now();
        let mut reader = Reader::new(speed(self.device.settings, path), now.monotonic_us);
        let mut line = Line::new(self.device.speaks, reader.speed(), self.redials, now.monotonic_us);
        self.driver.start(now, &mut out);
        loop {
            self.hand_over(&mut out);
            match line.judge(&out, now.monotonic_us) {
                Some(Verdict::Stuck) => return End::Stuck,
                // What is wrong with the other direction stays to be said.
                Some(Verdict::Works) if unsent.has_given_up() => {}
                Some(verdict) => self.show(&verdict, path),
                None => {}
            }
            if !out.send.is_empty() && !out.no_answer {
                reader.spoke(now.monotonic_us);
            }
            if let Err(why) = self.answer(port, &mut out, &mut unsent, &line, now) {
                return self.give_up(port, &mut reader, why);
            }
            if self.outlet.is_closed() {
                return End::Stopped;
            }
            self.paused = self.outlet.bytes() >= QUEUE_BYTES;
            let looks_at = if self.paused && unsent.wants_room() {
                Some(now.monotonic_us + TRY_US)
            } else {
                reader.tick(now.monotonic_us).filter(|_| !self.paused)
            };
            if looks_at.is_some() {
                port.rest();
            }
            let deadlines = [
                self.driver.deadline(),
                line.deadline(),
                unsent.deadline(),
                looks_at,
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let (outlet, commits) = (&mut self.outlet, &self.commits);
            tokio::select! {
                ready = std::future::poll_fn(|context| port.poll_ready(context, unsent.wants_room())),
                    if looks_at.is_none() && !self.paused => if let Err(error) = ready {
                        return self.give_up(port, &mut reader, error.to_string());
                    },
                () = outlet.moved() => {}
                () = commits.changed(), if !unsent.is_empty() => {}
                () = until(deadline) => {}
            }
            out.clear();
            now = self.now();
            let hear = |bytes: &[u8]| {
                line.heard(bytes, now.monotonic_us);
                if sabotage::is_on(Sabotage::LoseLastRead) {
                    let before = std::mem::replace(&mut kept, bytes.to_vec());
                    self.driver.bytes(&before, now, &mut out);
                } else {
                    self.driver.bytes(bytes, now, &mut out);
                }
            };
            if !self.paused
                && let Err(why) = reader.look(port, now.monotonic_us, hear)
            {
                self.hand_over(&mut out);
                return End::Gone(why);
            }
            if self
                .driver
                .deadline()
                .is_some_and(|deadline| deadline <= now.monotonic_us)
            {
                self.driver.timeout(now, &mut out);
            }
        }
    }

    /// Takes what the port still has, before it is closed.
    fn give_up(&mut self, port: &mut dyn ports::Line, reader: &mut Reader, why: String) -> End {
        let (mut out, now) = (Output::default(), self.now());
        let driver = &mut self.driver;
        reader.drain(port, |bytes| driver.bytes(bytes, now, &mut out));
        self.hand_over(&mut out);
        End::Gone(why)
    }

    /// The time, with whether it can be trusted.
    fn now(&mut self) -> Now {
        let stamp = self.stamper.stamp();
        Now {
            monotonic_us: stamp.monotonic_us,
            wall: stamp.trusted.then_some(stamp.wall),
        }
    }

    /// Brings to its end what the port has left.
    fn close(&mut self) {
        let (mut out, now) = (Output::default(), self.now());
        self.driver.closed(now, &mut out);
        self.hand_over(&mut out);
    }

    /// Counts, and hands readings over; first of all, so that a write that fails costs none.
    fn hand_over(&mut self, out: &mut Output) {
        let status = &self.context.status;
        status.garbage.add(out.garbage);
        status.refused.add(u64::try_from(out.errors.len()).unwrap_or(0));
        status.frames.add(u64::try_from(out.messages.len()).unwrap_or(0));
        if out.frames > 0 {
            self.redials = 0;
        }
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

    /// Sends what the driver has to say as far as the line takes it; what it does not take waits while reading goes on.
    fn answer(
        &mut self,
        port: &mut dyn ports::Line,
        out: &mut Output,
        unsent: &mut Unsent,
        line: &Line,
        now: Now,
    ) -> Result<(), String> {
        if let Some(settings) = out.settings.take() {
            port.apply(settings)?;
        }
        let after = if out.after_commit {
            self.commits.handed_over()
        } else {
            0
        };
        unsent.add(after, out.send.drain(..));
        if unsent.is_empty() {
            return Ok(());
        }
        if unsent.send(port, &self.commits, now.monotonic_us)? == Sent::GivenUp {
            let text = "the device takes no bytes: check cable and flow control".to_owned();
            if !line.is_heard(now.monotonic_us) {
                return Err(text);
            }
            // What it says is worth more than what it is told.
            let mut record = setup_error("SerialPortException", ErrorType::GeneralError, text);
            record.severity = ErrorSeverity::Warning;
            self.report(record, true);
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
            Verdict::Works | Verdict::Stuck => return,
            Verdict::Flood { per_second, baud } => format!(
                "{per_second} bytes a second come from {path}, more than {baud} baud can carry: the device or its adapter is stuck, \
                 or the speed in `settings` is not that of the device; it is read {TIMES} times as fast as its speed at most, so that \
                 the other sources go on"
            ),
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

async fn until(deadline_us: Option<u64>) {
    match deadline_us {
        Some(at) => Timer::at(Instant::from_micros(at)).await,
        None => std::future::pending().await,
    }
}
