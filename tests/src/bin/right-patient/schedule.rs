//! What happens in a ward, by chance: who has which device, who is told so and when, outages, late readings, restarts.

use bedside_agent::associations::{Command, Ticks, Who};
use bedside_tests::chance::Chance;
use iomt_mapping::Timestamp;

pub const SECOND: Ticks = 10_000_000;
pub const MINUTE: Ticks = 60 * SECOND;
pub const HOUR: Ticks = 60 * MINUTE;
/// Readings are taken for so long, and everything has been said a while later.
pub const DAY: Ticks = 8 * HOUR;
pub const DEVICES: usize = 2;
pub const PATIENTS: u64 = 4;
/// Between two readings of a device.
const PACE: Ticks = 5 * MINUTE;

/// What the schedule of this seed is drawn from.
fn drawn_from(seed: u64) -> Chance {
    Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
}

/// A moment that no reading is taken at.
fn moment(chance: &mut Chance, from: Ticks, to: Ticks) -> Ticks {
    let seconds = u64::try_from((to - from) / SECOND).unwrap().max(1);
    let at = from + i64::try_from(chance.below(seconds)).unwrap() * SECOND;
    at - at.rem_euclid(MINUTE) + 17 * SECOND
}

/// Somebody has a device from an instant on.
#[derive(Clone, Debug)]
pub struct Stay {
    pub from: Ticks,
    pub patient: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Reading {
    pub device: usize,
    pub taken: Ticks,
    pub sent: Ticks,
    pub value: u64,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// The server links the device.
    Link(usize, Option<u64>),
    /// The server gets a statement that the patient uses the device from..to.
    Statement(usize, u64, Ticks, Ticks),
    /// The operator enters something.
    Enter(Command),
    /// The server cannot be reached, or loses its answers.
    Away,
    LosesAnswers,
    Back,
}

/// The agent ends, and another begins.
#[derive(Clone, Copy, Debug)]
pub struct Restart {
    pub ends: Ticks,
    pub begins: Ticks,
    /// It ends in the middle of whatever it does, as by `kill -9`; else it is asked to stop.
    pub killed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Lookup,
    /// Messages name nobody and follow the link, as in lookup; Devices that are missing are created.
    Create,
    /// Every message names the visit of its patient.
    LookupWithEncounter,
}

impl Resolution {
    pub fn name(self) -> &'static str {
        match self {
            Resolution::Lookup => "lookup",
            Resolution::Create => "create",
            Resolution::LookupWithEncounter => "lookup-with-encounter",
        }
    }
}

pub struct Schedule {
    /// By device, in order of time; the first reaches back without limit.
    pub truth: Vec<Vec<Stay>>,
    pub readings: Vec<Reading>,
    /// In order of time.
    pub events: Vec<(Ticks, Event)>,
    /// When the agent ends and starts again.
    pub restarts: Vec<Restart>,
    /// How identities are resolved, as the configuration spells it.
    pub resolution: Resolution,
    /// The journal keeps what was delivered for minutes only: what a correction takes away has to be moved on the server.
    pub short_history: bool,
    pub search_lag: u32,
    /// The operator writes patients by their identifier.
    pub by_identifier: bool,
    /// The server is asked for statements of use.
    pub statements: bool,
}

pub fn device(number: usize) -> String {
    format!("band-{number}")
}

pub fn start() -> Ticks {
    // 2026-09-22T00:00:00Z
    17_900_352_000_000_000
}

pub fn text(at: Ticks) -> String {
    Timestamp::from_ticks(at).unwrap().to_string()
}

