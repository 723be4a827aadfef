//! The mapping packs of a source together: one message, all packs, each type from one pack.

use std::sync::Arc;

use crate::device::{DeviceMapping, DeviceTemplate, TemplateMatch};
use crate::index::Index;
use crate::measurement::{Measurement, NormalizeError};
use crate::message::ParsedMessage;

/// Device mappings in the order of their packs' names.
///
/// All packs are tried for a message. Where two of them give the same type (in any letter case) for it, the first in name
/// order wins and the other's measurements are counted as shadowed.
///
/// ```
/// use std::sync::Arc;
/// use iomt_mapping::{DeviceMapping, MappingSet, message::ParsedMessage};
///
/// let mapping = |value: &str| {
///     let text = format!(r#"{{ "templateType": "CollectionContent", "template": [ {{ "templateType": "CalculatedContent",
///       "template": {{ "typeName": "hr", "typeMatchExpression": "$..[?(@hr)]", "deviceIdExpression": "$.Body.id",
///         "timestampExpression": "$.Body.t", "values": [ {{ "valueName": "{value}", "valueExpression": "$.Body.hr" }} ] }} }} ] }}"#);
///     Arc::new(DeviceMapping::load(&text).0.unwrap())
/// };
/// let set = MappingSet::new(vec![("ward".to_owned(), mapping("b")), ("basic".to_owned(), mapping("a"))]);
/// let message = ParsedMessage::from_envelope(br#"{"Body": {"hr": 60, "id": "d", "t": "2026-11-21"}}"#).unwrap();
/// let normalized = set.normalize(&message);
/// assert_eq!(normalized.matches[0].measurement.properties[0].name, "a");
/// assert_eq!(normalized.shadowed, 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct MappingSet {
    packs: Vec<(String, Arc<DeviceMapping>)>,
    index: Index,
    /// For each template of all packs in order: pack, and place in the pack's list of templates.
    places: Vec<(usize, usize)>,
}

/// What a message gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetNormalized {
    /// Measurements in pack order, template order, match order.
    pub matches: Vec<SetMatch>,
    /// What failed, with the index of the pack.
    pub errors: Vec<(usize, NormalizeError)>,
    /// Measurements left out because an earlier pack gives their type.
    pub shadowed: usize,
}

/// One measurement and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetMatch {
    /// Index of the pack, in name order.
    pub pack: usize,
    /// Index of the template in its mapping, from 0.
    pub template: usize,
    /// Index of the match of that template, from 0.
    pub match_index: usize,
    /// The measurement.
    pub measurement: Measurement,
}

impl MappingSet {
    /// A set of packs, by name.
    pub fn new(mut packs: Vec<(String, Arc<DeviceMapping>)>) -> MappingSet {
        packs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let templates = || packs.iter().flat_map(|(_, mapping)| mapping.templates());
        let index = Index::new(templates().map(DeviceTemplate::type_match));
        let places = packs.iter().enumerate();
        let places =
            places.flat_map(|(pack, (_, mapping))| (0..mapping.templates().len()).map(move |at| (pack, at)));
        let places = places.collect();
        MappingSet { packs, index, places }
    }

    /// Names and mappings, in order.
    pub fn packs(&self) -> &[(String, Arc<DeviceMapping>)] {
        &self.packs
    }

    /// The measurements of a message. Only templates whose type match could find something in it are evaluated.
    pub fn normalize(&self, message: &ParsedMessage<'_>) -> SetNormalized {
        self.evaluate(message, self.index.candidates(message).into_iter())
    }

    /// As [`MappingSet::normalize`], by evaluating every template.
    pub fn normalize_each(&self, message: &ParsedMessage<'_>) -> SetNormalized {
        self.evaluate(message, 0..self.places.len())
    }

    fn evaluate(
        &self,
        message: &ParsedMessage<'_>,
        candidates: impl Iterator<Item = usize>,
    ) -> SetNormalized {
        let mut found = SetNormalized::default();
        let mut of_template = Vec::new();
        for candidate in candidates {
            let Some((pack, place)) = self.places.get(candidate).copied() else {
                continue;
            };
            let Some(template) = self
                .packs
                .get(pack)
                .and_then(|(_, mapping)| mapping.templates().get(place))
            else {
                continue;
            };
            let earlier = |known: &SetMatch| {
                known.pack < pack && same_type(&known.measurement.type_name, template.type_name())
            };
            let is_shadowed = found.matches.iter().any(earlier);
            let (matches, shadowed) = (&mut found.matches, &mut found.shadowed);
            let mut take = |left, matched: TemplateMatch| {
                if is_shadowed {
                    *shadowed += 1;
                    return;
                }
                matches.reserve(left);
                matches.push(SetMatch {
                    pack,
                    template: matched.template,
                    match_index: matched.match_index,
                    measurement: matched.measurement,
                });
            };
            template.normalize(message, &mut take, &mut of_template);
            found
                .errors
                .extend(of_template.drain(..).map(|error| (pack, error)));
        }
        found
    }
}

/// Whether two type names are the same but for letter case.
pub fn same_type(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || !(a.is_ascii() && b.is_ascii()) && a.to_lowercase() == b.to_lowercase()
}
