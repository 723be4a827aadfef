//! A simulated device and its cable: a pseudo-terminal, or the line of a simulation.

use bedside_agent::clock;
use bedside_agent::ingest::serial::drivers::{Now, driver};
use bedside_agent::simulate::serial::{Simulator, simulator};
use embassy_time::Timer;
use iomt_mapping::Timestamp;
use std::cell::{Cell, RefCell};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// How long a terminal that nobody has open is left alone.
const DEAF_MS: u64 = 20;

/// A device and its cable. The device runs on when the cable is out.
pub struct Cable<L> {
    /// Its driver.
    pub name: &'static str,
    /// Whether the cable is plugged in.
    pub plugged: Cell<bool>,
    begin: Timestamp,
    device: RefCell<Box<dyn Simulator + Send>>,
    baud: u32,
    line: RefCell<Option<L>>,
    /// Somebody has the other end open.
    heard: Cell<bool>,
    changed: Notify,
}

enum Event {
    Time,
    Bytes(usize),
    Deaf,
    End,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Cable<L> {
    /// The device of a driver on a patient, switched on at `begin`; the cable is out.
    pub fn new(name: &'static str, patient: u64, begin: Timestamp) -> Cable<L> {
        Cable {
            name,
            plugged: Cell::new(false),
            begin,
            device: RefCell::new(simulator(name, patient).expect("a simulator of this name")),
            baud: driver(name).expect("a driver of this name").settings.baud,
            line: RefCell::new(None),
            heard: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// A line is there, or is taken away; the old one is gone.
    pub fn connect(&self, line: Option<L>) {
        self.heard.set(false);
        self.line.replace(line);
        self.changed.notify_one();
    }

    /// Pulls the cable.
    pub fn pull(&self) {
        self.plugged.set(false);
        self.connect(None);
    }

    fn put_back(&self, line: Option<L>) {
        let mut place = self.line.borrow_mut();
        if self.plugged.get() && place.is_none() {
            *place = line;
        }
    }

    fn now(&self) -> Now {
        let wall = clock::wall();
        let passed = (wall.ticks() - self.begin.ticks()) / 10;
        Now {
            monotonic_us: u64::try_from(passed).unwrap_or(0),
            wall: Some(wall),
        }
    }

    /// The device talks for ever, whether or not somebody listens.
    pub async fn play(&self) {
        let mut said = Vec::new();
        let mut received = [0; 256];
        loop {
            let now = self.now();
            let next = {
                let mut device = self.device.borrow_mut();
                if device
                    .deadline()
                    .is_some_and(|deadline| deadline <= now.monotonic_us)
                {
                    device.step(now, &mut said);
                }
                device.deadline()
            };
            if !said.is_empty() {
                self.say(&std::mem::take(&mut said)).await;
                continue;
            }
            let pause = next.map_or(3600 * 1_000_000, |at| at.saturating_sub(now.monotonic_us).max(1));
            let mut line = self.line.take();
            let deaf = Cell::new(line.is_none());
            let event = {
                let listening = async {
                    match &mut line {
                        Some(line) => match line.read(&mut received).await {
                            Ok(0) => Event::End,
                            Ok(length) => Event::Bytes(length),
                            Err(_) => {
                                // Nobody has the terminal open.
                                deaf.set(true);
                                Timer::after_millis(DEAF_MS).await;
                                Event::Deaf
                            }
                        },
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = Timer::after_micros(pause) => Event::Time,
                    () = self.changed.notified() => Event::Time,
                    event = listening => event,
                }
            };
            self.heard.set(!deaf.get());
            match event {
                Event::End => line = None,
                Event::Bytes(length) => {
                    let bytes = received.get(..length).unwrap_or_default();
                    self.device.borrow_mut().bytes(bytes, self.now(), &mut said);
                }
                Event::Deaf | Event::Time => {}
            }
            self.put_back(line);
        }
    }

    /// Bytes leave as fast as the line carries them, in pieces as an adapter gives them.
    async fn say(&self, bytes: &[u8]) {
        for piece in bytes.chunks(32) {
            Timer::after_micros(piece.len() as u64 * 10 * 1_000_000 / u64::from(self.baud)).await;
            if !self.heard.get() {
                continue;
            }
            let Some(mut line) = self.line.take() else {
                continue;
            };
            if line.write_all(piece).await.is_ok() {
                self.put_back(Some(line));
            }
        }
    }
}
