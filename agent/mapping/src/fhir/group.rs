//! From the measurements of one group to the groups of single Observations (`mapping.md` 3.3, rules D5, D6, D14, D15,
//! D16), with an account of every reading.

use std::collections::{BTreeMap, HashMap};

use super::judge::{Usable, judge};
use super::period::{IdSegment, Period};
use super::sampled_data::fill_slots;
use super::template::{FhirTemplate, ValueKind};
use crate::error::ErrorKind;
use crate::measurement::Measurement;
use crate::time::Timestamp;

/// A measurement and when it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What was measured.
    pub measurement: Measurement,
    /// Order of arrival: larger is later. Of equal ones the later in the list counts as later.
    pub ingestion: i64,
}

/// The readings that become one Observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservationGroup {
    /// First instant of the period.
    pub boundary_start: Timestamp,
    /// Last instant of the period.
    pub boundary_end: Timestamp,
    /// Last part of the identifier.
    pub id_segment: IdSegment,
    /// How many instants the readings have.
    pub instants: usize,
    /// Values by name, names in order of first appearance.
    pub values: Vec<Series>,
    /// What became of each reading, by its index in the list that was given.
    pub readings: Vec<ReadingAccount>,
    /// Values that were refused (rules D4 and D5), by value name and time.
    pub reading_errors: Vec<ReadingError>,
    /// Readings of a Quantity or String that another of the period replaced, or that were refused (rule D16).
    pub left_out: usize,
    /// Readings of SampledData that fall into no slot (rule D5).
    pub outside_period: usize,
}

impl ObservationGroup {
    /// The readings of a value name.
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.values.iter().find(|series| series.name == name)
    }

    /// The same group under another identifier, as [`super::Merge::NewObservation`] asks for.
    #[must_use]
    pub fn with_segment(mut self, id_segment: IdSegment) -> ObservationGroup {
        self.id_segment = id_segment;
        self
    }
}

/// The readings of one value name within an Observation, by time, one per instant (rule D15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The value name.
    pub name: String,
    /// The readings.
    pub points: Vec<Point>,
}

/// One reading of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// When it was taken.
    pub time: Timestamp,
    /// Its text as the message spells it.
    pub text: String,
    /// Index of the reading it comes from.
    pub reading: usize,
}

/// What became of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadingAccount {
    /// Index in the list that was given.
    pub reading: usize,
    /// What became of it.
    pub outcome: ReadingOutcome,
}

/// What can become of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadingOutcome {
    /// At least one of its values, or its instant alone, is in the Observation.
    TookPart,
    /// Newer readings took the place of all its values (rules D5, D15, D16).
    Superseded,
    /// None of its values could be used, at least one was refused.
    Refused(ErrorKind),
}

/// A value that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadingError {
    /// Index of the reading.
    pub reading: usize,
    /// Value name.
    pub name: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Why.
    pub error: ErrorKind,
}

/// Why no Observation could be made; the text holds no value of a patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// The name that the reference uses for this error.
    pub kind: ErrorKind,
    /// What went wrong.
    pub text: String,
}

impl BuildError {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> BuildError {
        BuildError {
            kind,
            text: text.into(),
        }
    }
}

impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.text)
    }
}

impl std::error::Error for BuildError {}

/// How often each reading took part in something, while a group is accounted for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub used: bool,
    pub superseded: bool,
    pub refused: Option<ErrorKind>,
}

impl Tally {
    fn outcome(self) -> ReadingOutcome {
        match self {
            Tally { used: true, .. } => ReadingOutcome::TookPart,
            Tally {
                refused: Some(kind), ..
            } => ReadingOutcome::Refused(kind),
            Tally { superseded: true, .. } => ReadingOutcome::Superseded,
            // A measurement without values: its instant is what it tells.
            Tally { .. } => ReadingOutcome::TookPart,
        }
    }
}

impl FhirTemplate {
    /// Splits the readings of one group ([`crate::GroupKey`]) into those of single Observations, in order of first
    /// appearance. With [`Period::Correlation`] and no correlation id: `CorrelationIdNotDefinedException`.
    pub fn observation_groups(&self, readings: &[Reading]) -> Result<Vec<ObservationGroup>, BuildError> {
        let mut order: Vec<(Timestamp, Timestamp)> = Vec::new();
        let mut members: HashMap<(Timestamp, Timestamp), Vec<usize>> = HashMap::new();
        let whole = (self.period == Period::Correlation)
            .then(|| data_boundary(readings))
            .flatten();
        for (index, reading) in readings.iter().enumerate() {
            let time = reading.measurement.occurrence_time;
            let boundary = whole.unwrap_or_else(|| self.period.boundary(time));
            let of_boundary = members.entry(boundary).or_insert_with(|| {
                order.push(boundary);
                Vec::new()
            });
            of_boundary.push(index);
        }
        let mut groups = Vec::with_capacity(order.len());
        for boundary in order {
            let indexes = members.remove(&boundary).unwrap_or_default();
            let segment = match self.period {
                Period::Correlation => IdSegment::correlation(correlation_id(readings, &indexes)?),
                _ => IdSegment::boundary(boundary.0, boundary.1),
            };
            groups.push(self.observation_group(readings, &indexes, boundary, segment));
        }
        Ok(groups)
    }

