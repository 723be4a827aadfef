//! The timers of a thread with an event loop: one descriptor becomes ready at the earliest deadline, so that the loop itself
//! wakes for its timers. The thread of the timers would have to be woken for each new deadline, and to wake the loop for it:
//! four switches of threads where one is enough.
//!
//! Invariants:
//! 1. The descriptor is set to the earliest deadline, or will be before the loop rests again.
//! 2. When the alarm ends, or the system refuses a time, deadlines that are left go to the thread of the timers: none is
//!    forgotten.

use super::{DRIVER, Deadlines, monotonic_us};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::unix::AsyncFd;

thread_local! {
    static ALARM: RefCell<Option<Alarm>> = const { RefCell::new(None) };
}

/// Deadlines of this thread.
struct Alarm {
    descriptor: Rc<AsyncFd<OwnedFd>>,
    deadlines: Deadlines,
    set: Set,
}

/// What the descriptor is set to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Set {
    /// This deadline: monotonic microseconds.
    At(u64),
    /// Nothing: there is no deadline.
    Never,
    /// It has become ready, and is set anew when those that were woken have said what they wait for now.
    Soon,
}

impl Alarm {
    fn insert(&mut self, at: u64, waker: &Waker) -> io::Result<()> {
        self.deadlines.insert(at, waker);
        let is_earliest = match self.set {
            Set::At(set) => at < set,
            Set::Never => true,
            Set::Soon => false,
        };
        if is_earliest {
            self.set_to(Some(at))?;
        }
        Ok(())
    }

    fn set_to(&mut self, deadline: Option<u64>) -> io::Result<()> {
        self.set = deadline.map_or(Set::Never, Set::At);
        let Some(at) = deadline else { return Ok(()) };
        // A time of 0 would turn it off.
        let at = i64::try_from(at.max(1)).unwrap_or(i64::MAX);
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: at / 1_000_000,
                tv_nsec: at % 1_000_000 * 1000,
            },
        };
        // It is never read: being set, it is not ready any more.
        timerfd_settime(self.descriptor.get_ref(), TimerfdTimerFlags::ABSTIME, &time)?;
        Ok(())
    }
}

/// Takes a deadline when this thread has an alarm of its own; tells whether it has.
pub(super) fn take(at: u64, waker: &Waker) -> bool {
    match ALARM.with_borrow_mut(|alarm| alarm.as_mut().map(|alarm| alarm.insert(at, waker))) {
        Some(Ok(())) => true,
        Some(Err(error)) => {
            refused(&error);
            true
        }
        None => false,
    }
}

/// The system does not take a time: the thread of the timers serves from now on.
fn refused(error: &io::Error) {
    tracing::warn!("the timers get a thread of their own: {error}");
    hand_over();
}

/// Ends the alarm of this thread; what is left goes to the thread of the timers.
fn hand_over() {
    if let Some(alarm) = ALARM.take() {
        for ((at, _), waker) in alarm.deadlines.by_time {
            DRIVER.take(at, &waker);
        }
    }
}

/// The timers of this thread are kept by its event loop while this lives.
#[must_use]
pub struct OwnTimers(tokio::task::JoinHandle<()>);

impl Drop for OwnTimers {
    fn drop(&mut self) {
        self.0.abort();
        hand_over();
    }
}

/// Keeps the timers of this thread in its event loop from now on. To be called in a local task of it, or what runs like one.
///
/// # Errors
/// When the system has no descriptor left; the thread of the timers serves on.
pub fn own_timers() -> io::Result<OwnTimers> {
    let descriptor = timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    keep_with(descriptor)
}

fn keep_with(descriptor: OwnedFd) -> io::Result<OwnTimers> {
    let descriptor = Rc::new(watched(descriptor)?);
    ALARM.set(Some(Alarm {
        descriptor: Rc::clone(&descriptor),
        deadlines: Deadlines::default(),
        set: Set::Never,
    }));
    Ok(OwnTimers(tokio::task::spawn_local(ring(descriptor))))
}

#[expect(
    deprecated,
    reason = "what is to come in its place has to be promised in unsafe code; it owns the descriptor for as long as it is watched"
)]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)
}

