//! Wall time, monotonic time, and whether the wall clock can be trusted; the only file that asks the system for time.
//!
//! `embassy-time` drives every timer of the agent over the driver below. A thread either lives in real time or inside
//! [`simulate`], where time is virtual: it jumps to the next deadline when nothing is left to run, every deadline is seen
//! at its own time, and a month of outages takes seconds. Simulations in several threads have a clock each. In real time the
//! event loop of the agent keeps its timers itself ([`own_timers`]); a thread serves all others.
//!
//! Invariants:
//! 1. Monotonic time is `CLOCK_BOOTTIME`: it never goes back, and runs on in suspend and over restarts of the process.
//! 2. In simulation time stands still while anything outside is pending ([`outside`]).
#![expect(
    clippy::disallowed_methods,
    reason = "the one file that may ask the system for time; all others ask this one"
)]

mod alarm;
mod trust;

use crate::config::ClockTrust;
use embassy_time_driver::Driver;
use iomt_mapping::Timestamp;
use iomt_mapping::time::TICKS_PER_SECOND;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Condvar, Mutex, OnceLock};
use std::task::Waker;
use trust::Evidence;

pub use alarm::{OwnTimers, own_timers};

/// How long an answer of the real-time clock is used: microseconds.
const RTC_VALID_US: u64 = 20_000_000;

/// Identity of a waker, so that a task that waits again replaces its earlier deadline.
type WakerKey = (usize, usize);

#[derive(Default)]
struct Deadlines {
    by_time: BTreeMap<(u64, WakerKey), Waker>,
    by_waker: HashMap<WakerKey, u64>,
}

impl Deadlines {
    /// Keeps the earlier of two deadlines of one waker; tells whether the earliest deadline of all is earlier than before.
    fn insert(&mut self, at: u64, waker: &Waker) -> bool {
        let before = self.next();
        let key = (waker.data() as usize, std::ptr::from_ref(waker.vtable()) as usize);
        match self.by_waker.get(&key) {
            Some(&earlier) if earlier <= at => return false,
            Some(&later) => drop(self.by_time.remove(&(later, key))),
            None => {}
        }
        self.by_waker.insert(key, at);
        self.by_time.insert((at, key), waker.clone());
        // Many tasks that wait for the same moment wake the thread of the timers once.
        before.is_none_or(|before| at < before)
    }

    fn next(&self) -> Option<u64> {
        self.by_time.first_key_value().map(|((at, _), _)| *at)
    }

    fn take_due(&mut self, now: u64) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.by_time.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((_, key), waker) = entry.remove_entry();
            self.by_waker.remove(&key);
            due.push(waker);
        }
        due
    }
}

struct RealClock {
    deadlines: Mutex<Option<Deadlines>>,
    changed: Condvar,
}

embassy_time_driver::time_driver_impl!(static DRIVER: RealClock = RealClock {
    deadlines: Mutex::new(None),
    changed: Condvar::new(),
});

impl Driver for RealClock {
    fn now(&self) -> u64 {
        monotonic_us()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        let simulated = SIMULATION.with_borrow(|simulation| {
            simulation
                .as_ref()
                .map(|clock| clock.borrow_mut().deadlines.insert(at, waker))
        });
        if simulated.is_none() && !alarm::take(at, waker) {
            self.take(at, waker);
        }
    }
}

impl RealClock {
    /// Takes a deadline for the thread of the timers.
    fn take(&self, at: u64, waker: &Waker) {
        let Ok(mut guard) = self.deadlines.lock() else {
            return;
        };
        let deadlines = match guard.as_mut() {
            Some(deadlines) => deadlines,
            None => {
                let started = std::thread::Builder::new()
                    .name("timers".to_owned())
                    .stack_size(128 * 1024)
                    .spawn(|| DRIVER.wake_when_due());
                if started.is_err() {
                    // Without the thread no timer would ever fire: let the task look again instead of hanging.
                    waker.wake_by_ref();
                    return;
                }
                guard.insert(Deadlines::default())
            }
        };
        if deadlines.insert(at, waker) {
            self.changed.notify_one();
        }
    }

    fn wake_when_due(&self) {
        let Ok(mut guard) = self.deadlines.lock() else {
            return;
        };
        loop {
            let now = monotonic_us();
            let due = guard
                .as_mut()
                .map(|deadlines| deadlines.take_due(now))
                .unwrap_or_default();
            if !due.is_empty() {
                drop(guard);
                due.into_iter().for_each(Waker::wake);
                match self.deadlines.lock() {
                    Ok(again) => guard = again,
                    Err(_) => return,
                }
                continue;
            }
            let next = guard.as_ref().and_then(Deadlines::next);
            // Without a deadline an hour is as good as any pause: a new one notifies.
            let pause = next.map_or(3_600_000_000, |at| at.saturating_sub(now).max(1));
            match self
                .changed
                .wait_timeout(guard, std::time::Duration::from_micros(pause))
            {
                Ok((again, _)) => guard = again,
                Err(_) => return,
            }
        }
    }
}

