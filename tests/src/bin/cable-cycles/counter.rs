//! A device that says numbered lines, and knows which of them were read to the last byte.

use crate::{COMMITTED_AFTER, terminal};
use bedside_tests::cables::COUNTER;
use embassy_time::{Instant, Timer};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use tokio::io::AsyncWriteExt as _;
use tokio_serial::{SerialPort as _, SerialStream};

/// Between two lines.
const PAUSE_MS: u64 = 5;
/// A terminal whose other end had nothing to read twice in this distance has given everything: the kernel takes a moment to
/// hand bytes from one end to the other.
const SETTLED_MS: u64 = 25;

/// The counter and its cable. Both ends of the terminal are here: the other one tells what is not read yet.
#[derive(Default)]
pub struct Counter {
    ends: RefCell<Option<(SerialStream, SerialStream)>>,
    /// Grows with each cable.
    cable: Cell<u64>,
    number: Cell<u64>,
    /// Lines that were read, with the time.
    read: RefCell<Vec<(u64, Instant)>>,
    kills: RefCell<Vec<Instant>>,
}

impl Counter {
    /// A new cable.
    pub fn plug_in(&self, folder: &Path) {
        self.cable.set(self.cable.get() + 1);
        self.ends.replace(Some(terminal(folder, COUNTER)));
    }

    /// The cable is out.
    pub fn pull(&self) {
        self.cable.set(self.cable.get() + 1);
        self.ends.take();
    }

    /// The agent was killed.
    pub fn killed(&self) {
        self.kills.borrow_mut().push(Instant::now());
    }

    /// Says a line, waits until it was read, and so on; often the cable is pulled within a line.
    pub async fn count(self: Rc<Self>) {
        loop {
            Timer::after_millis(PAUSE_MS).await;
            let Some((mut device, gateway)) = self.ends.take() else {
                continue;
            };
            let (number, cable) = (self.number.get() + 1, self.cable.get());
            self.number.set(number);
            let second = number / 10;
            let line = format!(
                "{{\"deviceId\":\"dev-{COUNTER}\",\"patientId\":\"p-1\",\"time\":\"2026-03-01T{:02}:{:02}:{:02}.{}00Z\",\"heartRate\":{number}}}\n",
                10 + second / 3600,
                second / 60 % 60,
                second % 60,
                number % 10
            );
            // In two halves, and the cable may be out between them.
            let (first, rest) = line.split_at(line.len() / 2);
            let mut whole = device.write_all(first.as_bytes()).await.is_ok();
            Timer::after_millis(2).await;
            if self.cable.get() != cable {
                continue;
            }
            whole &= device.write_all(rest.as_bytes()).await.is_ok();
            self.put_back(cable, device, gateway);
            let mut empty = 0;
            while whole && self.cable.get() == cable && empty < 2 {
                Timer::after_millis(SETTLED_MS).await;
                let waiting = match &*self.ends.borrow() {
                    Some((_, gateway)) => gateway.bytes_to_read().unwrap_or(1),
                    None => break,
                };
                empty = if waiting == 0 { empty + 1 } else { 0 };
            }
            if empty == 2 && self.cable.get() == cable {
                self.read.borrow_mut().push((number, Instant::now()));
            }
        }
    }

    fn put_back(&self, cable: u64, device: SerialStream, gateway: SerialStream) {
        let mut place = self.ends.borrow_mut();
        if self.cable.get() == cable && place.is_none() {
            *place = Some((device, gateway));
        }
    }

    /// Numbers of the lines that must be there, and how many others may be.
    pub fn delivered(&self) -> (Vec<u64>, u64) {
        let kills = self.kills.borrow();
        let is_certain = |at: Instant| {
            !kills
                .iter()
                .any(|kill| at <= *kill && *kill < at + COMMITTED_AFTER)
        };
        let read = self.read.borrow();
        let certain: Vec<u64> = read
            .iter()
            .filter(|(_, at)| is_certain(*at))
            .map(|(number, _)| *number)
            .collect();
        let possible = self.number.get() - certain.len() as u64;
        (certain, possible)
    }
}