/// Wakes whoever is due, whenever the descriptor becomes ready.
async fn ring(descriptor: Rc<AsyncFd<OwnedFd>>) {
    // It ends with the event loop.
    while let Ok(mut ready) = descriptor.readable().await {
        ready.clear_ready();
        let due = ALARM.with_borrow_mut(|alarm| {
            let alarm = alarm.as_mut()?;
            alarm.set = Set::Soon;
            Some(alarm.deadlines.take_due(monotonic_us()))
        });
        due.into_iter().flatten().for_each(Waker::wake);
        after_those_who_were_woken().await;
        let set = ALARM.with_borrow_mut(|alarm| {
            let alarm = alarm.as_mut()?;
            Some(alarm.set_to(alarm.deadlines.next()))
        });
        match set {
            Some(Ok(())) => {}
            Some(Err(error)) => return refused(&error),
            None => return,
        }
    }
}

/// Ends when the tasks that were woken before have had their turn: they are queued in this order.
async fn after_those_who_were_woken() {
    let mut queued = false;
    let again = |context: &mut Context<'_>| {
        if std::mem::replace(&mut queued, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    };
    poll_fn(again).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use embassy_time::{Duration, Instant, Timer};

    fn in_a_loop<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(work))
    }

    fn waiting() -> usize {
        ALARM.with_borrow(|alarm| alarm.as_ref().map_or(0, |alarm| alarm.deadlines.by_time.len()))
    }

    #[test]
    fn each_deadline_is_seen_in_its_order_and_not_before_its_time() {
        in_a_loop(async {
            let _own = own_timers().unwrap();
            let begin = Instant::now();
            let seen = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [40_u64, 10, 30, 20, 10, 0]
                .into_iter()
                .map(|milliseconds| {
                    let seen = Rc::clone(&seen);
                    tokio::task::spawn_local(async move {
                        Timer::at(begin + Duration::from_millis(milliseconds)).await;
                        assert!(begin.elapsed() >= Duration::from_millis(milliseconds));
                        seen.borrow_mut().push(milliseconds);
                        // And one after it, which is later than that of others.
                        Timer::after_millis(15).await;
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*seen.borrow(), [0, 10, 10, 20, 30, 40]);
            assert!(begin.elapsed() >= Duration::from_millis(55));
            assert_eq!(waiting(), 0);
        });
    }

    #[test]
    fn an_earlier_deadline_is_not_held_up_by_a_later_one() {
        in_a_loop(async {
            let _own = own_timers().unwrap();
            let begin = Instant::now();
            let late = tokio::task::spawn_local(Timer::after_secs(3600));
            for _ in 0..20 {
                Timer::after_millis(2).await;
            }
            assert!(begin.elapsed() < Duration::from_secs(600));
            late.abort();
        });
    }

    #[test]
    fn timers_go_on_while_the_loop_never_rests() {
        in_a_loop(async {
            let _own = own_timers().unwrap();
            let busy = tokio::task::spawn_local(async {
                loop {
                    tokio::task::yield_now().await;
                }
            });
            for _ in 0..5 {
                Timer::after_millis(5).await;
            }
            busy.abort();
        });
    }

    #[test]
    fn deadlines_that_are_left_go_to_the_thread_of_the_timers() {
        in_a_loop(async {
            let own = own_timers().unwrap();
            let task = tokio::task::spawn_local(Timer::after_millis(40));
            tokio::task::yield_now().await;
            assert_eq!(waiting(), 1);
            drop(own);
            task.await.unwrap();
            Timer::after_millis(5).await;
        });
    }

    #[test]
    fn where_the_system_refuses_a_time_the_thread_of_the_timers_serves() {
        in_a_loop(async {
            // A socket takes no time.
            let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let _own = keep_with(socket.into()).unwrap();
            let later = tokio::task::spawn_local(Timer::after_millis(10));
            Timer::after_millis(5).await;
            later.await.unwrap();
            assert!(ALARM.with_borrow(Option::is_none));
        });
    }

    #[test]
    fn another_thread_has_no_part_in_it() {
        in_a_loop(async {
            let _own = own_timers().unwrap();
            let other = std::thread::spawn(|| in_a_loop(async { Timer::after_millis(20).await }));
            Timer::after_millis(40).await;
            other.join().unwrap();
        });
    }
}
