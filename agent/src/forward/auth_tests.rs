use super::*;
use crate::forward::http::{HttpClient, HttpResponse};
use crate::message::Payload;
use iomt_mapping::Timestamp;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// A token endpoint that gives its answers in turn and keeps what it was asked.
#[derive(Default)]
pub(super) struct Endpoint {
    pub answers: Mutex<VecDeque<HttpResponse>>,
    pub asked: Mutex<Vec<HttpRequest>>,
}

impl HttpClient for Endpoint {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.asked.lock().unwrap().push(request);
        self.answers
            .lock()
            .unwrap()
            .pop_front()
            .ok_or_else(|| HttpError::new(HttpErrorKind::Connect, "nobody"))
    }
}

pub(super) fn endpoint(answers: &[(u16, &str)]) -> (Arc<Endpoint>, Http) {
    let endpoint = Arc::new(Endpoint::default());
    endpoint
        .answers
        .lock()
        .unwrap()
        .extend(answers.iter().map(|(status, body)| HttpResponse {
            status: *status,
            headers: Vec::new(),
            body: Payload((*body).to_owned().into()),
        }));
    let http = Http::inline(Arc::clone(&endpoint) as Arc<dyn HttpClient>);
    (endpoint, http)
}

pub(super) fn simulate<T>(future: impl Future<Output = T>) -> T {
    let start = Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
    clock::simulate(start, future).unwrap().0
}

fn client_credentials(folder: &std::path::Path) -> AuthConfig {
    std::fs::write(folder.join("secret"), "s&cret\n").unwrap();
    AuthConfig::ClientCredentials {
        token_url: "https://login.example/token".to_owned(),
        client_id: "bedside".to_owned(),
        secret: Some(SecretRef::File(folder.join("secret"))),
        certificate: None,
        key: None,
        scope: Some("https://fhir.example/.default".to_owned()),
    }
}

const BASE: &str = "https://fhir.example/r4";

#[test]
fn basic_and_bearer_follow_their_secret_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "one\n").unwrap();
    let (_, http) = endpoint(&[]);
    let secret = SecretRef::File(file.clone());
    let basic = AuthConfig::Basic {
        username: "gateway".to_owned(),
        password: secret.clone(),
    };
    simulate(async {
        let mut basic = Authorizer::new(&basic, BASE, http.clone(), http.clone()).unwrap();
        let request = basic.authorize(HttpRequest::get(BASE)).await.unwrap();
        assert_eq!(request.authorization.as_deref(), Some("Basic Z2F0ZXdheTpvbmU="));

        let bearer = AuthConfig::Bearer { token: secret };
        let mut bearer = Authorizer::new(&bearer, BASE, http.clone(), http).unwrap();
        let request = bearer.authorize(HttpRequest::get(BASE)).await.unwrap();
        assert_eq!(request.authorization.as_deref(), Some("Bearer one"));
        assert!(
            !bearer.renew().await,
            "the same token would only be refused again"
        );
        bearer.authorize(HttpRequest::get(BASE)).await.unwrap();
        std::fs::write(&file, "two").unwrap();
        assert!(bearer.renew().await);
        let request = bearer.authorize(HttpRequest::get(BASE)).await.unwrap();
        assert_eq!(request.authorization.as_deref(), Some("Bearer two"));
    });
}

#[test]
fn a_token_goes_to_no_other_host() {
    let folder = tempfile::tempdir().unwrap();
    let config = client_credentials(folder.path());
    let (_, http) = endpoint(&[(200, r#"{"access_token":"t","expires_in":3600}"#)]);
    simulate(async {
        let mut authorizer = Authorizer::new(&config, BASE, http.clone(), http).unwrap();
        for elsewhere in [
            "https://fhir.example:8443/r4/Device",
            "http://fhir.example/r4/Device",
            "https://fhir.example.evil.example/r4",
            "https://evil.example/r4",
        ] {
            let request = authorizer.authorize(HttpRequest::get(elsewhere)).await.unwrap();
            assert_eq!(request.authorization, None, "{elsewhere}");
        }
        let request = HttpRequest::get("https://FHIR.example:443/r4/Device");
        let request = authorizer.authorize(request).await.unwrap();
        assert_eq!(request.authorization.as_deref(), Some("Bearer t"));
    });
}

#[test]
fn a_token_is_fetched_once_before_it_expires_and_once_after_a_401() {
    let folder = tempfile::tempdir().unwrap();
    let config = client_credentials(folder.path());
    let (endpoint, http) = endpoint(&[
        (200, r#"{"access_token":"t1","expires_in":3600}"#),
        (200, r#"{"access_token":"t2","expires_in":3600}"#),
        (200, r#"{"access_token":"t3","expires_in":3600}"#),
    ]);
    simulate(async {
        let mut authorizer = Authorizer::new(&config, BASE, http.clone(), http).unwrap();
        let mut used = Vec::new();
        for minutes in [0, 54, 2] {
            embassy_time::Timer::after_secs(minutes * 60).await;
            let request = authorizer.authorize(HttpRequest::get(BASE)).await.unwrap();
            used.push(request.authorization.unwrap());
        }
        assert_eq!(
            used,
            ["Bearer t1", "Bearer t1", "Bearer t2"],
            "renewed five minutes early"
        );
        assert!(authorizer.renew().await);
        let request = authorizer.authorize(HttpRequest::get(BASE)).await.unwrap();
        assert_eq!(request.authorization.as_deref(), Some("Bearer t3"));
        let asked = endpoint.asked.lock().unwrap();
        let form = std::str::from_utf8(asked[0].body.bytes()).unwrap();
        assert_eq!(
            form,
            "grant_type=client_credentials&client_id=bedside&client_secret=s%26cret&scope=https%3A%2F%2Ffhir.example%2F.default"
        );
    });
}

#[test]
fn a_refusal_and_an_outage_of_the_token_endpoint_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let config = client_credentials(folder.path());
    for (status, body, refused) in [
        (
            400,
            r#"{"error":"invalid_client","error_description":"s&cret is wrong"}"#,
            true,
        ),
        (503, "<html>", false),
    ] {
        let (_, http) = endpoint(&[(status, body)]);
        let error = simulate(async {
            let mut authorizer = Authorizer::new(&config, BASE, http.clone(), http).unwrap();
            authorizer.authorize(HttpRequest::get(BASE)).await.unwrap_err()
        });
        assert_eq!(matches!(error, AuthError::Refused(_)), refused, "{error:?}");
        assert!(!error.text().contains("s&cret"));
    }
}
