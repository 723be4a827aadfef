//! The server over HTTP, with the client library that the agent uses.

use super::*;
use serde_json::json;
use ureq::http;

async fn server() -> FhirServer {
    FhirServer::serve(TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap()
}

/// Sends `METHOD path`, with headers and a body, and gives status, ETag and resource.
async fn call(
    server: &FhirServer,
    request: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> (u16, String, Value) {
    let (method, path) = request.split_once(' ').unwrap();
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("{}/{path}", server.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .header("content-type", "application/fhir+json")
        .body(body.map(Value::to_string).unwrap_or_default())
        .unwrap();
    let answered = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut response = agent.run(request).unwrap();
        let etag = response
            .headers()
            .get("etag")
            .map(|tag| tag.to_str().unwrap().to_owned());
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), etag.unwrap_or_default(), text)
    });
    let (status, etag, text) = answered.await.unwrap();
    (status, etag, serde_json::from_str(&text).unwrap_or_default())
}

fn patient() -> Value {
    json!({ "resourceType": "Patient", "id": "p1", "identifier": [{ "value": "patient-12" }] })
}

fn observation(id: &str, value: i32) -> Value {
    json!({
        "resourceType": "Observation",
        "id": id,
        "identifier": [{ "system": "urn:agent", "value": id }],
        "status": "final",
        "code": { "coding": [{ "system": "http://loinc.org", "code": "8867-4" }] },
        "subject": { "reference": "Patient/p1" },
        "effectiveDateTime": "2026-03-01T07:15:30Z",
        "valueQuantity": { "value": value, "system": "http://unitsofmeasure.org", "code": "/min" }
    })
}

#[tokio::test]
async fn a_resource_has_versions_and_if_match_guards_them() {
    let server = server().await;
    let (status, etag, created) = call(&server, "PUT Patient/p1", &[], Some(&patient())).await;
    assert_eq!((status, etag.as_str()), (201, "W/\"1\""));
    assert_eq!(created["meta"]["versionId"], "1");
    assert!(created["meta"]["lastUpdated"].as_str().unwrap().ends_with('Z'));
    for (headers, expected) in [
        (("if-match", "W/\"1\""), 200),
        (("if-match", "W/\"1\""), 412),
        (("if-none-match", "*"), 412),
        (("if-match", "W/\"2\""), 200),
    ] {
        let (status, _, answer) = call(&server, "PUT Patient/p1", &[headers], Some(&patient())).await;
        assert_eq!(status, expected, "{headers:?} {answer}");
    }
    let (status, etag, _) = call(&server, "GET Patient/p1", &[], None).await;
    assert_eq!((status, etag.as_str()), (200, "W/\"3\""));
    let (status, ..) = call(&server, "GET Patient/p1", &[("if-none-match", "W/\"3\"")], None).await;
    assert_eq!(status, 304);
    let (status, _, outcome) = call(&server, "GET Patient/other", &[], None).await;
    assert_eq!(
        (status, &outcome["resourceType"]),
        (404, &json!("OperationOutcome"))
    );
}

#[tokio::test]
async fn what_is_wrong_with_an_observation_is_said() {
    let server = server().await;
    server.put(patient()).unwrap();
    let change = |change: &dyn Fn(&mut Value)| {
        let mut resource = observation("o1", 70);
        change(&mut resource);
        resource
    };
    let cases = [
        (
            change(&|o| o["status"] = json!("bogus")),
            400,
            "status is not one of",
        ),
        (
            change(&|o| drop(o.as_object_mut().unwrap().remove("code"))),
            400,
            "Observation.code is missing",
        ),
        (
            change(&|o| o["subject"]["reference"] = json!("Patient/p2")),
            400,
            "Observation.subject refers to nothing",
        ),
        (
            change(&|o| o["device"] = json!({ "reference": "Patient/p1" })),
            400,
            "Observation.device refers",
        ),
        (
            change(&|o| o["valueString"] = json!("x")),
            400,
            "more than one of",
        ),
        (
            change(&|o| o["valueQuantity"]["value"] = json!("70")),
            400,
            "not a number",
        ),
        (
            change(&|o| o["valueQuantities"] = json!({})),
            400,
            "no element valueQuantities",
        ),
        (
            change(&|o| o["dataAbsentReason"] = json!({ "text": "x" })),
            422,
            "obs-6",
        ),
        (change(&|o| o["id"] = json!("o2")), 400, "differ"),
        (
            change(&|o| o["component"] = json!([{ "valueString": "x" }])),
            400,
            "component.code is missing",
        ),
    ];
    for (resource, expected, said) in cases {
        let (status, _, outcome) = call(&server, "PUT Observation/o1", &[], Some(&resource)).await;
        let text = outcome["issue"][0]["diagnostics"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            status == expected && text.contains(said),
            "{said}: {status} {text}"
        );
    }
    assert_eq!(server.counts().observations, 0);
    assert_eq!(server.counts().refused, 10);
}

#[tokio::test]
async fn what_it_does_not_do_it_says() {
    let server = server().await;
    for (request, expected) in [
        ("GET Practitioner/1", 404),
        ("DELETE Patient/p1", 501),
        ("GET Patient/p1/_history", 501),
        ("GET Patient?name=x", 501),
        ("PATCH Patient/p1", 501),
    ] {
        let (status, _, outcome) = call(&server, request, &[], None).await;
        assert_eq!(
            (status, &outcome["resourceType"]),
            (expected, &json!("OperationOutcome")),
            "{request}"
        );
    }
    let (status, _, capabilities) = call(&server, "GET metadata?_summary=true", &[], None).await;
    assert_eq!((status, &capabilities["fhirVersion"]), (200, &json!("4.0.1")));
}

