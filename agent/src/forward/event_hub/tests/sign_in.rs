//! Signatures and tokens: sent, renewed, over, refused.

use super::*;

#[test]
fn a_ready_made_token_is_sent_as_it_is_and_a_new_one_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let token = |number: u32| format!("SharedAccessSignature sr=x&sig=y{number}&se=1900000000&skn=z");
    std::fs::write(file.path(), token(1) + "\n").unwrap();
    let value = SecretRef::File(file.path().to_owned());
    let mut bench = Bench::new(
        |config| {
            config.auth = AuthConfig::Sas {
                key_name: None,
                key: None,
                token: Some(value),
            }
        },
        |_| response(201),
    );
    for number in [1, 2] {
        std::fs::write(file.path(), token(number)).unwrap();
        assert_eq!(bench.deliver(numbered(1)).link, Link::Up);
        assert_eq!(bench.seen()[0].authorization, Some(token(number)));
    }
    std::fs::write(file.path(), "secret-key").unwrap();
    match bench.deliver(numbered(1)).link {
        Link::Down { error, .. } => {
            assert!(error.text.contains("the ready-made token is none") && !error.text.contains("secret-key"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ready_made_token_that_is_over_is_not_sent_and_named_unless_the_clock_is_to_blame() {
    for (trusted, expected) in [(true, "has expired"), (false, "clock")] {
        clock::simulate(stamp().wall, async move {
            clock::simulate_trust(trusted);
            let file = tempfile::NamedTempFile::new().unwrap();
            let text = "Endpoint=sb://ward.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature \
                        sr=x&sig=y&se=1700000000&skn=z";
            std::fs::write(file.path(), text).unwrap();
            let value = SecretRef::File(file.path().to_owned());
            let change = |config: &mut EventHubConfig| config.auth = AuthConfig::ConnectionString { value };
            let bench = Bench::new(change, |_| response(201));
            let delivery = bench.destination.deliver_messages(numbered(1)).await;
            match delivery.link {
                Link::Down { error, .. } => assert!(trusted && error.text.contains(expected), "{}", error.text),
                other => assert!(!trusted && other == Link::WaitingForClock, "{other:?}"),
            }
            assert_eq!(delivery.fates, vec![Fate::Retry]);
            assert!(bench.seen().is_empty(), "an expired token must not travel");
        })
        .unwrap();
    }
}

#[test]
fn a_refused_token_blames_the_clock_only_when_it_differs_from_that_of_the_hub() {
    for (date, expected) in [
        (Some("Mon, 21 Sep 2026 14:53:20 GMT"), "40 minutes off"),
        (Some("Mon, 21 Sep 2026 13:33:20 GMT"), "40 minutes off"),
        (Some("Mon, 21 Sep 2026 14:14:00 GMT"), "check key name"),
        (None, "check key name"),
    ] {
        clock::simulate(stamp().wall, async move {
            let refusal = HttpResponse {
                status: 401,
                headers: date
                    .iter()
                    .map(|date| ("date".to_owned(), (*date).to_owned()))
                    .collect(),
                body: Payload::default(),
            };
            let bench = Bench::new(|_| {}, move |_| Ok(refusal.clone()));
            match bench.destination.deliver_messages(numbered(1)).await.link {
                Link::Down { error, .. } => {
                    assert!(error.text.contains(expected), "{date:?}: {}", error.text)
                }
                other => panic!("{other:?}"),
            }
        })
        .unwrap();
    }
}

#[test]
fn an_application_of_entra_gets_a_token_for_event_hubs_and_renews_it_once_at_a_refusal() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s").unwrap();
    let client = AuthConfig::ClientCredentials {
        token_url: "https://login.example/t/oauth2/v2.0/token".to_owned(),
        client_id: "bedside".to_owned(),
        secret: Some(SecretRef::File(secret.path().to_owned())),
        certificate: None,
        key: None,
        scope: None,
    };
    let tokens = std::sync::atomic::AtomicU32::new(0);
    let mut bench = Bench::new(
        |config| config.auth = client,
        move |request| {
            if request.url.starts_with("https://login.example/") {
                let number = tokens.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut answer = response(200)?;
                let text = format!("{{\"access_token\":\"t{number}\",\"expires_in\":3600}}");
                answer.body = Payload(text.into_bytes().into());
                return Ok(answer);
            }
            response(match request.authorization.as_deref() {
                Some("Bearer t1") => 201,
                _ => 401,
            })
        },
    );
    assert_eq!(bench.deliver(numbered(2)).link, Link::Up);
    assert_eq!(bench.deliver(numbered(2)).link, Link::Up);
    let seen = bench.seen();
    let asked: Vec<&HttpRequest> = seen
        .iter()
        .filter(|request| request.url.contains("/token"))
        .collect();
    assert_eq!(asked.len(), 2, "one token, and one more after the refusal");
    let form = String::from_utf8(asked[0].body.bytes().to_vec()).unwrap();
    assert!(
        form.contains("scope=https%3A%2F%2Feventhubs.azure.net%2F.default"),
        "{form}"
    );
}
