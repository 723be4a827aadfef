//! The clock of one device as its messages show it: what is believed, and what is shown of it.

use super::known::{Entry, Known};
use super::rules::Measured;
use crate::message::Position;
use serde::Serialize;
use std::collections::VecDeque;

/// In ticks of 100 ns.
pub(super) const SECOND: i64 = 10_000_000;
/// Messages that come within this time count as one.
const APART: i64 = 5 * SECOND;
/// How far differences of messages that agree may be apart, and how far an offset may drift before it is measured anew.
const TOLERANCE: i64 = 2 * SECOND;
/// A reading that is this far from the offset is old, or the clock of its device was set.
pub(super) const DEVIATES: i64 = 60 * SECOND;
/// An offset of a device without a rule that is worth an operator's attention.
const REMARKABLE: i64 = 120 * SECOND;
/// Messages that agree before an offset is shown for a device that has no rule.
pub(super) const SHOWN_SAMPLES: usize = 5;

/// For `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shown {
    /// Device identifier.
    pub device: String,
    /// Seconds that its clock is behind the gateway's after what the configuration says; negative when it is ahead.
    pub behind_seconds: Option<f64>,
    /// Seconds that are added to its times because that was measured.
    pub corrected_seconds: Option<f64>,
    /// What is wrong, and what to do.
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    received: i64,
    /// Received less shown (and corrected by the rule): ticks.
    difference: i64,
}

#[derive(Debug, Default)]
pub(super) struct Clock {
    pub(super) known: Known,
    window: VecDeque<Sample>,
    /// The newest estimate, believed or not.
    pub(super) estimate: Option<i64>,
    /// The largest offset that is believed: ticks.
    pub(super) limit: Option<i64>,
    pub(super) is_measured: bool,
    /// Turn of its last message, over all devices.
    pub(super) used: u64,
}

impl Clock {
    /// A measured clock of which the store holds this.
    pub(super) fn restored(known: Known) -> Clock {
        Clock {
            known,
            is_measured: true,
            ..Clock::default()
        }
    }

    /// Takes a difference in; as many are kept as it takes for new ones to outvote old ones.
    pub(super) fn sample(&mut self, received: i64, difference: i64, samples: usize) {
        if let Some(last) = self.window.back_mut() {
            let since = received - last.received;
            if (0..APART).contains(&since) {
                // The newest of what came together.
                last.difference = last.difference.min(difference);
                return;
            }
            if since < 0 {
                // The gateway's clock was set back: what it showed before is of no use.
                self.window.clear();
            }
        }
        self.window.push_back(Sample { received, difference });
        while self.window.len() > samples * 2 - 1 {
            self.window.pop_front();
        }
    }

    /// The smallest difference on which so many of the last messages agree.
    pub(super) fn agreed(&self, samples: usize) -> Option<i64> {
        let mut differences: Vec<i64> = self.window.iter().map(|sample| sample.difference).collect();
        differences.sort_unstable();
        differences.windows(samples).find_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            (last - first <= TOLERANCE).then_some(*first)
        })
    }

    /// What is known with the newest difference, and whether readings that wait may go on; none when nothing changes.
    pub(super) fn learn(
        &self,
        position: Position,
        received: i64,
        difference: i64,
        rule: Measured,
    ) -> Option<(Known, bool)> {
        let agreed = self
            .agreed(rule.samples)
            .filter(|estimate| estimate.abs() <= rule.limit);
        let mut known = self.known.clone();
        let Some(last) = known.entries.last().copied() else {
            known.entries.push(Entry {
                from: 0,
                correction: agreed?,
                received,
                began: None,
            });
            return Some((known, true));
        };
        let now = last.correction;
        let deviates = (difference - now).abs() > DEVIATES;
        let wakes = match (agreed, known.suspect) {
            // The clock was set: that explains what did not fit.
            (Some(agreed), suspect) if deviates && (agreed - now).abs() > DEVIATES => {
                let of_it = |sample: &&Sample| (sample.difference - agreed).abs() <= TOLERANCE;
                let began = self.window.iter().find(of_it)?.received;
                known.enter(Entry {
                    from: suspect.unwrap_or(position),
                    correction: agreed,
                    received,
                    began: Some(began),
                });
                true
            }
            // It fits again: the others were late.
            (Some(agreed), Some(_)) if !deviates && (agreed - now).abs() <= DEVIATES => {
                known.suspect = None;
                true
            }
            (_, None) if deviates => {
                known.suspect = Some(position);
                false
            }
            (Some(agreed), None) if (agreed - now).abs() > TOLERANCE => {
                known.enter(Entry {
                    from: position + 1,
                    correction: agreed,
                    received,
                    began: last.began,
                });
                false
            }
            _ => return None,
        };
        Some((known, wakes))
    }

    /// None where there is nothing to be said.
    pub(super) fn shown(&self, device: &str) -> Option<Shown> {
        let seconds = |ticks: i64| (ticks / (SECOND / 10)) as f64 / 10.0;
        let corrected = self.known.entries.last().map(|entry| entry.correction);
        let estimate = self.estimate;
        let problem = match (self.is_measured, estimate) {
            (false, Some(off)) if off.abs() > REMARKABLE => Some(format!(
                "its clock is {} s {} that of the gateway: set it, or say so in [[clock.device]]",
                seconds(off.abs()),
                if off > 0 { "behind" } else { "ahead of" }
            )),
            (true, Some(off)) if self.limit.is_some_and(|limit| off.abs() > limit) => Some(format!(
                "its clock seems to be {} s off, more than `limit` of [[clock.device]] believes: its readings wait; set it, \
                 or raise `limit`",
                seconds(off)
            )),
            (true, _) if self.known.suspect.is_some() => Some(
                "its times contradict each other: readings wait until it is clear whether its clock was set or they are old"
                    .to_owned(),
            ),
            _ => None,
        };
        (corrected.is_some() || problem.is_some()).then(|| Shown {
            device: device.to_owned(),
            behind_seconds: estimate.map(seconds),
            corrected_seconds: corrected.filter(|_| self.is_measured).map(seconds),
            problem,
        })
    }
}
