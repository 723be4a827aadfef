//! Takes bytes from a port at its pace, and only so many that a device which never pauses cannot keep the agent busy.

use super::drivers::PortSettings;
use super::pace::Pace;
use super::ports::Line;
use std::io::ErrorKind;
use std::path::Path;

/// Bytes taken from a port by one call.
const READ_BYTES: usize = 4096;

/// A port is read so many times as fast as its speed at most: what waited while the machine was busy is caught up with.
pub(super) const TIMES: u64 = 4;

/// Bytes that may come in one go: what the kernel keeps, and some that were on their way.
const BURST: u64 = 16_384;

/// The least speed of a port whose settings are only a name: USB without a line behind it, Bluetooth.
const WITHOUT_LINE: u32 = 921_600;

const SECOND_US: u64 = 1_000_000;

/// What the line behind `path` can carry, in bits a second.
pub(super) fn speed(settings: PortSettings, path: &Path) -> u32 {
    let device = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    let only_a_name = ["ttyACM", "ttyGS", "rfcomm"];
    if only_a_name.iter().any(|kind| name.starts_with(kind)) {
        settings.baud.max(WITHOUT_LINE)
    } else {
        settings.baud
    }
}

/// How many bytes may be taken: [`TIMES`] the speed of the line, and a burst.
#[derive(Debug)]
struct Allowance {
    per_second: u64,
    left: u64,
    until_us: u64,
}

impl Allowance {
    fn new(baud: u32, now_us: u64) -> Allowance {
        Allowance {
            per_second: (u64::from(baud) / 10 * TIMES).max(1),
            left: BURST,
            until_us: now_us,
        }
    }

    fn at(&mut self, now_us: u64) -> usize {
        let passed = now_us.saturating_sub(self.until_us).min(60 * SECOND_US);
        let gained = passed * self.per_second / SECOND_US;
        let most = BURST.max(self.per_second / 2);
        if self.left + gained >= most {
            (self.left, self.until_us) = (most, now_us);
        } else {
            self.left += gained;
            self.until_us += gained * SECOND_US / self.per_second;
        }
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
    }
}

/// Reads one open port.
pub(super) struct Reader {
    buffer: Vec<u8>,
    pace: Pace,
    baud: u32,
    allowance: Allowance,
}

impl Reader {
    /// For a line that can carry `baud` bits a second.
    pub(super) fn new(baud: u32, now_us: u64) -> Reader {
        Reader {
            buffer: vec![0; READ_BYTES],
            pace: Pace::new(baud),
            baud,
            allowance: Allowance::new(baud, now_us),
        }
    }

    /// Bits a second that the line can carry.
    pub(super) fn speed(&self) -> u32 {
        self.baud
    }

    /// When the port is looked at next; none when it is looked at as soon as something comes.
    pub(super) fn tick(&self, now_us: u64) -> Option<u64> {
        self.pace.tick(now_us)
    }

    /// The device was asked something.
    pub(super) fn spoke(&mut self, now_us: u64) {
        self.pace.spoke(now_us);
    }

    /// Hands over what has come, as far as it may be taken now.
    ///
    /// # Errors
    /// Why the port is gone.
    pub(super) fn look(
        &mut self,
        port: &mut dyn Line,
        now_us: u64,
        mut heard: impl FnMut(&[u8]),
    ) -> Result<(), String> {
        let mut arrived = false;
        let more = loop {
            let allowed = self.allowance.at(now_us).min(READ_BYTES);
            let place = self.buffer.get_mut(..allowed).unwrap_or_default();
            if place.is_empty() {
                break true;
            }
            match port.try_read(place) {
                // A hang-up reads as end of file, again and again.
                Ok(0) => return Err("it was unplugged".to_owned()),
                Ok(length) => {
                    arrived = true;
                    self.allowance.take(length);
                    heard(place.get(..length).unwrap_or_default());
                    // What comes in this moment can wait until the next look.
                    if length * 2 < allowed {
                        break false;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    break false;
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        self.pace.looked(arrived, more, now_us);
        Ok(())
    }
}

impl Reader {
    /// Hands over what the kernel still has for a port that is given up, at most a burst. Of a cable that was pulled it has nothing:
    /// a hang-up empties the line before it is told.
    pub(super) fn drain(&mut self, port: &mut dyn Line, mut heard: impl FnMut(&[u8])) {
        // Without the readiness that was told last: the call itself says what there is.
        port.rest();
        let mut left = usize::try_from(BURST).unwrap_or(READ_BYTES);
        while left > 0 {
            match port.try_read(&mut self.buffer) {
                Ok(length) if length > 0 => {
                    heard(self.buffer.get(..length).unwrap_or_default());
                    left = left.saturating_sub(length);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::task::{Context, Poll};

    /// Always has more.
    struct Flood;

    impl Line for Flood {
        fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0x55);
            Ok(buffer.len())
        }

        fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn poll_ready(&mut self, _: &mut Context<'_>, _: bool) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn apply(&mut self, _: PortSettings) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn a_device_that_never_pauses_is_read_at_four_times_its_speed() {
        for baud in [1200, 9600, 115_200, 921_600] {
            let (mut reader, mut bytes, mut now, mut looks) = (Reader::new(baud, 0), 0, 0, 0);
            while now < 10 * SECOND_US {
                reader
                    .look(&mut Flood, now, |piece| bytes += piece.len() as u64)
                    .unwrap();
                // It waits for its turn, also when it is ready at once.
                now = reader.tick(now).expect("a tick");
                looks += 1;
            }
            let most = u64::from(baud) / 10 * TIMES * 10;
            assert!(
                (most * 9 / 10..=most + 2 * BURST).contains(&bytes),
                "{baud}: {bytes} of {most}"
            );
            assert!(looks <= 501, "{looks}");
        }
    }

    #[tokio::test]
    async fn what_a_port_still_has_is_read_before_it_is_given_up() {
        use std::io::Write as _;
        let (mut device, gateway) = mio_serial::SerialStream::pair().unwrap();
        let mut port = crate::ingest::serial::ports::RealLine::new(gateway);
        // Somebody waits for it, as while the agent runs; then more comes than the kernel hands over in one piece.
        let waiting =
            std::future::poll_fn(|context| Poll::Ready(port.poll_ready(context, false).is_pending()));
        assert!(waiting.await);
        let said: Vec<u8> = (0..3000_u32).map(|n| (n % 251) as u8).collect();
        for piece in said.chunks(500) {
            device.write_all(piece).unwrap();
        }
        let (mut reader, mut heard) = (Reader::new(9600, 0), Vec::new());
        reader.drain(&mut port, |piece| heard.extend_from_slice(piece));
        assert_eq!(heard, said);
        // A cable that is pulled: the kernel has thrown away what nobody had read, and the port says so at once.
        device.write_all(&said).unwrap();
        drop(device);
        reader.drain(&mut port, |_| panic!("Linux keeps nothing beyond a hang-up"));
        assert!(reader.look(&mut port, 1, |_| {}).is_err());
    }

    #[test]
    fn a_port_whose_speed_is_only_a_name_is_not_held_to_it() {
        let settings = PortSettings::eight_none_one(9600);
        for (path, baud) in [
            ("/dev/ttyUSB0", 9600),
            ("/dev/ttyS1", 9600),
            ("/dev/ttyACM3", 921_600),
            ("/dev/rfcomm0", 921_600),
        ] {
            assert_eq!(speed(settings, Path::new(path)), baud, "{path}");
        }
    }
}
