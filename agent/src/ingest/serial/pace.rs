//! When an open port is looked at: as soon as bytes come, or, while they come without a pause, at ticks.
//!
//! An adapter hands its bytes over in pieces of a few milliseconds; to be woken by each costs more than reading them. The
//! ticks are the same for all ports, so that one awakening serves all of them; what comes at ticks is stamped up to one tick
//! late. A dialogue has pauses: its answers are seen when they come.

/// Time between two ticks by the speed of the line: up to so many bits a second, so many microseconds. The kernel keeps 4 KiB
/// for a port: the bytes of 355 ms at 115200 baud, of 89 ms at 460800 and of 44 ms at 921600. The ticks of the slow lines are
/// ticks of all others too.
const TICKS: [(u32, u64); 2] = [(115_200, 100_000), (460_800, 50_000)];
/// The same for faster lines.
const FAST_TICK_US: u64 = 20_000;
/// What is looked at to tell whether bytes come without a pause, in microseconds.
const WINDOW_US: u64 = 200_000;
/// Arrivals in a window that make it dense.
const DENSE: u32 = 8;
/// The window of a port that is looked at at ticks, in ticks.
const WINDOW_TICKS: u64 = 4;
/// Ticks in such a window that found something and keep it dense.
const STILL_DENSE: u32 = 3;

/// The pace of one port.
#[derive(Debug)]
pub(super) struct Pace {
    tick_us: u64,
    window_ends: u64,
    arrivals: u32,
    ticking: bool,
}

impl Pace {
    /// For a line of so many bits a second.
    pub(super) fn new(baud: u32) -> Pace {
        let tick = TICKS.iter().find(|(speed, _)| baud <= *speed);
        Pace {
            tick_us: tick.map_or(FAST_TICK_US, |(_, tick_us)| *tick_us),
            window_ends: 0,
            arrivals: 0,
            ticking: false,
        }
    }

    /// A question was asked: its answer is waited for.
    pub(super) fn spoke(&mut self, now_us: u64) {
        self.ticking = false;
        self.arrivals = 0;
        self.window_ends = now_us + WINDOW_US;
    }

    /// The port was looked at; `arrived` tells whether there was something, `full` whether there may be more.
    pub(super) fn looked(&mut self, arrived: bool, full: bool, now_us: u64) {
        if full {
            // A port that always has more is looked at when it is its turn.
            self.ticking = true;
            self.window_ends = now_us + self.window_us();
            self.arrivals = STILL_DENSE;
            return;
        }
        if now_us >= self.window_ends {
            let enough = if self.ticking { STILL_DENSE } else { DENSE };
            // A window that ended long ago was followed by silence.
            let recent = now_us < self.window_ends + self.window_us();
            self.ticking = recent && self.arrivals >= enough;
            self.arrivals = 0;
            self.window_ends = now_us + self.window_us();
        }
        self.arrivals += u32::from(arrived);
    }

    fn window_us(&self) -> u64 {
        if self.ticking {
            WINDOW_TICKS * self.tick_us
        } else {
            WINDOW_US
        }
    }

    /// The tick at which the port is looked at next; none when it is looked at as soon as something comes.
    pub(super) fn tick(&self, now_us: u64) -> Option<u64> {
        self.ticking.then(|| (now_us / self.tick_us + 1) * self.tick_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets bytes come every `every_us` until `end_us`; gives how often the port was looked at.
    fn looks(pace: &mut Pace, begin_us: u64, end_us: u64, every_us: u64) -> u64 {
        let (mut now, mut seen, mut looks) = (begin_us, begin_us, 0);
        while now < end_us {
            let next_arrival = (seen / every_us + 1) * every_us;
            now = pace.tick(now).unwrap_or(next_arrival);
            let arrived = now >= next_arrival;
            if arrived {
                seen = now;
            }
            pace.looked(arrived, false, now);
            looks += 1;
        }
        looks
    }

    #[test]
    fn bytes_without_a_pause_are_read_at_ticks_that_all_ports_share() {
        for every_us in [1000, 4000, 16_000] {
            for (baud, ticks) in [
                (9600, 10),
                (115_200, 10),
                (230_400, 20),
                (460_800, 20),
                (921_600, 50),
            ] {
                let mut pace = Pace::new(baud);
                looks(&mut pace, 0, 1_000_000, every_us);
                assert_eq!(pace.tick(1_000_001), Some(1_000_000 + 1_000_000 / ticks));
                let a_second = looks(&mut pace, 1_000_000, 2_000_000, every_us);
                assert!(a_second <= ticks + 1, "{baud}: {a_second} looks");
                // What comes between two ticks has room in the kernel, and somewhat more.
                let between = u64::from(baud) / 10 / ticks;
                assert!(between * 17 / 10 <= 4096, "{baud}: {between} bytes");
            }
        }
    }

    #[test]
    fn what_comes_once_in_a_while_is_seen_when_it_comes() {
        for every_us in [30_000, 100_000, 1_000_000] {
            let mut pace = Pace::new(115_200);
            looks(&mut pace, 0, 5_000_000, every_us);
            assert_eq!(pace.tick(5_000_000), None);
        }
        // Bytes that come in one go after a silence are no stream yet.
        let mut pace = Pace::new(115_200);
        for now in [0, 1000, 2000, 900_000, 901_000, 902_000] {
            pace.looked(true, false, now);
            assert_eq!(pace.tick(now), None);
        }
    }

    #[test]
    fn a_port_that_always_has_more_waits_for_its_turn() {
        let mut pace = Pace::new(115_200);
        pace.looked(true, true, 1);
        assert_eq!(pace.tick(1), Some(100_000));
    }

    #[test]
    fn an_answer_is_seen_when_it_comes() {
        let mut pace = Pace::new(115_200);
        looks(&mut pace, 0, 1_000_000, 4000);
        pace.spoke(1_000_000);
        assert_eq!(pace.tick(1_000_000), None);
        // And a stream goes on at ticks.
        looks(&mut pace, 1_000_000, 2_000_000, 4000);
        assert!(pace.tick(2_000_000).is_some());
    }

    #[test]
    fn a_stream_that_ends_is_waited_for_again() {
        let mut pace = Pace::new(115_200);
        looks(&mut pace, 0, 1_000_000, 4000);
        let mut now = 1_000_000;
        while let Some(tick) = pace.tick(now) {
            now = tick;
            pace.looked(false, false, now);
            assert!(now < 2_000_000);
        }
    }
}
