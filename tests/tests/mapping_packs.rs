//! The mapping packs that ship: they load without a remark, and each sample gives the Observations written beside it.

use bedside_tests::conformance::same::{Extent, difference};
use bedside_tests::samples::observations;
use iomt_mapping::check::check_pack;
use iomt_mapping::fhir::FhirMapping;
use iomt_mapping::{DeviceMapping, Finding};
use serde_json::Value;
use std::path::{Path, PathBuf};

const MAPPINGS: &str = "../board-configs/mappings";

fn packs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(MAPPINGS);
    let mut packs: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    packs.sort();
    assert!(
        packs.len() >= 3,
        "heart rate, blood pressure and pulse oximeter ship"
    );
    packs
}

fn text(pack: &Path, file: &str) -> String {
    std::fs::read_to_string(pack.join(file)).unwrap()
}

fn without_remarks<T>(pack: &Path, (mapping, findings): (Option<T>, Vec<Finding>)) -> T {
    assert_eq!(findings, [], "{}", pack.display());
    mapping.unwrap()
}

#[test]
fn the_checker_has_no_remark_on_a_pack() {
    for pack in packs() {
        let (device, fhir) = (text(&pack, "devicecontent.json"), text(&pack, "fhirmapping.json"));
        let options = std::fs::read_to_string(pack.join("agent.json")).ok();
        let remarks: Vec<String> = check_pack(Some(&device), Some(&fhir), options.as_deref(), &[])
            .into_iter()
            .map(|remark| format!("{}: {}", remark.finding.kind, remark.finding.message))
            .collect();
        assert_eq!(remarks, Vec::<String>::new(), "{}", pack.display());
    }
}

#[test]
fn each_sample_gives_the_observations_written_beside_it() {
    for pack in packs() {
        let device = without_remarks(&pack, DeviceMapping::load(&text(&pack, "devicecontent.json")));
        let fhir = without_remarks(&pack, FhirMapping::load(&text(&pack, "fhirmapping.json")));
        let mut samples = 0;
        for sample in std::fs::read_dir(pack.join("samples")).unwrap() {
            let file = sample.unwrap().path();
            let sample: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            let actual = Value::Array(observations(&device, &fhir, &sample));
            let different = difference(&sample["observations"], &actual, Extent::Subset);
            assert_eq!(different, None, "{}", file.display());
            samples += 1;
        }
        assert!(samples >= 2, "{} has samples", pack.display());
    }
}

#[test]
fn every_measured_value_has_its_place_in_an_observation() {
    for pack in packs() {
        let device = without_remarks(&pack, DeviceMapping::load(&text(&pack, "devicecontent.json")));
        let fhir = without_remarks(&pack, FhirMapping::load(&text(&pack, "fhirmapping.json")));
        for template in device.templates() {
            let into = fhir.template(template.type_name()).unwrap();
            let mut measured: Vec<&str> = template.value_names().collect();
            let mut written: Vec<&str> = into.values().filter_map(|(_, v)| v.name.as_deref()).collect();
            measured.sort_unstable();
            written.sort_unstable();
            assert_eq!(measured, written, "{} {}", pack.display(), template.type_name());
        }
    }
}
