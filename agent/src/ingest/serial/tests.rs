//! The source over pseudo-terminals: plugging, noise, half lines, and what the driver asks for.

use super::drivers::{Driver, DriverMessage, Now, Output, PortSettings, Speaks};
use super::source::{Device, Source};
use super::{RealPorts, start};
use crate::config::{ClockTrust, SerialConfig};
use crate::ingest::{SourceContext, SourceStatus};
use crate::message::{Message, PayloadKind, SourceId};
use embassy_time::{Duration, Timer, with_timeout};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_serial::{SerialPort, SerialStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// A blood-pressure message of an A&D monitor, measured at `minute`.
fn pressure(minute: u8) -> Vec<u8> {
    let mut bytes = vec![2, 0, 10, 0, 0, 0, 0xFF, 0x02, 0];
    for _ in 0..2 {
        bytes.extend([0xEA, 0x07, 3, 1, 7, minute, 0]);
    }
    bytes.resize(60, 0);
    bytes.extend(b"801D4C4152");
    bytes
}

#[test]
fn a_device_that_forgets_what_is_acknowledged_hears_it_after_the_commit_only() {
    run(async {
        let (mut rig, context) = Rig::new(8);
        let port = rig.folder.path().join("usb-device");
        let config: SerialConfig = toml::from_str(&format!(
            "port = '{}'\ndriver = 'and-pbt'\ndevice_id = 'xpod-4711'",
            port.display()
        ))
        .unwrap();
        let (handle, source) = start(&config, context).unwrap();
        tokio::task::spawn_local(source);
        let mut device = rig.open().await;
        let acknowledger = handle.acknowledger.expect("it acknowledges");
        for round in 0..3 {
            device.write_all(&pressure(round)).await.unwrap();
            let message = with_timeout(PATIENCE, rig.messages.recv())
                .await
                .unwrap()
                .unwrap();
            let mut answer = [0; 4];
            let early = with_timeout(Duration::from_millis(150), device.read_exact(&mut answer)).await;
            assert!(early.is_err(), "answered before the commit");
            if round == 1 {
                // It has lost patience: the same measurement again is no new message, and the answer still waits.
                device.write_all(&pressure(round)).await.unwrap();
                let again = with_timeout(Duration::from_millis(150), rig.messages.recv()).await;
                assert!(again.is_err(), "the measurement was handed over twice");
            }
            if round == 2 {
                // The cable is pulled before the commit: the device says it again and hears the answer on the new line.
                drop(device);
                rig.until("the end", |status| !status.is_connected()).await;
                device = rig.open().await;
                device.write_all(&pressure(round)).await.unwrap();
                let again = with_timeout(Duration::from_millis(150), rig.messages.recv()).await;
                assert!(again.is_err(), "the measurement was handed over twice");
            }
            acknowledger.committed(&[message.ack.expect("a token")]);
            with_timeout(PATIENCE, device.read_exact(&mut answer))
                .await
                .expect("the answer")
                .unwrap();
            assert_eq!(&answer, b"PWA1");
            if round == 1 {
                with_timeout(PATIENCE, device.read_exact(&mut answer))
                    .await
                    .expect("the second answer")
                    .unwrap();
            }
        }
    });
}

/// A folder like `/dev/serial/by-id` and a source that reads a name in it.
struct Rig {
    folder: TempDir,
    messages: mpsc::Receiver<Message>,
    status: Arc<SourceStatus>,
}

impl Rig {
    fn start(members: &str) -> Rig {
        Rig::with_room(members, 512)
    }

    fn with_room(members: &str, room: usize) -> Rig {
        let (rig, context) = Rig::new(room);
        let port = rig.folder.path().join("usb-device");
        let config: SerialConfig = toml::from_str(&format!(
            "port = '{}'\ndevice_id = 'xpod-4711'\n{members}",
            port.display()
        ))
        .unwrap();
        let (handle, source) = start(&config, context).unwrap();
        assert!(handle.acknowledger.is_none());
        tokio::task::spawn_local(source);
        rig
    }

    fn new(room: usize) -> (Rig, SourceContext) {
        let (sender, messages) = mpsc::channel(room);
        let status = Arc::new(SourceStatus::default());
        let context = SourceContext {
            id: SourceId(5),
            name: "oximeter".into(),
            gateway_id: "bed-12".into(),
            boot: 2,
            trust: ClockTrust::Always,
            sender,
            resume: Vec::new(),
            memory: Default::default(),
            records: Vec::new(),
            ending: std::sync::Arc::default(),
            status: Arc::clone(&status),
            events: mpsc::unbounded_channel().0,
        };
        let folder = tempfile::tempdir().unwrap();
        (
            Rig {
                folder,
                messages,
                status,
            },
            context,
        )
    }

    /// A device under the source's name; whatever was there before is gone.
    fn plug_in(&self) -> SerialStream {
        let (device, terminal) = SerialStream::pair().unwrap();
        let name = terminal.name().unwrap();
        // The source must be able to lock it.
        drop(terminal);
        let link = self.folder.path().join("usb-device");
        drop(std::fs::remove_file(&link));
        std::os::unix::fs::symlink(Path::new(&name), link).unwrap();
        device
    }

    async fn open(&self) -> SerialStream {
        let device = self.plug_in();
        self.until("the port is open", SourceStatus::is_connected).await;
        device
    }

    async fn until(&self, what: &str, is_so: impl Fn(&SourceStatus) -> bool) {
        let wait = async {
            while !is_so(&self.status) {
                Timer::after_millis(5).await;
            }
        };
        assert!(with_timeout(PATIENCE, wait).await.is_ok(), "not seen: {what}");
    }

    async fn body(&mut self) -> String {
        let message = with_timeout(PATIENCE, self.messages.recv())
            .await
            .expect("a message")
            .unwrap();
        assert_eq!(
            (message.source, message.kind, message.ack),
            (SourceId(5), PayloadKind::Whole, None)
        );
        assert_eq!(message.device_id.as_deref(), Some("xpod-4711"));
        assert_eq!((message.stamp.boot, message.stamp.trusted), (2, true));
        String::from_utf8(message.payload.bytes().to_vec()).unwrap()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}

#[test]
fn lines_become_messages_whatever_pieces_they_come_in() {
    run(async {
        let mut rig = Rig::start("framing = 'lines'\nformat = 'json'");
        let mut device = rig.open().await;
        for piece in ["{\"hr\"", ":72}", "\r", "\n{\"hr\":73}\n{\"hr\":7", "4}\n"] {
            device.write_all(piece.as_bytes()).await.unwrap();
            Timer::after_millis(20).await;
        }
        for expected in [r#"{"hr":72}"#, r#"{"hr":73}"#, r#"{"hr":74}"#] {
            assert_eq!(rig.body().await, expected);
        }
        assert_eq!(rig.status.received.get(), 3);
    });
}

#[test]
fn a_stream_with_pauses_keeps_its_port() {
    run(async {
        let mut rig = Rig::start("settings = { baud = 115200 }");
        let mut device = rig.open().await;
        let mut number = 0;
        for _ in 0..3 {
            // Bytes without a pause are read at ticks, and a look that finds nothing is no hang-up.
            for _ in 0..100 {
                let line = format!("{{\"number\":{number}}}\n");
                device.write_all(line.as_bytes()).await.unwrap();
                number += 1;
                Timer::after_millis(4).await;
            }
            Timer::after_millis(600).await;
        }
        for expected in 0..number {
            assert_eq!(rig.body().await, format!("{{\"number\":{expected}}}"));
        }
        assert_eq!((rig.status.reconnects.get(), rig.status.garbage.get()), (0, 0));
    });
}

#[test]
fn a_missing_port_is_said_and_taken_when_it_is_plugged_in() {
    run(async {
        let mut rig = Rig::start("");
        rig.until("the error", |status| status.error().is_some()).await;
        let text = rig.status.error().unwrap().text;
        assert!(
            text.contains("usb-device does not exist") && text.contains("/dev/serial/by-id"),
            "{text}"
        );
        let mut device = rig.open().await;
        device.write_all(b"{\"hr\":72}\n").await.unwrap();
        assert_eq!(rig.body().await, r#"{"hr":72}"#);
        assert!(rig.status.error().is_none());
    });
}

#[test]
fn a_device_pulled_out_and_plugged_in_under_another_name_goes_on() {
    run(async {
        let mut rig = Rig::start("");
        let mut held = Vec::new();
        for round in 0..3 {
            let mut device = rig.open().await;
            let name = std::fs::read_link(rig.folder.path().join("usb-device")).unwrap();
            device
                .write_all(format!("{{\"round\":{round}}}\n{{\"ro").as_bytes())
                .await
                .unwrap();
            assert_eq!(rig.body().await, format!("{{\"round\":{round}}}"));
            drop(device);
            rig.until("the end", |status| !status.is_connected()).await;
            assert!(rig.status.error().unwrap().text.contains("is gone"));
            // Takes the free number, so that the next device gets another one.
            held.push((name, SerialStream::pair().unwrap()));
        }
        assert_eq!(rig.status.reconnects.get(), 2);
    });
}

#[test]
fn garbage_costs_only_itself_and_a_line_without_readings_is_said() {
    run(async {
        let mut rig = Rig::start("");
        let mut device = rig.open().await;
        device.write_all(b"\xff\xfe noise\n{\"hr\":72}\n").await.unwrap();
        assert_eq!(rig.body().await, r#"{"hr":72}"#);
        assert!(rig.status.garbage.get() > 0 && rig.status.error().is_none());
        // A line that never ends is bounded, and the next one is found.
        for _ in 0..20 {
            device.write_all(&[b'x'; 500]).await.unwrap();
        }
        rig.until("the suspicion", |status| status.error().is_some())
            .await;
        assert!(rig.status.error().unwrap().text.contains("check baud rate"));
        assert!(rig.status.is_connected());
        device.write_all(b"\n{\"hr\":73}\n").await.unwrap();
        assert_eq!(rig.body().await, r#"{"hr":73}"#);
        assert!(rig.status.error().is_none());
        assert!(rig.status.garbage.get() > 9_000);
    });
}

#[test]
fn a_port_that_another_program_holds_is_said_and_taken_when_free() {
    run(async {
        let rig = Rig::start("");
        let (device, terminal) = SerialStream::pair().unwrap();
        let mut other = terminal;
        other.set_exclusive(true).unwrap();
        let link = rig.folder.path().join("usb-device");
        std::os::unix::fs::symlink(other.name().unwrap(), link).unwrap();
        let is_busy =
            |status: &SourceStatus| status.error().is_some_and(|error| error.text.contains("in use"));
        rig.until("the error", is_busy).await;
        drop(other);
        rig.until("the port is open", SourceStatus::is_connected).await;
        drop(device);
    });
}

#[test]
fn a_slow_store_pauses_reading_and_loses_nothing_that_was_read() {
    run(async {
        // So fast a line that its speed holds nothing up.
        let mut rig = Rig::with_room("settings = { baud = 921600 }", 1);
        let mut device = rig.open().await;
        let writer = async {
            for number in 0..6000 {
                device
                    .write_all(format!("{{\"number\":{number}}}\n").as_bytes())
                    .await
                    .unwrap();
            }
        };
        let reader = async {
            rig.until("the pause", |status| status.closed_for_backpressure.get() > 0)
                .await;
            for number in 0..6000 {
                assert_eq!(rig.body().await, format!("{{\"number\":{number}}}"));
            }
        };
        tokio::join!(writer, reader);
        assert_eq!(rig.status.garbage.get(), 0);
    });
}

/// A driver that greets, changes the speed, and asks again when no answer comes.
#[derive(Default)]
struct Talker {
    deadline: Option<u64>,
}

impl Driver for Talker {
    fn start(&mut self, now: Now, out: &mut Output) {
        out.settings = Some(PortSettings::eight_none_one(38_400));
        out.send.push(b"hello".to_vec());
        self.deadline = Some(now.monotonic_us + 50_000);
    }

    fn bytes(&mut self, bytes: &[u8], _now: Now, out: &mut Output) {
        self.deadline = None;
        out.messages.push(DriverMessage {
            body: bytes.to_vec(),
            waveform: false,
            record: None,
        });
    }

    fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    fn timeout(&mut self, now: Now, out: &mut Output) {
        assert!(now.monotonic_us >= self.deadline.unwrap());
        self.deadline = None;
        out.send.push(b" again".to_vec());
    }
}

#[test]
fn what_a_driver_asks_for_is_done_at_its_time() {
    run(async {
        let (mut rig, context) = Rig::new(8);
        let port = rig.folder.path().join("usb-device");
        let settings = PortSettings::default();
        let device = Device {
            port: port.into(),
            ports: Rc::new(RealPorts),
            make: Rc::new(|| Box::new(Talker::default())),
            sent: Rc::default(),
            settings,
            speaks: Speaks::AtTimes,
            device_id: Some("xpod-4711".into()),
        };
        let source = Source::new(device, Arc::default(), context);
        tokio::task::spawn_local(source.run());
        let mut device = rig.plug_in();
        let mut bytes = [0; 11];
        with_timeout(PATIENCE, device.read_exact(&mut bytes))
            .await
            .expect("what it sends")
            .unwrap();
        assert_eq!(&bytes, b"hello again");
        assert_eq!(device.baud_rate().unwrap(), 38_400);
        device.write_all(b"answer").await.unwrap();
        assert_eq!(rig.body().await, "answer");
    });
}
