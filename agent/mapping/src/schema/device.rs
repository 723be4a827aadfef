//! The device mapping of a pack, as a schema shows it.

use super::leaf::{NotBlank, Text, choices};
use schemars::JsonSchema;

choices! {
    CollectionContent = ["CollectionContent", "CollectionContentTemplate"];
    CalculatedContent = ["CalculatedContent", "CalculatedContentTemplate"];
    JsonPathContent = ["JsonPathContent", "JsonPathContentTemplate"];
    IotJsonPathContent = ["IotJsonPathContent", "IotJsonPathContentTemplate"];
    IotCentralJsonPathContent = ["IotCentralJsonPathContent", "IotCentralJsonPathContentTemplate"];
    LanguageName = ["JsonPath", "JmesPath"];
    BooleanText = ["true", "false"];
}

/// Device mapping of the MedTech service (CollectionContent).
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", title = "Device mapping")]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) struct DeviceMappingFile {
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