    fn observation_group(
        &self,
        readings: &[Reading],
        indexes: &[usize],
        (boundary_start, boundary_end): (Timestamp, Timestamp),
        id_segment: IdSegment,
    ) -> ObservationGroup {
        let mut tallies: BTreeMap<usize, Tally> = indexes.iter().map(|i| (*i, Tally::default())).collect();
        let values = merge_by_instant(readings, indexes, &mut tallies);
        let mut instants: Vec<Timestamp> = indexes
            .iter()
            .filter_map(|i| readings.get(*i))
            .map(|reading| reading.measurement.occurrence_time)
            .collect();
        instants.sort_unstable();
        instants.dedup();
        let mut group = ObservationGroup {
            boundary_start,
            boundary_end,
            id_segment,
            instants: instants.len(),
            values,
            readings: Vec::new(),
            reading_errors: Vec::new(),
            left_out: 0,
            outside_period: 0,
        };
        self.account(&mut group, &mut tallies);
        group.readings = tallies
            .iter()
            .map(|(reading, tally)| ReadingAccount {
                reading: *reading,
                outcome: tally.outcome(),
            })
            .collect();
        group
    }

    /// Judges every value of the group and notes what became of its readings.
    fn account(&self, group: &mut ObservationGroup, tallies: &mut BTreeMap<usize, Tally>) {
        let mut tally = |reading: usize, note: &dyn Fn(&mut Tally)| {
            if let Some(tally) = tallies.get_mut(&reading) {
                note(tally);
            }
        };
        let mut known: Vec<&str> = Vec::new();
        let mut any_usable = false;
        for (_, value) in self.values() {
            let Some(series) = value.name.as_deref().and_then(|name| group.series(name)) else {
                continue;
            };
            let first_use = !known.contains(&series.name.as_str());
            known.push(value.name.as_deref().unwrap_or_default());
            let judged = judge(value, self.options.value(&series.name), series);
            for refusal in &judged.refused {
                tally(refusal.reading, &|t| t.refused = Some(refusal.error));
            }
            for reading in &judged.left_out {
                tally(*reading, &|t| t.superseded = true);
            }
            for reading in &judged.used {
                tally(*reading, &|t| t.used = true);
            }
            any_usable |= judged.usable != Usable::Nothing;
            let mut outside = 0;
            if let (Usable::Samples(samples), ValueKind::SampledData { period, .. }) =
                (judged.usable, &value.kind)
                && let Ok(slotted) = fill_slots(samples, group.boundary_start, group.boundary_end, *period)
            {
                for sample in slotted.placed.iter().filter_map(|sample| sample.reading) {
                    tally(sample, &|t| t.used = true);
                }
                for sample in slotted.superseded.iter().filter_map(|sample| sample.reading) {
                    tally(sample, &|t| t.superseded = true);
                }
                outside = slotted.outside.len();
            }
            if first_use {
                if matches!(value.kind, ValueKind::Quantity(_) | ValueKind::String) {
                    // With a single reading there is nothing that it was left out for: that is an error of its own.
                    let refused = if judged.used.is_empty() {
                        0
                    } else {
                        judged.refused.len()
                    };
                    group.left_out += judged.left_out.len() + refused;
                }
                group.outside_period += outside;
                group.reading_errors.extend(judged.refused);
            }
        }
        let refused = group.reading_errors.last().map(|refusal| refusal.error);
        if let (Some(kind), false) = (refused, any_usable) {
            // Nothing can be made of the group: it is a dead letter with all its readings.
            for tally in tallies.values_mut() {
                tally.refused = Some(kind);
            }
            return;
        }
        for series in group
            .values
            .iter()
            .filter(|series| !known.contains(&series.name.as_str()))
        {
            for point in &series.points {
                tally(point.reading, &|t| t.used = true);
            }
        }
    }
}

fn data_boundary(readings: &[Reading]) -> Option<(Timestamp, Timestamp)> {
    let times = readings.iter().map(|r| r.measurement.occurrence_time);
    Some((times.clone().min()?, times.max()?))
}

fn correlation_id(readings: &[Reading], indexes: &[usize]) -> Result<String, BuildError> {
    indexes
        .first()
        .and_then(|first| readings.get(*first))
        .and_then(|reading| reading.measurement.correlation_id.as_deref())
        .filter(|id| !id.trim().is_empty())
        .map(str::to_owned)
        .ok_or_else(|| {
            BuildError::new(
                ErrorKind::CorrelationIdNotDefinedException,
                "periodInterval -1 groups by correlation id, and the measurement has none.",
            )
        })
}

/// Values by name and instant; at one instant the last received wins for each name (rule D15), of one measurement the first.
fn merge_by_instant(
    readings: &[Reading],
    indexes: &[usize],
    tallies: &mut BTreeMap<usize, Tally>,
) -> Vec<Series> {
    let mut names: Vec<&str> = Vec::new();
    let mut points: Vec<BTreeMap<Timestamp, Point>> = Vec::new();
    for index in indexes {
        let Some(reading) = readings.get(*index) else {
            continue;
        };
        let time = reading.measurement.occurrence_time;
        for property in &reading.measurement.properties {
            let at = names
                .iter()
                .position(|name| *name == property.name)
                .unwrap_or_else(|| {
                    names.push(&property.name);
                    points.push(BTreeMap::new());
                    names.len() - 1
                });
            let Some(series) = points.get_mut(at) else {
                continue;
            };
            let point = Point {
                time,
                text: property.value.to_string(),
                reading: *index,
            };
            let Some(earlier) = series.get_mut(&time) else {
                series.insert(time, point);
                continue;
            };
            let received = |reading: usize| readings.get(reading).map(|r| r.ingestion);
            let newer = *index != earlier.reading && received(*index) >= received(earlier.reading);
            let loser = if newer {
                std::mem::replace(earlier, point).reading
            } else {
                *index
            };
            if let Some(tally) = tallies.get_mut(&loser) {
                tally.superseded = true;
            }
        }
    }
    names
        .into_iter()
        .zip(points)
        .map(|(name, points)| Series {
            name: name.to_owned(),
            points: points.into_values().collect(),
        })
        .collect()
}
