//! The FHIR destination mapping as it is evaluated: one template per measurement type (`mapping.md` 4.1).

use std::collections::HashMap;

use super::period::Period;
use super::sampled_data::SamplePeriod;
use crate::finding::Place;
use crate::pack_options::{PackOptions, TypeOptions};

/// A FHIR destination mapping (`CollectionFhir`).
///
/// ```
/// use iomt_mapping::fhir::FhirMapping;
///
/// let (mapping, findings) = FhirMapping::load(r#"{ "templateType": "CollectionFhir", "template": [
///   { "templateType": "CodeValueFhir", "template": {
///       "typeName": "heartrate", "codes": [{ "code": "8867-4", "system": "http://loinc.org" }],
///       "value": { "valueType": "Quantity", "valueName": "hr", "unit": "/min" } } }] }"#);
/// assert!(findings.is_empty());
/// assert!(mapping.unwrap().template("HeartRate").is_some());
/// ```
#[derive(Clone, Debug, Default)]
pub struct FhirMapping {
    templates: Vec<FhirTemplate>,
    by_lower_case_type: HashMap<String, usize>,
}

impl FhirMapping {
    /// Of templates whose type names differ also without regard to letter case; of equal ones the first counts.
    pub fn new(templates: Vec<FhirTemplate>) -> FhirMapping {
        let mut by_lower_case_type = HashMap::new();
        for (index, template) in templates.iter().enumerate() {
            by_lower_case_type
                .entry(template.type_name.to_lowercase())
                .or_insert(index);
        }
        FhirMapping {
            templates,
            by_lower_case_type,
        }
    }

    /// The template of a measurement type, without regard to letter case; `None` is the reference's
    /// `TemplateNotFoundException`.
    pub fn template(&self, type_name: &str) -> Option<&FhirTemplate> {
        let index = match self.by_lower_case_type.get(type_name) {
            Some(index) => index,
            None => self.by_lower_case_type.get(&type_name.to_lowercase())?,
        };
        self.templates.get(*index)
    }

    /// All templates in the order of the file.
    pub fn templates(&self) -> &[FhirTemplate] {
        &self.templates
    }

    /// Gives the templates what the pack's third file says about their types.
    #[must_use]
    pub fn with_options(mut self, options: &PackOptions) -> FhirMapping {
        for template in &mut self.templates {
            if let Some(of_type) = options.of_type(&template.type_name) {
                template.options = of_type.clone();
            }
        }
        self
    }
}

/// How measurements of one type become an Observation (`CodeValueFhir`).
#[derive(Clone, Debug, Default)]
pub struct FhirTemplate {
    /// `typeName`, as the mapping spells it.
    pub type_name: String,
    /// Its place in the mapping.
    pub type_name_place: Option<Place>,
    /// Index of the template in its mapping, from 0.
    pub index: usize,
    /// `periodInterval`.
    pub period: Period,
    /// Place of `periodInterval`, or of the template when it has none.
    pub period_place: Option<Place>,
    /// `codes`, for `Observation.code`.
    pub codes: Vec<Coding>,
    /// `category`.
    pub category: Vec<Concept>,
    /// `value`.
    pub value: Option<ValueTemplate>,
    /// `components`.
    pub components: Vec<Component>,
    /// What the pack's third file says about this type.
    pub options: TypeOptions,
}

impl FhirTemplate {
    /// Which readings become one Observation.
    pub fn period(&self) -> Period {
        self.period
    }

    /// The value templates: that of the Observation first, then those of the components with their index.
    pub fn values(&self) -> impl Iterator<Item = (Option<usize>, &ValueTemplate)> {
        let of_components = self
            .components
            .iter()
            .enumerate()
            .map(|(index, c)| (Some(index), &c.value));
        self.value.iter().map(|value| (None, value)).chain(of_components)
    }
}

/// `codes` entry: a FHIR Coding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coding {
    /// `code`
    pub code: Option<String>,
    /// `system`
    pub system: Option<String>,
    /// `display`
    pub display: Option<String>,
    /// Where it stands in the mapping.
    pub place: Option<Place>,
}

/// A FHIR CodeableConcept: `category` entries and the fixed value of a CodeableConcept template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concept {
    /// `text`
    pub text: Option<String>,
    /// `codes`
    pub codes: Vec<Coding>,
}

/// `components` entry.
#[derive(Clone, Debug)]
pub struct Component {
    /// `codes`, for `Observation.component.code`.
    pub codes: Vec<Coding>,
    /// `value`
    pub value: ValueTemplate,
}

/// `value` of a template or component.
#[derive(Clone, Debug)]
pub struct ValueTemplate {
    /// `valueName`: the device mapping's value, letter case counts. `None` never finds data.
    pub name: Option<String>,
    /// Place of `valueName`, or of the value when it has none.
    pub place: Option<Place>,
    /// `valueType` and what belongs to it.
    pub kind: ValueKind,
}

/// Value types of a FHIR mapping.
#[derive(Clone, Debug)]
pub enum ValueKind {
    /// `Quantity`
    Quantity(Unit),
    /// `String`
    String,
    /// `CodeableConcept`: a fixed concept, the measured value is ignored.
    CodeableConcept(Concept),
    /// `SampledData`
    SampledData {
        /// `defaultPeriod` in milliseconds, spelled as in the mapping.
        spelled_period: String,
        /// The same as a number.
        period: SamplePeriod,
        /// Place of `defaultPeriod`.
        period_place: Option<Place>,
        /// `unit`; it has no system and code in a MedTech mapping.
        unit: Unit,
    },
}

/// Unit of a Quantity or of the origin of SampledData; texts are never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// `unit`, for people.
    pub unit: Option<String>,
    /// `system`
    pub system: Option<String>,
    /// `code` within the system.
    pub code: Option<String>,
    /// Place of `code`, else of `unit`, else of the value.
    pub place: Option<Place>,
}
