//! The seam between the loops and blocking work (SQLite, HTTP). In the service the work runs on threads of its own; in
//! simulation on the caller's thread, so that a simulated day is the same run for the same seed: at once, or after a pause
//! of simulated time, which lets several pieces of work be under way there too.

use embassy_time::{Duration, Timer};
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Runs blocking work in order of its calls (one thread) or side by side (several threads).
#[derive(Clone)]
pub struct Worker(Kind);

#[derive(Clone)]
enum Kind {
    Threads(Arc<mpsc::Sender<Job>>),
    Inline,
    Delayed(Arc<dyn Fn() -> Duration + Send + Sync>),
}

/// Work that has begun; its result.
pub type Underway<T> = Pin<Box<dyn Future<Output = Result<T, Stopped>>>>;

/// The worker's threads are gone: the program is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Worker {
    /// A worker with `threads` threads called `name`.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn threads(name: &str, threads: usize) -> std::io::Result<Worker> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .stack_size(1 << 20)
                .spawn(move || {
                    loop {
                        let job = match queue.lock() {
                            Ok(queue) => queue.recv(),
                            Err(_) => return,
                        };
                        match job {
                            // A panic of one job must not take the thread away from the others; its caller sees `Stopped`.
                            Ok(job) => drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))),
                            Err(_) => return,
                        }
                    }
                })?;
        }
        Ok(Worker(Kind::Threads(Arc::new(jobs))))
    }

    /// A worker that does the work on the caller's thread, for simulation.
    pub fn inline() -> Worker {
        Worker(Kind::Inline)
    }

    /// A worker for simulation whose work is done on the caller's thread after a pause, and its result told after another:
    /// a request and its answer on their way.
    pub fn delayed(pause: impl Fn() -> Duration + Send + Sync + 'static) -> Worker {
        Worker(Kind::Delayed(Arc::new(pause)))
    }

    /// Runs `work` and waits for its result.
    ///
    /// # Errors
    /// [`Stopped`] when the work panicked or the threads are gone.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.start(work).await
    }

    /// Begins `work` now, whether or not anybody waits yet; in simulation when it is first waited for.
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Underway<T> {
        match &self.0 {
            Kind::Inline => Box::pin(async move { Ok(work()) }),
            Kind::Delayed(pause) => {
                let pause = Arc::clone(pause);
                Box::pin(async move {
                    Timer::after(pause()).await;
                    let result = work();
                    Timer::after(pause()).await;
                    Ok(result)
                })
            }
            Kind::Threads(jobs) => {
                let (answer, result) = oneshot::channel();
                let job: Job = Box::new(move || drop(answer.send(work())));
                let sent = jobs.send(job);
                Box::pin(async move {
                    sent.map_err(|_| Stopped)?;
                    result.await.map_err(|_| Stopped)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn one_thread_keeps_the_order_of_calls() {
        let worker = Worker::threads("order", 1).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        block_on(async {
            for n in 0..100 {
                let seen = Arc::clone(&seen);
                worker.call(move || seen.lock().unwrap().push(n)).await.unwrap();
            }
        });
        assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn work_that_was_started_is_under_way_side_by_side() {
        let worker = Worker::threads("side", 2).unwrap();
        // Each waits for the other: one after the other they would wait for ever.
        let meeting = Arc::new(std::sync::Barrier::new(2));
        block_on(async {
            let [one, two] = [(); 2].map(|()| {
                let meeting = Arc::clone(&meeting);
                worker.start(move || {
                    meeting.wait();
                })
            });
            assert_eq!((one.await, two.await), (Ok(()), Ok(())));
        });
    }

    #[test]
    fn simulated_work_takes_simulated_time_and_overlaps() {
        let begin = iomt_mapping::Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
        let ((), passed) = crate::clock::simulate(begin, async {
            let worker = Worker::delayed(|| Duration::from_millis(50));
            let (one, two) = tokio::join!(worker.start(|| 1), worker.start(|| 2));
            assert_eq!((one, two), (Ok(1), Ok(2)));
        })
        .unwrap();
        assert_eq!(passed, 100_000);
    }

    #[test]
    fn a_panic_is_told_to_its_caller_and_the_thread_goes_on() {
        let worker = Worker::threads("panic", 1).unwrap();
        block_on(async {
            assert_eq!(worker.call(|| panic!("on purpose")).await, Err::<(), _>(Stopped));
            assert_eq!(worker.call(|| 7).await, Ok(7));
        });
    }
}
