//! Device mappings: which parts of a message are measurements (`mapping.md` 1, rules D1, D2, D7 to D13, D20, D21).

mod load;
mod normalize;
mod trace;

use crate::expression::Expression;
use crate::finding::{Finding, Place, has_errors};
use crate::index::Index;
use crate::measurement::{Measurement, NormalizeError};
use crate::message::ParsedMessage;
use smol_str::SmolStr;

pub use trace::{FieldTrace, MatchTrace, MissingMember, TemplateTrace, Trace};

/// A device mapping, loaded.
///
/// ```
/// use iomt_mapping::{DeviceMapping, message::ParsedMessage};
///
/// let (mapping, findings) = DeviceMapping::load(r#"{
///   "templateType": "CollectionContent",
///   "template": [{
///     "templateType": "CalculatedContent",
///     "template": {
///       "typeName": "heartrate",
///       "typeMatchExpression": "$..[?(@heartRate)]",
///       "deviceIdExpression": "$.matchedToken.device",
///       "timestampExpression": "$.matchedToken.time",
///       "values": [{ "valueName": "hr", "valueExpression": "$.matchedToken.heartRate", "required": true }]
///     }
///   }]
/// }"#);
/// assert!(findings.is_empty());
/// let message = ParsedMessage::from_envelope(
///     br#"{"Body": {"heartRate": 78, "device": "bed-12", "time": "2026-11-21T10:00:00Z"}}"#,
/// ).unwrap();
/// let normalized = mapping.unwrap().normalize(&message);
/// assert_eq!(normalized.matches[0].measurement.properties[0].value, "78");
/// ```
#[derive(Clone, Debug)]
pub struct DeviceMapping {
    templates: Vec<DeviceTemplate>,
    index: Index,
}

/// The four kinds of inner templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    /// Expressions see the envelope with the match as `matchedToken`; JSONPath and JMESPath.
    Calculated,
    /// Expressions see the match.
    JsonPath,
    /// As `JsonPath`; device and time come from the properties that an IoT hub adds.
    IotJsonPath,
    /// As `JsonPath`; device and time come from an IoT Central export.
    IotCentralJsonPath,
}

impl TemplateKind {
    /// The name as mappings write it, without the suffix `Template`.
    pub fn name(self) -> &'static str {
        match self {
            TemplateKind::Calculated => "CalculatedContent",
            TemplateKind::JsonPath => "JsonPathContent",
            TemplateKind::IotJsonPath => "IotJsonPathContent",
            TemplateKind::IotCentralJsonPath => "IotCentralJsonPathContent",
        }
    }
}

/// An inner template.
#[derive(Clone, Debug)]
pub struct DeviceTemplate {
    index: usize,
    kind: TemplateKind,
    type_name: String,
    place: Place,
    type_match: Expression,
    device_id: Expression,
    timestamp: Expression,
    /// Where the time comes from when `timestamp` gives none (IotJsonPathContent).
    timestamp_fallback: Option<Expression>,
    patient_id: Option<Expression>,
    encounter_id: Option<Expression>,
    correlation_id: Option<Expression>,
    values: Vec<ValueTemplate>,
    /// All matches in a message have the same key.
    one_key: bool,
}

/// A named value of an inner template.
#[derive(Clone, Debug)]
pub struct ValueTemplate {
    name: SmolStr,
    /// None for a blank optional one of a legacy type: never a value.
    expression: Option<Expression>,
    required: bool,
    place: Place,
}

impl ValueTemplate {
    /// The `valueName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `valueExpression`.
    pub fn expression(&self) -> Option<&Expression> {
        self.expression.as_ref()
    }

    /// Whether a match without it is an error.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Where the entry stands in the mapping text.
    pub fn place(&self) -> Place {
        self.place
    }
}

impl DeviceTemplate {
    fn with_one_key(self) -> DeviceTemplate {
        let one_key = self.has_one_key();
        DeviceTemplate { one_key, ..self }
    }

    /// Whether what makes up the key is the same for all matches in a message: places in the envelope.
    fn has_one_key(&self) -> bool {
        let optional = [&self.patient_id, &self.encounter_id, &self.correlation_id];
        let mut parts = optional.into_iter().flatten().chain([&self.device_id]);
        // The other kinds look into the match, or from the match.
        self.kind == TemplateKind::Calculated && parts.all(Expression::is_place_in_envelope)
    }

