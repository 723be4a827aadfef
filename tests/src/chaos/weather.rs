//! What goes wrong, and when: spells of fair and foul weather, drawn from a seed.

use crate::chance::Chance;

/// What becomes of a request as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// It is carried out and answered a little at a time.
    Slow,
    /// The connection ends before anything is done.
    Reset,
    /// It is carried out, and the connection ends before the answer.
    LostAnswer,
    /// It is carried out, and the answer ends in the middle.
    Truncated,
    /// It is not carried out and answered with this status; with `Retry-After` in seconds, or as a date so far away.
    Refused(u16, Option<RetryAfter>),
    /// A proxy answers with a page of HTML.
    Html(u16),
}

/// Forms of `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// Seconds.
    Seconds(u64),
    /// A date so many seconds after the server's own.
    Date(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spell {
    Fair,
    /// Nothing gets through.
    Outage,
    /// One of so many requests, and of so many entries, goes wrong.
    Storm(u64),
    /// Too many requests.
    Throttle,
}

/// The weather of one server.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Chance of everything that the server does.
    pub chance: Chance,
    spell: Spell,
    until_us: u64,
    /// Length of spells: 1 for seconds, 3600 for hours.
    scale_us: u64,
    fair_for_good: bool,
}

impl Weather {
    /// Spells about as long as `scale_us`.
    pub fn new(seed: u64, scale_us: u64) -> Weather {
        Weather {
            chance: Chance(seed),
            spell: Spell::Fair,
            until_us: 0,
            scale_us,
            fair_for_good: false,
        }
    }

    /// From now on nothing goes wrong.
    pub fn calm(&mut self) {
        self.fair_for_good = true;
        self.spell = Spell::Fair;
    }

    /// What becomes of a request now.
    pub fn of_request(&mut self, now_us: u64) -> Fate {
        self.turn(now_us);
        let chance = &mut self.chance;
        match self.spell {
            Spell::Fair => Fate::Answered,
            Spell::Outage => match chance.below(4) {
                0 => Fate::Html(502),
                1 => Fate::Refused(503, None),
                _ => Fate::Reset,
            },
            Spell::Storm(of) if chance.one_in(of) => match chance.below(9) {
                0 => Fate::Reset,
                1 | 2 => Fate::LostAnswer,
                3 => Fate::Truncated,
                4 => Fate::Refused([500, 502, 503, 504, 408][chance.below(5) as usize], None),
                5 => Fate::Html(200),
                6 => Fate::Refused(401, None),
                7 => Fate::Slow,
                _ => Fate::Refused(429, None),
            },
            Spell::Storm(_) => Fate::Answered,
            Spell::Throttle => {
                // Seconds in real time, minutes in simulated time.
                let wait = (self.scale_us / 60_000_000).max(1);
                match chance.below(3) {
                    0 => Fate::Refused(429, Some(RetryAfter::Seconds(wait))),
                    1 => Fate::Refused(503, Some(RetryAfter::Date(wait))),
                    _ => Fate::Answered,
                }
            }
        }
    }

    /// The status that an entry of a batch is refused with, if it is.
    pub fn of_entry(&mut self) -> Option<u16> {
        let Spell::Storm(of) = self.spell else { return None };
        self.chance
            .one_in(of * 4)
            .then(|| [409, 412, 429, 500, 503, 504][self.chance.below(6) as usize])
    }

    fn turn(&mut self, now_us: u64) {
        while now_us >= self.until_us && !self.fair_for_good {
            let chance = &mut self.chance;
            let length = self.scale_us / 4 + chance.below(self.scale_us * 3);
            self.spell = if self.spell == Spell::Fair {
                match chance.below(5) {
                    0 | 1 => Spell::Outage,
                    2 | 3 => Spell::Storm(2 + chance.below(8)),
                    _ => Spell::Throttle,
                }
            } else {
                Spell::Fair
            };
            self.until_us = now_us.max(self.until_us) + length;
        }
    }
}
