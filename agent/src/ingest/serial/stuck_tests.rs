//! Devices that are there and say nothing that means anything, in virtual time.

use super::port_name::PortName;
use super::{Line, PortSettings, Ports, SimulatedLine, Waiting, start_on};
use crate::clock;
use crate::config::{ClockTrust, SerialConfig};
use crate::ingest::{SourceContext, SourceStatus};
use crate::message::{Message, SourceId};
use crate::telemetry::errors::ErrorRecord;
use embassy_time::{Duration, Timer, with_timeout};
use iomt_mapping::Timestamp;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

/// Lines whose other ends are kept, each opening with its time.
#[derive(Clone, Default)]
struct Bench(Rc<RefCell<Vec<(u64, DuplexStream)>>>);

impl Ports for Bench {
    fn open(&self, _: &PortName, _: PortSettings) -> Result<(Box<dyn Line>, PathBuf), ErrorRecord> {
        let (gateway, device) = tokio::io::duplex(4096);
        self.0
            .borrow_mut()
            .push((clock::monotonic_us() / 1_000_000, device));
        Ok((Box::new(SimulatedLine::from(gateway)), "/dev/ttyUSB0".into()))
    }

    fn changed<'a>(&'a self, _: &'a Path) -> Waiting<'a> {
        Box::pin(Timer::after_secs(1))
    }
}

impl Bench {
    /// Seconds from the first opening to each.
    fn openings(&self) -> Vec<u64> {
        let openings = self.0.borrow();
        let seconds = openings.iter().map(|(second, _)| second - openings[0].0);
        seconds.collect()
    }

    /// The device's end of the newest line.
    fn take(&self) -> DuplexStream {
        let mut openings = self.0.borrow_mut();
        let (_, device) = openings.last_mut().unwrap();
        std::mem::replace(device, tokio::io::duplex(1).0)
    }

    fn put_back(&self, device: DuplexStream) {
        self.0.borrow_mut().last_mut().unwrap().1 = device;
    }
}

fn source(members: &str) -> (Bench, mpsc::Receiver<Message>, Arc<SourceStatus>) {
    let (sender, messages) = mpsc::channel(64);
    let status = Arc::new(SourceStatus::default());
    let context = SourceContext {
        id: SourceId(5),
        name: "monitor".into(),
        gateway_id: "bed-12".into(),
        boot: 2,
        trust: ClockTrust::Always,
        sender,
        resume: Vec::new(),
        memory: Default::default(),
        records: Vec::new(),
        ending: Arc::default(),
        status: Arc::clone(&status),
        events: mpsc::unbounded_channel().0,
    };
    let config: SerialConfig =
        toml::from_str(&format!("port = '/dev/ttyUSB0'\ndevice_id = 'bed-1'\n{members}")).unwrap();
    let bench = Bench::default();
    let (_, running) = start_on(&config, context, Rc::new(bench.clone())).unwrap();
    tokio::task::spawn_local(running);
    (bench, messages, status)
}

fn simulate(test: impl Future<Output = ()>) {
    let start = Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
    clock::simulate(start, test).unwrap();
}

/// A value of the PM6750's oximeter.
const VALUE: [u8; 8] = [0x55, 0xAA, 0x06, 0x04, 0x00, 0x61, 0x47, 0x4D];

#[test]
fn a_silent_device_is_said_and_dialled_again_until_it_speaks() {
    simulate(async {
        let (bench, mut messages, status) = source("driver = 'berry-pm6750'");
        Timer::after_secs(29).await;
        assert!(status.is_connected() && status.error().is_none());
        Timer::after_secs(2).await;
        let text = status.error().unwrap().text;
        assert!(
            status.is_connected() && text.contains("nothing is heard"),
            "{text}"
        );
        // Silence is known after 30 s; the pauses then are 30 s, a minute, two, and so on.
        Timer::after_secs(600).await;
        assert_eq!(bench.openings(), [0, 60, 150, 300, 570]);
        assert_eq!(status.error().unwrap().text, text, "it is still so");
        let mut device = bench.take();
        let mut asked = [0; 12];
        device.read_exact(&mut asked).await.unwrap();
        assert_eq!(
            asked[..4],
            [0x55, 0xAA, 0x04, 0xFC],
            "asked as at the first opening"
        );
        device.write_all(&VALUE).await.unwrap();
        let message = with_timeout(Duration::from_secs(1), messages.recv()).await;
        assert!(message.unwrap().is_some());
        assert!(status.error().is_none() && status.is_connected());
        // From now on it is a device that was heard: its next silence begins anew.
        Timer::after_secs(31).await;
        assert_eq!(bench.openings().len(), 5);
        Timer::after_secs(31).await;
        assert_eq!(bench.openings().len(), 6);
    });
}

#[test]
fn a_device_that_repeats_garbage_is_said_and_dialled_again() {
    simulate(async {
        let (bench, mut messages, status) = source("driver = 'berry-pm6750'");
        Timer::after_secs(1).await;
        for _ in 0..400 {
            let mut device = bench.take();
            device.write_all(&[0x3C; 64]).await.unwrap();
            bench.put_back(device);
            Timer::after_millis(100).await;
        }
        let text = status.error().unwrap().text;
        assert!(text.contains("no readings") && status.is_connected(), "{text}");
        assert_eq!(bench.openings().len(), 2, "{:?}", bench.openings());
        assert!(messages.try_recv().is_err());
    });
}

#[test]
fn bytes_before_a_hang_up_are_read() {
    simulate(async {
        let (bench, mut messages, status) = source("driver = 'berry-pm6750'");
        Timer::after_millis(10).await;
        let mut device = bench.take();
        device.write_all(&VALUE).await.unwrap();
        drop(device);
        let message = with_timeout(Duration::from_secs(1), messages.recv()).await;
        assert!(message.unwrap().is_some());
        Timer::after_millis(10).await;
        assert!(status.error().unwrap().text.contains("unplugged"));
    });
}