impl Schedule {
    pub fn new(seed: u64) -> Schedule {
        let mut chance = drawn_from(seed);
        let begin = start();
        let mut schedule = Schedule {
            truth: Vec::new(),
            readings: Vec::new(),
            events: Vec::new(),
            restarts: Vec::new(),
            search_lag: if chance.one_in(2) { 30 } else { 0 },
            by_identifier: chance.one_in(2),
            statements: chance.one_in(2),
            resolution: match seed % 4 {
                2 => Resolution::Create,
                3 => Resolution::LookupWithEncounter,
                _ => Resolution::Lookup,
            },
            short_history: seed % 5 < 2,
        };
        // Of its own, so that what else happens does not depend on it.
        let mut ends = drawn_from(!seed);
        let operator = !seed.is_multiple_of(3);
        for number in 0..DEVICES {
            let mut truth = schedule.links(&mut chance, number, begin);
            if operator {
                schedule.entries(&mut chance, number, begin, &mut truth);
            } else if schedule.statements {
                schedule.statement(&mut chance, number, begin, &mut truth);
            }
            schedule.truth.push(truth);
            schedule.take_readings(&mut chance, number, begin);
        }
        let mut at = begin + HOUR;
        while at < begin + DAY {
            let from = moment(&mut chance, at, at + 2 * HOUR);
            let to = from + moment(&mut chance, MINUTE, 2 * HOUR);
            match chance.below(4) {
                0 => schedule.restarts.push(Restart {
                    ends: from + 13 * SECOND,
                    begins: from + 10 * MINUTE,
                    killed: ends.one_in(2),
                }),
                1 => schedule.outage(from, from + 5 * MINUTE, Event::LosesAnswers),
                _ => schedule.outage(from, to, Event::Away),
            }
            at = to.max(from + 15 * MINUTE);
        }
        schedule.kill(&mut ends, begin);
        schedule.events.sort_by_key(|(at, _)| *at);
        schedule.readings.sort_by_key(|reading| reading.sent);
        schedule
    }

    /// Kills at any moment, and some in the middle of what an entry or a change on the server sets off.
    fn kill(&mut self, ends: &mut Chance, begin: Ticks) {
        for _ in 0..ends.below(4) {
            let moments = self.events.len() as u64;
            let at = match usize::try_from(ends.below(moments.max(1))) {
                Ok(event) if ends.one_in(2) && event < self.events.len() => self.events[event].0,
                _ => {
                    begin + i64::try_from(ends.below(u64::try_from(DAY / SECOND).unwrap())).unwrap() * SECOND
                }
            };
            // To the millisecond, up to a minute and a half after it.
            let ends_at = at + i64::try_from(ends.below(90_000)).unwrap() * (SECOND / 1000);
            let begins = ends_at + moment(ends, 10 * SECOND, 5 * MINUTE).max(10 * SECOND);
            self.restarts.push(Restart {
                ends: ends_at,
                begins,
                killed: true,
            });
        }
        self.restarts.sort_by_key(|restart| restart.ends);
        let mut free = begin;
        self.restarts.retain(|restart| {
            let fits = restart.ends > free;
            if fits {
                free = restart.begins + SECOND;
            }
            fits
        });
    }

    fn outage(&mut self, from: Ticks, to: Ticks, how: Event) {
        self.events.push((from, how));
        self.events.push((to, Event::Back));
    }

    /// The device goes from patient to patient, and the server links it when it happens.
    fn links(&mut self, chance: &mut Chance, number: usize, begin: Ticks) -> Vec<Stay> {
        let mut truth = vec![Stay {
            from: Ticks::MIN,
            patient: Some(chance.below(PATIENTS)),
        }];
        let mut at = begin + moment(chance, HOUR, 2 * HOUR);
        while at < begin + DAY - HOUR {
            let before = truth.last().and_then(|stay| stay.patient);
            let mut patient = (!chance.one_in(4)).then(|| chance.below(PATIENTS));
            if patient == before {
                patient = None;
            }
            if patient != before {
                truth.push(Stay { from: at, patient });
                self.events.push((at, Event::Link(number, patient)));
            }
            at += moment(chance, 30 * MINUTE, 4 * HOUR);
        }
        truth
    }

    /// What the server got wrong the operator says later: some at first wrongly, some by mistake and takes it back.
    fn entries(&mut self, chance: &mut Chance, number: usize, begin: Ticks, truth: &mut Vec<Stay>) {
        let mut now = begin + HOUR;
        for _ in 0..chance.below(4) {
            let from = moment(chance, begin, now);
            let to = moment(chance, from + 10 * MINUTE, from + 3 * HOUR);
            let patient = chance.below(PATIENTS);
            let wrong = (patient + 1 + chance.below(PATIENTS - 1)) % PATIENTS;
            now = moment(chance, now, now + 90 * MINUTE).max(now + MINUTE);
            let (mistaken, corrected) = (chance.one_in(4), chance.one_in(3));
            if mistaken || corrected {
                self.enter(now, self.set(number, wrong, from, Some(to)));
                now = moment(chance, now + 2 * MINUTE, now + 90 * MINUTE);
            }
            if mistaken || (corrected && chance.one_in(2)) {
                let device = device(number);
                self.enter(now, Command::Retract { device });
                now += MINUTE;
            }
            if !mistaken {
                self.enter(now, self.set(number, patient, from, Some(to)));
                lay_over(truth, from, Some(to), Some(patient));
            }
        }
        // And of the last move the server does not know at all.
        if chance.one_in(2) {
            let last = truth.iter().map(|stay| stay.from).max().unwrap_or(begin);
            let from = last.max(begin) + moment(chance, 2 * MINUTE, HOUR);
            let at = moment(chance, now.max(from) + MINUTE, now.max(from) + 2 * HOUR);
            if chance.one_in(4) {
                let device = device(number);
                self.enter(
                    at,
                    Command::End {
                        device,
                        at: Some(from),
                    },
                );
                lay_over(truth, from, None, None);
            } else {
                let patient = chance.below(PATIENTS);
                self.enter(at, self.set(number, patient, from, None));
                lay_over(truth, from, None, Some(patient));
            }
        }
    }

