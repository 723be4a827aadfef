//! A source that panics is started again: a packet or a frame that finds a fault in a library must not silence a ward.

use super::{SourceContext, setup_error};
use crate::telemetry::errors::{ErrorType, Repair};
use embassy_time::{Duration, Timer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// Pause before a source is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the sources that `start` makes, one after the other, until one ends by itself: the intake is gone.
pub(super) async fn run<F: Future<Output = ()>>(
    context: SourceContext,
    mut start: impl FnMut(&SourceContext) -> F,
) {
    while run_once(start(&context)).await.is_err() {
        let text = "a fault of the agent stopped this source; it is started again, and unacknowledged messages come again";
        let mut record = setup_error("UnhandledException", ErrorType::GeneralError, text.to_owned());
        record.repair = Repair::Agent;
        tracing::error!(source = &*context.name, error = record.name, "{text}");
        context.status.set_error(record, false);
        Timer::after(PAUSE).await;
    }
}

/// It panicked.
struct Panicked;

async fn run_once<F: Future<Output = ()>>(source: F) -> Result<(), Panicked> {
    let mut source = pin!(source);
    std::future::poll_fn(|context| {
        // What the source held is dropped and never looked at again.
        match catch_unwind(AssertUnwindSafe(|| source.as_mut().poll(context))) {
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClockTrust;
    use crate::ingest::SourceStatus;
    use crate::message::SourceId;
    use std::cell::Cell;
    use std::sync::Arc;
    use tokio::sync::mpsc;

    #[test]
    fn a_source_that_panics_is_started_again() {
        let status = Arc::new(SourceStatus::default());
        let context = SourceContext {
            id: SourceId(1),
            name: "ward".into(),
            gateway_id: "bed-12".into(),
            boot: 1,
            trust: ClockTrust::Always,
            sender: mpsc::channel(1).0,
            resume: Vec::new(),
            memory: Default::default(),
            records: Vec::new(),
            ending: std::sync::Arc::default(),
            status: Arc::clone(&status),
            events: mpsc::unbounded_channel().0,
        };
        let starts = Cell::new(0);
        let begin = iomt_mapping::Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
        let ((), passed) = crate::clock::simulate(begin, async {
            run(context, |_| {
                starts.set(starts.get() + 1);
                let number = starts.get();
                async move {
                    Timer::after_millis(10).await;
                    assert_eq!(number, 3, "a fault");
                }
            })
            .await;
        })
        .unwrap();
        assert_eq!((starts.get(), passed), (3, 2_030_000));
        assert_eq!(status.error().unwrap().name, "UnhandledException");
    }
}
