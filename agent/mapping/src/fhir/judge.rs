//! Which readings of a value can be used, and which are refused or left out (rules D4, D5, D16).

use super::decimal;
use super::group::{Point, ReadingError, Series};
use super::sampled_data::Sample;
use super::template::{ValueKind, ValueTemplate};
use crate::error::ErrorKind;
use crate::pack_options::ValueOptions;
use crate::time::Timestamp;

/// What of a series goes into the Observation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Usable {
    /// Nothing: every reading was refused.
    Nothing,
    /// A decimal, spelled for JSON.
    Number { text: String, time: Timestamp },
    /// A text.
    Text { text: String, time: Timestamp },
    /// The template's fixed concept.
    Concept,
    /// Samples by time; none when the device only said that it has no value.
    Samples(Vec<Sample>),
    /// The device said that it has no value; the code says why.
    Absent { reason: String },
}

/// A judged series.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub usable: Usable,
    pub refused: Vec<ReadingError>,
    /// Readings that a later one of the period replaced.
    pub left_out: Vec<usize>,
    /// Readings that are in the result; of samples see the slots.
    pub used: Vec<usize>,
}

pub(crate) fn judge(value: &ValueTemplate, options: Option<&ValueOptions>, series: &Series) -> Judged {
    let mut judged = Judged {
        usable: Usable::Nothing,
        refused: Vec::new(),
        left_out: Vec::new(),
        used: Vec::new(),
    };
    let absent = |point: &Point| {
        options
            .and_then(|o| o.absent_reason(&point.text))
            .map(str::to_owned)
    };
    let refuse = |point: &Point, error| ReadingError {
        reading: point.reading,
        name: series.name.clone(),
        time: point.time,
        error,
    };
    match &value.kind {
        ValueKind::CodeableConcept(_) => {
            judged.usable = Usable::Concept;
            judged.used = series.points.iter().map(|point| point.reading).collect();
        }
        ValueKind::SampledData { .. } => {
            let mut samples = Vec::with_capacity(series.points.len());
            for point in &series.points {
                if absent(point).is_some() {
                    judged.used.push(point.reading);
                } else if let Some(token) = decimal(&point.text) {
                    samples.push(Sample {
                        time: point.time,
                        token,
                        reading: Some(point.reading),
                    });
                } else {
                    judged
                        .refused
                        .push(refuse(point, ErrorKind::InvalidQuantityFhirValueException));
                }
            }
            if !samples.is_empty() || !judged.used.is_empty() {
                judged.usable = Usable::Samples(samples);
            }
        }
        ValueKind::Quantity(_) | ValueKind::String => {
            let is_quantity = matches!(value.kind, ValueKind::Quantity(_));
            let mut said_absent: Option<(&Point, String)> = None;
            for point in series.points.iter().rev() {
                let usable = if let Some(reason) = absent(point) {
                    // Latest first: the last reason counts when there is no value at all.
                    match said_absent {
                        None => said_absent = Some((point, reason)),
                        Some(_) => judged.left_out.push(point.reading),
                    }
                    continue;
                } else if is_quantity {
                    decimal(&point.text).map(|text| Usable::Number {
                        text,
                        time: point.time,
                    })
                } else {
                    (!point.text.trim().is_empty()).then(|| Usable::Text {
                        text: point.text.clone(),
                        time: point.time,
                    })
                };
                match usable {
                    None => {
                        let error = if is_quantity {
                            ErrorKind::InvalidQuantityFhirValueException
                        } else {
                            ErrorKind::IncompatibleDataException
                        };
                        judged.refused.push(refuse(point, error));
                    }
                    Some(_) if !judged.used.is_empty() => judged.left_out.push(point.reading),
                    Some(found) => {
                        judged.usable = found;
                        judged.used.push(point.reading);
                    }
                }
            }
            match said_absent {
                Some((point, _)) if !judged.used.is_empty() => judged.left_out.push(point.reading),
                Some((point, reason)) => {
                    judged.usable = Usable::Absent { reason };
                    judged.used.push(point.reading);
                }
                None => {}
            }
            judged.refused.reverse();
        }
    }
    judged
}
