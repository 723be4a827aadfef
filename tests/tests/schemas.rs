//! The shipped JSON Schemas of a pack's files accept every sample mapping that loads, and refuse what they can tell.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use boon::{Compiler, SchemaIndex, Schemas};
use iomt_mapping::check::check_pack;
use iomt_mapping::fhir::FhirMapping;
use iomt_mapping::has_errors;
use iomt_mapping::pack_options::PackOptions;
use serde_json::{Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

struct Shipped {
    schemas: Schemas,
    device: SchemaIndex,
    fhir: SchemaIndex,
    agent: SchemaIndex,
}

impl Shipped {
    fn load() -> Shipped {
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        let mut compile = |name: &str| {
            let text =
                std::fs::read_to_string(format!("{ROOT}/agent/mapping/schemas/{name}.schema.json")).unwrap();
            let schema: Value = serde_json::from_str(&text).unwrap();
            let id = schema["$id"].as_str().unwrap().to_owned();
            compiler.add_resource(&id, schema).unwrap();
            compiler.compile(&id, &mut schemas).unwrap()
        };
        let (device, fhir, agent) = (compile("device"), compile("fhir"), compile("agent"));
        Shipped {
            schemas,
            device,
            fhir,
            agent,
        }
    }

    fn refusal(&self, schema: SchemaIndex, mapping: &Value) -> Option<String> {
        self.schemas
            .validate(mapping, schema)
            .err()
            .map(|error| error.to_string())
    }
}

/// Every vector of the folders that the mapping vectors are in: the copy of this tree, or the shared one.
fn vectors() -> Vec<Value> {
    let mut all = Vec::new();
    for base in ["tests/vectors", "../shared/vectors"] {
        for folder in ["mapping", "medtech", "medtech-samples"] {
            let Ok(entries) = std::fs::read_dir(format!("{ROOT}/{base}/{folder}")) else {
                continue;
            };
            for path in entries.map(|entry| entry.unwrap().path()) {
                let text = std::fs::read_to_string(&path).unwrap();
                match serde_json::from_str(&text).unwrap() {
                    Value::Array(vectors) => all.extend(vectors),
                    one => all.push(one),
                }
            }
        }
    }
    all
}

#[test]
fn every_sample_mapping_that_loads_is_accepted() {
    let shipped = Shipped::load();
    let mut accepted = 0;
    for vector in vectors() {
        let members = |name: &str| vector.get(name).filter(|m| !m.is_null()).cloned();
        let several = members("fhirMappings").and_then(|m| m.as_array().cloned());
        let by_kind = |kind: &str| members("mapping").filter(|_| vector["kind"] == kind);
        let fhir = members("fhirMapping").into_iter().chain(by_kind("fhir"));
        for mapping in fhir.chain(several.into_iter().flatten()) {
            if has_errors(&FhirMapping::load(&mapping.to_string()).1) {
                continue;
            }
            assert_eq!(
                shipped.refusal(shipped.fhir, &mapping),
                None,
                "{}",
                vector["name"]
            );
            accepted += 1;
        }
        let expects_errors = vector["expected"].to_string().contains("templateErrors")
            || vector["expected"]["findings"].to_string().contains("\"field\"");
        let device = members("deviceMapping").into_iter().chain(by_kind("device"));
        for mapping in device.filter(|_| !expects_errors) {
            assert_eq!(
                shipped.refusal(shipped.device, &mapping),
                None,
                "{}",
                vector["name"]
            );
            accepted += 1;
        }
    }
    assert!(accepted > 200, "{accepted}");
}

#[test]
fn every_ready_pack_is_accepted_and_has_no_findings() {
    let shipped = Shipped::load();
    let mut packs = 0;
    for entry in std::fs::read_dir(format!("{ROOT}/board-configs/mappings")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let (device, fhir, agent) = (
            text("devicecontent.json"),
            text("fhirmapping.json"),
            text("agent.json"),
        );
        for (schema, file) in [
            (shipped.device, &device),
            (shipped.fhir, &fhir),
            (shipped.agent, &agent),
        ] {
            if let Some(file) = file {
                let value = serde_json::from_str(file).unwrap();
                assert_eq!(shipped.refusal(schema, &value), None, "{}", folder.display());
            }
        }
        let found = check_pack(device.as_deref(), fhir.as_deref(), agent.as_deref(), &[]);
        assert_eq!(found, [], "{}", folder.display());
        packs += 1;
    }
    assert!(packs > 10, "{packs}");
}

#[test]
fn mistakes_are_refused() {
    let shipped = Shipped::load();
    let fhir = |template: Value| json!({ "templateType": "CollectionFhir", "template": [ { "templateType": "CodeValueFhir", "template": template } ] });
    let value = |value: Value| fhir(json!({ "typeName": "t", "codes": [], "value": value }));
    assert_eq!(
        shipped.refusal(shipped.fhir, &fhir(json!({ "typeName": "t", "codes": [] }))),
        None
    );
    for wrong in [
        json!({ "templateType": "CollectionContent", "template": [] }),
        fhir(json!({ "typeName": " ", "codes": [] })),
        fhir(json!({ "typeName": "t" })),
        fhir(json!({ "typeName": "t", "codes": [], "colour": 1 })),
        fhir(json!({ "typeName": "t", "codes": [], "periodInterval": 30 })),
        fhir(json!({ "typeName": "t", "codes": [], "components": [{ "codes": [] }] })),
        value(json!({ "valueType": "Integer" })),
        value(json!({ "valueType": "SampledData" })),
        value(json!({ "valueType": "SampledData", "defaultPeriod": 0 })),
        value(json!({ "valueType": "CodeableConcept" })),
    ] {
        assert!(shipped.refusal(shipped.fhir, &wrong).is_some(), "{wrong}");
    }
    let device = |kind: &str, template: Value| json!({ "templateType": "CollectionContent", "template": [ { "templateType": kind, "template": template } ] });
    let object = json!({ "value": "$..[?(@x)]", "language": "JsonPath" });
    for wrong in [
        device("XmlContent", json!({ "typeName": "t" })),
        device("CalculatedContent", json!({ "typeName": "t", "values": [] })),
        device(
            "IotJsonPathContent",
            json!({ "typeName": "t", "typeMatchExpression": object }),
        ),
        device(
            "IotJsonPathContent",
            json!({ "typeName": "t", "typeMatchExpression": " " }),
        ),
    ] {
        assert!(shipped.refusal(shipped.device, &wrong).is_some(), "{wrong}");
    }
}

#[test]
fn third_file_and_its_schema_agree() {
    let shipped = Shipped::load();
    let table = [
        (json!({}), true),
        (
            json!({ "$schema": "x", "clockCorrection": -2.5, "types": {} }),
            true,
        ),
        (
            json!({ "types": { "a": { "priority": "Alarm", "profile": "p", "effective": "dateTime", "mdcCode": 147842,
                "bodySite": { "text": "t" }, "method": { "codes": [{ "code": "c" }] }, "performer": ["Organization/1"], "note": "n",
                "values": { "v": { "system": "s", "code": "c", "mdcCode": "1", "referenceRange": { "low": "1", "high": 2 },
                    "interpretation": [{ "below": 1, "code": "L" }], "dataAbsentReason": { "x": "error" } } } } } }),
            true,
        ),
        (json!({ "types": { "a": { "priority": "urgent" } } }), false),
        (json!({ "types": { "a": { "effective": "date" } } }), false),
        (json!({ "types": { "a": { "mdcCode": "x" } } }), false),
        (
            json!({ "types": { "a": { "values": { "v": { "interpretation": [{ "below": 1 }] } } } } }),
            false,
        ),
        (
            json!({ "types": { "a": { "values": { "v": { "dataAbsentReason": { "x": 1 } } } } } }),
            false,
        ),
        (json!({ "typos": {} }), false),
        (json!([]), false),
    ];
    for (file, good) in table {
        assert_eq!(PackOptions::load(&file.to_string()).0.is_some(), good, "{file}");
        assert_eq!(
            shipped.refusal(shipped.agent, &file).is_none(),
            good,
            "{file} {:?}",
            shipped.refusal(shipped.agent, &file)
        );
    }
}
