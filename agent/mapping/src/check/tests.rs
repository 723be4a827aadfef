use super::*;

fn fhir_mapping(templates: &str) -> String {
    format!(r#"{{ "templateType": "CollectionFhir", "template": [ {templates} ] }}"#)
}

fn fhir_template(body: &str) -> String {
    format!(r#"{{ "templateType": "CodeValueFhir", "template": {{ {body} }} }}"#)
}

fn device_mapping(kind: &str, body: &str) -> String {
    format!(
        r#"{{ "templateType": "CollectionContent", "template": [ {{ "templateType": "{kind}", "template": {{ {body} }} }} ] }}"#
    )
}

fn kinds(found: &[PackFinding]) -> Vec<&'static str> {
    found.iter().map(|f| f.finding.kind).collect()
}

const GOOD_HEART_RATE: &str = r#""typeName": "heartrate",
    "category": [{ "codes": [{ "code": "vital-signs", "system": "http://terminology.hl7.org/CodeSystem/observation-category" }] }],
    "codes": [{ "code": "8867-4", "system": "http://loinc.org", "display": "Heart rate" }],
    "value": { "valueType": "Quantity", "valueName": "hr", "unit": "beats/min",
        "system": "http://unitsofmeasure.org", "code": "/min" }"#;

const GOOD_DEVICE: &str = r#""typeName": "heartrate", "typeMatchExpression": "$..[?(@hr)]",
    "deviceIdExpression": "$.matchedToken.id", "timestampExpression": "$.matchedToken.time",
    "values": [{ "valueName": "hr", "valueExpression": "$.matchedToken.hr", "required": true }]"#;

#[test]
fn a_good_pack_has_no_findings() {
    let fhir = fhir_mapping(&fhir_template(GOOD_HEART_RATE));
    let device = device_mapping("CalculatedContent", GOOD_DEVICE);
    let agent = r#"{ "types": { "heartrate": { "priority": "spot", "effective": "dateTime",
        "performer": ["Organization/1"], "values": { "hr": { "dataAbsentReason": { "---": "error" } } } } } }"#;
    assert_eq!(check_pack(Some(&device), Some(&fhir), Some(agent), &[]), []);
}