struct Simulation {
    now_us: u64,
    wall_offset: i64,
    trusted: bool,
    outside: usize,
    deadlines: Deadlines,
    /// Wakes a task that does nothing: a deadline may belong to a task that has ended, and nothing would be woken by it.
    pulse: Option<Waker>,
}

thread_local! {
    static SIMULATION: RefCell<Option<Rc<RefCell<Simulation>>>> = const { RefCell::new(None) };
    static SIMULATED_BOOT: Cell<u128> = const { Cell::new(1) };
}

fn simulated<T>(read: impl FnOnce(&mut Simulation) -> T) -> Option<T> {
    SIMULATION.with_borrow(|simulation| simulation.as_ref().map(|clock| read(&mut clock.borrow_mut())))
}

/// Microseconds of `CLOCK_BOOTTIME`, or of the simulation that this thread is in.
pub fn monotonic_us() -> u64 {
    simulated(|clock| clock.now_us).unwrap_or_else(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
    })
}

/// The wall clock, whether or not it is right.
pub fn wall() -> Timestamp {
    let ticks =
        simulated(|clock| i64::try_from(clock.now_us).unwrap_or(i64::MAX / 10) * 10 + clock.wall_offset)
            .unwrap_or_else(|| {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                now.tv_sec
                    .saturating_mul(10_000_000)
                    .saturating_add(now.tv_nsec / 100)
            });
    Timestamp::from_ticks(ticks).unwrap_or(Timestamp::MIN)
}

/// Whether the wall clock can be trusted now.
pub fn is_trusted(trust: ClockTrust) -> bool {
    if let Some(trusted) = simulated(|clock| clock.trusted) {
        return trusted;
    }
    let evidence = Evidence {
        wall: wall().ticks().div_euclid(TICKS_PER_SECOND),
        synchronized: trust == ClockTrust::Ntp && trust::is_synchronized(),
        rtc: if trust == ClockTrust::Rtc { rtc() } else { None },
    };
    trust::judge(trust, evidence)
}

/// The real-time clock, asked a few times a minute at most: it sits behind a slow bus.
fn rtc() -> Option<i64> {
    static SEEN: Mutex<Option<(u64, Option<i64>)>> = Mutex::new(None);
    let mut seen = SEEN.lock().ok()?;
    let now_us = monotonic_us();
    match *seen {
        Some((at_us, shown)) if now_us.saturating_sub(at_us) < RTC_VALID_US => {
            let passed = now_us.saturating_sub(at_us) / 1_000_000;
            shown.map(|shown| shown.saturating_add_unsigned(passed))
        }
        _ => {
            let shown = trust::real_time_clock();
            *seen = Some((now_us, shown));
            shown
        }
    }
}

/// Seconds since a time server was heard last; none when there is no sign of one.
pub fn synchronized_seconds() -> Option<u64> {
    if simulated(|_| ()).is_some() {
        return None;
    }
    let now = wall().ticks().div_euclid(TICKS_PER_SECOND);
    Some(u64::try_from(now - trust::synchronized_at()?).unwrap_or(0))
}

/// Holds the calling thread for this long, in real time: proofs that need a slow medium.
#[cfg(feature = "sabotage")]
pub fn block(duration: std::time::Duration) {
    std::thread::sleep(duration);
}

/// Id of this boot: 32 hexadecimal digits, from `BEDSIDE_BOOT_ID` (the unit sets it: `/proc` is restricted there) or
/// from the kernel.
pub fn boot_id() -> String {
    if simulated(|_| ()).is_some() {
        return format!("{:032x}", SIMULATED_BOOT.get());
    }
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        std::env::var("BEDSIDE_BOOT_ID")
            .ok()
            .or_else(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok())
            .map(|id| {
                id.chars()
                    .filter(char::is_ascii_hexdigit)
                    .collect::<String>()
                    .to_lowercase()
            })
            .filter(|id| id.len() == 32)
            // Without an id no two processes may believe that they share a boot.
            .unwrap_or_else(|| format!("{:032x}", wall().ticks()))
    })
    .clone()
}

/// While this lives, time in the simulation of this thread stands still: something outside is pending.
pub struct Outside(());

/// Holds the simulated time; does nothing in real time.
pub fn outside() -> Outside {
    simulated(|clock| clock.outside += 1);
    Outside(())
}

impl Drop for Outside {
    fn drop(&mut self) {
        simulated(|clock| clock.outside = clock.outside.saturating_sub(1));
    }
}

/// Moves the simulated wall clock by `ticks` of 100 ns, as a correction of the clock does; monotonic time stays.
pub fn simulate_wall_jump(ticks: i64) {
    simulated(|clock| clock.wall_offset += ticks);
}

/// Sets whether the simulated wall clock can be trusted.
pub fn simulate_trust(trusted: bool) {
    simulated(|clock| clock.trusted = trusted);
}

/// The next simulation of this thread is another boot than the one before.
pub fn simulate_reboot() {
    SIMULATED_BOOT.set(SIMULATED_BOOT.get() + 1);
}

