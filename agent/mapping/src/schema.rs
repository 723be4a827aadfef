//! JSON Schemas (draft 2020-12) of the three files of a pack, generated from the types below. The generated files are in
//! `schemas/` and a test holds them current; an editor that is given them completes members and marks mistakes.
//!
//! A schema is narrower than the loader in one way: member names are expected as the documentation spells them, although
//! the loader takes any letter case. Values that stand for a choice are taken in any letter case, as by the loader.

mod agent_options;
mod device;
mod fhir;
mod leaf;

use agent_options::AgentOptionsFile;
use device::DeviceMappingFile;
use fhir::FhirMappingFile;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
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
