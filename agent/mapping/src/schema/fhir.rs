//! The FHIR destination mapping of a pack, as a schema shows it.

use super::leaf::{Milliseconds, NotBlank, Text, choices, leaves};
use schemars::{JsonSchema, json_schema};

choices! {
    CollectionFhir = ["CollectionFhir", "CollectionFhirTemplate"];
    CodeValueFhir = ["CodeValueFhir", "CodeValueFhirTemplate"];
    SampledDataType = ["SampledData"];
    QuantityType = ["Quantity"];
    StringType = ["String"];
    CodeableConceptType = ["CodeableConcept"];
    PeriodName = ["0", "60", "1440", "-1", "Single", "Hourly", "Daily", "CorrelationId"];
}

/// FHIR destination mapping of the MedTech service (CollectionFhir).
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", title = "FHIR destination mapping")]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) struct FhirMappingFile {
    template_type: CollectionFhir,
    /// One template per measurement type.
    template: Vec<FhirEntry>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "read by the derive only")]
struct FhirEntry {
    template_type: CodeValueFhir,
    template: FhirTemplateFile,
}

/// How measurements of one type become an Observation.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct FhirTemplateFile {
    /// The measurement type of the device mapping; unique, letter case does not count.
    type_name: NotBlank,
    /// Which readings become one Observation: 0 of an instant, 60 of an hour, 1440 of a day, -1 of a correlation id.
    period_interval: Option<PeriodInterval>,
    /// Observation.category.
    category: Option<Vec<ConceptFile>>,
    /// Observation.code.
    codes: Vec<CodeFile>,
    /// Observation.value.
    value: Option<ValueFile>,
    /// Observation.component.
    components: Option<Vec<ComponentFile>>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the derive only")]
enum PeriodInterval {
    Number(PeriodNumber),
    Name(PeriodName),
}

leaves! {
    PeriodNumber => json_schema!({ "enum": [0, 60, 1440, -1] });
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct CodeFile {
    code: Option<Text>,
    system: Option<Text>,
    display: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) struct ConceptFile {
    text: Option<Text>,
    codes: Option<Vec<CodeFile>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct ComponentFile {
    /// Observation.component.code.
    codes: Vec<CodeFile>,
    /// Observation.component.value.
    value: ValueFile,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "read by the derive only")]
enum ValueFile {
    SampledData(SampledDataFile),
    Quantity(QuantityFile),
    String(StringFile),
    CodeableConcept(CodeableConceptFile),
}

/// A series with one sample per slot.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "read by the derive only")]
struct SampledDataFile {
    value_type: SampledDataType,
    /// The device mapping's valueName; letter case counts.
    value_name: Option<Text>,
    /// Milliseconds from one sample to the next.
    default_period: Milliseconds,
    unit: Option<Text>,
}

/// One number with its unit.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "read by the derive only")]
struct QuantityFile {
    value_type: QuantityType,
    /// The device mapping's valueName; letter case counts.
    value_name: Option<Text>,
    /// For people.
    unit: Option<Text>,
    /// http://unitsofmeasure.org for UCUM.
    system: Option<Text>,
    /// For programs, for example mm[Hg].
    code: Option<Text>,
}

/// The text as it is.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "read by the derive only")]
struct StringFile {
    value_type: StringType,
    /// The device mapping's valueName; letter case counts.
    value_name: Option<Text>,
}

/// A fixed concept; the measured value is ignored.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "read by the derive only")]
struct CodeableConceptFile {
    value_type: CodeableConceptType,
    /// The device mapping's valueName; letter case counts.
    value_name: Option<Text>,
    text: Option<Text>,
    codes: Vec<CodeFile>,
}