#[tokio::test]
async fn conditions_find_by_identifier() {
    let server = server().await;
    let device = json!({ "resourceType": "Device", "identifier": [{ "system": "urn:x", "value": "a b|1" }] });
    let condition = [("if-none-exist", "identifier=urn:x%7Ca%20b%5C%7C1")];
    let (status, _, first) = call(&server, "POST Device", &condition, Some(&device)).await;
    assert_eq!(status, 201);
    let (status, _, again) = call(&server, "POST Device", &condition, Some(&device)).await;
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let (status, etag, _) = call(
        &server,
        "PUT Device?identifier=urn:x%7Ca%20b%5C%7C1",
        &[],
        Some(&device),
    )
    .await;
    assert_eq!((status, etag.as_str()), (200, "W/\"2\""));
    call(&server, "POST Device", &[], Some(&device)).await;
    let (status, ..) = call(&server, "POST Device", &condition, Some(&device)).await;
    assert_eq!(status, 412);
    let (_, _, found) = call(&server, "GET Device?identifier=a%20b%5C%7C1&_count=1", &[], None).await;
    assert_eq!(
        (&found["total"], found["entry"].as_array().unwrap().len()),
        (&json!(2), 1)
    );
    let next = found["link"][0]["url"]
        .as_str()
        .unwrap()
        .replace(&format!("{}/", server.url()), "");
    let (_, _, second) = call(&server, &format!("GET {next}"), &[], None).await;
    assert_ne!(
        second["entry"][0]["resource"]["id"],
        found["entry"][0]["resource"]["id"]
    );
    assert!(second.get("link").is_none());
}

#[tokio::test]
async fn entries_of_a_batch_stand_alone() {
    let server = server().await;
    let put = |resource: Value| {
        let url = format!(
            "{}/{}",
            resource["resourceType"].as_str().unwrap(),
            resource["id"].as_str().unwrap()
        );
        json!({ "resource": resource, "request": { "method": "PUT", "url": url } })
    };
    let mut wrong = observation("o2", 71);
    wrong["status"] = json!("bogus");
    let bundle = json!({ "resourceType": "Bundle", "type": "batch", "entry": [
        put(patient()),
        put(observation("o1", 70)),
        put(wrong),
        { "request": { "method": "GET", "url": "Observation?identifier=urn:agent|o1" } },
    ] });
    let (status, _, answer) = call(&server, "POST ", &[], Some(&bundle)).await;
    assert_eq!((status, &answer["type"]), (200, &json!("batch-response")));
    let statuses: Vec<&str> = answer["entry"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["response"]["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        statuses,
        ["201 Created", "201 Created", "400 Bad Request", "200 OK"]
    );
    assert_eq!(answer["entry"][1]["response"]["etag"], "W/\"1\"");
    assert_eq!(
        answer["entry"][2]["response"]["outcome"]["issue"][0]["code"],
        "code-invalid"
    );
    assert_eq!(answer["entry"][3]["resource"]["total"], 1);
    assert_eq!(
        server.last_observation().unwrap()["valueQuantity"]["value"],
        json!(70)
    );
}

#[tokio::test]
async fn a_transaction_is_done_whole_or_not_at_all() {
    let server = server().await;
    let mut reading = observation("o1", 70);
    reading["subject"]["reference"] = json!("urn:uuid:1");
    let transaction = |reading: &Value| {
        let mut patient = patient();
        patient.as_object_mut().unwrap().remove("id");
        json!({ "resourceType": "Bundle", "type": "transaction", "entry": [
            { "resource": reading, "request": { "method": "PUT", "url": "Observation/o1" } },
            { "fullUrl": "urn:uuid:1", "resource": patient,
              "request": { "method": "POST", "url": "Patient", "ifNoneExist": "identifier=patient-12" } },
        ] })
    };
    let mut wrong = reading.clone();
    wrong["device"] = json!({ "reference": "Device/none" });
    let (status, _, outcome) = call(&server, "POST ", &[], Some(&transaction(&wrong))).await;
    assert_eq!(
        (status, &outcome["resourceType"]),
        (400, &json!("OperationOutcome"))
    );
    assert_eq!((server.counts().patients, server.counts().observations), (0, 0));

    for expected in ["201 Created", "200 OK"] {
        let (status, _, answer) = call(&server, "POST ", &[], Some(&transaction(&reading))).await;
        assert_eq!(
            (status, &answer["entry"][0]["response"]["status"]),
            (200, &json!(expected))
        );
    }
    let patients = server.resources(Kind::Patient);
    assert_eq!(patients.len(), 1);
    let reference = format!("Patient/{}", patients[0]["id"].as_str().unwrap());
    assert_eq!(server.observations()[0]["subject"]["reference"], json!(reference));
}

#[tokio::test]
async fn faults_are_those_of_real_servers() {
    let server = server().await;
    server.set_fault(Some(Fault::Refuse(503, Some(7))));
    let (status, ..) = call(&server, "PUT Patient/p1", &[], Some(&patient())).await;
    assert_eq!((status, server.counts().patients), (503, 0));
    server.set_fault(Some(Fault::LoseAnswer));
    let url = format!("{}/Patient/p1", server.url());
    let lost = tokio::task::spawn_blocking(move || {
        ureq::put(url)
            .content_type("application/fhir+json")
            .send(patient().to_string())
    });
    assert!(lost.await.unwrap().is_err());
    assert_eq!(server.counts().patients, 1);
}
