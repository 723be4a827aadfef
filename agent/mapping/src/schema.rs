//! JSON Schemas (draft 2020-12) of the three files of a pack, generated from the types below. The generated files are in
//! `schemas/` and a test holds them current; an editor that is given them completes members and marks mistakes.
//!
//! A schema is narrower than the loader in one way: member names are expected as the documentation spells them, although
//! the loader takes any letter case. Values that stand for a choice are taken in any letter case, as by the loader.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// File name in `schemas/` and schema of each file of a pack.
pub fn schemas() -> [(&'static str, Value); 3] {
    [
        (
            "device.schema.json",
            schema_of::<DeviceMappingFile>("device-mapping"),
        ),
        ("fhir.schema.json", schema_of::<FhirMappingFile>("fhir-mapping")),
        (
            "agent.schema.json",
            schema_of::<AgentOptionsFile>("agent-options"),
        ),
    ]
}

fn schema_of<T: JsonSchema>(name: &str) -> Value {
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>();
    schema.insert("$id".to_owned(), format!("urn:iomt-mapping:{name}").into());
    schema.to_value()
}

/// A text that is one of `choices` in any letter case; the choices are listed for editors.
fn choice(choices: &[&str]) -> Schema {
    let patterns: Vec<String> = choices
        .iter()
        .map(|choice| {
            choice
                .chars()
                .map(|c| {
                    if c.is_ascii_alphabetic() {
                        format!("[{}{}]", c.to_ascii_lowercase(), c.to_ascii_uppercase())
                    } else {
                        c.to_string()
                    }
                })
                .collect()
        })
        .collect();
    json_schema!({
        "type": "string",
        "anyOf": [ { "enum": choices }, { "pattern": format!("^({})$", patterns.join("|")) } ]
    })
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident = [$($choice:literal),+];)+) => {$(
        $(#[$doc])*
        struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                choice(&[$($choice),+])
            }

            fn inline_schema() -> bool {
                true
            }
        }
    )+};
}

choices! {
    CollectionContent = ["CollectionContent", "CollectionContentTemplate"];
    CalculatedContent = ["CalculatedContent", "CalculatedContentTemplate"];
    JsonPathContent = ["JsonPathContent", "JsonPathContentTemplate"];
    IotJsonPathContent = ["IotJsonPathContent", "IotJsonPathContentTemplate"];
    IotCentralJsonPathContent = ["IotCentralJsonPathContent", "IotCentralJsonPathContentTemplate"];
    CollectionFhir = ["CollectionFhir", "CollectionFhirTemplate"];
    CodeValueFhir = ["CodeValueFhir", "CodeValueFhirTemplate"];
    LanguageName = ["JsonPath", "JmesPath"];
    BooleanText = ["true", "false"];
    SampledDataType = ["SampledData"];
    QuantityType = ["Quantity"];
    StringType = ["String"];
    CodeableConceptType = ["CodeableConcept"];
    PeriodName = ["0", "60", "1440", "-1", "Single", "Hourly", "Daily", "CorrelationId"];
    Effective = ["dateTime", "Period"];
    PriorityName = ["alarm", "spot", "periodic", "waveform"];
}

/// Device mapping of the MedTech service (CollectionContent).
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", title = "Device mapping")]
#[expect(dead_code, reason = "read by the derive only")]
struct DeviceMappingFile {
    template_type: CollectionContent,
    /// Every message is evaluated against every template.
    template: Vec<DeviceEntry>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "read by the derive only")]
enum DeviceEntry {
    Calculated(CalculatedEntry),
    JsonPath(JsonPathEntry),
    Iot(IotEntry),
    IotCentral(IotCentralEntry),
}

macro_rules! entries {
    ($($name:ident: $tag:ident -> $body:ident;)+) => {$(
        #[derive(JsonSchema)]
        #[schemars(rename_all = "camelCase")]
        #[expect(dead_code, reason = "read by the derive only")]
        struct $name {
            template_type: $tag,
            template: $body,
        }
    )+};
}

