//! What the hub refuses: one event of many, all of them, too much at a time, for now.

use super::*;
use crate::forward::http::HttpErrorKind;

#[test]
fn the_event_that_the_hub_refuses_is_found_and_the_others_arrive_in_order() {
    let mut bench = Bench::new(
        |_| {},
        |request| {
            response(if bodies(request).iter().any(|b| b == "5" || b == "14") {
                400
            } else {
                201
            })
        },
    );
    let delivery = bench.deliver(numbered(20));
    assert_eq!(dead(&delivery.fates), [4, 13]);
    assert_eq!(delivery.link, Link::Up);
    let taken: Vec<u64> = bench
        .seen()
        .iter()
        .map(bodies)
        .filter(|bodies| !bodies.iter().any(|b| b == "5" || b == "14"))
        .flatten()
        .map(|body| body.parse().unwrap())
        .collect();
    let expected: Vec<u64> = (1..=20).filter(|n| *n != 5 && *n != 14).collect();
    assert_eq!(taken, expected);
}

#[test]
fn a_hub_that_refuses_everything_costs_no_event_at_first() {
    let mut bench = Bench::new(|_| {}, |_| response(400));
    for _ in 0..2 {
        let delivery = bench.deliver(numbered(4));
        assert_eq!(dead(&delivery.fates), [0_usize; 0]);
        assert!(matches!(delivery.link, Link::Down { .. }));
    }
    // The third attempt gives the first event up, so that one bad event cannot block the others for ever.
    assert_eq!(dead(&bench.deliver(numbered(4)).fates), [0]);
}

#[test]
fn a_smaller_tier_is_learned_and_an_event_above_the_limit_is_given_up_alone() {
    let mut bench = Bench::new(
        |config| config.max_batch_bytes = 100_000,
        |request| response(if request.body.len() > 20_000 { 413 } else { 201 }),
    );
    let mut messages: Vec<RawMessage> = (0..40).map(|n| message(n, &[b'x'; 1500], "d1")).collect();
    messages.insert(3, message(90, &[b'y'; 30_000], "d1"));
    messages.insert(9, message(91, &[b'z'; 120_000], "d1"));
    let delivery = bench.deliver(messages.clone());
    assert_eq!(dead(&delivery.fates), [3, 9]);
    assert!(
        delivery
            .fates
            .iter()
            .enumerate()
            .all(|(n, fate)| n == 3 || n == 9 || *fate == Fate::Delivered)
    );
    bench.seen();
    messages.remove(9);
    messages.remove(3);
    bench.deliver(messages);
    let refused = bench
        .seen()
        .iter()
        .filter(|request| request.body.len() > 20_000)
        .count();
    assert!(refused <= 2, "the size is known by now: {refused}");
}

#[test]
fn whatever_is_not_created_leaves_the_rest_where_it_is() {
    let cases: Vec<(Result<HttpResponse, HttpError>, &str)> = vec![
        (response(200), "EventHubProducerClientException"),
        (response(401), "UnauthorizedAccessEventHubException"),
        (response(403), "UnauthorizedAccessEventHubException"),
        (response(404), "InvalidEventHubException"),
        (response(410), "InvalidEventHubException"),
        (response(429), "EventHubProducerClientException"),
        (response(500), "EventHubProducerClientException"),
        (
            Err(HttpError::new(HttpErrorKind::Reset, "cut")),
            "EventHubProducerClientException",
        ),
    ];
    for (answer, name) in cases {
        let script = answer.clone();
        let mut bench = Bench::new(
            |config| config.max_batch_bytes = 3000,
            move |request| match bodies(request).contains(&"1".to_owned()) {
                true => response(201),
                false => script.clone(),
            },
        );
        let mut messages = numbered(3);
        messages.push(message(4, &[b'x'; 400], "d1"));
        let delivery = bench.deliver(messages);
        let delivered = delivery
            .fates
            .iter()
            .take_while(|fate| **fate == Fate::Delivered)
            .count();
        assert!((1..4).contains(&delivered), "{answer:?}");
        assert!(
            delivery.fates[delivered..]
                .iter()
                .all(|fate| *fate == Fate::Retry)
        );
        match delivery.link {
            Link::Down { error, .. } => assert_eq!(error.name, name),
            other => panic!("{answer:?}: {other:?}"),
        }
    }
}

#[test]
fn a_throttled_hub_says_how_long_and_a_wrong_clock_is_no_alarm() {
    let busy = HttpResponse {
        status: 503,
        headers: vec![("retry-after".to_owned(), "11".to_owned())],
        body: Payload::default(),
    };
    let mut bench = Bench::new(|_| {}, move |_| Ok(busy.clone()));
    match bench.deliver(numbered(1)).link {
        Link::Down { retry_after, .. } => assert_eq!(retry_after.map(|d| d.as_secs()), Some(11)),
        other => panic!("{other:?}"),
    }
    clock::simulate(stamp().wall, async {
        clock::simulate_trust(false);
        let bench = Bench::new(|_| {}, |_| response(401));
        let delivery = bench.destination.deliver_messages(numbered(1)).await;
        assert_eq!(
            (delivery.fates, delivery.link),
            (vec![Fate::Retry], Link::WaitingForClock)
        );
    })
    .unwrap();
}