#[test]
fn fhir_lints() {
    let sampled = |period: &str, interval: &str| {
        format!(
            r#""typeName": "x", "periodInterval": {interval}, "codes": [],
               "value": {{ "valueType": "SampledData", "valueName": "v", "defaultPeriod": {period}, "unit": "mV" }}"#
        )
    };
    let quantity = |unit: &str, more: &str| {
        format!(
            r#""typeName": "x", "codes": [], {more} "value": {{ "valueType": "Quantity", "valueName": "v", {unit} }}"#
        )
    };
    let coded = |code: &str, display: &str| {
        format!(
            r#""typeName": "x", "codes": [{{ "code": "{code}", "system": "http://loinc.org", "display": "{display}" }}]"#
        )
    };
    let ucum = r#""system": "http://unitsofmeasure.org""#;
    let table: Vec<(String, &[&str])> = vec![
        (sampled("1000", "0"), &["SampledDataWithoutPeriod"]),
        (sampled("7000", "60"), &["PeriodDoesNotDivide"]),
        (sampled("4", "1440"), &["TooManySlots"]),
        (sampled("4", "60"), &[]),
        (quantity(r#""unit": "mmHg""#, ""), &["NonUcumUnit"]),
        (
            quantity(&format!(r#""unit": "mmHg", {ucum}, "code": "mm[Hg]""#), ""),
            &[],
        ),
        (
            quantity(&format!(r#""unit": "x", {ucum}, "code": "count/min""#), ""),
            &["NonUcumUnit"],
        ),
        (quantity(&format!(r#""unit": "x", {ucum}"#), ""), &["NonUcumUnit"]),
        (
            quantity(r#""unit": "x", "system": "urn:other", "code": "y""#, ""),
            &[],
        ),
        (quantity(r#""unit": """#, ""), &["NoUnit"]),
        (
            quantity(r#""unit": "kg""#, r#""periodInterval": 60,"#),
            &["OnlyLastReading"],
        ),
        (
            coded("8867-4", "Diastolic blood pressure"),
            &["WrongLoinc", "VitalSignsProfile"],
        ),
        (coded("8867-4", "Heart rate"), &["VitalSignsProfile"]),
        (coded("80404-7", "Heart rate variability"), &[]),
        (coded("12345-6", "Anything"), &["LoincCheckDigit"]),
        (coded("59405-1", "Oxygen saturation"), &[]),
        (
            coded("2708-6", "Oxygen saturation"),
            &["VitalSignsProfile", "VitalSignsProfile"],
        ),
        (
            coded("85354-9", "Blood pressure panel"),
            &["VitalSignsProfile", "VitalSignsProfile", "VitalSignsProfile"],
        ),
        (
            r#""typeName": "temp", "codes": [{ "code": "8867-4", "system": "http://loinc.org" }]"#.to_owned(),
            &["WrongLoinc", "VitalSignsProfile"],
        ),
    ];
    for (body, expected) in table {
        let text = fhir_mapping(&fhir_template(&body));
        let mut found = kinds(&check_pack(None, Some(&text), None, &[]));
        let mut expected = expected.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{body}");
    }
}

#[test]
fn diastolic_coded_as_heart_rate_is_told_at_its_line_with_the_right_code() {
    let body = r#""typeName": "bp", "category": [{ "codes": [{ "code": "vital-signs" }] }],
        "codes": [{ "code": "85354-9", "system": "http://loinc.org" }], "components": [
        { "codes": [{ "code": "8480-6", "system": "http://loinc.org" }],
          "value": { "valueType": "Quantity", "valueName": "systolic", "system": "http://unitsofmeasure.org", "code": "mm[Hg]" } },
        { "codes": [{ "code": "8867-4", "system": "http://loinc.org" }],
          "value": { "valueType": "Quantity", "valueName": "diastolic", "system": "http://unitsofmeasure.org", "code": "mm[Hg]" } } ]"#;
    let text = fhir_mapping(&fhir_template(body));
    let found = check_pack(None, Some(&text), None, &[]);
    let wrong = found.iter().find(|f| f.finding.kind == "WrongLoinc").unwrap();
    assert_eq!(wrong.finding.place.unwrap().line, 5);
    assert_eq!(
        wrong.finding.suggestion.as_deref(),
        Some("Did you mean 8462-4 (Diastolic blood pressure)?")
    );
    let json = to_json(&wrong.finding, "ward.fhir.json");
    assert_eq!(json["line"], 5);
    assert_eq!(json["severity"], "warning");
}

#[test]
fn device_lints() {
    let body = |type_match: &str, value: &str| {
        format!(
            r#""typeName": "t", "typeMatchExpression": {type_match}, "deviceIdExpression": "$.Body.id",
               "timestampExpression": "$.Body.time", "values": [{{ "valueName": "v", "valueExpression": {value}, "required": true }}]"#
        )
    };
    let any = r#""$..[?(@v)]""#;
    let jmespath = |text: &str| format!(r#"{{ "value": "{text}", "language": "JmesPath" }}"#);
    let table: Vec<(&str, String, &[&str])> = vec![
        ("CalculatedContent", body(any, r#""$.matchedToken.v""#), &[]),
        (
            "CalculatedContent",
            body(any, r#""$.heartRate""#),
            &["UnreachableExpression"],
        ),
        (
            "CalculatedContent",
            body(any, r#""$.body.v""#),
            &["UnreachableExpression"],
        ),
        ("CalculatedContent", body(any, r#""Body.v""#), &[]),
        ("CalculatedContent", body(any, r#""$['Properties']['v']""#), &[]),
        (
            "CalculatedContent",
            body(any, &jmespath("device.v")),
            &["UnreachableExpression"],
        ),
        (
            "CalculatedContent",
            body(any, &jmespath("add(matchedToken.v, matchedToken.w)")),
            &[],
        ),
        (
            "CalculatedContent",
            body(r#""$.matchedToken[?(@v)]""#, any),
            &["UnreachableExpression"],
        ),
        ("JsonPathContent", body(any, r#""$.heartRate""#), &[]),
        (
            "JsonPathContent",
            body(any, r#""$.matchedToken.v""#),
            &["UnreachableExpression"],
        ),
        (
            "JsonPathContent",
            body(r#""$..[?(@a && @b || @c)]""#, any),
            &["LogicalPrecedence"],
        ),
        ("JsonPathContent", body(r#""$..[?(@a == '&& ||')]""#, any), &[]),
    ];
    for (kind, body, expected) in table {
        let text = device_mapping(kind, &body);
        assert_eq!(
            kinds(&check_pack(Some(&text), None, None, &[])),
            expected,
            "{kind} {body}"
        );
    }
}

#[test]
fn files_of_a_pack_are_checked_against_each_other() {
    let fhir = fhir_mapping(&fhir_template(GOOD_HEART_RATE));
    let against = |body: &str| {
        let device = device_mapping("CalculatedContent", &GOOD_DEVICE.replace("\"heartrate\"", body));
        check_pack(Some(&device), Some(&fhir), None, &[])
    };
    assert_eq!(kinds(&against("\"HeartRate\"")), ["DivergingCase"]);
    let unknown = against("\"heartrat\"");
    assert_eq!(kinds(&unknown), ["NoFhirTemplate", "FhirTemplateUnused"]);
    assert_eq!(
        unknown[0].finding.suggestion.as_deref(),
        Some("Did you mean \"heartrate\"?")
    );
    assert!(
        unknown[0]
            .finding
            .message
            .contains("Available Fhir Templates: [heartrate].")
    );

    let device = device_mapping(
        "CalculatedContent",
        &GOOD_DEVICE.replace("\"valueName\": \"hr\"", "\"valueName\": \"HR\""),
    );
    let found = check_pack(Some(&device), Some(&fhir), None, &[]);
    assert_eq!(kinds(&found), ["ValueNotInFhirTemplate", "ValueNeverMeasured"]);
    assert_eq!(
        found[0].finding.suggestion.as_deref(),
        Some("Letter case counts: write \"hr\".")
    );
    assert_eq!(found[1].file, PackFile::Fhir);
}

#[test]
fn third_file_is_checked_against_the_fhir_mapping() {
    let fhir = fhir_mapping(&fhir_template(GOOD_HEART_RATE));
    let agent = r#"{ "types": { "hartrate": {}, "heartrate": { "performer": ["ward"], "values": {
        "pulse": {}, "hr": { "dataAbsentReason": { "x": "eror" }, "system": "http://unitsofmeasure.org", "code": "bpm" } } } } }"#;
    let found = check_pack(None, Some(&fhir), Some(agent), &[]);
    let mut kinds = kinds(&found);
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "NoFhirTemplate",
            "NonUcumUnit",
            "NotAReference",
            "UnknownDataAbsentReason",
            "ValueNotInFhirTemplate"
        ]
    );
    assert!(
        found
            .iter()
            .all(|f| f.file == PackFile::Agent && f.finding.place.is_some())
    );
}

#[test]
fn a_template_that_an_earlier_pack_has_too_is_shadowed() {
    let device = device_mapping("CalculatedContent", GOOD_DEVICE);
    let other = device.replace("@hr", "@other");
    let earlier = |text| EarlierPack {
        name: "a-ward",
        device_text: text,
    };
    assert_eq!(
        kinds(&check_pack(Some(&device), None, None, &[earlier(&device)])),
        ["ShadowedTemplate"]
    );
    assert!(check_pack(Some(&device), None, None, &[earlier(&other)]).is_empty());
}

#[test]
fn dates_with_two_readings_are_told_with_the_template() {
    let device = device_mapping("CalculatedContent", GOOD_DEVICE);
    let mapping = DeviceMapping::load(&device).0.unwrap();
    for (time, ambiguous) in [
        ("02/01/2019 22:46:01", true),
        ("2019-02-01T22:46:01Z", false),
        ("02/02/2019", false),
        ("02/13/2019", false),
    ] {
        let text = json!({ "Body": { "hr": 1, "id": "a", "time": time } }).to_string();
        let message = ParsedMessage::from_envelope(text.as_bytes()).unwrap();
        let found = lint_message(&mapping, &message);
        assert_eq!(found.len(), usize::from(ambiguous), "{time}");
        assert!(found.iter().all(|f| f.template == Some(0) && f.place.is_some()));
    }
}

#[test]
fn every_shipped_loinc_code_is_there_once_with_the_right_check_digit() {
    let codes: Vec<&str> = loinc_codes().map(|c| c.code).collect();
    assert!(codes.len() >= 150, "{}", codes.len());
    for (at, code) in codes.iter().enumerate() {
        assert!(has_loinc_check_digit(code), "{code}");
        assert!(!codes[..at].contains(code), "{code}");
    }
    for code in ["8867-3", "8867", "8867-44", "-4", "88a7-4", "12345678-0"] {
        assert!(!has_loinc_check_digit(code), "{code}");
    }
}

#[test]
fn ucum_units_follow_the_grammar() {
    let valid = [
        "1",
        "%",
        "/min",
        "1/min",
        "10*3/uL",
        "10^3/uL",
        "10*-6",
        "mm[Hg]",
        "cm[H2O]",
        "Cel",
        "[degF]",
        "kg/m2",
        "m/s2",
        "mL/min/{1.73_m2}",
        "{beats}/min",
        "{steps}",
        "L/(min.m2)",
        "dyn.s/cm5",
        "mmol/L",
        "mg/dL",
        "[in_i]",
        "[lb_av]",
        "ug/m3",
        "dB",
        "dB[SPL]",
        "mV",
        "uV",
        "kcal",
        "[iU]/L",
        "[IU]/mL",
        "%{Hb}",
        "a",
        "mo",
        "d",
        "h",
        "Hz",
        "kPa",
        "meq/L",
        "mosm/kg",
        "Ohm",
        "[ppm]",
        "L/min",
        "l/min",
        "ml",
        "s-1",
        "m+2",
        "[MET]",
        "B[10.nV]",
        "m[H2O]",
        "/(24.h)",
        "{count}",
        "1.5",
    ];
    for unit in valid {
        assert!(check_ucum(unit).is_ok(), "{unit}: {:?}", check_ucum(unit));
    }
    let other = [
        "",
        "mmHg",
        "bpm",
        "Bpm",
        "count/min",
        "degC",
        "°C",
        "KG",
        "kg m",
        "kg//m",
        "kg/",
        ".kg",
        "(kg",
        "kg)",
        "{a",
        "a}",
        "[degF",
        "mm[Hg]]",
        "steps",
        "kmin",
        "k%",
        "{a{b}}",
        "Cel/min",
        "/Cel",
        "[degF]2",
        "kg-",
        "{µ}",
    ];
    for unit in other {
        assert!(check_ucum(unit).is_err(), "{unit}");
    }
    assert!(check_ucum(&"(".repeat(100_000)).is_err());
    for (text, expected) in [
        ("mmHg", Some("mm[Hg]")),
        ("Bpm", Some("/min")),
        ("Brpm", Some("/min")),
        ("KG", Some("kg")),
        ("degC", Some("Cel")),
        ("steps", Some("{steps}")),
        ("mg / dl", Some("mg/dl")),
        ("whatever", None),
    ] {
        assert_eq!(suggest_ucum(text).as_deref(), expected, "{text}");
    }
}