entries! {
    CalculatedEntry: CalculatedContent -> CalculatedTemplate;
    JsonPathEntry: JsonPathContent -> JsonPathTemplate;
    IotEntry: IotJsonPathContent -> IotTemplate;
    IotCentralEntry: IotCentralJsonPathContent -> IotTemplate;
    FhirEntry: CodeValueFhir -> FhirTemplateFile;
}

/// JSONPath or JMESPath expressions on {Body, Properties, SystemProperties, matchedToken}.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct CalculatedTemplate {
    /// Name of the measurement type; finds the FHIR template.
    type_name: Text,
    /// Each match becomes one measurement.
    type_match_expression: Expression,
    /// Device identifier.
    device_id_expression: Expression,
    /// When the reading was taken; a time without zone is UTC.
    timestamp_expression: Expression,
    /// Patient identifier.
    patient_id_expression: Option<Expression>,
    /// Encounter identifier.
    encounter_id_expression: Option<Expression>,
    /// Groups by this instead of time, with periodInterval -1.
    correlation_id_expression: Option<Expression>,
    /// Language of expressions that are plain texts.
    default_expression_language: Option<Language>,
    /// The values of a measurement; none is legal.
    values: Vec<CalculatedValue>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct CalculatedValue {
    /// Name of the value in the FHIR template; letter case counts.
    value_name: Text,
    value_expression: Expression,
    /// Whether a missing value is an error.
    required: Option<Required>,
}

/// JSONPath expressions on the matched token.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct JsonPathTemplate {
    /// Name of the measurement type; finds the FHIR template.
    type_name: Text,
    /// Each match becomes one measurement.
    type_match_expression: NotBlank,
    device_id_expression: NotBlank,
    timestamp_expression: NotBlank,
    patient_id_expression: Option<Text>,
    encounter_id_expression: Option<Text>,
    correlation_id_expression: Option<Text>,
    values: Option<Vec<JsonPathValue>>,
}

/// JSONPath expressions on the matched token; device and time come from the IoT Hub or IoT Central envelope.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct IotTemplate {
    /// Name of the measurement type; finds the FHIR template.
    type_name: Text,
    /// Each match becomes one measurement.
    type_match_expression: NotBlank,
    /// Ignored: the envelope names the device.
    device_id_expression: Option<Text>,
    /// Ignored: the envelope has the time.
    timestamp_expression: Option<Text>,
    patient_id_expression: Option<Text>,
    encounter_id_expression: Option<Text>,
    correlation_id_expression: Option<Text>,
    values: Option<Vec<JsonPathValue>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct JsonPathValue {
    /// Name of the value in the FHIR template; letter case counts.
    value_name: Text,
    value_expression: NotBlank,
    /// Whether a missing value is an error.
    required: Option<Required>,
}

/// A text; numbers and booleans are taken as text.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the derive only")]
enum Text {
    Quoted(String),
    Number(f64),
    Boolean(bool),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "read by the derive only")]
enum Expression {
    /// In the default language.
    Plain(NotBlank),
    /// With its language.
    WithLanguage(ExpressionObject),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "read by the derive only")]
struct ExpressionObject {
    value: NotBlank,
    language: Option<Language>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "read by the derive only")]
enum Language {
    Name(LanguageName),
    /// 0 JSONPath, 1 JMESPath.
    Number(#[schemars(range(min = 0, max = 1))] u8),
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the derive only")]
enum Required {
    Boolean(bool),
    Text(BooleanText),
    Number(i64),
}

/// FHIR destination mapping of the MedTech service (CollectionFhir).
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", title = "FHIR destination mapping")]
#[expect(dead_code, reason = "read by the derive only")]
struct FhirMappingFile {
    template_type: CollectionFhir,
    /// One template per measurement type.
    template: Vec<FhirEntry>,
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

struct PeriodNumber;

impl JsonSchema for PeriodNumber {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PeriodNumber".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": [0, 60, 1440, -1] })
    }