/// Runs `future` on this thread in virtual time that begins at `start`; returns its result and the microseconds that
/// went by. Local tasks can be spawned.
///
/// # Errors
/// When the runtime cannot be built.
pub fn simulate<T>(start: Timestamp, future: impl Future<Output = T>) -> std::io::Result<(T, u64)> {
    // A boot some time ago, so that differences of monotonic times never start at zero.
    const BOOTED_US: u64 = 60_000_000;
    let clock = Rc::new(RefCell::new(Simulation {
        now_us: BOOTED_US,
        wall_offset: start.ticks() - i64::try_from(BOOTED_US).unwrap_or(0) * 10,
        trusted: true,
        outside: 0,
        deadlines: Deadlines::default(),
        pulse: None,
    }));
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            SIMULATION.set(None);
        }
    }
    SIMULATION.set(Some(Rc::clone(&clock)));
    let leave = Leave;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(advance)
        .build()?;
    let result = runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        tokio::task::spawn_local(std::future::poll_fn(|context| {
            simulated(|clock| clock.pulse = Some(context.waker().clone()));
            std::task::Poll::<()>::Pending
        }));
        future.await
    }));
    drop(runtime);
    drop(leave);
    let now = clock.borrow().now_us;
    Ok((result, now - BOOTED_US))
}

/// Called when every task waits: time jumps to the next deadline.
fn advance() {
    let due = simulated(|clock| {
        if clock.outside > 0 {
            return Vec::new();
        }
        if let Some(at) = clock.deadlines.next() {
            clock.now_us = clock.now_us.max(at);
        }
        let now = clock.now_us;
        let mut due = clock.deadlines.take_due(now);
        if !due.is_empty() {
            due.extend(clock.pulse.clone());
        }
        due
    });
    due.into_iter().flatten().for_each(Waker::wake);
}

#[cfg(test)]
mod tests {
    use super::*;
    use embassy_time::{Duration, Instant, Ticker, Timer};

    fn start() -> Timestamp {
        Timestamp::from_ticks(17_900_000_000_000_000).unwrap()
    }

    #[test]
    fn the_deadline_of_a_task_that_has_ended_does_not_stop_time() {
        let ((), passed) = simulate(start(), async {
            let ended = tokio::task::spawn_local(async {
                tokio::select! {
                    () = Timer::after_secs(5) => {}
                    () = Timer::after_secs(1) => {}
                }
                // Nobody waits for this one any more.
                let forgotten = Timer::after_secs(7);
                tokio::select! {
                    biased;
                    () = forgotten => {}
                    () = std::future::ready(()) => {}
                }
            });
            ended.await.unwrap();
            Timer::after_secs(60).await;
        })
        .unwrap();
        assert_eq!(passed, 61_000_000);
    }

    #[test]
    fn thirty_simulated_days_see_every_minute_at_its_own_time() {
        let ((), passed) = simulate(start(), async {
            let mut ticker = Ticker::every(Duration::from_secs(60));
            let begin = Instant::now();
            for minute in 1..=30 * 24 * 60 {
                ticker.next().await;
                assert_eq!((Instant::now() - begin).as_secs(), minute * 60);
            }
        })
        .unwrap();
        assert_eq!(passed, 30 * 86_400 * 1_000_000);
    }

    #[test]
    fn simulations_side_by_side_have_a_clock_each() {
        let threads: Vec<_> = (1..=4_u64)
            .map(|hours| {
                std::thread::spawn(move || {
                    simulate(start(), async move { Timer::after_secs(hours * 3600).await })
                        .unwrap()
                        .1
                })
            })
            .collect();
        let passed: Vec<u64> = threads
            .into_iter()
            .map(|t| t.join().unwrap() / 3_600_000_000)
            .collect();
        assert_eq!(passed, [1, 2, 3, 4]);
    }

    #[test]
    fn a_jump_of_the_wall_clock_leaves_monotonic_time_alone() {
        simulate(start(), async {
            let (monotonic, before) = (monotonic_us(), wall());
            simulate_wall_jump(3 * 3600 * 10_000_000);
            assert_eq!(monotonic_us(), monotonic);
            assert_eq!(wall().ticks() - before.ticks(), 3 * 3600 * 10_000_000);
        })
        .unwrap();
    }

    /// On a 32-bit target tests/run repeats this with the clock set to a year beyond 2038, and names the year.
    #[test]
    fn the_wall_clock_is_read_whole_also_after_2038() {
        let system = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let seconds = i64::try_from(system.as_secs()).unwrap();
        assert!((wall().ticks() / 10_000_000 - seconds).abs() <= 5);
        if let Ok(year) = std::env::var("BEDSIDE_TEST_YEAR") {
            assert_eq!(wall().civil().year, year.parse::<i64>().unwrap());
        }
    }

    #[test]
    fn two_hundred_tasks_wait_in_real_time_at_no_cost() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(async {
            let begin = Instant::now();
            let tasks: Vec<_> = (0..200)
                .map(|_| tokio::task::spawn_local(Timer::after_millis(50)))
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert!(begin.elapsed() >= Duration::from_millis(50));
        }));
    }
}
