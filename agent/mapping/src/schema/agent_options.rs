//! The third file of a pack, as a schema shows it.

use super::fhir::ConceptFile;
use super::leaf::{Decimal, choices};
use schemars::JsonSchema;
use std::collections::BTreeMap;

choices! {
    Effective = ["dateTime", "Period"];
    PriorityName = ["alarm", "spot", "periodic", "waveform"];
}

/// What MedTech mappings have no place for, by measurement type.
#[derive(JsonSchema)]
#[schemars(
    rename_all = "camelCase",
    deny_unknown_fields,
    title = "Agent options of a mapping pack"
)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) struct AgentOptionsFile {
    /// This schema.
    #[schemars(rename = "$schema")]
    schema: Option<String>,
    /// Seconds to add to the time of every reading: the constant error of the device's clock.
    clock_correction: Option<Decimal>,
    /// Options by typeName; letter case does not count.
    types: Option<BTreeMap<String, TypeFile>>,
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
    values: Option<BTreeMap<String, ValueOptionsFile>>,
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
    data_absent_reason: Option<BTreeMap<String, String>>,
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