    fn inline_schema() -> bool {
        true
    }
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
struct ConceptFile {
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

/// A text that is not blank.
struct NotBlank;

impl JsonSchema for NotBlank {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NotBlank".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "\\S" })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// Milliseconds above zero, as number or text.
struct Milliseconds;

impl JsonSchema for Milliseconds {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Milliseconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "number", "exclusiveMinimum": 0 },
                { "type": "string", "pattern": "^\\s*[+]?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?\\s*$" }
            ]
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A decimal, as number or text.
struct Decimal;

impl JsonSchema for Decimal {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Decimal".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "number" },
                { "type": "string", "pattern": "^\\s*[+-]?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?\\s*$" }
            ]
        })
    }
}

/// What MedTech mappings have no place for, by measurement type.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    deny_unknown_fields,
    title = "Agent options of a mapping pack"
)]
#[expect(dead_code, reason = "read by the derive only")]
struct AgentOptionsFile {
    /// This schema.
    #[schemars(rename = "$schema")]
    schema: Option<String>,
    /// Seconds to add to the time of every reading: the constant error of the device's clock.
    clock_correction: Option<Decimal>,
    /// Options by typeName; letter case does not count.
    types: Option<std::collections::BTreeMap<String, TypeFile>>,
}

/// Options of a measurement type.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct TypeFile {
    /// Which readings leave first and are given up last.
    priority: Option<PriorityName>,
    /// Observation.meta.profile.
    profile: Option<OneOrMany<String>>,
    /// dateTime writes an instant as effectiveDateTime; hours and days stay a Period.
    effective: Option<Effective>,
    /// IEEE 11073-10101 code beside the template's codes.
    mdc_code: Option<MdcCode>,
    /// Observation.bodySite.
    body_site: Option<ConceptFile>,
    /// Observation.method.
    method: Option<ConceptFile>,
    /// Observation.performer: references such as Organization/ward-3.
    performer: Option<OneOrMany<String>>,
    /// Observation.note.
    note: Option<OneOrMany<String>>,
    /// Seconds to add to the time of readings of this type.
    clock_correction: Option<Decimal>,
    /// Options by valueName; letter case counts.
    values: Option<std::collections::BTreeMap<String, ValueOptionsFile>>,
}

/// Options of a value.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct ValueOptionsFile {
    /// System of the unit on the origin of SampledData.
    system: Option<String>,
    /// Code of the unit on the origin of SampledData.
    code: Option<String>,
    /// IEEE 11073-10101 code of the component.
    mdc_code: Option<MdcCode>,
    reference_range: Option<OneOrMany<ReferenceRangeFile>>,
    /// The first rule that holds gives the code.
    interpretation: Option<OneOrMany<InterpretationFile>>,
    /// Texts that a device sends when it has no value -> the code that says why.
    data_absent_reason: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct ReferenceRangeFile {
    low: Option<Decimal>,
    high: Option<Decimal>,
    text: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read by the derive only")]
struct InterpretationFile {
    /// Holds for values below this.
    below: Option<Decimal>,
    /// Holds for values above this.
    above: Option<Decimal>,
    /// Code of v3-ObservationInterpretation, for example H or LL.
    code: String,
    system: Option<String>,
    display: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the derive only")]
enum MdcCode {
    Text(#[schemars(regex(pattern = "^[0-9]+$"))] String),
    Number(u32),
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the derive only")]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set `UPDATE_SCHEMAS` to write the files instead of comparing them.
    #[test]
    fn shipped_schemas_are_current() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas");
        for (name, schema) in schemas() {
            let path = format!("{folder}/{name}");
            let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
            if std::env::var_os("UPDATE_SCHEMAS").is_some() {
                std::fs::create_dir_all(folder).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let shipped = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                shipped == text,
                "{path} is not current: run this test with UPDATE_SCHEMAS=1"
            );
        }
    }
}
