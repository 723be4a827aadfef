//! What answers mean, and the destination over a scripted wire; the real wire is tested against RabbitMQ and an endpoint on
//! another implementation in the package of whole-system tests.

use super::*;
use crate::clock;
use crate::forward::Link;
use iomt_mapping::Timestamp;

fn condition(name: &str, description: &str) -> Condition {
    Condition {
        name: name.to_owned(),
        description: description.to_owned(),
    }
}

fn ended(name: &str) -> Answer {
    Answer::Ended {
        condition: Some(condition(name, "")),
        sent: false,
    }
}

fn rejected(name: &str) -> Answer {
    Answer::Rejected(Some(condition(name, "")))
}

#[test]
fn every_answer_has_the_meaning_and_the_name_of_the_rest_interface() {
    let refused = |status| Answer::TokenRefused {
        status,
        description: String::new(),
    };
    let lost = Answer::Ended {
        condition: None,
        sent: true,
    };
    let gone = Answer::Ended {
        condition: None,
        sent: false,
    };
    let not_here = Answer::Released { not_here: true };
    let released = Answer::Released { not_here: false };
    for (answer, expected) in [
        (Answer::Accepted, "taken"),
        (Answer::TooLarge, "too large"),
        (rejected("amqp:link:message-size-exceeded"), "too large"),
        (ended("amqp:link:message-size-exceeded"), "too large"),
        (
            rejected("amqp:not-allowed"),
            "refused EventHubProducerClientException",
        ),
        (
            rejected("com.microsoft:argument-error"),
            "refused EventHubProducerClientException",
        ),
        (Answer::Rejected(None), "refused EventHubProducerClientException"),
        (not_here, "refused EventHubProducerClientException"),
        (released, "down EventHubProducerClientException 4"),
        (
            rejected("com.microsoft:server-busy"),
            "down EventHubProducerClientException 4",
        ),
        (
            ended("com.microsoft:server-busy"),
            "down EventHubProducerClientException 4",
        ),
        (Answer::NoCredit, "down EventHubProducerClientException 4"),
        (
            rejected("com.microsoft:timeout"),
            "down EventHubProducerClientException",
        ),
        (
            rejected("amqp:internal-error"),
            "down EventHubProducerClientException",
        ),
        (
            ended("amqp:link:detach-forced"),
            "down EventHubProducerClientException",
        ),
        (ended("amqp:not-allowed"), "down EventHubProducerClientException"),
        (gone, "down EventHubProducerClientException"),
        (lost, "broken EventHubProducerClientException"),
        (Answer::NoDisposition, "broken EventHubProducerClientException"),
        (
            ended("amqp:unauthorized-access"),
            "down UnauthorizedAccessEventHubException",
        ),
        (
            rejected("amqp:unauthorized-access"),
            "down UnauthorizedAccessEventHubException",
        ),
        (
            ended("amqp:resource-limit-exceeded"),
            "down UnauthorizedAccessEventHubException",
        ),
        (refused(401), "down UnauthorizedAccessEventHubException"),
        (refused(503), "down EventHubProducerClientException 4"),
        (refused(404), "down InvalidEventHubException"),
        (ended("amqp:not-found"), "down InvalidEventHubException"),
        (
            ended("com.microsoft:entity-disabled"),
            "down InvalidEventHubException",
        ),
    ] {
        let link = |link: Link| match link {
            Link::Down { error, retry_after } => {
                let after = retry_after.map_or(String::new(), |after| format!(" {}", after.as_secs()));
                format!("{}{after}", error.name)
            }
            other => format!("{other:?}"),
        };
        let meant = match verdict(&answer, ClockTrust::Always) {
            Verdict::Taken => "taken".to_owned(),
            Verdict::TooLarge => "too large".to_owned(),
            Verdict::Refused(error) => format!("refused {}", error.name),
            Verdict::Broken(of) => format!("broken {}", link(of)),
            Verdict::Down(of) => format!("down {}", link(of)),
        };
        assert_eq!(meant, expected, "{answer:?}");
    }
}

#[test]
fn a_refused_token_blames_the_clock_when_the_hub_names_another_time() {
    let refusal = Answer::TokenRefused {
        status: 401,
        description: "ExpiredToken: The token is expired. TrackingId:0f_B12, SystemTracker:x, Timestamp:2026-09-21T14:53:20"
            .to_owned(),
    };
    clock::simulate(
        Timestamp::from_ticks(17_900_000_000_000_000).unwrap(),
        async move {
            match verdict(&refusal, ClockTrust::Always) {
                Verdict::Down(Link::Down { error, .. }) => {
                    assert!(error.text.contains("40 minutes off"), "{}", error.text);
                    assert_eq!(error.name, "UnauthorizedAccessEventHubException");
                }
                other => panic!("{other:?}"),
            }
            clock::simulate_trust(false);
            assert_eq!(
                verdict(&refusal, ClockTrust::Ntp),
                Verdict::Down(Link::WaitingForClock)
            );
        },
    )
    .unwrap();
}

#[test]
fn the_header_of_a_request_is_the_credential() {
    let sas = "SharedAccessSignature sr=https%3A%2F%2Fw&sig=x&se=1700000000&skn=send";
    let password = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "gateway:a:b");
    // {"exp":1700000000}
    let jwt = "e30.eyJleHAiOjE3MDAwMDAwMDB9.sig";
    for (header, expected) in [
        (
            sas.to_owned(),
            Some(Credential::Token {
                kind: "servicebus.windows.net:sastoken",
                text: sas.to_owned(),
                expires: Some(1_700_000_000),
            }),
        ),
        (
            format!("Bearer {jwt}"),
            Some(Credential::Token {
                kind: "jwt",
                text: jwt.to_owned(),
                expires: Some(1_700_000_000),
            }),
        ),
        (
            "Bearer opaque".to_owned(),
            Some(Credential::Token {
                kind: "jwt",
                text: "opaque".to_owned(),
                expires: None,
            }),
        ),
        (
            format!("Basic {password}"),
            Some(Credential::Password {
                username: "gateway".to_owned(),
                password: "a:b".to_owned(),
            }),
        ),
        (String::new(), None),
    ] {
        let credential = Credential::of_header(&header);
        assert!(
            !format!("{credential:?}").contains("1700000000"),
            "no secret is shown"
        );
        assert!(credential == expected, "{header}");
    }
}
