//! A simulated device on a real line: a pseudo-terminal, or a second adapter with a null-modem cable.

use super::{Now, Simulator};
use crate::clock;
use embassy_time::{Duration, Instant, Timer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How often a device that only answers looks up.
const IDLE: Duration = Duration::from_millis(100);

/// Lets the device talk on `port` until `duration` is over (never when absent) or `stop` is ready; returns how many bytes it said.
///
/// # Errors
/// When the port cannot be read or written.
pub async fn talk(
    port: &mut (impl AsyncRead + AsyncWrite + Unpin),
    device: &mut dyn Simulator,
    duration: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> std::io::Result<u64> {
    let mut stop = std::pin::pin!(stop);
    let begin = Instant::now();
    let now = || Now {
        monotonic_us: begin.elapsed().as_micros(),
        wall: Some(clock::wall()),
    };
    let mut received = [0; 1024];
    let mut written = 0;
    while duration.is_none_or(|limit| begin.elapsed() < limit) {
        let mut said = Vec::new();
        if device
            .deadline()
            .is_some_and(|deadline| deadline <= now().monotonic_us)
        {
            device.step(now(), &mut said);
        }
        let idle = Instant::now() + IDLE;
        let next = device.deadline().map_or(idle, |deadline| {
            (begin + Duration::from_micros(deadline)).min(idle)
        });
        if said.is_empty() {
            tokio::select! {
                () = Timer::at(next) => {}
                length = port.read(&mut received) => {
                    let bytes = received.get(..length?).unwrap_or(&[]);
                    if bytes.is_empty() {
                        return Err(std::io::Error::other("its other end was closed"));
                    }
                    device.bytes(bytes, now(), &mut said);
                }
                () = &mut stop => return Ok(written),
            }
        }
        if !said.is_empty() {
            port.write_all(&said).await?;
            port.flush().await?;
            written += said.len() as u64;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::serial::drivers::{Output, driver};
    use crate::simulate::serial::simulator;

    #[tokio::test]
    async fn a_ventilator_on_a_pseudo_terminal_answers_its_driver() {
        let (mut line, mut gateway) = tokio_serial::SerialStream::pair().unwrap();
        let mut device = simulator("drager-medibus", 1).unwrap();
        let talking = talk(
            &mut line,
            device.as_mut(),
            Some(Duration::from_secs(20)),
            std::future::pending(),
        );
        let listening = async {
            let mut driver = driver("drager-medibus").unwrap().create();
            let (mut out, begin, mut received) = (Output::default(), Instant::now(), [0; 256]);
            let now = || Now {
                monotonic_us: begin.elapsed().as_micros(),
                wall: None,
            };
            driver.start(now(), &mut out);
            while out.messages.is_empty() {
                for bytes in out.send.drain(..) {
                    gateway.write_all(&bytes).await.unwrap();
                }
                let deadline = begin + Duration::from_micros(driver.deadline().unwrap());
                tokio::select! {
                    () = Timer::at(deadline) => driver.timeout(now(), &mut out),
                    length = gateway.read(&mut received) => driver.bytes(&received[..length.unwrap()], now(), &mut out),
                }
            }
            (out.messages.remove(0), begin.elapsed())
        };
        tokio::select! {
            said = talking => panic!("no reading after {said:?} bytes"),
            (reading, elapsed) = listening => {
                let body: serde_json::Value = serde_json::from_slice(&reading.body).unwrap();
                let value = |name: &str| body[name].as_f64();
                assert_eq!((value("peep"), value("fio2_measured")), (Some(5.1), Some(40.0)));
                assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
            }
        }
    }
}
