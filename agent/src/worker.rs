//! The seam between the loops and blocking work (SQLite, HTTP). In the service the work runs on threads of its own; in
//! simulation on the caller's thread, at once, so that a simulated day is the same run for the same seed.

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
}

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

    /// Runs `work` and waits for its result.
    ///
    /// # Errors
    /// [`Stopped`] when the work panicked or the threads are gone.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        match &self.0 {
            Kind::Inline => Ok(work()),
            Kind::Threads(jobs) => {
                let (answer, result) = oneshot::channel();
                let job: Job = Box::new(move || drop(answer.send(work())));
                jobs.send(job).map_err(|_| Stopped)?;
                result.await.map_err(|_| Stopped)
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
    fn a_panic_is_told_to_its_caller_and_the_thread_goes_on() {
        let worker = Worker::threads("panic", 1).unwrap();
        block_on(async {
            assert_eq!(worker.call(|| panic!("on purpose")).await, Err::<(), _>(Stopped));
            assert_eq!(worker.call(|| 7).await, Ok(7));
        });
    }
}
