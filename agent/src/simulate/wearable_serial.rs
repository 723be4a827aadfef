//! A simulated wearable on a serial line: a line of JSON or columns per reading.

use super::wearable::Wearable;
use crate::clock;
use embassy_time::{Duration, Instant, Timer};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// What a line holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineContent {
    /// A JSON object.
    Json,
    /// Columns, with a header as the first line.
    Csv,
}

/// Writes `rate` readings a second to `port` until `duration` is over (never when absent) or `stop` is ready; returns
/// how many. `observe` sees every line.
///
/// # Errors
/// When the port cannot be written to.
pub async fn write(
    port: &mut (impl AsyncWrite + Unpin),
    mut wearable: Wearable,
    content: LineContent,
    rate: f64,
    duration: Option<Duration>,
    stop: impl Future<Output = ()>,
    mut observe: impl FnMut(&str),
) -> std::io::Result<u64> {
    let period = std::time::Duration::try_from_secs_f64(1.0 / rate)
        .map_err(|_| std::io::Error::other("the rate must be more than 0 lines a second"))?;
    let period = Duration::from_micros(u64::try_from(period.as_micros()).unwrap_or(u64::MAX).max(1));
    let mut stop = std::pin::pin!(stop);
    let begin = Instant::now();
    if content == LineContent::Csv {
        port.write_all(format!("{}\r\n", wearable.csv_header()).as_bytes())
            .await?;
    }
    let mut written = 0;
    let mut next = begin;
    loop {
        if duration.is_some_and(|limit| begin.elapsed() >= limit) {
            return Ok(written);
        }
        let line = match content {
            LineContent::Json => wearable.json(clock::wall()),
            LineContent::Csv => wearable.csv(clock::wall()),
        };
        observe(&line);
        port.write_all(format!("{line}\r\n").as_bytes()).await?;
        port.flush().await?;
        written += 1;
        next += period;
        tokio::select! {
            () = Timer::at(next) => {}
            () = &mut stop => return Ok(written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::serial::framing::format::split_quoted;
    use crate::simulate::wearable::WearableKind;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_pseudo_terminal_carries_header_and_columns() {
        let (mut device, mut gateway) = tokio_serial::SerialStream::pair().unwrap();
        let oximeter = Wearable::new(WearableKind::Oximeter, 0, 1);
        let limit = Some(Duration::from_millis(90));
        let mut lines = Vec::new();
        let written = write(
            &mut device,
            oximeter,
            LineContent::Csv,
            50.0,
            limit,
            std::future::pending(),
            |line| {
                lines.push(line.to_owned());
            },
        )
        .await
        .unwrap();
        assert!((3..=6).contains(&written), "{written}");
        let mut expected = "deviceId,patientId,time,spo2,pulseRate\r\n".to_owned();
        lines
            .iter()
            .for_each(|line| expected.push_str(&format!("{line}\r\n")));
        let mut read = vec![0; expected.len()];
        gateway.read_exact(&mut read).await.unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), expected);
        assert_eq!(split_quoted(&lines[0], ',', '"').unwrap().len(), 5);
    }
}