    /// Its index in the mapping, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The kind of template.
    pub fn kind(&self) -> TemplateKind {
        self.kind
    }

    /// The `typeName`: the type of its measurements.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// Where the template stands in the mapping text.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Its line in the mapping text, from 1.
    pub fn line(&self) -> usize {
        self.place.line
    }

    /// Its values in order.
    pub fn values(&self) -> &[ValueTemplate] {
        &self.values
    }

    /// The names of its values in order.
    pub fn value_names(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(ValueTemplate::name)
    }

    /// The `typeMatchExpression`.
    pub fn type_match(&self) -> &Expression {
        &self.type_match
    }

    /// Every expression that the mapping text has for it, with its member or value name; the type match first.
    pub fn expressions(&self) -> impl Iterator<Item = (&str, &Expression)> {
        let own_identity = matches!(self.kind, TemplateKind::Calculated | TemplateKind::JsonPath);
        let identity = [
            ("deviceIdExpression", &self.device_id),
            ("timestampExpression", &self.timestamp),
        ];
        let optional = [
            ("correlationIdExpression", &self.correlation_id),
            ("patientIdExpression", &self.patient_id),
            ("encounterIdExpression", &self.encounter_id),
        ];
        let values = self
            .values
            .iter()
            .filter_map(|value| Some((value.name(), value.expression()?)));
        std::iter::once(("typeMatchExpression", &self.type_match))
            .chain(identity.into_iter().filter(move |_| own_identity))
            .chain(
                optional
                    .into_iter()
                    .filter_map(|(name, expression)| Some((name, expression.as_ref()?))),
            )
            .chain(values)
    }
}

/// What a message gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Normalized {
    /// Measurements, in template order, then match order.
    pub matches: Vec<TemplateMatch>,
    /// Templates and matches that failed, in the same order (rule D2: the others go on).
    pub errors: Vec<NormalizeError>,
}

impl Normalized {
    fn add(&mut self, template: &DeviceTemplate, message: &ParsedMessage<'_>) {
        let matches = &mut self.matches;
        let mut take = |left, found| {
            matches.reserve(left);
            matches.push(found);
        };
        template.normalize(message, &mut take, &mut self.errors);
    }
}

/// One measurement and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateMatch {
    /// Index of the template in its mapping, from 0.
    pub template: usize,
    /// Index of the match of that template, from 0.
    pub match_index: usize,
    /// The measurement.
    pub measurement: Measurement,
}

impl DeviceMapping {
    /// Loads a mapping text. All errors are found at once; any of them refuses the whole mapping.
    pub fn load(text: &str) -> (Option<DeviceMapping>, Vec<Finding>) {
        let (mapping, findings) = Self::load_partial(text);
        (mapping.filter(|_| !has_errors(&findings)), findings)
    }

    /// As [`DeviceMapping::load`], but gives the templates that have no error, for tools that show partial results; `None`
    /// when the document itself is no mapping.
    pub fn load_partial(text: &str) -> (Option<DeviceMapping>, Vec<Finding>) {
        let (templates, findings) = load::load(text);
        (templates.map(DeviceMapping::of), findings)
    }

    fn of(templates: Vec<DeviceTemplate>) -> DeviceMapping {
        let index = Index::new(templates.iter().map(DeviceTemplate::type_match));
        DeviceMapping { templates, index }
    }

    /// The templates in order.
    pub fn templates(&self) -> &[DeviceTemplate] {
        &self.templates
    }

    /// The measurements of a message. Only templates whose type match could find something in it are evaluated.
    pub fn normalize(&self, message: &ParsedMessage<'_>) -> Normalized {
        let mut normalized = Normalized::default();
        for candidate in self.index.candidates(message) {
            if let Some(template) = self.templates.get(candidate) {
                normalized.add(template, message);
            }
        }
        normalized
    }

    /// As [`DeviceMapping::normalize`], by evaluating every template.
    pub fn normalize_each(&self, message: &ParsedMessage<'_>) -> Normalized {
        let mut normalized = Normalized::default();
        for template in &self.templates {
            normalized.add(template, message);
        }
        normalized
    }

    /// How every template comes to its measurements, or why it gives none.
    pub fn trace(&self, message: &ParsedMessage<'_>) -> Trace {
        Trace {
            templates: self
                .templates
                .iter()
                .map(|template| template.trace(message))
                .collect(),
        }
    }
}
