use super::*;

const CONFIG: &str = "\
[gateway]
id = \"bed-12\"

[mappings]
dir = \"mappings.d\"

[[source]]
name = \"ward\"
kind = \"mqtt\"
url = \"mqtts://broker\"
topics = [\"a\"]
packs = [\"hart\"]

[[destination]]
name = \"ehr\"
kind = \"fhir\"
url = \"https://fhir.example/r4\"
";

const DEVICE: &str = r#"{ "templateType": "CollectionContent", "template": [
  { "templateType": "CalculatedContent", "template": {
    "typeName": "hr", "typeMatchExpression": "$..[?(@hr)]", "deviceIdExpression": "$.matchedToken.id",
    "timestampExpression": "$.matchedToken.at", "values": [{ "valueName": "hr", "valueExpression": "$.matchedToken.hr" }] } }] }"#;

fn gateway(config: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Report) {
    let dir = tempfile::tempdir().unwrap();
    let mappings = dir.path().join("mappings.d");
    std::fs::create_dir(&mappings).unwrap();
    for (name, text) in files {
        std::fs::write(mappings.join(name), text).unwrap();
    }
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, config).unwrap();
    let check = Check {
        config: Some(path),
        packs: Vec::new(),
        format: Format::Text,
        strict: false,
    };
    let report = check.report().unwrap();
    (dir, report)
}

fn kinds(report: &Report) -> Vec<&str> {
    report.found.iter().map(|found| found.finding.kind).collect()
}

#[test]
fn a_configuration_is_checked_with_its_packs() {
    let (_dir, report) = gateway(CONFIG, &[("heart.device.json", DEVICE)]);
    assert_eq!(kinds(&report), ["MissingFile", "UnknownPack"]);
    assert_eq!((report.packs, report.count(Severity::Error)), (1, 0));
    let text = report.text(0, 2);
    assert!(text.contains("names the mapping pack \"hart\""), "{text}");
    assert!(
        text.ends_with("agent.toml and 1 mapping pack: 0 errors, 2 warnings\n"),
        "{text}"
    );
}

#[test]
fn errors_come_with_file_line_and_column_for_people_and_programs() {
    let broken = DEVICE.replace("\"values\": [", "\"values\" [");
    let (dir, report) = gateway(
        &CONFIG.replace("hart", "heart"),
        &[("heart.device.json", &broken)],
    );
    let file = dir
        .path()
        .join("mappings.d/heart.device.json")
        .display()
        .to_string();
    let text = report.text(1, 0);
    assert!(text.contains(&format!("--> {file}:4:")), "{text}");
    let shown = report.json(false, 1, 0);
    assert_eq!(shown["findings"][0]["file"], file);
    assert_eq!(shown["findings"][0]["line"], 4);
    assert_eq!(shown["findings"][0]["severity"], "error");
    assert_eq!(shown["ok"], false);
}

#[test]
fn a_wrong_configuration_and_a_missing_folder_are_told() {
    let (_dir, report) = gateway(&CONFIG.replace("mqtts://", "tcp://"), &[]);
    assert_eq!(kinds(&report), ["InvalidAddress"]);
    let (_dir, report) = gateway(&CONFIG.replace("mappings.d", "elsewhere"), &[]);
    assert_eq!(kinds(&report), ["MissingFolder"]);
    let (_dir, report) = gateway(CONFIG, &[("README.md", "words"), ("mapping.json", "{}")]);
    assert_eq!(kinds(&report), ["NotAPack", "NoPack", "UnknownPack"]);
}