    fn set(&self, number: usize, patient: u64, from: Ticks, to: Option<Ticks>) -> Command {
        let patient = if self.by_identifier {
            Who::Identifier(format!("mrn {patient}"))
        } else {
            Who::Id(format!("patient-{patient}"))
        };
        Command::Set {
            device: device(number),
            patient,
            encounter: None,
            from: Some(from),
            to,
        }
    }

    fn enter(&mut self, at: Ticks, command: Command) {
        self.events.push((at, Event::Enter(command)));
    }

    /// Staff documents afterwards, on the server, who used the device.
    fn statement(&mut self, chance: &mut Chance, number: usize, begin: Ticks, truth: &mut Vec<Stay>) {
        // Links of its patient count within its period only, so it is one whom the links do not name.
        let named = |patient: u64| truth.iter().any(|stay| stay.patient == Some(patient));
        let Some(patient) = (0..PATIENTS).find(|patient| !named(*patient)) else {
            return;
        };
        let from = moment(chance, begin, begin + DAY - HOUR);
        let to = from + moment(chance, 20 * MINUTE, 2 * HOUR);
        let to = to - to.rem_euclid(MINUTE) + 17 * SECOND;
        let at = moment(chance, to, to + HOUR) + MINUTE;
        self.events
            .push((at, Event::Statement(number, patient, from, to)));
        lay_over(truth, from, Some(to), Some(patient));
    }

    /// A reading every five minutes; now and then the device is out of reach and sends later.
    fn take_readings(&mut self, chance: &mut Chance, number: usize, begin: Ticks) {
        let mut late_until = Ticks::MIN;
        for (count, taken) in (0..).map(|count| (count, begin + i64::from(count) * PACE)) {
            if taken >= begin + DAY {
                return;
            }
            if taken >= late_until && chance.one_in(15) {
                let until = taken + moment(chance, 10 * MINUTE, 3 * HOUR);
                late_until = until - until.rem_euclid(PACE);
            }
            self.readings.push(Reading {
                device: number,
                taken,
                sent: taken.max(late_until),
                value: (number as u64 + 1) * 1000 + u64::from(u32::try_from(count).unwrap()),
            });
        }
    }

    /// Instants at which somebody says that a device changes hands.
    pub fn turns(&self) -> impl Iterator<Item = Ticks> + '_ {
        let of_event = |(at, event): &(Ticks, Event)| match event {
            Event::Link(..) => vec![*at],
            Event::Statement(_, _, from, to) => vec![*from, *to],
            Event::Enter(Command::Set { from, to, .. }) => from.iter().chain(to).copied().collect(),
            Event::Enter(Command::End { at, .. }) => at.iter().copied().collect(),
            Event::Enter(Command::Retract { .. } | Command::Complete)
            | Event::Away
            | Event::LosesAnswers
            | Event::Back => Vec::new(),
        };
        self.events.iter().flat_map(of_event)
    }

    /// Whose a reading is.
    pub fn patient_of(&self, reading: &Reading) -> Option<u64> {
        let stays = &self.truth[reading.device];
        let stay = stays.iter().rev().find(|stay| stay.from <= reading.taken);
        stay.and_then(|stay| stay.patient)
    }
}

/// What is said last about a stretch counts.
fn lay_over(truth: &mut Vec<Stay>, from: Ticks, to: Option<Ticks>, patient: Option<u64>) {
    let after = to.map(|to| {
        let at_end = truth.iter().rev().find(|stay| stay.from <= to);
        Stay {
            from: to,
            patient: at_end.and_then(|stay| stay.patient),
        }
    });
    truth.retain(|stay| stay.from < from || to.is_some_and(|to| to < stay.from));
    truth.push(Stay { from, patient });
    truth.extend(after);
    truth.sort_by_key(|stay| stay.from);
}
